//! Who hears what on a server that many clients of the older era share. Each client hears what it has asked for; the server
//! is subscribed once, and unsubscribed when the last one leaves. What cannot be told to be somebody's is nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::child::{Attribution, Child, Heard, News, NotAsked, Owner, level_of};
use super::era::Level;
use super::message::{Answer, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, Raw, failure, fields, raw, text};

/// Most resources that one client listens to.
pub(super) const RESOURCES_MAX: usize = 256;
/// How long the server has to answer what the bridge asks it by itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest name of a resource, in bytes.
const URI_BYTES_MAX: usize = 8 * 1024;

/// What a client listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) tools: bool,
    pub(super) prompts: bool,
    pub(super) resources: bool,
    pub(super) uris: BTreeSet<String>,
}

impl Filter {
    /// That lists have changed, which every session of the older era hears.
    pub(super) const LISTS: Self = Self { tools: true, prompts: true, resources: true, uris: BTreeSet::new() };

    /// Whether news that are for everybody who listens are for this one.
    fn wants(&self, news: &News) -> bool {
        match news.method.as_str() {
            "notifications/tools/list_changed" => self.tools,
            "notifications/prompts/list_changed" => self.prompts,
            "notifications/resources/list_changed" => self.resources,
            "notifications/resources/updated" => {
                let uri = fields(news.params.as_deref()).and_then(|params| text(&params, "uri"));
                uri.is_some_and(|uri| self.uris.iter().any(|of| is_of(&uri, of)))
            }
            _ => false,
        }
    }
}

/// Whether a resource is the one that was subscribed to, or below it.
fn is_of(uri: &str, subscribed: &str) -> bool {
    uri.strip_prefix(subscribed)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || subscribed.ends_with('/'))
}

/// How a client is told.
type Tell = Box<dyn Fn(&News) + Send>;

struct Listener {
    filter: Filter,
    level: Option<Level>,
    /// Whether what belongs to no request may be its.
    session: bool,
    tell: Tell,
}

/// The clients of one shared server.
#[derive(Default)]
pub(super) struct Hub {
    listeners: Mutex<BTreeMap<Owner, Listener>>,
    /// The level that the server was told last. One change is made at a time.
    turn: tokio::sync::Mutex<Option<Level>>,
}

impl Hub {
    fn listeners(&self) -> MutexGuard<'_, BTreeMap<Owner, Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client that listens from now on.
    pub(super) fn enter(&self, owner: Owner, filter: Filter, session: bool, tell: Tell) {
        self.listeners().insert(owner, Listener { filter, level: None, session, tell });
    }

    /// Passes on what the server says that belongs to no request.
    pub(super) fn heard(&self, child: &Child, heard: Heard) {
        let news = match heard {
            Heard::Request { id, method, .. } => return child.answer(&id, &refused(&method)),
            Heard::News(news) => news,
        };
        if news.method == "notifications/message" {
            let level = level_of(&news);
            if let Attribution::NobodyAsks(news) = child.tell_whoever_asked(level, news) {
                self.tell_the_only_one(level, &news);
            }
            return;
        }
        let listeners = self.listeners();
        listeners.values().filter(|listener| listener.filter.wants(&news)).for_each(|listener| (listener.tell)(&news));
    }

    /// What belongs to no request is of the only session, if there is but one.
    fn tell_the_only_one(&self, level: Option<Level>, news: &News) {
        let listeners = self.listeners();
        let mut sessions = listeners.values().filter(|listener| listener.session);
        let (Some(only), None) = (sessions.next(), sessions.next()) else { return };
        if only.level.is_none_or(|least| level.is_none_or(|level| level >= least)) {
            (only.tell)(news);
        }
    }

    /// The least important log messages that a client wants.
    pub(super) fn level(&self, owner: Owner) -> Option<Level> {
        self.listeners().get(&owner).and_then(|listener| listener.level)
    }

    /// Sets it. The server is told the least of all.
    pub(super) async fn set_level(&self, child: &Child, owner: Owner, level: Level) -> Result<Answer, NotAsked> {
        let mut told = self.turn.lock().await;
        if let Some(listener) = self.listeners().get_mut(&owner) {
            listener.level = Some(level);
        }
        let least = self.listeners().values().filter_map(|listener| listener.level).min().unwrap_or(level).min(level);
        if *told == Some(least) {
            return Ok(Ok(raw(&json!({}))));
        }
        let answer = ask(child, "logging/setLevel", &json!({ "level": least.name() })).await?;
        if answer.is_ok() {
            *told = Some(least);
        }
        Ok(answer)
    }

    /// Subscribes a client to a resource; the server is asked for the first one.
    pub(super) async fn subscribe(
        &self,
        child: &Child,
        owner: Owner,
        params: Option<&RawValue>,
    ) -> Result<Answer, NotAsked> {
        let uri = match uri_of(params) {
            Ok(uri) => uri,
            Err(error) => return Ok(Err(error)),
        };
        let _turn = self.turn.lock().await;
        let (held, full) = {
            let listeners = self.listeners();
            let own = listeners.get(&owner).map(|listener| &listener.filter.uris);
            let full = own.is_some_and(|own| own.len() >= RESOURCES_MAX && !own.contains(&uri));
            (listeners.values().any(|listener| listener.filter.uris.contains(&uri)), full)
        };
        if full {
            let message = format!("a client listens to at most {RESOURCES_MAX} resources");
            return Ok(Err(failure(INVALID_PARAMS, &message)));
        }
        let answer =
            if held { Ok(raw(&json!({}))) } else { ask(child, "resources/subscribe", &json!({ "uri": uri })).await? };
        if answer.is_ok() {
            let entered = self.listeners().get_mut(&owner).map(|listener| listener.filter.uris.insert(uri.clone()));
            // It has left in the meantime.
            if entered.is_none() && !held {
                ask(child, "resources/unsubscribe", &json!({ "uri": uri })).await?.ok();
            }
        }
        Ok(answer)
    }

    /// Ends a client's subscription; the server is told when it was the last one.
    pub(super) async fn unsubscribe(
        &self,
        child: &Child,
        owner: Owner,
        params: Option<&RawValue>,
    ) -> Result<Answer, NotAsked> {
        let uri = match uri_of(params) {
            Ok(uri) => uri,
            Err(error) => return Ok(Err(error)),
        };
        let _turn = self.turn.lock().await;
        let was = self.listeners().get_mut(&owner).is_some_and(|listener| listener.filter.uris.remove(&uri));
        if was && !self.is_held(&uri) {
            return ask(child, "resources/unsubscribe", &json!({ "uri": uri })).await;
        }
        Ok(Ok(raw(&json!({}))))
    }

    fn is_held(&self, uri: &str) -> bool {
        self.listeners().values().any(|listener| listener.filter.uris.contains(uri))
    }

    /// A client that has gone.
    pub(super) async fn leave(&self, child: &Child, owner: Owner) {
        let Some(left) = self.listeners().remove(&owner) else { return };
        let mut told = self.turn.lock().await;
        for uri in left.filter.uris {
            if !self.is_held(&uri) && ask(child, "resources/unsubscribe", &json!({ "uri": uri })).await.is_err() {
                return;
            }
        }
        // The server need not write what nobody wants any more.
        let least = self.listeners().values().filter_map(|listener| listener.level).min();
        if let (Some(_), Some(least)) = (left.level, least)
            && *told != Some(least)
            && let Ok(Ok(_)) = ask(child, "logging/setLevel", &json!({ "level": least.name() })).await
        {
            *told = Some(least);
        }
    }
}

/// Many share the server, so it was told that its client can do nothing for it: only `ping` has an answer.
fn refused(method: &str) -> Answer {
    if method == "ping" {
        return Ok(raw(&json!({})));
    }
    let message = format!("the bridge passes no `{method}` on: many clients share this server (`sessions: shared`)");
    Err(failure(METHOD_NOT_FOUND, &message))
}

/// Asks the server. One that does not answer holds nobody else up for long.
async fn ask(child: &Child, method: &str, params: &serde_json::Value) -> Result<Answer, NotAsked> {
    let Ok(answer) = timeout(ANSWER_TIMEOUT, child.ask_plainly(method, Some(raw(params)))).await else {
        let message = format!("the server has not answered `{method}` within {} s", ANSWER_TIMEOUT.as_secs());
        return Ok(Err(failure(INTERNAL_ERROR, &message)));
    };
    answer
}

pub(super) fn uri_of(params: Option<&RawValue>) -> Result<String, Raw> {
    let uri = fields(params).and_then(|params| text(&params, "uri"));
    match uri {
        Some(uri) if uri.len() <= URI_BYTES_MAX => Ok(uri),
        Some(_) => Err(failure(INVALID_PARAMS, &format!("`uri` has more than {URI_BYTES_MAX} bytes"))),
        None => Err(failure(INVALID_PARAMS, "`uri` is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hears_what_it_listens_to() {
        let news =
            |method: &str, params: serde_json::Value| News { method: method.to_owned(), params: Some(raw(&params)) };
        let updated = |uri: &str| news("notifications/resources/updated", json!({ "uri": uri }));
        let filter = Filter { tools: true, uris: ["file:///a".to_owned()].into(), ..Filter::default() };
        assert!(filter.wants(&news("notifications/tools/list_changed", json!({}))));
        assert!(!filter.wants(&news("notifications/prompts/list_changed", json!({}))));
        assert!(filter.wants(&updated("file:///a")) && filter.wants(&updated("file:///a/b")));
        assert!(!filter.wants(&updated("file:///ab")) && !filter.wants(&news("notifications/message", json!({}))));
    }
}
