//! Opening what is beneath a folder, through no symbolic link: by openat2(2), or part by part where the kernel or a filter
//! of system calls does not have it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// How often a path is looked up again because something on it was renamed meanwhile.
const ATTEMPTS_MAX: u32 = 8;

/// Whether openat2(2) was found missing.
static MISSING: AtomicBool = AtomicBool::new(false);

/// The longest path that the kernel is given at once, in bytes; longer ones go part by part.
pub(crate) const PATH_BYTES_MAX: usize = 3_800;

/// Opens a path below a folder, of folders' names alone; nothing where nothing is, or a link or something else is on the way.
pub(super) fn beneath(folder: BorrowedFd<'_>, below: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let missing = MISSING.load(Ordering::Relaxed) || below.as_os_str().len() > PATH_BYTES_MAX;
    let outcome = match if missing { Err(Errno::NOSYS) } else { at_once(folder, below, flags) } {
        Err(Errno::NOSYS) => {
            MISSING.fetch_or(!missing, Ordering::Relaxed);
            part_by_part(folder, below, flags)
        }
        // So says a filter of system calls, or the kernel for a reason: then part by part gets the same answer.
        Err(Errno::PERM) => part_by_part(folder, below, flags),
        other => other,
    };
    match outcome {
        Ok(fd) => Ok(Some(fd)),
        // ENXIO: a socket, or a device without a driver, where a file was.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV | Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn at_once(folder: BorrowedFd<'_>, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut outcome = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS_MAX {
        outcome = openat2(folder, below, flags, Mode::empty(), resolve);
        if !matches!(outcome, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    outcome
}

pub(super) fn part_by_part(folder: BorrowedFd<'_>, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut parts = below.components().peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return Err(Errno::XDEV) };
        let from = at.as_ref().map_or(folder, AsFd::as_fd);
        let last = parts.peek().is_none();
        let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = Some(openat(from, name, if last { flags } else { on_the_way }, Mode::empty())?);
    }
    at.ok_or(Errno::NOENT)
}
