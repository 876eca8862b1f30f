//! What must be on the disk before something else counts: after a power cut, a name counts only if the folder that it is in
//! was made durable as well, and what was changed of a file after its last sync may be lost.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Makes durable which names a folder has.
pub(crate) fn folder(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    seen::tell(path);
    File::open(path)?.sync_all()
}

/// Makes everything on the disk durable that something is on: contents, names, modes and owners. Its path is told of.
pub(crate) fn disk_of(of: impl AsFd, _path: &Path) -> io::Result<()> {
    #[cfg(test)]
    seen::tell(_path);
    Ok(rustix::fs::syncfs(of)?)
}

/// Seeing, in tests, what was made durable, and what was there by then.
#[cfg(test)]
pub(crate) mod seen {
    use std::cell::RefCell;
    use std::path::{Path, PathBuf};

    /// What was made durable, in order, each with what was in a file then.
    type Told = Vec<(PathBuf, Vec<u8>)>;

    thread_local! {
        static SEEN: RefCell<Option<(PathBuf, Told)>> = const { RefCell::new(None) };
    }

    pub(super) fn tell(path: &Path) {
        SEEN.with_borrow_mut(|seen| {
            if let Some((file, told)) = seen {
                told.push((path.to_owned(), std::fs::read(file).unwrap_or_default()));
            }
        });
    }

    /// What work in this thread makes durable, each with what was in `file` then.
    pub(crate) fn of(file: &Path, work: impl FnOnce()) -> Told {
        SEEN.set(Some((file.to_owned(), Vec::new())));
        work();
        SEEN.take().map(|(_, told)| told).unwrap_or_default()
    }
}
