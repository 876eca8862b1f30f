//! What a machine lacks is told before anything is made.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fleetwright_tests::fleet::{Fleet, repository};

#[test]
fn a_machine_without_python_is_told_which_package_to_install_and_nothing_is_made() {
    let fleet = Fleet::new();
    let manifest = repository().join("deploy/deployments/quickstart.yaml");
    let mut command = fleet.command(&["up", &manifest.to_string_lossy(), "--detach"]);
    let output = command.env("PATH", fleet.path()).output().expect("fleetwright runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("dependency_error") && text.contains("apt-get install python3 python3-venv"), "{text}");
    assert!(!fleet.state_dir().exists(), "a fleet was made");
}

#[test]
fn a_manifest_that_is_wrong_makes_no_fleet() {
    let fleet = Fleet::new();
    let manifest = fleet
        .write("manifests/wrong.yaml", "apiVersion: fleetwright/v1\nname: wrong\nenvironment: none\nservers: []\n");
    let outcome = fleet.up(&manifest, &[]).expect_code(1);
    assert!(outcome.stderr.contains("wrong.yaml:3:14: environment `none` is not defined"), "{}", outcome.stderr);
    assert!(!fleet.state_dir().exists(), "a fleet was made");
}

/// A version manager's `node`, whose program stays the same whatever version is behind it.
fn put_shim(fleet: &Fleet, name: &str) {
    let (version, asked) = (fleet.path().join("node-version"), fleet.path().join("asked"));
    let text = format!("#!/bin/sh\necho {name} >> {}\ncat {}\n", asked.display(), version.display());
    let program = fleet.write(&format!("programs/{name}"), &text);
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("mode");
}

#[test]
fn a_host_is_asked_once_what_it_has_and_again_when_a_person_says_so() {
    let fleet = Fleet::new();
    for name in ["node", "npm"] {
        put_shim(&fleet, name);
    }
    fleet.write("node-version", "v98.1.0");
    let configure = |version: u32, requires: &str| {
        let manifest = fleet.configure_plain(&["time"], version, "servers:\n  - { server: time }\n");
        let definition = fleet.path().join("config/servers/time.yaml");
        let text = fs::read_to_string(&definition).expect("definition");
        fs::write(definition, format!("{text}requires: [{requires}]\n")).expect("write");
        manifest.to_string_lossy().into_owned()
    };
    let asked = || fs::read_to_string(fleet.path().join("asked")).unwrap_or_default().lines().count();
    let path = format!("{}:{}", fleet.path().join("programs").display(), std::env::var("PATH").expect("a path"));
    let manifest = configure(1, "node>=98");
    // The first plan of a new fleet waits for what its hosts have, rather than to say that they lack it.
    let mut up = fleet.command(&["up", &manifest, "--detach", "--agents", "1", "--first-address", &fleet.address(1)]);
    let up = up.env("PATH", path).output().expect("fleetwright runs");
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    assert_eq!(asked(), 2, "once for the hello and the stage together");
    let host = fleet.json(&["hosts", "list"])[0]["host"].as_str().expect("a host").to_owned();

    fleet.kill_coordinator();
    let mut coordinator = fleet.start_coordinator();
    fleet.wait_until("the host is back", || fleet.json(&["hosts", "list"])[0]["connected"] == true);
    fleet.run(&["deploy", "start", &configure(2, "node>=98"), "--watch"]).expect_code(0);
    assert_eq!(asked(), 2, "neither another hello nor another stage asks for what is known");

    fleet.write("node-version", "v99.0.0");
    let newer = configure(3, "node>=99");
    let refused = fleet.run(&["plan", &newer]).expect_code(1);
    assert!(refused.stderr.contains("no node>=99"), "{}", refused.stderr);
    let told = fleet.run(&["hosts", "refresh", &host]).expect_code(0);
    assert!(told.stdout.contains(&format!("{host} has ")) && told.stdout.contains("node 99.0.0"), "{}", told.stdout);
    fleet.wait_until("the coordinator has heard of it", || {
        fleet.json(&["hosts", "list"])[0]["view"]["facts"]["runtimes"]["node"][0] == "99.0.0"
    });
    fleet.run(&["deploy", "start", &newer, "--watch"]).expect_code(0);

    let unknown = fleet.run(&["hosts", "refresh", &host, "nobody"]).expect_code(1);
    assert!(unknown.stdout.contains("node 99.0.0") && unknown.stderr.contains("there is no host nobody"));
    assert!(unknown.stderr.contains("hint: "), "{}", unknown.stderr);
    fleet.run(&["down"]).expect_code(0);
    coordinator.wait().expect("it has ended");
}
