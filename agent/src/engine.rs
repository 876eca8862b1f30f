//! The agent's engine: one task that owns the instances and the journal.
//!
//! Commands, outcomes of work, observations and timers come in over one bounded channel. An event is made
//! durable, together with the reports it leads to, before anything is done about it.

mod gate;
mod look;
mod room;
mod sealed;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fleetwright_deploy::admission::{Admission, Admitted, NotAdmitted, Signed, Stamp};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::ids::{ReleaseId, ServerName};
use fleetwright_deploy::instance::{
    Instance, InstanceAction, InstanceEvent, InstanceState, StepKey, StepReport, SwitchSpec,
};
use fleetwright_deploy::release::Release;
use fleetwright_deploy::room::Room;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::command::{CommandBody, CommandReply, StepOrder, VerifiedCommand};
use fleetwright_protocol::report::AgentMessageV1;
use fleetwright_protocol::{Clock, Envelope, Verifier};
use tokio::sync::{mpsc, oneshot, watch as value};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::gate::Gate;
use self::room::Disk;
use crate::journal::{Commit, ConnectionSerial, Journal, JournalError, Outgoing};
use crate::machine::{Machine, Observation};

/// How many inputs may wait; whoever has more waits too.
const INPUTS_MAX: usize = 256;
/// Lines of a server's output that travel with a failure or a change of health.
const OUTPUT_LINES: usize = 20;
/// The least pause between two starts of something that nothing keeps running.
const START_AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// What comes in.
pub(crate) enum Input {
    /// A command, and the connection it came over.
    Command { envelope: Box<Envelope>, over: ConnectionSerial, reply: oneshot::Sender<CommandReply> },
    /// Work on an instance ended.
    Performed { server: ServerName, event: InstanceEvent },
    /// Work that is no part of the instance's state ended.
    Report { server: ServerName, key: StepKey, report: StepReport },
    /// What is to run was made to run, outside of any step.
    Ran(ServerName),
    /// What has made a release that is not wanted has ended.
    Discard { server: ServerName, release: ReleaseId },
    /// Somebody wants to know whether the engine still works.
    Alive(oneshot::Sender<()>),
    /// A report was acknowledged.
    Told(i64),
    /// A new connection is up: everything worth knowing must be told again.
    Connected(ConnectionSerial),
    /// How much room there is on the disk.
    Room(Option<Room>),
}

/// What the session needs from the engine.
pub(crate) struct Handle {
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Reports that wait for an acknowledgement, the oldest first.
    pub(crate) outbox: value::Receiver<Arc<Vec<Outgoing>>>,
    /// The health of every server, to be told when it changes.
    pub(crate) health: value::Receiver<Arc<BTreeMap<ServerName, AgentMessageV1>>>,
    /// The servers that are watched.
    pub(crate) watched: value::Receiver<Arc<BTreeSet<ServerName>>>,
    /// Counts how often commands were left for later and may be sent again now.
    pub(crate) again: value::Receiver<u64>,
}

/// Work under way on an instance.
struct UnderWay {
    task: JoinHandle<()>,
    /// Whether it makes run what is to run: only what runs something else may cut it off.
    runs: bool,
}

pub(crate) struct Engine {
    machine: Arc<dyn Machine>,
    /// Judges what others have dated.
    clock: Clock,
    /// Judges how long something has taken.
    steady: Clock,
    verifier: Verifier,
    journal: Journal,
    admission: Admission,
    instances: BTreeMap<ServerName, Instance>,
    /// The one piece of work under way on each instance.
    work: BTreeMap<ServerName, UnderWay>,
    watchers: BTreeMap<ServerName, JoinHandle<()>>,
    gates: BTreeMap<ServerName, Gate>,
    /// The connection that was newest when an instance was switched: confirmation must come over a newer one.
    switched_over: BTreeMap<ServerName, ConnectionSerial>,
    newest_connection: Option<ConnectionSerial>,
    told: BTreeMap<ServerName, HealthReport>,
    /// When something was started again because nothing kept it running.
    started_again: BTreeMap<ServerName, Instant>,
    inputs: mpsc::Sender<Input>,
    input: mpsc::Receiver<Input>,
    observations: mpsc::Sender<Observation>,
    observation: mpsc::Receiver<Observation>,
    outbox: value::Sender<Arc<Vec<Outgoing>>>,
    health: value::Sender<Arc<BTreeMap<ServerName, AgentMessageV1>>>,
    watched: value::Sender<Arc<BTreeSet<ServerName>>>,
    again: value::Sender<u64>,
    disk: Disk,
}

impl Engine {
    /// The engine over what the journal holds.
    pub(crate) fn open(
        journal: Journal,
        machine: Arc<dyn Machine>,
        verifier: Verifier,
        clock: Clock,
        steady: Clock,
    ) -> Result<(Self, Handle), JournalError> {
        let instances = journal.instances()?;
        let (inputs, input) = mpsc::channel(INPUTS_MAX);
        let (observations, observation) = mpsc::channel(INPUTS_MAX);
        let (outbox, outbox_out) = value::channel(Arc::new(journal.outbox()?));
        let (health, health_out) = value::channel(Arc::default());
        let (watched, watched_out) = value::channel(Arc::default());
        let (again, again_out) = value::channel(0);
        let handle = Handle {
            inputs: inputs.clone(),
            outbox: outbox_out,
            health: health_out,
            watched: watched_out,
            again: again_out,
        };
        let runs = |server: &ServerName| instances.get(server).and_then(|instance| instance.current().cloned());
        let disk = Disk::of_before(machine.remembered().unwrap_or_default(), runs);
        let engine = Self {
            machine,
            clock,
            steady,
            verifier,
            admission: journal.admission()?,
            journal,
            instances,
            work: BTreeMap::new(),
            watchers: BTreeMap::new(),
            gates: BTreeMap::new(),
            switched_over: BTreeMap::new(),
            newest_connection: None,
            told: BTreeMap::new(),
            started_again: BTreeMap::new(),
            inputs,
            input,
            observations,
            observation,
            outbox,
            health,
            watched,
            again,
            disk,
        };
        Ok((engine, handle))
    }

    /// Goes on where the last run of the agent ended, and then works until the journal fails. That the disk is full is no
    /// failure: it waits for room.
    pub(crate) async fn run(mut self) -> Result<()> {
        self.resume().await;
        loop {
            let (deadline, look) = (self.next_deadline(), self.disk.next_look());
            tokio::select! {
                Some(input) = self.input.recv() => self.take(input).await?,
                Some(seen) = self.observation.recv() => self.observe(seen).await?,
                () = tokio::time::sleep(deadline.unwrap_or(Duration::from_secs(3600))) => self.deadlines_passed().await?,
                () = tokio::time::sleep_until(look) => self.look_at_disk().await?,
            }
        }
    }

    /// What should run is started, unless a step is about to decide that; steps under way go on.
    async fn resume(&mut self) {
        self.hold_again().await;
        let servers: Vec<ServerName> = self.instances.keys().cloned().collect();
        for server in servers {
            let instance = &self.instances[&server];
            let actions: Vec<InstanceAction> = instance.resume();
            if matches!(instance.state(), InstanceState::Idle) {
                self.machine.confirmed(&server);
            }
            // A run that was cut off after it was decided is made good.
            let current = instance.current().cloned();
            if matches!(instance.state(), InstanceState::Idle) && self.machine.current(&server) != current {
                self.start_run(&server, current).await;
            } else if current.is_some() && !self.disk.is_held(&server) && !redo_touches_process(&actions) {
                self.start_current(&server);
            }
            tracing::info!(%server, "resumed");
            let actions = actions.into_iter().filter(|action| !matches!(action, InstanceAction::Report { .. }));
            self.perform(&server, actions.collect()).await;
        }
    }

    async fn take(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Command { envelope, over, reply } => self.take_command(&envelope, over, reply).await?,
            Input::Performed { server, event } => self.apply(&server, event, self.steady.now()).await?,
            Input::Report { server, key, report } => {
                let commit = Commit { reports: vec![self.outgoing(&server, &key, report)], ..Commit::default() };
                match self.commit(&commit, self.steady.now()) {
                    Err(error) if error.is_full() => {
                        self.stall(&error);
                        self.disk.wait_to_tell(&commit.reports);
                    }
                    other => other?,
                }
            }
            Input::Room(room) => self.take_room(room).await?,
            Input::Ran(server) => self.watch_current(&server),
            Input::Discard { server, release } => self.discard(&server, &release),
            Input::Alive(reply) => drop(reply.send(())),
            Input::Told(number) => {
                match self.journal.told(number) {
                    // It is told again after a restart at most, and forgotten with the next.
                    Err(error) if error.is_full() => {}
                    other => other?,
                }
                self.publish_outbox()?;
            }
            Input::Connected(serial) => {
                self.newest_connection = Some(serial);
                self.told.clear();
            }
        }
        Ok(())
    }

    /// Verifies a command, obeys it, and answers. A coordinator that went away asks again.
    async fn take_command(
        &mut self,
        envelope: &Envelope,
        over: ConnectionSerial,
        reply: oneshot::Sender<CommandReply>,
    ) -> Result<()> {
        let now = self.steady.now();
        let refuse = |message: String| {
            let failure = Failure::new(FailureKind::PermissionError, "command", message);
            CommandReply::Refused(
                failure.hint("if nobody is attacking, compare the clocks and the keys of host and coordinator"),
            )
        };
        let answer = match self.verifier.open(envelope, self.clock.now()) {
            Err(rejection) => refuse(rejection.to_string()),
            Ok(VerifiedCommand { command, .. }) if self.admission.admit_reading(command.generation).is_err() => {
                CommandReply::Stale
            }
            Ok(VerifiedCommand { command, intent }) => match (command.body, intent) {
                (CommandBody::Step { deployment, server, attempt, order, .. }, Some(intent)) => {
                    let (id, generation) = (command.id, command.generation);
                    let (asks, intent) = (order.asks(), intent.signed());
                    let stamp = Stamp { id, generation, server: server.clone(), asks, intent };
                    match self.command(server, StepKey { deployment, attempt }, order, stamp, over, now).await? {
                        Some(answer) => answer,
                        // Without an answer the coordinator sends it again over the next connection.
                        None => return Ok(()),
                    }
                }
                (CommandBody::Intent { ended, .. }, Some(intent)) => match self.hear(intent.signed(), ended, now)? {
                    Some(answer) => answer,
                    None => return Ok(()),
                },
                (CommandBody::Step { .. } | CommandBody::Intent { .. }, None) => {
                    refuse("it comes without the operator's intent".to_owned())
                }
                (reading, _) => {
                    self.look(reading, reply);
                    return Ok(());
                }
            },
        };
        match &answer {
            CommandReply::Refused(failure) => tracing::warn!(%failure, "command refused"),
            CommandReply::Stale => tracing::warn!("command refused: this host has seen a later generation"),
            _ => {}
        }
        let _ = reply.send(answer);
        Ok(())
    }

    /// Checks what needs memory, and obeys a command at most once. No answer when there is no room to obey it now.
    async fn command(
        &mut self,
        server: ServerName,
        key: StepKey,
        order: StepOrder,
        obeyed: Stamp,
        over: ConnectionSerial,
        now: Timestamp,
    ) -> Result<Option<CommandReply>> {
        match self.admission.admit(&obeyed, self.clock.now()) {
            Ok(Admitted::New) => {}
            Ok(Admitted::Again) => return Ok(Some(CommandReply::Duplicate)),
            Err(NotAdmitted::Older { .. }) => return Ok(Some(CommandReply::Stale)),
            Err(why) => {
                let failure = not_admitted(&why).at(&self.verifier.host, &server);
                return Ok(Some(CommandReply::Refused(failure)));
            }
        }
        // What undoes something may be what makes room.
        if self.disk.waits(&server) || (self.disk.is_full() && !matches!(order, StepOrder::Restore { .. })) {
            return Ok(None);
        }
        let event = match self.event_of(&server, key.clone(), order, over, now) {
            Ok(Some(event)) => event,
            // Testing and cleaning are not remembered: after a crash they must be asked for again, and doing
            // them twice does no harm.
            Ok(None) => return Ok(Some(CommandReply::Accepted)),
            Err(failure) => return Ok(Some(CommandReply::Refused(failure))),
        };
        match self.try_apply_with_room(&server, &event, Some(obeyed), now).await {
            Ok(()) => Ok(Some(CommandReply::Accepted)),
            Err(error) if error.is_full() => {
                self.stall(&error);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes note of an operator's intent: that it is followed from now on, or that its deployment has ended. Nothing
    /// while the disk is full: the coordinator says it again.
    fn hear(&mut self, intent: Signed, ended: bool, now: Timestamp) -> Result<Option<CommandReply>> {
        match self.admission.hear(&intent, ended, self.clock.now()) {
            Ok(false) => Ok(Some(CommandReply::Duplicate)),
            Ok(true) => {
                let word = if ended { "ended" } else { "begun" };
                tracing::info!(deployment = %intent.deployment, generation = %intent.generation, "intent {word}");
                match self.commit(&Commit { heard: Some((intent, ended)), ..Commit::default() }, now) {
                    Ok(()) => Ok(Some(CommandReply::Accepted)),
                    Err(error) if error.is_full() => {
                        self.stall(&error);
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Err(why) => Ok(Some(CommandReply::Refused(not_admitted(&why)))),
        }
    }

    /// Whether an event of a command fits its instance now.
    fn check(&self, server: &ServerName, event: InstanceEvent, now: Timestamp) -> Result<InstanceEvent, Failure> {
        let known = self.instances.get(server).cloned();
        let mut instance = known.unwrap_or_else(|| Instance::new(server.clone()));
        match instance.apply(event.clone(), now) {
            Ok(_) => Ok(event),
            Err(illegal) => Err(Failure::from(illegal).at(&self.verifier.host, server)),
        }
    }

    /// The event that an order is for its instance; nothing for orders that are no part of its state.
    fn event_of(
        &mut self,
        server: &ServerName,
        key: StepKey,
        order: StepOrder,
        over: ConnectionSerial,
        now: Timestamp,
    ) -> Result<Option<InstanceEvent>, Failure> {
        let event = match order {
            StepOrder::Stage { release, .. } => {
                sealed::refuse_secrets(&release).map_err(|failure| failure.at(&self.verifier.host, server))?;
                let id = ReleaseId::of(&release);
                let event = self.check(server, InstanceEvent::StageRequested { key, release: id.clone() }, now)?;
                self.machine.receive(server, &id, &release, &BTreeMap::new())?;
                event
            }
            StepOrder::StageSealed { release, secrets } => {
                let values = sealed::open(&release, &secrets);
                let values = values.map_err(|failure| failure.at(&self.verifier.host, server))?;
                let id = ReleaseId::of(&release);
                let event = self.check(server, InstanceEvent::StageRequested { key, release: id.clone() }, now)?;
                self.machine.receive(server, &id, &release, &values)?;
                event
            }
            StepOrder::Switch { target, confirm_within, healthy_deadline, min_healthy_time } => {
                let dead_man = confirm_within.map(|within| now.after(within));
                InstanceEvent::SwitchRequested {
                    key,
                    spec: SwitchSpec { target, dead_man, healthy_deadline, min_healthy_time },
                }
            }
            StepOrder::Confirm => {
                if self.switched_over.get(server).is_some_and(|then| then.run == over.run && over.count <= then.count) {
                    let message = "a confirmation counts only over a connection made after the switch";
                    return Err(Failure::new(FailureKind::PermissionError, "command", message));
                }
                InstanceEvent::ConfirmRequested { key }
            }
            StepOrder::Restore { drain } => InstanceEvent::RestoreRequested { key, drain },
            StepOrder::Resolve => InstanceEvent::ResolveRequested { key },
            StepOrder::Test => {
                self.start_test(server, key);
                return Ok(None);
            }
            StepOrder::Clean => {
                self.start_cleaning(server, key);
                return Ok(None);
            }
        };
        self.check(server, event, now).map(Some)
    }

    /// Applies an event that is no command's. It waits while there is no room for it.
    async fn apply(&mut self, server: &ServerName, event: InstanceEvent, now: Timestamp) -> Result<()> {
        if self.disk.waits(server) {
            self.disk.wait(server, event);
            return Ok(());
        }
        match self.try_apply_with_room(server, &event, None, now).await {
            Err(error) if error.is_full() => {
                self.stall(&error);
                self.disk.wait(server, event);
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Applies an event; when there is no room for it, makes room, and tries once more.
    async fn try_apply_with_room(
        &mut self,
        server: &ServerName,
        event: &InstanceEvent,
        command: Option<Stamp>,
        now: Timestamp,
    ) -> Result<(), JournalError> {
        match self.try_apply(server, event, command.clone(), now).await {
            Err(error) if error.is_full() => {
                self.make_room(None).await;
                let tried = self.try_apply(server, event, command.clone(), now).await;
                let undoes = matches!(event, InstanceEvent::RestoreRequested { .. });
                if undoes && tried.as_ref().is_err_and(JournalError::is_full) {
                    // Somebody undoes what may be what fills the disk, known or not.
                    self.machine.give_up_reserve();
                    return self.try_apply(server, event, command, now).await;
                }
                tried
            }
            other => other,
        }
    }

    /// Applies an event: state, journal, outbox, then actions. What cannot be made durable leaves the state as it was.
    /// An event that no longer fits is dropped: it is the outcome of work that something else has overtaken.
    async fn try_apply(
        &mut self,
        server: &ServerName,
        event: &InstanceEvent,
        command: Option<Stamp>,
        now: Timestamp,
    ) -> Result<(), JournalError> {
        let known = self.instances.get(server).cloned();
        let mut instance = known.unwrap_or_else(|| Instance::new(server.clone()));
        let actions = match instance.apply(event.clone(), now) {
            Ok(actions) => actions,
            Err(illegal) => {
                tracing::debug!(%server, %illegal, "dropped");
                return Ok(());
            }
        };
        let mut reports = Vec::new();
        let mut rest = Vec::new();
        for action in actions {
            match action {
                InstanceAction::Report { key, report } => reports.push(self.outgoing(server, &key, report)),
                other => rest.push(other),
            }
        }
        let commit = Commit { event: Some((server.clone(), event.clone())), command, reports, ..Commit::default() };
        self.commit(&commit, now)?;
        tracing::info!(%server, event = event_name(event), "applied");
        self.instances.insert(server.clone(), instance);
        self.disk.not_done_ahead(server, &mut rest);
        self.perform(server, rest).await;
        if matches!(event, InstanceEvent::RestoreSucceeded { .. }) {
            self.watch_current(server);
        }
        if matches!(event, InstanceEvent::ConfirmRequested { .. }) {
            self.machine.confirmed(server);
            // Only now does the coordinator take the health of this release for that of the instance.
            self.told.remove(server);
        }
        Ok(())
    }

    fn commit(&mut self, commit: &Commit, now: Timestamp) -> Result<(), JournalError> {
        self.journal.commit(commit, now)?;
        if let Some(stamp) = &commit.command {
            self.admission.obey(stamp.clone(), now);
        }
        if let Some((intent, ended)) = &commit.heard {
            self.admission.follow(intent, *ended, now);
        }
        if !commit.reports.is_empty() {
            self.publish_outbox()?;
        }
        Ok(())
    }

    fn publish_outbox(&mut self) -> Result<(), JournalError> {
        self.outbox.send_replace(Arc::new(self.journal.outbox()?));
        Ok(())
    }

    /// A report for the coordinator. That a switch is verified is told over a connection made after it.
    fn outgoing(&self, server: &ServerName, key: &StepKey, report: StepReport) -> Outgoing {
        let place = |failure: Failure| failure.at(&self.verifier.host, server);
        let not_over = matches!(report, StepReport::Verified).then_some(self.newest_connection).flatten();
        let report = match report {
            StepReport::Failed(failure) => StepReport::Failed(place(failure)),
            StepReport::Stuck(failure) => StepReport::Stuck(place(failure)),
            StepReport::TestFailed(failure) => StepReport::TestFailed(place(failure)),
            other => other,
        };
        let (deployment, attempt) = (key.deployment.clone(), key.attempt);
        let message = AgentMessageV1::Step { deployment, server: server.clone(), attempt, report };
        Outgoing { number: 0, message: message.bounded(), not_over }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let now = self.steady.now();
        let open = self.instances.values().filter(|instance| !self.disk.has_passed(instance.server()));
        let earliest = open.filter_map(|instance| Some(instance.deadline()?.0)).min()?;
        Some(earliest.since(now).into())
    }

    async fn deadlines_passed(&mut self) -> Result<()> {
        let now = self.steady.now();
        let due = |instance: &&Instance| {
            instance.deadline().is_some_and(|(at, _)| at <= now) && !self.disk.has_passed(instance.server())
        };
        let servers: Vec<ServerName> = self.instances.values().filter(due).map(|i| i.server().clone()).collect();
        for server in servers {
            tracing::warn!(%server, "not confirmed in time: the host puts itself back");
            self.apply(&server, InstanceEvent::DeadlinePassed, now).await?;
            if self.disk.has_passed(&server) {
                self.put_back_ahead(&server, now).await;
            }
        }
        Ok(())
    }

    /// Takes in what a watcher saw: it may decide a step, start a supervisor again, or be worth telling.
    async fn observe(&mut self, mut seen: Observation) -> Result<()> {
        let server = seen.server.clone();
        self.disk.mark(&mut seen);
        let Some(instance) = self.instances.get(&server).filter(|instance| instance.current() == Some(&seen.release))
        else {
            return Ok(());
        };
        let gate = self.gates.entry(server.clone()).or_default();
        let output = || self.machine.output_of_this_run(&server, OUTPUT_LINES);
        let decided =
            if self.disk.waits(&server) { None } else { gate.decide(instance, &seen, self.steady.now(), output) };
        if let Some(event) = decided {
            self.apply(&server, event, self.steady.now()).await?;
        } else if seen.unsupervised
            && !self.disk.is_held(&server)
            && matches!(instance.state(), InstanceState::Idle)
            && self.work.get(&server).is_none_or(|work| work.task.is_finished())
            && self.started_again.get(&server).is_none_or(|then| then.elapsed() > START_AGAIN_PAUSE)
        {
            self.started_again.insert(server.clone(), Instant::now());
            tracing::warn!(%server, "nothing keeps it running; starting it again");
            self.start_current(&server);
        }
        self.publish_health(&seen);
        Ok(())
    }

    /// Changes are told; that everything is as it was is not.
    fn publish_health(&mut self, seen: &Observation) {
        if self.told.get(&seen.server).is_some_and(|told| !gate::worth_telling(told, &seen.report)) {
            return;
        }
        let output = if seen.report.status.is_available() {
            Vec::new()
        } else {
            self.machine.output_of_this_run(&seen.server, OUTPUT_LINES)
        };
        let message = AgentMessageV1::Condition {
            server: seen.server.clone(),
            release: seen.release.clone(),
            report: seen.report.clone(),
            output,
        };
        self.told.insert(seen.server.clone(), seen.report.clone());
        self.health.send_modify(|health| {
            Arc::make_mut(health).insert(seen.server.clone(), message.bounded());
        });
    }

    /// The release that an instance runs now.
    fn running(&self, server: &ServerName) -> Option<Release> {
        self.machine.release(server, self.instances.get(server)?.current()?)
    }

    /// Watches the current release of a server, and nothing else of it.
    fn watch_current(&mut self, server: &ServerName) {
        self.unwatch(server);
        let Some(id) = self.instances.get(server).and_then(|instance| instance.current().cloned()) else { return };
        let Some(release) = self.running(server) else { return };
        let task = self.machine.watch(server, &id, release, self.observations.clone());
        self.watchers.insert(server.clone(), tokio::spawn(task));
        self.publish_watched();
    }

    fn publish_watched(&self) {
        let watched: BTreeSet<ServerName> = self.watchers.keys().cloned().collect();
        self.watched.send_if_modified(|told| {
            let changed = **told != watched;
            *told = Arc::new(watched);
            changed
        });
    }

    fn unwatch(&mut self, server: &ServerName) {
        if let Some(watcher) = self.watchers.remove(server) {
            watcher.abort();
            self.publish_watched();
        }
        self.gates.remove(server);
        self.told.remove(server);
    }
}

/// Whether going on with these actions starts or stops the server anyway.
fn redo_touches_process(actions: &[InstanceAction]) -> bool {
    actions.iter().any(|action| matches!(action, InstanceAction::Switch(_) | InstanceAction::Restore { .. }))
}

fn not_admitted(why: &NotAdmitted) -> Failure {
    let failure = Failure::new(FailureKind::PermissionError, "command", why.to_string());
    match why {
        NotAdmitted::NotBegun { .. } => {
            failure.hint("deploy again, or roll back again: the operator's intent is too old")
        }
        NotAdmitted::Spent { .. } => {
            failure.hint("what has ended is undone only by a rollback that is signed anew: `fleetwright rollback`")
        }
        NotAdmitted::Older { .. } | NotAdmitted::OlderIntent { .. } | NotAdmitted::OnlyUndone { .. } => failure,
    }
}

fn event_name(event: &InstanceEvent) -> &'static str {
    fleetwright_deploy::instance::InstanceEventDiscriminants::from(event).into()
}

#[cfg(test)]
mod tests;
