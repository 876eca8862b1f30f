//! What a place is to become: built in a folder beside it that nobody else may enter, and exchanged with what is there by
//! one rename.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, chownat, fchmod, futimens, linkat, mkdirat,
    openat, renameat, renameat_with, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::super::blobs::Blobs;
use super::super::{RESTORE, failed};
use super::{Entry, EntryKind, Tree, attributes, listing::joined};
use crate::aside::go_on;
use crate::beneath::{Folder, PATH_BYTES_MAX, Place, Seen, remove};
use crate::durable;

/// The name, in the folder beside a place, of what is built, and then of what it has taken the place of.
const BUILT: &str = "built";

/// What a place is to become. What is not put there is removed again.
pub(in crate::snapshot) struct Replacement {
    place: Place,
    /// The folder beside it; nothing where nothing was, so that nothing is to be.
    beside: Option<(OsString, Folder)>,
}

impl Replacement {
    /// Builds what was kept beside what is there. Every content is checked.
    pub(in crate::snapshot) fn build(place: Place, tree: Option<&Tree>, blobs: &Blobs) -> Result<Self, Failure> {
        let path = place.path();
        remove_leftovers(&place).map_err(failed(&path))?;
        let mut replacement = Self { place, beside: None };
        if let Some(tree) = tree.filter(|tree| !tree.0.is_empty()) {
            let name = beside(&replacement.place.name)?;
            let holder = make_private(&replacement.place.folder, &name).map_err(failed(&path))?;
            let (_, holder) = replacement.beside.insert((name, holder));
            fill(holder, tree, &path, blobs)?;
        }
        Ok(replacement)
    }

    /// Puts it in the place of what is there, by one rename. What was there is removed when this is dropped: that may take
    /// long, and nothing that is wrong with it says that the place is not as it should be.
    pub(in crate::snapshot) fn exchange(&mut self) -> Result<(), Failure> {
        let path = self.place.path();
        let fail = failed(&path);
        let Some((_, holder)) = &self.beside else {
            return remove(&self.place.folder, &self.place.name).map_err(&fail);
        };
        let Place { folder, name } = &self.place;
        let built = OsStr::new(BUILT);
        let fresh = holder.look(built).map_err(&fail)?;
        with_writable_folders(holder, built, folder, name, |there| {
            if there {
                renameat_with(holder, BUILT, folder, name, RenameFlags::EXCHANGE)
            } else {
                renameat(holder, BUILT, folder, name)
            }
        })
        .map_err(&fail)?;
        let is_there = self.place.look().map_err(&fail)?.zip(fresh).is_some_and(|(now, fresh)| now.is(&fresh));
        if !is_there {
            // What is in the folder beside now may be what was there: it is left to people.
            self.beside = None;
            let message = format!("{} was exchanged for something else while it was put back", path.display());
            return Err(Failure::new(FailureKind::PermissionError, RESTORE, message).hint(
                "whoever may write the folder that it is in has done so: see what runs on the host as its owner",
            ));
        }
        self.place.sync().map_err(&fail)
    }

    /// Removes the folder beside, with what is in it.
    fn clear(&mut self) -> io::Result<()> {
        let Some((beside, holder)) = self.beside.take() else { return Ok(()) };
        remove(&holder, OsStr::new(BUILT))?;
        match unlinkat(&self.place.folder, &beside, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(%error, place = %self.place.path().display(), "what was built beside it could not be removed");
        }
    }
}

/// What begins the name of the folder beside a place. A place's own name may be as long as a name can be.
fn prefix(name: &OsStr) -> String {
    let digest = blake3::hash(name.as_encoded_bytes()).to_hex();
    format!(".fleetwright-restoring-{}-", &digest[..8])
}

/// A name for the folder beside a place that nobody can have taken before.
fn beside(name: &OsStr) -> Result<OsString, Failure> {
    let mut random = [0; 12];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::new(FailureKind::ResourceError, RESTORE, format!("no random name: {error}")))?;
    Ok(OsString::from(format!("{}{}", prefix(name), hex::encode(random))))
}

/// Removes what restores have left that were cut off, this version's and those of before. What others have put there is
/// theirs.
fn remove_leftovers(place: &Place) -> io::Result<()> {
    let (prefix, before) = (prefix(&place.name), format!(".{}.fleetwright-restoring", place.name.to_string_lossy()));
    for name in place.folder.names()? {
        let name = name?;
        if (name.as_encoded_bytes().starts_with(prefix.as_bytes()) || name == OsStr::new(&before))
            && place.folder.look(&name)?.is_some_and(|seen| is_private(&seen))
        {
            remove(&place.folder, &name)?;
        }
    }
    Ok(())
}

/// Whether it is a folder that nobody but this process's user may enter.
fn is_private(seen: &Seen) -> bool {
    seen.is_folder() && seen.uid == rustix::process::geteuid().as_raw() && seen.mode & 0o077 == 0
}

/// Builds what was kept in a folder that nobody else may enter.
fn fill(holder: &Folder, tree: &Tree, path: &Path, blobs: &Blobs) -> Result<(), Failure> {
    let fail = failed(path);
    // Data folders of snapshots of before this was written have no entry of their own.
    if !tree.0.contains_key("") {
        mkdirat(holder, BUILT, Mode::RWXU).map_err(|error| fail(error.into()))?;
    }
    for (relative, entry) in &tree.0 {
        go_on().map_err(&fail)?;
        make(holder, relative, entry, &joined(path, relative), blobs)?;
    }
    for (relative, entry) in &tree.0 {
        if let EntryKind::HardLink { to } = &entry.kind {
            let link = || {
                let (to, at) = (Way::to(holder, to)?, Way::to(holder, relative)?);
                io::Result::Ok(linkat(to.folder(holder), &to.name, at.folder(holder), &at.name, AtFlags::empty())?)
            };
            link().map_err(&fail)?;
        }
    }
    // Modes, owners and times last, the deepest first: a folder may come back read-only.
    let own = tree.0.iter().rev().filter(|(_, entry)| !matches!(entry.kind, EntryKind::HardLink { .. }));
    for (relative, entry) in own {
        go_on().map_err(&fail)?;
        dress(holder, relative, entry).map_err(failed(&joined(path, relative)))?;
    }
    // Contents are durable already, and all of this is to be as well once it has taken the place of what is there.
    // The kernel tells once of what it could not write of anybody: the second time it is about what is still to be written.
    durable::disk_of(holder, path)
        .or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "something on this disk could not be written");
            durable::disk_of(holder, path)
        })
        .map_err(&fail)
}

/// The way to something that is built: at once, or, where it is longer than the kernel takes, by the folder that it is in.
struct Way {
    parent: Option<OwnedFd>,
    name: PathBuf,
}

impl Way {
    fn to(holder: &Folder, relative: &str) -> io::Result<Self> {
        let path = built(relative);
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self { parent: None, name: path });
        }
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        Ok(Self { parent: Some(holder.folder_of(&path)?), name })
    }

    fn folder<'a>(&'a self, holder: &'a Folder) -> BorrowedFd<'a> {
        self.parent.as_ref().map_or_else(|| holder.as_fd(), AsFd::as_fd)
    }
}

/// The path of something in the folder beside.
fn built(relative: &str) -> PathBuf {
    joined(Path::new(BUILT), relative)
}

/// A new folder that nobody but this process's user may enter.
fn make_private(parent: &Folder, name: &OsStr) -> io::Result<Folder> {
    mkdirat(parent, name, Mode::RWXU)?;
    let taken = || io::Error::other("somebody else makes folders of this name beside it");
    let seen = parent.look(name)?.ok_or_else(taken)?;
    let folder = parent.folder(Path::new(name), &seen)?.ok_or_else(taken)?;
    if !is_private(&seen) || folder.names()?.next().is_some() {
        return Err(taken());
    }
    Ok(folder)
}

/// Makes an entry, so that nobody but this process's user may do anything with it yet.
fn make(holder: &Folder, relative: &str, entry: &Entry, path: &Path, blobs: &Blobs) -> Result<(), Failure> {
    let fail = failed(path);
    let way = Way::to(holder, relative).map_err(&fail)?;
    let (folder, at) = (way.folder(holder), &way.name);
    let made = match &entry.kind {
        EntryKind::Folder => mkdirat(folder, at, Mode::RWXU),
        EntryKind::Link { to } => symlinkat(to, folder, at),
        EntryKind::File { blake3 } => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(folder, at, flags, Mode::RUSR | Mode::WUSR).map_err(|error| fail(error.into()))?;
            return blobs.write_out(blake3, &File::from(file), path);
        }
        EntryKind::HardLink { .. } => Ok(()),
    };
    made.map_err(|error| fail(error.into()))
}

/// Gives what was built what belongs to it besides its content.
fn dress(holder: &Folder, relative: &str, entry: &Entry) -> io::Result<()> {
    let way = Way::to(holder, relative)?;
    let (folder, at) = (way.folder(holder), &way.name);
    let time = Timespec {
        tv_sec: entry.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: entry.modified_ns.rem_euclid(1_000_000_000) as _,
    };
    let times = Timestamps { last_access: time, last_modification: time };
    let owner = |fd: &OwnedFd| {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
    };
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if matches!(entry.kind, EntryKind::Link { .. }) {
        let fd = openat(folder, at, flags | OFlags::PATH, Mode::empty())?;
        owner(&fd)?;
        attributes::set_node(&fd, &entry.xattrs)?;
        return Ok(utimensat(folder, at, &times, AtFlags::SYMLINK_NOFOLLOW)?);
    }
    let fd = openat(folder, at, flags | OFlags::RDONLY, Mode::empty())?;
    owner(&fd)?;
    attributes::set(fd.as_fd(), &entry.xattrs)?;
    fchmod(&fd, Mode::from_raw_mode(entry.mode))?;
    Ok(futimens(&fd, &times)?)
}

/// Renames between two folders. Who is not root may move a folder to another one only while it may be written: then the
/// modes of those that may not be are lent for as long as it takes.
fn with_writable_folders(
    holder: &Folder,
    built: &OsStr,
    folder: &Folder,
    name: &OsStr,
    rename: impl Fn(bool) -> Result<(), Errno>,
) -> io::Result<()> {
    let there = folder.look(name)?;
    let outcome = rename(there.is_some());
    if outcome != Err(Errno::ACCESS) {
        return Ok(outcome?);
    }
    let mut lent: Vec<(Folder, Seen)> = Vec::new();
    for (parent, name, seen) in [(holder, built, holder.look(built)?), (folder, name, there)] {
        let Some(seen) = seen.filter(|seen| seen.is_folder() && seen.mode & 0o200 == 0) else { continue };
        if let Some(opened) = parent.folder(Path::new(name), &seen)? {
            fchmod(&opened, Mode::from_raw_mode(seen.mode | 0o200))?;
            lent.push((opened, seen));
        }
    }
    let outcome = rename(there.is_some());
    for (folder, seen) in lent {
        fchmod(&folder, Mode::from_raw_mode(seen.mode))?;
    }
    Ok(outcome?)
}
