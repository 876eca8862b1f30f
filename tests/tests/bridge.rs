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
listening = {}
def modern(message, method, info):
    params, id = message.get("params", {}), message["id"]
    result = dict(resultType="complete", ttlMs=0, cacheScope="private")
    if method == "server/discover":
        capabilities = dict(tools=dict(listChanged=True), resources=dict(subscribe=True))
        result.update(supportedVersions=["2026-07-28"], capabilities=capabilities, serverInfo=info)
    elif method == "tools/list":
        result.update(tools=[], heard=params["_meta"])
    elif method == "subscriptions/listen":
        listening[id] = params["notifications"].get("resourceSubscriptions", [])
        of = {"io.modelcontextprotocol/subscriptionId": id}
        say(dict(method="notifications/subscriptions/acknowledged", params=dict(notifications=params["notifications"], _meta=of)))
        return
    elif method == "tools/call" and params["name"] == "who":
        if "inputResponses" not in params:
            ask = dict(method="elicitation/create", params=dict(message="who?"))
            result = dict(resultType="input_required", inputRequests=dict(who=ask), requestState="asked")
        else:
            assert params["requestState"] == "asked"
            result.update(content=[dict(type="text", text="hello " + params["inputResponses"]["who"]["content"]["name"])])
    elif method == "tools/call" and params["name"] == "update":
        for id_, uris in listening.items():
            for uri in uris:
                of = {"io.modelcontextprotocol/subscriptionId": id_}
                say(dict(method="notifications/resources/updated", params=dict(uri=uri, _meta=of)))
        result.update(content=[])
    else:
        say(dict(id=id, error=dict(code=-32601, message="no such method")))
        return
    say(dict(id=id, result=result))
waiting = {}
for line in sys.stdin:
    message = json.loads(line)
    log.write(json.dumps(message) + "\n")
    method = message.get("method")
    if method is None and message.get("id") in waiting:
        say(dict(id=waiting.pop(message["id"]), result=message["result"]))
    if "id" not in message or method is None:
        continue
    info = dict(name="echo", version="7", title="An echo")
    if os.environ.get("ERA") == "modern":
        modern(message, method, info)
    elif method == "server/discover":
        say(dict(id=message["id"], error=dict(code=-32601, message="no such method")))
    elif method == "initialize":
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
    elif method == "ask and wait":
        waiting["server-1"] = message["id"]
        say(dict(id="server-1", method="sampling/createMessage", params=dict()))
    elif method == "update":
        say(dict(method="notifications/resources/updated", params=message["params"]))
        say(dict(id=message["id"], result=dict()))
    elif method == "log":
        say(dict(method="notifications/message", params=dict(level=message["params"]["level"], data="x")))
        say(dict(id=message["id"], result=dict()))
    elif method == "large":
        say(dict(id=message["id"], result=dict(text="x" * message["params"]["bytes"])))
    elif method == "not a number":
        say(dict(id=message["id"], result=dict(x=float("nan"))))
    elif method == "log as json":
        print(json.dumps(dict(level=30, id=message["id"], msg="a line of a log")), flush=True)
        say(dict(id=message["id"], result=dict(answered=True)))
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
        Self::start_with(environment, &[])
    }

    fn start_with(environment: &[(&str, &str)], options: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("folder");
        let (script, log) = (folder.path().join("server.py"), folder.path().join("log"));
        fs::write(&script, SERVER).expect("write");
        let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
        let listen = format!("127.0.0.1:{port}");
        let mut command = Command::new(program("fleetwright-agent"));
        command.args(["bridge", "--listen", &listen]).args(options).args(["--", "python3"]).arg(script).arg(log);
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
        self.session_with(json!({})).await
    }

    /// Shakes hands as a client that can do something for its server.
    async fn session_with(&self, capabilities: Value) -> String {
        let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": { "name": "test", "version": "1" } } });
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

    /// Opens the stream that belongs to no request.
    async fn listen(&self, session: &str) -> Listening {
        let request = self.http.get(&self.url).header("accept", "text/event-stream").header("mcp-session-id", session);
        let response = request.send().await.expect("sent");
        assert_eq!(response.status(), StatusCode::OK);
        Listening::new(response)
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

/// A stream of events that is read as far as is wanted.
struct Listening(std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<Vec<u8>>>>>);

impl Listening {
    fn new(response: Response) -> Self {
        Self(Box::pin(response.bytes_stream().map(|part| part.map(|bytes| bytes.to_vec()))))
    }

    /// What comes up to the end of the event that contains this.
    async fn until(&mut self, wanted: &str) -> String {
        let mut text = String::new();
        let read = async {
            while !(text.contains(wanted) && text.ends_with("\n\n")) {
                text.push_str(&String::from_utf8_lossy(&self.0.next().await.expect("more").expect("bytes")));
            }
        };
        let done = tokio::time::timeout(PATIENCE, read).await;
        assert!(done.is_ok(), "{wanted} does not come: {text}");
        text
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

/// What a client of the modern era says with each request.
fn modern_meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
        "mine": 1,
    })
}

impl Bridge {
    /// Asks as a client of the modern era does.
    async fn ask_modern(&self, method: &str, header: &str) -> (StatusCode, Value) {
        let body = json!({ "jsonrpc": "2.0", "id": "m", "method": method, "params": { "_meta": modern_meta() } });
        let request = self.post(None, &body).header("mcp-protocol-version", "2026-07-28").header("mcp-method", header);
        let response = request.send().await.expect("sent");
        (response.status(), answer(response).await)
    }
}

#[tokio::test]
async fn a_server_of_the_older_era_is_translated_for_clients_of_the_modern_one() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    bridge.session().await;
    let (_, discovered) = bridge.ask_modern("server/discover", "server/discover").await;
    let result = &discovered["result"];
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]), "{discovered:#}");
    assert_eq!((&result["resultType"], &result["cacheScope"]), (&json!("complete"), &json!("private")));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "echo");
    assert_eq!(result["_meta"]["dev.fleetwright/bridge"]["protocol"], "2025-11-25");
    let (_, listed) = bridge.ask_modern("tools/list", "tools/list").await;
    assert_eq!((&listed["result"]["resultType"], &listed["result"]["ttlMs"]), (&json!("complete"), &json!(0)));
    // What the era says of itself is not for the server; what else stands beside it is.
    assert_eq!(listed["result"]["params"]["_meta"], json!({ "mine": 1 }), "{listed:#}");
    // What the server asks in the midst of a call it cannot ask this client, and it was told so: it is refused at once.
    let told = bridge.heard().into_iter().find(|message| message["method"] == "initialize").expect("a handshake");
    assert_eq!(told["params"]["capabilities"], json!({}), "{told:#}");
    let (status, answered) = bridge.ask_modern("ask", "ask").await;
    assert_eq!((status, &answered["result"]["resultType"]), (StatusCode::OK, &json!("complete")), "{answered:#}");
    let refused = bridge.until_heard(|message| message["id"] == "server-1").await;
    assert_eq!(refused["error"]["code"], -32601, "{refused:#}");
    // What the modern era has no more is no method of it.
    for removed in ["initialize", "ping", "resources/subscribe", "logging/setLevel"] {
        let (status, refused) = bridge.ask_modern(removed, removed).await;
        assert_eq!((status, &refused["error"]["code"]), (StatusCode::NOT_FOUND, &json!(-32601)), "{removed}");
    }
    // Headers and body must agree, and the version must be one that is spoken.
    let body = |version: &str| {
        let mut meta = modern_meta();
        meta["io.modelcontextprotocol/protocolVersion"] = json!(version);
        json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": meta } })
    };
    for (header, meta, code) in [("2026-07-28", "2025-11-25", -32020), ("1900-01-01", "1900-01-01", -32022)] {
        let request = bridge.post(None, &body(meta)).header("mcp-protocol-version", header);
        let response = request.header("mcp-method", "tools/list").send().await.expect("sent");
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(answer(response).await["error"]["code"], code);
    }
}

#[tokio::test]
async fn clients_of_a_shared_server_hear_what_they_have_asked_for_and_nothing_of_others() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let (one, two) = (bridge.session().await, bridge.session().await);
    let (mut first, mut second) = (bridge.listen(&one).await, bridge.listen(&two).await);
    // Both subscribe, and one of them leaves it: the server hears of the first and of the last alone.
    for session in [&one, &two] {
        bridge.ask(session, json!(1), "resources/subscribe", json!({ "uri": "file:///a" })).await;
    }
    bridge.ask(&one, json!(2), "resources/unsubscribe", json!({ "uri": "file:///a" })).await;
    bridge.ask(&one, json!(3), "update", json!({ "uri": "file:///a" })).await;
    bridge.ask(&one, json!(4), "change", json!({})).await;
    // The change of a list is for all; it shows that what came before was not for this one.
    assert_eq!(first.until("list_changed").await.matches("resources/updated").count(), 0);
    assert_eq!(second.until("list_changed").await.matches("resources/updated").count(), 1);
    let asked = |method: &str| bridge.heard().iter().filter(|message| message["method"] == method).count();
    assert_eq!((asked("resources/subscribe"), asked("resources/unsubscribe")), (1, 0));
    // Log messages are of whoever asked, as far as that is certain.
    bridge.ask(&two, json!(5), "logging/setLevel", json!({ "level": "warning" })).await;
    let body = json!({ "jsonrpc": "2.0", "id": 6, "method": "log", "params": { "level": "info" } });
    let own = messages(bridge.post(Some(&one), &body).send().await.expect("sent")).await;
    assert_eq!(own.iter().filter(|message| message["method"] == "notifications/message").count(), 1, "{own:#?}");
    let quiet = messages(bridge.post(Some(&two), &body).send().await.expect("sent")).await;
    assert_eq!(quiet.iter().filter(|message| message["method"] == "notifications/message").count(), 0, "{quiet:#?}");
    // While another's request is under way it may be of either, and so is nobody's.
    let never = json!({ "jsonrpc": "2.0", "id": 7, "method": "never", "params": {} });
    let waiting = tokio::spawn(bridge.post(Some(&two), &never).send());
    bridge.until_heard(|message| message["method"] == "never").await;
    let unclear = messages(bridge.post(Some(&one), &body).send().await.expect("sent")).await;
    assert_eq!(unclear.iter().filter(|message| message["method"] == "notifications/message").count(), 0);
    waiting.abort();
    // The last one that leaves is the last one that listens.
    bridge.http.delete(&bridge.url).header("mcp-session-id", &two).send().await.expect("sent");
    bridge.until_heard(|message| message["method"] == "resources/unsubscribe").await;
}

#[tokio::test]
async fn a_client_of_the_modern_era_listens_to_a_server_of_the_older_one() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let session = bridge.session().await;
    let params = json!({ "_meta": modern_meta(), "notifications": {
        "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["file:///a"] } });
    let body = json!({ "jsonrpc": "2.0", "id": "sub", "method": "subscriptions/listen", "params": params });
    let request = bridge.post(None, &body).header("mcp-protocol-version", "2026-07-28");
    let response = request.header("mcp-method", "subscriptions/listen").send().await.expect("sent");
    let mut stream = Listening::new(response);
    let acknowledged = stream.until("acknowledged").await;
    // The server has tools whose list changes, and no prompts.
    assert!(
        acknowledged.contains("toolsListChanged") && !acknowledged.contains("promptsListChanged"),
        "{acknowledged}"
    );
    assert!(acknowledged.contains(r#""io.modelcontextprotocol/subscriptionId":"sub""#), "{acknowledged}");
    bridge.ask(&session, json!(1), "update", json!({ "uri": "file:///a" })).await;
    let updated = stream.until("resources/updated").await;
    assert!(updated.contains(r#""io.modelcontextprotocol/subscriptionId":"sub""#), "{updated}");
    // Closing the stream ends it.
    drop(stream);
    bridge.until_heard(|message| message["method"] == "resources/unsubscribe").await;
}

#[tokio::test]
async fn an_answer_whose_stream_broke_can_be_fetched_from_where_it_broke() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let session = bridge.session().await;
    let body = json!({ "jsonrpc": "2.0", "id": 3, "method": "slow", "params": { "name": "x", "_meta": { "progressToken": 1 } } });
    let mut stream = Listening::new(bridge.post(Some(&session), &body).send().await.expect("sent"));
    let begun = stream.until("retry:").await;
    let place = begun.lines().find_map(|line| line.strip_prefix("id: ")).expect("a place to go on from").to_owned();
    drop(stream);
    let request = bridge.http.get(&bridge.url).header("accept", "text/event-stream").header("last-event-id", place);
    let all = messages(request.header("mcp-session-id", &session).send().await.expect("sent")).await;
    assert_eq!(all.last().expect("an answer")["result"]["done"], "x", "{all:#?}");
    assert_eq!(all.iter().filter(|message| message["method"] == "notifications/progress").count(), 3, "{all:#?}");
    // What is there no more is not given, and nothing of another stream in its place.
    for gone in ["7-0", "rubbish"] {
        let request = bridge.http.get(&bridge.url).header("accept", "text/event-stream").header("last-event-id", gone);
        let nothing = request.header("mcp-session-id", &session).send().await.expect("sent");
        assert_eq!(nothing.status(), StatusCode::NO_CONTENT, "{gone}");
    }
    let cancelled = bridge.heard().iter().any(|message| message["method"] == "notifications/cancelled");
    assert!(!cancelled, "a connection that breaks cancels nothing in the older era");
}

#[tokio::test]
async fn a_session_with_a_server_of_its_own_answers_what_that_server_asks() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start_with(&[], &["--sessions", "own", "--sessions-max", "2"]);
    // A client that can do nothing for a server, and only looks, needs no process of its own.
    let looks = bridge.session().await;
    bridge.ask(&looks, json!(1), "tools/list", json!({})).await;
    let handshakes = || bridge.heard().iter().filter(|message| message["method"] == "initialize").count();
    assert_eq!(handshakes(), 1);
    let able = bridge.session_with(json!({ "sampling": {} })).await;
    assert_eq!(handshakes(), 2);
    let told =
        bridge.heard().into_iter().filter(|message| message["method"] == "initialize").nth(1).expect("a handshake");
    assert_eq!(told["params"]["capabilities"], json!({ "sampling": {} }));
    let body = json!({ "jsonrpc": "2.0", "id": 5, "method": "ask and wait", "params": {} });
    let mut stream = Listening::new(bridge.post(Some(&able), &body).send().await.expect("sent"));
    let asked = stream.until("sampling/createMessage").await;
    assert!(asked.contains(r#""id":"server-1""#), "{asked}");
    let answer = json!({ "jsonrpc": "2.0", "id": "server-1", "result": { "said": "yes" } });
    let taken = bridge.post(Some(&able), &answer).send().await.expect("sent").status();
    assert_eq!(taken, StatusCode::ACCEPTED);
    assert!(stream.until(r#""id":5"#).await.contains("yes"));
    // The one that only looked gets its own once it asks for more.
    bridge.ask(&looks, json!(2), "tools/call", json!({ "name": "x" })).await;
    assert_eq!(handshakes(), 3);
    // The era without sessions cannot have what belongs to a session.
    let (_, refused) = bridge.ask_modern("tools/list", "tools/list").await;
    assert_eq!(refused["error"]["code"], -32022, "{refused:#}");
    let supported = json!(["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]);
    assert_eq!(refused["error"]["data"]["supported"], supported, "{refused:#}");
    // A third session takes the place of the one that was not used for longest, whose server ends.
    drop(stream);
    let third = bridge.session_with(json!({ "sampling": {} })).await;
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    assert_eq!(bridge.post(Some(&able), &list).send().await.expect("sent").status(), StatusCode::NOT_FOUND);
    // What such a server has started ends with it, wherever it has gone.
    let spawned = bridge.ask(&third, json!(8), "spawn", json!({})).await;
    let pid = spawned["result"]["pid"].as_i64().expect("a pid");
    // A server that ends takes its session along, and nobody else's.
    let _ = bridge.post(Some(&third), &json!({ "jsonrpc": "2.0", "id": 2, "method": "end" })).send().await;
    let deadline = Instant::now() + PATIENCE;
    while bridge.post(Some(&third), &list).send().await.expect("sent").status() != StatusCode::NOT_FOUND {
        assert!(Instant::now() < deadline, "the session of a server that has ended goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let alive = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while alive() {
        assert!(Instant::now() < deadline, "what the server of a session has started outlives it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bridge.ask(&looks, json!(9), "tools/call", json!({ "name": "x" })).await["result"].is_object());
}

#[tokio::test]
async fn a_session_of_the_older_era_has_all_of_a_server_of_the_modern_one() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[("ERA", "modern")]);
    let session = bridge.session_with(json!({ "elicitation": {} })).await;
    let listed = bridge.ask(&session, json!(1), "tools/list", json!({ "_meta": { "mine": 2 } })).await;
    let heard = &listed["result"]["heard"];
    assert_eq!(heard["io.modelcontextprotocol/clientCapabilities"], json!({ "elicitation": {} }), "{listed:#}");
    assert_eq!(heard["mine"], 2);
    assert!(listed["result"].get("resultType").is_none(), "{listed:#}");
    assert_eq!(bridge.ask(&session, json!(2), "ping", json!({})).await["result"], json!({}));
    // What the server wants to know, the client is asked as it knows it.
    let body = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": { "name": "who" } });
    let mut stream = Listening::new(bridge.post(Some(&session), &body).send().await.expect("sent"));
    let asked = stream.until("elicitation/create").await;
    let data = asked.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().expect("a question");
    let question: Value = serde_json::from_str(data).expect("JSON");
    let answer = json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "action": "accept", "content": { "name": "Ada" } } });
    bridge.post(Some(&session), &answer).send().await.expect("sent");
    assert!(stream.until(r#""id":5"#).await.contains("hello Ada"));
    // It listens as the modern era does.
    let mut changes = bridge.listen(&session).await;
    bridge.ask(&session, json!(6), "resources/subscribe", json!({ "uri": "file:///a" })).await;
    bridge.ask(&session, json!(7), "tools/call", json!({ "name": "update" })).await;
    let updated = changes.until("resources/updated").await;
    assert!(!updated.contains("subscriptionId"), "{updated}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_an_error_and_the_next_one_comes() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[]);
    let session = bridge.session().await;
    let failed = bridge.ask(&session, json!(1), "large", json!({ "bytes": 65 << 20 })).await;
    assert!(failed["error"]["message"].as_str().is_some_and(|why| why.contains("64 MiB")), "{failed}");
    let large = bridge.ask(&session, json!(2), "large", json!({ "bytes": 32 << 20 })).await;
    assert_eq!(large["result"]["text"].as_str().map(str::len), Some(32 << 20));
    // What is no JSON ends the wait, and a line of a log that happens to be JSON ends nobody's.
    let unreadable = bridge.ask(&session, json!(3), "not a number", json!({})).await;
    assert!(unreadable["error"]["message"].as_str().is_some_and(|why| why.contains("no JSON")), "{unreadable}");
    let logged = bridge.ask(&session, json!(4), "log as json", json!({})).await;
    assert_eq!(logged["result"], json!({ "answered": true }));
    let malformed = bridge.post(Some(&session), &json!({})).body("{\"jsonrpc\":").send().await.expect("sent");
    assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
    assert_eq!(answer(malformed).await["error"]["code"], -32700);
}

#[tokio::test]
async fn pages_of_origins_that_were_given_may_use_the_bridge() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start_with(
        &[("FLEETWRIGHT_BRIDGE_TOKEN", TOKEN)],
        &["--origin", "https://page.example", "--host", "tools.example"],
    );
    let preflight = |origin: &'static str| {
        let request = bridge.http.request(reqwest::Method::OPTIONS, &bridge.url).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "content-type,mcp-param-region").send()
    };
    let deadline = Instant::now() + PATIENCE;
    let allowed = loop {
        match preflight("https://page.example").await {
            Ok(response) => break response,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let header = |name: &str| allowed.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(allowed.status().is_success(), "{}", allowed.status());
    assert_eq!(header("access-control-allow-origin"), "https://page.example");
    assert!(header("access-control-allow-headers").contains("mcp-param-region"));
    assert_eq!(preflight("https://evil.example").await.expect("sent").status(), StatusCode::FORBIDDEN);
    // The names it was given are its own, with a token all the same.
    let request =
        bridge.post(None, &json!({})).header("origin", "https://page.example").header("host", "tools.example");
    let refused = request.send().await.expect("sent");
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["access-control-allow-origin"], "https://page.example");
    let lacking = bridge.post(None, &json!({})).header("host", "other.example").send().await.expect("sent");
    assert_eq!(lacking.status(), StatusCode::FORBIDDEN);
    let why = lacking.text().await.expect("text");
    assert!(why.contains("run.hosts") && why.contains("other.example"), "{why}");
}

#[tokio::test]
async fn a_server_of_the_modern_era_takes_clients_that_need_no_session() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start(&[("ERA", "modern")]);
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(bridge.url.trim_start_matches("http://").trim_end_matches("/mcp")).is_err() {
        assert!(Instant::now() < deadline, "the bridge does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, discovered) = bridge.ask_modern("server/discover", "server/discover").await;
    assert!(discovered["result"]["supportedVersions"].to_string().contains("2026-07-28"), "{discovered:#}");
    let (_, listed) = bridge.ask_modern("tools/list", "tools/list").await;
    assert_eq!(listed["result"]["resultType"], "complete", "{listed:#}");
    assert_eq!(listed["result"]["heard"]["mine"], 1, "{listed:#}");
    let (contradicting, _) = bridge.ask_modern("tools/call", "tools/list").await;
    assert_eq!(contradicting, StatusCode::BAD_REQUEST);
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
    // Those that have a session go on, and whoever asks without one is answered.
    bridge.ask(&last, json!(1), "tools/list", json!({})).await;
    let (_, told) = bridge.ask_modern("server/discover", "server/discover").await;
    assert!(told["result"].is_object(), "{told:#}");
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
    assert!(code == Some(1) && said.contains("ended during the MCP handshake (exit status: 1)"), "{said}");
    assert!(said.contains("hint: a bridged server speaks MCP over its standard input"), "{said}");
}

#[test]
fn a_bridge_that_is_told_nonsense_says_what_is_wrong_and_what_would_be_right() {
    let refused = |options: &[&str], code: i32| {
        let mut bridge = Command::new(program("fleetwright-agent"));
        let output = bridge.arg("bridge").args(options).args(["--", "cat"]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{options:?}: {said}");
        assert!(!said.contains("panicked"), "{options:?}: {said}");
        said
    };
    let at = ["--listen", "127.0.0.1:1"];
    for (more, why) in [
        (["--path", "mcp"], "does not begin with `/`"),
        (["--path", "/{x"], "has a character that no path has"),
        (["--host", "http://x"], "is more than a host and a port"),
        (["--origin", "*"], "does not begin with http:// or https://"),
    ] {
        let said = refused(&[at, more].concat(), 2);
        assert!(said.contains(why) && said.contains("  hint: write "), "{more:?}: {said}");
    }
    for (more, why) in [
        (["--sessions", "mine"], "[possible values: shared, own]"),
        (["--sessions-max", "0"], "0 is not from 1 to 256"),
        (["--sessions-max", "many"], "it is not a whole number"),
    ] {
        let said = refused(&[at, more].concat(), 2);
        assert!(said.contains(why), "{more:?}: {said}");
    }
    assert!(refused(&["--listen", "127.0.0.1"], 2).contains("hint: write for example 127.0.0.1:8801"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let said = refused(&["--listen", &taken.local_addr().expect("address").to_string()], 1);
    assert!(said.contains("cannot be listened on") && said.contains("hint: another program has this port"), "{said}");
    let said = refused(&["--listen", "192.0.2.1:8801"], 1);
    assert!(said.contains("hint: this host has no such address"), "{said}");
}
