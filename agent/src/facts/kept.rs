//! What programs have answered, with what tells that they are still the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fleetwright_certs::store;
use fleetwright_deploy::host::Version;
use serde::{Deserialize, Serialize};

/// The version of the file. What another one holds is asked again.
const VERSION: u32 = 1;
/// Most bytes of the file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything that was answered, by what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    version: u32,
    pub(super) answers: BTreeMap<String, Answer>,
    /// What was asked and has not answered: that is not known after a restart either.
    #[serde(default)]
    pub(super) silent: BTreeSet<String>,
}

impl Default for Kept {
    fn default() -> Self {
        Self { version: VERSION, answers: BTreeMap::new(), silent: BTreeSet::new() }
    }
}

/// An answer, and the files that it is the answer of: the program first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) of: Vec<Stamp>,
    pub(super) said: Said,
}

/// What a program has said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// It is of no use: it says that it is not what its name promises.
    Nothing,
    /// Its version.
    Version(Version),
    /// An interpreter that makes virtual environments.
    Python {
        /// The program that it says it is.
        program: PathBuf,
        /// Its version.
        version: Version,
    },
    /// A container engine.
    Engine {
        /// Which.
        name: String,
        /// Its version.
        version: Version,
    },
}

/// What tells a file from the one that takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl Stamp {
    /// The file that a path leads to now.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            // When its content is said to be of, whoever puts another one in its place can say as well.
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        })
    }

    fn is_current(&self) -> bool {
        Self::of(&self.path).as_ref() == Some(self)
    }
}

impl Answer {
    /// Whether these files, and those that it has named, are the ones that it is the answer of.
    pub(super) fn is_of(&self, stamps: &[Stamp]) -> bool {
        self.of.starts_with(stamps) && self.of[stamps.len()..].iter().all(Stamp::is_current)
    }
}

impl Kept {
    /// What a file holds; nothing where it is not there or cannot be read, so that everything is asked again.
    pub(super) fn read(file: &Path) -> Option<Self> {
        let size = fs::metadata(file).ok()?.len();
        let read = fs::read(file).map_err(|error| error.to_string());
        let parse = |bytes: Vec<u8>| serde_json::from_slice::<Self>(&bytes).map_err(|error| error.to_string());
        let kept = if size > FILE_BYTES_MAX { Err("it is too large".to_owned()) } else { read.and_then(parse) };
        match kept {
            Ok(kept) if kept.version == VERSION => Some(kept),
            Ok(Self { version, .. }) => {
                tracing::info!(version, "what another version has kept of this host is asked again");
                None
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "what was kept of this host cannot be read; it is asked again");
                None
            }
        }
    }

    /// Writes it, whole and durably or not at all.
    pub(super) fn write(&self, file: &Path) -> Result<(), String> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        store::write_private(file, &bytes).map_err(|error| error.to_string())
    }
}
