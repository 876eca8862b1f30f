//! What something was when it was looked at.

use rustix::fs::{FileType, Stat};

/// What the kernel says of a file, folder, link, or whatever else it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FileType,
    /// Its permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// How many names it has.
    pub(crate) links: u64,
    pub(crate) bytes: u64,
    /// What it takes up on its disk, in bytes.
    pub(crate) taken_bytes: u64,
    /// When its content was changed last, in nanoseconds since 1970.
    pub(crate) modified_ns: i64,
    /// When anything of it was changed last.
    pub(crate) changed_ns: i64,
}

impl Seen {
    #[expect(clippy::unnecessary_cast, reason = "the widths of these numbers differ between processors")]
    pub(crate) fn of(stat: &Stat) -> Self {
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            taken_bytes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            modified_ns: ns(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed_ns: ns(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// Whether it is the same thing, whatever has become of it since.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.device, self.inode, self.kind) == (other.device, other.inode, other.kind)
    }

    pub(crate) fn is_folder(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    pub(crate) fn is_link(&self) -> bool {
        self.kind == FileType::Symlink
    }

    /// Whether it is a device: what is written to it goes elsewhere.
    pub(crate) fn is_device(&self) -> bool {
        matches!(self.kind, FileType::BlockDevice | FileType::CharacterDevice)
    }
}
