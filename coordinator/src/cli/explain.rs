//! `fleetwright explain`

use anyhow::Result;
use fleetwright_deploy::ids::DeploymentId;
use serde_json::json;

use super::output::describe;
use super::{Context, exit};
use crate::api::views::DeploymentView;

/// Says what a deployment waits for, since when and until when; or how it ended, and why.
#[derive(clap::Args)]
pub(crate) struct ExplainArguments {
    /// The deployment.
    id: DeploymentId,
}

pub(super) async fn explain(arguments: &ExplainArguments, context: &Context) -> Result<u8> {
    let view: DeploymentView = context.client()?.get(&format!("/v1/deployments/{}", arguments.id)).await?;
    let value = json!({
        "id": view.summary.id, "phase": view.summary.phase, "outcome": view.summary.outcome,
        "waiting": view.waiting, "cause": view.cause,
    });
    context.ui.data(&value, || words(&view));
    Ok(exit::DONE)
}

fn words(view: &DeploymentView) -> String {
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
    }
    if let Some(cause) = &view.cause {
        lines.push(format!("because of: {}", describe(cause)));
    }
    lines.join("\n")
}
