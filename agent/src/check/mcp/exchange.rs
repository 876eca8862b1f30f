//! One request to an MCP server over streamable HTTP, and its answer: as JSON, or as events of which one is it.
//!
//! Bytes are counted before anything is made of them, whatever the server says of their number and however it sends them.

use std::sync::atomic::{AtomicUsize, Ordering};

use fleetwright_deploy::limits::size;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde_json::{Map, Value};

use super::events::Events;
use super::fault::{Fault, kind_of, too_large, unreachable};

/// Most bytes of one answer or event, and of all events of one check or test together.
pub(super) const ANSWER_BYTES_MAX: usize = 1024 * 1024;
pub(super) const ALL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most events of one check or test.
const EVENTS_MAX: usize = 10_000;
/// Most of an error's page that is read, in bytes.
const PAGE_BYTES_MAX: usize = 4 * 1024;
/// The header of a session of the older era.
pub(super) const SESSION: &str = "mcp-session-id";

/// Where one check or test asks, what it presents there, and what it may still be answered.
pub(super) struct Exchange<'a> {
    pub(super) http: &'a reqwest::Client,
    pub(super) url: &'a str,
    /// Presented to this URL, and to nobody else.
    pub(super) credentials: HeaderMap,
    bytes: AtomicUsize,
    events: AtomicUsize,
}

/// What a request was answered.
pub(super) struct Reply {
    /// The session that the server has opened with it.
    pub(super) session: Option<HeaderValue>,
    pub(super) answer: Result<Map<String, Value>, Refusal>,
}

/// An error of JSON-RPC.
pub(super) struct Refusal {
    pub(super) code: i64,
    pub(super) message: String,
    pub(super) data: Value,
    pub(super) status: u16,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(http: &'a reqwest::Client, url: &'a str, credentials: HeaderMap) -> Self {
        Self { http, url, credentials, bytes: AtomicUsize::new(0), events: AtomicUsize::new(0) }
    }

    /// Asks with a request, whose id this is.
    pub(super) async fn ask(&self, message: &Value, id: u64, headers: HeaderMap) -> Result<Reply, Fault> {
        let response = self.post(message, headers).await?;
        let session = response.headers().get(SESSION).cloned();
        let status = response.status();
        let kind = kind(&response);
        let answer = if kind == "text/event-stream" && status.is_success() {
            self.among_events(response, id).await?
        } else if kind == "application/json" || kind.ends_with("+json") {
            let body = self.body(response).await?;
            match serde_json::from_slice(&body) {
                Ok(value) => answer(value, id, status)?,
                Err(_) if !status.is_success() => return Err(page(status, &body)),
                Err(_) => return Err(Fault::Garbage(lossy(&body))),
            }
        } else {
            let body = start(response).await;
            if !status.is_success() {
                return Err(page(status, &body));
            }
            let kind =
                if kind.is_empty() { "no content type".to_owned() } else { format!("`{}`", lossy(kind.as_bytes())) };
            return Err(Fault::Kind { kind, said: lossy(&body) });
        };
        Ok(Reply { session, answer })
    }

    /// Tells it something that has no answer.
    pub(super) async fn tell(&self, message: &Value, headers: HeaderMap) -> Result<(), Fault> {
        let response = self.post(message, headers).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(page(status, &start(response).await))
    }

    /// Ends a session. Whatever comes of that.
    pub(super) async fn leave(&self, headers: HeaderMap) {
        let _ = self.http.delete(self.url).headers(self.credentials.clone()).headers(headers).send().await;
    }

    async fn post(&self, message: &Value, headers: HeaderMap) -> Result<Response, Fault> {
        let request = self
            .http
            .post(self.url)
            .headers(self.credentials.clone())
            .headers(headers)
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(message.to_string());
        let response = request.send().await.map_err(|error| unreachable(self.url, &error))?;
        let status = response.status();
        let challenged = response.headers().contains_key(WWW_AUTHENTICATE);
        if status == StatusCode::UNAUTHORIZED || (status == StatusCode::FORBIDDEN && challenged) {
            return Err(Fault::Credentials { shown: !self.credentials.is_empty() });
        }
        if status.is_redirection() {
            let to = response.headers().get(LOCATION).map_or_else(|| "nowhere".to_owned(), |to| target(to.as_bytes()));
            return Err(Fault::Redirect { status: status.as_u16(), to });
        }
        Ok(response)
    }

    /// A whole body within its limit.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(self.url, &error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(too_large(ANSWER_BYTES_MAX));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The answer to this request, among the events of a response.
    async fn among_events(
        &self,
        mut response: Response,
        id: u64,
    ) -> Result<Result<Map<String, Value>, Refusal>, Fault> {
        let (mut events, mut other) = (Events::default(), None);
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(self.url, &error))? {
            self.count(chunk.len())?;
            for data in events.take(&chunk)? {
                if self.events.fetch_add(1, Ordering::Relaxed) + 1 > EVENTS_MAX {
                    return Err(Fault::Over(format!("sends more than {EVENTS_MAX} events")));
                }
                let Ok(value) = serde_json::from_str::<Value>(&data) else { return Err(Fault::Garbage(data)) };
                // What has a method is a notification, or a request of the server's own.
                if value.get("method").is_some() {
                    continue;
                }
                match answer(value, id, StatusCode::OK) {
                    Err(Fault::OtherRequest { asked, answered }) => {
                        other = Some(Fault::OtherRequest { asked, answered })
                    }
                    found => return found,
                }
            }
        }
        Err(other.unwrap_or(Fault::Ended))
    }

    fn count(&self, bytes: usize) -> Result<(), Fault> {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > ALL_BYTES_MAX {
            return Err(Fault::Over(format!("sends events of more than {}", size(ALL_BYTES_MAX))));
        }
        Ok(())
    }
}

/// What JSON-RPC says in answer to a request.
fn answer(value: Value, id: u64, status: StatusCode) -> Result<Result<Map<String, Value>, Refusal>, Fault> {
    let Value::Object(mut fields) = value else {
        return Err(Fault::NoAnswer(format!("it is {}", kind_of(&value))));
    };
    if fields.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(match status.is_success() {
            true => Fault::NoAnswer("it does not say `jsonrpc: 2.0`".to_owned()),
            false => page(status, Value::Object(fields).to_string().as_bytes()),
        });
    }
    let (answered, error) = (fields.remove("id").unwrap_or_default(), fields.remove("error"));
    // Who cannot read a request does not know its id either.
    if answered != id && !(answered.is_null() && error.is_some()) {
        return Err(Fault::OtherRequest { asked: id, answered: answered.to_string() });
    }
    match (error, fields.remove("result")) {
        (Some(Value::Object(error)), _) => {
            let Some(code) = error.get("code").and_then(Value::as_i64) else {
                return Err(Fault::NoAnswer("its error has no code".to_owned()));
            };
            let message = error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
            let data = error.get("data").cloned().unwrap_or_default();
            Ok(Err(Refusal { code, message, data, status: status.as_u16() }))
        }
        (Some(error), _) => Err(Fault::NoAnswer(format!("its error is {}", kind_of(&error)))),
        (None, _) if !status.is_success() => Err(Fault::Status { status: status.as_u16(), said: String::new() }),
        (None, Some(Value::Object(result))) => Ok(Ok(result)),
        (None, Some(result)) => Err(Fault::NoAnswer(format!("its result is {}", kind_of(&result)))),
        (None, None) => Err(Fault::NoAnswer("it has neither a result nor an error".to_owned())),
    }
}

/// The type of a body, without what is said of its characters.
fn kind(response: &Response) -> String {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The start of a body that is only shown.
async fn start(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk[..chunk.len().min(PAGE_BYTES_MAX - body.len())]);
        if body.len() == PAGE_BYTES_MAX {
            break;
        }
    }
    body
}

/// A status with the page that says why.
fn page(status: StatusCode, body: &[u8]) -> Fault {
    let said = match serde_json::from_slice::<Value>(body) {
        // Of an error as JSON its message is for people.
        Ok(json) => ["/error/message", "/message", "/error", "/detail"]
            .iter()
            .find_map(|place| json.pointer(place).and_then(Value::as_str))
            .unwrap_or_default()
            .to_owned(),
        Err(_) => lossy(body),
    };
    Fault::Status { status: status.as_u16(), said }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(PAGE_BYTES_MAX)]).into_owned()
}

/// Where a redirect leads, without what may be a secret of it.
fn target(location: &[u8]) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 120;
    let location = lossy(location);
    let end = location.find(['?', '#']).unwrap_or(location.len());
    let plain = |c: &char| c.is_ascii_graphic() && !matches!(c, '<' | '>');
    let location: String = location[..end].chars().filter(plain).take(SHOWN_CHARACTERS_MAX).collect();
    match location.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", authority.rsplit_once('@').map_or(authority, |(_, host)| host))
        }
        None => location,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_of_json_rpc_to_what_was_asked() {
        let told = |text: &str| match answer(serde_json::from_str(text).expect("JSON"), 7, StatusCode::OK) {
            Ok(Ok(_)) => "a result".to_owned(),
            Ok(Err(refusal)) => format!("error {}", refusal.code),
            Err(fault) => fault.words(),
        };
        assert_eq!(told(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#), "a result");
        assert_eq!(told(r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":""}}"#), "error -32601");
        assert_eq!(told(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":""}}"#), "error -32700");
        for (wrong, why) in [
            (r#"{"jsonrpc":"2.0","id":8,"result":{}}"#, "answers request 7 as 8"),
            (r#"{"jsonrpc":"2.0","id":"7","result":{}}"#, "answers request 7 as \"7\""),
            (r#"{"jsonrpc":"2.0","result":{}}"#, "answers request 7 as null"),
            (r#"{"jsonrpc":"2.0","id":7,"result":[]}"#, "its result is a list"),
            (r#"{"jsonrpc":"2.0","id":7}"#, "neither a result nor an error"),
            (r#"{"jsonrpc":"2.0","id":7,"error":"no"}"#, "its error is a text"),
            (r#"{"jsonrpc":"2.0","id":7,"error":{"code":"no"}}"#, "its error has no code"),
            (r#"{"id":7,"result":{}}"#, "does not say `jsonrpc: 2.0`"),
            ("[]", "it is a list"),
        ] {
            assert!(told(wrong).contains(why), "{wrong}: {}", told(wrong));
        }
    }

    #[test]
    fn where_a_redirect_leads_is_shown_without_secrets() {
        assert_eq!(target(b"https://u:p@h.example/a?token=x#y"), "https://h.example/a");
        assert_eq!(target(b"/login?next=%2Fmcp"), "/login");
    }
}
