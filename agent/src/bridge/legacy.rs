//! Requests of the older era, each of a session. A session shares its server with others, or has one of its own; a server of
//! the modern era is asked for it in that era's way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::child::{Child, Group, Logs, NotAsked, Question};
use super::era::{LEGACY_NEWEST, Level, META_LOG_LEVEL, is_task, legacy_result, negotiated, no_such_method};
use super::front::{Front, SESSION_HEADER, SessionMode, json_answer};
use super::hub::Filter;
use super::message::{self, Answer, Fields, INTERNAL_ERROR, INVALID_PARAMS, Raw, failure, fields, raw, text};
use super::server::{Era, HANDSHAKE_TIMEOUT};
use super::sessions::{Hello, NoSession, Session, meta_of};
use super::streams::Stream;

/// How long a session waits for the server of one that has ended to be gone.
const PLACE_TIMEOUT: Duration = Duration::from_secs(15);
/// Most times that a server may ask before it answers.
const ROUNDS_MAX: usize = 16;

/// Begins a session.
pub(super) async fn begin(
    front: &Arc<Front>,
    peer: std::net::IpAddr,
    id: &RawValue,
    params: Option<&RawValue>,
) -> Response {
    let hello = Hello::of(params);
    let newest = if front.server.era == Era::Legacy { front.server.protocol() } else { LEGACY_NEWEST.to_owned() };
    let version = negotiated(hello.version.as_deref(), &newest);
    let session = match front.sessions.begin(peer, hello, version) {
        Ok(session) => session,
        Err(full @ NoSession::Full(_)) => {
            return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "60")], format!("{full}\n")).into_response();
        }
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    let _using = session.using();
    match first(front, &session).await {
        Ok(result) => {
            let mut response = json_answer(StatusCode::OK, message::answer(id, &Ok(result)));
            if let Ok(value) = session.id.parse() {
                response.headers_mut().insert(SESSION_HEADER, value);
            }
            response
        }
        Err(error) => {
            front.sessions.end(&session);
            json_answer(StatusCode::OK, message::answer(id, &Err(error)))
        }
    }
}

/// What a client learns first. A session gets its own server at once where what the client can do may change that.
async fn first(front: &Arc<Front>, session: &Arc<Session>) -> Result<Raw, Raw> {
    let server = &front.server;
    let asked = session.hello.version.as_deref();
    let waits = server.era == Era::Legacy && session.hello.offers_nothing();
    if front.mode == SessionMode::Own && !waits {
        let (own, info) = start_own(front, session).await?;
        if session.own.set(own).is_err() {
            return Err(failure(INTERNAL_ERROR, "the session has a server already"));
        }
        if let Some(info) = info {
            return Ok(front.described.stamped(&info));
        }
    } else if server.era == Era::Legacy {
        let to = Arc::downgrade(session);
        let tell = move |news: &super::child::News| {
            if let Some(session) = to.upgrade() {
                session.tell(news);
            }
        };
        server.hub.enter(session.owner, Filter::LISTS, true, Box::new(tell));
    }
    Ok(match server.era {
        Era::Legacy => front.described.initialized(&server.info, asked, front.mode == SessionMode::Shared),
        Era::Modern => front.described.initialized_of_modern(&server.info, asked),
    })
}

/// Starts the server of one session, and shakes hands with it as the client does. A server of the modern era alone has no
/// such handshake, and needs no process of its own: there is none then.
async fn start_own(front: &Arc<Front>, session: &Arc<Session>) -> Result<(Option<Child>, Option<Raw>), Raw> {
    let place = timeout(PLACE_TIMEOUT, front.places.clone().acquire_owned()).await;
    let Ok(Ok(place)) = place else {
        return Err(failure(INTERNAL_ERROR, "as many sessions have a server of their own as may; try again later"));
    };
    let to = Arc::downgrade(session);
    let hears = move |child: &Child, heard| {
        if let Some(session) = to.upgrade() {
            session.heard_own(child, heard);
        }
    };
    let started = Child::start(&front.server.program, Group::Own, Box::new(hears));
    let (child, ended) = started.map_err(|error| failure(INTERNAL_ERROR, &format!("{error:#}")))?;
    let shaking = child.ask_plainly("initialize", Some(session.hello.params.clone()));
    let info = match timeout(HANDSHAKE_TIMEOUT, shaking).await.map_err(|_| late())? {
        Ok(Ok(info)) => info,
        Ok(Err(error)) => {
            child.end();
            return if front.server.era == Era::Modern { Ok((None, None)) } else { Err(error) };
        }
        Err(ended) => return Err(failure(INTERNAL_ERROR, &ended.to_string())),
    };
    let (sessions, of) = (front.sessions.clone(), Arc::downgrade(session));
    tokio::spawn(async move {
        let exit = ended.await.unwrap_or_default();
        drop(place);
        if let Some(session) = of.upgrade() {
            tracing::warn!("the MCP server of a session ended with {exit}");
            drop(session);
            sessions.end_weak(&of);
        }
    });
    Ok((Some(child), Some(info)))
}

fn late() -> Raw {
    failure(INTERNAL_ERROR, &format!("the MCP handshake did not end within {} s", HANDSHAKE_TIMEOUT.as_secs()))
}

/// Takes a notification of the client.
pub(super) async fn notified(front: &Arc<Front>, session: &Arc<Session>, method: &str, params: Option<&RawValue>) {
    if method == "notifications/cancelled" {
        if let Some(id) = fields(params).and_then(|params| params.get("requestId").cloned()) {
            session.cancel(&id);
        }
        return;
    }
    let own = session.own.get().and_then(Option::as_ref);
    match (own, method, front.server.era) {
        (Some(own), ..) => own.tell(method, params).await,
        // A shared server was told by the bridge, and its roots are nobody's.
        (None, "notifications/initialized", Era::Modern) => {
            let (front, session) = (front.clone(), session.clone());
            tokio::spawn(async move {
                let server = &front.server;
                session.listening.begin(&server.child, &Arc::downgrade(&session), &server.capabilities).await;
            });
        }
        (None, "notifications/initialized" | "notifications/roots/list_changed", _) | (None, _, Era::Modern) => {}
        (None, _, Era::Legacy) => front.server.child.tell(method, params).await,
    }
}

/// Answers a request of a session.
pub(super) async fn answer(
    front: Arc<Front>,
    session: Arc<Session>,
    method: String,
    params: Option<Raw>,
    stream: Arc<Stream>,
) -> Answer {
    if front.mode == SessionMode::Own && !is_the_same_for_all(&method) {
        session.own.get_or_try_init(|| start_late(&front, &session)).await?;
    }
    match (session.own.get(), front.server.era) {
        (Some(Some(own)), _) => pass(own, &session, &method, params, Level::ALL, &stream).await,
        (Some(None), _) | (None, Era::Modern) => as_modern(&front, &session, &method, params, &stream).await,
        (None, Era::Legacy) => shared(&front, &session, &method, params, &stream).await,
    }
}

/// What every process of a server answers alike to a client that can do nothing for it: health checks, which look often, need
/// no process of their own for it.
fn is_the_same_for_all(method: &str) -> bool {
    matches!(method, "ping" | "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list")
}

/// Starts the server of a session that has managed without until now.
async fn start_late(front: &Arc<Front>, session: &Arc<Session>) -> Result<Option<Child>, Raw> {
    let (own, _) = start_own(front, session).await?;
    if let Some(own) = &own {
        own.tell("notifications/initialized", None).await;
    }
    front.server.hub.leave(&front.server.child, session.owner).await;
    Ok(own)
}

/// Asks a server, and tells the client what belongs to the request.
async fn pass(
    child: &Child,
    session: &Session,
    method: &str,
    params: Option<Raw>,
    logs: Level,
    stream: &Stream,
) -> Answer {
    let question = Question { method, params, owner: session.owner, logs: Logs::From(logs) };
    super::front::ask(child, question, |news| {
        stream.push_news(message::notification(&news.method, news.params.as_deref()));
    })
    .await
}

/// Asks the server that all sessions share.
async fn shared(front: &Front, session: &Session, method: &str, params: Option<Raw>, stream: &Stream) -> Answer {
    let (child, hub) = (&front.server.child, &front.server.hub);
    let done = match method {
        "logging/setLevel" => match level_of(params.as_deref()) {
            Ok(level) => hub.set_level(child, session.owner, level).await,
            Err(error) => return Err(error),
        },
        "resources/subscribe" => hub.subscribe(child, session.owner, params.as_deref()).await,
        "resources/unsubscribe" => hub.unsubscribe(child, session.owner, params.as_deref()).await,
        method if is_task(method) => return Err(no_such_method(method)),
        method => {
            let logs = hub.level(session.owner).unwrap_or(Level::ALL);
            return pass(child, session, method, params, logs, stream).await;
        }
    };
    done.unwrap_or_else(NotAsked::answer)
}

fn level_of(params: Option<&RawValue>) -> Result<Level, Raw> {
    let level = fields(params).and_then(|params| text(&params, "level"));
    level
        .and_then(|level| Level::parse(&level))
        .ok_or_else(|| failure(INVALID_PARAMS, "`level` is none of the log levels"))
}

/// Asks a server of the modern era for a session of the older one.
async fn as_modern(
    front: &Front,
    session: &Arc<Session>,
    method: &str,
    params: Option<Raw>,
    stream: &Stream,
) -> Answer {
    let server = &front.server;
    let weak = Arc::downgrade(session);
    match method {
        "ping" => Ok(raw(&json!({}))),
        "logging/setLevel" => level_of(params.as_deref()).map(|level| {
            session.listening.set_level(level);
            raw(&json!({}))
        }),
        "resources/subscribe" | "resources/unsubscribe" => {
            let subscribe = method == "resources/subscribe";
            session.listening.change(&server.child, &weak, &server.capabilities, params.as_deref(), subscribe).await
        }
        method if is_task(method) => Err(no_such_method(method)),
        method => rounds(front, session, method, params, stream).await,
    }
}

/// A question of the server, as it comes in a result.
#[derive(Deserialize)]
struct Asks {
    method: String,
    #[serde(default)]
    params: Option<Raw>,
}

/// Asks until there is an answer: what the server wants to know in between, its client is asked (2026-07-28,
/// basic/patterns/mrtr).
async fn rounds(front: &Front, session: &Arc<Session>, method: &str, params: Option<Raw>, stream: &Stream) -> Answer {
    let logs = session.listening.level().unwrap_or(Level::INFO);
    let mut more = Fields::new();
    for _ in 0..ROUNDS_MAX {
        let params = dressed(front, session, params.as_deref(), &more, logs);
        let result = pass(&front.server.child, session, method, Some(params), logs, stream).await?;
        let mut parts = fields(Some(&result)).unwrap_or_default();
        if text(&parts, "resultType").as_deref() != Some("input_required") {
            return Ok(legacy_result(&result));
        }
        more.clear();
        more.extend(parts.remove("requestState").map(|state| ("requestState".to_owned(), state)));
        if let Some(asks) = parts.remove("inputRequests") {
            let asks: BTreeMap<String, Asks> = serde_json::from_str(asks.get())
                .map_err(|_| failure(INTERNAL_ERROR, "the server asks for what nobody understands"))?;
            more.insert("inputResponses".to_owned(), raw(&asked(front, session, asks, stream).await?));
        }
    }
    Err(failure(INTERNAL_ERROR, &format!("the server has asked {ROUNDS_MAX} times and not answered")))
}

/// Asks the client all that the server wants to know.
async fn asked(
    front: &Front,
    session: &Session,
    asks: BTreeMap<String, Asks>,
    stream: &Stream,
) -> Result<BTreeMap<String, Raw>, Raw> {
    let (mut waiting, mut open) = (Vec::new(), Open { session, ids: Vec::new() });
    for (key, asks) in asks {
        let id = raw(&format!("bridge-{}", front.sessions.owner()));
        let (tell, told) = oneshot::channel();
        let asker = Box::new(move |answer: Answer| {
            let _ = tell.send(answer);
        });
        session.ask(stream, &id, &asks.method, asks.params.as_deref(), asker);
        waiting.push((key, told));
        open.ids.push(id);
    }
    let mut answers = BTreeMap::new();
    for (key, told) in waiting {
        let answer = told.await.map_err(|_| failure(INTERNAL_ERROR, "the session has ended"))?;
        answers.insert(key, answer?);
    }
    Ok(answers)
}

/// Questions that a client has to answer, for as long as somebody waits for it.
struct Open<'a> {
    session: &'a Session,
    ids: Vec<Raw>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.session.withdraw(id));
    }
}

/// Parameters with what the modern era says in each request.
fn dressed(front: &Front, session: &Session, params: Option<&RawValue>, more: &Fields, logs: Level) -> Raw {
    let mut all = fields(params).unwrap_or_default();
    let mut meta = fields(all.get("_meta").map(|meta| &**meta)).unwrap_or_default();
    meta.extend(meta_of(&session.hello));
    if front.server.capabilities.contains_key("logging") {
        meta.insert(META_LOG_LEVEL.to_owned(), raw(logs.name()));
    }
    all.insert("_meta".to_owned(), raw(&meta));
    all.extend(more.clone());
    raw(&all)
}

/// That there is no session, in the words of the transport.
pub(super) fn no_session(id: Option<&RawValue>) -> Response {
    let error = failure(message::INVALID_REQUEST, "there is no session: begin with `initialize`");
    json_answer(StatusCode::BAD_REQUEST, message::answer(id.unwrap_or(RawValue::NULL), &Err(error)))
}

/// That a session has ended, or never was: its client begins anew.
pub(super) fn unknown_session(id: Option<&RawValue>) -> Response {
    /// The code that SDKs use for it.
    const SESSION_NOT_FOUND: i64 = -32001;
    let error = failure(SESSION_NOT_FOUND, "the session has ended: begin anew with `initialize`");
    json_answer(StatusCode::NOT_FOUND, message::answer(id.unwrap_or(RawValue::NULL), &Err(error)))
}

/// That a session has as many requests under way as it may have.
pub(super) fn too_many(id: &RawValue) -> Response {
    let most = super::sessions::REQUESTS_MAX;
    let error = failure(INTERNAL_ERROR, &format!("a session has at most {most} requests under way"));
    json_answer(StatusCode::TOO_MANY_REQUESTS, message::answer(id, &Err(error)))
}
