//! What a deployment waits for, since when and until when: for its deadline, and for people who ask.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Deployment, HoldKind, Phase, StepState};
use crate::ids::InstanceId;
use crate::mutant::{Mutant, is_active};
use crate::plan::OnTimeout;
use crate::time::{Length, Timestamp};

/// How much longer than a host's own dead-man deadline the coordinator waits for its word.
const HOST_GRACE: Length = Length::from_secs(30);

/// What the end of a wait means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitKind {
    /// A host has not done in time what it was asked to.
    Host,
    /// A time during which nothing may go wrong is over, and all is well.
    Bake,
    /// Nothing: something outside the fleet is asked.
    External,
    /// The pause before the next attempt is over.
    BackOff,
    /// Nobody has decided in time.
    Approval,
    /// The deployment makes no progress.
    Progress,
    /// The rollback takes too long.
    Rollback,
    /// Nothing: only a person can go on.
    Person,
}

/// Something that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The instance that is waited for, where it is one.
    pub instance: Option<InstanceId>,
    /// What is waited for, in words.
    pub what: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when. Nothing when only a person can go on, or when another deadline covers it.
    pub until: Option<Timestamp>,
    /// What the end of the wait means.
    pub kind: WaitKind,
    /// What would end it, in words or as a command.
    pub unblock: Option<String>,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instance {
            Some(id) => write!(f, "{id} {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl Waiting {
    pub(super) fn new(kind: WaitKind, what: impl Into<String>, since: Timestamp, until: Option<Timestamp>) -> Self {
        Self { instance: None, what: what.into(), since, until, kind, unblock: None }
    }

    fn of(mut self, instance: &InstanceId) -> Self {
        self.instance = Some(instance.clone());
        self
    }

    pub(super) fn unblocked_by(mut self, what: impl Into<String>) -> Self {
        self.unblock = Some(what.into());
        self
    }
}

impl Deployment {
    /// The earliest thing that is waited for with an end.
    pub fn deadline(&self) -> Option<Waiting> {
        self.waiting().into_iter().filter(|waiting| waiting.until.is_some()).min_by_key(|waiting| waiting.until)
    }

    /// Everything that is waited for.
    pub fn waiting(&self) -> Vec<Waiting> {
        let steps = self.steps.iter().filter_map(|(id, step)| self.waiting_for(id, &step.state));
        let mut waiting: Vec<Waiting> = steps.chain(self.waiting_for_externals()).collect();
        if self.outcome().is_some() {
            // What still goes on after the end has no deadline.
            waiting.iter_mut().for_each(|w| w.until = None);
            return waiting;
        }
        if !self.held.is_empty() {
            waiting.iter_mut().for_each(|w| w.until = None);
            waiting.extend(self.held.iter().map(|hold| {
                let (what, command) = match hold.kind {
                    HoldKind::Pause => ("paused", format!("fleetwright deploy resume {}", self.id)),
                    HoldKind::Halt => ("the fleet is halted", "fleetwright unhalt".to_owned()),
                };
                let why = if hold.reason.is_empty() { String::new() } else { format!(" ({})", hold.reason) };
                let what = format!("a person: {what} by {}{why}", hold.by);
                Waiting::new(WaitKind::Person, what, hold.since, None).unblocked_by(command)
            }));
            return waiting;
        }
        match &self.phase {
            Phase::AwaitingOperator { since, .. } => {
                waiting.iter_mut().for_each(|w| w.until = None);
                let what = "a person to decide what becomes of what has failed";
                let unblock = self.moves().join(", or ");
                waiting.push(Waiting::new(WaitKind::Person, what, *since, None).unblocked_by(unblock));
                return waiting;
            }
            Phase::RollingBack { since, .. } => {
                let until = Some(since.after(self.plan.rollback.deadline));
                waiting.push(Waiting::new(WaitKind::Rollback, "everything to be put back", *since, until));
                return waiting;
            }
            Phase::HealthValidation { since } if self.unreachable.is_empty() => {
                let until = since.after(self.plan.rollout.bake);
                if !self.any(StepState::is_on_the_way) {
                    let what = "the bake time to pass with every check holding";
                    waiting.push(Waiting::new(WaitKind::Bake, what, *since, Some(until)));
                    return waiting;
                }
            }
            Phase::ServerDeployment { group } => waiting.extend(self.canary_bake(*group)),
            _ => {}
        }
        let approvals = self.approvals();
        let asked = !approvals.is_empty() && !self.any(StepState::is_on_the_way);
        waiting.extend(approvals);
        if !asked && !waiting.iter().any(|w| w.kind == WaitKind::Bake) {
            waiting.push(self.waiting_for_progress());
        }
        waiting
    }

    fn waiting_for_progress(&self) -> Waiting {
        let away: Vec<&str> = self.unreachable.iter().map(|host| host.as_str()).collect();
        let until = Some(self.progress_at.after(self.plan.rollout.progress_deadline));
        let until = until.filter(|_| !is_active(Mutant::NoProgressDeadline));
        if away.is_empty() {
            return Waiting::new(WaitKind::Progress, "the next step to make progress", self.progress_at, until);
        }
        let what = format!("{} to be connected again", away.join(", "));
        Waiting::new(WaitKind::Progress, what, self.progress_at, until)
            .unblocked_by(format!("bring the agent on {} back", away.join(", ")))
    }

    fn waiting_for(&self, id: &InstanceId, state: &StepState) -> Option<Waiting> {
        let pace = self.plan.pace(&id.server);
        let host_deadline = pace.healthy_deadline.plus(self.plan.rollout.confirm_timeout).plus(HOST_GRACE);
        let (what, since, until) = match state {
            StepState::Staging { since } => ("to get its release ready", *since, None),
            StepState::BackingOff { since, until } => {
                return Some(Waiting::new(WaitKind::BackOff, "to be tried again", *since, Some(*until)).of(id));
            }
            StepState::Switching { since } => ("to switch", *since, Some(since.after(host_deadline))),
            StepState::Verifying { since } => ("to become healthy", *since, Some(since.after(host_deadline))),
            StepState::Confirming { since } => {
                ("to confirm over a fresh connection", *since, Some(since.after(host_deadline)))
            }
            StepState::SettingAside { since, .. } => ("to be put back, so that the others go on", *since, None),
            StepState::Restoring { since } => ("to be put back", *since, None),
            StepState::Resolving { since } => ("to take in that it was put in order by hand", *since, None),
            StepState::Testing => ("to answer the integration test", self.progress_at, None),
            StepState::Cleaning => ("to prune old releases", self.progress_at, None),
            StepState::Unchanged
            | StepState::Pending
            | StepState::Staged
            | StepState::Confirmed { .. }
            | StepState::Tested
            | StepState::Done
            | StepState::Failed { .. }
            | StepState::LeftOut { .. }
            | StepState::Untouched
            | StepState::Restored
            | StepState::Stuck { .. }
            | StepState::Superseded { .. } => return None,
        };
        let until = if matches!(self.phase, Phase::RollingBack { .. }) { None } else { until };
        if self.unreachable.contains(&id.host) {
            let what = format!("{what} (its host is not connected)");
            let waiting = Waiting::new(WaitKind::Host, what, since, until).of(id);
            return Some(waiting.unblocked_by(format!("bring the agent on {} back", id.host)));
        }
        Some(Waiting::new(WaitKind::Host, what, since, until).of(id))
    }

    /// The pause points at which people are waited for.
    fn approvals(&self) -> Vec<Waiting> {
        if !self.is_forward() {
            return Vec::new();
        }
        let points = self.waiting_points().map(|(n, since, approved_by)| {
            let point = &self.plan.rollout.pauses[n];
            let until = point.timeout.map(|timeout| since.after(timeout));
            let then = match (until, point.on_timeout) {
                (None, _) => "",
                (Some(_), OnTimeout::Approve) => "; then it goes on by itself",
                (Some(_), OnTimeout::Reject) => "; then it counts as rejected",
            };
            let have = approved_by.len();
            let what = format!("{} to be approved ({have} of {}){then}", self.describe_pause(n), point.approvals);
            Waiting::new(WaitKind::Approval, what, since, until)
                .unblocked_by(format!("fleetwright deploy approve {}", self.id))
        });
        points.collect()
    }

    /// Canaries that are confirmed but must stay healthy for the bake time before the others of their server.
    fn canary_bake(&self, group: usize) -> Vec<Waiting> {
        let held = |id: &InstanceId| {
            self.steps.iter().any(|(other, step)| other.server == id.server && matches!(step.state, StepState::Staged))
        };
        let in_group =
            self.steps.iter().filter(|(id, step)| step.group == group && self.plan.pace(&id.server).canary > 0);
        let baking = in_group.filter_map(|(id, step)| match &step.state {
            StepState::Confirmed { since } if held(id) => {
                let until = since.after(self.plan.pace(&id.server).bake);
                let what = "(canary) to stay healthy for the bake time";
                // A bake that is over waits for nothing: what holds the others then is another bound.
                (until > self.progress_at).then(|| Waiting::new(WaitKind::Bake, what, *since, Some(until)).of(id))
            }
            _ => None,
        });
        baking.collect()
    }
}
