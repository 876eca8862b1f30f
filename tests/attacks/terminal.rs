//! Texts of others on the operator's terminal, and clients that try to keep a bridge for themselves.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleetwright_deploy::printable::is_order;
use fleetwright_tests::fleet::{Fleet, program, text};
use fleetwright_tests::tools::{Tool, have};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: &str = "a-token-of-more-than-sixteen-characters";

/// An MCP server on stdio that answers what it must. What it says of itself, of its tools and besides is hostile.
const SERVER: &str = r#"
import json, sys
EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202e\r"
sys.stderr.reconfigure(encoding="utf-8")
print("output " + EVIL, file=sys.stderr, flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {}
    if "id" not in message:
        continue
    if method == "initialize":
        info = dict(name="name " + EVIL, version="1" + EVIL)
        result = dict(protocolVersion="2025-11-25", capabilities=dict(tools={}), serverInfo=info)
    elif method == "tools/list":
        result = dict(tools=[dict(name="one", description=EVIL, inputSchema=dict(type="object"))])
    print(json.dumps(dict(jsonrpc="2.0", id=message["id"], result=result)), flush=True)
"#;

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("      {line}\n")).collect()
}

fn hostile(name: &str, more: &str) -> String {
    format!(
        "apiVersion: fleetwright/v1\nname: {name}\nrun:\n  command: [python3, \"{{{{ server.config_dir }}}}/server.py\"]\n  \
         transport: stdio\n  port: 9601\n  stop_timeout: 2s\n{more}files:\n  - path: server.py\n    content: |\n      {{% raw %}}\n{}      {{% endraw %}}\n\
         health_checks:\n  - {{ name: tools, type: mcp, interval: 1s, timeout: 5s }}\n  - name: says\n    type: command\n    severity: warning\n    interval: 1s\n    \
         config: {{ command: [python3, \"{{{{ server.config_dir }}}}/check.py\"] }}\n",
        indented(SERVER)
    )
    .replace(
        "health_checks:",
        "  - path: check.py\n    content: |\n      import sys\n      sys.stdout.buffer.write(b\"check \\x1b]52;c;ZXZpbA==\\x07\\xc2\\x9b31m\\n\")\n      sys.exit(1)\nhealth_checks:",
    )
}

/// A server that says what it can and ends, with a check that says so too, so that its deployment fails.
const FAILING: &str = "apiVersion: fleetwright/v1\nname: beta\nrun:\n  command: [python3, -c, 'import sys; sys.stderr.buffer.write(b\"last \\x1b]52;c;ZXZpbA==\\x07\\x1b[2J\\xc2\\x9b31m\\xe2\\x80\\xae\\n\"); sys.exit(3)']\n  stop_timeout: 2s\n\
     health_checks:\n  - name: never\n    type: command\n    interval: 1s\n    severity: critical\n    config: { command: [python3, -c, 'import sys; sys.stdout.buffer.write(b\"last \\x1b]52;c;ZXZpbA==\\x07\\xc2\\x9b31m\"); sys.exit(1)'] }\n";

/// Nothing that a terminal obeys; `own` are the sequences of our own colours.
fn assert_printable(what: &str, shown: &str, own: bool) {
    let mut plain = shown.to_owned();
    if own {
        for code in ["0", "1", "2", "31", "32", "33"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
    }
    let found = plain.chars().find(|c| is_order(*c) && !matches!(c, '\n' | '\t'));
    assert!(found.is_none(), "{what} shows {found:?}: {shown:?}");
}

#[test]
fn no_text_of_others_gives_orders_to_the_terminal() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha }\n");
    fleet.write("config/servers/alpha.yaml", &hostile("alpha", ""));
    let up = fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    assert_printable("up", &format!("{}{}", up.stdout, up.stderr), false);
    let instance = fleet.servers().into_keys().next().expect("a server");

    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha }\n  - { server: beta }\n");
    fleet.write("config/servers/beta.yaml", FAILING);
    let failed = fleet.deploy(&manifest, &[]);
    assert!(failed.code != 0 && failed.stderr.contains("last \\u{1b}]52;"), "{}", failed.stderr);
    assert_printable("deploy start", &format!("{}{}", failed.stdout, failed.stderr), false);
    let deployment = fleet.newest_deployment();
    let id = text(&deployment["summary"]["id"]).to_owned();

    let commands: [&[&str]; 9] = [
        &["hosts", "list"],
        &["status"],
        &["servers", "list"],
        &["servers", "logs", &instance],
        &["explain", &id],
        &["deploy", "show", &id],
        &["deploy", "list"],
        &["monitor", "show", &id, "--events", "--metrics"],
        &["check", "run", "alpha"],
    ];
    for command in commands {
        let shown = fleet.run(command);
        assert_printable(&format!("{command:?}"), &format!("{}{}", shown.stdout, shown.stderr), false);
        let colored = fleet.command(command).env("CLICOLOR_FORCE", "1").output().expect("it runs");
        let colored = [colored.stdout, colored.stderr].concat();
        assert_printable(&format!("{command:?} in colour"), &String::from_utf8_lossy(&colored), true);
    }
    for (command, words) in [
        (&["servers", "list"][..], "name \\u{1b}]52;"),
        (&["servers", "logs", &instance], "output \\u{1b}]52;"),
        (&["deploy", "show", &id], "last \\u{1b}]52;"),
    ] {
        let shown = fleet.run(command).stdout;
        assert!(shown.contains(words), "{command:?} shows what was said: {shown}");
    }
    let raw = fleet.run(&["servers", "logs", &instance, "--raw"]).expect_code(0).stdout;
    assert!(raw.contains("output \u{1b}]52;c;ZXZpbA==\u{7}"), "{raw:?}");
    assert_printable("the agent's log", &fleet.agent_log(instance.split_once('@').expect("a host").1), false);
    fleet.run(&["down"]).expect_code(0);
}

#[test]
fn a_label_of_a_host_gives_no_orders_either() {
    let fleet = Fleet::new();
    let manifest = fleet.configure_plain(&["alpha"], 1, "servers:\n  - { server: alpha }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let token = fleet.json(&["hosts", "token", "evil"]);
    let state_dir = fleet.path().join("evil");
    let enrolled = Command::new(program("fleetwright-agent"))
        .args(["enroll", "--coordinator", text(&token["coordinator"]), "--token", text(&token["token"])])
        .args(["--ca-fingerprint", text(&token["ca_fingerprint"]), "--label", "zone=\u{1b}]52;c;ZXZpbA==\u{7}\nh9"])
        .arg("--state-dir")
        .arg(&state_dir)
        .status()
        .expect("it runs");
    // Whoever refuses such a label has nothing to show.
    if enrolled.success() {
        let mut agent = Command::new(program("fleetwright-agent"));
        let mut agent =
            agent.arg("run").arg("--state-dir").arg(&state_dir).stderr(Stdio::null()).spawn().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        let shown = loop {
            let shown = fleet.run(&["hosts", "list"]).expect_code(0).stdout;
            let said = shown.lines().any(|line| line.starts_with("evil") && !line.contains("not connected"));
            if said || Instant::now() > deadline {
                break shown;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        agent.kill().and_then(|()| agent.wait()).expect("it ends");
        assert_printable("hosts list", &shown, false);
        assert!(!shown.lines().any(|line| line.starts_with("h9")), "a label is no line of its own: {shown}");
    }
    fleet.run(&["down"]).expect_code(0);
}

/// A bridge of its own, with the server above.
struct Bridge {
    child: Child,
    at: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Bridge {
    fn start(address: &str, environment: &[(&str, &str)]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let script = folder.path().join("server.py");
        fs::write(&script, SERVER).expect("write");
        let at = TcpListener::bind(address).ok()?.local_addr().expect("address");
        let mut command = Command::new(program("fleetwright-agent"));
        command.args(["bridge", "--listen", &at.to_string(), "--", "python3"]).arg(script);
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the bridge starts");
        let bridge = Self { child, at, _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        while bridge.ask(&[]).is_none() {
            assert!(Instant::now() < deadline, "the bridge does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(bridge)
    }

    /// Sends a handshake with these headers over a connection of its own; gives the status and the head of the answer.
    fn ask(&self, headers: &[(&str, &str)]) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.at).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
        let mut head = format!(
            "POST /mcp HTTP/1.1\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.at));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut buffer) {
                Ok(read @ 1..) => answer.extend_from_slice(&buffer[..read]),
                Ok(_) | Err(_) => return None,
            }
        }
        let head = String::from_utf8_lossy(&answer).to_lowercase();
        Some((head.split(' ').nth(1)?.parse().ok()?, head))
    }

    fn status(&self, headers: &[(&str, &str)]) -> u16 {
        self.ask(headers).expect("an answer").0
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As many open files as this process may have.
fn many_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).expect("more files");
}

#[test]
fn whoever_only_sits_there_keeps_nobody_out_of_a_bridge() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start("127.0.0.1:0", &[]).expect("a bridge");
    many_files();
    let mut held = Vec::new();
    for n in 0..1_100 {
        let mut stream = TcpStream::connect(bridge.at).expect("connected");
        let slow: &[u8] = match n % 3 {
            0 => b"",
            1 => b"POST /mcp HTTP/1.1\r\nhost: 127",
            _ => &format!("POST /mcp HTTP/1.1\r\nhost: {}\r\ncontent-length: 100\r\n\r\n{{", bridge.at).into_bytes(),
        };
        let _ = stream.write_all(slow);
        held.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(bridge.status(&[]), 200, "those who ask are answered");
    }
    // Half of those who sit there were turned out, and the others have no descriptors that the bridge would lack.
    let files = fs::read_dir(format!("/proc/{}/fd", bridge.child.id())).expect("its files").count();
    assert!(files < 700, "{files} descriptors");
    drop(held);
}

#[test]
fn sessions_that_were_left_behind_make_room() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start("127.0.0.1:0", &[]).expect("a bridge");
    for n in 0..300 {
        assert_eq!(bridge.status(&[]), 200, "session {n}");
    }
}

#[test]
fn a_bridge_answers_to_its_own_names_only() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start("127.0.0.1:0", &[]).expect("a bridge");
    let port = bridge.at.port();
    let local = format!("http://localhost:{port}");
    assert_eq!(bridge.status(&[("origin", &local)]), 200);
    let foreign = [format!("evil.example:{port}"), "localhost:1234".to_owned(), "evil.example".to_owned()];
    for name in &foreign {
        assert_eq!(bridge.status(&[("origin", &format!("http://{name}"))]), 403, "{name}");
        assert_eq!(bridge.status(&[("host", name)]), 403, "{name}");
    }
    for origin in ["null", &format!("https://localhost:{port}")] {
        assert_eq!(bridge.status(&[("origin", origin)]), 403, "{origin}");
    }
    // Where this machine has no IPv6, nobody reaches a bridge by it.
    if let Some(bridge) = Bridge::start("[::1]:0", &[]) {
        assert_eq!(bridge.status(&[]), 200, "by its IPv6 address");
        assert_eq!(bridge.status(&[("origin", &format!("http://{}", bridge.at))]), 200);
        assert_eq!(bridge.status(&[("origin", "http://[::2]:80")]), 403);
    }
}

#[test]
fn the_scheme_of_a_token_may_be_in_any_case() {
    if !have(&[Tool::Python]) {
        return;
    }
    let bridge = Bridge::start("127.0.0.1:0", &[("FLEETWRIGHT_BRIDGE_TOKEN", TOKEN)]).expect("a bridge");
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(bridge.status(&[("authorization", &format!("{scheme} {TOKEN}"))]), 200, "{scheme}");
    }
    let (status, head) = bridge.ask(&[("authorization", "Bearer another-token-of-sixteen")]).expect("an answer");
    assert!(status == 401 && head.contains("www-authenticate: bearer"), "{head}");
    assert_eq!(bridge.status(&[]), 401);
}

#[test]
fn the_token_of_a_bridge_is_nowhere_that_its_server_can_read() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha }\n");
    let more = format!("  environment:\n    FLEETWRIGHT_BRIDGE_TOKEN: {TOKEN}\n");
    let header = format!("config: {{ headers: {{ Authorization: 'Bearer {TOKEN}' }} }} }}");
    let definition = hostile("alpha", &more).replace("timeout: 5s }", &format!("timeout: 5s, {header}"));
    fleet.write("config/servers/alpha.yaml", &definition);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let instance = fleet.servers().into_keys().next().expect("a server");
    let (_, host) = instance.split_once('@').expect("a host");
    let bridge = fleet.server_pid(host, "alpha").expect("the bridge runs");
    let threads = fs::read_dir(format!("/proc/{bridge}/task")).expect("threads").flatten();
    let children: String =
        threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default()).collect();
    let server: i64 = children.split_whitespace().next().expect("the server").parse().expect("a number");
    let environment = |pid: i64| {
        let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert!(!environment(bridge).contains(TOKEN), "the bridge's");
    assert!(environment(bridge).contains("FLEETWRIGHT_BRIDGE_TOKEN=blake3:"), "it has the hash");
    assert!(!environment(server).contains("FLEETWRIGHT_BRIDGE_TOKEN"), "the server's");
    let written = fleet.host(host).join("servers/alpha/current/environment.json");
    assert!(!fs::read_to_string(written).expect("it is there").contains(TOKEN));
    // A token that anybody would guess is refused before anything runs with it.
    fleet.write("config/servers/alpha.yaml", &definition.replace(TOKEN, "short"));
    let refused = fleet.deploy(&manifest, &[]);
    assert!(refused.code != 0 && refused.stderr.contains("fewer than 16 characters"), "{}", refused.stderr);
    fleet.run(&["down"]).expect_code(0);
}

#[test]
fn a_bridge_hides_its_memory_and_environment_from_its_own_user() {
    if !have(&[Tool::Python]) || !rustix::process::getuid().is_root() {
        return;
    }
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir().expect("folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let own = folder.path().join("fleetwright-agent");
    fs::copy(program("fleetwright-agent"), &own).expect("copied");
    let script = folder.path().join("server.py");
    fs::write(&script, SERVER).expect("write");
    let at = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let mut command = Command::new(&own);
    command.args(["bridge", "--listen", &at.to_string(), "--", "/usr/bin/env", "sleep", "100"]);
    command.env("FLEETWRIGHT_BRIDGE_TOKEN", TOKEN).uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).stderr(Stdio::null());
    let mut bridge = command.spawn().expect("the bridge starts");
    let environ = format!("/proc/{}/environ", bridge.id());
    let deadline = Instant::now() + PATIENCE;
    // The files of a process that hides belong to root (proc(5)).
    let hidden = loop {
        let hidden = fs::metadata(&environ).is_ok_and(|metadata| metadata.uid() == 0) && TcpStream::connect(at).is_ok();
        if hidden || Instant::now() > deadline {
            break hidden;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let seen = Command::new("cat").arg(&environ).uid(NOBODY).gid(NOBODY).stderr(Stdio::null()).output().expect("cat");
    bridge.kill().and_then(|()| bridge.wait()).expect("it ends");
    assert!(hidden && seen.stdout.is_empty(), "its environment is for root alone");
}
