//! What must never panic, hang or grow without bound, whatever text it is given. Each function is a fuzz target
//! (`cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer TARGET`), and is given the corpus by a test.

mod packages;
mod wire;

use std::collections::BTreeMap;

use fleetwright_deploy::config::{
    Entered, Environment, Found, ImportChoice, Manifest, Problems, Server, Source, StandardChecks,
};
use fleetwright_deploy::host::{Facts, HostView};
use fleetwright_deploy::planning::{Circumstances, Configuration, Files, Needs, SavedPlan, check, check_alone, plan};

pub use packages::{archive, chunk_list};

pub use wire::{enrol_request, frame, greeting, report};

const MANIFEST: &str = "apiVersion: fleetwright/v1\nname: m\nenvironment: e\nservers: [{ server: a }]\n";
const SERVER: &str = "apiVersion: fleetwright/v1\nname: a\nrun: { command: [serve], port: 8801 }\n";
const ENVIRONMENT: &str =
    "apiVersion: fleetwright/v1\nname: e\nvariables: { zone: Etc/UTC }\nsecrets: { key: { env: KEY } }\n";

/// What is given anything.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 14] = [
    ("manifest", manifest),
    ("server", server),
    ("environment", environment),
    ("checks", checks),
    ("template", template),
    ("rule", rule),
    ("saved_plan", saved_plan),
    ("registry_entry", registry_entry),
    ("archive", archive),
    ("chunk_list", chunk_list),
    ("frame", frame),
    ("greeting", greeting),
    ("report", report),
    ("enrol_request", enrol_request),
];

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

/// A problem says something, of a place that is there.
fn look_at(problems: &Problems, texts: &[&str]) {
    assert!(!problems.0.is_empty());
    for problem in &problems.0 {
        assert!(!problem.message.is_empty());
        let lines = texts.iter().map(|text| source("x", text).lines().count() as u64).max().unwrap_or(0);
        assert!(problem.line.is_none_or(|line| line <= lines + 1), "{problem}");
    }
    assert!(!problems.to_string().is_empty());
}

fn configuration(manifest: &str, environment: &str, server: &str) -> Result<Configuration, Problems> {
    let (manifest, environment, server) =
        (source("m.yaml", manifest), source("e.yaml", environment), source("a.yaml", server));
    let definition = Server::parse(&server)?;
    Ok(Configuration {
        manifest: (manifest.clone(), Manifest::parse(&manifest)?),
        environment: (environment.clone(), Environment::parse(&environment)?),
        servers: BTreeMap::from([(definition.name.value.clone(), (server, definition))]),
        on_hosts: BTreeMap::new(),
    })
}

/// Reads, checks and plans, as far as that goes.
fn go(manifest: &str, environment: &str, server: &str) {
    let texts = [manifest, environment, server];
    let read = match configuration(manifest, environment, server) {
        Ok(read) => read,
        Err(problems) => return look_at(&problems, &texts),
    };
    if let Err(problems) = check(&read, &BTreeMap::new()) {
        look_at(&problems, &texts);
    }
    let view = HostView {
        address: "127.0.0.1".to_owned(),
        state_dir: "/state".to_owned(),
        labels: BTreeMap::new(),
        facts: Some(Facts { cpus: 4, memory_bytes: 1 << 30, ..Facts::default() }),
    };
    let hosts = ["h1", "h2"].into_iter().filter_map(|name| Some((name.parse().ok()?, view.clone())));
    let circumstances = Circumstances { hosts: hosts.collect(), ..Circumstances::default() };
    match plan(&read, &circumstances) {
        Ok(checked) => assert_eq!(*checked.id(), checked.plan().id()),
        Err(problems) => look_at(&problems, &texts),
    }
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        go(text, ENVIRONMENT, SERVER);
    }
}

/// A server definition.
pub fn server(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data).map(without_loops) {
        go(MANIFEST, ENVIRONMENT, &text);
    }
}

/// An environment.
pub fn environment(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data).map(without_loops) {
        go(MANIFEST, &text, SERVER);
    }
}

/// Standard checks.
pub fn checks(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match StandardChecks::parse(&source("standard-checks.yaml", text)) {
        Err(problems) => look_at(&problems, &[text]),
        Ok(standard) => {
            let names: Vec<&String> = standard.checks.keys().collect();
            let uses = names.iter().map(|name| format!("  - {{ use: {} }}\n", serde_text(name))).collect::<String>();
            let text = format!("{SERVER}health_checks:\n{uses}");
            let _ = Server::parse_with(&source("a.yaml", &text), Some(&standard));
        }
    }
}

/// A template, as the content of a file.
pub fn template(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data).map(without_loops) {
        let server = format!("{SERVER}files:\n  - {{ path: f, content: {} }}\n", serde_text(&text));
        go(MANIFEST, ENVIRONMENT, &server);
    }
}

/// A rule of an operator's own.
pub fn rule(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let rule = format!("{{ check: {}, message: it is broken }}", serde_text(text));
        go(MANIFEST, &format!("{ENVIRONMENT}rules:\n  custom:\n    mine: {rule}\n"), SERVER);
    }
}

/// A saved plan.
pub fn saved_plan(data: &[u8]) {
    if let Ok(saved) = SavedPlan::parse(data) {
        assert_eq!(saved.id, saved.plan.id());
    }
}

/// An entry of the MCP registry. What is made of it can be read, and planned with what it asks for and nothing else.
pub fn registry_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let digest = format!("sha256:{}", "ab".repeat(32));
    let choice = ImportChoice { digest: Some(&digest), ..ImportChoice::default() };
    let found = Found::Programs(vec!["serve".to_owned()]);
    let Ok(imported) = Entered::read(text, choice).and_then(|entered| entered.definition(choice, &found)) else {
        return;
    };
    let source = source(&format!("{}.yaml", imported.name), &imported.text);
    let needs = Needs {
        variables: imported.variables.iter().cloned().collect(),
        secrets: imported.secrets.iter().cloned().collect(),
        ..Needs::default()
    };
    let checked = Server::parse(&source).and_then(|server| check_alone(&source, &server, &needs, &Files::default()));
    if let Err(problems) = checked {
        panic!("{problems}\n{}", imported.text);
    }
}

/// A text within YAML: JSON is YAML.
fn serde_text(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if (c as u32) < 0x20
                || (0x7f..0xa0).contains(&(c as u32))
                || c == '\u{feff}'
                || c == '\u{2028}'
                || c == '\u{2029}' =>
            {
                format!("\\u{:04x}", c as u32)
            }
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

/// Loops run as long as those who write them want.
fn without_loops(text: &str) -> String {
    text.replace("for", "f0r").replace("range", "r4nge")
}
