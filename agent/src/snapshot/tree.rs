//! A file, or a folder with everything below it, as a snapshot keeps it: content, kind, mode, owner, times, extended
//! attributes, symbolic and hard links.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};
use serde::{Deserialize, Serialize};

use super::blobs::{Blobs, hash};
use super::{STEP, damaged, failed};
use crate::stage;

/// Most entries of one tree.
const ENTRIES_MAX: usize = 1_000_000;

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
    xattrs: BTreeMap<String, String>,
    /// When its content was changed last, in nanoseconds since 1970.
    #[serde(default)]
    modified_ns: i64,
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
    /// Keeps everything at a path in the store; nothing when there is nothing. Files that are as `known` has them are
    /// not read again.
    pub(super) fn keep(root: &Path, blobs: &Blobs, known: &Self) -> Result<Option<Self>, Failure> {
        let found = found(root)?;
        let unchanged = |relative: &str, stamp| {
            let entry = known.0.get(relative).filter(|entry| entry.stamp == stamp)?;
            match &entry.kind {
                EntryKind::File { blake3 } => Some(blake3.clone()),
                EntryKind::Folder | EntryKind::Link { .. } | EntryKind::HardLink { .. } => None,
            }
        };
        let to_read = found
            .iter()
            .filter(|(relative, metadata)| metadata.is_file() && unchanged(relative, stamp(metadata)).is_none());
        blobs.check_room(to_read.map(|(_, metadata)| metadata.len()).sum())?;
        let mut entries = BTreeMap::new();
        let mut inodes: BTreeMap<(u64, u64), String> = BTreeMap::new();
        for (relative, metadata) in found {
            let path = joined(root, &relative);
            let first = (metadata.nlink() > 1 && metadata.is_file())
                .then(|| inodes.get(&(metadata.dev(), metadata.ino())).cloned())
                .flatten();
            let kind = if let Some(to) = first {
                EntryKind::HardLink { to }
            } else if metadata.is_dir() {
                EntryKind::Folder
            } else if metadata.is_symlink() {
                EntryKind::Link { to: fs::read_link(&path).map_err(failed(&path))? }
            } else if metadata.is_file() {
                inodes.insert((metadata.dev(), metadata.ino()), relative.clone());
                let blake3 = match unchanged(&relative, stamp(&metadata)) {
                    Some(blake3) => blake3,
                    None => blobs.keep(&path)?,
                };
                EntryKind::File { blake3 }
            } else {
                continue; // sockets, pipes and devices belong to whoever made them
            };
            entries.insert(relative, Entry::of(&path, &metadata, kind)?);
        }
        Ok((!entries.is_empty()).then_some(Self(entries)))
    }

    /// What is there now, without keeping it.
    pub(super) fn look(root: &Path) -> Result<Option<Self>, Failure> {
        let mut entries = BTreeMap::new();
        for (relative, metadata) in found(root)? {
            let path = joined(root, &relative);
            let kind = if metadata.is_dir() {
                EntryKind::Folder
            } else if metadata.is_symlink() {
                EntryKind::Link { to: fs::read_link(&path).map_err(failed(&path))? }
            } else if metadata.is_file() {
                EntryKind::File { blake3: hash(&path)? }
            } else {
                continue;
            };
            entries.insert(relative, Entry::of(&path, &metadata, kind)?);
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

    pub(super) fn bytes(&self) -> u64 {
        self.0.values().filter(|entry| matches!(entry.kind, EntryKind::File { .. })).map(|entry| entry.stamp.1).sum()
    }

    pub(super) fn into_blobs(self) -> impl Iterator<Item = String> {
        self.0.into_values().filter_map(|entry| match entry.kind {
            EntryKind::File { blake3 } => Some(blake3),
            EntryKind::Folder | EntryKind::Link { .. } | EntryKind::HardLink { .. } => None,
        })
    }
}

impl Entry {
    fn of(path: &Path, metadata: &fs::Metadata, kind: EntryKind) -> Result<Self, Failure> {
        Ok(Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            kind,
            xattrs: xattrs(path)?,
            modified_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            stamp: stamp(metadata),
        })
    }

    /// Whether it is the same to whoever reads it.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.mode, self.uid, self.gid, &self.xattrs) == (other.mode, other.uid, other.gid, &other.xattrs)
    }

    /// Gives a path what belongs to an entry besides its content.
    fn dress(&self, path: &Path) -> Result<(), Failure> {
        let fail = failed(path);
        lchown(path, Some(self.uid), Some(self.gid)).map_err(&fail)?;
        let is_link = matches!(self.kind, EntryKind::Link { .. });
        for (name, value) in &self.xattrs {
            let value =
                hex::decode(value).map_err(|_| damaged(format!("the attribute {name} of {}", path.display())))?;
            rustix::fs::lsetxattr(path, name.as_str(), &value, XattrFlags::empty())
                .map_err(|error| fail(error.into()))?;
        }
        if !is_link {
            fs::set_permissions(path, fs::Permissions::from_mode(self.mode)).map_err(&fail)?;
        }
        let time = Timespec {
            tv_sec: self.modified_ns.div_euclid(1_000_000_000),
            tv_nsec: self.modified_ns.rem_euclid(1_000_000_000) as _,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| fail(error.into()))
    }
}

/// What a path is to become, built beside it.
pub(super) struct Replacement {
    path: PathBuf,
    /// Nothing where nothing was.
    fresh: Option<PathBuf>,
}

impl Replacement {
    /// Builds what was kept beside what is there. Every content is checked.
    pub(super) fn build(path: &Path, tree: Option<&Tree>, blobs: &Blobs) -> Result<Self, Failure> {
        let fresh = beside(path, "restoring");
        remove(&fresh)?;
        let Some(tree) = tree.filter(|tree| !tree.0.is_empty()) else {
            return Ok(Self { path: path.to_owned(), fresh: None });
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        // Data folders of snapshots of before this was written have no entry of their own.
        if !tree.0.contains_key("") {
            fs::create_dir_all(&fresh).map_err(failed(&fresh))?;
        }
        for (relative, entry) in &tree.0 {
            let at = joined(&fresh, relative);
            let what = joined(path, relative).display().to_string();
            match &entry.kind {
                EntryKind::Folder => fs::create_dir_all(&at).map_err(failed(&at))?,
                EntryKind::Link { to } => symlink(to, &at).map_err(failed(&at))?,
                EntryKind::File { blake3 } => blobs.write_out(blake3, &at, &what)?,
                EntryKind::HardLink { .. } => {}
            }
        }
        for (relative, entry) in &tree.0 {
            if let EntryKind::HardLink { to } = &entry.kind {
                let at = joined(&fresh, relative);
                fs::hard_link(joined(&fresh, to), &at).map_err(failed(&at))?;
            }
        }
        // Modes, owners and times last, the deepest first: a folder may come back read-only.
        for (relative, entry) in tree.0.iter().rev() {
            entry.dress(&joined(&fresh, relative))?;
        }
        Ok(Self { path: path.to_owned(), fresh: Some(fresh) })
    }

    /// Puts it in the place of what is there, by one rename.
    pub(super) fn exchange(self) -> Result<(), Failure> {
        let (path, fail) = (&self.path, failed(&self.path));
        let Some(fresh) = self.fresh else { return remove(path) };
        if fs::symlink_metadata(path).is_ok() {
            rustix::fs::renameat_with(CWD, &fresh, CWD, path, RenameFlags::EXCHANGE)
                .map_err(|error| fail(error.into()))?;
            remove(&fresh)?;
        } else {
            fs::rename(&fresh, path).map_err(&fail)?;
        }
        let parent = path.parent().unwrap_or(path);
        fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(&fail)
    }
}

/// BLAKE3 of every file below a folder, by path below it.
pub(super) fn hashes(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let mut hashes = BTreeMap::new();
    for (relative, metadata) in found(folder)? {
        if metadata.is_file() {
            hashes.insert(relative.clone(), hash(&joined(folder, &relative))?);
        }
    }
    Ok(hashes)
}

/// Everything at a path, folders before their content, without following links.
fn found(root: &Path) -> Result<BTreeMap<String, fs::Metadata>, Failure> {
    let mut found = BTreeMap::new();
    match fs::symlink_metadata(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(failed(root)(error)),
        Ok(metadata) => drop(found.insert(String::new(), metadata)),
    }
    let mut folders = if found[""].is_dir() { vec![String::new()] } else { Vec::new() };
    while let Some(below) = folders.pop() {
        let folder = joined(root, &below);
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                let message = format!("{} has a name that is not UTF-8", entry.path().display());
                return Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("rename or remove it"));
            };
            let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
            let metadata = fs::symlink_metadata(entry.path()).map_err(failed(&entry.path()))?;
            if metadata.is_dir() {
                folders.push(relative.clone());
            }
            found.insert(relative, metadata);
            if found.len() > ENTRIES_MAX {
                let message = format!("{} has more than {ENTRIES_MAX} files", root.display());
                return Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("keep less in `snapshot`"));
            }
        }
    }
    Ok(found)
}

fn stamp(metadata: &fs::Metadata) -> (u64, u64, i64) {
    let changed = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
    (metadata.ino(), metadata.len(), changed)
}

fn joined(root: &Path, relative: &str) -> PathBuf {
    if relative.is_empty() { root.to_owned() } else { root.join(relative) }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.fleetwright-{what}"))
}

/// Removes whatever is at a path.
fn remove(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path)(error)),
        Ok(metadata) if metadata.is_dir() => stage::remove_folder(path),
        Ok(_) => fs::remove_file(path).map_err(failed(path)),
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let fail = |error: rustix::io::Errno| failed(path)(error.into());
    let mut names = vec![0_u8; 64 * 1024];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        // Some file systems have none.
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        // What the kernel's security modules say of a file is theirs to say.
        if name.starts_with("security.") && name != "security.capability" {
            continue;
        }
        let mut value = vec![0_u8; 64 * 1024];
        let length = rustix::fs::lgetxattr(path, name.as_str(), value.as_mut_slice()).map_err(fail)?;
        found.insert(name, hex::encode(&value[..length]));
    }
    Ok(found)
}
