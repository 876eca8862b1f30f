//! One execution of a plan, as the coordinator decides about it.
//!
//! [`Deployment::apply`] is the only way its state changes. A refused event leaves the state as it was.
//! [`Deployment::outstanding`] gives the orders that are not answered yet, so a restarted coordinator, or one
//! that a host has just come back to, simply sends them again: an agent obeys each order at most once.

mod control;
mod deadlines;
mod event;
mod externals;
mod failing;
mod forward;
mod kept;
mod reports;
mod rollback;
mod step;
mod steps;
mod summary;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::kept::KeptDeployment;
use self::rollback::RollbackChoice;
use self::step::StepStateName;
use crate::failure::Failure;
use crate::ids::{DeploymentId, Generation, HostName, InstanceId, PlanId, ServerName};
use crate::plan::{Plan, PlannedStep, StepAction};
use crate::release::Release;
use crate::time::Timestamp;

pub use control::Checkpoint;
pub use event::{
    Action, DeploymentEvent, DeploymentEventDiscriminants, Effects, Hold, HoldKind, IllegalEvent, Note, Options, Order,
    OrderName, Outcome, Phase, PhaseName,
};
pub use externals::{Inquiry, InquiryState, no_answer};
pub use step::{Aside, Step, StepState};
pub use steps::Steps;
pub use summary::DeploymentSummary;
pub use waiting::{WaitKind, Waiting};

/// One execution of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "KeptDeployment")]
pub struct Deployment {
    id: DeploymentId,
    plan_id: PlanId,
    plan: Arc<Plan>,
    options: Options,
    started_at: Timestamp,
    progress_at: Timestamp,
    phase: Phase,
    steps: Steps,
    externals: BTreeMap<ServerName, Inquiry>,
    unreachable: BTreeSet<HostName>,
    failures: Vec<Failure>,
    checkpoints: Vec<Checkpoint>,
    held: Vec<Hold>,
    held_since: Option<Timestamp>,
}

impl Deployment {
    /// A deployment of `plan` that has not begun; `connected` are the hosts whose agents are connected.
    pub fn new(plan: Arc<Plan>, options: Options, connected: &BTreeSet<HostName>, now: Timestamp) -> Self {
        let plan_id = plan.id();
        let hosts = plan.steps().map(|step| &step.instance.host);
        let unreachable: BTreeSet<HostName> = hosts.filter(|host| !connected.contains(*host)).cloned().collect();
        Self {
            id: DeploymentId::new(plan.parent.next(), &plan_id),
            plan_id,
            steps: Steps::planned(&plan, &unreachable),
            unreachable,
            checkpoints: vec![Checkpoint::Ahead; plan.rollout.pauses.len()],
            plan,
            options,
            started_at: now,
            progress_at: now,
            phase: Phase::PreValidation,
            externals: BTreeMap::new(),
            failures: Vec::new(),
            held: Vec::new(),
            held_since: None,
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

    /// The generation of the fleet that it began; later deployments have later ones.
    pub fn generation(&self) -> Generation {
        self.plan.parent.next()
    }

    /// The plan it executes.
    pub fn plan(&self) -> &Arc<Plan> {
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

    /// Its steps.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Every failure it has met, the first one first.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Why it starts nothing new, if it does not.
    pub fn holds_by_people(&self) -> &[Hold] {
        &self.held
    }

    /// The hosts of its instances whose agents are not connected.
    pub fn unreachable(&self) -> &BTreeSet<HostName> {
        &self.unreachable
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.phase {
            Phase::Finished { outcome, .. } => Some(*outcome),
            _ => None,
        }
    }

    /// Whether anything can still come of it by itself: it is under way, or has left something for a person or a host to
    /// settle.
    pub fn is_open(&self) -> bool {
        self.outcome().is_none() || self.steps.any(StepStateName::is_unsettled)
    }

    /// Takes in which of its hosts are connected, before it is undone after it was over.
    pub(crate) fn reopen(&mut self, connected: impl Fn(&HostName) -> bool) {
        let hosts = self.steps.iter().map(|(id, _)| &id.host);
        let away: BTreeSet<HostName> = hosts.filter(|host| !connected(host)).cloned().collect();
        for host in &away {
            self.steps.set_away(host, true);
        }
        self.unreachable = away;
    }

    /// Forgets what only counts for a deployment of which something can still come.
    pub(crate) fn close(&mut self) {
        for host in std::mem::take(&mut self.unreachable) {
            self.steps.set_away(&host, false);
        }
    }

    /// In what that which is counted differs from what there is, if it does. For tests.
    pub fn disagreement(&self) -> Option<String> {
        let due = self.due().map(|due| due.at);
        let waiting = self.waiting().into_iter().filter_map(|waiting| waiting.until).min();
        let times = (due != waiting).then(|| format!("it is due at {due:?}, but waits until {waiting:?}"));
        times.or_else(|| self.steps.disagreement(&self.plan, &self.unreachable))
    }

    /// Whether it works on this instance now, so that no other deployment may.
    pub fn holds(&self, instance: &InstanceId) -> bool {
        let Some(step) = self.steps.get(instance).filter(|step| step.action != StepAction::Unchanged) else {
            return false;
        };
        match &self.phase {
            Phase::Finished { .. } => false,
            // What is back, or stays, is nothing that a rollback works on.
            Phase::RollingBack { only, .. } => {
                let settled = StepStateName::from(&step.state).is_settled_in_rollback();
                (only.is_empty() || only.contains(instance)) && !settled
            }
            _ => true,
        }
    }

    /// The orders that are not answered yet, in the order of the instances' names.
    pub fn outstanding(&self) -> impl Iterator<Item = (&InstanceId, u32, Order)> {
        self.steps.iter().filter_map(|(id, step)| Some((id, step.attempt, self.order_of(id, step)?)))
    }

    /// The orders to one host that are not answered yet, in the order of the servers' names.
    pub fn outstanding_on(&self, host: &HostName) -> impl Iterator<Item = (&InstanceId, u32, Order)> {
        self.steps.on(host).filter_map(|(id, step)| Some((id, step.attempt, self.order_of(id, step)?)))
    }

    /// The step of an instance as it was planned.
    pub fn planned(&self, instance: &InstanceId) -> Option<&PlannedStep> {
        let (group, place) = self.steps.place(instance)?;
        self.plan.groups.get(group)?.steps.get(place)
    }

    /// The release that a stage order for this instance names.
    pub fn planned_release(&self, instance: &InstanceId) -> Option<&Release> {
        self.planned(instance)?.release.as_deref()
    }

    /// Takes one event in: the new state, and what follows from it.
    pub fn apply(&mut self, event: DeploymentEvent, now: Timestamp) -> Result<Effects, IllegalEvent> {
        let mut effects = Effects::default();
        match event {
            DeploymentEvent::Started => self.started(now, &mut effects)?,
            DeploymentEvent::StepReported { instance, attempt, report } => {
                self.step_reported(&instance, attempt, report, now, &mut effects)?;
            }
            DeploymentEvent::ExternalReported { name, attempt, failure } => {
                self.external_reported(&name, attempt, failure, now, &mut effects)?;
            }
            DeploymentEvent::OrderRefused { instance, attempt, order, failure } => {
                self.order_refused(&instance, attempt, order, failure, now, &mut effects)?;
            }
            DeploymentEvent::HealthChanged { instance, was, status, reason, output } => {
                self.health_changed(&instance, (was, status), &reason, &output, now, &mut effects)?;
            }
            DeploymentEvent::HostConnected { host } => {
                if !self.unreachable.remove(&host) {
                    return Err(self.illegal("host_connected", format!("; {host} is connected already")));
                }
                self.steps.set_away(&host, false);
            }
            DeploymentEvent::HostsDisconnected { hosts } => self.hosts_disconnected(hosts, &mut effects)?,
            DeploymentEvent::Held(hold) => self.hold(hold, &mut effects)?,
            DeploymentEvent::Released { kind, by } => self.release(kind, &by, now, &mut effects)?,
            DeploymentEvent::Approved { by } => self.approved(&by, now, &mut effects)?,
            DeploymentEvent::Rejected { by, reason } => self.rejected(&by, &reason, now, &mut effects)?,
            DeploymentEvent::Cancelled { by } => self.cancelled(&by, now, &mut effects)?,
            DeploymentEvent::RetryRequested { instances, by } => {
                self.go_on_without(instances, Aside::Retry, &by, now, &mut effects)?;
            }
            DeploymentEvent::SkipRequested { instances, by } => {
                self.go_on_without(instances, Aside::LeaveOut, &by, now, &mut effects)?;
            }
            DeploymentEvent::ResolveRequested { instances, by } => {
                self.resolve_requested(instances, &by, now, &mut effects)?;
            }
            DeploymentEvent::RollbackRequested { by, strategy, only } => {
                self.rollback_requested(&by, RollbackChoice { strategy, only }, now, &mut effects)?;
            }
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
        self.ask_all(now, effects);
        Ok(())
    }

    /// Has every host get its new releases ready.
    fn begin_staging(&mut self, now: Timestamp, effects: &mut Effects) {
        for id in self.steps.ids_where(|_| true) {
            let state = match self.steps[&id].action {
                StepAction::Unchanged => continue,
                StepAction::Remove => StepState::Staged,
                StepAction::Create | StepAction::Update => StepState::Staging { since: now },
            };
            self.set(&id, state, effects);
        }
    }

    fn hosts_disconnected(&mut self, hosts: BTreeSet<HostName>, effects: &mut Effects) -> Result<(), IllegalEvent> {
        let ours = |host: &HostName| self.steps.on(host).next().is_some() && !self.unreachable.contains(host);
        let gone: BTreeSet<HostName> = hosts.into_iter().filter(ours).collect();
        if gone.is_empty() {
            return Err(self.illegal("hosts_disconnected", "; it does not wait for them".to_owned()));
        }
        if self.outcome().is_none() {
            for host in &gone {
                effects.notes.push(self.note(None, "host_disconnected", format!("{host} is no longer connected")));
            }
        }
        for host in &gone {
            self.steps.set_away(host, true);
        }
        self.unreachable.extend(gone);
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
            Phase::RollingBack { cause, strategy, .. } => {
                format!("{}, because of: {cause}", <&'static str>::from(strategy))
            }
            Phase::Stopping { cause, .. } | Phase::AwaitingOperator { cause, .. } => format!("because of: {cause}"),
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
        self.steps.set(id, state);
        let Some(step) = self.steps.get(id) else { return };
        if let Some(order) = self.order_of(id, step) {
            let (deployment, attempt) = (self.id.clone(), step.attempt);
            effects.actions.push(Action::Send { deployment, instance: id.clone(), attempt, order });
        }
    }

    /// The order that a step's host has yet to answer.
    fn order_of(&self, id: &InstanceId, step: &Step) -> Option<Order> {
        let pace = self.plan.pace(&id.server);
        match &step.state {
            StepState::Staging { .. } => Some(Order::Stage { release: step.release_id.clone()? }),
            StepState::Switching { .. } => Some(Order::Switch {
                target: step.release_id.clone(),
                confirm_within: self
                    .options
                    .rollback
                    .then(|| pace.healthy_deadline.plus(self.plan.rollout.confirm_timeout)),
                healthy_deadline: pace.healthy_deadline,
                min_healthy_time: pace.min_healthy_time,
            }),
            StepState::Confirming { .. } => Some(Order::Confirm),
            StepState::SettingAside { .. } => Some(Order::Restore { drain: true }),
            StepState::Restoring { .. } => Some(Order::Restore {
                drain: match &self.phase {
                    Phase::RollingBack { strategy, .. } => strategy.drains(),
                    _ => true,
                },
            }),
            StepState::Resolving { .. } => Some(Order::Resolve),
            StepState::Testing => Some(Order::Test),
            StepState::Cleaning => Some(Order::Clean),
            StepState::Unchanged
            | StepState::Pending
            | StepState::BackingOff { .. }
            | StepState::Staged
            | StepState::Verifying { .. }
            | StepState::Confirmed { .. }
            | StepState::Tested
            | StepState::Done
            | StepState::Failed { .. }
            | StepState::LeftOut { .. }
            | StepState::Untouched
            | StepState::Restored
            | StepState::Stuck { .. }
            | StepState::Superseded { .. } => None,
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
