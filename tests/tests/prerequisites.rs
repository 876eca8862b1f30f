//! What a machine lacks is told before anything is made.

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
