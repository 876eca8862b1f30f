//! The bridge beside others, in one run on the same server: memory and processor time of the bridge itself, and how soon
//! calls are answered.
//!
//! `cargo build --release --workspace && cargo run --release -p fleetwright-tests --bin bridges -- --own --proxies`, with
//! npm and Python 3.

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
/// The versions of the two that are called mcp-proxy, and of the SDK that the second one was made for.
const NPM_PROXY: &str = "6.7.19";
const PYPI_PROXY: &str = "0.13.0";
const PYPI_SDK: &str = "1.30.0";
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
    /// Measure npm's and PyPI's mcp-proxy as well.
    #[arg(long)]
    proxies: bool,
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

/// What one bridge has taken.
struct Measured {
    rss_kib: u64,
    calls_per_s: f64,
    /// Half of the calls were answered within this.
    p50_ms: f64,
    cpu_s_per_1000: f64,
}

/// A bridge that is measured.
struct Contender {
    name: String,
    command: Box<dyn Fn(u16) -> Command>,
}

impl Contender {
    fn new(name: impl Into<String>, command: impl Fn(u16) -> Command + 'static) -> Self {
        Self { name: name.into(), command: Box::new(command) }
    }
}

#[expect(clippy::print_stdout, reason = "the result is for people")]
#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("server.py");
    fs::write(&script, SERVER).expect("write");
    let mut contenders = vec![Contender::new("Fleetwright, `shared`", ours(&script, &[]))];
    if arguments.own {
        contenders.push(Contender::new("Fleetwright, `own`", ours(&script, &["--sessions", "own"])));
    }
    contenders.push(supergateway(folder.path(), &script, &arguments.supergateway));
    if arguments.proxies {
        contenders.push(npm_proxy(folder.path(), &script));
        contenders.push(pypi_proxy(folder.path(), &script));
    }
    let mut all = Vec::new();
    for contender in &contenders {
        all.push((contender.name.as_str(), measure(&contender.command, &arguments).await));
    }
    let baseline = format!("supergateway {}", arguments.supergateway);
    let Some((_, base)) = all.iter().find(|(name, _)| *name == baseline) else { return ExitCode::FAILURE };
    println!("{} clients, {} calls each, the same stdio server behind all\n", arguments.clients, arguments.calls);
    println!(
        "| bridge | memory | of {baseline}'s | calls per second | times | half within | processor time per 1,000 calls | of it |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, measured) in &all {
        let memory = ratio(measured.rss_kib as f64, base.rss_kib as f64);
        let speed = ratio(measured.calls_per_s, base.calls_per_s);
        let cpu = ratio(measured.cpu_s_per_1000, base.cpu_s_per_1000);
        println!(
            "| {name} | {:.1} MiB | {memory:.3} | {:.0} | {speed:.2} | {:.2} ms | {:.2} s | {cpu:.2} |",
            measured.rss_kib as f64 / 1024.0,
            measured.calls_per_s,
            measured.p50_ms,
            measured.cpu_s_per_1000,
        );
    }
    let mine = &all[0].1;
    let memory = ratio(mine.rss_kib as f64, base.rss_kib as f64);
    let speed = ratio(mine.calls_per_s, base.calls_per_s);
    println!("\nmemory {memory:.3} of {baseline}'s (at most 0.1), throughput {speed:.2} times its (at least 1)");
    if memory <= 0.1 && speed >= 1.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ratio(of: f64, base: f64) -> f64 {
    if base > 0.0 { of / base } else { 0.0 }
}

fn ours(script: &Path, sessions: &'static [&'static str]) -> impl Fn(u16) -> Command + 'static {
    let script = script.to_owned();
    move |port| {
        let mut command = Command::new(program("fleetwright-agent"));
        command.args(["bridge", "--listen", &format!("127.0.0.1:{port}")]).args(sessions);
        command.args(["--", "python3"]).arg(&script);
        command
    }
}

fn supergateway(folder: &Path, script: &Path, version: &str) -> Contender {
    let kit = folder.join("supergateway");
    installs(npm(&kit).arg(format!("supergateway@{version}")));
    let server = format!("python3 {}", script.display());
    Contender::new(format!("supergateway {version}"), move |port| {
        let mut command = Command::new(kit.join("node_modules/.bin/supergateway"));
        command.args(["--stdio", &server, "--outputTransport", "streamableHttp", "--stateful", "--port"]);
        command.arg(port.to_string()).args(["--logLevel", "none"]);
        command
    })
}

fn npm_proxy(folder: &Path, script: &Path) -> Contender {
    let kit = folder.join("mcp-proxy");
    installs(npm(&kit).arg(format!("mcp-proxy@{NPM_PROXY}")));
    let script = script.to_owned();
    Contender::new(format!("npm mcp-proxy {NPM_PROXY}"), move |port| {
        let mut command = Command::new(kit.join("node_modules/.bin/mcp-proxy"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--server", "stream", "--", "python3"]);
        command.arg(&script);
        command
    })
}

fn pypi_proxy(folder: &Path, script: &Path) -> Contender {
    let kit = folder.join("pypi");
    installs(Command::new("python3").args(["-m", "venv"]).arg(&kit));
    let packages = [format!("mcp-proxy=={PYPI_PROXY}"), format!("mcp=={PYPI_SDK}")];
    installs(Command::new(kit.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(packages));
    let script = script.to_owned();
    Contender::new(format!("PyPI mcp-proxy {PYPI_PROXY}"), move |port| {
        let mut command = Command::new(kit.join("bin/mcp-proxy"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--", "python3"]).arg(&script);
        command
    })
}

fn npm(folder: &Path) -> Command {
    let mut install = Command::new("npm");
    install.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(folder);
    install
}

fn installs(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?} failed");
}

async fn measure(command: &dyn Fn(u16) -> Command, arguments: &Arguments) -> Measured {
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
    let (began, cpu) = (Instant::now(), cpu_s(&child));
    let mut took: Vec<Duration> = run(arguments.calls).await.into_iter().flatten().collect();
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_s(&child) - cpu);
    took.sort_unstable();
    let calls = took.len() as f64;
    let measured = Measured {
        rss_kib: rss_kib(&child),
        calls_per_s: calls / seconds,
        p50_ms: took.get(took.len() / 2).map_or(0.0, Duration::as_secs_f64) * 1000.0,
        cpu_s_per_1000: cpu / calls * 1000.0,
    };
    // Told first, so that it ends what it has started.
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed());
    let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline && child.try_wait().is_ok_and(|exit| exit.is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = child.kill();
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

async fn call(http: &Client, url: &str, session: &str, calls: usize) -> Vec<Duration> {
    let mut took = Vec::with_capacity(calls);
    for n in 0..calls {
        let began = Instant::now();
        let params = json!({ "name": "echo", "arguments": { "n": n } });
        let body = json!({ "jsonrpc": "2.0", "id": n + 1, "method": "tools/call", "params": params });
        let response = post(http, url, Some(session), &body).await.expect("an answer");
        let text = response.text().await.expect("a body");
        assert!(text.contains("xxxxxxxx"), "{text}");
        took.push(began.elapsed());
    }
    took
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

/// The processor time that the bridge itself has used.
fn cpu_s(child: &Child) -> f64 {
    let stat = fs::read_to_string(Path::new("/proc").join(child.id().to_string()).join("stat")).expect("it runs");
    let after = stat.rsplit_once(") ").expect("a line").1;
    let ticks: u64 = after.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}
