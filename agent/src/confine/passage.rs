//! Letting a program through folders that are closed to its user, without opening them to anybody else on the host.
//!
//! In a mount namespace of the program's own, an empty file system that may be passed and not be listed takes the place
//! of each closed folder, with nothing in it but what the program needs, mounted where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount};
use rustix::thread::UnshareFlags;

use crate::runtime::users::Identity;

/// What is mounted in place of a closed folder: it holds nothing but mount points.
const EMPTY: &std::ffi::CStr = c"mode=0711,size=256k";

/// Something that a program needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Needed {
    pub(super) path: PathBuf,
    pub(super) writable: bool,
}

/// The topmost folder above a path that a user cannot pass.
pub(super) fn closed_above(path: &Path, user: &Identity) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    above.into_iter().find(|folder| fs::metadata(folder).is_ok_and(|found| !passes(&found, user))).map(Path::to_owned)
}

/// Whether a user may pass a folder, by its permissions.
fn passes(folder: &Metadata, user: &Identity) -> bool {
    let mode = folder.mode();
    if user.uid == 0 {
        return true;
    }
    if folder.uid() == user.uid {
        mode & 0o100 != 0
    } else if folder.gid() == user.gid || user.groups.contains(&folder.gid()) {
        mode & 0o010 != 0
    } else {
        mode & 0o001 != 0
    }
}

/// Lets this process, and what it becomes, through; the folders that were closed.
pub(super) fn open(needed: &BTreeSet<Needed>, user: &Identity) -> io::Result<Vec<PathBuf>> {
    let closed: Vec<(PathBuf, &Needed)> =
        needed.iter().filter_map(|one| Some((closed_above(&one.path, user)?, one))).collect();
    if closed.is_empty() {
        return Ok(Vec::new());
    }
    #[expect(unsafe_code, reason = "it is unsafe for the flag FILES alone, which is not given")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    // What the host mounts later is seen here, too; what is mounted here is seen nowhere else.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    // Everything is opened before the first folder is covered, and in the view of the host that it is shown in.
    let mut opened: BTreeMap<PathBuf, Vec<(&Needed, OwnedFd)>> = BTreeMap::new();
    for (folder, one) in closed {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        opened.entry(folder).or_default().push((one, openat(CWD, &one.path, flags, Mode::empty())?));
    }
    for (folder, wanted) in &opened {
        let quiet = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", folder, "tmpfs", quiet, EMPTY)?;
        for (one, opened) in wanted {
            show(one, opened)?;
        }
        mount_remount(folder, quiet | MountFlags::RDONLY, EMPTY)?;
    }
    Ok(opened.into_keys().collect())
}

/// Mounts something where it is, as it was before its folder was covered.
fn show(one: &Needed, opened: &OwnedFd) -> io::Result<()> {
    let is_folder = rustix::fs::fstat(opened).is_ok_and(|found| found.st_mode & 0o170_000 == 0o040_000);
    if !one.path.exists() {
        let folder = if is_folder { Some(one.path.as_path()) } else { one.path.parent() };
        DirBuilder::new().recursive(true).mode(0o711).create(folder.unwrap_or(&one.path))?;
        if !is_folder {
            File::create(&one.path)?;
        }
    }
    mount_bind_recursive(format!("/proc/self/fd/{}", opened.as_raw_fd()), &one.path)?;
    if !one.writable {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(&one.path, flags, c"")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_topmost_closed_folder_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().canonicalize().expect("path");
        let inner = path.join("a/b");
        fs::create_dir_all(&inner).expect("folders");
        let user = Identity { name: "u".to_owned(), uid: 4_000_000, gid: 4_000_000, groups: vec![4_000_001] };
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        open(&path, 0o711);
        open(&path.join("a"), 0o700);
        assert_eq!(closed_above(&inner, &user), Some(path.join("a")));
        open(&path, 0o700);
        assert_eq!(closed_above(&inner, &user), Some(path.clone()));
        open(&path, 0o711);
        open(&path.join("a"), 0o701);
        assert_eq!(closed_above(&inner, &user), None);
        assert_eq!(closed_above(&inner, &Identity { uid: 0, ..user }), None);
    }
}
