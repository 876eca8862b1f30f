//! Somebody on the network who wants the coordinator's memory, its disk or its time: without a certificate, or with one
//! host's. All of it over loopback, bounded in number and time.

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fleetwright_certs::{COORDINATOR_DNS_NAME, PinnedAuthority};
use fleetwright_protocol::endpoint::{self, TlsIdentity};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply};
use fleetwright_protocol::{read_frame, write_frame};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, Runtime, TokioRuntime, UdpPoller};
use rustix::process::Pid;

use crate::fleet::{Fleet, clock, text};

/// Where a fleet's coordinator listens, and how one may dial it.
pub struct Attacker {
    to: SocketAddr,
    from: IpAddr,
    authority_fingerprint: String,
}

impl Attacker {
    /// Somebody at the n-th address of the fleet's test, who has seen what `hosts token` prints.
    pub fn of(fleet: &Fleet, address: u8) -> Self {
        let file = fs::read_to_string(fleet.state_dir().join("fleet.json")).expect("fleet.json");
        let file: serde_json::Value = serde_json::from_str(&file).expect("JSON");
        let token = fleet.json(&["hosts", "token", "nobody"]);
        Self {
            to: text(&file["listen"]).parse().expect("an address"),
            from: fleet.address(address).parse().expect("an address"),
            authority_fingerprint: text(&token["ca_fingerprint"]).to_owned(),
        }
    }

    /// Settings of a peer that has no certificate.
    pub fn stranger(&self) -> ClientConfig {
        let pinned = PinnedAuthority::new(&self.authority_fingerprint, endpoint::provider()).expect("a fingerprint");
        endpoint::enrolling(pinned, &clock()).expect("settings")
    }

    /// An endpoint of the attacker's own.
    pub fn endpoint(&self, config: ClientConfig) -> Endpoint {
        let mut endpoint = Endpoint::client(SocketAddr::new(self.from, 0)).expect("an endpoint");
        endpoint.set_default_client_config(config);
        endpoint
    }

    /// An endpoint that begins handshakes and never ends one: all that leaves it are first packets.
    pub fn never_ending(&self, config: ClientConfig) -> Endpoint {
        let socket = std::net::UdpSocket::bind(SocketAddr::new(self.from, 0)).expect("a socket");
        let socket = TokioRuntime.wrap_udp_socket(socket).expect("a socket");
        let socket = Arc::new(FirstPacketsOnly(socket));
        let runtime = Arc::new(TokioRuntime);
        let mut endpoint =
            Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime).expect("an endpoint");
        endpoint.set_default_client_config(config);
        endpoint
    }

    /// Dials the coordinator.
    pub fn dial(&self, endpoint: &Endpoint) -> quinn::Connecting {
        endpoint.connect(self.to, COORDINATOR_DNS_NAME).expect("it dials")
    }
}

/// The certificate and key of a host whose machine the attacker owns.
pub fn stolen(fleet: &Fleet, host: &str) -> TlsIdentity {
    identity_in(&fleet.host(host))
}

/// The certificate and key in an agent's state folder.
pub fn identity_in(state_dir: &Path) -> TlsIdentity {
    let folder = state_dir.join("identity");
    let identity = fs::read_to_string(folder.join("agent.json")).expect("identity");
    let identity: serde_json::Value = serde_json::from_str(&identity).expect("JSON");
    TlsIdentity {
        chain_pem: text(&identity["certificate_pem"]).to_owned(),
        key_pem: fs::read_to_string(folder.join("agent.key")).expect("key"),
        authority_pem: text(&identity["authority_pem"]).to_owned(),
    }
}

/// Tells the coordinator something, and gives its answer, if it gives one.
pub async fn tell(connection: &Connection, message: AgentMessageV1) -> Option<CoordinatorReply> {
    let (mut send, mut receive) = connection.open_bi().await.ok()?;
    write_frame(&mut send, &AgentMessage::V1(message), usize::MAX).await.ok()?;
    read_frame(&mut receive, MESSAGE_BYTES_MAX).await.ok()
}

/// What is measured of a process while it is attacked.
pub struct Measured {
    pid: Pid,
}

impl Measured {
    /// The coordinator of a fleet, whose peak is forgotten now.
    pub fn coordinator(fleet: &Fleet) -> Self {
        let pid = fleet.holder(&fleet.state_dir().join("coordinator.lock")).expect("a coordinator");
        let measured = Self { pid };
        measured.forget_peak();
        measured
    }

    /// The memory it takes now, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.of_status("VmRSS:")
    }

    /// The most memory that it has taken since [`Self::forget_peak`], in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.of_status("VmHWM:")
    }

    /// Measures the peak from now on.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid.as_raw_nonzero()), "5").expect("its own child");
    }

    fn of_status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(field)).expect(field);
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }
}

/// How large files are together, in bytes; those that are not there count for nothing.
pub fn bytes_of(fleet: &Fleet, files: &[&str]) -> u64 {
    let sizes = files.iter().filter_map(|file| fs::metadata(fleet.state_dir().join(file)).ok());
    sizes.map(|metadata| metadata.len()).sum()
}

/// A socket that lets out nothing but datagrams with one Initial packet (RFC 9000, section 17.2.2) and no more.
#[derive(Debug)]
struct FirstPacketsOnly(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for FirstPacketsOnly {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if is_one_initial(transmit.contents) == Some(true) { self.0.try_send(transmit) } else { Ok(()) }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn is_one_initial(datagram: &[u8]) -> Option<bool> {
    let initial = *datagram.first()? & 0xf0 == 0xc0;
    if !initial {
        return Some(false);
    }
    let mut rest = datagram.get(5..)?;
    for _ in ["destination", "source"] {
        let (length, after) = rest.split_first()?;
        rest = after.get(usize::from(*length)..)?;
    }
    let (token_bytes, after) = variable(rest)?;
    let (bytes, after) = variable(after.get(token_bytes..)?)?;
    Some(bytes == after.len())
}

/// An integer of variable length (RFC 9000, section 16), and what follows it.
fn variable(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let first = *bytes.first()?;
    let length = 1_usize << (first >> 6);
    let value =
        bytes.get(1..length)?.iter().fold(usize::from(first & 0x3f), |value, byte| value << 8 | usize::from(*byte));
    Some((value, &bytes[length..]))
}
