//! Servers that use up what their host has: its disk, or the memory of the agent that looks at them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fleetwright_tests::fleet::{Fleet, program};
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

/// The disk of a host: more than staging asks for.
const DISK_MIB: u64 = 420;
/// Data of the release before, larger than the reserve.
const DATA_MIB: u64 = 40;

/// A small disk of its own, in memory; unmounted when it is dropped, and what is left of the folder it is in removed.
struct SmallDisk(PathBuf, PathBuf);

impl SmallDisk {
    /// One of so many files, or of as many as there is memory for.
    fn mount(at: PathBuf, within: &Path, files: Option<u32>) -> Self {
        fs::create_dir_all(&at).expect("a folder");
        let files = files.map_or_else(String::new, |files| format!(",nr_inodes={files}"));
        let size = format!("size={DISK_MIB}m{files}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status();
        assert!(mounted.expect("mount runs").success());
        Self(at, within.to_owned())
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).expect("statvfs");
        stat.f_bavail * stat.f_frsize
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn free_files(&self) -> u64 {
        rustix::fs::statvfs(&self.0).expect("statvfs").f_favail
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("remove");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps just that.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir_all(&self.1);
    }
}

/// A server with data. From version 2 on it fills its disk, and goes on trying; it is healthy as long as the file of
/// that is not there.
fn filler(version: u32) -> String {
    let fills = if version == 1 { "exec sleep 100000" } else { "while :; do cat /dev/zero >> fill; sleep 0.02; done" };
    format!(
        "apiVersion: fleetwright/v1\nname: filler\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\"]\n  stop_timeout: 2s\n\
         files:\n  - path: run.sh\n    content: |\n      echo version {version}\n      test -e kept || head -c {DATA_MIB}M /dev/urandom > kept\n      {fills} 2>/dev/null\n\
         health_checks:\n  - {{ name: room, type: command, interval: 1s, severity: critical, start_grace: 1s, config: {{ command: [sh, -c, \"! test -e {{{{ server.data_dir }}}}/fill\"] }} }}\n\
         snapshot: {{ data: true }}\n"
    )
}

/// The fleet goes before its disk.
struct FullHost {
    fleet: Fleet,
    disk: SmallDisk,
    manifest: PathBuf,
}

/// The same server, which makes files instead of filling them.
fn maker(version: u32) -> String {
    filler(version).replace(
        "while :; do cat /dev/zero >> fill; sleep 0.02; done",
        "touch fill; n=0; mkdir many; while :; do : > many/$n && n=$((n + 1)) || sleep 0.02; done",
    )
}

/// A host on a small disk, with a quiet server and one that will fill it.
fn host(rollout: &str) -> FullHost {
    host_with(rollout, None)
}

fn host_with(rollout: &str, files: Option<u32>) -> FullHost {
    let fleet = Fleet::new();
    let disk = SmallDisk::mount(fleet.host("host-1"), fleet.path(), files);
    let lines = format!("servers:\n  - {{ server: quiet }}\n  - {{ server: filler }}\nrollout: {{ {rollout} }}\n");
    let manifest = fleet.configure_plain(&["quiet"], 1, &lines);
    fleet.write("config/servers/filler.yaml", &filler(1));
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    fleet.write("config/servers/filler.yaml", &filler(2));
    FullHost { fleet, disk, manifest }
}

impl FullHost {
    fn data(&self) -> PathBuf {
        self.fleet.host("host-1").join("servers/filler/data")
    }

    fn kept(&self) -> Option<u64> {
        Some(fs::metadata(self.data().join("kept")).ok()?.len())
    }

    fn current(&self) -> Option<PathBuf> {
        fs::read_link(self.fleet.host("host-1").join("servers/filler/current")).ok()
    }

    fn agent(&self) -> Option<i32> {
        let pid = self.fleet.holder(&self.fleet.host("host-1").join("agent.lock"))?.as_raw_nonzero().get();
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    fn wait_until_put_back(&self, before: &Path) {
        self.fleet.wait_until("what ran before runs again", || {
            self.current().as_deref() == Some(before)
                && !self.data().join("fill").exists()
                && self.fleet.server_pid("host-1", "filler").is_some()
        });
        assert_eq!(self.kept(), Some(DATA_MIB << 20), "its data is what it was");
    }
}

const ROLLOUT: &str = "min_healthy_time: 3s, bake: 0s, healthy_deadline: 8s, retry: { attempts: 1 }, confirm_timeout: 30s, progress_deadline: 90s";

#[test]
fn a_release_that_fills_the_disk_is_put_back_and_the_agent_lives() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let host = host(ROLLOUT);
    let (agent, before) = (host.agent().expect("an agent"), host.current().expect("a release"));
    let deployed = host.fleet.deploy(&host.manifest, &[]);
    assert_eq!(deployed.code, 4, "rolled back\n{}\n{}", deployed.stdout, deployed.stderr);
    host.wait_until_put_back(&before);
    assert_eq!(host.agent(), Some(agent), "the same agent");
    host.fleet.wait_until("both servers are healthy", || {
        let servers = host.fleet.servers();
        ["quiet@host-1", "filler@host-1"].iter().all(|name| servers[*name]["health"] == "healthy")
    });
}

#[test]
fn a_release_that_uses_up_the_files_of_the_disk_is_put_back_and_the_agent_lives() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let host = host_with(ROLLOUT, Some(20_000));
    host.fleet.write("config/servers/filler.yaml", &maker(2));
    let (agent, before) = (host.agent().expect("an agent"), host.current().expect("a release"));
    let least = std::cell::Cell::new(u64::MAX);
    host.fleet.run(&["deploy", "start", &host.manifest.to_string_lossy()]).expect_code(0);
    host.fleet.wait_until("no file can be made any more", || {
        least.set(least.get().min(host.disk.free_files()));
        least.get() == 0
    });
    host.wait_until_put_back(&before);
    assert!(!host.data().join("many").exists());
    assert_eq!(host.agent(), Some(agent), "the same agent");
    host.fleet.wait_until("both servers are healthy", || {
        let servers = host.fleet.servers();
        ["quiet@host-1", "filler@host-1"].iter().all(|name| servers[*name]["health"] == "healthy")
    });
}

/// The server that fills the disk is none of those that are deployed: it is stopped, since another one needs the room to be
/// put back, and is started again when there is room.
#[test]
fn a_server_that_fills_the_disk_is_stopped_while_another_is_put_back_and_is_started_when_there_is_room() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let host = host(ROLLOUT);
    let lines = |rollout: &str| {
        format!("servers:\n  - {{ server: quiet }}\n  - {{ server: filler }}\nrollout: {{ {rollout} }}\n")
    };
    // It fills the disk when it is told to.
    let (go, fill) = (host.data().join("go"), host.data().join("large"));
    let script = "while :; do test -e go && cat /dev/zero >> large; sleep 0.05; done";
    let waiting = filler(1).replace("exec sleep 100000", script);
    host.fleet.write("config/servers/filler.yaml", &waiting);
    host.fleet.configure_plain(&["quiet"], 1, &lines(ROLLOUT));
    host.fleet.deploy(&host.manifest, &[]).expect_code(0);
    // The next release of the quiet one is never healthy; by the time it is given up, the disk is full.
    let quiet = fs::read_to_string(host.fleet.path().join("config/servers/quiet.yaml")).expect("a definition");
    let bad = quiet.replace("[\"true\"]", "[\"false\"]");
    assert_ne!(bad, quiet);
    host.fleet.write("config/servers/quiet.yaml", &bad);
    host.fleet.run(&["deploy", "start", &host.manifest.to_string_lossy()]).expect_code(0);
    let current = || fs::read_link(host.fleet.host("host-1").join("servers/quiet/current")).ok();
    let before = current();
    host.fleet.wait_until("the new release runs", || current() != before);
    fs::write(&go, "").expect("write");
    host.fleet.wait_until("what ran before runs again", || current() == before);
    host.fleet.wait_until("the other one is stopped, and says why", || {
        let row = host.fleet.servers()["filler@host-1"].clone();
        row["health"] == "unhealthy" && row["report"].to_string().contains("it fills the disk")
    });
    fs::remove_file(&go).expect("remove");
    fs::remove_file(&fill).expect("remove");
    host.fleet.wait_until("both are healthy", || {
        let servers = host.fleet.servers();
        ["quiet@host-1", "filler@host-1"].iter().all(|name| servers[*name]["health"] == "healthy")
    });
    assert!(host.fleet.server_pid("host-1", "filler").is_some());
}

/// An agent that has never worked in its state folder cannot begin without room; it says what it needs, and waits.
#[test]
fn an_agent_whose_disk_is_full_from_the_beginning_says_what_it_needs_and_waits() {
    if !have(&[Tool::Mount]) {
        return;
    }
    for files in [None, Some(5_000)] {
        let host = host_with(ROLLOUT, files);
        host.fleet.kill_agent("host-1");
        for name in ["journal.db", "journal.db-wal", "journal.db-shm", "agent.lock", "reserve", "reserved-files"] {
            let path = host.fleet.host("host-1").join(name);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        let fill = host.disk.0.join("files");
        if files.is_some() {
            fs::create_dir(&fill).expect("a folder");
            let made = (0..).take_while(|n| fs::write(fill.join(n.to_string()), "").is_ok()).count();
            assert!(made > 100);
        } else {
            host.disk.fill();
        }
        // Its log is on another disk, or it could not say anything.
        let log = host.fleet.path().join("first.log");
        let mut command = Command::new(program("fleetwright-agent"));
        command.args(["run", "--state-dir"]).arg(host.fleet.host("host-1")).stdin(Stdio::null());
        let mut agent = command.stderr(fs::File::create(&log).expect("a file")).spawn().expect("the agent starts");
        host.fleet.wait_until("it says what it needs", || {
            fs::read_to_string(&log).is_ok_and(|said| said.contains("needs 3 MiB and 3 files"))
        });
        assert!(agent.try_wait().expect("asked").is_none(), "it waits");
        if files.is_some() {
            fs::remove_dir_all(&fill).expect("removed")
        } else {
            host.disk.make_room()
        }
        host.fleet.wait_until("the host is back", || host.fleet.json(&["status"])["status"]["hosts_connected"] == 1);
        let FullHost { disk, fleet, .. } = host;
        drop(fleet);
        drop(disk);
        agent.wait().expect("ended by `down`");
    }
}

/// What the first start of an agent on a full disk has used, the second one has not.
#[test]
fn an_agent_starts_again_and_again_on_a_full_disk_without_any_reserve() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let host = host(ROLLOUT);
    let reserve = host.fleet.host("host-1").join("reserve");
    let mut agents = Vec::new();
    for _ in 0..3 {
        host.fleet.kill_agent("host-1");
        let _ = fs::remove_file(&reserve);
        host.disk.fill();
        host.fleet.wait_until("the host is gone", || host.fleet.json(&["status"])["status"]["hosts_connected"] == 0);
        agents.push(host.fleet.start_agent("host-1"));
        host.fleet.wait_until("the host is back", || host.fleet.json(&["status"])["status"]["hosts_connected"] == 1);
        assert!(!reserve.exists() && host.disk.free() == 0);
    }
    assert!(!host.fleet.host("host-1").join("journal.db-shm").exists(), "its index takes no room");
    host.disk.make_room();
    let FullHost { disk, fleet, .. } = host;
    drop(fleet);
    drop(disk);
    for mut agent in agents {
        agent.wait().expect("ended");
    }
}

#[test]
fn a_host_whose_disk_is_full_at_its_deadline_puts_itself_back_without_the_coordinator() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let host = host(&ROLLOUT.replace("confirm_timeout: 30s", "confirm_timeout: 10s"));
    let (agent, before) = (host.agent().expect("an agent"), host.current().expect("a release"));
    host.fleet.run(&["deploy", "start", &host.manifest.to_string_lossy()]).expect_code(0);
    host.fleet.wait_until("the new release has filled the disk", || {
        host.current().as_deref() != Some(&before) && host.data().join("fill").exists() && host.disk.free() < 4096
    });
    host.fleet.kill_coordinator();
    host.wait_until_put_back(&before);
    assert_eq!(host.agent(), Some(agent), "the same agent");
    let mut coordinator = host.fleet.start_coordinator();
    host.fleet.wait_until("the host is back", || host.fleet.json(&["status"])["status"]["hosts_connected"] == 1);
    host.fleet.wait_until("the host has told it", || {
        let servers = host.fleet.servers();
        servers.get("filler@host-1").is_some_and(|row| row["health"] == "healthy")
    });
    let FullHost { disk, fleet, .. } = host;
    drop(fleet);
    drop(disk);
    coordinator.wait().expect("ended by `down`");
}

#[test]
fn an_agent_starts_on_a_full_disk_and_goes_on_when_there_is_room() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let host = host(ROLLOUT);
    host.fleet.write("config/servers/filler.yaml", &filler(1));
    host.disk.fill();
    host.fleet.kill_agent("host-1");
    host.fleet.wait_until("the host is gone", || host.fleet.json(&["status"])["status"]["hosts_connected"] == 0);
    let mut agent = host.fleet.start_agent("host-1");
    host.fleet.wait_until("the host is back", || host.fleet.json(&["status"])["status"]["hosts_connected"] == 1);
    assert_eq!(host.agent(), i32::try_from(agent.id()).ok(), "its number is in its lock");
    host.fleet
        .wait_until("its servers are healthy", || host.fleet.servers().values().all(|row| row["health"] == "healthy"));
    host.disk.make_room();
    let lines = format!("servers:\n  - {{ server: quiet }}\n  - {{ server: filler }}\nrollout: {{ {ROLLOUT} }}\n");
    host.fleet.configure_plain(&["quiet"], 2, &lines);
    host.fleet.deploy(&host.manifest, &[]).expect_code(0);
    let FullHost { disk, fleet, .. } = host;
    drop(fleet);
    drop(disk);
    agent.wait().expect("ended by `down`");
}

/// An MCP server over HTTP, in Python without packages. It behaves until there is a file `bad` in its folder; then it
/// answers without end, in the way that its second argument names.
const ANSWERS: &str = r#"
import http.server, json, os, sys
address, port, way, bad = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
BLOCK = b"x" * 65536
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments):
        pass
    def begin(self, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
    def pour(self, kind, first, block, total):
        self.begin(kind)
        try:
            self.wfile.write(first)
            for _ in range(total // len(block)):
                self.wfile.write(block)
        except OSError:
            pass
    def do_GET(self):
        if self.path == "/endless" and os.path.exists(bad):
            return self.pour("text/plain", b"", BLOCK, 500 << 20)
        self.send_response(200 if self.path == "/endless" else 405)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"wanted")
    do_DELETE = do_GET
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "id" not in message:
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        now, method = os.path.exists(bad) and way, message["method"]
        head = '{"jsonrpc":"2.0","id":%s,"result":' % json.dumps(message["id"])
        error = None
        if method == "initialize":
            name = "n" * (10 << 20) if now == "named" else "answers"
            result = dict(protocolVersion=message["params"]["protocolVersion"], capabilities=dict(tools={}),
                          serverInfo=dict(name=name, version="1"))
        elif method == "tools/list":
            if now == "huge":
                return self.pour("application/json", (head + '{"tools":[{"name":"').encode(), BLOCK, 500 << 20)
            if now == "event":
                return self.pour("text/event-stream", b"data: ", BLOCK, 500 << 20)
            if now == "events":
                event = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%s"}}\n\n'
                return self.pour("text/event-stream", b"", (event % (b"x" * 900)) * 64, 500 << 20)
            tool = dict(name="tool", description="d" * (20000 if now == "pages" else 1), inputSchema=dict(type="object"))
            result = dict(tools=[tool] * (40 if now == "pages" else 1))
            if now == "pages":
                result["nextCursor"] = "again"
        else:
            error = dict(code=-32601, message="no such method")
        answer = dict(jsonrpc="2.0", id=message["id"], **(dict(error=error) if error else dict(result=result)))
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass
http.server.ThreadingHTTPServer((address, port), Handler).serve_forever()
"#;

/// A server that answers in one of those ways once the file is there, with these checks.
fn answers(name: &str, port: u16, way: &str, bad: &Path, checks: &str) -> String {
    let program: String = ANSWERS.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "apiVersion: fleetwright/v1\nname: {name}\nrun:\n  command: [python3, \"{{{{ server.config_dir }}}}/server.py\", \"{{{{ host.address }}}}\", \"{port}\", {way}, {bad}]\n  \
         transport: http\n  port: {port}\n  stop_timeout: 2s\nfiles:\n  - path: server.py\n    content: |\n{program}\
         health_checks:\n{checks}",
        bad = bad.display(),
    )
}

/// What the agent uses now, and the most it has used since that was forgotten, in KiB.
fn memory(pid: i32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent lives");
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    };
    (value("VmRSS:"), value("VmHWM:"))
}

/// Runs servers with these ways and checks beside a quiet one, lets all of them answer without end, and expects each to
/// be unhealthy with its words, and the agent as it was.
fn endless_answers_are_told_and_harm_nobody(ways: &[(&str, &str, &str)]) {
    let fleet = Fleet::new();
    let bad = fleet.path().join("bad");
    let mut lines = "servers:\n  - { server: quiet }\n".to_owned();
    for (n, (way, checks, _)) in ways.iter().enumerate() {
        let port = 9310 + u16::try_from(n).expect("a number");
        let checks = checks.replace("BAD", &bad.display().to_string()).replace("PORT", &port.to_string());
        fleet.write(&format!("config/servers/{way}.yaml"), &answers(way, port, way, &bad, &checks));
        lines += &format!("  - {{ server: {way} }}\n");
    }
    let manifest = fleet.configure(&[TestServer::works("quiet", 9300, "one")], &lines);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let agent = fleet.holder(&fleet.host("host-1").join("agent.lock")).expect("an agent").as_raw_nonzero().get();
    let connections = |fleet: &Fleet| fleet.agent_log("host-1").matches(" connected coordinator").count();
    let (calm, before) = (memory(agent).0, connections(&fleet));
    let inode = fs::metadata(format!("/proc/{agent}")).expect("the agent").ino();
    fs::write(&bad, "").expect("write");
    for (way, _, words) in ways {
        fleet.wait_until(&format!("`{way}` is unhealthy"), || {
            let row: Value = fleet.servers()[&format!("{way}@host-1")].clone();
            row["health"] == "unhealthy" && row["report"].to_string().contains(words)
        });
    }
    // It goes on for some rounds of checks: what is passed once must not add up.
    let rounds = std::time::Instant::now();
    fleet.wait_until("ten seconds of it", || rounds.elapsed().as_secs() >= 10);
    let (_, peak) = memory(agent);
    eprintln!("the agent used {calm} KiB before, and {peak} KiB at most");
    assert!(peak < calm * 2, "{calm} KiB before, {peak} KiB at most");
    assert_eq!(connections(&fleet), before, "its connection stays");
    assert!(!fleet.agent_log("host-1").contains("connection lost"), "{}", fleet.agent_log("host-1"));
    assert_eq!(fs::metadata(format!("/proc/{agent}")).expect("the agent").ino(), inode, "the same agent");
    assert_eq!(fleet.servers()["quiet@host-1"]["health"], "healthy");
    fs::remove_file(&bad).expect("remove");
    fleet.wait_until("all are healthy again", || fleet.servers().values().all(|row| row["health"] == "healthy"));
}

#[test]
fn mcp_servers_that_answer_without_end_are_unhealthy_and_take_no_memory() {
    const CHECK: &str = "  - { name: tools, type: mcp, interval: 1s, timeout: 10s }\n";
    if !have(&[Tool::Python]) {
        return;
    }
    endless_answers_are_told_and_harm_nobody(&[
        ("pages", CHECK, "lists"),
        ("huge", CHECK, "answers with more than 1 MiB"),
        ("named", CHECK, "answers with more than 1 MiB"),
        ("event", CHECK, "sends an event of more than 1 MiB"),
        ("events", CHECK, "sends events of more than 4 MiB"),
    ]);
}

#[test]
fn checks_whose_output_has_no_end_fail_in_time_and_take_no_memory() {
    if !have(&[Tool::Python]) {
        return;
    }
    endless_answers_are_told_and_harm_nobody(&[
        (
            "prints",
            "  - { name: prints, type: command, interval: 1s, timeout: 2s, config: { command: [sh, -c, \"test -e BAD && exec yes; true\"] } }\n",
            "no answer within 2s",
        ),
        (
            "measures",
            "  - { name: measures, type: custom, interval: 1s, timeout: 2s, config: { command: [sh, -c, \"test -e BAD && exec yes 'x | a=1'; echo fine\"] } }\n",
            "no answer within 2s",
        ),
        (
            "pours",
            "  - { name: pours, type: http, interval: 1s, timeout: 10s, config: { url: \"http://{{ host.address }}:PORT/endless\", contains: wanted } }\n",
            "only its first 1 MiB are looked at",
        ),
    ]);
}
