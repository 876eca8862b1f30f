//! The coordinator's interface on its socket: who may open it, and events that go on where a follower left off.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fleetwright_tests::fleet::Fleet;
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

async fn follow(fleet: &Fleet, after: u64, follow: bool) -> WebSocketStream<UnixStream> {
    let stream = UnixStream::connect(fleet.state_dir().join("api.sock")).await.expect("the socket");
    let url = format!("ws://coordinator/v1/events?after={after}&follow={follow}");
    tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket").0
}

async fn next(stream: &mut WebSocketStream<UnixStream>) -> Option<Value> {
    let message = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("an event in time")?;
    match message.ok()? {
        Message::Text(text) => Some(serde_json::from_str(&text).expect("JSON")),
        _ => None,
    }
}

async fn all(fleet: &Fleet, after: u64) -> Vec<u64> {
    let mut stream = follow(fleet, after, false).await;
    let mut numbers = Vec::new();
    while let Some(event) = next(&mut stream).await {
        numbers.push(event["seq"].as_u64().expect("a number"));
    }
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_where_it_left_off_without_a_gap() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[TestServer::works("alpha", 9501, "one")], "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let everything = all(&fleet, 0).await;
    let last = *everything.last().expect("events");
    assert_eq!(everything, (1..=last).collect::<Vec<u64>>(), "every entry, in order");
    let middle = last / 2;
    let rest = all(&fleet, middle).await;
    assert_eq!(rest.first(), Some(&(middle + 1)));

    let mut live = follow(&fleet, *rest.last().expect("events"), true).await;
    fleet.json(&["hosts", "token", "host-7"]);
    let issued = loop {
        let event = next(&mut live).await.expect("an event");
        if event["type"] == "token_issued" {
            break event;
        }
    };
    assert!(
        issued["notes"][0]["message"].as_str().is_some_and(|text| text.starts_with("host-7 may enrol until")),
        "{issued}"
    );

    // A restarted coordinator numbers on, so a follower misses nothing of what happened meanwhile.
    let seen = issued["seq"].as_u64().expect("a number");
    fleet.kill_coordinator();
    let mut coordinator = fleet.start_coordinator();
    fleet.wait_until("the coordinator answers", || fleet.run(&["status"]).code == 0);
    assert_eq!(all(&fleet, seen).await.first(), Some(&(seen + 1)));
    drop(fleet);
    coordinator.wait().expect("ended by `down`");
}

#[test]
fn only_the_owner_may_open_the_socket_and_the_state_folder() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[TestServer::works("alpha", 9502, "one")], "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let mode = |path: &str| {
        let metadata = std::fs::metadata(fleet.state_dir().join(path)).expect(path);
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("api.sock"), 0o600);
    // Where the fleet is root's, users of servers pass through; nobody else lists it or writes to it.
    assert_eq!(mode("") & 0o066, 0);
    for key in ["authority.key", "coordinator.key", "command.key", "operator.key", "values.key"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
}

/// The status and the answer of a request.
fn get(fleet: &Fleet, path: &str) -> (u16, Value) {
    let mut stream = std::os::unix::net::UnixStream::connect(fleet.state_dir().join("api.sock")).expect("the socket");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: coordinator\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {body}")))
}

#[test]
fn what_is_wrong_with_a_query_is_an_error_like_all_others() {
    let fleet = Fleet::new();
    let manifest = fleet.configure_plain(&["web"], 1, "servers:\n  - { server: web }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let id = fleet.newest_deployment()["summary"]["id"].as_str().expect("an id").to_owned();
    for path in [
        "/v1/deployments?limit=many",
        "/v1/deployments?limit=-1",
        "/v1/deployments?before=",
        &format!("/v1/deployments/{id}?plan=maybe"),
        "/v1/servers/web@host-1/logs?lines=all",
    ] {
        let (status, answer) = get(&fleet, path);
        let error = &answer["error"];
        assert_eq!((status, error["kind"].as_str()), (422, Some("configuration_error")), "{path}: {answer:#}");
        assert!(error["message"].as_str().is_some_and(|message| message.starts_with("in the query, ")), "{answer:#}");
        assert!(error["hint"].is_string(), "{answer:#}");
    }
    let listed = |path: &str| get(&fleet, path).1.as_array().expect("a list").len();
    assert_eq!((listed("/v1/deployments?limit=0"), listed("/v1/deployments?limit=99999999")), (1, 1));
    let content = |path: &str| get(&fleet, path).1["content"].clone();
    assert!(content(&format!("/v1/deployments/{id}?plan=true")).is_object());
    assert!(content(&format!("/v1/deployments/{id}")).is_null());
}
