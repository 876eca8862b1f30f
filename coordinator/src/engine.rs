//! The coordinator's engine: one task that owns the fleet and the journal.
//!
//! Requests, agents' reports and timers come in over one bounded channel. What has come in together is applied
//! together, made durable in one commit, then published, answered, and only then acted upon.

mod agents;
mod budgets;
mod operators;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use fleetwright_certs::{Authority, TrustedKeys};
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::deployment::{Action, DeploymentEvent, Order, OrderName};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{Fleet, FleetEvent, Refused, Retention};
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId};
use fleetwright_deploy::plan::External;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::Clock;
use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::report::CoordinatorReply;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::commands::CommandMaker;
use crate::externals;
use crate::journal::{EventRecord, Journal, JournalError, NewEntry, SqliteStore};
use crate::said::Said;
use crate::samples::Samples;
use crate::sessions::{Outbound, SessionHandle};
use crate::view::{self, Publisher};

pub(crate) use budgets::Budgets;
use budgets::HeldBack;
pub(crate) use request::{Asked, Handle, NotObeyed, Reply, Request};

/// How many requests may wait; whoever has more waits too.
const REQUESTS_MAX: usize = 1_024;
/// How many requests are made durable in one commit.
const COMMIT_MAX: usize = 256;
/// How many records a slow follower may fall behind before it has to read the journal again.
const FOLLOWERS_BEHIND_MAX: usize = 1_024;
/// How often a coordinator whose disk is full looks whether there is room again.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// How many deployments go to the archive at once: nobody else is heard meanwhile.
const ARCHIVED_AT_ONCE: usize = 8;
/// How often it is looked whether health that was held back can be taken.
const HELD_BACK_PAUSE: Duration = Duration::from_secs(1);

/// Everything the engine signs and certifies with.
pub(crate) struct Authorities {
    pub(crate) authority: Authority,
    pub(crate) commands: CommandMaker,
    /// The keys that may sign intents, and the one that hosts are told of when they enrol: public halves alone.
    pub(crate) operator_keys: TrustedKeys,
    pub(crate) operator_public: String,
}

/// What is done once what has come in is durable; it is told when it could not be made so.
type Deferred = Box<dyn FnOnce(&mut Engine, Result<(), &Failure>) + Send>;

pub(crate) struct Engine {
    fleet: Fleet,
    published: Publisher,
    journal: Journal<SqliteStore>,
    /// Entries that are applied but not durable yet, with the actions that follow from them.
    entries: Vec<NewEntry>,
    actions: Vec<Action>,
    deferred: Vec<Deferred>,
    /// Whether a deployment has begun since it was looked which ones are history.
    history_due: bool,
    /// Why nothing can be made durable, while nothing can, and when that was tried last.
    full: Option<(Failure, Instant)>,
    authorities: Authorities,
    clock: Clock,
    sessions: BTreeMap<HostName, SessionHandle>,
    /// Those that newer ones took over from, until they are gone.
    superseded: BTreeMap<HostName, Vec<SessionHandle>>,
    /// What each host may still add to the journal, and the newest health of each instance that could not be added yet.
    budgets: Budgets,
    held_back: BTreeMap<InstanceId, HeldBack>,
    said: Said,
    requests: mpsc::Receiver<Asked>,
    /// Who has made happen what is being taken in.
    actor: Actor,
    records: broadcast::Sender<EventRecord>,
    handle: Handle,
}

impl Engine {
    /// The engine over what the journal holds.
    pub(crate) fn open(
        fleet: Fleet,
        journal: Journal<SqliteStore>,
        reader: SqliteStore,
        authorities: Authorities,
        clock: Clock,
    ) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (records, _) = broadcast::channel(FOLLOWERS_BEHIND_MAX);
        let budgets = Budgets::after_start(fleet.hosts().keys().cloned());
        let (published, view) = view::of(&fleet, journal.last());
        let handle = Handle {
            requests: sender,
            records: records.clone(),
            budgets: budgets.clone(),
            samples: Samples::default(),
            view,
            journal: Arc::new(Mutex::new(Some(reader))),
        };
        let engine = Self {
            fleet,
            published,
            journal,
            entries: Vec::new(),
            actions: Vec::new(),
            deferred: Vec::new(),
            history_due: false,
            full: None,
            authorities,
            said: Said::new(clock.clone()),
            clock,
            sessions: BTreeMap::new(),
            superseded: BTreeMap::new(),
            budgets,
            held_back: BTreeMap::new(),
            requests,
            actor: Actor::Coordinator,
            records,
            handle: handle.clone(),
        };
        (engine, handle)
    }

    /// Works until it is to stop, or the journal fails. Commits wait for the disk, and nobody else is to wait for them: where
    /// there are several threads, this takes one of its own.
    pub(crate) async fn run(self, stop: oneshot::Receiver<()>) -> Result<()> {
        let runtime = tokio::runtime::Handle::current();
        if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return self.work_until(stop).await;
        }
        tokio::task::spawn_blocking(move || runtime.block_on(self.work_until(stop))).await?
    }

    async fn work_until(mut self, stop: oneshot::Receiver<()>) -> Result<()> {
        let ended = tokio::select! {
            ended = self.work() => ended,
            _ = stop => Ok(()),
        };
        // The journal is one file once nobody else has it open.
        self.handle.end_reading();
        ended
    }

    /// What was under way goes on as soon as its hosts are back.
    async fn work(&mut self) -> Result<()> {
        self.event(FleetEvent::CoordinatorStarted).ok();
        self.commit()?;
        self.archive()?;
        self.ask_missed();
        let mut batch = Vec::with_capacity(COMMIT_MAX);
        loop {
            let deadline = self.fleet.deadline().filter(|_| self.full.is_none());
            let wait: Duration = match (&self.full, &deadline) {
                (Some(_), _) => FULL_PAUSE,
                (None, Some((_, at))) => at.since(self.clock.now()).into(),
                (None, None) => Duration::from_secs(3_600),
            };
            let wait = if self.held_back.is_empty() { wait } else { wait.min(HELD_BACK_PAUSE) };
            let wait = if self.history_due { Duration::ZERO } else { wait };
            tokio::select! {
                _ = self.requests.recv_many(&mut batch, COMMIT_MAX) => {
                    for Asked { actor, request } in batch.drain(..) {
                        self.actor = actor;
                        self.take(request)?;
                    }
                    self.actor = Actor::Coordinator;
                }
                () = tokio::time::sleep(wait) => {
                    if let Some((deployment, _)) = deadline.filter(|(_, at)| *at <= self.clock.now()) {
                        self.event(FleetEvent::Deployment { deployment, event: DeploymentEvent::DeadlinePassed }).ok();
                    }
                }
            }
            self.look_for_room();
            self.take_held_back();
            self.commit()?;
            if std::mem::take(&mut self.history_due) {
                self.archive()?;
            }
        }
    }

    /// Lets deployments go of which nothing can come any more, a few at a time. What finds no room in the archive now stays
    /// until the next time.
    fn archive(&mut self) -> Result<(), JournalError> {
        if self.full.is_some() {
            return Ok(());
        }
        let history = self.fleet.history(Retention::default(), self.clock.now());
        self.history_due = history.len() > ARCHIVED_AT_ONCE;
        let deployments: BTreeSet<DeploymentId> = history.into_iter().take(ARCHIVED_AT_ONCE).collect();
        if deployments.is_empty() {
            return Ok(());
        }
        match self.journal.archive(&self.fleet, &deployments) {
            Err(error) if error.is_full() => {
                tracing::warn!(%error, "there is no room for the archive: what is history stays with the fleet for now");
                self.history_due = false;
                return Ok(());
            }
            kept => kept?,
        }
        if let Err(refused) = self.event(FleetEvent::DeploymentsArchived { deployments }) {
            tracing::warn!(%refused, "what is history stays with the fleet for now");
            self.history_due = false;
        }
        self.commit()
    }

    /// Applies an event. It is durable, published and acted upon after the next [`Self::commit`].
    fn event(&mut self, event: FleetEvent) -> Result<(), Refused> {
        self.event_by(self.actor.clone(), event)
    }

    fn event_by(&mut self, actor: Actor, event: FleetEvent) -> Result<(), Refused> {
        if let Some((full, _)) = &self.full {
            return Err(Refused::Failure(Box::new(full.clone())));
        }
        let at = self.clock.now();
        let effects = self.fleet.apply(event.clone(), at)?;
        self.entries.push(NewEntry { at, actor, event, notes: effects.notes });
        self.actions.extend(effects.actions);
        Ok(())
    }

    /// Has something done after the next commit.
    fn after_commit(&mut self, work: impl FnOnce(&mut Self, Result<(), &Failure>) + Send + 'static) {
        self.deferred.push(Box::new(work));
    }

    /// Answers an operator once what was decided is durable.
    fn answer<T: Send + 'static>(&mut self, reply: Reply<Result<T, Failure>>, outcome: Result<T, Failure>) {
        self.after_commit(move |_, durable| {
            let _ = reply.send(outcome.and_then(|value| durable.map(|()| value).map_err(Failure::clone)));
        });
    }

    /// Acknowledges an agent's message once it is durable. A message that changes nothing was taken all the same:
    /// telling it again would change nothing either. Without an answer the agent tells it again.
    fn acknowledge(&mut self, reply: Reply<CoordinatorReply>, outcome: Result<(), Refused>) {
        let full = self.full.is_some();
        let answer = match outcome {
            Ok(()) | Err(Refused::NoChange) => CoordinatorReply::Acknowledged,
            Err(refused) => CoordinatorReply::Refused(refused.to_string()),
        };
        self.after_commit(move |_, durable| {
            if durable.is_ok() && !full {
                let _ = reply.send(answer);
            }
        });
    }

    /// Makes durable what was applied, publishes it, and does what follows from it. An error is the journal's: the
    /// coordinator must end then, since what it holds in memory is no longer what is on disk.
    fn commit(&mut self) -> Result<(), JournalError> {
        let entries = std::mem::take(&mut self.entries);
        let actions = std::mem::take(&mut self.actions);
        if !entries.is_empty() {
            if let Err(error) = self.journal.append(&entries) {
                if error.is_full() {
                    self.stall(&error);
                    return Ok(());
                }
                return Err(error);
            }
            self.publish(entries);
            let now = self.clock.now();
            for action in actions {
                match action {
                    Action::Send { deployment, instance, attempt, order } => {
                        self.send(&deployment, &instance, attempt, &order, now);
                    }
                    Action::Ask { deployment, external, attempt } => self.ask(deployment, external, attempt),
                    Action::Announce { deployment } => self.announce(&deployment),
                    Action::Settled { .. } => {}
                }
            }
        }
        for work in std::mem::take(&mut self.deferred) {
            work(self, Ok(()));
        }
        match self.journal.snapshot_if_due(&self.fleet) {
            Err(error) if !error.is_full() => Err(error),
            // The entries are durable; a snapshot can wait.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Lets readers and followers have what is durable now.
    fn publish(&mut self, entries: Vec<NewEntry>) {
        let last = self.journal.last();
        self.published.publish(&mut self.fleet, last, &entries);
        let first = last + 1 - entries.len() as u64;
        for (seq, NewEntry { at, actor, event, notes }) in (first..).zip(entries) {
            for note in &notes {
                tracing::info!(
                    seq,
                    what = note.what,
                    instance = note.instance.as_ref().map(ToString::to_string),
                    "{}",
                    note.message
                );
            }
            let event_type: &'static str = (&event).into();
            // That nobody follows is fine.
            let _ = self.records.send(EventRecord {
                seq,
                at,
                actor: Some(actor),
                event_type: event_type.to_owned(),
                notes,
            });
        }
    }

    /// Nothing can be made durable: goes back to what is, and does nothing more until there is room. Agents are
    /// let go, so that they tell again what was not taken.
    fn stall(&mut self, error: &JournalError) {
        let failure = Failure::new(FailureKind::ResourceError, "journal", error.to_string())
            .hint("make room on the disk of the coordinator's state folder; it goes on by itself then");
        tracing::error!(%failure, "nothing new is done until there is room");
        for work in std::mem::take(&mut self.deferred) {
            work(self, Err(&failure));
        }
        for (_, session) in std::mem::take(&mut self.sessions) {
            session.let_go();
        }
        self.fleet = self.published.durable();
        self.full = Some((failure, Instant::now()));
    }

    /// Goes on after the disk was full, as after a restart, if there is room again.
    fn look_for_room(&mut self) {
        if let Some((full, _)) = self.full.take_if(|(_, tried)| tried.elapsed() >= FULL_PAUSE) {
            self.event(FleetEvent::CoordinatorStarted).ok();
            let entries = std::mem::take(&mut self.entries);
            // Without a session there is nobody to send anything to.
            self.actions.clear();
            match self.journal.append(&entries) {
                Ok(()) => {
                    tracing::info!("there is room for the journal again");
                    self.publish(entries);
                    self.ask_missed();
                }
                Err(_) => (self.full, self.fleet) = (Some((full, Instant::now())), self.published.durable()),
            }
        }
    }

    /// Takes a request in.
    fn take(&mut self, request: Request) -> Result<()> {
        match request {
            Request::HostConnected { host, view, session, reply } => self.host_connected(host, view, session, reply),
            Request::HostDisconnected { host, session } => {
                self.keep_superseded(&host, |older| older.id != session);
                // An older connection that ends after a newer one took over changes nothing.
                if self.sessions.get(&host).is_some_and(|newest| newest.id == session) {
                    self.sessions.remove(&host);
                    self.host_went(host);
                }
            }
            Request::StepReported { instance, deployment, attempt, report, reply } => {
                let event = DeploymentEvent::StepReported { instance, attempt, report };
                let outcome = self.event(FleetEvent::Deployment { deployment, event });
                self.acknowledge(reply, outcome);
            }
            Request::HealthReported { instance, release, report, output, reply } => {
                self.health_reported(instance, HeldBack { since: self.clock.now(), release, report, output }, reply);
            }
            Request::External { deployment, name, attempt, failure } => {
                let event = DeploymentEvent::ExternalReported { name, attempt, failure };
                // An answer that nobody waits for any more changes nothing.
                self.event(FleetEvent::Deployment { deployment, event }).ok();
            }
            Request::NotObeyed { instance, deployment, attempt, order, not_obeyed } => {
                self.not_obeyed(instance, deployment, attempt, order, not_obeyed);
            }
            Request::HostSeenTwice { host, addresses } => {
                // It is told once in a while.
                self.event(FleetEvent::HostSeenTwice { host, addresses }).ok();
            }
            Request::IssueToken { host, lifetime, introduction, reply } => {
                self.issue_token(host, lifetime, introduction, reply);
            }
            Request::Enrol { token, request_der, reply } => self.enrol(&token, &request_der, reply)?,
            Request::Start { plan, options, intents, reply } => self.start(plan, options, intents, reply),
            Request::RollBack { deployment, by, strategy, only, intents, reply } => {
                self.roll_back(deployment, by, strategy, only, intents, reply);
            }
            Request::Control { deployment, event, reply } => self.control(deployment, *event, reply),
            Request::Decide { event, reply } => {
                let outcome = match self.event(event) {
                    // What is so already needs no deciding.
                    Ok(()) | Err(Refused::NoChange) => Ok(()),
                    Err(refused) => Err(operators::failure_of(refused)),
                };
                self.answer(reply, outcome);
            }
            Request::LookAt { host, body, reply } => self.look_at(&host, body, reply),
            Request::Resend { host } => self.send_missed(&host),
            // What was signed before another deployment began is signed anew.
            Request::NotHeard { host, deployment, generation } if generation < self.fleet.generation() => {
                if let Some(word) = self.fleet.announcement(&deployment, &host) {
                    self.tell_intent(&host, &deployment, word);
                }
            }
            Request::NotHeard { .. } => {}
        }
        Ok(())
    }

    /// Asks what was being asked before: by a coordinator that has ended, or while its disk was full.
    fn ask_missed(&self) {
        for (deployment, external, attempt) in self.fleet.questions() {
            self.ask(deployment.clone(), external.clone(), attempt);
        }
    }

    /// Asks an external, and takes its answer in as a request.
    fn ask(&self, deployment: DeploymentId, external: External, attempt: u32) {
        let requests = self.handle.requests.clone();
        tokio::spawn(async move {
            let failure = externals::ask(&external).await.err();
            let answer = Request::External { deployment, name: external.name, attempt, failure };
            // An engine that has ended asks again when it is started.
            let _ = requests.send(answer.into()).await;
        });
    }

    /// Every connected host of a deployment hears of the operator's intents for it.
    fn announce(&self, deployment: &DeploymentId) {
        for host in self.fleet.intended(deployment) {
            if let Some(word) = self.fleet.announcement(deployment, host) {
                self.tell_intent(host, deployment, word);
            }
        }
    }

    /// A host that is back hears of all intents that still count.
    fn announce_to(&self, host: &HostName) {
        for (deployment, intent, ended) in self.fleet.announcements(host, self.clock.now()) {
            self.tell_intent(host, deployment, (intent, ended));
        }
    }

    fn tell_intent(&self, host: &HostName, deployment: &DeploymentId, word: (&str, bool)) {
        let Some(session) = self.sessions.get(host) else { return };
        match self.authorities.commands.announce(&self.fleet, host, word, self.clock.now()) {
            Err(failure) => tracing::warn!(%host, %deployment, %failure, "an intent cannot be told"),
            Ok(envelope) => {
                let (reply, answer) = oneshot::channel();
                session.send(Outbound { envelope, reply });
                let (requests, host, generation) =
                    (self.handle.requests.clone(), host.clone(), self.fleet.generation());
                let deployment = deployment.clone();
                tokio::spawn(async move {
                    if let Ok(CommandReply::Stale) = answer.await {
                        let _ = requests.send(Request::NotHeard { host, deployment, generation }.into()).await;
                    }
                });
            }
        }
    }

    /// Hands a command to the session of its host. Without one it goes out when the host is back.
    fn send(&self, deployment: &DeploymentId, instance: &InstanceId, attempt: u32, order: &Order, now: Timestamp) {
        let (Some(deployment), Some(session)) = (self.fleet.deployment(deployment), self.sessions.get(&instance.host))
        else {
            return;
        };
        let commands = &self.authorities.commands;
        let release = deployment.planned_release(instance).filter(|_| matches!(order, Order::Stage { .. }));
        let to_look_up = release.map(|release| commands.secrets.to_look_up(release)).unwrap_or_default();
        let made = commands.step(&self.fleet, deployment, instance, attempt, order, now);
        let (handle, deployment, instance) = (self.handle.clone(), deployment.id().clone(), instance.clone());
        let session_host = instance.host.clone();
        let (order, generation) = (OrderName::from(order), self.fleet.generation());
        let tell = async move |not_obeyed: NotObeyed| {
            let request = Request::NotObeyed { instance, deployment, attempt, order, not_obeyed };
            let _ = handle.requests.send(request.into()).await;
        };
        if !to_look_up.is_empty() {
            // A coordinator that was started anew has forgotten what it had looked up.
            let (secrets, handle, host) = (commands.secrets.clone(), self.handle.clone(), session_host);
            tokio::spawn(async move {
                let look_up = move || to_look_up.iter().try_for_each(|(name, source)| secrets.look_up(name, source));
                match tokio::task::spawn_blocking(look_up).await {
                    Ok(Ok(())) => drop(handle.requests.send(Request::Resend { host }.into()).await),
                    Ok(Err(failure)) => tell(NotObeyed::Refused(failure)).await,
                    Err(_) => {}
                }
            });
            return;
        }
        match made {
            Ok(envelope) => {
                let (reply, answer) = oneshot::channel();
                session.send(Outbound { envelope, reply });
                tokio::spawn(async move {
                    match answer.await {
                        Ok(CommandReply::Refused(failure)) => tell(NotObeyed::Refused(failure)).await,
                        Ok(CommandReply::Stale) => tell(NotObeyed::Stale(generation)).await,
                        Ok(_) | Err(_) => {}
                    }
                });
            }
            Err(failure) => {
                tokio::spawn(tell(NotObeyed::Refused(failure)));
            }
        }
    }
}
