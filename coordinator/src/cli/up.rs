//! `fleetwright up`

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::HealthStatus;
use fleetwright_deploy::ids::{EnvironmentName, FleetName};
use fleetwright_deploy::planning::{CheckedPlan, Circumstances, Configuration};
use tokio::time::{Instant, sleep};

use super::plan::OverrideArguments;
use super::{Context, deploy, down, exit, follow, plan, tables};
use crate::api::views::{InstanceRow, StatusView};
use crate::client::Client;
use crate::clock;
use crate::local::{LocalHost, agent_program, ensure_agents, ensure_coordinator, hosts};
use crate::operator_key::OperatorKey;
use crate::project::{self, Project};
use crate::state_dir::{STATE_DIR_NAME, StateDir};

/// How many agents a local fleet has at least, unless it is said.
const AGENTS: usize = 3;
/// How long the table waits for the first word about the health of every server.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a fleet on this machine, deploys a manifest to it, and keeps it running.
///
/// The fleet lives in `.fleetwright` of the present folder. Ctrl-C stops its servers and agents; with --detach
/// they stay until `fleetwright down`.
#[derive(clap::Args)]
pub(crate) struct UpArguments {
    /// The manifest.
    manifest: PathBuf,
    /// The environment, if not the one that the manifest names.
    #[arg(short, long)]
    environment: Option<EnvironmentName>,
    /// How many agents to run; without it, as many as the manifest lists hosts, and at least 3.
    #[arg(long, value_name = "N")]
    agents: Option<usize>,
    /// Return once everything is deployed, and leave it running.
    #[arg(long)]
    detach: bool,
    /// The loopback address of the first agent's servers; each further agent has the next one.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    first_address: Ipv4Addr,
    #[command(flatten)]
    overrides: OverrideArguments,
}

pub(super) async fn up(arguments: UpArguments, context: &Context) -> Result<u8> {
    let ui = &context.ui;
    let mut project = project::load(&arguments.manifest, arguments.environment.as_ref())?;
    project.overrides = arguments.overrides.reasons()?;
    let configuration = &project.configuration;
    fleetwright_deploy::planning::check(configuration, &project.overrides)?;
    check_prerequisites(configuration).await?;
    agent_program()?;
    let listed = &configuration.manifest.1.hosts;
    let count = arguments.agents.unwrap_or_else(|| listed.len().max(AGENTS));
    let hosts = hosts(listed, count, arguments.first_address)?;
    let state_dir = match context.state_dir()? {
        Some(found) => found,
        None => StateDir::new(Path::new(STATE_DIR_NAME))?,
    };
    if !state_dir.exists() {
        let name: FleetName = "local".parse()?;
        OperatorKey::export(&state_dir, true)?;
        state_dir.create(&name, "127.0.0.1:0", &state_dir.operator_public()?, &clock::system())?;
        ui.say(&format!("made a fleet in {}", state_dir.path().display()));
    }
    let mut ours = false;
    let outcome = tokio::select! {
        outcome = start_and_deploy(&project, &hosts, &state_dir, &mut ours, context) => outcome,
        _ = tokio::signal::ctrl_c() => {
            ui.say("interrupted: stopping everything; the next `up` goes on with the deployment");
            down::stop_all(&state_dir, context).await?;
            return Ok(exit::FAILED);
        }
    };
    match outcome {
        Ok(exit::DONE) if !arguments.detach => keep(&state_dir, context).await,
        Ok(exit::DONE) => {
            ui.say("running in the background; `fleetwright status` shows it, `fleetwright down` stops it");
            Ok(exit::DONE)
        }
        failed => {
            if ours && !arguments.detach {
                down::stop_all(&state_dir, context).await?;
            } else {
                ui.say("the fleet is still running; `fleetwright status` shows it, `fleetwright down` stops it");
            }
            failed
        }
    }
}

/// Starts what does not run yet, which is then ours to stop, and deploys the manifest.
async fn start_and_deploy(
    project: &Project,
    hosts: &[LocalHost],
    state_dir: &StateDir,
    ours: &mut bool,
    context: &Context,
) -> Result<u8> {
    let (client, started) = ensure_coordinator(state_dir).await?;
    *ours = started;
    *ours |= ensure_agents(state_dir, &client, hosts, &deploy::who()).await? > 0;
    let status: StatusView = client.get("/v1/status").await?;
    context.ui.say(&format!(
        "the coordinator listens at {} (UDP), {} hosts are connected",
        status.listen, status.hosts_connected
    ));
    deploy_manifest(project, &client, context).await
}

/// Plans, shows, deploys and shows again.
async fn deploy_manifest(project: &Project, client: &Client, context: &Context) -> Result<u8> {
    let ui = &context.ui;
    let (checked, circumstances) = settled_plan(project, client, context).await?;
    if !ui.is_json() {
        plan::show(&checked, &circumstances, ui);
    }
    if checked.plan().summary().changes() == 0 {
        ui.say("nothing changes: everything runs as planned already");
    } else {
        deploy::push(&project.artifacts, client, ui).await?;
        let (id, after) = deploy::launch(checked, true, client, context).await?;
        ui.say(&format!("\nstarted deployment {id}"));
        let view = follow::follow(client, &id, after, ui).await?;
        let code = follow::conclude(&view, ui);
        if code != exit::DONE {
            return Ok(code);
        }
    }
    let rows = servers_with_health(client).await?;
    ui.data(&rows, || format!("\n{}", tables::servers(&rows)));
    Ok(exit::DONE)
}

/// A plan against a fleet on which no deployment is under way: one that was interrupted ends first.
async fn settled_plan(project: &Project, client: &Client, context: &Context) -> Result<(CheckedPlan, Circumstances)> {
    let status: StatusView = client.get("/v1/status").await?;
    for running in &status.running_deployments {
        context.ui.say(&format!("deployment {} of {} was under way; it ends first", running.id, running.manifest));
        let view = follow::follow(client, &running.id, status.last_event, &context.ui).await?;
        follow::conclude(&view, &context.ui);
    }
    plan::make(project, Some(client)).await
}

/// All servers, once something is known about the health of each.
async fn servers_with_health(client: &Client) -> Result<Vec<InstanceRow>> {
    let deadline = Instant::now() + HEALTH_TIMEOUT;
    loop {
        let rows: Vec<InstanceRow> = client.get("/v1/servers").await?;
        let known = rows.iter().all(|row| row.health != HealthStatus::Unknown);
        if known || Instant::now() > deadline {
            return Ok(rows);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Tells what happens until Ctrl-C, and then stops everything.
async fn keep(state_dir: &StateDir, context: &Context) -> Result<u8> {
    let (ui, client) = (&context.ui, Client::new(&state_dir.socket())?);
    ui.say("\nrunning; Ctrl-C stops everything");
    let status: StatusView = client.get("/v1/status").await?;
    let mut events = client.events(status.last_event, true).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            record = events.next() => match record {
                Ok(Some(record)) => record.notes.iter().for_each(|note| ui.say(&follow::line(&record, note))),
                Ok(None) | Err(_) => {
                    ui.say("the coordinator has ended; servers and agents go on without it");
                    return Ok(exit::FAILED);
                }
            },
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
        }
    }
    down::stop_all(state_dir, context).await?;
    Ok(exit::DONE)
}

/// What this machine must have for the packages of the manifest, before anything is made.
async fn check_prerequisites(configuration: &Configuration) -> Result<()> {
    let needed = configuration.manifest.1.servers.iter().filter(|entry| !entry.optional);
    let packages: Vec<_> = needed
        .filter_map(|entry| configuration.servers.get(&entry.server.value)?.1.package.as_ref())
        .map(|package| &package.value)
        .collect();
    let mut missing = Vec::new();
    if packages.iter().any(|package| package.pypi.is_some())
        && !answers("python3", &["-c", "import venv, ensurepip"]).await
    {
        missing.push("Python 3 with venv, for packages from PyPI: `apt-get install python3 python3-venv`");
    }
    if packages.iter().any(|package| package.npm.is_some()) && !answers("npm", &["--version"]).await {
        missing.push("Node.js with npm, for packages from the npm registry: `apt-get install nodejs npm`");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let failure = Failure::new(
        FailureKind::DependencyError,
        "prerequisites",
        "this machine lacks what the manifest's packages need",
    );
    Err(failure.hint(missing.join("; ")).into())
}

async fn answers(program: &str, arguments: &[&str]) -> bool {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}
