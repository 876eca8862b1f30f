//! What is said in the log about peers that do wrong: of each kind of line a sample, with the number of those that were
//! left out. A flood does not fill the disk.

use std::sync::{Mutex, PoisonError};

use fleetwright_deploy::ids::HostName;
use fleetwright_deploy::pace::{Rate, Sampled};
use fleetwright_protocol::Clock;

/// How many lines of one kind are said.
const LINES: Rate = Rate { burst: 5, per_hour: 120 };

/// What may be said. There is a kind for each place in the program that says something, and host that it is about.
pub(crate) struct Said {
    lines: Mutex<Sampled<(&'static str, Option<HostName>)>>,
    clock: Clock,
}

impl Said {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { lines: Mutex::new(Sampled::new(LINES)), clock }
    }

    /// Whether a line is said now: with how many were not since the last one of its kind. Hosts must be enrolled ones,
    /// of which there are few.
    pub(crate) fn says(&self, kind: &'static str, host: Option<&HostName>) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.says((kind, host.cloned()), self.clock.now())
    }
}
