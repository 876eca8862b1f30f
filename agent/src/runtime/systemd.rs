//! Servers as systemd units, spoken of over D-Bus (org.freedesktop.systemd1(5)).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Release, RestartPolicy};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath, proxy};

use super::{Runtime, State, marker, unit};
use crate::handover;
use crate::install::file_failure;
use crate::layout::ServerLayout;
use crate::process::Process;
use crate::stage;

/// Where units are that outlive a reboot.
const UNITS: &str = "/etc/systemd/system";
/// How much longer than its server's time to stop a job may take.
const JOB_GRACE: Duration = Duration::from_secs(30);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn sub_state(&self) -> zbus::Result<String>;
}

#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait Service {
    #[zbus(property(emits_changed_signal = "false"), name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "false"), name = "NRestarts")]
    fn restarts(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_status(&self) -> zbus::Result<i32>;
}

/// Whether this agent was told that it is the one whose servers are units of this host.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Lets servers be units. Only one agent of a host may: units of the same name would be each other's.
pub(crate) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Whether this agent may have units of the host's systemd.
pub(crate) fn is_there() -> bool {
    let allowed = ALLOWED.load(Ordering::Relaxed);
    allowed && Path::new("/run/systemd/system").is_dir() && rustix::process::geteuid().is_root()
}

/// Servers as systemd units.
pub(super) struct Systemd;

impl Runtime for Systemd {
    fn start<'a>(&'a self, server: &'a ServerLayout, release: &'a Release) -> BoxFuture<'a, Result<(), Failure>> {
        start(server, release).boxed()
    }

    fn stop<'a>(&'a self, server: &'a ServerLayout, drain: bool) -> BoxFuture<'a, Result<(), Failure>> {
        stop(server, drain).boxed()
    }

    fn forget<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, Result<(), Failure>> {
        forget(server).boxed()
    }

    fn state<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, State> {
        async move {
            match state(server).await {
                Ok(state) => state,
                Err(error) => {
                    tracing::warn!(server = server.name(), %error, "systemd does not say how the server is doing");
                    // That nothing is known is no reason to start anything.
                    State { kept: true, ..State::default() }
                }
            }
        }
        .boxed()
    }

    fn pid(&self, server: &ServerLayout) -> Option<i32> {
        let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(server.name()).and_then(|(_, state)| state.pid)
    }

    fn output(&self, server: &ServerLayout, lines: usize, this_run: bool) -> Vec<String> {
        let since = marker(server).filter(|_| this_run).map(|marker| marker.started_at.unix_ms() / 1_000);
        let mut command = Command::new("journalctl");
        command.args(["--unit", &unit::name(server), "--output=cat", "--no-pager", "--quiet"]);
        command.args(["--lines", &lines.to_string()]);
        if let Some(since) = since {
            command.arg(format!("--since=@{since}"));
        }
        let Ok(output) = command.stdin(Stdio::null()).stderr(Stdio::null()).output() else { return Vec::new() };
        String::from_utf8_lossy(&output.stdout).lines().map(crate::output::shortened).collect()
    }
}

async fn bus() -> zbus::Result<&'static Connection> {
    static BUS: OnceCell<Connection> = OnceCell::const_new();
    BUS.get_or_try_init(Connection::system).await
}

async fn manager() -> zbus::Result<ManagerProxy<'static>> {
    static SUBSCRIBED: OnceCell<()> = OnceCell::const_new();
    let manager = ManagerProxy::new(bus().await?).await?;
    // Without this, systemd tells nobody that a job has ended.
    SUBSCRIBED.get_or_try_init(|| manager.subscribe()).await?;
    Ok(manager)
}

fn failed(step: &'static str, error: &zbus::Error) -> Failure {
    Failure::new(FailureKind::DeploymentError, step, format!("systemd: {error}"))
        .hint("look at the host's systemd: `systemctl status`, `journalctl -u dbus`")
}

fn path_of(server: &ServerLayout) -> PathBuf {
    Path::new(UNITS).join(unit::name(server))
}

/// The link by which the host starts the server after a reboot.
fn wanted_by(server: &ServerLayout) -> PathBuf {
    Path::new(UNITS).join("multi-user.target.wants").join(unit::name(server))
}

async fn start(server: &ServerLayout, release: &Release) -> Result<(), Failure> {
    let fail = |error: zbus::Error| failed("start", &error);
    let bridge = handover::original().map_err(|error| file_failure(Path::new("fleetwright-agent"), &error))?;
    let text = unit::text(server, &server.release(&release.id()), release, &bridge);
    let manager = manager().await.map_err(fail)?;
    if install(server, &text, !release.run.completes)? {
        manager.reload().await.map_err(fail)?;
    }
    let name = unit::name(server);
    // A unit that never failed has nothing to reset.
    let _ = manager.reset_failed_unit(&name).await;
    let mut removed = manager.receive_job_removed().await.map_err(fail)?;
    let job = manager.start_unit(&name, "replace").await.map_err(fail)?;
    let patience = JOB_GRACE + Duration::from(release.run.stop_timeout);
    let result = job_result(&mut removed, &job, patience).await?;
    if result == "done" {
        return Ok(());
    }
    let message = format!("systemd could not start {name}: {result}");
    Err(Failure::new(FailureKind::DeploymentError, "start", message)
        .hint(format!("see its output, and `systemctl status {name}` on the host")))
}

/// Writes the unit, and has the host start it after a reboot or not; whether anything had to change.
fn install(server: &ServerLayout, text: &str, at_boot: bool) -> Result<bool, Failure> {
    let (path, link) = (path_of(server), wanted_by(server));
    let fail = |error: std::io::Error| file_failure(&path, &error);
    if fs::read_to_string(&path).is_ok_and(|present| present == text) && link.exists() == at_boot {
        return Ok(false);
    }
    let fresh = path.with_extension("service.new");
    fs::write(&fresh, text).map_err(fail)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644)).map_err(fail)?;
    fs::File::open(&fresh).and_then(|file| file.sync_all()).map_err(fail)?;
    fs::rename(&fresh, &path).map_err(fail)?;
    fs::create_dir_all(link.parent().unwrap_or(&link)).map_err(fail)?;
    if !at_boot {
        let _ = fs::remove_file(&link);
    } else if fs::symlink_metadata(&link).is_err() {
        std::os::unix::fs::symlink(&path, &link).map_err(fail)?;
    }
    Ok(true)
}

async fn stop(server: &ServerLayout, drain: bool) -> Result<(), Failure> {
    if !path_of(server).exists() {
        return Ok(());
    }
    let fail = |error: zbus::Error| failed("stop", &error);
    let (name, manager) = (unit::name(server), manager().await.map_err(fail)?);
    if !drain {
        // A unit without processes has nothing to kill.
        let _ = manager.kill_unit(&name, "all", 9).await;
    }
    let mut removed = manager.receive_job_removed().await.map_err(fail)?;
    let job = manager.stop_unit(&name, "replace").await.map_err(fail)?;
    let stop_timeout = stage::load(&server.current_release()).map(|release| Duration::from(release.run.stop_timeout));
    let result = job_result(&mut removed, &job, JOB_GRACE + stop_timeout.unwrap_or_default()).await?;
    if result == "done" {
        return Ok(());
    }
    Err(Failure::new(FailureKind::TimeoutError, "stop", format!("systemd could not stop {name}: {result}"))
        .hint("look for a process that cannot be killed on the host, for example one waiting for a disk"))
}

async fn forget(server: &ServerLayout) -> Result<(), Failure> {
    let (path, link) = (path_of(server), wanted_by(server));
    let _ = fs::remove_file(&link);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| file_failure(&path, &error))?,
    }
    let fail = |error: zbus::Error| failed("stop", &error);
    manager().await.map_err(fail)?.reload().await.map_err(fail)
}

async fn job_result(
    removed: &mut JobRemovedStream,
    job: &OwnedObjectPath,
    patience: Duration,
) -> Result<String, Failure> {
    let ours = async {
        while let Some(signal) = removed.next().await {
            let Ok(arguments) = signal.args() else { continue };
            if arguments.job == *job {
                return arguments.result.clone();
            }
        }
        "the bus is gone".to_owned()
    };
    timeout(patience, ours).await.map_err(|_| {
        let message = format!("systemd did not end a job within {} s", patience.as_secs());
        Failure::new(FailureKind::TimeoutError, "systemd", message).hint("see `systemctl list-jobs` on the host")
    })
}

/// Servers whose main process was there when systemd was asked last: as long as it is there, nothing has changed, and
/// systemd need not be asked.
static SEEN: Mutex<BTreeMap<String, (Process, State)>> = Mutex::new(BTreeMap::new());

async fn state(server: &ServerLayout) -> zbus::Result<State> {
    let seen = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = seen().get(server.name()).cloned();
    if let Some((_, state)) = known.filter(|(process, state)| state.runs && process.is_alive()) {
        return Ok(state);
    }
    let state = asked(server).await?;
    match state.pid.and_then(Process::find) {
        Some(process) => drop(seen().insert(server.name().to_owned(), (process, state.clone()))),
        None => drop(seen().remove(server.name())),
    }
    Ok(state)
}

async fn asked(server: &ServerLayout) -> zbus::Result<State> {
    if !path_of(server).exists() {
        return Ok(State::default());
    }
    let path = manager().await?.load_unit(&unit::name(server)).await?;
    let unit = UnitProxy::builder(bus().await?).path(path.clone()).build().await?;
    let service = ServiceProxy::builder(bus().await?).path(path).build().await?;
    let (active, sub) = (unit.active_state().await?, unit.sub_state().await?);
    let is_down = matches!(active.as_str(), "inactive" | "failed");
    // What is to end stays there as such.
    let exited = sub == "exited";
    let has_ended = is_down || exited || sub.starts_with("auto-restart");
    let pid = service.main_pid().await?;
    let restart = stage::load(&server.current_release()).map(|release| release.run.restart);
    Ok(State {
        runs: active == "active" && pid != 0,
        exits: service.restarts().await? + u32::from(has_ended),
        last_exit: words(service.exec_main_code().await?, service.exec_main_status().await?),
        given_up: (is_down || exited) && restart.is_some_and(|policy| policy != RestartPolicy::Always),
        kept: !is_down,
        pid: i32::try_from(pid).ok().filter(|pid| *pid != 0),
    })
}

/// How a process ended, by `si_code` and `si_status` (sigaction(2)).
fn words(code: i32, status: i32) -> Option<String> {
    match code {
        1 => Some(format!("exit status {status}")),
        2 | 3 => Some(format!("signal {status}")),
        _ => None,
    }
}
