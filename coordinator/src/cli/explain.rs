//! `fleetwright explain`

use anyhow::Result;
use fleetwright_deploy::ids::DeploymentId;
use serde_json::json;

use super::output::describe;
use super::{Context, exit};
use crate::api::views::{DeploymentView, HostRow, StepRow};

/// Says what a deployment waits for, since when, until when, and what would end the wait; or how it ended, and why.
///
/// For every instance that needs a person it says what was tried, what is on the host's disk, and what may be done.
#[derive(clap::Args)]
pub(crate) struct ExplainArguments {
    /// The deployment.
    id: DeploymentId,
}

pub(super) async fn explain(arguments: &ExplainArguments, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let view: DeploymentView = client.get(&format!("/v1/deployments/{}", arguments.id)).await?;
    let hosts: Vec<HostRow> = client.get("/v1/hosts").await?;
    let value = json!({
        "id": view.summary.id, "phase": view.summary.phase, "outcome": view.summary.outcome,
        "waiting": view.waiting, "held": view.held, "cause": view.cause, "moves": view.moves,
        "need_a_person": view.steps.iter().filter(|step| needs_a_person(step)).collect::<Vec<_>>(),
    });
    context.ui.data(&value, || {
        let stuck = view.steps.iter().filter(|step| needs_a_person(step));
        let stuck: Vec<String> = stuck.map(|step| instance_words(step, &view, &hosts)).collect();
        [vec![words(&view)], stuck].concat().join("\n\n")
    });
    Ok(exit::DONE)
}

fn needs_a_person(step: &StepRow) -> bool {
    matches!(step.state.as_str(), "stuck" | "failed")
}

/// What a deployment waits for, and what may be done.
pub(super) fn words(view: &DeploymentView) -> String {
    let id = &view.summary.id;
    let mut lines = Vec::new();
    match view.summary.outcome {
        Some(outcome) => {
            let word: &'static str = outcome.into();
            lines.push(format!("deployment {id} ended: {}", word.replace('_', " ")));
        }
        None => lines.push(format!("deployment {id} is in {} and waits for:", view.summary.phase)),
    }
    for waiting in &view.waiting {
        let until = waiting.until.map_or_else(|| "without an end".to_owned(), |until| format!("until {until}"));
        lines.push(format!("  {waiting}\n    since {}, {until}", waiting.since));
        if let Some(unblock) = &waiting.unblock {
            lines.push(format!("    unblocked by: {unblock}"));
        }
    }
    if let Some(cause) = &view.cause {
        lines.push(format!("because of: {}", describe(cause)));
    }
    if !view.moves.is_empty() {
        lines.push(format!("you may:\n  {}", view.moves.join("\n  ")));
    }
    lines.join("\n")
}

/// What was tried with an instance, what its host has on disk, and why it came to that.
fn instance_words(step: &StepRow, view: &DeploymentView, hosts: &[HostRow]) -> String {
    let id = &step.instance;
    let of_instance = |failure: &&fleetwright_deploy::failure::Failure| {
        failure.host.as_ref() == Some(&id.host) && failure.server.as_ref() == Some(&id.server)
    };
    let mut lines = vec![format!("{id} is {} (attempt {}); what happened to it:", step.state, step.attempt)];
    for failure in view.failures.iter().filter(of_instance) {
        lines.extend(describe(failure).lines().map(|line| format!("  {line}")));
    }
    let host = hosts.iter().find(|row| row.host == id.host);
    let connected = if host.is_some_and(|row| row.connected) { "connected" } else { "not connected" };
    lines.push(format!("on disk of {} ({connected}):", id.host));
    let folder = host.and_then(|row| row.view.as_ref()).map(|view| format!("{}/servers/{}", view.state_dir, id.server));
    let folder = folder.unwrap_or_else(|| format!("servers/{} in the agent's state folder", id.server));
    lines.push(format!("  {folder}/current → the release that is to run; {folder}/logs"));
    if let Some(before) = &step.before {
        lines.push(format!("  before: {folder}/releases/{}", before.as_str()));
    }
    if let Some(release) = &step.release {
        lines.push(format!("  new: {folder}/releases/{}", release.as_str()));
    }
    lines.push(format!("  snapshot: {folder}/snapshots/{}-{}", view.summary.id, step.attempt));
    lines.join("\n")
}
