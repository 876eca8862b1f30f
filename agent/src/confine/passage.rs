//! Letting a program through folders that are closed to its user, without opening them to anybody else on the host.
//!
//! In a mount namespace of the program's own, an empty file system that may be passed and not be listed takes the place
//! of each closed folder, with nothing in it but what the program needs, mounted where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::thread::UnshareFlags;

use crate::runtime::users::Identity;

/// What is mounted in place of a closed folder: it holds nothing but mount points.
const EMPTY: &std::ffi::CStr = c"mode=0711,size=256k";

/// The same where temporary files are to be put, and something of the host's is needed beside them.
const TEMPORARY: &std::ffi::CStr = c"mode=1777,size=10%";
/// The host's folders for temporary files, and the names of those that take their place.
const TEMPORARY_FOLDERS: [(&str, &str); 2] = [("/tmp", "tmp"), ("/var/tmp", "var-tmp")];

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

/// What was done so that a program sees what it needs, and no more.
#[derive(Debug, Default)]
pub(super) struct Passage {
    /// The folders closed to its user that it is let through.
    pub(super) folders: Vec<PathBuf>,
    /// Why it shares the host's folders for temporary files, where it does.
    pub(super) shares_temporary: Option<io::Error>,
}

/// The host's folder for temporary files that something is in which a user may enter or read.
pub(super) fn temporary_above(path: &Path, user: &Identity) -> Option<PathBuf> {
    let mut folders = TEMPORARY_FOLDERS.iter().map(|(folder, _)| Path::new(folder));
    let folder = folders.find(|folder| path.starts_with(folder) && path != *folder)?;
    fs::metadata(path).is_ok_and(|found| !found.is_dir() || passes(&found, user)).then(|| folder.to_owned())
}

/// Lets this process, and what it becomes, through. With a folder for `temporary` files, those of the host are out of
/// sight, but for what is needed of them.
pub(super) fn open(needed: &BTreeSet<Needed>, user: &Identity, temporary: Option<&Path>) -> io::Result<Passage> {
    let is_closed = needed.iter().any(|one| closed_above(&one.path, user).is_some());
    let mut hidden = temporary.map_or_else(BTreeSet::new, |_| temporary_folders(needed, user));
    if !is_closed && hidden.is_empty() {
        return Ok(Passage::default());
    }
    let mut passage = Passage::default();
    match own_namespace() {
        Ok(()) => {}
        Err(error) if is_closed => return Err(error),
        Err(error) => return Ok(Passage { shares_temporary: Some(error), ..passage }),
    }
    let sources = match temporary.map(|own| make_temporary(own, &hidden)) {
        Some(Ok(sources)) => sources,
        Some(Err(error)) => {
            hidden.clear();
            passage.shares_temporary = Some(error);
            BTreeMap::new()
        }
        None => BTreeMap::new(),
    };
    // Everything is opened before the first folder is covered, and in the view of the host that it is shown in.
    let mut opened: BTreeMap<PathBuf, Vec<(&Needed, OwnedFd)>> = BTreeMap::new();
    for one in needed {
        let hides = one.path.ancestors().skip(1).find(|above| hidden.contains(*above)).map(Path::to_owned);
        let Some(folder) = hides.or_else(|| closed_above(&one.path, user)) else { continue };
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        opened.entry(folder).or_default().push((one, openat(CWD, &one.path, flags, Mode::empty())?));
    }
    for (folder, source) in &sources {
        if !opened.contains_key(folder) {
            mount_bind(source, folder)?;
            mount_remount(folder, MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV, c"")?;
        }
    }
    for (folder, wanted) in &opened {
        let quiet = MountFlags::NOSUID | MountFlags::NODEV;
        let is_temporary = hidden.contains(folder);
        mount("tmpfs", folder, "tmpfs", quiet, if is_temporary { TEMPORARY } else { EMPTY })?;
        for (one, opened) in wanted {
            show(one, opened)?;
        }
        if !is_temporary {
            mount_remount(folder, quiet | MountFlags::RDONLY, EMPTY)?;
        }
    }
    passage.folders = opened.into_keys().filter(|folder| !hidden.contains(folder)).collect();
    Ok(passage)
}

fn own_namespace() -> io::Result<()> {
    #[expect(unsafe_code, reason = "it is unsafe for the flag FILES alone, which is not given")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    // What the host mounts later is seen here, too; what is mounted here is seen nowhere else.
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// The host's folders for temporary files that can be hidden: those that nobody has given to the program as a whole.
fn temporary_folders(needed: &BTreeSet<Needed>, user: &Identity) -> BTreeSet<PathBuf> {
    let folders = TEMPORARY_FOLDERS.iter().map(|(folder, _)| Path::new(folder));
    let is_own = |folder: &Path| fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir());
    let is_given = |folder: &Path| needed.iter().any(|one| folder.starts_with(&one.path));
    let can = folders.filter(|folder| is_own(folder) && !is_given(folder) && closed_above(folder, user).is_none());
    can.map(Path::to_owned).collect()
}

/// Makes the folders that take the place of the host's, in one that nobody else reaches.
fn make_temporary(own: &Path, hidden: &BTreeSet<PathBuf>) -> io::Result<BTreeMap<PathBuf, PathBuf>> {
    let mut sources = BTreeMap::new();
    for (folder, name) in TEMPORARY_FOLDERS.iter().filter(|(folder, _)| hidden.contains(Path::new(folder))) {
        let source = own.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&source)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o1777))?;
        sources.insert(PathBuf::from(folder), source);
    }
    Ok(sources)
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
