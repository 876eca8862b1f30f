//! The package on machines with a real systemd: installed, enrolled, deployed to, upgraded, rebooted, without power,
//! without a network.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fleetwright_tests::fleet::{Outcome, program, repository, text};
use fleetwright_tests::lab::{Lab, Machine};
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

/// How long anything that a test waits for may take.
const PATIENCE: Duration = Duration::from_secs(120);
const DEB: &str = "/var/cache/fleetwright.deb";

/// A coordinator and hosts, each on a machine of its own.
struct Fleet {
    coordinator: Machine,
    hosts: Vec<Machine>,
    _lab: Lab,
}

/// The package with both programs as they were built for this test run.
fn package() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let target = program("fleetwright").parent().expect("a folder").to_owned();
        let to = target.join("fleetwright-test.deb");
        let mut deb = Command::new(env!("CARGO"));
        deb.args(["deb", "--package", "fleetwright", "--no-build", "--no-strip", "--fast", "--profile", "dev"]);
        deb.arg("--output").arg(&to).current_dir(repository()).stdin(Stdio::null());
        let output = deb.output().expect("cargo deb runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        to
    })
    .clone()
}

impl Fleet {
    fn new(hosts: u8) -> Self {
        let lab = Lab::new();
        let coordinator = lab.machine(1);
        let hosts: Vec<Machine> = (0..hosts).map(|n| lab.machine(n + 2)).collect();
        for machine in hosts.iter().chain([&coordinator]) {
            fs::copy(package(), machine.path(DEB)).expect("copy");
            machine.run(&["dpkg", "-i", DEB]).expect_code(0);
        }
        let listen = format!("FLEETWRIGHT_LISTEN={}:7117\nFLEETWRIGHT_FLEET=test\n", coordinator.address);
        fs::write(coordinator.path("/etc/default/fleetwright-coordinator"), listen).expect("write");
        coordinator.run(&["systemctl", "enable", "--now", "fleetwright-coordinator"]).expect_code(0);
        let fleet = Self { coordinator, hosts, _lab: lab };
        for host in &fleet.hosts {
            fleet.enrol(host);
        }
        fleet.wait_until("every host is connected", || fleet.connected() == fleet.hosts.len() as u64);
        fleet
    }

    fn enrol(&self, host: &Machine) {
        let token = self.fleetwright(&["hosts", "token", &host.name, "--output", "json"]).expect_code(0).json();
        let command = [
            "fleetwright-agent",
            "enroll",
            "--coordinator",
            text(&token["coordinator"]),
            "--ca-fingerprint",
            text(&token["ca_fingerprint"]),
            "--address",
            &host.address,
        ];
        let token = format!("FLEETWRIGHT_TOKEN={}", text(&token["token"]));
        host.run(&[&["env", &token], &command[..]].concat()).expect_code(0);
        host.run(&["systemctl", "enable", "--now", "fleetwright-agent"]).expect_code(0);
    }

    fn fleetwright(&self, arguments: &[&str]) -> Outcome {
        let command = ["runuser", "-u", "fleetwright", "--", "fleetwright", "--state-dir", "/var/lib/fleetwright"];
        self.coordinator.run(&[&command, arguments].concat())
    }

    fn connected(&self) -> u64 {
        let status = self.fleetwright(&["status", "--output", "json"]);
        serde_json::from_str::<Value>(&status.stdout)
            .ok()
            .and_then(|status| status["status"]["hosts_connected"].as_u64())
            .unwrap_or(0)
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not so in time: {what}\n{}", self.fleetwright(&["status"]).stdout);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes the configuration: a server that only runs, in this version, everywhere.
    fn configure(&self, version: u32, more: &str, rollout: &str) {
        let write = |path: &str, content: &str| {
            let path = self.coordinator.path("/srv/fleet").join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, content).expect("write");
        };
        write(
            "config/environments/test.yaml",
            "apiVersion: fleetwright/v1\nname: test\nsecrets: { key: { env: KEY, fallback: s3cret } }\n",
        );
        write(
            "config/servers/web.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: web\nrequires: [systemd>=240]\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\"]\n  stop_timeout: 2s\n\
                 \x20 environment: {{ KEY: '{{{{ secret(name=\"key\") }}}}' }}\n\
                 files:\n  - path: run.sh\n    content: |\n      echo version {version}\n      echo {version} > \"$HOME/version\"\n{more}      exec sleep 100000\n\
                 resources: {{ memory: 64MiB, cpu: 50%, tasks: 32 }}\nsnapshot: {{ data: true }}\n\
                 health_checks:\n  - {{ name: alive, type: systemd, interval: 1s, config: {{ unit: fleetwright-web }} }}\n"
            ),
        );
        let count = self.hosts.len();
        write(
            "deployments/test.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - {{ server: web, place: {{ count: {count} }} }}\n\
                 rollout: {{ max_unavailable: {count}, healthy_deadline: 30s, confirm_timeout: 20s, progress_deadline: 3m, {rollout} }}\n"
            ),
        );
    }

    fn deploy(&self, more: &[&str]) -> Outcome {
        self.fleetwright(&[&["deploy", "start", "/srv/fleet/deployments/test.yaml"], more].concat())
    }

    /// Starts a deployment, and gives its id.
    fn start(&self) -> String {
        text(&self.deploy(&["--output", "json"]).expect_code(0).json()["id"]).to_owned()
    }

    fn step(&self, id: &str, host: &str) -> String {
        let view = self.fleetwright(&["deploy", "show", id, "--output", "json"]);
        let Ok(view) = serde_json::from_str::<Value>(&view.stdout) else { return String::new() };
        let steps = view["steps"].as_array().cloned().unwrap_or_default();
        let step = steps.into_iter().find(|step| step["instance"] == format!("web@{host}"));
        step.and_then(|step| step["state"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    fn outcome(&self, id: &str) -> String {
        let outcome = || {
            let view = self.fleetwright(&["deploy", "show", id, "--output", "json"]);
            serde_json::from_str::<Value>(&view.stdout).ok()?["summary"]["outcome"].as_str().map(str::to_owned)
        };
        self.wait_until("the deployment ends", || outcome().is_some());
        outcome().expect("it has ended")
    }
}

/// The version that a host runs: what its process wrote when it started.
fn version(host: &Machine) -> String {
    let path = host.path("/var/lib/fleetwright-agent/servers/web/data/version");
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn main_pid(host: &Machine, unit: &str) -> String {
    host.run(&["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.trim().to_owned()
}

fn is_active(host: &Machine, unit: &str) -> bool {
    host.run(&["systemctl", "is-active", unit]).stdout.trim() == "active"
}

#[test]
fn the_package_is_installed_enrolled_deployed_with_upgraded_and_removed_and_servers_go_on() {
    if !have(&[Tool::Machines]) {
        return;
    }
    let fleet = Fleet::new(2);
    fleet.configure(1, "", "");
    fleet.deploy(&["--watch"]).expect_code(0);
    for host in &fleet.hosts {
        assert!(is_active(host, "fleetwright-web") && version(host) == "1");
        let show = |property: &str| {
            let property = format!("--property={property}");
            host.run(&["systemctl", "show", &property, "--value", "fleetwright-web"]).stdout.trim().to_owned()
        };
        assert_eq!(show("User"), "fw-web");
        assert_eq!((show("MemoryMax").as_str(), show("TasksMax").as_str()), ("67108864", "32"));
        assert_eq!(show("CPUQuotaPerSecUSec"), "500ms");
        assert_eq!((show("ProtectSystem").as_str(), show("NoNewPrivileges").as_str()), ("strict", "yes"));
        // Other users read nothing of it, and it reads nothing of the agent's.
        let other = ["runuser", "-u", "nobody", "--", "ls", "/var/lib/fleetwright-agent/servers/web"];
        assert_ne!(host.run(&other).code, 0);
        let own = ["runuser", "-u", "fw-web", "--", "cat", "/var/lib/fleetwright-agent/identity/agent.key"];
        assert_ne!(host.run(&own).code, 0);
        // The secret is a credential, and in no argument.
        let credential = host.run(&["cat", "/run/credentials/fleetwright-web.service/key"]).stdout;
        assert_eq!(credential, "s3cret");
        let processes = host.run(&["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout;
        assert!(!processes.contains("s3cret"));
    }
    let checks = fleet.fleetwright(&["check", "run", "web", "--output", "json"]).expect_code(0).json();
    assert!(checks[0]["checks"][0]["outcome"]["passing"]["message"].as_str().is_some_and(|m| m.contains("is active")));
    let logs = fleet.fleetwright(&["servers", "logs", "web@m2"]).expect_code(0).stdout;
    assert!(logs.contains("version 1"), "{logs}");

    fleet.configure(2, "", "");
    fleet.deploy(&["--watch"]).expect_code(0);
    assert!(fleet.hosts.iter().all(|host| version(host) == "2"));
    fleet.fleetwright(&["rollback", "web"]).expect_code(4);
    assert!(fleet.hosts.iter().all(|host| version(host) == "1" && is_active(host, "fleetwright-web")));

    // A new version of the package: the agent is another process, the server is the same one.
    let host = &fleet.hosts[0];
    let (agent, server) = (main_pid(host, "fleetwright-agent"), main_pid(host, "fleetwright-web"));
    host.run(&["dpkg", "-i", DEB]).expect_code(0);
    fleet.wait_until("the agent is back", || fleet.connected() == 2);
    assert_ne!(main_pid(host, "fleetwright-agent"), agent);
    assert_eq!(main_pid(host, "fleetwright-web"), server);
    host.run(&["dpkg", "--remove", "fleetwright"]).expect_code(0);
    assert!(!is_active(host, "fleetwright-agent"));
    assert_eq!(main_pid(host, "fleetwright-web"), server, "a removed package stops no server");
}

#[test]
fn what_completes_runs_once_also_over_a_reboot() {
    if !have(&[Tool::Machines]) {
        return;
    }
    let mut fleet = Fleet::new(1);
    fleet.configure(1, "", "");
    let write = |fleet: &Fleet, path: &str, content: &str| {
        fs::write(fleet.coordinator.path("/srv/fleet").join(path), content).expect("write");
    };
    write(
        &fleet,
        "config/servers/migrate.yaml",
        "apiVersion: fleetwright/v1\nname: migrate\nrun:\n  command: [sh, \"{{ server.config_dir }}/run.sh\"]\n  completes: true\n\
         files:\n  - { path: run.sh, content: 'echo once >> \"$HOME/runs\"' }\n",
    );
    write(
        &fleet,
        "deployments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: migrate }\n  \
         - { server: web, depends_on: [{ server: migrate, condition: completed }] }\n\
         rollout: { healthy_deadline: 30s, confirm_timeout: 20s, progress_deadline: 3m }\n",
    );
    fleet.deploy(&["--watch"]).expect_code(0);
    let runs = |fleet: &Fleet| {
        let path = fleet.hosts[0].path("/var/lib/fleetwright-agent/servers/migrate/data/runs");
        fs::read_to_string(path).unwrap_or_default()
    };
    assert_eq!(runs(&fleet), "once\n");
    let shown = |fleet: &Fleet| fleet.fleetwright(&["servers", "list"]).expect_code(0).stdout;
    let is_completed =
        |fleet: &Fleet| shown(fleet).lines().any(|line| line.contains("migrate") && line.contains("completed"));
    assert!(is_completed(&fleet), "{}", shown(&fleet));
    fleet.hosts[0].reboot();
    fleet.wait_until("the server is back", || is_active(&fleet.hosts[0], "fleetwright-web"));
    fleet.wait_until("what has completed is told as such", || fleet.connected() == 1 && is_completed(&fleet));
    assert_eq!(runs(&fleet), "once\n");
}

#[test]
fn a_server_that_ends_is_started_again_and_one_that_takes_too_much_is_ended() {
    if !have(&[Tool::Machines]) {
        return;
    }
    let fleet = Fleet::new(1);
    fleet.configure(1, "", "");
    fleet.deploy(&["--watch"]).expect_code(0);
    let host = &fleet.hosts[0];
    let first = main_pid(host, "fleetwright-web");
    host.run(&["systemctl", "kill", "--signal=KILL", "fleetwright-web"]).expect_code(0);
    fleet.wait_until("it runs again", || {
        let now = main_pid(host, "fleetwright-web");
        now != first && now != "0" && is_active(host, "fleetwright-web")
    });
    fleet.wait_until("it is told", || {
        let rows = fleet.fleetwright(&["servers", "list", "--output", "json"]).json();
        rows[0]["report"]["restarts"].as_u64() > Some(0) && rows[0]["health"] == "healthy"
    });
    // A release that takes more memory than it may is no good one, and everything goes back. It must have had the time to
    // take it before it counts as healthy, however busy this machine is.
    let greedy = "      python3 -c 'x = bytearray(200 << 20); print(len(x))'; [ $? = 0 ] || exit 9\n";
    fleet.configure(2, greedy, "min_healthy_time: 15s");
    let failed = fleet.deploy(&["--watch"]).expect_code(4);
    assert!(failed.stderr.contains("exit status 9"), "{}", failed.stderr);
    assert!(version(host) == "1" && is_active(host, "fleetwright-web"));
}

#[test]
fn a_machine_that_is_rebooted_or_loses_its_power_in_the_midst_of_a_step_comes_back_right() {
    if !have(&[Tool::Machines]) {
        return;
    }
    let mut fleet = Fleet::new(2);
    fleet.configure(1, "", "");
    fleet.deploy(&["--watch"]).expect_code(0);
    // Nothing is under way: everything is back after a reboot.
    fleet.hosts[0].reboot();
    fleet.wait_until("it is back", || fleet.connected() == 2);
    assert!(is_active(&fleet.hosts[0], "fleetwright-web"));
    for (version_to, power) in [(2, false), (3, true)] {
        fleet.configure(version_to, "", "min_healthy_time: 6s");
        let id = fleet.start();
        fleet.wait_until("it is being checked", || fleet.step(&id, "m2") == "verifying");
        if power {
            fleet.hosts[0].lose_power();
            fleet.hosts[0].boot();
        } else {
            fleet.hosts[0].reboot();
        }
        let outcome = fleet.outcome(&id);
        let wanted = match outcome.as_str() {
            "succeeded" => version_to.to_string(),
            "rolled_back" => (version_to - 1).to_string(),
            other => panic!("the deployment ended as {other}"),
        };
        for host in &fleet.hosts {
            assert_eq!(version(host), wanted, "{outcome}: {}", host.name);
            assert!(is_active(host, "fleetwright-web"), "{}", host.name);
        }
        // Whatever became of it, the next one starts from a clean slate.
        fleet.configure(version_to, "", "");
        fleet.deploy(&["--watch"]).expect_code(0);
    }
    // The coordinator's machine loses its power in the midst of a step.
    fleet.configure(4, "", "min_healthy_time: 4s");
    let id = fleet.start();
    fleet.wait_until("it is being checked", || fleet.step(&id, "m2") == "verifying");
    fleet.coordinator.lose_power();
    fleet.coordinator.boot();
    assert_eq!(fleet.outcome(&id), "succeeded");
    assert!(fleet.hosts.iter().all(|host| version(host) == "4"));
}

#[test]
fn a_release_that_cuts_the_network_is_put_back_by_its_host_alone() {
    if !have(&[Tool::Machines]) {
        return;
    }
    let fleet = Fleet::new(1);
    fleet.configure(1, "", "");
    fleet.deploy(&["--watch"]).expect_code(0);
    let host = &fleet.hosts[0];
    fleet.configure(2, "", "min_healthy_time: 8s, retry: { attempts: 1 }");
    let id = fleet.start();
    fleet.wait_until("it is switched", || version(host) == "2");
    host.cut();
    // Nobody can have told it.
    let deadline = Instant::now() + PATIENCE;
    while version(host) != "1" {
        assert!(Instant::now() < deadline, "it did not put itself back");
        std::thread::sleep(Duration::from_millis(100));
    }
    host.mend();
    assert_eq!(fleet.outcome(&id), "rolled_back");
    fleet.wait_until("it is back", || fleet.connected() == 1);
    assert!(is_active(host, "fleetwright-web"));
}

/// The file of the process that is a unit's.
fn program_of(host: &Machine, unit: &str) -> String {
    let link = format!("/proc/{}/exe", main_pid(host, unit));
    host.run(&["readlink", &link]).stdout.trim().to_owned()
}

#[test]
fn a_new_agent_is_deployed_outlives_a_reboot_and_a_broken_one_is_put_back() {
    if !have(&[Tool::Machines]) {
        return;
    }
    let mut fleet = Fleet::new(1);
    let dist = fleet.coordinator.path("/srv/fleet/config/servers/dist/fleetwright-agent");
    let configure = |fleet: &Fleet, version: u32| {
        fleet.configure(1, "", "");
        let write = |path: &str, content: &str| {
            fs::write(fleet.coordinator.path("/srv/fleet").join(path), content).expect("write");
        };
        write(
            "config/servers/agent.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: agent\npackage: {{ file: dist/fleetwright-agent, version: '{version}' }}\n\
                 run: {{ runtime: agent }}\nhealth_checks:\n  - {{ name: unit, type: systemd, interval: 1s, config: {{ unit: fleetwright-agent }} }}\n"
            ),
        );
        write(
            "deployments/test.yaml",
            "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: web }\n  - { server: agent, depends_on: [web] }\n\
             rollout: { healthy_deadline: 60s, confirm_timeout: 60s, progress_deadline: 3m, retry: { attempts: 1 } }\n",
        );
    };
    configure(&fleet, 2);
    fs::create_dir_all(dist.parent().expect("a folder")).expect("a folder");
    let stripped = Command::new("strip").arg("-o").arg(&dist).arg(program("fleetwright-agent")).status();
    assert!(stripped.expect("strip runs").success());
    fleet.deploy(&["--watch"]).expect_code(0);
    let host = &fleet.hosts[0];
    let (agent, web) = (main_pid(host, "fleetwright-agent"), main_pid(host, "fleetwright-web"));
    let second = program_of(host, "fleetwright-agent");
    assert!(second.starts_with("/var/lib/fleetwright-agent/servers/agent/releases/"), "{second}");
    // The units of servers name the program that is always there.
    assert!(!host.run(&["cat", "/etc/systemd/system/fleetwright-web.service"]).stdout.contains("servers/agent"));

    fs::write(&dist, "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nexit 1\n").expect("write");
    configure(&fleet, 3);
    let failed = fleet.deploy(&["--watch"]).expect_code(4);
    assert!(failed.stderr.contains("before it was confirmed"), "{}", failed.stderr);
    assert_eq!(program_of(host, "fleetwright-agent"), second);
    assert_ne!(main_pid(host, "fleetwright-agent"), agent, "systemd has started it anew");
    assert_eq!(main_pid(host, "fleetwright-web"), web);

    fleet.hosts[0].reboot();
    fleet.wait_until("it is back", || fleet.connected() == 1);
    let host = &fleet.hosts[0];
    assert_eq!(program_of(host, "fleetwright-agent"), second);
    assert!(is_active(host, "fleetwright-web"));
}
