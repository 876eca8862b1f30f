//! Messages of clients, marked so that rmcp takes them for methods that it does not know, and hands their parameters
//! over untouched. What belongs to the transport itself is not marked.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::REQUEST_BYTES_MAX;

const MARK: &str = "fleetwright.bridge/";
/// The methods that belong to the transport.
const TRANSPORT: [&str; 5] =
    ["initialize", "server/discover", "subscriptions/listen", "notifications/initialized", "notifications/cancelled"];
/// The header in which the modern era repeats the method.
const METHOD_HEADER: &str = "mcp-method";

#[derive(Serialize, Deserialize)]
struct Message<'a> {
    jsonrpc: &'a str,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
}

/// The method that was marked.
pub(super) fn opened(method: &str) -> &str {
    method.strip_prefix(MARK).unwrap_or(method)
}

/// Marks what a client sends.
pub(super) async fn mark(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, REQUEST_BYTES_MAX).await else {
        let message = format!("a message has at most {} MiB\n", REQUEST_BYTES_MAX >> 20);
        return (StatusCode::PAYLOAD_TOO_LARGE, message).into_response();
    };
    let body = match marked(&body, &mut parts.headers) {
        Some(marked) => {
            parts.headers.remove(CONTENT_LENGTH);
            Body::from(marked)
        }
        // What is no request or notification is for rmcp to judge.
        None => Body::from(body),
    };
    next.run(Request::from_parts(parts, body)).await
}

fn marked(body: &[u8], headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let mut message: Message<'_> = serde_json::from_slice(body).ok()?;
    if TRANSPORT.contains(&message.method.as_str()) || message.method.starts_with(MARK) {
        return None;
    }
    let named = headers.get(METHOD_HEADER).is_some_and(|named| named.as_bytes() == message.method.as_bytes());
    message.method = format!("{MARK}{}", message.method);
    if named {
        headers.insert(METHOD_HEADER, HeaderValue::from_str(&message.method).ok()?);
    }
    serde_json::to_vec(&message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_method_is_marked_and_the_header_that_repeats_it() {
        let mut headers = HeaderMap::new();
        headers.insert(METHOD_HEADER, HeaderValue::from_static("tools/call"));
        let body = br#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"x":1.50,"new":{"y":null}}}"#;
        let marked = marked(body, &mut headers).expect("marked");
        let wanted = r#"{"jsonrpc":"2.0","id":"a","method":"fleetwright.bridge/tools/call","params":{"x":1.50,"new":{"y":null}}}"#;
        assert_eq!(String::from_utf8_lossy(&marked), wanted);
        assert_eq!(headers[METHOD_HEADER], "fleetwright.bridge/tools/call");
        assert_eq!(opened("fleetwright.bridge/tools/call"), "tools/call");
    }

    #[test]
    fn a_header_that_contradicts_the_body_stays_as_it_is_and_is_refused_later() {
        let mut headers = HeaderMap::new();
        headers.insert(METHOD_HEADER, HeaderValue::from_static("tools/list"));
        marked(br#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, &mut headers).expect("marked");
        assert_eq!(headers[METHOD_HEADER], "tools/list");
    }

    #[test]
    fn what_belongs_to_the_transport_and_what_is_no_message_is_not_marked() {
        let none = |body: &str| marked(body.as_bytes(), &mut HeaderMap::new()).is_none();
        assert!(none(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#));
        assert!(none(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#) && none("[]") && none("rubbish"));
    }
}
