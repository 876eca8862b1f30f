//! What an operator decides about a deployment: `deploy pause`, `resume`, `cancel`, `approve`, `reject`, `retry`,
//! `skip` and `resolve`.

use anyhow::Result;
use fleetwright_deploy::ids::{DeploymentId, InstanceId};
use fleetwright_deploy::plan::RollbackStrategy;

use super::deploy::who;
use super::{Context, exit, explain};
use crate::api::deployments::{ControlRequest, Decision};
use crate::api::views::DeploymentView;

#[derive(clap::Args)]
pub(crate) struct DecisionArguments {
    /// The deployment.
    pub(super) id: DeploymentId,
}

#[derive(clap::Args)]
pub(crate) struct ReasonArguments {
    /// The deployment.
    pub(super) id: DeploymentId,
    /// Why, for those who read it later.
    #[arg(long, default_value = "")]
    pub(super) reason: String,
}

#[derive(clap::Args)]
pub(crate) struct InstancesArguments {
    /// The deployment.
    pub(super) id: DeploymentId,
    /// Only this instance; may be given several times. Without it, every one that fits.
    #[arg(long = "instance", value_name = "SERVER@HOST")]
    pub(super) instances: Vec<InstanceId>,
}

/// Has a decision made, and says what the deployment waits for then.
pub(super) async fn decide(
    id: &DeploymentId,
    decision: Decision,
    reason: String,
    instances: &[InstanceId],
    context: &Context,
) -> Result<u8> {
    let request = ControlRequest { by: who(), reason, instances: instances.iter().cloned().collect() };
    let word = serde_json::to_value(decision)?;
    let path = format!("/v1/deployments/{id}/{}", word.as_str().unwrap_or_default());
    let view: DeploymentView = context.client()?.post(&path, &request).await?;
    context.ui.data(&view, || explain::words(&view));
    Ok(exit::DONE)
}

/// Reads the name of a rollback strategy.
pub(super) fn strategy(text: &str) -> Result<RollbackStrategy, String> {
    text.parse().map_err(|_| "it is one of immediate, batch, graceful, aggressive and manual".to_owned())
}
