//! Handing the agent's work over to another program: a deployed version of the agent itself.
//!
//! The process stays the same and becomes the other program (execve(2)), so that nothing that waits for it notices, and
//! what it has decided is in the journal, where the other program finds it. What was installed on the host is always
//! what is started; it hands over to the deployed program before it does anything else. A program that has not been
//! confirmed and was started too often without that is on trial no longer: the one before it goes on, and puts it back.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Package, Release};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::install::file_failure;
use crate::layout::{ReleaseLayout, ServerLayout};

/// Names the program that was installed on the host to those that it hands over to.
const ORIGINAL: &str = "FLEETWRIGHT_AGENT_ORIGINAL";
/// How often a program may be started before it is confirmed: more often, and it does not work.
const STARTS_MAX: u32 = 3;
/// How long a program has to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
const STEP: &str = "agent";

/// A program that is not confirmed yet.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    program: PathBuf,
    /// The program that goes on should this one not work.
    before: PathBuf,
    starts: u32,
}

/// Where the state folder remembers the deployed program.
struct Places {
    program: PathBuf,
    trial: PathBuf,
}

impl Places {
    fn of(state_dir: &Path) -> Self {
        Self { program: state_dir.join("program"), trial: state_dir.join("program-trial.json") }
    }

    /// The places of the state folder that a server's folder is in.
    fn around(server: &ServerLayout) -> Self {
        Self::of(server.folder().ancestors().nth(2).unwrap_or_else(|| Path::new("/")))
    }

    fn trial(&self) -> Option<Trial> {
        serde_json::from_slice(&fs::read(&self.trial).ok()?).ok()
    }

    fn save(&self, trial: &Trial) -> Result<(), Failure> {
        store::write_private(&self.trial, &serde_json::to_vec(trial).unwrap_or_default())
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))
    }

    fn point_to(&self, program: &Path) -> Result<(), Failure> {
        let fresh = self.program.with_extension("new");
        let _ = fs::remove_file(&fresh);
        let pointed = symlink(program, &fresh).and_then(|()| fs::rename(&fresh, &self.program));
        pointed.map_err(|error| file_failure(&self.program, &error))
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.program);
        let _ = fs::remove_file(&self.trial);
    }
}

/// The program that was installed on this host: what outlives every deployed one, and so what units and supervisors name.
pub(crate) fn original() -> std::io::Result<PathBuf> {
    match std::env::var_os(ORIGINAL).map(PathBuf::from).filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => std::env::current_exe(),
    }
}

/// The program that this process is.
fn own() -> Option<PathBuf> {
    fs::read_link("/proc/self/exe").ok()
}

/// Hands over to the deployed program, if there is one and it may be started. Returns when this program is to go on.
pub(crate) fn hand_over_at_start(state_dir: &Path) {
    let places = Places::of(state_dir);
    let Ok(mut program) = fs::read_link(&places.program) else { return };
    if let Some(mut trial) = places.trial().filter(|trial| trial.program == program) {
        trial.starts += 1;
        if let Err(failure) = places.save(&trial) {
            tracing::error!(%failure, "the starts of a new agent cannot be counted, so it is not started");
            return;
        }
        if trial.starts > STARTS_MAX {
            tracing::error!(program = %program.display(), "the new agent does not work: the one before it goes on");
            program = trial.before;
        }
    }
    if own().as_ref() != Some(&program) {
        let failure = become_program(&program);
        tracing::error!(%failure, "the deployed agent cannot be started: this one goes on");
    }
}

/// Makes this process another program with the same arguments. Returns only when that fails.
fn become_program(program: &Path) -> Failure {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(program);
    if let Ok(original) = original() {
        command.env(ORIGINAL, original);
    }
    tracing::info!(program = %program.display(), "handing over");
    let error = command.args(arguments).exec();
    Failure::new(FailureKind::DeploymentError, STEP, format!("{} cannot be started: {error}", program.display()))
        .hint("was it built for this host's processor and C library?")
}

/// The program of a release of the agent.
pub(crate) fn program_of(release: &Release, layout: &ReleaseLayout) -> Option<PathBuf> {
    let app = layout.app();
    let candidates = match &release.package {
        Package::File { name, .. } => vec![app.join("bin").join(name)],
        _ => ["bin", "", "usr/bin"].iter().map(|folder| app.join(folder).join("fleetwright-agent")).collect(),
    };
    candidates.into_iter().find(|path| path.is_file())?.canonicalize().ok()
}

/// Whether a release of the agent is a program that this host can start, and no other server has one.
pub(crate) async fn check(server: &ServerLayout, release: &Release, layout: &ReleaseLayout) -> Result<(), Failure> {
    if let Ok(deployed) = fs::read_link(Places::around(server).program)
        && !deployed.starts_with(server.folder())
    {
        let message = format!("another server is this host's agent: it runs {}", deployed.display());
        return Err(Failure::new(FailureKind::ConfigurationError, STEP, message)
            .hint("deploy new versions of the agent as one server; `fleetwright servers list` shows what runs"));
    }
    let failed = |message: String| {
        Failure::new(FailureKind::DeploymentError, STEP, message).hint(
            "its package must hold the program `fleetwright-agent`, built for this host's processor and C library",
        )
    };
    let program = program_of(release, layout).ok_or_else(|| failed("its package has no such program".to_owned()))?;
    let asked = tokio::process::Command::new(&program).arg("--version").kill_on_drop(true).output();
    match timeout(VERSION_TIMEOUT, asked).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(failed(format!("the new agent does not tell its version: {}", output.status)).output(said.lines()))
        }
        Ok(Err(error)) => Err(failed(format!("the new agent cannot be started: {error}"))),
        Err(_) => {
            Err(failed(format!("the new agent does not tell its version within {} s", VERSION_TIMEOUT.as_secs())))
        }
    }
}

/// Whether this process is the current release of a server that is the agent.
pub(crate) fn is_running(server: &ServerLayout, release: &Release) -> bool {
    let program = program_of(release, &server.current_release());
    program.is_some() && program == own()
}

/// Makes the current release of a server the agent of this host. On success, this process becomes it, and finds on its
/// way here again that nothing is left to do.
pub(crate) fn switch(server: &ServerLayout, release: &Release) -> Result<(), Failure> {
    let places = Places::around(server);
    let Some(program) = program_of(release, &server.current_release()) else {
        let message = format!("{} holds no program of the agent", server.current().display());
        return Err(Failure::new(FailureKind::DeploymentError, STEP, message));
    };
    let own = own().unwrap_or_default();
    let trial = places.trial();
    if trial.as_ref().is_some_and(|trial| trial.program == program && trial.starts > STARTS_MAX) {
        let message = format!("the new agent ended {STARTS_MAX} times before it was confirmed");
        return Err(Failure::new(FailureKind::DeploymentError, STEP, message)
            .hint("see what it said last on the host: `journalctl --unit fleetwright-agent`"));
    }
    if trial.as_ref().is_some_and(|trial| trial.before == program) {
        // Back to what worked. The trial ends last: without it, whatever is pointed to counts as confirmed.
        places.point_to(&program)?;
        let _ = fs::remove_file(&places.trial);
    } else if own != program {
        if trial.is_none_or(|trial| trial.program != program) {
            places.save(&Trial { program: program.clone(), before: own.clone(), starts: 0 })?;
        }
        places.point_to(&program)?;
    }
    if own == program { Ok(()) } else { Err(become_program(&program)) }
}

/// Keeps the program that was switched to.
pub(crate) fn confirm(server: &ServerLayout) {
    let places = Places::around(server);
    if places.trial().is_some_and(|trial| trial.program.starts_with(server.folder())) {
        let _ = fs::remove_file(&places.trial);
    }
}

/// Goes back to the program that was installed on the host.
pub(crate) fn leave(server: &ServerLayout) -> Result<(), Failure> {
    Places::around(server).forget();
    let original = original().map_err(|error| file_failure(Path::new("fleetwright-agent"), &error))?;
    match own() {
        Some(own) if own.starts_with(server.releases()) => Err(become_program(&original)),
        Some(_) | None => Ok(()),
    }
}
