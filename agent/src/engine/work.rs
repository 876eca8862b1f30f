//! Performing actions: each in a task of its own, one at a time per instance, its outcome an input again.

use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{ReleaseId, ServerName, SnapshotId};
use fleetwright_deploy::instance::{
    Instance, InstanceAction, InstanceEvent, InstanceState, StepKey, StepReport, Switch,
};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::{Engine, Input, OUTPUT_LINES, UnderWay};
use crate::machine::Restore;

/// How long the integration test of one server may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Engine {
    /// Does what an event led to. New work on an instance ends the old. Restoring, above all, waits for nothing but the
    /// threads of what was ended.
    pub(super) async fn perform(&mut self, server: &ServerName, actions: Vec<InstanceAction>) {
        for action in actions {
            match action {
                InstanceAction::Stage { key, release } => self.start_staging(server, key, release).await,
                InstanceAction::Discard { release } => {
                    if let Some(run) = self.end_preparing(server).await {
                        self.work.insert(server.clone(), run);
                    }
                    self.start_discarding(server, release);
                }
                InstanceAction::TakeSnapshot(switch) => self.start_snapshot(server, switch).await,
                InstanceAction::Switch(switch) => self.start_switch(server, switch).await,
                InstanceAction::Verify(_) => {
                    // What is just being started is watched once it was.
                    if !self.work.get(server).is_some_and(|work| work.runs && !work.task.is_finished()) {
                        self.watch_current(server);
                    }
                }
                InstanceAction::Restore { switch, drain, .. } => self.start_restore(server, switch, drain).await,
                InstanceAction::Run { release } => self.start_run(server, release).await,
                InstanceAction::Report { .. } => {}
            }
        }
    }

    /// Removes a release that is not wanted, once what has made it has ended: its threads take a moment to notice.
    fn start_discarding(&mut self, server: &ServerName, release: ReleaseId) {
        if self.machine.ended(server).now_or_never().is_some() {
            return self.discard(server, &release);
        }
        let (name, inputs, ended) = (server.clone(), self.inputs.clone(), self.machine.ended(server));
        tokio::spawn(async move {
            ended.await;
            let _ = inputs.send(Input::Discard { server: name, release }).await;
        });
    }

    /// Removes a release that is not wanted, unless it has come into motion again.
    pub(super) fn discard(&self, server: &ServerName, release: &ReleaseId) {
        let is_coming = self.instances.get(server).is_some_and(|instance| match instance.state() {
            InstanceState::Idle => false,
            InstanceState::Staging { release: coming, .. } | InstanceState::Staged { release: coming, .. } => {
                coming == release
            }
            InstanceState::Snapshotting(switch)
            | InstanceState::Switching(switch)
            | InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. }
            | InstanceState::Restoring { switch, .. }
            | InstanceState::Stuck { switch, .. } => switch.spec.target.as_ref() == Some(release),
        });
        if is_coming {
            return;
        }
        if let Err(failure) = self.machine.discard(server, release, &self.kept(server)) {
            tracing::warn!(%server, %failure, "a release that is not wanted could not be removed");
        }
    }

    async fn start_staging(&mut self, server: &ServerName, key: StepKey, release: ReleaseId) {
        let run = self.end_preparing(server).await;
        let (machine, name, running) = (self.machine.clone(), server.clone(), self.running(server));
        let kept = self.kept(server);
        self.start_work(server, async move {
            if let Some(run) = run {
                let _ = run.task.await;
            }
            match machine.stage(&name, &release, running).await {
                Ok(()) => InstanceEvent::StageSucceeded { key },
                Err(failure) => {
                    // What failed to be staged is of no use, and would only fill the disk.
                    let _ = machine.discard(&name, &release, &kept);
                    InstanceEvent::StageFailed { key, failure }
                }
            }
        });
    }

    async fn start_snapshot(&mut self, server: &ServerName, switch: Switch) {
        let run = self.end_preparing(server).await;
        let taking = self.machine.snapshot(server, &switch);
        self.start_work(server, async move {
            if let Some(run) = run {
                let _ = run.task.await;
            }
            match taking.await {
                Ok(()) => InstanceEvent::SnapshotSucceeded { key: switch.key },
                Err(failure) => InstanceEvent::SnapshotFailed { key: switch.key, failure },
            }
        });
    }

    async fn start_switch(&mut self, server: &ServerName, switch: Switch) {
        self.end_work(server).await;
        self.unwatch(server);
        self.disk.let_go(server);
        if let Some(newest) = self.newest_connection {
            self.switched_over.insert(server.clone(), newest);
        }
        let (machine, name) = (self.machine.clone(), server.clone());
        self.start_work(server, async move {
            match machine.switch(&name, &switch).await {
                Ok(()) => InstanceEvent::SwitchSucceeded { key: switch.key },
                Err(failure) => {
                    let lines = machine.output_of_this_run(&name, OUTPUT_LINES);
                    let failure = failure.output(lines.iter().map(String::as_str));
                    InstanceEvent::SwitchFailed { key: switch.key, failure }
                }
            }
        });
    }

    pub(super) async fn start_restore(&mut self, server: &ServerName, switch: Switch, drain: bool) {
        self.end_work(server).await;
        self.unwatch(server);
        self.disk.let_go(server);
        // Another server may fill the disk that this one needs room on.
        self.make_room(Some(server)).await;
        let (machine, name, kept) = (self.machine.clone(), server.clone(), self.kept(server));
        self.start_work(server, async move {
            let key = switch.key.clone();
            match machine.restore(&name, Restore { switch, drain, kept }).await {
                Ok(()) => InstanceEvent::RestoreSucceeded { key },
                Err(failure) => {
                    let lines = machine.output_of_this_run(&name, OUTPUT_LINES);
                    let failure = failure.output(lines.iter().map(String::as_str));
                    InstanceEvent::RestoreFailed { key, failure }
                }
            }
        });
    }

    /// Makes this run, and nothing else of the server, outside of any step.
    pub(super) async fn start_run(&mut self, server: &ServerName, release: Option<ReleaseId>) {
        self.end_work(server).await;
        self.unwatch(server);
        self.disk.let_go(server);
        let running = self.machine.run(server, release);
        self.start_running(server, running);
    }

    /// Starts what should run, outside of any step, and watches it.
    pub(super) fn start_current(&mut self, server: &ServerName) {
        let running = self.machine.start(server);
        self.start_running(server, running);
    }

    fn start_running(&mut self, server: &ServerName, running: crate::machine::Work) {
        let (name, inputs) = (server.clone(), self.inputs.clone());
        let task = tokio::spawn(async move {
            if let Err(failure) = running.await {
                tracing::error!(server = %name, %failure, "what is to run could not be made to run");
            }
            let _ = inputs.send(Input::Ran(name)).await;
        });
        self.work.insert(server.clone(), UnderWay { task, runs: true });
    }

    pub(super) fn start_test(&mut self, server: &ServerName, key: StepKey) {
        let Some(release) = self.running(server) else { return };
        let (server, inputs, testing) = (server.clone(), self.inputs.clone(), self.machine.test(server, release));
        tokio::spawn(async move {
            let report = match tokio::time::timeout(TEST_TIMEOUT, testing).await {
                Ok(Ok(())) => StepReport::Tested,
                Ok(Err(failure)) => StepReport::TestFailed(failure),
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
        let undos = self.instances.get(server).map(Instance::undos).unwrap_or_default();
        let snapshots: Vec<SnapshotId> = undos.iter().map(|undo| undo.snapshot.clone()).collect();
        let cleaning = self.machine.clean(server, self.kept(server), snapshots);
        let (server, inputs) = (server.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let report = match cleaning.await {
                Ok(()) => StepReport::Cleaned,
                Err(failure) => StepReport::Failed(failure),
            };
            let _ = inputs.send(Input::Report { server, key, report }).await;
        });
    }

    fn start_work(&mut self, server: &ServerName, work: impl Future<Output = InstanceEvent> + Send + 'static) {
        let (name, inputs) = (server.clone(), self.inputs.clone());
        let task: JoinHandle<()> = tokio::spawn(async move {
            let event = work.await;
            let _ = inputs.send(Input::Performed { server: name, event }).await;
        });
        self.work.insert(server.clone(), UnderWay { task, runs: false });
    }

    /// Ends the work under way on an instance, unless it makes run what is to run: what only prepares a switch waits
    /// for that instead.
    async fn end_preparing(&mut self, server: &ServerName) -> Option<UnderWay> {
        if self.work.get(server).is_some_and(|work| work.runs) {
            return self.work.remove(server);
        }
        self.end_work(server).await;
        None
    }

    /// Ends the work that is under way on an instance, and waits until it has.
    async fn end_work(&mut self, server: &ServerName) {
        if let Some(work) = self.work.remove(server) {
            work.task.abort();
            let _ = work.task.await;
        }
    }
}
