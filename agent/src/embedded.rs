//! An agent inside a program: over a state folder, on a machine, an endpoint and by a clock that the program gives it.
//! `fleetwright-agent run` is one such program.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use fleetwright_deploy::limits::size;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::{Clock, endpoint};
use quinn::Endpoint;
use tokio::sync::mpsc;

use crate::engine::{Engine, Input};
use crate::identity::AgentIdentity;
use crate::journal::{Journal, JournalError, ROOM_BYTES};
use crate::layout::Layout;
use crate::machine::Machine;
use crate::room::Reserve;
use crate::session::Session;
use crate::{notify, room, snapshot, supervise};

/// How often it is tried again whether there is room to begin.
const ROOM_PAUSE: Duration = Duration::from_secs(2);
/// What the first start of an agent needs: the journal with the room in it, its log, and the lock.
const BEGIN_BYTES: u64 = 3 * ROOM_BYTES.unsigned_abs();
const BEGIN_FILES: u64 = 3;

/// The agent of a host, before it works.
pub struct Agent {
    engine: Engine,
    session: Session,
    inputs: mpsc::Sender<Input>,
    _lock: File,
}

impl Agent {
    /// The identity that a state folder holds; nothing when its host has not enrolled.
    pub fn identity(state_dir: &Path) -> Result<Option<AgentIdentity>> {
        AgentIdentity::load(&Layout::new(state_dir).identity())
    }

    /// Waits until a state folder has room for what an agent cannot begin without: its lock and its journal. They are there
    /// where an agent has worked before, however full the disk is.
    pub async fn wait_for_room(state_dir: &Path) -> Result<()> {
        let layout = Layout::new(state_dir);
        let mut told = false;
        loop {
            match prepare(&layout) {
                Err(error) if is_full(&error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!("{}", lacking(&layout));
                    }
                    notify::keep_waiting("there is no room on the disk for the agent's journal", ROOM_PAUSE * 3);
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Opens a state folder whose host has enrolled. One agent at a time works on it. `clock` judges what others have
    /// dated; the clock that `steady` makes, which must never be earlier than what it is given, judges how long
    /// something has taken.
    pub fn open(
        state_dir: &Path,
        identity: AgentIdentity,
        machine: Arc<dyn Machine>,
        mut client: Endpoint,
        clock: Clock,
        steady: impl FnOnce(Timestamp) -> Result<Clock>,
    ) -> Result<Self> {
        let layout = Layout::new(state_dir);
        fs::create_dir_all(layout.state_dir())?;
        let lock = lock(&layout)?;
        snapshot::remove_unfinished(&layout);
        client.set_default_client_config(endpoint::agent(&identity.tls(&layout.identity())?, &clock)?);
        let journal = open_journal(&layout)?;
        let steady = steady(journal.last_time()?)?;
        let (engine, handle) = Engine::open(journal, machine.clone(), identity.verifier()?, clock.clone(), steady)?;
        let inputs = handle.inputs.clone();
        let session = Session::new(identity, machine, client, clock, handle)?;
        Ok(Self { engine, session, inputs, _lock: lock })
    }

    /// Works for the coordinator until the journal fails or the future is dropped. Servers go on without it.
    pub async fn run(self) -> Result<()> {
        tokio::select! {
            ended = self.engine.run() => ended,
            () = self.session.run() => Ok(()),
            () = notify::keep_telling(self.inputs) => Ok(()),
        }
    }
}

/// Opens the journal; an agent starts on a full disk, too.
fn open_journal(layout: &Layout) -> Result<Journal, JournalError> {
    Journal::open(&layout.journal()).or_else(|error| {
        if error.is_full() && Reserve::of(layout).give_up() { Journal::open(&layout.journal()) } else { Err(error) }
    })
}

/// Makes what is missing of the state folder.
fn prepare(layout: &Layout) -> Result<()> {
    fs::create_dir_all(layout.state_dir())?;
    let _lock = lock(layout)?;
    open_journal(layout)?;
    Ok(())
}

fn is_full(error: &anyhow::Error) -> bool {
    let kinds = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    error.downcast_ref::<JournalError>().is_some_and(JournalError::is_full)
        || error.downcast_ref::<std::io::Error>().is_some_and(|error| kinds.contains(&error.kind()))
}

/// What is lacking, in words.
fn lacking(layout: &Layout) -> String {
    let there = room::free(layout).unwrap_or_default();
    let words = |bytes: u64| size(usize::try_from(bytes).unwrap_or(usize::MAX));
    let files = if there.total_files > 0 { format!(" and {} files", there.free_files) } else { String::new() };
    format!(
        "the agent cannot begin: its journal in {} needs {} and {BEGIN_FILES} files, and its disk has room for {}{files}; it waits\n  hint: make room on that disk, or give the agent another --state-dir",
        layout.state_dir().display(),
        words(BEGIN_BYTES),
        words(there.free_bytes),
    )
}

/// Two agents on one state folder would fight over its servers. The lock holds the number of this process, for
/// whoever wants to end it.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    if !supervise::take_lock(&file) {
        bail!(
            "another agent works on {}\n  hint: stop it first, or give this one another --state-dir",
            layout.state_dir().display()
        );
    }
    // Written over what is there, which needs no room. A number that is missing hinders nobody but those who want to end
    // this process by it.
    let number = std::process::id().to_string();
    if let Err(error) = file.write_all(number.as_bytes()).and_then(|()| file.set_len(number.len() as u64)) {
        tracing::warn!(%error, "the number of this process could not be written down");
    }
    Ok(file)
}
