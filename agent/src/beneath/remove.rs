//! Removing what is below folders that others may write: by names in open folders, through no link, and however deep it
//! is.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use super::{DEPTH_MAX, Folder};
use crate::aside::go_on;

/// How often a folder is emptied again: what is too deep is moved up, and somebody may put in something meanwhile.
const ROUNDS_MAX: u32 = 4_096;

/// Removes whatever has this name in a folder, with all that is in it; that it is not there is no error.
pub(crate) fn remove(folder: &Folder, name: &OsStr) -> io::Result<()> {
    Removing { moved: 0 }.remove(folder, name, None, 0)
}

struct Removing {
    /// How many folders were too deep, and were moved up.
    moved: u64,
}

impl Removing {
    /// `top` is the folder that is removed as a whole.
    fn remove(&mut self, folder: &Folder, name: &OsStr, top: Option<&Folder>, depth: usize) -> io::Result<()> {
        for _ in 0..ROUNDS_MAX {
            go_on()?;
            let Some(seen) = folder.look(name)? else { return Ok(()) };
            if !seen.is_folder() {
                match unlinkat(folder, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    // It has become a folder meanwhile.
                    Err(Errno::ISDIR | Errno::PERM) if folder.look(name)?.is_some_and(|now| now.is_folder()) => {
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if top.is_some() && folder.seen()?.device != seen.device {
                let path = folder.path().join(name);
                return Err(io::Error::other(format!("{} is another disk: unmount it first", path.display())));
            }
            if let Some(top) = top.filter(|_| depth == DEPTH_MAX) {
                self.moved += 1;
                let up = OsString::from(format!(".fleetwright-removing-{}", self.moved));
                match renameat(folder, name, top, &up) {
                    // Somebody has taken that name, or this one has become something else.
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => continue,
                    other => return Ok(other?),
                }
            }
            if seen.mode & 0o700 != 0o700 {
                // Folders of this process's own user may be closed to it; of others, opening them tells.
                let _ = folder.let_in(Path::new(name), &seen);
            }
            if let Some(inner) = folder.folder(Path::new(name), &seen)? {
                for entry in inner.names()? {
                    self.remove(&inner, &entry?, Some(top.unwrap_or(&inner)), depth + 1)?;
                }
            }
            match unlinkat(folder, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let path = folder.path().join(name);
        Err(io::Error::other(format!("{} is filled again and again while it is removed", path.display())))
    }
}
