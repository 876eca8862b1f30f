//! A host: its disk with the agent's journal and the servers' folders, and the agent that works on them.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use fleetwright_deploy::admission::{Admission, Admitted, Asks, NotAdmitted, Signed, Stamp};
use fleetwright_deploy::deployment::Order;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{CommandId, Generation, HostName, ReleaseId, ServerName, SnapshotId};
use fleetwright_deploy::instance::{
    Instance, InstanceAction, InstanceEvent, InstanceState, StepKey, StepReport, Switch, SwitchSpec,
};
use fleetwright_deploy::time::Timestamp;

use super::check::switch_under_way;
use super::network::{Command, ConnectionId, Message};
use super::scenario::{Behaviour, behaviour};

/// A report that waits for its acknowledgement.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) server: ServerName,
    pub(super) key: StepKey,
    pub(super) report: StepReport,
    /// The connection it must not go over: its run, and its number within that.
    pub(super) not_over: Option<(u64, u64)>,
}

/// A server's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Folder {
    pub(super) staged: BTreeSet<ReleaseId>,
    pub(super) current: Option<ReleaseId>,
    /// Stands for the content of the data folder.
    pub(super) data: u64,
    pub(super) snapshots: BTreeMap<SnapshotId, (Option<ReleaseId>, u64)>,
}

/// What outlives a crash.
#[derive(Default)]
pub(super) struct HostDisk {
    events: Vec<(Timestamp, ServerName, InstanceEvent)>,
    admission: Admission,
    pub(super) outbox: BTreeMap<u64, Outgoing>,
    numbered: u64,
    pub(super) folders: BTreeMap<ServerName, Folder>,
}

/// The agent while it runs.
pub(super) struct Agent {
    pub(super) instances: BTreeMap<ServerName, Instance>,
    admission: Admission,
    /// The work under way on each server; what an older one leads to is dropped.
    work: BTreeMap<ServerName, u64>,
    switched_over: BTreeMap<ServerName, u64>,
    pub(super) session: Option<Session>,
    pub(super) run: u64,
    dialled: u64,
}

/// A connection that the coordinator has answered on.
pub(super) struct Session {
    pub(super) id: ConnectionId,
    pub(super) count: u64,
    pub(super) telling: Option<u64>,
}

/// Work that a host has begun: what it will lead to, and when.
pub(super) struct Begun {
    pub(super) server: ServerName,
    pub(super) work: u64,
    pub(super) after_ms: i64,
    pub(super) task: Task,
}

#[derive(Clone, Debug)]
pub(super) enum Task {
    Stage { key: StepKey, release: ReleaseId },
    Snapshot(Switch),
    Switch(Switch),
    Verify(Switch),
    Restore(Switch),
    Tell { key: StepKey, report: StepReport },
}

/// What an event on a host has led to.
#[derive(Default)]
pub(super) struct Led {
    pub(super) begun: Vec<Begun>,
    pub(super) send: Vec<Message>,
    /// An event that was applied, and what the checks need to know about it.
    pub(super) applied: Vec<(ServerName, InstanceEvent)>,
    pub(super) obeyed: Option<Stamp>,
}

pub(super) struct Host {
    pub(super) name: HostName,
    pub(super) disk: HostDisk,
    pub(super) agent: Option<Agent>,
    /// How far its clock is from true time.
    pub(super) offset_ms: i64,
    /// Whether the next work fails, and whether trying again helps then.
    pub(super) failing: Option<bool>,
    runs: u64,
    works: u64,
}

impl Host {
    pub(super) fn new(name: HostName) -> Self {
        let disk = HostDisk::default();
        Self { name, disk, agent: None, offset_ms: 0, failing: None, runs: 0, works: 0 }
    }

    pub(super) fn clock(&self, now: i64) -> Timestamp {
        Timestamp::from_unix_ms(now + self.offset_ms)
    }

    /// The agent starts over what is on disk, and goes on.
    pub(super) fn start(&mut self, rng: &mut Rng) -> Led {
        let mut instances: BTreeMap<ServerName, Instance> = BTreeMap::new();
        for (at, server, event) in &self.disk.events {
            let instance = instances.entry(server.clone()).or_insert_with(|| Instance::new(server.clone()));
            instance.apply(event.clone(), *at).expect("what was journaled was legal");
        }
        self.runs += 1;
        self.agent = Some(Agent {
            admission: self.disk.admission.clone(),
            work: BTreeMap::new(),
            switched_over: BTreeMap::new(),
            session: None,
            run: self.runs,
            dialled: 0,
            instances: instances.clone(),
        });
        let mut led = Led::default();
        for (server, instance) in instances {
            let actions = instance.resume();
            let redone =
                |action: &InstanceAction| matches!(action, InstanceAction::Switch(_) | InstanceAction::Restore { .. });
            if !actions.iter().any(redone) {
                self.disk.folders.entry(server.clone()).or_default().current = instance.current().cloned();
            }
            let actions = actions.into_iter().filter(|action| !matches!(action, InstanceAction::Report { .. }));
            self.perform(&server, actions.collect(), rng, &mut led);
        }
        led
    }

    pub(super) fn crash(&mut self) {
        self.agent = None;
    }

    /// A new connection is up.
    pub(super) fn connected(&mut self, id: ConnectionId) {
        if let Some(agent) = &mut self.agent {
            agent.dialled += 1;
            agent.session = Some(Session { id, count: agent.dialled, telling: None });
        }
    }

    /// Obeys a command, as the agent's engine does.
    pub(super) fn command(&mut self, command: Command, over: u64, now: i64, rng: &mut Rng) -> Led {
        let clock = self.clock(now);
        let refuse = |why: String| Led {
            send: vec![Message::Refused {
                command: Box::new(command.clone()),
                failure: Failure::new(FailureKind::PermissionError, "command", why),
            }],
            ..Led::default()
        };
        let Some(agent) = &mut self.agent else { return Led::default() };
        if command.not_after < clock {
            return refuse("its time is over".to_owned());
        }
        let (server, key) = (command.server.clone(), command.key.clone());
        let (asks, intent) = (asks(&command.order), command.intent.clone());
        let stamp = Stamp { id: command.id, generation: command.generation, server: server.clone(), asks, intent };
        match agent.admission.admit(&stamp, clock) {
            Ok(Admitted::New) => {}
            Ok(Admitted::Again) => return Led::default(),
            Err(NotAdmitted::Older { .. }) => {
                return Led { send: vec![Message::Stale(command.generation)], ..Led::default() };
            }
            Err(why) => return refuse(why.to_string()),
        }
        let event = match &command.order {
            Order::Stage { release } => InstanceEvent::StageRequested { key, release: release.clone() },
            Order::Switch { target, confirm_within, healthy_deadline, min_healthy_time } => {
                InstanceEvent::SwitchRequested {
                    key,
                    spec: SwitchSpec {
                        target: target.clone(),
                        dead_man: confirm_within.map(|within| clock.after(within)),
                        healthy_deadline: *healthy_deadline,
                        min_healthy_time: *min_healthy_time,
                    },
                }
            }
            Order::Confirm => {
                if agent.switched_over.get(&server).is_some_and(|then| over <= *then) {
                    return refuse("it came over an old connection".to_owned());
                }
                InstanceEvent::ConfirmRequested { key }
            }
            Order::Restore { drain } => InstanceEvent::RestoreRequested { key, drain: *drain },
            Order::Resolve => InstanceEvent::ResolveRequested { key },
            Order::Test => {
                let report = StepReport::Tested;
                return Led {
                    begun: vec![Self::begin_aside(server, Task::Tell { key, report }, rng)],
                    ..Led::default()
                };
            }
            Order::Clean => {
                let report = StepReport::Cleaned;
                return Led {
                    begun: vec![Self::begin_aside(server, Task::Tell { key, report }, rng)],
                    ..Led::default()
                };
            }
        };
        let known = agent.instances.get(&server).cloned();
        let mut trial = known.unwrap_or_else(|| Instance::new(server.clone()));
        if let Err(illegal) = trial.apply(event.clone(), clock) {
            return refuse(illegal.to_string());
        }
        self.apply(&server, event, Some(stamp), now, rng)
    }

    /// Takes note of an operator's intent, as the agent's engine does; whether it was told too long ago for that.
    pub(super) fn hear(&mut self, intent: &Signed, ended: bool, generation: Generation, now: i64) -> bool {
        let clock = self.clock(now);
        let Some(agent) = &mut self.agent else { return false };
        let stale = agent.admission.admit_reading(generation).is_err();
        if !stale && agent.admission.hear(intent, ended, clock) == Ok(true) {
            agent.admission.follow(intent, ended, clock);
            self.disk.admission = agent.admission.clone();
        }
        stale
    }

    /// What somebody with the coordinator's keys and an intent of before could have done here.
    pub(super) fn would_obey(&self, intent: &Signed, server: &ServerName, now: i64) -> Vec<Asks> {
        let Some(agent) = &self.agent else { return Vec::new() };
        let stamp = |asks| Stamp {
            id: CommandId([0xff; 16]),
            generation: Generation(u64::MAX),
            server: server.clone(),
            asks,
            intent: intent.clone(),
        };
        let all = [Asks::Forward, Asks::Keep, Asks::Undo].into_iter();
        all.filter(|asks| agent.admission.admit(&stamp(*asks), self.clock(now)).is_ok()).collect()
    }

    /// Applies an event: state, journal and outbox in one commit, then actions.
    pub(super) fn apply(
        &mut self,
        server: &ServerName,
        event: InstanceEvent,
        command: Option<Stamp>,
        now: i64,
        rng: &mut Rng,
    ) -> Led {
        let clock = self.clock(now);
        let mut led = Led::default();
        let Some(agent) = &mut self.agent else { return led };
        let instance = agent.instances.entry(server.clone()).or_insert_with(|| Instance::new(server.clone()));
        let Ok(actions) = instance.apply(event.clone(), clock) else { return led };
        self.disk.events.push((clock, server.clone(), event.clone()));
        if let Some(stamp) = command {
            agent.admission.obey(stamp.clone(), clock);
            self.disk.admission = agent.admission.clone();
            led.obeyed = Some(stamp);
        }
        for action in &actions {
            if let InstanceAction::Report { key, report } = action {
                self.tell(server, key.clone(), report.clone());
            }
        }
        led.applied.push((server.clone(), event));
        self.perform(server, actions, rng, &mut led);
        led
    }

    /// Puts a report into the outbox. That a switch is verified is told over a connection made after it.
    pub(super) fn tell(&mut self, server: &ServerName, key: StepKey, report: StepReport) {
        let newest = self.agent.as_ref().map(|agent| (agent.run, agent.dialled));
        let not_over = newest.filter(|_| matches!(report, StepReport::Verified));
        self.disk.numbered += 1;
        self.disk.outbox.insert(self.disk.numbered, Outgoing { server: server.clone(), key, report, not_over });
    }

    fn perform(&mut self, server: &ServerName, actions: Vec<InstanceAction>, rng: &mut Rng, led: &mut Led) {
        for action in actions {
            match action {
                InstanceAction::Stage { key, release } => {
                    led.begun.push(self.begin(server, rng.i64(50..3_000), Task::Stage { key, release }));
                }
                InstanceAction::Discard { release } => {
                    self.end_work(server);
                    let folder = self.folder(server);
                    if folder.current.as_ref() != Some(&release) {
                        folder.staged.remove(&release);
                    }
                }
                InstanceAction::TakeSnapshot(switch) => {
                    led.begun.push(self.begin(server, rng.i64(10..500), Task::Snapshot(switch)));
                }
                InstanceAction::Switch(switch) => {
                    let dialled = self.agent.as_ref().map_or(0, |agent| agent.dialled);
                    if let Some(agent) = &mut self.agent {
                        agent.switched_over.insert(server.clone(), dialled);
                    }
                    led.begun.push(self.begin(server, rng.i64(50..2_000), Task::Switch(switch)));
                }
                InstanceAction::Verify(switch) => {
                    led.begun.push(self.begin(server, self.verifying_ms(&switch, rng), Task::Verify(switch)));
                }
                InstanceAction::Restore { switch, .. } => {
                    led.begun.push(self.begin(server, rng.i64(50..3_000), Task::Restore(switch)));
                }
                InstanceAction::Run { release } => self.folder(server).current = release,
                InstanceAction::Report { .. } => {}
            }
        }
    }

    fn verifying_ms(&self, switch: &Switch, rng: &mut Rng) -> i64 {
        let spec = &switch.spec;
        let length = |length: fleetwright_deploy::time::Length| i64::try_from(length.ms()).expect("small");
        match spec.target.as_ref().map(|target| behaviour(0, target)) {
            Some(Behaviour::Ends) => rng.i64(10..500),
            Some(Behaviour::Mute) => length(spec.healthy_deadline),
            Some(Behaviour::Healthy) | None => length(spec.min_healthy_time) + rng.i64(10..2_000),
        }
    }

    fn folder(&mut self, server: &ServerName) -> &mut Folder {
        self.disk.folders.entry(server.clone()).or_default()
    }

    fn end_work(&mut self, server: &ServerName) {
        self.works += 1;
        let works = self.works;
        if let Some(agent) = &mut self.agent {
            agent.work.insert(server.clone(), works);
        }
    }

    fn begin(&mut self, server: &ServerName, after_ms: i64, task: Task) -> Begun {
        self.end_work(server);
        Begun { server: server.clone(), work: self.works, after_ms, task }
    }

    /// Work that is no part of the instance's state.
    fn begin_aside(server: ServerName, task: Task, rng: &mut Rng) -> Begun {
        Begun { server, work: 0, after_ms: rng.i64(10..1_000), task }
    }

    /// Work has come to its end, unless something has overtaken it.
    pub(super) fn work_done(&mut self, server: &ServerName, work: u64, task: Task, now: i64, rng: &mut Rng) -> Led {
        let overtaken = self.agent.as_ref().is_none_or(|agent| work != 0 && agent.work.get(server) != Some(&work));
        if overtaken {
            return Led::default();
        }
        let failure = self.failing.take_if(|_| !matches!(task, Task::Tell { .. } | Task::Verify(_))).map(|transient| {
            let kind = if transient { FailureKind::NetworkError } else { FailureKind::ResourceError };
            Failure::new(kind, "work", "the host fails")
        });
        let event = match task {
            Task::Tell { key, report } => {
                self.tell(server, key, report);
                return Led::default();
            }
            Task::Stage { key, .. } if failure.is_some() => {
                InstanceEvent::StageFailed { key, failure: failure.expect("some") }
            }
            Task::Stage { key, release } => {
                self.folder(server).staged.insert(release);
                InstanceEvent::StageSucceeded { key }
            }
            Task::Snapshot(switch) => match failure {
                Some(failure) => InstanceEvent::SnapshotFailed { key: switch.key, failure },
                None => {
                    let folder = self.folder(server);
                    let content = (folder.current.clone(), folder.data);
                    folder.snapshots.entry(switch.snapshot).or_insert(content);
                    InstanceEvent::SnapshotSucceeded { key: switch.key }
                }
            },
            Task::Switch(switch) => match failure {
                Some(failure) => InstanceEvent::SwitchFailed { key: switch.key, failure },
                None => {
                    let folder = self.folder(server);
                    folder.current.clone_from(&switch.spec.target);
                    folder.data = folder.data.wrapping_mul(31).wrapping_add(rng.u64(1..));
                    InstanceEvent::SwitchSucceeded { key: switch.key }
                }
            },
            Task::Verify(switch) => match switch.spec.target.as_ref().map(|target| behaviour(0, target)) {
                Some(Behaviour::Ends) => InstanceEvent::BecameUnhealthy {
                    key: switch.key,
                    failure: Failure::new(FailureKind::DeploymentError, "health gate", "it ended"),
                },
                Some(Behaviour::Mute) => InstanceEvent::BecameUnhealthy {
                    key: switch.key,
                    failure: Failure::new(FailureKind::HealthCheckError, "health gate", "it does not answer"),
                },
                Some(Behaviour::Healthy) | None => InstanceEvent::BecameHealthy { key: switch.key },
            },
            Task::Restore(switch) => match failure {
                Some(failure) => InstanceEvent::RestoreFailed { key: switch.key, failure },
                None => {
                    let folder = self.folder(server);
                    if let Some((current, data)) = folder.snapshots.get(&switch.snapshot).cloned() {
                        (folder.current, folder.data) = (current, data);
                    }
                    InstanceEvent::RestoreSucceeded { key: switch.key }
                }
            },
        };
        self.apply(server, event, None, now, rng)
    }

    /// When the next host puts itself back, in true time.
    pub(super) fn deadline(&self) -> Option<i64> {
        let agent = self.agent.as_ref()?;
        let earliest = agent.instances.values().filter_map(|instance| Some(instance.deadline()?.0)).min()?;
        Some(earliest.unix_ms() - self.offset_ms)
    }

    /// Every server whose deadline has passed puts itself back.
    pub(super) fn deadlines_passed(&mut self, now: i64, rng: &mut Rng) -> Vec<(Led, Option<Switch>)> {
        let clock = self.clock(now);
        let Some(agent) = &self.agent else { return Vec::new() };
        let due = |instance: &&Instance| instance.deadline().is_some_and(|(at, _)| at <= clock);
        let servers: Vec<ServerName> = agent.instances.values().filter(due).map(|i| i.server().clone()).collect();
        let each = servers.iter().map(|server| {
            let switch = self.switch(server);
            (self.apply(server, InstanceEvent::DeadlinePassed, None, now, rng), switch)
        });
        each.collect()
    }

    /// The switch of a server that the host may still have to undo by itself.
    pub(super) fn switch(&self, server: &ServerName) -> Option<Switch> {
        switch_under_way(self.agent.as_ref()?.instances.get(server)?.state()).cloned()
    }

    /// What a person who puts a stuck server in order by hand does.
    pub(super) fn put_in_order(&mut self, server: &ServerName) {
        let Some(agent) = &self.agent else { return };
        let Some(InstanceState::Stuck { switch, .. }) = agent.instances.get(server).map(Instance::state) else {
            return;
        };
        let snapshot = switch.snapshot.clone();
        let folder = self.folder(server);
        if let Some((_, data)) = folder.snapshots.get(&snapshot) {
            folder.data = *data;
        }
    }
}

/// What an order asks for, as far as an intent's time and purpose matter.
fn asks(order: &Order) -> Asks {
    match order {
        Order::Stage { .. } | Order::Switch { .. } => Asks::Forward,
        Order::Confirm | Order::Test | Order::Clean => Asks::Keep,
        Order::Restore { .. } => Asks::Undo,
        Order::Resolve => Asks::Resolve,
    }
}
