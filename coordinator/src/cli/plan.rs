//! `fleetwright plan`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fleetwright_deploy::config::Server;
use fleetwright_deploy::host::{Facts, HostView};
use fleetwright_deploy::ids::{EnvironmentName, HostName, ServerName};
use fleetwright_deploy::plan::{OnFailure, OnTimeout, Pace, PauseAt, PausePoint, PlannedStep, StepAction};
use fleetwright_deploy::planning::{
    self, Change, CheckedPlan, Circumstances, Configuration, Explanation, Risk, RiskLevel, SavedArtifact, SavedPlan,
    changes, secret_sources,
};
use fleetwright_deploy::release::SecretSource;
use fleetwright_deploy::time::Length;
use serde_json::json;
use similar::{ChangeTag, TextDiff};
use tokio::time::{Instant, sleep};

use super::output::{Color, Ui};
use super::{Context, exit, graph};
use crate::api::secrets::DigestsView;
use crate::api::views::PlanningView;
use crate::client::Client;
use crate::project::Project;
use crate::{clock, project};

/// Where an agent keeps its state on a host that is only known from a manifest.
const ASSUMED_STATE_DIR: &str = "/var/lib/fleetwright-agent";

/// How long a plan waits for what hosts have found that were asked for the first time, and the pause before it looks again,
/// the first time and at most: each look makes the whole view.
const FACTS_TIMEOUT: Duration = Duration::from_secs(20);
const FACTS_PAUSE: Duration = Duration::from_millis(100);
const FACTS_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Shows what a deployment would do: groups, hosts, and every change.
///
/// With a coordinator, the plan is made against what runs. Without one, it is made for the hosts that the
/// manifest lists.
#[derive(clap::Args)]
pub(crate) struct PlanArguments {
    /// The manifest.
    manifest: PathBuf,
    /// The environment, if not the one that the manifest names.
    #[arg(short, long)]
    environment: Option<EnvironmentName>,
    /// Plan for the hosts that the manifest lists, even if there is a coordinator.
    #[arg(long)]
    offline: bool,
    /// Show how it would be put back, too.
    #[arg(long)]
    rollback: bool,
    /// Exit with 3 if the plan changes something.
    #[arg(long)]
    detailed_exitcode: bool,
    /// Save the plan, to be executed by `deploy start FILE` as long as nothing has changed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the groups and dependencies as a graph instead.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with_all = ["rollback", "explain"])]
    graph: Option<graph::Format>,
    /// Say why a server is in its group and on its hosts instead.
    #[arg(long, value_name = "SERVER", conflicts_with_all = ["rollback", "out"])]
    explain: Option<ServerName>,
    #[command(flatten)]
    overrides: OverrideArguments,
}

/// Which rules are set aside.
#[derive(clap::Args)]
pub(crate) struct OverrideArguments {
    /// Set a rule of the environment aside, where the environment allows that; may be given several times.
    #[arg(long = "override-rule", value_name = "RULE", requires = "reason")]
    override_rules: Vec<String>,
    /// Why rules are set aside; it is recorded with the plan.
    #[arg(long, value_name = "TEXT", requires = "override_rules")]
    reason: Option<String>,
}

/// Longest reason for which rules are set aside, in characters.
const REASON_CHARACTERS_MAX: usize = 1000;

impl OverrideArguments {
    /// The rules, each with the reason.
    pub(super) fn reasons(&self) -> Result<BTreeMap<String, String>> {
        let reason = self.reason.as_deref().unwrap_or_default().trim();
        if !self.override_rules.is_empty() && (reason.is_empty() || reason.chars().count() > REASON_CHARACTERS_MAX) {
            bail!(
                "a rule is set aside for a reason of 1 to {REASON_CHARACTERS_MAX} characters\n  hint: it is recorded, for those who read it later"
            );
        }
        Ok(self.override_rules.iter().map(|rule| (rule.clone(), reason.to_owned())).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.override_rules.is_empty()
    }
}

pub(super) async fn plan(arguments: &PlanArguments, context: &Context) -> Result<u8> {
    let mut project = project::load(&arguments.manifest, arguments.environment.as_ref())?;
    project.overrides = arguments.overrides.reasons()?;
    let client = if arguments.offline { None } else { reachable(context).await };
    if let Some(server) = &arguments.explain {
        // Also of a configuration that breaks a rule.
        let circumstances = circumstances(&project, client.as_ref()).await?;
        let explanation = planning::explain(&project.configuration, &circumstances, server)?;
        context.ui.data(&explanation, || explained(&explanation));
        return Ok(exit::DONE);
    }
    let (checked, circumstances) = make(&project, client.as_ref()).await?;
    if let Some(file) = &arguments.out {
        save(file, &checked, &project, &context.ui)?;
    }
    if let Some(format) = arguments.graph {
        let text = graph::draw(format, &project.configuration.manifest.1, checked.plan());
        context.ui.data(&json!({ "graph": text }), || text.trim_end().to_owned());
    } else {
        show(&checked, &circumstances, &context.ui);
    }
    if arguments.rollback {
        rollback_plan(&checked, &context.ui);
    }
    let pending = arguments.detailed_exitcode && checked.plan().summary().changes() > 0;
    Ok(if pending { exit::CHANGES_PENDING } else { exit::DONE })
}

/// The coordinator, if one can be reached; a plan can be made without one.
async fn reachable(context: &Context) -> Option<Client> {
    let client = context.client().ok()?;
    if client.is_up().await {
        return Some(client);
    }
    context.ui.warn("the coordinator does not answer, so this plan is made for the hosts that the manifest lists");
    None
}

/// Makes a plan, against what runs if there is a coordinator.
pub(super) async fn make(project: &Project, client: Option<&Client>) -> Result<(CheckedPlan, Circumstances)> {
    let mut circumstances = circumstances(project, client).await?;
    let mut checked = planning::plan(&project.configuration, &circumstances)?;
    // Which values are generated is known only from the plan.
    let generated = planning::secrets_of(checked.plan().steps()).into_iter();
    let generated: BTreeMap<_, _> =
        generated.filter(|(_, source)| matches!(source, SecretSource::Generated { .. })).collect();
    if let Some(client) = client.filter(|_| !generated.is_empty()) {
        look_up_digests(&generated, &mut circumstances, client).await?;
        checked = planning::plan(&project.configuration, &circumstances)?;
    }
    Ok((checked, circumstances))
}

/// Asks the coordinator for digests of secrets, by names of any kind.
pub(super) async fn look_up_digests(
    sources: &BTreeMap<String, SecretSource>,
    circumstances: &mut Circumstances,
    client: &Client,
) -> Result<()> {
    let DigestsView { digests, older } = client.post("/v1/secrets/digests", sources).await?;
    circumstances.secret_digests.get_or_insert_default().extend(digests);
    circumstances.older_digests.extend(older);
    Ok(())
}

/// What a plan is made from besides the configuration.
async fn circumstances(project: &Project, client: Option<&Client>) -> Result<Circumstances> {
    let configuration = &project.configuration;
    let mut circumstances = match client {
        Some(client) => {
            let view = fleet(configuration, client).await?;
            let sources = secret_sources(&configuration.environment.1);
            let mut circumstances = view.circumstances(clock::now());
            let local = project.artifacts.iter().map(|local| local.sha256.clone());
            circumstances.artifacts.get_or_insert_default().extend(local);
            look_up_digests(&sources, &mut circumstances, client).await?;
            circumstances
        }
        None => offline(configuration),
    };
    circumstances.overrides = project.overrides.clone();
    circumstances.files = project.files.clone();
    Ok(circumstances)
}

/// What the coordinator knows of its fleet. Where needs decide, hosts that are being asked what they have get a while.
async fn fleet(configuration: &Configuration, client: &Client) -> Result<PlanningView> {
    let needs = |server: &Server| {
        !server.requires.is_empty() || server.package.as_ref().is_some_and(|package| package.value.oci.is_some())
    };
    let deadline = Instant::now() + FACTS_TIMEOUT;
    let matters = configuration.servers.values().any(|(_, server)| needs(server));
    let mut pause = FACTS_PAUSE;
    loop {
        let view: PlanningView = client.get("/v1/planning").await?;
        let asks = |(name, host): (&HostName, &HostView)| {
            !view.unreachable.contains(name) && host.facts.as_ref().is_some_and(Facts::are_unknown)
        };
        if !matters || !view.hosts.iter().any(asks) || Instant::now() > deadline {
            return Ok(view);
        }
        // The coordinator tells of hosts by its events, and of what planning wants to know only when it is asked.
        sleep(pause).await;
        pause = (pause * 2).min(FACTS_PAUSE_MAX);
    }
}

/// Saves a plan to a file, whole or not at all.
fn save(file: &Path, checked: &CheckedPlan, project: &Project, ui: &Ui) -> Result<()> {
    let artifacts = project.artifacts.iter().map(|local| {
        let path = std::path::absolute(&local.path).unwrap_or_else(|_| local.path.clone());
        SavedArtifact { path: path.display().to_string(), sha256: local.sha256.clone() }
    });
    let saved = SavedPlan::new(checked, clock::now(), artifacts.collect());
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".new");
    std::fs::write(&fresh, saved.to_bytes())
        .and_then(|()| std::fs::rename(&fresh, file))
        .with_context(|| format!("{} cannot be written", file.display()))?;
    let (id, file) = (checked.id().short(), file.display());
    ui.say(&format!("saved plan {id} in {file}; `fleetwright deploy start {file}` executes it"));
    Ok(())
}

/// Why a server is where it is, for people.
fn explained(explanation: &Explanation) -> String {
    let Explanation { server, group: (group, groups), chain, depends_on, needed_by, priority, beside, hosts } =
        explanation;
    let mut text = format!("{server} is in group {group} of {groups}");
    let links: Vec<String> = chain.iter().skip(1).map(|(on, group)| format!("{on} (group {group})")).collect();
    if links.is_empty() {
        text.push_str("\n  it depends on nothing");
    } else {
        let _ = write!(text, "\n  because it depends on {}", links.join(", which depends on "));
    }
    let others = depends_on.iter().filter(|(on, _)| chain.get(1).is_none_or(|(first, _)| first != *on));
    for (on, (group, condition)) in others {
        let at = match group {
            0 => "an external".to_owned(),
            group => format!("group {group}, which must be {condition}"),
        };
        let _ = write!(text, "\n  it depends on {on} ({at}), too");
    }
    if !needed_by.is_empty() {
        let names: Vec<&str> = needed_by.iter().map(|name| name.as_str()).collect();
        let _ = write!(text, "\n  needed by {}", names.join(", "));
    }
    let order: Vec<&str> = beside.iter().map(|name| name.as_str()).collect();
    let _ = write!(text, "\n  its group starts in the order {} (its priority is {priority})\nhosts", order.join(", "));
    for (host, said) in hosts {
        let _ = write!(text, "\n  {host:<24} {said}");
    }
    text
}

fn offline(configuration: &Configuration) -> Circumstances {
    let hosts = configuration.manifest.1.hosts.iter().map(|host| {
        let facts = host.runtimes.clone().map(|runtimes| Facts { runtimes, ..Facts::default() });
        let view = HostView {
            address: host.address.clone().unwrap_or_else(|| host.name.value.to_string()),
            state_dir: ASSUMED_STATE_DIR.to_owned(),
            labels: host.labels.clone(),
            facts,
        };
        (host.name.value.clone(), view)
    });
    Circumstances {
        hosts: hosts.collect(),
        variables: std::env::vars().collect(),
        now: clock::now(),
        ..Circumstances::default()
    }
}

/// Prints a plan.
pub(super) fn show(checked: &CheckedPlan, circumstances: &Circumstances, ui: &Ui) {
    for warning in checked.warnings() {
        ui.warn(warning);
    }
    let plan = checked.plan();
    let value = json!({
        "id": checked.id(), "summary": plan.summary(), "risk": planning::risk(plan), "warnings": checked.warnings(),
        "plan": plan,
    });
    ui.data(&value, || human(checked, circumstances, ui));
}

/// Prints how what a plan changes would be put back.
fn rollback_plan(checked: &CheckedPlan, ui: &Ui) {
    let policy = &checked.plan().rollback;
    let rounds = checked.plan().rollback_rounds(policy.strategy);
    let value = json!({ "strategy": policy.strategy, "enabled": policy.enabled, "rounds": rounds });
    ui.data(&value, || {
        let name: &'static str = policy.strategy.into();
        let off = if policy.enabled { "" } else { " (off: only when asked for)" };
        let mut text = format!("\nrollback plan: {name}{off}: {}", policy.strategy.describe());
        for (number, round) in rounds.iter().enumerate() {
            let _ = write!(text, "\n  round {} of {}", number + 1, rounds.len());
            for step in round {
                let actions: Vec<&'static str> = step.actions.iter().map(Into::into).collect();
                let _ = write!(text, "\n    {:<32} {}", step.instance.to_string(), actions.join(" → "));
            }
        }
        text
    });
}

fn pace_words(pace: &Pace) -> Vec<String> {
    let mut words = Vec::new();
    match pace.canary {
        0 => words.push("no canary".to_owned()),
        n => words.push(format!("canary {n}, healthy for {} first", pace.bake)),
    }
    if pace.batch > 0 {
        words.push(format!("then batches of {}", pace.batch));
    }
    words.push(format!("at most {} unavailable", pace.max_unavailable));
    words
}

fn pause_words(pause: &PausePoint) -> String {
    let at = match &pause.at {
        PauseAt::BeforeGroup(group) => format!("before group {}", group + 1),
        PauseAt::AfterCanary(server) => format!("after the canary of {server}"),
    };
    let needed = match pause.approvals {
        0 => "waits".to_owned(),
        1 => "waits to be approved".to_owned(),
        n => format!("waits for {n} to approve"),
    };
    match (pause.timeout, pause.on_timeout) {
        (None, _) => format!("{at}: {needed}"),
        (Some(timeout), OnTimeout::Approve) => format!("{at}: {needed}, at most {timeout}, then goes on"),
        (Some(timeout), OnTimeout::Reject) => format!("{at}: {needed}, at most {timeout}, then is rejected"),
    }
}

fn human(checked: &CheckedPlan, circumstances: &Circumstances, ui: &Ui) -> String {
    let plan = checked.plan();
    let title = format!("plan {} of {} for {}", checked.id().short(), plan.manifest, plan.environment);
    let mut text = format!("{}\n", ui.paint(Color::Bold, &title));
    for (number, group) in plan.groups.iter().enumerate() {
        let servers: Vec<&str> = group.servers.iter().map(|server| server.as_str()).collect();
        let _ = writeln!(text, "\ngroup {} of {}: {}", number + 1, plan.groups.len(), servers.join(", "));
        for (server, others) in plan.starts_after.iter().filter(|(server, _)| group.servers.contains(server)) {
            let others: Vec<&str> = others.iter().map(|other| other.as_str()).collect();
            let _ = writeln!(text, "  {server} begins once {} was started", others.join(", "));
        }
        for step in &group.steps {
            text.push_str(&step_lines(step, circumstances, ui));
        }
    }
    for external in &plan.externals {
        let _ = write!(text, "\n{} {external} must answer first", ui.paint(Color::Bold, "external"));
    }
    if !plan.externals.is_empty() {
        text.push('\n');
    }
    for skipped in &plan.skipped {
        let _ = write!(text, "\n{} {}: {}", ui.paint(Color::Yellow, "skipped"), skipped.server, skipped.reason);
    }
    if !plan.skipped.is_empty() {
        text.push('\n');
    }
    let (rollout, rollback) = (&plan.rollout, &plan.rollback);
    let strategy: &'static str = rollback.strategy.into();
    let undo = if rollback.enabled { format!("{strategy} rollback") } else { "no rollback".to_owned() };
    let on_failure = match rollout.on_failure {
        OnFailure::Rollback => undo,
        OnFailure::Pause => format!("a person decides, then {undo}"),
        OnFailure::Continue => "the failed instance is left out, the others go on".to_owned(),
    };
    for aside in &plan.overrides {
        let title = ui.paint(Color::Yellow, "set aside");
        let _ = write!(text, "\n{title} rule {}: {}", aside.rule, aside.reason);
        aside.broken.iter().for_each(|broken| _ = write!(text, "\n  {broken}"));
        text.push('\n');
    }
    text.push_str("\nrollout:");
    for (server, pace) in &plan.paces {
        let _ = write!(text, "\n  {server}: {}", pace_words(pace).join(", "));
    }
    for pause in &plan.rollout.pauses {
        let _ = write!(text, "\n  {}", pause_words(pause));
    }
    let bake = if rollout.bake == Length::ZERO { String::new() } else { format!("bake {} at the end; ", rollout.bake) };
    let tolerated = match rollout.failure_threshold {
        0 => String::new(),
        n => format!("up to {n} failed instances are left out; then "),
    };
    let _ = writeln!(text, "\n  {bake}on failure: {tolerated}{on_failure}");
    let summary = plan.summary();
    let _ = write!(
        text,
        "{} to create, {} to update, {} to remove, {} unchanged",
        summary.create, summary.update, summary.remove, summary.unchanged
    );
    if summary.changes() > 0 {
        let Risk { level, reasons } = planning::risk(plan);
        let color = match level {
            RiskLevel::Low => Color::Green,
            RiskLevel::Medium => Color::Yellow,
            RiskLevel::High => Color::Red,
        };
        let _ = write!(text, "\nrisk: {}", ui.paint(color, level.into()));
        for (level, reason) in reasons {
            let level: &'static str = level.into();
            let _ = write!(text, "\n  {level:<6} {reason}");
        }
    }
    text
}

fn step_lines(step: &PlannedStep, circumstances: &Circumstances, ui: &Ui) -> String {
    let mark = match step.action {
        StepAction::Create => ui.paint(Color::Green, "+"),
        StepAction::Update => ui.paint(Color::Yellow, "~"),
        StepAction::Remove => ui.paint(Color::Red, "-"),
        StepAction::Unchanged => ui.paint(Color::Dim, "="),
    };
    let what = step.release.as_ref().map_or_else(
        || "removed".to_owned(),
        |release| {
            let url = release.run.endpoint.as_ref().map(|at| format!(" → http://{}", at.authority()));
            format!("{}{}", release.package, url.unwrap_or_default())
        },
    );
    let mut text = format!("  {mark} {:<32} {what}\n", step.instance.to_string());
    let view = circumstances.hosts.get(&step.instance.host);
    if let (Some(release), Some(view), StepAction::Create | StepAction::Update) = (&step.release, view, step.action)
        && let Some(interpreter) = planning::unusual_interpreter(release, view)
    {
        let _ = writeln!(text, "      {interpreter}");
    }
    let present = circumstances.present.get(&step.instance);
    if let (Some(present), Some(release), StepAction::Update) = (present, &step.release, step.action) {
        let changes = changes(&present.release, release);
        if changes.is_empty() {
            text.push_str("      the same release again: the instance needs repair\n");
        }
        changes.iter().for_each(|change| text.push_str(&change_lines(change, ui)));
    }
    text
}

fn change_lines(change: &Change, ui: &Ui) -> String {
    let (before, after) = (change.before.as_deref(), change.after.as_deref());
    match (before, after) {
        (Some(before), Some(after)) if before == after => format!("      {} changed\n", change.field),
        (Some(before), Some(after)) if before.contains('\n') || after.contains('\n') => {
            let mut text = format!("      {}:\n", change.field);
            let diff = TextDiff::from_lines(before, after);
            for line in diff.iter_all_changes().filter(|line| line.tag() != ChangeTag::Equal) {
                let (mark, color) = match line.tag() {
                    ChangeTag::Insert => ("+", Color::Green),
                    ChangeTag::Delete | ChangeTag::Equal => ("-", Color::Red),
                };
                let shown = format!("{mark} {}", line.value().trim_end());
                let _ = writeln!(text, "        {}", ui.paint(color, &shown));
            }
            text
        }
        (before, after) => {
            let word = |value: Option<&str>| value.map_or_else(|| "(none)".to_owned(), str::to_owned);
            format!("      {}: {} → {}\n", change.field, word(before), word(after))
        }
    }
}
