//! `fleetwright check`

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::health::{CheckOutcome, CheckRun, HealthStatus, Severity};
use fleetwright_deploy::ids::InstanceId;
use serde::Serialize;

use super::output::{Color, Ui, table};
use super::{Context, exit, instances};
use crate::api::look::ChecksRequest;

/// Runs health checks.
#[derive(Subcommand)]
pub(crate) enum CheckCommand {
    /// Runs the checks of a server now, on its hosts, and shows what they find. Exits with 1 when a critical one fails.
    Run {
        /// The server on all its hosts, or one instance.
        #[arg(value_name = "SERVER[@HOST]")]
        what: String,
        /// Only the checks with this tag, or of this group.
        #[arg(long)]
        tag: Option<String>,
    },
}

#[derive(Serialize)]
struct InstanceRuns {
    instance: InstanceId,
    checks: Vec<CheckRun>,
}

pub(super) async fn check(command: CheckCommand, context: &Context) -> Result<u8> {
    let CheckCommand::Run { what, tag } = command;
    let client = context.client()?;
    let request = ChecksRequest { tag };
    let mut all = Vec::new();
    for instance in instances::named(&what, &client).await? {
        let checks: Vec<CheckRun> = client.post(&format!("/v1/servers/{instance}/checks"), &request).await?;
        all.push(InstanceRuns { instance, checks });
    }
    context.ui.data(&all, || shown(&all, &context.ui));
    let failed = all
        .iter()
        .flat_map(|runs| &runs.checks)
        .any(|run| run.severity == Severity::Critical && matches!(run.outcome, CheckOutcome::Failing { .. }));
    Ok(if failed { exit::FAILED } else { exit::DONE })
}

fn shown(all: &[InstanceRuns], ui: &Ui) -> String {
    let rows = all.iter().flat_map(|runs| runs.checks.iter().map(|run| cells(&runs.instance, run, ui)));
    table(&["INSTANCE", "CHECK", "SEVERITY", "OUTCOME", "MS", "FOUND"], &rows.collect::<Vec<_>>())
}

fn cells(instance: &InstanceId, run: &CheckRun, ui: &Ui) -> Vec<String> {
    let (word, color) = match run.outcome {
        CheckOutcome::Passing { .. } => ("passes", Color::Green),
        CheckOutcome::Warning { .. } => ("warns", Color::Yellow),
        CheckOutcome::NeedsAuthentication { .. } => (HealthStatus::NeedsAuthentication.into(), Color::Yellow),
        CheckOutcome::Failing { .. } => ("fails", Color::Red),
    };
    let severity: &'static str = run.severity.into();
    let measured = if run.performance.is_empty() { String::new() } else { format!(" | {}", run.performance.join(" ")) };
    vec![
        instance.to_string(),
        run.name.clone(),
        severity.to_owned(),
        ui.paint(color, word),
        run.took_ms.to_string(),
        format!("{}{measured}", run.outcome.message()),
    ]
}
