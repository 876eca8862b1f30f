//! What an entry of the MCP registry holds (`server.json`, schema of 2025-12-11). What publishers write beside the schema
//! is passed over.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

#[derive(Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    pub(super) version: String,
    #[serde(default)]
    pub(super) packages: Vec<EntryPackage>,
    #[serde(default)]
    pub(super) remotes: Vec<EntryTransport>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EntryPackage {
    pub(super) registry_type: String,
    pub(super) registry_base_url: Option<String>,
    pub(super) identifier: String,
    pub(super) version: Option<String>,
    pub(super) file_sha256: Option<String>,
    pub(super) runtime_hint: Option<String>,
    pub(super) transport: EntryTransport,
    #[serde(default)]
    pub(super) package_arguments: Vec<Input>,
    #[serde(default)]
    pub(super) runtime_arguments: Vec<Input>,
    #[serde(default)]
    pub(super) environment_variables: Vec<Input>,
}

#[derive(Deserialize)]
pub(super) struct EntryTransport {
    pub(super) r#type: String,
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) headers: Vec<Input>,
    #[serde(default)]
    pub(super) variables: BTreeMap<String, Input>,
}

/// What a program is given: an argument, a variable of its environment, a header, or a part of one of these.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Input {
    pub(super) r#type: String,
    pub(super) name: Option<String>,
    pub(super) value_hint: Option<String>,
    pub(super) description: Option<String>,
    pub(super) is_required: bool,
    pub(super) is_secret: bool,
    pub(super) is_repeated: bool,
    pub(super) format: Option<String>,
    pub(super) placeholder: Option<Said>,
    pub(super) value: Option<Said>,
    pub(super) default: Option<Said>,
    pub(super) choices: Vec<Said>,
    pub(super) variables: BTreeMap<String, Self>,
}

impl Input {
    /// What a person would call it.
    pub(super) fn label(&self) -> &str {
        let named = self.name.as_deref().filter(|name| !name.is_empty());
        named.or(self.value_hint.as_deref()).unwrap_or("argument")
    }

    /// Whether it is for saying yes or no.
    pub(super) fn is_boolean(&self) -> bool {
        self.format.as_deref() == Some("boolean")
    }
}

/// A text, which publishers also write as a number or a truth value.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Said(pub(super) String);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Plain;
        impl Visitor<'_> for Plain {
            type Value = Said;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Said, E> {
                Ok(Said(text.to_owned()))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Said, E> {
                Ok(Said(value.to_string()))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Said, E> {
                Ok(Said(value.to_string()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Said, E> {
                Ok(Said(value.to_string()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Said, E> {
                Ok(Said(value.to_string()))
            }
        }
        deserializer.deserialize_any(Plain)
    }
}
