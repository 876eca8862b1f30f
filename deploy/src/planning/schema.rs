//! What configuration files may hold, as JSON Schema (draft 7, which editors know best): made from the types that read
//! them.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use strum::{EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};

use super::render::config_schemas;
use crate::config::{API_VERSION, Environment, Manifest, Server, StandardChecks};

/// A kind of configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum SchemaKind {
    /// A manifest.
    Manifest,
    /// A server definition.
    Server,
    /// An environment.
    Environment,
    /// Standard checks.
    Checks,
}

/// The schemas of all kinds as files: what each is called, and its text.
pub fn schema_files() -> Vec<(String, String)> {
    let files = SchemaKind::iter().map(|kind| {
        let text = serde_json::to_string_pretty(&schema(kind)).unwrap_or_default();
        (format!("{}.schema.json", <&'static str>::from(kind)), format!("{text}\n"))
    });
    files.collect()
}

/// The JSON Schema of a kind of file.
pub fn schema(kind: SchemaKind) -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    let root = match kind {
        SchemaKind::Manifest => generator.into_root_schema_for::<Manifest>(),
        SchemaKind::Server => generator.into_root_schema_for::<Server>(),
        SchemaKind::Environment => generator.into_root_schema_for::<Environment>(),
        SchemaKind::Checks => generator.into_root_schema_for::<StandardChecks>(),
    };
    let mut schema: Value = root.into();
    schema["properties"]["apiVersion"] = json!({ "const": API_VERSION, "description": "The version of the format." });
    schema["title"] = match kind {
        SchemaKind::Manifest => "Fleetwright manifest",
        SchemaKind::Server => "Fleetwright server definition",
        SchemaKind::Environment => "Fleetwright environment",
        SchemaKind::Checks => "Fleetwright standard checks",
    }
    .into();
    in_plain_words(&mut schema);
    // A check's `config` is what its type says.
    if let Some(check) = schema.pointer_mut("/definitions/CheckWritten") {
        let cases = config_schemas().into_iter().map(|(check_type, config)| {
            json!({
                "if": { "properties": { "type": { "const": check_type } }, "required": ["type"] },
                "then": { "properties": { "config": templated(config) } },
            })
        });
        check["allOf"] = cases.collect();
    }
    schema
}

/// Descriptions as people read them: without the brackets of links within code.
fn in_plain_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace("crate::plan::", "");
            }
            fields.values_mut().for_each(in_plain_words);
        }
        Value::Array(items) => items.iter_mut().for_each(in_plain_words),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A mapping whose values may be templates, of whatever type they become; what must be there is left to the reader, for
/// it may come from a layer.
fn templated(mut mapping: Value) -> Value {
    if let Some(fields) = mapping.get_mut("properties").and_then(Value::as_object_mut) {
        for field in fields.values_mut() {
            *field = json!({ "anyOf": [field.take(), { "type": "string", "pattern": "\\{\\{" }] });
        }
    }
    if let Some(mapping) = mapping.as_object_mut() {
        mapping.remove("required");
        mapping.remove("$schema");
        mapping.remove("title");
    }
    mapping
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

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
        let manifest =
            |entry: &str| format!("apiVersion: fleetwright/v1\nname: m\nservers: [{{ server: a, {entry} }}]\n");
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
}
