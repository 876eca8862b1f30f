//! The number of sessions. Clients that go away without a word leave theirs behind: where there are too many, the one that
//! was not used for longest makes room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rmcp::model::ProtocolVersion;
use rmcp::transport::streamable_http_server::session::SessionManager;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use tokio::time::Instant;

use super::connections::Holding;

/// Most sessions at once. Those that nobody uses end after five minutes.
const SESSIONS_MAX: usize = 256;
const SESSION_HEADER: &str = "mcp-session-id";

/// Who uses which session.
#[derive(Clone, Default)]
pub(super) struct Sessions {
    pub(super) manager: Arc<LocalSessionManager>,
    uses: Arc<Mutex<BTreeMap<String, Use>>>,
}

#[derive(Clone, Copy)]
struct Use {
    /// How many requests and streams of it are under way.
    open: u32,
    /// When the last one began or ended.
    last: Instant,
}

impl Sessions {
    fn uses(&self) -> MutexGuard<'_, BTreeMap<String, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a session is used, until what is returned is dropped.
    fn using(&self, id: String) -> Using {
        let mut uses = self.uses();
        let of = uses.entry(id.clone()).or_insert_with(|| Use { open: 0, last: Instant::now() });
        (of.open, of.last) = (of.open + 1, Instant::now());
        Using { sessions: self.clone(), id }
    }

    /// Whether there is room for one more session; made where there is none, if one is not in use.
    async fn make_room(&self) -> bool {
        let there: Vec<_> = self.manager.sessions.read().await.keys().cloned().collect();
        if there.len() < SESSIONS_MAX {
            return true;
        }
        let unused = {
            let mut uses = self.uses();
            uses.retain(|id, of| of.open > 0 || there.iter().any(|other| **other == **id));
            let unused = there.into_iter().filter(|id| uses.get(&**id).is_none_or(|of| of.open == 0));
            unused.min_by_key(|id| uses.get(&**id).map(|of| of.last))
        };
        let Some(unused) = unused else { return false };
        self.uses().remove(&*unused);
        if let Err(error) = self.manager.close_session(&unused).await {
            tracing::debug!(%error, "a session that made room did not end well");
        }
        true
    }
}

struct Using {
    sessions: Sessions,
    id: String,
}

impl Drop for Using {
    fn drop(&mut self) {
        if let Some(of) = self.sessions.uses().get_mut(&self.id) {
            (of.open, of.last) = (of.open.saturating_sub(1), Instant::now());
        }
    }
}

fn session_of(headers: &HeaderMap) -> Option<String> {
    headers.get(SESSION_HEADER)?.to_str().ok().map(str::to_owned)
}

/// Turns away who would begin a session while all there may be are in use. Requests of the modern era begin none.
pub(super) async fn limit(State(sessions): State<Sessions>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let modern = headers
        .get("mcp-protocol-version")
        .is_some_and(|version| version.as_bytes() >= ProtocolVersion::V_2026_07_28.as_str().as_bytes());
    let session = session_of(headers);
    let begins = request.method() == Method::POST && !modern && session.is_none();
    if begins && !sessions.make_room().await {
        let later = [(RETRY_AFTER, HeaderValue::from_static("60"))];
        let message = format!("{SESSIONS_MAX} sessions are in use, and that is the most; try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, later, message).into_response();
    }
    // Only what is there counts as used: anybody may name anything.
    let session = match session {
        Some(id) if sessions.manager.sessions.read().await.keys().any(|known| **known == *id) => Some(id),
        _ => None,
    };
    let before = session.map(|id| sessions.using(id));
    let response = next.run(request).await;
    let using = before.or_else(|| session_of(response.headers()).map(|id| sessions.using(id)));
    match using {
        Some(using) => response.map(|body| Body::new(Holding { body, _held: using })),
        None => response,
    }
}
