//! Going on when the disk is full. What happens meanwhile waits in memory until it can be made durable; commands are
//! left for later; a deadline that has passed counts all the same. The server that fills the disk is stopped first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::Result;
use fleetwright_deploy::health::{CheckOutcome, CheckReport, HealthStatus, Severity};
use fleetwright_deploy::ids::{ReleaseId, ServerName};
use fleetwright_deploy::instance::{InstanceAction, InstanceEvent, InstanceState};
use fleetwright_deploy::limits::sizes;
use fleetwright_deploy::room::{Held, Offender, Remembered, Room};
use fleetwright_deploy::time::Timestamp;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{Engine, Input};
use crate::journal::{Commit, JournalError, Outgoing};
use crate::machine::Observation;

/// How often the disk is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked at while it is full, or while a server is stopped because it was.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// How long the engine itself waits for a look at what servers use, and for a server to stop: deadlines wait meanwhile.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a look that takes longer is waited for before a part of the reserve is given up without it.
const LOOK_PATIENCE: Duration = Duration::from_secs(120);
/// After a look, it is this many times as long until the next one: servers may have millions of files.
const LOOK_PART: u32 = 4;
const HALT_TIMEOUT: Duration = Duration::from_secs(15);

/// What the engine knows of its disk.
#[derive(Default)]
pub(super) struct Disk {
    looked: Option<Instant>,
    /// How it was when there was room last; where nobody knows, how it was when it was looked at first.
    before: Option<Room>,
    /// The look that the latter is from: it says nothing of who grows.
    first_look: Option<Instant>,
    /// What was written down of all this last.
    written: Remembered,
    /// Since when it is being looked at, which may take long where servers have many files.
    looking: Option<Instant>,
    /// What was found last, when, and how long that took.
    found: Option<(Room, Instant, Duration)>,
    /// Whether nothing can be made durable.
    full: bool,
    /// The servers that are stopped until there is room, and why.
    held: BTreeMap<ServerName, String>,
    /// Those of them that were found to fill the disk with the state.
    fillers: BTreeSet<ServerName>,
    /// Those of them that are still to be stopped.
    running: BTreeSet<ServerName>,
    /// The servers that take more than they are to, in words.
    over: BTreeMap<ServerName, String>,
    /// What cannot be measured of servers that are to take no more than so much, in words.
    unmeasured: BTreeMap<ServerName, String>,
    /// What happened and could not be made durable, in order.
    waiting: BTreeMap<ServerName, VecDeque<InstanceEvent>>,
    reports: Vec<Outgoing>,
    /// Servers that are being put back although their deadline is not in the journal yet.
    ahead: BTreeSet<ServerName>,
}

impl Disk {
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether something of a server waits to be made durable: whatever follows waits behind it.
    pub(super) fn waits(&self, server: &ServerName) -> bool {
        self.waiting.contains_key(server)
    }

    /// Whether the passing of its deadline is among that.
    pub(super) fn has_passed(&self, server: &ServerName) -> bool {
        self.waiting.get(server).is_some_and(|events| events.contains(&InstanceEvent::DeadlinePassed))
    }

    /// What was known before the agent was started again, of servers that run this.
    pub(super) fn of_before(remembered: Remembered, runs: impl Fn(&ServerName) -> Option<ReleaseId>) -> Self {
        let still = remembered.held.iter().filter(|(server, held)| runs(server) == held.release);
        let held = still.map(|(server, held)| (server.clone(), held.reason.clone())).collect();
        Self { before: remembered.before.clone(), held, written: remembered, ..Self::default() }
    }

    /// Takes a look as what the next ones are compared with, where there is no other; whether it is that one.
    fn is_first(&mut self, room: &Room) -> bool {
        let look = self.found.as_ref().map(|(_, at, _)| *at);
        if self.before.is_none() {
            (self.before, self.first_look) = (Some(room.clone()), look);
        }
        self.first_look.is_some() && self.first_look == look
    }

    pub(super) fn is_held(&self, server: &ServerName) -> bool {
        self.held.contains_key(server)
    }

    /// Something else runs in the place of what was stopped.
    pub(super) fn let_go(&mut self, server: &ServerName) {
        self.held.remove(server);
        self.fillers.remove(server);
        self.running.remove(server);
    }

    pub(super) fn wait(&mut self, server: &ServerName, event: InstanceEvent) {
        let events = self.waiting.entry(server.clone()).or_default();
        if events.back() != Some(&event) {
            events.push_back(event);
        }
    }

    pub(super) fn wait_to_tell(&mut self, reports: &[Outgoing]) {
        self.reports.extend_from_slice(reports);
    }

    /// Takes out what was done before it was durable.
    pub(super) fn not_done_ahead(&mut self, server: &ServerName, actions: &mut Vec<InstanceAction>) {
        let restores = actions.iter().any(|action| matches!(action, InstanceAction::Restore { .. }));
        if restores && self.ahead.remove(server) {
            actions.retain(|action| !matches!(action, InstanceAction::Restore { .. }));
        }
    }

    /// A server that is stopped because it fills the disk says so, and one that takes more than it is to.
    pub(super) fn mark(&self, seen: &mut Observation) {
        if let Some(message) = self.unmeasured.get(&seen.server) {
            let (name, outcome) = ("disk".to_owned(), CheckOutcome::Warning { message: message.clone() });
            seen.report.checks.push(CheckReport { name, severity: Severity::Info, outcome });
        }
        if let Some(message) = self.over.get(&seen.server) {
            if seen.report.status == HealthStatus::Healthy {
                seen.report.status = HealthStatus::Degraded;
            }
            seen.report.checks.push(CheckReport {
                name: "disk".to_owned(),
                severity: Severity::Warning,
                outcome: CheckOutcome::Warning { message: message.clone() },
            });
        }
        if let Some(reason) = self.held.get(&seen.server) {
            seen.report.status = HealthStatus::Unhealthy;
            seen.report.checks.retain(|check| check.name != "process" && check.name != "disk");
            seen.report.checks.push(CheckReport {
                name: "disk".to_owned(),
                severity: Severity::Critical,
                outcome: CheckOutcome::Failing { message: reason.clone() },
            });
        }
    }

    /// Whether it may be looked at again.
    fn may_be_looked_at(&self) -> bool {
        let rested = self.found.as_ref().is_none_or(|(_, at, took)| at.elapsed() >= *took * LOOK_PART);
        self.looking.is_none() && rested
    }

    /// Keeps what was found.
    fn found(&mut self, room: Option<Room>) {
        let began = self.looking.take();
        if let (Some(room), Some(began)) = (room, began) {
            self.found = Some((room, Instant::now(), began.elapsed()));
        }
    }

    pub(super) fn next_look(&self) -> Instant {
        let pause = if self.full || !self.held.is_empty() { FULL_PAUSE } else { LOOK_INTERVAL };
        self.looked.map_or_else(Instant::now, |looked| looked + pause)
    }
}

/// What is known of who uses the disk.
enum Found {
    Room(Room),
    /// It is being looked for.
    Later,
    /// It cannot be known.
    Unknown,
}

impl Engine {
    /// Nothing could be made durable: goes on with what is, and tries again.
    pub(super) fn stall(&mut self, error: &JournalError) {
        if !self.disk.full {
            tracing::error!(%error, "the disk is full: nothing new is done until there is room; deadlines count");
            self.disk.full = true;
            self.disk.looked = Some(Instant::now());
        }
    }

    /// Stops the server that fills the disk, then gives up the reserve: in this order, or it would fill that too.
    pub(super) async fn make_room(&mut self, but: Option<&ServerName>) {
        // Whether there is room is told at once; who takes it is only looked for when there is none.
        if !self.machine.room(&[]).await.is_some_and(|room| room.is_critical()) {
            return;
        }
        match self.who_uses_it().await {
            // What is found later comes as an input.
            Found::Later => {}
            Found::Room(room) => self.relieve(room, but).await,
            Found::Unknown => {
                if but.is_none() {
                    self.machine.lend_reserve();
                }
            }
        }
    }

    /// Looks what servers use. A look that takes long goes on by itself.
    async fn who_uses_it(&mut self) -> Found {
        match self.disk.looking {
            Some(since) if since.elapsed() < LOOK_PATIENCE => return Found::Later,
            Some(_) => return Found::Unknown,
            None => {}
        }
        if !self.disk.may_be_looked_at()
            && let Some((room, ..)) = &self.disk.found
            && room.is_critical()
        {
            return Found::Room(room.clone());
        }
        let (told, looked) = oneshot::channel();
        self.start_look(Some(told));
        match timeout(LOOK_TIMEOUT, looked).await {
            Ok(Ok(room)) => {
                self.disk.found(room.clone());
                room.map_or(Found::Unknown, Found::Room)
            }
            // Nobody looks any more.
            Ok(Err(_)) => {
                self.disk.found(None);
                Found::Unknown
            }
            Err(_) => Found::Later,
        }
    }

    /// Starts a look. What it finds goes to `told`, or to the engine once nobody waits for it there.
    fn start_look(&mut self, told: Option<oneshot::Sender<Option<Room>>>) {
        self.disk.looking = Some(Instant::now());
        let servers: Vec<ServerName> = self.instances.keys().cloned().collect();
        let (looking, inputs) = (self.machine.room(&servers), self.inputs.clone());
        tokio::spawn(async move {
            let room = looking.await;
            let room = match told {
                None => Some(room),
                Some(told) => told.send(room).err(),
            };
            if let Some(room) = room {
                let _ = inputs.send(Input::Room(room)).await;
            }
        });
    }

    /// Stops the server that fills the disk, and gives up the reserve once nothing would take that, too. Where nobody is
    /// known to fill it, whoever does would: then the journal gets a part, and the rest stays for what has to be put back.
    async fn relieve(&mut self, mut room: Room, but: Option<&ServerName>) {
        if self.disk.is_first(&room) {
            return;
        }
        room.servers.retain(|server, _| !self.disk.is_held(server) && but != Some(server));
        let offender = self.disk.before.as_ref().and_then(|before| room.offender(before));
        self.disk.fillers.extend(offender.iter().map(|offender| offender.server.clone()));
        // Whoever was stopped for another disk, or for a limit of its own, explains nothing of this one.
        let is_known = offender.is_some() || self.disk.held.keys().any(|server| self.disk.fillers.contains(server));
        let again = self.disk.running.iter().filter_map(|server| {
            Some(Offender { server: server.clone(), reason: self.disk.held.get(server)?.clone() })
        });
        let again: Vec<Offender> = again.collect();
        let stopped = self.hold(again.into_iter().chain(offender).collect()).await;
        // What is about to be put back would take the reserve as well: whoever stops it gives that up.
        match (is_known, stopped) {
            _ if but.is_some() => {}
            (true, true) => self.machine.give_up_reserve(),
            (true, false) => {}
            (false, _) => self.machine.lend_reserve(),
        }
        self.remember();
    }

    /// Stops servers, all at once; whether all of them are stopped. Those that are being worked on are not.
    async fn hold(&mut self, mut offenders: Vec<Offender>) -> bool {
        let asked = offenders.len();
        offenders.retain(|offender| !self.is_worked_on(&offender.server));
        let mut all = offenders.len() == asked;
        let halts = offenders.into_iter().map(|offender| {
            tracing::error!(server = %offender.server, reason = offender.reason, "stopped");
            let halt = timeout(HALT_TIMEOUT, self.machine.halt(&offender.server));
            halt.map(|outcome| (offender, outcome))
        });
        let halts: Vec<_> = halts.collect();
        for (Offender { server, reason }, outcome) in join_all(halts).await {
            match outcome {
                Ok(Ok(())) => {
                    self.disk.running.remove(&server);
                    self.disk.held.insert(server, reason);
                }
                Ok(Err(failure)) => {
                    tracing::error!(%server, %failure, "it could not be stopped");
                    all = false;
                }
                Err(_) => {
                    tracing::error!(%server, "it does not stop in time");
                    all = false;
                }
            }
        }
        all
    }

    /// Whether work on a server is under way.
    fn is_worked_on(&self, server: &ServerName) -> bool {
        self.work.get(server).is_some_and(|work| !work.task.is_finished())
    }

    /// Stops what was stopped before the agent was started again: a host that has started anew may have started that, too.
    pub(super) async fn hold_again(&mut self) {
        // Whoever does not stop now is not started either, and is tried again while the disk is full.
        self.disk.running = self.disk.held.keys().cloned().collect();
        let held = self.disk.held.iter().map(|(server, reason)| (server.clone(), reason.clone()));
        self.hold(held.map(|(server, reason)| Offender { server, reason }).collect()).await;
    }

    /// Writes down what is still to be known after the agent was started again. What has no room is written at the next
    /// look.
    pub(super) fn remember(&mut self) {
        let held = self.disk.held.iter().map(|(server, reason)| {
            let release = self.instances.get(server).and_then(|instance| instance.current().cloned());
            (server.clone(), Held { release, reason: reason.clone() })
        });
        let now = Remembered { before: self.disk.before.clone(), held: held.collect() };
        if now.is_nearly(&self.disk.written) {
            return;
        }
        match self.machine.remember(&now) {
            Ok(()) => self.disk.written = now,
            Err(failure) => tracing::debug!(%failure, "who fills the disk is not written down yet"),
        }
    }

    /// Looks how much room there is: in the background while all is well, and at once when it matters.
    pub(super) async fn look_at_disk(&mut self) -> Result<()> {
        self.disk.looked = Some(Instant::now());
        if self.disk.full {
            self.try_again().await?;
        }
        if self.disk.may_be_looked_at() {
            self.start_look(None);
        }
        self.remember();
        Ok(())
    }

    pub(super) async fn take_room(&mut self, room: Option<Room>) -> Result<(), JournalError> {
        self.disk.found(room.clone());
        let Some(room) = room else { return Ok(()) };
        self.disk.is_first(&room);
        self.disk.over = self.over_limit(&room);
        self.disk.unmeasured = self.unmeasured(&room);
        let over = self.disk.over.iter().filter(|(server, _)| room.is_low_for(server) && !self.disk.is_held(server));
        let over = over.map(|(server, over)| {
            let reason = format!("{over}, and the disk is low: it is stopped until there is room");
            Offender { server: server.clone(), reason }
        });
        self.hold(over.collect()).await;
        if self.disk.full {
            if room.is_critical() {
                self.relieve(room, None).await;
            }
            return Ok(());
        }
        if !room.is_enough() {
            return Ok(());
        }
        self.disk.running.clear();
        let elsewhere = room.elsewhere.clone();
        let room_of = |server: &ServerName| elsewhere.get(server);
        (self.disk.before, self.disk.first_look) = (Some(room), None);
        self.machine.keep_reserve();
        match self.journal.keep_room() {
            Err(error) if !error.is_full() => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for (server, reason) in std::mem::take(&mut self.disk.held) {
            // What is being done for it comes to its end first, and its own disk has room: it is looked at again.
            let lacks_room = room_of(&server).is_some_and(|elsewhere| elsewhere.lacks_enough);
            if lacks_room || self.is_worked_on(&server) {
                self.disk.held.insert(server, reason);
                continue;
            }
            // What an operator has stopped meanwhile, or had stopped before, stays so.
            if self.machine.is_stopped(&server) {
                continue;
            }
            tracing::info!(%server, "there is room again: what was stopped is started");
            self.disk.fillers.remove(&server);
            self.start_current(&server);
        }
        self.remember();
        Ok(())
    }

    /// The servers that take more of the disk than their releases let them, in words.
    fn over_limit(&self, room: &Room) -> BTreeMap<ServerName, String> {
        let over = |server: &ServerName| {
            let used = room.used_by(server);
            // On the disk with the state, whoever has too much to be counted is found when that is full.
            let elsewhere = room.elsewhere.get(server).is_some_and(|of| of.used.is_too_much);
            let is_uncounted = used.is_too_deep || elsewhere;
            let limit = self.limit(server).filter(|limit| is_uncounted || used.bytes > *limit)?;
            let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
            let (counted, limit) = sizes(bytes(used.bytes), bytes(limit));
            let used = if is_uncounted { "more than can be counted".to_owned() } else { counted };
            Some((server.clone(), format!("it takes {used} of the disk; its `resources.disk` is {limit}")))
        };
        room.servers.keys().chain(room.elsewhere.keys()).filter_map(over).collect()
    }

    /// What cannot be measured of those whose releases let them take so much, in words.
    fn unmeasured(&self, room: &Room) -> BTreeMap<ServerName, String> {
        let told = room.elsewhere.iter().filter(|(_, of)| !of.unmeasured.is_empty()).filter_map(|(server, of)| {
            self.limit(server)?;
            let what = of.unmeasured.join("; ");
            Some((server.clone(), format!("not all of it counts for its `resources.disk`: {what}")))
        });
        told.collect()
    }

    /// How much of disks a server's release lets it take.
    fn limit(&self, server: &ServerName) -> Option<u64> {
        self.running(server)?.run.resources.disk_bytes
    }

    /// Tries to make durable what waits, in order. Once all of it is, whatever was left for later is asked for again.
    async fn try_again(&mut self) -> Result<()> {
        self.make_room(None).await;
        let now = self.steady.now();
        let reports = std::mem::take(&mut self.disk.reports);
        let commit = Commit { reports, ..Commit::default() };
        let told = if commit.reports.is_empty() { self.journal.probe() } else { self.commit(&commit, now) };
        if let Err(error) = told {
            self.disk.reports = commit.reports;
            return if error.is_full() { Ok(()) } else { Err(error.into()) };
        }
        let servers: Vec<ServerName> = self.disk.waiting.keys().cloned().collect();
        for server in servers {
            while let Some(event) = self.disk.waiting.get(&server).and_then(VecDeque::front).cloned() {
                match self.try_apply(&server, &event, None, now).await {
                    Ok(()) => drop(self.disk.waiting.get_mut(&server).and_then(VecDeque::pop_front)),
                    Err(error) if error.is_full() => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            self.disk.waiting.remove(&server);
        }
        self.disk.full = false;
        tracing::info!("there is room for the journal again");
        self.again.send_modify(|times| *times += 1);
        Ok(())
    }

    /// Puts an instance back although the journal has no room to say so. What is durable says it already: the deadline
    /// is in it, and has passed; an agent that starts again does the same.
    pub(super) async fn put_back_ahead(&mut self, server: &ServerName, now: Timestamp) {
        let Some(mut instance) = self.instances.get(server).cloned() else { return };
        let mut actions = Vec::new();
        for event in self.disk.waiting.get(server).into_iter().flatten() {
            actions = instance.apply(event.clone(), now).unwrap_or_default();
        }
        if !matches!(instance.state(), InstanceState::Restoring { .. }) {
            return;
        }
        let restore = actions.into_iter().find(|action| matches!(action, InstanceAction::Restore { .. }));
        if let Some(InstanceAction::Restore { switch, drain, .. }) = restore {
            self.disk.ahead.insert(server.clone());
            self.start_restore(server, switch, drain).await;
        }
    }
}
