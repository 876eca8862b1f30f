//! What is asked of an agent and changes nothing: output, checks, snapshots.

use axum::Json;
use axum::extract::{Path as UrlPath, State};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::CheckRun;
use fleetwright_deploy::ids::{HostName, InstanceId, InvalidId, SnapshotId};
use fleetwright_protocol::command::{CommandBody, CommandReply};
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use serde::{Deserialize, Serialize};

use super::{Answer, Api, LogsView, Queried, Refusal, ending, not_found};
use crate::engine::Request;

/// How many lines of output are given unless the request says otherwise.
const LOG_LINES: u32 = 100;

#[derive(Deserialize)]
pub(super) struct LogsQuery {
    lines: Option<u32>,
}

/// A request to run checks.
#[derive(Serialize, Deserialize)]
pub(crate) struct ChecksRequest {
    /// Only those with this tag, or of this group.
    pub(crate) tag: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct SnapshotQuery {
    #[serde(default)]
    compare: bool,
}

pub(super) async fn logs(
    State(api): State<Api>,
    UrlPath(instance): UrlPath<String>,
    Queried(query): Queried<LogsQuery>,
) -> Answer<LogsView> {
    let instance = parsed(&instance)?;
    let body = CommandBody::Logs { server: instance.server.clone(), lines: query.lines.unwrap_or(LOG_LINES) };
    match ask(api, &instance, body).await? {
        CommandReply::Logs(lines) => Ok(Json(LogsView { instance, lines })),
        _ => Err(unexpected(&instance.host)),
    }
}

pub(super) async fn checks(
    State(api): State<Api>,
    UrlPath(instance): UrlPath<String>,
    Json(request): Json<ChecksRequest>,
) -> Answer<Vec<CheckRun>> {
    let instance = parsed(&instance)?;
    let body = CommandBody::Check { server: instance.server.clone(), tag: request.tag };
    match ask(api, &instance, body).await? {
        CommandReply::Checks(runs) => Ok(Json(runs)),
        _ => Err(unexpected(&instance.host)),
    }
}

pub(super) async fn snapshots(
    State(api): State<Api>,
    UrlPath(instance): UrlPath<String>,
) -> Answer<Vec<SnapshotSummary>> {
    let instance = parsed(&instance)?;
    let body = CommandBody::Snapshots { server: instance.server.clone() };
    match ask(api, &instance, body).await? {
        CommandReply::Snapshots(snapshots) => Ok(Json(snapshots)),
        _ => Err(unexpected(&instance.host)),
    }
}

pub(super) async fn snapshot(
    State(api): State<Api>,
    UrlPath((instance, id)): UrlPath<(String, String)>,
    Queried(query): Queried<SnapshotQuery>,
) -> Answer<SnapshotView> {
    let instance = parsed(&instance)?;
    let id: SnapshotId = id.parse().map_err(|error: InvalidId| not_found(error.to_string()))?;
    let body = CommandBody::Snapshot { server: instance.server.clone(), id, compare: query.compare };
    match ask(api, &instance, body).await? {
        CommandReply::Snapshot(view) => Ok(Json(*view)),
        _ => Err(unexpected(&instance.host)),
    }
}

fn parsed(instance: &str) -> Result<InstanceId, Refusal> {
    instance.parse().map_err(|error: InvalidId| not_found(error.to_string()))
}

async fn ask(api: Api, instance: &InstanceId, body: CommandBody) -> Result<CommandReply, Refusal> {
    let host = instance.host.clone();
    let answer = api.engine.ask(|reply| Request::LookAt { host, body, reply }).await.ok_or_else(ending)?;
    answer.map_err(Refusal)
}

pub(super) fn unexpected(host: &HostName) -> Refusal {
    let message = format!("{host} answers something else than was asked for");
    Refusal(
        Failure::new(FailureKind::DeploymentError, "look", message)
            .hint("are its agent and the coordinator of the same version?"),
    )
}
