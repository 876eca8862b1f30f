//! A coordinator inside a program: over a state folder, on an endpoint and by a clock that the program gives it.
//! `fleetwright coordinator` is one such program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fleetwright_certs::Token;
use fleetwright_deploy::actor::Actor;
use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::deployment::{DeploymentEvent, Options};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::{Fleet, Introduction};
use fleetwright_deploy::ids::{DeploymentId, FleetName, Generation, HostName, InstanceId};
use fleetwright_deploy::plan::{Plan, RollbackStrategy};
use fleetwright_deploy::time::Length;
use fleetwright_protocol::endpoint::{self, TlsIdentity};
use fleetwright_protocol::{Clock, FrameError, close};
use quinn::Endpoint;
use tokio::sync::oneshot;

use crate::artifacts::Artifacts;
use crate::commands::CommandMaker;
use crate::engine::{Authorities, Engine, Handle, Reply, Request};
use crate::journal::{self, Journal, SqliteStore};
use crate::operator_key::OperatorKey;
use crate::secrets::Secrets;
use crate::sessions;
use crate::state_dir::{FleetFile, StateDir};

/// How long the last words to agents may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// The coordinator of a fleet, before it works.
pub struct Coordinator {
    name: FleetName,
    engine: Engine,
    handle: Handle,
    identity: TlsIdentity,
    reset_key: [u8; 32],
    authority_fingerprint: String,
    artifacts: Arc<Artifacts>,
    secrets: Arc<Secrets>,
    clock: Clock,
    lock: File,
}

/// What an operator does by way of a coordinator in the same program. The key is the operator's own: the coordinator has
/// only its public half.
#[derive(Clone)]
pub struct Operator {
    handle: Handle,
    fleet: FleetName,
    key: Arc<OperatorKey>,
    authority_fingerprint: String,
    clock: Clock,
}

impl Coordinator {
    /// Makes the state folder of a fleet: its authority, its keys, and where it listens. It does what is signed with the
    /// key whose public half, as a PEM text, it is given here.
    pub fn create(folder: &Path, fleet: &FleetName, listen: &str, operator_public: &str, clock: &Clock) -> Result<()> {
        StateDir::new(folder)?.create(fleet, listen, operator_public, clock)
    }

    /// Opens a state folder. One coordinator at a time works on it.
    pub fn open(folder: &Path, clock: Clock) -> Result<Self> {
        let state_dir = StateDir::new(folder)?;
        let FleetFile { name, .. } = state_dir.fleet()?;
        let lock = state_dir.lock()?;
        let (journal, fleet) = open_journal(&state_dir, &name)?;
        let reader = SqliteStore::open_read_only(&state_dir.journal())?;
        let secrets = Arc::new(Secrets::new(state_dir.secrets(), state_dir.values_key()?));
        let authorities = Authorities {
            authority: state_dir.authority(&name)?,
            commands: CommandMaker { signer: state_dir.command_signer()?, secrets: secrets.clone() },
            operator_keys: state_dir.operator_keys()?,
            operator_public: state_dir.operator_public()?,
        };
        let (engine, handle) = Engine::open(fleet, journal, reader, authorities, clock.clone());
        let authority_fingerprint = state_dir.authority_fingerprint()?;
        let (identity, reset_key) = (state_dir.tls()?, state_dir.reset_key()?);
        let artifacts = Arc::new(Artifacts::new(state_dir.artifacts()));
        Ok(Self { name, engine, handle, identity, reset_key, authority_fingerprint, artifacts, secrets, clock, lock })
    }

    /// The settings that the endpoint must have: of its socket, and of the connections it accepts.
    pub fn endpoint_config(&self) -> Result<(quinn::EndpointConfig, quinn::ServerConfig)> {
        Ok((endpoint::coordinator_socket(&self.reset_key), endpoint::coordinator(&self.identity, &self.clock)?))
    }

    /// The way in of the operator who has this key.
    pub fn operator(&self, key: OperatorKey) -> Operator {
        Operator {
            handle: self.handle.clone(),
            fleet: self.name.clone(),
            key: Arc::new(key),
            authority_fingerprint: self.authority_fingerprint.clone(),
            clock: self.clock.clone(),
        }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn secrets(&self) -> Arc<Secrets> {
        self.secrets.clone()
    }

    pub(crate) fn artifacts(&self) -> Arc<Artifacts> {
        self.artifacts.clone()
    }

    /// Works for the agents that dial the endpoint, until `until` ends or the journal fails; then it tells them that
    /// it leaves. The state folder stays locked until the endpoint is gone.
    pub async fn run(self, endpoint: Endpoint, until: impl Future<Output = Result<()>>) -> Result<()> {
        let (stop, stopped) = oneshot::channel();
        let mut engine = pin!(self.engine.run(stopped));
        let agents = sessions::accept(endpoint.clone(), self.name, self.handle, self.artifacts, self.clock);
        let serving = async {
            tokio::select! {
                () = agents => Ok(()),
                ended = until => ended,
            }
        };
        let outcome = tokio::select! {
            ended = &mut engine => ended,
            outcome = serving => {
                drop(stop);
                // What it is in the midst of is durable then.
                engine.await.and(outcome)
            }
        };
        endpoint.close(close::GOODBYE.into(), b"the coordinator is ending");
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await;
        drop(endpoint);
        drop(self.lock);
        outcome
    }
}

impl Operator {
    /// The fingerprint that agents know the fleet's authority by, `sha256:HEX`.
    pub fn authority_fingerprint(&self) -> &str {
        &self.authority_fingerprint
    }

    /// Looks at what is durable of the fleet; an error when the coordinator has ended. Whoever was answered sees what it has
    /// changed.
    pub fn look<T>(&self, look: impl FnOnce(&Fleet) -> T) -> Result<T, Failure> {
        if self.handle.has_ended() {
            return Err(ending());
        }
        Ok(self.handle.read(|view| look(&view.fleet)))
    }

    /// A token that enrols a host, of which nothing is said.
    pub async fn issue_token(&self, host: HostName, lifetime: Length) -> Result<Token, Failure> {
        let introduction = Introduction::default();
        self.ask(|reply| Request::IssueToken { host, lifetime, introduction, reply }).await
    }

    /// Signs the intents of a plan, and starts it.
    pub async fn start(&self, plan: Plan, options: Options) -> Result<DeploymentId, Failure> {
        let generation = plan.parent.next();
        let intents = self.intents(&DeploymentId::new(generation, &plan.id()), &plan, (Purpose::Deploy, generation))?;
        let plan = Arc::new(plan);
        self.ask(|reply| Request::Start { plan, options, intents, reply }).await
    }

    /// Undoes a deployment, or what it did to some instances.
    pub async fn roll_back(
        &self,
        deployment: DeploymentId,
        by: String,
        strategy: Option<RollbackStrategy>,
        only: BTreeSet<InstanceId>,
    ) -> Result<(), Failure> {
        let found = self.look(|fleet| Some((fleet.deployment(&deployment)?.plan().clone(), fleet.generation())));
        let (plan, generation) = found?.ok_or_else(|| {
            Failure::new(FailureKind::ConfigurationError, "rollback", format!("there is no deployment {deployment}"))
        })?;
        let to = (&only, generation.next());
        let intents = self.key.sign_rollback(&self.fleet, &deployment, &plan, to, self.clock.now());
        let intents = intents.map_err(not_signed)?;
        self.ask(|reply| Request::RollBack { deployment, by, strategy, only, intents, reply }).await
    }

    /// Decides about a deployment.
    pub async fn decide(&self, deployment: DeploymentId, event: DeploymentEvent) -> Result<(), Failure> {
        self.ask(|reply| Request::Control { deployment, event: Box::new(event), reply }).await
    }

    fn intents(
        &self,
        deployment: &DeploymentId,
        plan: &Plan,
        to: (Purpose, Generation),
    ) -> Result<BTreeMap<HostName, String>, Failure> {
        let signed = self.key.sign(&self.fleet, deployment, plan, to, self.clock.now());
        signed.map_err(not_signed)
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<Result<T, Failure>>) -> Request) -> Result<T, Failure> {
        let actor = Actor::User(rustix::process::geteuid().as_raw());
        self.handle.ask_as(actor, request).await.unwrap_or_else(|| Err(ending()))
    }
}

fn not_signed(error: FrameError) -> Failure {
    Failure::new(FailureKind::PermissionError, "intent", error.to_string())
}

fn ending() -> Failure {
    Failure::new(FailureKind::NetworkError, "request", "the coordinator is ending").hint("try again")
}

/// Opens the journal, and says what was found wrong with it.
fn open_journal(state_dir: &StateDir, name: &FleetName) -> Result<(Journal<SqliteStore>, Fleet)> {
    let path = state_dir.journal();
    let (journal, fleet, opened, damaged) = journal::open_file(&path, name)?;
    if let Some(damaged) = damaged {
        let damaged = damaged.display();
        tracing::error!(%damaged, entries = journal.last(), "the journal was damaged: it goes on with its whole entries, and the damaged file is kept");
    }
    if opened.set_aside > 0 {
        tracing::warn!(
            entries = opened.set_aside,
            after = journal.last(),
            "the journal ended in torn entries: they were set aside"
        );
    }
    tracing::info!(entries = journal.last(), snapshot = opened.snapshot, folded = opened.folded, "the journal is open");
    Ok((journal, fleet))
}
