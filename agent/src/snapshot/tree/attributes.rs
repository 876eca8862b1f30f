//! Extended attributes, read and set by descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, getxattr, listxattr, setxattr};
use rustix::io::Errno;

/// Attributes by name, hexadecimal.
pub(super) type Attributes = BTreeMap<String, String>;

/// Most bytes of all names, and of one value: more is not kept by the kernel.
const BYTES_MAX: usize = 64 * 1024;
/// Room for the names of the few that most have, in bytes.
const FEW_BYTES: usize = 256;

/// Most bytes of the attributes of one tree: they are held in memory, and a name that is one of many of a file holds them
/// as well.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Counts what the attributes of a tree take in memory.
#[derive(Default)]
pub(super) struct Count(usize);

impl Count {
    /// Adds those of one more entry; whether there are too many.
    pub(super) fn is_too_much_with(&mut self, attributes: &Attributes) -> bool {
        self.0 += attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.0 > KEPT_BYTES_MAX
    }
}

/// The attributes of an open file or folder.
pub(super) fn of(fd: impl AsFd) -> io::Result<Attributes> {
    let fd = fd.as_fd();
    read(|names| flistxattr(fd, names), |name, value| fgetxattr(fd, name, value))
}

/// The attributes of what was opened without reading it, as a symbolic link is.
pub(super) fn of_node(fd: impl AsFd) -> io::Result<Attributes> {
    let at = path(fd);
    read(|names| listxattr(&at, names), |name, value| getxattr(&at, name, value))
}

/// Gives an open file or folder attributes.
pub(super) fn set(fd: impl AsFd, attributes: &Attributes) -> io::Result<()> {
    let fd = fd.as_fd();
    set_each(attributes, |name, value| fsetxattr(fd, name, value, XattrFlags::empty()))
}

/// Gives attributes to what was opened without reading it.
pub(super) fn set_node(fd: impl AsFd, attributes: &Attributes) -> io::Result<()> {
    let at = path(fd);
    set_each(attributes, |name, value| setxattr(&at, name, value, XattrFlags::empty()))
}

/// The kernel's own path of a descriptor: it leads to what is open, wherever that is.
fn path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn read(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&str, &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Attributes> {
    // Most have none or few.
    let mut names = vec![0_u8; FEW_BYTES];
    let length = match list(&mut names) {
        Err(Errno::RANGE) => {
            names.resize(BYTES_MAX, 0);
            list(&mut names)?
        }
        // Some file systems have none, and /proc is not everywhere.
        Err(Errno::NOTSUP | Errno::NOENT) => 0,
        other => other?,
    };
    let mut found = Attributes::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        // What the kernel's security modules say of a file is theirs to say.
        if name.starts_with("security.") && name != "security.capability" {
            continue;
        }
        let mut value = vec![0_u8; BYTES_MAX];
        match get(&name, &mut value) {
            Ok(length) => drop(found.insert(name, hex::encode(&value[..length]))),
            // It was removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn set_each(attributes: &Attributes, set: impl Fn(&str, &[u8]) -> Result<(), Errno>) -> io::Result<()> {
    for (name, value) in attributes {
        let value = hex::decode(value).map_err(|_| io::Error::other(format!("the attribute {name} is damaged")))?;
        set(name, &value)?;
    }
    Ok(())
}
