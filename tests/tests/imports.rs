//! Importing: entries of a registry of MCP servers become definitions, and what their packages say counts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use fleetwright_tests::bridged;
use fleetwright_tests::fleet::{Fleet, Outcome};
use fleetwright_tests::strangers::Kit;
use fleetwright_tests::tools::{Tool, have};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

/// A registry on this machine, which answers until the test ends.
struct Registry {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    fn new(entries: &[(&str, String)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, entries) = (Arc::clone(&asked), entries.iter().cloned().map(owned).collect::<Vec<_>>());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
                let request = lines.next().and_then(Result::ok).unwrap_or_default();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                log.lock().expect("a lock").push(format!("{path} {}", headers.join(" ")));
                let found = entries.iter().find(|(name, _)| path == format!("/v0.1/servers/{name}"));
                let answer = match found {
                    Some((_, body)) if body.starts_with("HTTP/1.1 ") => body.clone(),
                    Some((_, body)) => {
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                    }
                    None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
                };
                // Whoever has read enough has hung up.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn owned((name, body): (&str, String)) -> (String, String) {
    (name.to_owned(), body)
}

fn entry(name: &str, kind: &str, package: &str, version: &str) -> String {
    format!(
        r#"{{ "server": {{ "name": "{name}", "description": "d", "version": "{version}", "packages": [ {{ "registryType": "{kind}",
        "identifier": "{package}", "version": "{version}", "transport": {{ "type": "stdio" }} }} ] }}, "_meta": {{}} }}"#
    )
}

/// Imports into the fleet's configuration, and validates what was written.
#[track_caller]
fn imported(fleet: &Fleet, name: &str, arguments: &[&str]) -> (String, Outcome) {
    fs::create_dir_all(fleet.path().join("config/servers")).expect("a folder");
    let path = fleet.path().join(format!("config/servers/{name}.yaml")).to_string_lossy().into_owned();
    let outcome = fleet.run(&[&["import"][..], arguments, &["--name", name, "--out", &path]].concat()).expect_code(0);
    fleet.run(&["validate", &path]).expect_code(0);
    (fs::read_to_string(&path).expect("a definition"), outcome)
}

#[test]
fn an_entry_comes_from_a_registry_and_from_nobody_else() {
    let moved =
        |to: &str| format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let other = Registry::new(&[("a%2Fb/versions/1", entry("a/b", "npm", "evil", "1.0.0"))]);
    let registry = Registry::new(&[
        ("io.github.example%2Ffiles/versions/latest", entry("io.github.example/files", "npm", "files-mcp", "1.2.3")),
        ("io.github.example%2Ffiles/versions/1.0.0", entry("io.github.example/files", "npm", "files-mcp", "1.0.0")),
        ("a%2Fmoved/versions/latest", moved("/v0.1/servers/io.github.example%2Ffiles/versions/1.0.0")),
        ("a%2Faway/versions/latest", moved(&format!("{}/v0.1/servers/a%2Fb/versions/1", other.url()))),
        ("a%2Flarge/versions/latest", " ".repeat(2 << 20)),
        ("a%2Fbroken/versions/latest", "{".to_owned()),
    ]);
    let (url, fleet) = (registry.url(), Fleet::new());
    let with_password = url.replace("http://", "http://user:hunter2@");
    for (name, server, version) in [
        ("latest", "io.github.example/files", "1.2.3"),
        ("exact", "io.github.example/files@1.0.0", "1.0.0"),
        ("moved", "a/moved", "1.0.0"),
    ] {
        let (text, told) = imported(&fleet, name, &[&with_password, server, "--offline"]);
        assert!(text.contains(&format!("{{ npm: \"files-mcp\", version: \"{version}\" }}")), "{text}");
        assert!(text.contains("# check: no registry was asked (--offline)"), "the guess is marked: {text}");
        assert!(told.stderr.contains("check `run.command`"), "{}", told.stderr);
    }
    let asked = registry.asked.lock().expect("a lock").join("\n");
    assert!(asked.contains("authorization: Basic") || asked.contains("Authorization: Basic"), "{asked}");
    for (server, wrong) in [
        ("a/away", "redirects to another host"),
        ("a/large", "more than 1024 KiB"),
        ("a/broken", "versions/latest:1:1: it is no JSON: it ends too early"),
        ("a/nobody@2.0.0", "has no `a/nobody` in version 2.0.0"),
        ("a/nobody@", "configuration_error (import): `a/nobody@` has no version after its `@`"),
        ("", "configuration_error (import): `` has no name of a server"),
    ] {
        let refused = fleet.run(&["import", &with_password, server, "--offline"]).expect_code(1);
        assert!(refused.stderr.contains(wrong) && refused.stderr.contains("hint:"), "{server}: {}", refused.stderr);
        assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    }
    assert!(other.asked.lock().expect("a lock").is_empty(), "another host was asked");
    let plain = fleet.run(&["import", "http://user:hunter2@192.0.2.1", "a/b"]).expect_code(1).stderr;
    assert!(plain.contains("it is not https") && !plain.contains("hunter2"), "{plain}");
    let lonely = fleet.run(&["import", &url]).expect_code(1).stderr;
    assert!(
        lonely.contains("which server of that registry, is not said") && lonely.contains("hint: give its NAME"),
        "{lonely}"
    );
}

#[test]
fn a_file_that_is_no_entry_is_told_with_its_place_and_what_would_be_right() {
    let fleet = Fleet::new();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = format!("http://{}", nobody.local_addr().expect("an address"));
    drop(nobody);
    let no_text = fleet.write("binary.json", "");
    fs::write(&no_text, b"\xff\xfe{").expect("write");
    for (arguments, why) in [
        (vec![fleet.write("empty.json", " \n")], "empty.json: it is empty"),
        (vec![fleet.write("cut.json", "{\n  \"name\": \"a/b\",\n")], "cut.json:3:1: it is no JSON: it ends too early"),
        (
            vec![fleet.write("words.json", "{\n  name: 1\n}")],
            "words.json:2:3: it is no JSON: a name in double quotes is expected",
        ),
        (vec![fleet.write("list.json", "[]")], "list.json: it is no entry of the MCP registry: fields are expected"),
        (vec![fleet.write("bare.json", "{}")], "bare.json: it is no entry of the MCP registry: missing field `name`"),
        (
            vec![fleet.write("number.json", "{\"name\": 5}")],
            "number.json: name: it is no entry of the MCP registry: a text is expected, not `5`",
        ),
        (vec![no_text], "binary.json: it cannot be read: it is not UTF-8"),
        (vec![fleet.path().join("nowhere.json")], "nowhere.json: it cannot be read: No such file"),
        (vec![fleet.path().to_owned()], "it cannot be read: Is a directory"),
        (
            vec!["server.json".into(), "a/b".into()],
            "the NAME `a/b` is looked up in a registry, and this is no URL of one",
        ),
        (
            vec!["ftp://x.example".into(), "a/b".into()],
            "the NAME `a/b` is looked up in a registry, and this is no URL of one",
        ),
        (vec![closed.into(), "a/b".into()], "/v0.1/servers/a%2Fb/versions/latest: Connection refused (os error 111)"),
    ] {
        let arguments: Vec<String> = arguments.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let words: Vec<&str> = std::iter::once("import").chain(arguments.iter().map(String::as_str)).collect();
        let told = fleet.run(&words).expect_code(1).stderr;
        assert!(
            told.contains("_error (import): ") && told.contains(why) && told.contains("  hint: "),
            "{words:?}: {told}"
        );
    }
    let entry = fleet.write("right.json", &entry("a/right", "npm", "right", "1.0.0")).to_string_lossy().into_owned();
    for (out, why) in [
        ("no/such/folder/a.yaml", "hint: its folder must be there"),
        ("right.json", "hint: what is there already is left alone"),
    ] {
        let out = fleet.path().join(out).to_string_lossy().into_owned();
        let told = fleet.run(&["import", &entry, "--offline", "--out", &out]).expect_code(1).stderr;
        assert!(told.contains("it cannot be written: ") && told.contains(why), "{told}");
    }
}

#[test]
fn a_registry_of_packages_that_cannot_be_reached_leaves_a_marked_guess() {
    let fleet = Fleet::new();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://user:hunter2@{}/simple", nobody.local_addr().expect("an address"));
    drop(nobody);
    let path = fleet.write("time.json", &entry("com.example/mcp", "pypi", "some-time-server", "1.0.0"));
    let mut command = fleet.command(&["import", &path.to_string_lossy()]);
    let output = command.env("PIP_INDEX_URL", &url).output().expect("fleetwright runs");
    let (text, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert!(text.contains("name: example\n") && text.contains("command: [\"some-time-server\"]"), "{text}");
    assert!(
        text.contains("# check: the index http://127.0.0.1:") && told.contains("could not be asked"),
        "{text}{told}"
    );
    assert!(!text.contains("hunter2") && !told.contains("hunter2"), "{text}{told}");
}

#[test]
fn what_npm_and_pypi_know_names_the_program() {
    let fleet = Fleet::new();
    if have(&[Tool::Npm]) {
        let name = "@modelcontextprotocol/server-filesystem";
        let path = fleet.write("files.json", &entry("io.github.example/files", "npm", name, "2026.8.31"));
        let (text, _) = imported(&fleet, "files", &[&path.to_string_lossy()]);
        assert!(text.contains("command: [\"mcp-server-filesystem\"]") && !text.contains("# check"), "{text}");
        let gone = fleet.write("gone.json", &entry("io.github.example/files", "npm", name, "0.0.0-none"));
        let refused = fleet.run(&["import", &gone.to_string_lossy()]).expect_code(1).stderr;
        assert!(refused.contains("has no @modelcontextprotocol/server-filesystem@0.0.0-none"), "{refused}");
    }
    if have(&[Tool::Python, Tool::Pypi]) {
        let path = fleet.write("time.json", &entry("io.github.example/time", "pypi", "mcp-server-time", "2026.10.19"));
        let (text, _) = imported(&fleet, "time", &[&path.to_string_lossy()]);
        assert!(text.contains("command: [\"mcp-server-time\"]") && !text.contains("# check"), "{text}");
    }
}

#[test]
fn a_definition_that_cannot_be_rendered_is_not_valid() {
    let fleet = Fleet::new();
    let path = fleet.write(
        "config/servers/a.yaml",
        "apiVersion: fleetwright/v1\nname: a\npackage: { oci: ghcr.io/a/b, digest: 'sha256:FILL-IN', version: 1 }\nrun: {}\n",
    );
    let path = path.to_string_lossy().into_owned();
    assert!(fleet.run(&["validate", &path]).expect_code(1).stderr.contains("is not a digest"));
    // What an environment says of it may mend that.
    fleet.write(
        "config/environments/e.yaml",
        "apiVersion: fleetwright/v1\nname: e\nservers: { a: { package: { digest: 'sha256:00' } } }\n",
    );
    assert!(fleet.run(&["validate", &path]).expect_code(0).stderr.contains("is not a digest"));
    // What is worth a look is told of a definition alone, too.
    let browser = "apiVersion: fleetwright/v1\nname: b\npackage: { npm: '@playwright/mcp', version: 0.0.83 }\n\
                   run: { transport: stdio, port: 8801 }\n";
    let path = fleet.write("config/servers/b.yaml", browser).to_string_lossy().into_owned();
    let told = fleet.run(&["validate", &path]).expect_code(0).stderr;
    assert!(told.contains("b.yaml:3:10: `@playwright/mcp` keeps ") && told.contains("`run.sessions: own`"), "{told}");
}

/// A server of MCP, as a bundle holds it.
const BUNDLED: &str = r#"
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer = dict(jsonrpc="2.0", id=message["id"])
    method = message["method"]
    if method == "initialize":
        info = dict(name="bundled", version="1")
        answer["result"] = dict(protocolVersion="2025-11-25", capabilities=dict(tools=dict()), serverInfo=info)
    elif method == "tools/list":
        answer["result"] = dict(tools=[dict(name="greet", inputSchema=dict(type="object"))])
    elif method == "tools/call":
        words = "%s, %s" % (os.environ["GREETING"], message["params"]["arguments"]["name"])
        answer["result"] = dict(content=[dict(type="text", text=words)])
    else:
        answer["error"] = dict(code=-32601, message="no such method")
    print(json.dumps(answer), flush=True)
"#;

const MANIFEST: &str = r#"{ "manifest_version": "0.3", "name": "greeter", "version": "1.0.0", "description": "d",
    "author": { "name": "a" }, "server": { "type": "python", "entry_point": "server/main.py", "mcp_config": {
    "command": "python3", "args": ["${__dirname}/server/main.py"], "env": { "GREETING": "Good day" } } } }"#;

/// Serves the files of a folder over HTTPS, and says at which port.
const HTTPS: &str = r#"
import http.server, ssl
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// Where a publisher has its files, over HTTPS with a certificate of an authority of its own.
struct Publisher {
    server: Child,
    port: u16,
}

impl Publisher {
    /// Writes the authority's certificate to `authority.pem` in the folder.
    fn new(folder: &Path) -> Self {
        let (key, own) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, key).expect("an authority");
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let server = server.signed_by(&own, &authority).expect("a certificate");
        fs::write(folder.join("authority.pem"), authority.pem()).expect("write");
        fs::write(folder.join("server.pem"), format!("{}{}", server.pem(), own.serialize_pem())).expect("write");
        let mut command = Command::new("python3");
        command.args(["-c", HTTPS]).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().expect("python starts");
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        Self { server, port: line.trim().parse().expect("a port") }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_bundle_is_imported_staged_and_started_and_an_official_client_calls_its_tool() {
    if !have(&[Tool::Python, Tool::Pypi]) {
        return;
    }
    let fleet = Fleet::new();
    let build = fleet.path().join("bundle");
    fs::create_dir_all(build.join("server")).expect("a folder");
    fs::write(build.join("manifest.json"), MANIFEST).expect("write");
    fs::write(build.join("server/main.py"), BUNDLED).expect("write");
    let mut zip = Command::new("python3");
    zip.args(["-m", "zipfile", "-c", "greeter.mcpb", "manifest.json", "server/"]).current_dir(&build);
    assert!(zip.status().expect("python runs").success());
    let summed = Command::new("sha256sum").arg(build.join("greeter.mcpb")).output().expect("sha256sum runs").stdout;
    let sha256 = String::from_utf8_lossy(&summed).split(' ').next().expect("a digest").to_owned();
    let publisher = Publisher::new(&build);
    let entry = |sha256: &str| {
        format!(
            r#"{{ "name": "io.github.example/greeter", "description": "d", "version": "1.0.0", "packages": [ {{ "registryType": "mcpb",
            "identifier": "https://127.0.0.1:{}/greeter.mcpb", "version": "1.0.0", "fileSha256": "{sha256}", "transport": {{ "type": "stdio" }} }} ] }}"#,
            publisher.port
        )
    };
    let authority = build.join("authority.pem");
    let import = |entry: &str, more: &[&str]| {
        let path = fleet.write("entry.json", entry).to_string_lossy().into_owned();
        let mut command = fleet.command(&[&["import", &path][..], more].concat());
        command.env("SSL_CERT_FILE", &authority).output().expect("it runs")
    };
    let refused = import(&entry(&"0".repeat(64)), &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains(&sha256) && said.contains("permission_error (import)"),
        "{said}"
    );
    let port = bridged::free_port();
    let imported = import(&entry(&sha256), &["--port", &port.to_string()]);
    let text = String::from_utf8_lossy(&imported.stdout);
    assert!(imported.status.success() && text.contains(&sha256) && text.contains("/server/main.py"), "{imported:?}");
    fleet.write("config/servers/greeter.yaml", &text);
    let manifest = fleet.configure(&[], "servers:\n  - { server: greeter, place: { hosts: [host-1] } }\n");
    let trusting = [("SSL_CERT_FILE", authority.to_str().expect("a path"))];
    fleet.up_with(&manifest, &["--agents", "1"], &trusting).expect_code(0);
    let server = &fleet.servers()["greeter@host-1"];
    assert_eq!(server["health"], "healthy", "{server:#}");
    assert!(server.to_string().contains(r#""tools":["greet"]"#), "{server:#}");
    let url = format!("http://{}:{port}/mcp", fleet.address(1));
    let mut call = Kit::Python2.command("call.py");
    let call = call.args([&url, "auto", "greet", r#"{"name": "Ada"}"#]).output().expect("it runs");
    let said: Value = serde_json::from_slice(&call.stdout).unwrap_or_else(|error| panic!("{error}: {call:?}"));
    assert_eq!(said["text"], "Good day, Ada", "{said:#}");
}
