//! Plans in files, drawn and explained.

use std::fs;

use fleetwright_tests::fleet::Fleet;

fn fleet() -> (Fleet, String) {
    let fleet = Fleet::new();
    let servers = "servers:\n  - { server: alpha }\n  - { server: beta, depends_on: [alpha] }\n";
    let manifest = fleet.configure_plain(&["alpha", "beta"], 1, servers);
    fleet.up(&manifest, &["--agents", "2"]).expect_code(0);
    (fleet, manifest.to_string_lossy().into_owned())
}

#[test]
fn a_saved_plan_is_executed_as_it_is_and_not_once_the_fleet_has_moved_on() {
    let (fleet, manifest) = fleet();
    let servers = "servers:\n  - { server: alpha }\n  - { server: beta, depends_on: [alpha] }\n";
    fleet.configure_plain(&["alpha", "beta"], 2, servers);
    let saved = fleet.run(&["plan", &manifest, "--out", "two.plan", "--detailed-exitcode"]).expect_code(3);
    assert!(saved.stderr.contains("saved plan ") && saved.stderr.contains("two.plan"), "{}", saved.stderr);
    fleet.run(&["plan", &manifest, "--out", "again.plan"]).expect_code(0);
    // What the manifest says now is no matter: the plan is executed.
    fleet.configure_plain(&["alpha", "beta"], 3, servers);
    let dry = fleet.run(&["deploy", "start", "two.plan", "--dry-run"]).expect_code(0);
    assert!(dry.stdout.contains("echo version 2") && !dry.stdout.contains("echo version 3"), "{}", dry.stdout);
    fleet.run(&["deploy", "start", "two.plan", "--watch"]).expect_code(0);
    let running = |server: &str| {
        let log = fleet.servers().into_iter().find(|(id, _)| id.starts_with(server)).expect("it runs").0;
        fleet.run(&["servers", "logs", &log]).stdout
    };
    fleet.wait_until("the new version says so", || running("beta").contains("version 2"));

    let refused = fleet.run(&["deploy", "start", "again.plan"]).expect_code(1).stderr;
    assert!(refused.contains("the fleet has changed since plan") && refused.contains("alpha@"), "{refused}");
    assert!(
        refused.contains("when the plan was made, and runs") && refused.contains("nothing was started"),
        "{refused}"
    );
    let text = fs::read_to_string(fleet.path().join("again.plan")).expect("read");
    fleet.write("bad.plan", &text.replace("version 2", "version 9"));
    let refused = fleet.run(&["deploy", "start", "bad.plan"]).expect_code(1).stderr;
    assert!(refused.contains("it was changed after it was made"), "{refused}");
    fleet.write("bad.plan", "{ not JSON");
    assert!(fleet.run(&["deploy", "start", "bad.plan"]).expect_code(1).stderr.contains("it is no saved plan"));
    let refused = fleet.run(&["deploy", "start", "again.plan", "-e", "test"]).expect_code(1).stderr;
    assert!(refused.contains("is a plan already"), "{refused}");
    assert!(fleet.run(&["deploy", "start", "none.plan"]).expect_code(1).stderr.contains("none.plan"));
    fleet.run(&["plan", &manifest, "--out", "no/such/folder/plan"]).expect_code(1);
}

#[test]
fn a_plan_is_drawn_and_a_server_explained() {
    let (fleet, manifest) = fleet();
    let mermaid = fleet.run(&["plan", &manifest, "--graph", "mermaid"]).expect_code(0).stdout;
    assert!(mermaid.starts_with("flowchart RL\n") && mermaid.contains("s_beta --> s_alpha"), "{mermaid}");
    let dot = fleet.run(&["plan", &manifest, "--graph", "dot"]).expect_code(0).stdout;
    assert!(
        dot.starts_with("digraph plan {") && dot.contains("\"beta\" -> \"alpha\";") && dot.trim_end().ends_with('}')
    );
    let explained = fleet.run(&["plan", &manifest, "--explain", "beta"]).expect_code(0).stdout;
    assert!(explained.contains("beta is in group 2 of 2\n  because it depends on alpha (group 1)"), "{explained}");
    assert!(explained.contains("it runs there already") && explained.contains("not needed"), "{explained}");
    let wrong = fleet.run(&["plan", &manifest, "--explain", "bta"]).expect_code(1).stderr;
    assert!(wrong.contains("did you mean `beta`"), "{wrong}");
    fleet.run(&["plan", &manifest, "--graph", "png"]).expect_code(2);
}

#[test]
fn a_plan_tells_the_interpreter_where_it_is_not_the_hosts_own() {
    let fleet = Fleet::new();
    let definition = "apiVersion: fleetwright/v1\nname: alpha\npackage: { pypi: mcp-server-time, version: 2026.10.19 }\n\
                      requires: [python>=3.12]\nrun: { command: [mcp-server-time], transport: stdio, port: 8801 }\n\
                      health_checks:\n  - { name: tools, type: mcp }\n";
    fleet.write("config/servers/alpha.yaml", definition);
    let host = |name: &str, usual: &str| {
        format!(
            "  - {{ name: {name}, address: 10.0.0.1, runtimes: {{ python3: ['{usual}'], python: ['3.11', '3.12', '3.13'] }} }}\n"
        )
    };
    let hosts = format!("hosts:\n{}{}", host("newer", "3.12"), host("older", "3.11"));
    let manifest = fleet
        .configure(&[], &format!("{hosts}servers:\n  - {{ server: alpha, place: {{ hosts: [newer, older] }} }}\n"));
    let planned = fleet.run(&["plan", &manifest.to_string_lossy(), "--offline"]).expect_code(0).stdout;
    let after = |host: &str| {
        planned
            .split(&format!("alpha@{host} "))
            .nth(1)
            .and_then(|rest| rest.lines().nth(1))
            .unwrap_or_default()
            .to_owned()
    };
    let told = "installed for Python 3.13, the newest that fits, since the host's python3 does not, unless the package asks for another";
    assert_eq!(after("older").trim(), told, "{planned}");
    assert!(!after("newer").contains("installed for"), "{planned}");
}
