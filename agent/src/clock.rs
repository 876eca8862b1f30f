//! The one place where the agent reads clocks.
//!
//! There are two. The wall clock judges what others have dated: commands and certificates. The steady clock judges how
//! long something has taken, above all until a host puts itself back: it counts from the start of the machine, also
//! while it sleeps, and is not moved when somebody sets the time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fleetwright_certs::store;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::Clock;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Now, by the wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// The wall clock of this machine.
pub(crate) fn system() -> Clock {
    Clock::new(now)
}

/// How far the steady clock is from the time since the machine was started, for one start of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Anchor {
    boot: String,
    offset_ms: i64,
}

/// The steady clock of this machine. It tells about the same as the wall clock did when the agent was started first since
/// the machine was, but never less than what it has told before: `last`, the last time in the journal.
pub(crate) fn steady(state_dir: &Path, last: Timestamp) -> Result<Clock> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the id of this boot")?;
    let path = state_dir.join("clock.json");
    let anchor = anchor(read(&path), boot.trim(), since_boot_ms(), now(), last);
    let offset_ms = anchor.offset_ms;
    if read(&path).as_ref() != Some(&anchor)
        && let Err(error) = store::write_private(&path, &serde_json::to_vec(&anchor)?)
    {
        // The disk may be full. The next start of the agent counts from the wall clock again, and never less than this.
        tracing::warn!(%error, "the start of the steady clock could not be written down");
    }
    Ok(Clock::new(move || Timestamp::from_unix_ms(since_boot_ms().saturating_add(offset_ms))))
}

fn read(path: &PathBuf) -> Option<Anchor> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn anchor(known: Option<Anchor>, boot: &str, since_boot_ms: i64, wall: Timestamp, last: Timestamp) -> Anchor {
    match known {
        Some(anchor) if anchor.boot == boot => anchor,
        Some(_) | None => {
            let begin = wall.max(last).unix_ms();
            Anchor { boot: boot.to_owned(), offset_ms: begin.saturating_sub(since_boot_ms) }
        }
    }
}

fn since_boot_ms() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn told(anchor: &Anchor, since_boot_ms: i64) -> i64 {
        since_boot_ms + anchor.offset_ms
    }

    #[test]
    fn setting_the_wall_clock_moves_nothing_as_long_as_the_machine_runs() {
        let first = anchor(None, "boot-1", 5_000, at(1_000_000), at(0));
        assert_eq!(told(&first, 5_000), 1_000_000);
        // The agent is started again; meanwhile somebody has set the time, forwards or back.
        for wall in [at(0), at(9_000_000_000)] {
            let again = anchor(Some(first.clone()), "boot-1", 25_000, wall, at(1_010_000));
            assert_eq!(told(&again, 25_000), 1_020_000);
        }
    }

    #[test]
    fn a_machine_that_was_started_anew_goes_on_from_the_wall_clock_and_never_back() {
        let first = anchor(None, "boot-1", 5_000, at(1_000_000), at(0));
        let after = anchor(Some(first.clone()), "boot-2", 1_000, at(1_060_000), at(1_010_000));
        assert_eq!(told(&after, 1_000), 1_060_000);
        // Its battery is empty, and the wall clock begins in 1970.
        let after = anchor(Some(first), "boot-2", 1_000, at(10), at(1_010_000));
        assert_eq!(told(&after, 1_000), 1_010_000);
    }

    #[test]
    fn the_clock_of_this_machine_runs() {
        let folder = tempfile::tempdir().expect("folder");
        let clock = steady(folder.path(), at(0)).expect("a clock");
        let first = clock.now();
        let again = steady(folder.path(), at(0)).expect("the same clock");
        assert!(again.now() >= first && again.now().since(first).ms() < 60_000);
    }
}
