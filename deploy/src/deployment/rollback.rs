//! The way back: what a failure sets off, and in which order touched instances are put back.

use super::{Deployment, Effects, Outcome, Phase, StepState};
use crate::deployment::Action;
use crate::failure::{Failure, FailureKind};
use crate::ids::InstanceId;
use crate::plan::RollbackStrategy;
use crate::time::Timestamp;

impl Deployment {
    /// Takes a failure in: the first one ends the way forward.
    pub(super) fn fail(&mut self, failure: Failure, now: Timestamp, effects: &mut Effects) {
        self.failures.push(failure.clone());
        match self.phase {
            Phase::RollingBack { .. }
            | Phase::Stopping { .. }
            | Phase::AwaitingOperator { .. }
            | Phase::Finished { .. } => {}
            _ if !self.options.rollback => {
                self.progress_at = now;
                self.discard_unused(now, effects);
                self.enter(Phase::Stopping { cause: failure }, effects);
            }
            _ if self.plan.rollback.strategy == RollbackStrategy::Manual => {
                self.enter(Phase::AwaitingOperator { cause: failure, since: now }, effects);
            }
            _ => self.start_rollback(failure, now, effects),
        }
    }

    /// Begins to put everything back. What was only staged is discarded at once: nothing runs from it.
    pub(super) fn start_rollback(&mut self, cause: Failure, now: Timestamp, effects: &mut Effects) {
        self.progress_at = now;
        self.discard_unused(now, effects);
        self.enter(Phase::RollingBack { cause, since: now }, effects);
    }

    fn discard_unused(&mut self, now: Timestamp, effects: &mut Effects) {
        for id in self.ids_where(|state| matches!(state, StepState::Pending)) {
            self.set(&id, StepState::Untouched, effects);
        }
        for id in self.ids_where(|state| matches!(state, StepState::Staging { .. } | StepState::Staged)) {
            self.set(&id, StepState::Restoring { since: now }, effects);
        }
    }

    /// Starts as many restores as the strategy allows now.
    pub(super) fn start_restores(&mut self, now: Timestamp, effects: &mut Effects) {
        let reverse: Vec<(usize, InstanceId)> = self
            .plan
            .changes()
            .map(|(group, step)| (group, step.instance.clone()))
            .filter(|(_, id)| needs_restore(&self.steps[id].state))
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        let busy: Vec<usize> = self
            .steps
            .values()
            .filter(|step| matches!(step.state, StepState::Restoring { .. }))
            .map(|step| step.group)
            .collect();
        let next: Vec<InstanceId> = match self.plan.rollback.strategy {
            RollbackStrategy::Immediate | RollbackStrategy::Aggressive | RollbackStrategy::Manual => {
                reverse.into_iter().map(|(_, id)| id).collect()
            }
            RollbackStrategy::Batch => {
                let room = (self.plan.rollback.batch_size.max(1) as usize).saturating_sub(busy.len());
                reverse.into_iter().take(room).map(|(_, id)| id).collect()
            }
            RollbackStrategy::Graceful => {
                let last = reverse.iter().map(|(group, _)| *group).chain(busy).max();
                reverse.into_iter().filter(|(group, _)| Some(*group) == last).map(|(_, id)| id).collect()
            }
        };
        for id in next {
            effects.notes.push(self.note(Some(&id), "restoring", "putting back".to_owned()));
            self.set(&id, StepState::Restoring { since: now }, effects);
        }
    }

    /// The end of a rollback, once nothing is left to put back.
    pub(super) fn rolled_back(&self, now: Timestamp) -> Option<Phase> {
        let Phase::RollingBack { cause, .. } = &self.phase else { return None };
        if self.any(|state| matches!(state, StepState::Restoring { .. }) || needs_restore(state)) {
            return None;
        }
        Some(Phase::Finished { outcome: self.rollback_outcome(), at: now, cause: Some(cause.clone()) })
    }

    fn rollback_outcome(&self) -> Outcome {
        let stuck = self.any(|state| matches!(state, StepState::Stuck { .. }));
        let restored = self.any(|state| matches!(state, StepState::Restored));
        match (stuck, restored) {
            (false, _) => Outcome::RolledBack,
            (true, true) => Outcome::PartlyRolledBack,
            (true, false) => Outcome::Stuck,
        }
    }

    /// The end of a deployment that failed with rollback off, once nothing is in motion.
    pub(super) fn stopped(&self, now: Timestamp) -> Option<Phase> {
        let Phase::Stopping { cause } = &self.phase else { return None };
        let moving = self.any(|state| state.is_in_motion() || matches!(state, StepState::Restoring { .. }));
        (!moving).then(|| Phase::Finished { outcome: Outcome::Failed, at: now, cause: Some(cause.clone()) })
    }

    /// What is not back by the deadline needs a person.
    pub(super) fn give_up_restoring(&mut self, now: Timestamp, effects: &mut Effects) {
        for id in self.ids_where(|state| matches!(state, StepState::Restoring { .. }) || needs_restore(state)) {
            self.give_up(&id, "rollback", effects);
        }
        self.progress_at = now;
    }

    /// What has not settled by the deadline needs a person.
    pub(super) fn give_up_stopping(&mut self, now: Timestamp, effects: &mut Effects) {
        let moving = |state: &StepState| state.is_in_motion() || matches!(state, StepState::Restoring { .. });
        for id in self.ids_where(moving) {
            self.give_up(&id, "stopping", effects);
        }
        self.progress_at = now;
    }

    fn give_up(&mut self, id: &InstanceId, step: &str, effects: &mut Effects) {
        let reachable =
            if self.unreachable.contains(&id.host) { "cannot be reached" } else { "did not answer in time" };
        let failure = Failure::new(FailureKind::TimeoutError, step, format!("{} {reachable}", id.host))
            .hint(format!("bring the agent on {} back: it puts the instance back by itself", id.host))
            .at(&id.host, &id.server);
        let release = self.steps[id].before.clone();
        effects.actions.push(Action::Settled { instance: id.clone(), release, trouble: Some(failure.clone()) });
        effects.notes.push(self.note(Some(id), "stuck", failure.message.clone()));
        self.failures.push(failure.clone());
        self.set(id, StepState::Stuck { failure }, effects);
    }

    /// A host that comes back after the end may still report that it put itself back.
    pub(super) fn late_outcome(&self) -> Option<Outcome> {
        match &self.phase {
            Phase::Finished { outcome: Outcome::Stuck | Outcome::PartlyRolledBack, .. } => {
                Some(self.rollback_outcome())
            }
            _ => None,
        }
    }
}

fn needs_restore(state: &StepState) -> bool {
    state.is_touched() && !matches!(state, StepState::Stuck { .. })
}
