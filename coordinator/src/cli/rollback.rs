//! `fleetwright rollback`

use anyhow::Result;
use fleetwright_deploy::ids::DeploymentId;

use super::{Context, deploy, follow};
use crate::api::Started;
use crate::api::views::{DeploymentView, StatusView};

/// Undoes a deployment, running or ended, and stays until everything is put back.
///
/// Exits with 4 when everything is as it was before the deployment (rolled back is never 0), with 5 when a
/// person is needed.
#[derive(clap::Args)]
pub(crate) struct RollbackArguments {
    /// The deployment.
    id: DeploymentId,
}

pub(super) async fn rollback(arguments: &RollbackArguments, context: &Context) -> Result<u8> {
    let (client, ui, id) = (context.client()?, &context.ui, &arguments.id);
    let StatusView { last_event, .. } = client.get("/v1/status").await?;
    let before: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
    let request = deploy::sign_rollback(&before, &client, context).await?;
    let _: Started = client.post(&format!("/v1/deployments/{id}/rollback"), &request).await?;
    let view = follow::follow(&client, id, last_event, ui).await?;
    if ui.is_json() {
        ui.data(&view, String::new);
    }
    Ok(follow::conclude(&view, ui))
}
