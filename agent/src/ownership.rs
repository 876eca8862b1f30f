//! Whose the files of a server are. What a server may write belongs to the user that its release runs as; what it only
//! reads belongs to root, and to the server's group to read.
//!
//! A data folder is given to its user when it is made. Everything in it is given to another user only when the user of
//! the server changes, and only while the server is stopped. What belongs to neither of the two stays whose it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, StatxAttributes, StatxFlags, Uid, chownat, fchmod, statx};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::aside::go_on;
use crate::beneath::{DEPTH_MAX, Folder, Place, Seen};
use crate::install::file_failure;
use crate::layout::ServerLayout;
use crate::runtime::users::User;

/// The permissions of a data folder.
const DATA_MODE: u32 = 0o700;
const STEP: &str = "files";

/// The user that this process runs as.
pub(crate) fn own_user() -> User {
    User { uid: geteuid().as_raw(), gid: getegid().as_raw() }
}

/// Makes the data folder of a server, where it is missing, for its user.
pub(crate) fn make_data(server: &ServerLayout, user: User) -> Result<(), Failure> {
    let data = server.data();
    match DirBuilder::new().mode(DATA_MODE).create(&data) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return check_data(server, false),
        Err(error) => return Err(file_failure(&data, &error)),
    }
    let folder = Folder::open(&data).map_err(|error| file_failure(&data, &error))?;
    own(&folder, user).map_err(|error| file_failure(&data, &error))
}

/// A data folder is a folder: nobody has promised to leave what a link leads to as it is. Where it is `exchanged` when data
/// are put back, nothing may be mounted on it either: what is in use so cannot be exchanged.
pub(crate) fn check_data(server: &ServerLayout, exchanged: bool) -> Result<(), Failure> {
    let data = server.data();
    let looked = statx(CWD, &data, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MODE);
    let what = match looked {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(file_failure(&data, &error.into())),
        Ok(found) => match FileType::from_raw_mode(u32::from(found.stx_mode)) {
            FileType::Directory if exchanged && found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
                "a place where something is mounted"
            }
            FileType::Directory => return Ok(()),
            FileType::Symlink => "a symbolic link",
            _ => "no folder",
        },
    };
    let message = format!("{} is {what}: data are kept and put back in a folder of the server's own", data.display());
    Err(Failure::new(FailureKind::ConfigurationError, STEP, message).hint(format!(
        "to have them on another disk, mount that on {}, or on the state folder of the agent",
        server.folder().display()
    )))
}

/// Makes the data of a server that is stopped belong to the user that its release runs as. Doing it again, also for another
/// user after it was cut off, ends as it should: until it is done, a file beside the data says whose some of them may be.
/// What cannot be given is refused before anything is.
pub(crate) fn settle_data(server: &ServerLayout, user: User) -> Result<(), Failure> {
    let data = server.data();
    make_data(server, user)?;
    let fail = |error: io::Error| file_failure(&data, &error);
    let folder = Folder::open(&data).map_err(fail)?;
    let before = folder.seen().map_err(fail)?;
    let mark = server.changing_owner();
    let unfinished = owners_of(&mark)?;
    if unfinished.is_empty() && (before.uid, before.gid) == (user.uid, user.gid) {
        return Ok(());
    }
    let mut owners = unfinished;
    owners.insert(before.uid);
    let giving = Giving::checked(&folder, owners.clone(), user)?;
    owners.insert(user.uid);
    let failed = |error: String| Failure::new(FailureKind::ResourceError, STEP, format!("{}: {error}", mark.display()));
    store::write_private(&mark, &serde_json::to_vec(&owners).unwrap_or_default())
        .map_err(|error| failed(error.to_string()))?;
    giving.give(&folder, 0)?;
    own(&folder, user).map_err(fail)?;
    fs::remove_file(&mark).map_err(|error| failed(error.to_string()))
}

/// The users that some of the data may belong to, where their change of hands was not finished.
fn owners_of(mark: &Path) -> Result<BTreeSet<u32>, Failure> {
    match fs::read(mark) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(file_failure(mark, &error)),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            let message = format!("{}: {error}", mark.display());
            Failure::new(FailureKind::ResourceError, STEP, message).hint(
                "it says whose some of the server's data are; see that all of them belong to its user, and remove it",
            )
        }),
    }
}

/// Gives a folder of this process's own user, which nobody else can reach yet, to a user, with everything in it.
pub(crate) fn hand_over(path: &Path, user: User) -> Result<(), Failure> {
    let fail = |error: io::Error| file_failure(path, &error);
    let folder = Folder::open(path).map_err(fail)?;
    Giving::checked(&folder, BTreeSet::from([own_user().uid]), user)?.give(&folder, 0)?;
    own(&folder, user).map_err(fail)
}

/// Gives everything below a path to a user's group to read: it stays root's, and only root writes it.
pub(crate) fn let_group_read(path: &Path, user: User) -> Result<(), Failure> {
    let Some(place) = Place::own(path)? else { return Ok(()) };
    show(&place.folder, &place.name, user, 0).map_err(|error| file_failure(path, &error))
}

fn show(folder: &Folder, name: &OsStr, user: User, depth: usize) -> io::Result<()> {
    go_on()?;
    let Some(seen) = folder.look(name)? else { return Ok(()) };
    let group = Some(Gid::from_raw(user.gid));
    // The group reads and enters what its owner does, and nobody else writes or sees anything.
    let mode = |seen: &Seen| {
        let executable = if seen.is_folder() || seen.mode & 0o100 != 0 { 0o050 } else { 0o040 };
        Mode::from_raw_mode((seen.mode | executable) & !0o027)
    };
    let below = Path::new(name);
    if let Some(inner) = folder.folder(below, &seen)? {
        if depth == DEPTH_MAX {
            return Err(too_deep(&inner));
        }
        for entry in inner.names()? {
            show(&inner, &entry?, user, depth + 1)?;
        }
        chownat(&inner, c"", None, group, AtFlags::EMPTY_PATH)?;
        return Ok(fchmod(&inner, mode(&seen))?);
    }
    if let Some(file) = folder.file(below, &seen)? {
        chownat(&file, c"", None, group, AtFlags::EMPTY_PATH)?;
        return Ok(fchmod(&file, mode(&seen))?);
    }
    match folder.node(name)? {
        Some((node, now)) if now.is(&seen) => Ok(chownat(&node, c"", None, group, AtFlags::EMPTY_PATH)?),
        Some(_) | None => Err(io::Error::other("somebody has exchanged what is in it")),
    }
}

/// Giving what some users have in a folder to another.
struct Giving {
    from: BTreeSet<u32>,
    to: User,
    /// How many names the files of root have in the folder: one with another name outside is not only the server's.
    names: BTreeMap<(u64, u64), u64>,
}

impl Giving {
    /// Nothing is in the way of it, as far as can be seen.
    fn checked(folder: &Folder, from: BTreeSet<u32>, to: User) -> Result<Self, Failure> {
        let mut giving = Self { from, to, names: BTreeMap::new() };
        if giving.from.contains(&0) {
            giving.count(folder, 0).map_err(|error| file_failure(folder.path(), &error))?;
        }
        giving.walk(folder, 0, &|_, _| Ok(()))?;
        Ok(giving)
    }

    fn count(&mut self, folder: &Folder, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(too_deep(folder));
        }
        for name in folder.names()? {
            go_on()?;
            let name = name?;
            let Some(seen) = folder.look(&name)? else { continue };
            if seen.is_file() && seen.links > 1 {
                *self.names.entry((seen.device, seen.inode)).or_default() += 1;
            }
            if let Some(inner) = folder.folder(Path::new(&name), &seen)? {
                self.count(&inner, depth + 1)?;
            }
        }
        Ok(())
    }

    fn give(&self, folder: &Folder, depth: usize) -> Result<(), Failure> {
        self.walk(folder, depth, &|node, seen| self.give_one(node, seen))
    }

    /// Goes through everything that may be given, what is in a folder before the folder.
    fn walk(
        &self,
        folder: &Folder,
        depth: usize,
        each: &dyn Fn(&OwnedFd, &Seen) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if depth > DEPTH_MAX {
            return Err(file_failure(folder.path(), &too_deep(folder)));
        }
        for name in folder.names().map_err(|error| file_failure(folder.path(), &error))? {
            let name = name.map_err(|error| file_failure(folder.path(), &error))?;
            let path = folder.path().join(&name);
            let fail = |error: io::Error| file_failure(&path, &error);
            go_on().map_err(fail)?;
            // What was opened is what is judged, and what is given: the name is not used again.
            let Some((node, seen)) = folder.node(&name).map_err(fail)? else { continue };
            self.check(&seen, &path)?;
            if seen.is_folder() {
                self.walk(&Folder::of_node(&node, folder, &name).map_err(fail)?, depth + 1, each)?;
            }
            each(&node, &seen).map_err(fail)?;
        }
        Ok(())
    }

    fn give_one(&self, node: &OwnedFd, seen: &Seen) -> io::Result<()> {
        if !self.from.contains(&seen.uid) || (seen.uid, seen.gid) == (self.to.uid, self.to.gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.to.uid), Gid::from_raw(self.to.gid));
        Ok(chownat(node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    fn check(&self, seen: &Seen, path: &Path) -> Result<(), Failure> {
        let refused = |what: String, hint: String| {
            let message = format!("{} is {what}: it is not given to user {}", path.display(), self.to.uid);
            Err(Failure::new(FailureKind::PermissionError, STEP, message).hint(hint))
        };
        if seen.is_device() {
            let hint = "remove it: whoever has it has what is behind it".to_owned();
            return refused(format!("a device (of user {})", seen.uid), hint);
        }
        let all_are_here = || self.names.get(&(seen.device, seen.inode)) == Some(&seen.links);
        let is_the_servers =
            seen.uid == self.to.uid || (self.from.contains(&seen.uid) && (seen.uid != 0 || all_are_here()));
        if seen.is_file() && seen.links > 1 && !is_the_servers {
            let hint = format!(
                "see where else it is with `find / -xdev -inum {}`, and remove this name of it, or put a copy in its place; then deploy again",
                seen.inode
            );
            return refused(format!("a file of user {} that has other names, too", seen.uid), hint);
        }
        Ok(())
    }
}

fn own(folder: &Folder, user: User) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    Ok(chownat(folder, c"", uid, gid, AtFlags::EMPTY_PATH)?)
}

fn too_deep(folder: &Folder) -> io::Error {
    io::Error::other(format!("{} is more than {DEPTH_MAX} folders deep", folder.path().display()))
}

#[cfg(test)]
mod tests;
