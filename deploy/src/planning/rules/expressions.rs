//! Rules of the operators' own: expressions of the Common Expression Language (CEL).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr, IdedExpr};
use cel::{Context, Program};
use serde::Serialize;
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::super::entries::Entries;
use super::super::{Circumstances, Configuration};
use crate::config::{
    Environment, Field, ManifestServer, Problem, RuleScope, RuleWritten, Server, Source, near_miss, value_of,
};
use crate::plan::{Plan, RollbackPolicy, Rollout};

/// Longest expression, in bytes.
const EXPRESSION_BYTES_MAX: usize = 4096;

/// The rules of an environment, compiled, and what all of them see.
pub(super) struct Expressions<'a> {
    configuration: &'a Configuration,
    rules: Vec<Rule<'a>>,
    manifest: Value,
    common: Context<'static, 'static>,
}

struct Rule<'a> {
    id: &'a str,
    source: &'a Source,
    written: &'a Spanned<RuleWritten>,
    program: Program,
}

/// What the rules of a scope see besides what those of the wider ones see.
fn variables(scope: RuleScope) -> &'static [&'static str] {
    match scope {
        RuleScope::Manifest => &["manifest", "environment", "rollout", "rollback"],
        RuleScope::Server => &["manifest", "environment", "rollout", "rollback", "server", "entry"],
        RuleScope::Instance => {
            &["manifest", "environment", "rollout", "rollback", "server", "entry", "instance", "host", "release"]
        }
    }
}

impl<'a> Expressions<'a> {
    /// Compiles the rules of the environment; what is no expression is a problem.
    pub(super) fn compile(
        configuration: &'a Configuration,
        rollout: &Rollout,
        rollback: &RollbackPolicy,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let (own, environment) = &configuration.environment;
        let mut rules = Vec::new();
        for (id, written) in &environment.rules.custom {
            let source = environment.source_of(own, Field::Rule, id);
            match compiled(source, id, written) {
                Ok(program) => rules.push(Rule { id, source, written, program }),
                Err(problem) => problems.push(problem),
            }
        }
        let mut common = Context::default();
        let mut manifest = Value::Null;
        if !rules.is_empty() {
            manifest = value_of(&configuration.manifest.0);
            set(&mut common, "environment", &about(environment));
            set(&mut common, "rollout", rollout);
            set(&mut common, "rollback", rollback);
            if rules.iter().any(|rule| rule.program.references().has_variable("manifest")) {
                set(&mut common, "manifest", &manifest);
            }
        }
        Self { configuration, rules, manifest, common }
    }

    /// The rules for the manifest as a whole that are broken.
    pub(super) fn of_manifest(&self, problems: &mut Vec<Problem>) -> Vec<(String, Problem)> {
        let source = &self.configuration.manifest.0;
        let at = |message: String| Problem::in_file(source, message);
        self.broken(RuleScope::Manifest, &self.common, "the manifest", &at, problems)
    }

    /// The rules for servers that one server breaks.
    pub(super) fn of_server(
        &self,
        number: usize,
        entry: &ManifestServer,
        source: &Source,
        server: &Server,
        problems: &mut Vec<Problem>,
    ) -> Vec<(String, Problem)> {
        if !self.has(RuleScope::Server) {
            return Vec::new();
        }
        let mut context = self.common.new_inner_scope();
        set(&mut context, "entry", &self.manifest["servers"][number]);
        set(&mut context, "server", &value_of(source));
        let at = |message: String| Problem::at(source, &server.name, message);
        self.broken(RuleScope::Server, &context, entry.server.value.as_str(), &at, problems)
    }

    /// The rules for instances that are broken.
    pub(super) fn of_instances(
        &self,
        plan: &Plan,
        circumstances: &Circumstances,
        entries: &Entries<'_>,
        problems: &mut Vec<Problem>,
    ) -> Vec<(String, Problem)> {
        let mut broken = Vec::new();
        if !self.has(RuleScope::Instance) {
            return broken;
        }
        let (source, manifest) = &self.configuration.manifest;
        for step in plan.steps() {
            let id = &step.instance;
            let (Some(number), Some(release)) = (entries.number(&id.server), &step.release) else { continue };
            let definition = self.configuration.on_hosts.get(id).or_else(|| entries.defined(number));
            let mut context = self.common.new_inner_scope();
            let host = circumstances.hosts.get(&id.host);
            set(&mut context, "entry", &self.manifest["servers"][number]);
            set(&mut context, "server", &definition.map(|(source, _)| value_of(source)));
            set(&mut context, "instance", &json!({ "server": id.server, "host": id.host }));
            set(
                &mut context,
                "host",
                &host.map(|host| json!({ "name": id.host, "address": host.address, "labels": host.labels })),
            );
            let mut seen = serde_json::to_value(release).unwrap_or_default();
            // Stand-ins are values, too.
            if let Some(secrets) = seen.get_mut("secrets") {
                *secrets = release.secrets.keys().cloned().collect();
            }
            set(&mut context, "release", &seen);
            let place = &manifest.servers[number].server;
            let at = |message: String| Problem::at(source, place, message);
            broken.extend(self.broken(RuleScope::Instance, &context, &id.to_string(), &at, problems));
        }
        broken
    }

    fn has(&self, scope: RuleScope) -> bool {
        self.rules.iter().any(|rule| rule.written.value.scope == scope)
    }

    fn broken(
        &self,
        scope: RuleScope,
        context: &Context<'_, '_>,
        what: &str,
        at: &dyn Fn(String) -> Problem,
        problems: &mut Vec<Problem>,
    ) -> Vec<(String, Problem)> {
        let mut broken = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.written.value.scope == scope) {
            let RuleWritten { message, hint, check, .. } = &rule.written.value;
            let wrong = match rule.program.execute(context) {
                Ok(cel::Value::Bool(true)) => continue,
                Ok(cel::Value::Bool(false)) => {
                    let problem = at(format!("{what}: {message}"));
                    let problem = match hint {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    };
                    broken.push((rule.id.to_owned(), problem));
                    continue;
                }
                Ok(other) => (format!("it gives {:?}", other.type_of()), "it must give true or false"),
                Err(error) => (error.to_string(), "ask first whether a field is there: has(server.run.port)"),
            };
            let message = format!("rule `{}` says nothing of {what}: {}", rule.id, wrong.0);
            problems.push(Problem::at(rule.source, check, message).hint(wrong.1));
        }
        broken
    }
}

fn compiled(source: &Source, id: &str, written: &Spanned<RuleWritten>) -> Result<Program, Problem> {
    let RuleWritten { check, scope, .. } = &written.value;
    let wrong = |message: String| Problem::at(source, check, format!("rule `{id}`: {message}"));
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if id.is_empty() || id.len() > 63 || !id.bytes().all(plain) {
        let problem = Problem::at(source, written, format!("`{id}` is not the id of a rule"));
        return Err(problem.hint("lower-case letters, digits, `-` and `_`, at most 63"));
    }
    if check.value.len() > EXPRESSION_BYTES_MAX {
        return Err(wrong(format!("the expression has more than {EXPRESSION_BYTES_MAX} bytes")));
    }
    let program = Program::compile(&check.value).map_err(|errors| match errors.errors.first() {
        Some(error) => {
            let (line, column) = (usize::try_from(error.pos.0), usize::try_from(error.pos.1));
            let (line, column) = (line.unwrap_or(1).max(1), column.unwrap_or(1).saturating_sub(1));
            let message = error.msg.lines().next().unwrap_or_default();
            Problem::within(source, check, line, column, format!("rule `{id}` is no CEL expression: {message}"))
        }
        None => wrong("it is no CEL expression".to_owned()),
    })?;
    let (seen, references) = (variables(*scope), program.references());
    let mut bound = BTreeSet::new();
    bound_in(program.expression(), &mut bound);
    let known = |name: &str| seen.contains(&name) || bound.contains(name) || TYPES.contains(&name);
    let unknown = references.variables().into_iter().filter(|name| !known(name)).min().map(str::to_owned);
    if let Some(unknown) = unknown {
        let hint = near_miss(&unknown, seen.iter().copied());
        let known = format!("it sees {}", seen.join(", "));
        return Err(wrong(format!("there is no `{unknown}`")).hint(hint.unwrap_or(known)));
    }
    drop(references);
    Ok(program)
}

/// The names of types, which are values of CEL (`type(x) == string`).
const TYPES: [&str; 10] = ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"];

/// The names that macros such as `all` give to the items that they go through.
fn bound_in<'e>(expression: &'e IdedExpr, bound: &mut BTreeSet<&'e str>) {
    let entries = |entries: &'e [IdedEntryExpr], bound: &mut BTreeSet<&'e str>| {
        for entry in entries {
            match &entry.expr {
                EntryExpr::StructField(field) => bound_in(&field.value, bound),
                EntryExpr::MapEntry(entry) => {
                    bound_in(&entry.key, bound);
                    bound_in(&entry.value, bound);
                }
            }
        }
    };
    match &expression.expr {
        Expr::Comprehension(of) => {
            bound.insert(&of.iter_var);
            bound.extend(of.iter_var2.as_deref());
            for part in [&of.iter_range, &of.accu_init, &of.loop_cond, &of.loop_step, &of.result] {
                bound_in(part, bound);
            }
        }
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(|part| bound_in(part, bound)),
        Expr::List(list) => list.elements.iter().for_each(|part| bound_in(part, bound)),
        Expr::Select(select) => bound_in(&select.operand, bound),
        Expr::Map(map) => entries(&map.entries, bound),
        Expr::Struct(of) => entries(&of.entries, bound),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

/// What is said of an environment: secrets only by their names.
fn about(environment: &Environment) -> Value {
    let variables: BTreeMap<&String, &String> =
        environment.variables.iter().map(|(name, written)| (name, &written.value)).collect();
    json!({
        "name": environment.name.value,
        "variables": variables,
        "secrets": environment.secrets.keys().collect::<Vec<_>>(),
    })
}

fn set(context: &mut Context<'_, '_>, name: &str, value: &impl Serialize) {
    context.add_variable_from_value(name, of_json(serde_json::to_value(value).unwrap_or_default()));
}

/// A value as CEL takes it from JSON: whole numbers are integers, so that they can be added to the numbers of a rule.
fn of_json(value: Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => value.into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.into(),
        Value::Array(items) => items.into_iter().map(of_json).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, of_json(value))).collect::<HashMap<_, _>>().into()
        }
    }
}
