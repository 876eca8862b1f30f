//! A definition alone: whether it can be rendered at all, before there is an environment, a manifest or a host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use regex::Regex;

use super::{CheckedPlan, Circumstances, Configuration, Files, plan};
use crate::config::{Environment, Manifest, Problem, Problems, Rules, Server, Source};
use crate::host::HostView;
use crate::ids::EnvironmentName;
use crate::release::Release;

/// What stands in for the values that nobody knows yet: a word, a path, a number, a URL.
const STAND_INS: [&str; 5] = ["x", "/x", "1", "http://x/x", "https://x/x"];

/// What a definition asks of its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names of variables.
    pub variables: BTreeSet<String>,
    /// Names of secrets.
    pub secrets: BTreeSet<String>,
    /// Names of variables of the process that makes the plan.
    pub of_process: BTreeSet<String>,
}

impl Needs {
    /// What the text of a definition names; nothing where it does not name everything as it is, such as `secret(name=x)`.
    pub fn named_in(text: &str) -> Option<Self> {
        let all = |pattern: &str| -> Option<Vec<String>> {
            let pattern = Regex::new(pattern).ok()?;
            Some(pattern.captures_iter(text).filter_map(|found| Some(found.get(1)?.as_str().to_owned())).collect())
        };
        let called = |function: &str| Some(all(&format!(r"(\b{function}\s*\()"))?.len());
        let named = |function: &str| {
            let names = all(&format!(r#"\b{function}\s*\([^)]*?\bname\s*=\s*\\*["'`]([A-Za-z0-9_.-]+)\\*["'`]"#))?;
            (names.len() == called(function)?).then_some(names)
        };
        if !all(r"(\benv\s*\[)")?.is_empty() {
            return None;
        }
        Some(Self {
            variables: all(r"\benv\.([A-Za-z_][A-Za-z0-9_]*)")?.into_iter().collect(),
            secrets: named("secret")?.into_iter().collect(),
            of_process: named("env")?.into_iter().collect(),
        })
    }
}

/// What is wrong with a definition whatever the values of its variables are. `files` are those that its templates read.
pub fn check_alone(source: &Source, server: &Server, needs: &Needs, files: &Files) -> Result<(), Problems> {
    let mut common: Option<Vec<Problem>> = None;
    for stand_in in STAND_INS {
        let Err(Problems(found)) = planned(source, server, needs, files, stand_in) else { return Ok(()) };
        // What is told of one value alone may be right with another.
        common = Some(match common {
            None => found,
            Some(before) => before.into_iter().filter(|problem| found.contains(problem)).collect(),
        });
    }
    Problems::none_or(common.unwrap_or_default())
}

/// The release that a definition makes in an environment, on a host of which nothing is known. Rules do not count here:
/// one of them may ask for what is made of this.
pub fn release_alone(
    source: &Source,
    server: &Server,
    environment: (Source, Environment),
    circumstances: &Circumstances,
) -> Result<Release, Problems> {
    let (environment_source, mut environment) = environment;
    environment.rules = Rules::default();
    let name = environment.name.value.clone();
    let plan = plan_alone(source, server, &name, (environment_source, environment), circumstances)?;
    let mut steps = plan.plan().steps();
    let release = steps.next().and_then(|step| step.release.clone());
    release.map(Arc::unwrap_or_clone).ok_or_else(|| Problem::in_file(source, "it makes no release").into())
}

fn plan_alone(
    source: &Source,
    server: &Server,
    environment_name: &EnvironmentName,
    environment: (Source, Environment),
    circumstances: &Circumstances,
) -> Result<CheckedPlan, Problems> {
    let name = &server.name.value;
    let manifest = format!(
        "apiVersion: fleetwright/v1\nname: alone\nenvironment: {environment_name}\nservers: [{{ server: \"{name}\" }}]\n"
    );
    let manifest = Source { path: "alone-manifest.yaml".to_owned(), text: manifest };
    let configuration = Configuration {
        manifest: (manifest.clone(), Manifest::parse(&manifest)?),
        environment,
        servers: BTreeMap::from([(name.clone(), (source.clone(), server.clone()))]),
        on_hosts: BTreeMap::new(),
    };
    let host = HostView {
        address: "127.0.0.1".to_owned(),
        state_dir: "/state".to_owned(),
        labels: BTreeMap::new(),
        facts: None,
    };
    let circumstances = Circumstances {
        hosts: "alone".parse().ok().map(|name| (name, host)).into_iter().collect(),
        ..circumstances.clone()
    };
    plan(&configuration, &circumstances)
}

fn planned(source: &Source, server: &Server, needs: &Needs, files: &Files, value: &str) -> Result<(), Problems> {
    let lines = |names: &BTreeSet<String>, value: &str| -> String {
        names.iter().map(|name| format!("  \"{name}\": {value}\n")).collect()
    };
    let variables = lines(&needs.variables, &format!("\"{value}\""));
    let secrets = lines(&needs.secrets, "{ env: X }");
    let mut environment = "apiVersion: fleetwright/v1\nname: alone\n".to_owned();
    for (heading, lines) in [("variables", variables), ("secrets", secrets)] {
        if !lines.is_empty() {
            environment.push_str(&format!("{heading}:\n{lines}"));
        }
    }
    let source_of = Source { path: "alone.yaml".to_owned(), text: environment };
    let environment = Environment::parse(&source_of)?;
    let circumstances = Circumstances {
        variables: needs.of_process.iter().map(|name| (name.clone(), value.to_owned())).collect(),
        files: files.clone(),
        ..Circumstances::default()
    };
    let name = environment.name.value.clone();
    plan_alone(source, server, &name, (source_of, environment), &circumstances).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(definition: &str) -> Option<String> {
        let text = format!("apiVersion: fleetwright/v1\nname: a\n{definition}");
        let source = Source { path: "a.yaml".to_owned(), text };
        let server = Server::parse(&source).expect("a definition");
        let needs = Needs::named_in(&source.text).expect("names");
        check_alone(&source, &server, &needs, &Files::default()).err().map(|problems| problems.to_string())
    }

    #[test]
    fn what_could_be_right_with_some_value_is_not_told() {
        let fine = "run: { command: [serve, \"{{ env.x }}\"], environment: { A: '{{ secret(encode=\"url\", name=\"k\") }}', \
                    B: '{{ env(default=\"d\", name=\"REGION\") }}' }, writable: [\"{{ env.folder }}\"] }\n\
                    health_checks: [{ name: h, type: http, severity: critical, config: { url: \"{{ env.url }}\" } }]\n";
        assert_eq!(told(fine), None);
    }

    #[test]
    fn what_is_wrong_with_every_value_is_told() {
        for (definition, wrong) in [
            ("run: { command: [serve, \"{{ env.x\"] }\n", "template"),
            ("run: { command: [serve, '{{ secret(name=\"k\") }}'] }\n", "list of processes"),
            ("run: { command: [serve, \"{{ host.addres }}\"] }\n", "template"),
            ("package: { oci: ghcr.io/a/b, digest: \"sha256:FILL-IN\", version: 1 }\nrun: {}\n", "not a digest"),
            ("run: { command: [serve], transport: http }\n", "needs a `port`"),
        ] {
            let told = told(definition).unwrap_or_default();
            assert!(told.contains(wrong), "{definition}: {told}");
        }
        assert_eq!(Needs::named_in("{{ secret(name=x) }}"), None);
        assert_eq!(Needs::named_in("{{ env[\"a\"] }}"), None);
    }
}
