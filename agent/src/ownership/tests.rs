use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::PathBuf;

use super::*;

const OLD: User = User { uid: 12_001, gid: 12_001 };
const NEW: User = User { uid: 12_002, gid: 12_002 };

struct Setup {
    folder: tempfile::TempDir,
    server: ServerLayout,
}

impl Setup {
    /// A server whose data belong to the old user, and beside it a file that is root's alone.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let server = ServerLayout::at(&folder.path().join("servers/s"));
        fs::create_dir_all(server.folder()).expect("folder");
        fs::create_dir(folder.path().join("secret")).expect("folder");
        fs::write(folder.path().join("secret/file"), "canary").expect("write");
        make_data(&server, OLD).expect("made");
        fs::create_dir(server.data().join("d")).expect("folder");
        fs::write(server.data().join("d/file"), "own").expect("write");
        for path in ["d", "d/file"] {
            lchown(server.data().join(path), Some(OLD.uid), Some(OLD.gid)).expect("owner");
        }
        Self { folder, server }
    }

    fn data(&self, path: &str) -> PathBuf {
        self.server.data().join(path)
    }

    fn secret(&self) -> PathBuf {
        self.folder.path().join("secret/file")
    }
}

fn owner_of(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).expect("there").uid()
}

fn is_root() -> bool {
    geteuid().is_root()
}

#[test]
fn data_go_to_the_new_user_and_what_links_lead_to_stays_whose_it_is() {
    if !is_root() {
        return;
    }
    let setup = Setup::new();
    symlink(setup.folder.path().join("secret"), setup.data("link")).expect("link");
    lchown(setup.data("link"), Some(OLD.uid), None).expect("owner");
    fs::write(setup.data("roots"), "put there by hand").expect("write");
    settle_data(&setup.server, NEW).expect("settled");
    settle_data(&setup.server, NEW).expect("again");
    for path in ["", "d", "d/file", "link"] {
        assert_eq!(owner_of(setup.data(path)), NEW.uid, "{path}");
    }
    assert_eq!((owner_of(setup.data("roots")), owner_of(setup.secret())), (0, 0));
    let back = settle_data(&setup.server, OLD);
    assert!(back.is_ok() && owner_of(setup.data("d/file")) == OLD.uid);
    assert!(!setup.server.changing_owner().exists());
}

#[test]
fn what_is_refused_is_refused_before_anything_is_given() {
    if !is_root() {
        return;
    }
    let setup = Setup::new();
    // In whatever order they are found, one comes before the other.
    for name in ["a", "z"] {
        fs::write(setup.data(name), "").expect("write");
        lchown(setup.data(name), Some(OLD.uid), None).expect("owner");
    }
    fs::hard_link(setup.secret(), setup.data("d/mine")).expect("link");
    settle_data(&setup.server, NEW).expect_err("refused");
    for path in ["", "a", "z", "d", "d/file"] {
        assert_eq!(owner_of(setup.data(path)), OLD.uid, "{path}");
    }
    assert!(!setup.server.changing_owner().exists());
}

#[test]
fn data_that_were_half_given_go_back_whole_and_forward_whole() {
    if !is_root() {
        return;
    }
    for to in [OLD, NEW] {
        let setup = Setup::new();
        // As a host leaves it that lost its power in the midst: the folder itself is given last.
        store::write_private(&setup.server.changing_owner(), format!("[{},{}]", OLD.uid, NEW.uid).as_bytes())
            .expect("mark");
        lchown(setup.data("d/file"), Some(NEW.uid), Some(NEW.gid)).expect("owner");
        fs::write(setup.data("roots"), "put there by hand").expect("write");
        settle_data(&setup.server, to).expect("settled");
        for path in ["", "d", "d/file"] {
            assert_eq!(owner_of(setup.data(path)), to.uid, "{path}");
        }
        assert_eq!(owner_of(setup.data("roots")), 0);
        assert!(!setup.server.changing_owner().exists());
    }
    let setup = Setup::new();
    fs::write(setup.server.changing_owner(), "half").expect("write");
    let failure = settle_data(&setup.server, OLD).expect_err("refused");
    assert!(failure.hint.is_some_and(|hint| hint.contains("remove it")), "{}", failure.message);
}

#[test]
fn a_file_of_root_with_another_name_outside_is_not_given_and_the_work_is_not_done() {
    if !is_root() {
        return;
    }
    let setup = Setup::new();
    fs::hard_link(setup.secret(), setup.data("d/mine")).expect("link");
    let failure = settle_data(&setup.server, NEW).expect_err("refused");
    assert!(failure.message.contains("d/mine is a file of user 0") && failure.hint.is_some(), "{failure:?}");
    assert_eq!((owner_of(setup.secret()), owner_of(setup.server.data())), (0, OLD.uid));
    // The same from a server that ran as root before: what is linked is not only its own.
    lchown(setup.server.data(), Some(0), Some(0)).expect("owner");
    settle_data(&setup.server, NEW).expect_err("refused");
    assert_eq!(owner_of(setup.secret()), 0);
    // Links within the data are the server's.
    fs::remove_file(setup.data("d/mine")).expect("remove");
    fs::write(setup.data("one"), "").expect("write");
    fs::hard_link(setup.data("one"), setup.data("d/two")).expect("link");
    settle_data(&setup.server, NEW).expect("settled");
    assert_eq!(owner_of(setup.data("one")), NEW.uid);
}

#[test]
fn a_device_is_not_given() {
    if !is_root() {
        return;
    }
    let setup = Setup::new();
    let null = rustix::fs::makedev(1, 3);
    let at = setup.data("d/null");
    if rustix::fs::mknodat(CWD, &at, FileType::CharacterDevice, Mode::RUSR, null).is_err() {
        return; // not in a container without the right to make devices
    }
    let failure = settle_data(&setup.server, NEW).expect_err("refused");
    assert!(failure.message.contains("is a device"), "{failure:?}");
}

#[test]
fn the_package_is_the_groups_to_read_and_nobodys_to_write() {
    let setup = tempfile::tempdir().expect("folder");
    let app = setup.path().join("app");
    fs::create_dir_all(app.join("bin")).expect("folder");
    fs::write(app.join("bin/serve"), "").expect("write");
    symlink("bin/serve", app.join("serve")).expect("link");
    fs::set_permissions(app.join("bin"), fs::Permissions::from_mode(0o777)).expect("mode");
    fs::set_permissions(app.join("bin/serve"), fs::Permissions::from_mode(0o775)).expect("mode");
    let_group_read(&app, own_user()).expect("shown");
    let mode = |path: &str| fs::metadata(app.join(path)).expect("there").mode() & 0o777;
    assert_eq!((mode("bin"), mode("bin/serve")), (0o750, 0o750));
}

#[test]
fn a_data_folder_that_is_a_link_is_refused_with_a_way_to_what_was_meant() {
    let folder = tempfile::tempdir().expect("folder");
    let server = ServerLayout::at(&folder.path().join("servers/s"));
    fs::create_dir_all(server.folder()).expect("folder");
    check_data(&server, true).expect("it is not there yet");
    symlink("/srv/large", server.data()).expect("link");
    for refused in [check_data(&server, false), make_data(&server, own_user()), settle_data(&server, own_user())] {
        let failure = refused.expect_err("refused");
        assert!(failure.message.contains("is a symbolic link"), "{failure:?}");
        let hint = failure.hint.expect("a hint");
        assert!(hint.contains(&format!("mount that on {}", server.folder().display())), "{hint}");
    }
    assert!(!Path::new("/srv/large").exists());
}
