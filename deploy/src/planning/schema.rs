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
