//! Snapshots for people: which there are, what is in one, and how what is there now differs from it.

use std::fs;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::SnapshotId;
use fleetwright_protocol::snapshot::{
    SNAPSHOT_ENTRIES_MAX, SnapshotChange, SnapshotEntry, SnapshotSummary, SnapshotView,
};

use super::tree::{Entry, EntryKind, Tree};
use super::{Manifest, read_manifest};
use crate::beneath::Place;
use crate::layout::ServerLayout;

/// The snapshots of a server, the newest last.
pub(crate) fn list(server: &ServerLayout) -> Vec<SnapshotSummary> {
    let entries = fs::read_dir(server.snapshots()).into_iter().flatten().flatten();
    let mut found: Vec<SnapshotSummary> = entries
        .filter_map(|entry| {
            let id: SnapshotId = entry.file_name().to_str()?.parse().ok()?;
            Some(summary(id, &read_manifest(&entry.path()).ok().flatten()?))
        })
        .collect();
    found.sort_by(|a, b| (a.taken_at, &a.id).cmp(&(b.taken_at, &b.id)));
    found
}

/// What is in a snapshot, and, where asked for, what has changed since.
pub(crate) fn show(server: &ServerLayout, id: &SnapshotId, compare: bool) -> Result<SnapshotView, Failure> {
    let Some(manifest) = read_manifest(&server.snapshot(id)).ok().flatten() else {
        let message = format!("there is no snapshot {id} of {}", server.name());
        return Err(Failure::new(FailureKind::ConfigurationError, "look", message)
            .hint(format!("`fleetwright snapshots list {}@HOST` shows them", server.name())));
    };
    let summary = summary(id.clone(), &manifest);
    let trees = trees(server, &manifest);
    let all = trees.iter().flat_map(|(root, tree)| {
        tree.iter()
            .flat_map(|tree| tree.entries())
            .map(|(relative, entry)| described(root, relative, entry, tree.as_ref()))
    });
    let mut entries: Vec<SnapshotEntry> = all.take(SNAPSHOT_ENTRIES_MAX + 1).collect();
    let cut = entries.len() > SNAPSHOT_ENTRIES_MAX;
    entries.truncate(SNAPSHOT_ENTRIES_MAX);
    let mut changes = Vec::new();
    if compare {
        for (root, kept) in &trees {
            let place = if *root == server.data() { Place::own(root)? } else { Place::reach(root)? };
            let now = place.map(|place| Tree::look(&place, kept.as_ref())).transpose()?.flatten();
            compare_trees(root, kept.as_ref(), now.as_ref(), &mut changes);
        }
    }
    let cut = cut || changes.len() > SNAPSHOT_ENTRIES_MAX;
    changes.truncate(SNAPSHOT_ENTRIES_MAX);
    Ok(SnapshotView { summary, entries, changes, cut })
}

fn trees(server: &ServerLayout, manifest: &Manifest) -> Vec<(PathBuf, Option<Tree>)> {
    let data = manifest.data.clone().map(|data| (server.data(), Some(data)));
    let paths = manifest.paths.iter().map(|(path, tree)| (PathBuf::from(path), tree.clone()));
    data.into_iter().chain(paths).collect()
}

fn summary(id: SnapshotId, manifest: &Manifest) -> SnapshotSummary {
    let trees = manifest.data.iter().chain(manifest.paths.values().flatten());
    let (files, bytes) = trees.fold((0, 0), |(files, bytes), tree| {
        let count = tree.entries().filter(|(_, entry)| matches!(entry.kind, EntryKind::File { .. })).count();
        (files + count as u64, bytes + tree.bytes())
    });
    SnapshotSummary {
        id,
        taken_at: manifest.taken_at,
        release: manifest.release.clone(),
        data: manifest.data.is_some(),
        paths: manifest.paths.keys().cloned().collect(),
        database: manifest.database.is_some(),
        files,
        bytes,
    }
}

fn full(root: &Path, relative: &str) -> String {
    if relative.is_empty() { root.display().to_string() } else { root.join(relative).display().to_string() }
}

fn described(root: &Path, relative: &str, entry: &Entry, tree: Option<&Tree>) -> SnapshotEntry {
    let (kind, content) = match &entry.kind {
        EntryKind::Folder => ("folder", None),
        EntryKind::File { blake3 } => ("file", Some(blake3.clone())),
        EntryKind::Link { to } => ("link", Some(to.display().to_string())),
        EntryKind::HardLink { .. } => ("hard_link", tree.and_then(|tree| tree.content(relative)).map(str::to_owned)),
    };
    SnapshotEntry { path: full(root, relative), kind: kind.to_owned(), mode: entry.mode, content }
}

fn compare_trees(root: &Path, kept: Option<&Tree>, now: Option<&Tree>, changes: &mut Vec<SnapshotChange>) {
    let empty = Tree::default();
    let (kept, now) = (kept.unwrap_or(&empty), now.unwrap_or(&empty));
    let mut paths: Vec<&str> = kept.entries().chain(now.entries()).map(|(path, _)| path).collect();
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        let change = match (kept.get(path), now.get(path)) {
            (None, Some(_)) => "added",
            (Some(_), None) => "removed",
            (Some(old), Some(new)) => {
                let same_content = match (&old.kind, &new.kind) {
                    (EntryKind::Folder, EntryKind::Folder) => true,
                    (EntryKind::Link { to: old }, EntryKind::Link { to: new }) => old == new,
                    _ => kept.content(path).is_some() && kept.content(path) == now.content(path),
                };
                match (same_content, old.is_like(new)) {
                    (false, _) => "changed",
                    (true, false) => "attributes",
                    (true, true) => continue,
                }
            }
            (None, None) => continue,
        };
        changes.push(SnapshotChange { path: full(root, path), change: change.to_owned() });
    }
}
