//! Checks of files and file systems. They run beside the others: a file system that hangs holds up nobody.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use fleetwright_deploy::time::Length;
use sha2::{Digest, Sha256};

/// Largest file whose content is hashed, in bytes.
const HASHED_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Passes when a file is as it should be.
pub(super) async fn file(
    path: &str,
    age_max: Option<Length>,
    absent: bool,
    sha256: Option<&str>,
    mode: Option<u32>,
) -> Result<String, String> {
    let (path, sha256) = (path.to_owned(), sha256.map(str::to_owned));
    aside(move || look(&path, age_max, absent, sha256.as_deref(), mode)).await
}

fn look(
    path: &str,
    age_max: Option<Length>,
    absent: bool,
    sha256: Option<&str>,
    mode: Option<u32>,
) -> Result<String, String> {
    let metadata = match fs::metadata(path) {
        Err(error) if absent && error.kind() == io::ErrorKind::NotFound => return Ok(format!("{path} is not there")),
        Ok(_) if absent => return Err(format!("{path} is there")),
        other => other.map_err(|error| format!("{path}: {error}"))?,
    };
    if let Some(age_max) = age_max {
        let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
        if age > Duration::from(age_max) {
            return Err(format!("{path} was last written {} s ago, more than {age_max}", age.as_secs()));
        }
    }
    if let Some(mode) = mode {
        let found = metadata.permissions().mode() & 0o7777;
        if found != mode {
            return Err(format!("{path} has the mode {found:04o}, not {mode:04o}"));
        }
    }
    if let Some(wanted) = sha256 {
        if metadata.len() > HASHED_BYTES_MAX {
            return Err(format!("{path} is larger than {} MiB: it is not hashed", HASHED_BYTES_MAX >> 20));
        }
        let found = hash(Path::new(path)).map_err(|error| format!("{path}: {error}"))?;
        if found != wanted {
            return Err(format!("{path} has the SHA-256 {found}, not {wanted}"));
        }
    }
    Ok(format!("{path} is as it should be"))
}

fn hash(path: &Path) -> io::Result<String> {
    // A pipe that has taken the file's place would be waited for.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file, and has no content"));
    }
    let mut file = file.take(HASHED_BYTES_MAX);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Passes when enough is free.
pub(super) async fn disk(path: &str, free_bytes_min: u64, free_percent_min: u32) -> Result<String, String> {
    let path = path.to_owned();
    aside(move || {
        let stat = rustix::fs::statvfs(&path).map_err(|error| format!("{path}: {error}"))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        // As `df` counts: what only root may use is neither free nor there.
        let there = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_add(stat.f_bavail);
        let percent = stat.f_bavail.saturating_mul(100).checked_div(there).unwrap_or(0);
        let message = format!("{} MiB ({percent}%) are free at {path}", free >> 20);
        if free < free_bytes_min {
            return Err(format!("{message}, {} MiB are wanted", free_bytes_min >> 20));
        }
        if percent < u64::from(free_percent_min) {
            return Err(format!("{message}, {free_percent_min}% are wanted"));
        }
        Ok(message)
    })
    .await
}

async fn aside<T: Send + 'static>(look: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| Err(error.to_string()))
}
