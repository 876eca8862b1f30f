//! What follows when a step fails: it is tried again, or left out, or ends the way forward.

use super::step::{Aside, StepStateName};
use super::{Deployment, Effects, Outcome, Phase, Step, StepState};
use crate::failure::{Failure, FailureKind};
use crate::ids::InstanceId;
use crate::plan::{OnFailure, RollbackStrategy};
use crate::time::Timestamp;

/// How a step that failed has left its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// What ran before was not touched.
    Untouched,
    /// The new release may be there.
    Touched,
    /// What ran before is back already.
    Back,
}

impl Deployment {
    /// Takes in that a step has failed.
    pub(super) fn step_failed(
        &mut self,
        id: &InstanceId,
        failure: Failure,
        left: Left,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let failure = failure.at(&id.host, &id.server);
        self.steps.failed(id, now);
        let forward = self.is_forward();
        let next = match (self.goes_on_with(id, &failure, left, now).filter(|_| forward), left) {
            (Some(next), Left::Touched) => StepState::SettingAside { since: now, failure: failure.clone(), next },
            (Some(Aside::Retry), Left::Untouched | Left::Back) => self.backing_off(id, now),
            (Some(Aside::LeaveOut), Left::Untouched | Left::Back) => StepState::LeftOut { failure: failure.clone() },
            (None, Left::Touched) if self.puts_back_while_stopping() => StepState::Restoring { since: now },
            (None, Left::Touched) => StepState::Failed { failure: failure.clone() },
            (None, Left::Untouched) => StepState::Untouched,
            (None, Left::Back) => StepState::Restored,
        };
        let what = match &next {
            StepState::BackingOff { .. } | StepState::SettingAside { next: Aside::Retry, .. } => Some("retry"),
            StepState::LeftOut { .. } | StepState::SettingAside { next: Aside::LeaveOut, .. } => Some("left_out"),
            _ => None,
        };
        if let Some(what) = what {
            let message = if what == "retry" {
                let attempts = self.plan.rollout.retry.attempts_for(&failure);
                format!("attempt {} of {attempts} failed; it is tried again", self.steps[id].attempt)
            } else {
                "it is put back and left out; the others go on".to_owned()
            };
            let mut note = self.note(Some(id), what, message);
            note.failure = Some(failure.clone());
            effects.notes.push(note);
            self.progress_at = now;
        }
        self.settle(id, &next, effects);
        self.set(id, next, effects);
        self.failures.push(failure.clone());
        if what.is_none() {
            self.fail(failure, now, effects);
        }
    }

    /// The pause before the next attempt at a step.
    pub(super) fn backing_off(&self, id: &InstanceId, now: Timestamp) -> StepState {
        let pause = self.plan.rollout.retry.pause(&self.id, &id.to_string(), self.steps[id].attempt);
        StepState::BackingOff { since: now, until: now.after(pause) }
    }

    /// How the deployment goes on without this attempt at a step, if it does.
    fn goes_on_with(&self, id: &InstanceId, failure: &Failure, left: Left, now: Timestamp) -> Option<Aside> {
        let step = self.steps.get(id)?;
        let policy = &self.plan.rollout;
        if left == Left::Touched && !self.options.rollback {
            return None;
        }
        let in_time = step.failed_at.is_none_or(|first| now <= first.after(policy.retry.total));
        if step.attempt < policy.retry.attempts_for(failure) && in_time {
            return Some(Aside::Retry);
        }
        let leaving = |step: &Step| matches!(step.state, StepState::SettingAside { next: Aside::LeaveOut, .. });
        let leaving =
            self.steps.backwards(|state| state == StepStateName::SettingAside).filter(|(_, step)| leaving(step));
        let left_out = self.steps.count(|state| state == StepStateName::LeftOut) + leaving.count();
        let tolerated = policy.on_failure == OnFailure::Continue || left_out < policy.failure_threshold as usize;
        tolerated.then_some(Aside::LeaveOut)
    }

    /// Whether an instance that fails now is put back although the deployment is not.
    pub(super) fn puts_back_while_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { outcome, .. } if outcome != Outcome::Failed) && self.options.rollback
    }

    /// Ends the way forward. What that means is the operator's choice; on any other way it changes nothing.
    pub(super) fn fail(&mut self, failure: Failure, now: Timestamp, effects: &mut Effects) {
        if !self.is_forward() {
            return;
        }
        if !self.options.rollback {
            self.stop(failure, Outcome::Failed, now, effects);
        } else if self.plan.rollback.strategy == RollbackStrategy::Manual
            || self.plan.rollout.on_failure == OnFailure::Pause
        {
            let from = Box::new(self.phase.clone());
            self.enter(Phase::AwaitingOperator { cause: failure, since: now, from }, effects);
        } else {
            self.start_rollback(failure, None, now, effects);
        }
    }

    /// Begins to come to rest where it is.
    pub(super) fn stop(&mut self, cause: Failure, outcome: Outcome, now: Timestamp, effects: &mut Effects) {
        self.progress_at = now;
        self.enter(Phase::Stopping { cause, outcome }, effects);
    }

    /// Without one healthy instance of a server, nothing that depends on it can be deployed.
    pub(super) fn group_is_lost(&self, group: usize) -> Option<Failure> {
        let servers = &self.plan.groups[group].servers;
        let lost = servers.iter().find(|server| self.steps.is_left_out(server))?;
        let message = format!("every instance of {lost} was left out; what depends on it cannot be deployed");
        Some(Failure::new(FailureKind::DependencyError, "server_deployment", message))
    }
}
