//! What is below a folder that a server may write takes up: by descriptors, so that nothing it exchanges leads elsewhere,
//! and without holding in memory what is found.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetwright_deploy::room::{Room, Used};

use crate::beneath::{DEPTH_MAX, Folder};

/// Most files with several names that are remembered, so that they count once; those beyond count once for each name.
const LINKED_MAX: usize = 100_000;

/// The kinds of file systems that others give a host (statfs(2)): NFS, SMB, CIFS, Ceph, AFS, 9P, FUSE.
const REMOTE: [u32; 8] = [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x00c3_6400, 0x5346_414f, 0x0102_1997, 0x6573_5546];

/// How long a server's folders are gone through. More than that is told as more than can be counted.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What was found below a folder.
pub(super) struct Found {
    /// The device that it is on.
    pub(super) device: u64,
    pub(super) used: Used,
    /// The room on that device.
    pub(super) room: Room,
    /// What was left out, in words.
    pub(super) unmeasured: Option<String>,
}

/// What everything below a folder takes up on the device that it is on, as far as it can be gone through until `end`;
/// nothing where it cannot be looked at. What cannot be looked at below it does not count. `local` is a device that is known to
/// answer.
pub(super) fn used(folder: &Folder, local: u64, end: Instant) -> Option<Found> {
    let root = folder.seen().ok()?;
    let device = root.device;
    // A server of files that does not answer would hold up the look at all others.
    if device != local && is_remote(folder) {
        let unmeasured = Some(format!("{} is not on a disk of this host", folder.path().display()));
        return Some(Found { device, used: Used::default(), room: Room::default(), unmeasured });
    }
    let room = super::room_of(&rustix::fs::fstatvfs(folder).ok()?);
    let used = Used { bytes: root.taken_bytes, files: 1, ..Used::default() };
    let mut walk = Walk { device, end, used, linked: BTreeSet::new(), mounted: None };
    let _ = walk.count(folder, 0);
    let unmeasured = walk.mounted.map(|at| format!("something is mounted on {}", at.display()));
    Some(Found { device, used: walk.used, room, unmeasured })
}

/// Whether a folder is on a file system that others give this host, over a network or by a program.
fn is_remote(folder: &Folder) -> bool {
    rustix::fs::fstatfs(folder).is_ok_and(|stat| REMOTE.iter().any(|kind| i128::from(stat.f_type) == i128::from(*kind)))
}

struct Walk {
    device: u64,
    end: Instant,
    used: Used,
    linked: BTreeSet<u64>,
    /// Where something else is mounted below: the first that was found.
    mounted: Option<PathBuf>,
}

impl Walk {
    fn count(&mut self, folder: &Folder, depth: usize) -> io::Result<()> {
        for name in folder.names()? {
            if Instant::now() > self.end {
                self.used.is_too_much = true;
                return Ok(());
            }
            let name = name?;
            let Ok(Some(seen)) = folder.look(&name) else { continue };
            if seen.device != self.device {
                // Of a file, an overlay may say so as well.
                if seen.is_folder() {
                    self.mounted.get_or_insert_with(|| folder.path().join(&name));
                }
                continue;
            }
            if seen.links > 1 && !seen.is_folder() {
                if self.linked.contains(&seen.inode) {
                    continue;
                }
                if self.linked.len() < LINKED_MAX {
                    self.linked.insert(seen.inode);
                }
            }
            self.used.bytes = self.used.bytes.saturating_add(seen.taken_bytes);
            self.used.files += 1;
            if !seen.is_folder() {
                continue;
            }
            if depth == DEPTH_MAX {
                self.used.is_too_deep = true;
            } else if let Ok(Some(inner)) = folder.folder(Path::new(&name), &seen) {
                // What is removed meanwhile takes up nothing.
                let _ = self.count(&inner, depth + 1);
            }
        }
        Ok(())
    }
}
