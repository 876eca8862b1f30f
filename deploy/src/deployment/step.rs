//! A step as its deployment sees it, and what an agent's reports do to it.

use serde::{Deserialize, Serialize};
use strum::{EnumDiscriminants, IntoStaticStr};

use super::{Action, Deployment, Effects, IllegalEvent, Phase};
use crate::failure::{Failure, FailureKind};
use crate::health::HealthStatus;
use crate::ids::{InstanceId, ReleaseId};
use crate::instance::{RestoreCause, StepReport, StepReportDiscriminants};
use crate::plan::{PlannedStep, StepAction};
use crate::release::Release;
use crate::time::Timestamp;

/// One instance's passage from its present release to the planned one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The number of its group, from 0.
    pub group: usize,
    /// What the plan does to the instance.
    pub action: StepAction,
    /// The planned release.
    pub release_id: Option<ReleaseId>,
    /// What ran before.
    pub before: Option<Box<Release>>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether what ran before may have been touched.
    pub touched: bool,
    /// Where it stands.
    pub state: StepState,
}

/// Where a step stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(name(StepStateName), derive(IntoStaticStr), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum StepState {
    /// The plan changes nothing here.
    Unchanged,
    /// Nothing has been asked of the host.
    Pending,
    /// The host gets the release ready.
    Staging {
        /// Since when.
        since: Timestamp,
    },
    /// The release is ready; what runs was not touched.
    Staged,
    /// The host was asked to switch.
    Switching {
        /// Since when.
        since: Timestamp,
    },
    /// The new release was started and is being checked.
    Verifying {
        /// Since the switch was asked for.
        since: Timestamp,
    },
    /// The new release is healthy; the host is being told to keep it.
    Confirming {
        /// Since the switch was asked for.
        since: Timestamp,
    },
    /// The host keeps the new release.
    Confirmed {
        /// Since when.
        since: Timestamp,
    },
    /// The new release is spoken to as a client would.
    Testing,
    /// It answered.
    Tested,
    /// The host prunes what it no longer needs.
    Cleaning,
    /// Nothing is left to do.
    Done,
    /// It failed after what runs may have been touched.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// The host is putting back what was.
    Restoring {
        /// Since when.
        since: Timestamp,
    },
    /// It failed, or was not begun, before what runs was touched.
    Untouched,
    /// What was, is back.
    Restored,
    /// It could not be put back: a person is needed.
    Stuck {
        /// Why.
        failure: Failure,
    },
}

impl StepState {
    /// The name of the state, as it is shown.
    pub fn name(&self) -> &'static str {
        StepStateName::from(self).into()
    }

    /// Between the order to switch and the confirmation.
    pub fn is_in_motion(&self) -> bool {
        matches!(self, Self::Switching { .. } | Self::Verifying { .. } | Self::Confirming { .. })
    }

    /// Confirmed, whatever came after that.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Confirmed { .. } | Self::Testing | Self::Tested | Self::Cleaning | Self::Done)
    }

    /// Whether a rollback has to do something about it.
    pub fn is_touched(&self) -> bool {
        self.is_in_motion() || self.is_confirmed() || matches!(self, Self::Failed { .. } | Self::Stuck { .. })
    }
}

impl Step {
    pub(super) fn new(group: usize, planned: &PlannedStep, before: Option<Release>) -> Self {
        let state = match planned.action {
            StepAction::Unchanged => StepState::Unchanged,
            StepAction::Create | StepAction::Update | StepAction::Remove => StepState::Pending,
        };
        Self {
            group,
            action: planned.action,
            release_id: planned.release_id.clone(),
            before: before.map(Box::new),
            attempt: 1,
            touched: false,
            state,
        }
    }
}

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
        let Some(step) = self.steps.get(id) else {
            return Err(self.illegal("step_reported", format!("; it has no step for {id}")));
        };
        if step.attempt != attempt {
            return Err(self.illegal("step_reported", format!("; {id} is at attempt {}, not {attempt}", step.attempt)));
        }
        let next = match (&step.state, &report) {
            (StepState::Staging { .. }, StepReport::Staged) => StepState::Staged,
            (StepState::Staging { .. }, StepReport::Failed(_)) => StepState::Untouched,
            (StepState::Switching { since }, StepReport::Switched) => StepState::Verifying { since: *since },
            (StepState::Switching { since } | StepState::Verifying { since }, StepReport::Verified) => {
                StepState::Confirming { since: *since }
            }
            (
                StepState::Switching { .. } | StepState::Verifying { .. } | StepState::Confirming { .. },
                StepReport::Failed(failure),
            ) => StepState::Failed { failure: failure.clone() },
            (StepState::Confirming { .. }, StepReport::Confirmed) => StepState::Confirmed { since: now },
            (StepState::Testing, StepReport::Tested) => StepState::Tested,
            (StepState::Testing, StepReport::TestFailed(failure)) => StepState::Failed { failure: failure.clone() },
            (StepState::Cleaning, StepReport::Cleaned | StepReport::Failed(_)) => StepState::Done,
            (StepState::Restoring { .. }, StepReport::Restored(_)) if !step.touched => StepState::Untouched,
            (
                StepState::Switching { .. }
                | StepState::Verifying { .. }
                | StepState::Confirming { .. }
                | StepState::Failed { .. }
                | StepState::Restoring { .. }
                | StepState::Stuck { .. },
                StepReport::Restored(_),
            ) => StepState::Restored,
            (StepState::Restoring { .. }, StepReport::Failed(failure)) => StepState::Stuck { failure: failure.clone() },
            (
                StepState::Switching { .. }
                | StepState::Verifying { .. }
                | StepState::Confirming { .. }
                | StepState::Failed { .. }
                | StepState::Restoring { .. },
                StepReport::Stuck(failure),
            ) => StepState::Stuck { failure: failure.clone() },
            (state, _) => {
                return Err(self.illegal("step_reported", format!("; {id} is {} and reports {name}", state.name())));
            }
        };
        let cleaning = matches!(step.state, StepState::Cleaning);
        self.tell(id, name, &report, effects);
        self.settle(id, &next, effects);
        if !cleaning || matches!(report, StepReport::Cleaned) {
            self.progress_at = now;
        }
        self.set(id, next, effects);
        match report {
            StepReport::Failed(_) if cleaning => {}
            StepReport::Failed(failure) | StepReport::TestFailed(failure) | StepReport::Stuck(failure) => {
                self.fail(failure.at(&id.host, &id.server), now, effects);
            }
            StepReport::Restored(cause) if self.is_forward() => {
                let message = match cause {
                    RestoreCause::NotConfirmed => "the host was not confirmed in time and put itself back",
                    RestoreCause::Commanded => "the host was put back, although this deployment did not ask for it",
                };
                let failure = Failure::new(FailureKind::TimeoutError, "confirmation", message)
                    .hint("look at the connection between the host and the coordinator; then deploy again")
                    .at(&id.host, &id.server);
                self.fail(failure, now, effects);
            }
            StepReport::Restored(_)
            | StepReport::Staged
            | StepReport::Switched
            | StepReport::Verified
            | StepReport::Confirmed
            | StepReport::Tested
            | StepReport::Cleaned => {}
        }
        Ok(())
    }

    pub(super) fn health_changed(
        &mut self,
        id: &InstanceId,
        status: HealthStatus,
        reason: &str,
        output: &[String],
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<(), IllegalEvent> {
        let confirmed = self.steps.get(id).is_some_and(|step| step.state.is_confirmed());
        if status != HealthStatus::Unhealthy || !self.is_forward() || !confirmed {
            return Err(self.illegal("health_changed", format!("; the health of {id} decides nothing now")));
        }
        let failure = Failure::new(FailureKind::HealthCheckError, "health validation", reason)
            .hint(format!("see `fleetwright servers logs {id}`"))
            .output(output.iter().map(String::as_str))
            .at(&id.host, &id.server);
        self.tell(id, "unhealthy", &StepReport::Failed(failure.clone()), effects);
        let next = StepState::Failed { failure: failure.clone() };
        self.settle(id, &next, effects);
        self.set(id, next, effects);
        self.fail(failure, now, effects);
        Ok(())
    }

    /// Whether it still goes towards the plan.
    fn is_forward(&self) -> bool {
        !matches!(
            self.phase,
            Phase::RollingBack { .. }
                | Phase::Finished { .. }
                | Phase::Stopping { .. }
                | Phase::AwaitingOperator { .. }
        )
    }

    /// Remembers what the instance runs once a step has come to rest.
    fn settle(&self, id: &InstanceId, next: &StepState, effects: &mut Effects) {
        let step = &self.steps[id];
        let planned = || self.planned_release(id).cloned().map(Box::new);
        let (release, trouble) = match next {
            StepState::Confirmed { .. } => (planned(), None),
            StepState::Restored => (step.before.clone(), None),
            StepState::Stuck { failure } => (step.before.clone().or_else(planned), Some(failure.clone())),
            StepState::Failed { failure } if !self.options.rollback => (planned(), Some(failure.clone())),
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
            StepReport::Restored(RestoreCause::Commanded) => ("put back".to_owned(), None),
            StepReport::Restored(RestoreCause::NotConfirmed) => {
                ("not confirmed in time; put itself back".to_owned(), None)
            }
            StepReport::Failed(failure) | StepReport::TestFailed(failure) => (failure.message.clone(), Some(failure)),
            StepReport::Stuck(failure) => (format!("could not be put back: {}", failure.message), Some(failure)),
        };
        let mut note = self.note(Some(id), what, message);
        note.failure = failure.map(|failure| failure.clone().at(&id.host, &id.server));
        effects.notes.push(note);
    }
}
