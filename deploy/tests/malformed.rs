//! Malformed configuration: what an operator is told, word for word.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fleetwright_deploy::config::{Environment, Manifest, Problems, Server, Source};
use fleetwright_deploy::planning::{Configuration, check};

const SERVER: &str = "apiVersion: fleetwright/v1\nname: a\nrun: { command: [serve] }\n";
const ENVIRONMENT: &str = "apiVersion: fleetwright/v1\nname: e\n";
const MANIFEST: &str = "apiVersion: fleetwright/v1\nname: m\nenvironment: e\nservers:\n  - { server: a }\n";

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

/// Everything that is said of a manifest, an environment and a server.
fn problems(manifest: &str, environment: &str, server: &str) -> Result<(), Problems> {
    let (manifest, environment) = (source("m.yaml", manifest), source("e.yaml", environment));
    let server_source = source("a.yaml", server);
    let server = Server::parse(&server_source)?;
    let configuration = Configuration {
        manifest: (manifest.clone(), Manifest::parse(&manifest)?),
        environment: (environment.clone(), Environment::parse(&environment)?),
        servers: BTreeMap::from([(server.name.value.clone(), (server_source, server))]),
        on_hosts: BTreeMap::new(),
    };
    check(&configuration, &BTreeMap::new()).map(drop)
}

fn of_server(text: &str) -> Result<(), Problems> {
    problems(MANIFEST, ENVIRONMENT, text)
}

fn of_environment(text: &str) -> Result<(), Problems> {
    problems(MANIFEST, text, SERVER)
}

fn of_manifest(text: &str) -> Result<(), Problems> {
    problems(text, ENVIRONMENT, SERVER)
}

#[test]
fn malformed_inputs_are_told_word_for_word() {
    let head = "apiVersion: fleetwright/v1\nname: a\n";
    let run = |more: &str| of_server(&format!("{head}run: {more}\n"));
    let with = |more: &str| of_server(&format!("{SERVER}{more}\n"));
    let package = |more: &str| with(&format!("package: {{ {more} }}"));
    let env = |more: &str| of_environment(&format!("{ENVIRONMENT}{more}\n"));
    let manifest = |servers: &str| {
        of_manifest(&format!("apiVersion: fleetwright/v1\nname: m\nenvironment: e\nservers:\n{servers}"))
    };
    let cases = [
        ("an empty file", of_server("")),
        ("a list in place of a mapping", of_server("- a\n- b\n")),
        ("a text in place of a mapping", of_server("hello")),
        ("tabs", of_server("apiVersion: fleetwright/v1\n\tname: a\n")),
        ("an open quote", of_server("apiVersion: \"fleetwright/v1\nname: a\n")),
        ("an open bracket", of_server(&format!("{head}run: {{ command: [serve\n"))),
        ("two documents", of_server(&format!("{SERVER}---\n{SERVER}"))),
        ("a field twice", of_server(&format!("{SERVER}name: a\n"))),
        ("no version of the format", of_server("name: a\nrun: { command: [serve] }\n")),
        ("another version of the format", of_server(&SERVER.replace("/v1", "/v9"))),
        ("no name", of_server("apiVersion: fleetwright/v1\nrun: { command: [serve] }\n")),
        ("a name in capitals", of_server(&SERVER.replace("name: a", "name: Alpha"))),
        ("another name than its file has", of_server(&SERVER.replace("name: a", "name: b"))),
        ("no run", of_server(head)),
        ("a mistyped field", with("healthchecks: []")),
        ("a mistyped field of run", run("{ comand: [serve] }")),
        ("a command that is one text", run("{ command: serve }")),
        ("a command that is empty", run("{ command: [] }")),
        ("a port that is too large", run("{ command: [serve], port: 70000 }")),
        ("a port that is a word", run("{ command: [serve], port: http }")),
        ("a transport that there is not", run("{ command: [serve], transport: tcp }")),
        ("the transport of 2024", run("{ command: [serve], transport: sse }")),
        ("a stdio server without a port", run("{ command: [serve], transport: stdio }")),
        ("a runtime that there is not", run("{ command: [serve], runtime: docker }")),
        ("a variable without a value", env("variables: { a: null }")),
        ("a variable with a tag", env("variables: { a: !!int 5 }")),
        ("an alias of nothing", env("variables: { a: *b }")),
        ("a length without a unit", run("{ command: [serve], stop_timeout: 10 }")),
        ("a package of two kinds", package("pypi: a, npm: b, version: 1.0")),
        ("a package without a version", package("pypi: a")),
        ("a package at a range", package("pypi: a, version: '>=1.0'")),
        ("a package at latest", package("npm: a, version: latest")),
        ("an extra that is not pinned", package("pypi: a, version: 1.0, with: [b]")),
        ("an archive without a digest", package("archive: 'https://h/a.tar', version: 1.0")),
        ("an archive by another scheme", package("archive: 'ftp://h/a.tar', version: 1.0, sha256: x")),
        ("a digest that is none", package("archive: 'https://h/a.tar', version: 1.0, sha256: abc")),
        ("an image without a digest", package("oci: ghcr.io/a/b, version: 1.0")),
        ("an image with a tag", package("oci: 'ghcr.io/a/b:1', version: 1.0, digest: x")),
        ("a container without an image", with("container: { port: 80 }")),
        ("a requirement that is none", with("requires: ['Python 3']")),
        ("a check of a type that there is not", with("health_checks: [{ name: x, type: ping }]")),
        (
            "two checks of one name",
            with("health_checks: [{ name: x, type: tcp, config: { address: 'h:1' } }, { name: x, type: tcp }]"),
        ),
        ("no tasks", with("resources: { tasks: 0 }")),
        (
            "a version of the agent from PyPI",
            of_server(&format!("{head}package: {{ pypi: a, version: 1.0 }}\nrun: {{ runtime: agent }}\n")),
        ),
        ("a mistyped rule", env("rules: { critical_chek: true }")),
        ("a rule that is broken", env("rules: { critical_check: true }")),
        ("a secret without a source", env("secrets: { k: {} }")),
        ("a secret with two sources", env("secrets: { k: { env: A, file: b } }")),
        ("a fallback that nobody takes", env("secrets: { k: { file: b, fallback: c } }")),
        ("a variable that is a list", env("variables: { z: [1] }")),
        ("a server that is not defined", manifest("  - { server: b }\n")),
        ("a server twice", manifest("  - { server: a }\n  - { server: a }\n")),
        ("a dependency that is not there", manifest("  - { server: a, depends_on: [b] }\n")),
        ("a server that needs itself", manifest("  - { server: a, depends_on: [a] }\n")),
        ("no servers", of_manifest("apiVersion: fleetwright/v1\nname: m\nenvironment: e\n")),
        ("nobody may be away", of_manifest(&format!("{MANIFEST}rollout: {{ max_unavailable: 0 }}\n"))),
        ("a share over a hundred", of_manifest(&format!("{MANIFEST}rollout: {{ canary: 200% }}\n"))),
        ("a strategy that there is not", of_manifest(&format!("{MANIFEST}rollback: {{ strategy: gentle }}\n"))),
        ("a pause at nothing", of_manifest(&format!("{MANIFEST}rollout: {{ pauses: [{{ approvals: 1 }}] }}\n"))),
    ];
    let mut told = String::new();
    for (name, outcome) in cases {
        let problems = match outcome {
            Ok(()) => "(accepted)".to_owned(),
            Err(problems) => problems.to_string(),
        };
        let _ = writeln!(told, "== {name}\n{problems}\n");
        assert_ne!(problems, "(accepted)", "{name}");
    }
    insta::assert_snapshot!(told);
}

#[test]
fn hostile_inputs_end_in_an_error_and_not_in_memory() {
    let bomb = {
        let mut text = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (last, next) in ('a'..'i').zip('b'..='i') {
            text.push_str(&format!(
                "{next}: &{next} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n"
            ));
        }
        text
    };
    let deep = format!("variables: {{ a: {}{} }}\n", "[".repeat(100_000), "]".repeat(100_000));
    let wide = format!("variables: {{ {} }}\n", (0..50_000).map(|n| format!("v{n}: x, ")).collect::<String>());
    let aliases = format!(
        "description: &a x\nvariables: {{ {} }}\n",
        (0..20_000).map(|n| format!("v{n}: *a, ")).collect::<String>()
    );
    for (name, text) in [
        ("aliases of aliases", bomb),
        ("depth", deep),
        ("many aliases", aliases),
        ("size", format!("description: {}\n", "x".repeat(2 << 20))),
        ("a NUL", "description: \"a\u{0}b\"\nno: \u{0}\n".to_owned()),
    ] {
        assert!(of_environment(&format!("{ENVIRONMENT}{text}")).is_err(), "{name}");
    }
    of_environment(&format!("{ENVIRONMENT}{wide}")).expect("fifty thousand variables are many, and no harm");
    assert!(of_manifest(&"x".repeat(100 << 20)).is_err(), "a hundred mebibytes");
}
