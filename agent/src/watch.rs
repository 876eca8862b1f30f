//! Watching one running server: its process and its checks, from when it is started until it is stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, CheckReport, HealthReport, HealthStatus, McpInfo, verdict};
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::release::Release;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::check::Checker;
use crate::layout::ServerLayout;
use crate::machine::Observation;
use crate::runtime;
use crate::supervise::read_status;

/// How often the process is looked at, and, while a server is not yet available, its checks are run.
const TICK: Duration = Duration::from_millis(500);

/// How long a server may take until its checks pass for the first time, before their failures count. A gate has a
/// deadline of its own.
const START_GRACE: Duration = Duration::from_secs(60);

/// What a watcher remembers of one check.
#[derive(Default)]
struct Memory {
    due: Option<Instant>,
    failures: u32,
    last: Option<CheckOutcome>,
    /// The outcome that counts: a failure only after as many in a row as the check says.
    counted: Option<CheckOutcome>,
}

/// Watches until the receiver is dropped or the task is ended. One observation per look.
pub(crate) async fn watch(layout: ServerLayout, id: ReleaseId, release: Release, to: mpsc::Sender<Observation>) {
    let Ok(mut checker) = Checker::new() else { return };
    let mut memories: BTreeMap<&str, Memory> = BTreeMap::new();
    let mut mcp: Option<McpInfo> = None;
    let began = Instant::now();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let status = read_status(&layout);
        let exits = status.as_ref().map_or(0, |status| status.exits);
        let runs = status.as_ref().is_some_and(|status| status.server.is_some());
        for check in &release.health_checks {
            let memory = memories.entry(&check.name).or_default();
            if !runs || memory.due.is_some_and(|due| Instant::now() < due) {
                continue;
            }
            let found = checker.run(check).await;
            if found.mcp.is_some() {
                mcp = found.mcp;
            }
            let starting = began.elapsed() < START_GRACE;
            memory.remember(found.outcome, check.failure_threshold, starting);
            let settled = memory.counted.as_ref() == memory.last.as_ref();
            memory.due = settled.then(|| Instant::now() + check.interval.into());
        }
        let gave_up = status.as_ref().is_some_and(|status| status.given_up);
        let unsupervised = !gave_up && !layout.stopped().exists() && !runtime::is_supervised(&layout);
        let report = report(&release, &memories, mcp.clone(), runs, exits);
        let ended = status.filter(|status| status.exits > 0).and_then(|status| status.last_exit);
        let server = release.server.clone();
        let seen = Observation { server, release: id.clone(), report, ended, unsupervised };
        if to.send(seen).await.is_err() {
            return;
        }
    }
}

impl Memory {
    fn remember(&mut self, outcome: CheckOutcome, failure_threshold: u32, starting: bool) {
        if matches!(outcome, CheckOutcome::Failing { .. }) {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= failure_threshold && (self.counted.is_some() || !starting) {
                self.counted = Some(outcome.clone());
            }
        } else {
            self.failures = 0;
            self.counted = Some(outcome.clone());
        }
        self.last = Some(outcome);
    }
}

/// A server that does not run is unhealthy whatever its checks said last. Until a check has passed once, its
/// failures mean for a while that the server is still starting.
fn report(
    release: &Release,
    memories: &BTreeMap<&str, Memory>,
    mcp: Option<McpInfo>,
    runs: bool,
    restarts: u32,
) -> HealthReport {
    let counted: BTreeMap<String, CheckOutcome> =
        memories.iter().filter_map(|(name, memory)| Some(((*name).to_owned(), memory.counted.clone()?))).collect();
    let checks = release.health_checks.iter().filter_map(|check| {
        let memory = memories.get(check.name.as_str())?;
        let outcome = memory.counted.clone().or_else(|| memory.last.clone())?;
        Some(CheckReport { name: check.name.clone(), severity: check.severity, outcome })
    });
    let mut checks: Vec<CheckReport> = checks.collect();
    let mut status = verdict(&release.health_checks, &counted);
    if !runs {
        status = HealthStatus::Unhealthy;
        checks.push(CheckReport {
            name: "process".to_owned(),
            severity: fleetwright_deploy::health::Severity::Critical,
            outcome: CheckOutcome::Failing { message: "the server is not running".to_owned() },
        });
    }
    HealthReport { status, checks, mcp, restarts }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing() -> CheckOutcome {
        CheckOutcome::Failing { message: "no".to_owned() }
    }

    #[test]
    fn a_failure_counts_only_after_as_many_in_a_row_as_the_check_says_and_never_before_the_first_success() {
        let mut memory = Memory::default();
        memory.remember(failing(), 2, true);
        memory.remember(failing(), 2, true);
        assert_eq!(memory.counted, None, "the server is still starting");
        let passing = CheckOutcome::Passing { message: "yes".to_owned() };
        memory.remember(passing.clone(), 2, true);
        memory.remember(failing(), 2, true);
        assert_eq!(memory.counted, Some(passing), "one failure is not enough");
        memory.remember(failing(), 2, true);
        assert_eq!(memory.counted, Some(failing()));
        let mut late = Memory::default();
        late.remember(failing(), 2, false);
        assert_eq!(late.counted, None, "one failure is not enough");
        late.remember(failing(), 2, false);
        assert_eq!(late.counted, Some(failing()), "a server that never starts is unhealthy in the end");
    }
}
