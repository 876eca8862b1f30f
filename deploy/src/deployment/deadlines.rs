//! What becomes of a deployment when something has been waited for too long.

use super::failing::Left;
use super::step::{StepState, StepStateName};
use super::waiting::{Due, WaitKind, Waiting};
use super::{Checkpoint, Deployment, Effects, IllegalEvent, Phase};
use crate::failure::{Failure, FailureKind};
use crate::ids::InstanceId;
use crate::plan::{OnTimeout, StepAction};
use crate::time::Timestamp;

impl Deployment {
    /// A deadline that has passed is dealt with by what waits for it.
    pub(super) fn deadline_passed(&mut self, now: Timestamp, effects: &mut Effects) -> Result<(), IllegalEvent> {
        let Some(Due { kind, instance, .. }) = self.due().filter(|due| due.at <= now) else {
            return Err(self.illegal("deadline_passed", "; no deadline has passed".to_owned()));
        };
        match (kind, instance) {
            (WaitKind::Bake, _) => self.progress_at = now,
            (WaitKind::BackOff, Some(id)) => self.try_again(&id, now, effects),
            (WaitKind::BackOff, None) => self.ask_again(now, effects),
            (WaitKind::Host, Some(id)) => {
                let failure = self.waiting_for(&id).map(|waiting| waited_too_long(&waiting));
                if let Some(failure) = failure {
                    self.step_failed(&id, failure, Left::Touched, now, effects);
                }
            }
            (WaitKind::Approval, _) => self.approval_timed_out(now, effects),
            (WaitKind::Rollback, _) => self.give_up_restoring(now, effects),
            (WaitKind::Progress | WaitKind::Person | WaitKind::External | WaitKind::Host, _) => match self.phase {
                Phase::Stopping { .. } => self.give_up_stopping(now, effects),
                Phase::Cleanup if self.steps.any(|state| state == StepStateName::Cleaning) => {
                    self.give_up_cleaning(effects);
                }
                _ => self.progress_lost(&self.waiting_for_progress(), now, effects),
            },
        }
        Ok(())
    }

    /// Begins the next attempt at a step. What was behind it in the plan waits for it again.
    fn try_again(&mut self, id: &InstanceId, now: Timestamp, effects: &mut Effects) {
        let Some(step) = self.steps.begin_attempt(id) else { return };
        let (attempt, group) = (step.attempt, step.group);
        let state = match step.action {
            StepAction::Remove => StepState::Staged,
            StepAction::Create | StepAction::Update | StepAction::Unchanged => StepState::Staging { since: now },
        };
        self.progress_at = now;
        effects.notes.push(self.note(Some(id), "attempt", format!("attempt {attempt}")));
        self.set(id, state, effects);
        let behind = match self.phase {
            Phase::ServerDeployment { group: present } => group < present,
            Phase::HealthValidation { .. } | Phase::IntegrationTesting | Phase::PostDeployment | Phase::Cleanup => true,
            _ => false,
        };
        if behind {
            self.enter(Phase::ServerDeployment { group }, effects);
        }
    }

    fn approval_timed_out(&mut self, now: Timestamp, effects: &mut Effects) {
        let pauses = &self.plan.rollout.pauses;
        let due = |n: usize, since: Timestamp| pauses[n].timeout.is_some_and(|timeout| since.after(timeout) <= now);
        let Some((n, _, _)) = self.waiting_points().find(|(n, since, _)| due(*n, *since)) else { return };
        let point = self.describe_pause(n);
        match pauses[n].on_timeout {
            OnTimeout::Approve => {
                self.checkpoints[n] = Checkpoint::Passed;
                self.progress_at = now;
                effects.notes.push(self.note(
                    None,
                    "approved",
                    format!("{point} goes on: nobody has objected in time"),
                ));
            }
            OnTimeout::Reject => self.reject(format!("{point} was not approved in time"), now, effects),
        }
    }

    /// Whatever holds up the deployment has failed.
    fn progress_lost(&mut self, waiting: &Waiting, now: Timestamp, effects: &mut Effects) {
        let late = self.steps.ids_where(|state| {
            use StepStateName as Is;
            matches!(state, Is::Staging | Is::SettingAside | Is::Testing | Is::Staged)
        });
        let mut found = false;
        for id in late {
            if !self.is_forward() {
                break;
            }
            let mut failure = waited_too_long(waiting).at(&id.host, &id.server);
            failure.transient = false;
            let left = match &self.steps[&id].state {
                StepState::SettingAside { .. } => {
                    let failure = self.give_up(&id, "setting aside", effects);
                    self.fail(failure, now, effects);
                    found = true;
                    continue;
                }
                StepState::Staged if !self.unreachable.contains(&id.host) => continue,
                StepState::Testing => Left::Touched,
                _ => Left::Untouched,
            };
            found = true;
            self.step_failed(&id, failure, left, now, effects);
        }
        if !found {
            let failure = waited_too_long(waiting);
            self.failures.push(failure.clone());
            self.fail(failure, now, effects);
        }
        self.progress_at = now;
    }
}

fn waited_too_long(waiting: &Waiting) -> Failure {
    let failure = Failure::new(FailureKind::TimeoutError, "deployment", format!("waited too long for {waiting}"))
        .hint("look at `fleetwright explain` and at the agent's log on the host; then deploy again");
    match &waiting.instance {
        Some(id) => failure.at(&id.host, &id.server),
        None => failure,
    }
}
