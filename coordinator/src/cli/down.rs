//! `fleetwright down`

use anyhow::{Result, bail};
use fleetwright_deploy::ids::InstanceId;

use super::{Context, exit};
use crate::api::views::InstanceRow;
use crate::local;
use crate::state_dir::StateDir;

/// Stops the fleet that `up` started on this machine: servers in the reverse order of their deployment, then
/// the coordinator. What is deployed stays deployed: the next `up` starts it again.
#[derive(clap::Args)]
pub(crate) struct DownArguments {}

pub(super) async fn down(_: &DownArguments, context: &Context) -> Result<u8> {
    let Some(state_dir) = context.state_dir()?.filter(StateDir::exists) else {
        bail!("there is no fleet here\n  hint: name its state folder with --state-dir");
    };
    stop_all(&state_dir, context).await?;
    Ok(exit::DONE)
}

pub(super) async fn stop_all(state_dir: &StateDir, context: &Context) -> Result<()> {
    let order = reverse_order(state_dir).await;
    context.ui.say("stopping servers and agents");
    let stopped = local::stop(state_dir, &order).await?;
    context.ui.say(&format!("stopped {stopped} servers"));
    Ok(())
}

/// The order that the coordinator knows; without one, any order has to do.
async fn reverse_order(state_dir: &StateDir) -> Vec<InstanceId> {
    let Ok(client) = crate::client::Client::new(&state_dir.socket()) else { return Vec::new() };
    let rows: Vec<InstanceRow> = client.get("/v1/servers").await.unwrap_or_default();
    rows.into_iter().rev().map(|row| InstanceId::new(row.server, row.host)).collect()
}
