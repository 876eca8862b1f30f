//! Following a deployment to its end.

use anyhow::{Context as _, Result};
use fleetwright_deploy::deployment::Note;
use fleetwright_deploy::ids::DeploymentId;
use fleetwright_deploy::printable::continued;

use super::output::{Bar, Ui, describe};
use super::{exit_code, tables};
use crate::api::views::DeploymentView;
use crate::client::Client;
use crate::journal::EventRecord;

/// The phase in which nothing goes on without a person.
const AWAITING_OPERATOR: &str = "awaiting_operator";

/// Tells what happens to a deployment after event `after`, until it ends or waits for a person; gives it as it is
/// then.
pub(super) async fn follow(client: &Client, id: &DeploymentId, after: u64, ui: &Ui) -> Result<DeploymentView> {
    let before: DeploymentView = client.get(&format!("/v1/deployments/{id}")).await?;
    let mut progress = Progress::new(&before, ui);
    if before.summary.outcome.is_none() && before.summary.phase != AWAITING_OPERATOR {
        let mut events = client.events(after, true).await?;
        'following: loop {
            let record = events.next().await?.context(
                "the coordinator ended before the deployment did\n  hint: start it again; the deployment goes on",
            )?;
            for note in record.notes.iter().filter(|note| note.deployment.as_ref() == Some(id)) {
                progress.tell(&record, note, ui);
                let waits = note.what == "phase" && note.message.starts_with(AWAITING_OPERATOR);
                if waits || note.what == "finished" {
                    break 'following;
                }
            }
        }
    }
    progress.end();
    client.get(&format!("/v1/deployments/{id}")).await
}

/// Prints how a deployment ended, with every failure it met; gives the exit code.
pub(super) fn conclude(view: &DeploymentView, ui: &Ui) -> u8 {
    let code = view.summary.outcome.map_or(super::exit::STUCK, exit_code);
    if code != super::exit::DONE {
        let failures = tables::failures(&view.failures);
        if !failures.is_empty() {
            ui.say(&format!("\n{failures}\n"));
        }
    }
    let id = &view.summary.id;
    match view.summary.outcome {
        Some(outcome) => ui.say(&format!("deployment {id}: {}", <&'static str>::from(outcome).replace('_', " "))),
        None => {
            let moves: Vec<String> = view.moves.iter().map(|command| format!("\n  {command}")).collect();
            ui.say(&format!("deployment {id} waits for a person; look at it, then one of{}", moves.concat()));
        }
    }
    code
}

/// Plain lines, and on a terminal a bar below them.
struct Progress {
    bar: Option<Bar>,
}

impl Progress {
    fn new(view: &DeploymentView, ui: &Ui) -> Self {
        let changes = view.steps.iter().filter(|step| step.state != "unchanged").count();
        Self { bar: ui.bar(changes as u64) }
    }

    fn tell(&mut self, record: &EventRecord, note: &Note, ui: &Ui) {
        let text = line(record, note);
        match &self.bar {
            Some(bar) => {
                bar.say(&text);
                if note.what == "confirmed" {
                    bar.step();
                }
                if note.what == "phase" {
                    bar.title(note.message.split(':').next().unwrap_or_default());
                }
            }
            None => ui.say(&text),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.end();
        }
    }
}

/// One line about one event.
pub(super) fn line(record: &EventRecord, note: &Note) -> String {
    let at = record.at.to_string();
    let clock = at.get(11..19).unwrap_or(&at);
    match (&note.instance, &note.failure) {
        (Some(instance), Some(failure)) if note.what == "failed" => format!("{clock} {instance}: failed: {failure}"),
        (Some(instance), _) => format!("{clock} {instance}: {}", continued(&note.message)),
        (None, Some(failure)) => {
            format!("{clock} {}; {}", continued(&note.message), describe(failure).lines().next().unwrap_or_default())
        }
        (None, None) => format!("{clock} {}", continued(&note.message)),
    }
}
