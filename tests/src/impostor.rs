//! A coordinator of the test's own, with whatever certificate and keys the test gives it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::endpoint::{self, TlsIdentity};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply};
use fleetwright_protocol::{Envelope, read_frame, write_frame};
use quinn::{Connection, Endpoint};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long an agent has to dial or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator that acknowledges whatever agents tell, and sends what the test makes.
pub struct Impostor {
    endpoint: Endpoint,
    /// What agents told, apart from their metrics.
    pub told: Arc<Mutex<Vec<AgentMessageV1>>>,
}

impl Impostor {
    /// Listens on a free port with this identity.
    pub fn listen(identity: &TlsIdentity) -> Self {
        let config = endpoint::coordinator(identity, &crate::fleet::clock()).expect("settings");
        let endpoint = Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).expect("listen");
        Self { endpoint, told: Arc::default() }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.endpoint.local_addr().expect("address").to_string()
    }

    /// The next agent that completes the handshake, and says hello.
    pub async fn agent(&self) -> Option<Connection> {
        let incoming = timeout(PATIENCE, self.endpoint.accept()).await.ok()??;
        let connection = timeout(PATIENCE, incoming).await.ok()?.ok()?;
        endpoint::widen(&connection);
        let (served, told) = (connection.clone(), self.told.clone());
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = served.accept_bi().await {
                if let Ok(AgentMessage::V1(message)) = read_frame(&mut receive, MESSAGE_BYTES_MAX).await {
                    if !matches!(message, AgentMessageV1::Metrics(_) | AgentMessageV1::MetricsBatch(_)) {
                        told.lock().await.push(message);
                    }
                    let _ = write_frame(&mut send, &CoordinatorReply::Acknowledged, MESSAGE_BYTES_MAX).await;
                }
            }
        });
        Some(connection)
    }
}

/// Sends an envelope and gives the agent's answer; nothing when it gives none.
pub async fn send(connection: &Connection, envelope: &Envelope) -> Option<CommandReply> {
    let (mut send, mut receive) = connection.open_bi().await.ok()?;
    write_frame(&mut send, envelope, usize::MAX).await.ok()?;
    timeout(PATIENCE, read_frame(&mut receive, MESSAGE_BYTES_MAX)).await.ok()?.ok()
}
