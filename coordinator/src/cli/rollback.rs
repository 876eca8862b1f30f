//! `fleetwright rollback`

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId, ServerName};
use fleetwright_deploy::plan::RollbackStrategy;
use fleetwright_deploy::planning;

use super::{Context, control, deploy, exit, follow, plan};
use crate::api::deployments::Started;
use crate::api::views::{DeploymentView, PastRow, PlanningView, StatusView};
use crate::client::Client;
use crate::clock;

/// Undoes a deployment, or its part in one server, and stays until everything is put back.
///
/// Exits with 4 when everything meant is as it was before the deployment (rolled back is never 0), with 5 when a
/// person is needed, with 6 when other instances of the deployment stay as they are. With --to, a deployment of an
/// older release is planned and started instead, with the exit codes of a deployment.
#[derive(clap::Args)]
pub(crate) struct RollbackArguments {
    /// The deployment, or a server: then the last deployment that changed it.
    #[arg(value_name = "DEPLOYMENT|SERVER")]
    what: String,
    /// Take the server to what this deployment planned for it, or to the release with this id.
    #[arg(long, value_name = "DEPLOYMENT|RELEASE", conflicts_with_all = ["strategy", "host"])]
    to: Option<String>,
    /// In which order and manner; as the plan says if it is not given.
    #[arg(long, value_parser = control::strategy)]
    strategy: Option<RollbackStrategy>,
    /// Only the instances on this host; may be given several times.
    #[arg(long, value_name = "HOST")]
    host: Vec<HostName>,
}

pub(super) async fn rollback(arguments: &RollbackArguments, context: &Context) -> Result<u8> {
    let client = context.client()?;
    if let Some(to) = &arguments.to {
        return go_back(arguments.what.parse()?, to, &client, context).await;
    }
    let (id, of_server) = target(&arguments.what, &client).await?;
    let view: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
    let only = meant(&view, of_server, &arguments.host)?;
    undo(&id, arguments.strategy, only, &client, context).await
}

/// Undoes what a deployment did to some instances, or to all it touched when none are named, and stays until that is
/// done.
pub(super) async fn undo(
    id: &DeploymentId,
    strategy: Option<RollbackStrategy>,
    only: BTreeSet<InstanceId>,
    client: &Client,
    context: &Context,
) -> Result<u8> {
    let StatusView { last_event, .. } = client.get("/v1/status").await?;
    let view: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
    let request = deploy::sign_rollback(&view, strategy, only, client, context).await?;
    let _: Started = client.post(&format!("/v1/deployments/{id}/rollback"), &request).await?;
    let view = follow::follow(client, id, last_event, &context.ui).await?;
    if context.ui.is_json() {
        context.ui.data(&view, String::new);
    }
    Ok(follow::conclude(&view, &context.ui))
}

/// The deployment that is meant, and, where a server was named, its instances.
async fn target(what: &str, client: &Client) -> Result<(DeploymentId, Option<BTreeSet<InstanceId>>)> {
    let id: Option<DeploymentId> = what.parse().ok();
    if let Some(id) = id {
        match client.get::<DeploymentView>(&format!("/v1/deployments/{id}")).await {
            Ok(_) => return Ok((id, None)),
            // It may be the name of a server.
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let past: Vec<PastRow> = match what.parse::<ServerName>() {
        Ok(server) => client.get(&format!("/v1/servers/{server}/past")).await?,
        Err(_) => Vec::new(),
    };
    match past.into_iter().find(|row| !row.changed.is_empty()) {
        Some(row) => Ok((row.deployment, Some(row.changed.into_iter().collect()))),
        None => bail!(
            "there is no deployment {what}, nor one that changed a server of this name\n  hint: `fleetwright deploy list` shows the newest, `--before ID` older ones"
        ),
    }
}

fn is_unknown(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.kind == FailureKind::ConfigurationError)
}

/// The instances that are meant; none for all of them.
fn meant(
    view: &DeploymentView,
    of_server: Option<BTreeSet<InstanceId>>,
    hosts: &[HostName],
) -> Result<BTreeSet<InstanceId>> {
    if of_server.is_none() && hosts.is_empty() {
        return Ok(BTreeSet::new());
    }
    let touched = |state: &str| !matches!(state, "unchanged" | "untouched" | "restored" | "left_out");
    let all = view.steps.iter().filter(|step| touched(&step.state)).map(|step| step.instance.clone());
    let mut instances = of_server.unwrap_or_else(|| all.collect());
    instances.retain(|id| hosts.is_empty() || hosts.contains(&id.host));
    if instances.is_empty() {
        let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
        bail!("deployment {} has nothing to put back on {}", view.summary.id, hosts.join(", "));
    }
    Ok(instances)
}

/// Plans and starts a deployment that takes a server to what an older one planned for it.
async fn go_back(server: ServerName, to: &str, client: &Client, context: &Context) -> Result<u8> {
    let past: Vec<PastRow> = client.get(&format!("/v1/servers/{server}/past")).await?;
    let named = |row: &&PastRow| {
        row.deployment.as_str() == to || row.releases.iter().any(|release| release.as_str().starts_with(to))
    };
    let Some(row) = past.iter().find(named) else {
        let known: Vec<String> = past.iter().map(|row| format!("{} ({})", row.deployment, row.started_at)).collect();
        bail!(
            "no deployment of {server} is, or planned, `{to}`\n  hint: these deployed it: {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        );
    };
    let planned = deploy::plan_of(&row.deployment, client).await?;
    let view: PlanningView = client.get("/v1/planning").await?;
    let mut circumstances = view.circumstances(clock::now());
    let wanted = planning::secrets_of(planned.steps().filter(|step| step.instance.server == server));
    plan::look_up_digests(&wanted, &mut circumstances, client).await?;
    let checked = planning::go_back(&planned, &server, &circumstances);
    plan::show(&checked, &circumstances, &context.ui);
    if checked.plan().summary().changes() == 0 {
        context.ui.say("nothing changes: everything runs as planned already");
        return Ok(exit::DONE);
    }
    let (id, after) = deploy::launch(checked, true, client, context).await?;
    context.ui.say(&format!("started deployment {id}"));
    let view = follow::follow(client, &id, after, &context.ui).await?;
    if context.ui.is_json() {
        context.ui.data(&view, String::new);
    }
    Ok(follow::conclude(&view, &context.ui))
}
