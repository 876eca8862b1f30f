//! Whatever servers, programs and hosts say: what is told of it fits a message.

use std::collections::BTreeMap;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::{BridgeInfo, CheckOutcome, CheckReport, CheckRun, HealthReport, McpInfo, Severity};
use fleetwright_deploy::host::{Facts, HostView};
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::instance::StepReport;
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::bounds::batch;
use fleetwright_protocol::frame::{COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, encode};
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, MetricsSample, ServerMetrics};
use fleetwright_protocol::snapshot::{SnapshotEntry, SnapshotSummary, SnapshotView};
use fleetwright_protocol::{CommandReply, Envelope};
use proptest::prelude::*;

/// Texts of every size around the limits, and far beyond them.
fn big() -> impl Strategy<Value = String> {
    (prop_oneof![Just("x"), Just("ü"), Just("\u{fffd}"), Just("𝄞")], 0_usize..20_000).prop_map(|(c, n)| c.repeat(n))
}

fn many() -> impl Strategy<Value = Vec<String>> {
    (prop::collection::vec(big(), 0..8), 0_usize..400).prop_map(|(texts, times)| {
        (0..times).flat_map(|_| texts.iter().map(|text| text.chars().take(2_000).collect())).collect()
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    (big(), big(), many()).prop_map(|(step, text, output)| {
        let mut failure = Failure::new(FailureKind::DeploymentError, step, "");
        // As somebody might who does not know the constructors.
        (failure.message, failure.hint, failure.output) = (text.clone(), Some(text), output);
        failure
    })
}

fn report() -> impl Strategy<Value = HealthReport> {
    (many(), many(), big()).prop_map(|(checks, tools, text)| HealthReport {
        checks: checks
            .into_iter()
            .map(|name| CheckReport {
                name,
                severity: Severity::Critical,
                outcome: CheckOutcome::Failing { message: text.clone() },
            })
            .collect(),
        mcp: Some(McpInfo {
            name: text.clone(),
            version: text.clone(),
            protocol: text.clone(),
            left_out: tools.clone(),
            left_out_count: u32::MAX,
            bridge: Some(BridgeInfo { protocol: text.clone(), eras: tools.clone(), sessions: text }),
            tools,
        }),
        ..HealthReport::default()
    })
}

fn message() -> impl Strategy<Value = AgentMessageV1> {
    let step = failure().prop_map(|failure| AgentMessageV1::Step {
        deployment: "d1-aaaaaaaa".parse().expect("id"),
        server: "time".parse().expect("name"),
        attempt: 1,
        report: StepReport::Failed(failure),
    });
    let health = (report(), many()).prop_map(|(report, output)| AgentMessageV1::Condition {
        server: "time".parse().expect("name"),
        release: ReleaseId::of(b"r"),
        report,
        output,
    });
    let greeting = (many(), big()).prop_map(|(labels, text)| AgentMessageV1::Greeting {
        agent_version: text.clone(),
        view: HostView {
            address: text.clone(),
            state_dir: text.clone(),
            labels: labels.into_iter().enumerate().map(|(n, label)| (format!("{label}{n}"), text.clone())).collect(),
            facts: Some(Facts { os: text.clone(), arch: text, ..Facts::default() }),
        },
    });
    prop_oneof![step, health, greeting]
}

fn reply() -> impl Strategy<Value = CommandReply> {
    let checks = (many(), big()).prop_map(|(performance, text)| {
        let run = CheckRun {
            name: text.clone(),
            severity: Severity::Critical,
            outcome: CheckOutcome::Passing { message: text },
            took_ms: 1,
            performance,
        };
        CommandReply::Checks(vec![run; 300])
    });
    let snapshot = many().prop_map(|paths| {
        let summary = SnapshotSummary {
            id: "d1-aaaaaaaa-1".parse().expect("id"),
            taken_at: Timestamp::from_unix_ms(1),
            release: None,
            data: true,
            paths: paths.clone(),
            database: false,
            files: 1,
            bytes: 1,
        };
        let entry = |path| SnapshotEntry { path, kind: "file".to_owned(), mode: 0, content: None };
        let entries = paths.into_iter().map(entry).collect();
        CommandReply::Snapshot(Box::new(SnapshotView { summary, entries, changes: Vec::new(), cut: false }))
    });
    prop_oneof![many().prop_map(CommandReply::Logs), failure().prop_map(CommandReply::Refused), checks, snapshot]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_of_an_agent_fits_its_frame(message in message()) {
        let bounded = message.bounded();
        prop_assert!(encode(&AgentMessage::V1(bounded.clone()), MESSAGE_BYTES_MAX).is_ok());
        prop_assert_eq!(bounded.clone().bounded(), bounded, "what is within its limits stays as it is");
    }

    #[test]
    fn every_answer_to_a_command_fits_its_frame(reply in reply()) {
        prop_assert!(encode(&reply.bounded(), MESSAGE_BYTES_MAX).is_ok());
    }
}

#[test]
fn samples_of_many_servers_are_told_in_as_many_messages_as_they_need() {
    let server = |n: usize| ServerMetrics {
        server: format!("a-server-with-quite-a-long-name-{n:05}").parse().expect("name"),
        cpu_permille: u32::MAX,
        memory_bytes: u64::MAX,
        processes: u32::MAX,
    };
    let sample = |n: i64| MetricsSample {
        at: Timestamp::from_unix_ms(n),
        servers: (0..400).map(server).collect(),
        ..MetricsSample::default()
    };
    let mut left: Vec<MetricsSample> = (0..100).map(sample).collect();
    let mut messages = 0;
    while !left.is_empty() {
        let told = batch(left.iter().cloned());
        assert!(encode(&AgentMessage::V1(AgentMessageV1::MetricsBatch(told.clone())), MESSAGE_BYTES_MAX).is_ok());
        assert_eq!(told[..], left[..told.len()], "in order, and nothing is left out");
        left.drain(..told.len());
        messages += 1;
    }
    assert!((4..20).contains(&messages), "{messages} messages");
}

#[test]
fn a_report_that_does_not_fit_all_the_same_is_replaced_by_one_that_says_so() {
    let failure = Failure::new(FailureKind::DeploymentError, "start", "no");
    let message = AgentMessageV1::Step {
        deployment: "d1-aaaaaaaa".parse().expect("id"),
        server: "time".parse().expect("name"),
        attempt: 3,
        report: StepReport::TestFailed(failure),
    };
    let Some(AgentMessageV1::Step { attempt: 3, report: StepReport::TestFailed(told), .. }) =
        message.in_place_of_too_large(501 << 20)
    else {
        panic!("another message");
    };
    assert_eq!(told.message, "a report was cut: 501 MiB, the limit is 512 KiB");
    let empty: BTreeMap<String, String> = BTreeMap::new();
    let view = HostView { address: String::new(), state_dir: String::new(), labels: empty, facts: None };
    let other = AgentMessageV1::Greeting { agent_version: String::new(), view };
    assert_eq!(other.in_place_of_too_large(1), None);
}

#[test]
fn whatever_can_be_sealed_fits_the_frame_of_a_command() {
    let signer = fleetwright_certs::Signer::generate("command").expect("a key");
    let (mut fits, mut too_large) = (0_usize, COMMAND_BYTES_MAX + 1);
    while too_large - fits > 1 {
        let bytes = fits.midpoint(too_large);
        match Envelope::seal(&"x".repeat(bytes), &signer) {
            Ok(envelope) => {
                assert!(encode(&envelope, COMMAND_BYTES_MAX).is_ok(), "{bytes} bytes were sealed, and cannot be sent");
                fits = bytes;
            }
            Err(_) => too_large = bytes,
        }
    }
    assert!(fits > COMMAND_BYTES_MAX - 2048, "{fits}");
}
