//! Where a path leads, as far as the user of a program has no say in it.
//!
//! What a program needs is found out by root, who passes everywhere. A link that the program's own user has put on the way
//! would have root let it through to what is behind that, so such a link leads nowhere.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::runtime::users::Identity;

/// How many symbolic links are followed (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// The bit by which only the owner of something removes it from a folder.
const STICKY: u32 = 0o1000;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The end, without links.
    pub(super) end: PathBuf,
    /// Whether the user could put something else there, or on the way.
    pub(super) is_users: bool,
}

/// Where an absolute path leads; nothing where it leads nowhere, or by a link that a user could have put there.
pub(super) fn resolve(path: &Path, user: &Identity) -> Option<Route> {
    let mut route = Route { end: PathBuf::from("/"), is_users: false };
    let mut links = 0;
    let mut parts: Vec<PathBuf> = parts_of(path).collect();
    while let Some(part) = parts.pop() {
        match part.components().next()? {
            Component::RootDir | Component::Prefix(_) => route.end = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => {
                route.end.pop();
            }
            Component::Normal(name) => {
                let folder = fs::symlink_metadata(&route.end).ok()?;
                let next = route.end.join(name);
                let found = fs::symlink_metadata(&next).ok()?;
                let is_users = could_exchange(&route.end, &folder, &found, user);
                route.is_users |= is_users;
                if !found.is_symlink() {
                    route.end = next;
                    continue;
                }
                links += 1;
                if is_users || links > LINKS_MAX {
                    return None;
                }
                parts.extend(parts_of(&fs::read_link(&next).ok()?));
            }
        }
    }
    Some(route)
}

/// The parts of a path, the last first.
fn parts_of(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.components().rev().map(|part| PathBuf::from(part.as_os_str()))
}

/// Whether a user could put something else in the place of what is in a folder.
fn could_exchange(path: &Path, folder: &Metadata, found: &Metadata, user: &Identity) -> bool {
    let mode = folder.mode();
    if folder.uid() == user.uid || (found.is_symlink() && found.uid() == user.uid) {
        return true;
    }
    // In an access control list anybody may be named; the group's bits are the most that one of them may do then (acl(5)).
    let mut none = [0_u8; 0];
    let is_listed = rustix::fs::lgetxattr(path, "system.posix_acl_access", &mut none).is_ok_and(|bytes| bytes > 0);
    let is_of_group = is_listed || folder.gid() == user.gid || user.groups.contains(&folder.gid());
    let may_write = mode & if is_of_group { 0o020 } else { 0o002 } != 0;
    may_write && (mode & STICKY == 0 || found.uid() == user.uid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    fn user(uid: u32) -> Identity {
        Identity { name: "u".to_owned(), uid, gid: uid, groups: Vec::new() }
    }

    #[test]
    fn a_link_of_others_is_followed_and_one_that_the_user_could_have_made_is_not() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let top = folder.path().canonicalize().expect("path");
        fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).expect("mode");
        let (home, data) = (top.join("home"), top.join("data"));
        for folder in [&home, &data] {
            fs::create_dir(folder).expect("folder");
        }
        fs::write(home.join("private"), "").expect("write");
        symlink(&home, top.join("roots")).expect("link");
        symlink("../home/private", data.join("x.db")).expect("link");
        symlink(&data, top.join("to-data")).expect("link");
        lchown(&data, Some(4_000_000), Some(4_000_000)).expect("owner");
        let server = user(4_000_000);
        let resolved = |path: PathBuf| resolve(&path, &server);
        let others = Route { end: home.join("private"), is_users: false };
        assert_eq!(resolved(top.join("roots/private")), Some(others.clone()));
        assert_eq!(resolved(top.join("data/../home/./private")), Some(others), "data itself is in a folder of root's");
        assert_eq!(resolved(data.join("x.db")), None, "its own link");
        assert_eq!(resolved(top.join("to-data/x.db")), None, "its own link, behind one of root's");
        assert_eq!(resolved(top.join("nothing")), None);
        fs::write(data.join("own"), "").expect("write");
        assert_eq!(resolved(data.join("own")), Some(Route { end: data.join("own"), is_users: true }));
        // The same link is nobody's business of a user who could not have made it.
        let wanted = Route { end: home.join("private"), is_users: false };
        assert_eq!(resolve(&data.join("x.db"), &user(4_000_001)), Some(wanted));
        symlink(top.join("round"), top.join("round")).expect("link");
        assert_eq!(resolved(top.join("round")), None);
    }

    #[test]
    fn in_a_folder_for_everybody_only_what_is_the_users_can_be_exchanged() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let top = folder.path().canonicalize().expect("path");
        fs::set_permissions(&top, fs::Permissions::from_mode(0o1777)).expect("mode");
        for (name, owner) in [("roots", 0), ("users", 4_000_000)] {
            symlink("/etc", top.join(name)).expect("link");
            lchown(top.join(name), Some(owner), None).expect("owner");
        }
        let server = user(4_000_000);
        assert_eq!(resolve(&top.join("roots"), &server).map(|route| route.end), Some(PathBuf::from("/etc")));
        assert_eq!(resolve(&top.join("users"), &server), None);
        fs::set_permissions(&top, fs::Permissions::from_mode(0o777)).expect("mode");
        assert_eq!(resolve(&top.join("roots"), &server), None, "anybody could have put it there");
    }
}
