//! What servers wait for: others that have done their work, others that were started, and endpoints outside the fleet.

use std::fs;
use std::net::TcpListener;

use fleetwright_tests::fleet::{Fleet, text};

const ROLLED_BACK: i32 = 4;

/// What a manifest says about its rollout, so that tests are quick.
const QUICK: &str = "rollout: { min_healthy_time: 200ms, healthy_deadline: 20s, confirm_timeout: 20s, progress_deadline: 60s, \
                     retry: { attempts: 2, base: 100ms } }\n";

/// A server that does its work and ends: it counts how often in its data folder, and ends as this says.
fn migrate(version: u32, end: &str) -> String {
    format!(
        "apiVersion: fleetwright/v1\nname: migrate\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\"]\n  completes: true\n\
         snapshot: {{ data: true }}\nfiles:\n  - path: run.sh\n    content: |\n      echo {version} >> \"$HOME/runs\"\n      {end}\n"
    )
}

fn manifest(fleet: &Fleet, version: u32, end: &str, more: &str) -> std::path::PathBuf {
    let lines = format!(
        "servers:\n  - {{ server: migrate }}\n  - {{ server: api, depends_on: [{{ server: migrate, condition: completed }}] }}\n{QUICK}{more}"
    );
    let path = fleet.configure_plain(&["api"], version, &lines);
    fleet.write("config/servers/migrate.yaml", &migrate(version, end));
    path
}

fn runs(fleet: &Fleet) -> String {
    let folder = fleet.host("host-1").join("servers/migrate/data/runs");
    fs::read_to_string(folder).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_completes_runs_once_for_each_release_before_what_waits_for_it() {
    let fleet = Fleet::new();
    fleet.up(&manifest(&fleet, 1, "exit 0", ""), &["--agents", "1"]).expect_code(0);
    assert_eq!(runs(&fleet), "1");
    let shown = fleet.run(&["servers", "list"]).expect_code(0).stdout;
    assert!(shown.lines().any(|line| line.contains("migrate") && line.contains("completed")), "{shown}");
    let servers = fleet.servers();
    assert_eq!(servers["migrate@host-1"]["health"], "healthy");

    // An agent that is started anew starts nothing that has done its work.
    fleet.kill_agent("host-1");
    let mut agent = fleet.start_agent("host-1");
    fleet.wait_until("it is connected and has told", || {
        fleet.servers()["migrate@host-1"]["health"] == "healthy" && fleet.servers()["api@host-1"]["health"] == "healthy"
    });
    assert_eq!(runs(&fleet), "1");

    // One that fails is put back, with what it has done; the release before is not run again, and what waits for it is
    // never begun.
    let failed = fleet.deploy(&manifest(&fleet, 2, "exit 7", ""), &[]).expect_code(ROLLED_BACK);
    assert!(failed.stderr.contains("exit status 7"), "{}", failed.stderr);
    assert_eq!(runs(&fleet), "1", "its data folder is as it was before");
    let switched = fleet.newest_deployment()["steps"].to_string();
    assert!(switched.contains("untouched") || switched.contains("restored"), "{switched}");
    fleet.wait_until("both are well again", || fleet.servers().values().all(|server| server["health"] == "healthy"));
    assert_eq!(runs(&fleet), "1");

    fleet.deploy(&manifest(&fleet, 3, "exit 0", ""), &[]).expect_code(0);
    assert_eq!(runs(&fleet), "1 3");
    let again = fleet.deploy(&manifest(&fleet, 3, "exit 0", ""), &[]).expect_code(0);
    assert!(again.stderr.contains("nothing changes"), "{}", again.stderr);
    let _ = agent.kill();
    let _ = agent.wait();
}

#[test]
fn what_ends_while_its_agent_is_away_is_not_run_again() {
    let fleet = Fleet::new();
    let gate = fleet.host("host-1").join("servers/migrate/data/gate");
    let wait = "while [ ! -e \"$HOME/gate\" ]; do sleep 0.05; done";
    fleet.up(&manifest(&fleet, 1, "exit 0", ""), &["--agents", "1"]).expect_code(0);
    let path = manifest(&fleet, 2, wait, "");
    let id = text(&fleet.json(&["deploy", "start", &path.to_string_lossy()])["id"]).to_owned();
    let shown = || fleet.json(&["deploy", "show", &id]);
    // Once its start is written down: before, an agent that starts again cannot know of it.
    let switched = || fleet.agent_log("host-1").matches("server=migrate event=\"switch_succeeded\"").count();
    fleet.wait_until("it has been started", || runs(&fleet) == "1 2" && switched() == 2);
    fleet.kill_agent("host-1");
    fs::write(&gate, "").expect("write");
    fleet.wait_until("it has ended", || {
        fleet.supervisor("host-1", "migrate").is_some_and(|status| status["given_up"] == true)
    });
    let mut agent = fleet.start_agent("host-1");
    fleet.wait_until("the deployment has ended", || shown()["summary"]["outcome"].is_string());
    assert_eq!(text(&shown()["summary"]["outcome"]), "succeeded");
    assert_eq!(runs(&fleet), "1 2");
    let _ = agent.kill();
    let _ = agent.wait();
}

#[test]
fn externals_must_answer_before_anything_is_got_ready() {
    let fleet = Fleet::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let more = |tcp: &str| format!("externals:\n  - {{ name: sql, tcp: '{tcp}', timeout: 2s }}\n");
    fleet.up(&manifest(&fleet, 1, "exit 0", &more(&address.to_string())), &["--agents", "1"]).expect_code(0);
    drop(listener);

    let path = manifest(&fleet, 2, "exit 0", &more(&address.to_string()));
    let planned = fleet.run(&["plan", &path.to_string_lossy()]).expect_code(0).stdout;
    assert!(planned.contains(&format!("external sql ({address}) must answer first")), "{planned}");
    let failed = fleet.deploy(&path, &[]).expect_code(ROLLED_BACK);
    assert!(
        failed.stderr.contains("does not answer") && failed.stderr.contains("hint: bring sql back"),
        "{}",
        failed.stderr
    );
    let view = fleet.newest_deployment();
    assert!(view["steps"].as_array().expect("steps").iter().all(|step| step["state"] == "untouched"), "{view}");
    assert_eq!(text(&view["failures"][0]["kind"]), "dependency_error");
    assert_eq!(view["failures"].as_array().map(Vec::len), Some(2), "both attempts are told");
    assert_eq!(runs(&fleet), "1");

    // What answers with another status does not do, either.
    let http = "externals:\n  - { name: sql, http: 'http://127.0.0.1:1/health' }\n";
    let refused = fleet.deploy(&manifest(&fleet, 2, "exit 0", http), &[]).expect_code(ROLLED_BACK);
    assert!(refused.stderr.contains("http://127.0.0.1:1/health"), "{}", refused.stderr);
}
