use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;

use super::*;

/// A folder with a file and a folder in it, and beside it what is nobody's business.
struct Setup {
    folder: tempfile::TempDir,
    opened: Folder,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("data/deep/er")).expect("folder");
        fs::create_dir_all(at("secret/er")).expect("folder");
        fs::write(at("data/deep/er/file"), "own").expect("write");
        fs::write(at("secret/er/file"), "canary").expect("write");
        let opened = Folder::open(&at("data")).expect("opened");
        Self { folder, opened }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn seen(&self, below: &str) -> Seen {
        let metadata = rustix::fs::lstat(self.at("data").join(below)).expect("there");
        Seen::of(&metadata)
    }
}

#[test]
fn what_was_exchanged_between_the_look_and_the_opening_is_not_opened() {
    let setup = Setup::new();
    let below = Path::new("deep/er/file");
    let file = setup.seen("deep/er/file");
    let mut text = String::new();
    setup.opened.file(below, &file).expect("opened").expect("the same").read_to_string(&mut text).expect("read");
    assert_eq!(text, "own");
    // The folder on the way becomes a link, the file a link, another file, a pipe.
    fs::rename(setup.at("data/deep"), setup.at("data/aside")).expect("rename");
    symlink(setup.at("secret"), setup.at("data/deep")).expect("link");
    assert!(setup.opened.file(below, &file).expect("no error").is_none());
    fs::remove_file(setup.at("data/deep")).expect("remove");
    fs::rename(setup.at("data/aside"), setup.at("data/deep")).expect("rename");
    fs::rename(setup.at("data/deep/er/file"), setup.at("data/kept")).expect("rename");
    symlink(setup.at("secret/er/file"), setup.at("data/deep/er/file")).expect("link");
    assert!(setup.opened.file(below, &file).expect("no error").is_none());
    fs::remove_file(setup.at("data/deep/er/file")).expect("remove");
    fs::hard_link(setup.at("secret/er/file"), setup.at("data/deep/er/file")).expect("link");
    assert!(setup.opened.file(below, &file).expect("no error").is_none());
    fs::remove_file(setup.at("data/deep/er/file")).expect("remove");
    rustix::fs::mkfifoat(rustix::fs::CWD, setup.at("data/deep/er/file"), Mode::RUSR).expect("pipe");
    assert!(setup.opened.file(below, &file).expect("no error").is_none());
    let pipe = setup.seen("deep/er/file");
    assert!(setup.opened.file(below, &pipe).expect("no error").is_none(), "a pipe is never opened");
}

#[test]
fn a_folder_that_became_a_link_is_not_listed() {
    let setup = Setup::new();
    let deep = setup.seen("deep");
    fs::rename(setup.at("data/deep"), setup.at("data/aside")).expect("rename");
    symlink(setup.at("secret"), setup.at("data/deep")).expect("link");
    assert!(setup.opened.folder(Path::new("deep"), &deep).expect("no error").is_none());
    let link = setup.seen("deep");
    let (to, _) = setup.opened.link(Path::new("deep"), &link).expect("read").expect("a link");
    assert_eq!(to, setup.at("secret"));
    let (_, node) = setup.opened.node(OsStr::new("deep")).expect("node").expect("there");
    assert!(node.is_link());
}

#[test]
fn without_openat2_the_answers_are_the_same() {
    let setup = Setup::new();
    symlink("er", setup.at("data/deep/link")).expect("link");
    symlink(setup.at("secret"), setup.at("data/out")).expect("link");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let paths =
        ["deep", "deep/er/file", "deep/link/file", "deep/link", "out/er/file", "../secret/er/file", "/etc", "no"];
    for path in paths {
        let slow = open::part_by_part(setup.opened.as_fd(), Path::new(path), flags).is_ok();
        let quick = open::beneath(setup.opened.as_fd(), Path::new(path), OFlags::RDONLY).expect("no error").is_some();
        assert_eq!((slow, quick), (path.starts_with("deep") && !path.contains("link"), slow), "{path}");
    }
}

#[test]
fn what_is_removed_is_what_is_below_and_never_what_a_link_leads_to() {
    let setup = Setup::new();
    symlink(setup.at("secret"), setup.at("data/deep/er/out")).expect("link");
    fs::set_permissions(setup.at("data/deep/er"), std::os::unix::fs::PermissionsExt::from_mode(0o500)).expect("mode");
    remove(&setup.opened, OsStr::new("deep")).expect("removed");
    remove(&setup.opened, OsStr::new("deep")).expect("again");
    assert!(!setup.at("data/deep").exists() && setup.at("secret/er/file").exists());
    symlink(setup.at("secret"), setup.at("data/deep")).expect("link");
    remove(&setup.opened, OsStr::new("deep")).expect("removed");
    assert!(setup.at("secret/er/file").exists());
}

/// An agent that is not root may not look into such folders before it changes their mode.
#[test]
fn folders_of_ones_own_that_are_closed_are_removed_as_well() {
    let setup = Setup::new();
    let nobody = rustix::process::Uid::from_raw(65_534);
    for (path, mode) in [("data/deep/er/file", 0o000), ("data/deep/er", 0o000), ("data/deep", 0o300), ("data", 0o755)] {
        fs::set_permissions(setup.at(path), std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode");
        if rustix::process::geteuid().is_root() {
            rustix::fs::chown(setup.at(path), Some(nobody), None).expect("chown");
        }
    }
    let removed = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                // Of this thread alone.
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("another user");
            }
            remove(&setup.opened, OsStr::new("deep"))
        });
        work.join().expect("no panic")
    });
    removed.expect("removed");
    assert!(!setup.at("data/deep").exists());
}

#[test]
fn what_is_deeper_than_any_path_is_removed_as_well() {
    let setup = Setup::new();
    let mut at = Folder::open(&setup.at("data")).expect("opened");
    for _ in 0..3 * DEPTH_MAX {
        let name = OsStr::new("a-folder-with-a-long-name");
        rustix::fs::mkdirat(&at, name, Mode::RWXU).expect("made");
        let seen = at.look(name).expect("look").expect("there");
        at = at.folder(Path::new(name), &seen).expect("opened").expect("the same");
    }
    remove(&Folder::open(setup.folder.path()).expect("opened"), OsStr::new("data")).expect("removed");
    assert!(!setup.at("data").exists() && setup.at("secret/er/file").exists());
}

#[test]
fn links_on_the_way_to_a_place_count_where_only_root_could_have_made_them() {
    let setup = Setup::new();
    let root = fs::canonicalize(setup.folder.path()).expect("path");
    symlink("data", root.join("link")).expect("link");
    symlink(root.join("nowhere"), root.join("dangling")).expect("link");
    let place = Place::reach(&root.join("link/deep/../deep/er/file")).expect("reached").expect("there");
    assert!(place.look().expect("look").is_some_and(|seen| seen.is_file()));
    assert!(Place::reach(&root.join("none/file")).expect("no error").is_none());
    assert!(Place::reach(&root.join("dangling/file")).expect("no error").is_none());
    assert!(Place::reach_or_make(&root.join("dangling/file")).is_err());
    let made = Place::reach_or_make(&root.join("fresh/deep/file")).expect("made");
    assert!(made.look().expect("look").is_none() && root.join("fresh/deep").is_dir());
    // A folder that others may write.
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    let refused = Place::reach(&root.join("link/deep/er/file")).expect_err("refused");
    assert!(refused.message.contains("link is on the way to") && refused.hint.is_some(), "{refused:?}");
    Place::reach(&root.join("data/deep/er/file")).expect("no link is on the way").expect("there");
}

#[test]
fn a_link_of_another_user_on_the_way_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let setup = Setup::new();
    symlink("data", setup.at("link")).expect("link");
    std::os::unix::fs::lchown(setup.at("link"), Some(12_345), None).expect("owner");
    let refused = Place::reach(&setup.at("link/deep")).expect_err("refused");
    assert!(refused.message.contains("is a symbolic link of user 12345"), "{refused:?}");
}
