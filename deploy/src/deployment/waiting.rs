//! What a deployment waits for, since when and until when: for its deadline, and for people who ask.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Deployment, Phase, StepState};
use crate::ids::InstanceId;
use crate::time::{Length, Timestamp};

/// How much longer than a host's own dead-man deadline the coordinator waits for its word.
const HOST_GRACE: Length = Length::from_secs(30);

/// Something that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The instance that is waited for, where it is one.
    pub instance: Option<InstanceId>,
    /// What is waited for, in words.
    pub what: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when; what happens then depends on the phase. Nothing when only a person can go on.
    pub until: Option<Timestamp>,
    /// Whether it is a time during which nothing may go wrong, rather than a deadline.
    pub is_bake: bool,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instance {
            Some(id) => write!(f, "{id} {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl Deployment {
    /// The earliest thing that is waited for with an end.
    pub fn deadline(&self) -> Option<Waiting> {
        self.waiting().into_iter().filter(|waiting| waiting.until.is_some()).min_by_key(|waiting| waiting.until)
    }

    /// Everything that is waited for.
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut waiting: Vec<Waiting> =
            self.steps.iter().filter_map(|(id, step)| self.waiting_for(id, &step.state)).collect();
        match &self.phase {
            Phase::Finished { .. } => return Vec::new(),
            Phase::AwaitingOperator { since, .. } => {
                waiting.iter_mut().for_each(|w| w.until = None);
                waiting.push(Waiting {
                    instance: None,
                    what: format!("a person; `fleetwright rollback {}` puts everything back", self.id),
                    since: *since,
                    until: None,
                    is_bake: false,
                });
            }
            Phase::RollingBack { since, .. } => waiting.push(Waiting {
                instance: None,
                what: "everything to be put back".to_owned(),
                since: *since,
                until: Some(since.after(self.plan.rollback.deadline)),
                is_bake: false,
            }),
            Phase::HealthValidation { since } => {
                let until = since.after(self.plan.rollout.bake);
                let unreachable = self.unreachable.iter().map(|host| host.as_str()).collect::<Vec<_>>().join(", ");
                if unreachable.is_empty() {
                    waiting.push(Waiting {
                        instance: None,
                        what: "the bake time to pass with every check holding".to_owned(),
                        since: *since,
                        until: Some(until),
                        is_bake: true,
                    });
                } else {
                    let what = format!("{unreachable} to be connected again");
                    let until = Some(until.after(self.plan.rollout.progress_deadline));
                    waiting.push(Waiting { instance: None, what, since: *since, until, is_bake: false });
                }
            }
            Phase::ServerDeployment { group } => waiting.extend(self.canary_bake(*group)),
            Phase::PreValidation
            | Phase::DependencyResolution
            | Phase::EnvironmentSetup
            | Phase::IntegrationTesting
            | Phase::PostDeployment
            | Phase::Cleanup
            | Phase::Stopping { .. } => {}
        }
        let has_own_end = matches!(self.phase, Phase::AwaitingOperator { .. } | Phase::RollingBack { .. });
        let baking = waiting.iter().any(|w| w.is_bake);
        if !has_own_end && !baking {
            waiting.push(Waiting {
                instance: None,
                what: "the next step to make progress".to_owned(),
                since: self.progress_at,
                until: Some(self.progress_at.after(self.plan.rollout.progress_deadline)),
                is_bake: false,
            });
        }
        waiting
    }

    fn waiting_for(&self, id: &InstanceId, state: &StepState) -> Option<Waiting> {
        let rollout = &self.plan.rollout;
        let host_deadline = rollout.healthy_deadline.plus(rollout.confirm_timeout).plus(HOST_GRACE);
        let (what, since, until) = match state {
            StepState::Staging { since } => ("to get its release ready", *since, None),
            StepState::Switching { since } => ("to switch", *since, Some(since.after(host_deadline))),
            StepState::Verifying { since } => ("to become healthy", *since, Some(since.after(host_deadline))),
            StepState::Confirming { since } => {
                ("to confirm over a fresh connection", *since, Some(since.after(host_deadline)))
            }
            StepState::Restoring { since } => ("to be put back", *since, None),
            StepState::Testing => ("to answer the integration test", self.progress_at, None),
            StepState::Cleaning => ("to prune old releases", self.progress_at, None),
            StepState::Unchanged
            | StepState::Pending
            | StepState::Staged
            | StepState::Confirmed { .. }
            | StepState::Tested
            | StepState::Done
            | StepState::Failed { .. }
            | StepState::Untouched
            | StepState::Restored
            | StepState::Stuck { .. } => return None,
        };
        let until = if matches!(self.phase, Phase::RollingBack { .. }) { None } else { until };
        let suffix = if self.unreachable.contains(&id.host) { " (its host is not connected)" } else { "" };
        Some(Waiting { instance: Some(id.clone()), what: format!("{what}{suffix}"), since, until, is_bake: false })
    }

    /// Canaries that are confirmed but must stay healthy for the bake time before the others of their server.
    fn canary_bake(&self, group: usize) -> Vec<Waiting> {
        let rollout = &self.plan.rollout;
        let held = |id: &InstanceId| {
            self.steps.iter().any(|(other, step)| other.server == id.server && matches!(step.state, StepState::Staged))
        };
        let in_group = self.steps.iter().filter(|(_, step)| step.group == group && rollout.canary > 0);
        let baking = in_group.filter_map(|(id, step)| match &step.state {
            StepState::Confirmed { since } if held(id) => Some(Waiting {
                instance: Some(id.clone()),
                what: "(canary) to stay healthy for the bake time".to_owned(),
                since: *since,
                until: Some(since.after(rollout.bake)),
                is_bake: true,
            }),
            _ => None,
        });
        // A bake that is over waits for nothing: what holds the others then is another bound.
        let over = |w: &Waiting| w.until.is_some_and(|until| until <= self.progress_at);
        baking.filter(|w| !over(w)).collect()
    }
}
