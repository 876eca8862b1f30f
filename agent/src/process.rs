//! Processes of this host: telling them apart, and ending whole groups of them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

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
