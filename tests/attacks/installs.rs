//! Packages that use up the host while they are installed: memory, disk, processes, the agent's own memory by what they
//! print, and its time by what they leave running.

use std::fs;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fleetwright_tests::fleet::{Fleet, Outcome, text};
use fleetwright_tests::tools::{Tool, have};

/// A source distribution whose build does this.
const BACKEND: &str = r#"import os, subprocess, sys, time, zipfile
def tries():
    MIB = 1 << 20
    kind = KIND
    if kind == "memory":
        # More than a process may have, in one piece.
        bytearray(6000 * MIB)
    elif kind == "memory-together":
        # Each of them may have that, all of them may not.
        script = "import time; kept = bytearray(b'x') * (1500 << 20); time.sleep(60)"
        all = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
        _, end = os.wait()
        for one in all:
            one.kill()
        assert end == 0, end
    elif kind == "disk":
        # A file with holes counts whole, so that nothing is really filled.
        with open("large", "wb") as file:
            file.truncate(9000 * MIB)
        time.sleep(100)
    elif kind == "shared-memory":
        with open("/dev/shm/fleetwright-attack-" + MARK, "wb") as file:
            file.truncate(9000 * MIB)
        time.sleep(100)
    elif kind == "processes":
        count = 0
        try:
            for _ in range(2000):
                subprocess.Popen(["sleep", MARK], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                count += 1
        except OSError as error:
            raise SystemExit("no more than %d processes: %s" % (count, error))
    elif kind == "output":
        for _ in range(300):
            sys.stdout.write("x" * MIB)
        # A line is cut where it is too long, so the end is one of its own.
        sys.stdout.write("\n")
        sys.stdout.flush()
        raise SystemExit("this is the end")
    elif kind == "left-behind":
        subprocess.Popen(["sleep", MARK], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def build_wheel(folder, config_settings=None, metadata_directory=None):
    tries()
    name = "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("evil.py", "")
        wheel.writestr("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        wheel.writestr("evil-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: evil\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("evil-1.0.dist-info/RECORD", "evil.py,,\nevil-1.0.dist-info/METADATA,,\nevil-1.0.dist-info/WHEEL,,\nevil-1.0.dist-info/RECORD,,\n")
    return name
"#;

/// A number that no other attack on this machine has, for what this one leaves: for how long a process of it sleeps.
fn mark() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(100);
    format!("{}{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Publishes such a package, whose processes and files have this mark.
fn publish(fleet: &Fleet, kind: &str, mark: &str) {
    let backend = BACKEND.replace("KIND", &format!("{kind:?}")).replace("MARK", &format!("{mark:?}"));
    fleet.write("source/evil-1.0/backend.py", &backend);
    fleet.write(
        "source/evil-1.0/pyproject.toml",
        "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n[project]\nname = \"evil\"\nversion = \"1.0\"\n",
    );
    fleet.write("source/evil-1.0/PKG-INFO", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n");
    fs::create_dir_all(fleet.path().join("index")).expect("folder");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(fleet.path().join("source")).arg("-czf").arg(fleet.path().join("index/evil-1.0.tar.gz"));
    assert!(tar.arg("evil-1.0").status().expect("tar").success());
}

/// `up`, with packages from a folder and nowhere else.
fn up(fleet: &Fleet) -> Outcome {
    fleet.write(
        "config/servers/evil.yaml",
        "apiVersion: fleetwright/v1\nname: evil\npackage: { pypi: evil, version: '1.0', build: true }\nrun: { command: [sleep, '100000'], stop_timeout: 2s }\n\
         health_checks:\n  - { name: alive, type: command, interval: 1s, config: { command: [\"true\"] } }\n",
    );
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    let manifest = fleet.write(
        "manifests/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers: [{ server: evil }]\n\
         rollout: { bake: 0s, min_healthy_time: 300ms, healthy_deadline: 20s, retry: { attempts: 1 } }\n",
    );
    let (manifest, address) = (manifest.display().to_string(), fleet.address(1));
    let mut up = fleet.command(&["up", &manifest, "--detach", "--agents", "1", "--first-address", &address]);
    up.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", fleet.path().join("index"));
    let Output { status, stdout, stderr } = up.output().expect("up");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

/// How long nothing of an attack may go on; on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// Installs such a package, which must fail with these words, and looks at what is left of it.
#[track_caller]
fn fails(kind: &str, words: &str) {
    if !have(&[Tool::Python, Tool::Mount]) {
        return;
    }
    let (fleet, mark) = (Fleet::new(), mark());
    publish(&fleet, kind, &mark);
    let begun = Instant::now();
    let failed = up(&fleet);
    let took = begun.elapsed();
    assert!(failed.code != 0 && failed.stderr.contains(words), "{kind}: {}", failed.stderr);
    assert!(took < PATIENCE, "{kind} went on for {took:?}");
    is_gone(&fleet, &mark);
    let release = fleet.host("host-1").join("servers/evil/releases");
    let kept = fs::read_dir(release).into_iter().flatten().flatten().map(|entry| entry.path());
    let kept: Vec<_> = kept.filter(|path| path.join("app").exists() || path.join("installing").exists()).collect();
    assert!(kept.is_empty(), "{kept:?} has room that nobody needs");
    eprintln!("{kind}: refused after {} ms", took.as_millis());
}

#[track_caller]
fn is_gone(fleet: &Fleet, mark: &str) {
    fleet.wait_until("nothing of the package runs", || {
        let left = Command::new("pgrep").args(["-f", &format!("^sleep {mark}$")]).output().expect("pgrep");
        left.stdout.is_empty()
    });
    let shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let shared = shared.filter(|entry| entry.file_name().to_string_lossy().ends_with(mark));
    assert_eq!(shared.count(), 0, "memory that everybody shares is given back");
}

#[test]
fn a_package_gets_no_more_memory_than_the_limit() {
    fails("memory", "takes more than 4096 MiB of memory");
}

#[test]
fn processes_of_a_package_get_no_more_memory_together_than_the_limit() {
    fails("memory-together", "takes more than 4096 MiB of memory");
}

#[test]
fn a_package_writes_no_more_than_the_limit() {
    fails("disk", "writes more than 8192 MiB");
}

#[test]
fn what_a_package_puts_elsewhere_counts_and_does_not_stay() {
    fails("shared-memory", "writes more than 8192 MiB");
}

#[test]
fn a_package_starts_no_more_processes_than_the_limit_and_none_is_left() {
    fails("processes", "no more than ");
}

#[test]
fn of_what_a_package_prints_the_end_is_told_and_the_agent_keeps_no_more() {
    if !have(&[Tool::Python, Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    publish(&fleet, "output", &mark());
    let failed = up(&fleet);
    assert!(failed.code != 0 && failed.stderr.contains("this is the end"), "{}", failed.stderr);
    assert!(failed.stderr.len() < 1024 * 1024, "{} bytes are told", failed.stderr.len());
    let agent = fleet.holder(&fleet.host("host-1").join("agent.lock")).expect("the agent runs");
    let status = fs::read_to_string(format!("/proc/{}/status", agent.as_raw_nonzero())).expect("its status");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let most: u64 = most.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(most < 150 * 1024, "the agent took {most} KiB for an output of 300 MiB");
    eprintln!("the agent took {most} KiB at most");
}

#[test]
fn what_a_package_leaves_running_is_ended_with_its_install() {
    if !have(&[Tool::Python, Tool::Mount]) {
        return;
    }
    let (fleet, mark) = (Fleet::new(), mark());
    publish(&fleet, "left-behind", &mark);
    let begun = Instant::now();
    up(&fleet).expect_code(0);
    assert!(begun.elapsed() < PATIENCE, "it took {:?}", begun.elapsed());
    is_gone(&fleet, &mark);
    assert_eq!(text(&fleet.servers().values().next().expect("a server")["host"]), "host-1");
}
