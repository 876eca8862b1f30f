//! A step as its deployment sees it.

use serde::{Deserialize, Serialize};
use strum::{EnumDiscriminants, IntoStaticStr};

use crate::failure::Failure;
use crate::ids::{DeploymentId, ReleaseId};
use crate::plan::{PlannedStep, StepAction};
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
    pub before: Option<ReleaseId>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether what ran before may have been touched.
    pub touched: bool,
    /// When it failed first.
    pub failed_at: Option<Timestamp>,
    /// Where it stands.
    pub state: StepState,
}

/// What becomes of a step whose host has put back what was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aside {
    /// It is tried again.
    Retry,
    /// The deployment goes on without it.
    LeaveOut,
}

/// Where a step stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(name(StepStateName), derive(PartialOrd, Ord, IntoStaticStr), strum(serialize_all = "snake_case"))]
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
    /// It failed transiently; the next attempt begins after a pause.
    BackingOff {
        /// Since when.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
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
    /// It failed; the host is putting back what was, and the deployment goes on.
    SettingAside {
        /// Since when.
        since: Timestamp,
        /// Why.
        failure: Failure,
        /// What becomes of the step then.
        next: Aside,
    },
    /// It failed, what was is back, and the deployment went on without it.
    LeftOut {
        /// Why.
        failure: Failure,
    },
    /// The host is putting back what was.
    Restoring {
        /// Since when.
        since: Timestamp,
    },
    /// A person has put the stuck instance in order; the host is told.
    Resolving {
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
    /// It was left failed or stuck, and a later deployment has taken the instance from there.
    Superseded {
        /// That deployment.
        by: DeploymentId,
    },
}

impl StepState {
    /// The name of the state, as it is shown.
    pub fn name(&self) -> &'static str {
        StepStateName::from(self).into()
    }

    /// Between the order to switch and the confirmation.
    pub fn is_switching(&self) -> bool {
        StepStateName::from(self).is_switching()
    }

    /// Whether it may be out of service because of what its host is doing.
    pub fn is_in_motion(&self) -> bool {
        StepStateName::from(self).is_in_motion()
    }

    /// Confirmed, whatever came after that.
    pub fn is_confirmed(&self) -> bool {
        StepStateName::from(self).is_confirmed()
    }

    /// Whether a rollback has to do something about it.
    pub fn is_touched(&self) -> bool {
        StepStateName::from(self).is_touched()
    }
}

impl StepStateName {
    /// Between the order to switch and the confirmation.
    pub fn is_switching(self) -> bool {
        matches!(self, Self::Switching | Self::Verifying | Self::Confirming)
    }

    /// Whether it may be out of service because of what its host is doing.
    pub fn is_in_motion(self) -> bool {
        self.is_switching() || self == Self::SettingAside
    }

    /// Whether its host, or a pause that ends by itself, is waited for on the way forward.
    pub fn is_on_the_way(self) -> bool {
        self.is_in_motion() || matches!(self, Self::Staging | Self::BackingOff)
    }

    /// Confirmed, whatever came after that.
    pub fn is_confirmed(self) -> bool {
        matches!(self, Self::Confirmed | Self::Testing | Self::Tested | Self::Cleaning | Self::Done)
    }

    /// Whether nothing is left to do for it on the way forward through its group.
    pub fn came_through(self) -> bool {
        self.is_confirmed() || matches!(self, Self::Unchanged | Self::LeftOut)
    }

    /// Whether what starts after it may start.
    pub fn has_started(self) -> bool {
        self.came_through() || matches!(self, Self::Verifying | Self::Confirming)
    }

    /// Whether its release is ready, as far as it needs one.
    pub fn is_set_up(self) -> bool {
        matches!(self, Self::Staged | Self::Unchanged | Self::LeftOut)
    }

    /// Whether a rollback has nothing more to do about it.
    pub fn is_settled_in_rollback(self) -> bool {
        matches!(self, Self::Unchanged | Self::LeftOut | Self::Untouched | Self::Restored | Self::Superseded)
    }

    /// Whether a rollback has to do something about it.
    pub fn is_touched(self) -> bool {
        self.is_in_motion() || self.is_confirmed() || matches!(self, Self::Failed | Self::Stuck)
    }

    /// Whether a person or a host still has to settle it after its deployment has ended.
    pub fn is_unsettled(self) -> bool {
        matches!(self, Self::Failed | Self::Stuck | Self::Resolving)
    }
}

impl Step {
    pub(super) fn new(group: usize, planned: &PlannedStep) -> Self {
        let state = match planned.action {
            StepAction::Unchanged => StepState::Unchanged,
            StepAction::Create | StepAction::Update | StepAction::Remove => StepState::Pending,
        };
        Self {
            group,
            action: planned.action,
            release_id: planned.release_id.clone(),
            before: planned.previous.clone(),
            attempt: 1,
            touched: false,
            failed_at: None,
            state,
        }
    }
}
