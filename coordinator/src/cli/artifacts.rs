//! `fleetwright artifacts`

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use fleetwright_deploy::time::Length;

use super::output::table;
use super::{Context, exit};
use crate::api::artifacts::{ArtifactRow, RemoveRequest};
use crate::artifacts::Artifact;
use crate::clock;
use crate::local_artifact::LocalArtifact;

/// Keeps archives and programs at the coordinator, from which hosts fetch the parts that they lack.
///
/// A definition that names a file beside itself (`archive: dist/server.tar.gz`) needs none of this: what it names is
/// sent when it is deployed.
#[derive(Subcommand)]
pub(crate) enum ArtifactsCommand {
    /// Sends files, and prints what a definition says to use each.
    Push {
        /// The files. Compression with gzip is undone: chunks are compressed anyway.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Lists what is there.
    List,
    /// Removes artifacts by their SHA-256. What runs or is being deployed keeps its own.
    Remove {
        /// The SHA-256 of each, hexadecimal.
        #[arg(required = true, value_name = "SHA256")]
        sha256: Vec<String>,
    },
    /// Removes everything that nothing uses.
    Prune {
        /// Only what came longer ago than this.
        #[arg(long, value_name = "LENGTH", default_value = "30d")]
        older_than: Length,
    },
}

pub(super) async fn artifacts(command: ArtifactsCommand, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let list = async || -> Result<Vec<ArtifactRow>> { client.get("/v1/artifacts").await };
    match command {
        ArtifactsCommand::Push { files } => {
            // What cannot be read is told before anything is sent.
            let read = |path: &PathBuf| {
                LocalArtifact::read(path).with_context(|| format!("{} cannot be read", path.display()))
            };
            let mut pushed = Vec::new();
            for local in files.iter().map(read).collect::<Result<Vec<_>>>()? {
                pushed.push(local.push(&client).await?);
            }
            context.ui.data(&pushed, || pushed.iter().map(said).collect::<Vec<_>>().join("\n"));
        }
        ArtifactsCommand::List => {
            let all = list().await?;
            context.ui.data(&all, || listed(&all));
        }
        ArtifactsCommand::Remove { sha256 } => {
            let removed: Vec<Artifact> = client.post("/v1/artifacts/remove", &RemoveRequest { sha256 }).await?;
            context.ui.data(&removed, || removals(&removed));
        }
        ArtifactsCommand::Prune { older_than } => {
            let now = clock::now();
            let old = list().await?.into_iter();
            let old = old.filter(|row| !row.in_use && now.since(row.artifact.added_at) > older_than);
            let sha256: Vec<String> = old.map(|row| row.artifact.sha256).collect();
            let removed: Vec<Artifact> = client.post("/v1/artifacts/remove", &RemoveRequest { sha256 }).await?;
            context.ui.data(&removed, || removals(&removed));
        }
    }
    Ok(exit::DONE)
}

fn said(artifact: &Artifact) -> String {
    let Artifact { sha256, name, bytes, new_bytes, .. } = artifact;
    let (whole, new) = (size(*bytes), size(*new_bytes));
    format!("sent {name}: {whole}, {new} of it new\n  archive: artifact:{name}   # or `file:`\n  sha256: {sha256}")
}

fn removals(removed: &[Artifact]) -> String {
    match removed {
        [] => "nothing was removed".to_owned(),
        removed => removed.iter().map(|a| format!("removed {} {}", a.name, a.sha256)).collect::<Vec<_>>().join("\n"),
    }
}

fn listed(all: &[ArtifactRow]) -> String {
    if all.is_empty() {
        return "there are no artifacts: `fleetwright artifacts push FILE` sends one".to_owned();
    }
    let cells = |row: &ArtifactRow| {
        let Artifact { sha256, name, bytes, added_at, .. } = &row.artifact;
        let in_use = if row.in_use { "yes" } else { "no" };
        vec![name.clone(), size(*bytes), added_at.to_string(), in_use.to_owned(), sha256.clone()]
    };
    table(&["NAME", "SIZE", "ADDED", "IN USE", "SHA-256"], &all.iter().map(cells).collect::<Vec<_>>())
}

/// A size, for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        bytes => format!("{} MiB", bytes >> 20),
    }
}
