//! The bridge of one stdio MCP server to streamable HTTP, for any number of clients of either era of the protocol.
//!
//! HTTP, sessions and the differences between the eras are rmcp's. What clients and server say to each other is passed
//! through as it is: only ids and progress tokens are exchanged, since many clients share one server. The bridge ends
//! when the server ends, so that whoever supervises it sees the crash, and ends with everything that it has started.

mod admission;
mod connections;
mod envelope;
mod names;
mod server;
mod sessions;
mod stdio;
mod token;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use fleetwright_deploy::release::BRIDGE_TOKEN_VARIABLE;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::connections::Connection;
use self::names::Names;
use self::server::Bridged;
use self::sessions::Sessions;
use self::stdio::StdioServer;
use self::token::Token;
pub(crate) use self::token::hide as hide_token;
use crate::process;

/// Largest request body that is taken, in bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the server has to end by itself when the bridge is told to; whoever stops the bridge may be less patient.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// The exit status of what ended because of SIGTERM.
const TERMINATED: u8 = 143;

/// Runs the server and speaks streamable HTTP for it on `listen`, until it ends.
pub async fn bridge(listen: &str, path: &str, command: &[String]) -> Result<ExitCode> {
    // The server behind it runs as the same user, who must not look into the bridge's memory and environment.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("the bridge cannot be hidden from its server")?;
    let token = std::env::var(BRIDGE_TOKEN_VARIABLE).ok().map(|text| Token::parse(&text)).transpose();
    let token = token.map_err(|error| anyhow::anyhow!("{error}\n  hint: take a long random one"))?;
    // The port first: a server whose port is taken should not be started at all.
    let listener = TcpListener::bind(listen).await.with_context(|| format!("{listen} cannot be listened on"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    process::adopt_orphans();
    let started = tokio::select! {
        started = StdioServer::start(command, BRIDGE_TOKEN_VARIABLE) => Some(started),
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
    token: Option<Token>,
    terminate: &mut Signal,
) -> Result<ExitCode> {
    let collecting = tokio::spawn(process::collect_orphans(server.pid));
    let server = Arc::new(server);
    let names = Names::of(listen, listener.local_addr()?.port());
    // What a request must name is [`Names`]' to say.
    let config = StreamableHttpServerConfig::default()
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .disable_allowed_hosts()
        .disable_allowed_origins();
    let of = server.clone();
    let sessions = Sessions::default();
    let service = StreamableHttpService::new(move || Ok(Bridged::new(of.clone())), sessions.manager.clone(), config);
    // From the inside out: a request is read whole only if it may be.
    let mut router = axum::Router::new()
        .route_service(path, service)
        .layer(middleware::from_fn(connections::work))
        .layer(middleware::from_fn_with_state(envelope::Room::default(), envelope::mark))
        .layer(middleware::from_fn_with_state(sessions, sessions::limit));
    if let Some(token) = token {
        router = router.layer(middleware::from_fn_with_state(token, authenticate));
    }
    let router = router.layer(middleware::from_fn_with_state(Arc::new(names), refuse_foreign));
    let outcome = tokio::select! {
        exit = &mut ended => {
            let exit = exit.unwrap_or_else(|_| "nobody knows how".to_owned());
            tracing::warn!("the MCP server ended with {exit}");
            Ok(ExitCode::FAILURE)
        }
        never = connections::serve(listener, router) => match never {},
        _ = terminate.recv() => {
            server.close();
            let _ = timeout(STOP_TIMEOUT, ended).await;
            Ok(ExitCode::from(TERMINATED))
        }
    };
    collecting.abort();
    outcome
}

/// Turns away what names another than this bridge.
async fn refuse_foreign(
    State(names): State<Arc<Names>>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    match names.refuse(connection.at, request.uri(), request.headers()) {
        Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
        None => next.run(request).await,
    }
}

/// Lets through who presents the token.
async fn authenticate(State(token): State<Token>, request: Request, next: Next) -> Response {
    if token.is_presented(request.headers()) {
        return next.run(request).await;
    }
    let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mcp\""))];
    (StatusCode::UNAUTHORIZED, challenge, "a bearer token is needed\n").into_response()
}
