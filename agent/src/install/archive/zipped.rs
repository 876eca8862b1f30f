//! ZIP archives (PKWARE's APPNOTE 6.3), which bundles of MCP servers are. They say everything twice: in a list at their end,
//! and before each file. Where the two differ, programs disagree about what is in it, so that is refused.

use std::ffi::OsStr;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::Failure;
use zip::{CompressionMethod, System, ZipArchive};

use super::limits::{Counted, ENTRIES_MAX, Limit, PATH_BYTES_MAX};
use super::made::{Kind, below, make};
use super::{refused, too_large};

/// Most bytes of the list at the end.
const LIST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The last record of an archive, without its comment, and the most that the comment may be.
const END: &[u8; 4] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const COMMENT_BYTES_MAX: u64 = 65_535;
/// What stands before it where 16 and 32 bits are not enough, and how long that is.
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR_64: &[u8; 4] = b"PK\x06\x07";
const LOCATOR_64_BYTES: usize = 20;
const END_64_BYTES: usize = 56;
/// The bits of a mode that say what something is, and the three of them that are known.
const TYPE: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
/// What programs begin with: those made by systems without permissions may be started, too.
const PROGRAMS: [&[u8]; 2] = [b"#!", b"\x7fELF"];

/// Unpacks a ZIP archive of so many bytes.
pub(super) fn unpack(
    mut from: BufReader<impl Read + Seek>,
    packed: u64,
    to: &Path,
    strip: u32,
    limit: Limit,
) -> Result<(), Failure> {
    list_within_limits(&mut from, packed)?;
    let mut archive = ZipArchive::new(from).map_err(|error| unreadable(&error))?;
    if archive.has_duplicate_names() {
        return Err(refused("it has two entries of one name".to_owned()));
    }
    archive.validate_header_consistency().map_err(|error| unreadable(&error))?;
    let (mut left, mut made) = (limit.bytes(), 0);
    for number in 0..archive.len() {
        if archive.by_index_data(number).map_err(|error| unreadable(&error))?.encrypted() {
            return Err(refused("it has an entry that is encrypted".to_owned()));
        }
        let mut entry = archive.by_index(number).map_err(|error| unreadable(&error))?;
        let path = path_of(entry.name_raw())?;
        // What the library makes of it leaves out what would run as another user.
        let said = if entry.system() == System::Unix { Some(entry.external_attributes() >> 16) } else { None };
        let (mode, is_known) = mode_of(said, entry.is_dir(), &path)?;
        if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            let message = format!("`{}` is compressed by another method than deflate", path.display());
            return Err(refused(message));
        }
        let size = entry.size();
        if size > left {
            return Err(too_large(limit));
        }
        let (counted, exceeded) = Counted::new(&mut entry, left);
        let mut content = Content { from: counted, wrong: None };
        let unpacked = unpack_entry(&mut content, mode, is_known, &path, to, strip);
        let came = left - content.from.left();
        if exceeded.get() {
            return Err(too_large(limit));
        }
        if let Some(wrong) = content.wrong {
            return Err(refused(format!("`{}` cannot be read: {wrong}", path.display())));
        }
        made += unpacked?;
        if came != size && mode & TYPE != FOLDER {
            return Err(refused(format!("`{}` has another size than it says", path.display())));
        }
        left -= came;
        if made > ENTRIES_MAX {
            return Err(refused(format!("it makes more than {ENTRIES_MAX} files and folders")));
        }
    }
    Ok(())
}

/// What comes out of an entry, and what was wrong with it: whoever copies it cannot tell that from a full disk.
struct Content<R> {
    from: R,
    wrong: Option<String>,
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.from.read(buffer).inspect_err(|error| self.wrong = Some(error.to_string()))
    }
}

fn unpack_entry(
    content: &mut impl Read,
    mode: u32,
    is_known: bool,
    path: &Path,
    to: &Path,
    strip: u32,
) -> Result<usize, Failure> {
    let read = |error: std::io::Error| refused(format!("`{}` cannot be read: {error}", path.display()));
    let Some(below) = below(path, strip)? else {
        std::io::copy(content, &mut std::io::sink()).map_err(read)?;
        return Ok(0);
    };
    match mode & TYPE {
        FOLDER => make(to, &below, path, mode, Kind::Folder, content),
        SYMLINK => {
            let mut target = Vec::new();
            content.take(PATH_BYTES_MAX + 1).read_to_end(&mut target).map_err(read)?;
            let target = path_of(&target)?;
            make(to, &below, path, mode, Kind::Symlink(&target), content)
        }
        _ if is_known => make(to, &below, path, mode, Kind::File, content),
        _ => {
            let mut head = Vec::new();
            content.take(4).read_to_end(&mut head).map_err(read)?;
            let mode = if PROGRAMS.iter().any(|magic| head.starts_with(magic)) { 0o755 } else { 0o644 };
            make(to, &below, path, mode, Kind::File, &mut head.as_slice().chain(content))
        }
    }
}

/// What an entry is and may, and whether the archive says so.
fn mode_of(said: Option<u32>, is_folder: bool, path: &Path) -> Result<(u32, bool), Failure> {
    let usual = if is_folder { FOLDER | 0o755 } else { FILE | 0o644 };
    let Some(mode) = said.filter(|mode| *mode != 0) else { return Ok((usual, is_folder)) };
    let of_type = match mode & TYPE {
        0 => usual & TYPE,
        FOLDER | FILE | SYMLINK => mode & TYPE,
        _ => return Err(refused(format!("`{}` is neither file, folder nor link", path.display()))),
    };
    if (of_type == FOLDER) != is_folder {
        return Err(refused(format!("`{}` says of itself that it is a folder and that it is none", path.display())));
    }
    Ok((of_type | (mode & 0o7777), true))
}

fn path_of(name: &[u8]) -> Result<PathBuf, Failure> {
    if name.len() as u64 > PATH_BYTES_MAX {
        return Err(refused(format!("it has a path of more than {PATH_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8_lossy(name);
    if name.contains(&0) {
        return Err(refused("it has a path with a zero byte in it".to_owned()));
    }
    // Some programs take it for a slash.
    if name.contains(&b'\\') {
        return Err(refused(format!("`{text}` has a backslash in it")));
    }
    if name.is_empty() {
        return Err(refused("it has an entry without a name".to_owned()));
    }
    Ok(PathBuf::from(OsStr::from_bytes(name)))
}

/// Whether the list at the end is one that may be read, before any of it is.
fn list_within_limits(from: &mut (impl Read + Seek), packed: u64) -> Result<(), Failure> {
    let unread = |error: std::io::Error| refused(format!("it cannot be read: {error}"));
    let no_end = || refused("it has no end that ZIP archives have: it is cut, or something else".to_owned());
    let start = packed.saturating_sub(COMMENT_BYTES_MAX + (END_BYTES + LOCATOR_64_BYTES) as u64);
    let tail = read_at(from, start, packed - start).map_err(unread)?;
    // The comment that follows must end where the archive does.
    let is_end = |at: usize| {
        tail[at..].starts_with(END) && number(&tail, at + 20, 2) == Some((tail.len() - at - END_BYTES) as u64)
    };
    let last = tail.len().checked_sub(END_BYTES).ok_or_else(no_end)?;
    let at = (0..=last).rev().find(|at| is_end(*at)).ok_or_else(no_end)?;
    let (mut entries, mut bytes) = (number(&tail, at + 10, 2), number(&tail, at + 12, 4));
    let locator = at.checked_sub(LOCATOR_64_BYTES).filter(|at| tail[*at..].starts_with(LOCATOR_64));
    if let Some(locator) = locator {
        let place = number(&tail, locator + 8, 8).ok_or_else(no_end)?;
        if place.saturating_add(END_64_BYTES as u64) > packed {
            return Err(no_end());
        }
        let end = read_at(from, place, END_64_BYTES as u64).map_err(unread)?;
        if !end.starts_with(END_64) {
            return Err(no_end());
        }
        (entries, bytes) = (number(&end, 32, 8), number(&end, 40, 8));
    }
    let (entries, bytes) = (entries.ok_or_else(no_end)?, bytes.ok_or_else(no_end)?);
    if entries > ENTRIES_MAX as u64 {
        return Err(refused(format!("it has more than {ENTRIES_MAX} entries")));
    }
    if bytes > LIST_BYTES_MAX {
        return Err(refused(format!("its list of entries has more than {} MiB", LIST_BYTES_MAX >> 20)));
    }
    from.rewind().map_err(unread)
}

fn read_at(from: &mut (impl Read + Seek), at: u64, bytes: u64) -> std::io::Result<Vec<u8>> {
    from.seek(SeekFrom::Start(at))?;
    let mut read = Vec::new();
    from.take(bytes).read_to_end(&mut read)?;
    Ok(read)
}

/// A number of so many bytes, the lowest first.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    Some(bytes.get(at..at + length)?.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

fn unreadable(error: &zip::result::ZipError) -> Failure {
    refused(format!("it cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Cursor, Write};
    use std::os::unix::fs::PermissionsExt;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    type Writer = ZipWriter<Cursor<Vec<u8>>>;

    fn zipped(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        write(&mut writer);
        writer.finish().expect("an archive").into_inner()
    }

    fn file(writer: &mut Writer, name: &str, mode: u32, content: &[u8]) {
        let options = SimpleFileOptions::default().unix_permissions(mode);
        writer.start_file(name, options).and_then(|()| Ok(writer.write_all(content)?)).expect("a file");
    }

    fn unpacked(archive: &[u8], strip: u32) -> (tempfile::TempDir, Result<(), Failure>) {
        let folder = tempfile::tempdir().expect("folder");
        let (packed, to) = (folder.path().join("archive"), folder.path().join("to"));
        fs::write(&packed, archive).expect("write");
        fs::create_dir(&to).expect("folder");
        let outcome = super::super::unpack(&packed, &to, strip);
        (folder, outcome)
    }

    #[test]
    fn a_zip_is_unpacked_with_modes_and_links_and_without_its_first_folder() {
        let archive = zipped(|writer| {
            writer.add_directory("app/bin/", SimpleFileOptions::default().unix_permissions(0o755)).expect("a folder");
            file(writer, "app/bin/serve", 0o755, b"#!/bin/sh\n");
            file(writer, "app/README", 0o666, &b"read ".repeat(1000));
            let large = SimpleFileOptions::default().large_file(true);
            writer.start_file("app/large", large).and_then(|()| Ok(writer.write_all(b"x")?)).expect("zip64");
            writer.add_symlink("app/serve", "bin/serve", SimpleFileOptions::default()).expect("a link");
        });
        let (folder, outcome) = unpacked(&archive, 1);
        outcome.expect("unpacked");
        let to = folder.path().join("to");
        assert_eq!(fs::metadata(to.join("serve")).expect("there").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(to.join("README")).expect("there").permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read(to.join("README")).expect("read").len(), 5000);
        assert!(fs::symlink_metadata(to.join("serve")).expect("there").is_symlink() && to.join("large").exists());
    }

    #[test]
    fn whatever_would_reach_outside_or_is_no_file_is_refused() {
        let link =
            |to: &str| zipped(|writer| writer.add_symlink("l", to, SimpleFileOptions::default()).expect("a link"));
        let hostile: [(&str, Vec<u8>); 8] = [
            ("leads out of its folder", zipped(|writer| file(writer, "../evil", 0o644, b"x"))),
            ("leads out of its folder", zipped(|writer| file(writer, "/tmp/evil", 0o644, b"x"))),
            ("has a backslash in it", zipped(|writer| file(writer, "..\\evil", 0o644, b"x"))),
            ("leads out, to", link("/etc")),
            ("leads out, to", link("../archive")),
            (
                "through the link",
                zipped(|writer| {
                    writer.add_symlink("l", "d", SimpleFileOptions::default()).expect("a link");
                    file(writer, "l/evil", 0o644, b"x");
                }),
            ),
            ("a path of more than 4096 bytes", zipped(|writer| file(writer, &"a".repeat(5000), 0o644, b"x"))),
            ("parts, and 64 is the most", zipped(|writer| file(writer, &format!("{}x", "d/".repeat(70)), 0o644, b"x"))),
        ];
        for (words, archive) in hostile {
            let (folder, outcome) = unpacked(&archive, 0);
            let failure = outcome.expect_err(words);
            assert!(failure.message.contains(words), "{words}: {failure}");
            assert!(!folder.path().join("evil").exists());
        }
    }

    #[test]
    fn a_bomb_is_refused_and_so_is_what_is_cut_or_says_two_things() {
        let bomb = zipped(|writer| file(writer, "bomb", 0o644, &vec![0; 65 << 20]));
        let (folder, outcome) = unpacked(&bomb, 0);
        assert!(outcome.expect_err("a bomb").message.contains("unpacks to more than 64 MiB"));
        assert!(!folder.path().join("to/bomb").exists());
        let honest = zipped(|writer| file(writer, "name", 0o644, b"content"));
        for end in 2..honest.len() {
            let failure = unpacked(&honest[..end], 0).1.expect_err("it is cut");
            assert!(failure.message.contains("the archive is refused"), "{failure}");
        }
        // The name before the file is another one than in the list.
        let mut two = honest.clone();
        two[30] = b'N';
        assert!(unpacked(&two, 0).1.is_err());
        let mut damaged = honest;
        damaged[34] ^= 1;
        assert!(unpacked(&damaged, 0).1.is_err(), "its content has another sum");
    }
}
