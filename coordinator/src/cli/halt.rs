//! `fleetwright halt` and `fleetwright unhalt`

use anyhow::Result;

use super::deploy::who;
use super::{Context, exit};
use crate::api::deployments::ControlRequest;
use crate::api::views::StatusView;

/// Stops everything where it is: no deployment starts anything new, and no new one may start.
///
/// What hosts are in the midst of settles: it is confirmed, or puts itself back. Servers keep running.
#[derive(clap::Args)]
pub(crate) struct HaltArguments {
    /// Why, for those who read it later.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Lets everything go on after a halt.
#[derive(clap::Args)]
pub(crate) struct UnhaltArguments {}

pub(super) async fn halt(arguments: HaltArguments, context: &Context) -> Result<u8> {
    let request = ControlRequest { by: who(), reason: arguments.reason, instances: Default::default() };
    let status: StatusView = context.client()?.post("/v1/halt", &request).await?;
    context.ui.data(&status, || {
        let held = status.running_deployments.len();
        format!("halted: {held} running deployments are held, and no new one may start\n  `fleetwright unhalt` lets everything go on")
    });
    Ok(exit::DONE)
}

pub(super) async fn unhalt(_: &UnhaltArguments, context: &Context) -> Result<u8> {
    let request = ControlRequest { by: who(), reason: String::new(), instances: Default::default() };
    let status: StatusView = context.client()?.post("/v1/unhalt", &request).await?;
    context.ui.data(&status, || format!("{} running deployments go on", status.running_deployments.len()));
    Ok(exit::DONE)
}
