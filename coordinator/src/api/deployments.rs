//! Deployments: those that are there, those in the archive, and what operators do with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, Path as UrlPath, State};
use fleetwright_deploy::deployment::{Deployment, DeploymentEvent, DeploymentSummary, Hold, HoldKind, Options};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{DeploymentId, Generation, HostName, InstanceId, InvalidId, ServerName};
use fleetwright_deploy::plan::{Plan, RollbackStrategy};
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::views::{DeploymentView, PastRow};
use super::{Answer, Api, Peer, Queried, Refusal, check_words, ending, not_found};
use crate::artifacts::missing;
use crate::clock;
use crate::engine::Request;

/// How many deployments are listed unless the request says otherwise.
pub(crate) const LISTED: usize = 100;
/// How many are listed at most.
pub(crate) const LISTED_MAX: usize = 1_000;

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

#[derive(Deserialize)]
pub(super) struct ListQuery {
    /// Only those that were started before this one.
    before: Option<DeploymentId>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
pub(super) struct ShowQuery {
    /// Whether the plan is wanted too.
    #[serde(default)]
    plan: bool,
}

/// The newest deployments, or those before one, the oldest of them first.
pub(super) async fn list(State(api): State<Api>, Queried(query): Queried<ListQuery>) -> Answer<Vec<DeploymentSummary>> {
    let limit = query.limit.unwrap_or(LISTED).clamp(1, LISTED_MAX);
    let before = match &query.before {
        Some(id) => id.generation().ok_or_else(|| no_deployment(id.as_str()))?,
        None => Generation(u64::MAX),
    };
    let live: Vec<(Generation, DeploymentSummary)> = api.engine.read(|view| {
        let older = view.fleet.deployments().rev().filter(|deployment| deployment.generation() < before);
        older.take(limit).map(|deployment| (deployment.generation(), DeploymentSummary::new(deployment))).collect()
    });
    let past = api.engine.read_journal(move |journal| journal.past(before, limit)).await.map_err(Refusal)?;
    // One that is just going to the archive may be in both.
    let all: BTreeMap<Generation, DeploymentSummary> = past.into_iter().chain(live).collect();
    let surplus = all.len().saturating_sub(limit);
    Ok(Json(all.into_values().skip(surplus).collect()))
}

pub(super) async fn show(
    State(api): State<Api>,
    UrlPath(id): UrlPath<String>,
    Queried(query): Queried<ShowQuery>,
) -> Answer<DeploymentView> {
    let missing = || no_deployment(&id);
    let wanted: DeploymentId = id.parse().map_err(|_| missing())?;
    let view = |deployment: &Deployment| {
        let view = DeploymentView::new(deployment);
        if query.plan { view.with_plan(deployment) } else { view }
    };
    if let Some(shown) = api.engine.read(|now| now.fleet.deployment(&wanted).map(view)) {
        return Ok(Json(shown));
    }
    let past = archived(&api, &wanted).await?.ok_or_else(missing)?;
    Ok(Json(DeploymentView { moves: Vec::new(), ..view(&past) }))
}

async fn archived(api: &Api, id: &DeploymentId) -> Result<Option<Deployment>, Refusal> {
    let id = id.clone();
    api.engine.read_journal(move |journal| journal.past_deployment(&id)).await.map_err(Refusal)
}

/// Something can be done only with a deployment that is not history.
async fn check_known(api: &Api, id: &DeploymentId) -> Result<(), Refusal> {
    if api.engine.read(|view| view.fleet.deployment(id).is_some()) {
        return Ok(());
    }
    if archived(api, id).await?.is_none() {
        return Err(no_deployment(id.as_str()));
    }
    let message = format!("deployment {id} is history: it can no longer be undone or decided about");
    let failure = Failure::new(FailureKind::ConfigurationError, "request", message);
    let hint = format!("`fleetwright rollback SERVER --to {id}` takes a server to what it had planned");
    Err(Refusal(failure.hint(hint)))
}

pub(super) async fn start(
    State(api): State<Api>,
    ConnectInfo(Peer(actor)): ConnectInfo<Peer>,
    Json(request): Json<StartRequest>,
) -> Answer<Started> {
    let StartRequest { plan, options, intents } = request;
    check_words(&options.started_by, "")?;
    let to_stage = plan.changes().filter_map(|(_, step)| step.release.as_ref()?.package.artifact());
    if let Some(lacking) = to_stage.into_iter().find(|sha256| !api.artifacts.has(sha256)) {
        return Err(Refusal(missing(lacking)));
    }
    let plan = Arc::new(plan);
    let started =
        api.engine.ask_as(actor, |reply| Request::Start { plan, options, intents, reply }).await.ok_or_else(ending)?;
    started.map(|id| Json(Started { id })).map_err(Refusal)
}

pub(super) async fn roll_back(
    State(api): State<Api>,
    ConnectInfo(Peer(actor)): ConnectInfo<Peer>,
    UrlPath(id): UrlPath<String>,
    Json(request): Json<RollbackRequest>,
) -> Answer<Started> {
    let Ok(deployment) = id.parse::<DeploymentId>() else {
        return Err(no_deployment(&id));
    };
    let (id, RollbackRequest { by, strategy, only, intents }) = (deployment.clone(), request);
    check_words(&by, "")?;
    check_known(&api, &deployment).await?;
    let rolled =
        api.engine.ask_as(actor, |reply| Request::RollBack { deployment, by, strategy, only, intents, reply }).await;
    let rolled = rolled.ok_or_else(ending)?;
    rolled.map(|()| Json(Started { id })).map_err(Refusal)
}

pub(super) async fn control(
    State(api): State<Api>,
    ConnectInfo(Peer(actor)): ConnectInfo<Peer>,
    UrlPath((id, decision)): UrlPath<(String, Decision)>,
    Json(request): Json<ControlRequest>,
) -> Answer<DeploymentView> {
    let missing = || no_deployment(&id);
    check_words(&request.by, &request.reason)?;
    let deployment = id.parse::<DeploymentId>().map_err(|_| missing())?;
    check_known(&api, &deployment).await?;
    let event = Box::new(request.event(decision, clock::now()));
    let asked = deployment.clone();
    let decided = api.engine.ask_as(actor, |reply| Request::Control { deployment: asked, event, reply }).await;
    decided.ok_or_else(ending)?.map_err(Refusal)?;
    let decided = api.engine.read(|view| view.fleet.deployment(&deployment).map(DeploymentView::new));
    decided.map(Json).ok_or_else(missing)
}

pub(super) async fn past(State(api): State<Api>, UrlPath(server): UrlPath<String>) -> Answer<Vec<PastRow>> {
    let server: ServerName = server.parse().map_err(|error: InvalidId| not_found(error.to_string()))?;
    let live = api.engine.read(|view| PastRow::all(&view.fleet, &server));
    let archived = api.engine.read_journal(move |journal| journal.past_of(&server)).await.map_err(Refusal)?;
    let archived = archived.into_iter().map(|(at, past)| (at, PastRow::from(past)));
    // One that is just going to the archive may be in both.
    let all: BTreeMap<Generation, PastRow> = archived.chain(live).collect();
    Ok(Json(all.into_values().rev().collect()))
}

fn no_deployment(id: &str) -> Refusal {
    let failure = Failure::new(FailureKind::ConfigurationError, "request", format!("there is no deployment {id}"));
    Refusal(failure.hint("`fleetwright deploy list` shows the newest, `--before ID` older ones"))
}
