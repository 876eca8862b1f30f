//! One execution of a plan, as the coordinator decides about it.
//!
//! [`Deployment::apply`] is the only way its state changes. A refused event leaves the state as it was.
//! [`Deployment::outstanding`] gives the orders that are not answered yet, so a restarted coordinator, or one
//! that a host has just come back to, simply sends them again: an agent obeys each order at most once.

mod forward;
mod rollback;
mod step;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strum::{EnumDiscriminants, IntoStaticStr};

use crate::failure::{Failure, FailureKind};
use crate::health::HealthStatus;
use crate::ids::{DeploymentId, HostName, InstanceId, PlanId, ReleaseId};
use crate::instance::StepReport;
use crate::plan::{Plan, StepAction};
use crate::release::Release;
use crate::time::{Length, Timestamp};

pub use step::{Step, StepState};
pub use waiting::Waiting;

/// What the operator chose besides the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Whether a failure puts everything back; `false` leaves the failed instances for a person to look at.
    pub rollback: bool,
    /// Who started it.
    pub started_by: String,
}

/// Where a deployment stands: its eight phases, and what may follow a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(
    name(PhaseName),
    derive(IntoStaticStr, Serialize, Deserialize),
    strum(serialize_all = "snake_case")
)]
#[strum_discriminants(serde(rename_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// The plan is checked against what runs.
    PreValidation,
    /// Groups are fixed, external dependencies answer.
    DependencyResolution,
    /// Every host gets every new release ready beside the old one.
    EnvironmentSetup,
    /// Group by group, instances are switched, checked and confirmed.
    ServerDeployment {
        /// The group at work, from 0.
        group: usize,
    },
    /// All checks of all servers hold together for the bake time.
    HealthValidation {
        /// Since when.
        since: Timestamp,
    },
    /// Tools are listed and called.
    IntegrationTesting,
    /// Continuous checks are armed.
    PostDeployment,
    /// Old releases and snapshots are pruned.
    Cleanup,
    /// Something failed and rollback is off: what is in motion settles, nothing new starts.
    Stopping {
        /// What failed.
        cause: Failure,
    },
    /// Something failed and the strategy is `manual`: nothing moves until a person says so.
    AwaitingOperator {
        /// What failed.
        cause: Failure,
        /// Since when.
        since: Timestamp,
    },
    /// What was touched is being put back.
    RollingBack {
        /// Why.
        cause: Failure,
        /// Since when.
        since: Timestamp,
    },
    /// It ended.
    Finished {
        /// How.
        outcome: Outcome,
        /// When.
        at: Timestamp,
        /// Why it did not succeed.
        cause: Option<Failure>,
    },
}

/// How a deployment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// Every instance runs the planned release and is healthy.
    Succeeded,
    /// Something failed and nothing was put back, as asked.
    Failed,
    /// Something failed and everything touched is exactly as it was.
    RolledBack,
    /// Something failed, and some instances could not be put back.
    PartlyRolledBack,
    /// Something failed, and nothing could be put back: a person is needed.
    Stuck,
}

/// What can happen to a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(derive(strum::EnumIter, IntoStaticStr), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum DeploymentEvent {
    /// It begins.
    Started,
    /// An agent tells about a step.
    StepReported {
        /// The instance.
        instance: InstanceId,
        /// The attempt it is about.
        attempt: u32,
        /// What it tells.
        report: StepReport,
    },
    /// The health of an instance changed.
    HealthChanged {
        /// The instance.
        instance: InstanceId,
        /// How it is now.
        status: HealthStatus,
        /// Why, in words.
        reason: String,
        /// The last lines of its output.
        output: Vec<String>,
    },
    /// A host's agent connected.
    HostConnected {
        /// The host.
        host: HostName,
    },
    /// A host's agent is no longer connected.
    HostDisconnected {
        /// The host.
        host: HostName,
    },
    /// A person asks to undo it.
    RollbackRequested {
        /// Who.
        by: String,
    },
    /// The time of [`Deployment::deadline`] has come.
    DeadlinePassed,
}

/// What an agent is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(name(OrderName), derive(IntoStaticStr, Hash), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Get the release ready beside the running one.
    Stage {
        /// The release.
        release: ReleaseId,
    },
    /// Switch to the target, check it, and wait to be confirmed.
    Switch {
        /// The release to run; nothing to remove the instance.
        target: Option<ReleaseId>,
        /// How long the host waits, from the switch on, before it puts itself back; nothing where it never does.
        confirm_within: Option<Length>,
        /// How long the release has to become healthy.
        healthy_deadline: Length,
        /// How long it must be healthy without a break.
        min_healthy_time: Length,
    },
    /// Keep what was switched to.
    Confirm,
    /// Undo what the deployment did.
    Restore,
    /// Speak to the server as a client would.
    Test,
    /// Prune old releases and snapshots.
    Clean,
}

/// What the coordinator must do, after the event that led to it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an order to the agent of an instance's host.
    Send {
        /// The deployment whose order it is.
        deployment: DeploymentId,
        /// The instance.
        instance: InstanceId,
        /// The attempt.
        attempt: u32,
        /// The order.
        order: Order,
    },
    /// Remember what an instance runs from now on.
    Settled {
        /// The instance.
        instance: InstanceId,
        /// The release, or nothing when it is gone.
        release: Option<Box<Release>>,
        /// What is wrong with it, when a person should look.
        trouble: Option<Failure>,
    },
}

/// Something worth telling people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The deployment it concerns.
    pub deployment: Option<DeploymentId>,
    /// The instance it concerns.
    pub instance: Option<InstanceId>,
    /// What happened, in one stable word such as `staged` or `phase`.
    pub what: String,
    /// What happened, in a sentence.
    pub message: String,
    /// What went wrong, where something did.
    pub failure: Option<Failure>,
}

/// What follows from an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// What to tell, in order.
    pub notes: Vec<Note>,
}

/// An event that does not fit the state it came upon. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not fit deployment {deployment}, which is in {phase}{detail}")]
pub struct IllegalEvent {
    event: &'static str,
    deployment: DeploymentId,
    phase: &'static str,
    detail: String,
}

/// One execution of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    id: DeploymentId,
    plan_id: PlanId,
    plan: Plan,
    options: Options,
    started_at: Timestamp,
    progress_at: Timestamp,
    phase: Phase,
    steps: BTreeMap<InstanceId, Step>,
    unreachable: BTreeSet<HostName>,
    failures: Vec<Failure>,
}

impl Deployment {
    /// A deployment of `plan` that has not begun. `before` holds what its instances run now; `connected` the
    /// hosts whose agents are connected.
    pub fn new(
        plan: Plan,
        options: Options,
        before: &BTreeMap<InstanceId, Release>,
        connected: &BTreeSet<HostName>,
        now: Timestamp,
    ) -> Self {
        let plan_id = plan.id();
        let numbered = plan.groups.iter().enumerate().flat_map(|(n, group)| group.steps.iter().map(move |s| (n, s)));
        let steps: BTreeMap<InstanceId, Step> = numbered
            .map(|(group, planned)| {
                let before = before.get(&planned.instance).cloned();
                (planned.instance.clone(), Step::new(group, planned, before))
            })
            .collect();
        let hosts: BTreeSet<HostName> = steps.keys().map(|id| id.host.clone()).collect();
        Self {
            id: DeploymentId::new(plan.parent.next(), &plan_id),
            plan_id,
            unreachable: hosts.difference(connected).cloned().collect(),
            plan,
            options,
            started_at: now,
            progress_at: now,
            phase: Phase::PreValidation,
            steps,
            failures: Vec::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &DeploymentId {
        &self.id
    }

    /// The id of the plan it executes.
    pub fn plan_id(&self) -> &PlanId {
        &self.plan_id
    }

    /// The plan it executes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the operator chose besides the plan.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// When it was started.
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Where it stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Its steps, by instance.
    pub fn steps(&self) -> &BTreeMap<InstanceId, Step> {
        &self.steps
    }

    /// Every failure it has met, the first one first.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.phase {
            Phase::Finished { outcome, .. } => Some(*outcome),
            _ => None,
        }
    }

    /// Whether it works on this instance now, so that no other deployment may.
    pub fn holds(&self, instance: &InstanceId) -> bool {
        self.outcome().is_none() && self.steps.get(instance).is_some_and(|step| step.action != StepAction::Unchanged)
    }

    /// The orders that are not answered yet, in the order of the instances' names.
    pub fn outstanding(&self) -> impl Iterator<Item = (&InstanceId, u32, Order)> {
        self.steps.iter().filter_map(|(id, step)| Some((id, step.attempt, self.order_for(step)?)))
    }

    /// The release that a stage order for this instance names.
    pub fn planned_release(&self, instance: &InstanceId) -> Option<&Release> {
        self.plan.steps().find(|step| step.instance == *instance)?.release.as_ref()
    }

    /// Takes one event in: the new state, and what follows from it.
    pub fn apply(&mut self, event: DeploymentEvent, now: Timestamp) -> Result<Effects, IllegalEvent> {
        let mut effects = Effects::default();
        match event {
            DeploymentEvent::Started => self.started(now, &mut effects)?,
            DeploymentEvent::StepReported { instance, attempt, report } => {
                self.step_reported(&instance, attempt, report, now, &mut effects)?;
            }
            DeploymentEvent::HealthChanged { instance, status, reason, output } => {
                self.health_changed(&instance, status, &reason, &output, now, &mut effects)?;
            }
            DeploymentEvent::HostConnected { host } => {
                if !self.unreachable.remove(&host) {
                    return Err(self.illegal("host_connected", format!("; {host} is connected already")));
                }
            }
            DeploymentEvent::HostDisconnected { host } => self.host_disconnected(host, &mut effects)?,
            DeploymentEvent::RollbackRequested { by } => self.rollback_requested(&by, now, &mut effects)?,
            DeploymentEvent::DeadlinePassed => self.deadline_passed(now, &mut effects)?,
        }
        self.advance(now, &mut effects);
        Ok(effects)
    }

    fn started(&mut self, now: Timestamp, effects: &mut Effects) -> Result<(), IllegalEvent> {
        if self.phase != Phase::PreValidation {
            return Err(self.illegal("started", String::new()));
        }
        self.enter(Phase::DependencyResolution, effects);
        self.enter(Phase::EnvironmentSetup, effects);
        let ids: Vec<InstanceId> = self.steps.keys().cloned().collect();
        for id in ids {
            let state = match self.steps[&id].action {
                StepAction::Unchanged => continue,
                StepAction::Remove => StepState::Staged,
                StepAction::Create | StepAction::Update => StepState::Staging { since: now },
            };
            self.set(&id, state, effects);
        }
        Ok(())
    }

    fn host_disconnected(&mut self, host: HostName, effects: &mut Effects) -> Result<(), IllegalEvent> {
        if !self.steps.keys().any(|id| id.host == host) || self.unreachable.contains(&host) {
            return Err(self.illegal("host_disconnected", format!("; it does not wait for {host}")));
        }
        if self.outcome().is_none() {
            effects.notes.push(self.note(None, "host_disconnected", format!("{host} is no longer connected")));
        }
        self.unreachable.insert(host);
        Ok(())
    }

    fn rollback_requested(&mut self, by: &str, now: Timestamp, effects: &mut Effects) -> Result<(), IllegalEvent> {
        if let Phase::RollingBack { .. } = self.phase {
            return Err(self.illegal("rollback_requested", "; it is being rolled back already".to_owned()));
        }
        if self.outcome() == Some(Outcome::RolledBack) {
            return Err(self.illegal("rollback_requested", "; it was rolled back already".to_owned()));
        }
        for id in self.ids_where(|state| matches!(state, StepState::Stuck { .. })) {
            let failure = Failure::new(FailureKind::DeploymentError, "rollback", "it was stuck before");
            self.set(&id, StepState::Failed { failure }, effects);
        }
        let cause = Failure::new(FailureKind::DeploymentError, "operator", format!("rollback was asked for by {by}"));
        self.start_rollback(cause, now, effects);
        Ok(())
    }

    /// A deadline that has passed is dealt with by what waits for it.
    fn deadline_passed(&mut self, now: Timestamp, effects: &mut Effects) -> Result<(), IllegalEvent> {
        let Some(waiting) = self.deadline().filter(|waiting| waiting.until.is_some_and(|until| until <= now)) else {
            return Err(self.illegal("deadline_passed", "; no deadline has passed".to_owned()));
        };
        match self.phase {
            Phase::RollingBack { .. } => self.give_up_restoring(now, effects),
            Phase::Stopping { .. } => self.give_up_stopping(now, effects),
            Phase::HealthValidation { .. } | Phase::ServerDeployment { .. } if waiting.is_bake => {
                self.progress_at = now
            }
            Phase::Cleanup => self.give_up_cleaning(effects),
            _ => {
                let failure =
                    Failure::new(FailureKind::TimeoutError, "deployment", format!("waited too long for {waiting}"))
                        .hint("look at `fleetwright explain` and at the agent's log on the host; then deploy again");
                let failure = match &waiting.instance {
                    Some(id) => failure.at(&id.host, &id.server),
                    None => failure,
                };
                if let Some(id) = waiting.instance {
                    self.set(&id, StepState::Failed { failure: failure.clone() }, effects);
                }
                self.fail(failure, now, effects);
            }
        }
        Ok(())
    }

    /// Enters a phase and tells.
    fn enter(&mut self, phase: Phase, effects: &mut Effects) {
        let name: &'static str = PhaseName::from(&phase).into();
        let message = match &phase {
            Phase::ServerDeployment { group } => {
                let servers: Vec<&str> = self.plan.groups[*group].servers.iter().map(|s| s.as_str()).collect();
                format!("group {} of {}: {}", group + 1, self.plan.groups.len(), servers.join(", "))
            }
            Phase::HealthValidation { .. } => format!("every check must hold for {}", self.plan.rollout.bake),
            Phase::Finished { outcome, .. } => <&'static str>::from(outcome).replace('_', " "),
            Phase::RollingBack { cause, .. } | Phase::Stopping { cause } | Phase::AwaitingOperator { cause, .. } => {
                format!("because of: {cause}")
            }
            _ => String::new(),
        };
        let mut note =
            self.note(None, "phase", if message.is_empty() { name.to_owned() } else { format!("{name}: {message}") });
        if let Phase::Finished { cause, .. } = &phase {
            "finished".clone_into(&mut note.what);
            note.failure.clone_from(cause);
        }
        effects.notes.push(note);
        self.phase = phase;
    }

    /// Puts a step into a state, and sends the order that belongs to it.
    fn set(&mut self, id: &InstanceId, state: StepState, effects: &mut Effects) {
        let Some(step) = self.steps.get_mut(id) else { return };
        step.touched |= state.is_touched();
        step.state = state;
        let step = &self.steps[id];
        if let Some(order) = self.order_for(step) {
            let (deployment, attempt) = (self.id.clone(), step.attempt);
            effects.actions.push(Action::Send { deployment, instance: id.clone(), attempt, order });
        }
    }

    fn order_for(&self, step: &Step) -> Option<Order> {
        let rollout = &self.plan.rollout;
        match &step.state {
            StepState::Staging { .. } => Some(Order::Stage { release: step.release_id.clone()? }),
            StepState::Switching { .. } => Some(Order::Switch {
                target: step.release_id.clone(),
                confirm_within: self.options.rollback.then(|| rollout.healthy_deadline.plus(rollout.confirm_timeout)),
                healthy_deadline: rollout.healthy_deadline,
                min_healthy_time: rollout.min_healthy_time,
            }),
            StepState::Confirming { .. } => Some(Order::Confirm),
            StepState::Restoring { .. } => Some(Order::Restore),
            StepState::Testing => Some(Order::Test),
            StepState::Cleaning => Some(Order::Clean),
            StepState::Unchanged
            | StepState::Pending
            | StepState::Staged
            | StepState::Verifying { .. }
            | StepState::Confirmed { .. }
            | StepState::Tested
            | StepState::Done
            | StepState::Failed { .. }
            | StepState::Untouched
            | StepState::Restored
            | StepState::Stuck { .. } => None,
        }
    }

    fn note(&self, instance: Option<&InstanceId>, what: &str, message: String) -> Note {
        Note {
            deployment: Some(self.id.clone()),
            instance: instance.cloned(),
            what: what.to_owned(),
            message,
            failure: None,
        }
    }

    fn illegal(&self, event: &'static str, detail: String) -> IllegalEvent {
        IllegalEvent { event, deployment: self.id.clone(), phase: PhaseName::from(&self.phase).into(), detail }
    }
}

#[cfg(test)]
mod tests;
