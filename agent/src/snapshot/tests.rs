use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use fleetwright_deploy::release::Database;
use fleetwright_deploy::room::Room;
use rustix::fs::XattrFlags;

use super::*;

struct Setup {
    folder: tempfile::TempDir,
    layout: Layout,
    server: ServerLayout,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(&folder.path().join("agent"));
        let server = layout.server(&"s".parse().expect("name"));
        fs::create_dir_all(server.data().join("deep")).expect("folder");
        Self { folder, layout, server }
    }

    /// A release that is ready on disk.
    fn staged(&self, change: impl FnOnce(&mut Release)) -> ReleaseId {
        let mut release = Release::plain("s".parse().expect("name"), vec!["true".to_owned()]);
        change(&mut release);
        let layout = self.server.release(&release.id());
        fs::create_dir_all(layout.config()).expect("folder");
        fs::write(layout.config().join("app.toml"), "a = 1").expect("write");
        fs::write(layout.environment(), "{}").expect("write");
        fs::write(layout.manifest(), release.to_bytes()).expect("write");
        release.id()
    }

    async fn take(&self, id: &str, release: Option<&ReleaseId>, target: Option<&ReleaseId>) {
        take(&self.layout, &self.server, &id.parse().expect("id"), release, target).await.expect("taken");
    }

    async fn settle(&self, id: &str) {
        let turn = self.layout.turn_to_settle().await;
        settle(&self.layout, &self.server, &id.parse().expect("id"), turn).await.expect("settled");
    }

    async fn restore(&self, id: &str) -> Result<(), Failure> {
        restore(&self.layout, &self.server, &id.parse().expect("id")).await
    }
}

/// Everything that a person or a program may see of what is below a path.
fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        let content = if metadata.is_symlink() {
            fs::read_link(&path).expect("link").display().to_string()
        } else {
            fs::read_to_string(&path).unwrap_or_default()
        };
        let mut value = [0_u8; 64];
        let xattr = rustix::fs::lgetxattr(&path, "user.note", &mut value).map(|length| value[..length].to_vec());
        let (uid, gid, nlink) = (metadata.uid(), metadata.gid(), if metadata.is_dir() { 0 } else { metadata.nlink() });
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let below = path.strip_prefix(root).expect("below");
        found.push(format!("{below:?} {:o} {uid} {gid} {nlink} {modified:?} {xattr:?} {content}", metadata.mode()));
        if metadata.is_dir() {
            paths.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn data_comes_back_exactly_and_without_what_was_added_since() {
    let setup = Setup::new();
    let data = setup.server.data();
    fs::write(data.join("a"), "one").expect("write");
    fs::write(data.join("deep/b"), "two").expect("write");
    fs::hard_link(data.join("a"), data.join("deep/same")).expect("link");
    fs::set_permissions(data.join("a"), fs::Permissions::from_mode(0o640)).expect("mode");
    symlink("deep/b", data.join("link")).expect("link");
    symlink("/nowhere", data.join("dangling")).expect("link");
    let has_xattrs = rustix::fs::lsetxattr(data.join("deep/b"), "user.note", b"kept", XattrFlags::empty()).is_ok();
    fs::set_permissions(data.join("deep"), fs::Permissions::from_mode(0o500)).expect("mode");
    let before = listing(&data);
    assert!(!has_xattrs || before.iter().any(|line| line.contains("Ok([107")), "{before:#?}");
    let release = setup.staged(|release| release.snapshot_data = true);
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    fs::set_permissions(data.join("deep"), fs::Permissions::from_mode(0o700)).expect("mode");
    fs::write(data.join("a"), "changed").expect("write");
    fs::write(data.join("new"), "new").expect("write");
    fs::remove_file(data.join("link")).expect("remove");
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(listing(&data), before);
}

#[tokio::test]
async fn what_the_server_writes_until_it_is_stopped_is_kept_and_what_the_next_one_writes_is_not() {
    let setup = Setup::new();
    let data = setup.server.data();
    fs::write(data.join("early"), "1").expect("write");
    fs::write(data.join("same"), "1").expect("write");
    let old = setup.staged(|_| {});
    let new = setup.staged(|release| release.snapshot_data = true);
    setup.take("d1-aa-1", Some(&old), Some(&new)).await;
    fs::write(data.join("early"), "2, while it still ran").expect("write");
    setup.settle("d1-aa-1").await;
    fs::write(data.join("early"), "3, by the next release").expect("write");
    // The agent was killed after the next release had begun, and does it again.
    setup.settle("d1-aa-1").await;
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(fs::read_to_string(data.join("early")).expect("read"), "2, while it still ran");
}

#[tokio::test]
async fn nothing_is_put_back_where_nothing_was_touched() {
    let setup = Setup::new();
    let release = setup.staged(|release| release.snapshot_data = true);
    fs::write(setup.server.data().join("a"), "1").expect("write");
    setup.take("d1-aa-1", Some(&release), None).await;
    fs::write(setup.server.data().join("a"), "2, by the server, which was never stopped").expect("write");
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(fs::read_to_string(setup.server.data().join("a")).expect("read").as_bytes()[0], b'2');
}

#[tokio::test]
async fn listed_files_and_folders_of_the_host_come_back_and_those_that_were_not_there_go() {
    let setup = Setup::new();
    let host = setup.folder.path().join("host");
    fs::create_dir_all(host.join("conf.d")).expect("folder");
    fs::write(host.join("conf.d/a"), "1").expect("write");
    fs::write(host.join("single"), "1").expect("write");
    let listed = ["conf.d", "single", "later"].map(|name| host.join(name).display().to_string()).to_vec();
    let before = listing(&host);
    let release = setup.staged(|release| release.snapshot_paths = listed);
    setup.take("d1-aa-1", None, Some(&release)).await;
    setup.settle("d1-aa-1").await;
    fs::write(host.join("conf.d/b"), "2").expect("write");
    fs::write(host.join("single"), "2").expect("write");
    fs::create_dir_all(host.join("later/deep")).expect("folder");
    let changes = show(&setup.server, &"d1-aa-1".parse().expect("id"), true).expect("shown").changes;
    let told: Vec<String> = changes.iter().map(|change| format!("{} {}", change.change, change.path)).collect();
    let at = |name: &str| host.join(name).display().to_string();
    let wanted =
        [format!("added {}", at("conf.d/b")), format!("changed {}", at("single")), format!("added {}", at("later"))];
    assert!(wanted.iter().all(|line| told.contains(line)), "{told:#?}");
    setup.restore("d1-aa-1").await.expect("restored");
    let after: Vec<String> = listing(&host);
    let without_root =
        |lines: Vec<String>| lines.into_iter().filter(|line| !line.starts_with("\"\"")).collect::<Vec<_>>();
    assert_eq!(without_root(after), without_root(before));
}

#[tokio::test]
async fn a_link_that_somebody_else_could_have_put_on_the_way_to_a_listed_path_is_refused() {
    let setup = Setup::new();
    let host = setup.folder.path().join("host");
    fs::create_dir_all(host.join("real")).expect("folder");
    fs::write(host.join("real/conf"), "1").expect("write");
    symlink("real", host.join("link")).expect("link");
    let release = setup.staged(|release| release.snapshot_paths = vec![host.join("link/conf").display().to_string()]);
    setup.take("d1-aa-1", Some(&release), None).await;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777)).expect("mode");
    let id = "d2-aa-1".parse().expect("id");
    let failure = take(&setup.layout, &setup.server, &id, Some(&release), None).await.expect_err("refused");
    assert!(failure.message.contains("host/link is on the way to") && failure.hint.is_some(), "{failure:?}");
}

#[tokio::test]
async fn damaged_blobs_are_noticed_before_anything_is_touched() {
    let setup = Setup::new();
    let host = setup.folder.path().join("f");
    fs::write(&host, "one").expect("write");
    fs::write(setup.server.data().join("a"), "two").expect("write");
    let release = setup.staged(|release| {
        release.snapshot_data = true;
        release.snapshot_paths = vec![host.display().to_string()];
    });
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    let two = setup.layout.blobs().join(blake3::hash(b"one").to_hex().as_str());
    fs::write(two, "rotten").expect("write");
    fs::write(&host, "changed").expect("write");
    fs::write(setup.server.data().join("a"), "changed").expect("write");
    let failure = setup.restore("d1-aa-1").await.expect_err("damaged");
    assert!(failure.message.contains("is damaged"), "{failure}");
    assert_eq!(fs::read_to_string(setup.server.data().join("a")).expect("read"), "changed");
    assert_eq!(fs::read_to_string(&host).expect("read"), "changed");
}

#[tokio::test]
async fn on_a_full_disk_the_data_go_only_when_all_the_rest_can_be_put_back() {
    let setup = Setup::new();
    let (data, host) = (setup.server.data(), setup.folder.path().join("host"));
    fs::create_dir(&host).expect("folder");
    fs::write(host.join("conf"), "one").expect("write");
    fs::write(data.join("a"), "two").expect("write");
    let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let release = setup.staged(|release| {
        release.snapshot_data = true;
        release.snapshot_paths = vec![host.join("conf").display().to_string()];
        release.database = Some(Database { dump: shell("echo rows"), restore: shell("true") });
    });
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    fs::write(data.join("a"), vec![1; 1 << 20]).expect("write");
    let manifest = read(&setup.server, &"d1-aa-1".parse().expect("id")).expect("read");
    let full = Room { total_bytes: 1 << 30, ..Room::default() };
    let make_room = || room::make_room_on(&full, &setup.layout, &setup.server, &manifest);
    let config = setup.server.release(&release).config().join("app.toml");
    for (damaged, sound) in [
        (setup.layout.blobs().join(blake3::hash(b"one").to_hex().as_str()), "one"),
        (setup.layout.blobs().join(blake3::hash(b"rows\n").to_hex().as_str()), "rows\n"),
        (config, "a = 1"),
    ] {
        fs::write(&damaged, "rotten").expect("write");
        make_room().expect_err("not all of it can be put back");
        assert!(data.join("a").exists(), "{}", damaged.display());
        fs::write(&damaged, sound).expect("write");
    }
    // A link on the way to a listed path, in a folder that others may write.
    fs::rename(&host, setup.folder.path().join("moved")).expect("rename");
    symlink("moved", &host).expect("link");
    fs::set_permissions(setup.folder.path(), fs::Permissions::from_mode(0o777)).expect("mode");
    let refused = make_room().expect_err("the path is not reached");
    assert!(refused.message.contains("host is on the way to") && data.join("a").exists(), "{refused:?}");
    fs::set_permissions(setup.folder.path(), fs::Permissions::from_mode(0o700)).expect("mode");
    make_room().expect("made");
    assert!(!data.exists(), "all of it can be put back");
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(fs::read_to_string(data.join("a")).expect("read"), "two");
}

/// More than can be counted may be enough: a server must not keep itself from being put back by how deep its folders are.
#[tokio::test]
async fn on_a_full_disk_data_that_cannot_be_counted_go_for_those_of_the_snapshot() {
    let setup = Setup::new();
    let data = setup.server.data();
    let release = setup.staged(|release| release.snapshot_data = true);
    fs::write(data.join("a"), vec![1; 3 << 20]).expect("write");
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    let manifest = read(&setup.server, &"d1-aa-1".parse().expect("id")).expect("read");
    let full = Room { total_bytes: 1 << 30, ..Room::default() };
    fs::write(data.join("a"), "little").expect("write");
    room::make_room_on(&full, &setup.layout, &setup.server, &manifest).expect("nothing is done");
    assert!(data.join("a").exists(), "in the place of so little there is no room either");
    let deep: PathBuf = std::iter::repeat_n("d", crate::beneath::DEPTH_MAX + 2).collect();
    fs::create_dir_all(data.join(deep)).expect("folders");
    room::make_room_on(&full, &setup.layout, &setup.server, &manifest).expect("made");
    assert!(!data.exists());
}

/// Where a listed path has no room on its own disk, the data would be removed for nothing.
#[tokio::test]
async fn on_a_full_disk_the_data_stay_if_a_listed_path_has_no_room_on_its_own_disk() {
    let setup = Setup::new();
    let (data, host) = (setup.server.data(), setup.folder.path().join("host"));
    fs::create_dir(&host).expect("folder");
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("none", &host, "tmpfs", flags, Some(c"size=4m")).is_err() {
        // Only root may mount, and not on every host.
        return;
    }
    fs::write(host.join("conf"), vec![1; 1 << 20]).expect("write");
    fs::write(data.join("a"), vec![2; 3 << 20]).expect("write");
    let release = setup.staged(|release| {
        release.snapshot_data = true;
        release.snapshot_paths = vec![host.join("conf").display().to_string()];
    });
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    let manifest = read(&setup.server, &"d1-aa-1".parse().expect("id")).expect("read");
    let full = Room { total_bytes: 1 << 30, ..Room::default() };
    let filled = fs::write(host.join("fill"), vec![3; 5 << 20]).is_err();
    let outcome = room::make_room_on(&full, &setup.layout, &setup.server, &manifest);
    let stay = data.join("a").exists();
    fs::remove_file(host.join("fill")).expect("remove");
    let again = room::make_room_on(&full, &setup.layout, &setup.server, &manifest);
    rustix::mount::unmount(&host, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    outcome.expect("nothing is done");
    again.expect("made");
    assert!(filled && stay && !data.exists());
}

#[tokio::test]
async fn a_dump_that_is_damaged_is_noticed_before_the_data_are_exchanged() {
    let setup = Setup::new();
    fs::write(setup.server.data().join("a"), "one").expect("write");
    let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let release = setup.staged(|release| {
        release.snapshot_data = true;
        release.database = Some(Database { dump: shell("echo rows"), restore: shell("true") });
    });
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    fs::write(setup.server.data().join("a"), "changed").expect("write");
    let dump = setup.layout.blobs().join(blake3::hash(b"rows\n").to_hex().as_str());
    fs::write(dump, "rotten").expect("write");
    let failure = setup.restore("d1-aa-1").await.expect_err("damaged");
    assert!(failure.message.contains("the database is damaged"), "{failure}");
    assert_eq!(fs::read_to_string(setup.server.data().join("a")).expect("read"), "changed");
}

#[tokio::test]
async fn long_work_that_was_given_up_ends_before_it_changes_anything_more() {
    use crate::aside::as_given_up;
    let setup = Setup::new();
    let data = setup.server.data();
    fs::write(data.join("a"), vec![1; 8192]).expect("write");
    let release = setup.staged(|release| release.snapshot_data = true);
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    fs::write(data.join("a"), vec![2; 8192]).expect("write");
    let manifest = || read(&setup.server, &"d1-aa-1".parse().expect("id")).expect("read");
    let wanted = Wanted { data: true, paths: BTreeSet::new() };
    let blobs = || fs::read_dir(setup.layout.blobs()).expect("list").count();
    let full = Room { total_bytes: 1 << 30, ..Room::default() };
    let [one, other] = ["one", "other"].map(|name| setup.folder.path().join(name));
    for folder in [&one, &other] {
        fs::create_dir(folder).expect("folder");
        fs::write(folder.join("same"), vec![3; 8192]).expect("write");
    }
    as_given_up(|| {
        let kept = keep(&setup.layout, &setup.server, &wanted, &mut manifest(), Writer::Stopped);
        kept.expect_err("it is not kept");
        restore::put_back(&setup.layout, &setup.server, &manifest()).expect_err("it is not put back");
        room::make_room_on(&full, &setup.layout, &setup.server, &manifest()).expect_err("nothing makes room");
        stage::remove_folder(&data).expect_err("it is not removed");
        install::share(&one, &other).expect_err("it is not shared");
        let user = crate::runtime::users::User { uid: 12_345, gid: 12_345 };
        crate::ownership::settle_data(&setup.server, user).expect_err("it is not given away");
        crate::ownership::let_group_read(&data, user).expect_err("nor shown");
    });
    assert_eq!((fs::read(data.join("a")).expect("read"), blobs()), (vec![2; 8192], 1));
    assert_eq!(fs::metadata(other.join("same")).expect("there").nlink(), 1);
    assert_eq!(fs::metadata(data.join("a")).expect("there").uid(), crate::ownership::own_user().uid);
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(fs::read(data.join("a")).expect("read"), vec![1; 8192], "what comes after it does its work");
}

#[tokio::test]
async fn all_that_a_snapshot_needs_is_durable_before_it_counts() {
    let setup = Setup::new();
    let id: SnapshotId = "d1-aa-1".parse().expect("id");
    let mut manifest: Manifest =
        serde_json::from_str(r#"{"release":null,"release_files":{},"data":null}"#).expect("one");
    fs::write(setup.server.data().join("a"), "one").expect("write");
    let wanted = Wanted { data: true, paths: BTreeSet::new() };
    keep(&setup.layout, &setup.server, &wanted, &mut manifest, Writer::Stopped).expect("kept");
    let path = manifest_path(&setup.server.snapshot(&id));
    let blobs = Blobs::of(&setup.layout);
    let synced = durable::seen::of(&path, || write(&blobs, &setup.server, &id, &manifest).expect("written"));
    let before = |folder: &Path| synced.contains(&(folder.to_owned(), Vec::new()));
    assert!(before(&setup.layout.blobs()), "the names of contents: {synced:?}");
    assert!(before(setup.server.folder()) && before(&setup.server.snapshots()), "the name of the snapshot: {synced:?}");
    assert!(path.exists());
}

#[tokio::test]
async fn a_file_of_holes_is_kept_and_put_back_with_its_holes() {
    let setup = Setup::new();
    let data = setup.server.data();
    let (large, small, tail) = (data.join("large"), data.join("small"), 1 << 39);
    let holes = |path: &Path, length: u64, parts: &[(u64, &[u8])]| {
        let file = File::create(path).expect("file");
        file.set_len(length).expect("length");
        for (at, part) in parts {
            std::os::unix::fs::FileExt::write_all_at(&file, part, *at).expect("write");
        }
    };
    holes(&large, 1 << 40, &[(7, b"begin"), (tail, b"middle"), ((1 << 40) - 3, b"end")]);
    holes(&small, 32 << 20, &[(16 << 20, b"middle")]);
    let release = setup.staged(|release| release.snapshot_data = true);
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    let taken = |folder: &Path| {
        let files = fs::read_dir(folder).expect("list").map(|entry| entry.expect("entry").metadata().expect("there"));
        files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum::<u64>()
    };
    assert!(taken(&setup.layout.blobs()) < 1 << 20, "{}", taken(&setup.layout.blobs()));
    assert!(list(&setup.server)[0].bytes < 1 << 20, "what it takes counts: {:?}", list(&setup.server));
    let changes = || show(&setup.server, &"d1-aa-1".parse().expect("id"), true).expect("shown").changes;
    assert_eq!(changes(), []);
    holes(&large, 1 << 40, &[(8, b"other")]);
    holes(&small, 1 << 20, &[]);
    assert_eq!(changes().len(), 2, "{:?}", changes());
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(changes(), []);
    assert!(taken(&data) < 1 << 20, "{}", taken(&data));
    let file = File::open(&large).expect("open");
    let mut parts = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut parts, tail).expect("read");
    assert_eq!((file.metadata().expect("there").len(), &parts), (1 << 40, b"middle"));
    assert_eq!(fs::read(&small).expect("read")[16 << 20..][..6], *b"middle");
    // A content that has changed by one byte is damaged, holes or not.
    for blob in fs::read_dir(setup.layout.blobs()).expect("list").map(|entry| entry.expect("entry").path()) {
        let file = OpenOptions::new().write(true).open(&blob).expect("open");
        std::os::unix::fs::FileExt::write_all_at(&file, b"!", 20 << 20).expect("write");
        let failure = setup.restore("d1-aa-1").await.expect_err("damaged");
        assert!(failure.message.contains("is damaged"), "{failure}");
        std::os::unix::fs::FileExt::write_all_at(&file, b"\0", 20 << 20).expect("write");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_dump_is_read_beside_everything_else() {
    let setup = Setup::new();
    let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let release = setup.staged(|release| {
        release.database = Some(Database { dump: shell("echo rows"), restore: shell("true") });
    });
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    // Whoever opens a pipe waits until somebody writes to it.
    let dump = setup.layout.blobs().join(blake3::hash(b"rows\n").to_hex().as_str());
    fs::remove_file(&dump).expect("remove");
    rustix::fs::mkfifoat(rustix::fs::CWD, &dump, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).expect("pipe");
    let (layout, server) = (setup.layout.clone(), setup.server.clone());
    let restoring = tokio::spawn(async move { restore(&layout, &server, &"d1-aa-1".parse().expect("id")).await });
    let opened = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(dump));
    let written = opened.await.expect("opened").expect("somebody reads it");
    let others = tokio::time::timeout(std::time::Duration::from_secs(30), tokio::spawn(async {})).await;
    drop(written);
    restoring.await.expect("ended").expect_err("it is no dump");
    others.expect("the one worker is not held up").expect("ended");
}

#[tokio::test]
async fn one_snapshot_is_taken_at_a_time_and_a_stopped_server_does_not_wait_for_it() {
    use futures_util::FutureExt;
    let setup = Setup::new();
    let release = setup.staged(|release| release.snapshot_data = true);
    setup.take("d1-aa-1", Some(&release), None).await;
    let another = setup.layout.turn_to_take().await;
    let mut second = std::pin::pin!(setup.take("d2-aa-1", Some(&release), None));
    assert!(second.as_mut().now_or_never().is_none());
    setup.settle("d1-aa-1").await;
    assert_eq!(list(&setup.server).len(), 1, "the second still waits");
    drop(another);
    second.await;
    assert_eq!(list(&setup.server).len(), 2);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_not_one_that_is_not_there() {
    let setup = Setup::new();
    let release = setup.staged(|release| release.snapshot_data = true);
    setup.settle("d9-aa-1").await;
    setup.take("d1-aa-1", Some(&release), None).await;
    let id = "d1-aa-1".parse().expect("id");
    fs::write(setup.server.snapshot(&id).join("manifest.json"), "{").expect("write");
    let refused = settle(&setup.layout, &setup.server, &id, None).await.expect_err("nobody could put it back");
    assert!(refused.message.contains("manifest.json"), "{refused}");
}

#[tokio::test]
async fn what_was_given_up_settles_nothing_and_leaves_nothing_half_written() {
    let setup = Setup::new();
    let release = setup.staged(|release| release.snapshot_data = true);
    setup.take("d1-aa-1", Some(&release), None).await;
    let id: SnapshotId = "d1-aa-1".parse().expect("id");
    let mut manifest = read(&setup.server, &id).expect("read");
    manifest.settled = true;
    let blobs = Blobs::of(&setup.layout);
    crate::aside::as_given_up(|| write(&blobs, &setup.server, &id, &manifest)).expect_err("nobody waits for it");
    assert!(!is_settled(&setup.server, &id).await.expect("readable"));
    let names: Vec<_> =
        fs::read_dir(setup.server.snapshot(&id)).expect("list").flatten().map(|of| of.file_name()).collect();
    assert_eq!(names, ["manifest.json"]);
    write(&blobs, &setup.server, &id, &manifest).expect("written");
    assert!(is_settled(&setup.server, &id).await.expect("readable"));
}

/// Each of many names of one file holds the path of the first.
#[tokio::test]
async fn what_hard_links_lead_to_counts_for_the_memory_of_a_snapshot() {
    let setup = Setup::new();
    let release = setup.staged(|release| release.snapshot_data = true);
    let deep: PathBuf = std::iter::repeat_n("a".repeat(240), 14).collect();
    let first = setup.server.data().join(deep).join("file");
    fs::create_dir_all(first.parent().expect("a folder")).expect("folders");
    fs::write(&first, "one").expect("write");
    fs::create_dir(setup.server.data().join("z")).expect("folder");
    for n in 0..20_000 {
        fs::hard_link(&first, setup.server.data().join(format!("z/{n}"))).expect("link");
    }
    let id = "d1-aa-1".parse().expect("id");
    let refused = take(&setup.layout, &setup.server, &id, Some(&release), None).await.expect_err("too much");
    assert!(refused.message.contains("longer names"), "{refused}");
}

#[tokio::test]
async fn a_snapshot_of_nothing_restores_to_nothing_and_pruning_removes_what_nobody_needs() {
    let setup = Setup::new();
    setup.take("d1-aa-1", None, None).await;
    setup.restore("d1-aa-1").await.expect("restored");
    let release = setup.staged(|release| release.snapshot_data = true);
    fs::write(setup.server.data().join("a"), "one").expect("write");
    setup.take("d2-bb-1", Some(&release), None).await;
    prune(&setup.layout, &setup.server, &["d2-bb-1".parse().expect("id")]).expect("prune");
    let ids: Vec<String> = list(&setup.server).iter().map(|summary| summary.id.to_string()).collect();
    assert_eq!(ids, ["d2-bb-1"]);
    assert_eq!(fs::read_dir(setup.layout.blobs()).expect("list").count(), 1);
    prune(&setup.layout, &setup.server, &[]).expect("prune");
    assert_eq!(fs::read_dir(setup.layout.blobs()).expect("list").count(), 0);
    assert!(setup.restore("d2-bb-1").await.is_err());
}

#[tokio::test]
async fn where_it_cannot_be_read_what_is_needed_nothing_is_removed() {
    let setup = Setup::new();
    let release = setup.staged(|release| release.snapshot_data = true);
    fs::write(setup.server.data().join("a"), "one").expect("write");
    setup.take("d1-aa-1", Some(&release), None).await;
    let manifest = setup.server.snapshot(&"d1-aa-1".parse().expect("id")).join("manifest.json");
    let sound = fs::read(&manifest).expect("read");
    let blobs = || fs::read_dir(setup.layout.blobs()).expect("list").count();
    // As an agent writes it that is newer than this one.
    fs::write(&manifest, "{\"release\":7}").expect("write");
    prune(&setup.layout, &setup.server, &["d1-aa-1".parse().expect("id")]).expect("prune");
    assert_eq!(blobs(), 1);
    fs::write(&manifest, sound).expect("write");
    let chunks = ReleaseLayout::at(&setup.server.releases().join("of-another")).chunks();
    fs::create_dir_all(chunks.parent().expect("folder")).expect("folder");
    fs::write(&chunks, "[7]").expect("write");
    prune(&setup.layout, &setup.server, &[]).expect("prune");
    assert_eq!(blobs(), 1);
    fs::remove_file(&chunks).expect("remove");
    prune(&setup.layout, &setup.server, &[]).expect("prune");
    assert_eq!(blobs(), 0);
}

#[tokio::test]
async fn a_database_is_dumped_before_and_fed_back_after_and_a_dump_that_fails_says_why() {
    let setup = Setup::new();
    let data = setup.server.data();
    fs::write(data.join("db"), "rows").expect("write");
    let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let release = setup.staged(|release| {
        release.database = Some(Database { dump: shell("cat db"), restore: shell("cat > db") });
    });
    setup.take("d1-aa-1", Some(&release), None).await;
    setup.settle("d1-aa-1").await;
    fs::write(data.join("db"), "migrated rows").expect("write");
    setup.restore("d1-aa-1").await.expect("restored");
    assert_eq!(fs::read_to_string(data.join("db")).expect("read"), "rows");
    let broken = setup.staged(|release| {
        release.database = Some(Database { dump: shell("echo no such role >&2; exit 3"), restore: shell("true") });
    });
    let id = "d2-aa-1".parse().expect("id");
    let failure = take(&setup.layout, &setup.server, &id, Some(&broken), None).await.expect_err("it fails");
    assert_eq!((failure.output.as_slice(), failure.step.as_str()), (&["no such role".to_owned()][..], "dump"));
    assert_eq!(fs::read_dir(setup.layout.blobs()).expect("list").count(), 1, "a failed dump leaves nothing");
}

#[test]
fn manifests_of_before_are_read() {
    let old = r#"{"release":null,"release_files":{},"data":{"a":{"mode":420,"uid":0,"gid":0,"kind":{"file":{"blake3":"00"}}}}}"#;
    let manifest: Manifest = serde_json::from_str(old).expect("it reads");
    assert!(manifest.settled && manifest.paths.is_empty());
    assert_eq!(manifest.data.expect("data").content("a"), Some("00"));
}
