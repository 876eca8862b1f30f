//! The output of servers: the last lines of it, read backwards from the end of the log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes that are read from the end of a log for its last lines.
const TAIL_BYTES_MAX: u64 = 256 * 1024;
/// Longest line that is handed on, in characters.
const LINE_CHARACTERS_MAX: usize = 1_000;

/// The last `lines` lines of a log; none when there is no log.
pub(crate) fn tail(log: &Path, lines: usize) -> Vec<String> {
    let Ok(mut file) = File::open(log) else { return Vec::new() };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let start = length.saturating_sub(TAIL_BYTES_MAX);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err() || file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().skip(usize::from(start > 0)).collect();
    let first = all.len().saturating_sub(lines);
    all[first..].iter().map(|line| line.chars().take(LINE_CHARACTERS_MAX).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_whole_lines_even_of_a_large_log() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("output.log");
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&log, text).expect("write");
        assert_eq!(tail(&log, 2), ["line 99998", "line 99999"]);
        assert!(tail(&log, 1_000_000).iter().all(|line| line.starts_with("line ")));
        assert!(tail(&folder.path().join("none"), 5).is_empty());
    }
}
