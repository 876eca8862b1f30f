//! The rules of an environment: what they find broken, and what becomes of that.

mod expressions;
mod inline_secrets;

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::Spanned;

use self::expressions::Expressions;
use super::entries::Entries;
use super::{Configuration, graph, policies};
use crate::config::{
    BUILT_IN_RULES, Field, Manifest, PaceWritten, Problem, Problems, RuleSeverity, Rules, Server, Source, near_miss,
};
use crate::health::Severity;
use crate::ids::ServerName;
use crate::plan::{Pace, Plan, RollbackPolicy, Rollout, RuleOverride};
use crate::release::RuntimeChoice;

/// How many servers are named of those that break a rule by what holds for all of them.
const NAMED_MAX: usize = 10;

/// The broken rules of a configuration, while they are being looked for.
pub(super) struct Findings<'a> {
    configuration: &'a Configuration,
    entries: &'a Entries<'a>,
    broken: Vec<Broken>,
    expressions: Expressions<'a>,
}

/// A rule that does not hold somewhere.
struct Broken {
    rule: String,
    problem: Problem,
}

/// What becomes of broken rules that do not stop the plan.
pub(super) struct Verdict {
    pub(super) warnings: Vec<String>,
    pub(super) overrides: Vec<RuleOverride>,
}

impl<'a> Findings<'a> {
    /// Looks at everything that can be said without rendering. What is wrong with the rules themselves is a problem.
    pub(super) fn of(
        configuration: &'a Configuration,
        entries: &'a Entries<'a>,
        rollout: &Rollout,
        rollback: &RollbackPolicy,
        problems: &mut Vec<Problem>,
    ) -> Self {
        names(configuration, problems);
        let expressions = Expressions::compile(configuration, rollout, rollback, problems);
        let mut findings = Self { configuration, entries, broken: Vec::new(), expressions };
        findings.of_manifest(rollout, rollback);
        findings.of_environment();
        findings.of_paces();
        for (number, entry) in entries.iter().enumerate() {
            let Some((source, server)) = entries.defined(number) else { continue };
            findings.of_server(source, server);
            let broken = findings.expressions.of_server(number, entry, source, server, problems);
            findings.custom(broken);
        }
        for (source, server) in configuration.on_hosts.values() {
            findings.of_server(source, server);
        }
        let broken = findings.expressions.of_manifest(problems);
        findings.custom(broken);
        findings
    }

    /// Looks at every instance as it is rendered.
    pub(super) fn of_instances(&mut self, plan: &Plan, circumstances: &super::Circumstances) -> Result<(), Problems> {
        let mut problems = Vec::new();
        let broken = self.expressions.of_instances(plan, circumstances, self.entries, &mut problems);
        self.custom(broken);
        Problems::none_or(problems)
    }

    /// What stops a plan, what is only told, and what is set aside, each rule for the reason that is given.
    pub(super) fn judge(self, reasons: &BTreeMap<String, String>) -> Result<Verdict, Problems> {
        let Configuration { environment: (source, environment), manifest: (manifest, _), .. } = self.configuration;
        let rules = &environment.rules;
        let among =
            |list: &Option<Vec<Spanned<String>>>, rule: &str| list.iter().flatten().any(|listed| listed.value == rule);
        let mut problems = Vec::new();
        for rule in reasons.keys() {
            let known = BUILT_IN_RULES.into_iter().chain(rules.custom.keys().map(String::as_str));
            if !known.clone().any(|known| known == rule) {
                let problem = Problem::in_file(manifest, format!("there is no rule `{rule}` to set aside"));
                let of = &source.path;
                let hint = near_miss(rule, known)
                    .unwrap_or_else(|| format!("`rules.overridable` of {of} lists those that may be set aside"));
                problems.push(problem.hint(hint));
            } else if !among(&rules.overridable, rule) {
                let message = format!("rule `{rule}` may not be set aside in environment {}", environment.name.value);
                let hint = format!("only those that `rules.overridable` of {} lists may", source.path);
                problems.push(Problem::in_file(manifest, message).hint(hint));
            }
        }
        let mut verdict = Verdict { warnings: Vec::new(), overrides: Vec::new() };
        let mut aside: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Broken { rule, problem } in self.broken {
            let told = format!("{}: {}", problem.place(), problem.message);
            let severity = rules.custom.get(&rule).map(|custom| custom.value.severity);
            if severity == Some(RuleSeverity::Warn) || among(&rules.warn, &rule) {
                verdict.warnings.push(told);
            } else if reasons.contains_key(&rule) {
                aside.entry(rule).or_default().push(told);
            } else {
                problems.push(problem);
            }
        }
        Problems::none_or(problems)?;
        for (rule, reason) in reasons {
            match aside.remove(rule) {
                Some(broken) => {
                    verdict.overrides.push(RuleOverride { rule: rule.clone(), reason: reason.clone(), broken });
                }
                None => verdict.warnings.push(format!("rule `{rule}` is set aside, and is not broken")),
            }
        }
        Ok(verdict)
    }

    fn add(&mut self, rule: &str, problem: Problem) {
        let environment = &self.configuration.environment.1.name.value;
        let problem = problem.of_rule(rule, environment.as_str());
        self.broken.push(Broken { rule: rule.to_owned(), problem });
    }

    fn custom(&mut self, broken: Vec<(String, Problem)>) {
        broken.into_iter().for_each(|(rule, problem)| self.add(&rule, problem));
    }

    fn rules(&self) -> &'a Rules {
        &self.configuration.environment.1.rules
    }

    fn of_manifest(&mut self, rollout: &Rollout, rollback: &RollbackPolicy) {
        let (source, manifest) = &self.configuration.manifest;
        let (environment_source, environment) = &self.configuration.environment;
        let rules = self.rules();
        if rules.rollback == Some(true) && !rollback.enabled {
            let source = if manifest.rollback.enabled.is_some() { source } else { environment_source };
            let problem = Problem::at_field(source, "rollback", "rollback is off");
            self.add("rollback", problem.hint("leave `rollback.enabled` out"));
        }
        if let Some(max) = rules.max_parallel_max.filter(|max| rollout.max_parallel > *max) {
            let inherited = manifest.rollout.max_parallel.is_none() && environment.rollout.max_parallel.is_some();
            let source = if inherited { environment_source } else { source };
            let message = format!("max_parallel is {}, at most {max} is allowed", rollout.max_parallel);
            let problem = Problem::at_field(source, "rollout", message);
            self.add("max_parallel_max", problem.hint(format!("write `rollout: {{ max_parallel: {max} }}`")));
        }
        if rules.approval == Some(true)
            && let Ok(order) = graph::order(source, manifest, self.entries)
        {
            let first: Vec<&ServerName> =
                order.groups.first().into_iter().flatten().map(|number| self.entries.name(*number)).collect();
            if !policies::waits_before(self.configuration, &first) {
                let problem = Problem::at_field(source, "rollout", "nobody approves before anything is switched");
                let hint = first
                    .first()
                    .map(|server| format!("write `rollout: {{ pauses: [{{ before: {server}, approvals: 1 }}] }}`"));
                self.add("approval", problem.hint(hint.unwrap_or_default()));
            }
        }
    }

    fn of_environment(&mut self) {
        let (own, environment) = &self.configuration.environment;
        let rules = self.rules();
        for (secret, written) in &environment.secrets {
            if let Some(fallback) = written.value.fallback.as_ref().filter(|_| rules.real_secrets == Some(true)) {
                let source = environment.source_of(own, Field::Secret, secret);
                let problem = Problem::at(source, fallback, format!("secret `{secret}` has a fallback"));
                self.add("real_secrets", problem.hint("remove the fallback"));
            }
        }
        if rules.no_inline_secrets == Some(true) {
            for problem in inline_secrets::of_environment(own, environment) {
                self.add("no_inline_secrets", problem);
            }
        }
    }

    /// What the paces of servers break: told once where it comes from what holds for all of them.
    fn of_paces(&mut self) {
        let (source, manifest) = &self.configuration.manifest;
        let rules = self.rules();
        if rules.canary == Some(true) {
            let canary = |pace: &Pace| (pace.canary == 0).then(|| "no canary".to_owned());
            let hint = "write `rollout: { canary: 1 }`";
            self.of_pace(source, manifest, "canary", canary, |own| own.canary.is_some(), hint);
        }
        let Some(max) = rules.max_unavailable_max else { return };
        let unavailable = |pace: &Pace| {
            (pace.max_unavailable > max)
                .then(|| format!("max_unavailable is {}, and at most {max} is allowed,", pace.max_unavailable))
        };
        let hint = format!("write `rollout: {{ max_unavailable: {max} }}`");
        let says = |own: &PaceWritten| own.max_unavailable.is_some();
        self.of_pace(source, manifest, "max_unavailable_max", unavailable, says, &hint);
    }

    fn of_pace(
        &mut self,
        source: &Source,
        manifest: &Manifest,
        rule: &str,
        broken: impl Fn(&Pace) -> Option<String>,
        says: impl Fn(&PaceWritten) -> bool,
        hint: &str,
    ) {
        let mut common: Option<(String, Vec<&str>)> = None;
        for entry in &manifest.servers {
            let pace = policies::pace(self.configuration, Some(&entry.rollout), 1);
            let Some(message) = broken(&pace) else { continue };
            let server = entry.server.value.as_str();
            if says(&entry.rollout) {
                let problem = Problem::at(source, &entry.server, format!("{message} for {server}"));
                self.add(rule, problem.hint(hint));
            } else {
                common.get_or_insert_with(|| (message, Vec::new())).1.push(server);
            }
        }
        if let Some((message, servers)) = common {
            let of = match servers.len() {
                n if n > NAMED_MAX => format!("{n} servers"),
                _ => servers.join(", "),
            };
            self.add(rule, Problem::at_field(source, "rollout", format!("{message} for {of}")).hint(hint));
        }
    }

    fn of_server(&mut self, source: &Source, server: &Server) {
        let rules = self.rules();
        let is_agent = server.run.runtime == RuntimeChoice::Agent;
        let critical = server.checks.iter().any(|check| check.value.severity == Severity::Critical);
        // How it ends says whether it has done its work.
        let says_itself = server.run.completes;
        if rules.critical_check == Some(true) && !critical && !says_itself {
            let problem = Problem::at(source, &server.name, "no critical health check");
            self.add("critical_check", problem.hint("add a check, for example `type: mcp`"));
        }
        if let Some(why) = server.irreversible.as_ref().filter(|_| rules.rollback == Some(true)) {
            let problem = Problem::at(source, why, format!("a step to it cannot be undone: {}", why.value));
            let hint = "make the change one that the release before understands, or deploy it where no rollback is \
                        required";
            self.add("rollback", problem.hint(hint));
        }
        let resources = &server.resources;
        if rules.resource_limits == Some(true) && !is_agent && (resources.memory.is_none() || resources.cpu.is_none()) {
            let missing = match (&resources.memory, &resources.cpu) {
                (None, None) => "memory and cpu",
                (None, _) => "memory",
                (_, _) => "cpu",
            };
            let problem = Problem::at(source, &server.name, format!("it has no limit of {missing}"));
            self.add("resource_limits", problem.hint("write for example `resources: { memory: 256MiB, cpu: 50% }`"));
        }
        if rules.no_inline_secrets == Some(true) {
            for problem in inline_secrets::of_server(source, server) {
                self.add("no_inline_secrets", problem);
            }
        }
        let Some(package) = &server.package else { return };
        let written = &package.value;
        let of_registry = written.pypi.is_some() || written.npm.is_some();
        if rules.locked == Some(true) && of_registry && server.lock.is_none() {
            let problem = Problem::at(source, package, "it has no lock");
            self.add("locked", problem.hint(format!("`fleetwright lock {}` writes one", source.path)));
        }
        let kind = written.kind().unwrap_or_default();
        if let Some(allowed) = &rules.package_sources
            && !allowed.iter().any(|allowed| allowed == kind)
        {
            let problem = Problem::at(source, package, format!("packages from {kind} are not allowed"));
            self.add("package_sources", problem.hint(format!("take it from {}", allowed.join(" or "))));
        }
    }
}

/// Rules that are listed and that nobody knows, and ids that mean two things.
fn names(configuration: &Configuration, problems: &mut Vec<Problem>) {
    let (own, environment) = &configuration.environment;
    let rules = &environment.rules;
    let custom: BTreeSet<&str> = rules.custom.keys().map(String::as_str).collect();
    for id in custom.iter().filter(|id| BUILT_IN_RULES.contains(*id)) {
        let source = environment.source_of(own, Field::Rule, id);
        let problem = Problem::at(source, &rules.custom[*id], format!("`{id}` is a rule that comes with Fleetwright"));
        problems.push(problem.hint("give this one another id"));
    }
    let mut unknown = |list: &str, listed: &Spanned<String>, known: Vec<&str>, otherwise: Option<&str>| {
        if known.contains(&listed.value.as_str()) {
            return;
        }
        let source = environment.source_of(own, Field::Rule, list);
        let problem = Problem::at(source, listed, format!("there is no rule `{}`", listed.value));
        let hint = otherwise.map(str::to_owned).or_else(|| near_miss(&listed.value, known));
        problems.push(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        });
    };
    for listed in rules.warn.iter().flatten() {
        let its_own = custom.contains(listed.value.as_str());
        let otherwise = its_own.then_some("give the rule itself `severity: warn`");
        unknown("warn", listed, BUILT_IN_RULES.to_vec(), otherwise);
    }
    for listed in rules.overridable.iter().flatten() {
        unknown("overridable", listed, BUILT_IN_RULES.into_iter().chain(custom.iter().copied()).collect(), None);
    }
}
