//! `fleetwright status`

use anyhow::Result;

use super::{Context, exit, tables};
use crate::api::views::{InstanceRow, StatusView};

/// Shows the fleet at a glance: hosts, servers, running deployments, and what needs a person.
#[derive(clap::Args)]
pub(crate) struct StatusArguments {}

pub(super) async fn status(_: &StatusArguments, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let status: StatusView = client.get("/v1/status").await?;
    let rows: Vec<InstanceRow> = client.get("/v1/servers").await?;
    let value = serde_json::json!({ "status": status, "servers": rows });
    context.ui.data(&value, || {
        let mut text = format!(
            "fleet {}, generation {}; agents reach the coordinator at {}\n{} of {} hosts connected, {} of {} instances available",
            status.fleet, status.generation, status.listen,
            status.hosts_connected, status.hosts, status.instances_available, status.instances,
        );
        if let Some(halt) = &status.halted {
            let why = if halt.reason.is_empty() { String::new() } else { format!(": {}", halt.reason) };
            text.push_str(&format!("\nHALTED since {} by {}{why}; `fleetwright unhalt` lets everything go on", halt.since, halt.by));
        }
        for deployment in &status.running_deployments {
            text.push_str(&format!("\ndeployment {} of {} is in {}; `fleetwright explain {0}` says what it waits for", deployment.id, deployment.manifest, deployment.phase));
        }
        for (host, over) in &status.over_budget {
            text.push_str(&format!("\n{}", tables::over_budget(host, over)));
        }
        text.push_str(&format!("\n\n{}", tables::servers(&rows)));
        if !status.host_troubles.is_empty() {
            text.push_str(&format!("\n\nhosts to look at:\n{}", tables::host_troubles(&status.host_troubles)));
        }
        let troubles = tables::troubles(&rows);
        if !troubles.is_empty() {
            text.push_str(&format!("\n\nneeds a person:\n{troubles}"));
        }
        text
    });
    let stuck = rows.iter().any(|row| row.trouble.is_some());
    Ok(if stuck { exit::STUCK } else { exit::DONE })
}
