//! Locks: what comes with a package of a registry is fixed beside its definition, and nothing else is installed.

use std::fs;
use std::path::PathBuf;

use fleetwright_tests::fleet::Fleet;
use fleetwright_tests::tools::{Tool, have};

fn definition(fleet: &Fleet, package: &str, command: &str) -> PathBuf {
    fleet.write(
        "config/servers/alpha.yaml",
        &format!(
            "apiVersion: fleetwright/v1\nname: alpha\npackage: {{ {package} }}\nrun:\n  command: {command}\n  stop_timeout: 2s\n\
             health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n"
        ),
    )
}

/// Locks, deploys, and finds that another digest, another version and no lock at all are refused.
#[track_caller]
fn is_locked(package: &str, version: &str, command: &str, spoil: impl Fn(&str) -> String) {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha }\n");
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\nrules: { locked: true }\n");
    let written = definition(&fleet, &format!("{package}, version: {version}"), command);
    let (manifest_path, path) = (manifest.to_string_lossy().into_owned(), written.to_string_lossy().into_owned());
    let refused = fleet.run(&["plan", &manifest_path]).expect_code(1).stderr;
    assert!(
        refused.contains("it has no lock (rule `locked` of environment test)") && refused.contains("fleetwright lock"),
        "{refused}"
    );
    let locked = fleet.run(&["lock", &path]).expect_code(0).stdout;
    assert!(locked.contains("wrote ") && locked.contains("alpha.lock"), "{locked}");
    assert!(fleet.run(&["lock", &path]).expect_code(0).stdout.contains("is as it was"));
    let lock = fs::read_to_string(written.with_extension("lock")).expect("a lock");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let installed = fleet.host("host-1").join("servers/alpha/current/installed.lock");
    assert_eq!(fs::read_to_string(&installed).expect("read"), lock);

    fs::write(written.with_extension("lock"), spoil(&lock)).expect("write");
    let shown = fleet.run(&["plan", &manifest_path]).expect_code(0).stdout;
    assert!(shown.contains(".lock.") && shown.contains("digest"), "{shown}");
    let failed = fleet.deploy(&manifest, &[]);
    assert!(failed.code != 0 && failed.stderr.contains("permission_error"), "{}", failed.stderr);
    assert!(failed.stderr.contains("gives something else"), "{}", failed.stderr);
    assert_eq!(fs::read_to_string(&installed).expect("read"), lock, "what ran still runs");

    definition(&fleet, &format!("{package}, version: 0.0.1"), command);
    let refused = fleet.run(&["plan", &manifest_path]).expect_code(1).stderr;
    assert!(refused.contains("alpha.yaml:3:") && refused.contains("its lock is not of"), "{refused}");
}

#[test]
fn a_package_from_pypi_is_what_its_lock_says_or_nothing() {
    if !have(&[Tool::Python, Tool::Pypi]) {
        return;
    }
    let command = "[python, -c, \"import six, time; time.sleep(100000)\"]";
    is_locked("pypi: six", "1.16.0", command, |lock| {
        lock.lines()
            .map(|line| match line.split_once("sha256:") {
                Some((before, digest)) => format!("{before}sha256:00{}\n", &digest[2..]),
                None => format!("{line}\n"),
            })
            .collect()
    });
}

#[test]
fn a_package_from_npm_is_what_its_lock_says_or_nothing() {
    if !have(&[Tool::Npm]) {
        return;
    }
    let command = "[node, -e, \"setInterval(() => {}, 100000)\"]";
    is_locked("npm: is-number", "7.0.0", command, |lock| {
        let at = lock.find("\"sha512-").expect("a digest") + "\"sha512-".len();
        format!("{}AAAA{}", &lock[..at], &lock[at + 4..])
    });
}

#[test]
fn what_cannot_be_locked_is_told() {
    let fleet = Fleet::new();
    let written = definition(&fleet, "archive: 'https://h/a.tar', sha256: x, version: 1", "[true]");
    let refused = fleet.run(&["lock", &written.to_string_lossy()]).expect_code(1).stderr;
    assert!(refused.contains("nothing to lock") && refused.contains("digests of their own"), "{refused}");
    if have(&[Tool::Python, Tool::Pypi]) {
        let written = definition(&fleet, "pypi: six, version: 0.0.0.1", "[true]");
        let failed = fleet.run(&["lock", &written.to_string_lossy()]).expect_code(1).stderr;
        assert!(failed.contains("could not be locked") && failed.contains("six==0.0.0.1"), "{failed}");
        assert!(!written.with_extension("lock").exists());
    }
}
