//! A host that was broken into has its key, and says of itself what it likes.

use std::fs;
use std::path::PathBuf;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::health::{HealthReport, HealthStatus};
use fleetwright_deploy::ids::DeploymentId;
use fleetwright_deploy::instance::StepReport;
use fleetwright_protocol::endpoint::IDLE_TIMEOUT;
use fleetwright_protocol::report::{AgentMessageV1, CoordinatorReply};
use fleetwright_tests::fleet::{Fleet, text};
use fleetwright_tests::impostor::StolenKey;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

const SECRET: &str = "the-secret-of-another-host";

/// Hosts h1 and h2, each with a server of its own; and a server that runs where `zone` is `secret`, which h1 is, and that
/// has a secret.
struct Zones {
    fleet: Fleet,
    /// The manifest that has the server with the secret, so often.
    secret: PathBuf,
}

impl Zones {
    fn new() -> Self {
        let fleet = Fleet::new();
        let [one, two] = [fleet.address(1), fleet.address(2)];
        let hosts = format!(
            "hosts:\n  - {{ name: h1, address: {one}, labels: {{ zone: secret }} }}\n  - {{ name: h2, address: {two}, labels: {{ zone: open }} }}\n"
        );
        let own = "  - { server: first, place: { hosts: [h1] } }\n  - { server: second, place: { hosts: [h2] } }\n";
        let first = fleet.configure_plain(&["first", "second", "vault"], 1, &format!("{hosts}servers:\n{own}"));
        fleet.up(&first, &[]).expect_code(0);
        let value = fleet.write("value", SECRET).display().to_string();
        let environment =
            format!("apiVersion: fleetwright/v1\nname: test\nsecrets: {{ key: {{ file: '{value}' }} }}\n");
        fleet.write("config/environments/test.yaml", &environment);
        let vault = fs::read_to_string(fleet.path().join("config/servers/vault.yaml")).expect("a definition");
        let reads = "files:\n  - { path: key, content: '{{ secret(name=\"key\") }} at {{ host.address }}' }\n";
        fleet.write("config/servers/vault.yaml", &vault.replace("files:\n", reads));
        let text = format!(
            "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n{own}  - {{ server: vault, place: {{ labels: {{ zone: secret }} }} }}\n"
        );
        let secret = fleet.write("manifests/test.yaml", &text);
        Self { fleet, secret }
    }

    /// The same manifest with the server on so many hosts.
    fn wanted(&self, count: u32) -> String {
        let text = fs::read_to_string(&self.secret).expect("a manifest");
        let text = text.replace("place: { labels", &format!("place: {{ count: {count}, labels"));
        self.fleet.write("manifests/many.yaml", &text).display().to_string()
    }

    fn host(&self, name: &str) -> Value {
        self.fleet.json(&["hosts", "show", name])
    }

    /// What is to be looked at on a host, in words.
    fn troubles(&self, name: &str) -> Vec<String> {
        let host = self.host(name);
        let troubles = host["troubles"].as_array().expect("troubles").iter();
        troubles.map(|trouble| text(&trouble["message"]).to_owned()).collect()
    }
}

/// On the old code the plan put the server on h2, which has fewer, and its secret went there.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_a_host_claims_brings_it_nothing_and_an_address_waits_for_an_operator() {
    let zones = Zones::new();
    let (fleet, own, elsewhere) = (&zones.fleet, zones.fleet.address(2), zones.fleet.address(9));
    fleet.kill_agent("h2");
    let stolen = StolenKey::dial(fleet, "h2", "127.0.0.1").await;
    let greeted = stolen.greet(&elsewhere, &[("zone", "secret")]).await;
    assert_eq!(greeted, Some(CoordinatorReply::Acknowledged));

    let claims = [
        format!("h2 says it is at {elsewhere}; believed {own}"),
        "h2 says it is zone=secret; believed open".to_owned(),
    ];
    assert_eq!(zones.troubles("h2"), claims);
    let host = zones.host("h2");
    assert_eq!((text(&host["address"]), text(&host["labels"]["zone"])), (own.as_str(), "open"));
    for command in [&["hosts", "list"][..], &["hosts", "show", "h2"], &["status"]] {
        let shown = fleet.run(command).stdout;
        assert!(claims.iter().all(|claim| shown.contains(claim)), "{command:?}: {shown}");
    }

    fleet.deploy(&zones.secret, &[]).expect_code(0);
    let servers: Vec<String> = fleet.servers().into_keys().filter(|name| name.starts_with("vault")).collect();
    assert_eq!(servers, ["vault@h1"]);
    let got = stolen.got.lock().await.iter().any(|envelope| holds(&envelope.payload, SECRET));
    assert!(!got, "the secret of another host went to the one that was broken into");
    let refused = fleet.run(&["plan", &zones.wanted(2)]).expect_code(1).stderr;
    assert!(refused.contains("h2: no label zone=secret"), "{refused}");

    // What the operator says is so from then on, and is no trouble any more.
    fleet.run(&["hosts", "label", "h2", "zone=secret", "tier=gold"]).expect_code(0);
    fleet.run(&["hosts", "label", "h2", "tier-"]).expect_code(0);
    assert_eq!(zones.troubles("h2"), claims[..1]);
    let planned = fleet.run(&["plan", &zones.wanted(2), "--output", "json"]).expect_code(0).stdout;
    assert!(planned.contains(&format!(" at {own}")) && !planned.contains(&elsewhere), "{planned}");
    fleet.run(&["hosts", "address", "h2", &elsewhere]).expect_code(0);
    assert_eq!(zones.troubles("h2"), Vec::<String>::new());
    let planned = fleet.run(&["plan", &zones.wanted(2), "--output", "json"]).expect_code(0).stdout;
    assert!(planned.contains(&format!(" at {elsewhere}")), "{planned}");
    let nonsense = fleet.run(&["hosts", "address", "h2", "http://evil/"]).expect_code(1).stderr;
    assert!(nonsense.contains("is no address"), "{nonsense}");
}

fn holds(bytes: &[u8], words: &str) -> bool {
    bytes.windows(words.len()).any(|part| part == words.as_bytes())
}

/// The host of a message is the one of the certificate: for others there are no words.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_answers_for_itself_alone() {
    let zones = Zones::new();
    let fleet = &zones.fleet;
    let before = fleet.servers();
    let release = text(&before["first@h1"]["release"]).parse().expect("a release");
    let deployment: DeploymentId = text(&before["first@h1"]["deployment"]).parse().expect("a deployment");
    fleet.kill_agent("h2");
    let stolen = StolenKey::dial(fleet, "h2", "127.0.0.1").await;
    stolen.greet(&fleet.address(2), &[]).await.expect("a greeting");
    let failure = Failure::new(FailureKind::DeploymentError, "step", "it is broken");
    for report in [StepReport::Confirmed, StepReport::Stuck(failure)] {
        let server = "first".parse().expect("name");
        let told = AgentMessageV1::Step { deployment: deployment.clone(), server, attempt: 1, report };
        let answer = stolen.tell(told).await;
        assert!(matches!(answer, Some(CoordinatorReply::Refused(_))), "{answer:?}");
    }
    let report = HealthReport { status: HealthStatus::Unhealthy, ..HealthReport::default() };
    let server = "first".parse().expect("name");
    let told = AgentMessageV1::Condition { server, release, report, output: Vec::new() };
    assert_eq!(stolen.tell(told).await, Some(CoordinatorReply::Acknowledged), "it is about nothing that h2 has");
    let asked = stolen.tell(AgentMessageV1::ListChunks { sha256: "a".repeat(64), from: 0 }).await;
    assert!(matches!(asked, Some(CoordinatorReply::Refused(_))), "{asked:?}");
    let after = fleet.servers();
    assert_eq!(after["first@h1"]["health"], before["first@h1"]["health"]);
    assert_eq!((after["first@h1"]["trouble"].clone(), after.len()), (Value::Null, before.len()));
}

/// The agent is held up until its connection is gone, as after a change of the network, and another takes its place: that
/// is no alarm. It comes back, and both live: that is one. Were the first told, it would be in place of the second.
#[tokio::test(flavor = "multi_thread")]
async fn two_living_connections_of_one_key_from_two_addresses_are_told_and_a_move_is_not() {
    let zones = Zones::new();
    let (fleet, elsewhere) = (&zones.fleet, zones.fleet.address(9));
    let agent = fleet.holder(&fleet.host("h2").join("agent.lock")).expect("an agent");
    kill_process(agent, Signal::STOP).expect("stop");
    let stolen = StolenKey::dial(fleet, "h2", &elsewhere).await;
    stolen.greet(&fleet.address(2), &[]).await.expect("a greeting");
    tokio::time::sleep(IDLE_TIMEOUT * 3 / 2).await;
    assert_eq!(zones.host("h2")["seen_twice"], Value::Null);
    kill_process(agent, Signal::CONT).expect("go on");
    fleet.wait_until("two are told", || !zones.host("h2")["seen_twice"].is_null());
    let seen = zones.host("h2")["seen_twice"].clone();
    assert_eq!(seen["addresses"], serde_json::json!([elsewhere, "127.0.0.1"]));
    assert_eq!(seen["times"], 1);
    for command in [&["hosts", "list"][..], &["status"]] {
        let shown = fleet.run(command).stdout;
        assert!(shown.contains(&format!("h2 was connected from {elsewhere} and from 127.0.0.1 at once")), "{shown}");
        assert!(shown.contains("fleetwright hosts token h2"), "{shown}");
    }
    let log = fs::read_to_string(fleet.state_dir().join("coordinator.log")).expect("a log");
    assert_eq!(log.matches("its key may have been copied").count(), 1, "{log}");
}

/// Two agents behind one address, as behind a translation of addresses, are two all the same.
#[tokio::test(flavor = "multi_thread")]
async fn two_living_agents_with_one_key_behind_one_address_are_told() {
    let zones = Zones::new();
    let fleet = &zones.fleet;
    let stolen = StolenKey::dial(fleet, "h2", "127.0.0.1").await;
    stolen.greet(&fleet.address(2), &[]).await.expect("a greeting");
    fleet.wait_until("two are told", || !zones.host("h2")["seen_twice"].is_null());
    assert_eq!(zones.host("h2")["seen_twice"]["addresses"], serde_json::json!(["127.0.0.1", "127.0.0.1"]));
    let shown = fleet.run(&["status"]).stdout;
    assert!(shown.contains("h2 was connected twice from 127.0.0.1 at once"), "{shown}");
}

/// Whoever has the key does not end the look for two by making ever new connections, which drive the older ones out.
#[tokio::test(flavor = "multi_thread")]
async fn a_third_connection_that_displaces_one_of_two_hides_neither() {
    let zones = Zones::new();
    let (fleet, places) = (&zones.fleet, [8, 9].map(|n| zones.fleet.address(n)));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut held = Vec::new();
    while zones.host("h2")["seen_twice"].is_null() {
        assert!(std::time::Instant::now() < deadline, "it was not told");
        for place in &places {
            let stolen = StolenKey::dial(fleet, "h2", place).await;
            // One that is driven out at once gets no answer.
            let _ = stolen.greet(&fleet.address(2), &[]).await;
            held.push(stolen);
        }
    }
    let told = zones.host("h2")["seen_twice"]["addresses"].clone();
    let own = |address: &Value| places.iter().any(|place| address == place) || address == "127.0.0.1";
    assert!(told.as_array().expect("two").iter().all(own) && told[0] != told[1], "{told}");
}

/// A host does not choose its labels when it enrols, and a later token changes what is believed only where it says so.
#[test]
fn labels_are_not_asked_of_the_host_that_enrols() {
    let zones = Zones::new();
    let fleet = &zones.fleet;
    let folder = fleet.path().join("h3");
    let token = fleet.json(&["hosts", "token", "h3", "--label", "zone=a", "--address", &fleet.address(3)]);
    let enrol = |more: &[&str]| {
        let mut command = std::process::Command::new(fleetwright_tests::fleet::program("fleetwright-agent"));
        command.args(["enroll", "--coordinator", text(&token["coordinator"]), "--state-dir"]).arg(&folder);
        command.args(["--ca-fingerprint", text(&token["ca_fingerprint"])]).args(more);
        command.env("FLEETWRIGHT_TOKEN", text(&token["token"])).output().expect("the agent runs")
    };
    let refused = enrol(&["--label", "zone=secret"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("fleetwright hosts token HOST --label zone=secret"), "{said}");
    let enrolled = enrol(&["--address", &fleet.address(9)]);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let host = zones.host("h3");
    assert_eq!((text(&host["address"]), text(&host["labels"]["zone"])), (fleet.address(3).as_str(), "a"));
}
