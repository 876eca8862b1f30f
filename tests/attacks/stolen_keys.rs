//! Somebody has the coordinator's keys, and old messages.
//!
//! The thief of these tests has what lies on a coordinator's machine (the coordinator's certificate, the key that signs
//! commands) and every intent that the operator ever signed, but not the operator's key.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fleetwright_certs::Signer;
use fleetwright_deploy::admission::Purpose;
use fleetwright_deploy::ids::{CommandId, DeploymentId, Generation, PlanId, ServerName};
use fleetwright_deploy::release::{Release, SecretKey, SecretSource, SecretUse};
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::Envelope;
use fleetwright_protocol::command::{
    COMMAND_PURPOSE, Command, CommandBody, CommandReply, CommandV1, INTENT_PURPOSE, Intent, IntentV2, SentSecret,
    StepOrder,
};
use fleetwright_protocol::frame::decode;
use fleetwright_tests::fleet::{Fleet, clock, text};
use fleetwright_tests::impostor::{Impostor, agent_towards, coordinator_identity, end, expect_refusal, send};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

const SPENT: &str = "has been followed to its end on this host";

/// What the thief has.
struct Thief {
    command: Signer,
}

impl Thief {
    fn of(fleet: &Fleet) -> Self {
        let pem = fs::read_to_string(fleet.state_dir().join("command.key")).expect("command.key");
        Self { command: Signer::from_pem(&pem, COMMAND_PURPOSE).expect("key") }
    }

    /// A command that nothing is wrong with but what the operator says about it.
    fn command(&self, id: u8, body: CommandBody) -> Envelope {
        let command = CommandV1 {
            fleet: "local".parse().expect("name"),
            host: "host-1".parse().expect("name"),
            id: CommandId([id; 16]),
            generation: Generation(90),
            issued_at: clock().now(),
            not_after: clock().now().after(Length::from_secs(60)),
            body,
        };
        Envelope::seal(&Command::V1(command), &self.command).expect("command")
    }

    fn step(&self, id: u8, of: &Recorded, attempt: u32, order: StepOrder) -> Envelope {
        let (deployment, server, intent) = (of.deployment.clone(), of.server.clone(), of.intent.clone());
        self.command(id, CommandBody::Step { deployment, server, attempt, intent, order })
    }
}

/// A deployment, and what the operator has signed for it.
struct Recorded {
    deployment: DeploymentId,
    server: ServerName,
    intent: Envelope,
}

/// The newest deployment in the coordinator's journal, with the release that it has staged.
fn newest(fleet: &Fleet) -> (Recorded, Release) {
    let exported = fleet.run(&["journal", "export"]).expect_code(0).stdout;
    let mut entries = exported.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let started = entries.rfind(|entry| entry["event"]["type"] == "deployment_started").expect("a deployment");
    let event = &started["event"];
    let intent = hex::decode(text(&event["intents"]["host-1"])).expect("hexadecimal");
    let deployment = text(&fleet.newest_deployment()["summary"]["id"]).parse().expect("id");
    let recorded =
        Recorded { deployment, server: "alpha".parse().expect("name"), intent: decode(&intent).expect("an intent") };
    let release = event["plan"]["groups"][0]["steps"][0]["release"].clone();
    (recorded, serde_json::from_value(release).expect("a release"))
}

/// A fleet of one host with one server, deployed twice: with a secret, and what came before it.
fn fleet_with_a_secret() -> Fleet {
    let fleet = Fleet::new();
    let server = TestServer::works("alpha", 9711, "one");
    let manifest = fleet.configure(std::slice::from_ref(&server), "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let secret = "  stop_timeout: 2s\n  environment: { KEY: '{{ secret(name=\"key\") }}', MADE: '{{ random_string(length=20) }}' }\n";
    fleet.write("config/servers/alpha.yaml", &server.definition().replace("  stop_timeout: 2s\n", secret));
    fleet.write(
        "config/environments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nsecrets: { key: { file: key } }\n",
    );
    fleet.write(".fleetwright/secrets/key", "the-right-value\n");
    fleet.deploy(&manifest, &[]).expect_code(0);
    let plan = fleet.run(&["plan", &manifest.to_string_lossy(), "--detailed-exitcode"]);
    assert_eq!(plan.code, 0, "planning again changes nothing: {}", plan.stdout);
    fleet
}

fn current(fleet: &Fleet) -> std::path::PathBuf {
    fleet.host("host-1").join("servers/alpha/current").canonicalize().expect("a release")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_neither_undone_nor_done_again_under_its_old_intent() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = fleet_with_a_secret();
    let (recorded, release) = newest(&fleet);
    fleet.wait_until("the host knows that it has ended", || fleet.agent_log("host-1").contains("intent ended"));
    let (running, pid) = (current(&fleet), fleet.server_pid("host-1", "alpha"));
    let impostor = Impostor::listen(&coordinator_identity(&fleet));
    fleet.kill_agent("host-1");
    let thief = Thief::of(&fleet);
    // The second time after the agent was started anew: what it knows is on its disk.
    for run in [0, 100] {
        let mut agent = agent_towards(&fleet, &impostor.address());
        let connection = impostor.agent().await.expect("the agent");
        let key = SecretKey::new([1; 32]);
        let chosen = |value: &str| SentSecret { value: value.to_owned(), key };
        let secrets: BTreeMap<_, _> =
            release.secrets.keys().map(|name| (name.clone(), chosen("of the attacker's choice"))).collect();
        let values = release.secrets.keys().map(|name| (name.clone(), "of the attacker's choice".to_owned())).collect();
        let orders = [
            StepOrder::Restore { drain: true },
            StepOrder::StageSealed { release: release.to_bytes(), secrets },
            StepOrder::Stage { release: release.to_bytes(), secrets: values },
            StepOrder::Switch {
                target: Some(release.id()),
                confirm_within: None,
                healthy_deadline: Length::from_secs(9),
                min_healthy_time: Length::ZERO,
            },
            StepOrder::Confirm,
        ];
        for (n, order) in (run + 1..).zip(orders) {
            for attempt in [1, 2] {
                let envelope =
                    thief.step(n * 2 + u8::try_from(attempt).expect("small"), &recorded, attempt, order.clone());
                expect_refusal(&connection, &envelope, SPENT).await;
            }
        }
        // Nor does it begin again by being told so.
        let again = CommandBody::Intent { intent: recorded.intent.clone(), ended: false };
        assert_eq!(send(&connection, &thief.command(run + 50, again)).await, Some(CommandReply::Duplicate));
        let restore = thief.step(run + 51, &recorded, 1, StepOrder::Restore { drain: true });
        expect_refusal(&connection, &restore, SPENT).await;
        end(&mut agent);
    }
    assert!(!fleet.agent_log("host-1").contains("restore_requested"));
    assert_eq!((current(&fleet), fleet.server_pid("host-1", "alpha")), (running, pid), "it runs on, untouched");
}

/// The operator's own key: for what the operator really has signed, in these tests.
struct Operator {
    intent: Signer,
}

impl Operator {
    fn of(fleet: &Fleet) -> Self {
        let pem = fs::read_to_string(fleet.state_dir().join("operator.key")).expect("operator.key");
        Self { intent: Signer::from_pem(&pem, INTENT_PURPOSE).expect("key") }
    }

    fn signs(
        &self,
        deployment: &str,
        generation: u64,
        purpose: Purpose,
        begin_by: Timestamp,
        release: &Release,
    ) -> Recorded {
        let (deployment, server): (DeploymentId, ServerName) =
            (deployment.parse().expect("id"), release.server.clone());
        let intent = IntentV2 {
            fleet: "local".parse().expect("name"),
            host: "host-1".parse().expect("name"),
            deployment: deployment.clone(),
            purpose,
            plan: PlanId::of(b"plan"),
            generation: Generation(generation),
            begin_by,
            not_after: clock().now().after(Length::from_secs(600)),
            servers: vec![(server.clone(), Some(release.id()))],
        };
        let intent = Envelope::seal(&Intent::V2(intent), &self.intent).expect("intent");
        Recorded { deployment, server, intent }
    }
}

fn small_fleet() -> Fleet {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[TestServer::works("alpha", 9712, "one")], "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_values_whose_digests_were_signed_are_taken() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = small_fleet();
    let impostor = Impostor::listen(&coordinator_identity(&fleet));
    fleet.kill_agent("host-1");
    let mut agent = agent_towards(&fleet, &impostor.address());
    let connection = impostor.agent().await.expect("the agent");
    let (thief, operator) = (Thief::of(&fleet), Operator::of(&fleet));
    let source = SecretSource::File { path: "key".to_owned() };
    let key = SecretKey::derive(&[3; 32], &source);
    let mut release = Release::plain("forged".parse().expect("name"), vec!["sleep".to_owned(), "60".to_owned()]);
    let digest = Some(key.digest("right"));
    release.secrets.insert("key".to_owned(), SecretUse { source, digest, encode: None });
    let soon = clock().now().after(Length::from_secs(60));
    let signed = operator.signs("d7-12345678", 7, Purpose::Deploy, soon, &release);
    let stage = |id, secrets: &[(&str, &str, SecretKey)]| {
        let secrets = secrets
            .iter()
            .map(|(name, value, key)| ((*name).to_owned(), SentSecret { value: (*value).to_owned(), key: *key }));
        let order = StepOrder::StageSealed { release: release.to_bytes(), secrets: secrets.collect() };
        thief.step(id, &signed, 1, order)
    };
    let other_key = SecretKey::new([9; 32]);
    expect_refusal(&connection, &stage(1, &[("key", "wrong", key)]), "is not the one whose digest").await;
    expect_refusal(&connection, &stage(2, &[("key", "wrong", other_key)]), "is not the one whose digest").await;
    expect_refusal(&connection, &stage(3, &[]), "no value came with it").await;
    let more = [("key", "right", key), ("more", "x", key)];
    expect_refusal(&connection, &stage(4, &more), "which the release does not name").await;
    let unchecked = StepOrder::Stage {
        release: release.to_bytes(),
        secrets: BTreeMap::from([("key".to_owned(), "wrong".to_owned())]),
    };
    expect_refusal(&connection, &thief.step(5, &signed, 1, unchecked), "nothing that this host could check").await;
    // A digest that hosts cannot check is as good as none.
    let mut unbound = release.clone();
    unbound.secrets.get_mut("key").expect("it is there").digest = Some("generated".to_owned());
    let as_signed = operator.signs("d8-12345678", 8, Purpose::Deploy, soon, &unbound);
    let secrets = BTreeMap::from([("key".to_owned(), SentSecret { value: "wrong".to_owned(), key })]);
    let order = StepOrder::StageSealed { release: unbound.to_bytes(), secrets };
    expect_refusal(&connection, &thief.step(6, &as_signed, 1, order), "holds no digest").await;
    assert!(!fleet.host("host-1").join("servers/forged").exists(), "a refused value left something behind");
    assert_eq!(send(&connection, &stage(7, &[("key", "right", key)])).await, Some(CommandReply::Accepted));
    end(&mut agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_that_reaches_its_host_late_begins_nothing_and_one_to_undo_only_undoes() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = small_fleet();
    let impostor = Impostor::listen(&coordinator_identity(&fleet));
    fleet.kill_agent("host-1");
    let (thief, operator) = (Thief::of(&fleet), Operator::of(&fleet));
    let release = Release::plain("forged".parse().expect("name"), vec!["sleep".to_owned(), "60".to_owned()]);
    let (past, soon) =
        (Timestamp::from_unix_ms(clock().now().unix_ms() - 10), clock().now().after(Length::from_secs(60)));
    let late = operator.signs("d7-12345678", 7, Purpose::Deploy, past, &release);
    let undo_late = operator.signs("d7-12345678", 8, Purpose::RollBack, past, &release);
    let undo = operator.signs("d6-12345678", 9, Purpose::RollBack, soon, &release);
    let stage = StepOrder::Stage { release: release.to_bytes(), secrets: BTreeMap::new() };
    let restore = StepOrder::Restore { drain: false };
    for run in [0, 100] {
        let mut agent = agent_towards(&fleet, &impostor.address());
        let connection = impostor.agent().await.expect("the agent");
        let too_late = "had to reach this host by";
        expect_refusal(&connection, &thief.step(run + 1, &late, 1, stage.clone()), too_late).await;
        let announced = CommandBody::Intent { intent: late.intent.clone(), ended: false };
        expect_refusal(&connection, &thief.command(run + 2, announced), too_late).await;
        expect_refusal(&connection, &thief.step(run + 3, &late, 1, stage.clone()), too_late).await;
        expect_refusal(&connection, &thief.step(run + 4, &undo_late, 1, restore.clone()), too_late).await;
        let forward = thief.step(run + 5, &undo, 1, stage.clone());
        expect_refusal(&connection, &forward, "lets nothing be got ready").await;
        end(&mut agent);
    }
    assert!(!fleet.host("host-1").join("servers/forged").exists());
    let mut agent = agent_towards(&fleet, &impostor.address());
    let connection = impostor.agent().await.expect("the agent");
    let in_time = operator.signs("d10-12345678", 10, Purpose::Deploy, soon, &release);
    let announced = CommandBody::Intent { intent: in_time.intent.clone(), ended: false };
    assert_eq!(send(&connection, &thief.command(201, announced)).await, Some(CommandReply::Accepted));
    assert_eq!(send(&connection, &thief.step(202, &in_time, 1, stage)).await, Some(CommandReply::Accepted));
    end(&mut agent);
}

/// Whether a process has a file open.
fn has_open(pid: rustix::process::Pid, file: &str) -> bool {
    let folder = Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("fd");
    let open = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    open.into_iter().any(|path| path.ends_with(file))
}

#[test]
fn a_coordinator_works_without_the_operators_key_and_deploys_what_is_signed_elsewhere() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = small_fleet();
    let manifest = fleet.path().join("manifests/test.yaml");
    fleet.kill_coordinator();
    let elsewhere = fleet.path().join("elsewhere.key");
    fs::rename(fleet.state_dir().join("operator.key"), &elsewhere).expect("the key is moved");
    let mut coordinator = fleet.start_coordinator();
    fleet.wait_until("the coordinator answers", || fleet.run(&["status"]).code == 0);
    fleet.wait_until("the host is back", || fleet.json(&["hosts", "list"])[0]["connected"] == true);
    let second = TestServer::works("alpha", 9712, "two");
    fleet.write("config/servers/alpha.yaml", &second.definition());
    let refused = fleet.deploy(&manifest, &[]).expect_code(1);
    assert!(refused.stderr.contains("--operator-key"), "{}", refused.stderr);
    let key = elsewhere.to_string_lossy();
    fleet.deploy(&manifest, &["--operator-key", &key]).expect_code(0);
    fleet.run(&["rollback", "alpha", "--operator-key", &key]).expect_code(4);
    let stranger = fleet.path().join("stranger.key");
    fleet.run(&["operator-key", "create", &stranger.to_string_lossy()]).expect_code(0);
    let refused = fleet.deploy(&manifest, &["--operator-key", &stranger.to_string_lossy()]).expect_code(1);
    assert!(refused.stderr.contains("the intent for host-1 is refused"), "{}", refused.stderr);
    let pid = fleet.holder(&fleet.state_dir().join("coordinator.lock")).expect("a coordinator");
    assert!(!has_open(pid, "elsewhere.key") && !fleet.state_dir().join("operator.key").exists());
    drop(fleet);
    coordinator.wait().expect("ended by `down`");
}

#[test]
fn a_fleet_is_made_without_its_operators_key_and_one_of_before_is_told_what_to_do() {
    let fleet = Fleet::new();
    let key = fleet.path().join("mine.key");
    fleet.run(&["operator-key", "create", &key.to_string_lossy()]).expect_code(0);
    let again = fleet.run(&["operator-key", "create", &key.to_string_lossy()]).expect_code(1);
    assert!(again.stderr.contains("is there already"), "{}", again.stderr);
    let state_dir = fleet.state_dir().to_string_lossy().into_owned();
    let public = fleet.path().join("mine.key.pub");
    let mut command = fleet.command(&["coordinator", "--state-dir", &state_dir, "--operator-public"]);
    let mut coordinator = command.arg(&public).spawn().expect("a coordinator");
    fleet.wait_until("the coordinator answers", || fleet.run(&["status"]).code == 0);
    assert!(!fleet.state_dir().join("operator.key").exists());
    end(&mut coordinator);

    // One of before has the key, and nothing beside it.
    fs::rename(fleet.state_dir().join("operator.pub"), fleet.path().join("kept.pub")).expect("moved");
    let ended = fleet.run(&["coordinator"]).expect_code(1);
    assert!(ended.stderr.contains("fleetwright operator-key export"), "{}", ended.stderr);
    fs::copy(&key, fleet.state_dir().join("operator.key")).expect("copied");
    fleet.run(&["operator-key", "export", "--if-missing"]).expect_code(0);
    let exported = fs::read(fleet.state_dir().join("operator.pub")).expect("exported");
    assert_eq!(exported, fs::read(fleet.path().join("kept.pub")).expect("kept"));
}
