//! An agent inside a program: over a state folder, on a machine, an endpoint and by a clock that the program gives it.
//! `fleetwright-agent run` is one such program.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::{Clock, endpoint};
use quinn::Endpoint;
use tokio::sync::mpsc;

use crate::engine::{Engine, Input};
use crate::identity::AgentIdentity;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::machine::Machine;
use crate::room::Reserve;
use crate::session::Session;
use crate::{notify, supervise};

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
        let reserve = Reserve::of(&layout);
        let lock = lock(&layout)?;
        client.set_default_client_config(endpoint::agent(&identity.tls(&layout.identity())?, &clock)?);
        // An agent starts on a full disk, too.
        let journal = Journal::open(&layout.journal())
            .or_else(|error| if reserve.give_up() { Journal::open(&layout.journal()) } else { Err(error) })?;
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
