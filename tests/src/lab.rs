//! Machines with a real systemd as their first process, on a network of their own: containers of systemd-nspawn over a
//! minimal Debian, each with its own disk, cgroups and network namespace. They can lose their power and their link.
//!
//! The network has no way out: machines reach each other, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::fleet::{Outcome, repository};

/// What machines have besides what every Debian has.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,python3-minimal,nftables";
const SUITE: &str = "bookworm";
/// The hierarchies of version 1 of the cgroup interface in which a machine gets a group of its own.
const HIERARCHIES: [&str; 6] = ["systemd", "unified", "cpu", "cpuacct", "memory", "pids"];
/// How often a machine is switched on until it has what it needs.
const BOOTS_MAX: u32 = 20;
/// How long a machine has to boot.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A network with machines on it, gone when it is dropped.
pub struct Lab {
    /// The namespace with the bridge.
    name: String,
    folder: tempfile::TempDir,
}

/// One machine.
pub struct Machine {
    /// Its name, which is its hostname too.
    pub name: String,
    /// Its address.
    pub address: String,
    namespace: String,
    link: String,
    lab: String,
    folder: PathBuf,
    booted: Option<(Child, i32)>,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A network without machines.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fw{}x{}", std::process::id() % 100_000, COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("fleetwright-lab-").tempdir().expect("a folder");
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &name, "link", "set", "br0", "up"]);
        Self { name, folder }
    }

    /// A machine that is up; the n-th, from 1.
    pub fn machine(&self, n: u8) -> Machine {
        let namespace = format!("{}m{n}", self.name);
        let (link, address) = (format!("v{n}"), format!("10.99.0.{n}"));
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&["-n", &self.name, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", &self.name, "link", "set", &link, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        let name = format!("m{n}");
        let folder = self.folder.path().join(&name);
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(folder.join(part)).expect("a folder");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            base().display(),
            folder.join("upper").display(),
            folder.join("work").display()
        );
        let root = folder.join("root").display().to_string();
        succeed("mount", &["-t", "overlay", "overlay", "-o", &options, &root]);
        fs::write(folder.join("root/etc/hostname"), format!("{name}\n")).expect("write");
        fs::write(folder.join("root/etc/machine-id"), machine_id(&namespace)).expect("write");
        let mut machine = Machine { name, address, namespace, link, lab: self.name.clone(), folder, booted: None };
        machine.boot();
        machine
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        try_run("ip", &["netns", "del", &self.name]);
    }
}

impl Machine {
    /// The path of one of its files, as this machine sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join("root").join(path.trim_start_matches('/'))
    }

    /// Switches it on. Limits of units need hierarchies of version 1 to be writable from within before systemd looks at
    /// them, and nspawn mounts them read-only: a machine that was not caught in time is switched on again.
    pub fn boot(&mut self) {
        for _ in 0..BOOTS_MAX {
            self.boot_once();
            if self.has_limits() {
                return;
            }
            self.lose_power();
        }
        panic!("{} does not get cgroups of its own", self.name);
    }

    fn boot_once(&mut self) {
        assert!(self.booted.is_none(), "{} is on", self.name);
        let groups: Vec<PathBuf> = self.cgroups();
        for group in &groups {
            fs::create_dir_all(group).expect("a cgroup");
        }
        let joins = groups.iter().map(|group| format!("echo $$ > {}/cgroup.procs; ", group.display()));
        let script = format!("{}exec systemd-nspawn \"$@\"", joins.collect::<String>());
        let root = self.folder.join("root").display().to_string();
        let console = fs::File::create(self.folder.join("console.log")).expect("a log");
        let mut nspawn = Command::new("setsid");
        nspawn.args(["bash", "-c", &script, "nspawn", "--quiet", "--directory", &root, "--machine", &self.namespace]);
        nspawn.args(["--boot", "--register=no", "--keep-unit", "--console=pipe"]);
        nspawn.arg(format!("--network-namespace-path=/run/netns/{}", self.namespace)).env_remove("LD_PRELOAD");
        nspawn.stdin(Stdio::null()).stdout(console.try_clone().expect("a log")).stderr(console);
        let child = nspawn.spawn().expect("nspawn starts");
        let nspawn = i32::try_from(child.id()).expect("a pid");
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let leader = loop {
            assert!(Instant::now() < deadline, "{} does not boot:\n{}", self.name, self.console());
            if let Some(leader) = child_of(nspawn) {
                remount(leader);
                if is_systemd(leader) {
                    break leader;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        self.booted = Some((child, leader));
        loop {
            assert!(Instant::now() < deadline, "{} does not boot:\n{}", self.name, self.console());
            remount(leader);
            let state = self.run(&["systemctl", "is-system-running"]).stdout;
            if matches!(state.trim(), "running" | "degraded") {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether its systemd can limit units.
    fn has_limits(&self) -> bool {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return true;
        }
        let groups = self.run(&["cat", "/proc/1/cgroup"]).stdout;
        groups.lines().any(|line| line.contains(":memory:") && line.ends_with("/init.scope"))
    }

    /// Runs a command on it, to its end.
    pub fn run(&self, command: &[&str]) -> Outcome {
        let (_, leader) = self.booted.as_ref().unwrap_or_else(|| panic!("{} is off", self.name));
        let output = inside(*leader, command).stdin(Stdio::null()).output().expect("nsenter runs");
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its power is gone, from one moment to the next.
    pub fn lose_power(&mut self) {
        let (mut child, leader) = self.booted.take().expect("it is on");
        kill_process(Pid::from_raw(leader).expect("a pid"), Signal::KILL).expect("killed");
        child.wait().expect("nspawn ends");
    }

    /// Shuts it down in good order, and switches it on again.
    pub fn reboot(&mut self) {
        self.run(&["systemctl", "poweroff"]);
        let (mut child, _) = self.booted.take().expect("it is on");
        child.wait().expect("nspawn ends");
        self.boot();
    }

    /// Cuts its link to all other machines.
    pub fn cut(&self) {
        ip(&["-n", &self.lab, "link", "set", &self.link, "down"]);
    }

    /// Mends it.
    pub fn mend(&self) {
        ip(&["-n", &self.lab, "link", "set", &self.link, "up"]);
    }

    /// What its console showed.
    pub fn console(&self) -> String {
        fs::read_to_string(self.folder.join("console.log")).unwrap_or_default()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        if root.join("cgroup.controllers").exists() {
            return vec![root.join(&self.namespace)];
        }
        let there = HIERARCHIES.iter().map(|hierarchy| root.join(hierarchy)).filter(|path| path.is_dir());
        there.map(|path| path.join(&self.namespace)).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.booted.is_some() {
            let journal = self.run(&["journalctl", "--no-pager", "--lines=60", "--output=short-iso"]).stdout;
            eprintln!("the journal of {}:\n{journal}", self.name);
        }
        if self.booted.is_some() {
            self.lose_power();
        }
        try_run("umount", &["--lazy", &self.folder.join("root").display().to_string()]);
        try_run("ip", &["netns", "del", &self.namespace]);
        for group in self.cgroups() {
            remove_groups(&group);
        }
    }
}

/// The disk that all machines share and none changes, made once for this checkout.
pub(crate) fn base() -> PathBuf {
    let folder = repository().join("target/lab");
    fs::create_dir_all(&folder).expect("a folder");
    let lock = fs::File::create(folder.join("lock")).expect("a lock");
    flock(&lock, FlockOperation::LockExclusive).expect("locked");
    let base = folder.join(format!("{SUITE}-1"));
    if !base.exists() {
        let fresh = folder.join("fresh");
        let _ = fs::remove_dir_all(&fresh);
        let path = fresh.display().to_string();
        let include = format!("--include={PACKAGES}");
        succeed("debootstrap", &["--variant=minbase", &include, SUITE, &path, "http://deb.debian.org/debian"]);
        fs::rename(&fresh, &base).expect("rename");
    }
    base
}

fn machine_id(seed: &str) -> String {
    let bytes: Vec<u8> = seed.bytes().cycle().take(16).collect();
    let digits: String =
        bytes.iter().enumerate().map(|(n, byte)| format!("{:02x}", byte.wrapping_add(n as u8))).collect();
    format!("{digits}\n")
}

/// The process that nspawn has started, which becomes the first of the machine.
fn child_of(nspawn: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Before nspawn has handed over to systemd, its child is itself.
fn is_systemd(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "systemd")
}

/// Makes the hierarchies of a machine writable from within, as far as they are mounted and are not.
fn remount(leader: i32) {
    let mounts = fs::read_to_string(format!("/proc/{leader}/mounts")).unwrap_or_default();
    for hierarchy in ["cpu", "cpuacct", "memory", "pids"] {
        let path = format!("/sys/fs/cgroup/{hierarchy}");
        let is_read_only = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(&path) && fields.nth(1).is_some_and(|options| options.starts_with("ro"))
        };
        if mounts.lines().any(is_read_only) {
            let pid = leader.to_string();
            try_run("nsenter", &["-t", &pid, "-m", "mount", "-o", "remount,rw,bind", &path]);
        }
    }
}

fn inside(leader: i32, command: &[&str]) -> Command {
    let mut inside = Command::new("nsenter");
    inside.args(["-t", &leader.to_string(), "-a", "--wd=/", "env", "-i", &format!("PATH={PATH}"), "HOME=/root"]);
    inside.args(command).env_remove("LD_PRELOAD");
    inside
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

fn ip(arguments: &[&str]) {
    succeed("ip", arguments);
}

#[track_caller]
fn succeed(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn try_run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
