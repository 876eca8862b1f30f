//! Room that is taken before somebody else takes it: bytes, and, where a file system has a number of files that does not
//! grow, files without content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use fleetwright_deploy::room::{reserve_bytes, reserve_files};
use rustix::fs::{FallocateFlags, fallocate};

use super::space;
use crate::layout::Layout;

/// How much is written at once where a file system cannot reserve room, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// The reserve of a host.
#[derive(Clone, Debug)]
pub(crate) struct Reserve {
    bytes: PathBuf,
    files: PathBuf,
}

impl Reserve {
    pub(crate) fn of(layout: &Layout) -> Self {
        Self { bytes: layout.reserve(), files: layout.reserved_files() }
    }

    /// Takes the room, unless it is taken or there is too little.
    pub(crate) fn keep(&self) {
        let Some(room) = self.bytes.parent().and_then(|folder| space(folder).ok()) else { return };
        let (bytes, files) = (reserve_bytes(room.total_bytes), reserve_files(room.total_files));
        let kept = fs::symlink_metadata(&self.bytes).is_ok_and(|metadata| metadata.len() == bytes);
        if !kept && bytes > 0 && room.free_bytes >= bytes.saturating_mul(2) {
            let _ = fs::remove_file(&self.bytes);
            self.told(self.take_bytes(bytes), || drop(fs::remove_file(&self.bytes)));
        }
        let kept = fs::read_dir(&self.files).map_or(0, |entries| entries.count() as u64);
        if kept != files && room.free_files >= files.saturating_mul(2) {
            let _ = fs::remove_dir_all(&self.files);
            self.told(self.take_files(files), || drop(fs::remove_dir_all(&self.files)));
        }
    }

    fn told(&self, taken: io::Result<()>, give_up: impl FnOnce()) {
        if let Err(error) = taken {
            tracing::warn!(%error, "there is no reserve for a full disk");
            give_up();
        }
    }

    fn take_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.bytes)?;
        if fallocate(&file, FallocateFlags::empty(), 0, bytes).is_err() {
            write_zeros(&mut file, bytes)?;
        }
        file.sync_all()
    }

    fn take_files(&self, files: u64) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.files)?;
        for n in 0..files {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.files.join(n.to_string()))?;
        }
        Ok(())
    }

    /// Gives half of the room back to the disk, unless that was done.
    pub(crate) fn lend(&self) {
        let Some(room) = self.bytes.parent().and_then(|folder| space(folder).ok()) else { return };
        let half = reserve_bytes(room.total_bytes) / 2;
        if fs::symlink_metadata(&self.bytes).is_ok_and(|metadata| metadata.len() > half) {
            let lent = OpenOptions::new().write(true).open(&self.bytes).and_then(|file| file.set_len(half));
            self.told(lent, || ());
        }
        for n in reserve_files(room.total_files) / 2..reserve_files(room.total_files) {
            let _ = fs::remove_file(self.files.join(n.to_string()));
        }
    }

    /// Gives the room back to the disk; whether there was any.
    pub(crate) fn give_up(&self) -> bool {
        let bytes = fs::remove_file(&self.bytes).is_ok();
        fs::remove_dir_all(&self.files).is_ok() || bytes
    }
}

fn write_zeros(file: &mut File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK_BYTES as u64);
        file.write_all(&zeros[..usize::try_from(now).unwrap_or(CHUNK_BYTES)])?;
        left -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_reserve_takes_real_room_and_gives_it_back() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let reserve = Reserve::of(&layout);
        reserve.keep();
        let room = space(folder.path()).expect("space");
        let metadata = fs::metadata(layout.reserve()).expect("the reserve");
        assert_eq!(metadata.len(), reserve_bytes(room.total_bytes));
        assert!(metadata.blocks() * 512 >= metadata.len(), "a hole is no reserve");
        let files = || fs::read_dir(layout.reserved_files()).map_or(0, |entries| entries.count() as u64);
        assert_eq!(files(), reserve_files(room.total_files));
        reserve.keep();
        assert_eq!(files(), reserve_files(room.total_files), "what is kept is left as it is");
        for _ in 0..2 {
            reserve.lend();
            let metadata = fs::metadata(layout.reserve()).expect("the reserve");
            assert_eq!(metadata.len(), reserve_bytes(room.total_bytes) / 2);
            assert!(metadata.blocks() * 512 >= metadata.len() && metadata.blocks() * 512 < 2 * metadata.len());
            assert_eq!(files(), reserve_files(room.total_files) / 2);
        }
        reserve.keep();
        assert_eq!(files(), reserve_files(room.total_files), "what was lent is taken again");
        assert_eq!(fs::metadata(layout.reserve()).expect("the reserve").len(), reserve_bytes(room.total_bytes));
        assert!(reserve.give_up() && !reserve.give_up());
        assert_eq!(files(), 0);
    }
}
