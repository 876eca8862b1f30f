//! `fleetwright secrets`

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use fleetwright_deploy::ids::EnvironmentName;
use fleetwright_deploy::planning::secret_sources;
use fleetwright_deploy::time::{Length, Timestamp};

use super::output::table;
use super::{Context, exit};
use crate::api::secrets::{SecretRow, SecretState};
use crate::{clock, project};

/// Shows what is known of secrets. Values are never shown.
#[derive(Subcommand)]
pub(crate) enum SecretsCommand {
    /// Lists secrets with what uses them, their age, and whether what runs has their value.
    ///
    /// Secrets that programs print are looked up for that: their programs run.
    List {
        /// A manifest: the secrets of its environment that nothing uses are listed, too.
        manifest: Option<PathBuf>,
        /// The environment, if not the one that the manifest names.
        #[arg(short, long, requires = "manifest")]
        environment: Option<EnvironmentName>,
    },
}

pub(super) async fn secrets(command: SecretsCommand, context: &Context) -> Result<u8> {
    let SecretsCommand::List { manifest, environment } = command;
    let declared = match manifest {
        None => Default::default(),
        Some(manifest) => {
            let project = project::load(&manifest, environment.as_ref())?;
            secret_sources(&project.configuration.environment.1)
        }
    };
    let rows: Vec<SecretRow> = context.client()?.post("/v1/secrets", &declared).await?;
    context.ui.data(&rows, || listed(&rows));
    Ok(exit::DONE)
}

fn listed(rows: &[SecretRow]) -> String {
    if rows.is_empty() {
        return "nothing uses a secret".to_owned();
    }
    let age = |since: Option<Timestamp>| since.map_or_else(|| "-".to_owned(), |since| rough(clock::now().since(since)));
    let cells = rows.iter().map(|row| {
        let state = match row.state {
            SecretState::Current => "current",
            SecretState::Changed => "changed: deploy again",
            SecretState::Missing => "no value",
            SecretState::Unused => "unused",
        };
        let users: Vec<String> = row.used_by.iter().map(ToString::to_string).collect();
        vec![
            row.name.clone(),
            row.source.to_string(),
            if row.stand_in { format!("{state} (stand-in)") } else { state.to_owned() },
            age(row.written_at),
            age(row.deployed_at),
            if users.is_empty() { "-".to_owned() } else { users.join(", ") },
        ]
    });
    let cells: Vec<Vec<String>> = cells.collect();
    table(&["SECRET", "FROM", "STATE", "WRITTEN", "DEPLOYED", "USED BY"], &cells)
}

/// An age in its largest unit.
fn rough(age: Length) -> String {
    match age.ms() / 1_000 {
        seconds @ 0..60 => format!("{seconds}s ago"),
        seconds @ 60..3_600 => format!("{}m ago", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h ago", seconds / 3_600),
        seconds => format!("{}d ago", seconds / 86_400),
    }
}
