//! What people decide: to hold a deployment, let it pass, end it, or say what becomes of what has failed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::rollback::RollbackChoice;
use super::step::{Aside, StepStateName};
use super::{Deployment, Effects, Hold, HoldKind, IllegalEvent, Outcome, Phase, StepState};
use crate::failure::{Failure, FailureKind};
use crate::ids::{DeploymentId, InstanceId};
use crate::plan::{PauseAt, PausePoint};
use crate::time::Timestamp;

/// A point of the plan at which a deployment waits for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Checkpoint {
    /// It was not reached yet.
    #[default]
    Ahead,
    /// It is waited for approval.
    Waiting {
        /// Since when.
        since: Timestamp,
        /// Who has approved so far.
        approved_by: BTreeSet<String>,
    },
    /// It was passed.
    Passed,
}

impl Deployment {
    /// Whether every pause point here was passed. One that is reached for the first time begins to wait.
    pub(super) fn passes(&mut self, at: &PauseAt, now: Timestamp, effects: &mut Effects) -> bool {
        let mut passes = true;
        for n in 0..self.plan.rollout.pauses.len() {
            if self.plan.rollout.pauses[n].at != *at || self.checkpoints[n] == Checkpoint::Passed {
                continue;
            }
            if self.checkpoints[n] == Checkpoint::Ahead {
                self.checkpoints[n] = Checkpoint::Waiting { since: now, approved_by: BTreeSet::new() };
                let needed = self.plan.rollout.pauses[n].approvals;
                let message = format!("{} waits to be approved ({needed} needed)", self.describe_pause(n));
                effects.notes.push(self.note(None, "approval_needed", message));
            }
            passes = false;
        }
        passes
    }

    /// The pause points that are waited at now: number, since when, and who has approved.
    pub(super) fn waiting_points(&self) -> impl Iterator<Item = (usize, Timestamp, &BTreeSet<String>)> {
        self.checkpoints.iter().enumerate().filter_map(|(n, checkpoint)| match checkpoint {
            Checkpoint::Waiting { since, approved_by } => Some((n, *since, approved_by)),
            Checkpoint::Ahead | Checkpoint::Passed => None,
        })
    }

    pub(super) fn describe_pause(&self, point: usize) -> String {
        match &self.plan.rollout.pauses[point].at {
            PauseAt::BeforeGroup(group) => format!("group {}", group + 1),
            PauseAt::AfterCanary(server) => format!("{server}, its canary healthy,"),
        }
    }

    pub(super) fn approved(&mut self, by: &str, now: Timestamp, effects: &mut Effects) -> Result<(), IllegalEvent> {
        let points: Vec<usize> = self.waiting_points().map(|(n, _, _)| n).collect();
        if points.is_empty() || !self.is_forward() {
            return Err(self.illegal("approved", "; it waits for no approval".to_owned()));
        }
        let counts = |point: &PausePoint| point.approvals < 2 || by != self.options.started_by;
        let fresh = |n: &usize| {
            counts(&self.plan.rollout.pauses[*n])
                && matches!(&self.checkpoints[*n], Checkpoint::Waiting { approved_by, .. } if !approved_by.contains(by))
        };
        let points: Vec<usize> = points.into_iter().filter(fresh).collect();
        if points.is_empty() {
            let why = "; where two must approve, nobody counts twice, nor does who started it";
            return Err(self.illegal("approved", why.to_owned()));
        }
        for n in points {
            let needed = self.plan.rollout.pauses[n].approvals.max(1) as usize;
            if let Checkpoint::Waiting { approved_by, .. } = &mut self.checkpoints[n] {
                approved_by.insert(by.to_owned());
                let so_far = approved_by.len();
                if so_far >= needed {
                    self.checkpoints[n] = Checkpoint::Passed;
                }
                let message = format!("{} approved by {by} ({so_far} of {needed})", self.describe_pause(n));
                effects.notes.push(self.note(None, "approved", message));
            }
        }
        self.progress_at = now;
        Ok(())
    }

    pub(super) fn rejected(
        &mut self,
        by: &str,
        reason: &str,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        if self.waiting_points().next().is_none() || !self.is_forward() {
            return Err(self.illegal("rejected", "; it waits for no approval".to_owned()));
        }
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        self.reject(format!("rejected by {by}{why}"), now, effects);
        Ok(())
    }

    /// What is not approved fails, and is undone unless rollback is off.
    pub(super) fn reject(&mut self, message: String, now: Timestamp, effects: &mut Effects) {
        let failure = Failure::new(FailureKind::PermissionError, "approval", message);
        self.failures.push(failure.clone());
        if self.options.rollback {
            self.start_rollback(failure, None, now, effects);
        } else {
            self.stop(failure, Outcome::Failed, now, effects);
        }
    }

    pub(super) fn hold(&mut self, hold: Hold, effects: &mut Effects) -> Result<(), IllegalEvent> {
        if self.outcome().is_some() || self.held.iter().any(|held| held.kind == hold.kind) {
            return Err(self.illegal("held", "; it is held already, or has ended".to_owned()));
        }
        let what = if hold.kind == HoldKind::Pause { "paused" } else { "halted" };
        let reason = if hold.reason.is_empty() { String::new() } else { format!(": {}", hold.reason) };
        effects.notes.push(self.note(None, what, format!("{what} by {}{reason}", hold.by)));
        self.held_since.get_or_insert(hold.since);
        self.held.push(hold);
        Ok(())
    }

    /// Ends a hold. The time that it lasted does not count against any deadline of the deployment.
    pub(super) fn release(
        &mut self,
        kind: HoldKind,
        by: &str,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        let Some(n) = self.held.iter().position(|held| held.kind == kind) else {
            let why = if self.held.is_empty() { "; it is not held" } else { "; the whole fleet is halted" };
            return Err(self.illegal("released", why.to_owned()));
        };
        self.held.remove(n);
        effects.notes.push(self.note(None, "resumed", format!("resumed by {by}")));
        let Some(since) = self.held_since.take_if(|_| self.held.is_empty()) else { return Ok(()) };
        // What began during the hold has been held for that much less.
        let held_from = since;
        let later = |began: Timestamp| began.after(now.since(began.max(held_from)));
        self.progress_at = later(self.progress_at);
        if let Phase::RollingBack { since, .. } = &mut self.phase {
            *since = later(*since);
        }
        for checkpoint in &mut self.checkpoints {
            if let Checkpoint::Waiting { since, .. } = checkpoint {
                *since = later(*since);
            }
        }
        Ok(())
    }

    /// Whoever ends or undoes a deployment that is paused wants that to happen.
    fn lift_pause(&mut self, by: &str, now: Timestamp, effects: &mut Effects) {
        // That it was not paused is fine.
        let _ = self.release(HoldKind::Pause, by, now, effects);
    }

    pub(super) fn cancelled(&mut self, by: &str, now: Timestamp, effects: &mut Effects) -> Result<(), IllegalEvent> {
        if !self.is_forward() && !matches!(self.phase, Phase::AwaitingOperator { .. }) {
            return Err(self.illegal("cancelled", "; it goes no further anyway".to_owned()));
        }
        let cause = Failure::new(FailureKind::DeploymentError, "operator", format!("cancelled by {by}"))
            .hint(format!("what was confirmed stays; `fleetwright rollback {}` puts it back", self.id));
        self.lift_pause(by, now, effects);
        self.stop(cause, Outcome::Cancelled, now, effects);
        Ok(())
    }

    pub(super) fn rollback_requested(
        &mut self,
        by: &str,
        choice: RollbackChoice,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        const EVENT: &str = "rollback_requested";
        if matches!(self.phase, Phase::RollingBack { .. }) && choice.strategy.is_none() {
            return Err(self.illegal(EVENT, "; it is being rolled back already".to_owned()));
        }
        if self.outcome() == Some(Outcome::RolledBack) {
            return Err(self.illegal(EVENT, "; it was rolled back already".to_owned()));
        }
        if self.outcome().is_some() && !self.steps.any(StepStateName::is_touched) {
            return Err(self.illegal(EVENT, "; it has nothing to put back".to_owned()));
        }
        if !choice.only.is_empty() && self.outcome().is_none() {
            return Err(self.illegal(EVENT, "; a part of it can be put back only when it has ended".to_owned()));
        }
        if let Some(id) = choice.only.iter().find(|id| self.steps.get(id).is_none_or(|step| !step.state.is_touched())) {
            return Err(self.illegal(EVENT, format!("; it has nothing to put back for {id}")));
        }
        let meant = |id: &InstanceId| choice.only.is_empty() || choice.only.contains(id);
        for id in self.steps.ids_where(|state| state == StepStateName::Stuck).iter().filter(|id| meant(id)) {
            let failure = Failure::new(FailureKind::DeploymentError, "rollback", "it was stuck before");
            self.set(id, StepState::Failed { failure }, effects);
        }
        self.lift_pause(by, now, effects);
        let cause = Failure::new(FailureKind::DeploymentError, "operator", format!("rollback was asked for by {by}"));
        self.start_rollback(cause, Some(choice), now, effects);
        Ok(())
    }

    /// Tries again, or leaves out, what has failed, and goes on.
    pub(super) fn go_on_without(
        &mut self,
        instances: BTreeSet<InstanceId>,
        next: Aside,
        by: &str,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        let (event, what) = match next {
            Aside::Retry => ("retry_requested", "retry"),
            Aside::LeaveOut => ("skip_requested", "left_out"),
        };
        let Phase::AwaitingOperator { from, .. } = &self.phase else {
            return Err(self.illegal(event, "; it does not wait for a person's decision".to_owned()));
        };
        let from = (**from).clone();
        let about_externals = instances.is_empty() && self.misses_externals();
        let ids = if about_externals && self.undecided().next().is_none() {
            BTreeSet::new()
        } else {
            self.failed_ones(instances, event)?
        };
        if about_externals {
            self.decide_about_externals(next, by, now, effects);
        }
        for id in &ids {
            let failure = match &self.steps[id].state {
                StepState::Failed { failure } => failure.clone(),
                _ => Failure::new(FailureKind::DeploymentError, "operator", format!("left out by {by}")),
            };
            effects.notes.push(self.note(Some(id), what, format!("asked for by {by}")));
            let touched = matches!(self.steps[id].state, StepState::Failed { .. });
            let state = match (touched, next) {
                (true, next) => StepState::SettingAside { since: now, failure, next },
                (false, Aside::Retry) => StepState::BackingOff { since: now, until: now },
                (false, Aside::LeaveOut) => StepState::LeftOut { failure },
            };
            self.set(id, state, effects);
        }
        if self.undecided().next().is_none() && !self.misses_externals() {
            self.progress_at = now;
            self.enter(from, effects);
        }
        Ok(())
    }

    /// The failed instances that were named, or all of them.
    fn failed_ones(
        &self,
        named: BTreeSet<InstanceId>,
        event: &'static str,
    ) -> Result<BTreeSet<InstanceId>, IllegalEvent> {
        let failed: BTreeSet<InstanceId> = self.undecided().cloned().collect();
        if failed.is_empty() {
            return Err(self.illegal(event, "; none of its instances has failed by itself".to_owned()));
        }
        if let Some(other) = named.iter().find(|id| !failed.contains(*id)) {
            return Err(self.illegal(event, format!("; {other} has not failed")));
        }
        Ok(if named.is_empty() { failed } else { named })
    }

    /// The instances about which a person has to decide before a deployment that waits for it can go on.
    pub(super) fn undecided(&self) -> impl Iterator<Item = &InstanceId> {
        use StepStateName as Is;
        let failed = |state| matches!(state, Is::Failed | Is::Untouched | Is::Restored);
        self.steps.backwards(failed).map(|(id, _)| id)
    }

    pub(super) fn resolve_requested(
        &mut self,
        instances: BTreeSet<InstanceId>,
        by: &str,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        const EVENT: &str = "resolve_requested";
        let stuck: BTreeSet<InstanceId> =
            self.steps.ids_where(|state| state == StepStateName::Stuck).into_iter().collect();
        if stuck.is_empty() {
            return Err(self.illegal(EVENT, "; none of its instances is stuck".to_owned()));
        }
        if let Some(other) = instances.iter().find(|id| !stuck.contains(*id)) {
            return Err(self.illegal(EVENT, format!("; {other} is not stuck")));
        }
        for id in if instances.is_empty() { stuck } else { instances } {
            effects.notes.push(self.note(Some(&id), "resolving", format!("put in order by hand, says {by}")));
            self.set(&id, StepState::Resolving { since: now }, effects);
        }
        Ok(())
    }

    /// A later deployment has taken an instance on from where this one, which has ended, left it.
    pub(crate) fn supersede(&mut self, id: &InstanceId, by: &DeploymentId) {
        let ended = self.outcome().is_some();
        let Some(step) = self.steps.get(id).filter(|_| ended) else { return };
        if StepStateName::from(&step.state).is_unsettled() {
            self.steps.set(id, StepState::Superseded { by: by.clone() });
        }
    }

    /// What a person may do about the deployment now, as commands.
    pub fn moves(&self) -> Vec<String> {
        let id = &self.id;
        let mut moves = Vec::new();
        let paused = self.held.iter().any(|held| held.kind == HoldKind::Pause);
        if paused {
            moves.push(format!("fleetwright deploy resume {id}"));
        }
        if self.held.iter().any(|held| held.kind == HoldKind::Halt) {
            moves.push("fleetwright unhalt".to_owned());
        }
        if self.is_forward() && self.waiting_points().next().is_some() {
            moves.push(format!("fleetwright deploy approve {id}"));
            moves.push(format!("fleetwright deploy reject {id}"));
        }
        let waits_for_decision = matches!(self.phase, Phase::AwaitingOperator { .. });
        if waits_for_decision && (self.undecided().next().is_some() || self.misses_externals()) {
            moves.push(format!("fleetwright deploy retry {id}"));
            moves.push(format!("fleetwright deploy skip {id}"));
        }
        if self.steps.any(|state| state == StepStateName::Stuck) {
            moves.push(format!("fleetwright deploy resolve {id}"));
        }
        if self.outcome().is_none() && !paused && !waits_for_decision {
            moves.push(format!("fleetwright deploy pause {id}"));
        }
        if self.is_forward() || waits_for_decision {
            moves.push(format!("fleetwright deploy cancel {id}"));
        }
        let touched = self.steps.any(StepStateName::is_touched);
        if !matches!(self.phase, Phase::RollingBack { .. }) && (self.outcome().is_none() || touched) {
            moves.push(format!("fleetwright rollback {id}"));
        }
        moves
    }
}
