//! How much an archive may be. Everything that comes out of its compression is counted, whatever it is for: a name may be
//! as large as a file.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Most entries of an archive, and most files, folders and links that it may make.
pub(super) const ENTRIES_MAX: usize = 200_000;
/// Most bytes of an archive when it is unpacked, and how many times its own size they may be.
pub(super) const BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
const RATIO_MAX: u64 = 200;
/// Up to this many bytes the ratio does not matter: a text compresses well.
const RATIO_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// Longest path and target of a link, in bytes, and most parts of a path.
pub(super) const PATH_BYTES_MAX: u64 = 4096;
pub(super) const PATH_PARTS_MAX: usize = 64;
/// Most bytes of what is said of one entry in advance (pax records).
pub(super) const RECORDS_BYTES_MAX: u64 = 256 * 1024;
/// What unpacking leaves free on the disk, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// How many bytes may come out of an archive, and what says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Size(u64),
    Room(u64),
}

impl Limit {
    /// For an archive that is this large, where so many bytes are free.
    pub(super) fn of(packed: u64, free: u64) -> Self {
        let size = packed.saturating_mul(RATIO_MAX).clamp(RATIO_FREE_BYTES, BYTES_MAX);
        let room = free.saturating_sub(FREE_BYTES_MIN);
        if room < size { Self::Room(room) } else { Self::Size(size) }
    }

    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Size(bytes) | Self::Room(bytes) => bytes,
        }
    }
}

/// Passes on as many bytes as may come, and fails at the next one.
pub(super) struct Counted<R> {
    from: R,
    left: u64,
    exceeded: Rc<Cell<bool>>,
}

impl<R> Counted<R> {
    /// Says in the second value whether there was more.
    pub(super) fn new(from: R, bytes_max: u64) -> (Self, Rc<Cell<bool>>) {
        let exceeded = Rc::new(Cell::new(false));
        (Self { from, left: bytes_max, exceeded: exceeded.clone() }, exceeded)
    }

    /// How many more may come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than there may be shows that there is more.
        let most = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.from.read(&mut buffer[..most])?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded.set(true);
                return Err(io::Error::other("more than may come"));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_limit_is_of_the_archives_size_and_of_the_room_there_is() {
        assert_eq!(Limit::of(10, u64::MAX), Limit::Size(64 * MIB));
        assert_eq!(Limit::of(MIB, u64::MAX), Limit::Size(200 * MIB));
        assert_eq!(Limit::of(u64::MAX, u64::MAX), Limit::Size(BYTES_MAX));
        assert_eq!(Limit::of(MIB, 100 * MIB), Limit::Room(36 * MIB));
        assert_eq!(Limit::of(MIB, 10), Limit::Room(0));
    }

    #[test]
    fn exactly_as_much_as_may_come_passes() {
        let (mut counted, exceeded) = Counted::new(&b"12345"[..], 5);
        let mut text = String::new();
        counted.read_to_string(&mut text).expect("all of it");
        assert!(text == "12345" && !exceeded.get());
        let (mut counted, exceeded) = Counted::new(&b"123456"[..], 5);
        assert!(counted.read_to_string(&mut text).is_err() && exceeded.get());
    }
}
