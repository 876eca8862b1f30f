//! Health checks as they are written: whole, or by reference to standard checks, with parameters.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use strum::IntoStaticStr;

use super::problem::{Problem, Problems, Source, near_miss};
use super::text::Text;
use super::{DEFINITION_BYTES_MAX, check_api_version, parse};
use crate::health::Severity;
use crate::time::Length;

/// The type of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "each type is documented where it takes effect, in health::Probe")]
pub enum CheckType {
    Mcp,
    Http,
    Tcp,
    Command,
    File,
    Disk,
    Systemd,
    Custom,
}

/// A health check of a definition: whole, or a standard check, or a group of them, with what differs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckWritten {
    /// The standard check that it is.
    #[serde(default, rename = "use")]
    #[schemars(with = "Option<Text>")]
    pub uses: Option<Spanned<String>>,
    /// The group of standard checks whose place it takes.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub use_group: Option<Spanned<String>>,
    /// Values of parameters of what is used.
    #[serde(default)]
    pub with: BTreeMap<String, Value>,
    /// Its name, unique within the server; that of the standard check unless said otherwise.
    #[serde(default)]
    pub name: Option<String>,
    /// Its type.
    #[serde(default, rename = "type")]
    pub check_type: Option<CheckType>,
    /// How much it matters; critical unless said otherwise.
    #[serde(default)]
    pub severity: Option<Severity>,
    /// What the type needs; its texts are templates.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// The pause between two runs; 10 s unless said otherwise.
    #[serde(default)]
    pub interval: Option<Length>,
    /// How long one run may take; 10 s unless said otherwise.
    #[serde(default)]
    pub timeout: Option<Length>,
    /// How many runs in a row must fail; 2 unless said otherwise.
    #[serde(default)]
    pub failure_threshold: Option<u32>,
    /// Names by which checks are selected.
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// The group it belongs to.
    #[serde(default)]
    pub group: Option<String>,
    /// How long failures do not count after a start; 1 m unless said otherwise.
    #[serde(default)]
    pub start_grace: Option<Length>,
    /// How many runs in a row must pass before a failing check passes again; 1 unless said otherwise.
    #[serde(default)]
    pub success_threshold: Option<u32>,
    /// How often a failing run is tried again at once; 0 unless said otherwise.
    #[serde(default)]
    pub retries: Option<u32>,
}

/// A standard check: a check with parameters, which its `config` names as `{{ parameters.NAME }}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandardCheck {
    /// What it is for, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Its parameters, each with the value that it has unless said otherwise; `null` where it must be said.
    #[serde(default)]
    pub parameters: BTreeMap<String, Value>,
    /// The check.
    #[schemars(with = "CheckWritten")]
    pub check: Spanned<CheckWritten>,
}

/// The standard checks of a project: `health-checks/standard-checks.yaml`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandardChecks {
    /// [`super::API_VERSION`].
    #[serde(rename = "apiVersion")]
    #[schemars(with = "Text")]
    pub api_version: Spanned<String>,
    /// The checks, by name.
    #[schemars(with = "BTreeMap<String, StandardCheck>")]
    pub checks: BTreeMap<String, Spanned<StandardCheck>>,
    /// The path of the file, for messages.
    #[serde(skip)]
    path: String,
}

/// A check with everything that it takes from standard checks.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name, unique within the server.
    pub name: String,
    /// Its type.
    pub check_type: CheckType,
    /// How much it matters.
    pub severity: Severity,
    /// What the type needs; its texts are templates.
    pub config: Map<String, Value>,
    /// The pause between two runs.
    pub interval: Option<Length>,
    /// How long one run may take.
    pub timeout: Option<Length>,
    /// How many runs in a row must fail.
    pub failure_threshold: Option<u32>,
    /// Names by which checks are selected.
    pub tags: Vec<String>,
    /// The group it belongs to.
    pub group: Option<String>,
    /// How long failures do not count after a start.
    pub start_grace: Option<Length>,
    /// How many runs in a row must pass before a failing check passes again.
    pub success_threshold: Option<u32>,
    /// How often a failing run is tried again at once.
    pub retries: Option<u32>,
}

/// What names a parameter in a text.
static PARAMETER: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\{\{\s*parameters\.([A-Za-z0-9_]+)\s*\}\}").ok());

impl StandardChecks {
    /// Reads the standard checks of a project.
    pub fn parse(source: &Source) -> Result<Self, Problems> {
        let mut standard: Self = parse(source, DEFINITION_BYTES_MAX)?;
        check_api_version(source, &standard.api_version)?;
        standard.path.clone_from(&source.path);
        let mut problems = Vec::new();
        for (name, written) in &standard.checks {
            let StandardCheck { parameters, check, .. } = &written.value;
            let wrong = |message: String| Problem::at(source, check, format!("standard check `{name}`: {message}"));
            if check.value.check_type.is_none() {
                problems.push(wrong("it has no `type`".to_owned()));
            }
            if check.value.uses.is_some() || check.value.use_group.is_some() || !check.value.with.is_empty() {
                problems.push(wrong("it uses another one".to_owned()).hint("write it out: `type` and `config`"));
            }
            let mut named = Vec::new();
            check.value.config.values().for_each(|value| parameters_in(value, &mut named));
            for parameter in named.iter().filter(|named| !parameters.contains_key(*named)) {
                let problem = wrong(format!("it has no parameter `{parameter}`"));
                let near = near_miss(parameter, parameters.keys().map(String::as_str));
                problems.push(problem.hint(near.unwrap_or_else(|| "list it under `parameters`".to_owned())));
            }
            for unused in parameters.keys().filter(|known| !named.contains(known)) {
                problems.push(wrong(format!("its parameter `{unused}` is named nowhere in `config`")));
            }
        }
        Problems::none_or(problems)?;
        Ok(standard)
    }
}

/// The checks of a definition, with everything that they take from standard ones.
pub(super) fn complete(
    source: &Source,
    written: &[Spanned<CheckWritten>],
    standard: Option<&StandardChecks>,
) -> Result<Vec<Spanned<Check>>, Problems> {
    let (mut checks, mut problems) = (Vec::with_capacity(written.len()), Vec::new());
    for written in written {
        match completed(source, written, standard) {
            Ok(found) => {
                let spanned = |value| Spanned::new(value, written.referenced, written.defined);
                checks.extend(found.into_iter().map(spanned));
            }
            Err(problem) => problems.push(problem),
        }
    }
    Problems::none_or(problems)?;
    Ok(checks)
}

fn completed(
    source: &Source,
    spanned: &Spanned<CheckWritten>,
    standard: Option<&StandardChecks>,
) -> Result<Vec<Check>, Problem> {
    let written = &spanned.value;
    let used: Vec<(&String, &StandardCheck)> = match (&written.uses, &written.use_group) {
        (None, None) => {
            if !written.with.is_empty() {
                let problem = Problem::at(source, spanned, "`with` belongs to `use` and `use_group`");
                return Err(problem.hint("write the values into `config`"));
            }
            return whole(source, spanned, written.name.as_deref(), written.clone()).map(|check| vec![check]);
        }
        (Some(name), None) => vec![named(source, name, standard)?],
        (None, Some(group)) => grouped(source, group, written, standard)?,
        (Some(_), Some(_)) => {
            return Err(Problem::at(source, spanned, "a check uses one standard check, or one group of them"));
        }
    };
    let known = |parameter: &String| used.iter().any(|(_, check)| check.parameters.contains_key(parameter));
    if let Some(unknown) = written.with.keys().find(|parameter| !known(parameter)) {
        let names = used.iter().flat_map(|(_, check)| check.parameters.keys().map(String::as_str));
        let near = near_miss(unknown, names.clone());
        let known = names.collect::<Vec<_>>().join(", ");
        let problem = Problem::at(source, spanned, format!("there is no parameter `{unknown}`"));
        return Err(problem.hint(near.unwrap_or_else(|| match known.as_str() {
            "" => "it has none".to_owned(),
            known => format!("it has {known}"),
        })));
    }
    let checks = used.into_iter().map(|(name, check)| {
        let mut values = check.parameters.clone();
        values.extend(
            written
                .with
                .iter()
                .filter(|(known, _)| check.parameters.contains_key(*known))
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        if let Some((missing, _)) = values.iter().find(|(_, value)| value.is_null()) {
            let problem = Problem::at(source, spanned, format!("standard check `{name}` needs `{missing}`"));
            return Err(problem.hint(format!("write `with: {{ {missing}: … }}`")));
        }
        let mut base = check.check.value.clone();
        base.config.values_mut().for_each(|value| put_in(value, &values));
        let own = written.name.as_deref().unwrap_or(name);
        whole(source, spanned, Some(own), over(base, written))
    });
    checks.collect()
}

/// A standard check with what a definition says otherwise.
fn over(mut base: CheckWritten, written: &CheckWritten) -> CheckWritten {
    let written = written.clone();
    base.config.extend(written.config);
    CheckWritten {
        uses: None,
        use_group: None,
        with: BTreeMap::new(),
        name: written.name,
        check_type: written.check_type.or(base.check_type),
        severity: written.severity.or(base.severity),
        config: base.config,
        interval: written.interval.or(base.interval),
        timeout: written.timeout.or(base.timeout),
        failure_threshold: written.failure_threshold.or(base.failure_threshold),
        tags: written.tags.or(base.tags),
        group: written.group.or(base.group),
        start_grace: written.start_grace.or(base.start_grace),
        success_threshold: written.success_threshold.or(base.success_threshold),
        retries: written.retries.or(base.retries),
    }
}

fn whole(
    source: &Source,
    at: &Spanned<CheckWritten>,
    name: Option<&str>,
    written: CheckWritten,
) -> Result<Check, Problem> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(Problem::at(source, at, "a check has a `name`, or is a standard check by `use`"));
    };
    let Some(check_type) = written.check_type else {
        let problem = Problem::at(source, at, format!("check `{name}` has no `type`"));
        return Err(problem.hint("write for example `type: mcp`, or `use:` a standard check"));
    };
    Ok(Check {
        name: name.to_owned(),
        check_type,
        severity: written.severity.unwrap_or_default(),
        config: written.config,
        interval: written.interval,
        timeout: written.timeout,
        failure_threshold: written.failure_threshold,
        tags: written.tags.unwrap_or_default(),
        group: written.group,
        start_grace: written.start_grace,
        success_threshold: written.success_threshold,
        retries: written.retries,
    })
}

fn named<'a>(
    source: &Source,
    name: &Spanned<String>,
    standard: Option<&'a StandardChecks>,
) -> Result<(&'a String, &'a StandardCheck), Problem> {
    let Some(all) = standard else { return Err(no_standard_checks(source, name)) };
    all.checks.get_key_value(&name.value).map(|(name, check)| (name, &check.value)).ok_or_else(|| {
        let problem = Problem::at(source, name, format!("there is no standard check `{}`", name.value));
        let near = near_miss(&name.value, all.checks.keys().map(String::as_str));
        problem.hint(near.unwrap_or_else(|| format!("define it in {}", all.path)))
    })
}

fn grouped<'a>(
    source: &Source,
    group: &Spanned<String>,
    written: &CheckWritten,
    standard: Option<&'a StandardChecks>,
) -> Result<Vec<(&'a String, &'a StandardCheck)>, Problem> {
    let Some(all) = standard else { return Err(no_standard_checks(source, group)) };
    if written.name.is_some() || written.check_type.is_some() || !written.config.is_empty() {
        let problem = Problem::at(source, group, "a group of checks has no `name`, `type` and `config` of its own");
        return Err(problem.hint("`use` its checks one by one where they differ"));
    }
    let groups =
        || all.checks.iter().filter_map(|(name, check)| Some((name, check, check.value.check.value.group.as_ref()?)));
    let found: Vec<_> =
        groups().filter(|(_, _, of)| **of == group.value).map(|(name, check, _)| (name, &check.value)).collect();
    if found.is_empty() {
        let problem = Problem::at(source, group, format!("no standard check is of group `{}`", group.value));
        let near = near_miss(&group.value, groups().map(|(_, _, of)| of.as_str()));
        return Err(problem.hint(near.unwrap_or_else(|| format!("give some in {} this `group`", all.path))));
    }
    Ok(found)
}

fn no_standard_checks<T>(source: &Source, at: &Spanned<T>) -> Problem {
    let problem = Problem::at(source, at, "this project has no standard checks");
    problem.hint("define them in health-checks/standard-checks.yaml, beside the folder `config`")
}

/// The parameters that a value names.
fn parameters_in(value: &Value, named: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            let found = PARAMETER.iter().flat_map(|pattern| pattern.captures_iter(text));
            named.extend(found.filter_map(|found| found.get(1).map(|name| name.as_str().to_owned())));
        }
        Value::Array(items) => items.iter().for_each(|item| parameters_in(item, named)),
        Value::Object(fields) => fields.values().for_each(|field| parameters_in(field, named)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Puts the values of parameters in: a text that is nothing but a parameter becomes its value, whatever that is.
fn put_in(value: &mut Value, values: &BTreeMap<String, Value>) {
    match value {
        Value::String(text) => {
            let Some(pattern) = PARAMETER.as_ref() else { return };
            let whole =
                pattern.captures(text).filter(|found| found.get(0).is_some_and(|all| all.as_str() == text.trim()));
            if let Some(known) = whole.and_then(|found| values.get(found.get(1)?.as_str())) {
                *value = known.clone();
                return;
            }
            let replaced = pattern.replace_all(text, |found: &regex::Captures<'_>| {
                match found.get(1).and_then(|name| values.get(name.as_str())) {
                    Some(Value::String(text)) => text.clone(),
                    Some(other) => other.to_string(),
                    None => String::new(),
                }
            });
            *value = Value::String(replaced.into_owned());
        }
        Value::Array(items) => items.iter_mut().for_each(|item| put_in(item, values)),
        Value::Object(fields) => fields.values_mut().for_each(|field| put_in(field, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::Server;
    use super::*;

    const STANDARD: &str = "apiVersion: fleetwright/v1
checks:
  tools:
    parameters: { tools: [] }
    check: { type: mcp, severity: critical, group: mcp, config: { expected_tools: '{{ parameters.tools }}' } }
  page:
    parameters: { path: null, status: 200 }
    check: { type: http, group: web, timeout: 3s, config: { path: '/{{ parameters.path }}?q={{ parameters.status }}', status: '{{ parameters.status }}' } }
  disk:
    parameters: { path: '{{ server.data_dir }}' }
    check: { type: disk, severity: warning, group: web, tags: [host], config: { path: '{{ parameters.path }}', free_percent_min: 10 } }
";

    fn standard(text: &str) -> Result<StandardChecks, Problems> {
        StandardChecks::parse(&Source { path: "standard-checks.yaml".to_owned(), text: text.to_owned() })
    }

    fn server(checks: &str) -> Result<Vec<Check>, String> {
        let text =
            format!("apiVersion: fleetwright/v1\nname: a\nrun: {{ command: [serve] }}\nhealth_checks:\n{checks}");
        let source = Source { path: "a.yaml".to_owned(), text };
        let standard = standard(STANDARD).expect("standard checks");
        let server = Server::parse_with(&source, Some(&standard)).map_err(|problems| problems.to_string())?;
        Ok(server.checks.into_iter().map(|check| check.value).collect())
    }

    #[test]
    fn standard_checks_take_parameters_and_what_is_said_otherwise() {
        let checks = server(
            "  - { use: tools, with: { tools: [a, b] } }\n  - { use: tools, name: any, severity: warning }\n  \
             - { use: page, with: { path: health, status: [200, 204] }, interval: 1s, config: { contains: ok } }\n",
        )
        .expect("checks");
        let [tools, any, page] = checks.as_slice() else { panic!("three checks") };
        assert_eq!((tools.name.as_str(), tools.severity), ("tools", Severity::Critical));
        assert_eq!(tools.config["expected_tools"], serde_json::json!(["a", "b"]));
        assert_eq!((any.name.as_str(), any.severity), ("any", Severity::Warning));
        assert_eq!(any.config["expected_tools"], serde_json::json!([]));
        assert_eq!(page.config["status"], serde_json::json!([200, 204]));
        assert_eq!(page.config["path"], "/health?q=[200,204]");
        assert_eq!(page.config["contains"], "ok");
        assert_eq!((page.timeout, page.interval), (Some(Length::from_secs(3)), Some(Length::from_secs(1))));
    }

    #[test]
    fn a_group_brings_all_its_checks() {
        let checks = server("  - { use_group: web, with: { path: /srv }, tags: [all] }\n").expect("checks");
        let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["disk", "page"]);
        assert_eq!(checks[0].config["path"], "/srv");
        assert_eq!(checks[0].tags, ["all"]);
    }

    #[test]
    fn what_is_wrong_with_a_reference_is_told_with_its_place() {
        for (check, expected) in [
            ("{ use: tool }", "5:12: there is no standard check `tool`"),
            ("{ use: tool }", "did you mean `tools`?"),
            ("{ use: page }", "5:5: standard check `page` needs `path`"),
            ("{ use: tools, with: { tolls: [] } }", "did you mean `tools`?"),
            ("{ use_group: wbe }", "did you mean `web`?"),
            ("{ use: tools, use_group: web }", "one standard check, or one group"),
            ("{ name: x, type: tcp, with: { a: 1 } }", "`with` belongs to"),
            ("{ type: tcp }", "has a `name`"),
            ("{ name: x }", "has no `type`"),
            ("{ use_group: web, name: x }", "a group of checks has no `name`"),
        ] {
            let told = server(&format!("  - {check}\n")).expect_err(check);
            assert!(told.contains(expected), "{check}: {told}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_standard_check_is_told_with_its_place() {
        for (check, expected) in [
            ("{ check: { severity: info } }", "it has no `type`"),
            ("{ check: { type: tcp, use: y } }", "it uses another one"),
            ("{ check: { type: tcp, config: { address: '{{ parameters.at }}' } } }", "it has no parameter `at`"),
            ("{ parameters: { at: 1 }, check: { type: tcp } }", "named nowhere"),
            ("{ check: { type: tpc } }", "unknown value `tpc`"),
        ] {
            let text = format!("apiVersion: fleetwright/v1\nchecks:\n  x: {check}\n");
            let told = standard(&text).expect_err(check).to_string();
            assert!(told.starts_with("standard-checks.yaml:3:") && told.contains(expected), "{check}: {told}");
        }
    }
}
