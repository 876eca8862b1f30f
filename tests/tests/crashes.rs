//! kill -9 of the coordinator or of an agent in the midst of a deployment: it ends as it would have ended, nothing
//! runs twice, nothing is lost.

use std::fs;
use std::path::PathBuf;

use fleetwright_tests::fleet::{Fleet, text};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

const ONE: &str = "servers:\n  - { server: alpha }\n  - { server: beta, depends_on: [alpha] }\n";

/// When the process is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Right after the deployment was started.
    Started,
    /// While the second server is being checked.
    Verifying,
    /// While everything must stay healthy.
    Baking,
}

/// A fleet of one host with no server on it.
fn empty_fleet() -> Fleet {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[TestServer::works("first", 9200, "zero")], "servers:\n  - { server: first }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    fleet
}

/// The file without which the second server does not answer: so the test decides how long it is being checked.
fn gate(fleet: &Fleet) -> PathBuf {
    fleet.path().join("gate")
}

/// Starts the deployment of two servers, and waits for the moment. The second server waits for its gate.
fn deploy_until(fleet: &Fleet, moment: Moment) -> String {
    let alpha = TestServer::works("alpha", 9201, "one");
    let beta = TestServer::works("beta", 9202, "one").behaves(&format!("wait, one, {}", gate(fleet).display()));
    let manifest = fleet.configure(&[alpha, beta], ONE);
    let text_of = fs::read_to_string(&manifest).expect("manifest").replace("name: test", "name: second");
    let patient = text_of.replace("bake: 1s", "bake: 10s").replace("healthy_deadline: 20s", "healthy_deadline: 80s");
    fs::write(&manifest, patient).expect("write");
    if !matches!(moment, Moment::Verifying) {
        fs::write(gate(fleet), "open").expect("write");
    }
    let started = fleet.json(&["deploy", "start", &manifest.to_string_lossy()]);
    let id = text(&started["id"]).to_owned();
    let reached = |deployment: &Value| match moment {
        Moment::Started => true,
        Moment::Verifying => step_state(deployment, "beta@host-1") == "verifying",
        Moment::Baking => deployment["summary"]["phase"] == "health_validation",
    };
    fleet.wait_until("the moment has come", || reached(&fleet.json(&["deploy", "show", &id])));
    id
}

fn step_state(deployment: &Value, instance: &str) -> String {
    let steps = deployment["steps"].as_array().expect("steps");
    let step = steps.iter().find(|step| step["instance"] == instance).expect("the step");
    text(&step["state"]).to_owned()
}

fn outcome(fleet: &Fleet, id: &str) -> Option<String> {
    let output = fleet.run(&["deploy", "show", id, "--output", "json"]);
    let view: Value = serde_json::from_str(&output.stdout).ok()?;
    view["summary"]["outcome"].as_str().map(str::to_owned)
}

/// Asserts that the deployment succeeded, and that each server runs once, for the first time.
fn expect_success(fleet: &Fleet, id: &str) {
    fleet.wait_until("the deployment has ended", || outcome(fleet, id).is_some());
    assert_eq!(outcome(fleet, id).as_deref(), Some("succeeded"), "{:#}", fleet.json(&["deploy", "show", id]));
    for server in ["alpha", "beta", "first"] {
        assert_eq!(processes_of(fleet, server), 1, "{server} does not run exactly once");
        assert_eq!(
            fleet.supervisor("host-1", server).expect("status")["exits"],
            0,
            "{server} was started more than once"
        );
    }
    let healthy = |row: &Value| row["health"] == "healthy";
    fleet.wait_until("all servers are healthy", || fleet.servers().len() == 3 && fleet.servers().values().all(healthy));
}

/// How many interpreters run this server's program.
fn processes_of(fleet: &Fleet, server: &str) -> usize {
    let folder = fleet.host("host-1").join("servers").join(server).to_string_lossy().into_owned();
    let is_ours = |pid: &str| {
        let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        String::from_utf8_lossy(&argv).contains(&folder) && exe.to_string_lossy().contains("python")
    };
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<i32>().is_ok() && is_ours(name)))
        .count()
}

fn coordinator_is_killed_when(moment: Moment) {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = empty_fleet();
    let id = deploy_until(&fleet, moment);
    fleet.kill_coordinator();
    let mut coordinator = fleet.start_coordinator();
    fs::write(gate(&fleet), "open").expect("write");
    expect_success(&fleet, &id);
    drop(fleet);
    coordinator.wait().expect("ended by `down`");
}

fn agent_is_killed_when(moment: Moment) {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = empty_fleet();
    let id = deploy_until(&fleet, moment);
    fleet.kill_agent("host-1");
    let mut agent = fleet.start_agent("host-1");
    fs::write(gate(&fleet), "open").expect("write");
    expect_success(&fleet, &id);
    drop(fleet);
    agent.wait().expect("ended by `down`");
}

#[test]
fn the_coordinator_is_killed_right_after_the_start() {
    coordinator_is_killed_when(Moment::Started);
}

#[test]
fn the_coordinator_is_killed_while_a_server_is_checked() {
    coordinator_is_killed_when(Moment::Verifying);
}

#[test]
fn the_coordinator_is_killed_during_the_bake() {
    coordinator_is_killed_when(Moment::Baking);
}

#[test]
fn an_agent_is_killed_right_after_the_start() {
    agent_is_killed_when(Moment::Started);
}

#[test]
fn an_agent_is_killed_while_a_server_is_checked() {
    agent_is_killed_when(Moment::Verifying);
}

#[test]
fn an_agent_is_killed_during_the_bake() {
    agent_is_killed_when(Moment::Baking);
}

#[test]
fn a_host_that_is_not_confirmed_puts_itself_back_without_the_coordinator() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = empty_fleet();
    let before = fleet.files("host-1", "first");
    let changed = TestServer::works("first", 9200, "zero").behaves(&format!("wait, zero, {}", gate(&fleet).display()));
    let manifest = fleet.configure(&[changed], "servers:\n  - { server: first }\n");
    let text_of = fs::read_to_string(&manifest).expect("manifest");
    let hasty = text_of.replace("confirm_timeout: 20s", "confirm_timeout: 3s");
    fs::write(&manifest, hasty).expect("write");
    let started = fleet.json(&["deploy", "start", &manifest.to_string_lossy()]);
    let id = text(&started["id"]).to_owned();
    fleet.wait_until("the new release is checked", || {
        step_state(&fleet.json(&["deploy", "show", &id]), "first@host-1") == "verifying"
    });
    fleet.kill_coordinator();
    fs::write(gate(&fleet), "open").expect("write");
    fleet.wait_until("the new release is healthy, and waits to be confirmed", || {
        fleet.agent_log("host-1").matches("became_healthy").count() == 2
    });
    fleet.wait_until("the host has put itself back", || fleet.agent_log("host-1").contains("restore_succeeded"));
    assert_eq!(fleet.files("host-1", "first"), before);
    assert_eq!(processes_of(&fleet, "first"), 1);
    let mut coordinator = fleet.start_coordinator();
    fleet.wait_until("the deployment has ended", || outcome(&fleet, &id).is_some());
    assert_eq!(outcome(&fleet, &id).as_deref(), Some("rolled_back"));
    let explained = fleet.run(&["explain", &id]).expect_code(0);
    assert!(explained.stdout.contains("not confirmed in time"), "{}", explained.stdout);
    drop(fleet);
    coordinator.wait().expect("ended by `down`");
}

/// Kills the coordinator at moments that a seed chooses, in deployments of twenty instances.
#[test]
fn the_coordinator_is_killed_at_twenty_moments_of_deployments_of_twenty_instances() {
    const SERVERS: [&str; 5] = ["s1", "s2", "s3", "s4", "s5"];
    let mut moments = fastrand::Rng::with_seed(20);
    let fleet = Fleet::new();
    let lines = "servers:\n  - { server: s1, place: { count: 4 } }\n  - { server: s2, place: { count: 4 } }\n  \
                 - { server: s3, place: { count: 4 }, depends_on: [s1, s2] }\n  - { server: s4, place: { count: 4 }, depends_on: [s1] }\n  \
                 - { server: s5, place: { count: 4 }, depends_on: [s3, s4] }\n\
                 rollout: { min_healthy_time: 100ms, max_unavailable: 2, healthy_deadline: 30s, confirm_timeout: 30s, progress_deadline: 90s }\n";
    let manifest = fleet.configure_plain(&SERVERS, 1, lines);
    fleet.up(&manifest, &["--agents", "4"]).expect_code(0);
    let mut coordinators = Vec::new();
    for version in 2..7 {
        fleet.configure_plain(&SERVERS, version, lines);
        fleet.wait_until("every host is back", || fleet.json(&["status"])["status"]["hosts_connected"] == 4);
        let started = fleet.json(&["deploy", "start", &manifest.to_string_lossy()]);
        let id = text(&started["id"]).to_owned();
        for _ in 0..4 {
            // A moment is a number of entries, so that it is one of the deployment and not one of this machine.
            let entries = || fleet.run(&["status", "--output", "json"]).stdout;
            let last = |status: &str| serde_json::from_str::<Value>(status).ok()?["status"]["last_event"].as_u64();
            let until = last(&entries()).unwrap_or(0) + moments.u64(1..40);
            fleet.wait_until("the moment has come", || {
                last(&entries()).is_some_and(|last| last >= until) || outcome(&fleet, &id).is_some()
            });
            fleet.kill_coordinator();
            coordinators.push(fleet.start_coordinator());
            fleet.wait_until("the coordinator answers again", || last(&entries()).is_some());
        }
        fleet.wait_until("the deployment has ended", || outcome(&fleet, &id).is_some());
        assert_eq!(outcome(&fleet, &id).as_deref(), Some("succeeded"), "{:#}", fleet.json(&["deploy", "show", &id]));
        for (host, server) in (1..=4).flat_map(|host| SERVERS.map(|server| (format!("host-{host}"), server))) {
            let script = fleet.host(&host).join("servers").join(server).join("current/config/run.sh");
            let script = fs::read_to_string(script).expect("a release");
            assert!(script.contains(&format!("version {version}\n")), "{server}@{host}: {script}");
        }
    }
    fleet.run(&["journal", "verify"]).expect_code(0);
    drop(fleet);
    for mut coordinator in coordinators {
        coordinator.wait().expect("killed, or ended by `down`");
    }
}

#[test]
fn a_host_that_is_gone_from_one_moment_to_the_next_comes_back_with_its_servers() {
    let fleet = Fleet::new();
    let manifest = fleet.configure_plain(&["beta"], 1, "servers:\n  - { server: beta }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    // Nobody has the time to write down that it ends.
    fleet.kill_agent("host-1");
    let status = fleet.supervisor("host-1", "beta").expect("a supervisor");
    let number = |of: &str| i32::try_from(status[of]["pid"].as_i64().expect("a process")).expect("a number");
    let (supervisor, server) = (number("supervisor"), number("server"));
    for process in [supervisor, server] {
        let process = rustix::process::Pid::from_raw(process).expect("a process");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("kill");
    }
    let is_alive = |pid: i64| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    fleet.wait_until("it has ended", || !is_alive(server.into()) && !is_alive(supervisor.into()));
    let mut agent = fleet.start_agent("host-1");
    fleet.wait_until("it runs again", || {
        fleet.server_pid("host-1", "beta").is_some_and(|pid| pid != i64::from(server) && is_alive(pid))
    });
    fleet.wait_until("it is healthy", || fleet.servers()["beta@host-1"]["health"] == "healthy");
    assert!(
        !fleet.agent_log("host-1").contains("nothing keeps it running"),
        "it was started at once, not over and over"
    );
    agent.kill().expect("kill");
    agent.wait().expect("wait");
}
