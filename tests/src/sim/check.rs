//! The invariants, checked against what hosts and coordinator really did. Nothing here asks the machines whether
//! they think that they were right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fleetwright_deploy::admission::{Signed, Stamp};
use fleetwright_deploy::deployment::{Deployment, Order, Outcome, Phase, StepState};
use fleetwright_deploy::fleet::Fleet;
use fleetwright_deploy::ids::{CommandId, DeploymentId, Generation, HostName, InstanceId, ReleaseId, ServerName};
use fleetwright_deploy::instance::{InstanceEvent, InstanceState, StepKey, Switch};
use fleetwright_deploy::plan::StepAction;
use fleetwright_deploy::time::Timestamp;

use super::host::Host;

/// How much later than its deadline a host that is up may put itself back, in milliseconds.
const DEAD_MAN_GRACE_MS: i64 = 2_000;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: &'static str,
    /// What was seen.
    pub seen: String,
    /// The end of what happened before.
    pub log: Vec<String>,
}

impl Violation {
    pub(super) fn new(invariant: &'static str, seen: impl Into<String>) -> Self {
        Self { invariant, seen: seen.into(), log: Vec::new() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.seen)
    }
}

type Checked = Result<(), Violation>;

/// What has been seen so far.
#[derive(Default)]
pub(super) struct Checks {
    obeyed: BTreeSet<(HostName, CommandId)>,
    generations: BTreeMap<HostName, Generation>,
    confirmed: BTreeSet<(HostName, ServerName, StepKey)>,
    undone: BTreeSet<(HostName, ServerName, StepKey)>,
    /// Hosts that have just started, or whose clock has just jumped: deadlines may have been passed by that.
    moved: BTreeMap<HostName, i64>,
}

impl Checks {
    pub(super) fn deadlines_moved(&mut self, host: &HostName, now: i64) {
        self.moved.insert(host.clone(), now);
    }

    /// A command is obeyed at most once, and none after one of a later generation.
    pub(super) fn obeyed(&mut self, host: &HostName, stamp: &Stamp) -> Checked {
        if !self.obeyed.insert((host.clone(), stamp.id)) {
            return Err(Violation::new("at most once", format!("{host} obeyed {} twice", stamp.id)));
        }
        let highest = self.generations.entry(host.clone()).or_default();
        if stamp.generation < *highest {
            let seen = format!("{host} obeyed generation {} after {highest}", stamp.generation);
            return Err(Violation::new("generations only rise", seen));
        }
        *highest = stamp.generation;
        Ok(())
    }

    /// Under an intent whose deployment has ended on a host, nothing more is obeyed there, whoever sends it.
    pub(super) fn spent(&self, host: &Host, intent: &Signed, now: i64) -> Checked {
        let servers = host.agent.iter().flat_map(|agent| agent.instances.keys());
        for server in servers {
            if let Some(asks) = host.would_obey(intent, server, now).first() {
                let seen =
                    format!("{server}@{} would go {asks:?} under an intent for {}", host.name, intent.deployment);
                return Err(Violation::new("an intent counts once", seen));
            }
        }
        Ok(())
    }

    /// What an event on a host may not be, after what was seen there before. `switch` is the one that was under
    /// way when it came.
    pub(super) fn applied(
        &mut self,
        host: &HostName,
        server: &ServerName,
        event: &InstanceEvent,
        switch: Option<&Switch>,
        clock: Timestamp,
    ) -> Checked {
        let of = |key: &StepKey| (host.clone(), server.clone(), key.clone());
        match event {
            InstanceEvent::ConfirmRequested { key } => {
                if switch.and_then(|switch| switch.spec.dead_man).is_some_and(|at| at <= clock) {
                    let seen = format!("{server}@{host} was confirmed after its dead-man deadline");
                    return Err(Violation::new("dead-man", seen));
                }
                self.confirmed.insert(of(key));
            }
            InstanceEvent::DeadlinePassed => {
                if let Some(switch) = switch.filter(|switch| self.confirmed.contains(&of(&switch.key))) {
                    let seen =
                        format!("{server}@{host} was confirmed by {} and put itself back", switch.key.deployment);
                    return Err(Violation::new("a confirmed host never puts itself back", seen));
                }
            }
            InstanceEvent::RestoreRequested { key, .. } | InstanceEvent::RestoreSucceeded { key } => {
                self.undone.insert(of(key));
            }
            InstanceEvent::StageRequested { key, .. } | InstanceEvent::SwitchRequested { key, .. }
                if self.undone.contains(&of(key)) =>
            {
                let (attempt, deployment) = (key.attempt, &key.deployment);
                let seen = format!("{server}@{host} began attempt {attempt} of {deployment} after it was undone");
                return Err(Violation::new("late commands", seen));
            }
            _ => {}
        }
        Ok(())
    }

    /// A host that is up and was not confirmed in time is putting itself back.
    pub(super) fn dead_man(&self, host: &Host, now: i64) -> Checked {
        let Some(agent) = &host.agent else { return Ok(()) };
        if self.moved.get(&host.name).is_some_and(|at| now < at + DEAD_MAN_GRACE_MS) {
            return Ok(());
        }
        let late = Timestamp::from_unix_ms(host.clock(now).unix_ms() - DEAD_MAN_GRACE_MS);
        for instance in agent.instances.values() {
            let switch = switch_under_way(instance.state());
            if switch.and_then(|switch| switch.spec.dead_man).is_some_and(|at| at < late) {
                let seen = format!("{}@{} was not confirmed in time and stays as it is", instance.server(), host.name);
                return Err(Violation::new("dead-man", seen));
            }
        }
        Ok(())
    }
}

/// The switch that a host may still have to undo by itself.
pub(super) fn switch_under_way(state: &InstanceState) -> Option<&Switch> {
    match state {
        InstanceState::Snapshotting(switch)
        | InstanceState::Switching(switch)
        | InstanceState::Verifying(switch)
        | InstanceState::Verified(switch)
        | InstanceState::Failed { switch, .. } => Some(switch),
        _ => None,
    }
}

/// A report counts for the attempt that it is about.
pub(super) fn attempt(before: Option<&Fleet>, deployment: &DeploymentId, instance: &InstanceId, of: u32) -> Checked {
    let present = before.and_then(|fleet| Some(fleet.deployment(deployment)?.steps().get(instance)?.attempt));
    match present {
        Some(present) if present != of => {
            let seen = format!("a report about attempt {of} at {instance} counted for attempt {present}");
            Err(Violation::new("attempts", seen))
        }
        Some(_) | None => Ok(()),
    }
}

/// What an order to a host needs to be right.
pub(super) fn order(
    fleet: &Fleet,
    hosts: &BTreeMap<HostName, Host>,
    connected: &BTreeSet<HostName>,
    id: &DeploymentId,
    instance: &InstanceId,
    order: &Order,
    anew: bool,
) -> Checked {
    let Some(deployment) = fleet.deployment(id) else { return Ok(()) };
    let owners = fleet.deployments().filter(|other| {
        let rolling = matches!(other.phase(), Phase::RollingBack { .. });
        let works = other.steps().get(instance).is_some_and(|step| match &step.state {
            StepState::Unchanged | StepState::Superseded { .. } => false,
            StepState::Restored | StepState::Untouched | StepState::LeftOut { .. } => !rolling,
            state => !(rolling && state.is_confirmed()),
        });
        let meant = match other.phase() {
            Phase::RollingBack { only, .. } => only.is_empty() || only.contains(instance),
            _ => true,
        };
        other.outcome().is_none() && works && meant
    });
    if owners.count() > 1 {
        return Err(Violation::new("one owner", format!("two deployments work on {instance}")));
    }
    let begins = matches!(order, Order::Stage { .. } | Order::Switch { .. } | Order::Test | Order::Clean);
    if begins && anew && (fleet.halted().is_some() || !deployment.holds_by_people().is_empty()) {
        return Err(Violation::new("holds", format!("{instance} was told to begin something although {id} is held")));
    }
    if matches!(order, Order::Switch { .. }) && anew {
        budget(connected, deployment, instance)?;
        gate(hosts, deployment, instance)?;
    }
    Ok(())
}

/// No more instances of a server than allowed are out of service, or may be.
fn budget(connected: &BTreeSet<HostName>, deployment: &Deployment, instance: &InstanceId) -> Checked {
    if !connected.contains(&instance.host) {
        let seen = format!("{instance} was told to switch although its host is not connected");
        return Err(Violation::new("max_unavailable", seen));
    }
    let away = |host: &HostName| !connected.contains(host);
    let of_server = deployment.steps().iter().filter(|(id, _)| id.server == instance.server);
    let out = of_server.filter(|(id, step)| match &step.state {
        StepState::Switching { .. }
        | StepState::Verifying { .. }
        | StepState::Confirming { .. }
        | StepState::SettingAside { .. }
        | StepState::Failed { .. }
        | StepState::Stuck { .. } => true,
        state => away(&id.host) && (state.is_confirmed() || step.action != StepAction::Create),
    });
    let (out, most) = (out.count(), deployment.plan().pace(&instance.server).max_unavailable as usize);
    if out > most {
        let seen = format!("{out} instances of {} are out of service, at most {most} may be", instance.server);
        return Err(Violation::new("max_unavailable", seen));
    }
    Ok(())
}

/// Everything in earlier groups runs what was planned, on the hosts themselves.
fn gate(hosts: &BTreeMap<HostName, Host>, deployment: &Deployment, instance: &InstanceId) -> Checked {
    let group = deployment.steps()[instance].group;
    for (id, step) in deployment.steps().iter().filter(|(_, step)| step.group < group) {
        let left_out = matches!(step.state, StepState::LeftOut { .. } | StepState::Unchanged);
        let runs = hosts[&id.host].disk.folders.get(&id.server).and_then(|folder| folder.current.as_ref());
        if !left_out && runs != step.release_id.as_ref() {
            let seen = format!("{instance} of group {} begins, but {id} before it is {}", group + 1, step.state.name());
            return Err(Violation::new("group gate", seen));
        }
    }
    let before = deployment.plan().starts_after.get(&instance.server);
    for (id, step) in deployment.steps().iter().filter(|(id, _)| before.is_some_and(|of| of.contains(&id.server))) {
        let waits = matches!(
            step.state,
            StepState::Pending | StepState::Staging { .. } | StepState::Staged | StepState::BackingOff { .. }
        );
        if waits || matches!(step.state, StepState::Switching { .. } | StepState::SettingAside { .. }) {
            let seen = format!("{instance} begins, but {id}, which it starts after, is {}", step.state.name());
            return Err(Violation::new("group gate", seen));
        }
    }
    Ok(())
}

/// When all faults are over: everything has ended, and what the coordinator believes is what hosts have.
pub(super) fn settled(fleet: &Fleet, hosts: &BTreeMap<HostName, Host>) -> Checked {
    for deployment in fleet.deployments() {
        outcome(deployment)?;
    }
    for host in hosts.values() {
        for (server, folder) in &host.disk.folders {
            let id = InstanceId::new(server.clone(), host.name.clone());
            let believed = fleet.instances().get(&id);
            if believed.is_some_and(|record| record.trouble.is_some()) {
                continue;
            }
            let believed: Option<&ReleaseId> = believed.map(|record| &record.release_id);
            if believed != folder.current.as_ref() {
                let seen = format!("{id} runs {:?}, the coordinator believes {believed:?}", folder.current);
                return Err(Violation::new("no fourth state", seen));
            }
            let agents = host.agent.as_ref().and_then(|agent| agent.instances.get(server)?.current());
            if agents != folder.current.as_ref() {
                let seen = format!("{id} runs {:?}, its agent believes {agents:?}", folder.current);
                return Err(Violation::new("no fourth state", seen));
            }
        }
    }
    Ok(())
}

/// An outcome says what its steps say.
fn outcome(deployment: &Deployment) -> Checked {
    let Some(outcome) = deployment.outcome() else {
        let waiting: Vec<String> = deployment.waiting().iter().map(ToString::to_string).collect();
        let seen = format!("{} has not ended; it waits for {}", deployment.id(), waiting.join("; "));
        return Err(Violation::new("every deployment ends", seen));
    };
    for (id, step) in deployment.steps().iter() {
        let back = matches!(
            step.state,
            StepState::Restored | StepState::Untouched | StepState::LeftOut { .. } | StepState::Unchanged
        );
        let fits = match outcome {
            Outcome::Succeeded => matches!(step.state, StepState::Done | StepState::Unchanged),
            Outcome::PartlySucceeded | Outcome::Cancelled => step.state.is_confirmed() || back,
            Outcome::RolledBack => back,
            Outcome::PartlyRolledBack | Outcome::Stuck | Outcome::Failed => !step.state.is_in_motion(),
        };
        if !fits {
            let seen = format!("{} ended {outcome:?}, but {id} is {}", deployment.id(), step.state.name());
            return Err(Violation::new("outcomes", seen));
        }
    }
    Ok(())
}
