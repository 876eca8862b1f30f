//! A name in an open folder: where something is, or is to be.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, fsync, mkdirat, openat, readlinkat};
use rustix::io::Errno;

use super::{Folder, Seen};
use crate::install::file_failure;

/// How many symbolic links are followed on the way to a place.
const LINKS_MAX: usize = 40;
/// The permissions of folders that are missing on the way to something that is put back.
const MADE_MODE: u32 = 0o755;

/// A folder anywhere on the host; nothing when it is not there. A symbolic link on the way, or in its place, counts only where
/// nobody but root could have put it there.
pub(crate) fn reach_folder(path: &Path) -> Result<Option<Folder>, Failure> {
    split(path)?;
    let mut way = Way::new(path)?;
    for part in path.components() {
        if !way.go(part)? {
            return Ok(None);
        }
    }
    Ok(Some(way.end()))
}

/// A name in an open folder.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: Folder,
    pub(crate) name: OsString,
}

impl Place {
    /// A place that nobody but this process's user can change the way to: in a folder of its own.
    pub(crate) fn own(path: &Path) -> Result<Option<Self>, Failure> {
        let (parent, name) = split(path)?;
        match openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { folder: Folder::of(fd, parent.to_owned()), name: name.to_owned() })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(file_failure(parent, &error.into())),
        }
    }

    /// A place anywhere on the host; nothing when its folder is not there. A symbolic link on the way counts only where
    /// nobody but root could have put it there.
    pub(crate) fn reach(path: &Path) -> Result<Option<Self>, Failure> {
        let (parent, name) = split(path)?;
        let mut way = Way::new(path)?;
        for part in parent.components() {
            if !way.go(part)? {
                return Ok(None);
            }
        }
        Ok(Some(Self { folder: way.end(), name: name.to_owned() }))
    }

    /// The same, where folders that are missing are made.
    pub(crate) fn reach_or_make(path: &Path) -> Result<Self, Failure> {
        let (parent, name) = split(path)?;
        let mut way = Way::new(path)?;
        for part in parent.components() {
            if !way.go(part)? {
                way.make(part)?;
            }
        }
        Ok(Self { folder: way.end(), name: name.to_owned() })
    }

    /// Whether a place can be reached or made, as far as that can be told without making anything.
    pub(crate) fn check_way(path: &Path) -> Result<(), Failure> {
        let (parent, _) = split(path)?;
        let mut way = Way::new(path)?;
        for part in parent.components() {
            if !way.go(part)? {
                return if way.dangling { Err(file_failure(path, &Errno::NOENT.into())) } else { Ok(()) };
            }
        }
        Ok(())
    }

    /// Its path, for messages.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// What is there.
    pub(crate) fn look(&self) -> io::Result<Option<Seen>> {
        self.folder.look(&self.name)
    }

    /// Makes durable what was done in its folder.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(fsync(openat(&self.folder, c".", flags, Mode::empty())?)?)
    }
}

fn split(path: &Path) -> Result<(&Path, &OsStr), Failure> {
    path.parent().zip(path.file_name()).filter(|_| path.is_absolute()).ok_or_else(|| {
        let message = format!("`{}` names no file or folder of the host", path.display());
        Failure::new(FailureKind::ConfigurationError, "files", message).hint("write an absolute path")
    })
}

/// The way to a place: the folders that were passed, all open.
struct Way<'a> {
    to: &'a Path,
    passed: Vec<(OwnedFd, PathBuf)>,
    links: usize,
    /// Whether a link on the way leads to nothing.
    dangling: bool,
}

impl<'a> Way<'a> {
    fn new(to: &'a Path) -> Result<Self, Failure> {
        let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| file_failure(Path::new("/"), &error.into()))?;
        Ok(Self { to, passed: vec![(root, PathBuf::from("/"))], links: 0, dangling: false })
    }

    fn here(&self) -> (&OwnedFd, &Path) {
        let (fd, path) = &self.passed[self.passed.len() - 1];
        (fd, path)
    }

    fn end(mut self) -> Folder {
        let (fd, path) = self.passed.swap_remove(self.passed.len() - 1);
        Folder::of(fd, path)
    }

    /// Goes one part further; whether it is there.
    fn go(&mut self, part: Component<'_>) -> Result<bool, Failure> {
        let name = match part {
            Component::RootDir | Component::Prefix(_) => {
                self.passed.truncate(1);
                return Ok(true);
            }
            Component::CurDir => return Ok(true),
            Component::ParentDir => {
                self.passed.truncate(self.passed.len().saturating_sub(1).max(1));
                return Ok(true);
            }
            Component::Normal(name) => name,
        };
        let (here, path) = self.here();
        let at = path.join(name);
        let fail = |error: Errno| file_failure(&at, &error.into());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // With O_DIRECTORY, what is mounted on demand is mounted.
        match openat(here, name, flags | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => {
                self.passed.push((fd, at));
                return Ok(true);
            }
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(fail(error)),
        }
        let link = openat(here, name, flags, Mode::empty()).map_err(fail)?;
        let seen = Seen::of(&fstat(&link).map_err(fail)?);
        if seen.kind != FileType::Symlink {
            return Err(fail(Errno::NOTDIR));
        }
        let folder = Seen::of(&fstat(here).map_err(fail)?);
        self.check_link(&at, &seen, &folder)?;
        let target = readlinkat(&link, c"", Vec::new()).map_err(fail)?;
        self.follow(Path::new(OsStr::from_bytes(target.as_bytes())))
    }

    fn follow(&mut self, target: &Path) -> Result<bool, Failure> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(file_failure(self.to, &Errno::LOOP.into()));
        }
        for part in target.components() {
            if !self.go(part)? {
                self.dangling = true;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A link counts where neither it nor the folder that it is in may be written by anybody but root, and by this
    /// process's own user.
    fn check_link(&self, at: &Path, link: &Seen, folder: &Seen) -> Result<(), Failure> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let refuse = |why: String| {
            let message = format!("{} is on the way to {}, and {why}", at.display(), self.to.display());
            Err(Failure::new(FailureKind::PermissionError, "files", message).hint(
                "name in `snapshot.paths` the path that the link leads to, or give the link and the folder that it is in to root alone",
            ))
        };
        if !is_trusted(link.uid, uid) {
            return refuse(format!("is a symbolic link of user {}", link.uid));
        }
        if !is_trusted(folder.uid, uid) {
            return refuse(format!("is a symbolic link in a folder of user {}", folder.uid));
        }
        if folder.mode & 0o002 != 0 || (folder.mode & 0o020 != 0 && !is_trusted(folder.gid, gid)) {
            return refuse(format!("is a symbolic link in a folder that others may write (mode {:04o})", folder.mode));
        }
        Ok(())
    }

    fn make(&mut self, part: Component<'_>) -> Result<(), Failure> {
        let (here, path) = self.here();
        let at = path.join(part);
        let fail = |error: Errno| file_failure(&at, &error.into());
        if self.dangling {
            return Err(fail(Errno::NOENT));
        }
        mkdirat(here, part.as_os_str(), Mode::from_raw_mode(MADE_MODE)).map_err(fail)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(here, part.as_os_str(), flags, Mode::empty()).map_err(fail)?;
        if Seen::of(&fstat(&made).map_err(fail)?).uid == rustix::process::geteuid().as_raw() {
            rustix::fs::fchmod(&made, Mode::from_raw_mode(MADE_MODE)).map_err(fail)?;
        }
        self.passed.push((made, at));
        Ok(())
    }
}

/// Whether it is root, or this process's own user or group.
fn is_trusted(id: u32, own: u32) -> bool {
    id == 0 || id == own
}
