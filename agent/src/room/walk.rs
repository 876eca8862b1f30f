//! What is below a folder that a server may write takes up: by descriptors, so that nothing it exchanges leads elsewhere,
//! and without holding in memory what is found.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use fleetwright_deploy::room::Used;

use crate::beneath::{DEPTH_MAX, Folder};

/// Most files with several names that are remembered, so that they count once; those beyond count once for each name.
const LINKED_MAX: usize = 100_000;

/// How long a server's folders are gone through. More than that is told as more than can be counted.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What everything below a folder takes up on a device, as far as it can be gone through until `end`; nothing where the
/// folder is elsewhere, or none. What cannot be looked at does not count.
pub(super) fn used(folder: &Path, device: u64, end: Instant) -> Option<Used> {
    let folder = Folder::open(folder).ok()?;
    let root = folder.seen().ok().filter(|seen| seen.device == device)?;
    let used = Used { bytes: root.taken_bytes, files: 1, ..Used::default() };
    let mut walk = Walk { device, end, used, linked: BTreeSet::new() };
    let _ = walk.count(&folder, 0);
    Some(walk.used)
}

struct Walk {
    device: u64,
    end: Instant,
    used: Used,
    linked: BTreeSet<u64>,
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
