//! Values of secrets are where they are needed, and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};

use fleetwright_tests::fleet::Fleet;
use fleetwright_tests::servers::TestServer;
use fleetwright_tests::tools::{Tool, have};

const CANARY: &str = "canary-5f1c9b7e-do-not-show";

fn files_with(folder: &Path, needle: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            files_with(&path, needle, found);
        } else if fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle.as_bytes()))
        {
            found.push(path);
        }
    }
}

#[test]
fn a_secret_is_only_in_the_files_of_its_instance() {
    if !have(&[Tool::Python]) {
        return;
    }
    let fleet = Fleet::new();
    let mut server = TestServer::works("alpha", 9401, "one");
    server.more = "";
    let definition = server.definition().replace(
        "  stop_timeout: 2s\n",
        "  stop_timeout: 2s\n  environment:\n    API_KEY: '{{ secret(name=\"api_key\") }}'\n    GENERATED: '{{ random_string(length=40) }}'\n    FLEETWRIGHT_BRIDGE_TOKEN: '{{ secret(name=\"api_key\") }}'\n",
    );
    let check = "{ name: tools, type: mcp, interval: 1s, timeout: 5s }";
    assert!(definition.contains(check));
    let header = "{ Authorization: 'Bearer {{ secret(name=\"api_key\") }}' }";
    let presenting =
        format!("{{ name: tools, type: mcp, interval: 1s, timeout: 5s, config: {{ headers: {header} }} }}");
    let definition =
        definition.replace(check, &presenting) + "integration_tests:\n  - { tool: one, contains: called one }\n";
    let manifest = fleet.configure(&[server], "servers:\n  - { server: alpha }\n");
    fleet.write("config/servers/alpha.yaml", &definition);
    fleet.write(
        "config/environments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nsecrets: { api_key: { env: FLEETWRIGHT_TEST_API_KEY } }\n",
    );
    let path = manifest.to_string_lossy();
    let refused = fleet.up(&manifest, &["--agents", "1"]).expect_code(1);
    assert!(refused.stderr.contains("secret `api_key` has no value"), "{}", refused.stderr);
    // The refused `up` has stopped what it had started, so the next one starts the coordinator with the secret.
    fleet.run(&["down"]).expect_code(0);
    let first_address = fleet.address(1);
    let mut up = fleet.command(&["up", &path, "--detach", "--agents", "1", "--first-address", &first_address]);
    let output = up.env("FLEETWRIGHT_TEST_API_KEY", CANARY).env("FLEETWRIGHT_LOG", "trace").output().expect("up");
    let shown = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&shown));
    assert!(!String::from_utf8_lossy(&shown).contains(CANARY));

    let mut found = Vec::new();
    files_with(&fleet.state_dir(), CANARY, &mut found);
    let mut names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    names.sort();
    assert_eq!(names, ["checked-secrets.json", "environment.json"], "{found:?}");
    use std::os::unix::fs::PermissionsExt;
    for file in &found {
        assert_eq!(fs::metadata(file).expect("metadata").permissions().mode() & 0o777, 0o600);
    }
    let environment = found.iter().find(|file| file.ends_with("environment.json")).expect("it was found");
    let environment: serde_json::Value = serde_json::from_slice(&fs::read(environment).expect("read")).expect("JSON");
    assert_eq!(environment["GENERATED"].as_str().map(str::len), Some(40));

    for process in fs::read_dir("/proc").expect("proc").flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains(CANARY), "an argument of {:?}", process.path());
    }
    for command in [&["deploy", "list"][..], &["servers", "list"], &["plan", &path]] {
        let outcome = fleet.run(&[command, &["--output", "json"]].concat());
        assert!(!outcome.stdout.contains(CANARY) && !outcome.stderr.contains(CANARY), "{command:?}");
    }
    // The bridge asks for the token, and the check presents it.
    let checks = fleet.run(&["check", "run", "alpha", "--output", "json"]).expect_code(0);
    assert!(checks.stdout.contains("lists 1 tools") && !checks.stdout.contains(CANARY), "{}", checks.stdout);
    let anonymous = std::process::Command::new("curl")
        .args(["--silent", "--noproxy", "*", "--output", "/dev/null", "--write-out", "%{http_code}", "-X", "POST"])
        .arg(format!("http://{first_address}:9401/mcp"))
        .output()
        .expect("curl");
    assert_eq!(String::from_utf8_lossy(&anonymous.stdout), "401");
}
