//! Official clients of MCP use what is bridged: each of them, in each era that it speaks, over a shared child and over
//! children of its own. Their scripts are in `tests/clients`; what they print is judged here.

use std::process::Command;

use fleetwright_tests::bridged::{Bridge, Fixture, Served};
use fleetwright_tests::real_servers::{SERVERS, call_all};
use fleetwright_tests::strangers::{Kit, node};
use fleetwright_tests::tools::{Tool, have};
use serde_json::{Value, json};

const NEEDED: [Tool; 3] = [Tool::Python, Tool::Pypi, Tool::Npm];

/// A client, and what it is told about the era to speak.
struct Client {
    kit: Kit,
    script: &'static str,
    mode: &'static str,
}

/// Those that speak the older era.
const OLDER: [Client; 5] = [
    Client { kit: Kit::Python1, script: "python1.py", mode: "legacy" },
    Client { kit: Kit::Python2, script: "python2.py", mode: "legacy" },
    Client { kit: Kit::Fastmcp, script: "fastmcp4.py", mode: "legacy" },
    Client { kit: Kit::TypeScript1, script: "typescript1.mjs", mode: "legacy" },
    Client { kit: Kit::TypeScript2, script: "typescript2.mjs", mode: "legacy" },
];

/// Those that find out what the server speaks.
const FINDING_OUT: [Client; 3] = [
    Client { kit: Kit::Python2, script: "python2.py", mode: "auto" },
    Client { kit: Kit::Fastmcp, script: "fastmcp4.py", mode: "auto" },
    Client { kit: Kit::TypeScript2, script: "typescript2.mjs", mode: "auto" },
];

/// Those that speak the modern era and no other.
const MODERN: [Client; 3] = [
    Client { kit: Kit::Python2, script: "python2.py", mode: "2026-07-28" },
    Client { kit: Kit::Fastmcp, script: "fastmcp4.py", mode: "2026-07-28" },
    Client { kit: Kit::TypeScript2, script: "typescript2.mjs", mode: "2026-07-28" },
];

/// Whether the server can ask this client something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asking {
    Works,
    /// It fails, and soon.
    Fails,
}

/// Runs a client, and judges each of its findings.
#[track_caller]
fn judge(served: &Served, fixture: Fixture, client: &Client, version: &str, asking: Asking) {
    if client.script.ends_with(".mjs") {
        client.kit.script("probes.mjs");
    }
    let mut command = client.kit.command(client.script);
    command.args([&served.url(), client.mode]);
    let found = printed(&mut command, served);
    let what = format!("{} {} at {}", client.script, client.mode, fixture.name());
    let of = |probe: &str| found[probe].clone();
    let soon = |probe: &str| !of(probe).to_string().contains("no answer") && !of(probe).to_string().contains("Timeout");
    assert_eq!(of("version"), version, "{what}: {found:#}");
    assert_eq!(of("tools"), fixture.tools(), "{what}: {found:#}");
    assert_eq!(of("text"), "This is a simple text response for testing.", "{what}: {found:#}");
    let steps: Vec<f64> = of("progress").as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    assert_eq!(steps, [0.0, 50.0, 100.0], "{what}: {found:#}");
    assert_eq!(of("logs"), json!(true), "{what}: {found:#}");
    let change = if version < "2026" { "ResourceUpdated" } else { "ToolsListChanged" };
    // fastmcp has no way to listen.
    assert!(client.kit == Kit::Fastmcp || of("updates") == change, "{what}: {found:#}");
    for (probe, answers) in
        [("elicitation", &["Ada"][..]), ("sampling", &["Paris"]), ("roots", &["file:///somewhere", "1 roots"])]
    {
        let answered = answers.iter().any(|answer| of(probe).to_string().contains(answer));
        assert_eq!(answered, asking == Asking::Works, "{what}, {probe}: {found:#}");
        assert!(soon(probe), "{what}, {probe}: {found:#}");
    }
    assert!(soon("cancel"), "{what}: {found:#}");
}

/// What a command prints, as JSON.
#[track_caller]
fn printed(command: &mut Command, served: &Served) -> Value {
    let output = command.output().expect("the client runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{command:?}: {error}, {}\n{said}\nthe server:\n{}", output.status, served.log())
    })
}

/// Runs all clients at a bridged fixture, whose bridge may not offer the modern era.
#[track_caller]
fn all_use(fixture: Fixture, bridge: &Bridge, older: Asking, modern: Option<Asking>) {
    let served = bridge.serve(&fixture.stdio());
    for client in &OLDER {
        judge(&served, fixture, client, "2025-11-25", older);
    }
    let (version, asking) = modern.map_or(("2025-11-25", older), |asking| ("2026-07-28", asking));
    for client in &FINDING_OUT {
        judge(&served, fixture, client, version, asking);
    }
    let pinned = if modern.is_some() { &MODERN[..] } else { &[] };
    for client in pinned {
        judge(&served, fixture, client, version, asking);
    }
    let eras = if modern.is_some() { &["legacy", "auto", "modern"][..] } else { &["legacy", "auto"] };
    for era in eras {
        inspect(&served, era, fixture);
    }
    // Whoever has given up was followed to the server: all clients but fastmcp's give up.
    let gave_up = OLDER.iter().chain(&FINDING_OUT).chain(pinned).filter(|client| client.kit != Kit::Fastmcp).count();
    served.until_said("the wait was cancelled", gave_up);
}

/// The Inspector's command line lists tools and calls one.
#[track_caller]
fn inspect(served: &Served, era: &str, fixture: Fixture) {
    let home = tempfile::tempdir().expect("a folder");
    let run = |more: &[&str]| {
        let mut command = Command::new(node());
        command.arg(Kit::Inspector.module("@modelcontextprotocol/inspector/clients/launcher/build/index.js"));
        command.args(["--cli", "--server-url", &served.url(), "--transport", "http", "--format", "json"]);
        command.args(["--protocol-era", era]).args(more).env("HOME", home.path());
        printed(&mut command, served)
    };
    let listed = run(&["--method", "tools/list"]);
    assert_eq!(listed["result"]["tools"].as_array().map(Vec::len), Some(fixture.tools()), "{era}: {listed:#}");
    let called = run(&["--method", "tools/call", "--tool-name", "test_simple_text"]);
    let text = &called["result"]["content"][0]["text"];
    assert_eq!(*text, "This is a simple text response for testing.", "{era}: {called:#}");
}

#[test]
fn official_clients_of_both_eras_use_a_server_of_both_that_they_share() {
    if have(&NEEDED) {
        all_use(Fixture::Python, &Bridge::default(), Asking::Fails, Some(Asking::Works));
    }
}

#[test]
fn official_clients_of_both_eras_use_a_server_of_both_with_a_child_each() {
    if have(&NEEDED) {
        all_use(Fixture::Python, &Bridge::default().own(), Asking::Works, Some(Asking::Works));
    }
}

#[test]
fn official_clients_of_both_eras_use_a_server_of_the_older_era_that_they_share() {
    if have(&NEEDED) {
        all_use(Fixture::TypeScript, &Bridge::default(), Asking::Fails, Some(Asking::Fails));
    }
}

#[test]
fn official_clients_of_both_eras_use_a_server_of_the_older_era_with_a_child_each() {
    if have(&NEEDED) {
        all_use(Fixture::TypeScript, &Bridge::default().own(), Asking::Works, None);
    }
}

#[test]
fn official_clients_of_both_eras_use_a_server_on_the_newest_typescript_sdk_that_they_share() {
    if have(&NEEDED) {
        all_use(Fixture::TypeScript2, &Bridge::default(), Asking::Fails, Some(Asking::Works));
    }
}

#[test]
fn official_clients_of_both_eras_use_a_server_on_the_newest_typescript_sdk_with_a_child_each() {
    if have(&NEEDED) {
        all_use(Fixture::TypeScript2, &Bridge::default().own(), Asking::Works, Some(Asking::Works));
    }
}

#[test]
fn a_server_that_looks_at_its_client_shows_everything_to_a_client_with_a_child_of_its_own() {
    if !have(&NEEDED) {
        return;
    }
    let everything = Kit::TypeScript1.module("@modelcontextprotocol/server-everything/dist/index.js");
    let served = Bridge::default().own().serve(&[node().into(), everything.into(), "stdio".into()]);
    let mut command = Kit::Python2.command("call.py");
    command.args([&served.url(), "legacy", "echo", r#"{"message": "hello"}"#]);
    let found = printed(&mut command, &served);
    assert_eq!(found["tools"], 17, "{found:#}");
    assert_eq!(found["text"], "Echo: hello", "{found:#}");
}

#[test]
fn real_servers_that_no_shipped_definition_knows_come_up_and_are_called() {
    if !have(&NEEDED) {
        return;
    }
    for called in call_all(&SERVERS[..5]) {
        let outcome = called.outcome.unwrap_or_else(|error| panic!("{}: {error}", called.name));
        assert!(outcome.0 > 0, "{}: {outcome:?}", called.name);
    }
}
