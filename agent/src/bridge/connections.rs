//! The connections of a bridge: each has a time for the head of its next request, and all of them together a number. Which
//! of them stay when they are too many is [`super::admission`]'s to say.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::admission::{Admission, CONNECTIONS_MAX, Open, admit};

/// How long the head of a request may take, from the connection's begin or the end of the request before. No time that
/// clients like to ask at, so that they do not meet a connection that is just being closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Most bytes of the head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long a connection that makes room for another may still send its last answer.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what is sent may stay without an acknowledgement before the connection counts as broken.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);
/// How long no connection is taken after one could not be: there are no descriptors left, for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, (Open, Arc<Notify>)>,
}

#[derive(Clone, Default)]
struct Connections(Arc<Mutex<Table>>);

/// One connection, as its requests know it.
#[derive(Clone)]
pub(super) struct Connection {
    id: u64,
    all: Connections,
    /// The bridge's own address on it.
    pub(super) at: SocketAddr,
    pub(super) peer: IpAddr,
}

/// Takes connections for as long as it runs.
pub(super) async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let all = Connections::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(at) = stream.local_addr() else { continue };
        let Some((id, turned_out)) = all.enter(peer.ip()) else { continue };
        let connection = Connection { id, all: all.clone(), at, peer: peer.ip() };
        let router = router.clone().layer(Extension(connection));
        let leaving = Leaving(all.clone(), id);
        tokio::spawn(async move {
            let _leaving = leaving;
            converse(stream, router, turned_out).await;
        });
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

async fn converse(stream: TcpStream, router: Router, turned_out: Arc<Notify>) {
    // Answers are small and somebody waits for each: none is held back to be sent with the next.
    let _ = stream.set_nodelay(true);
    // A client that has gone without a word acknowledges nothing: its streams, which are never silent for long, end.
    if let Err(error) = set_tcp_user_timeout(&stream, millis(UNACKNOWLEDGED_TIMEOUT)) {
        tracing::debug!(%error, "clients that have gone without a word are noticed late");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = turned_out.notified() => {
            // What was answered is still sent whole.
            connection.as_mut().graceful_shutdown();
            timeout(LEAVE_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in, if there is or can be made room for it.
    fn enter(&self, peer: IpAddr) -> Option<(u64, Arc<Notify>)> {
        let mut table = self.table();
        let open: Vec<(u64, Open)> = table.open.iter().map(|(id, (open, _))| (*id, *open)).collect();
        match admit(&open, peer, CONNECTIONS_MAX) {
            Admission::Room => {}
            Admission::InPlaceOf(id) => {
                if let Some((_, turned_out)) = table.open.remove(&id) {
                    turned_out.notify_one();
                }
            }
            Admission::Refused => return None,
        }
        let (id, turned_out) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        table.open.insert(id, (Open { peer, idle_since: Some(Instant::now()) }, turned_out.clone()));
        Some((id, turned_out))
    }

    /// Says whether a connection is at work; gives whether it is still there.
    fn set_idle(&self, id: u64, idle_since: Option<Instant>) -> bool {
        let mut table = self.table();
        let Some((open, _)) = table.open.get_mut(&id) else { return false };
        open.idle_since = idle_since;
        true
    }
}

/// Forgets a connection when it has ended.
struct Leaving(Connections, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.table().open.remove(&self.1);
    }
}

/// A connection at work: it is idle again when this is dropped.
struct AtWork(Connection);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.all.set_idle(self.0.id, Some(Instant::now()));
    }
}

/// Notes that a request has come whole, until its answer has gone.
pub(super) async fn work(Extension(connection): Extension<Connection>, request: Request, next: Next) -> Response {
    // One that has made room for another in the meantime asks the server nothing: its answer would be cut off.
    if !connection.all.set_idle(connection.id, None) {
        let headers = [(RETRY_AFTER, "1"), (CONNECTION, "close")];
        let message = format!("{CONNECTIONS_MAX} connections are open, and that is the most; try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, headers, message).into_response();
    }
    let at_work = AtWork(connection);
    let response = next.run(request).await;
    response.map(|body| Body::new(Holding { body, _held: at_work }))
}

/// The body of an answer that holds something until it has gone, or nobody wants it any more.
pub(super) struct Holding<T> {
    pub(super) body: Body,
    pub(super) _held: T,
}

impl<T: Send + Unpin + 'static> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
