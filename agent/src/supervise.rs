//! The supervisor of one server: a small process of its own that starts the server in its own process group,
//! starts it again as its policy says, keeps its output, and outlives the agent.
//!
//! It holds a lock for as long as it lives, so a server never runs twice. SIGTERM stops the server and ends it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleetwright_deploy::release::{Endpoint, Release, Resources, RestartPolicy, Transport};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, geteuid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock;
use crate::confine::{self, Profile};
use crate::identity::AgentIdentity;
use crate::install;
use crate::layout::ServerLayout;
use crate::output::OWN_LINE;
use crate::process::{self, OwnChildren, Process, kill_group};
use crate::runtime::cgroup::Cgroup;
use crate::stage;

/// The first pause before a server is started again; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A server that ran for this long starts over with the first pause.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// How large a log grows before it is put aside, in bytes, and how many are kept.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
const LOGS_KEPT: u32 = 3;
/// How long it is tried to end what a server has left behind, before it is started again or said to be stopped.
const REST_PATIENCE: Duration = Duration::from_secs(2);
/// How long the lock is asked for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What a supervisor says about itself and its server, in a file that is replaced whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The supervisor's process.
    pub(crate) supervisor: Process,
    /// The server's process, which leads its process group; nothing while it does not run.
    pub(crate) server: Option<Process>,
    /// How often the server ended.
    pub(crate) exits: u32,
    /// How it ended last.
    pub(crate) last_exit: Option<String>,
    /// Whether it will not be started again.
    pub(crate) given_up: bool,
}

/// Reads what a supervisor said last.
pub(crate) fn read_status(server: &ServerLayout) -> Option<Status> {
    serde_json::from_slice(&fs::read(server.status()).ok()?).ok()
}

/// Supervises the current release of the server in this folder, until it is told to stop or gives up.
pub async fn supervise(folder: &Path) -> Result<()> {
    let layout = ServerLayout::at(folder);
    let _lock = lock(&layout)?;
    if let Some(orphan) = read_status(&layout).and_then(|status| status.server).filter(|server| server.is_alive()) {
        kill_group(orphan.pid, Signal::KILL);
    }
    // Whatever its servers leave behind comes to this process, and ends with it.
    process::adopt_orphans();
    let own = OwnChildren::default();
    let collecting = tokio::spawn(process::collect_orphans(own.clone()));
    let release = stage::load(&layout.current_release())
        .with_context(|| format!("{} holds no release", layout.current().display()))?;
    let pid = i32::try_from(std::process::id())?;
    let supervisor = Process::find(pid).context("this process is not in /proc")?;
    let status = Status { supervisor, server: None, exits: 0, last_exit: None, given_up: false };
    let mut supervisor = Supervisor { log: Log::open(&layout)?, layout, release, status, own };
    supervisor.kill_rest();
    let ended = supervisor.run().await;
    collecting.abort();
    ended
}

/// The variable by which whatever a server has started is known, wherever it has gone.
const MARK_VARIABLE: &str = "FLEETWRIGHT_SERVER_FOLDER";

/// What is in the environment of everything that a server has started.
pub(crate) fn mark_of(server: &ServerLayout) -> String {
    format!("{MARK_VARIABLE}={}", server.folder().display())
}

fn lock(layout: &ServerLayout) -> Result<File> {
    let path = layout.supervisor_lock();
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
    if !take_lock(&file) {
        bail!("{} is locked: another supervisor runs this server", path.display());
    }
    Ok(file)
}

/// Takes a lock that belongs to one process at a time. Whoever looks whether somebody holds it takes it for a
/// moment, so one refusal proves nothing: it is asked for again for a while.
pub(crate) fn take_lock(file: &File) -> bool {
    let deadline = Instant::now() + LOCK_PATIENCE;
    while flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

struct Supervisor {
    layout: ServerLayout,
    release: Release,
    status: Status,
    log: Log,
    own: OwnChildren,
}

impl Supervisor {
    async fn run(mut self) -> Result<()> {
        let mut stop = signal(SignalKind::terminate())?;
        let mut pause = BACKOFF_MIN;
        loop {
            let started = Instant::now();
            let ended = match self.start() {
                Err(error) => format!("could not be started: {error:#}"),
                Ok(mut child) => {
                    let mut output = child.stdout.take().zip(child.stderr.take());
                    let exit = tokio::select! {
                        exit = follow(&mut child, &mut output, &mut self.log) => exit?,
                        _ = stop.recv() => return self.stop(child, output).await,
                    };
                    // Whatever the server left behind would hold its port.
                    if let Some(server) = self.status.server {
                        self.own.remove(Some(server.pid));
                        kill_group(server.pid, Signal::KILL);
                    }
                    self.kill_rest();
                    if !self.wants_restart(exit) {
                        self.ended(&words(exit), true)?;
                        self.log.line(&format!("ended with {}; not started again", words(exit)));
                        return Ok(());
                    }
                    words(exit)
                }
            };
            self.ended(&ended, false)?;
            self.log.line(&format!("ended with {ended}; starting again in {pause:?}"));
            if started.elapsed() > STEADY_AFTER {
                pause = BACKOFF_MIN;
            }
            tokio::select! {
                () = sleep_until(Instant::now() + pause) => {}
                _ = stop.recv() => return self.save(),
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    fn start(&mut self) -> Result<Child> {
        let release = self.layout.current_release();
        let mut command = self.command(&release.folder().canonicalize()?)?;
        let environment: std::collections::BTreeMap<String, String> =
            serde_json::from_slice(&fs::read(release.environment())?)?;
        let child = command
            .envs(confine::for_program(environment))
            .env(MARK_VARIABLE, self.layout.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| match self.release.run.command.first() {
                Some(program) => format!("`{program}`"),
                None => "the package's program".to_owned(),
            })?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.own.add(pid);
        self.status.server = pid.and_then(Process::find);
        self.save()?;
        self.log.line("started");
        self.limit();
        Ok(child)
    }

    /// Ends what has left the server's process group: what is in its cgroup, what has come to this process, and what is
    /// known by its environment.
    fn kill_rest(&mut self) {
        if let Ok(group) = Cgroup::of(&self.layout) {
            group.kill();
        }
        process::kill_descendants();
        if let Err((pid, name)) = process::end_marked(&mark_of(&self.layout), REST_PATIENCE) {
            self.log
                .line(&format!("`{name}` (process {pid}), which it has started, does not end although it was killed"));
        }
    }

    /// Puts the server into a cgroup of its own, where the host allows it: it counts against its limits, and holds what
    /// leaves the server's process group.
    fn limit(&mut self) {
        let (resources, Some(server)) = (&self.release.run.resources, self.status.server) else { return };
        let has_limits = *resources != Resources::default();
        if !has_limits && !geteuid().is_root() {
            return;
        }
        match Cgroup::of(&self.layout).and_then(|group| group.limit(resources).and_then(|()| group.take(server.pid))) {
            Err(error) if has_limits => self.log.line(&format!("its limits cannot be set on this host: {error}")),
            Ok(()) | Err(_) => {}
        }
    }

    fn command(&self, release: &Path) -> Result<Command> {
        let agent = confine::own_program();
        let words = command_of(&self.layout, &self.release, release, &agent);
        let path = search_path(release, &inherited_path());
        let program = words.first().context("the command is empty")?;
        // What is missing is told as such, and not by a process that could not become it.
        confine::find(program, &path).with_context(|| format!("`{program}`"))?;
        let image = self.release.package.image().is_some();
        let _ = fs::remove_file(self.layout.confinement());
        let mut command = if image {
            // What the image may do is a matter of its container.
            let mut command = Command::new(program);
            command.args(&words[1..]).env_clear().env("PATH", &path).current_dir(self.layout.data());
            command
        } else {
            // What the last run has left is nothing to this one.
            if let Err(failure) = stage::remove_folder(&self.layout.temporary()) {
                tracing::warn!(%failure, "the temporary files of the last run could not be removed");
            }
            let profile = Profile::server(&self.layout, &self.release)?;
            profile.command(&words, &path, Some(&self.layout.confinement()))
        };
        command.env("HOME", self.layout.data()).envs(confine::inherited(&confine::INHERITED));
        if image {
            command.envs(confine::inherited(&["DOCKER_HOST"]));
        }
        Ok(command)
    }

    fn wants_restart(&self, exit: ExitStatus) -> bool {
        match self.release.run.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !exit.success(),
            RestartPolicy::Never => false,
        }
    }

    fn ended(&mut self, how: &str, given_up: bool) -> Result<()> {
        self.status.server = None;
        self.status.exits += 1;
        self.status.last_exit = Some(how.to_owned());
        self.status.given_up = given_up;
        self.save()
    }

    /// SIGTERM to the whole group, and to what has left it; SIGKILL for what is still there after the server's time to
    /// stop. What it says on its way out is written down, too.
    async fn stop(mut self, mut child: Child, mut output: Output) -> Result<()> {
        self.log.line("stopping");
        if let Some(server) = self.status.server {
            kill_group(server.pid, Signal::TERM);
            process::signal_marked_but(&mark_of(&self.layout), server.pid, Signal::TERM);
            let patience = self.release.run.stop_timeout.into();
            let _ = timeout(patience, follow(&mut child, &mut output, &mut self.log)).await;
            kill_group(server.pid, Signal::KILL);
        }
        child.wait().await?;
        self.own.remove(self.status.server.map(|server| server.pid));
        self.kill_rest();
        self.status.server = None;
        self.log.line("stopped");
        self.save()
    }

    fn save(&self) -> Result<()> {
        let path = self.layout.status();
        let fresh = path.with_extension("json.new");
        fs::write(&fresh, serde_json::to_vec(&self.status)?)?;
        Ok(fs::rename(&fresh, &path)?)
    }
}

/// What is started: the server itself or its container, or the bridge that starts either and speaks HTTP for it.
pub(crate) fn command_of(server: &ServerLayout, release: &Release, folder: &Path, agent: &Path) -> Vec<String> {
    let run = &release.run;
    let agent = agent.display().to_string();
    let own = if release.package.image().is_some() {
        let (server, folder) = (server.folder().display().to_string(), folder.display().to_string());
        let words = [&agent, "contain", "--server-dir", &server, "--release-dir", &folder];
        words.map(str::to_owned).to_vec()
    } else if run.transport == Transport::Stdio && run.endpoint.is_some() {
        install::programs::command(release, folder)
    } else {
        let command = install::programs::command(release, folder);
        let program = command.first().map(|name| program(name, folder).display().to_string());
        program.into_iter().chain(command.iter().skip(1).cloned()).collect()
    };
    match (&run.endpoint, run.transport) {
        (Some(endpoint), Transport::Stdio) => {
            let words = [&agent, "bridge", "--listen", &endpoint.authority(), "--path", &endpoint.path];
            let own_flags =
                own_names(server, release, endpoint).into_iter().flat_map(|name| ["--host".to_owned(), name]);
            let words = words.into_iter().map(str::to_owned).chain(run.bridge.arguments()).chain(own_flags);
            words.chain(["--".to_owned()]).chain(own).collect()
        }
        _ => own,
    }
}

/// The names by which clients reach a bridge whatever its definition says: those of its host and of its server, for which
/// every instance answers, and its address. Names that a definition has as well are said once.
fn own_names(server: &ServerLayout, release: &Release, endpoint: &Endpoint) -> Vec<String> {
    let host = AgentIdentity::load(&server.identity()).ok().flatten().map(|identity| identity.host.to_string());
    let address = endpoint.address.to_ascii_lowercase();
    let address = match address.parse::<IpAddr>() {
        Ok(any) if any.is_unspecified() => None,
        Ok(IpAddr::V6(address)) => Some(format!("[{address}]")),
        Ok(IpAddr::V4(_)) | Err(_) => Some(address),
    };
    let mut names: Vec<String> = Vec::new();
    for name in [host, address, Some(release.server.to_string())].into_iter().flatten() {
        if !name.is_empty() && !names.contains(&name) && !release.run.bridge.hosts.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Where programs of the host are looked for.
pub(crate) fn inherited_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned())
}

/// Where programs are looked for: in the release's own package first.
pub(crate) fn search_path(release: &Path, inherited: &str) -> String {
    format!("{0}/app/bin:{0}/app/node_modules/.bin:{0}/app:{inherited}", release.display())
}

/// A program of the release's own package comes before one of the host.
fn program(name: &str, release: &Path) -> PathBuf {
    if name.contains('/') {
        return PathBuf::from(name);
    }
    let own = ["app/bin", "app/node_modules/.bin", "app"].map(|folder| release.join(folder).join(name));
    let hosts = || {
        std::env::split_paths(&search_path(release, &inherited_path()))
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())
    };
    own.into_iter().find(|path| path.is_file()).or_else(hosts).unwrap_or_else(|| PathBuf::from(name))
}

fn words(exit: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => exit.to_string(),
    }
}

type Output = Option<(tokio::process::ChildStdout, tokio::process::ChildStderr)>;

/// Writes the server's output to its log until it ends. Output that a leftover child keeps open is not waited for.
async fn follow(child: &mut Child, output: &mut Output, log: &mut Log) -> Result<ExitStatus> {
    let Some((stdout, stderr)) = output else { return Ok(child.wait().await?) };
    let (mut out, mut err) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let (mut out_open, mut err_open) = (true, true);
    loop {
        tokio::select! {
            biased;
            read = stdout.read(&mut out), if out_open => out_open = log.take(read, &out),
            read = stderr.read(&mut err), if err_open => err_open = log.take(read, &err),
            exit = child.wait() => {
                drain(stdout, &mut out, log).await;
                drain(stderr, &mut err, log).await;
                return Ok(exit?);
            }
        }
    }
}

/// What was written just before the end is the part worth reading.
async fn drain(from: &mut (impl AsyncRead + Unpin), buffer: &mut [u8], log: &mut Log) {
    while let Ok(read @ Ok(1..)) = timeout(Duration::from_millis(50), from.read(buffer)).await {
        log.take(read, buffer);
    }
}

/// The output of a server: one file, put aside when it is full.
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(layout: &ServerLayout) -> Result<Self> {
        fs::create_dir_all(layout.logs())?;
        let path = layout.log();
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes })
    }

    /// Takes in what was read; whether more may come.
    fn take(&mut self, read: std::io::Result<usize>, buffer: &[u8]) -> bool {
        match read {
            Ok(0) | Err(_) => false,
            Ok(bytes) => {
                self.write(&buffer[..bytes]);
                true
            }
        }
    }

    /// A line of the supervisor's own.
    fn line(&mut self, text: &str) {
        self.write(format!("{OWN_LINE}{}] {text}\n", clock::now()).as_bytes());
    }

    /// A log that cannot be written, on a full disk for example, does not stop the server.
    fn write(&mut self, bytes: &[u8]) {
        if self.bytes > LOG_BYTES_MAX {
            self.rotate();
        }
        if self.file.write_all(bytes).is_ok() {
            self.bytes += bytes.len() as u64;
        }
    }

    fn rotate(&mut self) {
        let aside = |n: u32| self.path.with_extension(format!("log.{n}"));
        for n in (1..LOGS_KEPT).rev() {
            let _ = fs::rename(aside(n), aside(n + 1));
        }
        let _ = fs::rename(&self.path, aside(1));
        if let Ok(file) = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path) {
            self.file = file;
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::release::Bridge;

    use super::*;

    #[test]
    fn a_bridge_answers_for_its_host_its_address_and_its_server_besides_what_its_definition_says() {
        let state = tempfile::tempdir().expect("folder");
        let folder = state.path().join("identity");
        fs::create_dir(&folder).expect("folder");
        let identity = serde_json::json!({ "fleet": "demo", "host": "rack-1.example", "coordinator": "x:1", "certificate_pem": "",
            "authority_pem": "", "command_keys": [], "intent_keys": [], "address": "" });
        fs::write(folder.join("agent.json"), identity.to_string()).expect("write");
        let server = ServerLayout::at(&state.path().join("servers/time"));
        let mut release = Release::plain("time".parse().expect("name"), vec!["serve".to_owned()]);
        let at = |address: &str| Endpoint { address: address.to_owned(), port: 8801, path: "/mcp".to_owned() };
        (release.run.transport, release.run.endpoint) = (Transport::Stdio, Some(at("10.0.0.5")));
        release.run.bridge = Bridge { hosts: vec!["tools.example".to_owned()], ..Bridge::default() };
        let words = command_of(&server, &release, Path::new("/r"), Path::new("/agent")).join(" ");
        assert_eq!(
            words,
            "/agent bridge --listen 10.0.0.5:8801 --path /mcp --host tools.example --host rack-1.example --host 10.0.0.5 --host time -- serve"
        );
        let names = |address: &str| own_names(&server, &release, &at(address)).join(" ");
        assert_eq!(names("0.0.0.0"), "rack-1.example time", "whatever listens everywhere has no address of its own");
        assert_eq!(names("fd00::5"), "rack-1.example [fd00::5] time");
        assert_eq!(names("time"), "rack-1.example time");
    }
}
