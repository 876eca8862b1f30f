//! Room for a snapshot that is put back on a full disk: what it takes the place of goes first, once it is certain that
//! all of the snapshot can be put back.

use std::collections::BTreeMap;
use std::path::Path;

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::ids::SnapshotId;
use fleetwright_deploy::room::Room;

use super::restore::check;
use super::{Manifest, Tree, read_manifest};
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
    let mut own = Need { bytes: data.bytes(), files: data.entries().count() as u64 };
    let mut elsewhere: BTreeMap<u64, (Need, Room)> = BTreeMap::new();
    for (path, tree) in manifest.paths.iter().filter_map(|(path, tree)| Some((path, tree.as_ref()?))) {
        // Everything is built before anything is exchanged, so all that comes to a disk must fit there at once.
        match other_disk(layout, Path::new(path)) {
            None => own.add(tree),
            Some((device, room)) => elsewhere.entry(device).or_insert_with(|| (Need::default(), room)).0.add(tree),
        }
    }
    let in_its_place = Room {
        free_bytes: room.free_bytes.saturating_add(used.bytes),
        free_files: room.free_files.saturating_add(used.files),
        ..room.clone()
    };
    // What is more than can be counted may be enough: it must not keep its server from being put back.
    let may_fit = own.fits(&in_its_place) || used.is_uncounted();
    if own.fits(room) || !may_fit || !elsewhere.values().all(|(need, room)| need.fits(room)) {
        return Ok(());
    }
    check(layout, server, manifest)?;
    tracing::warn!(server = server.name(), "its data is removed before that of the snapshot is put back");
    stage::remove_folder(&server.data())
}

/// What something takes up once it is put back.
#[derive(Default)]
struct Need {
    bytes: u64,
    files: u64,
}

impl Need {
    fn add(&mut self, tree: &Tree) {
        self.bytes = self.bytes.saturating_add(tree.bytes());
        self.files = self.files.saturating_add(tree.entries().count() as u64);
    }

    fn fits(&self, room: &Room) -> bool {
        room.free_bytes > self.bytes && (room.total_files == 0 || room.free_files > self.files)
    }
}

/// The disk that a place of the host is on, as far as its folder is there, with its room; nothing if it is the one with the
/// state.
fn other_disk(layout: &Layout, path: &Path) -> Option<(u64, Room)> {
    let place = path.ancestors().find_map(|path| Place::reach(path).ok().flatten())?;
    let device = place.folder.seen().ok()?.device;
    let state = Place::own(layout.state_dir()).ok().flatten().and_then(|place| place.look().ok().flatten());
    if state.is_none_or(|state| state.device == device) {
        return None;
    }
    let room = rustix::fs::fstatvfs(&place.folder).map(|stat| room::room_of(&stat)).unwrap_or_default();
    Some((device, room))
}
