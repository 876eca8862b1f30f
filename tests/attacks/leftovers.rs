//! Servers that leave something running where nobody looks for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use fleetwright_tests::fleet::Fleet;
use rustix::process::{Pid, Signal, kill_process};

/// A definition of a server that starts three processes which are not its own any more, none of which heeds SIGTERM: in a
/// session of its own, by a double fork, and by nohup. Each writes down its number.
fn definition(version: u32, more: &str) -> String {
    format!(
        r#"apiVersion: fleetwright/v1
name: leaves
run:
  command: [sh, "{{{{ server.config_dir }}}}/run.sh"]
  stop_timeout: 1s
files:
  - path: run.sh
    content: |
      # version {version}
      (setsid sh -c 'trap "" TERM HUP; echo "session $$" >>left; exec sleep 100000' &)
      (setsid sh -c '(trap "" TERM HUP; sh -c "echo fork \$PPID" >>left; exec sleep 100000) & exit 0')
      nohup sh -c 'trap "" TERM; echo "nohup $$" >>left; exec sleep 100000' >/dev/null 2>&1 &
      {more}
      exec sleep 100000
health_checks:
  - {{ name: alive, type: command, interval: 1s, config: {{ command: [sh, -c, 'test "$(grep -c . left)" -ge 3'] }} }}
"#
    )
}

fn manifest(fleet: &Fleet) -> PathBuf {
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    fleet.write(
        "test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: leaves }\n",
    )
}

/// The processes that the server has left so far, each by what it is and its number.
fn left(fleet: &Fleet) -> Vec<(String, i32)> {
    let text = fs::read_to_string(fleet.host("host-1").join("servers/leaves/data/left")).unwrap_or_default();
    let line = |line: &str| Some((line.split_once(' ')?.0.to_owned(), line.split_once(' ')?.1.trim().parse().ok()?));
    text.lines().filter_map(line).collect()
}

/// Whether one of them is still there: another process may have its number by now.
fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.contains("100000"))
}

/// Whether what the server has left last is there, of each kind, and nothing that it has left before.
fn only_the_newest_live(fleet: &Fleet) -> bool {
    let left = left(fleet);
    let (before, now) = left.split_at(left.len().saturating_sub(3));
    let kinds: BTreeSet<&str> = now.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.len() == 3 && now.iter().all(|(_, pid)| is_alive(*pid)) && !before.iter().any(|(_, pid)| is_alive(*pid))
}

/// What was left is there; then, after `end`, none of it.
fn none_outlives(fleet: &Fleet, what: &str, end: impl FnOnce()) {
    assert!(only_the_newest_live(fleet), "{what}: {:?}", left(fleet));
    let before = left(fleet);
    end();
    let alive: Vec<&(String, i32)> = before.iter().filter(|(_, pid)| is_alive(*pid)).collect();
    assert!(alive.is_empty(), "{what}: {alive:?} are still there");
}

#[test]
fn nothing_that_a_server_has_started_outlives_its_stop() {
    let fleet = Fleet::new();
    fleet.write("config/servers/leaves.yaml", &definition(1, ""));
    let manifest = manifest(&fleet);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    none_outlives(&fleet, "a new version", || {
        fleet.write("config/servers/leaves.yaml", &definition(2, ""));
        fleet.deploy(&manifest, &[]).expect_code(0);
    });
    none_outlives(&fleet, "a version that fails, and its rollback", || {
        fleet.write("config/servers/leaves.yaml", &definition(3, "exit 3"));
        fleet.deploy(&manifest, &[]).expect_code(4);
    });
    fleet.wait_until("only what the version before has left is there", || only_the_newest_live(&fleet));
    // The one that would end all of it is killed itself, and cannot.
    let supervisor = || fleet.supervisor("host-1", "leaves").and_then(|status| status["supervisor"]["pid"].as_i64());
    none_outlives(&fleet, "a supervisor that was killed", || {
        let killed = supervisor().expect("a supervisor");
        let pid = Pid::from_raw(i32::try_from(killed).expect("a number")).expect("a process");
        kill_process(pid, Signal::KILL).expect("killed");
        let again = || supervisor().is_some_and(|now| now != killed) && only_the_newest_live(&fleet);
        fleet.wait_until("it runs again, and only what it has left now is there", again);
    });
    none_outlives(&fleet, "down", || drop(fleet.run(&["down"]).expect_code(0)));
}
