//! A coordinator of the test's own, with whatever certificate and keys the test gives it; and an agent of its own, with
//! the stolen key of a host.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fleetwright_certs::COORDINATOR_DNS_NAME;
use fleetwright_deploy::failure::FailureKind;
use fleetwright_deploy::host::HostView;
use fleetwright_protocol::command::CommandReply;
use fleetwright_protocol::endpoint::{self, TlsIdentity};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply};
use fleetwright_protocol::{Envelope, read_frame, write_frame};
use quinn::{Connection, Endpoint};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::fleet::{Fleet, clock, program, text};

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
        let config = endpoint::coordinator(identity, &clock()).expect("settings");
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

/// The identity of a fleet's own coordinator, as whoever has its keys can show it.
pub fn coordinator_identity(fleet: &Fleet) -> TlsIdentity {
    let read = |name: &str| fs::read_to_string(fleet.state_dir().join(name)).expect(name);
    TlsIdentity {
        chain_pem: read("coordinator.pem"),
        key_pem: read("coordinator.key"),
        authority_pem: read("authority.pem"),
    }
}

/// The agent of `host-1`, working for another coordinator.
pub fn agent_towards(fleet: &Fleet, coordinator: &str) -> Child {
    let folder = fleet.host("host-1");
    let log = OpenOptions::new().append(true).create(true).open(folder.join("agent.log")).expect("log");
    let mut command = Command::new(program("fleetwright-agent"));
    command.arg("run").arg("--state-dir").arg(folder).args(["--coordinator", coordinator]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("agent")
}

/// Ends what a test has started.
pub fn end(process: &mut Child) {
    process.kill().expect("kill");
    process.wait().expect("wait");
}

/// An agent refuses, for this reason.
pub async fn expect_refusal(connection: &Connection, envelope: &Envelope, words: &str) {
    match send(connection, envelope).await {
        Some(CommandReply::Refused(failure)) => {
            assert_eq!(failure.kind, FailureKind::PermissionError, "{failure}");
            assert!(failure.message.contains(words), "expected `{words}`, got: {failure}");
        }
        other => panic!("expected a refusal because of `{words}`, got {other:?}"),
    }
}

/// Sends an envelope and gives the agent's answer; nothing when it gives none.
pub async fn send(connection: &Connection, envelope: &Envelope) -> Option<CommandReply> {
    let (mut send, mut receive) = connection.open_bi().await.ok()?;
    write_frame(&mut send, envelope, usize::MAX).await.ok()?;
    timeout(PATIENCE, read_frame(&mut receive, MESSAGE_BYTES_MAX)).await.ok()?.ok()
}

/// An agent that has the key of a host, and says what the test wants.
pub struct StolenKey {
    connection: Connection,
    state_dir: String,
    /// The commands that it got. None is obeyed.
    pub got: Arc<Mutex<Vec<Envelope>>>,
}

impl StolenKey {
    /// Dials the coordinator of a fleet from this address, with what the agent of a host has in its state folder.
    pub async fn dial(fleet: &Fleet, host: &str, from: &str) -> Self {
        let folder = fleet.host(host).join("identity");
        let json = |path| serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON");
        let identity: serde_json::Value = json(folder.join("agent.json"));
        let identity = TlsIdentity {
            chain_pem: text(&identity["certificate_pem"]).to_owned(),
            key_pem: fs::read_to_string(folder.join("agent.key")).expect("key"),
            authority_pem: text(&identity["authority_pem"]).to_owned(),
        };
        let of_fleet: serde_json::Value = json(fleet.state_dir().join("fleet.json"));
        let to: SocketAddr = text(&of_fleet["listen"]).parse().expect("an address");
        let from: IpAddr = from.parse().expect("an address");
        let mut client = Endpoint::client(SocketAddr::from((from, 0))).expect("a socket");
        client.set_default_client_config(endpoint::agent(&identity, &clock()).expect("settings"));
        let connection = client.connect(to, COORDINATOR_DNS_NAME).expect("connect").await.expect("a connection");
        let (served, got) = (connection.clone(), Arc::new(Mutex::new(Vec::new())));
        let keep = got.clone();
        tokio::spawn(async move {
            while let Ok((_send, mut receive)) = served.accept_bi().await {
                if let Ok(envelope) = read_frame(&mut receive, usize::MAX).await {
                    keep.lock().await.push(envelope);
                }
            }
        });
        Self { connection, state_dir: fleet.host(host).display().to_string(), got }
    }

    /// Says who the host is.
    pub async fn greet(&self, address: &str, labels: &[(&str, &str)]) -> Option<CoordinatorReply> {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let view = HostView { address: address.to_owned(), state_dir: self.state_dir.clone(), labels, facts: None };
        self.tell(AgentMessageV1::Greeting { agent_version: "0.1.0".to_owned(), view }).await
    }

    /// Tells something; gives the coordinator's answer.
    pub async fn tell(&self, message: AgentMessageV1) -> Option<CoordinatorReply> {
        let (mut send, mut receive) = self.connection.open_bi().await.ok()?;
        write_frame(&mut send, &AgentMessage::V1(message), MESSAGE_BYTES_MAX).await.ok()?;
        timeout(PATIENCE, read_frame(&mut receive, MESSAGE_BYTES_MAX)).await.ok()?.ok()
    }
}
