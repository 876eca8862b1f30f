//! A server, its packages, its checks and its dump hooks try to reach what is not theirs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fleetwright_tests::fleet::{Fleet, Outcome, program};
use fleetwright_tests::tools::{Tool, have};
use rustix::process::{Pid, Signal, kill_process_group};

/// What nobody but root may read.
const CANARY: &str = "canary-of-root";

/// A file that only root may read, in a folder that everybody may pass.
fn canary(fleet: &Fleet) -> PathBuf {
    let path = fleet.write("canary", CANARY);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    path
}

/// A definition of a server that runs a script, with these lines added.
fn definition(name: &str, script: &str, more: &str) -> String {
    let script: String = script.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "apiVersion: fleetwright/v1\nname: {name}\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\"]\n  stop_timeout: 2s\n\
         files:\n  - path: run.sh\n    content: |\n{script}{more}"
    )
}

const ALIVE: &str =
    "health_checks:\n  - { name: alive, type: command, interval: 1s, config: { command: [\"true\"] } }\n";

fn manifest(fleet: &Fleet, servers: &[&str]) -> PathBuf {
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    let servers: String = servers.iter().map(|server| format!("  - {{ server: {server} }}\n")).collect();
    fleet.write(
        "manifests/test.yaml",
        &format!(
            "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n{servers}\
             rollout: {{ bake: 0s, min_healthy_time: 300ms, healthy_deadline: 20s, retry: {{ attempts: 1 }} }}\n"
        ),
    )
}

fn data(fleet: &Fleet, server: &str) -> PathBuf {
    fleet.host("host-1").join("servers").join(server).join("data")
}

/// A line `NAME VALUE` of what a server has found out.
#[track_caller]
fn found(fleet: &Fleet, server: &str, name: &str) -> String {
    let path = data(fleet, server).join("found");
    fleet.wait_until("the server has told what it found", || {
        fs::read_to_string(&path).is_ok_and(|found| found.contains("end "))
    });
    let found = fs::read_to_string(&path).expect("read");
    let line = found.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {found}")).trim().to_owned()
}

/// What a script finds out about itself and what it reaches.
fn probing(canary: &Path, fleet: &Fleet) -> String {
    let (state, folder) = (fleet.host("host-1"), fleet.path());
    format!(
        r#"probe() {{
  echo "uid $(id -u)"
  grep -E '^(NoNewPrivs|CapEff|CapBnd|Seccomp):' /proc/self/status | tr -d ':' | tr '\t' ' '
  reads() {{ if cat "$2" >/dev/null 2>&1; then echo "$1 read"; else echo "$1 refused"; fi; }}
  writes() {{ if (echo x >"$2") 2>/dev/null; then echo "$1 written"; else echo "$1 refused"; fi; }}
  reads canary {canary}
  reads journal {state}/journal.db
  reads identity {state}/identity/agent.json
  reads neighbour {state}/servers/other/current/config/secret
  reads shadow /etc/shadow
  writes beside {folder}/written
  writes etc /etc/fleetwright-attack
  writes release "$(dirname "$0")/../written"
  writes data ./written
  if unshare --user --map-root-user true 2>/dev/null; then echo "namespace made"; else echo "namespace refused"; fi
  if chown 0:0 ./written 2>/dev/null; then echo "chown done"; else echo "chown refused"; fi
  echo "end "
}}
"#,
        canary = canary.display(),
        state = state.display(),
        folder = folder.display(),
    )
}

const REFUSED: [&str; 10] =
    ["canary", "journal", "identity", "neighbour", "shadow", "beside", "etc", "release", "namespace", "chown"];

#[test]
fn a_server_of_an_agent_that_is_root_has_nothing_of_root() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    let canary = canary(&fleet);
    let probe = probing(&canary, &fleet);
    let script = format!("{probe}probe >found.new\nmv found.new found\nexec sleep 100000");
    // The check looks at the same things as the server does.
    let check = format!("{probe}probe >check.new\nmv check.new check");
    let check: String = check.lines().map(|line| format!("      {line}\n")).collect();
    let more = format!(
        "  - path: check.sh\n    content: |\n{check}health_checks:\n  - {{ name: probe, type: command, interval: 1s, timeout: 20s, config: {{ command: [sh, \"{{{{ server.config_dir }}}}/check.sh\"] }} }}\n"
    );
    fleet.write("config/servers/probe.yaml", &definition("probe", &script, &more));
    let secret = format!("  - path: secret\n    content: only for this one\n{ALIVE}");
    fleet.write("config/servers/other.yaml", &definition("other", "exec sleep 100000", &secret));
    let manifest = manifest(&fleet, &["other", "probe"]);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);

    let of = |name: &str| found(&fleet, "probe", name);
    assert_ne!(of("uid"), "0");
    assert_eq!((of("NoNewPrivs"), of("Seccomp")), ("1".to_owned(), "2".to_owned()));
    for sets in ["CapEff", "CapBnd"] {
        assert_eq!(of(sets), "0000000000000000", "{sets}");
    }
    for what in REFUSED {
        assert_eq!(of(what), "refused", "{what}");
    }
    assert_eq!(of("data"), "written");
    assert!(!Path::new("/etc/fleetwright-attack").exists());
    let check = fs::read_to_string(data(&fleet, "probe").join("check")).expect("the check has run");
    assert!(check.contains("uid ") && !check.contains("uid 0\n"), "{check}");
    for what in REFUSED {
        assert!(check.contains(&format!("{what} refused")), "{what} in the check: {check}");
    }
    // Whoever looks is told; where a kernel lacks something, that too.
    let told = fs::read_to_string(fleet.host("host-1").join("servers/probe/confinement.json")).expect("told");
    assert!(told.contains("\"no_new_privs\":true") && told.contains("\"user\":\"fw-probe\""), "{told}");
    assert!(fleet.agent_log("host-1").contains("no capabilities"), "{}", fleet.agent_log("host-1"));
    // What it has written is its own, and stays so when it is started anew.
    let owner = fs::metadata(data(&fleet, "probe")).expect("data").uid();
    assert_ne!(owner, 0);
    fs::remove_file(data(&fleet, "probe").join("found")).expect("remove");
    kill(fleet.server_pid("host-1", "probe").expect("it runs"));
    assert_eq!(of("uid"), owner.to_string());
}

#[test]
fn a_server_below_a_closed_folder_is_let_through_to_what_it_needs_and_nobody_else_is() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    let closed = fleet.path();
    fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).expect("mode");
    // A program that came with files of its own, in the closed folder, and one file that the command names.
    let program = fleet.write("tools/bin/serve", "#!/bin/sh\ncat \"${0%/bin/*}/share/greeting\" \"$1\" >found.new\necho 'end ' >>found.new\nmv found.new found\nexec sleep 100000\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    fleet.write("tools/share/greeting", "greeting hello\n");
    let named = fleet.write("named.txt", "named yes\n");
    fleet.write("unnamed.txt", "no\n");
    let text = definition("closed", "", ALIVE)
        .replace("[sh, \"{{ server.config_dir }}/run.sh\"]", &format!("[{}, {}]", program.display(), named.display()));
    fleet.write("config/servers/closed.yaml", &text);
    let manifest = manifest(&fleet, &["closed"]);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    assert_eq!(
        (found(&fleet, "closed", "greeting"), found(&fleet, "closed", "named")),
        ("hello".to_owned(), "yes".to_owned())
    );
    let pid = fleet.server_pid("host-1", "closed").expect("it runs");
    // In its view of the host, there is nothing beside what it needs, and it is no other user's.
    let seen = |path: &Path| Path::new(&format!("/proc/{pid}/root{}", path.display())).exists();
    assert!(seen(&program) && seen(&named) && !seen(&closed.join("unnamed.txt")));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(!status.contains("Uid:\t0\t"), "{status}");
    assert_eq!(fs::metadata(closed).expect("folder").mode() & 0o777, 0o700);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&closed.display().to_string()), "the host does not see what was mounted");
    // It is started anew in the same way, by its supervisor.
    kill(pid);
    fleet.wait_until("it runs again", || fleet.server_pid("host-1", "closed").is_some_and(|again| again != pid));
}

/// Root finds out what a server needs: what the server itself says with a link must not count.
#[test]
fn a_server_that_puts_a_link_where_a_file_of_its_own_is_named_is_let_through_to_nothing() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    fs::set_permissions(fleet.path(), fs::Permissions::from_mode(0o700)).expect("mode");
    let private = fleet.write("private/notes.txt", "nobody's business\n");
    // It names a file in its data, and puts a link there; the second time it looks what it sees there.
    let script = format!(
        "if [ -L \"$1\" ]; then if cat \"$1\" >/dev/null 2>&1; then echo 'sees yes' >found.new; else echo 'sees no' >found.new; fi; echo 'end ' >>found.new; mv found.new found; else ln -s {} \"$1\"; fi\nexec sleep 100000",
        private.display()
    );
    let text = definition("linked", &script, ALIVE).replace("run.sh\"]", "run.sh\", \"{{ server.data_dir }}/x.db\"]");
    fleet.write("config/servers/linked.yaml", &text);
    let manifest = manifest(&fleet, &["linked"]);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let pid = fleet.server_pid("host-1", "linked").expect("it runs");
    kill(pid);
    fleet.wait_until("it runs again", || fleet.server_pid("host-1", "linked").is_some_and(|again| again != pid));
    assert_eq!(found(&fleet, "linked", "sees"), "no");
}

/// In a release's own files a server could write itself a veto: what has changed is not put back. In `/tmp` it could meet
/// others.
#[test]
fn a_server_changes_none_of_its_rendered_files_and_sees_no_temporary_files_of_others() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    let hosts = tempfile::Builder::new().prefix("fleetwright-of-the-host").tempfile_in("/tmp").expect("a file");
    let own = format!("/tmp/fleetwright-{}", fleet.path().file_name().expect("a name").display());
    let script = format!(
        r##"if (echo "# more" >>"$0") 2>/dev/null; then echo "config changed"; else echo "config refused"; fi >found.new
if mv "$0" "$0.aside" 2>/dev/null; then echo "moved yes"; else echo "moved no"; fi >>found.new
ls /tmp | grep -c fleetwright-of-the-host | sed 's/^/others /' >>found.new
echo mine >{own} && echo "own $(cat {own})" >>found.new
echo "end " >>found.new
mv found.new found
while :; do echo "# more" >>"$0"; sleep 0.05; done 2>/dev/null"##
    );
    let sees = format!(
        "health_checks:\n  - {{ name: sees, type: command, interval: 1s, severity: critical, config: {{ command: [test, -e, \"{own}\"] }} }}\n"
    );
    fleet.write("config/servers/first.yaml", &definition("first", &script, &sees));
    let manifest = manifest(&fleet, &["first"]);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let of = |name: &str| found(&fleet, "first", name);
    let all = ["config", "moved", "others", "own"].map(of);
    assert_eq!(all, ["refused", "no", "0", "mine"].map(str::to_owned));
    assert!(!Path::new(&own).exists() && hosts.path().exists(), "the host does not see it");
    assert_eq!(fleet.servers()["first@host-1"]["health"], "healthy", "its check sees what it sees");
    fleet.write("config/servers/first.yaml", &definition("first", "exit 3", ALIVE));
    fleet.deploy(&manifest, &[]).expect_code(4);
    // What was put back is looked at anew.
    fleet.wait_until("the release before is healthy", || fleet.servers()["first@host-1"]["health"] == "healthy");
}

/// The same where nothing that the server needs is below `/tmp`: then its temporary files are on the disk.
#[test]
fn temporary_files_of_a_server_are_in_a_folder_that_nobody_else_reaches() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let folder = tempfile::tempdir_in("/var/lib").expect("a folder");
    let name = format!("fleetwright-{}", folder.path().file_name().expect("a name").display());
    let profile = serde_json::json!({
        "user": { "name": "nobody", "uid": 65534, "gid": 65534, "groups": [] }, "may_stay": false, "folder": "/",
        "files": "host", "read": [], "write": [], "programs": [], "umask": 0o077, "file_bytes_max": null,
        "temporary": folder.path().join("tmp"),
    });
    let script =
        format!("id -u; echo one >/tmp/{name}; echo two >/var/tmp/{name}; cat /tmp/{name}; ls -A /tmp | wc -l");
    let mut command = Command::new(program("fleetwright-agent"));
    command.args(["confine", "--profile", &profile.to_string(), "--", "sh", "-c", &script]);
    let output = command.output().expect("the agent runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["65534", "one", "1"], "{output:?}");
    for (own, host) in [("tmp", "/tmp"), ("var-tmp", "/var/tmp")] {
        let made = folder.path().join("tmp").join(own).join(&name);
        assert!(made.exists() && !Path::new(host).join(&name).exists(), "{}", made.display());
    }
    assert_eq!(fs::metadata(folder.path().join("tmp")).expect("there").mode() & 0o777, 0o700);
}

/// kill -9 for a server; its supervisor starts it anew.
fn kill(pid: i64) {
    let group = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process_group(group, Signal::KILL).expect("kill");
}

/// Packs a folder as a gzipped tar.
fn pack(of: &Path, name: &str, to: &Path) {
    let mut tar = Command::new("tar");
    let packed = tar.arg("-C").arg(of).args(["-czf"]).arg(to).arg(name).status().expect("tar");
    assert!(packed.success());
}

/// A source distribution whose build looks at what it reaches, and leaves something running.
fn source(fleet: &Fleet, canary: &Path) -> PathBuf {
    let marker = fleet.path().join("built-by");
    let backend = format!(
        r#"import os, subprocess, zipfile
def tries():
    told = {{"uid": os.getuid()}}
    for name, path, mode in (
        ("canary", {canary:?}, "r"), ("journal", {journal:?}, "rb"), ("beside", {marker:?}, "w"), ("shadow", "/etc/shadow", "r"),
        ("etc", "/etc/fleetwright-attack", "w"), ("tmp", "/tmp/fleetwright-attack", "w"),
    ):
        try:
            with open(path, mode) as file:
                file.write("x") if mode == "w" else file.read()
            told[name] = "done"
        except Exception:
            told[name] = "refused"
    subprocess.Popen(["sleep", "987654"], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return told
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, told = "evil-1.0-py3-none-any.whl", tries()
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("evil.py", "".join("print(%r)\n" % ("%s %s" % pair) for pair in told.items()) + "print('end ')\n")
        wheel.writestr("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        wheel.writestr("evil-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: evil\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("evil-1.0.dist-info/RECORD", "evil.py,,\nevil-1.0.dist-info/METADATA,,\nevil-1.0.dist-info/WHEEL,,\nevil-1.0.dist-info/RECORD,,\n")
    return name
"#,
        journal = fleet.host("host-1").join("journal.db"),
    );
    fleet.write("source/evil-1.0/backend.py", &backend);
    fleet.write(
        "source/evil-1.0/pyproject.toml",
        "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n[project]\nname = \"evil\"\nversion = \"1.0\"\n",
    );
    fleet.write("source/evil-1.0/PKG-INFO", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n");
    fs::create_dir_all(fleet.path().join("index")).expect("folder");
    pack(&fleet.path().join("source"), "evil-1.0", &fleet.path().join("index/evil-1.0.tar.gz"));
    marker
}

/// `up`, with packages from a folder and nowhere else.
fn up_with_index(fleet: &Fleet, manifest: &Path) -> Outcome {
    let (manifest, address) = (manifest.display().to_string(), fleet.address(1));
    let mut up = fleet.command(&["up", &manifest, "--detach", "--agents", "1", "--first-address", &address]);
    up.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", fleet.path().join("index"));
    let Output { status, stdout, stderr } = up.output().expect("up");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

#[test]
fn a_package_from_source_is_built_only_when_told_and_by_a_user_that_reaches_nothing() {
    if !have(&[Tool::Python, Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    let canary = canary(&fleet);
    let marker = source(&fleet, &canary);
    let define = |build: &str| {
        let package = format!("package: {{ pypi: evil, version: \"1.0\"{build} }}\n{ALIVE}");
        let script = "python -m evil >found.new\nmv found.new found\nexec sleep 100000";
        fleet.write("config/servers/evil.yaml", &definition("evil", script, &package));
    };
    define("");
    let manifest = manifest(&fleet, &["evil"]);
    let refused = up_with_index(&fleet, &manifest);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("evil comes as source only"), "{}", refused.stderr);
    assert!(refused.stderr.contains("build: true"), "{}", refused.stderr);
    assert!(!data(&fleet, "evil").join("found").exists() && !marker.exists(), "nothing of it has run");

    define(", build: true");
    fleet.deploy(&manifest, &[]).expect_code(0);
    assert_ne!(found(&fleet, "evil", "uid"), "0");
    for what in ["canary", "journal", "beside", "shadow", "etc", "tmp"] {
        assert_eq!(found(&fleet, "evil", what), "refused", "{what}");
    }
    assert!(!marker.exists() && !Path::new("/etc/fleetwright-attack").exists());
    // What was installed is root's, whatever the build left running is gone, and so is its folder.
    let release = data(&fleet, "evil").parent().expect("folder").join("current").canonicalize().expect("release");
    assert_eq!(fs::metadata(release.join("app/pyvenv.cfg")).expect("installed").uid(), 0);
    assert!(!release.join("installing").exists());
    let left = Command::new("pgrep").args(["-f", "^sleep 987654$"]).output().expect("pgrep");
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

#[test]
fn a_dump_tool_that_comes_with_a_package_is_not_root_and_takes_no_hosts_tools_place() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    let canary = canary(&fleet);
    for (name, script) in [
        // One that the host has none of, and one that only looks like the host's.
        ("fw-own-dump", format!("#!/bin/sh\nid -u >dumped\ncat {} >stolen 2>/dev/null\necho dump\n", canary.display())),
        ("cat", "#!/bin/sh\necho x >mistaken\n".to_owned()),
    ] {
        let path = fleet.write(&format!("package/bin/{name}"), &script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    }
    let archive = fleet.path().join("package.tar.gz");
    pack(&fleet.path().join("package"), "bin", &archive);
    let sum = Command::new("sha256sum").arg(&archive).output().expect("sha256sum").stdout;
    let sum = String::from_utf8_lossy(&sum).split(' ').next().expect("a digest").to_owned();
    let define = |version: u32| {
        let more = format!(
            "package: {{ archive: \"file://{}\", sha256: {sum}, version: \"1\" }}\nsnapshot:\n  database:\n    dump: [sh, -c, \"fw-own-dump && cat /dev/null\"]\n    restore: [\"true\"]\n{ALIVE}",
            archive.display()
        );
        let script = format!("# {version}\nexec sleep 100000");
        fleet.write("config/servers/dumped.yaml", &definition("dumped", &script, &more));
    };
    define(1);
    let manifest = manifest(&fleet, &["dumped"]);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    define(2);
    fleet.deploy(&manifest, &[]).expect_code(0);
    let folder = data(&fleet, "dumped");
    let uid = fs::read_to_string(folder.join("dumped")).expect("the tool of the package has run");
    assert_ne!(uid.trim(), "0");
    assert_eq!(fs::read_to_string(folder.join("stolen")).unwrap_or_default(), "");
    assert!(!folder.join("mistaken").exists(), "the host's own tool comes first");
}
