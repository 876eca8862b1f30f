use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::layout::Layout;

const CANARY: &str = "a root-only file of the host";

struct Setup {
    folder: tempfile::TempDir,
    blobs: Blobs,
    data: Place,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["data/d", "secret"] {
            fs::create_dir_all(folder.path().join(name)).expect("folder");
        }
        fs::write(folder.path().join("data/d/file"), "own").expect("write");
        fs::write(folder.path().join("secret/file"), CANARY).expect("write");
        let blobs = Blobs::of(&Layout::new(&folder.path().join("agent")));
        let data = Place::own(&folder.path().join("data")).expect("place").expect("there");
        Self { folder, blobs, data }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn keeps_the_canary(&self) -> bool {
        let kept = fs::read_dir(self.at("agent/blobs")).into_iter().flatten().flatten();
        kept.map(|blob| fs::read_to_string(blob.path()).expect("read")).any(|text| text == CANARY)
    }
}

/// Puts a link where the folder was.
fn swap(setup: &Setup) {
    fs::rename(setup.at("data/d"), setup.at("aside")).expect("rename");
    symlink(setup.at("secret"), setup.at("data/d")).expect("link");
}

#[test]
fn a_folder_that_becomes_a_link_after_it_was_listed_is_left_out_while_its_server_runs_and_told_when_it_is_stopped() {
    for writer in [Writer::Runs, Writer::Stopped] {
        let setup = Setup::new();
        let listed = Listing::of(&setup.data, writer).expect("listed");
        assert_eq!(listed.entries().count(), 3);
        swap(&setup);
        let kept = Tree::keep_listed(&listed, &setup.blobs, &Tree::default(), writer);
        match writer {
            Writer::Runs => {
                let kept = kept.expect("kept").expect("something");
                assert_eq!(kept.entries().map(|(path, _)| path).collect::<Vec<_>>(), [""]);
            }
            Writer::Stopped => {
                let failure = kept.expect_err("refused");
                assert!(failure.message.contains("exchanged") && failure.hint.is_some(), "{failure:?}");
            }
        }
        assert!(!setup.keeps_the_canary());
    }
}

#[test]
fn what_is_put_back_goes_where_it_was_whatever_has_taken_the_place_of_the_folder_above() {
    let setup = Setup::new();
    let kept = Tree::keep(&setup.data, &setup.blobs, &Tree::default(), Writer::Stopped).expect("kept");
    fs::write(setup.at("data/d/file"), "changed").expect("write");
    let replacement =
        Replacement::build(Place { folder: fs_folder(&setup), name: "data".into() }, kept.as_ref(), &setup.blobs);
    let mut replacement = replacement.expect("built");
    // Between building and exchanging, the old content is exchanged for a link to what is nobody's business.
    swap(&setup);
    replacement.exchange().expect("exchanged");
    drop(replacement);
    assert_eq!(fs::read_to_string(setup.at("data/d/file")).expect("read"), "own");
    assert_eq!(fs::read_to_string(setup.at("secret/file")).expect("read"), CANARY);
    assert_eq!(fs::read_dir(setup.folder.path()).expect("list").count(), 4, "agent, aside, data, secret");
}

#[test]
fn modes_and_owners_are_durable_before_they_take_the_place_of_what_is_there() {
    let setup = Setup::new();
    let kept = Tree::keep(&setup.data, &setup.blobs, &Tree::default(), Writer::Stopped).expect("kept");
    fs::write(setup.at("data/d/file"), "changed").expect("write");
    let synced = crate::durable::seen::of(&setup.at("data/d/file"), || {
        let place = Place { folder: fs_folder(&setup), name: "data".into() };
        Replacement::build(place, kept.as_ref(), &setup.blobs).expect("built").exchange().expect("exchanged");
    });
    assert_eq!(synced, [(setup.at("data"), b"changed".to_vec())]);
    assert_eq!(fs::read_to_string(setup.at("data/d/file")).expect("read"), "own");
}

#[test]
fn whoever_takes_the_name_of_what_was_built_gains_nothing_by_it() {
    let setup = Setup::new();
    let kept = Tree::keep(&setup.data, &setup.blobs, &Tree::default(), Writer::Stopped).expect("kept");
    let place = Place { folder: fs_folder(&setup), name: "data".into() };
    let mut replacement = Replacement::build(place, kept.as_ref(), &setup.blobs).expect("built");
    // Whoever may write the folder above puts another one under the name of what was built.
    let [beside] = &restoring(&setup)[..] else { panic!("one folder beside it") };
    fs::rename(beside, setup.at("moved")).expect("rename");
    symlink(setup.at("secret"), beside).expect("link");
    replacement.exchange().expect("by descriptors, it is the one that was built");
    drop(replacement);
    assert_eq!(fs::read_to_string(setup.at("data/d/file")).expect("read"), "own");
    assert_eq!(fs::read_to_string(setup.at("secret/file")).expect("read"), CANARY);
}

/// What is beside the data while they are put back.
fn restoring(setup: &Setup) -> Vec<PathBuf> {
    let entries = fs::read_dir(setup.folder.path()).expect("list").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.to_string_lossy().contains("fleetwright-restoring")).collect()
}

#[test]
fn what_cannot_be_put_back_leaves_nothing_beside_it_and_neither_does_one_that_was_cut_off() {
    let setup = Setup::new();
    let place = || Place { folder: fs_folder(&setup), name: "data".into() };
    let kept = Tree::keep(&setup.data, &setup.blobs, &Tree::default(), Writer::Stopped).expect("kept");
    let built = Replacement::build(place(), kept.as_ref(), &setup.blobs).expect("built");
    assert_eq!(restoring(&setup).len(), 1);
    // A process that was killed leaves it.
    std::mem::forget(built);
    fs::create_dir(setup.at(".data.fleetwright-restoring")).expect("of an agent of before");
    fs::set_permissions(setup.at(".data.fleetwright-restoring"), fs::Permissions::from_mode(0o700)).expect("mode");
    fs::write(setup.at(".fleetwright-restoring-of-somebody-else"), "").expect("write");
    let blob = fs::read_dir(setup.at("agent/blobs")).expect("blobs").next().expect("one").expect("an entry").path();
    fs::write(blob, "damaged").expect("write");
    assert!(Replacement::build(place(), kept.as_ref(), &setup.blobs).is_err());
    assert_eq!(restoring(&setup), [setup.at(".fleetwright-restoring-of-somebody-else")]);
    assert_eq!(fs::read_to_string(setup.at("data/d/file")).expect("read"), "own");
}

#[test]
fn a_file_whose_path_is_longer_than_the_kernel_takes_at_once_is_kept_and_put_back() {
    let setup = Setup::new();
    let name = "n".repeat(250);
    let mut folder = crate::beneath::Folder::open(&setup.at("data")).expect("opened");
    for _ in 0..20 {
        rustix::fs::mkdirat(&folder, name.as_str(), rustix::fs::Mode::RWXU).expect("made");
        let seen = folder.look(name.as_ref()).expect("looked").expect("there");
        folder = folder.folder(Path::new(&name), &seen).expect("opened").expect("the same");
    }
    let write = |name: &str, text: &str| {
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let fd = rustix::fs::openat(&folder, name, flags, rustix::fs::Mode::RUSR).expect("made");
        rustix::io::write(fd, text.as_bytes()).expect("write");
    };
    write("file", "deep");
    rustix::fs::linkat(&folder, "file", &folder, "again", rustix::fs::AtFlags::empty()).expect("linked");
    let keep =
        || Tree::keep(&setup.data, &setup.blobs, &Tree::default(), Writer::Stopped).expect("kept").expect("some");
    let kept = keep();
    let longest = kept.entries().map(|(path, _)| path.len()).max().expect("paths");
    assert!(longest > 5_000 && kept.entries().count() == 25, "{longest}");
    rustix::fs::unlinkat(&folder, "file", rustix::fs::AtFlags::empty()).expect("removed");
    let place = Place { folder: fs_folder(&setup), name: "data".into() };
    Replacement::build(place, Some(&kept), &setup.blobs).expect("built").exchange().expect("exchanged");
    let content =
        |tree: &Tree| tree.entries().map(|(path, _)| tree.content(path).map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(content(&keep()), content(&kept));
}

#[test]
fn the_attributes_of_a_tree_have_a_limit_however_often_a_name_holds_them() {
    let attributes: Attributes = [("user.a".to_owned(), "00".repeat(64 * 1024))].into();
    let mut count = attributes::Count::default();
    let names = (0..10_000).find(|_| count.is_too_much_with(&attributes)).expect("a limit");
    assert_eq!(names, 511, "64 MiB in all");
}

#[test]
fn a_tree_is_listed_within_a_limit_of_memory_however_long_its_paths_are() {
    let setup = Setup::new();
    let name = "n".repeat(250);
    let mut folder = crate::beneath::Folder::open(&setup.at("data")).expect("opened");
    for _ in 0..100 {
        rustix::fs::mkdirat(&folder, name.as_str(), rustix::fs::Mode::RWXU).expect("made");
        let seen = folder.look(name.as_ref()).expect("looked").expect("there");
        folder = folder.folder(Path::new(&name), &seen).expect("opened").expect("the same");
    }
    // Each has a path of some 25 KB.
    let make = |from: u32, to: u32| {
        for n in from..to {
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            rustix::fs::openat(&folder, format!("{n}"), flags, rustix::fs::Mode::RUSR).expect("made");
        }
    };
    make(0, 2_300);
    assert!(Listing::of(&setup.data, Writer::Stopped).is_ok(), "below 64 MiB");
    make(2_300, 2_800);
    let refused = Listing::of(&setup.data, Writer::Stopped).err().expect("beyond it");
    assert!(refused.message.contains("within 64 MiB") && refused.hint.is_some(), "{refused:?}");
}

fn fs_folder(setup: &Setup) -> crate::beneath::Folder {
    crate::beneath::Folder::open(Path::new(setup.folder.path())).expect("opened")
}
