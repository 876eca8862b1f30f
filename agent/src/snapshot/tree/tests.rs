use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

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
    let replacement = replacement.expect("built");
    // Between building and exchanging, the old content is exchanged for a link to what is nobody's business.
    swap(&setup);
    replacement.exchange().expect("exchanged");
    assert_eq!(fs::read_to_string(setup.at("data/d/file")).expect("read"), "own");
    assert_eq!(fs::read_to_string(setup.at("secret/file")).expect("read"), CANARY);
    assert_eq!(fs::read_dir(setup.folder.path()).expect("list").count(), 4, "agent, aside, data, secret");
}

#[test]
fn whoever_takes_the_name_of_what_was_built_gains_nothing_by_it() {
    let setup = Setup::new();
    let kept = Tree::keep(&setup.data, &setup.blobs, &Tree::default(), Writer::Stopped).expect("kept");
    let place = Place { folder: fs_folder(&setup), name: "data".into() };
    let replacement = Replacement::build(place, kept.as_ref(), &setup.blobs).expect("built");
    // Whoever may write the folder above puts another one under the name of what was built.
    fs::rename(setup.at(".data.fleetwright-restoring"), setup.at("moved")).expect("rename");
    symlink(setup.at("secret"), setup.at(".data.fleetwright-restoring")).expect("link");
    replacement.exchange().expect("by descriptors, it is the one that was built");
    assert_eq!(fs::read_to_string(setup.at("data/d/file")).expect("read"), "own");
    assert_eq!(fs::read_to_string(setup.at("secret/file")).expect("read"), CANARY);
}

fn fs_folder(setup: &Setup) -> crate::beneath::Folder {
    crate::beneath::Folder::open(Path::new(setup.folder.path())).expect("opened")
}
