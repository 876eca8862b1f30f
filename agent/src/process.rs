//! Processes of this host: telling them apart, and ending whole groups of them.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpgid, kill_process, kill_process_group, waitpid};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// A process, told apart from a later one with the same number by when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    started: u64,
}

impl Process {
    /// The process with this number, if there is one.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command in the second field may hold anything, so count from its closing bracket.
        let after = stat.rsplit_once(") ")?.1;
        let mut fields = after.split(' ');
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, started })
    }

    /// Whether it is still there.
    pub(crate) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }
}

/// Sends a signal to a process group. That the group is gone already is what was wanted.
pub(crate) fn kill_group(pid: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(pid) {
        let _ = kill_process_group(group, signal);
    }
}

/// Ends a process group when it is dropped: whatever was started is ended with whoever started it.
pub(crate) struct KillGroup(Option<i32>);

impl KillGroup {
    /// Ends the group that this process leads.
    pub(crate) fn of(leader: Option<u32>) -> Self {
        Self(leader.and_then(|pid| i32::try_from(pid).ok()))
    }
}

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            kill_group(pid, Signal::KILL);
        }
    }
}

/// Makes this process the parent of whatever its descendants leave behind.
pub(crate) fn adopt_orphans() {
    if let Err(error) =
        rustix::process::set_child_subreaper(Pid::from_raw(i32::try_from(std::process::id()).unwrap_or(0)))
    {
        tracing::debug!(%error, "what the server leaves behind may outlive it");
    }
}

/// The children that this process has started itself, and collects where it started them.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnChildren(Arc<Mutex<BTreeSet<i32>>>);

impl OwnChildren {
    fn all(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, pid: Option<i32>) {
        self.all().extend(pid);
    }

    pub(crate) fn remove(&self, pid: Option<i32>) {
        if let Some(pid) = pid {
            self.all().remove(&pid);
        }
    }
}

/// Collects what has ended of the children that were adopted, for as long as it runs.
pub(crate) async fn collect_orphans(own: OwnChildren) {
    let Ok(mut ended) = signal(SignalKind::child()) else { return };
    let this = i32::try_from(std::process::id()).unwrap_or(0);
    loop {
        {
            let own = own.all();
            let orphans = children(this).into_iter().filter(|child| !own.contains(child));
            let ended = orphans.filter(|child| Process::find(*child).is_none());
            for orphan in ended.filter_map(Pid::from_raw) {
                let _ = waitpid(Some(orphan), WaitOptions::NOHANG);
            }
        }
        if ended.recv().await.is_none() {
            return;
        }
    }
}

/// How often the descendants of a process are killed: they may start others in between.
const KILL_ROUNDS: u32 = 10;

/// Kills everything that descends from this process.
pub(crate) fn kill_descendants() {
    kill_descendants_that(|_| true);
}

/// How often it is looked whether what was killed has ended.
const END_POLL: Duration = Duration::from_millis(10);

/// The processes of this host, but for this one, that have this, `NAME=value`, in the environment that they were started
/// with: whatever has been started from a process with it, unless that has taken it away.
pub(crate) fn marked(mark: &str) -> Vec<i32> {
    let this = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != this && has_mark(*pid, mark)).collect()
}

fn has_mark(pid: i32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

/// Sends a signal to all processes of this host with a mark, but for those of one group.
pub(crate) fn signal_marked_but(mark: &str, group: i32, signal: Signal) {
    let outside = |pid: &Pid| getpgid(Some(*pid)).is_ok_and(|of| of.as_raw_nonzero().get() != group);
    for pid in marked(mark).into_iter().filter_map(Pid::from_raw).filter(outside) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills all processes of this host with a mark, until there is none. Gives the one that does not end in time, and its name.
pub(crate) fn end_marked(mark: &str, patience: Duration) -> Result<(), (i32, String)> {
    let end = Instant::now() + patience;
    loop {
        let Some(left) = marked(mark).first().copied() else { return Ok(()) };
        if Instant::now() > end {
            let name = fs::read_to_string(format!("/proc/{left}/comm")).unwrap_or_default();
            return Err((left, name.trim_end().to_owned()));
        }
        for pid in marked(mark).into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(END_POLL);
    }
}

/// Kills what descends from this process and has this, `NAME=value`, in the environment that it was started with.
pub(crate) fn kill_marked(mark: &str) {
    kill_descendants_that(|pid| has_mark(pid, mark));
}

fn kill_descendants_that(are: impl Fn(i32) -> bool) {
    let root = i32::try_from(std::process::id()).unwrap_or(0);
    for _ in 0..KILL_ROUNDS {
        let mut found = Vec::new();
        let mut parents = vec![root];
        while let Some(parent) = parents.pop() {
            for child in children(parent).into_iter().filter(|child| Process::find(*child).is_some()) {
                parents.push(child);
                if are(child) {
                    found.push(child);
                }
            }
        }
        if found.is_empty() {
            return;
        }
        for child in found.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(child, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}
