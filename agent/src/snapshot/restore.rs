//! Putting a snapshot back. Everything is checked, and built beside what is there, before the first thing of that is exchanged
//! or removed.

use std::fs::File;
use std::path::Path;

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::ids::SnapshotId;

use super::blobs::Blobs;
use super::tree::Replacement;
use super::{Dump, Manifest, damaged, database, read, rendered};
use crate::aside::aside;
use crate::beneath::Place;
use crate::layout::{Layout, ServerLayout};
use crate::stage;

/// Puts everything that a snapshot holds back, the database last.
pub(crate) async fn restore(layout: &Layout, server: &ServerLayout, id: &SnapshotId) -> Result<(), Failure> {
    let manifest = read(server, id)?;
    let (of, to) = (layout.clone(), server.clone());
    match aside(move || put_back(&of, &to, &manifest)).await? {
        Some((Dump { restore, environment_of, .. }, dump)) => {
            database::restore(&restore, server, &server.release(&environment_of), dump).await
        }
        None => Ok(()),
    }
}

/// Puts everything back but the database, whose dump it gives, checked.
pub(super) fn put_back(
    layout: &Layout,
    server: &ServerLayout,
    manifest: &Manifest,
) -> Result<Option<(Dump, File)>, Failure> {
    check_release(server, manifest)?;
    if !manifest.settled {
        // The server was not stopped, so nothing else was touched either; to its database it has written since.
        return Ok(None);
    }
    let blobs = Blobs::of(layout);
    let dump = open_dump(manifest, &blobs)?;
    let mut built = Vec::new();
    if let Some(data) = &manifest.data
        && let Some(place) = Place::own(&server.data())?
    {
        built.push(Replacement::build(place, Some(data), &blobs)?);
    }
    for (path, tree) in &manifest.paths {
        let path = Path::new(path);
        let place = if tree.is_some() { Some(Place::reach_or_make(path)?) } else { Place::reach(path)? };
        if let Some(place) = place {
            built.push(Replacement::build(place, tree.as_ref(), &blobs)?);
        }
    }
    // Everything is in its place before anything of what was there is removed.
    built.iter_mut().try_for_each(Replacement::exchange)?;
    Ok(dump)
}

/// Checks all that putting back checks, and changes nothing: for when something has to go before anything can be built.
pub(super) fn check(layout: &Layout, server: &ServerLayout, manifest: &Manifest) -> Result<(), Failure> {
    check_release(server, manifest)?;
    let blobs = Blobs::of(layout);
    open_dump(manifest, &blobs)?;
    for (path, tree) in &manifest.paths {
        match tree {
            Some(_) => Place::check_way(Path::new(path))?,
            None => drop(Place::reach(Path::new(path))?),
        }
    }
    let mut trees = manifest.data.iter().chain(manifest.paths.values().flatten());
    trees.try_for_each(|tree| tree.check(&blobs))
}

/// What ran is there, with the files that it had.
fn check_release(server: &ServerLayout, manifest: &Manifest) -> Result<(), Failure> {
    let Some(release) = &manifest.release else { return Ok(()) };
    let running = server.release(release);
    if stage::load(&running).is_none() {
        return Err(damaged(format!("release {} is no longer there", release.short())));
    }
    if rendered(&running)? != manifest.release_files {
        return Err(damaged(format!("files of release {} have changed", release.short())));
    }
    Ok(())
}

fn open_dump(manifest: &Manifest, blobs: &Blobs) -> Result<Option<(Dump, File)>, Failure> {
    let Some(dump) = &manifest.database else { return Ok(None) };
    Ok(Some((dump.clone(), blobs.open(&dump.blake3, "the database")?)))
}
