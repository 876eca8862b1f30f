//! `docker-compose.yml`: a coordinator and three agents with one command, on a real engine.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use fleetwright_tests::engine::{BASE, Engine};
use fleetwright_tests::fleet::{Outcome, program, repository};
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

struct Composed {
    engine: Engine,
    configuration: tempfile::TempDir,
}

impl Composed {
    fn compose(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new("docker-compose");
        command.args(["--project-name", "fwtest"]).args(arguments).current_dir(repository());
        // The programs of this test run, on an image that needs no registry.
        command.env("BASE", BASE).env("PACKAGES", "").env("PROFILE", "debug");
        command.env("FLEETWRIGHT_CONFIG", self.configuration.path());
        let output = self.engine.with_host(&mut command).output().expect("docker-compose runs");
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn fleetwright(&self, arguments: &[&str]) -> Outcome {
        self.compose(&[&["exec", "-T", "coordinator", "fleetwright"], arguments].concat())
    }

    fn connected(&self) -> u64 {
        let status = self.fleetwright(&["status", "--output", "json"]).stdout;
        serde_json::from_str::<Value>(&status)
            .ok()
            .and_then(|status| status["status"]["hosts_connected"].as_u64())
            .unwrap_or(0)
    }

    fn healthy(&self) -> usize {
        let rows = self.fleetwright(&["servers", "list", "--output", "json"]).stdout;
        let rows: Vec<Value> = serde_json::from_str(&rows).unwrap_or_default();
        rows.iter().filter(|row| row["health"] == "healthy" && row["connected"] == true).count()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(
                Instant::now() < deadline,
                "not so in time: {what}\n{}",
                self.compose(&["logs", "--tail=40"]).stdout
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn a_coordinator_and_three_agents_come_up_with_one_command_and_come_back_after_kills_and_restarts() {
    if !have(&[Tool::Engine]) {
        return;
    }
    assert!(program("fleetwright-agent").exists());
    let composed = Composed { engine: Engine::new(), configuration: tempfile::tempdir().expect("a folder") };
    let write = |path: &str, text: &str| {
        let path = composed.configuration.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("write");
    };
    write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    write(
        "config/servers/web.yaml",
        "apiVersion: fleetwright/v1\nname: web\nrun: { command: [sh, -c, \"echo up; exec sleep 100000\"], stop_timeout: 2s }\n\
         health_checks:\n  - { name: alive, type: command, interval: 1s, config: { command: [\"true\"] } }\n",
    );
    write(
        "deployments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: web, place: { count: 3 } }\nrollout: { max_unavailable: 3 }\n",
    );
    composed.compose(&["up", "--build", "--detach"]).expect_code(0);
    composed.wait_until("every host is connected", || composed.connected() == 3);
    composed.fleetwright(&["deploy", "start", "/etc/fleetwright/deployments/test.yaml", "--watch"]).expect_code(0);
    composed.wait_until("every server is healthy", || composed.healthy() == 3);
    // A host is gone from one moment to the next, and back with its server.
    composed.compose(&["kill", "-s", "KILL", "host-2"]).expect_code(0);
    composed.wait_until("it is missed", || composed.connected() == 2);
    composed.compose(&["start", "host-2"]).expect_code(0);
    composed.wait_until("it is back with its server", || composed.connected() == 3 && composed.healthy() == 3);
    // Everything is stopped, and started again on the same volumes.
    composed.compose(&["stop"]).expect_code(0);
    composed.compose(&["start"]).expect_code(0);
    composed.wait_until("everything is back", || composed.connected() == 3 && composed.healthy() == 3);
    for host in ["host-1", "host-2", "host-3"] {
        let look = "cat /proc/[0-9]*/comm 2>/dev/null | grep -c '^sleep$'";
        let found = composed.compose(&["exec", "-T", host, "sh", "-c", look]).stdout;
        assert_eq!(found.trim(), "1", "its server runs on {host}, once");
    }
    composed.compose(&["down", "--volumes"]).expect_code(0);
}
