//! What a new user does first, with the real servers from PyPI; and updates of what runs.

use std::collections::BTreeMap;
use std::fs;

use fleetwright_tests::fleet::{Fleet, repository, text};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};

#[test]
fn the_quickstart_runs_checks_and_stops_real_servers_and_doing_it_again_changes_nothing() {
    if !have(&[Tool::Python, Tool::Pypi]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = repository().join("deploy/deployments/quickstart.yaml");
    let first = fleet.up(&manifest, &["--output", "json"]).expect_code(0);
    let rows = first.json();
    assert_eq!(rows.as_array().map(Vec::len), Some(4), "{rows:#}");

    let servers = fleet.servers();
    let mcp = |id: &str| {
        let row = &servers[id];
        assert_eq!(row["health"], "healthy", "{row:#}");
        let mcp = &row["report"]["mcp"];
        (text(&mcp["name"]).to_owned(), mcp["tools"].as_array().expect("tools").len(), text(&row["url"]).to_owned())
    };
    let url = |host: u8, port: u16| format!("http://{}:{port}/mcp", fleet.address(host));
    assert_eq!(mcp("time@host-1"), ("mcp-time".to_owned(), 2, url(1, 8801)));
    assert_eq!(mcp("git@host-1"), ("mcp-git".to_owned(), 12, url(1, 8802)));
    assert_eq!(mcp("git@host-2"), ("mcp-git".to_owned(), 12, url(2, 8802)));
    assert_eq!(mcp("fetch@host-3"), ("mcp-fetch".to_owned(), 1, url(3, 8803)));

    let release = fleet.host("host-1").join("servers/time/current");
    let lock = fs::read_to_string(release.join("installed.lock")).expect("the lock is in the release");
    assert!(lock.contains("mcp-server-time==2026.10.19") && lock.contains("mcp=="), "{lock}");

    let pids: BTreeMap<&str, _> = [("host-1", "time"), ("host-1", "git"), ("host-2", "git"), ("host-3", "fetch")]
        .map(|(host, server)| (server, fleet.server_pid(host, server)))
        .into();
    let second = fleet.up(&manifest, &[]).expect_code(0);
    assert!(second.stderr.contains("nothing changes"), "{}", second.stderr);
    let after: BTreeMap<&str, _> = [("host-1", "time"), ("host-1", "git"), ("host-2", "git"), ("host-3", "fetch")]
        .map(|(host, server)| (server, fleet.server_pid(host, server)))
        .into();
    assert_eq!(after, pids, "a server was started anew");
    assert_eq!(fleet.json(&["deploy", "list"]).as_array().map(Vec::len), Some(1));

    let logs = fleet.run(&["servers", "logs", "time@host-1"]).expect_code(0);
    assert!(logs.stdout.contains("started"), "{}", logs.stdout);
    fleet.run(&["down"]).expect_code(0);
    for host in 1..=3 {
        for port in 8801..=8803 {
            let address = (fleet.address(host), port);
            assert!(std::net::TcpStream::connect(address.clone()).is_err(), "{address:?} still answers");
        }
    }
    // What was deployed comes back with the fleet, without a deployment.
    let third = fleet.up(&manifest, &[]).expect_code(0);
    assert!(third.stderr.contains("nothing changes"), "{}", third.stderr);
    fleet.wait_until("everything is healthy again", || fleet.servers().values().all(|row| row["health"] == "healthy"));
}

#[test]
fn a_changed_manifest_plans_only_the_change_and_a_bad_version_goes_back_to_the_good_one() {
    if !have(&[Tool::Python]) {
        return;
    }
    let servers = "servers:\n  - { server: alpha }\n  - { server: beta, depends_on: [alpha] }\n";
    let (alpha, beta) = (TestServer::works("alpha", 9001, "one"), TestServer::works("beta", 9002, "v1"));
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[alpha.clone(), beta.clone()], servers);
    fleet.up(&manifest, &[]).expect_code(0);
    let alpha_pid = fleet.server_pid("host-1", "alpha").or_else(|| fleet.server_pid("host-2", "alpha"));
    let host = fleet.servers().keys().find_map(|id| id.strip_prefix("beta@").map(str::to_owned)).expect("beta");
    let v1 = fleet.files(&host, "beta");

    // v1 → bad v2 → v1
    let manifest = fleet.configure(&[alpha.clone(), beta.clone().behaves("crash, v2, 0")], servers);
    fleet.up(&manifest, &[]).expect_code(4);
    assert_eq!(fleet.files(&host, "beta"), v1);
    let tools = |fleet: &Fleet| fleet.servers()[&format!("beta@{host}")]["report"]["mcp"]["tools"].to_string();
    fleet.wait_until("v1 is healthy again", || tools(&fleet) == "[\"v1\"]");

    // v1 → good v3: one update, alpha is not touched
    let manifest = fleet.configure(&[alpha.clone(), beta.behaves("ok, v3")], servers);
    let dry = fleet.run(&["deploy", "start", &manifest.to_string_lossy(), "--dry-run"]).expect_code(0);
    assert!(dry.stdout.contains("0 to create, 1 to update, 0 to remove, 1 unchanged"), "{}", dry.stdout);
    assert!(
        dry.stdout.contains("run.command") && dry.stdout.contains("v1") && dry.stdout.contains("v3"),
        "{}",
        dry.stdout
    );
    fleet.run(&["plan", &manifest.to_string_lossy(), "--detailed-exitcode"]).expect_code(3);
    fleet.up(&manifest, &[]).expect_code(0);
    fleet.wait_until("v3 is seen", || tools(&fleet) == "[\"v3\"]");
    assert_eq!(fleet.server_pid("host-1", "alpha").or_else(|| fleet.server_pid("host-2", "alpha")), alpha_pid);

    // and a server that the manifest no longer has is removed
    let manifest = fleet.configure(&[alpha], "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &[]).expect_code(0);
    assert_eq!(fleet.servers().len(), 1);
    assert!(!fleet.host(&host).join("servers/beta/current").exists());
}
