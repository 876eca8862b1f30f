//! A server swaps what is below its own folders while root works there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fleetwright_tests::fleet::{Fleet, Outcome, program, text};
use fleetwright_tests::tools::{Tool, have};
use rustix::process::{Pid, Signal, kill_process};

/// How many files there are in the folder that is swapped, and in the one that nobody but root may read.
const FILES: usize = 2_000;
/// How often a release is deployed while the server swaps.
const ROUNDS: u32 = 4;
/// What is in every root-only file, and may be nowhere else.
const CANARY: &str = "what only root may read";

/// A server that fills its data with files, and then swaps the folder that they are in for a link, for ever. With `leave`,
/// what swaps has left the server's process group, and goes on when the server is stopped; its number is in a file.
const SWAPPER: &str = r#"
import ctypes, os, sys, time
version, target, pids, leave = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "leave"
libc = ctypes.CDLL(None)
def exchange():
    # By renameat2(2), so that there is always something of each name.
    if libc.renameat2(-100, b"x", -100, b"link", 2) != 0:
        raise OSError("not exchanged")
def swap():
    while True:
        try:
            if os.path.islink("x"):
                exchange()
            os.makedirs("x", exist_ok=True)
            for n in range(FILES):
                open("x/f%04d" % n, "a").close()
            if not os.path.islink("link"):
                os.symlink(target, "link")
            open("ready-" + version, "w").close()
            while True:
                exchange()
        except OSError:
            # What it works in was exchanged under its feet: it begins anew, wherever its data are by now.
            time.sleep(0.01)
            try:
                os.chdir(home)
            except OSError:
                pass
home = os.getcwd()
if leave and os.fork() == 0:
    os.setsid()
    open(os.path.join(pids, str(os.getpid())), "w").close()
    swap()
if not leave:
    swap()
while True:
    time.sleep(1000)
"#;

/// A fleet with the hostile server, and a folder that is root's alone.
struct Attack {
    fleet: Fleet,
    secret: PathBuf,
    pids: PathBuf,
    leaves: bool,
}

impl Attack {
    /// Deploys the first release, and waits until it swaps.
    fn begin(leaves: bool) -> Self {
        let fleet = Fleet::new();
        let (secret, pids) = (fleet.path().join("secret"), fleet.path().join("pids"));
        for (folder, mode) in [(&secret, 0o700), (&pids, 0o777)] {
            fs::create_dir(folder).expect("folder");
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("mode");
        }
        for n in 0..FILES {
            let file = secret.join(format!("f{n:04}"));
            fs::write(&file, format!("{CANARY} {n}")).expect("write");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("mode");
        }
        // The servers' users pass through to their own.
        fs::set_permissions(fleet.path(), fs::Permissions::from_mode(0o711)).expect("mode");
        let attack = Self { fleet, secret, pids, leaves };
        let manifest = attack.configure(1, "nobody");
        attack.fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
        attack.swaps(1);
        attack
    }

    /// The server in a version, run by a user.
    fn configure(&self, version: u32, user: &str) -> PathBuf {
        let program: String =
            SWAPPER.replace("FILES", &FILES.to_string()).lines().map(|line| format!("      {line}\n")).collect();
        let leave = if self.leaves { "leave" } else { "stay" };
        let (target, pids) = (self.secret.display(), self.pids.display());
        // The one of the host, which every user may run.
        let hosts = ["/usr/bin/python3", "/usr/local/bin/python3"];
        let python = hosts.into_iter().find(|path| Path::new(path).exists()).unwrap_or("python3");
        self.fleet.write(
            "config/servers/swapper.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: swapper\nrun:\n  command: [{python}, \"{{{{ server.config_dir }}}}/swap.py\", \"{version}\", \"{target}\", \"{pids}\", {leave}]\n  \
                 user: {user}\n  writable: [\"{pids}\"]\n  stop_timeout: 1s\nfiles:\n  - path: swap.py\n    content: |\n{program}\
                 health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n\
                 snapshot: {{ data: true }}\n"
            ),
        );
        self.fleet.configure(&[], "servers:\n  - server: swapper\n    place: { count: 1 }\n")
    }

    fn data(&self) -> PathBuf {
        self.fleet.host("host-1").join("servers/swapper/data")
    }

    fn swaps(&self, version: u32) {
        let ready = self.data().join(format!("ready-{version}"));
        self.fleet.wait_until("the server swaps", || ready.exists());
    }

    fn deploy(&self, version: u32, user: &str) -> Outcome {
        let manifest = self.configure(version, user);
        self.fleet.deploy(&manifest, &[])
    }

    /// Undoes the newest deployment.
    fn roll_back(&self) -> Outcome {
        let list = self.fleet.json(&["deploy", "list"]);
        let newest = list.as_array().and_then(|list| list.last()).expect("a deployment");
        self.fleet.run(&["rollback", text(&newest["id"])])
    }

    /// Nothing of the root-only files has become anybody's, been changed, or been copied to where it may be had.
    #[track_caller]
    fn holds(&self) {
        let folder = fs::metadata(&self.secret).expect("the folder");
        assert_eq!((folder.uid(), folder.mode() & 0o777), (0, 0o700), "the folder itself");
        let names = fs::read_dir(&self.secret).expect("list").count();
        assert_eq!(names, FILES, "files were put into a folder that is nobody's business");
        for n in 0..FILES {
            let path = self.secret.join(format!("f{n:04}"));
            let file = fs::metadata(&path).expect("a file");
            assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (0, 0, 0o600), "{}", path.display());
            assert_eq!(fs::read_to_string(&path).expect("read"), format!("{CANARY} {n}"));
        }
        let secret = fs::read_dir(&self.secret).expect("list").map(|file| file.expect("entry").ino());
        let (own, host): (BTreeSet<u64>, _) = (secret.collect(), self.fleet.host("host-1"));
        for place in [host.join("blobs"), self.data()] {
            let found = copies(&place, &own);
            assert!(found.is_empty(), "root-only files were copied: {found:?}");
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        for left in fs::read_dir(&self.pids).into_iter().flatten().flatten() {
            let pid = left.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

/// The files below a folder that hold the canary, besides the root-only ones themselves: what the server swaps while it is
/// looked at leads to those, which a descriptor tells.
fn copies(folder: &Path, own: &BTreeSet<u64>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(copies(&entry.path(), own)),
            Ok(kind) if kind.is_file() => {
                let Ok(mut file) = fs::File::open(entry.path()) else { continue };
                let mut text = Vec::new();
                let is_own = file.metadata().is_ok_and(|metadata| own.contains(&metadata.ino()));
                let read = file.read_to_end(&mut text).is_ok();
                if read && !is_own && String::from_utf8_lossy(&text).contains(CANARY) {
                    found.push(entry.path());
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    found
}

fn ready() -> bool {
    have(&[Tool::Python, Tool::Root])
}

#[test]
fn a_server_that_swaps_folders_for_links_gets_no_file_of_root_and_reads_none() {
    if !ready() {
        return;
    }
    let attack = Attack::begin(false);
    for round in 0..ROUNDS {
        let version = 2 + round;
        // As long as the user is the same, the old release swaps on while the next one is got ready. Once it is another
        // one, which the data go to.
        let user = if version == 4 { "daemon" } else { "nobody" };
        attack.deploy(version, user).expect_code(0);
        attack.swaps(version);
        attack.holds();
    }
    // Back to a release of another user, to whom everything belongs again.
    attack.roll_back().expect_code(4);
    attack.holds();
}

#[test]
fn a_swapper_that_outlives_its_server_gains_nothing_while_data_are_given_kept_and_put_back() {
    if !ready() {
        return;
    }
    let attack = Attack::begin(true);
    for round in 0..ROUNDS {
        // It may be told to be in the way: how the deployment ends is not what counts.
        let user = if round % 2 == 1 { "daemon" } else { "nobody" };
        let outcome = attack.deploy(2 + round, user);
        attack.holds();
        if outcome.code == 0 {
            attack.roll_back();
            attack.holds();
        }
    }
}

#[test]
fn state_is_nobody_elses_and_a_token_is_in_no_list_of_processes() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure_plain(&["plain"], 1, "servers:\n  - server: plain\n    place: { count: 1 }\n");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    for path in everything(&fleet.state_dir()) {
        let metadata = fs::symlink_metadata(&path).expect("there");
        // Rendered files and their folders are as the definition says, in a folder that nobody else enters.
        let passable = metadata.is_dir() && metadata.mode() & 0o066 == 0;
        let rendered = path.components().any(|part| part.as_os_str() == "config");
        // So are a server's own folders for temporary files, which are mounted for it.
        let closed = |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o077 == 0);
        let temporary = path.parent().is_some_and(|folder| folder.ends_with("servers/plain/tmp") && closed(folder));
        let is_private = metadata.mode() & 0o077 == 0 || metadata.is_symlink() || passable || rendered || temporary;
        assert!(is_private, "{} has the mode {:o}", path.display(), metadata.mode());
    }
    let token = fleet.json(&["hosts", "token", "host-9"]);
    let value = |field: &str| text(&token[field]).to_owned();
    let mut command = Command::new(program("fleetwright-agent"));
    command.arg("enroll").arg("--state-dir").arg(fleet.path().join("host-9"));
    command.args(["--coordinator", &value("coordinator"), "--ca-fingerprint", &value("ca_fingerprint")]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::piped());
    let mut told = command.args(["--token-file", "-"]).spawn().expect("the agent starts");
    let mut input = told.stdin.take().expect("its input");
    input.write_all(format!("{}\n", value("token")).as_bytes()).expect("write");
    for list in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{list}", told.id())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains(&value("token")), "the token is in {list}");
    }
    assert!(told.wait().expect("it ends").success());
    let agent = fleet.holder(&fleet.host("host-1").join("agent.lock")).expect("an agent");
    let environment = fs::read(format!("/proc/{}/environ", agent.as_raw_nonzero())).expect("its environment");
    assert!(!String::from_utf8_lossy(&environment).contains("FLEETWRIGHT_TOKEN"));
    let refused = command.args(["--token", "fw1-00"]).stderr(Stdio::piped()).output().expect("the agent");
    assert_eq!(refused.status.code(), Some(2), "a token is no argument");
}

/// A folder with everything in it, the data of servers aside: those are the servers' own.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && entry.file_name() != "data" => found.extend(everything(&entry.path())),
            Ok(_) | Err(_) => found.push(entry.path()),
        }
    }
    found
}
