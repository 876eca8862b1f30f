//! What stores a journal: a few methods, so that another database can stand behind them.

use std::fmt;

use fleetwright_deploy::fleet::{Fleet, PastDeployment};
use fleetwright_deploy::time::Timestamp;

/// The version of the program that a snapshot is for: another one folds the entries anew.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why entries cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room left; nothing was written.
    #[error("there is no room left on its disk ({0})")]
    Full(String),
    /// Somebody else has written.
    #[error("another process wrote entry {0}")]
    Conflict(u64),
    /// It was written by a later version of this program.
    #[error("it was written by a newer coordinator (version {0}); install that one again")]
    Newer(i64),
    /// Its file was cut off or overwritten in parts.
    #[error("its file is damaged ({0})")]
    Damaged(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The hash of an entry, which stands for all before it too (BLAKE3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryHash(pub [u8; 32]);

impl fmt::Display for EntryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// An entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its number, from 1 without gaps.
    pub seq: u64,
    /// When the event was applied.
    pub at: Timestamp,
    /// Who made it happen; nothing in entries of before.
    pub actor: Option<String>,
    /// The type of the event.
    pub event_type: String,
    /// The event, JSON.
    pub event: String,
    /// What people are told about it, JSON.
    pub notes: String,
    /// [`Self::chained_to`] the entry before.
    pub hash: EntryHash,
}

impl StoredEntry {
    /// The hash of this entry after one with the given hash.
    pub fn chained_to(&self, before: &EntryHash) -> EntryHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.0).update(&self.seq.to_be_bytes()).update(&self.at.unix_ms().to_be_bytes());
        for text in [&self.event_type, &self.event, &self.notes] {
            hasher.update(&(text.len() as u64).to_be_bytes()).update(text.as_bytes());
        }
        if let Some(actor) = &self.actor {
            hasher.update(&(actor.len() as u64).to_be_bytes()).update(actor.as_bytes());
        }
        EntryHash(*hasher.finalize().as_bytes())
    }
}

/// A snapshot of the fold, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// The entry after which it was taken.
    pub seq: u64,
    /// The version of the program that took it.
    pub version: String,
    /// The fleet, JSON.
    pub state: String,
    /// The hash of all of that, chained to the entry.
    pub hash: EntryHash,
}

impl StoredSnapshot {
    pub(super) fn new(seq: u64, entry: EntryHash, state: String) -> Self {
        let mut snapshot = Self { seq, version: VERSION.to_owned(), state, hash: EntryHash::default() };
        snapshot.hash = snapshot.chained_to(&entry);
        snapshot
    }

    fn chained_to(&self, entry: &EntryHash) -> EntryHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&entry.0).update(&self.seq.to_be_bytes()).update(self.version.as_bytes());
        hasher.update(self.state.as_bytes());
        EntryHash(*hasher.finalize().as_bytes())
    }

    /// Whether this version of the program took it.
    pub(super) fn is_ours(&self) -> bool {
        self.version == VERSION
    }

    /// The fleet, if the snapshot is whole, ours, and about an entry with this hash.
    pub(super) fn restore(&self, entry: &EntryHash) -> Option<Fleet> {
        let fits = self.is_ours() && self.chained_to(entry) == self.hash;
        fits.then(|| serde_json::from_str(&self.state).ok()).flatten()
    }
}

/// What stores a journal. When a method that writes returns without an error, what it wrote is durable; when it
/// returns an error, nothing was written.
pub trait Store: Send {
    /// Appends entries, all or none. The last one that is there must have the number `last`.
    fn append(&mut self, last: u64, entries: &[StoredEntry]) -> Result<(), StoreError>;
    /// Reads at most `limit` entries after the number `after`, in order.
    fn read(&self, after: u64, limit: usize) -> Result<Vec<StoredEntry>, StoreError>;
    /// Takes every entry after the number `after` out of the way, without losing its bytes; says how many.
    fn set_aside_after(&mut self, after: u64) -> Result<u64, StoreError>;
    /// Keeps a snapshot; only the newest two are kept.
    fn keep_snapshot(&mut self, snapshot: &StoredSnapshot) -> Result<(), StoreError>;
    /// Keeps deployments that leave the fleet. What is kept already is written anew.
    fn archive(&mut self, past: &[PastDeployment]) -> Result<(), StoreError>;
    /// The snapshots, the newest first.
    fn snapshots(&self) -> Result<Vec<StoredSnapshot>, StoreError>;
}
