//! Fetching a file by its URL. What was fetched before a cut is not fetched again, and what comes must have the digest
//! that the release names.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use reqwest::header::RANGE;
use reqwest::{Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::{STEP, file_failure};
use crate::check::chain;

/// Largest file that is fetched, in bytes.
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// How often fetching goes on after a cut, and the first pause before it does; it doubles.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// How long nothing may arrive.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Fetches `url` to `path`, and checks its SHA-256.
pub(super) async fn download(url: &str, sha256: &str, path: &Path) -> Result<(), Failure> {
    if let Some(local) = url.strip_prefix("file://") {
        fs::copy(local, path).map_err(|error| file_failure(Path::new(local), &error))?;
    } else {
        fetch(url, path).await?;
    }
    check_digest(url, sha256, path).await
}

/// Checks the SHA-256 of a file that came from `url`. One that has another does not stay.
pub(super) async fn check_digest(url: &str, sha256: &str, path: &Path) -> Result<(), Failure> {
    let (of, path) = (url.to_owned(), path.to_owned());
    let sha256 = sha256.to_owned();
    let checked = tokio::task::spawn_blocking(move || check(&of, &sha256, &path)).await;
    checked.unwrap_or_else(|error| Err(Failure::new(FailureKind::DeploymentError, STEP, error.to_string())))
}

async fn fetch(url: &str, path: &Path) -> Result<(), Failure> {
    let failed = |kind, why: String| Failure::new(kind, STEP, format!("{url}: {why}"));
    let client = Client::builder().connect_timeout(STALL_TIMEOUT).build();
    let client = client.map_err(|error| failed(FailureKind::NetworkError, chain(&error)))?;
    let mut pause = PAUSE;
    let mut last = String::new();
    for _ in 0..ATTEMPTS_MAX {
        match go_on(&client, url, path).await {
            Ok(()) => return Ok(()),
            Err(Cut::Final(failure)) => return Err(*failure),
            Err(Cut::Again(why)) => last = why,
        }
        sleep(pause).await;
        pause *= 2;
    }
    Err(failed(FailureKind::NetworkError, format!("{last} ({ATTEMPTS_MAX} attempts)"))
        .hint("check the host's connection and proxy settings; then deploy again"))
}

/// Why fetching has stopped.
enum Cut {
    /// It may go on.
    Again(String),
    /// It must not.
    Final(Box<Failure>),
}

/// Fetches what is still missing.
async fn go_on(client: &Client, url: &str, path: &Path) -> Result<(), Cut> {
    let again = |error: &reqwest::Error| Cut::Again(chain(error));
    let stop = |kind, why: String| Cut::Final(Box::new(Failure::new(kind, STEP, format!("{url}: {why}"))));
    let have = fs::metadata(path).map_or(0, |metadata| metadata.len());
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let answered = timeout(STALL_TIMEOUT, request.send()).await.map_err(|_| Cut::Again("no answer".to_owned()))?;
    let mut response: Response = answered.map_err(|error| again(&error))?;
    let status = response.status();
    let mut file = match status {
        StatusCode::PARTIAL_CONTENT => OpenOptions::new().append(true).open(path),
        // All of it is there already.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(()),
        status if status.is_success() => File::create(path),
        status if status.is_server_error() => return Err(Cut::Again(format!("the server answers {status}"))),
        status => return Err(stop(FailureKind::DependencyError, format!("the server answers {status}"))),
    }
    .map_err(|error| Cut::Final(Box::new(file_failure(path, &error))))?;
    let mut total = file.metadata().map_or(0, |metadata| metadata.len());
    loop {
        let chunk =
            timeout(STALL_TIMEOUT, response.chunk()).await.map_err(|_| Cut::Again("nothing arrives".to_owned()))?;
        let Some(chunk) = chunk.map_err(|error| again(&error))? else { break };
        total = total.saturating_add(chunk.len() as u64);
        if total > BYTES_MAX {
            return Err(stop(FailureKind::ResourceError, format!("it is larger than {} MiB", BYTES_MAX >> 20)));
        }
        file.write_all(&chunk).map_err(|error| Cut::Final(Box::new(file_failure(path, &error))))?;
    }
    file.sync_all().map_err(|error| Cut::Final(Box::new(file_failure(path, &error))))
}

fn check(url: &str, sha256: &str, path: &Path) -> Result<(), Failure> {
    let mut file = File::open(path).map_err(|error| file_failure(path, &error))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer).map_err(|error| file_failure(path, &error))? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    let found = hex::encode(hasher.finalize());
    if found == sha256 {
        return Ok(());
    }
    let _ = fs::remove_file(path);
    let message = format!("{url} has the SHA-256 {found}, not {sha256}");
    Err(Failure::new(FailureKind::PermissionError, STEP, message)
        .hint("somebody has changed the file, or the definition names the digest of another one"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const CONTENT: &[u8] = b"0123456789abcdef";

    /// Serves the content; the first answer is cut in its midst. Gives the URL, and what was asked for.
    async fn serve() -> (String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/file", listener.local_addr().expect("address"));
        let asked = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let log = asked.clone();
        tokio::spawn(async move {
            let mut first = true;
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
                let from = request
                    .lines()
                    .find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
                log.lock().expect("lock").push(from.map_or_else(|| "all".to_owned(), |from| format!("from {from}")));
                let rest = &CONTENT[from.unwrap_or(0)..];
                let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len());
                let _ = stream.write_all(head.as_bytes()).await;
                let sent = if first { &rest[..6] } else { rest };
                let _ = stream.write_all(sent).await;
                first = false;
            }
        });
        (url, asked)
    }

    #[tokio::test]
    async fn a_download_goes_on_where_it_was_cut_and_another_digest_is_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("file");
        let (url, asked) = serve().await;
        let digest = hex::encode(Sha256::digest(CONTENT));
        download(&url, &digest, &path).await.expect("it comes");
        assert_eq!(fs::read(&path).expect("read"), CONTENT);
        assert_eq!(*asked.lock().expect("lock"), ["all", "from 6"]);
        fs::remove_file(&path).expect("remove");
        let failure = download(&url, &"0".repeat(64), &path).await.expect_err("refused");
        assert!(failure.kind == FailureKind::PermissionError && failure.message.contains(&digest), "{failure}");
        assert!(!path.exists(), "what is not right does not stay");
    }
}
