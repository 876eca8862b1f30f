//! Unpacking an archive into a release's own folder, and nowhere else. An archive is trusted no further than its digest:
//! it may still be clumsy, so whatever would reach outside, or never end, is refused before anything of it is kept.

mod child;
mod entries;
mod limits;
mod made;
mod zipped;

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::ExitCode;

use flate2::read::GzDecoder;
use fleetwright_deploy::failure::{Failure, FailureKind};
use tar::{Archive, EntryType};

pub(super) use self::child::unpack as unpack_aside;
use self::entries::{Names, Said};
use self::limits::{Counted, ENTRIES_MAX, Limit};
use self::made::{Kind, below, make};
use super::{STEP, file_failure};

/// The two bytes that a gzip file begins with, and a ZIP archive.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZIP_MAGIC: [u8; 2] = *b"PK";

/// Unpacks as the process that is there for nothing else; prints why it could not.
pub(crate) fn unpack_within_limits(archive: &Path, to: &Path, strip: u32) -> ExitCode {
    let limited = child::limit();
    let limited = limited.map_err(|error| Failure::new(FailureKind::DeploymentError, STEP, error.to_string()));
    let Err(failure) = limited.and_then(|()| unpack(archive, to, strip)) else { return ExitCode::SUCCESS };
    // Whoever started this and no longer listens does not want to know.
    let _ = serde_json::to_writer(std::io::stdout().lock(), &failure);
    ExitCode::FAILURE
}

/// Unpacks a tar archive, compressed with gzip or not, or a ZIP archive, into a folder that is there and empty, leaving out
/// the first `strip` parts of each path.
pub fn unpack(archive: &Path, to: &Path, strip: u32) -> Result<(), Failure> {
    let fail = |error: std::io::Error| file_failure(archive, &error);
    let mut magic = [0; 2];
    let is_read = File::open(archive).and_then(|mut file| file.read_exact(&mut magic)).is_ok();
    let packed = fs::metadata(archive).map_err(fail)?.len();
    let stat = rustix::fs::statvfs(to).map_err(|error| file_failure(to, &error.into()))?;
    let limit = Limit::of(packed, stat.f_bavail.saturating_mul(stat.f_frsize));
    let file = BufReader::new(File::open(archive).map_err(fail)?);
    match magic {
        GZIP_MAGIC if is_read => unpack_tar(GzDecoder::new(file), to, strip, limit),
        ZIP_MAGIC if is_read => zipped::unpack(file, packed, to, strip, limit),
        _ => unpack_tar(file, to, strip, limit),
    }
}

fn unpack_tar(from: impl Read, to: &Path, strip: u32, limit: Limit) -> Result<(), Failure> {
    let (counted, exceeded) = Counted::new(from, limit.bytes());
    let unpacked = unpack_entries(counted, to, strip, limit);
    if exceeded.get() { Err(too_large(limit)) } else { unpacked }
}

fn unpack_entries(from: impl Read, to: &Path, strip: u32, limit: Limit) -> Result<(), Failure> {
    let mut archive = Archive::new(from);
    let mut said = Said::default();
    let (mut count, mut made) = (0_usize, 0_usize);
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        count += 1;
        if count > ENTRIES_MAX {
            return Err(refused(format!("it has more than {ENTRIES_MAX} entries")));
        }
        if said.take(&mut entry)? {
            continue;
        }
        if entry.size() > limit.bytes() {
            return Err(too_large(limit));
        }
        let names = std::mem::take(&mut said).names(&entry)?;
        if let Some(below) = below(&names.path, strip)? {
            let mode = entry.header().mode().map_err(unreadable)?;
            let kind = match entry.header().entry_type() {
                EntryType::Directory => Kind::Folder,
                EntryType::Regular | EntryType::Continuous => Kind::File,
                EntryType::Symlink => Kind::Symlink(target(&names)?),
                EntryType::Link => Kind::HardLink(target(&names)?),
                other => {
                    let path = names.path.display();
                    return Err(refused(format!("`{path}` is neither file, folder nor link, but {other:?}")));
                }
            };
            made += make(to, &below, &names.path, mode, kind, &mut entry)?;
        }
        if made > ENTRIES_MAX {
            return Err(refused(format!("it makes more than {ENTRIES_MAX} files and folders")));
        }
    }
    if said.is_empty() { Ok(()) } else { Err(refused("it ends before an entry that it has named".to_owned())) }
}

fn target(names: &Names) -> Result<&Path, Failure> {
    names.target.as_deref().ok_or_else(|| refused(format!("`{}` leads nowhere", names.path.display())))
}

fn too_large(limit: Limit) -> Failure {
    match limit {
        Limit::Size(bytes) => refused(format!("it unpacks to more than {} MiB", bytes >> 20)),
        Limit::Room(bytes) => {
            let message =
                format!("the archive unpacks to more than the {} MiB that the disk has room for", bytes >> 20);
            Failure::new(FailureKind::ResourceError, STEP, message).hint("free some space on the host")
        }
    }
}

fn unreadable(error: std::io::Error) -> Failure {
    refused(format!("it cannot be read: {error}"))
}

fn refused(why: String) -> Failure {
    Failure::new(FailureKind::PermissionError, STEP, format!("the archive is refused: {why}"))
        .hint("make the archive anew, with nothing in it but the server's own files")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

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

        /// An entry of GNU's or pax's that says something of the next one.
        fn said(self, kind: EntryType, content: &[u8]) -> Self {
            self.entry(kind, "././@LongLink", 0o644, content, None)
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
        // Each link by itself stays inside by its names; through the first the second does not.
        let chained = Made::new().entry(EntryType::Symlink, "a/b/c/d", 0o777, b"", Some("../../..")).entry(
            EntryType::Symlink,
            "l",
            0o777,
            b"",
            Some("a/b/c/d/../../../../x"),
        );
        let hostile: [(&str, Made); 9] = [
            ("leads out, to", chained),
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

    #[test]
    fn long_names_and_records_are_understood() {
        let (gnu, pax) = (format!("{}/gnu", "long/".repeat(40)), format!("{}/pax", "deep/".repeat(40)));
        let record = format!(" path={pax}\n");
        // A value may hold anything, also what ends a line.
        let record = format!("15 comment=a\nb\n{}{record}", record.len() + 3);
        let made = Made::new()
            .said(EntryType::XGlobalHeader, b"21 comment=a comment\n")
            .said(EntryType::GNULongName, format!("{gnu}\0").as_bytes())
            .file("cut", "gnu")
            .said(EntryType::XHeader, record.as_bytes())
            .file("cut", "pax");
        let (folder, outcome) = made.unpack(0);
        outcome.expect("unpacked");
        let read = |path: &str| fs::read_to_string(folder.path().join("to").join(path)).expect("read");
        assert_eq!((read(&gnu), read(&pax)), ("gnu".to_owned(), "pax".to_owned()));
    }

    #[test]
    fn what_is_said_of_an_entry_has_limits() {
        let long = vec![b'a'; 5000];
        let records = vec![b'a'; 300_000];
        let two_sizes = Made::new().said(EntryType::XHeader, b"11 size=99\n").file("a", "x");
        let holes = Made::new().said(EntryType::XHeader, b"22 GNU.sparse.major=1\n").file("a", "x");
        let hostile: [(&str, Made); 10] = [
            (
                "a name of 5000 bytes, and 4097 is the most",
                Made::new().said(EntryType::GNULongName, &long).file("a", "x"),
            ),
            ("a target of a link of 5000 bytes", Made::new().said(EntryType::GNULongLink, &long).file("a", "x")),
            ("a list of records of 300000 bytes", Made::new().said(EntryType::XHeader, &records).file("a", "x")),
            ("a list of records of 300000 bytes", Made::new().said(EntryType::XGlobalHeader, &records).file("a", "x")),
            (
                "two long ones",
                Made::new().said(EntryType::GNULongName, b"a").said(EntryType::GNULongName, b"b").file("a", "x"),
            ),
            ("ends before an entry", Made::new().said(EntryType::GNULongName, b"a")),
            ("leads out of its folder", Made::new().said(EntryType::GNULongName, b"../evil\0").file("a", "x")),
            ("records are no records", Made::new().said(EntryType::XHeader, b"99 path=a\n").file("a", "x")),
            ("two sizes", two_sizes),
            ("a file with holes", holes),
        ];
        for (words, made) in hostile {
            let failure = made.unpack(0).1.expect_err(words);
            assert!(failure.message.contains(words), "{failure}");
        }
        let deep = format!("{}/x", "d/".repeat(70));
        let deep = Made::new().said(EntryType::GNULongName, deep.as_bytes()).file("x", "x");
        let failure = deep.unpack(0).1.expect_err("deep");
        assert!(failure.message.contains("parts, and 64 is the most"), "{failure}");
    }

    #[test]
    fn all_that_comes_out_is_counted_whatever_it_is_for() {
        let padding = vec![0_u8; 1024 * 1024];
        let made = (0..70).fold(Made::new(), |made, n| {
            // Of a folder nobody reads the content.
            made.entry(EntryType::Directory, &format!("d{n}"), 0o755, &padding, None)
        });
        let failure = made.unpack(0).1.expect_err("a bomb");
        assert!(failure.message.contains("unpacks to more than 64 MiB"), "{failure}");
    }

    #[test]
    fn folders_that_nobody_named_count_too() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(made::make_folders(folder.path(), Path::new("a/b/c")).expect("made"), 3);
        assert_eq!(made::make_folders(folder.path(), Path::new("a/b/d")).expect("made"), 1);
        fs::write(folder.path().join("a/f"), "").expect("write");
        assert!(made::make_folders(folder.path(), Path::new("a/f/x")).is_err());
    }

    #[test]
    fn nobody_but_the_owner_may_write_what_was_unpacked() {
        let made = Made::new().entry(EntryType::Regular, "open", 0o666, b"x", None);
        let (folder, outcome) = made.unpack(0);
        outcome.expect("unpacked");
        let mode = fs::metadata(folder.path().join("to/open")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
