//! The event loop: one queue ordered by virtual time, no threads, every draw from the seed.

use std::collections::BTreeMap;

use fastrand::Rng;
use fleetwright_deploy::deployment::{DeploymentEvent, Order, OrderName, PhaseName, StepState, WaitKind, no_answer};
use fleetwright_deploy::fleet::{FleetEvent, Introduction, Refused};
use fleetwright_deploy::health::{HealthReport, HealthStatus};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId, ServerName};
use fleetwright_deploy::instance::{InstanceEventDiscriminants, Switch};

use super::check::{self, Checks, Violation};
use super::coordinator::{Coordinator, Doom, Question, Took};
use super::host::{Host, Led, Task};
use super::network::{Command, ConnectionId, IDLE_MS, Message, Network, Side};
use super::scenario::{CHAOS_MS, Scenario};

/// How long everything has to settle once the faults are over, in virtual milliseconds.
const SETTLE_MS: i64 = 3 * 3_600_000;
/// How much of what happened a violation keeps.
const LOG_KEPT: usize = 400;
/// How late a host's timer may fire, in milliseconds.
const TIMER_LATE_MS: i64 = 1_500;
/// How long a deployment may be at one and the same point without waiting for a person: longer than any of its
/// deadlines, the coordinator's absences and the jumps of its clock.
const STANDSTILL_MS: i64 = 300_000;
/// More events than any run has.
const EVENTS_MAX: u64 = 400_000;

/// How much happened in a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// How many events there were.
    pub events: u64,
    /// How many entries the coordinator's journal has.
    pub entries: usize,
    /// How the deployments ended.
    pub outcomes: BTreeMap<String, usize>,
    /// What happened, if it was asked for.
    pub log: Vec<String>,
}

pub(super) enum Event {
    Fault(usize),
    Deliver { connection: ConnectionId, to: Side, message: Message },
    Broken { connection: ConnectionId, side: Side },
    Dial { host: HostName },
    CoordinatorTimer,
    CoordinatorUp,
    HostUp { host: HostName },
    HostTimer { host: HostName },
    Work { host: HostName, run: u64, server: ServerName, work: u64, task: Task },
    Healthy { instance: InstanceId },
    Answer { run: u64, question: Question, answers: bool },
    Persons,
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) rng: Rng,
    pub(super) now: i64,
    pub(super) queue: BTreeMap<(i64, u64), Event>,
    pub(super) pushed: u64,
    pub(super) events: u64,
    pub(super) coordinator: Coordinator,
    pub(super) before_crash: Option<fleetwright_deploy::fleet::Fleet>,
    pub(super) hosts: BTreeMap<HostName, Host>,
    pub(super) network: Network,
    pub(super) checks: Checks,
    pub(super) versions: u64,
    pub(super) timer: Option<i64>,
    pub(super) tries: BTreeMap<DeploymentId, u32>,
    pub(super) points: BTreeMap<DeploymentId, (i64, String)>,
    pub(super) looked_at: u64,
    pub(super) trace: bool,
    pub(super) log: Vec<String>,
}

/// Runs a scenario to its end.
pub fn run(scenario: &Scenario, trace: bool) -> Result<Run, Violation> {
    let mut world = World {
        scenario,
        rng: Rng::with_seed(scenario.seed ^ 0x5eed),
        now: 0,
        queue: BTreeMap::new(),
        pushed: 0,
        events: 0,
        coordinator: Coordinator::new(),
        before_crash: None,
        hosts: scenario.hosts().map(|name| (name.clone(), Host::new(name))).collect(),
        network: Network::default(),
        checks: Checks::default(),
        versions: 1,
        timer: None,
        tries: BTreeMap::new(),
        points: BTreeMap::new(),
        looked_at: 0,
        trace,
        log: Vec::new(),
    };
    let outcome = world.begin().and_then(|()| world.go());
    match outcome {
        Ok(()) => Ok(world.report()),
        Err(mut violation) => {
            violation.log = world.log;
            Err(violation)
        }
    }
}

impl World<'_> {
    fn begin(&mut self) -> Result<(), Violation> {
        self.coordinator_up()?;
        for host in self.scenario.hosts() {
            let certificate_sha256 = host.to_string();
            let introduction = Introduction::default();
            let enrolled = FleetEvent::HostEnrolled { host: host.clone(), certificate_sha256, introduction };
            self.coordinator_event(enrolled)?;
            self.host_up(&host)?;
        }
        for (n, (at, _)) in self.scenario.faults.iter().enumerate() {
            self.at(*at, Event::Fault(n));
        }
        self.at(CHAOS_MS, Event::Persons);
        Ok(())
    }

    fn go(&mut self) -> Result<(), Violation> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = self.now.max(at);
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(Violation::new("liveness", "it does not come to rest"));
            }
            self.handle(event)?;
            for host in self.hosts.values() {
                self.checks.dead_man(host, self.now)?;
            }
            self.check_standstill()?;
            if self.now > CHAOS_MS && self.is_at_rest() {
                return self.at_the_end();
            }
            if self.now > CHAOS_MS + SETTLE_MS {
                break;
            }
        }
        let Some(live) = &self.coordinator.live else { return Err(Violation::new("liveness", "no coordinator")) };
        check::settled(&live.fleet, &self.hosts)?;
        Err(Violation::new("liveness", "it does not come to rest"))
    }

    /// A deployment that waits for nobody goes on or ends.
    fn check_standstill(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.coordinator.live else { return Ok(()) };
        let entries = live.journal.last();
        if self.looked_at == entries && !self.events.is_multiple_of(64) {
            return Ok(());
        }
        self.looked_at = entries;
        for deployment in live.fleet.deployments() {
            if deployment.outcome().is_some() {
                self.points.remove(deployment.id());
                continue;
            }
            let waits = deployment.waiting();
            let for_people = waits.iter().any(|wait| matches!(wait.kind, WaitKind::Person | WaitKind::Approval));
            let states: Vec<(u32, &'static str)> =
                deployment.steps().values().map(|step| (step.attempt, step.state.name())).collect();
            let point = format!("{:?} {states:?} {for_people}", PhaseName::from(deployment.phase()));
            let (since, at) = self.points.entry(deployment.id().clone()).or_insert_with(|| (self.now, String::new()));
            if *at != point || for_people {
                (*since, *at) = (self.now, point);
            } else if self.now > *since + STANDSTILL_MS {
                let seen = format!("{} stands still: {point}", deployment.id());
                return Err(Violation::new("every deployment ends", seen));
            }
        }
        Ok(())
    }

    fn at_the_end(&mut self) -> Result<(), Violation> {
        let Some(live) = self.coordinator.live.take() else { return Ok(()) };
        check::settled(&live.fleet, &self.hosts)?;
        self.coordinator.start(Some(&live.fleet))
    }

    /// Whether nothing is left to be done by anybody.
    fn is_at_rest(&self) -> bool {
        let Some(live) = &self.coordinator.live else { return false };
        let ended = live.fleet.deployments().all(|deployment| deployment.outcome().is_some());
        let stuck = live
            .fleet
            .deployments()
            .any(|deployment| deployment.steps().values().any(|step| matches!(step.state, StepState::Stuck { .. })));
        let connected = self.hosts.keys().all(|host| live.fleet.hosts().get(host).is_some_and(|host| host.connected));
        let told = self.hosts.values().all(|host| host.agent.is_some() && host.disk.outbox.is_empty());
        let ordered = self.hosts.keys().all(|host| live.fleet.outstanding(host).next().is_none());
        let working = self.queue.values().any(|event| matches!(event, Event::Work { .. } | Event::Deliver { .. }));
        ended && !stuck && connected && told && ordered && !working
    }

    fn report(self) -> Run {
        let mut outcomes = BTreeMap::new();
        let live = self.coordinator.live.as_ref();
        for deployment in live.iter().flat_map(|live| live.fleet.deployments()) {
            *outcomes.entry(format!("{:?}", deployment.outcome())).or_default() += 1;
        }
        Run { events: self.events, entries: self.coordinator.entries(), outcomes, log: self.log }
    }

    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>9} ms  {}", self.now, what());
        self.log.push(line);
        if !self.trace && self.log.len() > 2 * LOG_KEPT {
            self.log.drain(..LOG_KEPT);
        }
    }

    pub(super) fn at(&mut self, at: i64, event: Event) {
        self.pushed += 1;
        self.queue.insert((at.max(self.now), self.pushed), event);
    }

    pub(super) fn after(&mut self, ms: i64, event: Event) {
        self.at(self.now + ms, event);
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Fault(n) => self.fault(n),
            Event::Deliver { connection, to, message } => self.deliver(connection, to, message),
            Event::Broken { connection, side } => self.broken(connection, side),
            Event::Dial { host } => self.dial(&host),
            Event::CoordinatorTimer => self.coordinator_timer(),
            Event::CoordinatorUp => self.coordinator_up(),
            Event::HostUp { host } => self.host_up(&host),
            Event::HostTimer { host } => {
                let (now, mut rng) = (self.now, self.rng.fork());
                let led = self.host(&host).deadlines_passed(now, &mut rng);
                self.all_led(&host, led)
            }
            Event::Work { host, run, server, work, task } => {
                let now = self.now;
                let mut rng = self.rng.fork();
                let on = self.hosts.get_mut(&host).expect("host");
                if on.agent.as_ref().is_none_or(|agent| agent.run != run) {
                    return Ok(());
                }
                let switch = on.switch(&server);
                let led = on.work_done(&server, work, task, now, &mut rng);
                self.led(&host, led, switch)
            }
            Event::Healthy { instance } => self.health(&instance, HealthStatus::Healthy),
            Event::Answer { run, question, answers } => self.answer(run, question, answers),
            Event::Persons => self.persons(),
        }
    }

    // The coordinator.

    fn coordinator_up(&mut self) -> Result<(), Violation> {
        if self.coordinator.live.is_some() {
            return Ok(());
        }
        self.say(|| "the coordinator starts".to_owned());
        let before = self.before_crash.take();
        self.coordinator.start(before.as_ref())?;
        self.coordinator_event(FleetEvent::CoordinatorStarted)?;
        let missed = self.coordinator.live.iter().flat_map(|live| live.fleet.questions());
        let missed: Vec<Question> = missed
            .map(|(deployment, external, attempt)| {
                let (deployment, external) = (deployment.clone(), external.clone());
                Question { deployment, external, attempt }
            })
            .collect();
        missed.into_iter().for_each(|question| self.ask(question));
        let down: Vec<ConnectionId> = self.network.connections.keys().copied().collect();
        for connection in down {
            self.network.close(connection, Side::Coordinator);
        }
        Ok(())
    }

    fn crash_coordinator(&mut self, doom: Doom) {
        self.say(|| format!("the coordinator is killed ({doom:?})"));
        self.before_crash = self.coordinator.live.take().map(|live| live.fleet);
        self.timer = None;
        let connections: Vec<ConnectionId> = self.network.connections.keys().copied().collect();
        for connection in connections {
            self.network.close(connection, Side::Coordinator);
            let ms = self.rng.i64(100..IDLE_MS);
            self.after(ms, Event::Broken { connection, side: Side::Host });
        }
        self.after(doom.for_ms, Event::CoordinatorUp);
    }

    pub(super) fn coordinator_event(&mut self, event: FleetEvent) -> Result<Option<Refused>, Violation> {
        let name: &'static str = (&event).into();
        let shown = self.trace.then(|| format!("{event:?}"));
        let took = self.coordinator.event(event, self.now)?;
        self.took(name, shown, took)
    }

    fn took(&mut self, name: &str, shown: Option<String>, took: Took) -> Result<Option<Refused>, Violation> {
        match took {
            Took::Refused(refused) => {
                if self.trace {
                    self.say(|| format!("coordinator: {name} is not taken: {refused}"));
                }
                return Ok(Some(refused));
            }
            Took::Crashed(doom) => self.crash_coordinator(doom),
            Took::Orders(orders, questions, announced) => {
                let shown = shown.map(|text| text.chars().take(220).collect::<String>());
                self.say(|| format!("coordinator: {}", shown.unwrap_or_else(|| name.to_owned())));
                for deployment in announced {
                    self.announce(&deployment);
                }
                for (deployment, instance, attempt, order) in orders {
                    self.order(&deployment, &instance, attempt, &order, true)?;
                }
                questions.into_iter().for_each(|question| self.ask(question));
            }
        }
        self.arm_coordinator();
        Ok(None)
    }

    /// An external is asked, and answers after a while, or does not.
    fn ask(&mut self, question: Question) {
        let run = self.coordinator.run;
        let answers = self.rng.u8(..) > 60;
        let ms = if answers { self.rng.i64(1..2_000) } else { question.external.timeout.ms() as i64 };
        self.say(|| format!("{} is asked (attempt {})", question.external, question.attempt));
        self.after(ms, Event::Answer { run, question, answers });
    }

    fn answer(&mut self, run: u64, question: Question, answers: bool) -> Result<(), Violation> {
        // What a coordinator has asked that is no more, nobody hears.
        if self.coordinator.run != run || self.coordinator.live.is_none() {
            return Ok(());
        }
        let Question { deployment, external, attempt } = question;
        let failure = (!answers).then(|| no_answer(&external, "nothing"));
        let event = DeploymentEvent::ExternalReported { name: external.name, attempt, failure };
        self.coordinator_event(FleetEvent::Deployment { deployment, event }).map(drop)
    }

    pub(super) fn arm_coordinator(&mut self) {
        let Some((_, at)) = self.coordinator.deadline() else { return };
        if self.timer.is_none_or(|timer| at < timer || timer < self.now) {
            self.timer = Some(at);
            self.at(at, Event::CoordinatorTimer);
        }
    }

    fn coordinator_timer(&mut self) -> Result<(), Violation> {
        self.timer = None;
        let took = self.coordinator.deadline_passed(self.now)?;
        self.took("deadline_passed", None, took)?;
        self.arm_coordinator();
        Ok(())
    }

    fn order(
        &mut self,
        deployment: &DeploymentId,
        instance: &InstanceId,
        attempt: u32,
        order: &Order,
        anew: bool,
    ) -> Result<(), Violation> {
        let Some(live) = &self.coordinator.live else { return Ok(()) };
        let connected = live.sessions.keys().cloned().collect();
        check::order(&live.fleet, &self.hosts, &connected, deployment, instance, order, anew)?;
        let name: &'static str = OrderName::from(order).into();
        self.say(|| format!("order {name} to {instance} (attempt {attempt} of {deployment})"));
        if let Some((connection, command)) = self.coordinator.command(deployment, instance, attempt, order, self.now) {
            self.send(connection, Side::Host, Message::Command(Box::new(command)));
        }
        Ok(())
    }

    /// Every host of a deployment that is connected hears of its intents.
    fn announce(&mut self, deployment: &DeploymentId) {
        let live = self.coordinator.live.iter();
        let hosts: Vec<HostName> = live.flat_map(|live| live.fleet.intended(deployment)).cloned().collect();
        hosts.iter().for_each(|host| self.announce_to(host, Some(deployment)));
    }

    /// A host hears of the intents of one deployment, or of all that count.
    fn announce_to(&mut self, host: &HostName, only: Option<&DeploymentId>) {
        let Some((connection, told)) = self.coordinator.announcements(host, self.now) else { return };
        let Some(live) = &self.coordinator.live else { return };
        let generation = live.fleet.generation();
        for (intent, ended) in told {
            if only.is_none_or(|only| *only == intent.deployment) {
                self.send(connection, Side::Host, Message::Intent { intent, ended, generation });
            }
        }
    }

    // The network.

    fn send(&mut self, connection: ConnectionId, to: Side, message: Message) {
        let Some(host) = self.network.connections.get(&connection).map(|c| c.host.clone()) else { return };
        if self.network.losing.remove(&host) {
            self.say(|| format!("a message to or from {host} is lost"));
            for side in [Side::Host, Side::Coordinator] {
                let ms = self.rng.i64(10_000..20_000);
                self.after(ms, Event::Broken { connection, side });
            }
            return;
        }
        let ms = if self.rng.u8(..) < 14 { self.rng.i64(100..15_000) } else { self.rng.i64(1..100) };
        if self.rng.u8(..) < 12 {
            let again = self.rng.i64(1..5_000);
            self.after(ms + again, Event::Deliver { connection, to, message: message.clone() });
        }
        self.after(ms, Event::Deliver { connection, to, message });
    }

    fn deliver(&mut self, connection: ConnectionId, to: Side, message: Message) -> Result<(), Violation> {
        if !self.network.is_open(connection, to) {
            return Ok(());
        }
        let host = self.network.connections[&connection].host.clone();
        if self.network.is_partitioned(&host, self.now) {
            // Sent again until it arrives, or until the connection is given up.
            self.after(500, Event::Deliver { connection, to, message });
            return Ok(());
        }
        match to {
            Side::Coordinator => self.coordinator_hears(connection, &host, message),
            Side::Host => self.host_hears(connection, &host, message),
        }
    }

    fn broken(&mut self, connection: ConnectionId, side: Side) -> Result<(), Violation> {
        let Some(host) = self.network.connections.get(&connection).map(|c| c.host.clone()) else { return Ok(()) };
        if !self.network.close(connection, side) {
            return Ok(());
        }
        let ms = self.rng.i64(1..IDLE_MS);
        self.after(ms, Event::Broken { connection, side: side.other() });
        match side {
            Side::Coordinator => {
                let newest = self.coordinator.live.as_ref().and_then(|live| live.sessions.get(&host).copied());
                if newest == Some(connection) {
                    if let Some(live) = &mut self.coordinator.live {
                        live.sessions.remove(&host);
                    }
                    self.coordinator_event(FleetEvent::HostDisconnected { host })?;
                }
            }
            Side::Host => {
                let agent = self.host(&host).agent.as_mut();
                if let Some(agent) = agent
                    && agent.session.as_ref().is_some_and(|session| session.id == connection)
                {
                    agent.session = None;
                    let ms = self.rng.i64(100..3_000);
                    self.after(ms, Event::Dial { host });
                }
            }
        }
        Ok(())
    }

    fn dial(&mut self, host: &HostName) -> Result<(), Violation> {
        if self.host(host).agent.as_ref().is_none_or(|agent| agent.session.is_some()) {
            return Ok(());
        }
        if self.coordinator.live.is_none() || self.network.is_partitioned(host, self.now) {
            let ms = self.rng.i64(500..5_000);
            self.after(ms, Event::Dial { host: host.clone() });
            return Ok(());
        }
        let connection = self.network.connect(host.clone());
        self.send(connection, Side::Coordinator, Message::Hello);
        // Without an answer the agent dials again.
        let (host, ms) = (host.clone(), self.rng.i64(10_000..15_000));
        self.after(ms, Event::Dial { host });
        Ok(())
    }

    fn coordinator_hears(
        &mut self,
        connection: ConnectionId,
        host: &HostName,
        message: Message,
    ) -> Result<(), Violation> {
        match message {
            Message::Hello => {
                let view = HostView {
                    address: "h".to_owned(),
                    state_dir: "d".to_owned(),
                    labels: BTreeMap::new(),
                    facts: None,
                };
                // The session is there before what follows from the event is done.
                let sessions = self.coordinator.live.as_mut().map(|live| &mut live.sessions);
                let older = sessions.and_then(|sessions| sessions.insert(host.clone(), connection));
                let older = older.filter(|older| *older != connection);
                let connected = FleetEvent::HostConnected { host: host.clone(), view, claimed: true };
                let refused = self.coordinator_event(connected)?;
                if refused.is_some() || self.coordinator.live.is_none() {
                    return Ok(());
                }
                if let Some(older) = older {
                    self.after(20_000, Event::Broken { connection: older, side: Side::Coordinator });
                }
                self.send(connection, Side::Host, Message::Welcome);
                self.send_missed(host)?;
            }
            Message::Report { number, server, key, report } => {
                let instance = InstanceId::new(server, host.clone());
                let before = self.coordinator.live.as_ref().map(|live| live.fleet.clone());
                let (deployment, attempt, of) = (key.deployment, key.attempt, instance.clone());
                let event = DeploymentEvent::StepReported { instance, attempt, report };
                let event = FleetEvent::Deployment { deployment: deployment.clone(), event };
                if self.coordinator_event(event)?.is_none() {
                    check::attempt(before.as_ref(), &deployment, &of, attempt)?;
                }
                // An acknowledgement says that it is durable; without one the host tells it again.
                if self.coordinator.live.is_some() {
                    self.send(connection, Side::Host, Message::Heard { number });
                }
            }
            Message::Refused { command, failure } => {
                let Command { server, key, order, .. } = *command;
                let instance = InstanceId::new(server, host.clone());
                let order = OrderName::from(&order);
                let event = DeploymentEvent::OrderRefused { instance, attempt: key.attempt, order, failure };
                self.coordinator_event(FleetEvent::Deployment { deployment: key.deployment, event })?;
            }
            Message::Health { server, release, report } => {
                let instance = InstanceId::new(server, host.clone());
                self.coordinator_event(FleetEvent::HealthReported { instance, release, report, output: Vec::new() })?;
            }
            Message::Stale(generation) => {
                let present = self.coordinator.live.as_ref().map(|live| live.fleet.generation());
                if present.is_none_or(|present| present <= generation) {
                    return Err(Violation::new(
                        "generations only rise",
                        format!("{host} knows more than {generation}"),
                    ));
                }
                self.send_missed(host)?;
            }
            Message::Welcome | Message::Command(_) | Message::Intent { .. } | Message::Heard { .. } => {}
        }
        Ok(())
    }

    fn send_missed(&mut self, host: &HostName) -> Result<(), Violation> {
        self.announce_to(host, None);
        let live = self.coordinator.live.iter();
        let missed: Vec<(DeploymentId, InstanceId, u32, Order)> = live
            .flat_map(|live| live.fleet.outstanding(host))
            .map(|(deployment, id, attempt, order)| (deployment.id().clone(), id.clone(), attempt, order))
            .collect();
        for (deployment, instance, attempt, order) in missed {
            self.order(&deployment, &instance, attempt, &order, false)?;
        }
        Ok(())
    }

    // Hosts.

    pub(super) fn host(&mut self, name: &HostName) -> &mut Host {
        self.hosts.get_mut(name).expect("host")
    }

    fn host_up(&mut self, name: &HostName) -> Result<(), Violation> {
        if self.host(name).agent.is_some() {
            return Ok(());
        }
        self.say(|| format!("{name} starts"));
        self.checks.deadlines_moved(name, self.now);
        let mut rng = self.rng.fork();
        let led = self.host(name).start(&mut rng);
        self.after(10, Event::Dial { host: name.clone() });
        self.led(name, led, None)
    }

    fn host_hears(&mut self, connection: ConnectionId, name: &HostName, message: Message) -> Result<(), Violation> {
        match message {
            Message::Welcome => {
                let host = self.host(name);
                let known = host.agent.as_ref().and_then(|agent| agent.session.as_ref()).map(|session| session.id);
                if host.agent.is_some() && known.is_none_or(|known| known < connection) {
                    host.connected(connection);
                    self.tell(name);
                }
            }
            Message::Heard { number } => {
                let host = self.host(name);
                host.disk.outbox.remove(&number);
                if let Some(session) = host.agent.as_mut().and_then(|agent| agent.session.as_mut()) {
                    session.telling.take_if(|telling| *telling == number);
                }
                self.tell(name);
            }
            Message::Command(command) => {
                let (now, mut rng) = (self.now, self.rng.fork());
                let host = self.host(name);
                let session = host.agent.as_ref().and_then(|agent| agent.session.as_ref());
                // A command over a connection that is older than the newest still counts; it is just older.
                let over = session.map_or(0, |session| session.count - u64::from(session.id != connection));
                let switch = host.switch(&command.server);
                let led = host.command(*command, over, now, &mut rng);
                let refusals: Vec<Message> = led.send.clone();
                self.led(name, led, switch)?;
                for refusal in refusals {
                    self.send(connection, Side::Coordinator, refusal);
                }
            }
            Message::Intent { intent, ended, generation } => {
                let now = self.now;
                let host = self.hosts.get_mut(name).expect("host");
                if host.hear(&intent, ended, generation, now) {
                    self.send(connection, Side::Coordinator, Message::Stale(generation));
                } else if ended {
                    self.checks.spent(host, &intent, now)?;
                }
            }
            Message::Hello
            | Message::Refused { .. }
            | Message::Stale(_)
            | Message::Report { .. }
            | Message::Health { .. } => {}
        }
        Ok(())
    }

    /// Tells the oldest report, one at a time; one that needs a newer connection has it made first.
    fn tell(&mut self, name: &HostName) {
        let host = self.host(name);
        let Some(agent) = &mut host.agent else { return };
        let (run, Some(session)) = (agent.run, agent.session.as_mut()) else { return };
        if session.telling.is_some() {
            return;
        }
        let Some((number, outgoing)) = host.disk.outbox.first_key_value() else { return };
        if outgoing.not_over.is_some_and(|(of, count)| of == run && session.count <= count) {
            agent.session = None;
            self.after(5, Event::Dial { host: name.clone() });
            return;
        }
        session.telling = Some(*number);
        let message = Message::Report {
            number: *number,
            server: outgoing.server.clone(),
            key: outgoing.key.clone(),
            report: outgoing.report.clone(),
        };
        let connection = session.id;
        self.send(connection, Side::Coordinator, message);
    }

    fn all_led(&mut self, host: &HostName, all: Vec<(Led, Option<Switch>)>) -> Result<(), Violation> {
        for (led, switch) in all {
            self.led(host, led, switch)?;
        }
        self.arm_host(host);
        Ok(())
    }

    /// What an event on a host has led to: checked, and then begun and told.
    fn led(&mut self, name: &HostName, led: Led, switch: Option<Switch>) -> Result<(), Violation> {
        if let Some(stamp) = &led.obeyed {
            self.checks.obeyed(name, stamp)?;
        }
        let clock = self.hosts[name].clock(self.now);
        for (server, event) in &led.applied {
            let shown = if self.trace {
                format!("{event:?}")
            } else {
                <&'static str>::from(InstanceEventDiscriminants::from(event)).to_owned()
            };
            self.say(|| format!("{server}@{name}: {}", shown.chars().take(160).collect::<String>()));
            self.checks.applied(name, server, event, switch.as_ref(), clock)?;
        }
        let run = self.hosts[name].agent.as_ref().map_or(0, |agent| agent.run);
        for begun in led.begun {
            let work =
                Event::Work { host: name.clone(), run, server: begun.server, work: begun.work, task: begun.task };
            self.after(begun.after_ms, work);
        }
        self.arm_host(name);
        self.tell(name);
        Ok(())
    }

    pub(super) fn arm_host(&mut self, name: &HostName) {
        if let Some(at) = self.hosts[name].deadline() {
            // A timer fires late, never early.
            let late = self.rng.i64(0..TIMER_LATE_MS);
            self.at(at.max(self.now) + late, Event::HostTimer { host: name.clone() });
        }
    }

    pub(super) fn health(&mut self, instance: &InstanceId, status: HealthStatus) -> Result<(), Violation> {
        let host = self.hosts.get(&instance.host).expect("host");
        let Some(agent) = &host.agent else { return Ok(()) };
        let (Some(session), Some(release)) =
            (&agent.session, agent.instances.get(&instance.server).and_then(|instance| instance.current().cloned()))
        else {
            return Ok(());
        };
        let report = HealthReport { status, ..HealthReport::default() };
        let message = Message::Health { server: instance.server.clone(), release, report };
        let connection = session.id;
        self.send(connection, Side::Coordinator, message);
        Ok(())
    }
}
