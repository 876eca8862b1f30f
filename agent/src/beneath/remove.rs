//! Removing what is below folders that others may write: by names in open folders, through no link.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, fchmod, unlinkat};
use rustix::io::Errno;

use super::{DEPTH_MAX, Folder};

/// How often a folder is emptied again into which something was put meanwhile.
const ROUNDS_MAX: u32 = 16;

/// Removes whatever has this name in a folder, with all that is in it; that it is not there is no error.
pub(crate) fn remove(folder: &Folder, name: &OsStr) -> io::Result<()> {
    remove_below(folder, name, 0)
}

fn remove_below(folder: &Folder, name: &OsStr, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        let place = folder.path().display();
        return Err(io::Error::other(format!("{place} is more than {DEPTH_MAX} folders deep: remove it by hand")));
    }
    for _ in 0..ROUNDS_MAX {
        let Some(seen) = folder.look(name)? else { return Ok(()) };
        if !seen.is_folder() {
            match unlinkat(folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // It has become a folder meanwhile.
                Err(Errno::ISDIR | Errno::PERM) if folder.look(name)?.is_some_and(|now| now.is_folder()) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(inner) = folder.folder(Path::new(name), &seen)? {
            if seen.mode & 0o700 != 0o700 {
                // Folders of this process's own user may be read-only.
                let _ = fchmod(&inner, Mode::from_raw_mode(seen.mode | 0o700));
            }
            for entry in inner.names()? {
                remove_below(&inner, &entry?, depth + 1)?;
            }
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!(
        "{} is filled again and again while it is removed",
        folder.path().join(name).display()
    )))
}
