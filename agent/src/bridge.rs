//! The bridge of one stdio MCP server to streamable HTTP, for any number of clients of the eras that the server speaks.
//!
//! HTTP, sessions and the differences between the eras are rmcp's. What clients and server say to each other is passed
//! through as it is: only ids and progress tokens are exchanged, since many clients share one server. The bridge ends
//! when the server ends, so that whoever supervises it sees the crash, and ends with everything that it has started.

mod envelope;
mod server;
mod stdio;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::{Listener, ListenerExt};
use rmcp::model::ProtocolVersion;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::server::Bridged;
use self::stdio::StdioServer;
use crate::process;

/// Largest request body that is taken, in bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the server has to end by itself when the bridge is told to; whoever stops the bridge may be less patient.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// The exit status of what ended because of SIGTERM.
const TERMINATED: u8 = 143;
/// The environment variable with the token that clients must present, if any. The server does not see it.
pub(crate) const TOKEN_VARIABLE: &str = "FLEETWRIGHT_BRIDGE_TOKEN";
/// Most sessions at once. Those that nobody uses end after five minutes.
const SESSIONS_MAX: usize = 256;
/// Fewest characters of a token.
const TOKEN_CHARACTERS_MIN: usize = 16;

/// Runs the server and speaks streamable HTTP for it on `listen`, until it ends.
pub async fn bridge(listen: &str, path: &str, command: &[String]) -> Result<ExitCode> {
    let token = std::env::var(TOKEN_VARIABLE).ok();
    if token.as_ref().is_some_and(|token| token.chars().count() < TOKEN_CHARACTERS_MIN) {
        bail!("{TOKEN_VARIABLE} has fewer than {TOKEN_CHARACTERS_MIN} characters\n  hint: take a long random one");
    }
    // The port first: a server whose port is taken should not be started at all.
    let listener = TcpListener::bind(listen).await.with_context(|| format!("{listen} cannot be listened on"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    process::adopt_orphans();
    let started = tokio::select! {
        started = StdioServer::start(command, TOKEN_VARIABLE) => Some(started),
        _ = terminate.recv() => None,
    };
    let outcome = match started {
        Some(Ok((server, ended))) => serve(listener, listen, path, server, ended, token, &mut terminate).await,
        Some(Err(error)) => Err(error),
        None => Ok(ExitCode::from(TERMINATED)),
    };
    process::kill_descendants();
    outcome
}

async fn serve(
    listener: TcpListener,
    listen: &str,
    path: &str,
    server: StdioServer,
    mut ended: oneshot::Receiver<String>,
    token: Option<String>,
    terminate: &mut Signal,
) -> Result<ExitCode> {
    let collecting = tokio::spawn(process::collect_orphans(server.pid));
    let server = Arc::new(server);
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let origins = ["localhost", "127.0.0.1", host].map(|host| format!("http://{host}:*"));
    let config = StreamableHttpServerConfig::default()
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .with_allowed_hosts(["localhost", "127.0.0.1", host])
        .with_allowed_origins(origins);
    let of = server.clone();
    let sessions = Arc::<LocalSessionManager>::default();
    let service = StreamableHttpService::new(move || Ok(Bridged::new(of.clone())), sessions.clone(), config);
    let mut router = axum::Router::new()
        .route_service(path, service)
        .layer(middleware::from_fn(envelope::mark))
        .layer(middleware::from_fn_with_state(sessions, limit_sessions));
    if let Some(token) = token {
        let expected: Arc<str> = format!("Bearer {token}").into();
        router = router.layer(middleware::from_fn_with_state(expected, authenticate));
    }
    let outcome = tokio::select! {
        exit = &mut ended => {
            let exit = exit.unwrap_or_else(|_| "nobody knows how".to_owned());
            tracing::warn!("the MCP server ended with {exit}");
            Ok(ExitCode::FAILURE)
        }
        served = axum::serve(at_once(listener), router) => {
            served.map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
        _ = terminate.recv() => {
            server.close();
            let _ = timeout(STOP_TIMEOUT, ended).await;
            Ok(ExitCode::from(TERMINATED))
        }
    };
    collecting.abort();
    outcome
}

/// Answers are small and somebody waits for each: none is held back to be sent with the next.
fn at_once(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    })
}

/// Turns away who would begin a session while there are too many. Requests of the modern era begin none.
async fn limit_sessions(State(sessions): State<Arc<LocalSessionManager>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let modern = headers
        .get("mcp-protocol-version")
        .is_some_and(|version| version.as_bytes() >= ProtocolVersion::V_2026_07_28.as_str().as_bytes());
    let begins = request.method() == Method::POST && !modern && !headers.contains_key("mcp-session-id");
    if begins && sessions.sessions.read().await.len() >= SESSIONS_MAX {
        let later = [(RETRY_AFTER, HeaderValue::from_static("60"))];
        let message = format!("{SESSIONS_MAX} sessions are open, and that is the most; try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, later, message).into_response();
    }
    next.run(request).await
}

/// Lets through who presents the token.
async fn authenticate(State(expected): State<Arc<str>>, request: Request, next: Next) -> Response {
    let presented = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    // Hashes are compared, so that the time it takes tells nothing.
    if blake3::hash(presented) == blake3::hash(expected.as_bytes()) {
        return next.run(request).await;
    }
    let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mcp\""))];
    (StatusCode::UNAUTHORIZED, challenge, "a bearer token is needed\n").into_response()
}
