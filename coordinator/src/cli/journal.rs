//! `fleetwright journal`

use std::io::Write as _;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::json;

use super::{Context, exit};
use crate::journal::{SqliteStore, Store, verify};
use crate::state_dir::StateDir;

/// How many entries are read at once.
const PAGE: usize = 1_000;

/// Checks and exports the coordinator's journal. Works on the file itself, with or without a coordinator.
#[derive(Subcommand)]
pub(crate) enum JournalCommand {
    /// Checks every entry, every snapshot, and that the state they lead to is one and the same.
    Verify,
    /// Prints entries, one JSON object a line.
    Export {
        /// Only entries after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

pub(super) fn journal(command: &JournalCommand, context: &Context) -> Result<u8> {
    let state_dir = context.state_dir()?.filter(StateDir::exists);
    let state_dir = state_dir.context("there is no journal here\n  hint: name the state folder with --state-dir")?;
    let store = SqliteStore::open_read_only(&state_dir.journal())?;
    match command {
        JournalCommand::Verify => {
            let verified = verify(&store, &state_dir.fleet()?.name)?;
            context.ui.data(&verified, || {
                let (entries, snapshots, head) = (verified.entries, verified.snapshots, &verified.head);
                format!("the journal is whole: {entries} entries, {snapshots} snapshots\nhead {head}")
            });
        }
        JournalCommand::Export { after } => export(&store, *after)?,
    }
    Ok(exit::DONE)
}

fn export(store: &SqliteStore, mut after: u64) -> Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        let page = store.read(after, PAGE)?;
        let full = page.len() == PAGE;
        for entry in page {
            after = entry.seq;
            let value = json!({
                "seq": entry.seq, "at": entry.at, "actor": entry.actor, "type": entry.event_type,
                "event": serde_json::from_str::<serde_json::Value>(&entry.event)?,
                "notes": serde_json::from_str::<serde_json::Value>(&entry.notes)?,
                "hash": entry.hash.to_string(),
            });
            // Whoever closes the pipe has read enough.
            if writeln!(out, "{value}").is_err() {
                return Ok(());
            }
        }
        if !full {
            let _ = out.flush();
            return Ok(());
        }
    }
}
