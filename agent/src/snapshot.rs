//! Snapshots: what a host keeps of an instance before a step, enough to put it back exactly.
//!
//! A release is never changed once staged, so a snapshot names it and records the hashes of its rendered files;
//! the data folder, where it is asked for, is copied into the content-addressed store. Restoring checks every
//! hash: what comes back is what was there, or the restore fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{ReleaseId, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::install::file_failure;
use crate::layout::{Layout, ServerLayout};
use crate::stage;

const STEP: &str = "snapshot";
/// How much of a file is read at once, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;

/// What was there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// The release that ran.
    release: Option<ReleaseId>,
    /// BLAKE3 of its rendered files, by path below the release.
    release_files: BTreeMap<String, String>,
    /// The data folder, by path below it; nothing when it was not asked for.
    data: Option<BTreeMap<String, Entry>>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    mode: u32,
    uid: u32,
    gid: u32,
    kind: EntryKind,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EntryKind {
    Folder,
    File { blake3: String },
    Link { to: PathBuf },
}

/// Takes a snapshot of a server that runs `release`. One that is complete is left as it is.
pub(crate) fn take(
    layout: &Layout,
    server: &ServerLayout,
    id: &SnapshotId,
    release: Option<&ReleaseId>,
) -> Result<(), Failure> {
    let path = server.snapshot(id).join("manifest.json");
    if path.exists() {
        return Ok(());
    }
    let _blobs = layout.lock_blobs();
    let running = release.map(|release| server.release(release));
    let wants_data = running.as_ref().and_then(stage::load).is_some_and(|release| release.snapshot_data);
    let manifest = Manifest {
        release: release.cloned(),
        release_files: running.map_or_else(|| Ok(BTreeMap::new()), |running| hashes(&running.config()))?,
        data: wants_data.then(|| keep(&server.data(), &layout.blobs())).transpose()?,
    };
    let bytes = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    store::write_private(&path, &bytes)
        .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))
}

/// Puts the files of a snapshot back, after checking that all of them are still what they were.
pub(crate) fn restore(layout: &Layout, server: &ServerLayout, id: &SnapshotId) -> Result<(), Failure> {
    let manifest = read(server, id)?;
    if let Some(release) = &manifest.release {
        let running = server.release(release);
        if stage::load(&running).is_none() {
            return Err(damaged(format!("release {} is no longer there", release.short())));
        }
        if hashes(&running.config())? != manifest.release_files {
            return Err(damaged(format!("files of release {} have changed", release.short())));
        }
    }
    match &manifest.data {
        Some(entries) => put_back(&server.data(), entries, &layout.blobs()),
        None => Ok(()),
    }
}

/// Removes snapshots that are not needed, and blobs that no snapshot on this host needs any more.
pub(crate) fn prune(layout: &Layout, server: &ServerLayout, keep: &[&SnapshotId]) -> Result<(), Failure> {
    let _blobs = layout.lock_blobs();
    for entry in fs::read_dir(server.snapshots()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !keep.iter().any(|id| id.as_str() == name.to_string_lossy()) {
            stage::remove_folder(&entry.path())?;
        }
    }
    let mut needed = BTreeSet::new();
    for server in fs::read_dir(layout.servers()).into_iter().flatten().flatten() {
        for snapshot in fs::read_dir(server.path().join("snapshots")).into_iter().flatten().flatten() {
            let Some(manifest) = read_manifest(&snapshot.path()) else { continue };
            for entry in manifest.data.into_iter().flatten() {
                if let EntryKind::File { blake3 } = entry.1.kind {
                    needed.insert(blake3);
                }
            }
        }
    }
    for blob in fs::read_dir(layout.blobs()).into_iter().flatten().flatten() {
        if !needed.contains(blob.file_name().to_string_lossy().as_ref()) {
            fs::remove_file(blob.path()).map_err(|error| file_failure(&blob.path(), &error))?;
        }
    }
    Ok(())
}

fn read(server: &ServerLayout, id: &SnapshotId) -> Result<Manifest, Failure> {
    read_manifest(&server.snapshot(id)).ok_or_else(|| damaged(format!("snapshot {id} cannot be read")))
}

fn read_manifest(folder: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(folder.join("manifest.json")).ok()?).ok()
}

fn damaged(message: String) -> Failure {
    Failure::new(FailureKind::ResourceError, "restore", message)
        .hint("look at the state folder on the host; a new deployment replaces what is damaged")
}

/// BLAKE3 of every file below a folder, by path below it.
fn hashes(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    walk(folder, Path::new(""), &mut |relative, path, metadata| {
        if metadata.is_file() {
            found.insert(relative.to_string_lossy().into_owned(), hash(path, None)?);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Copies everything below a folder into the store of blobs.
fn keep(folder: &Path, blobs: &Path) -> Result<BTreeMap<String, Entry>, Failure> {
    fs::create_dir_all(blobs).map_err(|error| file_failure(blobs, &error))?;
    let mut entries = BTreeMap::new();
    walk(folder, Path::new(""), &mut |relative, path, metadata| {
        let kind = if metadata.is_dir() {
            EntryKind::Folder
        } else if metadata.is_symlink() {
            EntryKind::Link { to: fs::read_link(path).map_err(|error| file_failure(path, &error))? }
        } else if metadata.is_file() {
            EntryKind::File { blake3: hash(path, Some(blobs))? }
        } else {
            return Ok(()); // sockets and pipes belong to the processes that made them
        };
        let entry = Entry { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid(), kind };
        entries.insert(relative.to_string_lossy().into_owned(), entry);
        Ok(())
    })?;
    Ok(entries)
}

/// Replaces a folder by what was kept of it: built beside it, then exchanged by renaming.
fn put_back(folder: &Path, entries: &BTreeMap<String, Entry>, blobs: &Path) -> Result<(), Failure> {
    let fresh = folder.with_extension("restoring");
    stage::remove_folder(&fresh)?;
    fs::create_dir_all(&fresh).map_err(|error| file_failure(&fresh, &error))?;
    for (relative, entry) in entries {
        let path = fresh.join(relative);
        let fail = |error: std::io::Error| file_failure(&path, &error);
        match &entry.kind {
            EntryKind::Folder => fs::create_dir_all(&path).map_err(fail)?,
            EntryKind::Link { to } => symlink(to, &path).map_err(fail)?,
            EntryKind::File { blake3 } => {
                fs::copy(blobs.join(blake3), &path).map_err(fail)?;
                if hash(&path, None)? != *blake3 {
                    return Err(damaged(format!("the kept content of {relative} is damaged")));
                }
            }
        }
    }
    // Modes and owners last, the deepest first: a folder may come back read-only.
    for (relative, entry) in entries.iter().rev() {
        let path = fresh.join(relative);
        let fail = |error: std::io::Error| file_failure(&path, &error);
        lchown(&path, Some(entry.uid), Some(entry.gid)).map_err(fail)?;
        if !matches!(entry.kind, EntryKind::Link { .. }) {
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).map_err(fail)?;
        }
    }
    let old = folder.with_extension("replaced");
    stage::remove_folder(&old)?;
    if folder.exists() {
        fs::rename(folder, &old).map_err(|error| file_failure(folder, &error))?;
    }
    fs::rename(&fresh, folder).map_err(|error| file_failure(folder, &error))?;
    stage::remove_folder(&old)
}

type Visit<'a> = dyn FnMut(&Path, &Path, &fs::Metadata) -> Result<(), Failure> + 'a;

/// Visits everything below a folder, folders before their content, without following links.
fn walk(root: &Path, relative: &Path, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let folder = root.join(relative);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| file_failure(&folder, &error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| file_failure(&folder, &error))?;
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).map_err(|error| file_failure(&path, &error))?;
        let below = relative.join(entry.file_name());
        visit(&below, &path, &metadata)?;
        if metadata.is_dir() {
            walk(root, &below, visit)?;
        }
    }
    Ok(())
}

/// BLAKE3 of a file, which is copied into `blobs` on the way where that is given.
fn hash(path: &Path, blobs: Option<&Path>) -> Result<String, Failure> {
    let fail = |error: std::io::Error| file_failure(path, &error);
    let mut file = fs::File::open(path).map_err(fail)?;
    let copy = blobs.map(|blobs| blobs.join(format!("{}.new", std::process::id())));
    let mut to = copy.as_ref().map(fs::File::create).transpose().map_err(fail)?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk).map_err(fail)?;
        if read == 0 {
            break;
        }
        hasher.update(&chunk[..read]);
        if let Some(to) = &mut to {
            std::io::Write::write_all(to, &chunk[..read]).map_err(fail)?;
        }
    }
    let digest = hasher.finalize().to_hex().to_string();
    if let (Some(copy), Some(to), Some(blobs)) = (copy, to, blobs) {
        to.sync_all().map_err(fail)?;
        fs::rename(&copy, blobs.join(&digest)).map_err(fail)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (tempfile::TempDir, Layout, ServerLayout) {
        let folder = tempfile::tempdir().expect("folder");
        let layout = Layout::new(folder.path());
        let server = layout.server(&"s".parse().expect("name"));
        fs::create_dir_all(server.data().join("deep")).expect("folder");
        (folder, layout, server)
    }

    fn listing(folder: &Path) -> Vec<(String, u32, Option<String>)> {
        let mut found = Vec::new();
        walk(folder, Path::new(""), &mut |relative, path, metadata| {
            let content = if metadata.is_symlink() {
                Some(fs::read_link(path).expect("link").to_string_lossy().into_owned())
            } else {
                fs::read_to_string(path).ok()
            };
            found.push((relative.to_string_lossy().into_owned(), metadata.mode(), content));
            Ok(())
        })
        .expect("walk");
        found.sort();
        found
    }

    #[test]
    fn data_comes_back_exactly_with_modes_links_and_without_what_was_added_since() {
        let (_folder, layout, server) = setup();
        let data = server.data();
        fs::write(data.join("a"), "one").expect("write");
        fs::write(data.join("deep/b"), "two").expect("write");
        fs::set_permissions(data.join("a"), fs::Permissions::from_mode(0o640)).expect("mode");
        symlink("deep/b", data.join("link")).expect("link");
        let before = listing(&data);
        let entries = keep(&data, &layout.blobs()).expect("keep");
        fs::write(data.join("a"), "changed").expect("write");
        fs::write(data.join("new"), "new").expect("write");
        fs::remove_file(data.join("link")).expect("remove");
        put_back(&data, &entries, &layout.blobs()).expect("put back");
        assert_eq!(listing(&data), before);
    }

    #[test]
    fn damaged_blobs_are_noticed_and_leave_the_folder_as_it_was() {
        let (_folder, layout, server) = setup();
        fs::write(server.data().join("a"), "one").expect("write");
        let entries = keep(&server.data(), &layout.blobs()).expect("keep");
        for blob in fs::read_dir(layout.blobs()).expect("list").flatten() {
            fs::write(blob.path(), "rotten").expect("write");
        }
        fs::write(server.data().join("a"), "changed").expect("write");
        let failure = put_back(&server.data(), &entries, &layout.blobs()).expect_err("damaged");
        assert!(failure.message.contains("damaged"), "{failure}");
        assert_eq!(fs::read_to_string(server.data().join("a")).expect("read"), "changed");
    }

    #[test]
    fn a_snapshot_of_nothing_restores_to_nothing() {
        let (_folder, layout, server) = setup();
        let id = "d1-aa-1".parse().expect("id");
        take(&layout, &server, &id, None).expect("take");
        restore(&layout, &server, &id).expect("restore");
        prune(&layout, &server, &[]).expect("prune");
        assert!(restore(&layout, &server, &id).is_err());
    }
}
