//! Room for a snapshot that is put back on a full disk: what it takes the place of goes first, once it is certain that
//! all of the snapshot is there.

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::ids::SnapshotId;

use super::blobs::Blobs;
use super::tree::EntryKind;
use super::{aside, read_manifest};
use crate::layout::{Layout, ServerLayout};
use crate::{room, stage};

/// Removes the data of a stopped server, if its snapshot has other data, all of it, which does not fit beside it, and
/// would fit in its place.
pub(crate) async fn make_room(layout: &Layout, server: &ServerLayout, id: &SnapshotId) -> Result<(), Failure> {
    let (layout, server, id) = (layout.clone(), server.clone(), id.clone());
    aside(move || {
        let Some(manifest) = read_manifest(&server.snapshot(&id)).filter(|manifest| manifest.settled) else {
            return Ok(());
        };
        let Some(data) = manifest.data else { return Ok(()) };
        let Some(room) = room::free(&layout) else { return Ok(()) };
        let used = room::below(&layout, &server.data()).unwrap_or_default();
        let (bytes, files) = (data.bytes(), data.entries().count() as u64);
        let holds =
            |free_bytes: u64, free_files: u64| free_bytes > bytes && (room.total_files == 0 || free_files > files);
        if holds(room.free_bytes, room.free_files)
            || !holds(room.free_bytes.saturating_add(used.bytes), room.free_files.saturating_add(used.files))
        {
            return Ok(());
        }
        let blobs = Blobs::of(&layout);
        for (path, entry) in data.entries() {
            if let EntryKind::File { blake3 } = &entry.kind {
                blobs.open(blake3, path)?;
            }
        }
        tracing::warn!(server = server.name(), "its data is removed before that of the snapshot is put back");
        stage::remove_folder(&server.data())
    })
    .await
}
