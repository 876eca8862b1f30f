//! What a watcher remembers of one check: what counts, since when, and whether it flaps.

use std::collections::VecDeque;
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, HealthCheck};
use tokio::time::Instant;

/// A check whose counted outcome has changed this often within [`FLAP_WINDOW`] flaps, until it has not changed for
/// [`FLAP_CALM`].
const FLAP_CHANGES: usize = 6;
const FLAP_WINDOW: Duration = Duration::from_secs(600);
const FLAP_CALM: Duration = Duration::from_secs(180);

/// One check of one running release.
#[derive(Default)]
pub(super) struct Memory {
    running: bool,
    due: Option<Instant>,
    failures: u32,
    successes: u32,
    last: Option<CheckOutcome>,
    /// The outcome that counts: a failure only after as many in a row as the check says, and a success after a failure
    /// likewise.
    counted: Option<CheckOutcome>,
    /// What is told in its place while it flaps.
    flapping: Option<CheckOutcome>,
    changes: VecDeque<Instant>,
}

impl Memory {
    pub(super) fn counted(&self) -> Option<&CheckOutcome> {
        self.flapping.as_ref().or(self.counted.as_ref())
    }

    pub(super) fn last(&self) -> Option<&CheckOutcome> {
        self.last.as_ref()
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.running && self.due.is_none_or(|due| due <= now)
    }

    pub(super) fn begin(&mut self) {
        self.running = true;
    }

    /// A run has ended. One whose outcome does not count yet is followed by the next at once.
    pub(super) fn end(&mut self, check: &HealthCheck, outcome: CheckOutcome, began: Instant, now: Instant) {
        self.running = false;
        let starting = now.duration_since(began) < Duration::from(check.start_grace);
        self.remember(check, outcome, starting, now);
        let settled = self.counted.as_ref() == self.last.as_ref();
        let pause: Duration = if settled { check.interval.into() } else { super::TICK };
        self.due = Some(now + pause);
    }

    fn remember(&mut self, check: &HealthCheck, outcome: CheckOutcome, starting: bool, now: Instant) {
        let fails = |outcome: &CheckOutcome| matches!(outcome, CheckOutcome::Failing { .. });
        let counts = if fails(&outcome) {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            self.failures >= check.failure_threshold && (self.counted.is_some() || !starting)
        } else {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            !self.counted.as_ref().is_some_and(fails) || self.successes >= check.success_threshold
        };
        if counts {
            let before = self.counted.as_ref().map(fails);
            if before.is_some_and(|before| before != fails(&outcome)) {
                self.changes.push_back(now);
            }
            self.counted = Some(outcome.clone());
        }
        self.last = Some(outcome);
        self.judge_flapping(now);
    }

    /// A check that comes and goes is named once, instead of being told each time: it counts as failing until it is
    /// calm.
    fn judge_flapping(&mut self, now: Instant) {
        while self.changes.front().is_some_and(|at| now.duration_since(*at) > FLAP_WINDOW) {
            self.changes.pop_front();
        }
        let calm = self.changes.back().is_none_or(|at| now.duration_since(*at) > FLAP_CALM);
        if calm {
            self.flapping = None;
        } else if self.flapping.is_none() && self.changes.len() >= FLAP_CHANGES {
            let minutes = FLAP_WINDOW.as_secs() / 60;
            let failed = self.counted.as_ref().map_or("", CheckOutcome::message);
            let message = format!("flapping: {FLAP_CHANGES} changes within {minutes} minutes; last: {failed}");
            self.flapping = Some(CheckOutcome::Failing { message });
        }
    }
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::health::{Probe, Severity};

    use super::*;

    fn failing() -> CheckOutcome {
        CheckOutcome::Failing { message: "no".to_owned() }
    }

    fn passing() -> CheckOutcome {
        CheckOutcome::Passing { message: "yes".to_owned() }
    }

    fn check(failures: u32, successes: u32) -> HealthCheck {
        let probe = Probe::Tcp { address: String::new() };
        HealthCheck {
            failure_threshold: failures,
            success_threshold: successes,
            ..HealthCheck::new("c".to_owned(), Severity::Critical, probe)
        }
    }

    #[test]
    fn a_failure_counts_only_after_as_many_in_a_row_as_the_check_says_and_never_before_the_first_success() {
        let (check, now, mut memory) = (check(2, 1), Instant::now(), Memory::default());
        memory.remember(&check, failing(), true, now);
        memory.remember(&check, failing(), true, now);
        assert_eq!(memory.counted(), None, "the server is still starting");
        memory.remember(&check, passing(), true, now);
        memory.remember(&check, failing(), true, now);
        assert_eq!(memory.counted(), Some(&passing()), "one failure is not enough");
        memory.remember(&check, failing(), true, now);
        assert_eq!(memory.counted(), Some(&failing()));
        let mut late = Memory::default();
        late.remember(&check, failing(), false, now);
        assert_eq!(late.counted(), None, "one failure is not enough");
        late.remember(&check, failing(), false, now);
        assert_eq!(late.counted(), Some(&failing()), "a server that never starts is unhealthy in the end");
    }

    #[test]
    fn a_failing_check_passes_again_only_after_as_many_successes_in_a_row_as_it_says() {
        let (check, now, mut memory) = (check(1, 3), Instant::now(), Memory::default());
        memory.remember(&check, passing(), false, now);
        assert_eq!(memory.counted(), Some(&passing()), "the first success needs no others");
        memory.remember(&check, failing(), false, now);
        memory.remember(&check, passing(), false, now);
        memory.remember(&check, passing(), false, now);
        assert_eq!(memory.counted(), Some(&failing()));
        memory.remember(&check, passing(), false, now);
        assert_eq!(memory.counted(), Some(&passing()));
    }

    #[test]
    fn a_check_that_comes_and_goes_is_named_until_it_is_calm() {
        let (check, mut now, mut memory) = (check(1, 1), Instant::now(), Memory::default());
        for _ in 0..4 {
            for outcome in [passing(), failing()] {
                now += Duration::from_secs(10);
                memory.remember(&check, outcome, false, now);
            }
        }
        let told = memory.counted().cloned();
        assert!(told.as_ref().is_some_and(|told| told.message().starts_with("flapping")), "{told:?}");
        now += Duration::from_secs(10);
        memory.remember(&check, passing(), false, now);
        assert_eq!(memory.counted().cloned(), told, "the same is told while it flaps");
        now += FLAP_CALM + Duration::from_secs(1);
        memory.remember(&check, passing(), false, now);
        assert_eq!(memory.counted(), Some(&passing()));
    }
}
