//! Fetching an artifact from the coordinator: the list of its chunks, and those of them that this host lacks. Chunks stay
//! for as long as a release that is made of them does, so the next artifact moves only what changed in it, and a fetch
//! that was cut goes on where it was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_protocol::artifact::{CHUNKS_BYTES_MAX, CHUNKS_MAX, Chunk, ChunkList, Packed};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply};
use fleetwright_protocol::{read_frame, write_frame};
use futures_util::{StreamExt, TryStreamExt, stream};
use quinn::Connection;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{STEP, file_failure};
use crate::aside::aside;
use crate::layout::Layout;

/// How many messages for chunks are on their way at once.
const REQUESTS_MAX: usize = 3;
/// How long one answer may take: eight chunks over a slow link.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection to the coordinator is waited for.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a message is sent again over a newer connection.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// What fetching leaves free on the disk, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// The coordinator as a source of artifacts.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    layout: Layout,
    connection: watch::Receiver<Option<Connection>>,
}

impl Artifacts {
    /// Artifacts that come over the newest of these connections, with chunks in the blobs of this layout.
    pub(crate) fn new(layout: Layout, connection: watch::Receiver<Option<Connection>>) -> Self {
        Self { layout, connection }
    }

    /// Where what is fetched is kept.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fetches an artifact to a file, and keeps the list of its chunks in another. The file's digest is still to be
    /// checked: only then is it what the release names.
    pub(super) async fn fetch(&self, sha256: &str, to: &Path, list: &Path) -> Result<(), Failure> {
        let _using = self.layout.use_blobs().await;
        let list_of = self.list(sha256).await?;
        let (bytes, chunks) = (list_of.bytes(), list_of.into_chunks());
        let blobs = self.layout.blobs();
        fs::create_dir_all(&blobs).map_err(|error| file_failure(&blobs, &error))?;
        let mut seen = BTreeSet::new();
        let lacking = (0_u32..).zip(&chunks);
        let lacking = lacking.filter(|(_, chunk)| seen.insert(chunk.blake3) && !blobs.join(chunk.file_name()).exists());
        let lacking: Vec<(u32, Chunk)> = lacking.map(|(number, chunk)| (number, *chunk)).collect();
        let new: u64 = lacking.iter().map(|(_, chunk)| u64::from(chunk.bytes)).sum();
        check_room(&blobs, bytes + new)?;
        tracing::info!(sha256, bytes, new, "an artifact is fetched");
        let parts: Vec<Vec<(u32, Chunk)>> = lacking.chunks(CHUNKS_MAX).map(<[_]>::to_vec).collect();
        let fetched = stream::iter(parts).map(|part| self.clone().get(sha256.to_owned(), part));
        fetched.buffer_unordered(REQUESTS_MAX).try_collect::<()>().await?;
        let (to, list) = (to.to_owned(), list.to_owned());
        aside(move || {
            assemble(&chunks, &blobs, &to)?;
            let text = serde_json::to_vec(&chunks).unwrap_or_default();
            fs::write(&list, text).map_err(|error| file_failure(&list, &error))
        })
        .await
    }

    async fn list(&self, sha256: &str) -> Result<ChunkList, Failure> {
        let mut list = ChunkList::default();
        loop {
            let message = AgentMessageV1::ListChunks { sha256: sha256.to_owned(), from: list.next() };
            let CoordinatorReply::Listed(part) = self.ask(message).await? else {
                return Err(refused("the coordinator gives no list of chunks".to_owned()));
            };
            let whole = list.take(part);
            if whole.map_err(|error| refused(format!("the coordinator gives no sound list of chunks: {error}")))? {
                return Ok(list);
            }
        }
    }

    /// Fetches a few chunks into the blobs.
    async fn get(self, sha256: String, wanted: Vec<(u32, Chunk)>) -> Result<(), Failure> {
        let numbers = wanted.iter().map(|(number, _)| *number).collect();
        let message = AgentMessageV1::GetChunks { sha256, numbers };
        let CoordinatorReply::Chunks(packed) = self.ask(message).await? else {
            return Err(refused("the coordinator gives no chunks".to_owned()));
        };
        if packed.len() != wanted.len() {
            return Err(refused("the coordinator gives other chunks than were asked for".to_owned()));
        }
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let blobs = self.layout.blobs();
        aside(move || {
            for ((_, chunk), Packed(packed)) in wanted.iter().zip(packed) {
                unpack(chunk, &packed)?;
                let path = blobs.join(chunk.file_name());
                // Another artifact that is fetched at the same time may have the same chunk.
                let fresh = path.with_extension(format!("{}.new", COUNT.fetch_add(1, Ordering::Relaxed)));
                let kept = fs::write(&fresh, &packed).and_then(|()| fs::rename(&fresh, &path));
                kept.map_err(|error| file_failure(&path, &error))?;
            }
            Ok(())
        })
        .await
    }

    /// Sends a message, over a newer connection where the one before is gone.
    async fn ask(&self, message: AgentMessageV1) -> Result<CoordinatorReply, Failure> {
        let mut connections = self.connection.clone();
        let mut last = "there is no connection to the coordinator".to_owned();
        for _ in 0..ATTEMPTS_MAX {
            let open = connections.wait_for(|connection| {
                connection.as_ref().is_some_and(|connection| connection.close_reason().is_none())
            });
            let Ok(Ok(connection)) = timeout(CONNECTION_TIMEOUT, open).await.map(|found| found.map(|c| c.clone()))
            else {
                break;
            };
            let Some(connection) = connection else { break };
            match timeout(EXCHANGE_TIMEOUT, exchange(&connection, message.clone())).await {
                Ok(Ok(CoordinatorReply::Refused(why))) => {
                    return Err(Failure::new(FailureKind::DependencyError, STEP, why)
                        .hint("`fleetwright artifacts list` shows what the coordinator has"));
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => last = format!("{error:#}"),
                Err(_) => last = format!("no answer within {} s", EXCHANGE_TIMEOUT.as_secs()),
            }
            sleep(PAUSE).await;
        }
        Err(Failure::new(
            FailureKind::NetworkError,
            STEP,
            format!("the coordinator does not give the artifact: {last}"),
        )
        .hint("check the connection between this host and the coordinator; then deploy again"))
    }
}

async fn exchange(connection: &Connection, message: AgentMessageV1) -> anyhow::Result<CoordinatorReply> {
    let (mut send, mut receive) = connection.open_bi().await?;
    write_frame(&mut send, &AgentMessage::V1(message), MESSAGE_BYTES_MAX).await?;
    Ok(read_frame(&mut receive, CHUNKS_BYTES_MAX).await?)
}

/// The content of a chunk, checked: no more than it should be, and exactly that.
fn unpack(chunk: &Chunk, packed: &[u8]) -> Result<Vec<u8>, Failure> {
    let content = zstd::bulk::decompress(packed, chunk.bytes as usize);
    let content = content.map_err(|error| refused(format!("a chunk cannot be unpacked: {error}")))?;
    if Chunk::of(&content) != *chunk {
        return Err(refused("a chunk has another content than its name says".to_owned()));
    }
    Ok(content)
}

/// Writes chunks one after the other. One that is damaged on this disk is removed, so that it is fetched again.
fn assemble(chunks: &[Chunk], blobs: &Path, to: &Path) -> Result<(), Failure> {
    let fail = |error| file_failure(to, &error);
    let mut file = File::create(to).map_err(fail)?;
    for chunk in chunks {
        let path = blobs.join(chunk.file_name());
        let packed = fs::read(&path).map_err(|error| file_failure(&path, &error))?;
        let content = unpack(chunk, &packed).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
        file.write_all(&content).map_err(fail)?;
    }
    file.sync_all().map_err(fail)
}

fn check_room(folder: &Path, bytes: u64) -> Result<(), Failure> {
    let stat = rustix::fs::statvfs(folder).map_err(|error| file_failure(folder, &error.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free.saturating_sub(FREE_BYTES_MIN) >= bytes {
        return Ok(());
    }
    let message = format!("the artifact needs {} MiB, {} MiB are free", bytes.div_ceil(1 << 20), free >> 20);
    Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("free some space on the host"))
}

fn refused(message: String) -> Failure {
    Failure::new(FailureKind::PermissionError, STEP, message)
        .hint("are agent and coordinator of versions that fit, and is the coordinator's disk sound?")
}

/// The files of the blobs that a release's list of chunks needs.
pub(crate) fn listed(list: &[u8]) -> serde_json::Result<Vec<String>> {
    let chunks: Vec<Chunk> = serde_json::from_slice(list)?;
    Ok(chunks.iter().map(Chunk::file_name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_taken_only_for_what_it_is() {
        let content = vec![7_u8; 100_000];
        let packed = zstd::bulk::compress(&content, 3).expect("packed");
        let chunk = Chunk::of(&content);
        assert_eq!(unpack(&chunk, &packed).expect("it unpacks"), content);
        let smaller = Chunk { bytes: 10, ..chunk };
        assert!(unpack(&smaller, &packed).is_err(), "a bomb");
        let other = Chunk::of(&vec![8_u8; 100_000]);
        assert!(unpack(&other, &packed).is_err() && unpack(&chunk, b"rubbish").is_err());
    }

    #[test]
    fn a_chunk_that_is_damaged_on_the_disk_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let chunk = Chunk::of(b"content");
        let (path, to) = (folder.path().join(chunk.file_name()), folder.path().join("whole"));
        fs::write(&path, b"rubbish").expect("write");
        assert!(assemble(&[chunk], folder.path(), &to).is_err() && !path.exists());
        fs::write(&path, zstd::bulk::compress(b"content", 3).expect("packed")).expect("write");
        assemble(&[chunk, chunk], folder.path(), &to).expect("it is whole");
        assert_eq!(fs::read(&to).expect("read"), b"contentcontent");
    }
}
