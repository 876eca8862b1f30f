//! A fleet of real processes in a folder of its own, with loopback addresses of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::Clock;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::servers::TestServer;

/// How long anything that a test waits for may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a command did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Asserts the exit code, showing everything when it is another.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}):\n{}\n{}", self.stdout, self.stderr))
    }
}

/// A fleet, stopped and removed when it is dropped.
pub struct Fleet {
    folder: tempfile::TempDir,
    first_address: String,
    /// What its commands are run by and what they find in their environment, where that is not as for this test.
    surroundings: Option<Surroundings>,
}

struct Surroundings {
    namespace: String,
    environment: Vec<(String, String)>,
}

/// A program of this workspace.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the path of this test");
    // Tests are one folder deeper than programs.
    let folders: Vec<&Path> = this.ancestors().skip(1).take(2).collect();
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    let path = found.unwrap_or_else(|| folders[0].join(name));
    assert!(path.is_file(), "{} is missing: run `cargo test --workspace`, which builds it", path.display());
    path
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    /// An empty folder, and addresses that no other fleet on this machine uses.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let block = COUNT.fetch_add(1, Ordering::Relaxed) % 15;
        let first_address = format!("127.{}.{}.{}", 10 + (pid / 250) % 240, pid % 250, 1 + block * 16);
        // What tests put beside the fleet is for its servers, too, which run as users of their own.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let folder =
            tempfile::Builder::new().prefix("fleetwright-test-").permissions(open).tempdir().expect("a folder");
        Self { folder, first_address, surroundings: None }
    }

    /// A fleet in a network namespace of this machine's, with variables of its own.
    pub fn within(namespace: &str, environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let surroundings = Surroundings { namespace: namespace.to_owned(), environment: environment.collect() };
        let mut fleet = Self::new();
        fleet.surroundings = Some(surroundings);
        fleet
    }

    fn program(&self, name: &str) -> Command {
        let Some(Surroundings { namespace, environment }) = &self.surroundings else {
            return Command::new(program(name));
        };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program(name));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The address of the n-th host, from 1.
    pub fn address(&self, host: u8) -> String {
        let (network, first) = self.first_address.rsplit_once('.').expect("an address");
        format!("{network}.{}", first.parse::<u8>().expect("a number") + host - 1)
    }

    /// The folder with the manifests.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.path().join(".fleetwright")
    }

    /// The state folder of a host.
    pub fn host(&self, host: &str) -> PathBuf {
        self.state_dir().join("hosts").join(host)
    }

    /// Writes a file of the configuration.
    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
        fs::write(&path, text).expect("write");
        path
    }

    /// Writes servers, an environment `test` and a manifest `test` with these lines in it; gives the manifest.
    pub fn configure(&self, servers: &[TestServer], manifest: &str) -> PathBuf {
        for server in servers {
            self.write(&format!("config/servers/{}.yaml", server.name), &server.definition());
        }
        self.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
        let text = format!(
            "apiVersion: fleetwright/v1\nname: test\nenvironment: test\n\
             rollout: {{ bake: 1s, min_healthy_time: 300ms, healthy_deadline: 20s, retry: {{ attempts: 1 }}, confirm_timeout: 20s, progress_deadline: 90s }}\n{manifest}"
        );
        self.write("manifests/test.yaml", &text)
    }

    /// Writes servers that only sleep, in this version, and a manifest with these lines; gives the manifest.
    pub fn configure_plain(&self, servers: &[&str], version: u32, manifest: &str) -> PathBuf {
        for server in servers {
            self.write(&format!("config/servers/{server}.yaml"), &crate::servers::plain(server, version, self.path()));
        }
        self.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
        let text = format!("apiVersion: fleetwright/v1\nname: test\nenvironment: test\n{manifest}");
        self.write("manifests/test.yaml", &text)
    }

    /// A `fleetwright` command in the fleet's folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("fleetwright");
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null()).env_remove("FLEETWRIGHT_STATE_DIR");
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        outcome(self.command(arguments).output().expect("fleetwright runs"))
    }

    /// `up --detach`.
    pub fn up(&self, manifest: &Path, more: &[&str]) -> Outcome {
        self.up_with(manifest, more, &[])
    }

    /// `up --detach`, with these variables for it and for what it starts.
    pub fn up_with(&self, manifest: &Path, more: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let manifest = manifest.to_string_lossy();
        let mut arguments = vec!["up", &manifest, "--detach", "--first-address", &self.first_address];
        arguments.extend(more);
        let output = self.command(&arguments).envs(variables.iter().copied()).output();
        outcome(output.expect("fleetwright runs"))
    }

    /// `deploy start --watch`.
    pub fn deploy(&self, manifest: &Path, more: &[&str]) -> Outcome {
        let manifest = manifest.to_string_lossy();
        let mut arguments = vec!["deploy", "start", &manifest, "--watch"];
        arguments.extend(more);
        self.run(&arguments)
    }

    /// The result of a command as JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["--output", "json"]].concat()).json()
    }

    /// The rows of `servers list`, by `SERVER@HOST`.
    #[track_caller]
    pub fn servers(&self) -> BTreeMap<String, Value> {
        let rows = self.json(&["servers", "list"]);
        let rows = rows.as_array().expect("rows").iter();
        rows.map(|row| (format!("{}@{}", text(&row["server"]), text(&row["host"])), row.clone())).collect()
    }

    /// The newest deployment, whole.
    #[track_caller]
    pub fn newest_deployment(&self) -> Value {
        let list = self.json(&["deploy", "list"]);
        let newest = list.as_array().and_then(|list| list.last()).expect("a deployment");
        self.json(&["deploy", "show", text(&newest["id"])])
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not so in time: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The process that holds a lock file.
    pub fn holder(&self, lock: &Path) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(lock).ok()?.trim().parse().ok()?)
    }

    /// kill -9 for the coordinator.
    pub fn kill_coordinator(&self) {
        kill(self.holder(&self.state_dir().join("coordinator.lock")).expect("a coordinator"));
    }

    /// kill -9 for the agent of a host; its servers go on.
    pub fn kill_agent(&self, host: &str) {
        kill(self.holder(&self.host(host).join("agent.lock")).expect("an agent"));
    }

    /// Starts the coordinator again.
    pub fn start_coordinator(&self) -> Child {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.state_dir().join("coordinator.log"))
            .expect("log");
        let mut command = self.command(&["coordinator"]);
        command.stdout(Stdio::null()).stderr(log).spawn().expect("the coordinator starts")
    }

    /// Starts the agent of a host again.
    pub fn start_agent(&self, host: &str) -> Child {
        let log =
            fs::OpenOptions::new().append(true).create(true).open(self.host(host).join("agent.log")).expect("log");
        let mut command = self.program("fleetwright-agent");
        command
            .arg("run")
            .arg("--state-dir")
            .arg(self.host(host))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.spawn().expect("the agent starts")
    }

    /// The log of an agent.
    pub fn agent_log(&self, host: &str) -> String {
        fs::read_to_string(self.host(host).join("agent.log")).unwrap_or_default()
    }

    /// What the supervisor of a server says.
    pub fn supervisor(&self, host: &str, server: &str) -> Option<Value> {
        let path = self.host(host).join("servers").join(server).join("supervisor.json");
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// The process of a server.
    pub fn server_pid(&self, host: &str, server: &str) -> Option<i64> {
        self.supervisor(host, server)?["server"]["pid"].as_i64()
    }

    /// Every file of the running release and the data of a server, with its content.
    pub fn files(&self, host: &str, server: &str) -> BTreeMap<String, Vec<u8>> {
        let folder = self.host(host).join("servers").join(server);
        let mut found = BTreeMap::new();
        collect(&folder.join("current").canonicalize().expect("a release"), &mut found);
        collect(&folder.join("data"), &mut found);
        found
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the coordinator's log:\n{}", tail(&self.state_dir().join("coordinator.log")));
            for host in fs::read_dir(self.state_dir().join("hosts")).into_iter().flatten().flatten() {
                eprintln!(
                    "the log of {}:\n{}",
                    host.file_name().to_string_lossy(),
                    tail(&host.path().join("agent.log"))
                );
            }
        }
        if self.state_dir().exists() {
            let _ = self.command(&["down", "--output", "quiet"]).output();
        }
        // Whatever a failed test left behind is ended by its number.
        for host in fs::read_dir(self.state_dir().join("hosts")).into_iter().flatten().flatten() {
            for server in fs::read_dir(host.path().join("servers")).into_iter().flatten().flatten() {
                let name = server.file_name().to_string_lossy().into_owned();
                if let Some(pid) = self.server_pid(&host.file_name().to_string_lossy(), &name) {
                    let _ = i32::try_from(pid)
                        .ok()
                        .and_then(Pid::from_raw)
                        .map(|pid| kill_process_group(pid, Signal::KILL));
                }
            }
        }
    }
}

/// The clock of this machine.
pub fn clock() -> Clock {
    #[expect(clippy::disallowed_methods, reason = "tests judge certificates by the real time")]
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Clock::new(move || Timestamp::from_unix_ms(i64::try_from(now().as_millis()).expect("a time")))
}

/// The text in a JSON value.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn outcome(output: Output) -> Outcome {
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).expect("kill");
    // Gone, or a zombie that its parent has yet to collect: in both cases it does nothing more.
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.insert(path.to_string_lossy().into_owned(), fs::read(&path).unwrap_or_default());
        }
    }
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
