//! The log of a program that nobody else keeps a log for: a file whose content is put aside when it is large, into one
//! older file beside it. The program's own output and errors, such as the words of a panic, go to the same file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The variable that names the file. Without it, the log goes to the standard error, where systemd takes it.
pub const VARIABLE: &str = "FLEETWRIGHT_LOG_FILE";
/// How large the file may become, in bytes; the one that was put aside is about as large.
pub const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Where a program's log goes.
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    /// The log that the environment names, if it names one.
    pub fn of_environment() -> Option<Self> {
        Self::open(Path::new(&std::env::var_os(VARIABLE)?), LOG_BYTES_MAX).ok()
    }

    /// A log of at most so many bytes.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    /// The content moves, the file stays: whoever else writes to the end of it goes on doing so.
    fn put_aside(&mut self) -> io::Result<()> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".1");
        fs::copy(&self.path, aside)?;
        self.file.set_len(0)?;
        self.bytes = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > self.bytes_max {
            // One that cannot be put aside goes on: better a large log than none.
            let _ = self.put_aside();
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_large_is_put_aside_and_there_are_never_more_than_two() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("program.log");
        let mut log = LogFile::open(&path, 1_000).expect("open");
        for n in 0..1_000 {
            writeln!(log, "line {n}").expect("write");
        }
        let files: Vec<u64> = fs::read_dir(folder.path())
            .expect("list")
            .map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len())
            .collect();
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|bytes| *bytes <= 1_000), "{files:?}");
        assert!(fs::read_to_string(&path).expect("read").ends_with("line 999\n"));
        let mut again = LogFile::open(&path, 1_000).expect("open again");
        writeln!(again, "more").expect("write");
        assert!(fs::read_to_string(&path).expect("read").ends_with("line 999\nmore\n"));
    }
}
