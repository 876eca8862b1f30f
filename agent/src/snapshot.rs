//! Snapshots: what a host keeps of an instance before a step, enough to put it back exactly.
//!
//! A release is never changed once staged, so a snapshot names it and records the hashes of its rendered files. The data
//! folder, listed files and folders of the host, and a dump of the database are kept in the store of blobs, each under
//! its hash: what comes back is what was there, or the restore fails before anything is touched.
//!
//! The data is kept twice: once while the server runs, and, once it is stopped, whatever has changed since. So what is
//! kept is consistent, and the server is down only for as long as the changes take.

mod blobs;
mod content;
mod database;
mod restore;
mod room;
mod tree;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{ReleaseId, SnapshotId};
use fleetwright_deploy::limits::size;
use fleetwright_deploy::release::Release;
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use crate::aside::{aside, go_on};
use crate::beneath::Place;
use crate::clock;
use crate::durable;
use crate::install::{self, file_failure};
use crate::layout::{Layout, ReleaseLayout, ServerLayout};
use crate::stage;

use self::blobs::Blobs;
use self::tree::{HELD_BYTES_MAX, Tree, Writer, too_much};

pub(crate) use restore::restore;
pub(crate) use room::make_room;
pub(crate) use view::{list, show};

const STEP: &str = "snapshot";
const RESTORE: &str = "restore";

/// What was there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// When it was taken.
    #[serde(default)]
    taken_at: Timestamp,
    /// The release that ran.
    release: Option<ReleaseId>,
    /// BLAKE3 of its rendered files, by path below the release.
    release_files: BTreeMap<String, String>,
    /// The data folder; nothing when it was not asked for.
    data: Option<Tree>,
    /// Files and folders of the host, by path; nothing for those that were not there.
    #[serde(default)]
    paths: BTreeMap<String, Option<Tree>>,
    /// The database, with what restores it.
    #[serde(default)]
    database: Option<Dump>,
    /// Whether the server was stopped, and data and paths are as they were then. Before, nothing was touched.
    #[serde(default = "settled")]
    settled: bool,
}

/// Snapshots of before this was written were taken once and for all.
fn settled() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Dump {
    blake3: String,
    restore: Vec<String>,
    environment_of: ReleaseId,
}

/// What is to be kept.
#[derive(Default)]
struct Wanted {
    data: bool,
    paths: BTreeSet<String>,
}

impl Wanted {
    /// What either of two releases asks for: the one that runs knows what it has, and the next one what it will touch.
    fn of(releases: [Option<&Release>; 2]) -> Self {
        let mut wanted = Self::default();
        for release in releases.into_iter().flatten() {
            wanted.data |= release.snapshot_data;
            wanted.paths.extend(release.snapshot_paths.iter().cloned());
        }
        wanted
    }
}

/// Takes a snapshot of a server that runs `release`, before it is switched to `target`. One that was taken is left as it
/// is.
pub(crate) async fn take(
    layout: &Layout,
    server: &ServerLayout,
    id: &SnapshotId,
    release: Option<&ReleaseId>,
    target: Option<&ReleaseId>,
) -> Result<(), Failure> {
    if manifest_path(&server.snapshot(id)).exists() {
        return Ok(());
    }
    // Before anything is read: what waits is not what is kept, and keeps nobody from pruning.
    let turn = layout.turn_to_take().await;
    let using = layout.use_blobs().await;
    let running = release.and_then(|release| stage::load(&server.release(release)));
    let dump = match (release, running.as_ref().and_then(|running| running.database.as_ref())) {
        (Some(release), Some(database)) => {
            let blobs = Blobs::of(layout);
            let blake3 = database::dump(database, server, &server.release(release), &blobs).await?;
            Some(Dump { blake3, restore: database.restore.clone(), environment_of: release.clone() })
        }
        _ => None,
    };
    let (layout, server, id) = (layout.clone(), server.clone(), id.clone());
    let (release, target) = (release.cloned(), target.cloned());
    aside(move || {
        let _turn = turn;
        let target = target.and_then(|target| stage::load(&server.release(&target)));
        let wanted = Wanted::of([running.as_ref(), target.as_ref()]);
        let _using = using;
        let mut manifest = Manifest {
            taken_at: clock::now(),
            release_files: match &release {
                Some(release) => rendered(&server.release(release))?,
                None => BTreeMap::new(),
            },
            release,
            data: None,
            paths: BTreeMap::new(),
            database: dump,
            settled: false,
        };
        keep(&layout, &server, &wanted, &mut manifest, Writer::Runs)?;
        write(&Blobs::of(&layout), &server, &id, &manifest)
    })
    .await
}

/// Keeps what has changed since the snapshot was taken, now that the server is stopped. Doing it again, after the next
/// release has begun to change things, does nothing.
pub(crate) async fn settle(
    layout: &Layout,
    server: &ServerLayout,
    id: &SnapshotId,
    turn: Option<OwnedSemaphorePermit>,
) -> Result<(), Failure> {
    let using = layout.use_blobs().await;
    let (layout, server, id) = (layout.clone(), server.clone(), id.clone());
    aside(move || {
        let _using = (using, turn);
        let folder = server.snapshot(&id);
        // What cannot be read is not what is not there: the next release would change what nobody could put back.
        let Some(mut manifest) =
            read_manifest(&folder).map_err(|error| file_failure(&manifest_path(&folder), &error))?
        else {
            return Ok(());
        };
        if manifest.settled {
            return Ok(());
        }
        let wanted = Wanted { data: manifest.data.is_some(), paths: manifest.paths.keys().cloned().collect() };
        keep(&layout, &server, &wanted, &mut manifest, Writer::Stopped)?;
        manifest.settled = true;
        write(&Blobs::of(&layout), &server, &id, &manifest)
    })
    .await
}

/// Whether a snapshot was settled: from then on the next release may have changed what was kept. What cannot be read may be.
pub(crate) async fn is_settled(server: &ServerLayout, id: &SnapshotId) -> Result<bool, Failure> {
    let folder = server.snapshot(id);
    aside(move || {
        let manifest = read_manifest(&folder).map_err(|error| file_failure(&manifest_path(&folder), &error))?;
        Ok(manifest.is_some_and(|manifest| manifest.settled))
    })
    .await
}

/// Keeps data and paths; what the manifest holds already and has not changed is not read again.
fn keep(
    layout: &Layout,
    server: &ServerLayout,
    wanted: &Wanted,
    manifest: &mut Manifest,
    writer: Writer,
) -> Result<(), Failure> {
    let (blobs, mut held) = (Blobs::of(layout), 0);
    let mut hold = |tree: Option<&Tree>| {
        held += tree.map_or(0, Tree::held_bytes);
        let message =
            || format!("what is to be kept has more files than can be listed within {}", size(HELD_BYTES_MAX));
        if held > HELD_BYTES_MAX { Err(too_much(message())) } else { Ok(()) }
    };
    if wanted.data {
        let known = manifest.data.take().unwrap_or_default();
        let place = Place::own(&server.data())?;
        let kept = place.map(|place| Tree::keep(&place, &blobs, &known, writer)).transpose()?;
        manifest.data = Some(kept.flatten().unwrap_or_default());
        hold(manifest.data.as_ref())?;
    }
    for path in &wanted.paths {
        let known = manifest.paths.remove(path).flatten().unwrap_or_default();
        let place = Place::reach(Path::new(path))?;
        let kept = place.map(|place| Tree::keep(&place, &blobs, &known, writer)).transpose()?;
        let kept = kept.flatten();
        hold(kept.as_ref())?;
        manifest.paths.insert(path.clone(), kept);
    }
    Ok(())
}

/// The hashes of a release's rendered files.
fn rendered(release: &ReleaseLayout) -> Result<BTreeMap<String, String>, Failure> {
    Place::own(&release.config())?.map_or_else(|| Ok(BTreeMap::new()), |config| tree::hashes(&config))
}

/// Removes what an agent that ended has left of snapshots that it was taking.
pub(crate) fn remove_unfinished(layout: &Layout) {
    Blobs::of(layout).remove_unfinished();
}

/// Removes snapshots that are not needed, and blobs that no snapshot and no release on this host needs any more. While another snapshot
/// is being taken, blobs are left for the next time.
pub(crate) fn prune(layout: &Layout, server: &ServerLayout, keep: &[SnapshotId]) -> Result<(), Failure> {
    for entry in fs::read_dir(server.snapshots()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !keep.iter().any(|id| id.as_str() == name.to_string_lossy()) {
            stage::remove_folder(&entry.path())?;
        }
    }
    let Some(_alone) = layout.blobs_alone() else { return Ok(()) };
    match needed(layout) {
        Ok(needed) => Blobs::of(layout).retain(&needed),
        // Without knowing all that is needed, nothing may go.
        Err(error) => {
            tracing::warn!(%error, "what snapshots and releases need cannot be read: nothing of it is removed");
            Ok(())
        }
    }
}

/// The blobs that snapshots and releases on this host need.
fn needed(layout: &Layout) -> io::Result<BTreeSet<String>> {
    let mut needed = BTreeSet::new();
    for server in entries(&layout.servers())? {
        let server = ServerLayout::at(&server);
        for snapshot in entries(&server.snapshots())? {
            let path = manifest_path(&snapshot);
            // One without a manifest was not finished.
            let Some(file) = there(File::open(&path), &path)? else { continue };
            let manifest: Manifest =
                serde_json::from_reader(BufReader::new(file)).map_err(|error| of_file(&path, &error))?;
            let trees = manifest.data.into_iter().chain(manifest.paths.into_values().flatten());
            needed.extend(trees.flat_map(Tree::into_blobs));
            needed.extend(manifest.database.map(|dump| dump.blake3));
        }
        for release in entries(&server.releases())? {
            let path = ReleaseLayout::at(&release).chunks();
            let Some(bytes) = there(fs::read(&path), &path)? else { continue };
            needed.extend(install::listed(&bytes).map_err(|error| of_file(&path, &error))?);
        }
    }
    Ok(needed)
}

/// What is in a folder; nothing in one that is not there.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = there(fs::read_dir(folder), folder)? else { return Ok(Vec::new()) };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| of_file(folder, &error))).collect()
}

/// What was read, unless it is not there: a file may stand where a folder is looked for.
fn there<T>(read: io::Result<T>, path: &Path) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(of_file(path, &error)),
    }
}

fn of_file(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn manifest_path(folder: &Path) -> PathBuf {
    folder.join("manifest.json")
}

/// Writes a manifest: from then on its snapshot counts, so all that it needs is durable before.
fn write(blobs: &Blobs, server: &ServerLayout, id: &SnapshotId, manifest: &Manifest) -> Result<(), Failure> {
    let folder = server.snapshot(id);
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    blobs.sync()?;
    for folder in [server.folder(), &server.snapshots()] {
        durable::folder(folder).map_err(failed(folder))?;
    }
    let path = manifest_path(&folder);
    stream(manifest, &path).map_err(failed(&path))
}

/// Writes a manifest as it is read: its text is larger than all that it is made of.
fn stream(manifest: &Manifest, path: &Path) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let written = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, manifest)?;
        writer.into_inner()?.sync_all()?;
        // Whoever has given this up may have started what ran before: then it is not so any more.
        go_on()?;
        fs::rename(&fresh, path)
    };
    if let Err(error) = written() {
        // On a full disk it would keep what it takes.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    path.parent().map_or(Ok(()), durable::folder)
}

fn read(server: &ServerLayout, id: &SnapshotId) -> Result<Manifest, Failure> {
    read_manifest(&server.snapshot(id)).ok().flatten().ok_or_else(|| damaged(format!("snapshot {id} cannot be read")))
}

/// The manifest of a snapshot; nothing where there is none.
fn read_manifest(folder: &Path) -> io::Result<Option<Manifest>> {
    match File::open(manifest_path(folder)) {
        Ok(file) => Ok(Some(serde_json::from_reader(BufReader::new(file))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn damaged(message: String) -> Failure {
    Failure::new(FailureKind::ResourceError, RESTORE, message)
        .hint("look at the state folder on the host; a new deployment replaces what is damaged")
}

/// A failure of a file, in the words of this step.
fn failed(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| file_failure(path, &error)
}

#[cfg(test)]
mod tests;
