//! A file of the operator's that becomes an artifact of the coordinator's.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Result;
use flate2::read::MultiGzDecoder;
use futures_util::stream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::api::views::PlanningView;
use crate::artifacts::Artifact;
use crate::client::Client;

/// How much of a file is read at once, in bytes.
const PART_BYTES: usize = 256 * 1024;
/// How many parts are read ahead of those that are sent.
const PARTS_AHEAD: usize = 4;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A file, and the digest that its content had when it was looked at. Archives compressed with gzip are taken without
/// the compression: two builds that differ in little then have most of their chunks in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalArtifact {
    pub(crate) path: PathBuf,
    /// What it is called, for people.
    pub(crate) name: String,
    /// SHA-256 of its content, hexadecimal.
    pub(crate) sha256: String,
    compressed: bool,
}

impl LocalArtifact {
    /// Reads a file whole.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut magic = [0; 2];
        let compressed = File::open(path)?.read(&mut magic)? == 2 && magic == GZIP_MAGIC;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = if compressed { without_gzip(&name) } else { name };
        let mut artifact = Self { path: path.to_owned(), name, sha256: String::new(), compressed };
        let (mut content, mut hasher, mut part) = (artifact.content()?, Sha256::new(), vec![0; PART_BYTES]);
        loop {
            match content.read(&mut part)? {
                0 => break,
                read => hasher.update(&part[..read]),
            }
        }
        artifact.sha256 = hex::encode(hasher.finalize());
        Ok(artifact)
    }

    fn content(&self) -> io::Result<Box<dyn Read + Send>> {
        let file = BufReader::with_capacity(PART_BYTES, File::open(&self.path)?);
        Ok(if self.compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
    }

    /// Sends it to the coordinator.
    pub(crate) async fn push(&self, client: &Client) -> Result<Artifact> {
        let (parts, receiver) = mpsc::channel::<io::Result<Vec<u8>>>(PARTS_AHEAD);
        let mut content = self.content()?;
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                let mut part = vec![0; PART_BYTES];
                let part = match content.read(&mut part) {
                    Ok(0) => return,
                    Ok(read) => {
                        part.truncate(read);
                        Ok(part)
                    }
                    Err(error) => Err(error),
                };
                let failed = part.is_err();
                if parts.blocking_send(part).is_err() || failed {
                    return;
                }
            }
        });
        let body = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let name: String = self.name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        let sent = client.send(&format!("/v1/artifacts/{}?name={name}", self.sha256), body).await;
        reading.abort();
        sent
    }
}

/// Sends those files that the coordinator lacks.
pub(crate) async fn push_missing(local: &[LocalArtifact], client: &Client) -> Result<Vec<Artifact>> {
    if local.is_empty() {
        return Ok(Vec::new());
    }
    let planning: PlanningView = client.get("/v1/planning").await?;
    let mut pushed = Vec::new();
    for local in local.iter().filter(|local| !planning.artifacts.contains(&local.sha256)) {
        pushed.push(local.push(client).await?);
    }
    Ok(pushed)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._+".contains(c)
}

fn without_gzip(name: &str) -> String {
    match (name.strip_suffix(".tgz"), name.strip_suffix(".gz")) {
        (Some(stem), _) => format!("{stem}.tar"),
        (None, Some(stem)) => stem.to_owned(),
        (None, None) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn compression_with_gzip_makes_no_other_artifact() {
        let folder = tempfile::tempdir().expect("folder");
        let (plain, packed) = (folder.path().join("a.tar"), folder.path().join("a.tgz"));
        std::fs::write(&plain, b"content").expect("write");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(b"content").expect("write");
        std::fs::write(&packed, encoder.finish().expect("end")).expect("write");
        let (plain, packed) = (LocalArtifact::read(&plain).expect("read"), LocalArtifact::read(&packed).expect("read"));
        assert_eq!((&plain.name, &plain.sha256), (&packed.name, &packed.sha256));
    }
}
