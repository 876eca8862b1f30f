//! Bridges behind nginx and HAProxy, configured as `docs/mcp.md` says, and pages in a real browser.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use fleetwright_tests::bridged::{Bridge, Fixture, Served, free_port};
use fleetwright_tests::fleet::repository;
use fleetwright_tests::tools::{Tool, have};
use futures_util::StreamExt;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

const NEEDED: [Tool; 2] = [Tool::Python, Tool::Pypi];
const PATIENCE: Duration = Duration::from_secs(60);
/// The name by which clients reach what is behind the proxy.
const NAME: &str = "mcp.example.org";
/// How long the proxies of these tests wait for a byte; the guide lets them wait for an hour.
const PROXY_TIMEOUT_S: u64 = 20;

/// The block of the guide in this language, with ports of this test's.
fn from_guide(language: &str, listen: u16, bridge: u16) -> String {
    let guide = fs::read_to_string(repository().join("docs/mcp.md")).expect("the guide");
    let begin = format!("```{language}\n");
    let (_, block) = guide.split_once(&begin).unwrap_or_else(|| panic!("no block in {language}"));
    let (block, _) = block.split_once("```").expect("its end");
    let block = block.replace("10.0.0.7:8443", &format!("127.0.0.1:{listen}"));
    let block = block.replace("10.0.0.7:9000", &format!("127.0.0.1:{bridge}"));
    let timeout = format!("{PROXY_TIMEOUT_S}s");
    assert!(block.contains("1h"), "the guide lets streams stay: {block}");
    block.replace("1h", &timeout)
}

fn nginx(folder: &Path, listen: u16, bridge: u16) -> Served {
    let config = folder.join("nginx.conf");
    let block = from_guide("nginx", listen, bridge);
    let text = format!(
        "daemon off; pid {folder}/pid; error_log stderr; worker_processes 1; events {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3; \
         uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;\n{block}}}\n",
        folder = folder.display()
    );
    fs::write(&config, text).expect("write");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(&config).args(["-g", "user root;"]);
    Served::start(command, listen)
}

fn haproxy(folder: &Path, listen: u16, bridge: u16) -> Served {
    let config = folder.join("haproxy.cfg");
    fs::write(&config, from_guide("haproxy", listen, bridge)).expect("write");
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    Served::start(command, listen)
}

/// A client that reaches the proxy by its name.
struct Named {
    http: Client,
    url: String,
}

impl Named {
    fn new(listen: u16) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = SocketAddr::from(([127, 0, 0, 1], listen));
        let http = Client::builder().no_proxy().timeout(PATIENCE).resolve(NAME, address).build().expect("client");
        Self { http, url: format!("http://{NAME}:{listen}/mcp") }
    }

    async fn post(&self, session: Option<&str>, body: Value) -> Response {
        let mut request = self.http.post(&self.url).header("accept", "application/json, text/event-stream").json(&body);
        if let Some(session) = session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        request.send().await.expect("an answer")
    }

    async fn initialize(&self) -> Response {
        let info = json!({ "name": "test", "version": "1" });
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info });
        self.post(None, json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params })).await
    }

    async fn session(&self) -> String {
        let response = self.initialize().await;
        assert_eq!(response.status(), StatusCode::OK);
        let session = response.headers()["mcp-session-id"].to_str().expect("text").to_owned();
        response.bytes().await.expect("a body");
        let told = self.post(Some(&session), json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        assert_eq!(told.status(), StatusCode::ACCEPTED);
        session
    }

    async fn call(&self, session: &str, id: u32, tool: &str, arguments: Value) -> Response {
        let params = json!({ "name": tool, "arguments": arguments, "_meta": { "progressToken": id } });
        self.post(Some(session), json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params })).await
    }
}

/// Reads a stream until it has said this.
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

async fn works_behind(proxy: impl Fn(&Path, u16, u16) -> Served) {
    let folder = tempfile::tempdir().expect("a folder");
    // By its address alone, the bridge refuses the name, and says what would let it in.
    let listen = free_port();
    {
        let bridge = Bridge::default().serve(&Fixture::Python.stdio());
        let _proxy = proxy(folder.path(), listen, bridge.port());
        let refused = Named::new(listen).initialize().await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let said = refused.text().await.expect("a body");
        assert!(said.contains("hosts"), "{said}");
    }
    let listen = free_port();
    let bridge = Bridge::default().with(&["--host", NAME]).serve(&Fixture::Python.stdio());
    let proxy = proxy(folder.path(), listen, bridge.port());
    let client = Named::new(listen);
    let session = client.session().await;
    // What is said before an answer comes before it: nothing is held back.
    let gate = folder.path().join("gate");
    let held = client.call(&session, 7, "hold", json!({ "path": gate })).await;
    let mut held = held.bytes_stream();
    until(&mut held, "begun").await;
    fs::write(&gate, "").expect("write");
    until(&mut held, "held").await;
    // A stream on which nothing happens for longer than the proxy waits stays, and tells what happens then.
    let listening = client.http.get(&client.url).header("accept", "text/event-stream");
    let listening = listening.header("mcp-session-id", &session).header("mcp-protocol-version", "2025-11-25");
    let listening = listening.timeout(PATIENCE * 2).send().await.expect("a stream");
    assert_eq!(listening.status(), StatusCode::OK);
    let mut listening = listening.bytes_stream();
    let quiet = async {
        while let Some(chunk) = listening.next().await {
            chunk.unwrap_or_else(|error| panic!("the stream broke: {error}\n{}", proxy.log()));
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(PROXY_TIMEOUT_S + 5), quiet).await;
    assert!(ended.is_err(), "the stream ended: {}", proxy.log());
    let subscribe = json!({ "uri": "test://watched-resource" });
    let body = json!({ "jsonrpc": "2.0", "id": 8, "method": "resources/subscribe", "params": subscribe });
    assert_eq!(client.post(Some(&session), body).await.status(), StatusCode::OK);
    client.call(&session, 9, "touch", json!({ "uri": "test://watched-resource" })).await;
    until(&mut listening, "notifications/resources/updated").await;
    let ended = client.http.delete(&client.url).header("mcp-session-id", &session).send().await.expect("an answer");
    assert!(ended.status().is_success(), "{}", ended.status());
}

#[tokio::test]
async fn a_bridge_works_behind_nginx_as_the_guide_configures_it() {
    if have(&NEEDED) && have(&[Tool::Nginx]) {
        works_behind(nginx).await;
    }
}

#[tokio::test]
async fn a_bridge_works_behind_haproxy_as_the_guide_configures_it() {
    if have(&NEEDED) && have(&[Tool::Haproxy]) {
        works_behind(haproxy).await;
    }
}

/// A page that lists a server's tools, and tells its own server what came of it.
const PAGE: &str = r#"<!doctype html><title>a client</title><script>
async function list(url) {
  const headers = { "content-type": "application/json", accept: "application/json, text/event-stream" };
  const post = (body, more) => fetch(url, { method: "POST", headers: { ...headers, ...more }, body: JSON.stringify(body) });
  const data = (text) => JSON.parse(text.startsWith("{") ? text : text.split("\n").filter((line) => /^data: *\{/.test(line)).pop().slice(5));
  const params = { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "page", version: "1" } };
  const begun = await post({ jsonrpc: "2.0", id: 1, method: "initialize", params });
  const session = begun.headers.get("mcp-session-id");
  await begun.text();
  const more = { "mcp-session-id": session, "mcp-protocol-version": "2025-11-25" };
  await post({ jsonrpc: "2.0", method: "notifications/initialized" }, more);
  const listed = data(await (await post({ jsonrpc: "2.0", id: 2, method: "tools/list" }, more)).text());
  const ended = await fetch(url, { method: "DELETE", headers: more });
  return { session: session !== null, tools: listed.result.tools.length, ended: ended.ok };
}
list("URL").catch((error) => ({ failed: String(error) }))
  .then((found) => fetch("/report", { method: "POST", body: JSON.stringify(found) }));
</script>"#;

/// The server of a page, which hears what the page reports.
fn page_server() -> (u16, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    (listener.local_addr().expect("an address").port(), listener)
}

fn serve_page(listener: TcpListener, page: String) -> Receiver<Value> {
    let (send, reports) = sync_channel(4);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let (mut line, mut length) = (String::new(), 0_u64);
            reader.read_line(&mut line).expect("a request");
            let first = line.clone();
            while line.trim() != "" {
                line.clear();
                reader.read_line(&mut line).expect("a header");
                let header = line.to_ascii_lowercase();
                length = header.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().expect("a number"));
            }
            let mut body = String::new();
            reader.take(length).read_to_string(&mut body).expect("a body");
            let answer = if first.starts_with("GET / ") { page.as_str() } else { "" };
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/html";
            let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
            if first.starts_with("POST /report ") && send.send(serde_json::from_str(&body).expect("JSON")).is_err() {
                return;
            }
        }
    });
    reports
}

struct Browser(Child);

impl Browser {
    fn open(url: &str, profile: &Path) -> Self {
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("--remote-debugging-port=0").arg(url);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the browser starts"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_page_of_an_origin_that_is_named_uses_a_bridge_and_any_other_does_not() {
    if !have(&NEEDED) || !have(&[Tool::Chromium]) {
        return;
    }
    let visit = |allowed: bool| {
        let (port, listener) = page_server();
        let origin = format!("http://127.0.0.1:{port}");
        let bridge = Bridge::default();
        let bridge = if allowed { bridge.with(&["--origin", &origin]) } else { bridge };
        let bridge = bridge.serve(&Fixture::Python.stdio());
        let reports = serve_page(listener, PAGE.replace("URL", &bridge.url()));
        let profile = tempfile::tempdir().expect("a folder");
        let _browser = Browser::open(&origin, profile.path());
        reports.recv_timeout(PATIENCE).expect("the page reports")
    };
    assert_eq!(visit(true), json!({ "session": true, "tools": Fixture::Python.tools(), "ended": true }));
    let refused = visit(false);
    assert!(refused["failed"].as_str().is_some_and(|error| error.contains("Failed to fetch")), "{refused:#}");
}
