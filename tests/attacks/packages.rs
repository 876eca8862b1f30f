//! Archives and packages that try to use up or leave what they are unpacked into.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fleetwright_tests::fleet::{Fleet, program, text};
use fleetwright_tests::tools::{Tool, have};

/// Makes an archive of one kind, compressed with gzip.
const MAKE: &str = r#"
import sys, tarfile, zlib
kind, path = sys.argv[1:]
MIB = 1 << 20
def head(type=tarfile.REGTYPE, name="f", size=0, mode=0o644, link="", device=(0, 0)):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.linkname = type, size, mode, link
    info.devmajor, info.devminor = device
    return info.tobuf(tarfile.GNU_FORMAT)
def padded(data):
    return data + b"\0" * (-len(data) % 512)
def file(name, data=b"x", **more):
    return [head(name=name, size=len(data), **more), padded(data)]
def large(type, bytes, **more):
    return [head(type=type, size=bytes, **more)] + [b"a" * MIB] * (bytes // MIB)
def records(**all):
    text = b""
    for key, value in all.items():
        line = b" %s=%s\n" % (key.replace("_", ".").encode(), value)
        length = len(line) + 2
        text += b"%d" % length + line
    return [head(type=tarfile.XHDTYPE, size=len(text)), padded(text)]
kinds = {
    "calm": [part for n in range(100) for part in file("f%d" % n, b"x" * 1000)],
    "long-name": large(b"L", 128 * MIB) + file("f"),
    "long-link": large(b"K", 128 * MIB) + file("f"),
    "records": large(b"x", 128 * MIB) + file("f"),
    "global-records": large(b"g", 128 * MIB) + file("f"),
    "zeros": large(tarfile.REGTYPE, 256 * MIB),
    "hidden": large(tarfile.DIRTYPE, 60 * MIB, name="d", mode=0o755) * 4,
    "entries": [head(type=tarfile.DIRTYPE, name="d", mode=0o755) * 100] * 2_100,
    "deep": [head(b"L", "././@LongLink", 201), padded(b"d/" * 100 + b"f")] + file("f"),
    "sparse": [head(b"S", size=512), b"x" * 512],
    "sparse-records": records(GNU_sparse_major=b"1") + file("f"),
    "two-sizes": records(size=b"1234567") + file("f"),
    "absolute": file("/tmp/fleetwright-attack"),
    "up": file("../fleetwright-attack"),
    "through": [head(type=tarfile.SYMTYPE, name="l", link="d")] + file("l/f"),
    "link-out": [head(type=tarfile.SYMTYPE, name="l", link="/etc")],
    "hard-link-out": [head(type=tarfile.LNKTYPE, name="l", link="../archive")],
    "device": [head(type=tarfile.CHRTYPE, name="null", device=(1, 3))],
    "setuid": file("su", mode=0o4755),
}
pack = zlib.compressobj(6, wbits=31)
with open(path, "wb") as out:
    for part in kinds[kind]:
        out.write(pack.compress(part))
    out.write(pack.compress(b"\0" * 1024) + pack.flush())
"#;

/// Runs a program to its end; its last line says how much memory it had at most, in KiB.
const MEASURE: &str = r#"
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print("\n%d" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"#;

fn make(kind: &str, path: &Path) {
    let made = Command::new("python3").args(["-c", MAKE, kind]).arg(path).status().expect("python3 runs");
    assert!(made.success(), "{kind}");
}

/// Unpacks an archive of this kind as the agent does; gives what was said, and the most memory that it took, in KiB.
fn unpack(kind: &str) -> (Output, u64) {
    let folder = tempfile::tempdir().expect("folder");
    let (archive, to) = (folder.path().join("archive"), folder.path().join("to"));
    make(kind, &archive);
    fs::create_dir(&to).expect("folder");
    let mut command = Command::new("python3");
    command.args(["-c", MEASURE]).arg(program("fleetwright-agent")).arg("unpack").arg(&archive).arg(&to);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let memory = said.lines().last().and_then(|line| line.parse().ok()).expect("a number");
    assert!(!folder.path().join("fleetwright-attack").exists() && !Path::new("/tmp/fleetwright-attack").exists());
    (output, memory)
}

#[test]
fn no_archive_takes_more_memory_than_an_honest_one_and_each_is_refused_for_its_reason() {
    if !have(&[Tool::Python]) {
        return;
    }
    let (calm, most) = unpack("calm");
    assert!(calm.status.success(), "{}", String::from_utf8_lossy(&calm.stdout));
    let hostile = [
        ("long-name", "a name of 134217728 bytes"),
        ("long-link", "a target of a link of 134217728 bytes"),
        ("records", "a list of records of 134217728 bytes"),
        ("global-records", "a list of records of 134217728 bytes"),
        ("zeros", "unpacks to more than"),
        ("hidden", "unpacks to more than"),
        ("entries", "more than 200000 entries"),
        ("deep", "a path of 101 parts"),
        ("sparse", "neither file, folder nor link"),
        ("sparse-records", "a file with holes"),
        ("two-sizes", "two sizes"),
        ("absolute", "leads out of its folder"),
        ("up", "leads out of its folder"),
        ("through", "through the link"),
        ("link-out", "leads out, to"),
        ("hard-link-out", "leads out, to"),
        ("device", "neither file, folder nor link"),
        ("setuid", "as another user"),
    ];
    for (kind, words) in hostile {
        let (output, memory) = unpack(kind);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains(words), "{kind}: {said}");
        assert!(memory < 2 * most, "{kind} took {memory} KiB, an honest archive {most} KiB");
    }
}

fn definition(name: &str) -> String {
    format!(
        "apiVersion: fleetwright/v1\nname: alpha\npackage: {{ archive: dist/{name}.tar.gz, version: '1' }}\nrun:\n  command: [sleep, '100000']\n  stop_timeout: 2s\n\
         health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n"
    )
}

/// The most memory that the agent of a host has had, in KiB.
fn most_memory(fleet: &Fleet, host: &str) -> u64 {
    let lock = fleet.host(host).join("agent.lock");
    let agent = fleet.holder(&lock).expect("the agent runs");
    let status = fs::read_to_string(format!("/proc/{}/status", agent.as_raw_nonzero())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_bomb_in_a_deployment_leaves_the_agent_as_it_was_and_the_failure_names_the_limit() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha }\n");
    let dist = fleet.path().join("config/servers/dist");
    fs::create_dir_all(&dist).expect("folder");
    make("calm", &dist.join("calm.tar.gz"));
    make("long-name", &dist.join("bomb.tar.gz"));
    fleet.write("config/servers/alpha.yaml", &definition("calm"));
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let servers = fleet.servers();
    let host = text(&servers.values().next().expect("a server")["host"]).to_owned();
    let ran = fleet.server_pid(&host, "alpha");
    let calm = most_memory(&fleet, &host);
    fleet.write("config/servers/alpha.yaml", &definition("bomb"));
    let failed = fleet.deploy(&manifest, &[]);
    assert!(failed.code != 0 && failed.stderr.contains("a name of 134217728 bytes"), "{}", failed.stderr);
    let after = most_memory(&fleet, &host);
    assert!(after < 2 * calm, "{after} KiB after the bomb, {calm} KiB before");
    assert_eq!(fleet.server_pid(&host, "alpha"), ran, "what ran goes on");
    fleet.run(&["down"]).expect_code(0);
}
