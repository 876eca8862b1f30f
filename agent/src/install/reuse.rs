//! Sharing what a new release has in common with the one before: releases are never changed once they are staged, so
//! two of them may have the same file on the disk, once.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Smaller files are not worth the look, in bytes.
const BYTES_MIN: u64 = 4 * 1024;

/// Makes every file below `fresh` that is the same below `before`, with the same mode and owner, a hard link to it.
/// Gives how many bytes that saves. What cannot be shared stays as it is.
pub(crate) fn share(before: &Path, fresh: &Path) -> io::Result<u64> {
    let mut saved = 0;
    for entry in fs::read_dir(fresh)? {
        let entry = entry?;
        let (path, old) = (entry.path(), before.join(entry.file_name()));
        let Ok(known) = fs::symlink_metadata(&old) else { continue };
        let metadata = entry.metadata()?;
        if metadata.is_dir() && known.is_dir() {
            saved += share(&old, &path)?;
        } else if metadata.is_file() && are_alike(&known, &metadata) && has_same_content(&old, &path)? {
            let mut linked = entry.file_name();
            linked.push(".shared");
            let linked = fresh.join(linked);
            // Another file system, or no more links: then both stay.
            if fs::hard_link(&old, &linked).is_ok() {
                fs::rename(&linked, &path)?;
                saved += metadata.len();
            }
        }
    }
    Ok(saved)
}

fn are_alike(one: &Metadata, other: &Metadata) -> bool {
    let of = |metadata: &Metadata| (metadata.len(), metadata.mode(), metadata.uid(), metadata.gid(), metadata.dev());
    one.is_file() && one.len() >= BYTES_MIN && one.ino() != other.ino() && of(one) == of(other)
}

fn has_same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
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
    use std::os::unix::fs::PermissionsExt;

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
