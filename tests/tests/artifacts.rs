//! Artifacts that the coordinator keeps: sent from beside their definition, moved in chunks, given to whom they are for.

use std::fs;
use std::path::Path;
use std::process::Command;

use fleetwright_protocol::report::{AgentMessageV1, CoordinatorReply};
use fleetwright_tests::fleet::{Fleet, text};
use fleetwright_tests::impostor::StolenKey;

/// Bytes that no compression makes smaller, the same for the same seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        // xorshift64* (Vigna, 2016)
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        noise.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// Packs a program that says its version and sleeps, with much beside it, compressed with gzip as builds are.
fn pack(fleet: &Fleet, version: u32) {
    let folder = fleet.path().join("build");
    fs::create_dir_all(folder.join("bin")).expect("folder");
    let program = format!("#!/bin/sh\necho version {version}\nexec sleep 100000\n");
    fs::write(folder.join("bin/serve"), program).expect("write");
    fs::write(folder.join("bin/data"), noise(7, 6 << 20)).expect("write");
    fs::set_permissions(folder.join("bin/serve"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    fs::create_dir_all(fleet.path().join("config/servers/dist")).expect("folder");
    let packed = Command::new("tar")
        .args(["--sort=name", "--mtime=@0", "-czf"])
        .arg(fleet.path().join("config/servers/dist/alpha.tar.gz"))
        .arg("-C")
        .arg(&folder)
        .arg("bin")
        .status();
    assert!(packed.expect("tar runs").success());
}

fn definition(package: &str, version: u32) -> String {
    format!(
        "apiVersion: fleetwright/v1\nname: alpha\npackage: {{ {package}, version: '{version}' }}\nrun:\n  command: [serve]\n  stop_timeout: 2s\n\
         health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n"
    )
}

/// How many bytes of the last artifact that an agent has fetched it did not have.
fn newly_fetched(fleet: &Fleet, host: &str) -> u64 {
    let log = fleet.agent_log(host);
    let line = log.lines().rev().find(|line| line.contains("an artifact is fetched")).expect("it has fetched one");
    let new = line.split("new=").nth(1).expect("a number");
    new.split_whitespace().next().expect("a number").parse().expect("a number")
}

fn chunks(host: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(host.join("blobs")).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "zst")).collect()
}

/// What the coordinator answers to somebody who has the key of a host.
async fn ask(fleet: &Fleet, host: &str, address: &str, message: AgentMessageV1) -> CoordinatorReply {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stolen = StolenKey::dial(fleet, host, "127.0.0.1").await;
    let greeted = stolen.greet(address, &[]).await;
    assert!(matches!(greeted, Some(CoordinatorReply::Acknowledged)), "{greeted:?}");
    stolen.tell(message).await.expect("an answer")
}

#[test]
fn a_file_beside_its_definition_is_deployed_and_a_changed_one_moves_only_what_changed() {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha, place: { hosts: [host-1, host-2] } }\n");
    pack(&fleet, 1);
    fleet.write("config/servers/alpha.yaml", &definition("archive: dist/alpha.tar.gz", 1));
    let up = fleet.up(&manifest, &["--agents", "3"]).expect_code(0);
    assert!(up.stderr.contains("sent alpha.tar to the coordinator: 6 MiB, 6 MiB of it new"), "{}", up.stderr);
    let whole = newly_fetched(&fleet, "host-1");
    assert!(whole > 6 << 20, "{whole}");
    let app = fleet.host("host-2").join("servers/alpha/current/app/bin");
    assert_eq!(fs::read(app.join("data")).expect("read"), noise(7, 6 << 20));
    fleet.wait_until("it has said its version", || {
        fleet.run(&["servers", "logs", "alpha@host-1"]).stdout.contains("version 1")
    });

    // Only who is to run it may have it, and only while it is to be staged.
    let list = fleet.json(&["artifacts", "list"]);
    assert_eq!((&list[0]["name"], &list[0]["in_use"]), (&"alpha.tar".into(), &true.into()));
    let sha256 = text(&list[0]["sha256"]).to_owned();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for (host, number) in [("host-1", 1), ("host-3", 3)] {
        let message = AgentMessageV1::ListChunks { sha256: sha256.clone(), from: 0 };
        let reply = runtime.block_on(ask(&fleet, host, &fleet.address(number), message));
        assert!(
            matches!(&reply, CoordinatorReply::Refused(why) if why.contains("nothing that this host is to run")),
            "{reply:?}"
        );
    }
    fleet.wait_until("the true agents are back", || fleet.json(&["status"])["status"]["hosts_connected"] == 3);
    let refused = fleet.run(&["artifacts", "remove", &sha256]).expect_code(1);
    assert!(refused.stderr.contains("is used by what runs"), "{}", refused.stderr);

    // A host that has lost chunks fetches those as well; the others fetch what changed.
    let before = chunks(&fleet.host("host-2"));
    let lost = before.len() / 2;
    before.iter().take(lost).for_each(|chunk| fs::remove_file(chunk).expect("remove"));
    pack(&fleet, 2);
    fleet.write("config/servers/alpha.yaml", &definition("archive: dist/alpha.tar.gz", 2));
    let deployed = fleet.deploy(&manifest, &[]).expect_code(0);
    assert!(deployed.stderr.contains("sent alpha.tar to the coordinator: 6 MiB, "), "{}", deployed.stderr);
    let (some, half) = (newly_fetched(&fleet, "host-1"), newly_fetched(&fleet, "host-2"));
    assert!(some < 1 << 20, "{some} of {whole} bytes");
    assert!(half > whole / 4 && half < whole, "{half} of {whole} bytes");
    fleet.wait_until("it has said its version", || {
        fleet.run(&["servers", "logs", "alpha@host-2"]).stdout.contains("version 2")
    });
    assert_eq!(fs::read(app.join("data")).expect("read"), noise(7, 6 << 20));

    // What both releases have in common is on the disk once.
    let links = std::os::unix::fs::MetadataExt::nlink(&fs::metadata(app.join("data")).expect("metadata"));
    assert_eq!(links, 2);

    // Nothing changes, nothing is sent; what nothing uses can be removed.
    let again = fleet.deploy(&manifest, &[]).expect_code(0);
    assert!(again.stderr.contains("nothing changes") && !again.stderr.contains("sent "), "{}", again.stderr);
    let removed = fleet.run(&["artifacts", "prune", "--older-than", "0s"]).expect_code(0);
    assert!(removed.stdout.contains(&sha256), "{}", removed.stdout);
    assert_eq!(fleet.json(&["artifacts", "list"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn an_artifact_that_is_missing_damaged_or_another_one_is_told() {
    let fleet = Fleet::new();
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha, place: { hosts: [host-1] } }\n");
    let path = manifest.to_string_lossy().into_owned();
    fleet.write("config/servers/alpha.yaml", &definition("archive: dist/none.tar", 1));
    let told = fleet.run(&["plan", &path]).expect_code(1).stderr;
    assert!(told.contains("alpha.yaml:3:") && told.contains("none.tar cannot be read"), "{told}");
    pack(&fleet, 1);
    let digest = "0".repeat(64);
    let wrong = format!("archive: dist/alpha.tar.gz, sha256: '{digest}'");
    fleet.write("config/servers/alpha.yaml", &definition(&wrong, 1));
    let told = fleet.run(&["plan", &path]).expect_code(1).stderr;
    assert!(told.contains("has the SHA-256") && told.contains("leave `sha256` out"), "{told}");

    let named = format!("archive: 'artifact:alpha.tar', sha256: '{digest}'");
    fleet.write("config/servers/alpha.yaml", &definition(&named, 1));
    let told = fleet.up(&manifest, &["--agents", "1"]).expect_code(1).stderr;
    assert!(told.contains("the coordinator has no artifact") && told.contains("artifacts push"), "{told}");
    // What `push` prints is what a definition says.
    let packed = fleet.path().join("config/servers/dist/alpha.tar.gz");
    let pushed = fleet.run(&["artifacts", "push", &packed.to_string_lossy()]).expect_code(0).stdout;
    let sha256 = pushed.lines().find_map(|line| line.trim().strip_prefix("sha256: ")).expect("a digest").to_owned();
    assert!(pushed.contains("archive: artifact:alpha.tar"), "{pushed}");
    let named = format!("archive: 'artifact:alpha.tar', sha256: '{sha256}'");
    fleet.write("config/servers/alpha.yaml", &definition(&named, 1));

    // A chunk that is damaged at the coordinator reaches no disk, and the deployment says so.
    let folder = fleet.state_dir().join("artifacts/chunks");
    let chunk = fs::read_dir(&folder).expect("chunks").flatten().next().expect("a chunk").path();
    let sound = fs::read(&chunk).expect("read");
    fs::write(&chunk, zstd_like_rubbish(&sound)).expect("write");
    let failed = fleet.deploy(&manifest, &[]);
    assert!(failed.code != 0 && failed.stderr.contains("a chunk "), "{}\n{}", failed.stdout, failed.stderr);
    fs::write(&chunk, sound).expect("write");
    fleet.deploy(&manifest, &[]).expect_code(0);
    assert!(fleet.run(&["artifacts", "push", "no-such-file"]).expect_code(1).stderr.contains("cannot be read"));
    assert!(fleet.run(&["artifacts", "remove", &"1".repeat(64)]).expect_code(1).stderr.contains("has no artifact"));
}

/// A chunk with a bit of its content turned over.
fn zstd_like_rubbish(chunk: &[u8]) -> Vec<u8> {
    let mut rubbish = chunk.to_vec();
    let middle = rubbish.len() / 2;
    rubbish[middle] ^= 1;
    rubbish
}
