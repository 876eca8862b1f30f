//! Servers under supervisors of the agent's own, for hosts without systemd.

use std::fs::{self, OpenOptions};
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::Release;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::{Runtime, State};
use crate::aside::aside;
use crate::handover;
use crate::install::file_failure;
use crate::layout::ServerLayout;
use crate::output;
use crate::process::{self, kill_group};
use crate::runtime::cgroup::Cgroup;
use crate::stage;
use crate::supervise::{mark_of, read_status};

/// How often a supervisor that is to end is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How much longer than its server a supervisor has to end.
const SUPERVISOR_GRACE: Duration = Duration::from_secs(5);
/// How long what a server has left behind has to end after it was killed.
const REST_PATIENCE: Duration = Duration::from_secs(10);
/// How long a supervisor has to take its lock after it was started.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Servers under supervisors.
pub(super) struct Process;

impl Runtime for Process {
    fn start<'a>(&'a self, server: &'a ServerLayout, _: &'a Release) -> BoxFuture<'a, Result<(), Failure>> {
        start(server).boxed()
    }

    fn stop<'a>(&'a self, server: &'a ServerLayout, drain: bool) -> BoxFuture<'a, Result<(), Failure>> {
        stop(server, drain).boxed()
    }

    fn forget<'a>(&'a self, _: &'a ServerLayout) -> BoxFuture<'a, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn state<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, State> {
        let state = match read_status(server) {
            None => State { kept: is_supervised(server), ..State::default() },
            Some(status) => State {
                // A supervisor that was killed could not say that its server has ended with it.
                runs: status.server.is_some_and(|server| server.is_alive()),
                exits: status.exits,
                last_exit: status.last_exit,
                given_up: status.given_up,
                kept: is_supervised(server),
                pid: status.server.map(|process| process.pid),
            },
        };
        async move { state }.boxed()
    }

    fn pid(&self, server: &ServerLayout) -> Option<i32> {
        Some(read_status(server)?.server?.pid)
    }

    fn output(&self, server: &ServerLayout, lines: usize, this_run: bool) -> Vec<String> {
        if this_run { output::tail_of_this_run(&server.log(), lines) } else { output::tail(&server.log(), lines) }
    }
}

/// Whether a supervisor runs for this server: it holds its lock for as long as it lives.
fn is_supervised(server: &ServerLayout) -> bool {
    let Ok(file) = OpenOptions::new().write(true).open(server.supervisor_lock()) else { return false };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

/// Starts the current release, unless it runs already. Returns once its supervisor holds its lock.
async fn start(server: &ServerLayout) -> Result<(), Failure> {
    if is_supervised(server) {
        return Ok(());
    }
    let failed = |message: String| Failure::new(FailureKind::DeploymentError, "start", message);
    let program = handover::original().map_err(|error| failed(error.to_string()))?;
    // The last status is of another life; what follows must not be mistaken for it.
    if let Some(old) = read_status(server).and_then(|status| status.server).filter(|server| server.is_alive()) {
        kill_group(old.pid, Signal::KILL);
    }
    let _ = fs::remove_file(server.status());
    // Why a supervisor could not do its work belongs beside the output of its server.
    let log = fs::create_dir_all(server.logs())
        .and_then(|()| OpenOptions::new().create(true).append(true).open(server.log()));
    let log = log.map_err(|error| file_failure(&server.log(), &error))?;
    let mut supervisor = Command::new(program)
        .arg("supervise")
        .arg("--server-dir")
        .arg(server.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("the supervisor could not be started: {error}")))?;
    let deadline = Instant::now() + START_TIMEOUT;
    while read_status(server).is_none() {
        if let Ok(Some(exit)) = supervisor.try_wait() {
            // A server that may end, and did, has said so in its status before its supervisor ended.
            if read_status(server).is_some() {
                return Ok(());
            }
            return Err(failed(format!("the supervisor ended at once with {exit}")));
        }
        if Instant::now() > deadline {
            return Err(failed("the supervisor did not report within 10 s".to_owned()));
        }
        sleep(POLL).await;
    }
    // Collects the supervisor's exit status, should it end while this agent still lives.
    tokio::spawn(async move { supervisor.wait().await });
    Ok(())
}

/// Stops a server and its supervisor; all that the server has started is gone when it returns. Unless it is to be drained,
/// the server gets no time to end by itself.
async fn stop(server: &ServerLayout, drain: bool) -> Result<(), Failure> {
    let status = read_status(server);
    if is_supervised(server) {
        let stop_timeout = stage::load(&server.current_release()).map(|release| release.run.stop_timeout.into());
        let patience = stop_timeout.unwrap_or(Duration::from_secs(10)) + SUPERVISOR_GRACE;
        let deadline = if drain { Instant::now() + patience } else { Instant::now() };
        let supervisor = read_status(server).map(|status| status.supervisor);
        let signal = |signal: Signal| {
            if let Some(pid) =
                supervisor.filter(|process| process.is_alive()).and_then(|process| Pid::from_raw(process.pid))
            {
                let _ = kill_process(pid, signal);
            }
        };
        signal(if drain { Signal::TERM } else { Signal::KILL });
        while is_supervised(server) {
            if Instant::now() > deadline {
                signal(Signal::KILL);
            }
            if Instant::now() > deadline + SUPERVISOR_GRACE {
                return Err(Failure::new(FailureKind::TimeoutError, "stop", "the supervisor could not be ended")
                    .hint("look for a process that cannot be killed on the host, for example one waiting for a disk"));
            }
            sleep(POLL).await;
        }
    }
    if let Some(left) =
        read_status(server).or(status).and_then(|status| status.server).filter(|server| server.is_alive())
    {
        kill_group(left.pid, Signal::KILL);
    }
    end_rest(server).await
}

/// Ends what a server has started and what has left its process group: its supervisor does so, unless it was killed.
async fn end_rest(server: &ServerLayout) -> Result<(), Failure> {
    let server = server.clone();
    aside(move || {
        Cgroup::existing(&server).kill();
        process::end_marked(&mark_of(&server), REST_PATIENCE).map_err(|(pid, name)| {
            let message =
                format!("`{name}` (process {pid}), which the server has started, does not end although it was killed");
            Failure::new(FailureKind::TimeoutError, "stop", message)
                .hint("look for what it waits for on the host, for example a disk")
        })
    })
    .await
}
