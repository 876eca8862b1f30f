//! The bridge under clients that come in masses, ask for much, leave without a word, and must not hear each other; and
//! with a server that is killed in the midst of it. All by plain HTTP: what the bridge is made of is not looked at.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fleetwright_tests::bridged::{Bridge, Served};
use fleetwright_tests::tools::{Tool, have};
use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::{Client, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server of the older era: `echo`, `large` (as many bytes as it is told), `never` (no answer), and tools that tell
/// their clients something: `log`, `update`, `change`. It writes down what it heard of subscriptions and cancellations.
const SERVER: &str = r#"
import json, os, sys
def say(**message):
    sys.stdout.write(json.dumps(dict(jsonrpc="2.0", **message)) + "\n")
    sys.stdout.flush()
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or dict()
    if method in ("notifications/cancelled", "resources/subscribe", "resources/unsubscribe"):
        print("heard", method, params.get("uri", ""), file=sys.stderr, flush=True)
    if "id" not in message or method is None:
        continue
    result = dict()
    if method == "server/discover":
        say(id=message["id"], error=dict(code=-32601, message="no such method"))
        continue
    if method == "initialize":
        info = dict(name="load", version="1")
        able = dict(tools=dict(listChanged=True), logging=dict(), resources=dict(subscribe=True))
        result = dict(protocolVersion="2025-11-25", capabilities=able, serverInfo=info)
    elif method == "tools/list":
        result = dict(tools=[dict(name="echo", inputSchema=dict(type="object"))])
    elif method == "tools/call":
        name, given = params["name"], params.get("arguments", dict())
        if name == "never":
            print("heard never", file=sys.stderr, flush=True)
            continue
        text = json.dumps(given)
        if name == "large":
            text = "x" * given["bytes"]
        elif name == "pid":
            text = str(os.getpid())
        elif name == "log":
            say(method="notifications/message", params=dict(level="info", data=given["words"]))
        elif name == "update":
            say(method="notifications/resources/updated", params=dict(uri=given["uri"]))
        elif name == "change":
            say(method="notifications/tools/list_changed")
        result = dict(content=[dict(type="text", text=text)])
    say(id=message["id"], result=result)
"#;

/// A bridge in front of that server, and clients of it.
struct Loaded {
    served: Served,
    http: Client,
    _folder: tempfile::TempDir,
}

impl Loaded {
    fn start(bridge: &Bridge) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("server.py");
        fs::write(&script, SERVER).expect("write");
        let served = bridge.serve(&["python3".into(), script.into()]);
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("client");
        Self { served, http, _folder: folder }
    }

    fn post(&self, session: Option<&str>, body: &Value) -> reqwest::RequestBuilder {
        let request = self.http.post(self.served.url()).header("accept", "application/json, text/event-stream");
        let request = request.json(body);
        let Some(session) = session else { return request };
        request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25")
    }

    async fn session(&self) -> String {
        let response = self.post(None, &initialize()).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        let session = response.headers()["mcp-session-id"].to_str().expect("text").to_owned();
        response.bytes().await.expect("a body");
        let body = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(self.post(Some(&session), &body).send().await.expect("taken").status(), StatusCode::ACCEPTED);
        session
    }

    async fn ask(&self, session: &str, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 5, "method": method, "params": params });
        answer(self.post(Some(session), &body).send().await.expect("an answer")).await
    }

    async fn call(&self, session: &str, tool: &str, arguments: Value) -> Value {
        self.ask(session, "tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    async fn text(&self, session: &str, tool: &str, arguments: Value) -> String {
        let answer = self.call(session, tool, arguments).await;
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
    }

    async fn listen(&self, session: &str) -> Response {
        let request = self.http.get(self.served.url()).header("accept", "text/event-stream");
        let request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        let stream = request.send().await.expect("a stream");
        assert_eq!(stream.status(), StatusCode::OK);
        stream
    }

    /// Kilobytes that the bridge itself holds in memory.
    fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.served.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.split_whitespace().next().expect("a number").parse().expect("a number")
    }

    /// Files and sockets that it holds open.
    fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.served.pid())).expect("it runs").count()
    }

    /// Waits until it holds no more files open than this.
    fn until_calm(&self, files: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.open_files() > files {
            assert!(Instant::now() < deadline, "{} files are open, {files} in calm", self.open_files());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Begins a request on a connection of its own, so that the client can die.
    fn begin(&self, session: Option<&str>, length: usize, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.served.port())).expect("connected");
        let port = self.served.port();
        let session = session.map(|id| format!("mcp-session-id: {id}\r\nmcp-protocol-version: 2025-11-25\r\n"));
        let head = format!(
            "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: application/json, text/event-stream\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n{}\r\n",
            session.unwrap_or_default()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        stream
    }
}

fn initialize() -> Value {
    let info = json!({ "name": "test", "version": "1" });
    let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info });
    json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params })
}

fn called(id: usize, tool: &str, arguments: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool, "arguments": arguments } })
}

/// The answer in a body, whether it comes alone or as the last event of a stream.
async fn answer(response: Response) -> Value {
    let text = response.text().await.expect("a body");
    let mut data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
    let last = data.rfind(|data| !data.is_empty()).unwrap_or(&text);
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {}", last.chars().take(200).collect::<String>()))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_that_vanish_keep_nobody_out() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default());
    // Somebody who listens is not driven out by them.
    let stays = loaded.session().await;
    let mut stream = loaded.listen(&stays).await.bytes_stream();
    let calm = loaded.open_files();
    let body = initialize().to_string();
    let vanish = |n: usize| {
        let mut stream = loaded.begin(None, body.len(), &body);
        // Most wait for their session; some are gone before they have it.
        if !n.is_multiple_of(10) {
            let mut head = [0; 12];
            stream.read_exact(&mut head).expect("an answer");
            assert_eq!(&head, b"HTTP/1.1 200", "client {n}");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || (0..2500).for_each(|n| vanish(thread * 2500 + n)));
        }
    });
    let after = loaded.memory_kib();
    let began = Instant::now();
    let session = loaded.session().await;
    assert_eq!(loaded.text(&session, "echo", json!({ "a": 1 })).await, r#"{"a": 1}"#);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(after < 100 * 1024, "{after} KiB");
    loaded.text(&stays, "change", json!({})).await;
    until(&mut stream, "list_changed").await;
    drop(stream);
    loaded.until_calm(calm + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_at_once_are_each_given_their_own_answer() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default());
    let sessions = join_all((0..20).map(|_| loaded.session())).await;
    // Ids are the same in each session. Whoever is not let in for lack of room comes again, as clients do.
    let call = async |n: usize| {
        let (session, id) = (&sessions[n % sessions.len()], n / sessions.len());
        let body = called(id, "echo", json!({ "n": n }));
        let deadline = Instant::now() + PATIENCE;
        let response = loop {
            match loaded.post(Some(session), &body).send().await {
                Ok(response) if response.status() == StatusCode::OK => break response,
                Ok(response) => assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE),
                Err(error) => assert!(Instant::now() < deadline, "{n}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let answer = answer(response).await;
        assert_eq!(answer["id"], id, "{n}: {answer:#}");
        assert_eq!(answer["result"]["content"][0]["text"], format!(r#"{{"n": {n}}}"#));
    };
    join_all((0..1000).map(call)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_32_mb_come_whole_and_leave_nothing_behind() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default());
    let session = loaded.session().await;
    let bytes = 32 * 1024 * 1024;
    for _ in 0..2 {
        let text = loaded.text(&session, "large", json!({ "bytes": bytes })).await;
        assert!(text.len() == bytes && text.bytes().all(|byte| byte == b'x'), "{} bytes", text.len());
    }
    // A client that reads the first of it and dies.
    let body = called(1, "large", json!({ "bytes": bytes })).to_string();
    let mut dying = loaded.begin(Some(&session), body.len(), &body);
    dying.read_exact(&mut [0; 1024]).expect("its beginning");
    drop(dying);
    assert_eq!(loaded.text(&session, "echo", json!({})).await, "{}");
    let after = loaded.memory_kib();
    assert!(after < 300 * 1024, "{after} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_die_in_the_midst_of_anything_leave_nothing_behind() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default());
    let session = loaded.session().await;
    loaded.text(&session, "echo", json!({})).await;
    let calm = loaded.open_files();
    let waits = called(3, "never", json!({})).to_string();
    let large = called(4, "large", json!({ "bytes": 1024 * 1024 })).to_string();
    for n in 0..100 {
        // In the midst of a head, of a body, of waiting, of an answer, of listening.
        let mut head = TcpStream::connect(("127.0.0.1", loaded.served.port())).expect("connected");
        head.write_all(b"POST /mcp HTTP/1.1\r\nhost: 12").expect("sent");
        drop(loaded.begin(Some(&session), waits.len(), &waits[..20]));
        let waiting = loaded.begin(Some(&session), waits.len(), &waits);
        loaded.served.until_said("heard never", n + 1);
        drop(waiting);
        loaded.begin(Some(&session), large.len(), &large).read_exact(&mut [0; 64]).expect("the beginning");
        drop(loaded.listen(&session).await);
    }
    loaded.until_calm(calm + 2);
    assert_eq!(loaded.text(&session, "echo", json!({ "still": true })).await, r#"{"still": true}"#);
    // What was cancelled in so many words was cancelled at the server.
    let waiting = loaded.begin(Some(&session), waits.len(), &waits);
    loaded.served.until_said("heard never", 101);
    let heard = loaded.served.log().matches("heard notifications/cancelled").count();
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 3 } });
    assert_eq!(loaded.post(Some(&session), &cancel).send().await.expect("taken").status(), StatusCode::ACCEPTED);
    loaded.served.until_said("heard notifications/cancelled", heard + 1);
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_midst_of_calls_leaves_nobody_waiting() {
    if !have(&[Tool::Python]) {
        return;
    }
    let mut loaded = Loaded::start(&Bridge::default());
    let session = loaded.session().await;
    let pid = loaded.text(&session, "pid", json!({})).await;
    let mut stream = loaded.listen(&session).await.bytes_stream();
    let waiting = (0..50).map(|n| loaded.post(Some(&session), &called(n, "never", json!({}))).send());
    let waiting = tokio::spawn(join_all(waiting.collect::<Vec<_>>()));
    loaded.served.until_said("heard never", 50);
    kill(&pid);
    // Each is told, by an error or by its connection's end, and soon.
    let soon = Duration::from_secs(10);
    let all = tokio::time::timeout(soon, waiting).await.expect("nobody waits").expect("joined");
    for response in all.into_iter().flatten() {
        let text = tokio::time::timeout(soon, response.text()).await.expect("nobody waits").unwrap_or_default();
        assert!(!text.contains("\"result\""), "{text}");
    }
    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::time::timeout(soon, rest).await.expect("nobody listens");
    let deadline = Instant::now() + PATIENCE;
    while !loaded.served.has_ended() {
        assert!(Instant::now() < deadline, "the bridge outlives its server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_killed_is_the_loss_of_its_own_client_alone() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default().own());
    let (one, two) = (loaded.session().await, loaded.session().await);
    let (pid, other) = (loaded.text(&one, "pid", json!({})).await, loaded.text(&two, "pid", json!({})).await);
    assert_ne!(pid, other, "each has its own");
    let waiting = tokio::spawn(loaded.post(Some(&one), &called(9, "never", json!({}))).send());
    loaded.served.until_said("heard never", 1);
    kill(&pid);
    let told = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("nobody waits").expect("joined");
    if let Ok(response) = told {
        let text = response.text().await.unwrap_or_default();
        assert!(!text.contains("\"result\""), "{text}");
    }
    let gone = loaded.post(Some(&one), &called(1, "echo", json!({}))).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NOT_FOUND, "it begins anew");
    assert_eq!(loaded.text(&two, "pid", json!({})).await, other);
    let again = loaded.session().await;
    assert_ne!(loaded.text(&again, "pid", json!({})).await, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_one_server_do_not_hear_each_other() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default());
    let (one, two) = (loaded.session().await, loaded.session().await);
    let (mut first, mut second) = (loaded.listen(&one).await.bytes_stream(), loaded.listen(&two).await.bytes_stream());
    let uri = |name: &str| json!({ "uri": format!("test://{name}") });
    loaded.ask(&one, "logging/setLevel", json!({ "level": "debug" })).await;
    for name in ["of-one", "of-both"] {
        loaded.ask(&one, "resources/subscribe", uri(name)).await;
    }
    loaded.ask(&two, "resources/subscribe", uri("of-both")).await;
    // The one's log messages and updates are not for the other.
    loaded.text(&one, "log", json!({ "words": "secret-of-one" })).await;
    loaded.text(&one, "update", uri("of-one")).await;
    until(&mut first, "of-one").await;
    // What both want, both get; what the one no longer wants, the other still gets.
    loaded.text(&two, "update", uri("of-both")).await;
    until(&mut first, "of-both").await;
    let mut heard = until(&mut second, "of-both").await;
    loaded.ask(&two, "resources/unsubscribe", uri("of-both")).await;
    loaded.text(&two, "update", uri("of-both")).await;
    until(&mut first, "of-both").await;
    loaded.text(&one, "change", json!({})).await;
    heard.push_str(&until(&mut second, "list_changed").await);
    assert_eq!(heard.matches("of-both").count(), 1, "{heard}");
    assert!(!heard.contains("of-one"), "{heard}");
    // The server was asked once for what both want, and told that it is over when the last has left.
    let said = |words: &str| loaded.served.log().matches(words).count();
    assert_eq!(said("heard resources/subscribe test://of-both"), 1);
    assert_eq!(said("heard resources/unsubscribe test://of-both"), 0);
    loaded.ask(&one, "resources/unsubscribe", uri("of-both")).await;
    loaded.served.until_said("heard resources/unsubscribe test://of-both", 1);
    let deleted =
        loaded.http.delete(loaded.served.url()).header("mcp-session-id", &one).send().await.expect("an answer");
    assert!(deleted.status().is_success());
    loaded.served.until_said("heard resources/unsubscribe test://of-one", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_sessions_are_not_guessed() {
    if !have(&[Tool::Python]) {
        return;
    }
    let loaded = Loaded::start(&Bridge::default());
    let ids: Vec<String> = join_all((0..50).map(|_| loaded.session())).await;
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 50);
    // No two share even their beginnings, as counters and clocks would.
    assert_eq!(ids.iter().map(|id| &id[..8]).collect::<BTreeSet<_>>().len(), 50, "{ids:?}");
    assert!(ids.iter().all(|id| id.len() >= 32), "{ids:?}");
}

fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().expect("a number")).expect("a process");
    kill_process(pid, Signal::KILL).expect("killed");
}

/// Reads a stream until it has said this; gives all that it said.
async fn until(stream: &mut (impl StreamExt<Item = reqwest::Result<impl AsRef<[u8]>>> + Unpin), words: &str) -> String {
    let mut text = String::new();
    while !text.contains(words) {
        let chunk = tokio::time::timeout(PATIENCE, stream.next()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("\"{words}\" does not come: {text}"));
        let chunk = chunk.unwrap_or_else(|| panic!("the stream ends before \"{words}\": {text}")).expect("bytes");
        text.push_str(&String::from_utf8_lossy(chunk.as_ref()));
    }
    text
}
