//! What a request of the modern era says of itself, twice: in its headers, for those who pass it on, and in its body. Both
//! must agree (2026-07-28, basic/transports/streamable-http, "Server Validation").

use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;

use super::era::{
    HEADER_MISMATCH, Level, META_CAPABILITIES, META_LOG_LEVEL, META_PREFIX, META_VERSION, MODERN, unsupported,
};
use super::message::{Fields, INVALID_PARAMS, Raw, failure, fields, text};

pub(super) const VERSION_HEADER: &str = "mcp-protocol-version";
const METHOD_HEADER: &str = "mcp-method";
const NAME_HEADER: &str = "mcp-name";
const PARAMETER_HEADER_PREFIX: &str = "mcp-param-";

/// A header that may be there once.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Raw> {
    let mut all = headers.get_all(name).iter();
    let (first, more) = (all.next(), all.next());
    match first.map(|value| value.to_str()) {
        _ if more.is_some() => Err(mismatch(&format!("there is more than one {name} header"))),
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(mismatch(&format!("the {name} header is no text"))),
    }
}

fn mismatch(message: &str) -> Raw {
    failure(HEADER_MISMATCH, message)
}

/// Whether a request is one of the modern era: it says so in its header or its body, or its method is of that era.
pub(super) fn is_modern(headers: &HeaderMap, method: &str, params: Option<&RawValue>) -> bool {
    let named = headers.get(VERSION_HEADER).is_some_and(|version| version.as_bytes() >= MODERN.as_bytes());
    let meta = || params.is_some_and(|params| params.get().contains(META_PREFIX)) && version_of(params).is_some();
    // Clients of the older era begin with it, whatever version they name.
    if method == "initialize" {
        return meta();
    }
    named || matches!(method, "server/discover" | "subscriptions/listen") || meta()
}

fn meta_of(params: Option<&RawValue>) -> Option<Fields> {
    fields(fields(params)?.get("_meta").map(|meta| &**meta))
}

fn version_of(params: Option<&RawValue>) -> Option<String> {
    text(&meta_of(params)?, META_VERSION)
}

/// What a request says that counts for how it is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The least important log messages that its client wants.
    pub(super) logs: Option<Level>,
}

/// Checks what a request says of itself; gives the error that it is refused with.
pub(super) fn check(
    headers: &HeaderMap,
    method: &str,
    params: Option<&RawValue>,
    supported: &[&str],
) -> Result<Said, Raw> {
    let (named, meta) = (header(headers, VERSION_HEADER)?, meta_of(params).unwrap_or_default());
    let Some(version) = text(&meta, META_VERSION) else {
        if let Some(named) = named.filter(|named| !supported.contains(named)) {
            return Err(unsupported(named, supported));
        }
        return Err(failure(INVALID_PARAMS, &format!("`_meta` lacks {META_VERSION}, or it is no text")));
    };
    match named {
        None => return Err(mismatch("the MCP-Protocol-Version header is missing")),
        Some(named) if named != version => {
            return Err(mismatch("the MCP-Protocol-Version header is not the version that `_meta` names"));
        }
        Some(_) => {}
    }
    if version != MODERN || !supported.contains(&MODERN) {
        return Err(unsupported(&version, supported));
    }
    if fields(meta.get(META_CAPABILITIES).map(|capabilities| &**capabilities)).is_none() {
        return Err(failure(INVALID_PARAMS, &format!("`_meta` lacks {META_CAPABILITIES}, or it is no object")));
    }
    match header(headers, METHOD_HEADER)? {
        None => return Err(mismatch("the Mcp-Method header is missing")),
        Some(named) if named != method => return Err(mismatch("the Mcp-Method header is not the method of the body")),
        Some(_) => {}
    }
    if let Some(name) = name_of(method, params) {
        match header(headers, NAME_HEADER)? {
            None => return Err(mismatch("the Mcp-Name header is missing")),
            Some(named) if decoded(named).as_deref() != Some(name.as_str()) => {
                return Err(mismatch("the Mcp-Name header is not what the body names"));
            }
            Some(_) => {}
        }
    }
    let logs = match text(&meta, META_LOG_LEVEL) {
        Some(level) => Some(Level::parse(&level).ok_or_else(|| failure(INVALID_PARAMS, "there is no such log level"))?),
        None => None,
    };
    Ok(Said { logs })
}

/// What a request is about, as its header repeats it.
fn name_of(method: &str, params: Option<&RawValue>) -> Option<String> {
    let field = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        _ => return None,
    };
    text(&fields(params)?, field)
}

/// A header's value; values that no header can hold come in Base64 ("Value Encoding").
fn decoded(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(encoded) => String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

/// Arguments of a tool that its calls repeat in headers: the way to each, and its header's name.
pub(super) type Repeated = Vec<(Vec<String>, String)>;

/// Those that a tool's input schema names by `x-mcp-header`, on properties that are reached by properties alone.
pub(super) fn repeated(schema: &Value) -> Repeated {
    /// Deepest property that is looked at.
    const DEPTH_MAX: usize = 16;
    fn gather(schema: &Value, way: &mut Vec<String>, all: &mut Repeated) {
        let properties = schema.get("properties").and_then(Value::as_object);
        if way.len() >= DEPTH_MAX {
            return;
        }
        for (name, property) in properties.into_iter().flatten() {
            way.push(name.clone());
            if let Some(header) =
                property.get("x-mcp-header").and_then(Value::as_str).filter(|header| !header.is_empty())
            {
                all.push((way.clone(), header.to_owned()));
            }
            gather(property, way, all);
            way.pop();
        }
    }
    let mut all = Vec::new();
    gather(schema, &mut Vec::new(), &mut all);
    all
}

/// Checks the arguments of a call that are repeated in headers.
pub(super) fn check_arguments(headers: &HeaderMap, params: Option<&RawValue>, repeated: &Repeated) -> Result<(), Raw> {
    let arguments = fields(params).and_then(|params| params.get("arguments").cloned());
    let arguments: Value =
        arguments.and_then(|arguments| serde_json::from_str(arguments.get()).ok()).unwrap_or(Value::Null);
    for (way, name) in repeated {
        let value = way.iter().try_fold(&arguments, |value, step| value.get(step)).filter(|value| !value.is_null());
        let told = header(headers, &format!("{PARAMETER_HEADER_PREFIX}{}", name.to_ascii_lowercase()))?;
        let agree = match (value, told.map(decoded)) {
            (None, None) => true,
            (Some(value), Some(Some(told))) => says(value, &told),
            (None | Some(_), _) => false,
        };
        if !agree {
            let message = format!("the Mcp-Param-{name} header is not the argument `{}` of the body", way.join("."));
            return Err(mismatch(&message));
        }
    }
    Ok(())
}

fn says(value: &Value, told: &str) -> bool {
    match value {
        Value::String(text) => text == told,
        Value::Bool(truth) => told == if *truth { "true" } else { "false" },
        Value::Number(number) => {
            number.as_f64().is_some_and(|number| told.parse::<f64>().is_ok_and(|told| told == number))
        }
        // No header repeats these, so none can contradict them.
        Value::Null | Value::Array(_) | Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::message::{code, raw};
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    fn params(version: &str, more: Value) -> Raw {
        let mut all = json!({ "_meta": { META_VERSION: version, META_CAPABILITIES: {} } });
        for (name, value) in more.as_object().expect("an object") {
            all[name] = value.clone();
        }
        raw(&all)
    }

    fn refused(all: &[(&'static str, &str)], method: &str, params: &RawValue) -> Option<i64> {
        check(&headers(all), method, Some(params), &["2025-11-25", MODERN]).err().and_then(|error| code(&error))
    }

    #[test]
    fn headers_and_body_must_agree() {
        let (version, call) = ((VERSION_HEADER, MODERN), params(MODERN, json!({ "name": "ümlaut" })));
        let name = (NAME_HEADER, "=?base64?w7xtbGF1dA==?=");
        let method = (METHOD_HEADER, "tools/call");
        assert_eq!(refused(&[version, method, name], "tools/call", &call), None);
        for wrong in [
            vec![method, name],
            vec![version, name],
            vec![version, method],
            vec![version, (METHOD_HEADER, "tools/list"), name],
            vec![version, method, (NAME_HEADER, "other")],
            vec![version, method, name, name],
            vec![(VERSION_HEADER, "2025-11-25"), method, name],
        ] {
            assert_eq!(refused(&wrong, "tools/call", &call), Some(HEADER_MISMATCH), "{wrong:?}");
        }
    }

    #[test]
    fn a_version_that_nobody_speaks_is_refused_with_those_that_are_spoken() {
        let of = |version: &'static str| {
            refused(
                &[(VERSION_HEADER, version), (METHOD_HEADER, "tools/list")],
                "tools/list",
                &params(version, json!({})),
            )
        };
        assert_eq!((of("1900-01-01"), of("2099-01-01")), (Some(-32022), Some(-32022)));
        let older_era =
            check(&headers(&[(VERSION_HEADER, MODERN)]), "x", Some(&params(MODERN, json!({}))), &["2025-11-25"]);
        let error = older_era.expect_err("refused");
        assert!(error.get().contains(r#""supported":["2025-11-25"]"#), "{error}");
    }

    #[test]
    fn what_must_be_said_must_be_said() {
        let all = [(VERSION_HEADER, MODERN), (METHOD_HEADER, "tools/list")];
        assert_eq!(refused(&all, "tools/list", &raw(&json!({}))), Some(INVALID_PARAMS));
        let no_capabilities = raw(&json!({ "_meta": { META_VERSION: MODERN } }));
        assert_eq!(refused(&all, "tools/list", &no_capabilities), Some(INVALID_PARAMS));
        let level = raw(&json!({ "_meta": { META_VERSION: MODERN, META_CAPABILITIES: {}, META_LOG_LEVEL: "loud" } }));
        assert_eq!(refused(&all, "tools/list", &level), Some(INVALID_PARAMS));
    }

    #[test]
    fn a_request_is_modern_by_what_it_says() {
        let none = headers(&[]);
        assert!(is_modern(&none, "tools/list", Some(&params(MODERN, json!({})))));
        assert!(
            is_modern(&none, "server/discover", None) && is_modern(&headers(&[(VERSION_HEADER, MODERN)]), "x", None)
        );
        assert!(
            !is_modern(&none, "tools/list", None)
                && !is_modern(&headers(&[(VERSION_HEADER, MODERN)]), "initialize", None)
        );
    }

    #[test]
    fn arguments_that_are_repeated_must_agree() {
        let schema = json!({ "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "deep": { "properties": { "n": { "type": "integer", "x-mcp-header": "N" } } },
            "list": { "items": { "properties": { "x": { "x-mcp-header": "X" } } } },
        } });
        let repeated = repeated(&schema);
        assert_eq!(repeated.len(), 2);
        let call = raw(&json!({ "arguments": { "region": "eu", "deep": { "n": 42 } } }));
        let checked = |all: &[(&'static str, &str)]| check_arguments(&headers(all), Some(&call), &repeated).is_ok();
        assert!(checked(&[("mcp-param-region", "eu"), ("mcp-param-n", "42.0")]));
        assert!(
            !checked(&[("mcp-param-region", "us"), ("mcp-param-n", "42")]) && !checked(&[("mcp-param-region", "eu")])
        );
        let without = raw(&json!({ "arguments": { "region": null } }));
        let extra = headers(&[("mcp-param-region", "eu")]);
        assert!(check_arguments(&extra, Some(&without), &repeated).is_err());
        assert!(check_arguments(&headers(&[]), Some(&without), &repeated).is_ok());
    }
}
