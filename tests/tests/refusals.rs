//! What must be refused, with nothing executed and a clear line in the log.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use fleetwright_certs::{Authority, COORDINATOR_DNS_NAME, Signer, key_and_request};
use fleetwright_deploy::ids::{CommandId, DeploymentId, Generation, PlanId, ReleaseId};
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::command::{
    COMMAND_PURPOSE, Command as WireCommand, CommandBody, CommandReply, CommandV1, INTENT_PURPOSE, Intent, IntentV1,
    StepOrder,
};
use fleetwright_protocol::endpoint::{self, TlsIdentity};
use fleetwright_protocol::frame::COMMAND_BYTES_MAX;
use fleetwright_protocol::{ALPN, Envelope, close};
use fleetwright_tests::fleet::{Fleet, program};
use fleetwright_tests::impostor::{Impostor, agent_towards, coordinator_identity, end, expect_refusal, send};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A fleet of one host with one server.
fn fleet() -> Fleet {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[TestServer::works("alpha", 9301, "one")], "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    fleet
}

fn state(fleet: &Fleet, name: &str) -> String {
    fs::read_to_string(fleet.state_dir().join(name)).expect(name)
}

fn agent_identity(fleet: &Fleet) -> TlsIdentity {
    let folder = fleet.host("host-1").join("identity");
    let identity: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("agent.json")).expect("identity")).expect("JSON");
    let text = |field: &str| identity[field].as_str().expect(field).to_owned();
    TlsIdentity {
        chain_pem: text("certificate_pem"),
        key_pem: fs::read_to_string(folder.join("agent.key")).expect("key"),
        authority_pem: text("authority_pem"),
    }
}

fn coordinator_address(fleet: &Fleet) -> SocketAddr {
    let fleet_file: serde_json::Value = serde_json::from_str(&state(fleet, "fleet.json")).expect("JSON");
    fleet_file["listen"].as_str().expect("listen").parse().expect("address")
}

fn now() -> Timestamp {
    let since = std::time::UNIX_EPOCH.elapsed().expect("time");
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).expect("time"))
}

/// Dials the coordinator as a client that presents `certificate`, and gives the code with which it is closed;
/// nothing when the handshake itself fails.
async fn close_code(fleet: &Fleet, authority_pem: &str, certificate: Option<(&str, &str)>) -> Option<u32> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes()).expect("authority")).expect("root");
    let builder = rustls::ClientConfig::builder_with_provider(endpoint::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().expect("chain");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
            builder.with_client_auth_cert(chain, key).expect("certificate")
        }
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("QUIC");
    let mut client = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("client");
    client.set_default_client_config(quinn::ClientConfig::new(std::sync::Arc::new(tls)));
    let connection = client.connect(coordinator_address(fleet), COORDINATOR_DNS_NAME).expect("connect").await.ok()?;
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(closed) => u32::try_from(closed.error_code.into_inner()).ok(),
        _ => None,
    }
}

fn coordinator_log_says(fleet: &Fleet, words: &str) {
    fleet.wait_until(words, || {
        fs::read_to_string(fleet.state_dir().join("coordinator.log")).is_ok_and(|log| log.contains(words))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_without_the_right_certificate_get_nothing() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet();
    let authority = state(&fleet, "authority.pem");
    assert_eq!(close_code(&fleet, &authority, None).await, Some(close::NOT_PERMITTED));
    coordinator_log_says(&fleet, "no client certificate");

    let unix_s = now().unix_ms() / 1_000;
    let stranger = Authority::create("local", unix_s).expect("authority");
    let made = key_and_request().expect("key");
    let certificate = stranger.issue_agent("host-1", &made.request_der, unix_s).expect("certificate");
    assert_eq!(close_code(&fleet, &authority, Some((&certificate.pem, &made.key_pem))).await, None);
    coordinator_log_says(&fleet, "refused in its handshake");

    // The right authority, but not the certificate that the host enrolled with: a copy of a lost key, say.
    let ours = Authority::load("local", &authority, &state(&fleet, "authority.key")).expect("authority");
    let other = ours.issue_agent("host-1", &made.request_der, unix_s).expect("certificate");
    assert_eq!(close_code(&fleet, &authority, Some((&other.pem, &made.key_pem))).await, Some(close::NOT_PERMITTED));
    coordinator_log_says(&fleet, "not the one its host enrolled with");

    // A coordinator's certificate is for serving, not for being an agent.
    let identity = coordinator_identity(&fleet);
    let leaf = identity.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").next().expect("leaf").to_owned();
    assert_eq!(close_code(&fleet, &authority, Some((&leaf, &identity.key_pem))).await, None);
    assert_eq!(fleet.json(&["hosts", "list"]).as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_certificate_does_not_make_a_coordinator() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet();
    let impostor = Impostor::listen(&agent_identity(&fleet));
    fleet.kill_agent("host-1");
    let mut agent = agent_towards(&fleet, &impostor.address());
    assert!(impostor.agent().await.is_none(), "the agent accepted another agent as its coordinator");
    fleet.wait_until("the agent says why", || fleet.agent_log("host-1").contains("no connection to the coordinator"));
    assert!(impostor.told.lock().await.is_empty());
    end(&mut agent);
}

/// A coordinator's keys, and what a valid command to stage a release on the host looks like.
struct Forge {
    command: Signer,
    intent: Signer,
}

const RELEASE: &[u8] = b"not even a release";

impl Forge {
    fn of(fleet: &Fleet) -> Self {
        Self {
            command: Signer::from_pem(&state(fleet, "command.key"), COMMAND_PURPOSE).expect("key"),
            intent: Signer::from_pem(&state(fleet, "operator.key"), INTENT_PURPOSE).expect("key"),
        }
    }

    fn deployment() -> DeploymentId {
        "d7-12345678".parse().expect("id")
    }

    fn intent() -> IntentV1 {
        IntentV1 {
            fleet: "local".parse().expect("name"),
            host: "host-1".parse().expect("name"),
            deployment: Self::deployment(),
            plan: PlanId::of(b"plan"),
            generation: Generation(7),
            not_after: now().after(Length::from_secs(600)),
            servers: vec![("forged".parse().expect("name"), Some(ReleaseId::of(RELEASE)))],
        }
    }

    fn command(&self, id: u8, intent: IntentV1) -> CommandV1 {
        CommandV1 {
            fleet: "local".parse().expect("name"),
            host: "host-1".parse().expect("name"),
            id: CommandId([id; 16]),
            generation: Generation(7),
            issued_at: now(),
            not_after: now().after(Length::from_secs(60)),
            body: CommandBody::Step {
                deployment: Self::deployment(),
                server: "forged".parse().expect("name"),
                attempt: 1,
                intent: Envelope::seal(&Intent::V1(intent), &self.intent).expect("intent"),
                order: StepOrder::Stage { release: RELEASE.to_vec(), secrets: BTreeMap::new() },
            },
        }
    }

    fn seal(&self, command: CommandV1) -> Envelope {
        Envelope::seal(&WireCommand::V1(command), &self.command).expect("command")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_not_exactly_right_are_refused_and_do_nothing() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet();
    let impostor = Impostor::listen(&coordinator_identity(&fleet));
    let forge = Forge::of(&fleet);
    fleet.kill_agent("host-1");
    let mut agent = agent_towards(&fleet, &impostor.address());
    let connection = impostor.agent().await.expect("the agent");

    let good = || forge.command(1, Forge::intent());
    let other_host = CommandV1 { host: "host-2".parse().expect("name"), ..good() };
    expect_refusal(&connection, &forge.seal(other_host), "is for host host-2").await;
    let other_fleet = CommandV1 { fleet: "other".parse().expect("name"), ..good() };
    expect_refusal(&connection, &forge.seal(other_fleet), "of fleet other").await;
    let past = Timestamp::from_unix_ms(now().unix_ms() - 10);
    expect_refusal(&connection, &forge.seal(CommandV1 { not_after: past, ..good() }), "expired").await;
    let long_ago = Timestamp::from_unix_ms(now().unix_ms() - 3_600_000);
    expect_refusal(&connection, &forge.seal(CommandV1 { issued_at: long_ago, ..good() }), "expired").await;
    let future = now().after(Length::from_secs(3_600));
    expect_refusal(
        &connection,
        &forge.seal(CommandV1 { issued_at: future, not_after: future.after(Length::from_secs(9)), ..good() }),
        "future",
    )
    .await;
    let stale = forge.seal(CommandV1 { generation: Generation(0), ..good() });
    assert_eq!(send(&connection, &stale).await, Some(CommandReply::Stale));

    let mut altered = forge.seal(good());
    altered.payload[20] ^= 1;
    expect_refusal(&connection, &altered, "signature does not fit").await;
    let mut unsigned = forge.seal(good());
    unsigned.signature.bytes.clear();
    expect_refusal(&connection, &unsigned, "signature does not fit").await;
    let stranger = Forge { command: Signer::generate(COMMAND_PURPOSE).expect("key"), ..Forge::of(&fleet) };
    expect_refusal(&connection, &stranger.seal(good()), "may not sign this").await;

    // A coordinator alone, without the operator, can do nothing.
    let alone = Forge { intent: Signer::generate(INTENT_PURPOSE).expect("key"), ..Forge::of(&fleet) };
    expect_refusal(&connection, &alone.seal(alone.command(1, Forge::intent())), "operator's intent is refused").await;
    let swapped = Forge { intent: Forge::of(&fleet).command, ..Forge::of(&fleet) };
    expect_refusal(&connection, &swapped.seal(swapped.command(1, Forge::intent())), "operator's intent is refused")
        .await;
    let other_release =
        IntentV1 { servers: vec![("forged".parse().expect("name"), Some(ReleaseId::of(b"x")))], ..Forge::intent() };
    expect_refusal(&connection, &forge.seal(forge.command(1, other_release)), "may run").await;
    let other_server = IntentV1 { servers: Vec::new(), ..Forge::intent() };
    expect_refusal(&connection, &forge.seal(forge.command(1, other_server)), "does not name the server").await;
    let for_other_host = IntentV1 { host: "host-2".parse().expect("name"), ..Forge::intent() };
    expect_refusal(&connection, &forge.seal(forge.command(1, for_other_host)), "is for host host-2").await;
    let expired = IntentV1 { not_after: past, ..Forge::intent() };
    expect_refusal(&connection, &forge.seal(forge.command(1, expired)), "intent expired").await;

    // A frame that says it is larger than the limit is dropped before it is read.
    let (mut large, mut answer) = connection.open_bi().await.expect("stream");
    large.write_all(&u32::try_from(COMMAND_BYTES_MAX + 1).expect("size").to_le_bytes()).await.expect("write");
    assert!(answer.read_to_end(16).await.is_ok_and(|bytes| bytes.is_empty()), "a frame over the limit was answered");
    fleet.wait_until("the agent says why", || fleet.agent_log("host-1").contains("over the limit"));

    assert!(!fleet.host("host-1").join("servers/forged").exists(), "a refused command left something behind");
    assert!(fleet.agent_log("host-1").contains("command refused"));
    end(&mut agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_takes_effect_once_also_after_the_agent_was_restarted() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet();
    let impostor = Impostor::listen(&coordinator_identity(&fleet));
    let forge = Forge::of(&fleet);
    fleet.kill_agent("host-1");
    let mut agent = agent_towards(&fleet, &impostor.address());
    let connection = impostor.agent().await.expect("the agent");
    let command = forge.seal(forge.command(9, Forge::intent()));
    assert_eq!(send(&connection, &command).await, Some(CommandReply::Accepted));
    assert_eq!(send(&connection, &command).await, Some(CommandReply::Duplicate));
    end(&mut agent);
    let mut agent = agent_towards(&fleet, &impostor.address());
    let connection = impostor.agent().await.expect("the agent");
    assert_eq!(send(&connection, &command).await, Some(CommandReply::Duplicate));
    // What was obeyed raised the generation: nothing older counts from now on.
    let older = CommandV1 { generation: Generation(6), ..forge.command(10, Forge::intent()) };
    assert_eq!(send(&connection, &forge.seal(older)).await, Some(CommandReply::Stale));
    let older = IntentV1 { generation: Generation(6), ..Forge::intent() };
    expect_refusal(&connection, &forge.seal(forge.command(11, older)), "generation 6").await;
    let staged = fleet.agent_log("host-1").matches("stage_requested").count();
    assert_eq!(staged, 2, "once for alpha, once for the command that was sent three times");
    end(&mut agent);
}

#[test]
fn a_host_that_enrols_anew_takes_the_place_of_the_old_one_on_the_open_connection_too() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet();
    let connected = |fleet: &Fleet| fleet.json(&["hosts", "list"])[0]["connected"] == true;
    fleet.wait_until("the host is connected", || connected(&fleet));
    let token = fleet.json(&["hosts", "token", "host-1"]);
    let text = |field: &str| token[field].as_str().expect(field).to_owned();
    let mut command = Command::new(program("fleetwright-agent"));
    command.arg("enroll").arg("--state-dir").arg(fleet.path().join("anew"));
    command.args(["--coordinator", &text("coordinator"), "--ca-fingerprint", &text("ca_fingerprint")]);
    command.env("FLEETWRIGHT_TOKEN", text("token"));
    assert!(command.output().expect("agent").status.success());
    fleet.wait_until("the old agent is cut off", || !connected(&fleet));
    coordinator_log_says(&fleet, "not the one its host enrolled with");
    assert!(!connected(&fleet));
}

#[test]
fn a_token_lets_one_host_enrol_once() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet();
    let token = fleet.json(&["hosts", "token", "host-9"]);
    let text = |field: &str| token[field].as_str().expect(field).to_owned();
    let enroll = |token: &str, fingerprint: &str, name: &str| {
        let mut command = Command::new(program("fleetwright-agent"));
        command.arg("enroll").arg("--state-dir").arg(fleet.path().join(name));
        command.args(["--coordinator", &text("coordinator"), "--ca-fingerprint", fingerprint]);
        command.env("FLEETWRIGHT_TOKEN", token);
        command.output().expect("agent")
    };
    let (secret, fingerprint) = (text("token"), text("ca_fingerprint"));
    let wrong = enroll(&secret, &format!("sha256:{}", "0".repeat(64)), "wrong");
    assert!(!wrong.status.success(), "a coordinator with another authority was trusted");
    assert!(!enroll("fw1-00", &fingerprint, "guessed").status.success());
    let first = enroll(&secret, &fingerprint, "first");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let second = enroll(&secret, &fingerprint, "second");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("used up"), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(
        !fs::read_to_string(fleet.state_dir().join("coordinator.log")).expect("log").contains(&secret),
        "the token is in the log"
    );
}
