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
/// Most chunks of an artifact: all but the last one are at least [`CHUNK_BYTES_MIN`] large.
pub const ARTIFACT_CHUNKS_MAX: usize = (ARTIFACT_BYTES_MAX as usize).div_ceil(CHUNK_BYTES_MIN);
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

/// Why a list of chunks is none that an artifact can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsoundList {
    /// Too many chunks, in one message or in all.
    #[error("the list has more chunks than an artifact may have")]
    TooMany,
    /// The artifact or one of its chunks is too large, or a chunk is empty.
    #[error("the list has sizes that an artifact cannot have")]
    Sizes,
    /// The messages do not go together, or lead nowhere.
    #[error("the parts of the list do not go together")]
    Parts,
}

/// An artifact's list of chunks, as it comes in parts. No part is believed further than it fits.
#[derive(Clone, Debug, Default)]
pub struct ChunkList {
    total: Option<u32>,
    bytes: u64,
    chunks: Vec<Chunk>,
}

impl ChunkList {
    /// Takes in the next part; whether the list is whole with it.
    pub fn take(&mut self, part: Listed) -> Result<bool, UnsoundList> {
        let total = *self.total.get_or_insert(part.total);
        if total as usize > ARTIFACT_CHUNKS_MAX || part.chunks.len() > LISTED_MAX {
            return Err(UnsoundList::TooMany);
        }
        let left = total as usize - self.chunks.len();
        if part.total != total || part.chunks.len() > left || (part.chunks.is_empty() && left > 0) {
            return Err(UnsoundList::Parts);
        }
        for chunk in &part.chunks {
            self.bytes += u64::from(chunk.bytes);
            if chunk.bytes == 0 || chunk.bytes as usize > CHUNK_BYTES_MAX || self.bytes > ARTIFACT_BYTES_MAX {
                return Err(UnsoundList::Sizes);
            }
        }
        self.chunks.extend(part.chunks);
        Ok(self.chunks.len() == total as usize)
    }

    /// Where the next part begins.
    pub fn next(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)
    }

    /// The size of the artifact, as far as it is listed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The chunks, in the artifact's order.
    pub fn into_chunks(self) -> Vec<Chunk> {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(total: u32, sizes: &[u32]) -> Listed {
        Listed { total, chunks: sizes.iter().map(|bytes| Chunk { blake3: [0; 32], bytes: *bytes }).collect() }
    }

    #[test]
    fn a_list_comes_in_parts_that_fit() {
        let mut list = ChunkList::default();
        assert_eq!(list.take(part(3, &[10, 20])), Ok(false));
        assert_eq!(list.next(), 2);
        assert_eq!(list.take(part(3, &[30])), Ok(true));
        assert_eq!((list.bytes(), list.into_chunks().len()), (60, 3));
        assert_eq!(ChunkList::default().take(part(0, &[])), Ok(true), "an empty artifact");
    }

    #[test]
    fn a_list_that_no_artifact_has_is_refused() {
        let chunk = CHUNK_BYTES_MAX as u32;
        let cases: [(&[Listed], UnsoundList); 8] = [
            (&[part(u32::MAX, &[1])], UnsoundList::TooMany),
            (&[part(100_000, &vec![1; LISTED_MAX + 1])], UnsoundList::TooMany),
            (&[part(2, &[])], UnsoundList::Parts),
            (&[part(1, &[1, 1])], UnsoundList::Parts),
            (&[part(3, &[1]), part(4, &[1])], UnsoundList::Parts),
            (&[part(1, &[0])], UnsoundList::Sizes),
            (&[part(1, &[chunk + 1])], UnsoundList::Sizes),
            (&[part(8193, &vec![chunk; 8192]), part(8193, &[1])], UnsoundList::Sizes),
        ];
        for (parts, why) in cases {
            let mut list = ChunkList::default();
            let taken: Result<Vec<bool>, UnsoundList> = parts.iter().map(|part| list.take(part.clone())).collect();
            assert_eq!(taken, Err(why));
        }
    }
}
