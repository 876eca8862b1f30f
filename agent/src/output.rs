//! The output of servers: the last lines of it, read backwards from the end of the log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::beneath::Place;

/// Most bytes that are read from the end of a log for its last lines.
const TAIL_BYTES_MAX: u64 = 256 * 1024;
/// Longest line that is handed on, in characters.
const LINE_CHARACTERS_MAX: usize = 1_000;
/// How many lines are searched for the start of a run.
const LINES_SEARCHED: usize = 500;
/// What a line of the supervisor's own starts with, and what it says when it has stopped the server.
pub(crate) const OWN_LINE: &str = "[fleetwright ";
pub(crate) const STOPPED: &str = "] stopped";

/// The last `lines` lines of a log; none when there is no log.
pub(crate) fn tail(log: &Path, lines: usize) -> Vec<String> {
    let Some((mut file, length)) = open(log) else { return Vec::new() };
    let start = length.saturating_sub(TAIL_BYTES_MAX);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err() || file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().skip(usize::from(start > 0)).collect();
    let first = all.len().saturating_sub(lines);
    all[first..].iter().map(|line| shortened(line)).collect()
}

/// The log, if it is a file: nothing else is read, and a pipe is not waited for.
fn open(log: &Path) -> Option<(File, u64)> {
    let place = Place::own(log).ok()??;
    let seen = place.look().ok()??;
    let file = place.folder.file(Path::new(&place.name), &seen).ok()??;
    Some((file, seen.bytes))
}

/// A line as it is handed on.
pub(crate) fn shortened(line: &str) -> String {
    line.chars().take(LINE_CHARACTERS_MAX).collect()
}

/// The last `lines` lines since the server was stopped the last time: what another release said before is no
/// help with this one.
pub(crate) fn tail_of_this_run(log: &Path, lines: usize) -> Vec<String> {
    let all = tail(log, lines.max(LINES_SEARCHED));
    let start = all.iter().rposition(|line| line.starts_with(OWN_LINE) && line.ends_with(STOPPED)).map_or(0, |n| n + 1);
    let run = &all[start..];
    run[run.len().saturating_sub(lines)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_begins_after_the_server_was_stopped_the_last_time() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("output.log");
        let text = "[fleetwright T] started\nold\n[fleetwright T] stopped\n[fleetwright T] started\nstopped\nnew\n";
        std::fs::write(&log, text).expect("write");
        assert_eq!(tail_of_this_run(&log, 9), ["[fleetwright T] started", "stopped", "new"]);
        assert_eq!(tail_of_this_run(&log, 1), ["new"]);
    }

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
