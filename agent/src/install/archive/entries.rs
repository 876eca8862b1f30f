//! What an archive says of its entries in advance: long names (GNU) and records (pax, POSIX.1-2017). They are read here,
//! each no further than its limit: the library would take as much memory as an archive says that they need.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use fleetwright_deploy::failure::Failure;
use tar::{Entry, EntryType};

use super::limits::{PATH_BYTES_MAX, RECORDS_BYTES_MAX};
use super::{refused, unreadable};

/// What was said of the entry to come.
#[derive(Default)]
pub(super) struct Said {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    records: Option<Vec<u8>>,
}

/// An entry by its names.
pub(super) struct Names {
    pub(super) path: PathBuf,
    /// Where it leads, if it is a link.
    pub(super) target: Option<PathBuf>,
}

impl Said {
    /// Takes in what is said of the entry to come; whether this was that, and not an entry itself.
    pub(super) fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, Failure> {
        let (slot, most, what) = match entry.header().entry_type() {
            EntryType::GNULongName => (&mut self.path, PATH_BYTES_MAX + 1, "name"),
            EntryType::GNULongLink => (&mut self.target, PATH_BYTES_MAX + 1, "target of a link"),
            EntryType::XHeader => (&mut self.records, RECORDS_BYTES_MAX, "list of records"),
            EntryType::XGlobalHeader => {
                // Of all entries: comments, mostly. Nothing of it counts here.
                read(entry, RECORDS_BYTES_MAX, "list of records")?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        if slot.is_some() {
            return Err(refused(format!("one entry has two lists of records, or two long ones of its {what}")));
        }
        *slot = Some(read(entry, most, what)?);
        Ok(true)
    }

    /// Whether nothing was said that an entry is still to come for.
    pub(super) fn is_empty(&self) -> bool {
        self.path.is_none() && self.target.is_none() && self.records.is_none()
    }

    /// The names of the entry that all this was said of.
    pub(super) fn names(self, entry: &Entry<'_, impl Read>) -> Result<Names, Failure> {
        let (mut path, mut target) = (self.path.map(without_end), self.target.map(without_end));
        let mut records = self.records.as_deref().unwrap_or_default();
        while let Some((key, value)) = next_record(&mut records)? {
            match key {
                b"path" => path = path.or_else(|| Some(value.to_vec())),
                b"linkpath" => target = target.or_else(|| Some(value.to_vec())),
                // Programs disagree about which of two sizes counts, so one archive would be two.
                b"size" if value != entry.size().to_string().as_bytes() => {
                    return Err(refused("an entry has two sizes".to_owned()));
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(refused("it has a file with holes; make it without (tar's --sparse)".to_owned()));
                }
                _ => {}
            }
        }
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let target = target.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
        Ok(Names { path: checked(path)?, target: target.map(checked).transpose()? })
    }
}

/// The keyword and the value of a record.
type Record<'a> = (&'a [u8], &'a [u8]);

/// The next of the records: its length in decimal digits, a space, the key, `=`, the value, and a line's end.
fn next_record<'a>(records: &mut &'a [u8]) -> Result<Option<Record<'a>>, Failure> {
    if records.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let split = |records: &'a [u8]| {
        let space = records.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let (record, rest) = records.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        Some((&record[..equals], &record[equals + 1..], rest))
    };
    let Some((key, value, rest)) = split(records) else {
        return Err(refused("its records are no records".to_owned()));
    };
    *records = rest;
    Ok(Some((key, value)))
}

fn read(entry: &mut Entry<'_, impl Read>, most: u64, what: &str) -> Result<Vec<u8>, Failure> {
    if entry.size() > most {
        return Err(refused(format!("it has a {what} of {} bytes, and {most} is the most", entry.size())));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// GNU's names end with a zero byte.
fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn checked(name: Vec<u8>) -> Result<PathBuf, Failure> {
    if name.len() as u64 > PATH_BYTES_MAX {
        return Err(refused(format!("it has a path of {} bytes, and {PATH_BYTES_MAX} is the most", name.len())));
    }
    if name.contains(&0) {
        return Err(refused("it has a path with a zero byte in it".to_owned()));
    }
    Ok(PathBuf::from(OsStr::from_bytes(&name)))
}
