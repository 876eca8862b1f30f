//! A simulated host under a real agent: what it has on disk outlives the agent, work takes simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fleetwright_agent::{Machine, Observation, Restore, Sampler, Work};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::{
    CheckOutcome, CheckReport, CheckRun, HealthCheck, HealthReport, HealthStatus, Severity,
};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{ReleaseId, ServerName, SnapshotId};
use fleetwright_deploy::instance::Switch;
use fleetwright_deploy::release::Release;
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How often a running server is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a host's work takes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Staging a release.
    pub stage: Duration,
    /// Everything else.
    pub rest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { stage: Duration::from_millis(800), rest: Duration::from_millis(200) }
    }
}

/// The folder of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// What is ready, by id.
    pub releases: BTreeMap<ReleaseId, Vec<u8>>,
    /// What runs.
    pub current: Option<ReleaseId>,
    /// Stands for the content of the data folder, which every release changes when it is started.
    pub data: u64,
    incoming: BTreeMap<ReleaseId, Vec<u8>>,
    snapshots: BTreeMap<SnapshotId, (Option<ReleaseId>, u64)>,
    /// Every release that was switched to, in order.
    pub switches: Vec<ReleaseId>,
}

#[derive(Default)]
struct State {
    folders: BTreeMap<ServerName, Folder>,
    pace: Pace,
    /// Releases that never become healthy.
    broken: BTreeSet<ReleaseId>,
    /// What is being done.
    doing: Option<&'static str>,
}

/// The disk of a host, and how fast it is.
#[derive(Clone, Default)]
pub struct SimMachine(Arc<Mutex<State>>);

impl SimMachine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    /// Sets how long work takes from now on.
    pub fn set_pace(&self, pace: Pace) {
        self.state().pace = pace;
    }

    /// A release that will never become healthy here.
    pub fn breaks(&self, release: ReleaseId) {
        self.state().broken.insert(release);
    }

    /// What is being done, in the words of [`Machine`].
    pub fn doing(&self) -> Option<&'static str> {
        self.state().doing
    }

    /// What there is of a server.
    pub fn folder(&self, server: &ServerName) -> Folder {
        self.state().folders.get(server).cloned().unwrap_or_default()
    }

    /// Does something to the folder of a server, after the time that it takes.
    fn work<T: Send + 'static>(
        &self,
        name: &'static str,
        server: &ServerName,
        takes: impl FnOnce(Pace) -> Duration,
        what: impl FnOnce(&mut Folder) -> Result<T, Failure> + Send + 'static,
    ) -> Work<T> {
        let (this, server, takes) = (self.clone(), server.clone(), takes(self.state().pace));
        async move {
            this.state().doing = Some(name);
            sleep(takes).await;
            let mut state = this.state();
            state.doing = None;
            what(state.folders.entry(server).or_default())
        }
        .boxed()
    }
}

impl Machine for SimMachine {
    fn view(&self) -> BoxFuture<'static, HostView> {
        let view = HostView {
            address: "127.0.0.1".to_owned(),
            state_dir: "/simulated".to_owned(),
            labels: BTreeMap::new(),
            facts: None,
        };
        async move { view }.boxed()
    }

    fn receive(
        &self,
        server: &ServerName,
        id: &ReleaseId,
        release: &[u8],
        _: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        self.state().folders.entry(server.clone()).or_default().incoming.insert(id.clone(), release.to_vec());
        Ok(())
    }

    fn stage(&self, server: &ServerName, id: &ReleaseId, _: Option<Release>) -> Work {
        let id = id.clone();
        self.work(
            "stage",
            server,
            |pace| pace.stage,
            move |folder| {
                let Some(bytes) = folder.incoming.remove(&id).or_else(|| folder.releases.get(&id).cloned()) else {
                    return Err(Failure::new(FailureKind::DeploymentError, "stage", "nothing was received"));
                };
                folder.releases.insert(id, bytes);
                Ok(())
            },
        )
    }

    fn discard(&self, server: &ServerName, id: &ReleaseId, kept: &[ReleaseId]) -> Result<(), Failure> {
        let mut state = self.state();
        let folder = state.folders.entry(server.clone()).or_default();
        folder.incoming.remove(id);
        if !kept.contains(id) {
            folder.releases.remove(id);
        }
        Ok(())
    }

    fn snapshot(&self, server: &ServerName, switch: &Switch) -> Work {
        let snapshot = switch.snapshot.clone();
        self.work(
            "snapshot",
            server,
            |pace| pace.rest,
            move |folder| {
                let kept = (folder.current.clone(), folder.data);
                folder.snapshots.entry(snapshot).or_insert(kept);
                Ok(())
            },
        )
    }

    fn switch(&self, server: &ServerName, switch: &Switch) -> Work {
        let target = switch.spec.target.clone();
        self.work(
            "switch",
            server,
            |pace| pace.rest,
            move |folder| {
                folder.switches.extend(target.clone());
                folder.data = folder.data.wrapping_mul(31).wrapping_add(17);
                folder.current = target;
                Ok(())
            },
        )
    }

    fn restore(&self, server: &ServerName, restore: Restore) -> Work {
        self.work(
            "restore",
            server,
            |pace| pace.rest,
            move |folder| {
                if let Some(before) = folder.snapshots.get(&restore.switch.snapshot).cloned() {
                    (folder.current, folder.data) = before;
                }
                Ok(())
            },
        )
    }

    fn run(&self, server: &ServerName, release: Option<ReleaseId>) -> Work {
        self.work(
            "run",
            server,
            |pace| pace.rest,
            move |folder| {
                folder.current = release;
                Ok(())
            },
        )
    }

    fn start(&self, server: &ServerName) -> Work {
        self.work("start", server, |pace| pace.rest, |_| Ok(()))
    }

    fn test(&self, server: &ServerName, _: Release) -> Work {
        self.work("test", server, |pace| pace.rest, |_| Ok(()))
    }

    fn check(&self, _: &ServerName, _: Vec<HealthCheck>) -> BoxFuture<'static, Vec<CheckRun>> {
        async { Vec::new() }.boxed()
    }

    fn snapshots(&self, server: &ServerName) -> Work<Vec<SnapshotSummary>> {
        self.work("snapshots", server, |pace| pace.rest, |_| Ok(Vec::new()))
    }

    fn show_snapshot(&self, server: &ServerName, id: &SnapshotId, _: bool) -> Work<SnapshotView> {
        let missing = Failure::new(FailureKind::ConfigurationError, "look", format!("there is no snapshot {id}"));
        self.work("show_snapshot", server, |pace| pace.rest, |_| Err(missing))
    }

    fn clean(&self, server: &ServerName, releases: Vec<ReleaseId>, snapshots: Vec<SnapshotId>) -> Work {
        self.work(
            "clean",
            server,
            |pace| pace.rest,
            move |folder| {
                folder.releases.retain(|id, _| releases.contains(id));
                folder.snapshots.retain(|id, _| snapshots.contains(id));
                Ok(())
            },
        )
    }

    fn watch(
        &self,
        server: &ServerName,
        id: &ReleaseId,
        _: Release,
        to: mpsc::Sender<Observation>,
    ) -> BoxFuture<'static, ()> {
        let (this, server, release) = (self.clone(), server.clone(), id.clone());
        async move {
            loop {
                sleep(LOOK_INTERVAL).await;
                let broken = this.state().broken.contains(&release);
                let report = if broken { unhealthy() } else { healthy() };
                let (server, release) = (server.clone(), release.clone());
                let seen = Observation { server, release, report, ended: None, unsupervised: false };
                if to.send(seen).await.is_err() {
                    return;
                }
            }
        }
        .boxed()
    }

    fn knows(&self, server: &ServerName) -> bool {
        self.state().folders.contains_key(server)
    }

    fn current(&self, server: &ServerName) -> Option<ReleaseId> {
        self.folder(server).current
    }

    fn release(&self, server: &ServerName, id: &ReleaseId) -> Option<Release> {
        serde_json::from_slice(self.folder(server).releases.get(id)?).ok()
    }

    fn output(&self, _: &ServerName, _: usize) -> Vec<String> {
        vec!["simulated output".to_owned()]
    }

    fn output_of_this_run(&self, server: &ServerName, lines: usize) -> Vec<String> {
        self.output(server, lines)
    }

    fn sampler(&self) -> Option<Box<dyn Sampler>> {
        None
    }
}

fn healthy() -> HealthReport {
    HealthReport { status: HealthStatus::Healthy, checks: Vec::new(), mcp: None, restarts: 0 }
}

fn unhealthy() -> HealthReport {
    let outcome = CheckOutcome::Failing { message: "simulated".to_owned() };
    let checks = vec![CheckReport { name: "simulated".to_owned(), severity: Severity::Critical, outcome }];
    HealthReport { status: HealthStatus::Unhealthy, checks, mcp: None, restarts: 0 }
}
