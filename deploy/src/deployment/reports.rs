//! What agents tell, and what it does to their steps.

use super::failing::Left;
use super::step::{Aside, StepState, StepStateName};
use super::{Action, Deployment, Effects, IllegalEvent, OrderName, Outcome, Phase};
use crate::failure::{Failure, FailureKind};
use crate::health::HealthStatus;
use crate::ids::{InstanceId, ReleaseId};
use crate::instance::{RestoreCause, StepReport, StepReportDiscriminants};
use crate::mutant::{Mutant, is_active};
use crate::time::Timestamp;

impl Deployment {
    pub(super) fn step_reported(
        &mut self,
        id: &InstanceId,
        attempt: u32,
        report: StepReport,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        let name: &'static str = StepReportDiscriminants::from(&report).into();
        let state = self.step_at(id, attempt, "step_reported")?.clone();
        let said = match &report {
            StepReport::Restored { running, .. } if self.steps[id].touched => Some(running.clone()),
            _ => None,
        };
        let next = match (state, report.clone()) {
            (StepState::Staging { .. }, StepReport::Staged) => StepState::Staged,
            (StepState::Switching { since }, StepReport::Switched) => StepState::Verifying { since },
            (StepState::Switching { since } | StepState::Verifying { since }, StepReport::Verified) => {
                StepState::Confirming { since }
            }
            (StepState::Confirming { .. }, StepReport::Confirmed) => StepState::Confirmed { since: now },
            (StepState::Testing, StepReport::Tested) => StepState::Tested,
            (StepState::Cleaning, StepReport::Cleaned | StepReport::Failed(_)) => StepState::Done,
            (StepState::SettingAside { next, failure, .. }, StepReport::Restored { .. }) => match next {
                Aside::Retry => self.backing_off(id, now),
                Aside::LeaveOut => StepState::LeftOut { failure },
            },
            (StepState::Restoring { .. }, StepReport::Restored { .. }) if !self.steps[id].touched => {
                StepState::Untouched
            }
            (
                StepState::Failed { .. }
                | StepState::Restoring { .. }
                | StepState::Resolving { .. }
                | StepState::Stuck { .. },
                StepReport::Restored { .. },
            ) => StepState::Restored,
            (
                StepState::Switching { .. }
                | StepState::Verifying { .. }
                | StepState::Confirming { .. }
                | StepState::Failed { .. }
                | StepState::SettingAside { .. }
                | StepState::Restoring { .. },
                StepReport::Stuck(failure),
            ) => StepState::Stuck { failure },
            (StepState::Staging { .. }, StepReport::Failed(failure)) => {
                self.tell(id, name, &report, effects);
                self.step_failed(id, failure, Left::Untouched, now, effects);
                return Ok(());
            }
            (
                StepState::Switching { .. } | StepState::Verifying { .. } | StepState::Confirming { .. },
                StepReport::Failed(failure),
            )
            | (StepState::Testing, StepReport::TestFailed(failure)) => {
                self.tell(id, name, &report, effects);
                self.step_failed(id, failure, Left::Touched, now, effects);
                return Ok(());
            }
            (
                StepState::Switching { .. } | StepState::Verifying { .. } | StepState::Confirming { .. },
                StepReport::Restored { cause, .. },
            ) => {
                self.tell(id, name, &report, effects);
                self.take_word(id, said, effects);
                self.step_failed(id, put_itself_back(cause), Left::Back, now, effects);
                return Ok(());
            }
            (state, _) => {
                return Err(self.illegal("step_reported", format!("; {id} is {} and reports {name}", state.name())));
            }
        };
        self.tell(id, name, &report, effects);
        self.take_word(id, said, effects);
        self.settle(id, &next, effects);
        if !matches!(report, StepReport::Failed(_)) {
            self.progress_at = now;
        }
        self.set(id, next, effects);
        if let StepReport::Stuck(failure) = report {
            let failure = failure.at(&id.host, &id.server);
            self.failures.push(failure.clone());
            self.fail(failure, now, effects);
        }
        Ok(())
    }

    /// An order that is not obeyed has failed, unless the step has long gone on.
    pub(super) fn order_refused(
        &mut self,
        id: &InstanceId,
        attempt: u32,
        order: OrderName,
        failure: Failure,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        let state = self.step_at(id, attempt, "order_refused")?.clone();
        if self.order_of(id, &self.steps[id]).is_none_or(|outstanding| OrderName::from(&outstanding) != order) {
            let name: &'static str = order.into();
            return Err(self.illegal("order_refused", format!("; {id} is {} and refuses {name}", state.name())));
        }
        self.tell(id, "refused", &StepReport::Failed(failure.clone()), effects);
        match order {
            OrderName::Stage => self.step_failed(id, failure, Left::Untouched, now, effects),
            OrderName::Switch | OrderName::Test => self.step_failed(id, failure, Left::Touched, now, effects),
            OrderName::Clean => self.set(id, StepState::Done, effects),
            // A host that no longer waits to be confirmed has gone its own way, and is about to say which.
            OrderName::Confirm => {}
            OrderName::Restore | OrderName::Resolve => {
                let next = StepState::Stuck { failure: failure.clone().at(&id.host, &id.server) };
                self.settle(id, &next, effects);
                self.set(id, next, effects);
                self.failures.push(failure.clone());
                self.fail(failure, now, effects);
            }
        }
        Ok(())
    }

    fn step_at(&self, id: &InstanceId, attempt: u32, event: &'static str) -> Result<&StepState, IllegalEvent> {
        let Some(step) = self.steps.get(id) else {
            return Err(self.illegal(event, format!("; it has no step for {id}")));
        };
        if step.attempt != attempt && !is_active(Mutant::MixAttempts) {
            return Err(self.illegal(event, format!("; {id} is at attempt {}, not {attempt}", step.attempt)));
        }
        Ok(&step.state)
    }

    /// An instance that was confirmed has become unhealthy; or another one has, on a host that this deployment
    /// has changed and is still watching.
    pub(super) fn health_changed(
        &mut self,
        id: &InstanceId,
        (was, status): (HealthStatus, HealthStatus),
        reason: &str,
        output: &[String],
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        let confirmed = self.steps.get(id).is_some_and(|step| step.state.is_confirmed());
        let baking = matches!(self.phase, Phase::HealthValidation { .. } | Phase::ServerDeployment { .. });
        let changed_here = || self.steps.on(&id.host).any(|(_, step)| step.state.is_confirmed());
        let neighbour = baking && was.is_available() && !self.holds(id) && changed_here();
        if status != HealthStatus::Unhealthy || !self.is_forward() || !(confirmed || neighbour) {
            return Err(self.illegal("health_changed", format!("; the health of {id} decides nothing now")));
        }
        let failure = Failure::new(FailureKind::HealthCheckError, "health validation", reason)
            .hint(format!("see `fleetwright servers logs {id}`"))
            .output(output.iter().map(String::as_str))
            .at(&id.host, &id.server);
        self.tell(id, "unhealthy", &StepReport::Failed(failure.clone()), effects);
        if confirmed {
            self.step_failed(id, failure, Left::Touched, now, effects);
        } else {
            let message = format!("{id} was healthy before this deployment changed its host: {reason}");
            let failure = Failure { message, ..failure };
            self.failures.push(failure.clone());
            self.fail(failure, now, effects);
        }
        Ok(())
    }

    /// Whether it still goes towards the plan.
    pub(super) fn is_forward(&self) -> bool {
        !matches!(
            self.phase,
            Phase::RollingBack { .. }
                | Phase::Finished { .. }
                | Phase::Stopping { .. }
                | Phase::AwaitingOperator { .. }
        )
    }

    /// What a host says that it runs after it has put an instance back is so, whatever ran before by the plan.
    fn take_word(&self, id: &InstanceId, said: Option<Option<ReleaseId>>, effects: &mut Effects) {
        if let Some(release) = said {
            effects.actions.push(Action::Settled { instance: id.clone(), release, trouble: None });
        }
    }

    /// Remembers what the instance runs once a step has come to rest.
    pub(super) fn settle(&self, id: &InstanceId, next: &StepState, effects: &mut Effects) {
        let step = &self.steps[id];
        let (release, trouble) = match next {
            StepState::Confirmed { .. } => (step.release_id.clone(), None),
            StepState::Stuck { failure } => {
                (step.before.clone().or_else(|| step.release_id.clone()), Some(failure.clone()))
            }
            StepState::Failed { failure } if !self.options.rollback => {
                // A host that has not told that it has switched still runs what ran before.
                let switched = !matches!(step.state, StepState::Switching { .. });
                let (first, second) =
                    if switched { (&step.release_id, &step.before) } else { (&step.before, &step.release_id) };
                (first.clone().or_else(|| second.clone()), Some(failure.clone()))
            }
            _ => return,
        };
        effects.actions.push(Action::Settled { instance: id.clone(), release, trouble });
    }

    fn tell(&self, id: &InstanceId, what: &str, report: &StepReport, effects: &mut Effects) {
        let (message, failure) = match report {
            StepReport::Staged => ("the new release is ready beside the running one".to_owned(), None),
            StepReport::Switched => ("started; waiting for its checks".to_owned(), None),
            StepReport::Verified => ("healthy; confirming".to_owned(), None),
            StepReport::Confirmed => ("confirmed".to_owned(), None),
            StepReport::Tested => ("integration test passed".to_owned(), None),
            StepReport::Cleaned => ("pruned".to_owned(), None),
            StepReport::Restored { cause: RestoreCause::Commanded, .. } => ("put back".to_owned(), None),
            StepReport::Restored { cause: RestoreCause::NotConfirmed, .. } => {
                ("not confirmed in time; put itself back".to_owned(), None)
            }
            StepReport::Restored { cause: RestoreCause::ByHand, .. } => ("put in order by hand".to_owned(), None),
            StepReport::Failed(failure) | StepReport::TestFailed(failure) => (failure.message.clone(), Some(failure)),
            StepReport::Stuck(failure) => (format!("could not be put back: {}", failure.message), Some(failure)),
        };
        let mut note = self.note(Some(id), what, message);
        note.failure = failure.map(|failure| failure.clone().at(&id.host, &id.server));
        effects.notes.push(note);
    }

    /// Whether anything is left that the outcome of a deployment that ended would have to tell anew.
    pub(super) fn any_left_out(&self) -> bool {
        self.steps.any(|state| state == StepStateName::LeftOut)
    }

    /// How a deployment that came to its end has ended.
    pub(super) fn forward_outcome(&self) -> Outcome {
        if self.any_left_out() { Outcome::PartlySucceeded } else { Outcome::Succeeded }
    }
}

/// Why a step has failed whose host has put itself back.
fn put_itself_back(cause: RestoreCause) -> Failure {
    let message = match cause {
        RestoreCause::NotConfirmed => "the host was not confirmed in time and put itself back",
        RestoreCause::Commanded | RestoreCause::ByHand => {
            "the host was put back, although this deployment did not ask for it"
        }
    };
    Failure::new(FailureKind::TimeoutError, "confirmation", message)
        .hint("look at the connection between the host and the coordinator; then deploy again")
}
