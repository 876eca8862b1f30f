//! Starting and stopping servers, by way of their supervisors.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ReleaseId;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::install::file_failure;
use crate::layout::ServerLayout;
use crate::process::kill_group;
use crate::stage;
use crate::supervise::read_status;

/// How often a supervisor that is to end is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How much longer than its server a supervisor has to end.
const SUPERVISOR_GRACE: Duration = Duration::from_secs(5);
/// How long a supervisor has to take its lock after it was started.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a supervisor runs for this server: it holds its lock for as long as it lives.
pub(crate) fn is_supervised(server: &ServerLayout) -> bool {
    let Ok(file) = OpenOptions::new().write(true).open(server.supervisor_lock()) else { return false };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

/// Starts the current release, unless it runs already. Returns once its supervisor holds its lock.
pub(crate) async fn start(server: &ServerLayout) -> Result<(), Failure> {
    if is_supervised(server) {
        return Ok(());
    }
    let _ = fs::remove_file(server.stopped());
    let failed = |message: String| Failure::new(FailureKind::DeploymentError, "start", message);
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
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

/// Stops a server and its supervisor; the whole process group is gone when it returns. Unless it is to be drained,
/// the server gets no time to end by itself.
pub(crate) async fn stop(server: &ServerLayout, drain: bool) -> Result<(), Failure> {
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
    Ok(())
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
