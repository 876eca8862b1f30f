//! Failed deployments put everything back: files, processes and checks.

use std::net::TcpListener;
use std::path::Path;

use fleetwright_tests::fleet::{Fleet, text};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

const ROLLED_BACK: i32 = 4;
const TWO: &str = "servers:\n  - { server: alpha }\n  - { server: beta, depends_on: [alpha] }\n";

fn alpha() -> TestServer {
    TestServer::works("alpha", 9101, "one")
}

fn beta() -> TestServer {
    TestServer::works("beta", 9102, "two")
}

/// A fleet of one host on which both servers run and have data.
fn running_fleet() -> Fleet {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[alpha(), beta()], TWO);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    std::fs::write(fleet.host("host-1").join("servers/beta/data/state"), "precious").expect("data");
    fleet
}

/// The first failure of the newest deployment.
fn cause(fleet: &Fleet) -> Value {
    let deployment = fleet.newest_deployment();
    assert_eq!(deployment["summary"]["outcome"], "rolled_back", "{deployment:#}");
    deployment["cause"].clone()
}

/// Asserts that everything is as `running_fleet` left it, and that both servers are healthy.
fn expect_as_before(fleet: &Fleet, before: &[(String, std::collections::BTreeMap<String, Vec<u8>>)]) {
    for (server, files) in before {
        assert_eq!(fleet.files("host-1", server), *files, "the files of {server} differ");
    }
    fleet.wait_until("both servers are healthy", || {
        let servers = fleet.servers();
        servers.len() == 2 && servers.values().all(|row| row["health"] == "healthy" && row["trouble"].is_null())
    });
    let manifest = fleet.configure(&[alpha(), beta()], TWO);
    let plan = fleet.run(&["plan", &manifest.to_string_lossy(), "--detailed-exitcode"]);
    plan.expect_code(0);
}

fn replace(manifest: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(manifest).expect("manifest");
    assert!(text.contains(from));
    std::fs::write(manifest, text.replace(from, to)).expect("write");
}

fn snapshot(fleet: &Fleet) -> Vec<(String, std::collections::BTreeMap<String, Vec<u8>>)> {
    ["alpha", "beta"].map(|server| (server.to_owned(), fleet.files("host-1", server))).to_vec()
}

#[test]
fn a_server_that_never_completes_the_handshake_is_rolled_back_with_all_that_was_deployed_with_it() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = running_fleet();
    let before = snapshot(&fleet);
    let changed = alpha().behaves("ok, another");
    let manifest = fleet.configure(&[changed, beta().behaves("mute, two")], TWO);
    replace(&manifest, "healthy_deadline: 20s", "healthy_deadline: 10s");
    let outcome = fleet.deploy(&manifest, &[]).expect_code(ROLLED_BACK);
    let cause = cause(&fleet);
    assert_eq!(
        (text(&cause["kind"]), text(&cause["server"]), text(&cause["host"])),
        ("health_check_error", "beta", "host-1")
    );
    assert_eq!(cause["step"], "health gate");
    assert!(cause["output"].to_string().contains("serving as mute"), "{cause:#}");
    assert!(outcome.stderr.contains("hint:"), "{}", outcome.stderr);
    expect_as_before(&fleet, &before);
}

#[test]
fn a_package_that_does_not_exist_touches_nothing() {
    if !have(&[Tool::Python, Tool::Pypi]) {
        return;
    }
    let fleet = running_fleet();
    let before = snapshot(&fleet);
    let pids = ["alpha", "beta"].map(|server| fleet.server_pid("host-1", server));
    let mut broken = beta();
    broken.more = "package: { pypi: mcp-server-time, version: 0.0.0.1 }\n";
    let manifest = fleet.configure(&[alpha().behaves("ok, another"), broken], TWO);
    fleet.deploy(&manifest, &[]).expect_code(ROLLED_BACK);
    let cause = cause(&fleet);
    assert_eq!(
        (text(&cause["kind"]), text(&cause["step"]), text(&cause["server"])),
        ("dependency_error", "install", "beta")
    );
    assert!(text(&cause["message"]).contains("PyPI has no mcp-server-time==0.0.0.1"), "{cause:#}");
    assert!(!cause["hint"].is_null() && !cause["output"].as_array().expect("lines").is_empty(), "{cause:#}");
    assert_eq!(["alpha", "beta"].map(|server| fleet.server_pid("host-1", server)), pids, "a server was stopped");
    expect_as_before(&fleet, &before);
}

#[test]
fn a_taken_port_is_found_before_anything_is_touched() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = running_fleet();
    let before = snapshot(&fleet);
    let pids = ["alpha", "beta"].map(|server| fleet.server_pid("host-1", server));
    let _taken = TcpListener::bind((fleet.address(1), 9199)).expect("bind");
    let moved = TestServer { port: 9199, ..beta() };
    let manifest = fleet.configure(&[alpha().behaves("ok, another"), moved], TWO);
    fleet.deploy(&manifest, &[]).expect_code(ROLLED_BACK);
    let cause = cause(&fleet);
    assert_eq!(
        (text(&cause["kind"]), text(&cause["step"]), text(&cause["server"])),
        ("resource_error", "preflight", "beta")
    );
    assert!(text(&cause["message"]).contains("port 9199"), "{cause:#}");
    assert_eq!(["alpha", "beta"].map(|server| fleet.server_pid("host-1", server)), pids, "a server was stopped");
    expect_as_before(&fleet, &before);
}

#[test]
fn a_server_that_crashes_after_it_was_confirmed_is_rolled_back_during_the_bake() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = running_fleet();
    let before = snapshot(&fleet);
    let manifest = fleet.configure(&[alpha(), beta().behaves("crash, two, 9")], TWO);
    replace(&manifest, "bake: 1s", "bake: 30s");
    fleet.deploy(&manifest, &[]).expect_code(ROLLED_BACK);
    let cause = cause(&fleet);
    assert_eq!((text(&cause["server"]), text(&cause["host"])), ("beta", "host-1"));
    assert!(["health_check_error", "deployment_error"].contains(&text(&cause["kind"])), "{cause:#}");
    assert!(cause["output"].to_string().contains("about to crash"), "{cause:#}");
    assert!(text(&cause["hint"]).contains("servers logs beta@host-1"), "{cause:#}");
    expect_as_before(&fleet, &before);
}

#[test]
fn the_first_deployment_that_fails_leaves_nothing_behind() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[alpha(), beta().behaves("crash, two, 0")], TWO);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(ROLLED_BACK);
    assert!(fleet.servers().is_empty());
    for server in ["alpha", "beta"] {
        let folder = fleet.host("host-1").join("servers").join(server);
        assert!(!folder.join("current").exists(), "{server} is still there");
        assert!(
            std::fs::read_dir(folder.join("releases")).into_iter().flatten().next().is_none(),
            "a release of {server} is left"
        );
    }
}

#[test]
fn a_deployment_without_rollback_leaves_the_failed_server_to_look_at_and_the_next_one_mends_it() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = running_fleet();
    let manifest = fleet.configure(&[alpha(), beta().behaves("crash, two, 0")], TWO);
    fleet.deploy(&manifest, &["--no-rollback"]).expect_code(1);
    assert_eq!(fleet.newest_deployment()["summary"]["outcome"], "failed");
    assert!(!fleet.servers()["beta@host-1"]["trouble"].is_null());
    fleet.run(&["status"]).expect_code(5);
    let manifest = fleet.configure(&[alpha(), beta()], TWO);
    fleet.deploy(&manifest, &[]).expect_code(0);
    assert!(fleet.servers()["beta@host-1"]["trouble"].is_null());
    fleet.run(&["status"]).expect_code(0);
}

#[test]
fn the_manual_strategy_waits_for_a_person() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = running_fleet();
    let before = snapshot(&fleet);
    let manual = format!("{TWO}rollback: {{ strategy: manual }}\n");
    let manifest = fleet.configure(&[alpha().behaves("ok, another"), beta().behaves("crash, two, 0")], &manual);
    let outcome = fleet.deploy(&manifest, &[]).expect_code(5);
    assert!(outcome.stderr.contains("waits for a person"), "{}", outcome.stderr);
    let deployment = fleet.newest_deployment();
    assert_eq!(deployment["summary"]["phase"], "awaiting_operator");
    let id = text(&deployment["summary"]["id"]);
    let explained = fleet.run(&["explain", id]).expect_code(0);
    assert!(explained.stdout.contains(&format!("fleetwright rollback {id}")), "{}", explained.stdout);
    let second = fleet.deploy(&manifest, &[]).expect_code(1);
    assert!(second.stderr.contains(&format!("deployment {id}, started by")), "{}", second.stderr);
    fleet.run(&["rollback", id]).expect_code(ROLLED_BACK);
    expect_as_before(&fleet, &before);
}

#[test]
fn a_deployment_that_succeeded_can_be_undone_and_only_while_it_is_the_newest() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = running_fleet();
    let first = fleet.newest_deployment();
    let before = snapshot(&fleet);
    let manifest = fleet.configure(&[alpha(), beta().behaves("ok, second")], TWO);
    fleet.deploy(&manifest, &[]).expect_code(0);
    let second = fleet.newest_deployment();
    let first_id = text(&first["summary"]["id"]);
    let refused = fleet.run(&["rollback", first_id]).expect_code(1);
    assert!(refused.stderr.contains(text(&second["summary"]["id"])), "{}", refused.stderr);
    std::fs::write(fleet.host("host-1").join("servers/beta/data/state"), "changed by the second").expect("data");
    // A later deployment that was rolled back itself is no obstacle.
    let manifest = fleet.configure(&[alpha(), beta().behaves("crash, two, 0")], TWO);
    fleet.deploy(&manifest, &[]).expect_code(ROLLED_BACK);
    fleet.run(&["rollback", text(&second["summary"]["id"])]).expect_code(ROLLED_BACK);
    expect_as_before(&fleet, &before);
}
