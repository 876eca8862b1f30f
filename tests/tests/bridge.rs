//! The bridge of stdio MCP servers to streamable HTTP, spoken to as clients of both eras do.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleetwright_tests::fleet::program;
use fleetwright_tests::tools::{Tool, have};
use futures_util::StreamExt;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: &str = "a-token-of-more-than-sixteen-characters";

/// A server that answers everything with what it was sent, and writes down what it was told.
const SERVER: &str = r#"
import json, os, subprocess, sys, threading, time
log = open(sys.argv[1], "a", buffering=1)
lock = threading.Lock()
def say(message):
    with lock:
        print(json.dumps(dict(jsonrpc="2.0", **message)), flush=True)
def slow(message):
    token = message["params"].get("_meta", {}).get("progressToken")
    for n in range(3):
        time.sleep(0.05)
        say(dict(method="notifications/progress", params=dict(progressToken=token, progress=n, total=3, message="step %d" % n)))
    say(dict(id=message["id"], result=dict(done=message["params"].get("name"))))
for line in sys.stdin:
    message = json.loads(line)
    log.write(json.dumps(message) + "\n")
    method = message.get("method")
    if "id" not in message or method is None:
        continue
    if method == "initialize":
        info = dict(name="echo", version="7", title="An echo")
        result = dict(protocolVersion="2025-11-25", capabilities=dict(tools=dict(listChanged=True), logging=dict()), serverInfo=info)
        say(dict(id=message["id"], result=result))
    elif method == "slow":
        threading.Thread(target=slow, args=(message,)).start()
    elif method == "never":
        pass
    elif method == "change":
        say(dict(method="notifications/tools/list_changed"))
        say(dict(id=message["id"], result=dict()))
    elif method == "ask":
        say(dict(id="server-1", method="sampling/createMessage", params=dict()))
        say(dict(id=message["id"], result=dict()))
    elif method == "fail":
        say(dict(id=message["id"], error=dict(code=-32055, message="as asked", data=dict(why=["x"]))))
    elif method == "spawn":
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        say(dict(id=message["id"], result=dict(pid=child.pid)))
    elif method == "orphan":
        subprocess.run(["sh", "-c", "sleep 0.01 & exit 0"])
        say(dict(id=message["id"], result=dict()))
    elif method == "end":
        os._exit(5)
    else:
        say(dict(id=message["id"], result=dict(method=method, params=message.get("params"), extra=dict(kept=[1, None, "x"]))))
"#;

struct Bridge {
    child: Child,
    url: String,
    folder: tempfile::TempDir,
    http: Client,
}

impl Bridge {
    fn start(environment: &[(&str, &str)]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("folder");
        let (script, log) = (folder.path().join("server.py"), folder.path().join("log"));
        fs::write(&script, SERVER).expect("write");
        let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
        let listen = format!("127.0.0.1:{port}");
        let mut command = Command::new(program("fleetwright-agent"));
        command.args(["bridge", "--listen", &listen, "--", "python3"]).arg(script).arg(log);
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn().expect("the bridge starts");
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("client");
        Self { child, url: format!("http://{listen}/mcp"), folder, http }
    }

    /// A message, as a client of the older era posts it.
    fn post(&self, session: Option<&str>, body: &Value) -> RequestBuilder {
        let mut request = self.http.post(&self.url).header("accept", "application/json, text/event-stream").json(body);
        if let Some(session) = session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        request
    }

    /// Shakes hands as the older era does; gives the session.
    async fn session(&self) -> String {
        let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } });
        let deadline = Instant::now() + PATIENCE;
        let response = loop {
            match self.post(None, &initialize).send().await {
                Ok(response) => break response,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(response.status(), StatusCode::OK);
        let session = response.headers()["mcp-session-id"].to_str().expect("text").to_owned();
        let answer = answer(response).await;
        assert_eq!(answer["result"]["serverInfo"], json!({ "name": "echo", "version": "7", "title": "An echo" }));
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let response = self.post(Some(&session), &initialized).send().await.expect("sent");
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        session
    }

    async fn ask(&self, session: &str, id: Value, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        answer(self.post(Some(session), &body).send().await.expect("sent")).await
    }

    /// What the server was sent.
    fn heard(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    async fn until_heard(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.heard().into_iter().find(&wanted) {
                return found;
            }
            assert!(Instant::now() < deadline, "the server did not hear it: {:#?}", self.heard());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(exit) = self.child.try_wait().expect("wait") {
                return exit.code();
            }
            assert!(Instant::now() < deadline, "the bridge does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every message of an answer, whether it comes as one or as a stream of events.
async fn messages(response: Response) -> Vec<Value> {
    let streams = response.headers()["content-type"].to_str().is_ok_and(|kind| kind.starts_with("text/event-stream"));
    let text = response.text().await.expect("a body");
    if !streams {
        return vec![serde_json::from_str(&text).expect("JSON")];
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
    data.filter(|data| !data.is_empty()).map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

async fn answer(response: Response) -> Value {
    messages(response).await.pop().expect("an answer")
}

#[tokio::test]
async fn whatever_clients_of_the_older_era_say_reaches_the_server_unchanged_and_back() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    // Two clients at once, with the same ids.
    let (one, two) = (bridge.session().await, bridge.session().await);
    assert_ne!(one, two);
    let params =
        |who: &str| json!({ "name": who, "unknown": { "deep": [1, 2.5, null, "ü"] }, "_meta": { "mine": who } });
    let (first, second) = tokio::join!(
        bridge.ask(&one, json!(7), "tools/call", params("one")),
        bridge.ask(&two, json!(7), "some/method-of-the-future", params("two")),
    );
    assert_eq!((first["id"].clone(), second["id"].clone()), (json!(7), json!(7)));
    assert_eq!(first["result"]["params"], params("one"));
    assert_eq!(first["result"]["extra"], json!({ "kept": [1, null, "x"] }));
    assert_eq!(
        (&second["result"]["method"], &second["result"]["params"]),
        (&json!("some/method-of-the-future"), &params("two"))
    );
    let failed = bridge.ask(&one, json!("id"), "fail", json!({})).await;
    assert_eq!(failed["error"], json!({ "code": -32055, "message": "as asked", "data": { "why": ["x"] } }));
    // A notification that nobody knows.
    let body = json!({ "jsonrpc": "2.0", "method": "notifications/of-my-own", "params": { "a": 1 } });
    bridge.post(Some(&one), &body).send().await.expect("sent");
    let heard = bridge.until_heard(|message| message["method"] == "notifications/of-my-own").await;
    assert_eq!(heard["params"], json!({ "a": 1 }));
    // The server shook hands once.
    assert_eq!(bridge.heard().iter().filter(|message| message["method"] == "initialize").count(), 1);
    // A session that was ended, or never was, is not served.
    let ended = bridge.http.delete(&bridge.url).header("mcp-session-id", &one).send().await.expect("sent");
    assert!(ended.status().is_success());
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    for gone in [one.as_str(), "never-was"] {
        let status = bridge.post(Some(gone), &body).send().await.expect("sent").status();
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    assert!(bridge.ask(&two, json!(8), "tools/list", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn progress_cancellation_and_changes_reach_whom_they_are_for() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let (one, two) = (bridge.session().await, bridge.session().await);
    // Two clients use the same token.
    let slow = |session: &str, name: &str| {
        let params = json!({ "name": name, "_meta": { "progressToken": "p" } });
        let body = json!({ "jsonrpc": "2.0", "id": 3, "method": "slow", "params": params });
        bridge.post(Some(session), &body).send()
    };
    let (first, second) = tokio::join!(slow(&one, "one"), slow(&two, "two"));
    for (response, name) in [(first, "one"), (second, "two")] {
        let all = messages(response.expect("sent")).await;
        let steps: Vec<&Value> = all.iter().filter(|message| message["method"] == "notifications/progress").collect();
        assert_eq!(steps.len(), 3, "{all:#?}");
        assert!(steps.iter().all(|step| step["params"]["progressToken"] == "p"), "{steps:#?}");
        assert_eq!(all.last().expect("an answer")["result"]["done"], name);
    }
    // A request that is cancelled is cancelled at the server, by the id that the server knows.
    let body = json!({ "jsonrpc": "2.0", "id": 9, "method": "never", "params": {} });
    let waiting = tokio::spawn(bridge.post(Some(&one), &body).send());
    let asked = bridge.until_heard(|message| message["method"] == "never").await;
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 9 } });
    bridge.post(Some(&one), &cancel).send().await.expect("sent");
    let cancelled = bridge.until_heard(|message| message["method"] == "notifications/cancelled").await;
    assert_eq!(cancelled["params"]["requestId"], asked["id"]);
    waiting.abort();
    // What the server tells everybody reaches everybody.
    let stream = bridge.http.get(&bridge.url).header("accept", "text/event-stream").header("mcp-session-id", &two);
    let mut stream = stream.send().await.expect("sent").bytes_stream();
    bridge.ask(&one, json!(4), "change", json!({})).await;
    let told = tokio::time::timeout(PATIENCE, async {
        let mut text = String::new();
        while !text.contains("notifications/tools/list_changed") {
            text.push_str(&String::from_utf8_lossy(&stream.next().await.expect("more").expect("bytes")));
        }
    });
    told.await.expect("the change is told");
    // What the server asks of its client has no one client to answer it, and is answered so.
    bridge.ask(&one, json!(5), "ask", json!({})).await;
    let refused = bridge.until_heard(|message| message["id"] == "server-1").await;
    assert_eq!(refused["error"]["code"], -32601);
}

#[tokio::test]
async fn clients_of_the_modern_era_need_no_session() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    bridge.session().await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
        "mine": 1,
    });
    let ask = async |method: &str, params: Value| {
        let mut params = params;
        params["_meta"] = meta.clone();
        let body = json!({ "jsonrpc": "2.0", "id": "m", "method": method, "params": params });
        let request =
            bridge.post(None, &body).header("mcp-protocol-version", "2026-07-28").header("mcp-method", method);
        answer(request.send().await.expect("sent")).await
    };
    let discovered = ask("server/discover", json!({})).await;
    assert_eq!(discovered["result"]["capabilities"]["tools"]["listChanged"], true, "{discovered:#}");
    let echoed = ask("tools/list", json!({ "cursor": "c" })).await;
    // What means nothing to a server of the older era is left out, and nothing else.
    assert_eq!(echoed["result"]["params"], json!({ "cursor": "c", "_meta": { "mine": 1 } }), "{echoed:#}");
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "x", "_meta": meta } });
    let contradicting =
        bridge.post(None, &body).header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/list");
    assert_eq!(contradicting.send().await.expect("sent").status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn strangers_get_nothing() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let session = bridge.session().await;
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let with = |name: &'static str, value: &'static str| bridge.post(Some(&session), &body).header(name, value).send();
    assert_eq!(with("host", "evil.example:80").await.expect("sent").status(), StatusCode::FORBIDDEN);
    assert_eq!(with("origin", "http://evil.example").await.expect("sent").status(), StatusCode::FORBIDDEN);
    assert_eq!(with("origin", "http://localhost:3000").await.expect("sent").status(), StatusCode::FORBIDDEN);
    let own = bridge.url.trim_end_matches("/mcp").to_owned();
    let own = bridge.post(Some(&session), &body).header("origin", own).send().await.expect("sent");
    assert_eq!(own.status(), StatusCode::OK);
    let large = "x".repeat(9 * 1024 * 1024);
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "large": large } });
    let refused = bridge.post(Some(&session), &body).send().await.expect("sent").status();
    assert_eq!(refused, StatusCode::PAYLOAD_TOO_LARGE);
    drop(bridge);

    let bridge = Bridge::start(&[("FLEETWRIGHT_BRIDGE_TOKEN", TOKEN)]);
    let deadline = Instant::now() + PATIENCE;
    let send = async |token: Option<&str>| loop {
        let request = bridge.post(None, &json!({}));
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        match request.send().await {
            Ok(response) => return response,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let refused = send(None).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers()["www-authenticate"].to_str().is_ok_and(|challenge| challenge.starts_with("Bearer")));
    assert_eq!(send(Some("another-token-of-sixteen")).await.status(), StatusCode::UNAUTHORIZED);
    assert_ne!(send(Some(TOKEN)).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn sessions_have_a_limit_and_one_that_is_not_in_use_makes_room() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let mut sessions = Vec::new();
    for _ in 0..256 {
        sessions.push(bridge.session().await);
    }
    // The one that was not used for longest makes room.
    let left = std::mem::replace(&mut sessions[0], bridge.session().await);
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let gone = bridge.post(Some(&left), &list).send().await.expect("sent");
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    // One that somebody listens to does not.
    let mut streams = Vec::new();
    for session in &sessions {
        let listening = bridge.http.get(&bridge.url).header("accept", "text/event-stream");
        let listening = listening.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        let stream = listening.send().await.expect("sent");
        assert_eq!(stream.status(), StatusCode::OK);
        streams.push(stream);
    }
    let last = sessions.pop().expect("a session");
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } });
    let refused = bridge.post(None, &initialize).send().await.expect("sent");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    // Those that have a session go on, and so do those that need none.
    bridge.ask(&last, json!(1), "tools/list", json!({})).await;
    let discover = json!({ "jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": { "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {} } } });
    let modern = bridge.post(None, &discover).header("mcp-protocol-version", "2026-07-28");
    let modern = modern.header("mcp-method", "server/discover").send().await.expect("sent");
    assert_eq!(modern.status(), StatusCode::OK);
    let ended = bridge.http.delete(&bridge.url).header("mcp-session-id", &last).send().await.expect("sent");
    assert!(ended.status().is_success(), "{}", ended.status());
    bridge.session().await;
}

#[tokio::test]
async fn the_bridge_ends_with_its_server_and_with_everything_that_the_server_has_started() {
    if !have(&[Tool::Python]) {
        return;
    }
    let mut bridge = Bridge::start(&[]);
    let session = bridge.session().await;
    let spawned = bridge.ask(&session, json!(1), "spawn", json!({})).await;
    let pid = spawned["result"]["pid"].as_i64().expect("a pid");
    // What is left behind by those that it starts is collected when it ends.
    for n in 0..20 {
        bridge.ask(&session, json!(100 + n), "orphan", json!({})).await;
    }
    let dead = |bridge: &Bridge| {
        let pid = bridge.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
        let stats =
            children.split_whitespace().filter_map(|child| fs::read_to_string(format!("/proc/{child}/stat")).ok());
        stats.filter(|stat| stat.contains(") Z ")).count()
    };
    let deadline = Instant::now() + PATIENCE;
    while dead(&bridge) > 0 {
        assert!(Instant::now() < deadline, "{} dead processes are not collected", dead(&bridge));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let end = json!({ "jsonrpc": "2.0", "id": 2, "method": "end" });
    // Whoever asked gets an answer or a broken connection, but does not wait.
    let _ = bridge.post(Some(&session), &end).send().await;
    assert_eq!(bridge.ended(), Some(1));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")), "what it started is left behind");
}

#[test]
fn a_server_that_does_not_start_or_says_nothing_of_the_protocol_is_told() {
    let run = |command: &[&str]| {
        let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
        let mut bridge = Command::new(program("fleetwright-agent"));
        bridge.args(["bridge", "--listen", &format!("127.0.0.1:{port}"), "--"]).args(command);
        let mut child = bridge.stderr(Stdio::piped()).spawn().expect("the bridge starts");
        let lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let said: Vec<String> = lines.map_while(Result::ok).collect();
        (child.wait().expect("wait").code(), said.join("\n"))
    };
    let (code, said) = run(&["no-such-program-anywhere"]);
    assert!(code == Some(1) && said.contains("could not be started"), "{said}");
    let (code, said) = run(&["false"]);
    assert!(code == Some(1) && said.contains("ended during the MCP handshake"), "{said}");
}
