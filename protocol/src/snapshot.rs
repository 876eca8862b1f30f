//! Snapshots as agents tell of them.

use fleetwright_deploy::ids::{ReleaseId, SnapshotId};
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Most entries, and most changes, that one answer holds.
pub const SNAPSHOT_ENTRIES_MAX: usize = 1_000;

/// A snapshot in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSummary {
    /// Its id: the deployment and attempt that it was taken for.
    pub id: SnapshotId,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// The release that ran then; nothing when none did.
    pub release: Option<ReleaseId>,
    /// Whether the data folder is in it.
    pub data: bool,
    /// Which files and folders of the host are in it.
    pub paths: Vec<String>,
    /// Whether a database is in it.
    pub database: bool,
    /// How many files it keeps.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Everything about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// The snapshot in a line.
    pub summary: SnapshotSummary,
    /// What is in it, at most [`SNAPSHOT_ENTRIES_MAX`].
    pub entries: Vec<SnapshotEntry>,
    /// How what is there now differs, where that was asked for, at most as many.
    pub changes: Vec<SnapshotChange>,
    /// Whether either list was cut.
    pub cut: bool,
}

/// A file, folder or link in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// Its path on the host.
    pub path: String,
    /// `file`, `folder`, `link` or `hard_link`.
    pub kind: String,
    /// Its permission bits.
    pub mode: u32,
    /// BLAKE3 of a file, or where a link leads.
    pub content: Option<String>,
}

/// Something that is not as a snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChange {
    /// Its path on the host.
    pub path: String,
    /// `added`, `removed`, `changed`, or `attributes` when only mode, owner or extended attributes differ.
    pub change: String,
}
