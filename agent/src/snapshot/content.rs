//! Contents of files, and what tells one from another. Where a file has a hole, nothing is read, hashed or written: a file
//! may be said to be larger than any disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fleetwright_deploy::failure::Failure;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::failed;
use crate::aside::go_on;

/// How much of a file is read at once, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;
/// In what pieces a sparse content is hashed, in bytes: those without anything in them are left out.
const BLOCK_BYTES: usize = 4 * 1024;
/// From how many bytes of holes on a content is sparse. Fewer are hashed as the zeros that they are read as.
const HOLES_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Most parts of one file: more than a file has that nobody makes only to keep the agent busy.
const PARTS_MAX: u64 = 4_000_000;
/// What begins the name of a sparse content.
const SPARSE: &str = "sparse-";
const SPARSE_CONTEXT: &str = "fleetwright 2026-11 content of a sparse file";

/// How a content is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// BLAKE3 of all of it.
    Whole,
    /// BLAKE3 of its length and of the blocks that have something in them, wherever its holes are.
    Sparse,
}

impl Kind {
    /// How a content with this name was hashed.
    pub(super) fn of_name(name: &str) -> Self {
        if name.starts_with(SPARSE) { Self::Sparse } else { Self::Whole }
    }

    /// How the first `bytes` of a file are to be hashed.
    fn of(file: &File, bytes: u64) -> io::Result<Self> {
        if bytes < HOLES_BYTES_MIN {
            return Ok(Self::Whole);
        }
        let mut holes = bytes;
        for part in Parts::of(file, bytes) {
            let part = part?;
            holes -= part.end - part.start;
            if holes < HOLES_BYTES_MIN {
                return Ok(Self::Whole);
            }
        }
        Ok(Self::Sparse)
    }
}

/// Reads the first `bytes` of an open file, as they are hashed where its `kind` is known. Whatever is not a hole is given
/// to `each`, with where it is. Gives the name of the content.
pub(super) fn read(
    file: &File,
    path: &Path,
    bytes: u64,
    kind: Option<Kind>,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<String, Failure> {
    let fail = failed(path);
    let kind = kind.map_or_else(|| Kind::of(file, bytes), Ok).map_err(&fail)?;
    let mut digest = Digest::new(kind, bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    for part in Parts::of(file, bytes) {
        let Range { mut start, end } = part.map_err(&fail)?;
        while start < end {
            go_on().map_err(&fail)?;
            let length = usize::try_from(end - start).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            read_at(file, &mut chunk[..length], start).map_err(&fail)?;
            if digest.add(start, &chunk[..length]).map_err(&fail)? {
                each(start, &chunk[..length])?;
            }
            start += length as u64;
        }
    }
    digest.finish(bytes).map_err(&fail)
}

/// Reads as much; what a file lacks by now is as a hole.
fn read_at(file: &File, chunk: &mut [u8], from: u64) -> io::Result<()> {
    let mut read = 0;
    while read < chunk.len() {
        match file.read_at(&mut chunk[read..], from + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    chunk[read..].fill(0);
    Ok(())
}

/// The hash of a content, as it is read.
struct Digest {
    hasher: blake3::Hasher,
    kind: Kind,
    /// Up to where it was hashed.
    at: u64,
}

impl Digest {
    fn new(kind: Kind, bytes: u64) -> Self {
        let hasher = match kind {
            Kind::Whole => blake3::Hasher::new(),
            Kind::Sparse => {
                let mut hasher = blake3::Hasher::new_derive_key(SPARSE_CONTEXT);
                hasher.update(&bytes.to_le_bytes());
                hasher
            }
        };
        Self { hasher, kind, at: 0 }
    }

    /// Adds what is at a place; whether it has to be written, or may be a hole.
    fn add(&mut self, start: u64, chunk: &[u8]) -> io::Result<bool> {
        match self.kind {
            Kind::Whole => {
                self.add_zeros(start)?;
                self.hasher.update(chunk);
                self.at = start + chunk.len() as u64;
                Ok(true)
            }
            Kind::Sparse => {
                let mut has_any = false;
                for (number, block) in (0_u64..).zip(chunk.chunks(BLOCK_BYTES)) {
                    if block.iter().any(|byte| *byte != 0) {
                        self.hasher.update(&(start + number * BLOCK_BYTES as u64).to_le_bytes());
                        self.hasher.update(block);
                        has_any = true;
                    }
                }
                Ok(has_any)
            }
        }
    }

    fn add_zeros(&mut self, until: u64) -> io::Result<()> {
        static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];
        while self.at < until {
            go_on()?;
            let length = usize::try_from(until - self.at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            self.hasher.update(&ZEROS[..length]);
            self.at += length as u64;
        }
        Ok(())
    }

    fn finish(mut self, bytes: u64) -> io::Result<String> {
        if self.kind == Kind::Whole {
            self.add_zeros(bytes)?;
        }
        let hex = self.hasher.finalize().to_hex();
        Ok(if self.kind == Kind::Whole { hex.to_string() } else { format!("{SPARSE}{hex}") })
    }
}

/// The parts of a file that are no holes, in whole blocks, each block once. Where a file system knows of no holes, all of it
/// is one part.
struct Parts<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    count: u64,
}

impl<'a> Parts<'a> {
    fn of(file: &'a File, bytes: u64) -> Self {
        Self { file, at: 0, end: bytes, count: 0 }
    }

    fn next_part(&mut self) -> io::Result<Range<u64>> {
        go_on()?;
        self.count += 1;
        if self.count > PARTS_MAX {
            return Err(io::Error::other("it has too many holes, or they change again and again while it is read"));
        }
        let start = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => self.end,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(std::mem::replace(&mut self.at, self.end)..self.end),
            Err(error) => return Err(error.into()),
        };
        let start = (start / BLOCK_BYTES as u64 * BLOCK_BYTES as u64).max(self.at).min(self.end);
        if start == self.end {
            self.at = self.end;
            return Ok(start..start);
        }
        let stop = match seek(self.file, SeekFrom::Hole(start)) {
            Ok(stop) => stop,
            // It has become shorter.
            Err(Errno::NXIO) => start,
            Err(error) => return Err(error.into()),
        };
        // Where a hole begins by now where something was, a block is read all the same.
        let stop = stop.max(start + 1).div_ceil(BLOCK_BYTES as u64).saturating_mul(BLOCK_BYTES as u64).min(self.end);
        self.at = stop;
        Ok(start..stop)
    }
}

impl Iterator for Parts<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let part = self.next_part();
        if part.is_err() {
            self.at = self.end;
        }
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn name(file: &File, kind: Option<Kind>) -> String {
        let bytes = file.metadata().expect("there").len();
        read(file, Path::new("file"), bytes, kind, |_, _| Ok(())).expect("read")
    }

    fn file(length: u64, parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().expect("file");
        file.set_len(length).expect("length");
        for (at, part) in parts {
            file.write_all_at(part, *at).expect("write");
        }
        file
    }

    #[test]
    fn a_content_has_its_own_name_wherever_the_holes_are() {
        let mut dense = tempfile::tempfile().expect("file");
        let length = HOLES_BYTES_MIN + 12_345;
        let mut all = vec![0; usize::try_from(length).expect("small")];
        all[5_000..5_003].copy_from_slice(b"abc");
        dense.write_all(&all).expect("write");
        let sparse = file(length, &[(5_000, b"abc")]);
        assert_eq!(name(&dense, None), blake3::hash(&all).to_hex().as_str(), "without holes, of all of it");
        assert_eq!(name(&sparse, Some(Kind::Whole)), name(&dense, None));
        let told = name(&sparse, None);
        assert_eq!((Kind::of_name(&told), told.as_str()), (Kind::Sparse, name(&dense, Some(Kind::Sparse)).as_str()));
        for other in [file(length + 1, &[(5_000, b"abc")]), file(length, &[(5_001, b"abc")]), file(length, &[])] {
            assert_ne!(name(&other, Some(Kind::Sparse)), told);
        }
    }

    #[test]
    fn small_holes_are_hashed_as_what_is_read_there_and_nothing_is_read_twice() {
        let (length, tail) = (3 * 1024 * 1024 + 17, b"the end".as_slice());
        let with_holes = file(length, &[(100, b"begin"), (1_048_570, &[7; 20]), (length - 7, tail)]);
        let mut all = vec![0; usize::try_from(length).expect("small")];
        with_holes.read_exact_at(&mut all, 0).expect("read");
        let (mut given, mut until) = (0, 0);
        let told = read(&with_holes, Path::new("file"), length, None, |at, chunk| {
            assert!(at >= until, "in order, each once");
            until = at + chunk.len() as u64;
            given += chunk.len();
            Ok(())
        });
        assert_eq!(told.expect("read"), blake3::hash(&all).to_hex().as_str());
        assert!(given < 1024 * 1024, "holes are not given: {given}");
    }
}
