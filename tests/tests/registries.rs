//! Packages from registries of their own: with credentials that nobody but the agent has, and never from the public one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use fleetwright_tests::fleet::{Fleet, Outcome};
use fleetwright_tests::tools::{Tool, have};

const PASSWORD: &str = "hunter2-and-more";
/// `deploy:hunter2-and-more` in Base64.
const BASIC: &str = "ZGVwbG95Omh1bnRlcjItYW5kLW1vcmU=";

/// A simple index (PEP 503) over a folder of files, and a registry of npm's, which answers until the test ends.
struct Index {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Index {
    /// With `authorization`, it lets nobody in who does not say that.
    fn new(folder: &Path, authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, folder) = (Arc::clone(&asked), folder.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, folder) = (Arc::clone(&log), folder.clone());
                std::thread::spawn(move || answer(stream, &folder, authorization, &log));
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}/simple", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("a lock").clone()
    }
}

fn answer(mut stream: TcpStream, folder: &Path, authorization: Option<&str>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let request = lines.next().and_then(Result::ok).unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    log.lock().expect("a lock").push(path.clone());
    let said = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
    });
    let files = || {
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok())
    };
    let normal = |name: &str| name.replace('_', "-");
    let found = if authorization.is_some_and(|wanted| said.as_deref() != Some(wanted)) {
        Err("401 Unauthorized")
    } else if let Some(project) = path.strip_prefix("/simple/").map(|rest| rest.trim_end_matches('/')) {
        let own = files().filter(|file| {
            normal(file.split('-').next().unwrap_or_default()) == project || file.starts_with(&format!("{project}-"))
        });
        let links: String = own.map(|file| format!("<a href=\"../../files/{file}\">{file}</a>\n")).collect();
        if links.is_empty() { Err("404 Not Found") } else { Ok(("text/html", links.into_bytes())) }
    } else if let Some(file) = path.strip_prefix("/files/").filter(|file| !file.contains('/')) {
        fs::read(folder.join(file)).map(|bytes| ("application/octet-stream", bytes)).map_err(|_| "404 Not Found")
    } else if let Ok(said) = fs::read(folder.join(format!("{}.json", path.trim_start_matches('/').replace('/', "%2f"))))
    {
        Ok(("application/json", said))
    } else {
        Err("404 Not Found")
    };
    let (status, kind, body) = match found {
        Ok((kind, body)) => ("200 OK", kind, body),
        Err(status) => (status, "text/plain", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // Whoever has read enough has hung up.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// Makes a wheel with one module, which says where it is from, and one program.
const WHEEL: &str = r#"
import sys, zipfile
folder, name, version, origin, *requires = sys.argv[1:]
needs = "".join("Requires-Dist: %s\n" % one for one in requires)
info = "%s-%s.dist-info" % (name, version)
with zipfile.ZipFile("%s/%s-%s-py3-none-any.whl" % (folder, name, version), "w") as wheel:
    body = "ORIGIN = %r\ndef main():\n    import sys, time\n    open('found', 'w').write(' '.join(\n        __import__(one).ORIGIN for one in %r))\n    time.sleep(100000)\n"
    wheel.writestr("%s.py" % name, body % (origin, [name] + [one.split("==")[0].replace("-", "_") for one in requires]))
    wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: %s\n%s" % (name.replace("_", "-"), version, needs))
    wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "/entry_points.txt", "[console_scripts]\n%s = %s:main\n" % (name.replace("_", "-"), name))
    wheel.writestr(info + "/RECORD", "%s.py,,\n" % name)
"#;

fn wheel(folder: &Path, name: &str, version: &str, origin: &str, requires: &[&str]) {
    fs::create_dir_all(folder).expect("a folder");
    let mut python = Command::new("python3");
    python.args(["-c", WHEEL]).arg(folder).args([name, version, origin]).args(requires);
    assert!(python.status().expect("python3").success());
}

/// A source distribution that keeps all it sees while it is built.
const SPY: &str = r#"import glob, os, zipfile
def seen():
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + ["/proc/self/environ"]:
        try:
            found.append(open(path, "rb").read())
        except OSError:
            pass
    for top in (os.environ.get("HOME", "/nowhere"), os.environ.get("TMPDIR", "/nowhere"), os.getcwd()):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    found.append(open(os.path.join(folder, name), "rb").read(100000))
                except OSError:
                    pass
    return b"\n".join(found)
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "acme_spy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("acme_spy.py", "ORIGIN = 'private'\n")
        wheel.writestr("acme_spy_seen.txt", b"it has looked\n" + seen())
        wheel.writestr("acme_spy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme-spy\nVersion: 1.0\n")
        wheel.writestr("acme_spy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: spy\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("acme_spy-1.0.dist-info/RECORD", "acme_spy.py,,\n")
    return name
"#;

fn spy(fleet: &Fleet, folder: &Path) {
    fleet.write("source/acme-spy-1.0/backend.py", SPY);
    fleet.write(
        "source/acme-spy-1.0/pyproject.toml",
        "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n[project]\nname = \"acme-spy\"\nversion = \"1.0\"\n",
    );
    fleet.write("source/acme-spy-1.0/PKG-INFO", "Metadata-Version: 2.1\nName: acme-spy\nVersion: 1.0\n");
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(fleet.path().join("source"))
        .arg("-czf")
        .arg(folder.join("acme-spy-1.0.tar.gz"))
        .arg("acme-spy-1.0");
    assert!(tar.status().expect("tar").success());
}

/// Writes a manifest, an environment with the password, and a definition with this package.
fn configure(fleet: &Fleet, package: &str, run: &str) -> PathBuf {
    let definition = format!(
        "apiVersion: fleetwright/v1\nname: acme\npackage: {package}\nrun: {run}\n\
         health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n"
    );
    fleet.write("config/servers/acme.yaml", &definition);
    fleet.write(
        "config/environments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nsecrets: { registry_password: { env: FW_TEST_REGISTRY } }\n",
    );
    fleet.write(
        "manifests/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers: [{ server: acme }]\n\
         rollout: { bake: 0s, min_healthy_time: 300ms, healthy_deadline: 20s, retry: { attempts: 1 } }\n",
    )
}

/// `up` on a host whose clients are set to another registry, with the password for the coordinator alone.
fn up(fleet: &Fleet, manifest: &Path, variables: &[(&str, &str)]) -> Outcome {
    let (manifest, address) = (manifest.display().to_string(), fleet.address(1));
    let mut up = fleet.command(&["up", &manifest, "--detach", "--agents", "1", "--first-address", &address]);
    let Output { status, stdout, stderr } = up.envs(variables.iter().copied()).output().expect("up");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

fn registry(url: &str, more: &str) -> String {
    format!(
        "registry: {{ url: '{url}', username: deploy, password: '{{{{ secret(name=\"registry_password\") }}}}'{more} }}"
    )
}

/// No file of the fleet holds the password, in any form.
#[track_caller]
fn is_nowhere(fleet: &Fleet) {
    let mut folders = vec![fleet.path().to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let content = fs::read(entry.path()).unwrap_or_default();
                looked_at += 1;
                for form in [PASSWORD, BASIC] {
                    let found = content.windows(form.len()).any(|window| window == form.as_bytes());
                    assert!(!found, "{} holds {form}", entry.path().display());
                }
            }
        }
    }
    assert!(looked_at > 10, "{looked_at} files were looked at");
}

fn found(fleet: &Fleet) -> String {
    let path = fleet.host("host-1").join("servers/acme/data/found");
    fleet.wait_until("the server has said where it is from", || fs::read(&path).is_ok_and(|text| !text.is_empty()));
    fs::read_to_string(path).expect("read")
}

#[test]
fn a_package_from_an_index_of_its_own_comes_from_nowhere_else_and_its_password_is_seen_by_nobody() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let (own, public) = (fleet.path().join("own"), fleet.path().join("public"));
    wheel(&own, "acme_server", "1.0", "private", &["acme-lib"]);
    wheel(&own, "acme_lib", "1.0", "private", &[]);
    spy(&fleet, &own);
    // Whoever takes the same names in the public index, with a better version.
    wheel(&public, "acme_server", "1.0", "public", &["acme-lib"]);
    wheel(&public, "acme_lib", "9.9", "public", &[]);
    let (private, other) = (Index::new(&own, Some(BASIC_HEADER)), Index::new(&public, None));
    let elsewhere = other.url();
    let variables =
        [("PIP_INDEX_URL", &*elsewhere), ("PIP_EXTRA_INDEX_URL", &elsewhere), ("FW_TEST_REGISTRY", PASSWORD)];
    let package =
        |more: &str| format!("{{ pypi: acme-server, version: '1.0', {}{more} }}", registry(&private.url(), ""));
    // The one program of the package is started without being named.
    let manifest = configure(&fleet, &package(", with: ['acme-spy==1.0'], build: true"), "{ stop_timeout: 2s }");
    up(&fleet, &manifest, &variables).expect_code(0);
    assert_eq!(found(&fleet), "private private");
    assert_eq!(other.asked(), Vec::<String>::new(), "nothing was asked of the public index");
    let release = fleet.host("host-1").join("servers/acme/current");
    let site = fs::read_dir(release.join("app/lib")).expect("lib").flatten().next().expect("python").path();
    let seen = fs::read(site.join("site-packages/acme_spy_seen.txt")).expect("the spy was built");
    assert!(seen.starts_with(b"it has looked") && seen.len() > 1000, "{} bytes", seen.len());
    is_nowhere(&fleet);
    let lock = fs::read_to_string(release.join("installed.lock")).expect("a lock");
    assert!(lock.contains("acme-server==1.0 --hash") && !lock.contains("127.0.0.1"), "{lock}");
    // Its server is told nothing of it.
    let environment = fs::read_to_string(release.join("environment.json")).expect("an environment");
    assert!(!environment.contains("registry"), "{environment}");
    fleet.run(&["down"]).expect_code(0);
    is_nowhere(&fleet);
}

const BASIC_HEADER: &str = "Basic ZGVwbG95Omh1bnRlcjItYW5kLW1vcmU=";

#[test]
fn what_an_index_of_its_own_does_not_have_comes_from_the_public_one_only_when_told() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let (own, public) = (fleet.path().join("own"), fleet.path().join("public"));
    wheel(&own, "acme_server", "1.0", "private", &["acme-lib", "known-lib"]);
    wheel(&own, "acme_lib", "1.0", "private", &[]);
    wheel(&public, "acme_server", "2.0", "public", &[]);
    wheel(&public, "acme_lib", "9.9", "public", &[]);
    wheel(&public, "known_lib", "1.0", "public", &[]);
    let (private, other) = (Index::new(&own, Some(BASIC_HEADER)), Index::new(&public, None));
    let elsewhere = other.url();
    let variables = [("PIP_INDEX_URL", &*elsewhere), ("FW_TEST_REGISTRY", PASSWORD)];
    let package = |version: &str, more: &str| {
        format!("{{ pypi: acme-server, version: '{version}', {} }}", registry(&private.url(), more))
    };
    let manifest = configure(&fleet, &package("1.0", ""), "{ stop_timeout: 2s }");
    let failed = up(&fleet, &manifest, &variables);
    assert!(failed.code != 0 && failed.stderr.contains("known-lib"), "{}", failed.stderr);
    assert_eq!(other.asked(), Vec::<String>::new());

    configure(&fleet, &package("1.0", ", public: true"), "{ stop_timeout: 2s }");
    fleet.deploy(&manifest, &[]).expect_code(0);
    assert_eq!(found(&fleet), "private private public");
    let asked = other.asked();
    assert!(asked.iter().all(|path| path.contains("known")), "only what is not there was asked for: {asked:?}");

    // A version that only somebody else has is none.
    configure(&fleet, &package("2.0", ", public: true"), "{ stop_timeout: 2s }");
    let failed = fleet.deploy(&manifest, &[]);
    assert!(failed.code != 0 && failed.stderr.contains("has no acme-server==2.0"), "{}", failed.stderr);
    assert!(failed.stderr.contains(&private.url()), "{}", failed.stderr);
    assert!(other.asked().iter().all(|path| path.contains("known")), "{:?}", other.asked());
    fleet.run(&["down"]).expect_code(0);
}

#[test]
fn a_registry_that_does_not_let_in_or_is_not_there_is_told_as_such_without_the_password() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let own = fleet.path().join("own");
    wheel(&own, "acme_server", "1.0", "private", &[]);
    let private = Index::new(&own, Some("Basic another"));
    let package = |url: &str| format!("{{ pypi: acme-server, version: '1.0', {} }}", registry(url, ""));
    let manifest = configure(&fleet, &package(&private.url()), "{ stop_timeout: 2s }");
    let failed = up(&fleet, &manifest, &[("FW_TEST_REGISTRY", PASSWORD)]);
    assert!(failed.code != 0 && failed.stderr.contains("permission_error"), "{}", failed.stderr);
    assert!(failed.stderr.contains("answers 401") && failed.stderr.contains(&private.url()), "{}", failed.stderr);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    configure(&fleet, &package(&format!("http://{taken}/simple")), "{ stop_timeout: 2s }");
    let gone = fleet.deploy(&manifest, &[]);
    assert!(gone.code != 0 && gone.stderr.contains("network_error"), "{}", gone.stderr);
    for told in [failed.stderr, gone.stderr] {
        assert!(!told.contains(PASSWORD) && !told.contains(BASIC), "{told}");
    }
    is_nowhere(&fleet);
    fleet.run(&["down"]).expect_code(0);
}

#[test]
fn a_registry_is_written_so_that_nothing_secret_is_told() {
    let fleet = Fleet::new();
    let refused = |package: &str| {
        configure(&fleet, package, "{ command: [sleep, '100000'] }");
        let manifest = fleet.write(
            "manifests/test.yaml",
            "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nhosts: [{ name: h1 }]\nservers: [{ server: acme }]\n",
        );
        let refused = fleet.run(&["validate", &manifest.to_string_lossy()]);
        let planned =
            if refused.code == 0 { fleet.run(&["plan", "--offline", &manifest.to_string_lossy()]) } else { refused };
        planned.stderr
    };
    let cases = [
        ("url: 'https://h/simple', username: u, password: hunter2", "is a secret, and not written out"),
        ("url: 'https://u:hunter2@h/simple'", "holds what may be secret"),
        ("url: 'http://pypi.example.com/simple'", "not asked over https"),
        ("username: u, password: '{{ secret(name=\"registry_password\") }}'", "needs a `url`"),
        ("url: 'https://h/simple', username: u", "or with a `token`"),
    ];
    for (registry, words) in cases {
        let told = refused(&format!("{{ pypi: acme-server, version: '1.0', registry: {{ {registry} }} }}"));
        assert!(told.contains(words) && !told.contains("hunter2"), "{registry}: {told}");
    }
    let told = refused(
        "{ archive: 'https://h/a.tar', sha256: '0000000000000000000000000000000000000000000000000000000000000000', version: '1', registry: { url: 'https://h' } }",
    );
    assert!(told.contains("is for packages of `pypi`, `npm` and `oci`"), "{told}");
}

/// Packs a package of npm's, and writes what a registry says of it.
const PACK: &str = r##"
import base64, hashlib, io, json, sys, tarfile
folder, origin, name, version, dependencies = sys.argv[1:]
flat = name.replace("/", "%2f")
file = name.replace("@", "").replace("/", "-") + "-" + version + ".tgz"
script = "#!/usr/bin/env node\nrequire('fs').writeFileSync('found', require('%s/package.json').origin)\nsetInterval(() => {}, 100000)\n"
package = dict(name=name, version=version, dependencies=json.loads(dependencies), engines=dict(node=">=18"), origin=origin)
package["bin"] = {"acme-npm": "index.js"}
with tarfile.open(folder + "/" + file, "w:gz") as tar:
    for path, text in (("package.json", json.dumps(package)), ("index.js", script % next(iter(package["dependencies"]), name))):
        info = tarfile.TarInfo("package/" + path)
        info.size, info.mode = len(text), 0o755
        tar.addfile(info, io.BytesIO(text.encode()))
digest = base64.b64encode(hashlib.sha512(open(folder + "/" + file, "rb").read()).digest()).decode()
package["dist"] = dict(tarball="/files/" + file, integrity="sha512-" + digest)
said = {"name": name, "dist-tags": {"latest": version}, "versions": {version: package}}
open(folder + "/" + flat + ".json", "w").write(json.dumps(said))
"##;

fn pack(folder: &Path, origin: &str, name: &str, version: &str, dependencies: &str) {
    fs::create_dir_all(folder).expect("a folder");
    let mut python = Command::new("python3");
    python.args(["-c", PACK]).arg(folder).args([origin, name, version, dependencies]);
    assert!(python.status().expect("python3").success());
}

const BEARER: &str = "Bearer hunter2-and-more";

#[test]
fn a_package_of_a_registry_of_npms_comes_with_a_token_and_is_locked_without_it() {
    if !have(&[Tool::Python, Tool::Npm]) {
        return;
    }
    let fleet = Fleet::new();
    let (own, public) = (fleet.path().join("own"), fleet.path().join("public"));
    pack(&own, "private", "@acme/server", "1.0.0", r#"{"acme-lib":"^1.0.0"}"#);
    pack(&own, "private", "acme-lib", "1.0.0", "{}");
    pack(&public, "public", "@acme/server", "1.0.0", "{}");
    pack(&public, "public", "acme-lib", "1.9.0", "{}");
    let (private, other) = (Index::new(&own, Some(BEARER)), Index::new(&public, None));
    let package = format!(
        "{{ npm: '@acme/server', version: 1.0.0, registry: {{ url: 'http://{}', token: '{{{{ secret(name=\"registry_password\") }}}}' }} }}",
        private.address
    );
    let manifest = configure(&fleet, &package, "{ stop_timeout: 2s }");
    let definition = fleet.path().join("config/servers/acme.yaml").display().to_string();
    let mut lock = fleet.command(&["lock", "--environment", "test", &definition]);
    let locked = lock.env("FW_TEST_REGISTRY", PASSWORD).output().expect("lock");
    assert!(locked.status.success(), "{}", String::from_utf8_lossy(&locked.stderr));
    let text = fs::read_to_string(fleet.path().join("config/servers/acme.lock")).expect("a lock");
    assert!(text.contains("node_modules/acme-lib") && text.contains("sha512-"), "{text}");
    assert!(!text.contains(PASSWORD) && !text.contains("127.0.0.1"), "{text}");
    // What the hosts' own npm is set to has the same names, and is not asked.
    let elsewhere = format!("http://{}", other.address);
    let variables = [("npm_config_registry", &*elsewhere), ("FW_TEST_REGISTRY", PASSWORD)];
    up(&fleet, &manifest, &variables).expect_code(0);
    assert_eq!(found(&fleet), "private");
    // Without a lock as well.
    fs::remove_file(fleet.path().join("config/servers/acme.lock")).expect("remove");
    fs::remove_file(fleet.host("host-1").join("servers/acme/data/found")).expect("remove");
    fleet.deploy(&manifest, &[]).expect_code(0);
    assert_eq!(found(&fleet), "private");
    assert_eq!(other.asked(), Vec::<String>::new());
    let installed = fleet.host("host-1").join("servers/acme/current/installed.lock");
    let installed = fs::read_to_string(installed).expect("a lock");
    assert!(installed.contains("acme-lib") && !installed.contains("127.0.0.1"), "{installed}");
    is_nowhere(&fleet);
    fleet.run(&["down"]).expect_code(0);
}
