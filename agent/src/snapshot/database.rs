//! Dumping a database before a step, and restoring it when the step is undone, by the commands of the definition.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::Database;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::blobs::Blobs;
use super::failed;
use crate::aside::aside;
use crate::confine;
use crate::layout::{ReleaseLayout, ServerLayout};
use crate::process::KillGroup;
use crate::stage;
use crate::supervise::inherited_path;

/// How long a dump or a restore may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How much of a dump is read at once, in bytes, and how many pieces wait to be written.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_MAX: usize = 4;
/// Most of what a command says of an error that is kept, in bytes.
const ERROR_BYTES_MAX: u64 = 16 * 1024;

/// Keeps what the dump command prints; its hash.
pub(super) async fn dump(
    database: &Database,
    server: &ServerLayout,
    release: &ReleaseLayout,
    blobs: &Blobs,
) -> Result<String, Failure> {
    let mut command = prepared(&database.dump, server, release)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| not_started(&database.dump, &error))?;
    let _group = KillGroup::of(child.id());
    let (mut stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ((to_writer, chunks), (whole, is_whole)) = (mpsc::channel(CHUNKS_MAX), oneshot::channel());
    let writing = write(blobs.clone(), chunks, is_whole);
    let dumping = async move {
        let reading = async {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let read = match &mut stdout {
                    Some(stdout) => stdout.read_buf(&mut chunk).await.map_err(failed(Path::new("dump")))?,
                    None => 0,
                };
                if read == 0 {
                    return Ok::<_, Failure>(());
                }
                // Whoever writes it says why it does not any more.
                let unwritten = |_| Failure::new(FailureKind::ResourceError, "dump", "it is not written any more");
                to_writer.send(chunk).await.map_err(unwritten)?;
            }
        };
        let ((), said) = tokio::try_join!(reading, async { Ok(errors(stderr).await) })?;
        ended(&database.dump, child.wait().await, &said, "dump")?;
        let _ = whole.send(());
        Ok(())
    };
    let dumping = async { timeout(COMMAND_TIMEOUT, dumping).await.unwrap_or_else(|_| Err(too_slow(&database.dump))) };
    let (dumped, kept) = tokio::join!(dumping, writing);
    let kept = kept?;
    dumped?;
    kept.ok_or_else(|| Failure::new(FailureKind::DeploymentError, "dump", "it was given up"))
}

/// Keeps what comes, in a thread of its own, once it is known to be whole: otherwise, nothing of it stays.
async fn write(
    blobs: Blobs,
    mut chunks: mpsc::Receiver<Vec<u8>>,
    is_whole: oneshot::Receiver<()>,
) -> Result<Option<String>, Failure> {
    aside(move || {
        let mut fresh = blobs.fresh()?;
        while let Some(chunk) = chunks.blocking_recv() {
            // Blobs are on the same disk as everything else of the agent.
            blobs.check_room(chunk.len() as u64)?;
            fresh.write(&chunk)?;
        }
        is_whole.blocking_recv().ok().map(|()| blobs.finish(fresh)).transpose()
    })
    .await
}

/// Feeds a dump to the restore command.
pub(super) async fn restore(
    words: &[String],
    server: &ServerLayout,
    release: &ReleaseLayout,
    dump: File,
) -> Result<(), Failure> {
    let mut command = prepared(words, server, release)?;
    let mut child = command.stdin(dump).stdout(Stdio::null()).spawn().map_err(|error| not_started(words, &error))?;
    let _group = KillGroup::of(child.id());
    let stderr = child.stderr.take();
    let outcome = timeout(COMMAND_TIMEOUT, async {
        let said = errors(stderr).await;
        ended(words, child.wait().await, &said, "restore")
    });
    outcome.await.map_err(|_| too_slow(words))?
}

/// A command with the environment of a release, in its server's data folder and as its server's user. The host's
/// programs come before those of the package: what is called like a database's tool need not be one.
fn prepared(words: &[String], server: &ServerLayout, of: &ReleaseLayout) -> Result<Command, Failure> {
    let environment = std::fs::read(of.environment()).map_err(failed(&of.environment()))?;
    let environment: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&environment).unwrap_or_default();
    let Some(release) = stage::load(of) else {
        let message = format!("{} holds no release", of.folder().display());
        return Err(Failure::new(FailureKind::DeploymentError, "database", message));
    };
    let path = confine::hosts_path_first(of, &inherited_path());
    confine::find(words.first().map_or("", String::as_str), &path).map_err(|error| not_started(words, &error))?;
    let mut command = confine::beside(server, &release, words, &path)?;
    command.envs(confine::for_program(environment)).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    Ok(command)
}

async fn errors(stderr: Option<tokio::process::ChildStderr>) -> String {
    let mut said = Vec::new();
    if let Some(mut stderr) = stderr {
        let _ = (&mut stderr).take(ERROR_BYTES_MAX).read_to_end(&mut said).await;
        // The rest is read and dropped, so that the command does not wait for ever.
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn ended(
    words: &[String],
    exit: std::io::Result<std::process::ExitStatus>,
    said: &str,
    step: &'static str,
) -> Result<(), Failure> {
    match exit {
        Ok(exit) if exit.success() => Ok(()),
        Ok(exit) => {
            let message = format!("`{}` failed with {exit}", words.first().map_or("", String::as_str));
            Err(Failure::new(FailureKind::ResourceError, step, message)
                .output(said.lines())
                .hint("see its output; `snapshot.database` of the definition has the command"))
        }
        Err(error) => Err(Failure::new(FailureKind::ResourceError, step, error.to_string())),
    }
}

fn not_started(words: &[String], error: &std::io::Error) -> Failure {
    let message = format!("`{}` could not be started: {error}", words.first().map_or("", String::as_str));
    Failure::new(FailureKind::DependencyError, "database", message).hint("install it on the host")
}

fn too_slow(words: &[String]) -> Failure {
    let program = words.first().map_or("", String::as_str);
    let message = format!("`{program}` did not end within {} s", COMMAND_TIMEOUT.as_secs());
    Failure::new(FailureKind::TimeoutError, "database", message)
}
