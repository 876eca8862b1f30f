//! Unpacking an archive into a release's own folder, and nowhere else. An archive is trusted no further than its digest:
//! it may still be clumsy, so whatever would reach outside, or never end, is refused before anything of it is kept.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use fleetwright_deploy::failure::{Failure, FailureKind};
use tar::{Archive, Entry, EntryType};

use super::{STEP, file_failure};

/// Most entries of an archive, most bytes of all its files together, and how many times its own size they may be.
const ENTRIES_MAX: usize = 200_000;
const BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
const RATIO_MAX: u64 = 200;
/// Up to this many bytes the ratio does not matter: a text compresses well.
const RATIO_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// The two bytes that a gzip file begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Unpacks a tar archive, compressed with gzip or not, leaving out the first `strip` parts of each path.
pub(super) fn unpack(archive: &Path, to: &Path, strip: u32) -> Result<(), Failure> {
    let fail = |error: std::io::Error| file_failure(archive, &error);
    let mut magic = [0; 2];
    let is_gzip = File::open(archive).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == GZIP_MAGIC;
    let packed = fs::metadata(archive).map_err(fail)?.len();
    let file = BufReader::new(File::open(archive).map_err(fail)?);
    let limit = packed.saturating_mul(RATIO_MAX).clamp(RATIO_FREE_BYTES, BYTES_MAX);
    if is_gzip { unpack_tar(GzDecoder::new(file), to, strip, limit) } else { unpack_tar(file, to, strip, limit) }
}

fn unpack_tar(from: impl Read, to: &Path, strip: u32, bytes_max: u64) -> Result<(), Failure> {
    let mut archive = Archive::new(from);
    let unreadable = |error: std::io::Error| refused(format!("it cannot be read: {error}"));
    let (mut count, mut bytes) = (0_usize, 0_u64);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        count += 1;
        bytes = bytes.saturating_add(entry.size());
        if count > ENTRIES_MAX {
            return Err(refused(format!("it has more than {ENTRIES_MAX} entries")));
        }
        if bytes > bytes_max {
            return Err(refused(format!("it unpacks to more than {} MiB", bytes_max >> 20)));
        }
        let path = entry.path().map_err(unreadable)?.into_owned();
        if let Some(below) = below(&path, strip)? {
            unpack_entry(&mut entry, &path, to, &below)?;
        }
    }
    Ok(())
}

/// The path of an entry below the folder it is unpacked into; nothing when it is left out.
fn below(path: &Path, strip: u32) -> Result<Option<PathBuf>, Failure> {
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
    let kept: PathBuf = parts.into_iter().skip(strip as usize).collect();
    Ok((kept != PathBuf::new()).then_some(kept))
}

fn unpack_entry(entry: &mut Entry<'_, impl Read>, path: &Path, to: &Path, below: &Path) -> Result<(), Failure> {
    let at = to.join(below);
    let fail = |error: std::io::Error| file_failure(&at, &error);
    let mode = entry.header().mode().map_err(fail)?;
    if mode & 0o6000 != 0 {
        return Err(refused(format!("`{}` would run as another user", path.display())));
    }
    // Nothing is written through a link, whoever has put it there.
    let parent = at.parent().unwrap_or(to);
    no_links(to, parent.strip_prefix(to).unwrap_or_else(|_| Path::new("")), path)?;
    fs::create_dir_all(parent).map_err(fail)?;
    match entry.header().entry_type() {
        EntryType::Directory => {
            no_links(to, below, path)?;
            fs::create_dir_all(&at).map_err(fail)?;
            fs::set_permissions(&at, fs::Permissions::from_mode((mode & 0o777) | 0o700)).map_err(fail)
        }
        EntryType::Regular | EntryType::Continuous => {
            let _ = fs::remove_file(&at);
            let mut file = File::create_new(&at).map_err(fail)?;
            std::io::copy(entry, &mut file).map_err(fail)?;
            fs::set_permissions(&at, fs::Permissions::from_mode((mode & 0o777) | 0o400)).map_err(fail)
        }
        EntryType::Symlink => {
            let target = target(entry, path)?;
            stays_inside(below.parent().unwrap_or_else(|| Path::new("")), &target, path)?;
            let _ = fs::remove_file(&at);
            symlink(&target, &at).map_err(fail)
        }
        EntryType::Link => {
            let target = target(entry, path)?;
            stays_inside(Path::new(""), &target, path)?;
            no_links(to, &target, path)?;
            let _ = fs::remove_file(&at);
            fs::hard_link(to.join(&target), &at).map_err(fail)
        }
        EntryType::XGlobalHeader => Ok(()),
        other => Err(refused(format!("`{}` is neither file, folder nor link, but {other:?}", path.display()))),
    }
}

fn target(entry: &Entry<'_, impl Read>, path: &Path) -> Result<PathBuf, Failure> {
    let name = entry.link_name().map_err(|error| refused(format!("`{}`: {error}", path.display())))?;
    name.map(std::borrow::Cow::into_owned).ok_or_else(|| refused(format!("`{}` leads nowhere", path.display())))
}

/// Whether a link, seen from its folder, stays within everything that is unpacked.
fn stays_inside(from: &Path, target: &Path, path: &Path) -> Result<(), Failure> {
    let leaves = || refused(format!("the link `{}` leads out, to `{}`", path.display(), target.display()));
    let mut depth = from.components().count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
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

fn refused(why: String) -> Failure {
    Failure::new(FailureKind::PermissionError, STEP, format!("the archive is refused: {why}"))
        .hint("make the archive anew, with nothing in it but the server's own files")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    struct Made(Builder<Vec<u8>>);

    impl Made {
        fn new() -> Self {
            Self(Builder::new(Vec::new()))
        }

        /// An entry exactly as it is said, without the checks that a builder makes.
        fn entry(mut self, kind: EntryType, path: &str, mode: u32, content: &[u8], link: Option<&str>) -> Self {
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(content.len() as u64);
            if let Some(link) = link {
                header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            }
            header.set_cksum();
            self.0.append(&header, content).expect("append");
            self
        }

        fn file(self, path: &str, content: &str) -> Self {
            self.entry(EntryType::Regular, path, 0o644, content.as_bytes(), None)
        }

        fn unpack(self, strip: u32) -> (tempfile::TempDir, Result<(), Failure>) {
            let folder = tempfile::tempdir().expect("folder");
            let packed = folder.path().join("archive");
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(&self.0.into_inner().expect("tar")).expect("gzip");
            fs::write(&packed, gzip.finish().expect("gzip")).expect("write");
            let to = folder.path().join("to");
            fs::create_dir(&to).expect("folder");
            let outcome = unpack(&packed, &to, strip);
            (folder, outcome)
        }
    }

    #[test]
    fn an_archive_is_unpacked_with_modes_and_links_and_without_its_first_folder() {
        let made = Made::new()
            .entry(EntryType::Directory, "app-1/bin/", 0o755, b"", None)
            .entry(EntryType::Regular, "app-1/bin/serve", 0o755, b"#!/bin/sh\n", None)
            .entry(EntryType::Symlink, "app-1/serve", 0o777, b"", Some("bin/serve"))
            .file("app-1/README", "read");
        let (folder, outcome) = made.unpack(1);
        outcome.expect("unpacked");
        let to = folder.path().join("to");
        assert_eq!(fs::metadata(to.join("serve")).expect("there").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_to_string(to.join("README")).expect("read"), "read");
    }

    #[test]
    fn whatever_would_reach_outside_is_refused() {
        let hostile: [(&str, Made); 8] = [
            ("leads out of its folder", Made::new().file("../evil", "x")),
            ("leads out of its folder", Made::new().file("/tmp/evil", "x")),
            ("leads out, to", Made::new().entry(EntryType::Symlink, "a/l", 0o777, b"", Some("../../etc"))),
            ("leads out, to", Made::new().entry(EntryType::Symlink, "l", 0o777, b"", Some("/etc/passwd"))),
            ("leads out, to", Made::new().entry(EntryType::Link, "l", 0o644, b"", Some("../secret"))),
            ("through the link", Made::new().entry(EntryType::Symlink, "l", 0o777, b"", Some("d")).file("l/evil", "x")),
            ("as another user", Made::new().entry(EntryType::Regular, "su", 0o4755, b"x", None)),
            ("neither file, folder nor link", Made::new().entry(EntryType::Char, "null", 0o666, b"", None)),
        ];
        for (words, made) in hostile {
            let (folder, outcome) = made.unpack(0);
            let failure = outcome.expect_err(words);
            assert!(failure.message.contains(words), "{failure}");
            assert!(!folder.path().join("evil").exists());
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_fills_the_disk() {
        let zeros = vec![0_u8; 65 * 1024 * 1024];
        let made = Made::new().entry(EntryType::Regular, "bomb", 0o644, &zeros, None);
        let (folder, outcome) = made.unpack(0);
        assert!(outcome.expect_err("a bomb").message.contains("unpacks to more than 64 MiB"));
        assert!(!folder.path().join("to/bomb").exists());
    }
}
