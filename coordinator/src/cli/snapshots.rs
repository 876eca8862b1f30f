//! `fleetwright snapshots`

use anyhow::{Result, bail};
use clap::Subcommand;
use fleetwright_deploy::ids::{DeploymentId, InstanceId, SnapshotId};
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use serde::Serialize;

use super::output::table;
use super::{Context, exit, instances, rollback};

/// Shows what hosts have kept of servers before deployments, and puts it back.
#[derive(Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// Lists the snapshots of a server.
    List {
        /// The server on all its hosts, or one instance.
        #[arg(value_name = "SERVER[@HOST]")]
        what: String,
    },
    /// Shows what is in a snapshot.
    Show {
        /// The instance.
        #[arg(value_name = "SERVER@HOST")]
        instance: InstanceId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Shows how what is on the host now differs from a snapshot. Exits with 1 when it does.
    Diff {
        /// The instance.
        #[arg(value_name = "SERVER@HOST")]
        instance: InstanceId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Puts a snapshot back, by undoing the deployment that it was taken for on this instance. Exits as `rollback`
    /// does: with 4 when it is back, or with 6 when it is and other instances of that deployment stay as they are.
    Restore {
        /// The instance.
        #[arg(value_name = "SERVER@HOST")]
        instance: InstanceId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
}

#[derive(Serialize)]
struct InstanceSnapshots {
    instance: InstanceId,
    snapshots: Vec<SnapshotSummary>,
}

pub(super) async fn snapshots(command: SnapshotsCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let view = async |instance: &InstanceId, snapshot: &SnapshotId, compare: bool| -> Result<SnapshotView> {
        client.get(&format!("/v1/servers/{instance}/snapshots/{snapshot}?compare={compare}")).await
    };
    match command {
        SnapshotsCommand::List { what } => {
            let mut all = Vec::new();
            for instance in instances::named(&what, &client).await? {
                let snapshots = client.get(&format!("/v1/servers/{instance}/snapshots")).await?;
                all.push(InstanceSnapshots { instance, snapshots });
            }
            context.ui.data(&all, || listed(&all));
        }
        SnapshotsCommand::Show { instance, snapshot } => {
            let view = view(&instance, &snapshot, false).await?;
            context.ui.data(&view, || shown(&view));
        }
        SnapshotsCommand::Diff { instance, snapshot } => {
            let view = view(&instance, &snapshot, true).await?;
            context.ui.data(&view.changes, || differences(&view));
            return Ok(if view.changes.is_empty() { exit::DONE } else { exit::FAILED });
        }
        SnapshotsCommand::Restore { instance, snapshot } => {
            let Some(deployment) = deployment_of(&snapshot) else {
                bail!(
                    "`{snapshot}` is no snapshot of a deployment\n  hint: `fleetwright snapshots list {instance}` shows them"
                );
            };
            return rollback::undo(&deployment, None, [instance].into(), &client, context).await;
        }
    }
    Ok(exit::DONE)
}

/// A snapshot is named after the deployment and the attempt that it was taken for.
fn deployment_of(snapshot: &SnapshotId) -> Option<DeploymentId> {
    snapshot.as_str().rsplit_once('-')?.0.parse().ok()
}

fn listed(all: &[InstanceSnapshots]) -> String {
    let rows = all.iter().flat_map(|of| of.snapshots.iter().map(|snapshot| cells(&of.instance, snapshot)));
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return "there are no snapshots: none was needed yet, or they were pruned".to_owned();
    }
    table(&["INSTANCE", "SNAPSHOT", "TAKEN", "RELEASE", "HOLDS", "FILES", "SIZE"], &rows)
}

fn cells(instance: &InstanceId, snapshot: &SnapshotSummary) -> Vec<String> {
    let mut holds = vec!["release".to_owned()];
    holds.extend(snapshot.data.then(|| "data".to_owned()));
    holds.extend(snapshot.paths.iter().cloned());
    holds.extend(snapshot.database.then(|| "database".to_owned()));
    vec![
        instance.to_string(),
        snapshot.id.to_string(),
        snapshot.taken_at.to_string(),
        snapshot.release.as_ref().map_or_else(|| "nothing".to_owned(), |release| release.short().to_owned()),
        holds.join(", "),
        snapshot.files.to_string(),
        format!("{} KiB", snapshot.bytes.div_ceil(1024)),
    ]
}

fn shown(view: &SnapshotView) -> String {
    let rows: Vec<Vec<String>> = view
        .entries
        .iter()
        .map(|entry| {
            let content = entry.content.clone().unwrap_or_default();
            let content = if entry.kind == "link" { content } else { content.chars().take(16).collect() };
            vec![entry.path.clone(), entry.kind.clone(), format!("{:04o}", entry.mode), content]
        })
        .collect();
    let cut = if view.cut { "\n… and more" } else { "" };
    format!("{}{cut}", table(&["PATH", "KIND", "MODE", "CONTENT"], &rows))
}

fn differences(view: &SnapshotView) -> String {
    if view.changes.is_empty() {
        return "everything is as the snapshot has it".to_owned();
    }
    let lines = view.changes.iter().map(|change| format!("{:10}  {}", change.change, change.path));
    let cut = view.cut.then(|| "… and more".to_owned());
    lines.chain(cut).collect::<Vec<_>>().join("\n")
}
