//! The coordinator's store of artifacts: each cut into content-defined chunks (FastCDC), which are kept compressed and
//! only once, whatever artifacts they belong to.
//!
//! `artifacts/chunks/` holds the chunks by the hash of their content, `artifacts/lists/` what each artifact is made of.
//! A list is written last, so an artifact that has one is whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fastcdc::v2020::StreamCDC;
use fleetwright_certs::store;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::artifact::{
    ARTIFACT_BYTES_MAX, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKS_MAX, Chunk, LISTED_MAX, Listed,
    Packed,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const STEP: &str = "artifacts";
/// Zstandard's own default: higher levels cost much time for little.
const LEVEL: i32 = 3;
/// How many lists are kept in memory: hosts ask for the same few again and again.
const LISTS_KEPT: usize = 8;

/// What is remembered of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    /// SHA-256 of its content, hexadecimal.
    pub(crate) sha256: String,
    /// What it is called, for people.
    pub(crate) name: String,
    /// Its size, in bytes.
    pub(crate) bytes: u64,
    /// How many of its bytes were in no artifact before it.
    pub(crate) new_bytes: u64,
    /// When it came.
    pub(crate) added_at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct List {
    artifact: Artifact,
    chunks: Vec<Chunk>,
}

/// The store.
#[derive(Debug)]
pub(crate) struct Artifacts {
    folder: PathBuf,
    /// Held shared while an artifact is added, and alone while chunks are removed.
    in_use: RwLock<()>,
    lists: Mutex<Vec<Arc<List>>>,
}

impl Artifacts {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, in_use: RwLock::default(), lists: Mutex::default() }
    }

    fn lists_folder(&self) -> PathBuf {
        self.folder.join("lists")
    }

    /// The lists that are whole: one that was being written when the coordinator ended has another ending.
    fn list_files(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(self.lists_folder()).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"))
    }

    fn list_file(&self, sha256: &str) -> PathBuf {
        self.lists_folder().join(format!("{sha256}.json"))
    }

    fn chunk_file(&self, chunk: &Chunk) -> PathBuf {
        self.folder.join("chunks").join(chunk.file_name())
    }

    /// Whether it is there.
    pub(crate) fn has(&self, sha256: &str) -> bool {
        is_sha256(sha256) && self.list_file(sha256).exists()
    }

    /// Everything that is there, the newest first.
    pub(crate) fn all(&self) -> Vec<Artifact> {
        let mut all: Vec<Artifact> =
            self.list_files().filter_map(|path| Some(read_list(&path).ok()?.artifact)).collect();
        all.sort_by(|a, b| (b.added_at, &b.name).cmp(&(a.added_at, &a.name)));
        all
    }

    /// Keeps what comes, if it has the digest that it should. Everything that came before a failure is used by the next
    /// attempt.
    pub(crate) fn add(
        &self,
        name: &str,
        sha256: &str,
        content: impl Read,
        now: Timestamp,
    ) -> Result<Artifact, Failure> {
        let _using = self.in_use.read().unwrap_or_else(PoisonError::into_inner);
        for folder in [self.folder.join("chunks"), self.lists_folder()] {
            fs::create_dir_all(&folder).map_err(failed(&folder))?;
        }
        let (mut hasher, mut chunks, mut bytes, mut new_bytes) = (Sha256::new(), Vec::new(), 0_u64, 0_u64);
        for cut in StreamCDC::new(content, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX) {
            let content = cut.map_err(|error| failed(Path::new(name))(error.into()))?.data;
            bytes += content.len() as u64;
            if bytes > ARTIFACT_BYTES_MAX {
                return Err(refused(format!("{name} is larger than {} MiB", ARTIFACT_BYTES_MAX >> 20)));
            }
            hasher.update(&content);
            let chunk = Chunk::of(&content);
            new_bytes += if self.keep(&chunk, &content)? { content.len() as u64 } else { 0 };
            chunks.push(chunk);
        }
        if chunks.is_empty() {
            return Err(refused(format!("{name} is empty")));
        }
        let found = hex::encode(hasher.finalize());
        if found != sha256 {
            return Err(refused(format!("{name} has the SHA-256 {found}, not {sha256}"))
                .hint("was it changed while it was sent? send it again"));
        }
        let folder = self.folder.join("chunks");
        // Chunks first: a list without them would be worse than none.
        File::open(&folder)
            .and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into))
            .map_err(failed(&folder))?;
        let artifact = Artifact { sha256: found, name: name.to_owned(), bytes, new_bytes, added_at: now };
        let list = List { artifact: artifact.clone(), chunks };
        let file = self.list_file(sha256);
        store::write_private(&file, &serde_json::to_vec(&list).unwrap_or_default())
            .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, error.to_string()))?;
        Ok(artifact)
    }

    /// Keeps a chunk; whether it is new.
    fn keep(&self, chunk: &Chunk, content: &[u8]) -> Result<bool, Failure> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = self.chunk_file(chunk);
        if path.exists() {
            return Ok(false);
        }
        let fresh = path.with_extension(format!("{}.new", COUNT.fetch_add(1, Ordering::Relaxed)));
        let packed = zstd::bulk::compress(content, LEVEL).map_err(failed(&path))?;
        File::create(&fresh)
            .and_then(|mut file| file.write_all(&packed))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|error| {
                let _ = fs::remove_file(&fresh);
                failed(&path)(error)
            })?;
        Ok(true)
    }

    /// Removes artifacts, and the chunks that no other one is made of. Gives those that were there.
    pub(crate) fn remove(&self, unwanted: &[String]) -> Result<Vec<Artifact>, Failure> {
        let _alone = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        let (mut removed, mut needed) = (Vec::new(), BTreeSet::new());
        for path in self.list_files() {
            let list = read_list(&path)?;
            if unwanted.contains(&list.artifact.sha256) {
                fs::remove_file(&path).map_err(failed(&path))?;
                removed.push(list.artifact);
            } else {
                needed.extend(list.chunks.iter().map(Chunk::file_name));
            }
        }
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for entry in fs::read_dir(self.folder.join("chunks")).into_iter().flatten().flatten() {
            if !needed.contains(entry.file_name().to_string_lossy().as_ref()) {
                fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
            }
        }
        Ok(removed)
    }

    fn list(&self, sha256: &str) -> Result<Arc<List>, Failure> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lists.iter().find(|list| list.artifact.sha256 == sha256) {
            return Ok(known.clone());
        }
        if !self.has(sha256) {
            return Err(missing(sha256));
        }
        let list = Arc::new(read_list(&self.list_file(sha256))?);
        if lists.len() >= LISTS_KEPT {
            lists.remove(0);
        }
        lists.push(list.clone());
        Ok(list)
    }

    /// A part of what an artifact is made of.
    pub(crate) fn listed(&self, sha256: &str, from: u32) -> Result<Listed, Failure> {
        let list = self.list(sha256)?;
        let chunks = list.chunks.iter().skip(from as usize).take(LISTED_MAX).copied().collect();
        Ok(Listed { total: u32::try_from(list.chunks.len()).unwrap_or(u32::MAX), chunks })
    }

    /// Chunks of an artifact, as they are kept.
    pub(crate) fn packed(&self, sha256: &str, numbers: &[u32]) -> Result<Vec<Packed>, Failure> {
        if numbers.len() > CHUNKS_MAX {
            return Err(refused(format!("{} chunks in one message are too many", numbers.len())));
        }
        let list = self.list(sha256)?;
        let read = |number: &u32| {
            let chunk = list.chunks.get(*number as usize);
            let chunk = chunk.ok_or_else(|| refused(format!("there is no chunk {number} of {sha256}")))?;
            let path = self.chunk_file(chunk);
            fs::read(&path).map(Packed).map_err(failed(&path))
        };
        numbers.iter().map(read).collect()
    }
}

/// What a release names, and the store lacks.
pub(crate) fn missing(sha256: &str) -> Failure {
    let message = format!("the coordinator has no artifact with the SHA-256 {sha256}");
    Failure::new(FailureKind::DependencyError, STEP, message)
        .hint("`fleetwright artifacts push FILE` sends it; `fleetwright artifacts list` shows what is there")
}

/// Whether a text is a SHA-256 in hexadecimal: only such ones become names of files.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn read_list(path: &Path) -> Result<List, Failure> {
    let bytes = fs::read(path).map_err(failed(path))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(path)(io::Error::other(error)))
}

fn refused(message: String) -> Failure {
    Failure::new(FailureKind::ConfigurationError, STEP, message)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::new(FailureKind::ResourceError, STEP, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        let mut noise = vec![0; bytes];
        hasher.finalize_xof().fill(&mut noise);
        noise
    }

    fn sha256(content: &[u8]) -> String {
        hex::encode(Sha256::digest(content))
    }

    fn unpacked(store: &Artifacts, sha256: &str) -> Vec<u8> {
        let listed = store.listed(sha256, 0).expect("a list");
        let mut content = Vec::new();
        for (number, chunk) in listed.chunks.iter().enumerate() {
            let packed = store.packed(sha256, &[u32::try_from(number).expect("a number")]).expect("a chunk");
            let part = zstd::bulk::decompress(&packed[0].0, chunk.bytes as usize).expect("it unpacks");
            assert_eq!(Chunk::of(&part), *chunk);
            content.extend(part);
        }
        content
    }

    #[test]
    fn a_changed_artifact_adds_what_changed_and_removing_one_keeps_what_others_need() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Artifacts::new(folder.path().join("artifacts"));
        let one = noise(1, 8 << 20);
        let mut two = one.clone();
        two.splice(3 << 20..3 << 20, b"a few bytes more".iter().copied());
        let add = |content: &[u8]| store.add("a", &sha256(content), content, Timestamp::from_unix_ms(1));
        let first = add(&one).expect("added");
        assert_eq!((first.bytes, first.new_bytes), (8 << 20, 8 << 20));
        let second = add(&two).expect("added");
        assert!(second.new_bytes > 0 && second.new_bytes <= 4 * CHUNK_BYTES_MAX as u64, "{}", second.new_bytes);
        assert_eq!(add(&one).expect("again").new_bytes, 0);
        assert!(unpacked(&store, &first.sha256) == one && unpacked(&store, &second.sha256) == two);
        // A coordinator that ended while it wrote a list has left a part of it.
        fs::write(folder.path().join("artifacts/lists").join(format!("{}.json.new", "0".repeat(64))), "{")
            .expect("write");
        assert_eq!(store.remove(std::slice::from_ref(&first.sha256)).expect("removed").len(), 1);
        assert!(unpacked(&store, &second.sha256) == two && !store.has(&first.sha256));
        assert_eq!(store.listed(&first.sha256, 0).expect_err("gone").kind, FailureKind::DependencyError);
        store.remove(&[second.sha256]).expect("removed");
        assert_eq!(fs::read_dir(folder.path().join("artifacts/chunks")).expect("folder").count(), 0);
    }

    #[test]
    fn what_is_not_what_it_should_be_is_not_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Artifacts::new(folder.path().join("artifacts"));
        let wrong = "0".repeat(64);
        let failure = store.add("a", &wrong, &b"content"[..], Timestamp::default()).expect_err("refused");
        assert!(failure.message.contains(&sha256(b"content")) && !store.has(&wrong), "{failure}");
        assert!(store.add("a", &sha256(b""), &b""[..], Timestamp::default()).is_err(), "it is empty");
        assert!(store.all().is_empty());
        for path in ["../../etc/passwd", "", "ABCDEF"] {
            assert!(!store.has(path) && store.listed(path, 0).is_err());
        }
        let content = sha256(b"content");
        store.add("a", &content, &b"content"[..], Timestamp::default()).expect("added");
        assert!(store.packed(&content, &[1]).is_err() && store.packed(&content, &[0; CHUNKS_MAX + 1]).is_err());
    }
}
