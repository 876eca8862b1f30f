//! Room on the disk with the agent's state: how much there is, what servers use of it, and a reserve that is given up
//! first, so that a release can be put back on a full disk.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::room::{Room, reserve_bytes};
use rustix::fs::{FallocateFlags, fallocate};

use crate::layout::Layout;

/// Most files of one server that are counted; what is beyond does not count as its own.
const FILES_MAX: usize = 200_000;
/// How much is written at once where a file system cannot reserve room, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// The size of a file system, and what is free on it.
fn space(path: &Path) -> std::io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// The room on the file system with the state, without what servers use of it.
pub(crate) fn free(layout: &Layout) -> Option<Room> {
    let (total_bytes, free_bytes) = space(layout.state_dir()).ok()?;
    Some(Room { total_bytes, free_bytes, ..Room::default() })
}

/// The room, and what these servers use of it.
pub(crate) fn measure(layout: &Layout, servers: &[ServerName]) -> Option<Room> {
    let mut room = free(layout)?;
    let device = fs::metadata(layout.state_dir()).ok()?.dev();
    for name in servers {
        let server = layout.server(name);
        let used = [server.data(), server.logs()].iter().filter_map(|folder| used(folder, device)).sum::<u64>();
        if used > 0 {
            room.servers.insert(name.clone(), used);
        }
    }
    Some(room)
}

/// What everything below a folder takes up on a device; nothing where the folder is elsewhere. Links are not followed.
fn used(folder: &Path, device: u64) -> Option<u64> {
    let here = |path: &Path| fs::symlink_metadata(path).ok().filter(|metadata| metadata.dev() == device);
    let mut bytes = here(folder)?.blocks() * 512;
    let (mut folders, mut count) = (vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            count += 1;
            if count > FILES_MAX {
                return Some(bytes);
            }
            let Some(metadata) = here(&entry.path()) else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Some(bytes)
}

/// Room that is taken before somebody else takes it.
#[derive(Clone, Debug)]
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    pub(crate) fn of(layout: &Layout) -> Self {
        Self(layout.reserve())
    }

    /// Takes the room, unless it is taken or there is too little.
    pub(crate) fn keep(&self) {
        let Some((total, free)) = self.0.parent().and_then(|folder| space(folder).ok()) else { return };
        let bytes = reserve_bytes(total);
        let kept = fs::symlink_metadata(&self.0).is_ok_and(|metadata| metadata.len() == bytes);
        if kept || bytes == 0 || free < bytes.saturating_mul(2) {
            return;
        }
        self.give_up();
        if let Err(error) = self.take(bytes) {
            tracing::warn!(%error, "there is no reserve for a full disk");
            self.give_up();
        }
    }

    fn take(&self, bytes: u64) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0)?;
        if fallocate(&file, FallocateFlags::empty(), 0, bytes).is_err() {
            write_zeros(&mut file, bytes)?;
        }
        file.sync_all()
    }

    /// Gives the room back to the disk; whether there was any.
    pub(crate) fn give_up(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

fn write_zeros(file: &mut File, bytes: u64) -> std::io::Result<()> {
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
    use super::*;

    #[test]
    fn the_reserve_takes_real_room_and_gives_it_back() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let reserve = Reserve::of(&layout);
        reserve.keep();
        let (total, _) = space(folder.path()).expect("space");
        let metadata = fs::metadata(layout.reserve()).expect("the reserve");
        assert_eq!(metadata.len(), reserve_bytes(total));
        assert!(metadata.blocks() * 512 >= metadata.len(), "a hole is no reserve");
        assert!(reserve.give_up() && !reserve.give_up());
    }

    #[test]
    fn data_and_output_of_a_server_are_counted_and_links_are_not_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let name: ServerName = "web".parse().expect("name");
        let server = layout.server(&name);
        for folder in [server.data().join("deep"), server.logs()] {
            fs::create_dir_all(&folder).expect("folder");
            fs::write(folder.join("file"), vec![1; 1 << 20]).expect("file");
        }
        std::os::unix::fs::symlink("/", server.data().join("link")).expect("link");
        let room = measure(&layout, std::slice::from_ref(&name)).expect("room");
        let used = room.servers[&name];
        assert!((2 << 20..3 << 20).contains(&used), "{used}");
    }
}
