//! What a deployment waits for, since when and until when: for its deadline, and for people who ask.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::step::StepStateName;
use super::{Deployment, HoldKind, Phase, StepState};
use crate::ids::InstanceId;
use crate::mutant::{Mutant, is_active};
use crate::plan::OnTimeout;
use crate::time::Timestamp;

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

/// The end of a wait, without words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    pub(super) kind: WaitKind,
    /// The instance that is waited for, where it is one.
    pub(super) instance: Option<InstanceId>,
}

impl Deployment {
    /// Until when something is waited for, if anything is that has an end.
    pub fn deadline(&self) -> Option<Timestamp> {
        Some(self.due()?.at)
    }

    /// The earliest thing that is waited for with an end: the same as the earliest of [`Self::waiting`], but without words.
    pub(super) fn due(&self) -> Option<Due> {
        if self.outcome().is_some() || !self.held.is_empty() {
            return None;
        }
        let due = |kind, at| Due { at, kind, instance: None };
        match &self.phase {
            Phase::AwaitingOperator { .. } => return None,
            Phase::RollingBack { since, .. } => {
                return Some(due(WaitKind::Rollback, since.after(self.plan.rollback.deadline)));
            }
            _ => {}
        }
        let on_the_way = self.steps.any(StepStateName::is_on_the_way);
        if let Some(at) = self.baked_at().filter(|_| !on_the_way) {
            return Some(due(WaitKind::Bake, at));
        }
        let step = self.steps.deadline().map(|(at, id, step)| {
            let backs_off = matches!(step.state, StepState::BackingOff { .. });
            Due { at, kind: if backs_off { WaitKind::BackOff } else { WaitKind::Host }, instance: Some(id.clone()) }
        });
        let external = self.externals_asked_again().map(|at| due(WaitKind::BackOff, at));
        // A bake that is over waits for nothing: what holds the others then is another bound.
        let bake = self.group_at_work().and_then(|group| self.steps.baked_at(group, self.progress_at));
        let bake = bake.map(|at| due(WaitKind::Bake, at));
        let asked = self.is_forward() && self.waiting_points().next().is_some();
        let approval = self.waiting_points().filter_map(|(n, since, _)| self.approval_until(n, since)).min();
        let approval = approval.filter(|_| asked).map(|at| due(WaitKind::Approval, at));
        let covered = bake.is_some() || (asked && !on_the_way);
        let progress = self.progress_until().filter(|_| !covered).map(|at| due(WaitKind::Progress, at));
        [step, external, bake, approval, progress].into_iter().flatten().min_by_key(|due| due.at)
    }

    /// When every check has held for the bake time at the end, where that is waited for.
    fn baked_at(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::HealthValidation { since } if self.unreachable.is_empty() => {
                Some(since.after(self.plan.rollout.bake))
            }
            _ => None,
        }
    }

    fn progress_until(&self) -> Option<Timestamp> {
        let until = self.progress_at.after(self.plan.rollout.progress_deadline);
        (!is_active(Mutant::NoProgressDeadline)).then_some(until)
    }

    fn approval_until(&self, point: usize, since: Timestamp) -> Option<Timestamp> {
        Some(since.after(self.plan.rollout.pauses[point].timeout?))
    }

    /// Everything that is waited for.
    pub fn waiting(&self) -> Vec<Waiting> {
        let steps = self.steps.iter().filter_map(|(id, _)| self.waiting_for(id));
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
        let on_the_way = self.steps.any(StepStateName::is_on_the_way);
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
            Phase::HealthValidation { since } => {
                if let Some(until) = self.baked_at().filter(|_| !on_the_way) {
                    let what = "the bake time to pass with every check holding";
                    waiting.push(Waiting::new(WaitKind::Bake, what, *since, Some(until)));
                    return waiting;
                }
            }
            _ => {
                let groups = self.group_at_work().into_iter();
                let baking = groups.flat_map(|group| self.steps.baking(group, self.progress_at));
                waiting.extend(baking.map(|(id, since, until)| {
                    let what = "(canary) to stay healthy for the bake time";
                    Waiting::new(WaitKind::Bake, what, since, Some(until)).of(id)
                }));
            }
        }
        let approvals = self.approvals();
        let asked = !approvals.is_empty() && !on_the_way;
        waiting.extend(approvals);
        if !asked && !waiting.iter().any(|w| w.kind == WaitKind::Bake) {
            waiting.push(self.waiting_for_progress());
        }
        waiting
    }

    pub(super) fn waiting_for_progress(&self) -> Waiting {
        let away: Vec<&str> = self.unreachable.iter().map(|host| host.as_str()).collect();
        let until = self.progress_until();
        if away.is_empty() {
            return Waiting::new(WaitKind::Progress, "the next step to make progress", self.progress_at, until);
        }
        let what = format!("{} to be connected again", away.join(", "));
        Waiting::new(WaitKind::Progress, what, self.progress_at, until)
            .unblocked_by(format!("bring the agent on {} back", away.join(", ")))
    }

    /// What is waited for of an instance.
    pub(super) fn waiting_for(&self, id: &InstanceId) -> Option<Waiting> {
        let until = self.steps.deadline_of(id);
        let (what, since) = match &self.steps.get(id)?.state {
            StepState::Staging { since } => ("to get its release ready", *since),
            StepState::BackingOff { since, .. } => {
                return Some(Waiting::new(WaitKind::BackOff, "to be tried again", *since, until).of(id));
            }
            StepState::Switching { since } => ("to switch", *since),
            StepState::Verifying { since } => ("to become healthy", *since),
            StepState::Confirming { since } => ("to confirm over a fresh connection", *since),
            StepState::SettingAside { since, .. } => ("to be put back, so that the others go on", *since),
            StepState::Restoring { since } => ("to be put back", *since),
            StepState::Resolving { since } => ("to take in that it was put in order by hand", *since),
            StepState::Testing => ("to answer the integration test", self.progress_at),
            StepState::Cleaning => ("to prune old releases", self.progress_at),
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
            let until = self.approval_until(n, since);
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

    /// The group at work.
    fn group_at_work(&self) -> Option<usize> {
        match &self.phase {
            Phase::ServerDeployment { group } => Some(*group),
            _ => None,
        }
    }
}
