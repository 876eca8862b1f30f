//! Importing: entries of a registry of MCP servers become definitions, and what their packages say counts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use fleetwright_tests::fleet::{Fleet, Outcome};
use fleetwright_tests::tools::{Tool, have};

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
}
