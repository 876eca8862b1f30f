//! JSON-RPC messages whose parts stay as they came: what client and server say to each other is passed on byte for byte,
//! and only what the bridge must change is taken apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// A JSON value as it came.
pub(super) type Raw = Box<RawValue>;
/// The fields of an object, each as it came.
pub(super) type Fields = BTreeMap<String, Raw>;
/// What a request ends with: a result, or the error object.
pub(super) type Answer = Result<Raw, Raw>;

/// Codes of JSON-RPC 2.0 (section 5.1) and of MCP 2026-07-28 (basic/index, "Error codes").
pub(super) const PARSE_ERROR: i64 = -32700;
pub(super) const INVALID_REQUEST: i64 = -32600;
pub(super) const METHOD_NOT_FOUND: i64 = -32601;
pub(super) const INVALID_PARAMS: i64 = -32602;
pub(super) const INTERNAL_ERROR: i64 = -32603;

/// A message, taken apart no further than its envelope.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    jsonrpc: Option<String>,
    #[serde(default)]
    pub(super) id: Option<Raw>,
    #[serde(default)]
    pub(super) method: Option<String>,
    #[serde(default)]
    pub(super) params: Option<Raw>,
    #[serde(default)]
    pub(super) result: Option<Raw>,
    #[serde(default)]
    pub(super) error: Option<Raw>,
}

#[derive(Serialize)]
struct Written<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
}

const NOTHING: Written<'static> =
    Written { jsonrpc: "2.0", id: None, method: None, params: None, result: None, error: None };

impl Message {
    /// Whether it says that it is of JSON-RPC 2.0, as it must.
    pub(super) fn is_version_2(&self) -> bool {
        self.jsonrpc.as_deref() == Some("2.0")
    }
}

fn written(message: &Written<'_>) -> String {
    serde_json::to_string(message).unwrap_or_default()
}

/// A request with this id.
pub(super) fn request(id: &RawValue, method: &str, params: Option<&RawValue>) -> String {
    written(&Written { id: Some(id), method: Some(method), params, ..NOTHING })
}

/// A notification.
pub(super) fn notification(method: &str, params: Option<&RawValue>) -> String {
    written(&Written { method: Some(method), params, ..NOTHING })
}

/// The answer to the request with this id.
pub(super) fn answer(id: &RawValue, answer: &Answer) -> String {
    match answer {
        Ok(result) => written(&Written { id: Some(id), result: Some(result), ..NOTHING }),
        Err(error) => written(&Written { id: Some(id), error: Some(error), ..NOTHING }),
    }
}

/// An error object.
pub(super) fn failure(code: i64, message: &str) -> Raw {
    raw(&serde_json::json!({ "code": code, "message": message }))
}

/// The code of an error object.
pub(super) fn code(error: &RawValue) -> Option<i64> {
    #[derive(Deserialize)]
    struct Code {
        code: i64,
    }
    serde_json::from_str::<Code>(error.get()).ok().map(|error| error.code)
}

/// A value as it is written.
pub(super) fn raw<T: Serialize + ?Sized>(value: &T) -> Raw {
    to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The fields of an object; none where it is no object.
pub(super) fn fields(value: Option<&RawValue>) -> Option<Fields> {
    serde_json::from_str(value?.get()).ok()
}

/// A field that is a text.
pub(super) fn text(fields: &Fields, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

/// A number that stands for itself as an id.
pub(super) fn number(id: u64) -> Raw {
    raw(&id)
}

/// Whether a value may be the id of a request: a text or a whole number.
pub(super) fn is_id(id: &RawValue) -> bool {
    let text = id.get();
    text.starts_with('"') || text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_stays_as_it_came() {
        let came = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"x":1.50,"big":123456789012345678901,"y":null}}"#;
        let message: Message = serde_json::from_str(came).expect("a message");
        assert!(message.is_version_2());
        let id = message.id.expect("an id");
        assert_eq!(request(&id, "tools/call", message.params.as_deref()), came);
        let fields = fields(message.params.as_deref()).expect("an object");
        assert_eq!(fields["x"].get(), "1.50");
        assert_eq!(raw(&fields).get(), r#"{"big":123456789012345678901,"x":1.50,"y":null}"#);
    }

    #[test]
    fn an_id_is_a_text_or_a_whole_number() {
        for (id, may) in [("1", true), ("-7", true), ("\"a\"", true), ("1.5", false), ("{}", false), ("true", false)] {
            assert_eq!(is_id(&RawValue::from_string(id.to_owned()).expect("JSON")), may, "{id}");
        }
        let none: Message = serde_json::from_str(r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#).expect("a message");
        assert!(none.id.is_none());
    }
}
