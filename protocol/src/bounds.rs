//! What is told is bounded before it is kept or sent: a message made by these functions always fits its frame.

use fleetwright_deploy::failure::{Failure, FailureKind, TEXT_BYTES_MAX};
use fleetwright_deploy::instance::StepReport;
use fleetwright_deploy::limits::{NAME_BYTES_MAX, bounded_runs, cut, last_lines, size};
use serde::Serialize;

use crate::command::CommandReply;
use crate::frame::{MESSAGE_BYTES_MAX, encode};
use crate::report::{AgentMessageV1, MetricsSample, SAMPLES_MAX};
use crate::snapshot::SnapshotView;

/// Most bytes of the lists in a message whose entries have no limit of their own: what is left is for everything else.
const LIST_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64 * 1024;
/// Most lines of output that travel with a change of health.
const HEALTH_LINES_MAX: usize = 20;

impl AgentMessageV1 {
    /// The same message within its limits. What is cut says so.
    #[must_use]
    pub fn bounded(self) -> Self {
        match self {
            Self::Step { deployment, server, attempt, report } => {
                Self::Step { deployment, server, attempt, report: bounded_report(report) }
            }
            Self::Condition { server, release, report, output } => {
                let output = last_lines(output, HEALTH_LINES_MAX);
                Self::Condition { server, release, report: report.bounded(), output }
            }
            Self::Metrics(sample) => Self::Metrics(bounded_sample(sample)),
            Self::MetricsBatch(samples) => Self::MetricsBatch(batch(samples.into_iter())),
            Self::Greeting { agent_version, view } => {
                Self::Greeting { agent_version: cut(agent_version, NAME_BYTES_MAX), view: view.bounded() }
            }
            // They hold numbers and digests only, or are not sent any more.
            other @ (Self::Hello { .. } | Self::Health { .. } | Self::ListChunks { .. } | Self::GetChunks { .. }) => {
                other
            }
        }
    }

    /// What is told in place of a message that does not fit a frame all the same; nothing where it may be left out.
    pub fn in_place_of_too_large(&self, bytes: usize) -> Option<Self> {
        let Self::Step { deployment, server, attempt, report } = self else { return None };
        let message = format!("a report was cut: {}, the limit is {}", size(bytes), size(MESSAGE_BYTES_MAX));
        let failure = Failure::new(FailureKind::ResourceError, "report", message)
            .hint("the log of the host's agent says which; look at what the server answers and prints");
        let report = match report {
            StepReport::TestFailed(_) => StepReport::TestFailed(failure),
            StepReport::Stuck(_) => StepReport::Stuck(failure),
            _ => StepReport::Failed(failure),
        };
        Some(Self::Step { deployment: deployment.clone(), server: server.clone(), attempt: *attempt, report })
    }
}

fn bounded_report(report: StepReport) -> StepReport {
    match report {
        StepReport::Failed(failure) => StepReport::Failed(failure.bounded()),
        StepReport::Stuck(failure) => StepReport::Stuck(failure.bounded()),
        StepReport::TestFailed(failure) => StepReport::TestFailed(failure.bounded()),
        other @ (StepReport::Staged
        | StepReport::Switched
        | StepReport::Verified
        | StepReport::Confirmed
        | StepReport::Restored { .. }
        | StepReport::Tested
        | StepReport::Cleaned) => other,
    }
}

/// As many samples, from the first, as one message holds; at least one.
pub fn batch(samples: impl Iterator<Item = MetricsSample>) -> Vec<MetricsSample> {
    let mut kept: Vec<MetricsSample> = samples.take(SAMPLES_MAX).map(bounded_sample).collect();
    fit(&mut kept);
    kept
}

/// A sample within a message: of more servers than fit, the last are left out.
fn bounded_sample(mut sample: MetricsSample) -> MetricsSample {
    fit(&mut sample.servers);
    sample
}

impl CommandReply {
    /// The same answer within its limits. What is cut says so.
    #[must_use]
    pub fn bounded(self) -> Self {
        match self {
            Self::Refused(failure) => Self::Refused(failure.bounded()),
            Self::Logs(lines) => Self::Logs(bounded_lines(lines)),
            Self::Checks(runs) => Self::Checks(bounded_runs(runs)),
            Self::Snapshots(mut snapshots) => {
                // The newest come last.
                snapshots.reverse();
                fit(&mut snapshots);
                snapshots.reverse();
                Self::Snapshots(snapshots)
            }
            Self::Snapshot(view) => Self::Snapshot(Box::new(bounded_snapshot(*view))),
            Self::View(view) => Self::View(Box::new(view.bounded())),
            other @ (Self::Accepted | Self::Duplicate | Self::Stale) => other,
        }
    }
}

/// The last lines that fit; the first says how many are left out.
fn bounded_lines(lines: Vec<String>) -> Vec<String> {
    let all = lines.len();
    let mut kept: Vec<String> = lines.into_iter().rev().map(|line| cut(line, TEXT_BYTES_MAX)).collect();
    if fit(&mut kept) {
        kept.push(format!("… cut: {all} lines, the limit is {}", size(LIST_BYTES_MAX)));
    }
    kept.reverse();
    kept
}

fn bounded_snapshot(mut view: SnapshotView) -> SnapshotView {
    let half = LIST_BYTES_MAX / 3;
    view.cut |= fit_within(&mut view.entries, half);
    view.cut |= fit_within(&mut view.changes, half);
    view.cut |= fit_within(&mut view.summary.paths, half);
    view
}

/// Keeps the first entries of a list that fit a message; whether any are left out.
fn fit<T: Serialize>(list: &mut Vec<T>) -> bool {
    fit_within(list, LIST_BYTES_MAX)
}

fn fit_within<T: Serialize>(list: &mut Vec<T>, limit: usize) -> bool {
    let (mut bytes, mut kept) = (0, 0);
    for entry in list.iter() {
        // What cannot be encoded cannot be told either.
        let Ok(encoded) = encode(entry, limit) else { break };
        bytes += encoded.len();
        if bytes > limit {
            break;
        }
        kept += 1;
    }
    let cut = kept < list.len();
    list.truncate(kept);
    cut
}
