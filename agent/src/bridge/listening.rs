//! What a client of the older era listens to on a server of the modern one. There a client has one stream for all it
//! listens to (2026-07-28, basic/patterns/subscriptions): what the older era says step by step is gathered, and the stream
//! is opened anew when it changes.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::child::{Asked, Child, Logs, News, NotAsked, Question};
use super::era::{Level, META_SUBSCRIPTION};
use super::hub::{RESOURCES_MAX, uri_of};
use super::message::{Answer, Fields, INTERNAL_ERROR, INVALID_PARAMS, failure, fields, raw};
use super::sessions::{Session, meta_of};

/// How long a server has to say that it has heard.
const ACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(10);

/// What one session listens to.
#[derive(Default)]
pub(super) struct Listening {
    /// One change is made at a time.
    uris: tokio::sync::Mutex<BTreeSet<String>>,
    stream: Mutex<State>,
    level: Mutex<Option<Level>>,
}

#[derive(Default)]
struct State {
    stream: Option<Stream>,
    begun: bool,
    ended: bool,
}

/// A stream that is listened to. It ends when this is dropped.
struct Stream(AbortHandle);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Listening {
    fn state(&self) -> MutexGuard<'_, State> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.stream = None;
    }

    /// The stream has ended by itself: nothing is listened to any more.
    async fn lost(&self) {
        self.uris.lock().await.clear();
    }

    /// The least important log messages that it wants.
    pub(super) fn level(&self) -> Option<Level> {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_level(&self, level: Level) {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
    }

    /// Begins to listen to what every session hears, if the server tells anything at all.
    pub(super) async fn begin(&self, child: &Child, session: &Weak<Session>, capabilities: &Fields) {
        if std::mem::replace(&mut self.state().begun, true) || lists(capabilities).is_empty() {
            return;
        }
        let uris = self.uris.lock().await;
        if let Err(error) = self.open(child, session, capabilities, &uris).await {
            tracing::debug!("a session is not told of changes: {}", error.get());
        }
    }

    /// Listens to a resource, or no more.
    pub(super) async fn change(
        &self,
        child: &Child,
        session: &Weak<Session>,
        capabilities: &Fields,
        params: Option<&RawValue>,
        subscribe: bool,
    ) -> Answer {
        let uri = uri_of(params)?;
        let mut uris = self.uris.lock().await;
        let mut wanted = uris.clone();
        let changes = if subscribe { wanted.insert(uri) } else { wanted.remove(&uri) };
        if wanted.len() > RESOURCES_MAX {
            return Err(failure(INVALID_PARAMS, &format!("a client listens to at most {RESOURCES_MAX} resources")));
        }
        if changes {
            self.open(child, session, capabilities, &wanted).await?;
            *uris = wanted;
        }
        Ok(raw(&json!({})))
    }

    /// Opens the stream anew. The one before ends once the new one is there, so that nothing is missed.
    async fn open(
        &self,
        child: &Child,
        session: &Weak<Session>,
        capabilities: &Fields,
        uris: &BTreeSet<String>,
    ) -> Result<(), super::message::Raw> {
        let Some(of) = session.upgrade() else { return Ok(()) };
        let mut filter: serde_json::Map<String, serde_json::Value> =
            lists(capabilities).into_iter().map(|list| (list.to_owned(), true.into())).collect();
        if !uris.is_empty() {
            filter.insert("resourceSubscriptions".to_owned(), json!(uris));
        }
        let params = raw(&json!({ "notifications": filter, "_meta": meta_of(&of.hello) }));
        let question =
            Question { method: "subscriptions/listen", params: Some(params), owner: of.owner, logs: Logs::Never };
        let asked = child.ask(question).await.map_err(|error: NotAsked| failure(INTERNAL_ERROR, &error.to_string()))?;
        let (acknowledge, acknowledged) = oneshot::channel();
        let task = tokio::spawn(listen(asked, session.clone(), acknowledge));
        let stream = Stream(task.abort_handle());
        match timeout(ACKNOWLEDGED_TIMEOUT, acknowledged).await {
            Ok(Ok(Ok(()))) => {
                let mut state = self.state();
                if !state.ended {
                    state.stream = Some(stream);
                }
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) | Err(_) => Err(failure(INTERNAL_ERROR, "the server does not say what it will tell")),
        }
    }
}

type Acknowledge = oneshot::Sender<Result<(), super::message::Raw>>;

/// Passes on what the stream carries, until it ends.
async fn listen(mut asked: Asked, session: Weak<Session>, acknowledge: Acknowledge) {
    let mut acknowledge = Some(acknowledge);
    loop {
        tokio::select! {
            biased;
            Some(news) = asked.news.recv() => {
                if news.method == "notifications/subscriptions/acknowledged" {
                    if let Some(acknowledge) = acknowledge.take() {
                        let _ = acknowledge.send(Ok(()));
                    }
                } else {
                    let Some(session) = session.upgrade() else { return };
                    session.tell(&legacy(news));
                }
            }
            answer = &mut asked.answer => {
                match (acknowledge, answer, session.upgrade()) {
                    (Some(acknowledge), Ok(Err(error)), _) => {
                        let _ = acknowledge.send(Err(error));
                    }
                    (None, _, Some(session)) => session.listening.lost().await,
                    (_, _, _) => {}
                }
                return;
            }
        }
    }
}

/// News without what names the stream.
fn legacy(mut news: News) -> News {
    if let Some(mut params) = fields(news.params.as_deref()) {
        if let Some(mut meta) = fields(params.get("_meta").map(|meta| &**meta)) {
            meta.remove(META_SUBSCRIPTION);
            params.remove("_meta");
            if !meta.is_empty() {
                params.insert("_meta".to_owned(), raw(&meta));
            }
        }
        news.params = (!params.is_empty()).then(|| raw(&params));
    }
    news
}

/// The lists whose changes the server tells.
fn lists(capabilities: &Fields) -> Vec<&'static str> {
    let all = [("tools", "toolsListChanged"), ("prompts", "promptsListChanged"), ("resources", "resourcesListChanged")];
    let tells = |part: &str| {
        let part = fields(capabilities.get(part).map(|part| &**part));
        part.and_then(|part| part.get("listChanged").map(|tells| tells.get() == "true")).unwrap_or(false)
    };
    all.into_iter().filter(|(part, _)| tells(part)).map(|(_, name)| name).collect()
}
