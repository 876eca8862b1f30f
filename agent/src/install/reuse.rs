//! Sharing what a new release has in common with the one before: releases are never changed once they are staged, so
//! two of them may have the same file on the disk, once.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{AtFlags, linkat, renameat, unlinkat};

use crate::aside::go_on;
use crate::beneath::{Folder, Seen};

/// Smaller files are not worth the look, in bytes.
const BYTES_MIN: u64 = 4 * 1024;

/// Makes every file below `fresh` that is the same below `before`, with the same mode and owner, a hard link to it.
/// Gives how many bytes that saves. What cannot be shared stays as it is.
pub(crate) fn share(before: &Path, fresh: &Path) -> io::Result<u64> {
    share_folder(&Folder::open(before)?, &Folder::open(fresh)?)
}

fn share_folder(before: &Folder, fresh: &Folder) -> io::Result<u64> {
    let mut saved = 0;
    let names: Vec<OsString> = fresh.names()?.collect::<io::Result<_>>()?;
    for name in names {
        go_on()?;
        let (Some(known), Some(seen)) = (before.look(&name)?, fresh.look(&name)?) else { continue };
        let below = Path::new(&name);
        if known.is_folder() && seen.is_folder() {
            if let (Some(before), Some(fresh)) = (before.folder(below, &known)?, fresh.folder(below, &seen)?) {
                saved += share_folder(&before, &fresh)?;
            }
        } else if seen.is_file() && are_alike(&known, &seen) {
            let (Some(one), Some(other)) = (before.file(below, &known)?, fresh.file(below, &seen)?) else { continue };
            if has_same_content(one, other)? && link(before, &known, fresh, &name)? {
                saved += seen.bytes;
            }
        }
    }
    Ok(saved)
}

/// Puts a file that was seen in the place of the one with the same name; whether it could. Another file system, or no more
/// links: then both stay.
fn link(before: &Folder, known: &Seen, fresh: &Folder, name: &OsString) -> io::Result<bool> {
    let mut linked = name.clone();
    linked.push(".shared");
    if linkat(before, name, fresh, &linked, AtFlags::empty()).is_err() {
        return Ok(false);
    }
    if !fresh.look(&linked)?.is_some_and(|linked| linked.is(known)) {
        unlinkat(fresh, &linked, AtFlags::empty())?;
        return Ok(false);
    }
    renameat(fresh, &linked, fresh, name)?;
    Ok(true)
}

fn are_alike(one: &Seen, other: &Seen) -> bool {
    let of = |seen: &Seen| (seen.bytes, seen.mode, seen.uid, seen.gid, seen.device);
    one.is_file() && one.bytes >= BYTES_MIN && one.inode != other.inode && of(one) == of(other)
}

fn has_same_content(mut one: File, mut other: File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        go_on()?;
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        if other.read_exact(&mut right[..read]).is_err() || left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn files_that_are_the_same_are_shared_and_all_others_are_not() {
        let folder = tempfile::tempdir().expect("folder");
        let (before, fresh) = (folder.path().join("a"), folder.path().join("b"));
        for app in [&before, &fresh] {
            fs::create_dir_all(app.join("lib")).expect("folder");
            fs::write(app.join("lib/same"), vec![1; 100_000]).expect("write");
            fs::write(app.join("mode"), vec![2; 100_000]).expect("write");
            fs::write(app.join("small"), b"small").expect("write");
            fs::write(app.join("differs"), vec![3; 100_000]).expect("write");
            std::os::unix::fs::symlink("lib/same", app.join("link")).expect("link");
        }
        fs::write(fresh.join("differs"), [vec![3; 99_999], vec![4]].concat()).expect("write");
        fs::write(fresh.join("new"), vec![5; 100_000]).expect("write");
        fs::set_permissions(fresh.join("mode"), fs::Permissions::from_mode(0o600)).expect("mode");
        assert_eq!(share(&before, &fresh).expect("share"), 100_000);
        let is_shared = |name: &str| {
            let inode = |app: &Path| fs::metadata(app.join(name)).expect("metadata").ino();
            inode(&before) == inode(&fresh)
        };
        assert!(is_shared("lib/same") && !is_shared("mode") && !is_shared("small") && !is_shared("differs"));
        assert!(fs::symlink_metadata(fresh.join("link")).expect("metadata").is_symlink());
        assert_eq!(share(&before, &fresh).expect("again"), 0);
        fs::remove_dir_all(&before).expect("remove");
        assert_eq!(fs::read(fresh.join("lib/same")).expect("read"), vec![1; 100_000]);
    }
}
