//! What keeps servers running: systemd, where the host has it, or a supervisor process of the agent's. A new version of
//! the agent is a server, too: what keeps the host's agent running keeps it.
//!
//! A server's folder remembers which runtime started it last: that one is asked to stop it, whatever its next release
//! wants.

mod agent;
pub(crate) mod cgroup;
mod process;
pub(crate) mod systemd;
pub(crate) mod unit;
pub(crate) mod users;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::release::{Release, RuntimeChoice, RuntimeKind};
use fleetwright_deploy::time::Timestamp;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::install::file_failure;
use crate::layout::ServerLayout;
use crate::stage;
use crate::{clock, container};

use self::agent::Agent;
use self::process::Process;
use self::systemd::Systemd;

pub(crate) use unit::environment_line;

/// How a server is doing, as its runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Whether it runs.
    pub(crate) runs: bool,
    /// How often it has ended since it was started.
    pub(crate) exits: u32,
    /// How it ended last.
    pub(crate) last_exit: Option<String>,
    /// Whether it will not be started again, as its policy says.
    pub(crate) given_up: bool,
    /// Whether something keeps it running.
    pub(crate) kept: bool,
    /// The process that leads it.
    pub(crate) pid: Option<i32>,
}

/// Keeps servers running.
pub(crate) trait Runtime: Send + Sync {
    /// Starts the current release of a server, unless it runs already.
    fn start<'a>(&'a self, server: &'a ServerLayout, release: &'a Release) -> BoxFuture<'a, Result<(), Failure>>;
    /// Stops a server with everything it has started. Unless it is to be drained, it gets no time to end by itself.
    fn stop<'a>(&'a self, server: &'a ServerLayout, drain: bool) -> BoxFuture<'a, Result<(), Failure>>;
    /// Forgets a server that is stopped.
    fn forget<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, Result<(), Failure>>;
    /// How a server is doing.
    fn state<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, State>;
    /// The process that leads a server, as it was seen last.
    fn pid(&self, server: &ServerLayout) -> Option<i32>;
    /// The last lines of its output; only those since it was started the last time, where asked for.
    fn output(&self, server: &ServerLayout, lines: usize, this_run: bool) -> Vec<String>;
}

/// What a server's folder remembers of its runtime.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Marker {
    runtime: RuntimeKind,
    started_at: Timestamp,
}

fn marker(server: &ServerLayout) -> Option<Marker> {
    serde_json::from_slice(&fs::read(server.runtime()).ok()?).ok()
}

fn remember(server: &ServerLayout, runtime: RuntimeKind) -> Result<(), Failure> {
    let marker = Marker { runtime, started_at: clock::now() };
    let fresh = server.runtime().with_extension("json.new");
    let written = fs::write(&fresh, serde_json::to_vec(&marker).unwrap_or_default());
    written.and_then(|()| fs::rename(&fresh, server.runtime())).map_err(|error| file_failure(&server.runtime(), &error))
}

fn runtime(kind: RuntimeKind) -> &'static dyn Runtime {
    match kind {
        RuntimeKind::Systemd => &Systemd,
        RuntimeKind::Process => &Process,
        RuntimeKind::Agent => &Agent,
    }
}

/// The runtime that started a server last.
fn last(server: &ServerLayout) -> &'static dyn Runtime {
    runtime(marker(server).map_or(RuntimeKind::Process, |marker| marker.runtime))
}

/// The runtime that a release gets on this host.
pub(crate) fn chosen(release: &Release) -> Result<RuntimeKind, Failure> {
    match release.run.runtime {
        RuntimeChoice::Process => Ok(RuntimeKind::Process),
        RuntimeChoice::Agent => Ok(RuntimeKind::Agent),
        RuntimeChoice::Auto if systemd::is_there() => Ok(RuntimeKind::Systemd),
        RuntimeChoice::Auto => Ok(RuntimeKind::Process),
        RuntimeChoice::Systemd if systemd::is_there() => Ok(RuntimeKind::Systemd),
        RuntimeChoice::Systemd => {
            let message = "this host has no systemd that this agent may use";
            Err(Failure::new(FailureKind::DependencyError, "preflight", message)
                .hint("run the agent as root and with --systemd on a host that has it, as its package does; or leave `run.runtime` out of the definition"))
        }
    }
}

/// How a process ends that has done its work.
const ENDED_WELL: &str = "exit status 0";

/// Whether a release that ends by itself has done its work. That is remembered, for the host may be started anew.
pub(crate) fn has_completed(server: &ServerLayout, release: &ReleaseId, state: &State) -> bool {
    if names(&server.completed(), release) {
        return true;
    }
    // How something ended that was begun before says nothing of this one.
    let done = state.given_up && state.last_exit.as_deref() == Some(ENDED_WELL) && names(&server.begun(), release);
    if done && let Err(failure) = name(&server.completed(), release) {
        tracing::error!(%failure, server = server.name(), "that it has done its work could not be written down");
    }
    done
}

fn names(path: &Path, release: &ReleaseId) -> bool {
    fs::read_to_string(path).is_ok_and(|known| known == release.as_str())
}

fn name(path: &Path, release: &ReleaseId) -> Result<(), Failure> {
    let fresh = path.with_extension("new");
    let written = fs::write(&fresh, release.as_str()).and_then(|()| fs::File::open(&fresh)?.sync_all());
    written.and_then(|()| fs::rename(&fresh, path)).map_err(|error| file_failure(path, &error))
}

/// Has the current release do its work, if it is one that ends: a new one from the beginning, while one that is only
/// put back has done it already.
pub(crate) fn begin(server: &ServerLayout, release: &ReleaseId, anew: bool) -> Result<(), Failure> {
    for path in [server.begun(), server.completed()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file_failure(&path, &error)),
            Ok(()) | Err(_) => {}
        }
    }
    if !anew && stage::load(&server.release(release)).is_some_and(|release| release.run.completes) {
        return name(&server.completed(), release);
    }
    Ok(())
}

/// Starts the current release of a server, unless it runs already, or has done its work.
pub(crate) async fn start(server: &ServerLayout) -> Result<(), Failure> {
    let Some(release) = stage::load(&server.current_release()) else {
        let message = format!("{} holds no release", server.current().display());
        return Err(Failure::new(FailureKind::DeploymentError, "start", message));
    };
    let kind = chosen(&release)?;
    let before = marker(server).map(|marker| marker.runtime);
    if let Some(other) = before.filter(|before| *before != kind) {
        runtime(other).stop(server, true).await?;
        container::remove_leftover(server).await?;
        runtime(other).forget(server).await?;
    }
    let id = release.id();
    if release.run.completes && has_completed(server, &id, &last(server).state(server).await) {
        return Ok(());
    }
    // The agent always runs: what it is to start as is another matter.
    if before == Some(kind) && kind != RuntimeKind::Agent {
        let state = runtime(kind).state(server).await;
        if state.runs && state.kept {
            return Ok(());
        }
    }
    let _ = fs::remove_file(server.stopped());
    remember(server, kind)?;
    stage::settle_data(server, &id).await?;
    runtime(kind).start(server, &release).await?;
    if release.run.completes { name(&server.begun(), &id) } else { Ok(()) }
}

/// Stops a server with everything it has started.
pub(crate) async fn stop(server: &ServerLayout, drain: bool) -> Result<(), Failure> {
    last(server).stop(server, drain).await?;
    container::remove_leftover(server).await
}

/// Forgets a server that is stopped and will not run again.
pub(crate) async fn forget(server: &ServerLayout) -> Result<(), Failure> {
    last(server).forget(server).await
}

/// How a server is doing.
pub(crate) async fn state(server: &ServerLayout) -> State {
    last(server).state(server).await
}

/// The process that leads a server, as it was seen last.
pub(crate) fn pid(server: &ServerLayout) -> Option<i32> {
    container::pid(server).or_else(|| last(server).pid(server))
}

/// The last lines of a server's output.
pub(crate) fn output(server: &ServerLayout, lines: usize, this_run: bool) -> Vec<String> {
    last(server).output(server, lines, this_run)
}

/// The release that is current on disk.
pub(crate) fn current(server: &ServerLayout) -> Option<ReleaseId> {
    fs::read_link(server.current()).ok()?.file_name()?.to_str()?.parse().ok()
}

/// Makes a release the current one by one rename, or makes none current.
pub(crate) fn switch(server: &ServerLayout, release: Option<&ReleaseId>) -> Result<(), Failure> {
    let current = server.current();
    let fail = |error: std::io::Error| file_failure(&current, &error);
    match release {
        Some(release) => {
            let fresh = server.folder().join("current.new");
            let _ = fs::remove_file(&fresh);
            symlink(format!("releases/{release}"), &fresh).map_err(fail)?;
            fs::rename(&fresh, &current).map_err(fail)?;
        }
        None => match fs::remove_file(&current) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
            Ok(()) | Err(_) => {}
        },
    }
    fs::File::open(server.folder()).and_then(|folder| folder.sync_all()).map_err(fail)
}
