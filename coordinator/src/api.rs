//! The HTTP/JSON interface of the coordinator, under `/v1` on a unix socket that only its owner may open.

pub(crate) mod artifacts;
mod events;
pub(crate) mod hosts;
pub(crate) mod look;
pub(crate) mod secrets;
pub(crate) mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fleetwright_deploy::deployment::{DeploymentEvent, Hold, HoldKind, Options};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::FleetEvent;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId};
use fleetwright_deploy::plan::{Plan, RollbackStrategy};
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use self::views::{DeploymentSummary, DeploymentView, HostMetrics, InstanceRow, PastRow, PlanningView, StatusView};
use crate::artifacts::{Artifacts, missing};
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

/// A request to start a deployment.
#[derive(Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub(crate) plan: Plan,
    pub(crate) options: Options,
    pub(crate) intents: BTreeMap<HostName, String>,
}

/// A request to undo one.
#[derive(Serialize, Deserialize)]
pub(crate) struct RollbackRequest {
    pub(crate) by: String,
    /// In which order and manner; as the plan says when it is not said.
    pub(crate) strategy: Option<RollbackStrategy>,
    /// Only these instances; all that were touched when it is empty.
    #[serde(default)]
    pub(crate) only: BTreeSet<InstanceId>,
    pub(crate) intents: BTreeMap<HostName, String>,
}

/// What an operator decides about a deployment, and who does.
#[derive(Serialize, Deserialize)]
pub(crate) struct ControlRequest {
    pub(crate) by: String,
    #[serde(default)]
    pub(crate) reason: String,
    /// The instances it is about, for `retry`, `skip` and `resolve`; all that fit when it is empty.
    #[serde(default)]
    pub(crate) instances: BTreeSet<InstanceId>,
}

impl ControlRequest {
    /// The event that a decision is.
    fn event(self, decision: Decision, now: Timestamp) -> DeploymentEvent {
        let Self { by, reason, instances } = self;
        match decision {
            Decision::Pause => DeploymentEvent::Held(Hold { kind: HoldKind::Pause, by, reason, since: now }),
            Decision::Resume => DeploymentEvent::Released { kind: HoldKind::Pause, by },
            Decision::Cancel => DeploymentEvent::Cancelled { by },
            Decision::Approve => DeploymentEvent::Approved { by },
            Decision::Reject => DeploymentEvent::Rejected { by, reason },
            Decision::Retry => DeploymentEvent::RetryRequested { instances, by },
            Decision::Skip => DeploymentEvent::SkipRequested { instances, by },
            Decision::Resolve => DeploymentEvent::ResolveRequested { instances, by },
        }
    }
}

/// What an operator can decide about a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    Pause,
    Resume,
    Cancel,
    Approve,
    Reject,
    Retry,
    Skip,
    Resolve,
}

/// What a started deployment is called.
#[derive(Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) id: DeploymentId,
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
        .route("/v1/deployments", get(deployments).post(start))
        .route("/v1/deployments/{id}", get(deployment))
        .route("/v1/deployments/{id}/rollback", post(roll_back))
        .route("/v1/deployments/{id}/{decision}", post(control))
        .route("/v1/halt", post(halt))
        .route("/v1/unhalt", post(unhalt))
        .route("/v1/servers/{server}/past", get(past))
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

type Answer<T> = Result<Json<T>, Refusal>;

fn ending() -> Refusal {
    Refusal(Failure::new(FailureKind::NetworkError, "request", "the coordinator is ending").hint("try again"))
}

fn no_deployment(id: &str) -> Refusal {
    let failure = Failure::new(FailureKind::ConfigurationError, "request", format!("there is no deployment {id}"));
    Refusal(failure.hint("`fleetwright deploy list` shows all of them"))
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

async fn deployments(State(api): State<Api>) -> Json<Vec<DeploymentSummary>> {
    Json(api.engine.read(|view| view.fleet.deployments().map(DeploymentSummary::new).collect()))
}

async fn deployment(State(api): State<Api>, UrlPath(id): UrlPath<String>) -> Answer<DeploymentView> {
    let found = id.parse().ok().and_then(|id| view_of(&api, &id));
    found.map(Json).ok_or_else(|| no_deployment(&id))
}

fn view_of(api: &Api, id: &DeploymentId) -> Option<DeploymentView> {
    api.engine.read(|view| view.fleet.deployment(id).map(DeploymentView::new))
}

async fn start(State(api): State<Api>, Json(request): Json<StartRequest>) -> Answer<Started> {
    let StartRequest { plan, options, intents } = request;
    check_words(&options.started_by, "")?;
    let to_stage = plan.changes().filter_map(|(_, step)| step.release.as_ref()?.package.artifact());
    if let Some(lacking) = to_stage.into_iter().find(|sha256| !api.artifacts.has(sha256)) {
        return Err(Refusal(missing(lacking)));
    }
    let plan = Arc::new(plan);
    let started = api.engine.ask(|reply| Request::Start { plan, options, intents, reply }).await.ok_or_else(ending)?;
    started.map(|id| Json(Started { id })).map_err(Refusal)
}

async fn roll_back(
    State(api): State<Api>,
    UrlPath(id): UrlPath<String>,
    Json(request): Json<RollbackRequest>,
) -> Answer<Started> {
    let Ok(deployment) = id.parse::<DeploymentId>() else {
        return Err(no_deployment(&id));
    };
    let (id, RollbackRequest { by, strategy, only, intents }) = (deployment.clone(), request);
    check_words(&by, "")?;
    let rolled = api.engine.ask(|reply| Request::RollBack { deployment, by, strategy, only, intents, reply }).await;
    let rolled = rolled.ok_or_else(ending)?;
    rolled.map(|()| Json(Started { id })).map_err(Refusal)
}

/// What people say of themselves and of their reasons is kept for ever, so it has a limit.
fn check_words(by: &str, reason: &str) -> Result<(), Refusal> {
    if by.len() <= PERSON_BYTES_MAX && reason.len() <= REASON_BYTES_MAX {
        return Ok(());
    }
    let limits = format!("a name has at most {PERSON_BYTES_MAX} bytes, a reason at most {REASON_BYTES_MAX}");
    Err(Refusal(Failure::new(FailureKind::ConfigurationError, "request", limits).hint("say it shorter")))
}

async fn control(
    State(api): State<Api>,
    UrlPath((id, decision)): UrlPath<(String, Decision)>,
    Json(request): Json<ControlRequest>,
) -> Answer<DeploymentView> {
    let missing = || no_deployment(&id);
    check_words(&request.by, &request.reason)?;
    let deployment = id.parse::<DeploymentId>().map_err(|_| missing())?;
    let event = Box::new(request.event(decision, clock::now()));
    let asked = deployment.clone();
    let decided = api.engine.ask(|reply| Request::Control { deployment: asked, event, reply }).await;
    decided.ok_or_else(ending)?.map_err(Refusal)?;
    view_of(&api, &deployment).map(Json).ok_or_else(missing)
}

async fn halt(State(api): State<Api>, Json(request): Json<ControlRequest>) -> Answer<StatusView> {
    let ControlRequest { by, reason, instances: _ } = request;
    check_words(&by, &reason)?;
    hold_fleet(api, FleetEvent::Halted { by, reason }).await
}

async fn unhalt(State(api): State<Api>, Json(request): Json<ControlRequest>) -> Answer<StatusView> {
    check_words(&request.by, "")?;
    hold_fleet(api, FleetEvent::Unhalted { by: request.by }).await
}

async fn hold_fleet(api: Api, event: FleetEvent) -> Answer<StatusView> {
    let held = api.engine.ask(|reply| Request::Decide { event, reply }).await.ok_or_else(ending)?;
    held.map_err(Refusal)?;
    Ok(Json(status_of(&api)))
}

async fn past(State(api): State<Api>, UrlPath(server): UrlPath<String>) -> Answer<Vec<PastRow>> {
    let server = server.parse().map_err(|error: fleetwright_deploy::ids::InvalidId| not_found(error.to_string()))?;
    Ok(Json(api.engine.read(|view| PastRow::all(&view.fleet, &server))))
}
