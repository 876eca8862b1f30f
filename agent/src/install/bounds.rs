//! What an install may use. Package clients, and whatever of a package they run, are somebody else's programs: their
//! memory, their processes and what they write have limits, and of what they print the beginning and the end are kept.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::Resources;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::sleep;

use super::STEP;
use super::user::processes_of;
use crate::aside::aside;
use crate::beneath::{DEPTH_MAX, Folder};
use crate::runtime::cgroup::Cgroup;
use crate::stage::remove_folder;

/// What is kept of a client's output: this many bytes from its beginning, and from its end.
const HEAD_BYTES: usize = 64 * 1024;
const TAIL_BYTES: usize = 192 * 1024;
/// How often is looked at what an install uses; less often where looking takes long.
const POLL: Duration = Duration::from_millis(300);
/// How many times as long as it took to look is waited before looking again.
const PAUSES: u32 = 5;
/// What an install leaves free on the disk, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Where everybody may write, whatever else is closed.
const SHARED: [&str; 3] = ["/dev/shm", "/tmp", "/var/tmp"];

/// How much that is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Memory of all of its processes, in bytes; and of each of them, where the kernel does not count them together.
    pub(super) memory_bytes: u64,
    /// Processes and threads at once.
    pub(super) tasks: u32,
    /// What it writes, in bytes, and in how many files and folders.
    pub(super) written_bytes: u64,
    pub(super) files: u64,
}

/// The largest virtual environments and trees of modules are a few GiB, and compilers take as much memory.
pub(super) const BOUNDS: Bounds = Bounds { memory_bytes: 4 << 30, tasks: 512, written_bytes: 8 << 30, files: 500_000 };

/// A control group of an install, where this host has any that can be used.
pub(super) fn group(user: &str, bounds: Bounds) -> Option<Cgroup> {
    let limits = Resources {
        memory_bytes: Some(bounds.memory_bytes),
        cpu_percent: None,
        tasks: Some(bounds.tasks),
        disk_bytes: None,
    };
    let made = Cgroup::named(user).and_then(|group| {
        group.kill_all();
        group.limit(&limits).map(|()| group)
    });
    made.inspect_err(|error| tracing::debug!(%error, "an install is in no control group")).ok()
}

/// What an install is watched by.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) bounds: Bounds,
    /// The user that is this install's alone, where there is one.
    pub(super) uid: Option<u32>,
    /// Whether the kernel counts its memory.
    pub(super) counted: bool,
    /// Where it may write.
    pub(super) folders: Vec<PathBuf>,
}

impl Watch {
    /// Waits until more is used than may be, and says what.
    pub(super) async fn exceeded(&self) -> Failure {
        loop {
            let (watch, begun) = (self.clone(), Instant::now());
            if let Err(failure) = aside(move || watch.look()).await {
                return failure;
            }
            sleep(POLL.max(begun.elapsed() * PAUSES)).await;
        }
    }

    /// Looks once.
    pub(super) fn look(&self) -> Result<(), Failure> {
        let mut used = Used::default();
        for folder in &self.folders {
            if let Ok(folder) = Folder::open(folder) {
                used.count(&folder, 0, self.bounds);
            }
        }
        for stray in self.uid.map(strays).unwrap_or_default() {
            used.files += 1;
            match (stray.is_dir(), Folder::open(&stray)) {
                (true, Ok(folder)) => used.count(&folder, 0, self.bounds),
                _ => used.bytes += fs::symlink_metadata(&stray).map_or(0, |found| found.len()),
            }
        }
        if used.bytes > self.bounds.written_bytes {
            return Err(too_much(&format!("more than {} MiB", self.bounds.written_bytes >> 20)));
        }
        if used.files > self.bounds.files {
            return Err(too_much(&format!("more than {} files and folders", self.bounds.files)));
        }
        let room = self.folders.first().and_then(|folder| rustix::fs::statvfs(folder).ok());
        if room.is_some_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < FREE_BYTES_MIN) {
            let message = format!("the package leaves less than {} MiB free on the disk", FREE_BYTES_MIN >> 20);
            return Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("free some space on the host"));
        }
        match self.uid.filter(|_| !self.counted).map(memory_of) {
            Some(bytes) if bytes > self.bounds.memory_bytes => Err(self.too_much_memory()),
            Some(_) | None => Ok(()),
        }
    }

    /// What is told when the memory was not enough.
    pub(super) fn too_much_memory(&self) -> Failure {
        let message =
            format!("installing the package takes more than {} MiB of memory", self.bounds.memory_bytes >> 20);
        Failure::new(FailureKind::ResourceError, STEP, message).hint(
            "no honest package does: look at what it is, or deploy it as an image or an archive that is made elsewhere",
        )
    }
}

fn too_much(what: &str) -> Failure {
    Failure::new(FailureKind::ResourceError, STEP, format!("installing the package writes {what}")).hint(
        "no honest package does: look at what it is, or deploy it as an image or an archive that is made elsewhere",
    )
}

#[derive(Default)]
struct Used {
    bytes: u64,
    files: u64,
}

impl Used {
    /// Counts what is in a folder that somebody else may be changing. What is too much is not counted to its end.
    fn count(&mut self, folder: &Folder, depth: usize, bounds: Bounds) {
        let Ok(names) = folder.names() else { return };
        for name in names.map_while(Result::ok) {
            if self.bytes > bounds.written_bytes || self.files > bounds.files {
                return;
            }
            let Ok(Some(seen)) = folder.look(&name) else { continue };
            self.files += 1;
            if seen.is_folder() && depth < DEPTH_MAX {
                if let Ok(Some(inner)) = folder.folder(Path::new(&name), &seen) {
                    self.count(&inner, depth + 1, bounds);
                }
            } else if seen.is_file() {
                // A file with holes counts whole: copied, it has none.
                self.bytes = self.bytes.saturating_add(seen.bytes / seen.links.max(1));
            }
        }
    }
}

/// What a user has put where everybody may write.
fn strays(uid: u32) -> Vec<PathBuf> {
    let entries = SHARED.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let own = entries.filter(|entry| entry.metadata().is_ok_and(|found| found.uid() == uid));
    own.map(|entry| entry.path()).collect()
}

/// Removes it; that something stays is no reason to fail.
pub(super) fn remove_strays(uid: u32) {
    for path in strays(uid) {
        let removed = if path.is_dir() && !path.is_symlink() {
            remove_folder(&path)
        } else {
            fs::remove_file(&path).map_err(|error| super::file_failure(&path, &error))
        };
        if let Err(failure) = removed {
            tracing::debug!(%failure, "something that an install has left stays");
        }
    }
}

/// The memory of a user's processes, in bytes.
fn memory_of(uid: u32) -> u64 {
    let pages = |pid: rustix::process::Pid| {
        let text = fs::read_to_string(format!("/proc/{}/statm", pid.as_raw_nonzero())).ok()?;
        let mut numbers = text.split(' ').skip(1).map_while(|number| number.parse::<u64>().ok());
        // What several share is counted once, in none of them.
        Some(numbers.next()?.saturating_sub(numbers.next()?))
    };
    let pages: u64 = processes_of(uid).into_iter().filter_map(pages).sum();
    pages.saturating_mul(rustix::param::page_size() as u64)
}

/// What is kept of a client's output.
#[derive(Default)]
pub(super) struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: usize,
}

impl Kept {
    fn take(&mut self, read: &[u8]) {
        let room = HEAD_BYTES.saturating_sub(self.head.len()).min(read.len());
        self.head.extend_from_slice(&read[..room]);
        self.tail.extend(&read[room..]);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        self.left_out += surplus;
    }

    /// The beginning and the end, with what is between them named.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = self.head.clone();
        if self.left_out > 0 {
            text.extend_from_slice(format!("\n… {} bytes are left out …\n", self.left_out).as_bytes());
        }
        text.extend(&self.tail);
        text
    }
}

/// Reads a client's output to its end, and keeps the beginning and the end of it.
pub(super) async fn keep(mut from: impl AsyncRead + Unpin, kept: &Mutex<Kept>) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        kept.lock().unwrap_or_else(PoisonError::into_inner).take(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(folder: &Path, bounds: Bounds) -> Watch {
        Watch { bounds, uid: None, counted: false, folders: vec![folder.to_owned()] }
    }

    #[test]
    fn what_is_written_is_counted_in_bytes_and_in_files_and_nothing_is_counted_through_a_link() {
        let folder = tempfile::tempdir().expect("folder");
        let (app, other) = (folder.path().join("app"), folder.path().join("other"));
        fs::create_dir_all(app.join("a/b")).expect("folder");
        fs::create_dir_all(&other).expect("folder");
        fs::write(other.join("large"), vec![0; 100_000]).expect("write");
        std::os::unix::fs::symlink(&other, app.join("link")).expect("link");
        fs::write(app.join("a/b/file"), vec![0; 1000]).expect("write");
        let bounds = Bounds { written_bytes: 1000, files: 4, ..BOUNDS };
        watch(&app, bounds).look().expect("it is within its bounds");
        let failure = watch(&app, Bounds { written_bytes: 999, ..bounds }).look().expect_err("bytes");
        assert!(failure.message.contains("writes more than 0 MiB"), "{failure}");
        let failure = watch(&app, Bounds { files: 3, ..bounds }).look().expect_err("files");
        assert!(failure.message.contains("more than 3 files"), "{failure}");
        fs::File::create(app.join("holes")).and_then(|file| file.set_len(1 << 40)).expect("a file with holes");
        assert!(watch(&app, BOUNDS).look().is_err(), "holes count");
    }

    #[tokio::test]
    async fn of_an_endless_output_the_beginning_and_the_end_are_kept() {
        let text: String = (0..1_000_000).map(|n| format!("line {n}\n")).collect();
        let kept = Mutex::default();
        keep(text.as_bytes(), &kept).await.expect("read");
        let kept = kept.into_inner().expect("a lock").text();
        let kept = String::from_utf8_lossy(&kept);
        assert!(kept.len() < HEAD_BYTES + TAIL_BYTES + 100, "{}", kept.len());
        assert!(kept.starts_with("line 0\nline 1\n") && kept.ends_with("line 999999\n"));
        assert!(kept.contains(&format!("… {} bytes are left out …", text.len() - HEAD_BYTES - TAIL_BYTES)));
        let mut short = Kept::default();
        short.take(b"short");
        assert_eq!(short.text(), b"short");
    }
}
