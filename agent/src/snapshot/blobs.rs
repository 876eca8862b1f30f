//! The store of blobs: contents of files, each under its BLAKE3.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fleetwright_deploy::failure::{Failure, FailureKind};

use super::{STEP, damaged, failed};
use crate::aside::go_on;
use crate::layout::Layout;

/// How much of a file is read at once, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;
/// What keeping files leaves free on the disk, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// The blobs of one host.
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
        let name = format!("{}-{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.join(name);
        let file = File::create(&path).map_err(failed(&path))?;
        Ok(Fresh { path, file, hasher: blake3::Hasher::new() })
    }

    /// Keeps the content of an open file, of which `bytes` were listed: shared with it where the file system can (reflink),
    /// copied otherwise. Of a file that grows meanwhile, no more than was listed is kept: there is room for that.
    pub(super) fn keep(&self, mut from: File, path: &Path, bytes: u64) -> Result<String, Failure> {
        let fail = failed(path);
        let mut fresh = self.fresh()?;
        let shared = rustix::fs::ioctl_ficlone(&fresh.file, &from).is_ok();
        if shared {
            // What is hashed is what is kept, whatever is written to the file meanwhile.
            from = File::open(&fresh.path).map_err(&fail)?;
        }
        let there = from.metadata().map_err(&fail)?.len();
        if shared && there > bytes {
            fresh.file.set_len(bytes).map_err(&fail)?;
        }
        let mut from = (&from).take(there.min(bytes));
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match go_on().and_then(|()| from.read(&mut chunk)) {
                Ok(0) => return self.finish(fresh),
                Ok(read) => read,
                Err(error) => {
                    fresh.discard();
                    return Err(fail(error));
                }
            };
            fresh.hasher.update(&chunk[..read]);
            if !shared && let Err(error) = fresh.file.write_all(&chunk[..read]) {
                fresh.discard();
                return Err(fail(error));
            }
        }
    }

    /// Makes a fresh file a blob.
    pub(super) fn finish(&self, fresh: Fresh) -> Result<String, Failure> {
        let digest = fresh.hasher.finalize().to_hex().to_string();
        let fail = failed(&fresh.path);
        fresh.file.sync_all().map_err(&fail)?;
        fs::rename(&fresh.path, self.path(&digest)).map_err(&fail)?;
        Ok(digest)
    }

    /// Writes the content of a blob to a new file, checked.
    pub(super) fn write_out(&self, blake3: &str, mut to: File, path: &Path) -> Result<(), Failure> {
        let fail = failed(path);
        let what = path.display();
        let mut from =
            File::open(self.path(blake3)).map_err(|error| damaged(format!("the kept content of {what}: {error}")))?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                match go_on().and_then(|()| from.read(&mut chunk)).map_err(&fail)? {
                    0 => break,
                    read => to.write_all(&chunk[..read]).map_err(&fail)?,
                }
            }
        }
        to.sync_all().map_err(&fail)?;
        to.rewind().map_err(&fail)?;
        if hash(to, path)? != blake3 {
            return Err(damaged(format!("the kept content of {what} is damaged")));
        }
        Ok(())
    }

    /// An open blob, checked.
    pub(super) fn open(&self, blake3: &str, what: &str) -> Result<File, Failure> {
        let path = self.path(blake3);
        let mut file = File::open(&path).map_err(failed(&path))?;
        if hash(file.try_clone().map_err(failed(&path))?, &path)? != blake3 {
            return Err(damaged(format!("the kept content of {what} is damaged")));
        }
        file.rewind().map_err(failed(&path))?;
        Ok(file)
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

/// A file on its way to become a blob.
pub(super) struct Fresh {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
}

impl Fresh {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(failed(&self.path))
    }

    /// Gives it up.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// BLAKE3 of an open file.
pub(super) fn hash(mut file: File, path: &Path) -> Result<String, Failure> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match go_on().and_then(|()| file.read(&mut chunk)).map_err(failed(path))? {
            0 => return Ok(hasher.finalize().to_hex().to_string()),
            read => hasher.update(&chunk[..read]),
        };
    }
}
