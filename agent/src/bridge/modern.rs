//! Requests of the modern era: each stands for itself. A server of that era gets them as they came; for one of the older
//! era they are translated.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::child::{Logs, News, Owner, Question};
use super::era::{
    self, HEADER_MISMATCH, Level, META_SUBSCRIPTION, MISSING_CAPABILITY, UNSUPPORTED_VERSION, is_removed,
    modern_answer, no_such_method, without_modern_meta,
};
use super::front::{Accepts, Front, events, json_answer};
use super::headers::{Said, check};
use super::hub::{Filter, RESOURCES_MAX};
use super::message::{self, Answer, INVALID_PARAMS, METHOD_NOT_FOUND, Raw, code, fields, raw};
use super::server::Era;
use super::streams::{From, Stream};

/// How long an answer may take before its client gets a stream that shows it is still there. Errors that have a status of
/// their own come earlier.
const FIRST_TIMEOUT: Duration = Duration::from_secs(5);

/// A request of the modern era.
pub(super) struct Asking {
    pub(super) id: Raw,
    pub(super) method: String,
    pub(super) params: Option<Raw>,
}

/// Ends what makes an answer when nobody wants it any more: closing the stream is how a client cancels.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves a request.
pub(super) async fn serve(front: &Arc<Front>, headers: &HeaderMap, accepts: Accepts, asking: Asking) -> Response {
    let checked = check(headers, &asking.method, asking.params.as_deref(), &front.versions());
    let said = match checked {
        Ok(said) => said,
        Err(error) => return refusal(&asking.id, error),
    };
    if asking.method == "subscriptions/listen" && !accepts.events {
        let message = "the answer is text/event-stream\n";
        return (StatusCode::NOT_ACCEPTABLE, message).into_response();
    }
    if asking.method == "tools/call"
        && let Err(error) = front.tools.check(&front.server, headers, asking.params.as_deref()).await
    {
        return refusal(&asking.id, error);
    }
    let (stream, id) = (Stream::new(0, false), asking.id.clone());
    let (to, of) = (stream.clone(), front.clone());
    let mut work = Box::pin(async move { answer(&of, asking, said, &to).await });
    if !accepts.events {
        return plain(&id, &work.await);
    }
    if accepts.json {
        let first = pin!(stream.first());
        tokio::select! {
            biased;
            answer = &mut work => {
                if stream.is_empty() {
                    return plain(&id, &answer);
                }
                stream.finish(message::answer(&id, &answer));
                return events(&stream, From::Unread { primed: false }, ());
            }
            _ = first => {}
            () = sleep(FIRST_TIMEOUT) => {}
        }
    }
    let to = stream.clone();
    let task = tokio::spawn(async move { to.finish(message::answer(&id, &work.await)) });
    events(&stream, From::Unread { primed: false }, Abort(task.abort_handle()))
}

/// An answer by itself, with the status that the transport has for it.
fn plain(id: &RawValue, answer: &Answer) -> Response {
    let status = match answer.as_ref().err().and_then(|error| code(error)) {
        Some(METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Some(UNSUPPORTED_VERSION | HEADER_MISMATCH | MISSING_CAPABILITY) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    json_answer(status, message::answer(id, answer))
}

fn refusal(id: &RawValue, error: Raw) -> Response {
    json_answer(StatusCode::BAD_REQUEST, message::answer(id, &Err(error)))
}

async fn answer(front: &Arc<Front>, asking: Asking, said: Said, stream: &Arc<Stream>) -> Answer {
    let owner = front.sessions.owner();
    match (front.server.era, asking.method.as_str()) {
        // What the bridge says of itself belongs here too.
        (Era::Modern, "server/discover") => {
            let answer = pass(front, owner, asking, said.logs, stream).await;
            answer.map(|result| front.described.stamped(&result))
        }
        // It would make the process one of the older era.
        (Era::Modern, "initialize") => Err(no_such_method("initialize")),
        (Era::Modern, _) => pass(front, owner, asking, said.logs, stream).await,
        (Era::Legacy, "server/discover") => {
            Ok(front.described.discovered_of_legacy(&front.server.info, &front.versions()))
        }
        (Era::Legacy, "subscriptions/listen") => listen(front, owner, &asking, stream).await,
        (Era::Legacy, method) if is_removed(method) => Err(no_such_method(method)),
        (Era::Legacy, _) => translate(front, owner, asking, said.logs, stream).await,
    }
}

/// Asks a server of the modern era, whose news name the request by the id that the server knows.
async fn pass(front: &Front, owner: Owner, asking: Asking, logs: Option<Level>, stream: &Stream) -> Answer {
    let logs = logs.map_or(Logs::Never, Logs::From);
    let question = Question { method: &asking.method, params: asking.params, owner, logs };
    let answer = front.ask(question, |news| stream.push_news(renamed(&news, &asking.id))).await;
    answer.map(|result| with_subscription(Some(&result), &asking.id).unwrap_or(result))
}

/// A notification in which the subscription has the id that its client knows.
fn renamed(news: &News, id: &RawValue) -> String {
    let params = with_subscription(news.params.as_deref(), id);
    message::notification(&news.method, params.as_deref().or(news.params.as_deref()))
}

/// Parameters, or a result, that name a subscription, with the id that its client knows.
fn with_subscription(params: Option<&RawValue>, id: &RawValue) -> Option<Raw> {
    if !params?.get().contains(META_SUBSCRIPTION) {
        return None;
    }
    let mut all = fields(params)?;
    let mut meta = fields(all.get("_meta").map(|meta| &**meta))?;
    meta.insert(META_SUBSCRIPTION.to_owned(), id.to_owned()).is_some().then(|| {
        all.insert("_meta".to_owned(), raw(&meta));
        raw(&all)
    })
}

/// Asks a server of the older era.
async fn translate(front: &Arc<Front>, owner: Owner, asking: Asking, logs: Option<Level>, stream: &Stream) -> Answer {
    let server = &front.server;
    let _listening = match logs {
        Some(level) if server.capabilities.contains_key("logging") => {
            server.hub.enter(owner, Filter::default(), false, Box::new(|_| {}));
            let leaving = Leaving(front.clone(), owner);
            // That it cannot be told leaves the client with fewer messages.
            let _ = server.hub.set_level(&server.child, owner, level).await;
            Some(leaving)
        }
        _ => None,
    };
    let params = without_modern_meta(asking.params.as_deref());
    let logs = logs.map_or(Logs::Unwanted, Logs::From);
    let question = Question { method: &asking.method, params, owner, logs };
    let answer = front.ask(question, |news| stream.push_news(renamed(&news, &asking.id))).await;
    modern_answer(&asking.method, answer, &server.info)
}

/// A client that listens, until this is dropped.
struct Leaving(Arc<Front>, Owner);

impl Drop for Leaving {
    fn drop(&mut self) {
        let (front, owner) = (self.0.clone(), self.1);
        tokio::spawn(async move { front.server.hub.leave(&front.server.child, owner).await });
    }
}

/// Most notifications that wait for that.
const HELD_MAX: usize = 256;

/// What waits until the client was told what it will hear: nothing may come before.
type Held = Arc<Mutex<Option<Vec<String>>>>;

/// Tells a client what it wants to hear of a server of the older era, for as long as it listens.
async fn listen(front: &Arc<Front>, owner: Owner, asking: &Asking, stream: &Arc<Stream>) -> Answer {
    let server = &front.server;
    let wanted = fields(asking.params.as_deref()).and_then(|params| params.get("notifications").cloned());
    let Some(wanted) = fields(wanted.as_deref()) else {
        return Err(message::failure(INVALID_PARAMS, "`notifications` is missing, or no object"));
    };
    let list = |field: &str, part: &str| {
        let tells = fields(server.capabilities.get(part).map(|part| &**part));
        let tells = tells.is_some_and(|part| part.get("listChanged").is_some_and(|tells| tells.get() == "true"));
        tells && wanted.get(field).is_some_and(|wants| wants.get() == "true")
    };
    let filter = Filter {
        tools: list("toolsListChanged", "tools"),
        prompts: list("promptsListChanged", "prompts"),
        resources: list("resourcesListChanged", "resources"),
        ..Filter::default()
    };
    let mut told = serde_json::Map::new();
    let lists = [("toolsListChanged", filter.tools), ("promptsListChanged", filter.prompts)];
    for (name, _) in lists.into_iter().chain([("resourcesListChanged", filter.resources)]).filter(|(_, tells)| *tells) {
        told.insert(name.to_owned(), true.into());
    }
    let held: Held = Arc::new(Mutex::new(Some(Vec::new())));
    let (to, of, holds) = (stream.clone(), asking.id.clone(), held.clone());
    let tell = move |news: &News| {
        let line = named(news, &of);
        match &mut *holds.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(held) if held.len() >= HELD_MAX => {}
            Some(held) => held.push(line),
            None => to.push_news(line),
        }
    };
    server.hub.enter(owner, filter, false, Box::new(tell));
    let _leaving = Leaving(front.clone(), owner);
    let uris: BTreeSet<String> =
        wanted.get("resourceSubscriptions").and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default();
    if uris.len() > RESOURCES_MAX {
        let message = format!("a client listens to at most {RESOURCES_MAX} resources");
        return Err(message::failure(INVALID_PARAMS, &message));
    }
    let mut subscribed = Vec::new();
    for uri in uris {
        let params = raw(&json!({ "uri": uri }));
        match server.hub.subscribe(&server.child, owner, Some(&params)).await {
            Ok(Ok(_)) => subscribed.push(uri),
            Ok(Err(_)) => {}
            Err(not_asked) => return not_asked.answer(),
        }
    }
    if !subscribed.is_empty() {
        told.insert("resourceSubscriptions".to_owned(), json!(subscribed));
    }
    let acknowledged = raw(&json!({ "notifications": told }));
    let acknowledged =
        News { method: "notifications/subscriptions/acknowledged".to_owned(), params: Some(acknowledged) };
    stream.push(named(&acknowledged, &asking.id));
    let waiting = held.lock().unwrap_or_else(PoisonError::into_inner).take();
    waiting.into_iter().flatten().for_each(|line| stream.push_news(line));
    front.closing.cancelled().await;
    let result = json!({ "_meta": { META_SUBSCRIPTION: asking.id } });
    Ok(era::modern_result("subscriptions/listen", &raw(&result), &server.info))
}

/// A notification that names the subscription it belongs to.
fn named(news: &News, id: &RawValue) -> String {
    let mut params = fields(news.params.as_deref()).unwrap_or_default();
    let mut meta = fields(params.get("_meta").map(|meta| &**meta)).unwrap_or_default();
    meta.insert(META_SUBSCRIPTION.to_owned(), id.to_owned());
    params.insert("_meta".to_owned(), raw(&meta));
    message::notification(&news.method, Some(&raw(&params)))
}
