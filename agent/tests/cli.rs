//! The agent's command by itself: what needs no fleet.

use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleetwright-agent")).args(arguments).output().expect("runs")
}

#[test]
fn an_agent_that_is_not_enrolled_says_how_to_enrol() {
    let folder = tempfile::tempdir().expect("folder");
    let output = agent(&["run", "--state-dir", &folder.path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("not enrolled") && text.contains("fleetwright hosts token"), "{text}");
}

#[test]
fn a_bridge_ends_with_its_server() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
    let output = agent(&["bridge", "--listen", &format!("127.0.0.1:{port}"), "--", "false"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ended during the MCP handshake"), "{text}");
}

#[test]
fn a_bridge_whose_port_is_taken_does_not_start_its_server() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let folder = tempfile::tempdir().expect("folder");
    let mark = folder.path().join("started");
    let address = taken.local_addr().expect("address").to_string();
    let output = agent(&["bridge", "--listen", &address, "--", "touch", &mark.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!mark.exists(), "the server was started");
}
