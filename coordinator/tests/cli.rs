//! The command by itself: what needs no fleet.

use std::process::{Command, Output};

fn fleetwright(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetwright"));
    command.args(arguments).current_dir(folder.path()).env_remove("FLEETWRIGHT_STATE_DIR").output().expect("runs")
}

#[test]
fn wrong_usage_is_exit_code_2() {
    assert_eq!(fleetwright(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(fleetwright(&["plan"]).status.code(), Some(2));
    assert_eq!(fleetwright(&["deploy", "show", "not an id"]).status.code(), Some(2));
}

#[test]
fn without_a_fleet_the_hint_says_how_to_make_one() {
    let output = fleetwright(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("there is no fleet here") && text.contains("hint: `fleetwright up MANIFEST`"), "{text}");
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let output = fleetwright(&["plan", "missing.yaml", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["error"]["kind"], "configuration_error");
    assert_eq!(value["error"]["problems"][0]["file"], "missing.yaml");
}
