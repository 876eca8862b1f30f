//! The coordinator's engine: one task that owns the fleet and the journal.
//!
//! Requests, agents' reports and timers come in over one bounded channel. Each event is applied, made durable,
//! published, and only then acted upon.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use fleetwright_certs::{Authority, Signer, Token, TrustedKeys, fingerprint};
use fleetwright_deploy::deployment::{Action, DeploymentEvent, Options, Order};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{Fleet, FleetEvent, Refused};
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, HostName, InstanceId, ReleaseId};
use fleetwright_deploy::instance::StepReport;
use fleetwright_deploy::plan::Plan;
use fleetwright_deploy::release::SecretSource;
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::enrol::Credentials;
use fleetwright_protocol::report::{CoordinatorReply, MetricsSample};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::clock;
use crate::commands::{CommandMaker, check_intents};
use crate::journal::{EventRecord, Journal};
use crate::sessions::{Outbound, SessionHandle};

/// How many requests may wait; whoever has more waits too.
const REQUESTS_MAX: usize = 1_024;
/// How many records a slow follower may fall behind before it has to read the journal again.
const FOLLOWERS_BEHIND_MAX: usize = 1_024;
/// How many samples of metrics are kept per host.
const SAMPLES_KEPT: usize = 360;

type Reply<T> = oneshot::Sender<T>;
/// The newest samples of each host's metrics, the oldest first.
pub(crate) type Samples = BTreeMap<HostName, VecDeque<MetricsSample>>;
/// A look at the fleet, its metrics and the number of the last entry.
type Look = dyn FnOnce(&Fleet, &Samples, u64) + Send;

/// What comes in.
pub(crate) enum Request {
    /// A host's agent said hello over a new connection.
    HostConnected { host: HostName, view: HostView, session: SessionHandle, reply: Reply<CoordinatorReply> },
    /// A connection is gone.
    HostDisconnected { host: HostName, session: u64 },
    /// An agent tells about a step.
    StepReported {
        instance: InstanceId,
        deployment: DeploymentId,
        attempt: u32,
        report: StepReport,
        reply: Reply<CoordinatorReply>,
    },
    /// An agent tells about health.
    HealthReported {
        instance: InstanceId,
        release: ReleaseId,
        report: HealthReport,
        output: Vec<String>,
        reply: Reply<CoordinatorReply>,
    },
    /// An agent's metrics.
    Metrics { host: HostName, sample: MetricsSample },
    /// An agent refused an order.
    OrderRefused { instance: InstanceId, deployment: DeploymentId, attempt: u32, failure: Failure },
    /// A token for a host.
    IssueToken { host: HostName, lifetime: Length, reply: Reply<Result<Token, Failure>> },
    /// A host wants to enrol.
    Enrol { token: String, request_der: Vec<u8>, reply: Reply<Result<Credentials, String>> },
    /// Start a deployment.
    Start {
        plan: Box<Plan>,
        options: Options,
        intents: BTreeMap<HostName, String>,
        reply: Reply<Result<DeploymentId, Failure>>,
    },
    /// Undo a deployment.
    RollBack {
        deployment: DeploymentId,
        by: String,
        intents: BTreeMap<HostName, String>,
        reply: Reply<Result<(), Failure>>,
    },
    /// The last lines of a server's output.
    Logs { instance: InstanceId, lines: u32, reply: Reply<Result<Vec<String>, Failure>> },
    /// Digests of secrets.
    Digests { sources: BTreeMap<String, SecretSource>, reply: Reply<BTreeMap<String, String>> },
    /// What people are told about entries after a number.
    Records { after: u64, limit: usize, reply: Reply<Vec<EventRecord>> },
    /// Look at everything.
    Look(Box<Look>),
}

/// What others need of the engine.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) records: broadcast::Sender<EventRecord>,
}

impl Handle {
    /// Sends a request and waits for its answer; nothing when the engine has ended.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Looks at the fleet.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Fleet, &Samples, u64) -> T + Send + 'static,
    ) -> Option<T> {
        self.ask(|reply| {
            Request::Look(Box::new(move |fleet, samples, seq| {
                let _ = reply.send(look(fleet, samples, seq));
            }))
        })
        .await
    }
}

/// Everything the engine signs and certifies with.
pub(crate) struct Authorities {
    pub(crate) authority: Authority,
    pub(crate) commands: CommandMaker,
    pub(crate) operator_keys: TrustedKeys,
    pub(crate) operator: Signer,
}

pub(crate) struct Engine {
    fleet: Fleet,
    seq: u64,
    journal: Box<dyn Journal>,
    authorities: Authorities,
    sessions: BTreeMap<HostName, SessionHandle>,
    samples: Samples,
    requests: mpsc::Receiver<Request>,
    records: broadcast::Sender<EventRecord>,
    handle: Handle,
}

impl Engine {
    /// The engine over what the journal holds.
    pub(crate) fn open(fleet: Fleet, seq: u64, journal: Box<dyn Journal>, authorities: Authorities) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (records, _) = broadcast::channel(FOLLOWERS_BEHIND_MAX);
        let handle = Handle { requests: sender, records: records.clone() };
        let engine = Self {
            fleet,
            seq,
            journal,
            authorities,
            sessions: BTreeMap::new(),
            samples: BTreeMap::new(),
            requests,
            records,
            handle: handle.clone(),
        };
        (engine, handle)
    }

    /// Works until the journal fails. What was under way goes on as soon as its hosts are back.
    pub(crate) async fn run(mut self) -> Result<()> {
        self.event(FleetEvent::CoordinatorStarted)?.ok();
        loop {
            let deadline = self.fleet.deadline();
            let wait: Duration =
                deadline.as_ref().map_or(Duration::from_secs(3_600), |(_, at)| at.since(clock::now()).into());
            tokio::select! {
                Some(request) = self.requests.recv() => self.take(request)?,
                () = tokio::time::sleep(wait) => {
                    if let Some((deployment, _)) = deadline.filter(|(_, at)| *at <= clock::now()) {
                        self.event(FleetEvent::Deployment { deployment, event: DeploymentEvent::DeadlinePassed })?.ok();
                    }
                }
            }
        }
    }

    /// Applies, journals, publishes, performs. The outer error is the journal's: the coordinator must end then,
    /// since what it holds in memory is no longer what is on disk.
    fn event(&mut self, event: FleetEvent) -> Result<Result<(), Refused>> {
        let now = clock::now();
        let effects = match self.fleet.apply(event.clone(), now) {
            Ok(effects) => effects,
            Err(refused) => return Ok(Err(refused)),
        };
        self.seq += 1;
        self.journal.append(self.seq, now, &event, &effects.notes)?;
        let event_type: &'static str = (&event).into();
        for note in &effects.notes {
            tracing::info!(
                seq = self.seq,
                what = note.what,
                instance = note.instance.as_ref().map(ToString::to_string),
                "{}",
                note.message
            );
        }
        let record = EventRecord { seq: self.seq, at: now, event_type: event_type.to_owned(), notes: effects.notes };
        // That nobody follows is fine.
        let _ = self.records.send(record);
        for action in effects.actions {
            if let Action::Send { deployment, instance, attempt, order } = action {
                self.send(&deployment, &instance, attempt, &order, now);
            }
        }
        Ok(Ok(()))
    }

    fn take(&mut self, request: Request) -> Result<()> {
        match request {
            Request::HostConnected { host, view, session, reply } => self.host_connected(host, view, session, reply)?,
            Request::HostDisconnected { host, session } => {
                // An older connection that ends after a newer one took over changes nothing.
                if self.sessions.get(&host).is_some_and(|newest| newest.id == session) {
                    self.sessions.remove(&host);
                    self.event(FleetEvent::HostDisconnected { host })?.ok();
                }
            }
            Request::StepReported { instance, deployment, attempt, report, reply } => {
                let event = DeploymentEvent::StepReported { instance, attempt, report };
                answer(reply, &self.event(FleetEvent::Deployment { deployment, event })?);
            }
            Request::HealthReported { instance, release, report, output, reply } => {
                answer(reply, &self.event(FleetEvent::HealthReported { instance, release, report, output })?);
            }
            Request::Metrics { host, sample } => {
                let samples = self.samples.entry(host).or_default();
                samples.push_back(sample);
                if samples.len() > SAMPLES_KEPT {
                    samples.pop_front();
                }
            }
            Request::OrderRefused { instance, deployment, attempt, failure } => {
                let event = DeploymentEvent::StepReported { instance, attempt, report: StepReport::Failed(failure) };
                self.event(FleetEvent::Deployment { deployment, event })?.ok();
            }
            Request::IssueToken { host, lifetime, reply } => {
                let issued = self.issue_token(host, lifetime)?;
                let _ = reply.send(issued);
            }
            Request::Enrol { token, request_der, reply } => {
                let enrolled = self.enrol(&token, &request_der)?;
                let _ = reply.send(enrolled);
            }
            Request::Start { plan, options, intents, reply } => {
                let started = self.start(plan, options, intents)?;
                let _ = reply.send(started);
            }
            Request::RollBack { deployment, by, intents, reply } => {
                let rolled = self.roll_back(deployment, by, intents)?;
                let _ = reply.send(rolled);
            }
            Request::Logs { instance, lines, reply } => self.logs(&instance, lines, reply),
            Request::Digests { sources, reply } => {
                let secrets = &self.authorities.commands.secrets;
                let known = sources.iter().filter_map(|(name, source)| {
                    Some((fleetwright_deploy::planning::secret_key(source), secrets.digest(name, source)?))
                });
                let _ = reply.send(known.collect());
            }
            Request::Records { after, limit, reply } => {
                let _ = reply.send(self.journal.records(after, limit)?);
            }
            Request::Look(look) => look(&self.fleet, &self.samples, self.seq),
        }
        Ok(())
    }

    fn host_connected(
        &mut self,
        host: HostName,
        view: HostView,
        session: SessionHandle,
        reply: Reply<CoordinatorReply>,
    ) -> Result<()> {
        let connected = self.event(FleetEvent::HostConnected { host: host.clone(), view })?;
        if connected.is_ok()
            && let Some(older) = self.sessions.insert(host.clone(), session)
        {
            older.supersede();
        }
        answer(reply, &connected);
        // The host may have missed what was sent to it; what it did not miss, it will not do again.
        let missed: Vec<(DeploymentId, InstanceId, u32, Order)> = self
            .fleet
            .outstanding(&host)
            .map(|(deployment, id, attempt, order)| (deployment.id().clone(), id.clone(), attempt, order))
            .collect();
        let now = clock::now();
        for (deployment, instance, attempt, order) in missed {
            self.send(&deployment, &instance, attempt, &order, now);
        }
        Ok(())
    }

    /// Hands a command to the session of its host. Without one it goes out when the host is back.
    fn send(&self, deployment: &DeploymentId, instance: &InstanceId, attempt: u32, order: &Order, now: Timestamp) {
        let (Some(deployment), Some(session)) = (self.fleet.deployment(deployment), self.sessions.get(&instance.host))
        else {
            return;
        };
        let made = self.authorities.commands.step(&self.fleet, deployment, instance, attempt, order, now);
        let (handle, instance, id) = (self.handle.clone(), instance.clone(), deployment.id().clone());
        let tell_refusal = async move |failure| {
            let _ = handle.requests.send(Request::OrderRefused { instance, deployment: id, attempt, failure }).await;
        };
        match made {
            Ok(envelope) => {
                let (reply, answer) = oneshot::channel();
                session.send(Outbound { envelope, reply });
                // A host that no longer waits to be confirmed has gone its own way, and is about to say which.
                let says_more = matches!(order, Order::Confirm);
                tokio::spawn(async move {
                    match answer.await {
                        Ok(CommandReply::Refused(failure)) if says_more => tracing::warn!(%failure, "not confirmed"),
                        Ok(CommandReply::Refused(failure)) => tell_refusal(failure).await,
                        Ok(CommandReply::Accepted | CommandReply::Duplicate | CommandReply::Logs(_)) | Err(_) => {}
                    }
                });
            }
            Err(failure) => {
                tokio::spawn(tell_refusal(failure));
            }
        }
    }

    fn issue_token(&mut self, host: HostName, lifetime: Length) -> Result<Result<Token, Failure>> {
        let token = match Token::generate() {
            Ok(token) => token,
            Err(error) => return Ok(Err(Failure::new(FailureKind::ResourceError, "token", error.to_string()))),
        };
        let not_after = clock::now().after(lifetime);
        let issued =
            self.event(FleetEvent::TokenIssued { host, token_sha256: Token::sha256(token.reveal()), not_after })?;
        Ok(issued.map(|()| token).map_err(failure_of))
    }

    /// A certificate for the host that the token was made for. The token is used up before the certificate is out.
    fn enrol(&mut self, token: &str, request_der: &[u8]) -> Result<Result<Credentials, String>> {
        let Some(host) = self.fleet.token(&Token::sha256(token), clock::now()).cloned() else {
            return Ok(Err("the token is not valid: it is unknown, expired or used up".to_owned()));
        };
        let Authorities { authority, commands, operator, .. } = &self.authorities;
        let certificate = match authority.issue_agent(host.as_str(), request_der, clock::now_unix_s()) {
            Ok(certificate) => certificate,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let credentials = Credentials {
            fleet: self.fleet.name().clone(),
            host: host.clone(),
            certificate_pem: certificate.pem.clone(),
            authority_pem: authority.certificate().pem.clone(),
            command_keys: vec![commands.signer.public_pem()?],
            intent_keys: vec![operator.public_pem()?],
        };
        let certificate_sha256 = fingerprint(&certificate.der);
        let enrolled = self.event(FleetEvent::HostEnrolled { host: host.clone(), certificate_sha256 })?;
        if let Some(session) = self.sessions.remove(&host) {
            session.revoke();
        }
        Ok(enrolled.map(|()| credentials).map_err(|refused| refused.to_string()))
    }

    fn start(
        &mut self,
        plan: Box<Plan>,
        options: Options,
        intents: BTreeMap<HostName, String>,
    ) -> Result<Result<DeploymentId, Failure>> {
        if let Err(failure) = self.fleet.may_start(&plan) {
            return Ok(Err(*failure));
        }
        if let Err(why) = check_intents(&intents, &plan, plan.parent.next(), &self.authorities.operator_keys) {
            return Ok(Err(Failure::new(FailureKind::PermissionError, "pre_validation", why)));
        }
        let id = DeploymentId::new(plan.parent.next(), &plan.id());
        let started = self.event(FleetEvent::DeploymentStarted { plan, options, intents })?;
        Ok(started.map(|()| id).map_err(failure_of))
    }

    fn roll_back(
        &mut self,
        deployment: DeploymentId,
        by: String,
        intents: BTreeMap<HostName, String>,
    ) -> Result<Result<(), Failure>> {
        let generation = self.fleet.generation().next();
        let plan = match self.fleet.may_roll_back(&deployment) {
            Ok(found) => found.plan(),
            Err(failure) => return Ok(Err(*failure)),
        };
        if let Err(why) = check_intents(&intents, plan, generation, &self.authorities.operator_keys) {
            return Ok(Err(Failure::new(FailureKind::PermissionError, "rollback", why)));
        }
        Ok(self.event(FleetEvent::RollbackRequested { deployment, by, intents })?.map_err(failure_of))
    }

    fn logs(&self, instance: &InstanceId, lines: u32, reply: Reply<Result<Vec<String>, Failure>>) {
        let failed = |kind, message: String| Failure::new(kind, "logs", message).at(&instance.host, &instance.server);
        if !self.fleet.hosts().contains_key(&instance.host) {
            let failure = failed(FailureKind::ConfigurationError, format!("there is no host {}", instance.host));
            let _ = reply.send(Err(failure.hint("`fleetwright hosts list` shows them")));
            return;
        }
        let Some(session) = self.sessions.get(&instance.host) else {
            let failure = failed(FailureKind::NetworkError, format!("{} is not connected", instance.host));
            let _ = reply.send(Err(failure.hint("look at the agent on that host")));
            return;
        };
        match self.authorities.commands.logs(&self.fleet, instance, lines, clock::now()) {
            Err(failure) => {
                let _ = reply.send(Err(failure));
            }
            Ok(envelope) => {
                let (command_reply, answer) = oneshot::channel();
                session.send(Outbound { envelope, reply: command_reply });
                let lost = failed(FailureKind::NetworkError, format!("{} did not answer", instance.host));
                tokio::spawn(async move {
                    let _ = reply.send(match answer.await {
                        Ok(CommandReply::Logs(lines)) => Ok(lines),
                        Ok(CommandReply::Refused(failure)) => Err(failure),
                        Ok(CommandReply::Accepted | CommandReply::Duplicate) | Err(_) => Err(lost),
                    });
                });
            }
        }
    }
}

/// A report that changes nothing was taken all the same: telling it again would change nothing either.
fn answer(reply: Reply<CoordinatorReply>, outcome: &Result<(), Refused>) {
    let _ = reply.send(match outcome {
        Ok(()) | Err(Refused::NoChange) => CoordinatorReply::Acknowledged,
        Err(refused) => CoordinatorReply::Refused(refused.to_string()),
    });
}

fn failure_of(refused: Refused) -> Failure {
    match refused {
        Refused::Failure(failure) => *failure,
        Refused::Deployment(_) | Refused::NoChange => {
            Failure::new(FailureKind::DeploymentError, "request", refused.to_string())
        }
    }
}
