//! A new version of the agent is deployed as a server is: staged, switched to, confirmed or put back; servers go on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fleetwright_tests::fleet::{Fleet, program};
use rustix::process::{Pid, Signal, kill_process_group};

/// What systemd is elsewhere: starts the installed agent again whenever it ends.
struct Keeper(Child);

impl Keeper {
    fn of(fleet: &Fleet, host: &str) -> Self {
        use std::os::unix::process::CommandExt;
        fleet.kill_agent(host);
        let log = fs::OpenOptions::new().append(true).open(fleet.host(host).join("agent.log")).expect("log");
        let mut keeper = Command::new("sh");
        keeper.args(["-c", "while :; do \"$0\" run --state-dir \"$1\"; done"]).arg(program("fleetwright-agent"));
        keeper.arg(fleet.host(host)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let keeper = Self(keeper.spawn().expect("it starts"));
        fleet.wait_until("the agent is back", || agent(fleet, host).is_some());
        keeper
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process");
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

/// The number and the program of a host's agent.
fn agent(fleet: &Fleet, host: &str) -> Option<(i32, PathBuf)> {
    let pid = fleet.holder(&fleet.host(host).join("agent.lock"))?.as_raw_nonzero().get();
    Some((pid, fs::read_link(format!("/proc/{pid}/exe")).ok()?))
}

fn executable(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
}

fn configure(fleet: &Fleet, version: u32) -> PathBuf {
    let definition = format!(
        "apiVersion: fleetwright/v1\nname: agent\npackage: {{ file: dist/fleetwright-agent, version: '{version}' }}\nrun: {{ runtime: agent }}\n"
    );
    let manifest = fleet.configure_plain(
        &["beta"],
        1,
        "servers:\n  - { server: agent, place: { hosts: [host-1] } }\n  - { server: beta, place: { hosts: [host-1] } }\n\
         rollout: { bake: 1s, min_healthy_time: 1s, healthy_deadline: 30s, confirm_timeout: 30s, retry: { attempts: 1 } }\n",
    );
    fleet.write("config/servers/agent.yaml", &definition);
    manifest
}

#[test]
fn a_new_agent_takes_over_a_broken_one_is_put_back_and_servers_notice_nothing() {
    let fleet = Fleet::new();
    let without =
        || fleet.configure_plain(&["beta"], 1, "servers:\n  - { server: beta, place: { hosts: [host-1] } }\n");
    let first = without();
    fleet.up(&first, &["--agents", "1"]).expect_code(0);
    let _keeper = Keeper::of(&fleet, "host-1");
    let (pid, installed) = agent(&fleet, "host-1").expect("an agent");
    let server = fleet.server_pid("host-1", "beta").expect("a server");
    let dist = fleet.write("config/servers/dist/fleetwright-agent", "");

    // A new one: the same program with something after its end, which the loader does not mind.
    fs::copy(program("fleetwright-agent"), &dist).expect("copy");
    fs::OpenOptions::new().append(true).open(&dist).and_then(|mut file| file.write_all(b"two")).expect("write");
    let manifest = configure(&fleet, 2);
    fleet.deploy(&manifest, &[]).expect_code(0);
    let (now, second) = agent(&fleet, "host-1").expect("an agent");
    assert_eq!(now, pid, "the process is the same");
    assert!(second.starts_with(fleet.host("host-1").join("servers/agent/releases")), "{}", second.display());
    assert_eq!(fleet.server_pid("host-1", "beta"), Some(server));
    assert_eq!(fleet.servers()["agent@host-1"]["health"], "healthy");

    // It is what the host starts from now on.
    fleet.kill_agent("host-1");
    fleet.wait_until("the new one is back", || agent(&fleet, "host-1").is_some_and(|(_, of)| of == second));

    // One that says its version and does nothing else: the one before puts it back.
    fs::write(&dist, "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nexit 1\n").expect("write");
    executable(&dist);
    let failed = fleet.deploy(&configure(&fleet, 3), &[]).expect_code(4);
    assert!(failed.stderr.contains("ended 3 times before it was confirmed"), "{}", failed.stderr);
    assert_eq!(agent(&fleet, "host-1").map(|(_, of)| of), Some(second.clone()));

    // It is what the host starts from now on, and nothing is on trial.
    assert_eq!(fs::read_link(fleet.host("host-1").join("program")).expect("a link"), second);
    assert!(!fleet.host("host-1").join("program-trial.json").exists());
    fleet.kill_agent("host-1");
    fleet.wait_until("it is back", || agent(&fleet, "host-1").is_some_and(|(_, of)| of == second));

    // One that cannot be started at all is not even switched to.
    fs::write(&dist, "no program").expect("write");
    let failed = fleet.deploy(&configure(&fleet, 4), &[]);
    assert!(failed.code == 4 && failed.stderr.contains("the new agent cannot be started"), "{}", failed.stderr);
    assert_eq!(agent(&fleet, "host-1").map(|(_, of)| of), Some(second));

    // Without it, the host's own program is the agent again.
    fleet.deploy(&without(), &[]).expect_code(0);
    fleet.wait_until("the installed one is back", || agent(&fleet, "host-1").is_some_and(|(_, of)| of == installed));
    assert_eq!(fleet.server_pid("host-1", "beta"), Some(server));
}

#[test]
fn what_is_no_version_of_an_agent_is_refused() {
    let fleet = Fleet::new();
    let manifest = configure(&fleet, 1);
    let manifest_path = manifest.to_string_lossy().into_owned();
    fleet.write("config/servers/dist/fleetwright-agent", "x");
    for (wrong, told) in [
        ("package: { pypi: six, version: 1.16.0 }\nrun: { runtime: agent }\n", "is an `archive` or a `file`"),
        (
            "package: { file: dist/fleetwright-agent, version: '1' }\nrun: { runtime: agent, port: 80 }\n",
            "runs as the one before",
        ),
    ] {
        fleet.write("config/servers/agent.yaml", &format!("apiVersion: fleetwright/v1\nname: agent\n{wrong}"));
        let refused = fleet.run(&["plan", &manifest_path, "--offline"]).expect_code(1).stderr;
        assert!(refused.contains(told), "{refused}");
    }
}
