//! Watching one running server: its process and its checks, from when it is started until it is stopped.
//!
//! Checks run side by side, so that one that hangs delays neither the others nor the news that the process has ended.

mod memory;

use std::collections::BTreeMap;
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, CheckReport, HealthReport, HealthStatus, McpInfo, Severity, verdict};
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::release::Release;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::memory::Memory;
use crate::check::{Checker, Found, Place};
use crate::confine::Confinement;
use crate::layout::ServerLayout;
use crate::machine::Observation;
use crate::{runtime, stage};

/// How often the process is looked at while anything may still change.
const TICK: Duration = Duration::from_millis(500);
/// How often it is looked at once everything has been as it is for [`STEADY_AFTER`].
const STEADY_TICK: Duration = Duration::from_secs(2);
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// Watches until the receiver is dropped or the task is ended. One observation per look.
pub(crate) async fn watch(layout: ServerLayout, id: ReleaseId, release: Release, to: mpsc::Sender<Observation>) {
    let place = Place { server: layout.clone(), release: release.clone() };
    let Ok(checker) = Checker::new(stage::checked_secrets(&layout.release(&id)), place) else { return };
    let mut memories: Vec<Memory> = release.health_checks.iter().map(|_| Memory::default()).collect();
    let mut running = FuturesUnordered::new();
    let mut mcp: Option<McpInfo> = None;
    let began = Instant::now();
    let (mut told, mut changed_at) = (None, began);
    let mut confined: Option<Confinement> = None;
    loop {
        let state = runtime::state(&layout).await;
        let completed = release.run.completes && runtime::has_completed(&layout, &id, &state);
        let there = if release.run.completes { completed } else { state.runs };
        let now = Instant::now();
        for (n, (check, memory)) in release.health_checks.iter().zip(&mut memories).enumerate() {
            if there && memory.is_due(now) {
                memory.begin();
                let checker = &checker;
                running.push(async move { (n, checker.run(check).await) });
            }
        }
        let mut report = report(&release, &memories, mcp.clone(), &state, completed);
        if state.runs {
            let now = Confinement::of(&layout);
            if let Some(confinement) = now.as_ref().filter(|now| confined.as_ref() != Some(*now)) {
                tracing::info!(server = layout.name(), "runs as {}", confinement.words());
            }
            report.checks.extend(now.as_ref().and_then(unconfined));
            confined = now;
        }
        if told.as_ref() != Some(&report) {
            changed_at = now;
            told = Some(report.clone());
        }
        let ended = if state.exits > 0 && !completed { state.last_exit } else { None };
        let unsupervised = !state.given_up && !state.kept && !completed && !layout.stopped().exists();
        let seen = Observation { server: release.server.clone(), release: id.clone(), report, ended, unsupervised };
        if to.send(seen).await.is_err() {
            return;
        }
        let steady = now.duration_since(changed_at) > STEADY_AFTER;
        let wake = now + if steady { STEADY_TICK } else { TICK };
        tokio::select! {
            () = sleep_until(wake) => {}
            Some((n, found)) = running.next(), if !running.is_empty() => {
                let Found { outcome, mcp: said, .. } = found;
                if said.is_some() {
                    mcp = said;
                }
                memories[n].end(&release.health_checks[n], outcome, began, Instant::now());
            }
        }
    }
}

/// What could not be done to confine a server, for whoever looks at it. It changes no verdict.
fn unconfined(of: &Confinement) -> Option<CheckReport> {
    let message = format!("not confined: {}", of.left_out.join("; "));
    let outcome = CheckOutcome::Warning { message };
    (!of.left_out.is_empty()).then(|| CheckReport { name: "confinement".to_owned(), severity: Severity::Info, outcome })
}

/// A server that does not run is unhealthy whatever its checks said last. Until a check has passed once, its
/// failures mean for a while that the server is still starting.
/// What is to end is well once it has, with exit status 0.
fn report(
    release: &Release,
    memories: &[Memory],
    mcp: Option<McpInfo>,
    state: &runtime::State,
    completed: bool,
) -> HealthReport {
    let counted: BTreeMap<String, CheckOutcome> = release
        .health_checks
        .iter()
        .zip(memories)
        .filter_map(|(check, memory)| Some((check.name.clone(), memory.counted()?.clone())))
        .collect();
    let checks = release.health_checks.iter().zip(memories).filter_map(|(check, memory)| {
        let outcome = memory.counted().or_else(|| memory.last())?.clone();
        Some(CheckReport { name: check.name.clone(), severity: check.severity, outcome })
    });
    let mut checks: Vec<CheckReport> = checks.collect();
    let mut status = verdict(&release.health_checks, &counted);
    let wrong = match (release.run.completes, state.runs) {
        (true, _) if completed => None,
        (true, true) => Some((HealthStatus::Unknown, "it has not ended yet".to_owned())),
        (true, false) => {
            let how = state.last_exit.as_deref().unwrap_or("nothing that is known");
            Some((HealthStatus::Unhealthy, format!("it ended with {how}")))
        }
        (false, true) => None,
        (false, false) => Some((HealthStatus::Unhealthy, "the server is not running".to_owned())),
    };
    if let Some((worse, message)) = wrong {
        status = worse;
        checks.push(CheckReport {
            name: "process".to_owned(),
            severity: Severity::Critical,
            outcome: CheckOutcome::Failing { message },
        });
    }
    HealthReport { status, checks, mcp, restarts: if completed { 0 } else { state.exits } }
}
