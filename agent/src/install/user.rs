//! The user of one install: nobody else runs as it, and nothing of it is left.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::bounds::{self, BOUNDS};
use super::{STEP, file_failure};
use crate::runtime::cgroup::Cgroup;
use crate::runtime::users::{self, Identity};

/// How long what was killed has to be gone.
pub(super) const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const LEFTOVER_POLL: Duration = Duration::from_millis(20);
/// How often what an install leaves running is killed when nobody can wait for it.
const KILL_ROUNDS: u32 = 20;
/// How many installs may be under way on one host, of all its agents.
const USERS_MAX: u32 = 8;
/// Where it is written down which of their users are taken.
const TAKEN: &str = "/run/fleetwright-install";
/// How often a user is asked for while all are taken.
const USER_POLL: Duration = Duration::from_millis(200);

/// A user that is this install's alone for as long as it lasts. What is left of it is ended with it.
pub(super) struct InstallUser {
    pub(super) identity: Identity,
    /// What counts its memory and its processes, where the host has it.
    pub(super) group: Option<Cgroup>,
    /// What had been killed in there for want of memory before: a group is the one of an earlier install where that left
    /// something which took its time to end.
    killed_before: u64,
    _taken: File,
}

impl InstallUser {
    /// Takes one that no other install has, and waits while there is none. An agent that is not root installs as itself.
    pub(super) async fn take() -> Result<Option<Self>, Failure> {
        if !rustix::process::geteuid().is_root() || cfg!(test) {
            return Ok(None);
        }
        let folder = Path::new(TAKEN);
        let made = fs::DirBuilder::new().recursive(true).create(folder);
        made.and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)))
            .map_err(|error| file_failure(folder, &error))?;
        loop {
            for number in 1..=USERS_MAX {
                let path = folder.join(number.to_string());
                let taken = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
                let taken = taken.map_err(|error| file_failure(&path, &error))?;
                if flock(&taken, FlockOperation::NonBlockingLockExclusive).is_err() {
                    continue;
                }
                let name = format!("fw-install-{number}");
                users::ensure(&name, true).await?;
                let identity = users::identity(&name).ok_or_else(|| {
                    Failure::new(FailureKind::DependencyError, STEP, format!("this host has no user `{name}`"))
                })?;
                // What an agent that was killed has left of an install would be this one's equal.
                end_all_of(identity.uid).await?;
                bounds::remove_strays(identity.uid);
                let group = bounds::group(&format!("install-{number}"), BOUNDS);
                let killed_before = group.as_ref().map_or(0, Cgroup::killed_for_memory);
                return Ok(Some(Self { identity, group, killed_before, _taken: taken }));
            }
            sleep(USER_POLL).await;
        }
    }

    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.killed_for_memory() > self.killed_before)
    }
}

impl Drop for InstallUser {
    fn drop(&mut self) {
        for _ in 0..KILL_ROUNDS {
            let left = processes_of(self.identity.uid);
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(LEFTOVER_POLL / 4);
        }
        bounds::remove_strays(self.identity.uid);
        if let Some(group) = &self.group {
            group.kill();
        }
    }
}

/// Kills every process of a user, until there is none.
pub(super) async fn end_all_of(uid: u32) -> Result<(), Failure> {
    let deadline = Instant::now() + LEFTOVER_TIMEOUT;
    loop {
        let left = processes_of(uid);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message =
                format!("process {} of an install does not end although it was killed", left[0].as_raw_nonzero());
            return Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                .hint("look for what it waits for on the host, for example a disk"));
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        sleep(LEFTOVER_POLL).await;
    }
}

/// The processes that run as a user. Who owns their folders in /proc says nothing: they may have that changed.
pub(super) fn processes_of(uid: u32) -> Vec<Pid> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_user = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let is_of = line("Uid:").split_whitespace().any(|one| one.parse() == Ok(uid));
        (is_of && !line("State:").trim_start().starts_with('Z')).then(|| Pid::from_raw(pid)).flatten()
    };
    all.filter_map(of_user).collect()
}
