//! Artifacts: sending, listing and removing them.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path as UrlPath, State};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::fleet::FleetEvent;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Answer, Api, Peer, Queried, Refusal, decide};
use crate::artifacts::{Artifact, is_sha256, missing};
use crate::clock;

/// How many parts of a body wait to be written.
const PARTS_WAITING: usize = 8;
/// How long nothing may arrive of a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest name of an artifact, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// An artifact, and whether something runs that is made of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct ArtifactRow {
    #[serde(flatten)]
    pub(crate) artifact: Artifact,
    pub(crate) in_use: bool,
}

#[derive(Deserialize)]
pub(super) struct Named {
    name: String,
}

/// Artifacts that are to be removed.
#[derive(Serialize, Deserialize)]
pub(crate) struct RemoveRequest {
    pub(crate) sha256: Vec<String>,
}

pub(super) async fn list(State(api): State<Api>) -> Answer<Vec<ArtifactRow>> {
    let used = in_use(&api);
    let store = api.artifacts.clone();
    let all = aside(move || Ok(store.all())).await?;
    let rows = all.into_iter().map(|artifact| ArtifactRow { in_use: used.contains(&artifact.sha256), artifact });
    Ok(Json(rows.collect()))
}

pub(super) async fn add(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    UrlPath(sha256): UrlPath<String>,
    Queried(Named { name }): Queried<Named>,
    body: Body,
) -> Answer<Artifact> {
    let wrong = |message: &str| Refusal(Failure::new(FailureKind::ConfigurationError, "artifacts", message));
    if !is_sha256(&sha256) {
        return Err(wrong("a SHA-256 is 64 lower-case hexadecimal digits"));
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(wrong("an artifact has a name of at most 256 bytes"));
    }
    let (parts, receiver) = mpsc::channel(PARTS_WAITING);
    let store = api.artifacts.clone();
    let adding = aside(move || store.add(&name, &sha256, Parts { receiver, part: Bytes::new() }, clock::now()));
    let receiving = async {
        let mut body = body.into_data_stream();
        loop {
            let part = match timeout(STALL_TIMEOUT, body.next()).await {
                Ok(None) => break,
                Ok(Some(part)) => part.map_err(io::Error::other),
                Err(_) => Err(io::Error::other("nothing more arrives")),
            };
            let failed = part.is_err();
            if parts.send(part).await.is_err() || failed {
                break;
            }
        }
        // The store learns from this that there is no more.
        drop(parts);
    };
    let (added, ()) = tokio::join!(adding, receiving);
    let added = added?;
    // Should there be no entry of it, whoever sends it again makes one.
    let event = FleetEvent::ArtifactAdded { sha256: added.sha256.clone(), name: added.name.clone() };
    decide(&api, peer, event).await?;
    Ok(Json(added))
}

pub(super) async fn remove(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(RemoveRequest { sha256 }): Json<RemoveRequest>,
) -> Answer<Vec<Artifact>> {
    if let Some(unknown) = sha256.iter().find(|sha256| !api.artifacts.has(sha256)) {
        return Err(Refusal(missing(unknown)));
    }
    // The engine refuses it where something uses them, also what is only about to begin. What was not removed after all, as
    // by an end in the midst, is removed by asking again.
    let event = FleetEvent::ArtifactsRemoved { sha256: sha256.iter().cloned().collect() };
    decide(&api, peer, event).await?;
    let store = api.artifacts.clone();
    aside(move || store.remove(&sha256)).await.map(Json)
}

fn in_use(api: &Api) -> BTreeSet<String> {
    api.engine.read(|view| view.fleet.artifacts().into_iter().map(str::to_owned).collect())
}

/// Work that waits for disks, beside everything else.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Refusal),
        Err(error) => Err(Refusal(Failure::new(FailureKind::ResourceError, "artifacts", error.to_string()))),
    }
}

/// The parts of a body, as something that can be read.
struct Parts {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    part: Bytes,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(part) => self.part = part?,
            }
        }
        let read = self.part.len().min(buffer.len());
        buffer[..read].copy_from_slice(&self.part.split_to(read));
        Ok(read)
    }
}
