//! `fleetwright monitor`

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::ids::DeploymentId;
use serde_json::json;

use super::{Context, deploy, exit, exit_code, follow, tables};
use crate::api::views::{DeploymentView, HostMetrics};
use crate::client::Client;

/// Shows how deployments go.
#[derive(Subcommand)]
pub(crate) enum MonitorCommand {
    /// Shows one deployment, its events and the metrics of its hosts.
    Show(ShowArguments),
}

#[derive(clap::Args)]
pub(crate) struct ShowArguments {
    /// The deployment.
    id: DeploymentId,
    /// Its events too.
    #[arg(long)]
    events: bool,
    /// The newest metrics of hosts and servers too.
    #[arg(long)]
    metrics: bool,
    /// Stay until it has ended, and exit with how it did.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn monitor(command: MonitorCommand, context: &Context) -> Result<u8> {
    let MonitorCommand::Show(arguments) = command;
    let client = context.client()?;
    let id = &arguments.id;
    let mut view: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
    if arguments.follow {
        let after = if arguments.events {
            0
        } else {
            client.get::<crate::api::views::StatusView>("/v1/status").await?.last_event
        };
        view = follow::follow(&client, id, after, &context.ui).await?;
    }
    let events = if arguments.events && !arguments.follow { events_of(&client, id).await? } else { Vec::new() };
    let metrics: Vec<HostMetrics> = if arguments.metrics { client.get("/v1/hosts/metrics").await? } else { Vec::new() };
    let lines: Vec<&String> = events.iter().map(|(line, _)| line).collect();
    let value = json!({
        "deployment": view,
        "events": events.iter().map(|(_, value)| value).collect::<Vec<_>>(),
        "metrics": metrics,
    });
    context.ui.data(&value, || {
        let mut parts = vec![deploy::show(&view)];
        if !lines.is_empty() {
            let lines: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
            parts.push(format!("{}\n{}", deploy::heading(context, "events"), lines.join("\n")));
        }
        if arguments.metrics {
            parts.push(format!("{}\n{}", deploy::heading(context, "metrics"), tables::metrics(&metrics)));
        }
        parts.join("\n\n")
    });
    let outcome = view.summary.outcome.filter(|_| arguments.follow);
    Ok(outcome.map_or(exit::DONE, exit_code))
}

async fn events_of(client: &Client, id: &DeploymentId) -> Result<Vec<(String, serde_json::Value)>> {
    let mut events = client.events(0, false).await?;
    let mut found = Vec::new();
    while let Some(record) = events.next().await? {
        for note in record.notes.iter().filter(|note| note.deployment.as_ref() == Some(id)) {
            let value = json!({ "seq": record.seq, "at": record.at, "type": record.event_type, "note": note });
            found.push((follow::line(&record, note), value));
        }
    }
    Ok(found)
}
