//! A container engine of the test's own: dockerd in a network namespace without a way out, with its data in a folder of
//! its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::lab;

/// How long the engine has to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The image that others are built on.
pub const BASE: &str = "fleetwright-test-base:1";
/// Where the registry listens, in the engine's namespace.
pub const REGISTRY: &str = "127.0.0.1:5000";
/// The user of a closed registry, with the password, and that as bcrypt has it.
pub const REGISTRY_USER: (&str, &str) = ("deploy", "hunter2-and-more");
const REGISTRY_HASH: &str = "$2b$05$abcdefghijklmnopqrstuuBe0BhjfyKSH5tdk.7.wqOmcUQdxloDK";

/// An engine, gone with everything in it when it is dropped.
pub struct Engine {
    namespace: String,
    folder: tempfile::TempDir,
    daemon: Child,
    registry: Option<Child>,
    /// The settings of the client that publishes.
    client: Option<PathBuf>,
}

impl Engine {
    /// Starts an engine that has one image: a minimal Debian.
    #[expect(clippy::new_without_default, reason = "it starts processes")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("fwe{}x{}", std::process::id() % 100_000, COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("fw-engine-").tempdir_in("/tmp").expect("a folder");
        run(Command::new("ip").args(["netns", "add", &namespace]));
        run(Command::new("ip").args(["-n", &namespace, "link", "set", "lo", "up"]));
        let path = |name: &str| folder.path().join(name).display().to_string();
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let mut daemon = Command::new("nsenter");
        daemon.arg(format!("--net=/run/netns/{namespace}")).arg("dockerd");
        daemon.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        daemon.args(["--default-cgroupns-mode", "private", "-H", &format!("unix://{}", path("socket"))]);
        daemon.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let daemon = daemon.spawn().expect("dockerd starts");
        let engine = Self { namespace, folder, daemon, registry: None, client: None };
        let deadline = Instant::now() + START_TIMEOUT;
        while !engine.docker(&["info"]).status.success() {
            assert!(Instant::now() < deadline, "the engine does not answer:\n{}", engine.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        let import = format!("tar -C {} -c . | docker import - {BASE}", lab::base().display());
        run(engine.with_host(Command::new("sh").args(["-c", &import])));
        engine
    }

    /// The address of its interface.
    pub fn host(&self) -> String {
        format!("unix://{}", self.folder.path().join("socket").display())
    }

    /// The network namespace it works in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Starts a registry of images in the engine's namespace.
    pub fn start_registry(&mut self) {
        self.serve_registry("");
    }

    /// Starts one that lets only [`REGISTRY_USER`] in. What publishes to it does; the engine itself knows nothing of that.
    pub fn start_closed_registry(&mut self) {
        let (folder, passwords) = (self.folder.path().join("client"), self.folder.path().join("htpasswd"));
        let (user, password) = REGISTRY_USER;
        fs::write(&passwords, format!("{user}:{REGISTRY_HASH}\n")).expect("write");
        fs::create_dir(&folder).expect("a folder");
        let known = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let text = format!("{{ \"auths\": {{ \"{REGISTRY}\": {{ \"auth\": \"{known}\" }} }} }}");
        fs::write(folder.join("config.json"), text).expect("write");
        self.client = Some(folder);
        self.serve_registry(&format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", passwords.display()));
    }

    fn serve_registry(&mut self, more: &str) {
        let (data, file) = (self.folder.path().join("registry"), self.folder.path().join("registry.yml"));
        let text = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '{REGISTRY}' }}\n{more}",
            data.display()
        );
        fs::write(&file, text).expect("write");
        let log = fs::File::create(self.folder.path().join("registry.log")).expect("a log");
        let mut registry = Command::new("nsenter");
        registry.arg(format!("--net=/run/netns/{}", self.namespace)).args(["docker-registry", "serve"]).arg(file);
        registry.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.registry = Some(registry.spawn().expect("the registry starts"));
    }

    /// Makes an image from a folder with a `Dockerfile`, gives it to the registry and to nobody else; its digest.
    pub fn publish(&self, name: &str, folder: &Path) -> String {
        let tagged = format!("{REGISTRY}/{name}:test");
        let path = folder.display().to_string();
        let built = self.docker(&["build", "--quiet", "--tag", &tagged, &path]);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let deadline = Instant::now() + START_TIMEOUT;
        let pushed = loop {
            let pushed = self.docker(&["push", &tagged]);
            if pushed.status.success() {
                break String::from_utf8_lossy(&pushed.stdout).into_owned();
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&pushed.stderr));
            std::thread::sleep(Duration::from_millis(100));
        };
        let digest =
            pushed.split("digest: ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a digest").to_owned();
        let removed = self.docker(&["rmi", "--force", &tagged, &format!("{REGISTRY}/{name}@{digest}")]);
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        digest
    }

    /// Makes a command speak to this engine.
    pub fn with_host<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(client) = &self.client {
            command.env("DOCKER_CONFIG", client);
        }
        command.env("DOCKER_HOST", self.host()).env("DOCKER_BUILDKIT", "0").stdin(Stdio::null())
    }

    /// Runs a command of the client to its end.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        self.with_host(Command::new("docker").args(arguments)).output().expect("docker runs")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let running = self.docker(&["ps", "--quiet"]);
        for id in String::from_utf8_lossy(&running.stdout).split_whitespace() {
            self.docker(&["kill", id]);
        }
        if let Some(registry) = &mut self.registry {
            let _ = registry.kill();
            let _ = registry.wait();
        }
        if let Some(pid) = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap_or(0)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.daemon.wait();
        for mount in mounts_below(self.folder.path()) {
            let _ = Command::new("umount").args(["--lazy"]).arg(mount).output();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    paths.filter(|path| path.starts_with(folder)).collect()
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
