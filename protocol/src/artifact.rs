//! Artifacts: files that the coordinator keeps for its hosts, as content-defined chunks. A host asks for the list of
//! chunks, and then for those that it does not have, so that a changed artifact moves only what changed.
//!
//! Chunks travel and are kept compressed (Zstandard, RFC 8878), and are named after their content, so whoever has one
//! checks it before it is used.

use serde::{Deserialize, Serialize};

/// Largest artifact, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Smallest chunk but the last of an artifact, in bytes.
pub const CHUNK_BYTES_MIN: usize = 32 * 1024;
/// What chunks measure on average, in bytes.
pub const CHUNK_BYTES_AVERAGE: usize = 128 * 1024;
/// Largest chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 512 * 1024;
/// Most entries of a list in one message.
pub const LISTED_MAX: usize = 8_192;
/// Most chunks in one message.
pub const CHUNKS_MAX: usize = 8;
/// Largest frame that carries chunks, in bytes: compression may add a little to what it cannot make smaller.
pub const CHUNKS_BYTES_MAX: usize = CHUNKS_MAX * (CHUNK_BYTES_MAX + 4 * 1024);

/// A chunk, by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// BLAKE3 of its content.
    pub blake3: [u8; 32],
    /// The size of its content, in bytes.
    pub bytes: u32,
}

impl Chunk {
    /// The chunk that has this content.
    pub fn of(content: &[u8]) -> Self {
        Self { blake3: *blake3::hash(content).as_bytes(), bytes: u32::try_from(content.len()).unwrap_or(u32::MAX) }
    }

    /// What it is called on a disk.
    pub fn file_name(&self) -> String {
        format!("{}.zst", blake3::Hash::from_bytes(self.blake3).to_hex())
    }
}

/// A part of an artifact's list of chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// How many chunks the artifact has.
    pub total: u32,
    /// Those from the one that was asked for, at most [`LISTED_MAX`].
    pub chunks: Vec<Chunk>,
}

/// A compressed chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed(#[serde(with = "serde_bytes")] pub Vec<u8>);
