//! Making what an archive holds, below one folder and nowhere else: nothing leads out of it, nothing is written through a
//! link, and nothing runs as another user.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use fleetwright_deploy::failure::Failure;

use super::limits::PATH_PARTS_MAX;
use super::refused;
use crate::install::file_failure;

/// What an entry is.
pub(super) enum Kind<'a> {
    Folder,
    File,
    /// With what it leads to, seen from where it is.
    Symlink(&'a Path),
    /// With what it is another name of, seen from the top.
    HardLink(&'a Path),
}

/// The path of an entry below the folder it is unpacked into; nothing when it is left out.
pub(super) fn below(path: &Path, strip: u32) -> Result<Option<PathBuf>, Failure> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refused(format!("`{}` leads out of its folder", path.display())));
            }
        }
    }
    if parts.len() > PATH_PARTS_MAX {
        return Err(refused(format!("it has a path of {} parts, and {PATH_PARTS_MAX} is the most", parts.len())));
    }
    let kept: PathBuf = parts.into_iter().skip(strip as usize).collect();
    Ok((kept != PathBuf::new()).then_some(kept))
}

/// Makes an entry at `below`, which its archive calls `path`, and gives how much that was. Of a file, `content` is what is
/// in it.
pub(super) fn make(
    to: &Path,
    below: &Path,
    path: &Path,
    mode: u32,
    kind: Kind<'_>,
    content: &mut impl Read,
) -> Result<usize, Failure> {
    let at = to.join(below);
    let fail = |error: std::io::Error| file_failure(&at, &error);
    if mode & 0o6000 != 0 {
        return Err(refused(format!("`{}` would run as another user", path.display())));
    }
    // Nothing is written through a link, whoever has put it there.
    let parent = below.parent().unwrap_or_else(|| Path::new(""));
    no_links(to, parent, path)?;
    let made = make_folders(to, parent).map_err(fail)?;
    match kind {
        Kind::Folder => {
            no_links(to, below, path)?;
            let own = make_folders(to, below).map_err(fail)?;
            fs::set_permissions(&at, fs::Permissions::from_mode((mode & 0o755) | 0o700)).map_err(fail)?;
            return Ok(made + own);
        }
        Kind::File => {
            let _ = fs::remove_file(&at);
            let mut file = File::create_new(&at).map_err(fail)?;
            std::io::copy(content, &mut file).map_err(fail)?;
            fs::set_permissions(&at, fs::Permissions::from_mode((mode & 0o755) | 0o400)).map_err(fail)?;
        }
        Kind::Symlink(target) => {
            stays_inside(parent, target, path)?;
            let _ = fs::remove_file(&at);
            symlink(target, &at).map_err(fail)?;
        }
        Kind::HardLink(target) => {
            stays_inside(Path::new(""), target, path)?;
            no_links(to, target, path)?;
            let _ = fs::remove_file(&at);
            fs::hard_link(to.join(target), &at).map_err(fail)?;
        }
    }
    Ok(made + 1)
}

/// Makes the folders of a path that are not there yet, and says how many.
pub(super) fn make_folders(to: &Path, below: &Path) -> std::io::Result<usize> {
    let mut at = to.to_owned();
    let mut made = 0;
    for part in below.components() {
        at.push(part);
        match fs::create_dir(&at) {
            Ok(()) => made += 1,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && at.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(made)
}

/// Whether a link, seen from its folder, stays within everything that is unpacked.
fn stays_inside(from: &Path, target: &Path, path: &Path) -> Result<(), Failure> {
    let leaves = || refused(format!("the link `{}` leads out, to `{}`", path.display(), target.display()));
    let mut depth = from.components().count();
    let mut goes_down = false;
    for part in target.components() {
        match part {
            Component::Normal(_) => goes_down = true,
            Component::CurDir => {}
            // What is gone down through may be a link, and then up is somewhere else.
            Component::ParentDir if goes_down => return Err(leaves()),
            Component::ParentDir => depth = depth.checked_sub(1).ok_or_else(leaves)?,
            Component::RootDir | Component::Prefix(_) => return Err(leaves()),
        }
    }
    Ok(())
}

/// Whether no part of a path below `to` is a link.
fn no_links(to: &Path, below: &Path, path: &Path) -> Result<(), Failure> {
    let mut at = to.to_owned();
    for part in below.components() {
        at.push(part);
        if fs::symlink_metadata(&at).is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(refused(format!("`{}` would be written through the link `{}`", path.display(), at.display())));
        }
    }
    Ok(())
}
