//! Work below folders that others may write. Whoever may write a folder may exchange what is in it at any moment, so a
//! path means nothing there: what is looked at by a path is not what is opened by the same path later.
//!
//! So a folder is a descriptor, and whatever is in it is opened from there: beneath it, through no symbolic link, and only
//! if it is what was looked at. What is to be changed is changed by the descriptor that was opened. Devices, pipes and
//! sockets are never opened.

mod open;
mod place;
mod remove;
mod seen;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, chmod, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

pub(crate) use self::open::PATH_BYTES_MAX;
pub(crate) use self::place::{Place, reach_folder};
pub(crate) use self::remove::remove;
pub(crate) use self::seen::Seen;

/// How many folders deep anything goes: each level holds a descriptor while it is worked on.
pub(crate) const DEPTH_MAX: usize = 128;

/// An open folder. Its path is for messages only: it may lead elsewhere by now.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder by its path, for once: nobody but this process's user may be able to change what is on the way to it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: openat(rustix::fs::CWD, path, flags, Mode::empty())?, path: path.to_owned() })
    }

    fn of(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is itself.
    pub(crate) fn seen(&self) -> io::Result<Seen> {
        Ok(Seen::of(&fstat(&self.fd)?))
    }

    /// What has this name in it; nothing where nothing has.
    pub(crate) fn look(&self, name: &OsStr) -> io::Result<Option<Seen>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Seen::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of what is in it, one after the other.
    pub(crate) fn names(&self) -> io::Result<Names> {
        Ok(Names(Dir::new(openat(
            &self.fd,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)?))
    }

    /// A file below it, to be read; nothing unless it is still the one that was seen.
    pub(crate) fn file(&self, below: &Path, seen: &Seen) -> io::Result<Option<File>> {
        if seen.kind != FileType::RegularFile {
            return Ok(None);
        }
        // Without O_NONBLOCK, a pipe that has taken the file's place would be waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(self.same(below, flags, seen)?.map(File::from))
    }

    /// A folder below it; nothing unless it is still the one that was seen.
    pub(crate) fn folder(&self, below: &Path, seen: &Seen) -> io::Result<Option<Self>> {
        if seen.kind != FileType::Directory {
            return Ok(None);
        }
        let fd = self.same(below, OFlags::RDONLY | OFlags::DIRECTORY, seen)?;
        Ok(fd.map(|fd| Self::of(fd, self.path.join(below))))
    }

    /// Lets its owner read, write and enter a folder below it, if it is still the one that was seen.
    fn let_in(&self, below: &Path, seen: &Seen) -> io::Result<()> {
        if let Some(fd) = self.same(below, OFlags::PATH | OFlags::DIRECTORY, seen)? {
            // A descriptor that neither reads nor writes changes no mode itself.
            let through = format!("/proc/self/fd/{}", fd.as_raw_fd());
            chmod(through, Mode::from_raw_mode(seen.mode | 0o700))?;
        }
        Ok(())
    }

    /// Where a symbolic link below it leads; nothing unless it is still the one that was seen.
    pub(crate) fn link(&self, below: &Path, seen: &Seen) -> io::Result<Option<(PathBuf, OwnedFd)>> {
        if seen.kind != FileType::Symlink {
            return Ok(None);
        }
        let Some(fd) = self.same(below, OFlags::PATH, seen)? else { return Ok(None) };
        let to = readlinkat(&fd, c"", Vec::new())?;
        Ok(Some((PathBuf::from(OsStr::from_bytes(to.as_bytes())), fd)))
    }

    /// Whatever has this name in it, as a descriptor that neither reads nor writes, and what it is; nothing where nothing
    /// has this name.
    pub(crate) fn node(&self, name: &OsStr) -> io::Result<Option<(OwnedFd, Seen)>> {
        let Some(fd) = open::beneath(self.fd.as_fd(), Path::new(name), OFlags::PATH)? else { return Ok(None) };
        let seen = Seen::of(&fstat(&fd)?);
        Ok(Some((fd, seen)))
    }

    /// The folder that something below it is in, opened to work in it.
    pub(crate) fn folder_of(&self, below: &Path) -> io::Result<OwnedFd> {
        let parent = below.parent().unwrap_or_else(|| Path::new(""));
        let opened = open::beneath(self.fd.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)?;
        opened.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A folder that was opened as a [`node`](Self::node) of another, to be listed.
    pub(crate) fn of_node(node: &OwnedFd, above: &Self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::of(openat(node, c".", flags, Mode::empty())?, above.path.join(name)))
    }

    fn same(&self, below: &Path, flags: OFlags, seen: &Seen) -> io::Result<Option<OwnedFd>> {
        let Some(fd) = open::beneath(self.fd.as_fd(), below, flags)? else { return Ok(None) };
        Ok(Seen::of(&fstat(&fd)?).is(seen).then_some(fd))
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names in a folder, as they are read.
pub(crate) struct Names(Dir);

impl Iterator for Names {
    type Item = io::Result<std::ffi::OsString>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.0.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                return Some(Ok(OsStr::from_bytes(name).to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
