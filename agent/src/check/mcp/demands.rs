//! What each era demands of results, and what a client meets where they are not so. Clients check what they are answered
//! (pydantic, zod, serde): what is missing is no small matter to them.

use fleetwright_deploy::limits::{NAME_BYTES_MAX, size};
use serde_json::{Map, Value};

use super::conversation::{Era, MODERN};
use super::fault::{Fault, kind_of, shortened};

type Fields = Map<String, Value>;

/// `server/discover` (2026-07-28).
pub(super) fn discovered(result: &Fields) -> Result<(), Fault> {
    modern(result, "server/discover", true)?;
    field(result, "capabilities", Value::is_object, "server/discover", "fields")
}

/// `initialize` of the older era; the revision that the server has chosen.
pub(super) fn shaken(result: &Fields) -> Result<&str, Fault> {
    let method = "initialize";
    field(result, "capabilities", Value::is_object, method, "fields")?;
    field(result, "serverInfo", Value::is_object, method, "fields")?;
    for name in ["name", "version"] {
        if !result["serverInfo"].get(name).is_some_and(Value::is_string) {
            return Err(violation(method, &format!("`serverInfo.{name}` as a text")));
        }
    }
    let version = result.get("protocolVersion").and_then(Value::as_str);
    version.ok_or_else(|| violation(method, "`protocolVersion` as a text"))
}

/// A page of `tools/list`: its tools, and where the next one begins.
pub(super) fn page(result: Fields, era: Era) -> Result<(Vec<Value>, Option<String>), Fault> {
    const METHOD: &str = "tools/list";
    if era == Era::Modern {
        modern(&result, METHOD, true)?;
    }
    let next = match result.get("nextCursor") {
        None | Some(Value::Null) => None,
        Some(Value::String(cursor)) => Some(cursor.clone()),
        Some(_) => return Err(violation(METHOD, "`nextCursor` as a text")),
    };
    let mut result = result;
    match result.remove("tools") {
        Some(Value::Array(tools)) => Ok((tools, next)),
        Some(_) | None => Err(violation(METHOD, "`tools` as a list")),
    }
}

/// The result of a tool's call.
pub(super) fn called(result: &Fields, era: Era) -> Result<(), Fault> {
    if era == Era::Modern {
        modern(result, "tools/call", false)?;
    }
    field(result, "content", Value::is_array, "tools/call", "a list")
}

/// What 2026-07-28 demands of every result, and of those that may be kept.
fn modern(result: &Fields, method: &str, kept: bool) -> Result<(), Fault> {
    match result.get("resultType").and_then(Value::as_str) {
        None => return Err(modern_violation(method, "`resultType`")),
        Some("complete") => {}
        Some("input_required") if !kept => {
            return Err(Fault::Violation(format!(
                "wants to ask its client before it answers `{method}`: a check has nobody to ask"
            )));
        }
        Some(other) => {
            let what = format!("`resultType: complete`, and says `{}`", shortened(other));
            return Err(modern_violation(method, &what));
        }
    }
    if !kept {
        return Ok(());
    }
    if result.get("ttlMs").and_then(Value::as_i64).is_none_or(|ms| ms < 0) {
        return Err(modern_violation(method, "`ttlMs` as a number of at least 0"));
    }
    if !matches!(result.get("cacheScope").and_then(Value::as_str), Some("public" | "private")) {
        return Err(modern_violation(method, "`cacheScope` as `public` or `private`"));
    }
    Ok(())
}

fn modern_violation(method: &str, what: &str) -> Fault {
    Fault::Violation(format!(
        "offers {MODERN} and answers `{method}` without {what}: clients of that revision refuse the answer"
    ))
}

fn field(result: &Fields, name: &str, is: fn(&Value) -> bool, method: &str, kind: &str) -> Result<(), Fault> {
    match result.get(name) {
        Some(value) if is(value) => Ok(()),
        Some(value) => Err(Fault::Violation(format!(
            "answers `{method}` with `{name}` as {}, where clients take {kind}",
            kind_of(value)
        ))),
        None => Err(violation(method, &format!("`{name}`"))),
    }
}

fn violation(method: &str, what: &str) -> Fault {
    Fault::Violation(format!("answers `{method}` without {what}: clients refuse the answer"))
}

/// Why no client can use a tool, if none can.
pub(super) fn unusable(tool: &Value, era: Era) -> Option<String> {
    let Value::Object(fields) = tool else { return Some(format!("it is {}", kind_of(tool))) };
    match fields.get("name") {
        Some(Value::String(name)) if name.is_empty() => return Some("its name is empty".to_owned()),
        Some(Value::String(name)) if name.len() > NAME_BYTES_MAX => {
            return Some(format!("its name is {} long, the limit is {}", size(name.len()), size(NAME_BYTES_MAX)));
        }
        Some(Value::String(_)) => {}
        Some(_) | None => return Some("it has no name".to_owned()),
    }
    if fields.get("description").is_some_and(|text| !text.is_string()) {
        return Some("its `description` is no text".to_owned());
    }
    match fields.get("inputSchema") {
        Some(Value::Object(schema)) if schema.get("type").and_then(Value::as_str) == Some("object") => {}
        Some(Value::Object(_)) => return Some("its `inputSchema` is not of type object".to_owned()),
        Some(_) | None => return Some("it has no `inputSchema`".to_owned()),
    }
    if era == Era::Modern { wrong_header(&fields["inputSchema"]) } else { None }
}

/// Why an argument cannot go in a header, as the schema of a tool wants it to: clients leave such a tool out (SEP-2243).
fn wrong_header(schema: &Value) -> Option<String> {
    let mut seen = Vec::new();
    for argument in headers_of(schema) {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let header = argument.header.as_str().filter(|header| !header.is_empty() && header.bytes().all(token));
        let Some(header) = header.map(str::to_ascii_lowercase) else {
            return Some(format!("`x-mcp-header` of `{}` is no name of a header", argument.path.join(".")));
        };
        if !matches!(argument.schema.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
            return Some(format!(
                "`{}` goes in a header, and is no text, whole number or truth value",
                argument.path.join(".")
            ));
        }
        if seen.contains(&header) {
            return Some(format!("two of its arguments go in the header `{header}`"));
        }
        seen.push(header);
    }
    None
}

/// An argument that goes in a header as well.
pub(super) struct HeaderArgument<'a> {
    pub(super) path: Vec<&'a str>,
    schema: &'a Value,
    pub(super) header: &'a Value,
}

/// The arguments that a schema wants in headers, at most as deep as anybody writes them.
pub(super) fn headers_of(schema: &Value) -> Vec<HeaderArgument<'_>> {
    const DEPTH_MAX: usize = 16;
    let (mut found, mut open) = (Vec::new(), vec![(Vec::new(), schema)]);
    while let Some((path, schema)) = open.pop() {
        for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let mut path: Vec<&str> = path.clone();
            path.push(name);
            if let Some(header) = inner.get("x-mcp-header") {
                found.push(HeaderArgument { path: path.clone(), schema: inner, header });
            }
            if path.len() < DEPTH_MAX {
                open.push((path, inner));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        let Value::Object(fields) = value else { panic!("fields") };
        fields
    }

    #[test]
    fn a_list_of_the_modern_era_says_how_long_it_may_be_kept_and_by_whom() {
        let right = json!({ "resultType": "complete", "ttlMs": 0, "cacheScope": "private", "tools": [] });
        assert!(page(fields(right.clone()), Era::Modern).is_ok());
        for missing in ["resultType", "ttlMs", "cacheScope", "tools"] {
            let mut without = fields(right.clone());
            without.remove(missing);
            let told = page(without.clone(), Era::Modern).expect_err(missing).words();
            assert!(told.contains(&format!("without `{missing}`")) && told.contains("clients"), "{told}");
            assert_eq!(page(without, Era::Legacy).is_ok(), missing != "tools", "the older era knows none of them");
        }
        for (name, wrong) in
            [("ttlMs", json!(-1)), ("ttlMs", json!("0")), ("cacheScope", json!("")), ("resultType", json!("task"))]
        {
            let mut with = fields(right.clone());
            with.insert(name.to_owned(), wrong);
            assert!(page(with, Era::Modern).is_err(), "{name}");
        }
    }

    #[test]
    fn a_tool_that_no_client_can_use_is_told_with_the_reason() {
        let told = |tool: Value| unusable(&tool, Era::Modern).unwrap_or_default();
        assert_eq!(told(json!({ "name": "a", "inputSchema": { "type": "object" } })), "");
        for (tool, why) in [
            (json!("a"), "it is a text"),
            (json!({ "inputSchema": { "type": "object" } }), "no name"),
            (json!({ "name": "", "inputSchema": { "type": "object" } }), "is empty"),
            (
                json!({ "name": "x".repeat(129), "inputSchema": { "type": "object" } }),
                "129 bytes long, the limit is 128 bytes",
            ),
            (json!({ "name": "a" }), "no `inputSchema`"),
            (json!({ "name": "a", "inputSchema": {} }), "not of type object"),
            (json!({ "name": "a", "inputSchema": { "type": "array" } }), "not of type object"),
            (json!({ "name": "a", "description": 1, "inputSchema": { "type": "object" } }), "no text"),
        ] {
            let said = told(tool.clone());
            assert!(said.contains(why), "{tool}: {said}");
        }
        let header = |properties: Value| {
            let tool = json!({ "name": "a", "inputSchema": { "type": "object", "properties": properties } });
            (told(tool.clone()), unusable(&tool, Era::Legacy))
        };
        let fits = json!({ "a": { "type": "string", "x-mcp-header": "Region" }, "b": { "properties": { "c": { "type": "integer", "x-mcp-header": "C" } } } });
        assert_eq!(header(fits), (String::new(), None));
        for wrong in [
            json!({ "a": { "type": "object", "x-mcp-header": "A" } }),
            json!({ "a": { "type": "string", "x-mcp-header": "A b" } }),
            json!({ "a": { "type": "string", "x-mcp-header": "" } }),
            json!({ "a": { "type": "string", "x-mcp-header": "A" }, "b": { "type": "string", "x-mcp-header": "a" } }),
        ] {
            let (modern, legacy) = header(wrong.clone());
            assert!(!modern.is_empty() && legacy.is_none(), "{wrong}");
        }
    }
}
