//! What comes in to the engine, and how it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use fleetwright_certs::Token;
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::deployment::{DeploymentEvent, Options, OrderName};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{FleetEvent, Introduction};
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{DeploymentId, Generation, HostName, InstanceId, ReleaseId, ServerName};
use fleetwright_deploy::instance::StepReport;
use fleetwright_deploy::plan::{Plan, RollbackStrategy};
use fleetwright_deploy::time::Length;
use fleetwright_protocol::command::{CommandBody, CommandReply};
use fleetwright_protocol::enrol::Credentials;
use fleetwright_protocol::report::CoordinatorReply;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::Budgets;
use crate::journal::{self, EventRecord, SqliteStore};
use crate::samples::Samples;
use crate::sessions::SessionHandle;
use crate::view::{Reader, View};

pub(crate) type Reply<T> = oneshot::Sender<T>;

/// Why an agent does not obey an order.
pub(crate) enum NotObeyed {
    /// It has a reason.
    Refused(Failure),
    /// It has seen a later generation than the one in which the command was signed.
    Stale(Generation),
}

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
    /// An agent does not obey an order, or it could not be made.
    NotObeyed { instance: InstanceId, deployment: DeploymentId, attempt: u32, order: OrderName, not_obeyed: NotObeyed },
    /// Whether an external answered.
    External { deployment: DeploymentId, name: ServerName, attempt: u32, failure: Option<Failure> },
    /// Two connections of one host are used at once: from where the older came, and from where the newer.
    HostSeenTwice { host: HostName, addresses: [IpAddr; 2] },
    /// A token for a host, with what is said of it.
    IssueToken { host: HostName, lifetime: Length, introduction: Introduction, reply: Reply<Result<Token, Failure>> },
    /// A host wants to enrol.
    Enrol { token: String, request_der: Vec<u8>, reply: Reply<Result<Credentials, String>> },
    /// Start a deployment.
    Start {
        plan: Arc<Plan>,
        options: Options,
        intents: BTreeMap<HostName, String>,
        reply: Reply<Result<DeploymentId, Failure>>,
    },
    /// Undo a deployment.
    RollBack {
        deployment: DeploymentId,
        by: String,
        strategy: Option<RollbackStrategy>,
        only: BTreeSet<InstanceId>,
        intents: BTreeMap<HostName, String>,
        reply: Reply<Result<(), Failure>>,
    },
    /// What an operator decides about a deployment.
    Control { deployment: DeploymentId, event: Box<DeploymentEvent>, reply: Reply<Result<(), Failure>> },
    /// What an operator decides about the whole fleet or a host.
    Decide { event: FleetEvent, reply: Reply<Result<(), Failure>> },
    /// Ask an agent for something that changes nothing.
    LookAt { host: HostName, body: CommandBody, reply: Reply<Result<CommandReply, Failure>> },
    /// A host has seen a later generation than the one in which it was told of an intent.
    NotHeard { host: HostName, deployment: DeploymentId, generation: Generation },
    /// What a host may have missed can be sent now.
    Resend { host: HostName },
}

/// A request, and who asks.
pub(crate) struct Asked {
    pub(super) actor: Actor,
    pub(super) request: Request,
}

impl From<Request> for Asked {
    /// Hosts are known by their connections; what nobody else asks is the coordinator's own.
    fn from(request: Request) -> Self {
        let actor = match &request {
            Request::HostConnected { host, .. }
            | Request::HostDisconnected { host, .. }
            | Request::HostSeenTwice { host, .. } => Actor::Host(host.clone()),
            Request::StepReported { instance, .. }
            | Request::HealthReported { instance, .. }
            | Request::NotObeyed { instance, .. } => Actor::Host(instance.host.clone()),
            Request::External { .. }
            | Request::IssueToken { .. }
            | Request::Enrol { .. }
            | Request::Start { .. }
            | Request::RollBack { .. }
            | Request::Control { .. }
            | Request::Decide { .. }
            | Request::LookAt { .. }
            | Request::NotHeard { .. }
            | Request::Resend { .. } => Actor::Coordinator,
        };
        Self { actor, request }
    }
}

/// What others need of the engine: a way in for what changes the fleet, and what is read past it.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) requests: mpsc::Sender<Asked>,
    pub(crate) records: broadcast::Sender<EventRecord>,
    /// How much each host adds to the journal.
    pub(crate) budgets: Budgets,
    pub(crate) samples: Samples,
    pub(super) view: Reader,
    /// The journal, for reading; nothing once the engine has ended.
    pub(super) journal: Arc<Mutex<Option<SqliteStore>>>,
}

impl Handle {
    /// Sends a request and waits for its answer; nothing when the engine has ended.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply).into()).await.ok()?;
        answer.await.ok()
    }

    /// The same, asked by somebody.
    pub(crate) async fn ask_as<T>(&self, actor: Actor, request: impl FnOnce(Reply<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Asked { actor, request: request(reply) }).await.ok()?;
        answer.await.ok()
    }

    /// Whether the engine has ended: what is read is no longer renewed.
    pub(crate) fn has_ended(&self) -> bool {
        self.requests.is_closed()
    }

    /// Reads what is durable of the fleet. The engine is not asked.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        self.view.read(read)
    }

    /// What people are told about the entries after a number, at most so many. What the fleet does not show yet comes later.
    pub(crate) async fn records(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>, Failure> {
        let shown = self.read(|view| view.seq);
        let mut records = self.read_journal(move |journal| journal::records(journal, after, limit)).await?;
        records.retain(|record| record.seq <= shown);
        Ok(records)
    }

    /// Closes the journal for readers: whoever closes it last tidies its file up, and that is to be the engine.
    pub(super) fn end_reading(&self) {
        drop(self.journal.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Reads in the journal's file, beside everything else.
    pub(crate) async fn read_journal<T: Send + 'static, E: Display + Send + 'static>(
        &self,
        read: impl FnOnce(&SqliteStore) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure> {
        let journal = self.journal.clone();
        let failed = |why: String| {
            let failure = Failure::new(FailureKind::ResourceError, "journal", why);
            failure.hint("`fleetwright journal verify` tells whether the journal is whole")
        };
        let read = move || journal.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(read);
        match tokio::task::spawn_blocking(read).await {
            Ok(Some(read)) => read.map_err(|error| failed(error.to_string())),
            Ok(None) => {
                let failure = Failure::new(FailureKind::NetworkError, "request", "the coordinator is ending");
                Err(failure.hint("try again"))
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
