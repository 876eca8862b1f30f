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

/// Makes a ZIP archive of one kind.
const MAKE_ZIP: &str = r#"
import struct, sys, zipfile
kind, path = sys.argv[1:]
MIB = 1 << 20
def info(name, mode=0o100644, **more):
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    made.create_system = 3
    made.compress_type = zipfile.ZIP_DEFLATED
    for field, value in more.items():
        setattr(made, field, value)
    return made
def honest(out):
    for n in range(100):
        out.writestr(info("f%d" % n), b"x" * 1000)
def changed(find, to, count=-1):
    data = open(path, "rb").read()
    assert find in data
    data = data.replace(find, to, count) if count > 0 else data.replace(find, to)
    open(path, "wb").write(data)
def zeros(out, name="zeros"):
    with out.open(info(name), "w", force_zip64=True) as file:
        for _ in range(256):
            file.write(b"\0" * MIB)
with zipfile.ZipFile(path, "w", allowZip64=True) as out:
    if kind == "calm": honest(out)
    elif kind == "zeros": zeros(out)
    elif kind == "many-zeros":
        for n in range(8): out.writestr(info("z%d" % n), b"\0" * 32 * MIB)
    elif kind == "absolute": out.writestr(info("/tmp/fleetwright-attack"), b"x")
    elif kind == "up": out.writestr(info("../fleetwright-attack"), b"x")
    elif kind == "backslash": out.writestr(info("..\\fleetwright-attack"), b"x")
    elif kind == "through":
        out.writestr(info("l", 0o120777), b"d")
        out.writestr(info("l/f"), b"x")
    elif kind == "link-out": out.writestr(info("l", 0o120777), b"/etc")
    elif kind == "link-long": out.writestr(info("l", 0o120777), b"a" * 100 * MIB)
    elif kind == "device": out.writestr(info("null", 0o020666), b"")
    elif kind == "setuid": out.writestr(info("su", 0o104755), b"x")
    elif kind == "twice":
        out.writestr(info("f"), b"one")
        out.writestr(info("f"), b"two")
    elif kind == "bzip2": out.writestr(info("f", compress_type=zipfile.ZIP_BZIP2), b"x" * 1000)
    else: out.writestr(info("name"), b"content" * 100)
def list_of(count, entry):
    # A list of so many entries that all mean the one file.
    data = open(path, "rb").read()
    start = struct.unpack("<I", data[-6:-2])[0]
    inside = entry(data[start:-22])
    size = len(inside) * count
    end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, start + size, 1)
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xffff, 0xffff, 0xffffffff, 0xffffffff, 0)
    with open(path, "wb") as out:
        out.write(data[:start])
        out.write(inside * count)
        out.write(end + locator + last)
if kind == "entries": list_of(210_000, lambda entry: entry)
elif kind == "overlapping":
    data = open(path, "rb").read()
    start = struct.unpack("<I", data[-6:-2])[0]
    one = data[start:-22]
    both = one + one.replace(b"name", b"nam2")
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, len(both), start, 0)
    open(path, "wb").write(data[:start] + both + last)
elif kind == "two-names": changed(b"name", b"eman", 1)
elif kind == "encrypted":
    data = bytearray(open(path, "rb").read())
    start = struct.unpack("<I", data[-6:-2])[0]
    data[6] |= 1
    data[start + 8] |= 1
    open(path, "wb").write(bytes(data))
elif kind == "cut":
    data = open(path, "rb").read()
    open(path, "wb").write(data[:-10])
elif kind == "size-lie":
    data = bytearray(open(path, "rb").read())
    start = struct.unpack("<I", data[-6:-2])[0]
    data[22:26] = data[start + 24:start + 28] = struct.pack("<I", 5)
    open(path, "wb").write(bytes(data))
"#;

/// Runs a program to its end; its last line says how much memory it had at most, in KiB.
const MEASURE: &str = r#"
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print("\n%d" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"#;

fn make(kind: &str, path: &Path) {
    let (script, kind) = kind.strip_prefix("zip:").map_or((MAKE, kind), |kind| (MAKE_ZIP, kind));
    let made = Command::new("python3").args(["-c", script, kind]).arg(path).status().expect("python3 runs");
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

#[test]
fn no_zip_takes_more_memory_than_an_honest_one_and_each_is_refused_for_its_reason() {
    if !have(&[Tool::Python]) {
        return;
    }
    let (calm, most) = unpack("zip:calm");
    assert!(calm.status.success(), "{}", String::from_utf8_lossy(&calm.stdout));
    let hostile = [
        ("zeros", "unpacks to more than"),
        ("many-zeros", "unpacks to more than"),
        ("entries", "more than 200000 entries"),
        ("overlapping", "refused"),
        ("absolute", "leads out of its folder"),
        ("up", "leads out of its folder"),
        ("backslash", "has a backslash in it"),
        ("through", "through the link"),
        ("link-out", "leads out, to"),
        ("link-long", "than"),
        ("device", "neither file, folder nor link"),
        ("setuid", "as another user"),
        ("twice", "two entries of one name"),
        ("two-names", "cannot be read"),
        ("encrypted", "encrypted"),
        ("bzip2", "refused"),
        ("cut", "no end that ZIP archives have"),
        ("size-lie", "refused"),
    ];
    for (kind, words) in hostile {
        let (output, memory) = unpack(&format!("zip:{kind}"));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains("refused") && said.contains(words), "{kind}: {said}");
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
