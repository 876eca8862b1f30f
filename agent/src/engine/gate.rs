//! The health gate: when a switched release counts as healthy, and when it has failed.

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::{HealthReport, HealthStatus};
use fleetwright_deploy::instance::{Instance, InstanceEvent, InstanceState, Switch};
use fleetwright_deploy::time::Timestamp;

use crate::install::hint_of_what_came_with;
use crate::machine::Observation;

/// What is remembered between two observations of one instance.
#[derive(Default)]
pub(super) struct Gate {
    since: Option<Timestamp>,
    healthy_since: Option<Timestamp>,
}

impl Gate {
    /// The event that an observation leads to, if it decides something.
    pub(super) fn decide(
        &mut self,
        instance: &Instance,
        seen: &Observation,
        now: Timestamp,
        output: impl FnOnce() -> Vec<String>,
    ) -> Option<InstanceEvent> {
        match instance.state() {
            InstanceState::Verifying(switch) => self.verifying(switch, seen, now, output),
            InstanceState::Verified(switch) => {
                let lost = seen.ended.is_some() || seen.report.status == HealthStatus::Unhealthy;
                lost.then(|| unhealthy(switch, failure_of(seen, None), output()))
            }
            InstanceState::Idle
            | InstanceState::Staging { .. }
            | InstanceState::Staged { .. }
            | InstanceState::Snapshotting(_)
            | InstanceState::Switching(_)
            | InstanceState::Failed { .. }
            | InstanceState::Restoring { .. }
            | InstanceState::Stuck { .. } => {
                *self = Self::default();
                None
            }
        }
    }

    fn verifying(
        &mut self,
        switch: &Switch,
        seen: &Observation,
        now: Timestamp,
        output: impl FnOnce() -> Vec<String>,
    ) -> Option<InstanceEvent> {
        let since = *self.since.get_or_insert(now);
        if seen.ended.is_some() {
            return Some(unhealthy(switch, failure_of(seen, None), output()));
        }
        if seen.report.status.is_available() {
            let healthy_since = *self.healthy_since.get_or_insert(now);
            let long_enough = healthy_since.after(switch.spec.min_healthy_time) <= now;
            return long_enough.then(|| InstanceEvent::BecameHealthy { key: switch.key.clone() });
        }
        self.healthy_since = None;
        let too_late = since.after(switch.spec.healthy_deadline) <= now;
        too_late.then(|| unhealthy(switch, failure_of(seen, Some(switch)), output()))
    }
}

/// Whether a difference between two reports is more than noise.
pub(super) fn worth_telling(told: &HealthReport, new: &HealthReport) -> bool {
    let failing = |report: &HealthReport| match report.status {
        HealthStatus::Healthy => String::new(),
        HealthStatus::Unknown
        | HealthStatus::Degraded
        | HealthStatus::NeedsAuthentication
        | HealthStatus::Unhealthy => {
            report.checks.iter().map(|check| check.name.as_str()).collect::<Vec<_>>().join(",")
        }
    };
    told.status != new.status || told.mcp != new.mcp || told.restarts != new.restarts || failing(told) != failing(new)
}

fn failure_of(seen: &Observation, too_late: Option<&Switch>) -> Failure {
    if let Some(ended) = &seen.ended {
        return Failure::new(FailureKind::DeploymentError, "health gate", format!("the server ended with {ended}"))
            .hint("see its output: it must run without ending; one that `completes` must end with exit status 0");
    }
    let reason = seen.report.reason();
    let reason = if reason.is_empty() { "no check has answered yet".to_owned() } else { reason };
    match too_late {
        Some(switch) => {
            let message = format!("not healthy within {}: {reason}", switch.spec.healthy_deadline);
            Failure::new(FailureKind::HealthCheckError, "health gate", message)
                .hint("see its output; if it only needs longer, raise `rollout.healthy_deadline`")
        }
        None => Failure::new(FailureKind::HealthCheckError, "health gate", reason).hint("see its output"),
    }
}

fn unhealthy(switch: &Switch, failure: Failure, output: Vec<String>) -> InstanceEvent {
    let failure = match hint_of_what_came_with(&output) {
        Some(hint) => failure.hint(hint),
        None => failure,
    };
    let failure = failure.output(output.iter().map(String::as_str));
    InstanceEvent::BecameUnhealthy { key: switch.key.clone(), failure }
}
