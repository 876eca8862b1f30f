//! The way back: in which order touched instances are put back, and how that ends.

use std::collections::BTreeSet;

use super::step::StepStateName;
use super::{Deployment, Effects, Outcome, Phase, StepState};
use crate::failure::{Failure, FailureKind};
use crate::ids::InstanceId;
use crate::mutant::{Mutant, is_active};
use crate::plan::{RollbackStrategy, StepAction};
use crate::time::Timestamp;

/// What a person asks of a rollback besides what the plan says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RollbackChoice {
    pub(super) strategy: Option<RollbackStrategy>,
    pub(super) only: BTreeSet<InstanceId>,
}

impl Deployment {
    /// Begins to put back what was touched.
    pub(super) fn start_rollback(
        &mut self,
        cause: Failure,
        choice: Option<RollbackChoice>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.progress_at = now;
        let RollbackChoice { strategy, only } = choice.unwrap_or_default();
        let strategy = strategy.unwrap_or(self.plan.rollback.strategy);
        self.enter(Phase::RollingBack { cause, since: now, strategy, only }, effects);
    }

    /// What was only staged is discarded at once: nothing runs from it.
    pub(super) fn discard_unused(&mut self, now: Timestamp, effects: &mut Effects) {
        for id in self.steps.ids_where(|state| state == StepStateName::Pending) {
            self.set(&id, StepState::Untouched, effects);
        }
        for id in self.steps.ids_where(|state| state == StepStateName::BackingOff) {
            let rest = if self.steps[&id].touched { StepState::Restored } else { StepState::Untouched };
            self.set(&id, rest, effects);
        }
        for id in self.steps.ids_where(|state| matches!(state, StepStateName::Staging | StepStateName::Staged)) {
            // Nothing is got ready for a removal, so there is nothing to discard.
            let removal = self.steps[&id].action == StepAction::Remove;
            let rest = if self.steps[&id].touched { StepState::Restored } else { StepState::Untouched };
            self.set(&id, if removal { rest } else { StepState::Restoring { since: now } }, effects);
        }
    }

    /// Starts as many restores as the strategy allows now.
    pub(super) fn start_restores(&mut self, now: Timestamp, effects: &mut Effects) {
        let Phase::RollingBack { strategy, only, .. } = &self.phase else { return };
        let (strategy, only) = (*strategy, only.clone());
        self.discard_unused(now, effects);
        // The last of the plan is the first to be put back.
        let open = self.steps.backwards(needs_restore).filter(|(id, _)| is_meant(&only, id));
        let busy = |state| state == StepStateName::Restoring;
        let next: Vec<InstanceId> = match strategy {
            RollbackStrategy::Immediate | RollbackStrategy::Aggressive | RollbackStrategy::Manual => {
                open.map(|(id, _)| id.clone()).collect()
            }
            RollbackStrategy::Batch => {
                let room = (self.plan.rollback.batch_size.max(1) as usize).saturating_sub(self.steps.count(busy));
                open.map(|(id, _)| id.clone()).take(room).collect()
            }
            RollbackStrategy::Graceful => {
                let mut open = open.peekable();
                let last_busy = self.steps.backwards(busy).next().map(|(_, step)| step.group);
                let last = open.peek().map(|(_, step)| step.group).max(last_busy);
                open.take_while(|(_, step)| Some(step.group) == last).map(|(id, _)| id.clone()).collect()
            }
        };
        for id in next {
            effects.notes.push(self.note(Some(&id), "restoring", "putting back".to_owned()));
            self.set(&id, StepState::Restoring { since: now }, effects);
        }
    }

    /// The end of a rollback, once nothing is left to put back.
    pub(super) fn rolled_back(&self, now: Timestamp) -> Option<Phase> {
        let Phase::RollingBack { cause, only, .. } = &self.phase else { return None };
        let open = self.steps.any(|state| state == StepStateName::Restoring)
            || self.steps.backwards(needs_restore).any(|(id, _)| is_meant(only, id));
        (!open).then(|| Phase::Finished { outcome: self.rollback_outcome(), at: now, cause: Some(cause.clone()) })
    }

    fn rollback_outcome(&self) -> Outcome {
        use StepStateName as Is;
        let stuck = self.steps.any(|state| state.is_unsettled() || state == Is::Superseded);
        let kept = self.steps.any(Is::is_confirmed);
        let restored = self.steps.any(|state| state == Is::Restored);
        match (stuck || kept, restored) {
            (false, _) => Outcome::RolledBack,
            (true, true) => Outcome::PartlyRolledBack,
            (true, false) if stuck => Outcome::Stuck,
            (true, false) => Outcome::PartlyRolledBack,
        }
    }

    /// The end of a deployment that goes no further, once nothing is in motion.
    pub(super) fn stopped(&self, now: Timestamp) -> Option<Phase> {
        let Phase::Stopping { cause, outcome } = &self.phase else { return None };
        let moving = self.steps.any(is_moving);
        let stuck = self.steps.any(|state| matches!(state, StepStateName::Stuck | StepStateName::Resolving));
        let failed = self.steps.any(|state| state == StepStateName::Failed);
        let outcome = match outcome {
            Outcome::Failed => Outcome::Failed,
            _ if stuck => Outcome::Stuck,
            _ if failed => Outcome::Failed,
            other => *other,
        };
        (!moving).then(|| Phase::Finished { outcome, at: now, cause: Some(cause.clone()) })
    }

    /// What is not back by the deadline needs a person.
    pub(super) fn give_up_restoring(&mut self, now: Timestamp, effects: &mut Effects) {
        let Phase::RollingBack { only, .. } = &self.phase else { return };
        let only = only.clone();
        let open = |state| state == StepStateName::Restoring || needs_restore(state);
        for id in self.steps.ids_where(open).iter().filter(|id| is_meant(&only, id)) {
            self.give_up(id, "rollback", effects);
        }
        self.progress_at = now;
    }

    /// What has not settled by the deadline needs a person.
    pub(super) fn give_up_stopping(&mut self, now: Timestamp, effects: &mut Effects) {
        for id in self.steps.ids_where(is_moving) {
            self.give_up(&id, "stopping", effects);
        }
        self.progress_at = now;
    }

    pub(super) fn give_up(&mut self, id: &InstanceId, step: &str, effects: &mut Effects) -> Failure {
        let reachable =
            if self.unreachable.contains(&id.host) { "cannot be reached" } else { "did not answer in time" };
        let failure = Failure::new(FailureKind::TimeoutError, step, format!("{} {reachable}", id.host))
            .hint(format!("bring the agent on {} back: it puts the instance back by itself", id.host))
            .at(&id.host, &id.server);
        let next = StepState::Stuck { failure: failure.clone() };
        self.settle(id, &next, effects);
        effects.notes.push(self.note(Some(id), "stuck", failure.message.clone()));
        self.failures.push(failure.clone());
        self.set(id, next, effects);
        failure
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

fn is_meant(only: &BTreeSet<InstanceId>, id: &InstanceId) -> bool {
    only.is_empty() || only.contains(id)
}

/// Whether its host is doing something that has to settle.
fn is_moving(state: StepStateName) -> bool {
    state.is_in_motion() || state == StepStateName::Restoring
}

/// Whether a rollback has to put an instance back.
fn needs_restore(state: StepStateName) -> bool {
    let half = is_active(Mutant::RollBackHalf) && state.is_confirmed();
    state.is_touched() && state != StepStateName::Stuck && !half
}
