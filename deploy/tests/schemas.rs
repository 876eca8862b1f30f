//! The schemas of configuration files: what ships is as they say, and what the reader refuses by its form they refuse, too.

use std::path::{Path, PathBuf};

use fleetwright_deploy::planning::{SchemaKind, schema};
use serde_json::Value;

fn refusals(kind: SchemaKind, text: &str) -> Vec<String> {
    let value: Value = serde_saphyr::from_str(text).expect("YAML");
    let schema = schema(kind);
    let validator = jsonschema::draft7::new(&schema).expect("a schema");
    validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(root).expect("a folder").map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "yaml")).collect()
}

#[test]
fn every_shipped_file_is_what_its_schema_says() {
    for (kind, folder) in [
        (SchemaKind::Manifest, "deployments"),
        (SchemaKind::Server, "config/servers"),
        (SchemaKind::Environment, "config/environments"),
        (SchemaKind::Checks, "health-checks"),
    ] {
        let files = files(folder);
        assert!(!files.is_empty(), "{folder}");
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a file");
            assert_eq!(refusals(kind, &text), Vec::<String>::new(), "{}", file.display());
        }
    }
}

#[test]
fn what_the_reader_refuses_by_its_form_the_schema_refuses_too() {
    let server = |more: &str| format!("apiVersion: fleetwright/v1\nname: a\nrun: {{ command: [serve] }}\n{more}\n");
    for more in [
        "healthchecks: []",
        "run: { comand: [serve] }",
        "run: { command: serve }",
        "run: { command: [serve], port: 70000 }",
        "run: { command: [serve], transport: sse }",
        "run: { command: [serve], stop_timeout: 10 }",
        "package: { pypi: a }",
        "health_checks: [{ name: x, type: ping }]",
        "health_checks: [{ name: x, type: http, config: { statsu: 200 } }]",
        "health_checks: [{ name: x, type: disk, config: { path: /, free_percent_min: many } }]",
        "files: [{ path: x }]",
    ] {
        let text = match more.strip_prefix("run: ") {
            Some(run) => format!("apiVersion: fleetwright/v1\nname: a\nrun: {run}\n"),
            None => server(more),
        };
        assert!(!refusals(SchemaKind::Server, &text).is_empty(), "{more}");
    }
    let full = "package: { pypi: a, version: 1.0 }\nrequires: [python>=3.10]\nresources: { memory: 1GiB, cpu: 50%, tasks: 4 }\n\
                health_checks:\n  - { use: mcp-tools, with: { tools: [a] } }\n  - { name: x, type: http, interval: 1s, config: { status: [200, 204], path: '/{{ env.x }}' } }";
    assert_eq!(refusals(SchemaKind::Server, &server(full)), Vec::<String>::new());
    let manifest = |entry: &str| format!("apiVersion: fleetwright/v1\nname: m\nservers: [{{ server: a, {entry} }}]\n");
    for (entry, fits) in [
        ("depends_on: [b, { server: c, condition: started }]", true),
        ("depends_on: [{ server: c, condition: ready }]", false),
        ("rollout: { canary: 20%, batch: 2 }", true),
        ("rollout: { canary: many }", false),
        ("priorty: 1", false),
    ] {
        assert_eq!(refusals(SchemaKind::Manifest, &manifest(entry)).is_empty(), fits, "{entry}");
    }
}
