//! The coordinator's disk is full: nothing new is done, nothing is lost, and it goes on when there is room.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fleetwright_tests::fleet::{Fleet, text};
use fleetwright_tests::tools::{Tool, have};

/// A small disk of its own, in memory; unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&at).status();
        assert!(mounted.expect("mount runs").success());
        Self(at)
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("remove");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps just that.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_coordinator_whose_disk_is_full_refuses_new_work_loses_nothing_and_goes_on() {
    if !have(&[Tool::Mount]) {
        return;
    }
    let fleet = Fleet::new();
    let lines = "servers:\n  - { server: web }\nrollout: { min_healthy_time: 200ms, bake: 0s }\n";
    let manifest = fleet.configure_plain(&["web"], 1, lines);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    fleet.run(&["down"]).expect_code(0);
    // The journal alone moves to the small disk: agents have disks of their own.
    let disk = SmallDisk::mount(fleet.path().join("small"));
    let (journal, moved) = (fleet.state_dir().join("journal.db"), disk.0.join("journal.db"));
    fs::copy(&journal, &moved).expect("copy");
    fs::remove_file(&journal).expect("remove");
    std::os::unix::fs::symlink(&moved, &journal).expect("link");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let generation = fleet.json(&["status"])["status"]["generation"].clone();
    disk.fill();
    fleet.configure_plain(&["web"], 2, lines);
    let refused = fleet.run(&["deploy", "start", &manifest.to_string_lossy(), "--output", "json"]).expect_code(1);
    let error = &refused.json()["error"];
    assert_eq!(error["kind"], "resource_error", "{error:#}");
    assert!(
        text(&error["message"]).contains("no room left") && text(&error["hint"]).contains("make room"),
        "{error:#}"
    );
    // It still answers, and shows what is durable. The health of the server may just have become so.
    assert_eq!(fleet.json(&["status"])["status"]["generation"], generation);
    fleet.wait_until("it shows what its journal holds", || {
        let shown = fleet.json(&["status"])["status"]["last_event"].clone();
        shown.is_u64() && shown == fleet.json(&["journal", "verify"])["entries"]
    });
    let before = fleet.json(&["status"])["status"]["last_event"].as_u64().expect("a number");
    assert_eq!(fleet.json(&["deploy", "list"]).as_array().map(Vec::len), Some(1));
    disk.make_room();
    fleet.wait_until("it goes on and the host is back", || {
        let status = &fleet.json(&["status"])["status"];
        status["last_event"].as_u64() > Some(before + 1) && status["hosts_connected"] == 1
    });
    fleet.deploy(&manifest, &[]).expect_code(0);
    fleet.run(&["journal", "verify"]).expect_code(0);
    fleet.run(&["down"]).expect_code(0);
}
