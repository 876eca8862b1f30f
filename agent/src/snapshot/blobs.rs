//! The store of blobs: contents of files, each under the name that its hash gives it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fleetwright_deploy::failure::{Failure, FailureKind};

use super::content::{self, Kind};
use super::{STEP, damaged, failed};
use crate::durable;
use crate::layout::Layout;

/// What keeping files leaves free on the disk, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// After how many bytes of a file that is looked at again.
const ROOM_LOOKED_AT: u64 = 8 * 1024 * 1024;
/// What ends the name of a file on its way to become a blob.
const UNFINISHED: &str = ".new";

/// The blobs of one host.
#[derive(Clone)]
pub(super) struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    pub(super) fn of(layout: &Layout) -> Self {
        Self { folder: layout.blobs() }
    }

    fn path(&self, blake3: &str) -> PathBuf {
        self.folder.join(blake3)
    }

    /// Refuses what the disk cannot hold.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), Failure> {
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        let stat = rustix::fs::statvfs(&self.folder).map_err(|error| failed(&self.folder)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free.saturating_sub(FREE_BYTES_MIN) >= bytes {
            return Ok(());
        }
        let message = format!("the snapshot needs {} MiB, {} MiB are free", bytes.div_ceil(1 << 20), free >> 20);
        Err(Failure::new(FailureKind::ResourceError, STEP, message)
            .hint("free some space on the host, or keep less in `snapshot`"))
    }

    /// A fresh file that becomes a blob.
    pub(super) fn fresh(&self) -> Result<Fresh, Failure> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        let name = format!("{}-{}{UNFINISHED}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.join(name);
        let file = File::create(&path).map_err(failed(&path))?;
        Ok(Fresh { path, file, hasher: blake3::Hasher::new(), is_finished: false })
    }

    /// Keeps the content of an open file, of which `bytes` were listed: shared with it where the file system can (reflink),
    /// copied otherwise, without its holes. Of a file that grows meanwhile, no more than was listed is kept.
    pub(super) fn keep(&self, mut from: File, path: &Path, bytes: u64) -> Result<String, Failure> {
        let fail = failed(path);
        let fresh = self.fresh()?;
        let shared = rustix::fs::ioctl_ficlone(&fresh.file, &from).is_ok();
        if shared {
            // What is hashed is what is kept, whatever is written to the file meanwhile.
            from = File::open(&fresh.path).map_err(&fail)?;
        }
        let bytes = from.metadata().map_err(&fail)?.len().min(bytes);
        fresh.file.set_len(bytes).map_err(&fail)?;
        let mut written = 0;
        let name = content::read(&from, path, bytes, None, |at, chunk| {
            if shared {
                return Ok(());
            }
            // Holes that are filled meanwhile were not counted before.
            written += chunk.len() as u64;
            if written >= ROOM_LOOKED_AT {
                self.check_room(std::mem::take(&mut written))?;
            }
            fresh.file.write_all_at(chunk, at).map_err(&fail)
        })?;
        self.name(fresh, name)
    }

    /// Makes a fresh file a blob.
    pub(super) fn finish(&self, fresh: Fresh) -> Result<String, Failure> {
        let name = fresh.hasher.finalize().to_hex().to_string();
        self.name(fresh, name)
    }

    fn name(&self, mut fresh: Fresh, name: String) -> Result<String, Failure> {
        let fail = failed(&fresh.path);
        fresh.file.sync_all().map_err(&fail)?;
        fs::rename(&fresh.path, self.path(&name)).map_err(&fail)?;
        fresh.is_finished = true;
        Ok(name)
    }

    /// Makes the names of all blobs durable: their contents are already.
    pub(super) fn sync(&self) -> Result<(), Failure> {
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        let above = self.folder.parent().unwrap_or(&self.folder);
        [&self.folder, above].into_iter().try_for_each(|folder| durable::folder(folder).map_err(failed(folder)))
    }

    /// Writes the content of a blob to a new file, checked, with the holes that it has.
    pub(super) fn write_out(&self, blake3: &str, to: &File, path: &Path) -> Result<(), Failure> {
        let fail = failed(path);
        let from = File::open(self.path(blake3))
            .map_err(|error| damaged(format!("the kept content of {}: {error}", path.display())))?;
        let (bytes, kind) = (from.metadata().map_err(&fail)?.len(), Some(Kind::of_name(blake3)));
        let written = if rustix::fs::ioctl_ficlone(to, &from).is_ok() {
            content::read(to, path, bytes, kind, |_, _| Ok(()))?
        } else {
            to.set_len(bytes).map_err(&fail)?;
            content::read(&from, path, bytes, kind, |at, chunk| to.write_all_at(chunk, at).map_err(&fail))?
        };
        to.sync_all().map_err(&fail)?;
        if written == blake3 { Ok(()) } else { Err(is_damaged(&path.display())) }
    }

    /// An open blob, checked.
    pub(super) fn open(&self, blake3: &str, what: &str) -> Result<File, Failure> {
        let path = self.path(blake3);
        let file = File::open(&path).map_err(failed(&path))?;
        let bytes = file.metadata().map_err(failed(&path))?.len();
        let found = content::read(&file, &path, bytes, Some(Kind::of_name(blake3)), |_, _| Ok(()))?;
        let mut file = if found == blake3 { file } else { return Err(is_damaged(&what)) };
        file.rewind().map_err(failed(&path))?;
        Ok(file)
    }

    /// Removes what was on its way to become a blob when the agent ended.
    pub(super) fn remove_unfinished(&self) {
        for blob in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if blob.file_name().to_string_lossy().ends_with(UNFINISHED) {
                let _ = fs::remove_file(blob.path());
            }
        }
    }

    /// Removes every blob that is not needed.
    pub(super) fn retain(&self, needed: &BTreeSet<String>) -> Result<(), Failure> {
        for blob in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if !needed.contains(blob.file_name().to_string_lossy().as_ref()) {
                fs::remove_file(blob.path()).map_err(failed(&blob.path()))?;
            }
        }
        Ok(())
    }
}

/// A file on its way to become a blob. Given up, it goes.
pub(super) struct Fresh {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    is_finished: bool,
}

impl Fresh {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(failed(&self.path))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_damaged(what: &dyn std::fmt::Display) -> Failure {
    damaged(format!("the kept content of {what} is damaged"))
}
