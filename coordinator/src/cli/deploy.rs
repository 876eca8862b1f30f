//! `fleetwright deploy`

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::deployment::{DeploymentSummary, Options};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{DeploymentId, EnvironmentName, InstanceId};
use fleetwright_deploy::plan::{Plan, RollbackStrategy};
use fleetwright_deploy::planning::{CheckedPlan, Circumstances, SAVED_PLAN_BYTES_MAX, SavedPlan, moved_on};

use super::control::{self, ReasonArguments};
use super::output::{Color, Ui, table};
use super::plan::OverrideArguments;
use super::{Context, artifacts, exit, follow, plan, tables};
use crate::api::deployments::{Decision, LISTED, LISTED_MAX, RollbackRequest, StartRequest, Started};
use crate::api::views::{DeploymentView, PlanningView, StatusView};
use crate::client::Client;
use crate::local_artifact::{self, LocalArtifact};
use crate::{clock, operator_key, project};

/// Starts deployments and shows them.
#[derive(Subcommand)]
pub(crate) enum DeployCommand {
    /// Plans, signs and starts a deployment.
    Start(StartArguments),
    /// Lists the newest deployments, the newest last.
    List {
        /// Only those that were started before this one.
        #[arg(long, value_name = "DEPLOYMENT")]
        before: Option<DeploymentId>,
        /// How many, from 1 to 1000.
        #[arg(long, value_name = "NUMBER", default_value_t = LISTED, value_parser = listed)]
        limit: usize,
    },
    /// Shows one deployment: its steps, its failures, what it waits for.
    Show {
        /// The deployment.
        id: DeploymentId,
    },
    /// Starts nothing new of a deployment until it is resumed. What is in motion settles; time does not count.
    Pause(ReasonArguments),
    /// Lets a paused deployment go on.
    Resume(control::DecisionArguments),
    /// Ends a deployment where it is: what is in motion settles, and what is confirmed stays.
    Cancel(control::DecisionArguments),
    /// Lets a deployment pass the point at which it waits to be approved.
    Approve(control::DecisionArguments),
    /// Does not let it pass: it fails, and is undone.
    Reject(ReasonArguments),
    /// Tries failed instances again, where a deployment waits for a person's decision.
    Retry(control::InstancesArguments),
    /// Puts failed instances back and goes on without them, where a deployment waits for a person's decision.
    Skip(control::InstancesArguments),
    /// Says that stuck instances were put in order by hand: they run what they ran before.
    Resolve(control::InstancesArguments),
}

#[derive(clap::Args)]
pub(crate) struct StartArguments {
    /// The manifest, or a plan that `plan --out` has saved.
    #[arg(value_name = "MANIFEST|PLAN")]
    manifest: PathBuf,
    /// The environment, if not the one that the manifest names.
    #[arg(short, long)]
    environment: Option<EnvironmentName>,
    /// Stay until it has ended, and exit with how it did.
    #[arg(long)]
    watch: bool,
    /// Where another deployment works on the same instances, wait for its end, plan again, and start then.
    #[arg(long)]
    wait: bool,
    /// In which order and manner to put back, should it fail; as the manifest says if it is not given.
    #[arg(long, value_name = "STRATEGY", value_parser = control::strategy)]
    rollback_strategy: Option<RollbackStrategy>,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
    /// Leave what fails as it is, for a person to look at.
    #[arg(long)]
    no_rollback: bool,
    #[command(flatten)]
    overrides: OverrideArguments,
}

pub(super) async fn deploy(command: DeployCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    match command {
        DeployCommand::Start(arguments) => start(&arguments, &client, context).await,
        DeployCommand::List { before, limit } => {
            let page = before.as_ref().map(|id| format!("&before={id}")).unwrap_or_default();
            let all: Vec<DeploymentSummary> = client.get(&format!("/v1/deployments?limit={limit}{page}")).await?;
            let none = before
                .map_or_else(|| "there is no deployment yet".to_owned(), |id| format!("there is none before {id}"));
            context.ui.data(&all, || if all.is_empty() { none } else { list(&all) });
            if let Some(oldest) = all.first().filter(|_| all.len() == limit) {
                let (id, limit) =
                    (&oldest.id, if limit == LISTED { String::new() } else { format!(" --limit {limit}") });
                context.ui.say(&format!("if there are older ones: fleetwright deploy list --before {id}{limit}"));
            }
            Ok(exit::DONE)
        }
        DeployCommand::Show { id } => {
            // The plan is for programs: people see its steps.
            let view: DeploymentView =
                client.get(&format!("/v1/deployments/{id}?plan={}", context.ui.is_json())).await?;
            context.ui.data(&view, || show(&view));
            Ok(exit::DONE)
        }
        DeployCommand::Pause(of) => control::decide(&of.id, Decision::Pause, of.reason, &[], context).await,
        DeployCommand::Resume(of) => control::decide(&of.id, Decision::Resume, String::new(), &[], context).await,
        DeployCommand::Cancel(of) => control::decide(&of.id, Decision::Cancel, String::new(), &[], context).await,
        DeployCommand::Approve(of) => control::decide(&of.id, Decision::Approve, String::new(), &[], context).await,
        DeployCommand::Reject(of) => control::decide(&of.id, Decision::Reject, of.reason, &[], context).await,
        DeployCommand::Retry(of) => {
            control::decide(&of.id, Decision::Retry, String::new(), &of.instances, context).await
        }
        DeployCommand::Skip(of) => control::decide(&of.id, Decision::Skip, String::new(), &of.instances, context).await,
        DeployCommand::Resolve(of) => {
            control::decide(&of.id, Decision::Resolve, String::new(), &of.instances, context).await
        }
    }
}

async fn start(arguments: &StartArguments, client: &Client, context: &Context) -> Result<u8> {
    let ui = &context.ui;
    if let Some(saved) = saved_plan(&arguments.manifest)? {
        return start_saved(saved, arguments, client, context).await;
    }
    let mut project = project::load(&arguments.manifest, arguments.environment.as_ref())?;
    project.overrides = arguments.overrides.reasons()?;
    if let Some(strategy) = arguments.rollback_strategy {
        project.configuration.manifest.1.rollback.strategy = Some(strategy);
    }
    let (checked, circumstances) = loop {
        let (checked, circumstances) = plan::make(&project, Some(client)).await?;
        match owner(&checked, client).await? {
            Some(owner) if arguments.wait && !arguments.dry_run => {
                ui.say(&format!("deployment {} works on the same instances; waiting for its end", owner.id));
                wait_for(&owner.id, client).await?;
            }
            Some(_) | None => break (checked, circumstances),
        }
    };
    execute(checked, &circumstances, &project.artifacts, arguments, client, context).await
}

/// Executes a plan that was made before, if it still is what the fleet needs.
async fn start_saved(saved: SavedPlan, arguments: &StartArguments, client: &Client, context: &Context) -> Result<u8> {
    let file = arguments.manifest.display();
    let of_planning = arguments.environment.is_some() || arguments.rollback_strategy.is_some() || arguments.wait;
    if of_planning || !arguments.overrides.is_empty() {
        bail!(
            "{file} is a plan already\n  hint: give `-e`, `--rollback-strategy`, `--override-rule` and `--wait` where it is made, or start the manifest"
        );
    }
    let view: PlanningView = client.get("/v1/planning").await?;
    let circumstances = view.circumstances(clock::now());
    let moved = moved_on(&saved.plan, &circumstances);
    if !moved.is_empty() {
        let message = format!("the fleet has changed since plan {} was made at {}", saved.id.short(), saved.made_at);
        let failure = Failure::new(FailureKind::ConfigurationError, "pre_validation", message);
        return Err(failure.output(moved.iter().map(String::as_str)).hint("plan again: nothing was started").into());
    }
    let mut local = Vec::new();
    for artifact in &saved.artifacts {
        let read = LocalArtifact::read(Path::new(&artifact.path));
        let known = circumstances.artifacts.as_ref().is_some_and(|known| known.contains(&artifact.sha256));
        match read {
            Ok(read) if read.sha256 == artifact.sha256 => local.push(read),
            _ if known => {}
            Ok(_) => bail!("{} has changed since the plan was made\n  hint: plan again", artifact.path),
            Err(error) => bail!("{} cannot be read: {error}\n  hint: plan again where the file is", artifact.path),
        }
    }
    execute(saved.into_checked(), &circumstances, &local, arguments, client, context).await
}

/// The plan in a file, if it is one: manifests are YAML, and plans begin with a brace.
fn saved_plan(file: &Path) -> Result<Option<SavedPlan>> {
    let read = |file: &Path| -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut content = std::fs::File::open(file)?.take(SAVED_PLAN_BYTES_MAX as u64 + 1);
        let mut first = [0];
        if content.read(&mut first)? == 0 || first != *b"{" {
            return Ok(None);
        }
        bytes.push(b'{');
        content.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    };
    // What cannot be read is told by whoever reads it as a manifest.
    let Ok(Some(bytes)) = read(file) else { return Ok(None) };
    let saved = SavedPlan::parse(&bytes).map_err(|error| {
        let message = format!("{}: {error}", file.display());
        Failure::new(FailureKind::ConfigurationError, "plan", message)
            .hint("make it anew with `fleetwright plan --out`")
    })?;
    Ok(Some(saved))
}

/// Shows a plan, signs it, starts it, and watches it where that is asked for.
async fn execute(
    checked: CheckedPlan,
    circumstances: &Circumstances,
    local: &[LocalArtifact],
    arguments: &StartArguments,
    client: &Client,
    context: &Context,
) -> Result<u8> {
    let ui = &context.ui;
    if !ui.is_json() || arguments.dry_run {
        plan::show(&checked, circumstances, ui);
    }
    if checked.plan().summary().changes() == 0 {
        ui.say("nothing changes: everything runs as planned already");
        return Ok(exit::DONE);
    }
    if arguments.dry_run {
        ui.say("dry run: nothing was started");
        return Ok(exit::DONE);
    }
    push(local, client, ui).await?;
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

/// Sends the files that definitions name, where the coordinator lacks them.
pub(super) async fn push(local: &[LocalArtifact], client: &Client, ui: &Ui) -> Result<()> {
    for artifact in local_artifact::push_missing(local, client).await? {
        let (size, new) = (artifacts::size(artifact.bytes), artifacts::size(artifact.new_bytes));
        ui.say(&format!("sent {} to the coordinator: {size}, {new} of it new", artifact.name));
    }
    Ok(())
}

/// The deployment that works on an instance that a plan changes, if one does.
async fn owner(checked: &CheckedPlan, client: &Client) -> Result<Option<DeploymentSummary>> {
    let StatusView { running_deployments, .. } = client.get("/v1/status").await?;
    for summary in running_deployments {
        let view: DeploymentView = client.get(&format!("/v1/deployments/{}", summary.id)).await?;
        let held = |id: &InstanceId| view.steps.iter().any(|step| step.instance == *id && step.state != "unchanged");
        if checked.plan().changes().any(|(_, step)| held(&step.instance)) {
            return Ok(Some(summary));
        }
    }
    Ok(None)
}

/// Waits until a deployment has ended, however it does.
async fn wait_for(id: &DeploymentId, client: &Client) -> Result<()> {
    let StatusView { last_event, .. } = client.get("/v1/status").await?;
    let mut events = client.events(last_event, true).await?;
    loop {
        let view: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
        if view.summary.outcome.is_some() || events.next().await?.is_none() {
            return Ok(());
        }
    }
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
    operator_key::check_secrets(&plan)?;
    let intents = context.operator_key()?.sign(&fleet, &id, &plan, (Purpose::Deploy, generation), clock::now())?;
    let options = Options { rollback, started_by: who() };
    let Started { id } = client.post("/v1/deployments", &StartRequest { plan, options, intents }).await?;
    Ok((id, last_event))
}

/// The plan of a deployment. It is the one that the deployment is named after, whatever the coordinator says.
pub(super) async fn plan_of(id: &DeploymentId, client: &Client) -> Result<Arc<Plan>> {
    let view: DeploymentView = client.get(&format!("/v1/deployments/{id}?plan=true")).await?;
    let plan = view.content.context("the coordinator did not tell the plan\n  hint: is it of another version?")?;
    operator_key::check_told(id, &plan)?;
    Ok(plan)
}

/// The signer of an intent to undo a deployment; it has the generation after the present one.
pub(super) async fn sign_rollback(
    view: &DeploymentView,
    strategy: Option<RollbackStrategy>,
    only: BTreeSet<InstanceId>,
    client: &Client,
    context: &Context,
) -> Result<RollbackRequest> {
    let planning: PlanningView = client.get("/v1/planning").await?;
    let plan = plan_of(&view.summary.id, client).await?;
    let to = (&only, planning.generation.next());
    let key = context.operator_key()?;
    let intents = key.sign_rollback(&planning.fleet, &view.summary.id, &plan, to, clock::now())?;
    Ok(RollbackRequest { by: who(), strategy, only, intents })
}

/// Who is at the keyboard.
pub(super) fn who() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "operator".to_owned())
}

fn listed(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=LISTED_MAX).contains(number));
    number.ok_or_else(|| format!("it is a number from 1 to {LISTED_MAX}"))
}

fn list(all: &[DeploymentSummary]) -> String {
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
    for aside in &view.overrides {
        text.push_str(&format!("\n\nrule {} was set aside: {}", aside.rule, aside.reason));
        aside.broken.iter().for_each(|broken| text.push_str(&format!("\n  {broken}")));
    }
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
