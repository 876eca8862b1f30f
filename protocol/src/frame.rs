//! Frames: a length of four bytes (little-endian) and that many bytes of postcard. A frame over its limit is an
//! error before a byte of it is kept, and nothing is set aside for bytes that have not come.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame that carries a command, in bytes: a release with its files.
pub const COMMAND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest frame that carries a report or a reply, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 512 * 1024;
/// Largest frame that asks to enrol, in bytes: a token, and a request for a certificate.
pub const ENROL_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of a frame that are taken from its stream at once.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is larger than its limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The bytes are no message of the expected type.
    #[error("malformed message: {0}")]
    Malformed(#[from] postcard::Error),
    /// Bytes follow the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The stream ended early or was reset.
    #[error("stream: {0}")]
    Read(#[from] quinn::ReadExactError),
    /// The stream was reset or its connection is gone.
    #[error("stream: {0}")]
    Piece(#[from] quinn::ReadError),
    /// The stream takes no more bytes.
    #[error("stream: {0}")]
    Write(#[from] quinn::WriteError),
    /// The stream was ended before.
    #[error("stream: {0}")]
    Closed(#[from] quinn::ClosedStream),
}

/// The bytes of a message; more than `limit` of them are an error.
pub fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_stdvec(message)?;
    if bytes.len() > limit {
        return Err(FrameError::TooLarge { bytes: bytes.len(), limit });
    }
    Ok(bytes)
}

/// The message in these bytes, all of which must belong to it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing(rest.len())) }
}

/// Writes one message and ends the stream.
pub async fn write_frame<T: Serialize>(
    stream: &mut quinn::SendStream,
    message: &T,
    limit: usize,
) -> Result<(), FrameError> {
    let bytes = encode(message, limit)?;
    let length = u32::try_from(bytes.len()).map_err(|_| FrameError::TooLarge { bytes: bytes.len(), limit })?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.finish()?;
    Ok(())
}

/// Reads one message.
pub async fn read_frame<T: DeserializeOwned>(stream: &mut quinn::RecvStream, limit: usize) -> Result<T, FrameError> {
    let bytes = read_length(stream, limit).await?;
    read_payload(stream, bytes).await
}

/// Reads how long a frame is. Nothing of it is kept yet: whoever has little room can wait before it reads on.
pub async fn read_length(stream: &mut quinn::RecvStream, limit: usize) -> Result<usize, FrameError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    length_within(length, limit)
}

/// How long a frame is, by its first four bytes.
pub fn length_within(length: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > limit { Err(FrameError::TooLarge { bytes, limit }) } else { Ok(bytes) }
}

/// Reads the message of a frame whose length was read.
pub async fn read_payload<T: DeserializeOwned>(stream: &mut quinn::RecvStream, bytes: usize) -> Result<T, FrameError> {
    let mut payload = Vec::new();
    while payload.len() < bytes {
        let at_most = PIECE_BYTES_MAX.min(bytes - payload.len());
        let Some(piece) = stream.read_chunk(at_most, true).await? else {
            return Err(quinn::ReadExactError::FinishedEarly(payload.len()).into());
        };
        payload.extend_from_slice(&piece.bytes);
    }
    decode(&payload)
}
