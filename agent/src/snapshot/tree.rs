//! A file, or a folder with everything below it, as a snapshot keeps it: content, kind, mode, owner, times, extended
//! attributes, symbolic and hard links.
//!
//! What is kept is what was listed, by descriptors: whatever is exchanged between the look and the reading is not read.

mod attributes;
mod listing;
mod replacement;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use serde::{Deserialize, Serialize};

use self::attributes::Attributes;
use self::listing::Listing;
use super::blobs::Blobs;
use super::content::{self, Kind};
use super::{STEP, failed};
use crate::beneath::{Place, Seen};

pub(super) use self::listing::{HELD_BYTES_MAX, too_much};
pub(super) use self::replacement::Replacement;

/// Whether the server that writes what is kept still runs. Then, what changes under the hands is left out: it is kept once
/// the server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    Runs,
    Stopped,
}

/// What is there, by path below the root; the root itself is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Tree(BTreeMap<String, Entry>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) mode: u32,
    uid: u32,
    gid: u32,
    pub(super) kind: EntryKind,
    /// Extended attributes, hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: Attributes,
    /// When its content was changed last, in nanoseconds since 1970.
    #[serde(default)]
    modified_ns: i64,
    /// What it takes up on the disk, in bytes, where that is less than its size: it has holes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    taken_bytes: Option<u64>,
    /// What tells whether a file has changed since it was read: inode, size, time of the last change of anything.
    #[serde(default)]
    stamp: (u64, u64, i64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EntryKind {
    Folder,
    File {
        blake3: String,
    },
    Link {
        to: PathBuf,
    },
    /// The same file as another entry.
    HardLink {
        to: String,
    },
}

impl Tree {
    /// Keeps everything at a place in the store; nothing when there is nothing. Files that are as `known` has them are
    /// not read again.
    pub(super) fn keep(place: &Place, blobs: &Blobs, known: &Self, writer: Writer) -> Result<Option<Self>, Failure> {
        Self::keep_listed(&Listing::of(place, writer)?, blobs, known, writer)
    }

    fn keep_listed(found: &Listing<'_>, blobs: &Blobs, known: &Self, writer: Writer) -> Result<Option<Self>, Failure> {
        let unchanged = |relative: &str, seen: &Seen| {
            let entry = known.0.get(relative).filter(|entry| entry.stamp == stamp(seen))?;
            matches!(entry.kind, EntryKind::File { .. }).then(|| entry.clone())
        };
        let to_read = found.entries().filter(|(relative, seen)| seen.is_file() && unchanged(relative, seen).is_none());
        let takes = |seen: &Seen| seen.bytes.min(seen.taken_bytes);
        blobs.check_room(to_read.fold(0, |bytes: u64, (_, seen)| bytes.saturating_add(takes(seen))))?;
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        let mut inodes: BTreeMap<(u64, u64), String> = BTreeMap::new();
        let (mut attributes, mut held) = (attributes::Count::default(), 0);
        for (relative, seen) in found.entries() {
            let inode = (seen.device, seen.inode);
            let first = (seen.links > 1 && seen.is_file()).then(|| inodes.get(&inode)).flatten();
            let first = first.and_then(|to| Some((to.clone(), entries.get(to)?.xattrs.clone())));
            let entry = if let Some((to, xattrs)) = first {
                Some(Entry::of(seen, EntryKind::HardLink { to }, xattrs))
            } else if let Some(known) = unchanged(relative, seen) {
                Some(known)
            } else {
                found.read(relative, seen, |file, path| blobs.keep(file, path, seen.bytes))?
            };
            match entry {
                Some(entry) => {
                    if attributes.is_too_much_with(&entry.xattrs) {
                        return Err(too_many_attributes(found));
                    }
                    held += entry.held_bytes(relative);
                    found.check_held(held)?;
                    if seen.links > 1 && matches!(entry.kind, EntryKind::File { .. }) {
                        inodes.insert(inode, relative.to_owned());
                    }
                    entries.insert(relative.to_owned(), entry);
                }
                None if writer == Writer::Runs || !is_kept(seen) => {}
                None => return Err(exchanged(&found.path(relative))),
            }
        }
        if writer == Writer::Runs {
            without_orphans(&mut entries);
        }
        Ok((!entries.is_empty()).then_some(Self(entries)))
    }

    /// What is there now, without keeping it, hashed as what was `kept`.
    pub(super) fn look(place: &Place, kept: Option<&Self>) -> Result<Option<Self>, Failure> {
        let found = Listing::of(place, Writer::Runs)?;
        let (mut entries, mut attributes, mut held) = (BTreeMap::new(), attributes::Count::default(), 0);
        for (relative, seen) in found.entries() {
            let kind = kept.and_then(|kept| kept.content(relative)).map(Kind::of_name);
            if let Some(entry) = found.read(relative, seen, |file, path| hash(&file, path, seen, kind))? {
                if attributes.is_too_much_with(&entry.xattrs) {
                    return Err(too_many_attributes(&found));
                }
                held += entry.held_bytes(relative);
                found.check_held(held)?;
                entries.insert(relative.to_owned(), entry);
            }
        }
        Ok((!entries.is_empty()).then_some(Self(entries)))
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    pub(super) fn get(&self, path: &str) -> Option<&Entry> {
        self.0.get(path)
    }

    /// The content of an entry, also of one that is a hard link.
    pub(super) fn content(&self, path: &str) -> Option<&str> {
        match &self.0.get(path)?.kind {
            EntryKind::File { blake3 } => Some(blake3),
            EntryKind::HardLink { to } => self.content(to),
            EntryKind::Folder | EntryKind::Link { .. } => None,
        }
    }

    /// Every content is there and sound.
    pub(super) fn check(&self, blobs: &Blobs) -> Result<(), Failure> {
        for (path, entry) in self.entries() {
            if let EntryKind::File { blake3 } = &entry.kind {
                blobs.open(blake3, path)?;
            }
        }
        Ok(())
    }

    /// What it takes in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.0.iter().map(|(path, entry)| entry.held_bytes(path)).sum()
    }

    /// What it takes up on a disk.
    pub(super) fn bytes(&self) -> u64 {
        let files = self.0.values().filter(|entry| matches!(entry.kind, EntryKind::File { .. }));
        files.fold(0, |bytes, entry| bytes.saturating_add(entry.taken_bytes.unwrap_or(entry.stamp.1)))
    }

    pub(super) fn into_blobs(self) -> impl Iterator<Item = String> {
        self.0.into_values().filter_map(|entry| match entry.kind {
            EntryKind::File { blake3 } => Some(blake3),
            EntryKind::Folder | EntryKind::Link { .. } | EntryKind::HardLink { .. } => None,
        })
    }
}

impl Entry {
    /// What it takes in memory, with its path and with where it leads.
    fn held_bytes(&self, path: &str) -> usize {
        let to = match &self.kind {
            EntryKind::Link { to } => to.as_os_str().len(),
            EntryKind::HardLink { to } => to.len(),
            EntryKind::Folder | EntryKind::File { .. } => 0,
        };
        listing::held_bytes(path) + to
    }

    fn of(seen: &Seen, kind: EntryKind, xattrs: Attributes) -> Self {
        Self {
            mode: seen.mode,
            uid: seen.uid,
            gid: seen.gid,
            kind,
            xattrs,
            modified_ns: seen.modified_ns,
            taken_bytes: (seen.is_file() && seen.taken_bytes < seen.bytes).then_some(seen.taken_bytes),
            stamp: stamp(seen),
        }
    }

    /// Whether it is the same to whoever reads it.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.mode, self.uid, self.gid, &self.xattrs) == (other.mode, other.uid, other.gid, &other.xattrs)
    }
}

/// The name of a content, of no more than was listed.
fn hash(file: &File, path: &Path, seen: &Seen, kind: Option<Kind>) -> Result<String, Failure> {
    let bytes = file.metadata().map_err(failed(path))?.len().min(seen.bytes);
    content::read(file, path, bytes, kind, |_, _| Ok(()))
}

/// BLAKE3 of every file below a folder, by path below it.
pub(super) fn hashes(place: &Place) -> Result<BTreeMap<String, String>, Failure> {
    let found = Listing::of(place, Writer::Stopped)?;
    let mut hashes = BTreeMap::new();
    for (relative, seen) in found.entries().filter(|(_, seen)| seen.is_file()) {
        let kind = Some(Kind::Whole);
        match found.read(relative, seen, |file, path| hash(&file, path, seen, kind))?.map(|entry| entry.kind) {
            Some(EntryKind::File { blake3 }) => drop(hashes.insert(relative.to_owned(), blake3)),
            _ => return Err(exchanged(&found.path(relative))),
        }
    }
    Ok(hashes)
}

/// Sockets, pipes and devices belong to whoever made them.
fn is_kept(seen: &Seen) -> bool {
    seen.is_file() || seen.is_folder() || seen.is_link()
}

/// Leaves out what is below something that was left out.
fn without_orphans(entries: &mut BTreeMap<String, Entry>) {
    let orphans: Vec<String> = entries.keys().filter(|path| !has_its_folders(entries, path)).cloned().collect();
    for orphan in orphans {
        entries.remove(&orphan);
    }
}

fn has_its_folders(entries: &BTreeMap<String, Entry>, path: &str) -> bool {
    let above = path.match_indices('/').map(|(end, _)| &path[..end]);
    (path.is_empty() || entries.contains_key("")) && above.into_iter().all(|folder| entries.contains_key(folder))
}

fn stamp(seen: &Seen) -> (u64, u64, i64) {
    (seen.inode, seen.bytes, seen.changed_ns)
}

fn too_many_attributes(found: &Listing<'_>) -> Failure {
    too_much(format!("{} has too many extended attributes", found.path("").display()))
}

fn exchanged(path: &Path) -> Failure {
    let message = format!("{} was exchanged for something else while it was read", path.display());
    Failure::new(FailureKind::PermissionError, STEP, message)
        .hint("look on the host for a process that still writes there although the server is stopped")
}

#[cfg(test)]
mod tests;
