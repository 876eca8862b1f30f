//! What is at a place, listed: folders before their content, without following links. Nothing is opened but folders.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::limits::size;

use super::{Entry, EntryKind, STEP, Writer, attributes, exchanged, failed};
use crate::aside::go_on;
use crate::beneath::{DEPTH_MAX, Folder, Place, Seen};

/// Most bytes that a tree may take in memory, where it is held until its snapshot is written.
pub(in crate::snapshot) const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What an entry takes besides its path: itself, and the name of its content.
const ENTRY_BYTES: usize = size_of::<(String, Entry)>() + 80;

/// What is at a place, by path below it; what is there itself has the empty path.
pub(super) struct Listing<'a> {
    place: &'a Place,
    /// The folder that is there; nothing where it is none.
    folder: Option<Folder>,
    entries: BTreeMap<String, Seen>,
}

impl<'a> Listing<'a> {
    /// Lists what is at a place.
    pub(super) fn of(place: &'a Place, writer: Writer) -> Result<Self, Failure> {
        let mut listing = Self { place, folder: None, entries: BTreeMap::new() };
        let path = place.path();
        let Some(root) = place.look().map_err(failed(&path))? else { return Ok(listing) };
        if root.is_folder() {
            let folder = place.folder.folder(Path::new(&place.name), &root).map_err(failed(&path))?;
            listing.folder = Some(folder.ok_or_else(|| exchanged(&path))?);
        }
        listing.entries.insert(String::new(), root);
        listing.fill(writer)?;
        Ok(listing)
    }

    fn fill(&mut self, writer: Writer) -> Result<(), Failure> {
        let Some(root) = &self.folder else { return Ok(()) };
        let (mut folders, mut bytes) = (vec![(String::new(), 0)], 0);
        while let Some((below, depth)) = folders.pop() {
            let path = joined(root.path(), &below);
            let opened = if below.is_empty() {
                None
            } else {
                match root.folder(Path::new(&below), &self.entries[&below]).map_err(failed(&path))? {
                    Some(folder) => Some(folder),
                    None if writer == Writer::Runs => continue,
                    None => return Err(exchanged(&path)),
                }
            };
            let folder = opened.as_ref().unwrap_or(root);
            for name in folder.names().map_err(failed(&path))? {
                go_on().map_err(failed(&path))?;
                let name = name.map_err(failed(&path))?;
                let Some(seen) = folder.look(&name).map_err(failed(&path))? else { continue };
                let Some(name) = name.to_str() else {
                    let message = format!("{} has a name that is not UTF-8", path.join(name).display());
                    return Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("rename or remove it"));
                };
                let relative = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
                if seen.is_folder() {
                    if depth == DEPTH_MAX {
                        let message = format!("{} is more than {DEPTH_MAX} folders deep", root.path().display());
                        return Err(too_much(message));
                    }
                    folders.push((relative.clone(), depth + 1));
                }
                bytes += held_bytes(&relative);
                self.check_held(bytes)?;
                self.entries.insert(relative, seen);
            }
        }
        Ok(())
    }

    /// What is listed is held in memory, which has a limit.
    pub(super) fn check_held(&self, bytes: usize) -> Result<(), Failure> {
        if bytes <= HELD_BYTES_MAX {
            return Ok(());
        }
        let (path, so_far) = (self.place.path(), self.entries.len());
        Err(too_much(format!(
            "{} has more files, or longer names, than can be listed within {}: it has at least {so_far} files",
            path.display(),
            size(HELD_BYTES_MAX)
        )))
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Seen)> {
        self.entries.iter().map(|(relative, seen)| (relative.as_str(), seen))
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        joined(&self.place.path(), relative)
    }

    /// Reads what was listed, files by `content`; nothing for what is not kept, and for what is no longer what was listed.
    pub(super) fn read(
        &self,
        relative: &str,
        seen: &Seen,
        content: impl FnOnce(File, &Path) -> Result<String, Failure>,
    ) -> Result<Option<Entry>, Failure> {
        let path = self.path(relative);
        let fail = failed(&path);
        let own = Path::new(&self.place.name);
        let (base, below) = match &self.folder {
            Some(folder) if !relative.is_empty() => (folder, Path::new(relative)),
            Some(_) | None => (&self.place.folder, own),
        };
        if seen.is_folder() {
            let Some(folder) = base.folder(below, seen).map_err(&fail)? else { return Ok(None) };
            return Ok(Some(Entry::of(seen, EntryKind::Folder, attributes::of(&folder).map_err(&fail)?)));
        }
        if seen.is_link() {
            let Some((to, fd)) = base.link(below, seen).map_err(&fail)? else { return Ok(None) };
            return Ok(Some(Entry::of(seen, EntryKind::Link { to }, attributes::of_node(fd).map_err(&fail)?)));
        }
        // Everything else is not opened at all.
        let Some(file) = base.file(below, seen).map_err(&fail)? else { return Ok(None) };
        let xattrs = attributes::of(&file).map_err(&fail)?;
        let blake3 = content(file, &path)?;
        Ok(Some(Entry::of(seen, EntryKind::File { blake3 }, xattrs)))
    }
}

/// What an entry takes in memory.
pub(super) fn held_bytes(path: &str) -> usize {
    path.len() + ENTRY_BYTES
}

pub(in crate::snapshot) fn too_much(message: String) -> Failure {
    Failure::new(FailureKind::ResourceError, STEP, message).hint("keep less in `snapshot`")
}

pub(super) fn joined(root: &Path, relative: &str) -> PathBuf {
    if relative.is_empty() { root.to_owned() } else { root.join(relative) }
}
