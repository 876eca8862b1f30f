//! The coordinator's disk: what was appended is there after a crash; the commit that a crash interrupts is there
//! in part, its last entry torn.

use std::sync::{Arc, Mutex, MutexGuard};

use fleetwright::journal::{EntryHash, Store, StoreError, StoredEntry, StoredSnapshot};
use fleetwright_deploy::fleet::PastDeployment;

#[derive(Default)]
struct Content {
    entries: Vec<StoredEntry>,
    snapshots: Vec<StoredSnapshot>,
    set_aside: usize,
}

/// A disk; its clones are the same disk, so that it outlives the coordinator that writes to it.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Content>>);

impl Disk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("one thread")
    }

    /// Leaves a commit that was under way: some of its entries, the last of them torn.
    pub(super) fn tear(&self, mut torn: StoredEntry) {
        torn.event.truncate(torn.event.len() / 2);
        self.content().entries.push(torn);
    }

    /// Leaves an entry whose hash is not its own.
    pub(super) fn tear_whole(&self, torn: StoredEntry) {
        self.content().entries.push(torn);
    }

    /// The number and the hash of the last entry.
    pub(super) fn head(&self) -> (u64, EntryHash) {
        self.content().entries.last().map(|entry| (entry.seq, entry.hash)).unwrap_or_default()
    }
}

impl Store for Disk {
    fn append(&mut self, last: u64, entries: &[StoredEntry]) -> Result<(), StoreError> {
        let present = self.head().0;
        if present != last {
            return Err(StoreError::Conflict(present));
        }
        self.content().entries.extend_from_slice(entries);
        Ok(())
    }

    fn read(&self, after: u64, limit: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let content = self.content();
        Ok(content.entries.iter().filter(|entry| entry.seq > after).take(limit).cloned().collect())
    }

    fn set_aside_after(&mut self, after: u64) -> Result<u64, StoreError> {
        let mut content = self.content();
        let before = content.entries.len();
        content.entries.retain(|entry| entry.seq <= after);
        let gone = before - content.entries.len();
        content.set_aside += gone;
        Ok(gone as u64)
    }

    fn keep_snapshot(&mut self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        self.content().snapshots.insert(0, snapshot.clone());
        Ok(())
    }

    /// No simulated fleet lives so long that anything becomes history.
    fn archive(&mut self, _: &[PastDeployment]) -> Result<(), StoreError> {
        Ok(())
    }

    fn snapshots(&self) -> Result<Vec<StoredSnapshot>, StoreError> {
        Ok(self.content().snapshots.clone())
    }
}
