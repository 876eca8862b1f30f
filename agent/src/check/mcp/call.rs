//! Calling a tool as a client does, and judging what it answers.

use fleetwright_deploy::release::ToolCall;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};
use serde_json_path::JsonPath;

use super::conversation::{Conversation, Era};
use super::demands;
use super::fault::shortened;
use super::tools::Listed;

/// Calls a tool, and looks whether it answers as it should.
pub(super) async fn call(conversation: &mut Conversation<'_>, listed: &Listed, call: &ToolCall) -> Result<(), String> {
    let ToolCall { tool, arguments, .. } = call;
    let Some(schema) = listed.schema(tool) else {
        let names = listed.names().join(", ");
        return Err(format!("it has no tool `{tool}` to be called; it has {}", shortened(&names)));
    };
    let headers = if conversation.era == Era::Modern { headers(tool, arguments, schema) } else { HeaderMap::new() };
    let Value::Object(params) = json!({ "name": tool, "arguments": arguments }) else { return Ok(()) };
    let result = conversation.ask("tools/call", params, headers).await;
    let result = result.map_err(|fault| format!("tool `{tool}`: it {}", fault.words()))?;
    demands::called(&result, conversation.era).map_err(|fault| format!("tool `{tool}`: it {}", fault.words()))?;
    judged(call, &result)
}

/// What a client repeats in headers for those on the way who read no bodies (SEP-2243).
fn headers(tool: &str, arguments: &Map<String, Value>, schema: &Value) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name: &str, text: &str| {
        if let (Ok(name), Some(value)) = (HeaderName::try_from(name), header(text)) {
            headers.insert(name, value);
        }
    };
    set("mcp-name", tool);
    for argument in demands::headers_of(schema) {
        let root = argument.path.split_first().and_then(|(first, rest)| Some((arguments.get(*first)?, rest)));
        let value = root.and_then(|(value, rest)| rest.iter().try_fold(value, |value, key| value.get(*key)));
        let text = match value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(truth)) => truth.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => continue,
        };
        if let Some(name) = argument.header.as_str() {
            set(&format!("mcp-param-{name}"), &text);
        }
    }
    headers
}

/// A text as the value of a header: as it is where it can stand there, else in Base64.
fn header(text: &str) -> Option<HeaderValue> {
    let plain =
        text.bytes().all(|b| (0x20..=0x7e).contains(&b)) && text.trim() == text && !text.starts_with("=?base64?");
    let value = if plain { text.to_owned() } else { format!("=?base64?{}?=", base64(text.as_bytes())) };
    HeaderValue::from_str(&value).ok()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for block in bytes.chunks(3) {
        let number = block.iter().chain(&[0, 0]).take(3).fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        for digit in 0..4 {
            let filled = digit <= block.len();
            text.push(if filled { char::from(DIGITS[number >> (18 - 6 * digit) & 63]) } else { '=' });
        }
    }
    text
}

/// Whether a result is what a call wants.
fn judged(call: &ToolCall, result: &Map<String, Value>) -> Result<(), String> {
    let ToolCall { tool, contains, json, .. } = call;
    let text = result.get("content").map(Value::to_string).unwrap_or_default();
    if result.get("isError") == Some(&Value::Bool(true)) {
        return Err(format!("tool `{tool}` answers with an error: {}", shortened(&words(result).unwrap_or(text))));
    }
    if let Some(wanted) = contains.as_ref().filter(|wanted| !text.contains(wanted.as_str())) {
        return Err(format!("the answer of tool `{tool}` does not contain `{wanted}`: {}", shortened(&text)));
    }
    if json.is_empty() {
        return Ok(());
    }
    let Some(answer) = structured(result) else {
        return Err(format!("the answer of tool `{tool}` is no JSON: {}", shortened(&words(result).unwrap_or(text))));
    };
    for (path, wanted) in json {
        let query = JsonPath::parse(path).map_err(|error| format!("{path}: {error}"))?;
        let found = query.query(&answer).all();
        if !found.contains(&wanted) {
            let found: Vec<String> = found.into_iter().take(5).map(Value::to_string).collect();
            let found = if found.is_empty() { "nothing".to_owned() } else { shortened(&found.join(", ")) };
            return Err(format!("{path} in the answer of tool `{tool}` is {found}, not {wanted}"));
        }
    }
    Ok(())
}

/// What an answer says as JSON: its structured content, or the text that is JSON.
fn structured(result: &Map<String, Value>) -> Option<Value> {
    let structured = result.get("structuredContent").filter(|content| !content.is_null()).cloned();
    structured.or_else(|| serde_json::from_str(&words(result)?).ok())
}

/// The first text of an answer.
fn words(result: &Map<String, Value>) -> Option<String> {
    let content = result.get("content")?.as_array()?;
    content.iter().find_map(|part| part.get("text")?.as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(more: Value, result: Value) -> Result<(), String> {
        let mut call = json!({ "tool": "count", "arguments": {}, "contains": null });
        call.as_object_mut().expect("fields").extend(more.as_object().cloned().expect("fields"));
        let Value::Object(result) = result else { panic!("fields") };
        judged(&serde_json::from_value(call).expect("a call"), &result)
    }

    #[test]
    fn an_answer_is_judged_by_its_text_and_by_its_json() {
        let text = json!({ "content": [{ "type": "text", "text": "{\"rows\": 3}" }] });
        let structured = json!({ "content": [], "structuredContent": { "rows": 3 } });
        assert_eq!(judge(json!({ "contains": "rows" }), text.clone()), Ok(()));
        for answer in [text, structured] {
            assert_eq!(judge(json!({ "json": { "$.rows": 3 } }), answer.clone()), Ok(()));
            let wrong = judge(json!({ "json": { "$.rows": 4 } }), answer.clone()).expect_err("refused");
            assert_eq!(wrong, "$.rows in the answer of tool `count` is 3, not 4");
            let missing = judge(json!({ "json": { "$.lines": 4 } }), answer).expect_err("refused");
            assert!(missing.contains("is nothing, not 4"), "{missing}");
        }
        let plain = json!({ "content": [{ "type": "text", "text": "three rows" }] });
        assert!(
            judge(json!({ "json": { "$.rows": 3 } }), plain.clone())
                .expect_err("refused")
                .contains("is no JSON: three rows")
        );
        assert!(judge(json!({ "contains": "four" }), plain).expect_err("refused").contains("does not contain `four`"));
    }

    #[test]
    fn an_error_of_a_tool_is_told_in_its_own_words() {
        let answer =
            json!({ "isError": true, "content": [{ "type": "text", "text": "connection refused: no database" }] });
        let told = judge(json!({}), answer).expect_err("refused");
        assert_eq!(told, "tool `count` answers with an error: connection refused: no database");
    }

    #[test]
    fn a_header_holds_any_text() {
        let shown = |text: &str| header(text).expect("a value").to_str().expect("text").to_owned();
        assert_eq!(shown("a b"), "a b");
        for (text, encoded) in [("ö", "w7Y="), ("Ma\n", "TWEK"), (" a", "IGE="), ("=?base64?", "PT9iYXNlNjQ/")] {
            assert_eq!(shown(text), format!("=?base64?{encoded}?="));
        }
        let schema = json!({ "properties": { "a": { "type": "string", "x-mcp-header": "Region" }, "b": { "properties": { "c": { "x-mcp-header": "Deep" } } } } });
        let Value::Object(arguments) = json!({ "a": "eu", "b": { "c": 4 } }) else { panic!("fields") };
        let headers = headers("count", &arguments, &schema);
        let sent = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(
            (sent("mcp-name"), sent("mcp-param-region"), sent("mcp-param-deep")),
            (Some("count"), Some("eu"), Some("4"))
        );
    }
}
