//! Fetching a file by its URL. What was fetched before a cut is not fetched again, and what comes must have the digest
//! that the release names.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use reqwest::header::RANGE;
use reqwest::{Client, Response, StatusCode};
use rustix::fs::{OFlags, statvfs};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::{STEP, file_failure};
use crate::aside::aside;
use crate::check::chain;

/// Answers of a server that may answer otherwise soon.
const PASSING: [StatusCode; 2] = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
/// Largest file that is fetched, in bytes.
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// How often fetching goes on after a cut, and the first pause before it does; it doubles.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// How long nothing may arrive.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long all of it may take.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(6 * 3_600);
/// What is left free on the disk, in bytes, and after how many bytes that is looked at.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
const ROOM_LOOKED_AT: u64 = 8 * 1024 * 1024;

/// Fetches `url` to `path`, and checks its SHA-256.
pub(super) async fn download(url: &str, sha256: &str, path: &Path) -> Result<(), Failure> {
    if let Some(local) = url.strip_prefix("file://") {
        let (from, to) = (PathBuf::from(local), path.to_owned());
        aside(move || copy(&from, &to)).await?;
    } else {
        fetch(url, path).await?;
    }
    check_digest(url, sha256, path).await
}

/// Checks the SHA-256 of a file that came from `url`. One that has another does not stay.
pub(super) async fn check_digest(url: &str, sha256: &str, path: &Path) -> Result<(), Failure> {
    let (of, path) = (url.to_owned(), path.to_owned());
    let sha256 = sha256.to_owned();
    aside(move || check(&of, &sha256, &path)).await
}

/// Copies a file of the host's. Only a plain file has an end.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let of = |error: std::io::Error| {
        file_failure(from, &error).hint("see that the file is there on every host, and that the agent may read it")
    };
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut opened = OpenOptions::new().read(true).custom_flags(flags).open(from).map_err(of)?;
    if !opened.metadata().map_err(of)?.is_file() {
        return Err(of(std::io::Error::other("it is no plain file")));
    }
    let mut made = File::create(to).map_err(|error| file_failure(to, &error))?;
    std::io::copy(&mut opened, &mut made).map_err(|error| file_failure(to, &error))?;
    made.sync_all().map_err(|error| file_failure(to, &error))
}

async fn fetch(url: &str, path: &Path) -> Result<(), Failure> {
    let failed = |kind, why: String| Failure::new(kind, STEP, format!("{url}: {why}"));
    let took_too_long = |_| {
        let why = format!("it has not come whole in {} hours", TOTAL_TIMEOUT.as_secs() / 3_600);
        failed(FailureKind::NetworkError, why).hint("fetch it yourself, and push it: `fleetwright artifacts push`")
    };
    timeout(TOTAL_TIMEOUT, fetch_in_parts(url, path)).await.map_err(took_too_long)?
}

async fn fetch_in_parts(url: &str, path: &Path) -> Result<(), Failure> {
    let failed = |kind, why: String| Failure::new(kind, STEP, format!("{url}: {why}"));
    let client = Client::builder().connect_timeout(STALL_TIMEOUT).build();
    let client = client.map_err(|error| failed(FailureKind::NetworkError, chain(&error)))?;
    let have = || fs::metadata(path).map_or(0, |metadata| metadata.len());
    let (mut pause, mut last) = (PAUSE, String::new());
    let mut attempt = 0;
    while attempt < ATTEMPTS_MAX {
        let before = have();
        match go_on(&client, url, path).await {
            Ok(()) => return Ok(()),
            Err(Cut::Final(failure)) => return Err(*failure),
            Err(Cut::Again(why)) => last = why,
        }
        // What comes in many small parts comes all the same.
        if have() > before.saturating_add(ROOM_LOOKED_AT) {
            (attempt, pause) = (0, PAUSE);
        }
        attempt += 1;
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

impl Cut {
    fn hinted(self, hint: &str) -> Self {
        match self {
            Self::Final(failure) => Self::Final(Box::new(failure.hint(hint))),
            again @ Self::Again(_) => again,
        }
    }
}

/// Whether the disk has room for more, besides what other servers and the agent itself need.
fn has_room(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(path);
    let stat = statvfs(folder).map_err(|error| file_failure(folder, &error.into()))?;
    if stat.f_bavail.saturating_mul(stat.f_frsize) >= FREE_BYTES_MIN {
        return Ok(());
    }
    let _ = fs::remove_file(path);
    let message = format!("the download leaves less than {} MiB free on the disk", FREE_BYTES_MIN >> 20);
    Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("free some space on the host; then deploy again"))
}

/// Fetches what is still missing.
async fn go_on(client: &Client, url: &str, path: &Path) -> Result<(), Cut> {
    // Where a redirection leads may be signed.
    let again = |error: reqwest::Error| Cut::Again(chain(&error.without_url()));
    let stop = |kind, why: String| Cut::Final(Box::new(Failure::new(kind, STEP, format!("{url}: {why}"))));
    let have = fs::metadata(path).map_or(0, |metadata| metadata.len());
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let answered = timeout(STALL_TIMEOUT, request.send()).await.map_err(|_| Cut::Again("no answer".to_owned()))?;
    let mut response: Response = answered.map_err(again)?;
    let status = response.status();
    let mut file = match status {
        StatusCode::PARTIAL_CONTENT => OpenOptions::new().append(true).open(path),
        // All of it is there already.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(()),
        status if status.is_success() => File::create(path),
        status if status.is_server_error() || PASSING.contains(&status) => {
            return Err(Cut::Again(format!("the server answers {status}")));
        }
        status => {
            let refused = stop(FailureKind::DependencyError, format!("the server answers {status}"));
            return Err(refused
                .hinted("see that the URL in the definition is right, and that it can be read without logging in"));
        }
    }
    .map_err(|error| Cut::Final(Box::new(file_failure(path, &error))))?;
    let mut total = file.metadata().map_or(0, |metadata| metadata.len());
    let mut looked_at = total;
    loop {
        let chunk =
            timeout(STALL_TIMEOUT, response.chunk()).await.map_err(|_| Cut::Again("nothing arrives".to_owned()))?;
        let Some(chunk) = chunk.map_err(again)? else { break };
        total = total.saturating_add(chunk.len() as u64);
        if total > BYTES_MAX {
            let large = stop(FailureKind::ResourceError, format!("it is larger than {} MiB", BYTES_MAX >> 20));
            return Err(large.hinted("deploy something smaller: nothing larger is fetched"));
        }
        if total >= looked_at {
            has_room(path).map_err(|failure| Cut::Final(Box::new(failure)))?;
            looked_at = total.saturating_add(ROOM_LOOKED_AT);
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
        // What has no end is not waited for.
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("fifo");
        for (odd, why) in [(&fifo, "no plain file"), (&folder.path().join("none"), "No such file")] {
            let failure = download(&format!("file://{}", odd.display()), &digest, &path).await.expect_err("refused");
            assert!(failure.message.contains(why) && failure.hint.is_some(), "{failure}");
        }
        let failure = download(&url, &"0".repeat(64), &path).await.expect_err("refused");
        assert!(failure.kind == FailureKind::PermissionError && failure.message.contains(&digest), "{failure}");
        assert!(!path.exists(), "what is not right does not stay");
    }
}
