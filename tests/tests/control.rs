//! People and deployments: holding, approving, deciding, undoing in part, going back, halting everything.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fleetwright::{Coordinator, OperatorKey};
use fleetwright_deploy::time::Length;
use fleetwright_protocol::Clock;
use fleetwright_tests::fleet::{Fleet, clock, text};
use quinn::{Endpoint, TokioRuntime};
use serde_json::Value;

const FAILED: i32 = 1;
const ROLLED_BACK: i32 = 4;
const NEEDS_A_PERSON: i32 = 5;
const PARTLY_ROLLED_BACK: i32 = 6;

/// What a manifest says about its rollout, so that tests are quick.
const QUICK: &str = "min_healthy_time: 200ms, healthy_deadline: 20s, confirm_timeout: 20s, progress_deadline: 60s";

/// A manifest of `web` on every host and `api` on one, after it.
fn manifest(fleet: &Fleet, version: u32, rollout: &str) -> PathBuf {
    let lines = format!(
        "servers:\n  - {{ server: web, place: {{ count: 2 }} }}\n  - {{ server: api, depends_on: [web] }}\nrollout: {{ {QUICK}, {rollout} }}\n"
    );
    fleet.configure_plain(&["web", "api"], version, &lines)
}

/// A fleet of two hosts that runs version 1.
fn running() -> Fleet {
    let fleet = Fleet::new();
    let path = manifest(&fleet, 1, "retry: { attempts: 1 }");
    fleet.up(&path, &["--agents", "2"]).expect_code(0);
    fleet
}

fn start(fleet: &Fleet, manifest: &Path) -> String {
    text(&fleet.json(&["deploy", "start", &manifest.to_string_lossy()])["id"]).to_owned()
}

fn show(fleet: &Fleet, id: &str) -> Value {
    fleet.json(&["deploy", "show", id])
}

fn phase(fleet: &Fleet, id: &str) -> String {
    text(&show(fleet, id)["summary"]["phase"]).to_owned()
}

fn outcome(fleet: &Fleet, id: &str) -> Option<String> {
    show(fleet, id)["summary"]["outcome"].as_str().map(str::to_owned)
}

fn wait_for_end(fleet: &Fleet, id: &str) -> String {
    fleet.wait_until("the deployment has ended", || outcome(fleet, id).is_some());
    outcome(fleet, id).expect("ended")
}

/// The version that an instance's files say.
fn version(fleet: &Fleet, host: &str, server: &str) -> String {
    let script = fleet.host(host).join("servers").join(server).join("current/config/run.sh");
    let script = fs::read_to_string(script).unwrap_or_default();
    script.lines().next().unwrap_or_default().to_owned()
}

fn state(fleet: &Fleet, id: &str, instance: &str) -> String {
    let view = show(fleet, id);
    let step = view["steps"].as_array().expect("steps").iter().find(|step| step["instance"] == instance);
    text(&step.expect("the step")["state"]).to_owned()
}

#[test]
fn a_deployment_waits_to_be_approved_and_can_be_held_meanwhile() {
    let fleet = running();
    let path = manifest(&fleet, 2, "pauses: [{ before: api, approvals: 2 }]");
    let id = start(&fleet, &path);
    let waits = |fleet: &Fleet| fleet.json(&["explain", &id])["waiting"].to_string().contains("to be approved");
    fleet.wait_until("the first group is done", || waits(&fleet));
    assert_eq!(
        (version(&fleet, "host-1", "web"), version(&fleet, "host-1", "api")),
        ("echo version 2".into(), "echo version 1".into())
    );
    let by = |name: &str, arguments: &[&str]| {
        let output = fleet.command(arguments).env("USER", name).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // Whoever started it does not count where two are needed, and nobody counts twice.
    let starter = text(&show(&fleet, &id)["summary"]["started_by"]).to_owned();
    assert_eq!(by(&starter, &["deploy", "approve", &id]).0, Some(FAILED));
    assert_eq!(by("ada", &["deploy", "approve", &id]).0, Some(0));
    let (code, told) = by("ada", &["deploy", "approve", &id]);
    assert_eq!(code, Some(FAILED));
    assert!(told.contains("nobody counts twice"), "{told}");
    fleet.run(&["deploy", "pause", &id, "--reason", "lunch"]).expect_code(0);
    let paused = fleet.run(&["explain", &id]).expect_code(0).stdout;
    assert!(paused.contains("lunch") && paused.contains(&format!("fleetwright deploy resume {id}")), "{paused}");
    assert_eq!(by("grace", &["deploy", "approve", &id]).0, Some(0));
    assert_eq!(phase(&fleet, &id), "server_deployment");
    assert_eq!(state(&fleet, &id, "api@host-1"), "staged", "it went on although it is paused");
    fleet.run(&["deploy", "resume", &id]).expect_code(0);
    assert_eq!(wait_for_end(&fleet, &id), "succeeded");
    assert_eq!(version(&fleet, "host-1", "api"), "echo version 2");
    let refused = fleet.run(&["deploy", "approve", &id]).expect_code(FAILED);
    assert!(refused.stderr.contains("hint: now you may: fleetwright rollback"), "{}", refused.stderr);
}

#[test]
fn what_has_failed_waits_for_a_person_who_tries_it_again_or_leaves_it_out() {
    let fleet = running();
    fleet.write("bad-host-2-2", "");
    let path = manifest(&fleet, 2, "on_failure: pause, retry: { attempts: 1 }, max_unavailable: 2");
    let told = fleet.deploy(&path, &[]).expect_code(NEEDS_A_PERSON).stderr;
    assert!(
        told.contains("fleetwright deploy retry") && told.contains("the server ended with exit status 3"),
        "{told}"
    );
    let id = text(&fleet.newest_deployment()["summary"]["id"]).to_owned();
    assert_eq!(phase(&fleet, &id), "awaiting_operator");
    let explained = fleet.run(&["explain", &id]).expect_code(0).stdout;
    for part in ["web@host-2 is failed (attempt 1)", "exit status 3", "on disk of host-2", "snapshots", "deploy skip"] {
        assert!(explained.contains(part), "`{part}` is not in:\n{explained}");
    }
    fleet.wait_until("the other has settled", || state(&fleet, &id, "web@host-1") == "confirmed");
    fleet.run(&["deploy", "retry", &id, "--instance", "web@host-1"]).expect_code(FAILED);
    // Still broken: the second attempt fails like the first.
    fleet.run(&["deploy", "retry", &id]).expect_code(0);
    fleet.wait_until("it has failed again", || {
        phase(&fleet, &id) == "awaiting_operator" && show(&fleet, &id)["failures"].as_array().expect("list").len() >= 2
    });
    fleet.run(&["deploy", "skip", &id, "--instance", "web@host-2"]).expect_code(0);
    assert_eq!(wait_for_end(&fleet, &id), "partly_succeeded");
    assert_eq!(state(&fleet, &id, "web@host-2"), "left_out");
    assert_eq!(
        (version(&fleet, "host-1", "web"), version(&fleet, "host-2", "web")),
        ("echo version 2".into(), "echo version 1".into())
    );
    assert_eq!(version(&fleet, "host-1", "api"), "echo version 2", "the others went on");
}

#[test]
fn a_transient_failure_is_tried_again_and_each_attempt_is_told() {
    let fleet = running();
    let bad = fleet.write("bad-host-1-2", "");
    let path = manifest(&fleet, 2, "retry: { attempts: 4, base: 4s, kinds: { deployment_error: 4 } }");
    let id = start(&fleet, &path);
    let failures = || show(&fleet, &id)["failures"].as_array().expect("list").len();
    fleet.wait_until("the first attempt has failed", || failures() > 0);
    fs::remove_file(bad).expect("mend");
    assert_eq!(wait_for_end(&fleet, &id), "succeeded");
    let events = fleet.run(&["monitor", "show", &id, "--events"]).expect_code(0).stdout;
    assert!(events.contains("it is tried again") && events.contains("attempt 2"), "{events}");
}

#[test]
fn a_failure_that_is_tolerated_leaves_one_out_and_one_more_undoes_everything() {
    let fleet = running();
    fleet.write("bad-host-2-2", "");
    let path = manifest(&fleet, 2, "failure_threshold: 1, retry: { attempts: 1 }");
    fleet.deploy(&path, &[]).expect_code(FAILED);
    assert_eq!(version(&fleet, "host-2", "web"), "echo version 1");
    assert_eq!(version(&fleet, "host-1", "web"), "echo version 2");
    fleet.write("bad-host-1-3", "");
    fleet.write("bad-host-2-3", "");
    let path = manifest(&fleet, 3, "failure_threshold: 1, retry: { attempts: 1 }, on_failure: rollback");
    fleet.deploy(&path, &[]).expect_code(ROLLED_BACK);
    assert_eq!(version(&fleet, "host-1", "web"), "echo version 2");
}

#[test]
fn a_deployment_is_cancelled_and_undone_in_part_or_taken_back_to_an_older_release() {
    let fleet = running();
    let path = manifest(&fleet, 2, "pauses: [{ before: api }]");
    let id = start(&fleet, &path);
    fleet.wait_until("the first group is done", || {
        fleet.json(&["explain", &id])["waiting"].to_string().contains("to be approved")
    });
    // Another deployment of the same servers is told who works on them, and may wait.
    let refused = fleet.run(&["deploy", "start", &path.to_string_lossy()]).expect_code(FAILED).stderr;
    assert!(refused.contains(&format!("deployment {id}, started by")) && refused.contains("--wait"), "{refused}");
    fleet.run(&["deploy", "cancel", &id]).expect_code(0);
    assert_eq!(wait_for_end(&fleet, &id), "cancelled");
    assert_eq!(
        (version(&fleet, "host-1", "web"), version(&fleet, "host-1", "api")),
        ("echo version 2".into(), "echo version 1".into())
    );
    fleet.run(&["rollback", "web", "--host", "host-1"]).expect_code(PARTLY_ROLLED_BACK);
    // For that host alone is it signed.
    let exported = fleet.run(&["journal", "export"]).expect_code(0).stdout;
    let asked = exported.lines().rfind(|line| line.contains("rollback_requested")).expect("it was asked for");
    let asked: Value = serde_json::from_str(asked).expect("JSON");
    let signed = asked["event"]["intents"].as_object().expect("intents").keys().collect::<Vec<_>>();
    assert_eq!(signed, ["host-1"]);
    assert_eq!(
        (version(&fleet, "host-1", "web"), version(&fleet, "host-2", "web")),
        ("echo version 1".into(), "echo version 2".into())
    );
    fleet.run(&["rollback", &id, "--strategy", "aggressive"]).expect_code(ROLLED_BACK);
    assert_eq!(version(&fleet, "host-2", "web"), "echo version 1");
    fleet.run(&["rollback", &id]).expect_code(FAILED);
    fleet.run(&["rollback", &id, "--strategy", "gently"]).expect_code(2);
    fleet.run(&["rollback", "nothing"]).expect_code(FAILED);
    let back = fleet.run(&["rollback", "web", "--to", &id]).expect_code(0);
    assert!(back.stderr.contains("succeeded"), "{}", back.stderr);
    assert_eq!(version(&fleet, "host-2", "web"), "echo version 2");
    let unknown = fleet.run(&["rollback", "web", "--to", "d99"]).expect_code(FAILED).stderr;
    assert!(unknown.contains("hint: these deployed it"), "{unknown}");
}

#[test]
fn a_second_deployment_waits_for_the_first_when_asked_to() {
    let fleet = running();
    let path = manifest(&fleet, 2, "pauses: [{ before: api }]");
    let first = start(&fleet, &path);
    fleet.wait_until("the first group is done", || {
        fleet.json(&["explain", &first])["waiting"].to_string().contains("to be approved")
    });
    let path = manifest(&fleet, 3, "bake: 0s");
    let second = fleet.command(&["deploy", "start", &path.to_string_lossy(), "--wait", "--watch"]);
    let mut second =
        { second }.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("it runs");
    fleet.run(&["deploy", "approve", &first]).expect_code(0);
    assert!(second.wait().expect("it ends").success());
    assert_eq!(outcome(&fleet, &first).as_deref(), Some("succeeded"));
    assert_eq!(
        (version(&fleet, "host-1", "web"), version(&fleet, "host-1", "api")),
        ("echo version 3".into(), "echo version 3".into())
    );
}

#[test]
fn a_halt_holds_everything_until_it_is_lifted() {
    let fleet = running();
    let path = manifest(&fleet, 2, "pauses: [{ before: api }]");
    let id = start(&fleet, &path);
    fleet.run(&["halt", "--reason", "fire"]).expect_code(0);
    assert!(fleet.run(&["status"]).expect_code(0).stdout.contains("HALTED"));
    let refused = fleet.run(&["deploy", "start", &path.to_string_lossy()]).expect_code(FAILED).stderr;
    assert!(refused.contains("halted") && refused.contains("hint: `fleetwright unhalt`"), "{refused}");
    fleet.run(&["deploy", "resume", &id]).expect_code(FAILED);
    // A halt outlives the coordinator.
    fleet.kill_coordinator();
    let mut coordinator = fleet.start_coordinator();
    fleet.wait_until("it answers", || fleet.run(&["status"]).stdout.contains("HALTED"));
    fleet.run(&["unhalt"]).expect_code(0);
    fleet.wait_until("it goes on", || fleet.json(&["explain", &id])["waiting"].to_string().contains("to be approved"));
    fleet.run(&["deploy", "approve", &id]).expect_code(0);
    assert_eq!(wait_for_end(&fleet, &id), "succeeded");
    drop(fleet);
    coordinator.wait().expect("ended by `down`");
}

#[test]
fn an_aggressive_rollback_kills_what_does_not_want_to_end() {
    let fleet = running();
    let stubborn = "trap '' TERM\n      echo";
    let path = manifest(&fleet, 2, "bake: 0s");
    let definition = fleet.path().join("config/servers/web.yaml");
    let text_of = fs::read_to_string(&definition).expect("definition");
    let text_of = text_of.replacen("echo", stubborn, 1).replace("stop_timeout: 2s", "stop_timeout: 10m");
    fs::write(&definition, text_of.replace("exec sleep 100000", "while :; do sleep 1; done")).expect("write");
    fleet.deploy(&path, &[]).expect_code(0);
    let id = text(&fleet.newest_deployment()["summary"]["id"]).to_owned();
    // Drained, it would keep the rollback waiting for ten minutes: far longer than the test is patient.
    fleet.run(&["rollback", &id, "--strategy", "aggressive"]).expect_code(ROLLED_BACK);
    assert_eq!(version(&fleet, "host-1", "web"), "echo version 1");
}

#[test]
fn the_journal_is_verified_and_exported_and_damage_is_told() {
    let fleet = running();
    let verified = fleet.json(&["journal", "verify"]);
    let entries = verified["entries"].as_u64().expect("a number");
    let exported = fleet.run(&["journal", "export"]).expect_code(0).stdout;
    assert_eq!(exported.lines().count() as u64, entries);
    let last: Value = serde_json::from_str(exported.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["hash"], last["seq"].as_u64()), (&verified["head"], Some(entries)));
    let tail = fleet.run(&["journal", "export", "--after", &(entries - 2).to_string()]).expect_code(0).stdout;
    assert_eq!(tail.lines().count(), 2);
    // Who made each of them happen is what the coordinator knows, not what was said.
    let uid = fs::metadata(fleet.path()).expect("a folder").uid();
    let actor = |event_type: &str| {
        let entries = exported.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut of_type = entries.filter(|entry| entry["type"] == event_type);
        of_type.next().unwrap_or_else(|| panic!("no {event_type}"))["actor"].clone()
    };
    assert_eq!(actor("coordinator_started"), "coordinator");
    for by_people in ["token_issued", "deployment_started"] {
        assert_eq!(actor(by_people), format!("uid:{uid}"));
    }
    for by_hosts in ["host_enrolled", "host_connected", "health_reported", "deployment"] {
        assert!(text(&actor(by_hosts)).starts_with("host:host-"), "{by_hosts}");
    }
    fleet.run(&["down"]).expect_code(0);
    let journal = fleet.state_dir().join("journal.db");
    // A coordinator that has ended leaves one file, which is all there is to copy.
    assert!(!fleet.state_dir().join("journal.db-wal").exists());
    let copied = rusqlite::Connection::open(&journal).expect("open");
    let last: i64 = copied.query_row("SELECT max(seq) FROM events", [], |row| row.get(0)).expect("entries");
    assert!(last.cast_unsigned() >= entries, "{last} of {entries}");
    drop(copied);
    let sqlite = rusqlite::Connection::open(&journal).expect("open");
    sqlite.execute("UPDATE events SET notes = '[]' WHERE seq = 5", []).expect("damage");
    drop(sqlite);
    let told = fleet.run(&["journal", "verify"]).expect_code(FAILED).stderr;
    assert!(told.contains("entry 5 is damaged") && told.contains("hint:"), "{told}");
}

#[test]
fn a_stuck_instance_that_a_person_has_put_in_order_runs_the_release_from_before() {
    let fleet = running();
    // Neither the new release nor the one from before starts.
    let (new, old) = (fleet.write("bad-host-2-2", ""), fleet.write("bad-host-2-1", ""));
    let path = manifest(&fleet, 2, "retry: { attempts: 1 }");
    fleet.deploy(&path, &[]).expect_code(PARTLY_ROLLED_BACK);
    let id = text(&fleet.newest_deployment()["summary"]["id"]).to_owned();
    let ended = (outcome(&fleet, &id), state(&fleet, &id, "web@host-2"));
    assert_eq!((ended.0.as_deref(), ended.1.as_str()), (Some("partly_rolled_back"), "stuck"));
    let explained = fleet.run(&["explain", &id]).expect_code(0).stdout;
    assert!(explained.contains(&format!("fleetwright deploy resolve {id}")), "{explained}");
    fleet.run(&["status"]).expect_code(NEEDS_A_PERSON);
    fs::remove_file(old).expect("mend");
    fs::remove_file(new).expect("mend");
    fleet.run(&["deploy", "resolve", &id, "--instance", "web@host-1"]).expect_code(FAILED);
    fleet.run(&["deploy", "resolve", &id]).expect_code(0);
    fleet.wait_until("it is resolved", || outcome(&fleet, &id).as_deref() == Some("rolled_back"));
    fleet.wait_until("it runs", || {
        let servers = fleet.servers();
        let row = &servers["web@host-2"];
        row["health"] == "healthy" && row["trouble"].is_null()
    });
    assert_eq!(version(&fleet, "host-2", "web"), "echo version 1");
    fleet.run(&["status"]).expect_code(0);
}

/// Starts the coordinator once at a time at which a deployment is history.
fn archive(fleet: &Fleet, id: &str) {
    let now = clock();
    let later = Clock::new(move || now.now().after(Length::from_secs(100 * 24 * 3_600)));
    let key = fs::read_to_string(fleet.state_dir().join("operator.key")).expect("a key");
    let key = OperatorKey::from_pem(&key).expect("a key");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ran = runtime.block_on(async {
        let coordinator = Coordinator::open(&fleet.state_dir(), later)?;
        let operator = coordinator.operator(key);
        let (socket_config, server_config) = coordinator.endpoint_config()?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let endpoint = Endpoint::new(socket_config, Some(server_config), socket, Arc::new(TokioRuntime))?;
        let gone = async {
            let id = id.parse()?;
            while operator.look(|state| state.deployment(&id).is_some())? {
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        coordinator.run(endpoint, gone).await
    });
    ran.expect("it goes to the archive");
}

#[test]
fn what_is_history_is_listed_shown_and_gone_back_to_and_can_no_longer_be_undone() {
    let fleet = running();
    let ids: Vec<String> = (2..=4)
        .map(|version| {
            let id = start(&fleet, &manifest(&fleet, version, "retry: { attempts: 1 }"));
            assert_eq!(wait_for_end(&fleet, &id), "succeeded");
            id
        })
        .collect();
    let listed = |arguments: &[&str]| -> Vec<String> {
        let rows = fleet.json(&[&["deploy", "list"], arguments].concat());
        rows.as_array().expect("rows").iter().map(|row| text(&row["id"]).to_owned()).collect()
    };
    let all = listed(&[]);
    assert_eq!(all[1..], ids);
    let (first, shown) = (&all[0], show(&fleet, &all[0]));
    fleet.run(&["down"]).expect_code(0);
    archive(&fleet, first);
    let path = manifest(&fleet, 4, "retry: { attempts: 1 }");
    fleet.up(&path, &["--agents", "2"]).expect_code(0);
    fleet.wait_until("the hosts are back", || fleet.json(&["status"])["status"]["hosts_connected"] == 2);

    assert_eq!(listed(&[]), all, "the list goes on into the archive");
    assert_eq!(listed(&["--limit", "1"]), all[3..]);
    assert_eq!(listed(&["--limit", "2", "--before", &ids[1]]), all[..2]);
    assert_eq!(listed(&["--before", &ids[0]]), all[..1]);
    assert_eq!(listed(&["--before", first]), Vec::<String>::new());
    let none = fleet.run(&["deploy", "list", "--before", first]).expect_code(0);
    assert!(none.stdout.contains(&format!("there is none before {first}")), "{}", none.stdout);
    fleet.run(&["deploy", "list", "--limit", "0"]).expect_code(2);
    let unknown = fleet.run(&["deploy", "list", "--before", "nothing"]).expect_code(FAILED).stderr;
    assert!(unknown.contains("there is no deployment nothing"), "{unknown}");
    let past = show(&fleet, first);
    assert_eq!((&past["summary"], &past["steps"]), (&shown["summary"], &shown["steps"]));
    assert_eq!((&past["content"], &past["moves"]), (&shown["content"], &Value::Array(Vec::new())));

    let refused = fleet.run(&["rollback", first]).expect_code(FAILED).stderr;
    assert!(refused.contains("is history") && refused.contains(&format!("--to {first}")), "{refused}");
    let refused = fleet.run(&["deploy", "cancel", first]).expect_code(FAILED).stderr;
    assert!(refused.contains("is history"), "{refused}");
    for before in [3, 2] {
        fleet.run(&["rollback", "web"]).expect_code(PARTLY_ROLLED_BACK);
        assert_eq!(version(&fleet, "host-1", "web"), format!("echo version {before}"));
    }
    let refused = fleet.run(&["rollback", "web"]).expect_code(FAILED).stderr;
    assert!(refused.contains("no longer known what web@host-1 ran before"), "{refused}");
    fleet.run(&["rollback", "web", "--to", first]).expect_code(0);
    assert_eq!(version(&fleet, "host-1", "web"), "echo version 1");
    fleet.run(&["journal", "verify"]).expect_code(0);
}
