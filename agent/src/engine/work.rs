//! Performing actions: each in a task of its own, one at a time per instance, its outcome an input again.

use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{ReleaseId, ServerName, SnapshotId};
use fleetwright_deploy::instance::{Instance, InstanceAction, InstanceEvent, StepKey, StepReport, Switch};
use fleetwright_deploy::release::Release;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Engine, Input, OUTPUT_LINES};
use crate::check::{McpClient, call_tool, end_session, http_client};
use crate::layout::{Layout, ServerLayout};
use crate::output;
use crate::runtime;
use crate::snapshot;
use crate::stage;
use crate::watch::watch;

/// How long an old release has to become healthy again after it was put back.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long the integration test of one server may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Engine {
    /// Does what an event led to. New work on an instance ends the old: restoring, above all, waits for nothing.
    pub(super) async fn perform(&mut self, server: &ServerName, actions: Vec<InstanceAction>) {
        for action in actions {
            match action {
                InstanceAction::Stage { key, release } => self.start_staging(server, key, release).await,
                InstanceAction::Discard { release } => {
                    self.end_work(server).await;
                    let (layout, kept) = (self.layout.server(server), self.kept(server));
                    if let Err(failure) = stage::discard(&layout, &release, &kept) {
                        tracing::warn!(%server, %failure, "a release that is not wanted could not be removed");
                    }
                }
                InstanceAction::TakeSnapshot(switch) => self.start_snapshot(server, switch).await,
                InstanceAction::Switch(switch) => self.start_switch(server, switch).await,
                InstanceAction::Verify(_) => self.watch_current(server),
                InstanceAction::Restore { switch, drain, .. } => self.start_restore(server, switch, drain).await,
                InstanceAction::Run { release } => {
                    self.end_work(server).await;
                    if let Err(failure) = run_release(&self.layout.server(server), release.as_ref()).await {
                        tracing::error!(%server, %failure, "what was put in order by hand could not be started");
                    }
                    self.watch_current(server);
                }
                InstanceAction::Report { .. } => {}
            }
        }
    }

    async fn start_staging(&mut self, server: &ServerName, key: StepKey, release: ReleaseId) {
        self.end_work(server).await;
        let (layout, running, installs) = (self.layout.server(server), self.running(server), self.installs.clone());
        let kept = self.kept(server);
        self.start_work(server, async move {
            let _permit = installs.acquire_owned().await;
            match stage::stage(&layout, &release, running.as_ref()).await {
                Ok(()) => InstanceEvent::StageSucceeded { key },
                Err(failure) => {
                    // What failed to be staged is of no use, and would only fill the disk.
                    let _ = stage::discard(&layout, &release, &kept);
                    InstanceEvent::StageFailed { key, failure }
                }
            }
        });
    }

    async fn start_snapshot(&mut self, server: &ServerName, switch: Switch) {
        self.end_work(server).await;
        let (layout, server_layout) = (self.layout.clone(), self.layout.server(server));
        self.start_work(server, async move {
            let key = switch.key.clone();
            let taken =
                blocking(move || snapshot::take(&layout, &server_layout, &switch.snapshot, switch.previous.as_ref()));
            match taken.await {
                Ok(()) => InstanceEvent::SnapshotSucceeded { key },
                Err(failure) => InstanceEvent::SnapshotFailed { key, failure },
            }
        });
    }

    async fn start_switch(&mut self, server: &ServerName, switch: Switch) {
        self.end_work(server).await;
        self.unwatch(server);
        if let Some(newest) = self.newest_connection {
            self.switched_over.insert(server.clone(), newest);
        }
        let layout = self.layout.server(server);
        self.start_work(server, async move {
            match run_release(&layout, switch.spec.target.as_ref()).await {
                Ok(()) => InstanceEvent::SwitchSucceeded { key: switch.key },
                Err(failure) => {
                    let lines = output::tail_of_this_run(&layout.log(), OUTPUT_LINES);
                    // What could not be started is not what is to run should the agent start again.
                    if let Err(failure) = runtime::switch(&layout, switch.previous.as_ref()) {
                        tracing::error!(%failure, "the release that ran before could not be made current again");
                    }
                    InstanceEvent::SwitchFailed {
                        key: switch.key,
                        failure: failure.output(lines.iter().map(String::as_str)),
                    }
                }
            }
        });
    }

    async fn start_restore(&mut self, server: &ServerName, switch: Switch, drain: bool) {
        self.end_work(server).await;
        self.unwatch(server);
        let (layout, server_layout, kept) = (self.layout.clone(), self.layout.server(server), self.kept(server));
        self.start_work(server, async move {
            let key = switch.key.clone();
            match restore(&layout, &server_layout, &switch, drain, &kept).await {
                Ok(()) => InstanceEvent::RestoreSucceeded { key },
                Err(failure) => {
                    let lines = output::tail_of_this_run(&server_layout.log(), OUTPUT_LINES);
                    let failure = failure.output(lines.iter().map(String::as_str));
                    InstanceEvent::RestoreFailed { key, failure }
                }
            }
        });
    }

    pub(super) fn start_test(&mut self, server: &ServerName, key: StepKey) {
        let Some(release) = self.running(server) else { return };
        let (server, inputs) = (server.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let report = match tokio::time::timeout(TEST_TIMEOUT, test(&release)).await {
                Ok(Ok(())) => StepReport::Tested,
                Ok(Err(message)) => StepReport::TestFailed(
                    Failure::new(FailureKind::HealthCheckError, "integration test", message)
                        .hint("the server runs, but does not do what its definition's `integration_tests` expect"),
                ),
                Err(_) => StepReport::TestFailed(Failure::new(
                    FailureKind::TimeoutError,
                    "integration test",
                    format!("not done within {} s", TEST_TIMEOUT.as_secs()),
                )),
            };
            let _ = inputs.send(Input::Report { server, key, report }).await;
        });
    }

    /// The releases of a server that must not be removed: the one that runs, and those that undoing deployments
    /// goes back to.
    fn kept(&self, server: &ServerName) -> Vec<ReleaseId> {
        let instance = self.instances.get(server);
        let current = instance.and_then(|instance| instance.current().cloned());
        let undos = instance.map(Instance::undos).unwrap_or_default();
        current.into_iter().chain(undos.iter().filter_map(|undo| undo.previous.clone())).collect()
    }

    /// Keeps what runs and what is needed to undo the last deployments, and removes the rest.
    pub(super) fn start_cleaning(&mut self, server: &ServerName, key: StepKey) {
        let (layout, server_layout) = (self.layout.clone(), self.layout.server(server));
        let undos = self.instances.get(server).map(Instance::undos).unwrap_or_default();
        let snapshots: Vec<SnapshotId> = undos.iter().map(|undo| undo.snapshot.clone()).collect();
        let kept = self.kept(server);
        let (server, inputs) = (server.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let pruned = blocking(move || {
                let snapshots: Vec<&SnapshotId> = snapshots.iter().collect();
                stage::prune(&server_layout, &kept)?;
                snapshot::prune(&layout, &server_layout, &snapshots)
            });
            let report = match pruned.await {
                Ok(()) => StepReport::Cleaned,
                Err(failure) => StepReport::Failed(failure),
            };
            let _ = inputs.send(Input::Report { server, key, report }).await;
        });
    }

    /// Starts what should run, outside of any step, and watches it.
    pub(super) async fn start_current(&mut self, server: &ServerName) {
        let layout = self.layout.server(server);
        if let Err(failure) = runtime::start(&layout).await {
            tracing::error!(%server, %failure, "could not be started");
        }
        if !self.watchers.contains_key(server) {
            self.watch_current(server);
        }
    }

    fn start_work(&mut self, server: &ServerName, work: impl Future<Output = InstanceEvent> + Send + 'static) {
        let (name, inputs) = (server.clone(), self.inputs.clone());
        let task = tokio::spawn(async move {
            let event = work.await;
            let _ = inputs.send(Input::Performed { server: name, event }).await;
        });
        self.work.insert(server.clone(), task);
    }

    /// Ends the work that is under way on an instance, and waits until it has.
    async fn end_work(&mut self, server: &ServerName) {
        if let Some(task) = self.work.remove(server) {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Stops what runs, makes the target current, and starts it.
async fn run_release(layout: &ServerLayout, target: Option<&ReleaseId>) -> Result<(), Failure> {
    runtime::stop(layout, true).await?;
    runtime::switch(layout, target)?;
    match target {
        Some(_) => runtime::start(layout).await,
        None => Ok(()),
    }
}

/// Puts a snapshot back. What ran before must run again, with its own checks passing; a server whose checks
/// did not pass before the switch either is only started.
async fn restore(
    layout: &Layout,
    server: &ServerLayout,
    switch: &Switch,
    drain: bool,
    kept: &[ReleaseId],
) -> Result<(), Failure> {
    runtime::stop(server, drain).await?;
    // Without a snapshot nothing was touched yet: what ran before only has to run again.
    if server.snapshot(&switch.snapshot).exists() {
        let (layout, server, id) = (layout.clone(), server.clone(), switch.snapshot.clone());
        blocking(move || snapshot::restore(&layout, &server, &id)).await?;
    }
    run_release(server, switch.previous.as_ref()).await?;
    if let Some(target) = switch.spec.target.as_ref().filter(|target| switch.previous.as_ref() != Some(target)) {
        let undone: Vec<ReleaseId> = kept.iter().filter(|release| *release != target).cloned().collect();
        stage::discard(server, target, &undone)?;
    }
    match &switch.previous {
        Some(previous) => recovered(server, previous).await,
        None => Ok(()),
    }
}

/// Whether an old release is healthy again, by its own checks.
async fn recovered(server: &ServerLayout, id: &ReleaseId) -> Result<(), Failure> {
    let Some(release) = stage::load(&server.release(id)) else { return Ok(()) };
    let (to, mut observations) = mpsc::channel(1);
    let watcher = tokio::spawn(watch(server.clone(), id.clone(), release, to));
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    let mut reason = "no check has answered yet".to_owned();
    let outcome = loop {
        match tokio::time::timeout_at(deadline, observations.recv()).await {
            Ok(Some(seen)) if seen.report.status.is_available() => break Ok(()),
            Ok(Some(seen)) => reason = seen.report.reason(),
            Ok(None) | Err(_) => {
                let message = format!(
                    "the old release is back, but not healthy within {} s: {reason}",
                    RECOVERY_TIMEOUT.as_secs()
                );
                break Err(Failure::new(FailureKind::HealthCheckError, "restore", message).hint(
                    "its files are as they were; look for what else has changed on the host, then deploy again",
                ));
            }
        }
    };
    watcher.abort();
    outcome
}

/// Speaks to an MCP server as a client would: handshake, tools, and the calls of its definition.
async fn test(release: &Release) -> Result<(), String> {
    let Some(url) = release.mcp_url() else { return Ok(()) };
    let http = http_client().map_err(|error| error.to_string())?;
    let mut client = McpClient::new(http);
    let session = match client.connect(&url).await {
        Ok(session) => session,
        Err(error) if error.auth_challenge().is_some() => return Ok(()),
        Err(error) => {
            return Err(format!("{url} does not complete the MCP handshake: {}", crate::check::chain(&error)));
        }
    };
    let mut outcome = session.list_all_tools().await.map(drop).map_err(|error| error.to_string());
    for call in &release.tool_calls {
        if outcome.is_ok() {
            outcome = call_tool(&session, call).await;
        }
    }
    end_session(session).await;
    outcome
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(FailureKind::DeploymentError, "agent", error.to_string())),
    }
}
