//! The bridge beside supergateway, in one run on the same server: memory of the bridge itself, and calls per second.
//!
//! `cargo build --release --workspace && cargo run --release -p fleetwright-tests --bin bridges`, with npm and Python 3.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use fleetwright_tests::fleet::program;
use reqwest::Client;
use serde_json::{Value, json};

/// The version of supergateway that is compared with, unless another is named.
const SUPERGATEWAY: &str = "4.0.0";
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures bridges side by side.
#[derive(Parser)]
struct Arguments {
    /// How many clients call at once.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// How often each calls.
    #[arg(long, default_value_t = 500)]
    calls: usize,
    /// The version of supergateway.
    #[arg(long, default_value = SUPERGATEWAY)]
    supergateway: String,
    /// Measure the bridge with a child for each session as well.
    #[arg(long)]
    own: bool,
}

/// A server that answers as fast as Python can.
const SERVER: &str = r#"
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    if message["method"] == "initialize":
        result = dict(protocolVersion="2025-06-18", capabilities=dict(tools=dict()), serverInfo=dict(name="echo", version="1"))
    else:
        result = dict(content=[dict(type="text", text="x" * 200)])
    print(json.dumps(dict(jsonrpc="2.0", id=message["id"], result=result)), flush=True)
"#;

struct Measured {
    rss_kib: u64,
    calls_per_s: f64,
}

#[expect(clippy::print_stdout, reason = "the result is for people")]
#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("server.py");
    fs::write(&script, SERVER).expect("write");
    let install = Command::new("npm")
        .args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
        .arg(folder.path())
        .arg(format!("supergateway@{}", arguments.supergateway))
        .status();
    assert!(
        install.is_ok_and(|status| status.success()),
        "supergateway {} cannot be installed",
        arguments.supergateway
    );
    let server = format!("python3 {}", script.display());
    let bridge = |port: u16, sessions: &[&str]| {
        let mut command = Command::new(program("fleetwright-agent"));
        command.args(["bridge", "--listen", &format!("127.0.0.1:{port}")]).args(sessions);
        command.args(["--", "python3"]).arg(&script);
        command
    };
    let ours = |port: u16| bridge(port, &[]);
    let theirs = |port: u16| {
        let mut command = Command::new(folder.path().join("node_modules/.bin/supergateway"));
        command.args(["--stdio", &server, "--outputTransport", "streamableHttp", "--stateful", "--port"]);
        command.arg(port.to_string()).args(["--logLevel", "none"]);
        command
    };
    let mine = measure(ours, &arguments).await;
    let own =
        if arguments.own { Some(measure(|port| bridge(port, &["--sessions", "own"]), &arguments).await) } else { None };
    let other = measure(theirs, &arguments).await;
    println!("{} clients, {} calls each, the same stdio server behind both", arguments.clients, arguments.calls);
    println!("  bridge        {:>7.1} MiB  {:>7.0} calls/s", mine.rss_kib as f64 / 1024.0, mine.calls_per_s);
    if let Some(own) = own {
        println!("  own sessions  {:>7.1} MiB  {:>7.0} calls/s", own.rss_kib as f64 / 1024.0, own.calls_per_s);
    }
    println!("  supergateway  {:>7.1} MiB  {:>7.0} calls/s", other.rss_kib as f64 / 1024.0, other.calls_per_s);
    let memory = mine.rss_kib as f64 / other.rss_kib as f64;
    let speed = mine.calls_per_s / other.calls_per_s;
    println!("  memory {memory:.3} of it (at most 0.1), throughput {speed:.2} times it (at least 1)");
    if memory <= 0.1 && speed >= 1.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(command: impl Fn(u16) -> Command, arguments: &Arguments) -> Measured {
    let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
    let mut child =
        command(port).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let url = format!("http://127.0.0.1:{port}/mcp");
    let mut sessions = Vec::new();
    for _ in 0..arguments.clients {
        sessions.push(session(&url).await);
    }
    let run = |calls: usize| {
        let clients = sessions.iter().map(|(http, session)| call(http, &url, session, calls));
        futures_util::future::join_all(clients)
    };
    run(arguments.calls / 10 + 1).await;
    let began = Instant::now();
    run(arguments.calls).await;
    let took = began.elapsed().as_secs_f64();
    let measured =
        Measured { rss_kib: rss_kib(&child), calls_per_s: (arguments.calls * arguments.clients) as f64 / took };
    child.kill().expect("kill");
    child.wait().expect("wait");
    measured
}

async fn session(url: &str) -> (Client, String) {
    let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("client");
    let params =
        json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "b", "version": "1" } });
    let deadline = Instant::now() + PATIENCE;
    let response = loop {
        match post(&http, url, None, &json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params }))
            .await
        {
            Ok(response) => break response,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let session = response.headers()["mcp-session-id"].to_str().expect("text").to_owned();
    response.bytes().await.expect("a body");
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    post(&http, url, Some(&session), &initialized).await.expect("taken");
    (http, session)
}

async fn call(http: &Client, url: &str, session: &str, calls: usize) {
    for n in 0..calls {
        let params = json!({ "name": "echo", "arguments": { "n": n } });
        let body = json!({ "jsonrpc": "2.0", "id": n + 1, "method": "tools/call", "params": params });
        let response = post(http, url, Some(session), &body).await.expect("an answer");
        let text = response.text().await.expect("a body");
        assert!(text.contains("xxxxxxxx"), "{text}");
    }
}

async fn post(http: &Client, url: &str, session: Option<&str>, body: &Value) -> reqwest::Result<reqwest::Response> {
    let mut request = http.post(url).header("accept", "application/json, text/event-stream").json(body);
    if let Some(session) = session {
        request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-06-18");
    }
    request.send().await?.error_for_status()
}

/// The memory of the bridge itself, without the server behind it.
fn rss_kib(child: &Child) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(child.id().to_string()).join("status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}
