//! The HTTP/JSON interface of the coordinator, under `/v1` on a unix socket that only its owner may open.

pub(crate) mod artifacts;
pub(crate) mod deployments;
mod events;
pub(crate) mod hosts;
pub(crate) mod look;
pub(crate) mod secrets;
pub(crate) mod views;

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::FleetEvent;
use fleetwright_deploy::ids::InstanceId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use self::deployments::ControlRequest;
use self::views::{HostMetrics, InstanceRow, PlanningView, StatusView};
use crate::artifacts::Artifacts;
use crate::clock;
use crate::engine::{Handle, Request};
use crate::secrets::Secrets;

/// Largest request body, in bytes: a plan with all its releases.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest name of a person, in bytes.
const PERSON_BYTES_MAX: usize = 256;
/// Longest reason that a person gives, in bytes.
const REASON_BYTES_MAX: usize = 4 * 1024;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Handle,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) listen: String,
    pub(crate) authority_fingerprint: String,
}

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone)]
pub(crate) struct Peer(Actor);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        // Nobody else than its owner can open the socket, should the kernel not say who did.
        let uid = stream.io().peer_cred().map_or_else(|_| rustix::process::geteuid().as_raw(), |peer| peer.uid());
        Self(Actor::User(uid))
    }
}

/// The lines of a log.
#[derive(Serialize, Deserialize)]
pub(crate) struct LogsView {
    pub(crate) instance: InstanceId,
    pub(crate) lines: Vec<String>,
}

/// An error as it is sent.
#[derive(Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error: Failure,
}

/// Listens on the socket. Its path may be longer than a socket's address can hold: it is reached by way of its
/// folder's descriptor.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(socket);
    let folder = std::fs::File::open(socket.parent().unwrap_or_else(|| Path::new("/")))?;
    let listener = UnixListener::bind(short_path(&folder, socket))
        .with_context(|| format!("{} cannot be listened on", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A short path to a file in an open folder of this process.
pub(crate) fn short_path(folder: &std::fs::File, file: &Path) -> std::path::PathBuf {
    let name = file.file_name().unwrap_or_default();
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)
}

pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{host}/token", post(hosts::token))
        .route("/v1/hosts/{host}/labels", post(hosts::label))
        .route("/v1/hosts/{host}/address", post(hosts::address))
        .route("/v1/hosts/{host}/refresh", post(hosts::refresh))
        .route("/v1/hosts/metrics", get(metrics))
        .route("/v1/servers", get(servers))
        .route("/v1/servers/{instance}/logs", get(look::logs))
        .route("/v1/servers/{instance}/checks", post(look::checks))
        .route("/v1/servers/{instance}/snapshots", get(look::snapshots))
        .route("/v1/servers/{instance}/snapshots/{id}", get(look::snapshot))
        .route("/v1/planning", get(planning))
        .route("/v1/secrets/digests", post(secrets::digests))
        .route("/v1/secrets", post(secrets::list))
        .route("/v1/deployments", get(deployments::list).post(deployments::start))
        .route("/v1/deployments/{id}", get(deployments::show))
        .route("/v1/deployments/{id}/rollback", post(deployments::roll_back))
        .route("/v1/deployments/{id}/{decision}", post(deployments::control))
        .route("/v1/halt", post(halt))
        .route("/v1/unhalt", post(unhalt))
        .route("/v1/servers/{server}/past", get(deployments::past))
        .route("/v1/events", get(events::events))
        .route("/v1/artifacts", get(artifacts::list))
        .route("/v1/artifacts/remove", post(artifacts::remove))
        .route("/v1/artifacts/{sha256}", post(artifacts::add))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// A failure as an answer: its kind decides the status code.
struct Refusal(Failure);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            FailureKind::ConfigurationError => StatusCode::UNPROCESSABLE_ENTITY,
            FailureKind::PermissionError => StatusCode::FORBIDDEN,
            FailureKind::NetworkError | FailureKind::TimeoutError | FailureKind::DependencyError => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            FailureKind::DeploymentError | FailureKind::HealthCheckError | FailureKind::ResourceError => {
                StatusCode::CONFLICT
            }
        };
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// What a request asks in its query. What is wrong with that is told as all errors are.
struct Queried<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Queried<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(asked)| Self(asked)).map_err(|rejection| {
            let why = rejection.body_text();
            let why = why.strip_prefix("Failed to deserialize query string: ").unwrap_or(&why);
            let failure = Failure::new(FailureKind::ConfigurationError, "request", format!("in the query, {why}"));
            Refusal(failure.hint("docs/api.md says what each path takes"))
        })
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

fn ending() -> Refusal {
    Refusal(Failure::new(FailureKind::NetworkError, "request", "the coordinator is ending").hint("try again"))
}

fn not_found(what: String) -> Refusal {
    Refusal(Failure::new(FailureKind::ConfigurationError, "request", what))
}

async fn status(State(api): State<Api>) -> Json<StatusView> {
    Json(status_of(&api))
}

fn status_of(api: &Api) -> StatusView {
    let over = api.engine.budgets.over(clock::now());
    api.engine.read(|view| StatusView::new(view, api.listen.clone(), over))
}

async fn servers(State(api): State<Api>) -> Json<Vec<InstanceRow>> {
    Json(api.engine.read(|view| InstanceRow::all(&view.fleet)))
}

async fn metrics(State(api): State<Api>) -> Json<Vec<HostMetrics>> {
    let newest = api.engine.samples.newest().into_iter();
    Json(newest.map(|(host, sample)| HostMetrics { host, sample }).collect())
}

async fn planning(State(api): State<Api>) -> Json<PlanningView> {
    let mut planning = api.engine.read(|view| PlanningView::new(&view.fleet));
    let store = api.artifacts.clone();
    let all = tokio::task::spawn_blocking(move || store.all()).await.unwrap_or_default();
    planning.artifacts = all.into_iter().map(|artifact| artifact.sha256).collect();
    Json(planning)
}

/// What people say of themselves and of their reasons is kept for ever, so it has a limit.
fn check_words(by: &str, reason: &str) -> Result<(), Refusal> {
    if by.len() <= PERSON_BYTES_MAX && reason.len() <= REASON_BYTES_MAX {
        return Ok(());
    }
    let limits = format!("a name has at most {PERSON_BYTES_MAX} bytes, a reason at most {REASON_BYTES_MAX}");
    Err(Refusal(Failure::new(FailureKind::ConfigurationError, "request", limits).hint("say it shorter")))
}

async fn halt(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<ControlRequest>,
) -> Answer<StatusView> {
    let ControlRequest { by, reason, instances: _ } = request;
    check_words(&by, &reason)?;
    hold_fleet(api, peer, FleetEvent::Halted { by, reason }).await
}

async fn unhalt(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<ControlRequest>,
) -> Answer<StatusView> {
    check_words(&request.by, "")?;
    hold_fleet(api, peer, FleetEvent::Unhalted { by: request.by }).await
}

async fn hold_fleet(api: Api, peer: Peer, event: FleetEvent) -> Answer<StatusView> {
    decide(&api, peer, event).await?;
    Ok(Json(status_of(&api)))
}

/// Has something decided about the whole fleet, a host, or what is kept for hosts.
async fn decide(api: &Api, Peer(actor): Peer, event: FleetEvent) -> Result<(), Refusal> {
    let decided = api.engine.ask_as(actor, |reply| Request::Decide { event, reply }).await;
    decided.ok_or_else(ending)?.map_err(Refusal)
}
