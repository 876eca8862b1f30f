//! The endpoint that clients speak to: streamable HTTP of both eras (2025-11-25, basic/transports; 2026-07-28,
//! basic/transports/streamable-http). What a request is, it finds out here; how it is answered, each era says.

use std::any::Any;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::body::Room;
use super::child::{Child, News, NotAsked, Question};
use super::connections::Connection;
use super::era::{Described, MODERN, unsupported};
use super::headers::{VERSION_HEADER, is_modern};
use super::message::{self, Answer, INVALID_REQUEST, Message, PARSE_ERROR, failure, is_id};
use super::modern::Asking;
use super::server::{Era, Server};
use super::sessions::{Session, Sessions};
use super::streams::{From, Place, Stream};
use super::tools::Tools;
use super::{legacy, modern};

pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: &str = "last-event-id";
const EVENT_STREAM: &str = "text/event-stream";
const JSON: &str = "application/json";
/// The first version whose clients understand an event without data, which gives them a place to go on from.
const PRIMED_SINCE: &str = "2025-11-25";

/// Whether clients of the older era share the server's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SessionMode {
    /// All clients share one process.
    Shared,
    /// Each session has a process of its own.
    Own,
}

/// What all requests of a bridge share.
pub(super) struct Front {
    pub(super) server: Server,
    pub(super) mode: SessionMode,
    pub(super) described: Described,
    pub(super) sessions: Sessions,
    pub(super) tools: Tools,
    /// That the bridge is about to end.
    pub(super) closing: CancellationToken,
    /// The places of servers that are of one session.
    pub(super) places: Arc<Semaphore>,
    room: Room,
}

/// What a client takes for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepts {
    pub(super) json: bool,
    pub(super) events: bool,
}

impl Accepts {
    /// Whoever says nothing takes anything (RFC 9110, section 12.5.1).
    fn of(headers: &HeaderMap) -> Self {
        let all: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        if all.is_empty() {
            return Self { json: true, events: true };
        }
        let takes = |kind: &str, any: &str| {
            all.iter().flat_map(|value| value.split(',')).any(|range| {
                let mut parts = range.split(';').map(str::trim);
                let named = parts.next().unwrap_or_default();
                let refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
                !refused && (named.eq_ignore_ascii_case(kind) || named.eq_ignore_ascii_case(any) || named == "*/*")
            })
        };
        Self { json: takes(JSON, "application/*"), events: takes(EVENT_STREAM, "text/*") }
    }
}

impl Front {
    pub(super) fn new(server: Server, mode: SessionMode, sessions: Sessions, places: usize) -> Self {
        let modern = server.era == Era::Modern || mode == SessionMode::Shared;
        let words = match mode {
            SessionMode::Shared => "shared",
            SessionMode::Own => "own",
        };
        let described = Described { protocol: server.protocol(), modern, sessions: words };
        let (tools, closing, room) = (Tools::default(), CancellationToken::new(), Room::default());
        let places = Arc::new(Semaphore::new(places));
        Self { server, mode, described, sessions, tools, closing, places, room }
    }

    /// The versions that a client which does not shake hands may name; where there is none, those that begin with a handshake.
    pub(super) fn versions(&self) -> Vec<&'static str> {
        if self.described.modern { vec![MODERN] } else { self.server.legacy_versions() }
    }

    /// Asks the process that all share; `told` gets the news that belong to the request.
    pub(super) async fn ask(&self, question: Question<'_>, told: impl FnMut(News)) -> Answer {
        ask(&self.server.child, question, told).await
    }
}

/// Asks a process; `told` gets the news that belong to the request, all of them before the answer.
pub(super) async fn ask(child: &Child, question: Question<'_>, mut told: impl FnMut(News)) -> Answer {
    let mut asked = match child.ask(question).await {
        Ok(asked) => asked,
        Err(not_asked) => return not_asked.answer(),
    };
    loop {
        tokio::select! {
            biased;
            Some(news) = asked.news.recv() => told(news),
            answer = &mut asked.answer => {
                while let Ok(news) = asked.news.try_recv() {
                    told(news);
                }
                return answer.unwrap_or_else(|_| NotAsked::Ended.answer());
            }
        }
    }
}

/// Serves the endpoint.
pub(super) async fn serve(
    State(front): State<Arc<Front>>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::POST => post(&front, &connection, &parts.headers, body).await,
        Method::GET => get(&front, &parts.headers),
        Method::DELETE => delete(&front, &parts.headers),
        _ => (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "POST, GET, DELETE")]).into_response(),
    }
}

async fn post(front: &Arc<Front>, connection: &Connection, headers: &HeaderMap, body: Body) -> Response {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("a message is {JSON}\n")).into_response();
    }
    let accepts = Accepts::of(headers);
    if !accepts.json && !accepts.events {
        let message = format!("an answer is {JSON} or {EVENT_STREAM}; accept both\n");
        return (StatusCode::NOT_ACCEPTABLE, message).into_response();
    }
    let body = match front.room.read(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let message = match parse(&body) {
        Ok(message) => message,
        Err(refusal) => return *refusal,
    };
    drop(body);
    match message {
        Message { method: Some(method), id: Some(id), params, .. } => {
            if is_modern(headers, &method, params.as_deref()) {
                return modern::serve(front, headers, accepts, Asking { id, method, params }).await;
            }
            if let Some(refusal) = refuse_version(front, headers, &id) {
                return refusal;
            }
            if method == "initialize" {
                return legacy::begin(front, connection.peer, &id, params.as_deref()).await;
            }
            let session = match session_of(front, headers, Some(&id)) {
                Ok(session) => session,
                Err(refusal) => return *refusal,
            };
            request(front, &session, accepts, Asking { id, method, params }).await
        }
        Message { method: Some(method), id: None, params, .. } => {
            if is_modern(headers, &method, params.as_deref()) {
                // Closing the stream of a request is how it is cancelled in that era.
                if method != "notifications/cancelled" && front.server.era == Era::Modern {
                    front.server.child.tell(&method, params.as_deref()).await;
                }
                return StatusCode::ACCEPTED.into_response();
            }
            match session_of(front, headers, None) {
                Ok(session) => legacy::notified(front, &session, &method, params.as_deref()).await,
                Err(refusal) => return *refusal,
            }
            StatusCode::ACCEPTED.into_response()
        }
        Message { id: Some(id), result, error, .. } if result.is_some() || error.is_some() => {
            let session = match session_of(front, headers, None) {
                Ok(session) => session,
                Err(refusal) => return *refusal,
            };
            let answer = match (error, result) {
                (Some(error), _) => Err(error),
                (None, result) => Ok(result.unwrap_or_else(|| RawValue::NULL.to_owned())),
            };
            session.answered(&id, answer);
            StatusCode::ACCEPTED.into_response()
        }
        Message { id, .. } => malformed(id.as_deref(), INVALID_REQUEST, "this is no request, notification or response"),
    }
}

/// Takes the body apart. The refusal is boxed since it is large.
fn parse(body: &[u8]) -> Result<Message, Box<Response>> {
    match body.trim_ascii_start().first() {
        Some(b'[') => {
            let message = "a list of messages is not taken: send one at a time";
            return Err(Box::new(malformed(None, INVALID_REQUEST, message)));
        }
        Some(b'{') => {}
        _ => return Err(Box::new(malformed(None, PARSE_ERROR, "this is no JSON object"))),
    }
    let message: Message = match serde_json::from_slice(body) {
        Ok(message) => message,
        Err(error) if error.is_data() => return Err(Box::new(malformed(None, INVALID_REQUEST, &error.to_string()))),
        Err(error) => return Err(Box::new(malformed(None, PARSE_ERROR, &error.to_string()))),
    };
    if !message.is_version_2() {
        return Err(Box::new(malformed(message.id.as_deref(), INVALID_REQUEST, "`jsonrpc` must be \"2.0\"")));
    }
    if message.id.as_deref().is_some_and(|id| !is_id(id)) {
        return Err(Box::new(malformed(None, INVALID_REQUEST, "`id` must be a text or a whole number")));
    }
    Ok(message)
}

fn malformed(id: Option<&RawValue>, code: i64, what: &str) -> Response {
    let answer = Err(failure(code, what));
    json_answer(StatusCode::BAD_REQUEST, message::answer(id.unwrap_or(RawValue::NULL), &answer))
}

/// A request of the older era that names a version which nobody speaks.
fn refuse_version(front: &Front, headers: &HeaderMap, id: &RawValue) -> Option<Response> {
    let named = headers.get(VERSION_HEADER)?.to_str().unwrap_or_default();
    let known = super::era::LEGACY_VERSIONS.contains(&named);
    let error = || {
        let mut versions = front.server.legacy_versions();
        versions.extend(front.described.modern.then_some(MODERN));
        unsupported(named, &versions)
    };
    (!known).then(|| json_answer(StatusCode::BAD_REQUEST, message::answer(id, &Err(error()))))
}

fn session_of(front: &Front, headers: &HeaderMap, id: Option<&RawValue>) -> Result<Arc<Session>, Box<Response>> {
    if let Some(refusal) = refuse_version(front, headers, id.unwrap_or(RawValue::NULL)) {
        return Err(Box::new(refusal));
    }
    let named = headers.get(SESSION_HEADER).and_then(|id| id.to_str().ok());
    let Some(named) = named else { return Err(Box::new(legacy::no_session(id))) };
    front.sessions.find(named).ok_or_else(|| Box::new(legacy::unknown_session(id)))
}

async fn request(front: &Arc<Front>, session: &Arc<Session>, accepts: Accepts, asking: Asking) -> Response {
    let using = session.using();
    let Asking { id, method, params } = asking;
    let (of, to) = (front.clone(), session.clone());
    let begun = session.begin(&id, accepts.events, |stream| legacy::answer(of, to, method, params, stream));
    let Some(stream) = begun else { return legacy::too_many(&id) };
    if accepts.events {
        let primed = session.version.as_str() >= PRIMED_SINCE;
        return events(&stream, From::Unread { primed }, using);
    }
    match stream.last().await {
        Some(answer) => json_answer(StatusCode::OK, answer),
        None => json_answer(StatusCode::OK, message::answer(&id, &Err(failure(INVALID_REQUEST, "it was cancelled")))),
    }
}

/// A stream of a session: the one that belongs to no request, or the rest of one that broke.
fn get(front: &Front, headers: &HeaderMap) -> Response {
    if !Accepts::of(headers).events {
        return (StatusCode::NOT_ACCEPTABLE, format!("the answer is {EVENT_STREAM}\n")).into_response();
    }
    let session = match session_of(front, headers, None) {
        Ok(session) => session,
        Err(refusal) => return *refusal,
    };
    let primed = session.version.as_str() >= PRIMED_SINCE;
    let (stream, from) = match headers.get(LAST_EVENT_ID).map(|place| Place::parse(place.to_str().ok()?)) {
        None => (session.standalone(), From::Unread { primed }),
        Some(place) => {
            let of = place.and_then(|place| Some((session.stream(place.stream)?, place.event)));
            match of.filter(|(stream, event)| stream.has_more(*event)) {
                Some((stream, event)) => (stream, From::After(event)),
                // There is nothing more to come of that stream, and what is of another is not given in its place.
                None => return StatusCode::NO_CONTENT.into_response(),
            }
        }
    };
    events(&stream, from, session.using())
}

fn delete(front: &Front, headers: &HeaderMap) -> Response {
    match session_of(front, headers, None) {
        Ok(session) => {
            front.sessions.end(&session);
            StatusCode::OK.into_response()
        }
        Err(refusal) => *refusal,
    }
}

/// An answer that is one JSON message.
pub(super) fn json_answer(status: StatusCode, answer: impl Into<Body>) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static(JSON))], answer.into()).into_response()
}

/// An answer that is a stream of events. Proxies are told not to hold it back.
pub(super) fn events(stream: &Arc<Stream>, from: From, held: impl Any + Send) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (StatusCode::OK, headers, stream.body(from, held)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_takes_is_what_it_says() {
        let accepts = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, value.parse().expect("a value"));
            let accepts = Accepts::of(&headers);
            (accepts.json, accepts.events)
        };
        assert_eq!(accepts("application/json, text/event-stream"), (true, true));
        assert_eq!(accepts("Application/JSON;charset=utf-8"), (true, false));
        assert_eq!(accepts("text/*, application/json;q=0"), (false, true));
        assert_eq!((accepts("*/*"), accepts("text/html")), ((true, true), (false, false)));
        assert_eq!(Accepts::of(&HeaderMap::new()), Accepts { json: true, events: true });
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused_with_the_code_that_says_why() {
        for (body, code) in [
            ("rubbish", PARSE_ERROR),
            (r#"{"jsonrpc":"2.0","#, PARSE_ERROR),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"x"}]"#, INVALID_REQUEST),
            (r#"{"id":1,"method":"x"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"x"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, INVALID_REQUEST),
        ] {
            let refusal = *parse(body.as_bytes()).expect_err("refused");
            assert_eq!(refusal.status(), StatusCode::BAD_REQUEST);
            let said = axum::body::to_bytes(refusal.into_body(), 1024).await.expect("a body");
            let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
            assert_eq!(said["error"]["code"], code, "{body}");
        }
        assert!(parse(br#" {"jsonrpc":"2.0","id":"a","method":"x"}"#).is_ok());
    }
}
