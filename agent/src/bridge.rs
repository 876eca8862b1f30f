//! The bridge of one stdio MCP server to streamable HTTP, for any number of clients of both eras of the protocol.
//!
//! What clients and server say to each other is passed through byte for byte where both are of the same era; where they are
//! not, it is translated as far as one has a word for what the other says. The bridge ends when the server ends, so that
//! whoever supervises it sees the crash, and ends with everything that it has started.

mod admission;
mod body;
mod child;
mod connections;
mod era;
mod front;
mod headers;
mod hub;
mod legacy;
mod line;
mod listening;
mod message;
mod modern;
mod names;
mod server;
mod sessions;
mod streams;
mod token;
mod tools;

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use fleetwright_deploy::release::{BRIDGE_TOKEN_VARIABLE, bridge_host_fault, bridge_origin_fault, endpoint_path_fault};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, timeout};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use self::child::Program;
use self::connections::Connection;
pub(crate) use self::front::SessionMode;
use self::front::{Front, SESSION_HEADER};
use self::names::Names;
use self::server::Server;
use self::sessions::Sessions;
use self::token::Token;
pub(crate) use self::token::hide as hide_token;
use crate::process::{self, OwnChildren};

/// How long the server has to end by itself when the bridge is told to; whoever stops the bridge may be less patient.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// The exit status of what ended because of SIGTERM.
const TERMINATED: u8 = 143;
/// Most sessions of a shared server. They cost little, and the longest unused one makes room.
const SHARED_SESSIONS_MAX: usize = 256;
/// How long the server of a session may be without use before it ends.
const OWN_IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often it is looked for those.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a browser may remember what it may send.
const CORS_AGE: Duration = Duration::from_secs(600);

/// How a bridge is reached, and how it serves.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    pub(crate) listen: String,
    /// The path of the endpoint.
    #[arg(long, default_value = "/mcp", value_parser = path)]
    pub(crate) path: String,
    /// Whether clients share the server's process, or each session has one of its own.
    #[arg(long, default_value = "shared")]
    pub(crate) sessions: SessionMode,
    /// Most sessions at once that have a process of their own.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) sessions_max: u16,
    /// A further name by which clients reach it; one without a port is of any port.
    #[arg(long = "host", value_name = "HOST", value_parser = host)]
    pub(crate) hosts: Vec<String>,
    /// Where pages that may use it come from.
    #[arg(long = "origin", value_name = "ORIGIN", value_parser = origin)]
    pub(crate) origins: Vec<String>,
    /// The server and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

fn fitting(text: String, fault: Option<&'static str>, hint: &str) -> Result<String, String> {
    match fault {
        None => Ok(text),
        Some(why) => Err(format!("it {why}\n  hint: {hint}")),
    }
}

fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    let fault = match port.map(str::parse::<u16>) {
        Some(Ok(port)) if port > 0 => None,
        Some(_) => Some("does not end with a port from 1 to 65535"),
        None => Some("is not an address and a port"),
    };
    fitting(text.to_owned(), fault, "write for example 127.0.0.1:8801, or [::1]:8801")
}

fn path(text: &str) -> Result<String, String> {
    fitting(text.to_owned(), endpoint_path_fault(text), "write the path at which clients ask, such as /mcp")
}

fn host(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let fault = bridge_host_fault(&text);
    fitting(text, fault, "write the name that clients use: tools.example.com, or tools.example.com:8443")
}

fn origin(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/').to_ascii_lowercase();
    let fault = bridge_origin_fault(&text);
    fitting(text, fault, "write what browsers send as Origin: https://chat.example.com, without a path")
}

/// What can be done about an address that cannot be listened on.
fn not_listening(listen: &str, error: &std::io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::AddrInUse => "another program has this port: `ss -ltnp` says which",
        ErrorKind::AddrNotAvailable => "this host has no such address: `ip address` lists those that it has",
        ErrorKind::PermissionDenied => "ports below 1024 need root, or net.ipv4.ip_unprivileged_port_start",
        _ => "write an address of this host and a port, such as 127.0.0.1:8801",
    };
    anyhow::anyhow!("{listen} cannot be listened on: {error}\n  hint: {hint}")
}

/// Runs the server and speaks streamable HTTP for it, until it ends.
pub(crate) async fn bridge(options: Options) -> Result<ExitCode> {
    // The server behind it runs as the same user, who must not look into the bridge's memory and environment.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("the bridge cannot be hidden from its server")?;
    let token = std::env::var(BRIDGE_TOKEN_VARIABLE).ok().map(|text| Token::parse(&text)).transpose();
    let token = token.map_err(|error| anyhow::anyhow!("{error}\n  hint: take a long random one"))?;
    // The port first: a server whose port is taken should not be started at all.
    let listen = &options.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| not_listening(listen, &error))?;
    let mut terminate = signal(SignalKind::terminate())?;
    process::adopt_orphans();
    let own = OwnChildren::default();
    let collecting = tokio::spawn(process::collect_orphans(own.clone()));
    let program = Program { command: options.command.clone(), hidden: BRIDGE_TOKEN_VARIABLE, own };
    let started = tokio::select! {
        started = Server::start(program) => Some(started),
        _ = terminate.recv() => None,
    };
    let outcome = match started {
        Some(Ok((server, ended))) => serve(listener, &options, server, ended, token, &mut terminate).await,
        Some(Err(error)) => Err(error),
        None => Ok(ExitCode::from(TERMINATED)),
    };
    collecting.abort();
    process::kill_descendants();
    outcome
}

async fn serve(
    listener: TcpListener,
    options: &Options,
    server: Server,
    mut ended: oneshot::Receiver<String>,
    token: Option<Token>,
    terminate: &mut Signal,
) -> Result<ExitCode> {
    let port = listener.local_addr()?.port();
    let names = Arc::new(Names::of(&options.listen, port, &options.hosts, &options.origins));
    let front = Arc::new(front(server, options));
    let router = router(&front, &options.path, token, names);
    tokio::select! {
        exit = &mut ended => {
            let exit = exit.unwrap_or_else(|_| "nobody knows how".to_owned());
            tracing::warn!("the MCP server ended with {exit}");
            Ok(ExitCode::FAILURE)
        }
        never = connections::serve(listener, router) => match never {},
        never = end_idle(&front.sessions) => match never {},
        _ = terminate.recv() => {
            front.closing.cancel();
            front.sessions.end_all();
            front.server.child.close();
            let gone = async {
                let _ = ended.await;
                let _ = front.places.acquire_many(u32::from(options.sessions_max)).await;
            };
            let _ = timeout(STOP_TIMEOUT, gone).await;
            Ok(ExitCode::from(TERMINATED))
        }
    }
}

fn front(server: Server, options: &Options) -> Front {
    let most = match options.sessions {
        SessionMode::Shared => SHARED_SESSIONS_MAX,
        SessionMode::Own => usize::from(options.sessions_max),
    };
    let (hub, child) = (server.hub.clone(), server.child.clone());
    let leave = move |owner| {
        let (hub, child) = (hub.clone(), child.clone());
        tokio::spawn(async move { hub.leave(&child, owner).await });
    };
    Front::new(server, options.sessions, Sessions::new(most, leave), usize::from(options.sessions_max))
}

/// From the inside out: a request is read whole only if it may be.
fn router(front: &Arc<Front>, path: &str, token: Option<Token>, names: Arc<Names>) -> axum::Router {
    let mut router = axum::Router::new()
        // A path is a path, whatever its parts begin with.
        .without_v07_checks()
        .route(path, axum::routing::any(front::serve))
        .with_state(front.clone())
        .layer(middleware::from_fn(connections::work));
    if let Some(token) = token {
        router = router.layer(middleware::from_fn_with_state(token, authenticate));
    }
    // Whether an origin may, is said before; a browser that asks beforehand has no token yet.
    router.layer(cors()).layer(middleware::from_fn_with_state(names, refuse_foreign))
}

/// What a browser may do with the bridge whose page comes from where it may.
fn cors() -> CorsLayer {
    let exposed = [SESSION_HEADER, HeaderName::from_static(headers::VERSION_HEADER), WWW_AUTHENTICATE];
    CorsLayer::new()
        .allow_origin(AllowOrigin::mirror_request())
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(CORS_AGE)
}

async fn end_idle(sessions: &Sessions) -> std::convert::Infallible {
    let mut looks = interval(IDLE_LOOK_INTERVAL);
    loop {
        looks.tick().await;
        if let Some(since) = Instant::now().checked_sub(OWN_IDLE_TIMEOUT) {
            sessions.end_idle(since);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_says_is_what_can_be_listened_on_and_come_by() {
        for (right, taken) in [
            (address("127.0.0.1:8801"), "127.0.0.1:8801"),
            (address("[::1]:1"), "[::1]:1"),
            (address("localhost:65535"), "localhost:65535"),
            (path("/mcp"), "/mcp"),
            (host("Tools.Example:8443"), "tools.example:8443"),
            (origin("https://Chat.example/"), "https://chat.example"),
        ] {
            assert_eq!(right.as_deref(), Ok(taken));
        }
        for (wrong, why) in [
            (address("nonsense"), "is not an address and a port"),
            (address("127.0.0.1"), "is not an address and a port"),
            (address(":8801"), "is not an address and a port"),
            (address("127.0.0.1:0"), "from 1 to 65535"),
            (address("127.0.0.1:99999"), "from 1 to 65535"),
            (path("mcp"), "does not begin with `/`"),
            (path("/{x"), "no path has"),
            (host(""), "is not the name"),
            (host("http://x"), "is more than a host"),
            (origin("*"), "does not begin with http"),
            (origin("https://x/path"), "is more than a host"),
        ] {
            let told = wrong.expect_err(why);
            assert!(told.contains(why) && told.contains("\n  hint: "), "{told}");
        }
    }

    #[test]
    fn a_path_is_served_whatever_its_parts_begin_with() {
        for path in ["/mcp", "/:x", "/*y", "/a%20b"] {
            assert_eq!(endpoint_path_fault(path), None, "{path}");
            let _: axum::Router = axum::Router::new().without_v07_checks().route(path, axum::routing::any(|| async {}));
        }
    }
}
