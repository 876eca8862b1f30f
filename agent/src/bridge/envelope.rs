//! Messages of clients, marked so that rmcp takes them for methods that it does not know, and hands their parameters
//! over untouched. What belongs to the transport itself is not marked.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

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

/// How long the rest of a request may take once its head is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of all bodies together that are being read, in KiB.
const BODIES_KIB_MAX: usize = 64 * 1024;

/// The room for bodies that are being read.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_KIB_MAX)))
    }
}

/// Marks what a client sends.
pub(super) async fn mark(State(room): State<Room>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let body = match timeout(BODY_TIMEOUT, read(body, &room)).await {
        Ok(Ok(body)) => body,
        Ok(Err(refusal)) => return refusal,
        Err(_) => {
            let message = format!("the request did not come whole within {} s\n", BODY_TIMEOUT.as_secs());
            return (StatusCode::REQUEST_TIMEOUT, [(CONNECTION, "close")], message).into_response();
        }
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

/// The body, as far as there is room for it.
async fn read(body: Body, room: &Room) -> Result<Vec<u8>, Response> {
    let (mut whole, mut taken) = (Vec::new(), None::<SemaphorePermit<'_>>);
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response())?;
        if whole.len() + part.len() > REQUEST_BYTES_MAX {
            let message = format!("a message has at most {} MiB\n", REQUEST_BYTES_MAX >> 20);
            return Err((StatusCode::PAYLOAD_TOO_LARGE, message).into_response());
        }
        let before = taken.as_ref().map_or(0, SemaphorePermit::num_permits);
        let more = (whole.len() + part.len()).div_ceil(1024).saturating_sub(before);
        let Ok(more) = room.0.try_acquire_many(u32::try_from(more).unwrap_or(u32::MAX)) else {
            let later = [(RETRY_AFTER, HeaderValue::from_static("1"))];
            let message = "too much is being sent at once; try again later\n";
            return Err((StatusCode::SERVICE_UNAVAILABLE, later, message).into_response());
        };
        match &mut taken {
            Some(taken) => taken.merge(more),
            None => taken = Some(more),
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole)
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
