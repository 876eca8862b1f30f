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

#[test]
fn files_encrypted_files_and_programs_give_values_also_to_a_coordinator_that_was_started_anew() {
    let fleet = Fleet::new();
    let folder = fleet.path().join("values");
    fs::create_dir_all(&folder).expect("folder");
    fs::write(folder.join("plain"), format!("{CANARY}-file\n")).expect("write");
    fs::write(folder.join("printed"), format!("{CANARY}-program\n")).expect("write");
    let shown = folder.display();
    fleet.write(
        "config/environments/test.yaml",
        &format!(
            "apiVersion: fleetwright/v1\nname: test\nsecrets:\n  of_file: {{ file: '{shown}/plain' }}\n  of_program: {{ command: [cat, '{shown}/printed'] }}\n"
        ),
    );
    let definition = |version: u32| {
        let program = format!(
            "apiVersion: fleetwright/v1\nname: beta\nrun:\n  command: [sh, -c, 'echo version {version}; exec sleep 100000']\n  stop_timeout: 2s\n  environment:\n    \
             FILE: '{{{{ secret(name=\"of_file\") }}}}'\n    URL: 'x://u:{{{{ secret(name=\"of_program\", encode=\"url\") }}}}@h'\n    PROGRAM: '{{{{ secret(name=\"of_program\") }}}}'\n\
             health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n"
        );
        fleet.write("config/servers/beta.yaml", &program);
    };
    definition(1);
    let manifest = fleet.write(
        "manifests/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: beta }\n",
    );
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let environment = || -> serde_json::Value {
        let path = fleet.host("host-1").join("servers/beta/current/environment.json");
        serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
    };
    assert_eq!(environment()["FILE"], format!("{CANARY}-file"));
    assert_eq!(environment()["PROGRAM"], format!("{CANARY}-program"));
    assert_eq!(environment()["URL"], format!("x://u:{CANARY}-program@h"));
    let listed = |what: &str| {
        let listed = fleet.run(&["secrets", "list"]).expect_code(0).stdout;
        let line = listed.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{listed}"));
        assert!(!listed.contains(CANARY) && line.contains("beta@host-1"), "{listed}");
        line.to_owned()
    };
    assert!(listed("of_program").contains("command cat") && listed("of_program").contains("current"));
    assert!(listed("of_file").contains("file /") && listed("of_file").contains("ago"));

    // The host sleeps while it is told to stage, and the coordinator that told it is gone with all that it remembered.
    use rustix::process::{Signal, kill_process};
    let agent = fleet.holder(&fleet.host("host-1").join("agent.lock")).expect("an agent");
    definition(2);
    kill_process(agent, Signal::STOP).expect("stop");
    let started = fleet.json(&["deploy", "start", &manifest.to_string_lossy()]);
    fleet.kill_coordinator();
    let mut coordinator = fleet.start_coordinator();
    kill_process(agent, Signal::CONT).expect("continue");
    let id = started["id"].as_str().expect("an id").to_owned();
    fleet.wait_until("it has ended", || {
        fleet.run(&["deploy", "show", &id, "--output", "json"]).stdout.contains("\"outcome\":")
            && fleet.json(&["deploy", "show", &id])["summary"]["outcome"].is_string()
    });
    assert_eq!(fleet.json(&["deploy", "show", &id])["summary"]["outcome"], "succeeded");
    assert_eq!(environment()["PROGRAM"], format!("{CANARY}-program"));

    // Another value is a change, and one that is gone stops the plan with what to do.
    fs::write(folder.join("printed"), "rotated").expect("write");
    let plan = fleet.run(&["plan", &manifest.to_string_lossy()]).expect_code(0).stdout;
    assert!(listed("of_program").contains("changed: deploy again"));
    assert!(plan.contains("secrets.of_program changed") && !plan.contains("rotated"), "{plan}");
    fs::remove_file(folder.join("printed")).expect("remove");
    assert!(listed("of_program").contains("no value"));
    let refused = fleet.run(&["plan", &manifest.to_string_lossy()]).expect_code(1).stderr;
    assert!(refused.contains("secret `of_program` has no value") && refused.contains("run `cat "), "{refused}");
    let mut found = Vec::new();
    files_with(&fleet.state_dir(), CANARY, &mut found);
    assert!(found.iter().all(|path| path.ends_with("environment.json")), "{found:?}");
    coordinator.kill().expect("kill");
    coordinator.wait().expect("wait");
}

#[test]
fn agents_that_are_killed_in_the_midst_leave_no_value_where_none_belongs() {
    let fleet = Fleet::new();
    fs::write(fleet.path().join("value"), format!("{CANARY}\n")).expect("write");
    let file = fleet.path().join("value").display().to_string();
    fleet.write(
        "config/environments/test.yaml",
        &format!("apiVersion: fleetwright/v1\nname: test\nsecrets: {{ key: {{ file: '{file}' }} }}\n"),
    );
    let manifest = fleet.write(
        "manifests/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: beta }\n\
         rollout: { min_healthy_time: 100ms, healthy_deadline: 20s, confirm_timeout: 30s, progress_deadline: 2m }\n",
    );
    let define = |version: usize| {
        // Every second one fails, so that it is put back.
        let end = if version.is_multiple_of(2) { "exit 9" } else { "exec sleep 100000" };
        fleet.write(
            "config/servers/beta.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: beta\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\"]\n  stop_timeout: 2s\n  \
                 environment: {{ KEY: '{{{{ secret(name=\"key\") }}}}', JSON: '{{{{ secret(name=\"key\", encode=\"json\") }}}}' }}\n\
                 files:\n  - {{ path: run.sh, content: 'echo {version}; {end}' }}\n  - {{ path: key, content: '{{{{ secret(name=\"key\") }}}}' }}\n\
                 health_checks:\n  - {{ name: alive, type: command, interval: 1s, config: {{ command: [\"true\"] }} }}\n"
            ),
        );
    };
    define(1);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let mut started = Vec::new();
    for (version, after) in (2..).zip(["staging", "switching", "verifying", "restoring"]) {
        define(version);
        let id =
            fleet.json(&["deploy", "start", &manifest.to_string_lossy()])["id"].as_str().expect("an id").to_owned();
        let state =
            || fleet.json(&["deploy", "show", &id])["steps"][0]["state"].as_str().unwrap_or_default().to_owned();
        // It may have gone on before anybody looks: what is left behind then is looked for all the same.
        let is_over = || fleet.json(&["deploy", "show", &id])["summary"]["outcome"].is_string();
        fleet.wait_until("it has come so far", || state() == after || is_over());
        fleet.kill_agent("host-1");
        started.push(fleet.start_agent("host-1"));
        fleet.wait_until("it has ended", is_over);
    }
    let mut found = Vec::new();
    files_with(&fleet.state_dir(), CANARY, &mut found);
    let belongs = |path: &PathBuf| {
        let path = path.display().to_string();
        path.contains("/servers/beta/") && (path.ends_with("/environment.json") || path.ends_with("/config/key"))
    };
    assert!(!found.is_empty() && found.iter().all(belongs), "{found:?}");
    for mut agent in started {
        let _ = agent.kill();
        let _ = agent.wait();
    }
}
