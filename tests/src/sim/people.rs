//! What goes wrong, and what people do: in the midst of it, and once the faults are over.

use std::collections::BTreeSet;

use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::deployment::{DeploymentEvent, Hold, HoldKind, Options, Phase, StepState};
use fleetwright_deploy::fleet::FleetEvent;
use fleetwright_deploy::health::HealthStatus;
use fleetwright_deploy::ids::{DeploymentId, InstanceId, ServerName};
use fleetwright_deploy::instance::InstanceState;
use fleetwright_deploy::plan::RollbackStrategy;

use super::check::Violation;
use super::coordinator::Doom;
use super::network::{ConnectionId, IDLE_MS, Side};
use super::scenario::{Act, Fault, host as host_name};
use super::world::{Event, World};

/// How often people look at what waits for them, once the faults are over, in virtual milliseconds.
const PERSON_MS: i64 = 5_000;
/// How far any clock is from true time, in milliseconds: two that differ by more than 60 s cannot work together.
const SKEW_MAX_MS: i64 = 25_000;

impl World<'_> {
    pub(super) fn fault(&mut self, n: usize) -> Result<(), Violation> {
        let fault = self.scenario.faults[n].1.clone();
        self.say(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Deploy { policies } => self.deploy(policies),
            Fault::CrashCoordinator { for_ms, torn } => {
                if self.coordinator.live.is_some() {
                    self.coordinator.doom = Some(Doom { torn, for_ms });
                }
                Ok(())
            }
            Fault::CrashHost { host, for_ms } => {
                let name = host_name(host);
                self.host(&name).crash();
                let own: Vec<ConnectionId> =
                    self.network.connections.iter().filter(|(_, c)| c.host == name).map(|(id, _)| *id).collect();
                for connection in own {
                    self.network.close(connection, Side::Host);
                    let ms = self.rng.i64(100..IDLE_MS);
                    self.after(ms, Event::Broken { connection, side: Side::Coordinator });
                }
                self.after(for_ms, Event::HostUp { host: name });
                Ok(())
            }
            Fault::Partition { host, for_ms } => {
                let name = host_name(host);
                self.network.partitioned.insert(name.clone(), self.now + for_ms);
                let own: Vec<ConnectionId> =
                    self.network.connections.iter().filter(|(_, c)| c.host == name).map(|(id, _)| *id).collect();
                for connection in own.into_iter().filter(|_| for_ms > IDLE_MS) {
                    for side in [Side::Host, Side::Coordinator] {
                        let ms = IDLE_MS + self.rng.i64(0..2_000);
                        self.after(ms, Event::Broken { connection, side });
                    }
                }
                Ok(())
            }
            Fault::Lose { host } => {
                self.network.losing.insert(host_name(host));
                Ok(())
            }
            Fault::Jump { host, by_ms } => {
                if host < self.scenario.hosts {
                    let name = host_name(host);
                    let host = self.host(&name);
                    host.offset_ms = (host.offset_ms + by_ms).clamp(-SKEW_MAX_MS, SKEW_MAX_MS);
                    self.checks.deadlines_moved(&name, self.now);
                    self.arm_host(&name);
                } else {
                    let offset = self.coordinator.offset_ms + by_ms;
                    self.coordinator.offset_ms = offset.clamp(-SKEW_MAX_MS, SKEW_MAX_MS);
                    self.timer = None;
                    self.arm_coordinator();
                }
                Ok(())
            }
            Fault::Flap { which } => {
                let Some(live) = &self.coordinator.live else { return Ok(()) };
                let running: Vec<InstanceId> = live.fleet.instances().keys().cloned().collect();
                let Some(instance) = running.get(which % running.len().max(1)).cloned() else { return Ok(()) };
                let ms = self.rng.i64(100..10_000);
                self.after(ms, Event::Healthy { instance: instance.clone() });
                self.health(&instance, HealthStatus::Unhealthy)
            }
            Fault::Fail { host, transient } => {
                self.host(&host_name(host)).failing = Some(transient);
                Ok(())
            }
            Fault::Person { act, who } => self.act(act, who),
        }
    }

    fn deploy(&mut self, policies: u64) -> Result<(), Violation> {
        let Some(live) = &self.coordinator.live else { return Ok(()) };
        self.versions += 1;
        let Some(plan) = self.scenario.plan(&live.fleet, self.versions, policies) else { return Ok(()) };
        if live.fleet.may_start(&plan).is_err() {
            return Ok(());
        }
        let options = Options { rollback: plan.rollback.enabled, started_by: "p0".to_owned() };
        let begin_by = self.coordinator.clock(self.now).after(plan.begin_within(Purpose::Deploy));
        let intents = self.coordinator.intents(plan.parent.next(), begin_by);
        self.coordinator_event(FleetEvent::DeploymentStarted { plan: plan.into(), options, intents })?;
        Ok(())
    }

    fn newest(&self) -> Option<DeploymentId> {
        Some(self.coordinator.live.as_ref()?.fleet.deployments().next_back()?.id().clone())
    }

    fn act(&mut self, act: Act, who: usize) -> Result<(), Violation> {
        let by = format!("p{who}");
        let since = self.coordinator.clock(self.now);
        let reason = String::new();
        let instances = BTreeSet::new();
        let event = match act {
            Act::Halt => return self.coordinator_event(FleetEvent::Halted { by, reason }).map(drop),
            Act::Unhalt => return self.coordinator_event(FleetEvent::Unhalted { by }).map(drop),
            Act::Rollback => return self.roll_back(None, false),
            Act::RollbackPart => return self.roll_back(None, true),
            Act::RollbackNow => return self.roll_back(Some(RollbackStrategy::Aggressive), false),
            Act::Pause => DeploymentEvent::Held(Hold { kind: HoldKind::Pause, by, reason, since }),
            Act::Resume => DeploymentEvent::Released { kind: HoldKind::Pause, by },
            Act::Approve => DeploymentEvent::Approved { by },
            Act::Reject => DeploymentEvent::Rejected { by, reason },
            Act::Cancel => DeploymentEvent::Cancelled { by },
            Act::Retry => DeploymentEvent::RetryRequested { instances, by },
            Act::Skip => DeploymentEvent::SkipRequested { instances, by },
            Act::Resolve => {
                self.put_in_order();
                DeploymentEvent::ResolveRequested { instances, by }
            }
        };
        let Some(deployment) = self.newest() else { return Ok(()) };
        self.coordinator_event(FleetEvent::Deployment { deployment, event }).map(drop)
    }

    fn roll_back(&mut self, strategy: Option<RollbackStrategy>, part: bool) -> Result<(), Violation> {
        let Some(deployment) = self.newest() else { return Ok(()) };
        self.roll_back_one(deployment, strategy, part).map(drop)
    }

    /// Asks for a rollback; whether it was taken.
    fn roll_back_one(
        &mut self,
        deployment: DeploymentId,
        strategy: Option<RollbackStrategy>,
        part: bool,
    ) -> Result<bool, Violation> {
        let Some(live) = &self.coordinator.live else { return Ok(false) };
        let Some(found) = live.fleet.deployment(&deployment) else { return Ok(false) };
        let touched = found.steps().iter().filter(|(_, step)| step.state.is_touched()).map(|(id, _)| id.clone());
        let only: BTreeSet<InstanceId> = touched.take(usize::from(part)).collect();
        let begin_by = self.coordinator.clock(self.now).after(found.plan().begin_within(Purpose::RollBack));
        let intents = self.coordinator.intents(live.fleet.generation().next(), begin_by);
        let event = FleetEvent::RollbackRequested { deployment, by: "p1".to_owned(), strategy, only, intents };
        Ok(self.coordinator_event(event)?.is_none())
    }

    /// A person puts every stuck server in order by hand.
    fn put_in_order(&mut self) {
        for host in self.hosts.values_mut() {
            let stuck = host.agent.iter().flat_map(|agent| agent.instances.values());
            let stuck = stuck.filter(|instance| matches!(instance.state(), InstanceState::Stuck { .. }));
            let servers: Vec<ServerName> = stuck.map(|instance| instance.server().clone()).collect();
            servers.iter().for_each(|server| host.put_in_order(server));
        }
    }

    /// Once the faults are over, people attend to whatever waits for them.
    pub(super) fn persons(&mut self) -> Result<(), Violation> {
        self.after(PERSON_MS, Event::Persons);
        self.network.losing.clear();
        for host in self.hosts.values_mut() {
            host.failing = None;
        }
        let Some(live) = &self.coordinator.live else { return Ok(()) };
        if live.fleet.halted().is_some() {
            return self.act(Act::Unhalt, 1);
        }
        let mut decisions = Vec::new();
        let mut undo = Vec::new();
        for deployment in live.fleet.deployments() {
            let id = deployment.id().clone();
            let stuck = deployment.steps().values().any(|step| matches!(step.state, StepState::Stuck { .. }));
            if !deployment.holds_by_people().is_empty() {
                decisions.push((id, DeploymentEvent::Released { kind: HoldKind::Pause, by: "p1".to_owned() }));
            } else if matches!(deployment.phase(), Phase::AwaitingOperator { .. })
                || (stuck && deployment.outcome().is_some())
            {
                undo.push(id);
            } else if deployment.outcome().is_none() {
                for by in ["p1", "p2"] {
                    decisions.push((id.clone(), DeploymentEvent::Approved { by: by.to_owned() }));
                }
            }
        }
        for (deployment, event) in decisions {
            self.coordinator_event(FleetEvent::Deployment { deployment, event })?;
        }
        for deployment in undo {
            // What cannot be undone, as when it was pruned, is declared to be in order now and then.
            let tries = self.tries.entry(deployment.clone()).or_default();
            *tries += 1;
            if !tries.is_multiple_of(5) && self.roll_back_one(deployment.clone(), None, false)? {
                continue;
            }
            // What a later deployment has changed is undone first. Where nothing can be undone, what is left is to
            // say that it is in order.
            let newer: Vec<DeploymentId> = self
                .coordinator
                .live
                .iter()
                .flat_map(|live| live.fleet.deployments().rev().map(|newer| newer.id().clone()))
                .take_while(|newer| *newer != deployment)
                .collect();
            let mut undone = false;
            for newer in newer {
                undone = undone || self.roll_back_one(newer, None, false)?;
            }
            if !undone {
                self.put_in_order();
                let event = DeploymentEvent::ResolveRequested { instances: BTreeSet::new(), by: "p1".to_owned() };
                self.coordinator_event(FleetEvent::Deployment { deployment, event })?;
            }
        }
        Ok(())
    }
}
