//! The way back: in which order touched instances are put back, and how that ends.

use std::collections::BTreeSet;

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
        for id in self.ids_where(|state| matches!(state, StepState::Pending)) {
            self.set(&id, StepState::Untouched, effects);
        }
        for id in self.ids_where(|state| matches!(state, StepState::BackingOff { .. })) {
            let rest = if self.steps[&id].touched { StepState::Restored } else { StepState::Untouched };
            self.set(&id, rest, effects);
        }
        for id in self.ids_where(|state| matches!(state, StepState::Staging { .. } | StepState::Staged)) {
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
        let reverse: Vec<(usize, InstanceId)> = self
            .plan
            .changes()
            .map(|(group, step)| (group, step.instance.clone()))
            .filter(|(_, id)| needs_restore(&self.steps[id].state) && is_meant(&only, id))
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
        let next: Vec<InstanceId> = match strategy {
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
        let Phase::RollingBack { cause, only, .. } = &self.phase else { return None };
        let open = self.steps.iter().any(|(id, step)| {
            matches!(step.state, StepState::Restoring { .. }) || (needs_restore(&step.state) && is_meant(only, id))
        });
        (!open).then(|| Phase::Finished { outcome: self.rollback_outcome(), at: now, cause: Some(cause.clone()) })
    }

    fn rollback_outcome(&self) -> Outcome {
        let stuck = self.any(|state| {
            matches!(
                state,
                StepState::Stuck { .. }
                    | StepState::Resolving { .. }
                    | StepState::Failed { .. }
                    | StepState::Superseded { .. }
            )
        });
        let kept = self.any(StepState::is_confirmed);
        let restored = self.any(|state| matches!(state, StepState::Restored));
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
        let moving = self.any(|state| state.is_in_motion() || matches!(state, StepState::Restoring { .. }));
        let stuck = self.any(|state| matches!(state, StepState::Stuck { .. } | StepState::Resolving { .. }));
        let failed = self.any(|state| matches!(state, StepState::Failed { .. }));
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
        let open = |state: &StepState| matches!(state, StepState::Restoring { .. }) || needs_restore(state);
        for id in self.ids_where(open).iter().filter(|id| is_meant(&only, id)) {
            self.give_up(id, "rollback", effects);
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

/// Whether a rollback has to put an instance back.
pub(super) fn needs_restore(state: &StepState) -> bool {
    let half = is_active(Mutant::RollBackHalf) && state.is_confirmed();
    state.is_touched() && !matches!(state, StepState::Stuck { .. }) && !half
}
