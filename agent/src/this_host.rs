//! The machine that a real agent works on: this host.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::{CheckRun, HealthCheck};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{ReleaseId, ServerName, SnapshotId};
use fleetwright_deploy::instance::Switch;
use fleetwright_deploy::release::Release;
use fleetwright_deploy::room::{Remembered, Room};
use fleetwright_protocol::command::CHECK_RUN_TIMEOUT;
use fleetwright_protocol::report::MetricsSample;
use fleetwright_protocol::snapshot::{SnapshotSummary, SnapshotView};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use quinn::Connection;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::aside::{Turns, aside};
use crate::check::{Checker, McpClient, Place, headers, http_client};
use crate::facts::Known;
use crate::install::Artifacts;
use crate::layout::{Layout, ServerLayout};
use crate::machine::{Machine, Observation, Restore, Sampler, Work};
use crate::room::{self, Reserve};
use crate::{container, handover, metrics, runtime, snapshot, stage};

/// How many releases are installed at once: package clients are hungry.
const INSTALLS_MAX: usize = 2;
/// How long a comparison of a snapshot with what is there may take, with its wait for others.
const COMPARISON_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a restore waits for work that was ended: what still goes on then hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// How long an old release has to become healthy again after it was put back.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long it must be healthy without a break.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);

/// This host, worked on in one state folder.
pub struct ThisHost {
    layout: Layout,
    address: String,
    labels: BTreeMap<String, String>,
    installs: Arc<Semaphore>,
    artifacts: Artifacts,
    facts: Arc<Known>,
    connection: watch::Sender<Option<Connection>>,
    turns: Turns,
    /// Comparing what is there with a snapshot reads all of it: one at a time.
    comparisons: Arc<Semaphore>,
    /// Held while the reserve is being taken.
    reserving: Arc<Mutex<()>>,
}

impl ThisHost {
    /// This host, with what was said of it when it was enrolled.
    pub fn new(state_dir: &Path, address: String, labels: BTreeMap<String, String>) -> Self {
        let layout = Layout::new(state_dir);
        let connection = watch::Sender::new(None);
        let artifacts = Artifacts::new(layout.clone(), connection.subscribe());
        let facts = Known::new(state_dir, layout.facts());
        let installs = Arc::new(Semaphore::new(INSTALLS_MAX));
        Self {
            layout,
            address,
            labels,
            installs,
            artifacts,
            facts,
            connection,
            turns: Turns::default(),
            comparisons: Arc::new(Semaphore::new(1)),
            reserving: Arc::default(),
        }
    }
}

impl Machine for ThisHost {
    fn view(&self) -> BoxFuture<'static, HostView> {
        let (address, labels) = (self.address.clone(), self.labels.clone());
        let (state_dir, facts) = (self.layout.state_dir().to_owned(), self.facts.clone());
        async move {
            facts.follow();
            HostView { address, state_dir: state_dir.display().to_string(), labels, facts: Some(facts.facts()) }
        }
        .boxed()
    }

    fn views(&self) -> watch::Receiver<u64> {
        self.facts.changes()
    }

    fn refresh(&self) -> Work<HostView> {
        let (facts, view) = (self.facts.clone(), self.view());
        async move {
            facts.refresh().await;
            Ok(view.await)
        }
        .boxed()
    }

    fn connected(&self, connection: &Connection) {
        self.connection.send_replace(Some(connection.clone()));
    }

    fn confirmed(&self, server: &ServerName) {
        handover::confirm(&self.layout.server(server));
    }

    fn receive(
        &self,
        server: &ServerName,
        id: &ReleaseId,
        release: &[u8],
        secrets: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        stage::receive(&self.layout.server(server), id, release, secrets)
    }

    fn stage(&self, server: &ServerName, id: &ReleaseId, running: Option<Release>) -> Work {
        let (layout, id, installs) = (self.layout.server(server), id.clone(), self.installs.clone());
        let (artifacts, facts) = (self.artifacts.clone(), self.facts.clone());
        let staging = async move {
            let _permit = installs.acquire_owned().await;
            stage::stage(&layout, &id, running.as_ref(), &artifacts, &facts).await
        };
        self.turns.take(server, staging).boxed()
    }

    fn discard(&self, server: &ServerName, id: &ReleaseId, kept: &[ReleaseId]) -> Result<(), Failure> {
        stage::discard(&self.layout.server(server), id, kept)
    }

    fn snapshot(&self, name: &ServerName, switch: &Switch) -> Work {
        let (layout, server) = (self.layout.clone(), self.layout.server(name));
        let (id, previous, target) = (switch.snapshot.clone(), switch.previous.clone(), switch.spec.target.clone());
        let work = async move { snapshot::take(&layout, &server, &id, previous.as_ref(), target.as_ref()).await };
        self.turns.take(name, work).boxed()
    }

    fn switch(&self, name: &ServerName, switch: &Switch) -> Work {
        let (layout, server, switch) = (self.layout.clone(), self.layout.server(name), switch.clone());
        let work = async move {
            let outcome = switch_over(&layout, &server, &switch).await;
            // What could not be started is not what is to run should the agent start again.
            if outcome.is_err()
                && let Err(failure) = runtime::switch(&server, switch.previous.as_ref())
            {
                tracing::error!(%failure, "the release that ran before could not be made current again");
            }
            outcome
        };
        self.turns.take(name, work).boxed()
    }

    fn restore(&self, name: &ServerName, restore: Restore) -> Work {
        let (layout, server) = (self.layout.clone(), self.layout.server(name));
        let (beside, restore_beside) = (server.clone(), restore.clone());
        let work = async move { put_back(&layout, &server, &restore).await };
        let in_turn = self.turns.take_within(name, HANGS_AFTER, work);
        async move {
            match in_turn.await {
                Some(outcome) => outcome,
                None => put_back_beside(&beside, &restore_beside).await,
            }
        }
        .boxed()
    }

    fn run(&self, name: &ServerName, release: Option<ReleaseId>) -> Work {
        let layout = self.layout.server(name);
        let work = async move { run_release(&layout, release.as_ref(), false).await };
        self.turns.take(name, work).boxed()
    }

    fn start(&self, name: &ServerName) -> Work {
        let layout = self.layout.server(name);
        let work = async move { runtime::start(&layout).await };
        self.turns.take(name, work).boxed()
    }

    fn test(&self, server: &ServerName, release: Release) -> Work {
        let secrets = stage::checked_secrets(&self.layout.server(server).current_release());
        async move {
            test(&release, &secrets).await.map_err(|message| {
                let hint = match release.tool_calls.is_empty() {
                    true => "the server runs, and does not speak MCP as clients need it; without MCP it is `transport: none`",
                    false => "the server runs, but does not do what its definition's `integration_tests` expect",
                };
                Failure::new(FailureKind::HealthCheckError, "integration test", message).hint(hint)
            })
        }
        .boxed()
    }

    fn check(&self, server: &ServerName, checks: Vec<HealthCheck>) -> BoxFuture<'static, Vec<CheckRun>> {
        let server = self.layout.server(server);
        let current = server.current_release();
        let secrets = stage::checked_secrets(&current);
        async move {
            let Some(release) = stage::load(&current) else { return Vec::new() };
            match Checker::new(secrets, Place { server, release }) {
                Ok(checker) => checker.run_all(&checks, CHECK_RUN_TIMEOUT.into()).await,
                Err(_) => Vec::new(),
            }
        }
        .boxed()
    }

    fn snapshots(&self, server: &ServerName) -> Work<Vec<SnapshotSummary>> {
        let server = self.layout.server(server);
        aside(move || Ok(snapshot::list(&server))).boxed()
    }

    fn show_snapshot(&self, server: &ServerName, id: &SnapshotId, compare: bool) -> Work<SnapshotView> {
        let (server, id, comparisons) = (self.layout.server(server), id.clone(), self.comparisons.clone());
        async move {
            if !compare {
                return aside(move || snapshot::show(&server, &id, false)).await;
            }
            let comparing = async {
                let _alone = comparisons.acquire().await;
                aside(move || snapshot::show(&server, &id, true)).await
            };
            timeout(COMPARISON_TIMEOUT, comparing).await.unwrap_or_else(|_| {
                let message = format!("what is there is not compared within {} s", COMPARISON_TIMEOUT.as_secs());
                Err(Failure::new(FailureKind::TimeoutError, "look", message).hint(
                    "another comparison may be under way on this host; `fleetwright snapshots show` shows what was kept",
                ))
            })
        }
        .boxed()
    }

    fn clean(&self, server: &ServerName, releases: Vec<ReleaseId>, snapshots: Vec<SnapshotId>) -> Work {
        let (layout, server) = (self.layout.clone(), self.layout.server(server));
        async move {
            let images_of = layout.clone();
            aside(move || {
                stage::prune(&server, &releases)?;
                snapshot::prune(&layout, &server, &snapshots)
            })
            .await?;
            container::remove_unused_images(&images_of).await
        }
        .boxed()
    }

    fn watch(
        &self,
        server: &ServerName,
        id: &ReleaseId,
        release: Release,
        to: mpsc::Sender<Observation>,
    ) -> BoxFuture<'static, ()> {
        crate::watch::watch(self.layout.server(server), id.clone(), release, to).boxed()
    }

    fn knows(&self, server: &ServerName) -> bool {
        self.layout.server(server).folder().exists()
    }

    fn current(&self, server: &ServerName) -> Option<ReleaseId> {
        runtime::current(&self.layout.server(server))
    }

    fn release(&self, server: &ServerName, id: &ReleaseId) -> Option<Release> {
        stage::load(&self.layout.server(server).release(id))
    }

    fn output(&self, server: &ServerName, lines: usize) -> Vec<String> {
        runtime::output(&self.layout.server(server), lines, false)
    }

    fn output_of_this_run(&self, server: &ServerName, lines: usize) -> Vec<String> {
        runtime::output(&self.layout.server(server), lines, true)
    }

    fn room(&self, servers: &[ServerName]) -> BoxFuture<'static, Option<Room>> {
        let (layout, servers) = (self.layout.clone(), servers.to_vec());
        async move { tokio::task::spawn_blocking(move || room::measure(&layout, &servers)).await.ok().flatten() }
            .boxed()
    }

    fn keep_reserve(&self) {
        let (reserve, reserving) = (Reserve::of(&self.layout), self.reserving.clone());
        // What is being kept already is not kept twice.
        tokio::task::spawn_blocking(move || reserving.try_lock().map(|_alone| reserve.keep()).ok());
    }

    fn lend_reserve(&self) {
        Reserve::of(&self.layout).lend();
    }

    fn remember(&self, what: &Remembered) -> Result<(), Failure> {
        let path = self.layout.remembered();
        store::write_private(&path, &serde_json::to_vec(what).unwrap_or_default())
            .map_err(|error| Failure::new(FailureKind::ResourceError, "room", error.to_string()))
    }

    fn remembered(&self) -> Option<Remembered> {
        serde_json::from_slice(&fs::read(self.layout.remembered()).ok()?).ok()
    }

    fn give_up_reserve(&self) {
        Reserve::of(&self.layout).give_up();
    }

    fn ended(&self, server: &ServerName) -> BoxFuture<'static, ()> {
        self.turns.take(server, std::future::ready(())).boxed()
    }

    fn halt(&self, server: &ServerName) -> Work {
        let server = self.layout.server(server);
        async move { runtime::stop(&server, false).await }.boxed()
    }

    fn is_stopped(&self, server: &ServerName) -> bool {
        self.layout.server(server).stopped().exists()
    }

    fn sampler(&self) -> Option<Box<dyn Sampler>> {
        match metrics::Sampler::new() {
            Ok(sampler) => Some(Box::new(HostSampler { sampler, layout: self.layout.clone() })),
            Err(error) => {
                tracing::warn!(%error, "this host's metrics cannot be read");
                None
            }
        }
    }
}

struct HostSampler {
    sampler: metrics::Sampler,
    layout: Layout,
}

impl Sampler for HostSampler {
    fn sample(&mut self, servers: &[ServerName]) -> MetricsSample {
        let leaders =
            servers.iter().filter_map(|server| Some((server.clone(), runtime::pid(&self.layout.server(server))?)));
        self.sampler.sample(self.layout.state_dir(), &leaders.collect())
    }
}

/// Stops what runs, keeps what it has changed since the snapshot was begun, and starts the target.
async fn switch_over(layout: &Layout, server: &ServerLayout, switch: &Switch) -> Result<(), Failure> {
    // It runs while it waits for others.
    let turn = layout.turn_to_settle().await;
    runtime::stop(server, true).await?;
    snapshot::settle(layout, server, &switch.snapshot, turn).await?;
    run_release(server, switch.spec.target.as_ref(), true).await
}

/// Stops what runs, makes the target current, and starts it, which gives its data to its user.
async fn run_release(layout: &ServerLayout, target: Option<&ReleaseId>, anew: bool) -> Result<(), Failure> {
    runtime::stop(layout, true).await?;
    runtime::switch(layout, target)?;
    match target {
        Some(target) => {
            runtime::begin(layout, target, anew)?;
            runtime::start(layout).await
        }
        None => runtime::forget(layout).await,
    }
}

/// Puts a snapshot back. What ran before must run again, with its own checks passing; a server whose checks
/// did not pass before the switch either is only started.
async fn put_back(layout: &Layout, server: &ServerLayout, restore: &Restore) -> Result<(), Failure> {
    let Restore { switch, drain, .. } = restore;
    runtime::stop(server, *drain).await?;
    if room::free(layout).is_some_and(|room| room.is_critical()) {
        // What frees room comes first. The reserve only now: what has just been stopped would have taken that too.
        tracing::warn!(server = server.name(), "the disk is full: the reserve is given up to put it back");
        Reserve::of(layout).give_up();
        put_away(server, restore).await?;
        snapshot::make_room(layout, server, &switch.snapshot).await?;
    }
    // Without a snapshot nothing was touched yet: what ran before only has to run again.
    if server.snapshot(&switch.snapshot).exists() {
        snapshot::restore(layout, server, &switch.snapshot).await?;
    }
    run_release(server, switch.previous.as_ref(), false).await?;
    put_away(server, restore).await?;
    match &switch.previous {
        Some(previous) => recovered(server, previous).await,
        None => Ok(()),
    }
}

/// What was ended on a server hangs, as on a disk that does not answer. As long as that has only kept what is there, what ran before
/// just has to run again; it must not wait for that disk.
async fn put_back_beside(server: &ServerLayout, restore: &Restore) -> Result<(), Failure> {
    let Restore { switch, drain, .. } = restore;
    // The disk that hangs may be the one with the state: then nothing is known.
    let settled = timeout(HANGS_AFTER, snapshot::is_settled(server, &switch.snapshot)).await;
    if settled.unwrap_or(Ok(true))? {
        let message =
            "what was ended is still at work, as on a disk that does not answer: nothing can be put back beside it";
        let failure = Failure::new(FailureKind::ResourceError, "restore", message);
        return Err(failure.hint("look at the disks of the host, then start its agent again"));
    }
    tracing::warn!(server = server.name(), "what was ended hangs: what ran before is started beside it");
    runtime::stop(server, *drain).await?;
    run_release(server, switch.previous.as_ref(), false).await?;
    match &switch.previous {
        Some(previous) => recovered(server, previous).await,
        None => Ok(()),
    }
}

/// Removes the release that is not to run any more.
async fn put_away(server: &ServerLayout, restore: &Restore) -> Result<(), Failure> {
    let Restore { switch, kept, .. } = restore;
    let Some(target) = switch.spec.target.as_ref().filter(|target| switch.previous.as_ref() != Some(target)) else {
        return Ok(());
    };
    let undone: Vec<ReleaseId> = kept.iter().filter(|release| *release != target).cloned().collect();
    let (server, target) = (server.clone(), target.clone());
    aside(move || stage::discard(&server, &target, &undone)).await
}

/// Whether an old release is healthy again, by its own checks, and stays so for a moment: one that ends soon after its
/// start is there at first, too.
async fn recovered(server: &ServerLayout, id: &ReleaseId) -> Result<(), Failure> {
    let Some(release) = stage::load(&server.release(id)) else { return Ok(()) };
    let (to, mut observations) = mpsc::channel(1);
    let watcher = tokio::spawn(crate::watch::watch(server.clone(), id.clone(), release, to));
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    let mut reason = "no check has answered yet".to_owned();
    // Since when it is healthy, and how often it had been started anew by then.
    let mut healthy: Option<(Instant, u32)> = None;
    let outcome = loop {
        match tokio::time::timeout_at(deadline, observations.recv()).await {
            Ok(Some(seen)) if seen.report.status.is_available() => {
                let restarts = seen.report.restarts;
                match healthy {
                    Some((at, before)) if before == restarts => {
                        if at.elapsed() >= RECOVERED_AFTER {
                            break Ok(());
                        }
                    }
                    Some(_) | None => healthy = Some((Instant::now(), restarts)),
                }
            }
            Ok(Some(seen)) => (healthy, reason) = (None, seen.report.reason()),
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
async fn test(release: &Release, secrets: &BTreeMap<String, String>) -> Result<(), String> {
    let Some(url) = release.mcp_url() else { return Ok(()) };
    let http = http_client().map_err(|error| error.to_string())?;
    let headers = headers(release.mcp_headers().iter(), secrets)?;
    McpClient::new(http).test(&url, headers, &release.tool_calls).await
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::instance::{StepKey, SwitchSpec};
    use fleetwright_deploy::room::Held;
    use fleetwright_deploy::time::Length;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_on_a_server_waits_until_what_was_ended_of_it_has_ended() {
        let folder = tempfile::tempdir().expect("folder");
        let host = ThisHost::new(folder.path(), "127.0.0.1".to_owned(), BTreeMap::new());
        let [one, other] = ["one", "other"].map(|name| name.parse::<ServerName>().expect("name"));
        for server in [&one, &other] {
            fs::create_dir_all(host.layout.server(server).folder()).expect("folder");
        }
        let ((began, begun), (release, released)) = (oneshot::channel(), oneshot::channel::<()>());
        let settling = tokio::spawn(host.turns.take(
            &one,
            aside(move || {
                began.send(()).expect("heard");
                released.blocking_recv().expect("released");
                Ok(())
            }),
        ));
        begun.await.expect("begun");
        settling.abort();
        assert!(settling.await.is_err_and(|error| error.is_cancelled()));
        let mut run = std::pin::pin!(host.run(&one, None));
        let mut ended = std::pin::pin!(host.ended(&one));
        assert!(run.as_mut().now_or_never().is_none() && ended.as_mut().now_or_never().is_none());
        host.run(&other, None).await.expect("another server does not wait");
        assert!(run.as_mut().now_or_never().is_none(), "its thread still works");
        release.send(()).expect("it waits");
        run.await.expect("it runs nothing");
        ended.await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_ran_before_runs_again_although_what_was_ended_hangs_unless_things_were_changed() {
        let folder = tempfile::tempdir().expect("folder");
        let host = ThisHost::new(folder.path(), "127.0.0.1".to_owned(), BTreeMap::new());
        let name: ServerName = "one".parse().expect("name");
        let (began, begun) = oneshot::channel();
        let hangs = tokio::spawn(host.turns.take(&name, async move {
            began.send(()).expect("heard");
            std::future::pending::<()>().await;
        }));
        begun.await.expect("begun");
        let spec = SwitchSpec {
            target: None,
            dead_man: None,
            healthy_deadline: Length::from_secs(1),
            min_healthy_time: Length::ZERO,
        };
        let key = StepKey { deployment: "d1-00000000".parse().expect("id"), attempt: 1 };
        let snapshot: SnapshotId = "d1-aa-1".parse().expect("id");
        let switch = Switch { key, spec, snapshot: snapshot.clone(), previous: None, previous_by: None };
        let restore = || Restore { switch: switch.clone(), drain: false, kept: Vec::new() };
        fs::create_dir_all(host.layout.server(&name).folder()).expect("folder");
        host.restore(&name, restore()).await.expect("nothing ran before, and nothing was changed");
        let kept = host.layout.server(&name).snapshot(&snapshot);
        fs::create_dir_all(&kept).expect("folder");
        let manifest = r#"{"release":null,"release_files":{},"data":null,"paths":{},"settled":true}"#;
        fs::write(kept.join("manifest.json"), manifest).expect("write");
        let refused = host.restore(&name, restore()).await.expect_err("the next release may have changed things");
        assert!(refused.message.contains("still at work") && refused.hint.is_some(), "{refused}");
        hangs.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn one_comparison_is_made_at_a_time_and_has_an_end() {
        let folder = tempfile::tempdir().expect("folder");
        let host = ThisHost::new(folder.path(), "127.0.0.1".to_owned(), BTreeMap::new());
        let (server, id) = ("one".parse().expect("name"), "d1-aa-1".parse().expect("id"));
        let another = host.comparisons.clone().acquire_owned().await.expect("a place");
        let late = host.show_snapshot(&server, &id, true).await.expect_err("it waits, and no longer than it may");
        assert_eq!(late.kind, FailureKind::TimeoutError);
        drop(another);
        let none = host.show_snapshot(&server, &id, true).await.expect_err("there is none");
        assert_eq!(none.kind, FailureKind::ConfigurationError);
    }

    #[test]
    fn what_is_remembered_of_the_disk_is_there_for_the_next_agent() {
        let folder = tempfile::tempdir().expect("folder");
        let host = || ThisHost::new(folder.path(), "127.0.0.1".to_owned(), BTreeMap::new());
        assert_eq!(host().remembered(), None);
        let server: ServerName = "one".parse().expect("name");
        let held = Held { release: Some(ReleaseId::of(b"a")), reason: "it fills the disk".to_owned() };
        let what = Remembered { before: Some(Room::default()), held: [(server, held)].into() };
        host().remember(&what).expect("kept");
        assert_eq!(host().remembered(), Some(what));
    }
}
