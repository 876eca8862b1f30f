//! Agents' connections: who may speak, one stream per message, one stream per command.
//!
//! Whoever has no certificate may enrol and nothing else. The host of every message is the one in the
//! certificate; a certificate that is not the one its host enrolled with gets nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fleetwright_certs::Role;
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::{FleetName, HostName, InstanceId};
use fleetwright_protocol::artifact::CHUNKS_BYTES_MAX;
use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::endpoint::KEEP_ALIVE_INTERVAL;
use fleetwright_protocol::enrol::{EnrolReply, EnrolRequest};
use fleetwright_protocol::frame::{COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX};
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply, MetricsSample, SAMPLES_MAX};
use fleetwright_protocol::{ALPN, ALPN_ENROL, Clock, Envelope, FrameError, close, endpoint, read_frame, write_frame};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::artifacts::{Artifacts, is_sha256};
use crate::engine::{Handle, Request};

/// How many commands may wait for one host; more are sent when it connects the next time.
const OUTBOUND_MAX: usize = 1_024;
/// How long one exchange may take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a peer has to complete its handshake, and, without a certificate, to enrol.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that a newer one of the same host took over from stays open.
const SUPERSEDED_GRACE: Duration = Duration::from_secs(20);
/// How often it is looked whether such a connection is still used. What was on its way when it was replaced has arrived
/// after one of these.
const SUPERSEDED_LOOK_INTERVAL: Duration = KEEP_ALIVE_INTERVAL;
/// How many peers without a certificate are served at once.
const ENROLLING_MAX: usize = 32;

/// A command on its way to a host.
pub(crate) struct Outbound {
    pub(crate) envelope: Envelope,
    pub(crate) reply: oneshot::Sender<CommandReply>,
}

/// The way to one host, over one connection.
#[derive(Clone)]
pub(crate) struct SessionHandle {
    /// Tells connections apart.
    pub(crate) id: u64,
    outbound: mpsc::Sender<Outbound>,
    connection: Connection,
}

impl SessionHandle {
    /// Ends the connection at once: its certificate no longer counts.
    pub(crate) fn revoke(&self) {
        self.connection.close(close::NOT_PERMITTED.into(), b"the host has enrolled anew");
    }

    /// Ends the connection: the host is to come back and tell again what was not taken.
    pub(crate) fn let_go(&self) {
        self.connection.close(close::GOODBYE.into(), b"the coordinator cannot take anything now; come back");
    }

    /// Ends the connection after answers on their way have had time to arrive: a newer one took over.
    pub(crate) fn supersede(self) {
        tokio::spawn(async move {
            tokio::time::sleep(SUPERSEDED_GRACE).await;
            self.connection.close(close::SUPERSEDED.into(), b"a newer connection took over");
        });
    }

    /// From where its peer comes now.
    pub(crate) fn peer_address(&self) -> IpAddr {
        self.connection.remote_address().ip()
    }

    /// From where this connection is still used, though its host has made a newer one from another address. An agent that
    /// has moved uses the one socket it has, so its old connection moves with it or is silent; a peer that goes on
    /// answering from the old address is another one.
    pub(crate) async fn still_used_elsewhere(&self, newer_from: IpAddr) -> Option<IpAddr> {
        // Only what was decrypted counts, and a farewell does not.
        let answers = || {
            let frames = self.connection.stats().frame_rx;
            frames.acks + frames.ping
        };
        if self.peer_address() == newer_from {
            return None;
        }
        let mut before: Option<u64> = None;
        let look = async {
            loop {
                tokio::time::sleep(SUPERSEDED_LOOK_INTERVAL).await;
                let from = self.peer_address();
                if from == newer_from || before.is_some_and(|before| answers() > before) {
                    return Some(from).filter(|from| *from != newer_from);
                }
                before.get_or_insert_with(answers);
            }
        };
        tokio::select! {
            from = look => from,
            _ = self.connection.closed() => None,
        }
    }

    /// Sends a command. Should the queue be full or the connection gone, the command goes out again when the
    /// host connects the next time.
    pub(crate) fn send(&self, outbound: Outbound) {
        if self.outbound.try_send(outbound).is_err() {
            tracing::warn!(session = self.id, "a command waits until its host connects again");
        }
    }
}

/// What all connections share.
struct Serving {
    fleet: FleetName,
    engine: Handle,
    artifacts: Arc<Artifacts>,
    ids: AtomicU64,
    enrolling: Semaphore,
    clock: Clock,
}

/// Accepts agents until the endpoint is closed.
pub(crate) async fn accept(
    endpoint: Endpoint,
    fleet: FleetName,
    engine: Handle,
    artifacts: Arc<Artifacts>,
    clock: Clock,
) {
    let (ids, enrolling) = (AtomicU64::new(1), Semaphore::new(ENROLLING_MAX));
    let serving = Arc::new(Serving { fleet, engine, artifacts, ids, enrolling, clock });
    while let Some(incoming) = endpoint.accept().await {
        // A peer must show that it owns its address before anything is kept for it.
        if !incoming.remote_address_validated() {
            if incoming.retry().is_err() {
                tracing::debug!("a retry could not be sent");
            }
            continue;
        }
        tokio::spawn(admit(incoming, serving.clone()));
    }
}

async fn admit(incoming: Incoming, serving: Arc<Serving>) {
    let from = incoming.remote_address();
    let connection = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::warn!(%from, %error, "a connection was refused in its handshake");
            return;
        }
        Err(_) => return,
    };
    let refuse = |why: &str| {
        tracing::warn!(%from, why, "a connection was refused");
        connection.close(close::NOT_PERMITTED.into(), why.as_bytes());
    };
    match (endpoint::alpn(&connection).as_deref(), endpoint::peer(&connection)) {
        (Some(ALPN_ENROL), _) => match serving.enrolling.try_acquire() {
            Ok(_permit) => enrol(&connection, &serving.engine).await,
            Err(_) => refuse("too many hosts enrol at once; try again"),
        },
        (Some(ALPN), None) => refuse("no client certificate"),
        (Some(ALPN), Some(peer)) if peer.role != Role::Agent => refuse("the certificate is not an agent's"),
        (Some(ALPN), Some(peer)) if peer.fleet != serving.fleet.as_str() => {
            refuse("the certificate is another fleet's")
        }
        (Some(ALPN), Some(peer)) => match peer.name.parse::<HostName>() {
            Ok(host) if is_enrolled(&serving.engine, &host, &connection).await => {
                serve(connection, host, serving).await;
            }
            Ok(_) => refuse("the certificate is not the one its host enrolled with"),
            Err(_) => refuse("the certificate names no host"),
        },
        (_, _) => refuse("unknown protocol"),
    }
}

/// Whether this is the certificate that the host enrolled with last.
async fn is_enrolled(engine: &Handle, host: &HostName, connection: &Connection) -> bool {
    let presented = endpoint::peer_fingerprint(connection);
    let host = host.clone();
    let known =
        engine.look(move |fleet, _, _| fleet.hosts().get(&host).map(|host| host.certificate_sha256.clone())).await;
    presented.is_some() && known.flatten() == presented
}

async fn enrol(connection: &Connection, engine: &Handle) {
    let exchange = async {
        let (mut send, mut receive) = connection.accept_bi().await?;
        let EnrolRequest::V1 { token, request_der } = read_frame(&mut receive, MESSAGE_BYTES_MAX).await?;
        let reply = match engine.ask(|reply| Request::Enrol { token, request_der, reply }).await {
            Some(Ok(credentials)) => EnrolReply::Enrolled(Box::new(credentials)),
            Some(Err(why)) => {
                tracing::warn!(from = %connection.remote_address(), why, "an enrolment was refused");
                EnrolReply::Refused(why)
            }
            None => EnrolReply::Refused("the coordinator is ending".to_owned()),
        };
        write_frame(&mut send, &reply, MESSAGE_BYTES_MAX).await?;
        // The peer closes once it has read the answer.
        connection.closed().await;
        anyhow::Ok(())
    };
    if !matches!(timeout(HANDSHAKE_TIMEOUT, exchange).await, Ok(Ok(()))) {
        connection.close(close::BAD_MESSAGE.into(), b"no enrolment");
    }
}

/// Serves one agent until its connection is gone.
async fn serve(connection: Connection, host: HostName, serving: Arc<Serving>) {
    let id = serving.ids.fetch_add(1, Ordering::Relaxed);
    let (outbound, mut commands) = mpsc::channel::<Outbound>(OUTBOUND_MAX);
    let session = SessionHandle { id, outbound, connection: connection.clone() };
    let sending = connection.clone();
    let sender = tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let connection = sending.clone();
            // One stream per command, so that a large one does not hold up the others.
            tokio::spawn(async move { deliver(&connection, command).await });
        }
    });
    let expired = endpoint::peer_expired(&connection, &serving.clock);
    tokio::pin!(expired);
    loop {
        let (send, receive) = tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok(stream) => stream,
                Err(_) => break,
            },
            () = &mut expired => {
                tracing::warn!(%host, "its certificate is over: the connection is closed");
                connection.close(close::EXPIRED.into(), b"the certificate of this host is over");
                break;
            }
        };
        let (host, serving, session, connection) = (host.clone(), serving.clone(), session.clone(), connection.clone());
        tokio::spawn(async move {
            if let Err(error) = message(send, receive, &host, &serving, session).await {
                tracing::warn!(%host, %error, "a message could not be taken");
                if matches!(error, FrameError::Malformed(_) | FrameError::Trailing(_) | FrameError::TooLarge { .. }) {
                    connection.close(close::BAD_MESSAGE.into(), error.to_string().as_bytes());
                }
            }
        });
    }
    sender.abort();
    let _ = serving.engine.requests.send(Request::HostDisconnected { host, session: id }).await;
}

async fn deliver(connection: &Connection, command: Outbound) {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        write_frame(&mut send, &command.envelope, COMMAND_BYTES_MAX).await?;
        anyhow::Ok(read_frame::<CommandReply>(&mut receive, MESSAGE_BYTES_MAX).await?)
    };
    match timeout(EXCHANGE_TIMEOUT, exchange).await {
        Ok(Ok(reply)) => {
            // Nobody waits for the answers to most commands: what matters comes as a report.
            let _ = command.reply.send(reply);
        }
        Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "a command could not be delivered"),
        Err(_) => {
            tracing::warn!("a host does not answer commands; its connection is closed");
            connection.close(close::GOODBYE.into(), b"no answer to a command");
        }
    }
}

async fn message(
    mut send: SendStream,
    mut receive: RecvStream,
    host: &HostName,
    serving: &Serving,
    session: SessionHandle,
) -> Result<(), FrameError> {
    let engine = &serving.engine;
    let AgentMessage::V1(message) = match timeout(EXCHANGE_TIMEOUT, read_frame(&mut receive, MESSAGE_BYTES_MAX)).await {
        Ok(message) => message?,
        Err(_) => return Ok(()),
    };
    let on_host = |server| InstanceId::new(server, host.clone());
    let reply = match message {
        AgentMessageV1::Hello { view, agent_version: _ } => connected(engine, host, view.into(), session).await,
        AgentMessageV1::Greeting { view, agent_version: _ } => connected(engine, host, view, session).await,
        AgentMessageV1::Step { deployment, server, attempt, report } => {
            let instance = on_host(server);
            engine.ask(|reply| Request::StepReported { instance, deployment, attempt, report, reply }).await
        }
        AgentMessageV1::Health { server, release, report, output } => {
            let instance = on_host(server);
            engine.ask(|reply| Request::HealthReported { instance, release, report, output, reply }).await
        }
        AgentMessageV1::Metrics(sample) => take_samples(engine, host, vec![sample]).await,
        AgentMessageV1::MetricsBatch(samples) if samples.len() > SAMPLES_MAX => {
            Some(CoordinatorReply::Refused(format!("{} samples in one message are too many", samples.len())))
        }
        AgentMessageV1::MetricsBatch(samples) => take_samples(engine, host, samples).await,
        AgentMessageV1::ListChunks { sha256, from } => {
            artifact(serving, host, sha256, move |store, sha256| {
                store.listed(sha256, from).map(CoordinatorReply::Listed)
            })
            .await
        }
        AgentMessageV1::GetChunks { sha256, numbers } => {
            let chunks = move |store: &Artifacts, sha256: &str| store.packed(sha256, &numbers);
            artifact(serving, host, sha256, move |store, sha256| chunks(store, sha256).map(CoordinatorReply::Chunks))
                .await
        }
    };
    match reply {
        Some(reply @ CoordinatorReply::Chunks(_)) => write_frame(&mut send, &reply, CHUNKS_BYTES_MAX).await,
        Some(reply) => write_frame(&mut send, &reply, MESSAGE_BYTES_MAX).await,
        // Without an acknowledgement the agent tells it again.
        None => Ok(()),
    }
}

async fn connected(
    engine: &Handle,
    host: &HostName,
    view: HostView,
    session: SessionHandle,
) -> Option<CoordinatorReply> {
    engine.ask(|reply| Request::HostConnected { host: host.clone(), view, session, reply }).await
}

async fn take_samples(engine: &Handle, host: &HostName, samples: Vec<MetricsSample>) -> Option<CoordinatorReply> {
    let sent = engine.requests.send(Request::Metrics { host: host.clone(), samples }).await;
    sent.ok().map(|()| CoordinatorReply::Acknowledged)
}

/// Answers from an artifact, if it is part of what the host is to stage: nobody reads what is meant for others.
async fn artifact(
    serving: &Serving,
    host: &HostName,
    sha256: String,
    read: impl FnOnce(&Artifacts, &str) -> Result<CoordinatorReply, Failure> + Send + 'static,
) -> Option<CoordinatorReply> {
    if !is_sha256(&sha256) {
        return Some(CoordinatorReply::Refused("that is not the SHA-256 of an artifact".to_owned()));
    }
    let (of, wanted) = (host.clone(), sha256.clone());
    let allowed = serving.engine.look(move |fleet, _, _| fleet.may_fetch(&of, &wanted)).await?;
    if !allowed {
        tracing::warn!(%host, sha256, "a host asked for an artifact that nothing it is to run is made of");
        return Some(CoordinatorReply::Refused("nothing that this host is to run is made of that artifact".to_owned()));
    }
    let store = serving.artifacts.clone();
    let read = tokio::task::spawn_blocking(move || read(&store, &sha256)).await.ok()?;
    Some(read.unwrap_or_else(|failure| CoordinatorReply::Refused(failure.message)))
}
