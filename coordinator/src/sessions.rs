//! Agents' connections: who may speak, one stream per message, one stream per command.
//!
//! Whoever has no certificate may enrol and nothing else. The host of every message is the one in the
//! certificate; a certificate that is not the one its host enrolled with gets nothing. There is a limit to what each of
//! them may take of the coordinator: peers in their handshake (`handshakes`), those without a certificate (`strangers`),
//! and each host (`allowance`).

mod allowance;
mod handshakes;
mod strangers;
mod told;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fleetwright_certs::Role;
use fleetwright_deploy::ids::{FleetName, HostName};
use fleetwright_deploy::shares::Network;
use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::endpoint::{KEEP_ALIVE_INTERVAL, STREAMS_MAX};
use fleetwright_protocol::frame::{COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, read_length, read_payload};
use fleetwright_protocol::{ALPN, ALPN_ENROL, Clock, Envelope, FrameError, close, endpoint, write_frame};
use quinn::{Connection, ConnectionError, Endpoint, Incoming};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use self::allowance::{Allowance, Allowances};
use self::handshakes::{Handshakes, Place};
use self::strangers::Strangers;
use crate::artifacts::Artifacts;
use crate::engine::{Handle, Request};
use crate::said::Said;

/// How many commands may wait for one host, beside those on their way. More are sent when it connects the next time, which
/// it is made to do.
const OUTBOUND_MAX: usize = 1_024;
/// How long one exchange may take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a peer has to complete its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection that a newer one of the same host took over from stays open.
const SUPERSEDED_GRACE: Duration = Duration::from_secs(20);
/// How often it is looked whether such a connection is still used. What was on its way when it was replaced has arrived
/// after one of these.
const SUPERSEDED_LOOK_INTERVAL: Duration = KEEP_ALIVE_INTERVAL;

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
    state: Arc<State>,
}

/// What has become of a connection.
#[derive(Default)]
struct State {
    /// Its host has said who it is, and that was taken.
    greeted: AtomicBool,
    /// More commands were to be sent over it than may wait.
    overflowed: AtomicBool,
}

impl SessionHandle {
    /// Ends the connection at once: its certificate no longer counts.
    pub(crate) fn revoke(&self) {
        self.connection.close(close::NOT_PERMITTED.into(), b"the host has enrolled anew");
    }

    /// SHA-256 of the certificate that its peer presented, in hexadecimal.
    pub(crate) fn certificate_sha256(&self) -> Option<String> {
        endpoint::peer_fingerprint(&self.connection)
    }

    /// Whether the connection is not gone yet.
    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether its host has said who it is. Before that, nothing else that comes over it counts.
    fn has_greeted(&self) -> bool {
        self.state.greeted.load(Ordering::Acquire)
    }

    fn greeted(&self) {
        self.state.greeted.store(true, Ordering::Release);
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
    pub(crate) fn peer_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// From where this connection is still used, though its host has made a newer one from another address. An agent that
    /// has moved uses the one socket it has, so its old connection moves with it or is silent; a peer that goes on
    /// answering from the old address is another one. Behind a translation of addresses, two agents have two ports.
    pub(crate) async fn still_used_elsewhere(&self, newer_from: SocketAddr) -> Option<IpAddr> {
        // Only what was decrypted counts, and a farewell does not.
        let answers = || {
            let frames = self.connection.stats().frame_rx;
            frames.acks + frames.ping
        };
        if self.peer_address() == newer_from {
            return None;
        }
        let elsewhere = || Some(self.peer_address()).filter(|from| *from != newer_from).map(|from| from.ip());
        let before = AtomicU64::new(answers());
        let has_answered = || answers() > before.load(Ordering::Relaxed);
        let look = async {
            let mut is_settled = false;
            loop {
                tokio::time::sleep(SUPERSEDED_LOOK_INTERVAL).await;
                if elsewhere().is_none() || (is_settled && has_answered()) {
                    return elsewhere();
                }
                // What was on its way has arrived by now.
                if !is_settled {
                    before.store(answers(), Ordering::Relaxed);
                    is_settled = true;
                }
            }
        };
        tokio::select! {
            from = look => from,
            // Whoever makes yet another connection does not end the look that way.
            why = self.connection.closed() => {
                elsewhere().filter(|_| matches!(why, ConnectionError::LocallyClosed) && has_answered())
            }
        }
    }

    /// Sends a command. Should the connection be gone, it goes out again when the host connects the next time. So it does
    /// should the queue be full: the connection is closed once what waits in it is out.
    pub(crate) fn send(&self, outbound: Outbound) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.outbound.try_send(outbound) {
            self.state.overflowed.store(true, Ordering::Release);
        }
    }
}

/// What all connections share.
struct Serving {
    fleet: FleetName,
    engine: Handle,
    artifacts: Arc<Artifacts>,
    ids: AtomicU64,
    strangers: Strangers,
    allowances: Allowances,
    said: Said,
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
    let (ids, strangers, allowances) = (AtomicU64::new(1), Strangers::new(), Allowances::default());
    let said = Said::new(clock.clone());
    let serving = Arc::new(Serving { fleet, engine, artifacts, ids, strangers, allowances, said, clock });
    let handshakes = Handshakes::new(serving.clock.now());
    while let Some(incoming) = endpoint.accept().await {
        // A peer must show that it owns its address before anything is kept for it.
        if !incoming.remote_address_validated() {
            if incoming.retry().is_err() {
                tracing::debug!("a retry could not be sent");
            }
            continue;
        }
        let from = incoming.remote_address();
        let network = Network::of(from.ip());
        if !handshakes.lets_in(network, serving.clock.now()) {
            if let Some(unsaid) = serving.said.says("no place", None) {
                tracing::warn!(%from, unsaid, "too many connections are being made at once: one must wait");
            }
            // Whoever is in earnest sends the same packet again after a while. An answer would only make the flood larger.
            incoming.ignore();
            continue;
        }
        // A task that ends early drops its handshake; whoever is in earnest comes again.
        let begin = |place| tokio::spawn(admit(incoming, place, serving.clone())).abort_handle();
        let gone = handshakes.begin(network, begin);
        if gone > 0
            && let Some(unsaid) = serving.said.says("no place", None)
        {
            tracing::warn!(%from, gone, unsaid, "too many connections are being made at once: the slowest had to go");
        }
    }
}

async fn admit(incoming: Incoming, place: Place, serving: Arc<Serving>) {
    let from = incoming.remote_address();
    let connection = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            if let Some(unsaid) = serving.said.says("handshake", None) {
                tracing::warn!(%from, %error, unsaid, "a connection was refused in its handshake");
            }
            return;
        }
        Err(_) => {
            if let Some(unsaid) = serving.said.says("slow handshake", None) {
                tracing::warn!(%from, unsaid, "a peer did not complete its handshake");
            }
            return;
        }
    };
    if !place.leave() {
        return;
    }
    let id = serving.ids.fetch_add(1, Ordering::Relaxed);
    let refuse = |why: &'static str| {
        if let Some(unsaid) = serving.said.says(why, None) {
            tracing::warn!(%from, why, unsaid, "a connection was refused");
        }
        connection.close(close::NOT_PERMITTED.into(), why.as_bytes());
    };
    match (endpoint::alpn(&connection).as_deref(), endpoint::peer(&connection)) {
        (Some(ALPN_ENROL), _) => strangers::serve(&connection, id, &serving).await,
        (Some(ALPN), None) => refuse("no client certificate"),
        (Some(ALPN), Some(peer)) if peer.role != Role::Agent => refuse("the certificate is not an agent's"),
        (Some(ALPN), Some(peer)) if peer.fleet != serving.fleet.as_str() => {
            refuse("the certificate is another fleet's")
        }
        (Some(ALPN), Some(peer)) => match peer.name.parse::<HostName>() {
            Ok(host) if is_enrolled(&serving.engine, &host, &connection) => {
                serve(connection, id, host, serving).await;
            }
            Ok(_) => refuse("the certificate is not the one its host enrolled with"),
            Err(_) => refuse("the certificate names no host"),
        },
        (_, _) => refuse("unknown protocol"),
    }
}

/// Whether this is the certificate that the host enrolled with last.
fn is_enrolled(engine: &Handle, host: &HostName, connection: &Connection) -> bool {
    let presented = endpoint::peer_fingerprint(connection);
    presented.is_some_and(|presented| {
        engine.read(|view| view.fleet.hosts().get(host).is_some_and(|host| host.certificate_sha256 == presented))
    })
}

/// Serves one agent until its connection is gone.
async fn serve(connection: Connection, id: u64, host: HostName, serving: Arc<Serving>) {
    let allowance = serving.allowances.of(&host, &serving.clock);
    let Some(_open) = allowance.open(id, &connection) else {
        if let Some(unsaid) = serving.said.says("connections", Some(&host)) {
            tracing::warn!(%host, unsaid, "a host makes too many connections: one was refused");
        }
        connection.close(close::BUSY.into(), b"too many connections; come back later");
        return;
    };
    endpoint::widen(&connection);
    let (outbound, commands) = mpsc::channel::<Outbound>(OUTBOUND_MAX);
    let session = SessionHandle { id, outbound, connection: connection.clone(), state: Arc::default() };
    let way = Way {
        host: host.clone(),
        connection: connection.clone(),
        allowance: allowance.clone(),
        state: session.state.clone(),
        serving: serving.clone(),
    };
    let sender = tokio::spawn(Arc::new(way).deliver_all(commands));
    let expired = endpoint::peer_expired(&connection, &serving.clock);
    tokio::pin!(expired);
    loop {
        let next = async {
            allowance.message().await;
            connection.accept_bi().await
        };
        let (send, receive) = tokio::select! {
            stream = next => match stream {
                Ok(stream) => stream,
                Err(_) => break,
            },
            () = &mut expired => {
                tracing::warn!(%host, "its certificate is over: the connection is closed");
                connection.close(close::EXPIRED.into(), b"the certificate of this host is over");
                break;
            }
        };
        let (host, serving, session) = (host.clone(), serving.clone(), session.clone());
        let (connection, allowance) = (connection.clone(), allowance.clone());
        tokio::spawn(async move {
            let from = told::Teller { host: &host, session, allowance: &allowance };
            if let Err(error) = told::message(send, receive, from, &serving).await {
                if let Some(unsaid) = serving.said.says("message", Some(&host)) {
                    tracing::warn!(%host, %error, unsaid, "a message could not be taken");
                }
                if matches!(error, FrameError::Malformed(_) | FrameError::Trailing(_) | FrameError::TooLarge { .. }) {
                    connection.close(close::BAD_MESSAGE.into(), error.to_string().as_bytes());
                }
            }
        });
    }
    sender.abort();
    let _ = serving.engine.requests.send(Request::HostDisconnected { host, session: id }.into()).await;
}

/// The way that commands take to a host over one connection.
struct Way {
    host: HostName,
    connection: Connection,
    allowance: Arc<Allowance>,
    state: Arc<State>,
    serving: Arc<Serving>,
}

impl Way {
    /// Delivers commands, as many at once as there may be streams.
    async fn deliver_all(self: Arc<Self>, mut commands: mpsc::Receiver<Outbound>) {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX as usize));
        // The place comes before the command, so that no more are out of the queue than can be on their way.
        while let Ok(stream) = streams.clone().acquire_owned().await {
            let Some(command) = commands.recv().await else { return };
            let way = self.clone();
            // One stream per command, so that a large one does not hold up the others.
            tokio::spawn(async move {
                way.deliver(command).await;
                drop(stream);
            });
            if commands.is_empty() && self.state.overflowed.load(Ordering::Acquire) {
                let _all_out = streams.acquire_many(STREAMS_MAX).await;
                if let Some(unsaid) = self.serving.said.says("overflow", Some(&self.host)) {
                    tracing::warn!(host = %self.host, unsaid, "more commands wait than may: the rest follows when the host connects again");
                }
                self.connection.close(close::GOODBYE.into(), b"more commands wait for this host; come back");
                return;
            }
        }
    }

    async fn deliver(&self, command: Outbound) {
        let (host, said) = (&self.host, &self.serving.said);
        let exchange = async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            write_frame(&mut send, &command.envelope, COMMAND_BYTES_MAX).await?;
            let bytes = read_length(&mut receive, MESSAGE_BYTES_MAX).await?;
            let _room = self.allowance.frame(bytes).await;
            anyhow::Ok(read_payload::<CommandReply>(&mut receive, bytes).await?)
        };
        match timeout(EXCHANGE_TIMEOUT, exchange).await {
            Ok(Ok(reply)) => {
                // Nobody waits for the answers to most commands: what matters comes as a report.
                let _ = command.reply.send(reply);
            }
            Ok(Err(error)) => {
                if let Some(unsaid) = said.says("a command", Some(host)) {
                    tracing::warn!(%host, error = format!("{error:#}"), unsaid, "a command could not be delivered");
                }
            }
            Err(_) => {
                if let Some(unsaid) = said.says("no answer", Some(host)) {
                    tracing::warn!(%host, unsaid, "a host does not answer commands; its connection is closed");
                }
                self.connection.close(close::GOODBYE.into(), b"no answer to a command");
            }
        }
    }
}
