//! The bytes on the wire: recorded, so that agents and coordinators of different versions go on understanding
//! each other; and decoding, which must survive whatever a peer sends.

use std::collections::BTreeMap;

use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::{
    BridgeInfo, CheckOutcome, CheckReport, CheckRun, HealthReport, HealthStatus, McpInfo, Severity,
};
use fleetwright_deploy::host::{Facts, HostView, Version};
use fleetwright_deploy::ids::{CommandId, Generation, PlanId, ReleaseId};
use fleetwright_deploy::instance::{RestoreCause, StepReport};
use fleetwright_deploy::release::SecretKey;
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::artifact::{Chunk, Listed, Packed};
use fleetwright_protocol::command::{
    COMMAND_PURPOSE, Command, CommandBody, CommandReply, CommandV1, Intent, IntentV1, IntentV2, SentSecret, StepOrder,
    UNKNOWN_COMMAND_SAYS, Verifier,
};
use fleetwright_protocol::enrol::{EnrolReply, EnrolRequest};
use fleetwright_protocol::frame::{decode, encode};
use fleetwright_protocol::report::{
    AgentMessage, AgentMessageV1, CoordinatorReply, HealthTold, HelloFacts, HelloView, McpTold, MetricsSample,
};
use fleetwright_protocol::{Envelope, FrameError};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The recorded line for a message, which must read back as the same message.
fn record<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, message: &T) -> String {
    let bytes = encode(message, usize::MAX).expect("encode");
    assert_eq!(&decode::<T>(&bytes).expect("decode"), message);
    format!("{name}: {}\n", hex(&bytes))
}

fn envelope() -> Envelope {
    let signer = fleetwright_certs::Signer::from_pem(
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n",
        "test",
    );
    Envelope::seal(&"content", &signer.expect("key")).expect("seal")
}

#[test]
fn messages_have_the_bytes_that_were_recorded() {
    let release = ReleaseId::of(b"release");
    let server = || "time".parse().expect("name");
    let deployment = || "d1-aaaaaaaa".parse().expect("id");
    let command = |order| {
        Command::V1(CommandV1 {
            fleet: "local".parse().expect("name"),
            host: "host-1".parse().expect("name"),
            id: CommandId([1; 16]),
            generation: Generation(7),
            issued_at: Timestamp::from_unix_ms(1_000),
            not_after: Timestamp::from_unix_ms(61_000),
            body: CommandBody::Step {
                deployment: deployment(),
                server: server(),
                attempt: 1,
                intent: envelope(),
                order,
            },
        })
    };
    let switch = StepOrder::Switch {
        target: Some(release.clone()),
        confirm_within: Some(Length::from_secs(60)),
        healthy_deadline: Length::from_secs(30),
        min_healthy_time: Length::from_secs(1),
    };
    let stage =
        StepOrder::Stage { release: b"{}".to_vec(), secrets: BTreeMap::from([("k".to_owned(), "v".to_owned())]) };
    let failure = Failure::new(FailureKind::ResourceError, "preflight", "port taken")
        .hint("free it")
        .output(["line"].into_iter());
    let intent = Intent::V1(IntentV1 {
        fleet: "local".parse().expect("name"),
        host: "host-1".parse().expect("name"),
        deployment: deployment(),
        plan: PlanId::of(b"plan"),
        generation: Generation(7),
        not_after: Timestamp::from_unix_ms(9_000),
        servers: vec![(server(), Some(release.clone())), ("gone".parse().expect("name"), None)],
    });
    let runtimes = || [("python".to_owned(), vec![Version::from([3, 11])])].into();
    let labels = || BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let hello = HelloView {
        address: "127.0.0.1".to_owned(),
        state_dir: "/state".to_owned(),
        labels: labels(),
        facts: Some(HelloFacts {
            os: String::new(),
            arch: String::new(),
            cpus: 0,
            memory_bytes: 0,
            runtimes: runtimes(),
        }),
    };
    let view = HostView {
        address: "127.0.0.1".to_owned(),
        state_dir: "/state".to_owned(),
        labels: labels(),
        facts: Some(Facts { runtimes: runtimes(), disk_bytes: 1 << 40, ..Facts::default() }),
    };
    let step = |report| {
        AgentMessage::V1(AgentMessageV1::Step { deployment: deployment(), server: server(), attempt: 1, report })
    };
    let health = HealthReport {
        status: HealthStatus::Degraded,
        checks: vec![CheckReport {
            name: "tools".to_owned(),
            severity: Severity::Warning,
            outcome: CheckOutcome::Failing { message: "no".to_owned() },
        }],
        mcp: Some(McpInfo {
            tools: vec!["one".to_owned()],
            bridge: Some(BridgeInfo { protocol: "2025-11-25".to_owned(), ..BridgeInfo::default() }),
            left_out: vec!["two: it has no `inputSchema`".to_owned()],
            left_out_count: 1,
            ..McpInfo::default()
        }),
        restarts: 2,
    };
    let mut text = String::new();
    for (name, order) in [
        ("stage", stage),
        ("switch", switch),
        ("confirm", StepOrder::Confirm),
        ("restore", StepOrder::Restore { drain: true }),
        ("resolve", StepOrder::Resolve),
        ("test", StepOrder::Test),
        ("clean", StepOrder::Clean),
    ] {
        text.push_str(&record(name, &command(order)));
    }
    text.push_str(&record("intent", &intent));
    text.push_str(&record("accepted", &CommandReply::Accepted));
    text.push_str(&record("refused", &CommandReply::Refused(failure.clone())));
    text.push_str(&record(
        "hello",
        &AgentMessage::V1(AgentMessageV1::Hello { agent_version: "0.1.0".to_owned(), view: hello }),
    ));
    let greeting = AgentMessageV1::Greeting { agent_version: "0.2.0".to_owned(), view };
    text.push_str(&record("greeting", &AgentMessage::V1(greeting)));
    text.push_str(&record("verified", &step(StepReport::Verified)));
    text.push_str(&record("failed", &step(StepReport::Failed(failure))));
    text.push_str(&record(
        "restored",
        &step(StepReport::Restored { cause: RestoreCause::NotConfirmed, running: None }),
    ));
    let old = HealthTold {
        status: health.status,
        checks: health.checks.clone(),
        mcp: Some(McpTold { tools: vec!["one".to_owned()], ..McpTold::default() }),
        restarts: 2,
    };
    let old = AgentMessageV1::Health { server: server(), release: release.clone(), report: old, output: Vec::new() };
    text.push_str(&record("health", &AgentMessage::V1(old)));
    let condition = AgentMessageV1::Condition { server: server(), release, report: health, output: Vec::new() };
    text.push_str(&record("condition", &AgentMessage::V1(condition)));
    text.push_str(&record("metrics", &AgentMessage::V1(AgentMessageV1::Metrics(MetricsSample::default()))));
    let batch = vec![MetricsSample::default(), MetricsSample::default()];
    text.push_str(&record("metrics batch", &AgentMessage::V1(AgentMessageV1::MetricsBatch(batch))));
    let id = "d1-aaaaaaaa-1".parse().expect("id");
    let check = CommandBody::Check { server: server(), tag: Some("mcp".to_owned()) };
    let snapshot = CommandBody::Snapshot { server: server(), id, compare: true };
    for (name, body) in
        [("check", check), ("snapshots", CommandBody::Snapshots { server: server() }), ("snapshot", snapshot)]
    {
        text.push_str(&record(name, &body));
    }
    let run = CheckRun {
        name: "load".to_owned(),
        severity: Severity::Warning,
        outcome: CheckOutcome::Warning { message: "high".to_owned() },
        took_ms: 3,
        performance: vec!["load1=3".to_owned()],
    };
    text.push_str(&record("checks", &CommandReply::Checks(vec![run])));
    text.push_str(&record("no snapshots", &CommandReply::Snapshots(Vec::new())));
    text.push_str(&record("acknowledged", &CoordinatorReply::Acknowledged));
    let sha256 = || "ab".repeat(32);
    for (name, message) in [
        ("list chunks", AgentMessageV1::ListChunks { sha256: sha256(), from: 3 }),
        ("get chunks", AgentMessageV1::GetChunks { sha256: sha256(), numbers: vec![1, 300] }),
    ] {
        text.push_str(&record(name, &AgentMessage::V1(message)));
    }
    let listed = Listed { total: 2, chunks: vec![Chunk { blake3: [9; 32], bytes: 70_000 }] };
    text.push_str(&record("listed", &CoordinatorReply::Listed(listed)));
    text.push_str(&record("chunks", &CoordinatorReply::Chunks(vec![Packed(vec![1, 2, 3])])));
    let sent = SentSecret { value: "v".to_owned(), key: SecretKey::new([8; 32]) };
    let sealed = StepOrder::StageSealed { release: b"{}".to_vec(), secrets: [("k".to_owned(), sent)].into() };
    text.push_str(&record("stage sealed", &command(sealed)));
    let of = intent.clone().meant();
    assert_eq!(of.purpose, Purpose::RollBack, "its generation is not that of its deployment");
    let second = Intent::V2(IntentV2 { begin_by: Timestamp::from_unix_ms(5_000), ..of });
    text.push_str(&record("intent, second shape", &second));
    text.push_str(&record("announced", &CommandBody::Intent { intent: envelope(), ended: true }));
    text.push_str(&record("refresh", &CommandBody::Refresh));
    let mut facts = Facts::default();
    facts.set_unknown("node");
    let view =
        HostView { address: String::new(), state_dir: "/s".to_owned(), labels: BTreeMap::new(), facts: Some(facts) };
    text.push_str(&record("view", &CommandReply::View(Box::new(view))));
    text.push_str(&record("enrol", &EnrolRequest::V1 { token: "fw1-00".to_owned(), request_der: vec![1, 2] }));
    insta::assert_snapshot!(text);
}

#[test]
fn an_agent_that_does_not_know_a_command_refuses_it_in_words_that_a_newer_coordinator_knows() {
    let signer = fleetwright_certs::Signer::generate(COMMAND_PURPOSE).expect("a key");
    let keys =
        fleetwright_certs::TrustedKeys::from_pems([signer.public_pem().expect("a key").as_str()], COMMAND_PURPOSE);
    let keys = keys.expect("keys");
    let (fleet, host) = ("local".parse().expect("name"), "host-1".parse().expect("name"));
    let command = |body| {
        Command::V1(CommandV1 {
            fleet: "local".parse().expect("name"),
            host: "host-1".parse().expect("name"),
            id: CommandId([1; 16]),
            generation: Generation(7),
            issued_at: Timestamp::from_unix_ms(1_000),
            not_after: Timestamp::from_unix_ms(61_000),
            body,
        })
    };
    let mut payload = encode(&command(CommandBody::Refresh), 1024).expect("encode");
    // The number of the kind of command is last; no version has this one.
    *payload.last_mut().expect("bytes") = 99;
    let signature = signer.sign(&payload);
    let verifier = Verifier { fleet, host, command_keys: keys.clone(), intent_keys: keys };
    let refused = verifier.open(&Envelope { payload, signature }, Timestamp::from_unix_ms(2_000)).expect_err("unknown");
    assert!(refused.to_string().starts_with(UNKNOWN_COMMAND_SAYS), "{refused}");
}

#[test]
fn bytes_after_a_message_are_an_error() {
    let mut bytes = encode(&CoordinatorReply::Acknowledged, 16).expect("encode");
    bytes.push(0);
    assert!(matches!(decode::<CoordinatorReply>(&bytes), Err(FrameError::Trailing(1))));
}

#[test]
fn a_message_over_its_limit_is_not_sent() {
    let large = CoordinatorReply::Refused("x".repeat(100));
    assert!(matches!(encode(&large, 50), Err(FrameError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn decoding_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<Command>(&bytes);
        let _ = decode::<Envelope>(&bytes);
        let _ = decode::<Intent>(&bytes);
        let _ = decode::<CommandReply>(&bytes);
        let _ = decode::<AgentMessage>(&bytes);
        let _ = decode::<CoordinatorReply>(&bytes);
        let _ = decode::<EnrolRequest>(&bytes);
        let _ = decode::<EnrolReply>(&bytes);
    }
}
