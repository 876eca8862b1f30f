//! What the engine asks of the host it works on. The engine decides and remembers; a machine does. Each piece of work
//! may be asked for again after a crash, and may be dropped at any await.

use std::collections::BTreeMap;

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::health::{CheckRun, HealthCheck, HealthReport};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{ReleaseId, ServerName, SnapshotId};
use fleetwright_deploy::instance::Switch;
use fleetwright_deploy::release::Release;
use fleetwright_deploy::room::{Remembered, Room};
use fleetwright_protocol::report::MetricsSample;
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use quinn::Connection;
use tokio::sync::{mpsc, watch};

/// Work that ends well or with a reason.
pub type Work<T = ()> = BoxFuture<'static, Result<T, Failure>>;

/// What was seen in one look at a server.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The server.
    pub server: ServerName,
    /// The release that was looked at.
    pub release: ReleaseId,
    /// What was found.
    pub report: HealthReport,
    /// How the server ended, if it has since it was started.
    pub ended: Option<String>,
    /// Whether nothing keeps it running although nobody stopped it.
    pub unsupervised: bool,
}

/// What a restore puts back, and how.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The switch that is undone.
    pub switch: Switch,
    /// Whether the server gets its time to end before it is killed.
    pub drain: bool,
    /// The releases that must stay whatever becomes of the one that is put away.
    pub kept: Vec<ReleaseId>,
}

/// A host, as its agent works on it.
pub trait Machine: Send + Sync + 'static {
    /// What the host says of itself, as far as it is known: nothing is waited for.
    fn view(&self) -> BoxFuture<'static, HostView>;
    /// Says that what the host says of itself has changed.
    fn views(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
    /// Finds out anew what the host has, for a person who waits.
    fn refresh(&self) -> Work<HostView> {
        self.view().map(Ok).boxed()
    }
    /// A connection to the coordinator has taken the place of the one before. What is fetched is fetched over it.
    fn connected(&self, _connection: &Connection) {}
    /// What a server runs is kept for good. May be said again and again.
    fn confirmed(&self, _server: &ServerName) {}
    /// Keeps what came with a stage order until the release is staged.
    fn receive(
        &self,
        server: &ServerName,
        id: &ReleaseId,
        release: &[u8],
        secrets: &BTreeMap<String, String>,
    ) -> Result<(), Failure>;
    /// Gets a release ready beside `running`, the one that runs.
    fn stage(&self, server: &ServerName, id: &ReleaseId, running: Option<Release>) -> Work;
    /// Removes a release that will not run, unless it is one of `kept`, and what came with its order.
    fn discard(&self, server: &ServerName, id: &ReleaseId, kept: &[ReleaseId]) -> Result<(), Failure>;
    /// Keeps what is needed to undo a switch.
    fn snapshot(&self, server: &ServerName, switch: &Switch) -> Work;
    /// Stops what runs, and starts the switch's target. When that fails, what ran before is current again.
    fn switch(&self, server: &ServerName, switch: &Switch) -> Work;
    /// Puts a snapshot back: what ran before runs again, with its own checks passing.
    fn restore(&self, server: &ServerName, restore: Restore) -> Work;
    /// Makes this run, and nothing else of the server.
    fn run(&self, server: &ServerName, release: Option<ReleaseId>) -> Work;
    /// Starts the current release, unless it runs.
    fn start(&self, server: &ServerName) -> Work;
    /// Speaks to a server as a client would.
    fn test(&self, server: &ServerName, release: Release) -> Work;
    /// Runs checks of a running release, for a person who waits.
    fn check(&self, server: &ServerName, checks: Vec<HealthCheck>) -> BoxFuture<'static, Vec<CheckRun>>;
    /// The snapshots of a server.
    fn snapshots(&self, server: &ServerName) -> Work<Vec<SnapshotSummary>>;
    /// What is in one of them, and, where asked for, what has changed since.
    fn show_snapshot(&self, server: &ServerName, id: &SnapshotId, compare: bool) -> Work<SnapshotView>;
    /// Removes the releases and snapshots that are not kept.
    fn clean(&self, server: &ServerName, releases: Vec<ReleaseId>, snapshots: Vec<SnapshotId>) -> Work;
    /// Looks at a running release again and again, until the receiver is gone.
    fn watch(
        &self,
        server: &ServerName,
        id: &ReleaseId,
        release: Release,
        to: mpsc::Sender<Observation>,
    ) -> BoxFuture<'static, ()>;
    /// Whether there is anything of this server.
    fn knows(&self, server: &ServerName) -> bool;
    /// The release that is current.
    fn current(&self, server: &ServerName) -> Option<ReleaseId>;
    /// A release that is ready or runs.
    fn release(&self, server: &ServerName, id: &ReleaseId) -> Option<Release>;
    /// The last lines of a server's output.
    fn output(&self, server: &ServerName, lines: usize) -> Vec<String>;
    /// The last lines of its output since it was stopped the last time.
    fn output_of_this_run(&self, server: &ServerName, lines: usize) -> Vec<String>;
    /// How much room there is where the agent keeps its state, and what these servers use of it; nothing where that
    /// cannot be known.
    fn room(&self, _servers: &[ServerName]) -> BoxFuture<'static, Option<Room>> {
        Box::pin(std::future::ready(None))
    }
    /// Takes room in reserve for a full disk, unless it is taken.
    fn keep_reserve(&self) {}
    /// Gives the reserve back to the disk.
    fn give_up_reserve(&self) {}
    /// Waits until nothing is at work on a server any more, also of what was ended: its threads take a moment to notice.
    fn ended(&self, _server: &ServerName) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Gives a part of the reserve back to the disk, for the journal, and keeps the rest for what has to be put back.
    fn lend_reserve(&self) {}
    /// Keeps what is still to be known of the disk after the agent was started again.
    fn remember(&self, _what: &Remembered) -> Result<(), Failure> {
        Ok(())
    }
    /// What was kept of that.
    fn remembered(&self) -> Option<Remembered> {
        None
    }
    /// Stops a server at once, without changing what it is to run.
    fn halt(&self, _server: &ServerName) -> Work {
        Box::pin(std::future::ready(Ok(())))
    }
    /// Whether an operator has stopped a server by hand.
    fn is_stopped(&self, _server: &ServerName) -> bool {
        false
    }
    /// Takes samples of metrics; nothing where they cannot be read.
    fn sampler(&self) -> Option<Box<dyn Sampler>>;
}

/// Takes samples of a host's metrics.
pub trait Sampler: Send {
    /// One sample, of the host and of these servers.
    fn sample(&mut self, servers: &[ServerName]) -> MetricsSample;
}
