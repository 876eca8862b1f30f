//! What a person is told of servers that run and are of no use to their clients.

use fleetwright_tests::fleet::{Fleet, text};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};

const ROLLED_BACK: i32 = 4;

#[test]
fn a_server_without_its_database_is_unhealthy_though_it_lists_its_tools() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let database = fleet.path().join("database");
    std::fs::write(&database, "there").expect("write");
    let server = TestServer::works("alpha", 9501, "query").behaves(&format!("database, query, {}", database.display()));
    let manifest = fleet.configure(std::slice::from_ref(&server), "servers:\n  - { server: alpha }\n");
    let calling = "timeout: 5s, config: { call: { tool: query, contains: called query, interval: 1s } } }";
    let definition = server.definition().replace("timeout: 5s }", calling);
    assert!(definition.contains(calling));
    fleet.write("config/servers/alpha.yaml", &definition);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    // The server may see the file by a mount of its own, so it is emptied in its place.
    std::fs::write(&database, "").expect("write");
    fleet.wait_until("it is unhealthy", || fleet.servers()["alpha@host-1"]["health"] == "unhealthy");
    let shown = fleet.run(&["servers", "show", "alpha@host-1"]).expect_code(0).stdout;
    assert!(shown.contains("tool `query` answers with an error: connection refused: no database"), "{shown}");
    assert!(shown.contains("tools     1"), "it lists them all the same: {shown}");
    std::fs::write(&database, "there").expect("write");
    fleet.wait_until("it is healthy again", || fleet.servers()["alpha@host-1"]["health"] == "healthy");
    let unknown = fleet.run(&["servers", "show", "beta@host-1"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("hint: "), "{}", unknown.stderr);
}

#[test]
fn a_plain_web_server_that_is_taken_for_an_mcp_server_is_told_to_be_none() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: web }\n");
    let definition = "apiVersion: fleetwright/v1\nname: web\nrun:\n  command: [python3, -m, http.server, \"9502\", --bind, \"{{ host.address }}\"]\n  \
                      transport: http\n  port: 9502\n  stop_timeout: 2s\n\
                      health_checks:\n  - { name: tools, type: mcp, interval: 1s, timeout: 5s, start_grace: 3s }\n";
    fleet.write("config/servers/web.yaml", definition);
    let refused = fleet.up(&manifest, &["--agents", "1"]).expect_code(ROLLED_BACK);
    let deployment = fleet.newest_deployment();
    let message = text(&deployment["cause"]["message"]);
    assert!(message.contains("`transport: none`") && message.contains("`run.path`"), "{message}");
    for inside in ["::", "<", "rmcp", "Transport["] {
        assert!(!refused.stderr.contains(inside) && !message.contains(inside), "{inside}: {}", refused.stderr);
    }
}
