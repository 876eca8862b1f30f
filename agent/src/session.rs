//! The session with the coordinator: the agent dials, says who its host is, obeys commands and tells.
//!
//! A connection that is lost is made again, after a pause that doubles and is drawn at random, so that a
//! thousand agents do not come back in the same moment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleetwright_certs::{COORDINATOR_DNS_NAME, Role};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::bounds;
use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::frame::{COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, encode};
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply, MetricsSample};
use fleetwright_protocol::{Clock, Envelope, close, endpoint, read_frame, write_frame};
use quinn::{Connection, Endpoint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::engine::{Handle, Input};
use crate::enroll::resolve;
use crate::identity::AgentIdentity;
use crate::journal::{ConnectionSerial, Outgoing};
use crate::machine::{Machine, Sampler};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long one exchange may take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that a newer one replaces stays open for the answers that are on their way over it.
const REPLACED_GRACE: Duration = Duration::from_secs(5);
/// The pause between two samples of the metrics, and between two messages with what has come together.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
const METRICS_INTERVAL: Duration = Duration::from_secs(30);
/// How many samples are kept for a coordinator that is away: those of the last hour.
const SAMPLES_KEPT: usize = 360;

/// Samples that have yet to be told, the oldest first.
type Samples = Arc<Mutex<VecDeque<MetricsSample>>>;

pub(crate) struct Session {
    identity: AgentIdentity,
    machine: Arc<dyn Machine>,
    endpoint: Endpoint,
    clock: Clock,
    inputs: mpsc::Sender<Input>,
    outbox: watch::Receiver<Arc<Vec<Outgoing>>>,
    health: watch::Receiver<Arc<BTreeMap<ServerName, AgentMessageV1>>>,
    watched: watch::Receiver<Arc<BTreeSet<ServerName>>>,
    again: watch::Receiver<u64>,
    serial: ConnectionSerial,
    /// Says that this host has become known better than it was told.
    views: watch::Receiver<u64>,
    samples: Samples,
    /// The newest report that was acknowledged: the outbox may still show it for a moment.
    told: i64,
}

/// Why a connection is no longer used.
enum Over {
    /// It is gone.
    Lost(anyhow::Error),
    /// A report must go over a newer one, or commands that were left for later must be sent again.
    NewerWanted,
}

impl Session {
    /// A session by way of an endpoint that presents the agent's certificate.
    pub(crate) fn new(
        identity: AgentIdentity,
        machine: Arc<dyn Machine>,
        endpoint: Endpoint,
        clock: Clock,
        handle: Handle,
    ) -> Result<Self> {
        let Handle { inputs, outbox, health, watched, again } = handle;
        let mut run = [0; 8];
        getrandom::fill(&mut run).context("random numbers")?;
        let views = machine.views();
        let serial = ConnectionSerial { run: i64::from_le_bytes(run), count: 0 };
        Ok(Self {
            identity,
            machine,
            endpoint,
            clock,
            inputs,
            outbox,
            health,
            watched,
            again,
            serial,
            views,
            samples: Samples::default(),
            told: 0,
        })
    }

    /// Keeps a connection, and takes samples, for as long as the agent lives.
    pub(crate) async fn run(self) {
        let sampling = sample(self.machine.sampler(), self.watched.clone(), self.samples.clone());
        tokio::join!(sampling, self.keep_connected());
    }

    async fn keep_connected(mut self) {
        let mut pause = BACKOFF_MIN;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    pause = BACKOFF_MIN;
                    tracing::info!(coordinator = self.identity.coordinator, "connected");
                    match self.serve(&connection).await {
                        Over::NewerWanted => {
                            tracing::info!("making a fresh connection");
                            tokio::spawn(async move {
                                sleep(REPLACED_GRACE).await;
                                connection.close(close::GOODBYE.into(), b"replaced");
                            });
                            continue;
                        }
                        Over::Lost(error) => {
                            tracing::warn!(error = format!("{error:#}"), "connection lost");
                        }
                    }
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "no connection to the coordinator"),
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Dials, checks that it is a coordinator of this fleet, and says who this host is.
    async fn connect(&mut self) -> Result<Connection> {
        self.views.mark_unchanged();
        let view = self.machine.view().await;
        let to = resolve(&self.identity.coordinator).await?;
        let connecting = self.endpoint.connect(to, COORDINATOR_DNS_NAME)?;
        let connection = timeout(CONNECT_TIMEOUT, connecting).await.context("no answer")??;
        let peer = endpoint::peer(&connection).context("the coordinator presented no identity")?;
        if peer.role != Role::Coordinator || peer.fleet != self.identity.fleet.as_str() {
            connection.close(close::NOT_PERMITTED.into(), b"not a coordinator of this fleet");
            bail!("{} is no coordinator of fleet {}", peer.uri(), self.identity.fleet);
        }
        if let Some(why) = greet(&connection, view).await? {
            bail!("the coordinator refuses this host: {why}");
        }
        self.serial.count += 1;
        self.machine.connected(&connection);
        let _ = self.inputs.send(Input::Connected(self.serial)).await;
        Ok(connection)
    }

    /// Obeys and tells over one connection until it is over.
    async fn serve(&mut self, connection: &Connection) -> Over {
        self.outbox.mark_changed();
        self.health.mark_changed();
        self.again.mark_unchanged();
        let commands = tokio::spawn(obey(connection.clone(), self.inputs.clone(), self.serial));
        let metrics = tokio::spawn(tell_metrics(connection.clone(), self.samples.clone()));
        let clock = self.clock.clone();
        let expired = endpoint::peer_expired(connection, &clock);
        tokio::pin!(expired);
        let over = loop {
            // Reports before health: what became of a step decides which release a health report is about.
            tokio::select! {
                biased;
                lost = connection.closed() => break Over::Lost(lost.into()),
                () = &mut expired => {
                    connection.close(close::EXPIRED.into(), b"the coordinator's certificate is over");
                    break Over::Lost(anyhow::anyhow!("the coordinator's certificate is over"));
                }
                changed = self.outbox.changed() => {
                    if changed.is_err() {
                        break Over::Lost(anyhow::anyhow!("the agent is ending"));
                    }
                    let reports = Arc::clone(&self.outbox.borrow_and_update());
                    if let Err(over) = self.tell_reports(connection, &reports).await {
                        break over;
                    }
                }
                Ok(()) = self.again.changed() => break Over::NewerWanted,
                Ok(()) = self.views.changed() => {
                    let view = self.machine.view().await;
                    match greet(connection, view).await {
                        Ok(None) => {}
                        // It is told again on the next connection.
                        Ok(Some(why)) => tracing::warn!(why, "the coordinator does not take in what this host has now"),
                        Err(error) => break Over::Lost(error),
                    }
                }
                Ok(()) = self.health.changed() => {
                    let messages = Arc::clone(&self.health.borrow_and_update());
                    if let Err(error) = tell_health(connection, &messages).await {
                        break Over::Lost(error);
                    }
                }
            }
        };
        metrics.abort();
        if matches!(over, Over::Lost(_)) {
            commands.abort();
        }
        over
    }

    async fn tell_reports(&mut self, connection: &Connection, reports: &[Outgoing]) -> Result<(), Over> {
        for report in reports {
            if report.number <= self.told {
                continue;
            }
            let too_old =
                |not_over: ConnectionSerial| not_over.run == self.serial.run && self.serial.count <= not_over.count;
            if report.not_over.is_some_and(too_old) {
                return Err(Over::NewerWanted);
            }
            let reply = tell(connection, report.message.clone()).await.map_err(Over::Lost)?;
            if let CoordinatorReply::Refused(why) = reply {
                tracing::warn!(why, "the coordinator did not take a report");
            }
            self.told = report.number;
            let _ = self.inputs.send(Input::Told(report.number)).await;
        }
        Ok(())
    }
}

/// Says who this host is: first on every connection, and again when more of it is known. Gives why that is refused.
async fn greet(connection: &Connection, view: HostView) -> Result<Option<String>> {
    let greeting = AgentMessageV1::Greeting { agent_version: env!("CARGO_PKG_VERSION").to_owned(), view };
    match tell(connection, greeting).await? {
        CoordinatorReply::Acknowledged | CoordinatorReply::Listed(_) | CoordinatorReply::Chunks(_) => Ok(None),
        CoordinatorReply::Refused(why) => Ok(Some(why)),
    }
}

/// Health is told whole each time: the coordinator takes what is new.
async fn tell_health(connection: &Connection, messages: &BTreeMap<ServerName, AgentMessageV1>) -> Result<()> {
    for message in messages.values() {
        if let CoordinatorReply::Refused(why) = tell(connection, message.clone()).await? {
            tracing::debug!(why, "the coordinator did not take a health report");
        }
    }
    Ok(())
}

/// Tells one message. One that does not fit its frame is cut, and counts as told if nothing is left of it: what cannot
/// be told never ends a connection, and is not tried again.
async fn tell(connection: &Connection, message: AgentMessageV1) -> Result<CoordinatorReply> {
    let Some(message) = sendable(message) else { return Ok(CoordinatorReply::Acknowledged) };
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        write_frame(&mut send, &AgentMessage::V1(message), MESSAGE_BYTES_MAX).await?;
        Ok(read_frame(&mut receive, MESSAGE_BYTES_MAX).await?)
    };
    timeout(EXCHANGE_TIMEOUT, exchange).await.context("the coordinator does not answer")?
}

fn sendable(message: AgentMessageV1) -> Option<AgentMessageV1> {
    let message = message.bounded();
    let bytes = encode(&message, usize::MAX).map_or(usize::MAX, |bytes| bytes.len() + 1);
    if bytes <= MESSAGE_BYTES_MAX {
        return Some(message);
    }
    tracing::error!(bytes, limit = MESSAGE_BYTES_MAX, "a message is too large to be told; what is left of it is");
    message.in_place_of_too_large(bytes)
}

/// Takes commands, one stream each, until the connection is gone.
async fn obey(connection: Connection, inputs: mpsc::Sender<Input>, over: ConnectionSerial) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let inputs = inputs.clone();
        tokio::spawn(async move {
            let exchange = async {
                let envelope: Envelope = read_frame(&mut receive, COMMAND_BYTES_MAX).await?;
                let (reply, answer) = oneshot::channel();
                inputs.send(Input::Command { envelope: Box::new(envelope), over, reply }).await?;
                let answer: CommandReply = answer.await?;
                write_frame(&mut send, &answer.bounded(), MESSAGE_BYTES_MAX).await?;
                anyhow::Ok(())
            };
            match timeout(EXCHANGE_TIMEOUT, exchange).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "a command could not be taken"),
                Err(_) => tracing::warn!("a command was not taken within {} s", EXCHANGE_TIMEOUT.as_secs()),
            }
        });
    }
}

/// Takes samples, whether there is anybody to tell or not. Of those that cannot be told, the oldest are dropped.
async fn sample(
    sampler: Option<Box<dyn Sampler>>,
    watched: watch::Receiver<Arc<BTreeSet<ServerName>>>,
    samples: Samples,
) {
    let Some(mut sampler) = sampler else { return };
    let mut tick = interval(SAMPLE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let servers: Vec<ServerName> = watched.borrow().iter().cloned().collect();
        let sample = sampler.sample(&servers);
        let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= SAMPLES_KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}

/// Tells what has come together, until the connection is gone. What is not acknowledged is told again over the next one.
async fn tell_metrics(connection: Connection, samples: Samples) {
    let lock = || samples.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tick = interval(METRICS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        loop {
            let batch = bounds::batch(lock().iter().cloned());
            if batch.is_empty() {
                break;
            }
            let told: Vec<Timestamp> = batch.iter().map(|sample| sample.at).collect();
            if tell(&connection, AgentMessageV1::MetricsBatch(batch)).await.is_err() {
                return;
            }
            // The oldest may have been dropped meanwhile.
            lock().retain(|sample| !told.contains(&sample.at));
        }
    }
}

/// Between half of a pause and all of it.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 2];
    // Without random numbers the pause is just not spread.
    let _ = getrandom::fill(&mut random);
    pause / 2 + pause.mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0)
}
