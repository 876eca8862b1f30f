//! Room for a snapshot that is put back on a full disk: what it takes the place of goes first, once it is certain that
//! all of the snapshot can be put back.

use std::path::Path;

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::ids::SnapshotId;
use fleetwright_deploy::room::Room;

use super::restore::check;
use super::{Manifest, read_manifest};
use crate::aside::aside;
use crate::beneath::Place;
use crate::layout::{Layout, ServerLayout};
use crate::{room, stage};

/// Removes the data of a stopped server, if its snapshot has other data, which do not fit beside them, and would fit in
/// their place.
pub(crate) async fn make_room(layout: &Layout, server: &ServerLayout, id: &SnapshotId) -> Result<(), Failure> {
    let (layout, server, id) = (layout.clone(), server.clone(), id.clone());
    aside(move || {
        let Some(manifest) = read_manifest(&server.snapshot(&id)).ok().flatten() else { return Ok(()) };
        match room::free(&layout) {
            Some(room) => make_room_on(&room, &layout, &server, &manifest),
            None => Ok(()),
        }
    })
    .await
}

/// The same on a disk with this room.
pub(super) fn make_room_on(
    room: &Room,
    layout: &Layout,
    server: &ServerLayout,
    manifest: &Manifest,
) -> Result<(), Failure> {
    let Some(data) = manifest.data.as_ref().filter(|_| manifest.settled) else { return Ok(()) };
    let used = room::below(layout, &server.data()).unwrap_or_default();
    let (mut bytes, mut files) = (data.bytes(), data.entries().count() as u64);
    for (path, tree) in &manifest.paths {
        // Everything is built before anything is exchanged, so all that comes to this disk must fit at once.
        if let Some(tree) = tree.as_ref().filter(|_| is_beside(layout, Path::new(path))) {
            bytes = bytes.saturating_add(tree.bytes());
            files = files.saturating_add(tree.entries().count() as u64);
        }
    }
    let holds = |free_bytes: u64, free_files: u64| free_bytes > bytes && (room.total_files == 0 || free_files > files);
    if holds(room.free_bytes, room.free_files)
        || !holds(room.free_bytes.saturating_add(used.bytes), room.free_files.saturating_add(used.files))
    {
        return Ok(());
    }
    check(layout, server, manifest)?;
    tracing::warn!(server = server.name(), "its data is removed before that of the snapshot is put back");
    stage::remove_folder(&server.data())
}

/// Whether a place of the host is on the disk with the state, as far as its folder is there.
fn is_beside(layout: &Layout, path: &Path) -> bool {
    let device = |place: Place| place.folder.seen().ok().map(|seen| seen.device);
    let there = path.ancestors().find_map(|path| Place::reach(path).ok().flatten());
    let state = Place::own(layout.state_dir()).ok().flatten().and_then(|place| place.look().ok().flatten());
    there.and_then(device).zip(state).is_none_or(|(device, state)| device == state.device)
}
