//! `fleetwright deploy`

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::deployment::Options;
use fleetwright_deploy::ids::{DeploymentId, EnvironmentName};
use fleetwright_deploy::planning::CheckedPlan;

use super::output::{Color, table};
use super::{Context, exit, follow, plan, tables};
use crate::api::views::{DeploymentSummary, DeploymentView, PlanningView, StatusView};
use crate::api::{StartRequest, Started};
use crate::client::Client;
use crate::commands::sign_intents;
use crate::state_dir::StateDir;
use crate::{clock, project};

/// Starts deployments and shows them.
#[derive(Subcommand)]
pub(crate) enum DeployCommand {
    /// Plans, signs and starts a deployment.
    Start(StartArguments),
    /// Lists all deployments, the newest last.
    List,
    /// Shows one deployment: its steps, its failures, what it waits for.
    Show {
        /// The deployment.
        id: DeploymentId,
    },
}

#[derive(clap::Args)]
pub(crate) struct StartArguments {
    /// The manifest.
    manifest: PathBuf,
    /// The environment, if not the one that the manifest names.
    #[arg(short, long)]
    environment: Option<EnvironmentName>,
    /// Stay until it has ended, and exit with how it did.
    #[arg(long)]
    watch: bool,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
    /// Leave what fails as it is, for a person to look at.
    #[arg(long)]
    no_rollback: bool,
}

pub(super) async fn deploy(command: DeployCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    match command {
        DeployCommand::Start(arguments) => start(&arguments, &client, context).await,
        DeployCommand::List => {
            let all: Vec<DeploymentSummary> = client.get("/v1/deployments").await?;
            context.ui.data(&all, || list(&all));
            Ok(exit::DONE)
        }
        DeployCommand::Show { id } => {
            let view: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
            context.ui.data(&view, || show(&view));
            Ok(exit::DONE)
        }
    }
}

async fn start(arguments: &StartArguments, client: &Client, context: &Context) -> Result<u8> {
    let ui = &context.ui;
    let configuration = project::load(&arguments.manifest, arguments.environment.as_ref())?;
    let (checked, circumstances) = plan::make(&configuration, Some(client)).await?;
    if !ui.is_json() || arguments.dry_run {
        plan::show(&checked, &circumstances, ui);
    }
    if checked.plan().summary().changes() == 0 {
        ui.say("nothing changes: everything runs as planned already");
        return Ok(exit::DONE);
    }
    if arguments.dry_run {
        ui.say("dry run: nothing was started");
        return Ok(exit::DONE);
    }
    let (id, after) = launch(checked, !arguments.no_rollback, client, context).await?;
    if !arguments.watch {
        ui.data(&Started { id: id.clone() }, || {
            format!("started deployment {id}\n  `fleetwright monitor show {id} --follow` watches it")
        });
        return Ok(exit::DONE);
    }
    ui.say(&format!("started deployment {id}"));
    let view = follow::follow(client, &id, after, ui).await?;
    if ui.is_json() {
        ui.data(&view, String::new);
    }
    Ok(follow::conclude(&view, ui))
}

/// Signs a plan and starts it; gives its id and the number of the last event before it.
pub(super) async fn launch(
    checked: CheckedPlan,
    rollback: bool,
    client: &Client,
    context: &Context,
) -> Result<(DeploymentId, u64)> {
    let StatusView { fleet, last_event, .. } = client.get("/v1/status").await?;
    let rollback = rollback && checked.plan().rollback.enabled;
    let plan = checked.into_plan();
    let generation = plan.parent.next();
    let id = DeploymentId::new(generation, &plan.id());
    let signer = operator(context)?.operator_signer()?;
    let intents = sign_intents(&fleet, &id, &plan, generation, &signer, clock::now())?;
    let options = Options { rollback, started_by: who() };
    let Started { id } = client.post("/v1/deployments", &StartRequest { plan, options, intents }).await?;
    Ok((id, last_event))
}

/// The state folder, which holds the operator's key.
pub(super) fn operator(context: &Context) -> Result<StateDir> {
    let state_dir = context.state_dir()?.filter(StateDir::exists);
    state_dir.ok_or_else(|| anyhow::anyhow!("the operator's key is not here\n  hint: name the state folder with --state-dir: intents are signed with its operator.key"))
}

/// The signer of an intent to undo a deployment; it has the generation after the present one.
pub(super) async fn sign_rollback(
    view: &DeploymentView,
    client: &Client,
    context: &Context,
) -> Result<crate::api::RollbackRequest> {
    let planning: PlanningView = client.get("/v1/planning").await?;
    let signer = operator(context)?.operator_signer()?;
    let generation = planning.generation.next();
    let intents = sign_intents(&planning.fleet, &view.summary.id, &view.content, generation, &signer, clock::now())?;
    Ok(crate::api::RollbackRequest { by: who(), intents })
}

fn who() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "operator".to_owned())
}

fn list(all: &[DeploymentSummary]) -> String {
    if all.is_empty() {
        return "there is no deployment yet".to_owned();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|deployment| {
            let state = deployment
                .outcome
                .map_or_else(|| deployment.phase.clone(), |outcome| <&'static str>::from(outcome).to_owned());
            vec![
                deployment.id.to_string(),
                deployment.manifest.to_string(),
                deployment.environment.to_string(),
                state,
                deployment.started_at.to_string(),
                deployment.started_by.clone(),
                format!("+{} ~{} -{}", deployment.changes.create, deployment.changes.update, deployment.changes.remove),
            ]
        })
        .collect();
    table(&["DEPLOYMENT", "MANIFEST", "ENVIRONMENT", "STATE", "STARTED", "BY", "CHANGES"], &rows)
}

/// A deployment for people.
pub(super) fn show(view: &DeploymentView) -> String {
    let summary = &view.summary;
    let state =
        summary.outcome.map_or_else(|| summary.phase.clone(), |outcome| <&'static str>::from(outcome).to_owned());
    let mut text = format!(
        "deployment {} of {} for {}: {state}\nstarted {} by {}\n\n{}",
        summary.id,
        summary.manifest,
        summary.environment,
        summary.started_at,
        summary.started_by,
        tables::steps(view)
    );
    let failures = tables::failures(&view.failures);
    if !failures.is_empty() {
        text.push_str(&format!("\n\nfailures:\n{failures}"));
    }
    text
}

/// The heading of a result.
pub(super) fn heading(context: &Context, text: &str) -> String {
    context.ui.paint(Color::Bold, text)
}
