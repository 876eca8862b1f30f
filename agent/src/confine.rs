//! Running somebody else's program: a server, a check, a hook, an installer. There is one way to do it: the agent's own
//! program, as `confine`, puts itself where the program is to be ([`enter()`]) and becomes it (execve(2)). So the process
//! stays the same for whoever waits for it, and nothing is done between fork and exec.
//!
//! What a program gets is its [`Profile`]. What this host or the agent's own rights do not allow is left out, and told
//! in its [`Confinement`].

mod enter;
mod needs;
mod passage;
mod route;
mod rules;
mod view;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Release, RuntimeKind};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::install::programs::command;
use crate::layout::{ReleaseLayout, ServerLayout};
use crate::runtime;
use crate::runtime::users::{self, Identity};

pub(crate) use enter::{OPEN_FILES_MAX, enter};
pub(crate) use rules::landlock_version;

/// What of the host's files a program may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Files {
    /// Whatever its user may, to read and to write: for agents that are not root, and for what runs as the agent itself.
    All,
    /// Whatever its user may, but not people's homes.
    Host,
    /// The host's programs and their settings.
    System,
}

/// What a program may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// The user that it runs as; the agent's own where there is none.
    user: Option<Identity>,
    /// Whether it goes on as the agent's user where its own cannot be brought to what it needs.
    may_stay: bool,
    /// Where it is started.
    folder: PathBuf,
    files: Files,
    /// What it may read besides.
    read: Vec<PathBuf>,
    /// What it may write.
    write: Vec<PathBuf>,
    /// Programs that it will start itself.
    programs: Vec<String>,
    /// Where it has temporary files of its own, out of everybody else's sight; the host's where there is none.
    #[serde(default)]
    temporary: Option<PathBuf>,
    /// The process whose view of the host's files it shares, as far as what it needs is there.
    #[serde(default)]
    view_of: Option<i32>,
    /// Permissions that its files never get.
    umask: u32,
    /// The largest file that it may write, in bytes.
    file_bytes_max: Option<u64>,
    /// Memory of its own that each of its processes may have, in bytes.
    data_bytes_max: Option<u64>,
    /// How many processes and threads its user may have.
    tasks_max: Option<u64>,
    /// The control groups that it is in. A supervisor of before names none.
    #[serde(default)]
    groups: Vec<PathBuf>,
}

/// Largest file that an installer may write, in bytes.
const INSTALLED_FILE_BYTES_MAX: u64 = 16 << 30;
const STEP: &str = "confine";
const PRIVATE_UMASK: u32 = 0o077;
const SHARED_UMASK: u32 = 0o022;

impl Profile {
    /// A server, and whatever is run for it: its checks, and what dumps and restores its database. It writes to its data
    /// and to what its definition names.
    pub(crate) fn server(server: &ServerLayout, release: &Release) -> Result<Self, Failure> {
        let base = Self {
            user: None,
            may_stay: true,
            folder: server.data(),
            files: Files::All,
            read: vec![server.folder().to_owned()],
            write: [server.data()].into_iter().chain(release.run.writable.iter().map(PathBuf::from)).collect(),
            programs: command(release, server.current_release().folder()).into_iter().take(1).collect(),
            temporary: None,
            view_of: None,
            umask: SHARED_UMASK,
            file_bytes_max: None,
            data_bytes_max: None,
            tasks_max: None,
            groups: Vec::new(),
        };
        let own_uid = rustix::process::geteuid();
        let Some((name, own)) = user_of(release)? else { return Ok(base) };
        let missing = || {
            let message = format!("this host has no user `{name}`");
            Failure::new(FailureKind::DependencyError, STEP, message)
        };
        if own_uid.is_root() {
            let user = users::identity(&name).ok_or_else(missing)?;
            let temporary = Some(server.temporary());
            let files = Files::Host;
            return Ok(Self { user: Some(user), may_stay: own, files, temporary, umask: PRIVATE_UMASK, ..base });
        }
        // The agent's own user is no change.
        if users::find(&name).ok_or_else(missing)?.uid == own_uid.as_raw() {
            return Ok(base);
        }
        let message = format!("only an agent that runs as root can start a server as `{name}`");
        Err(Failure::new(FailureKind::PermissionError, STEP, message))
    }

    /// What installs a package into `app`, with `scratch` for everything that is not kept.
    pub(crate) fn installer(user: Option<Identity>, app: &Path, scratch: &Path) -> Self {
        Self {
            files: if user.is_some() { Files::System } else { Files::All },
            user,
            may_stay: true,
            folder: scratch.to_owned(),
            read: Vec::new(),
            write: vec![app.to_owned(), scratch.to_owned()],
            programs: Vec::new(),
            temporary: None,
            view_of: None,
            umask: SHARED_UMASK,
            file_bytes_max: Some(INSTALLED_FILE_BYTES_MAX),
            data_bytes_max: None,
            tasks_max: None,
            groups: Vec::new(),
        }
    }

    /// The same with these programs of the host's at hand, besides the one that is started: a link to one of them that the
    /// user could have made lets it through to nothing by itself.
    pub(crate) fn with_programs(self, programs: Vec<String>) -> Self {
        Self { programs, ..self }
    }

    /// The same within these limits: memory of each process, processes and threads, and the control groups that count
    /// all of them together.
    pub(crate) fn within(self, data_bytes_max: u64, tasks_max: u32, groups: Vec<PathBuf>) -> Self {
        Self { data_bytes_max: Some(data_bytes_max), tasks_max: Some(tasks_max.into()), groups, ..self }
    }

    /// A command that runs a program so. Its environment is empty but for the search path; what became of the profile
    /// is told in `report`.
    pub(crate) fn command<W: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = W>,
        path: &str,
        report: Option<&Path>,
    ) -> Command {
        let mut command = Command::new(own_program());
        command.arg("confine").arg("--profile").arg(serde_json::to_string(self).unwrap_or_default());
        if let Some(report) = report {
            command.arg("--report").arg(report);
        }
        command.arg("--").args(words).env_clear().env("PATH", path);
        command
    }
}

/// A command that is run for a server besides itself: as its user, with its data at hand.
pub(crate) fn beside(
    server: &ServerLayout,
    release: &Release,
    words: &[String],
    path: &str,
) -> Result<Command, Failure> {
    let mut command = if cfg!(test) {
        // The program of unit tests is not the agent's, so it cannot become another one.
        let mut command = Command::new(words.first().map_or("", String::as_str));
        command.args(words.iter().skip(1)).env_clear().env("PATH", path).current_dir(server.data());
        command
    } else {
        let mut profile = Profile::server(server, release)?;
        profile.programs.clear();
        let owner = fs::metadata(server.data()).map(|found| found.uid());
        // What an agent of before has started runs as root until it is started anew.
        if profile.may_stay && profile.user.as_ref().is_some_and(|user| owner.is_ok_and(|owner| owner != user.uid)) {
            (profile.user, profile.files) = (None, Files::All);
        }
        // What it looks at is what the server sees: its temporary files, and its unit's view under systemd.
        profile.view_of = runtime::pid(server).filter(|_| profile.user.is_some());
        profile.command(words, path, None)
    };
    command.env("HOME", server.data()).envs(inherited(&INHERITED));
    Ok(command)
}

/// The user that a release runs as, and whether it is the server's own; nothing for the agent's. What images are run
/// as is a matter of their containers.
pub(crate) fn user_of(release: &Release) -> Result<Option<(String, bool)>, Failure> {
    let own = || (users::own_name(release.server.as_str()), true);
    if release.package.image().is_some() {
        return Ok(None);
    }
    Ok(match (&release.run.user, runtime::chosen(release)?) {
        (Some(name), _) => Some((name.clone(), false)),
        (None, RuntimeKind::Systemd) => Some(own()),
        (None, RuntimeKind::Process) if rustix::process::geteuid().is_root() => Some(own()),
        (None, RuntimeKind::Process | RuntimeKind::Agent) => None,
    })
}

/// The program that this process runs, also where another has taken its place on the disk since.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// Variables of the agent's own environment that programs get.
pub(crate) fn inherited(names: &[&str]) -> impl Iterator<Item = (String, std::ffi::OsString)> {
    names.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?))).collect::<Vec<_>>().into_iter()
}

/// What begins the name of a variable that is for the program alone: what steers the loader of programs must not steer
/// the agent's own, which is still root.
const LATER: &str = "FLEETWRIGHT_LATER_";

/// The variables of a release, so that they mean nothing before the program is there.
pub(crate) fn for_program(environment: BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    let steers = |name: &str| name.starts_with("LD_") || name.starts_with("GLIBC_");
    environment.into_iter().map(
        move |(name, value)| {
            if steers(&name) { (format!("{LATER}{name}"), value) } else { (name, value) }
        },
    )
}

/// The environment of what is run for a server, without the server's own.
pub(crate) const INHERITED: [&str; 5] = ["LANG", "LC_ALL", "TZ", "TMPDIR", "PYENV_ROOT"];

/// How a program is confined, as it was found out when it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// The user that it runs as.
    pub(crate) user: String,
    /// Whether it can never get more rights than it has.
    pub(crate) no_new_privs: bool,
    /// Whether it has no capabilities, nor can get any.
    pub(crate) no_capabilities: bool,
    /// The version of Landlock that bounds what it reaches.
    pub(crate) landlock: Option<u32>,
    /// Whether Landlock bounds which files it may open, too.
    pub(crate) files: bool,
    /// Whether it is kept from the system calls that no server needs.
    pub(crate) seccomp: bool,
    /// Folders closed to its user that it is let through, in which it sees only what it needs.
    pub(crate) passages: Vec<PathBuf>,
    /// What could not be done, and why.
    pub(crate) left_out: Vec<String>,
}

impl Confinement {
    /// What was told when the server was started last.
    pub(crate) fn of(server: &ServerLayout) -> Option<Self> {
        serde_json::from_slice(&fs::read(server.confinement()).ok()?).ok()
    }

    /// In one line, for people.
    pub(crate) fn words(&self) -> String {
        let mut words = vec![self.user.clone()];
        words.extend(self.no_new_privs.then(|| "no new privileges".to_owned()));
        words.extend(self.no_capabilities.then(|| "no capabilities".to_owned()));
        let of = if self.files { "files and processes" } else { "processes" };
        words.extend(self.landlock.map(|version| format!("Landlock {version} ({of})")));
        words.extend(self.seccomp.then(|| "seccomp".to_owned()));
        words.extend(self.left_out.iter().map(|what| format!("NOT CONFINED: {what}")));
        words.join(", ")
    }
}

/// Where a program of the host's is; those of the release come last.
pub(crate) fn hosts_path_first(release: &ReleaseLayout, inherited: &str) -> String {
    format!("{inherited}:{0}/app/bin:{0}/app/node_modules/.bin:{0}/app", release.folder().display())
}

/// Whether a program can be found, so that one that is missing is told as such.
pub(crate) fn find(program: &str, path: &str) -> io::Result<PathBuf> {
    let there = |path: &Path| fs::metadata(path).is_ok_and(|found| found.is_file());
    if program.contains('/') {
        let named = PathBuf::from(program);
        return if there(&named) { Ok(named) } else { Err(io::ErrorKind::NotFound.into()) };
    }
    let found = std::env::split_paths(path).map(|folder| folder.join(program)).find(|candidate| there(candidate));
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests;
