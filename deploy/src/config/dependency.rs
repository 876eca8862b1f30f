//! What a server of a manifest depends on: other servers, and endpoints outside the fleet.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use strum::IntoStaticStr;

use crate::ids::ServerName;
use crate::time::Length;

use super::text::Text;

/// What a server waits for: a name alone, or a name with a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependencyWritten {
    /// The server, or the external.
    pub server: ServerName,
    /// How far it must have come.
    pub condition: Condition,
}

/// How far a server must have come before one that depends on it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Condition {
    /// It was started.
    Started,
    /// It is healthy.
    #[default]
    Healthy,
    /// It has done its work: it has ended with exit status 0.
    Completed,
}

impl JsonSchema for DependencyWritten {
    fn schema_name() -> Cow<'static, str> {
        "DependencyWritten".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (server, condition) = (generator.subschema_for::<ServerName>(), generator.subschema_for::<Condition>());
        json_schema!({
            "anyOf": [
                server,
                {
                    "type": "object",
                    "properties": { "server": server, "condition": condition },
                    "required": ["server"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

impl<'de> Deserialize<'de> for DependencyWritten {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            server: ServerName,
            #[serde(default)]
            condition: Condition,
        }

        struct NameOrWhole;

        impl<'de> Visitor<'de> for NameOrWhole {
            type Value = DependencyWritten;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a server, such as `db` or `{ server: db, condition: started }`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                let server = name.parse().map_err(E::custom)?;
                Ok(DependencyWritten { server, condition: Condition::default() })
            }

            fn visit_u64<E: de::Error>(self, name: u64) -> Result<Self::Value, E> {
                self.visit_str(&name.to_string())
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
                let Whole { server, condition } = Whole::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(DependencyWritten { server, condition })
            }
        }

        deserializer.deserialize_any(NameOrWhole)
    }
}

/// An endpoint outside the fleet that must answer before anything is got ready: `tcp` or `http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalWritten {
    /// Its name, by which servers depend on it.
    #[schemars(with = "ServerName")]
    pub name: Spanned<ServerName>,
    /// `HOST:PORT`, where a connection must be accepted.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub tcp: Option<Spanned<String>>,
    /// A URL, where a GET request must be answered.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub http: Option<Spanned<String>>,
    /// With what; 200 unless said otherwise.
    #[serde(default)]
    #[schemars(with = "Option<Vec<u16>>")]
    pub status: Option<Spanned<Vec<u16>>>,
    /// How long one attempt may take; 5 s unless said otherwise.
    #[serde(default)]
    #[schemars(with = "Option<Length>")]
    pub timeout: Option<Spanned<Length>>,
}
