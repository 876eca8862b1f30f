//! Pages of the program itself: what a start or a deployment has touched need not stay mapped for months.
//!
//! The kernel keeps such pages in its cache as long as there is room, and maps them again when they are needed; but as long
//! as nothing else wants the memory, it never unmaps what a process has once touched.

use std::fs;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// How long after a start pages are given back for the first time: everything has been begun by then.
const AFTER_START: Duration = Duration::from_secs(30);
/// How often after that.
const EVERY: Duration = Duration::from_secs(600);

/// A part of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
}

/// Gives pages back again and again, for as long as the agent works.
pub(crate) async fn keep_giving_back() {
    tokio::time::sleep(AFTER_START).await;
    loop {
        give_back();
        tokio::time::sleep(EVERY).await;
    }
}

/// Unmaps every page that is exactly what is in its file. The next use of one maps it again.
fn give_back() {
    let Ok(maps) = fs::read_to_string("/proc/self/smaps") else { return };
    for Mapping { start, length } in unchanged(&maps) {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the mapping is of a file, cannot be written, and the kernel has just said that no page of it differs from
        // the file: what is read from it next is what was there before.
        #[expect(unsafe_code, reason = "there is no other way to tell the kernel")]
        let given = unsafe { madvise(address, length, Advice::LinuxDontNeed) };
        if let Err(error) = given {
            tracing::debug!(%error, "pages could not be given back");
        }
    }
}

/// The mappings of files that are not writable and of which no page was changed, as by the relocations of the dynamic
/// linker (proc_pid_smaps(5)).
fn unchanged(smaps: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut candidate: Option<Mapping> = None;
    let mut own_kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        if let Some(field) = first.strip_suffix(':') {
            let kib: u64 = second.and_then(|number| number.parse().ok()).unwrap_or(0);
            match field {
                "Private_Dirty" | "Shared_Dirty" | "Anonymous" | "Swap" => own_kib += kib,
                // The last field of each mapping.
                "VmFlags" => found.extend(candidate.take().filter(|_| own_kib == 0)),
                _ => {}
            }
            continue;
        }
        own_kib = 0;
        candidate = second.filter(|permissions| matches!(*permissions, "r-xp" | "r--p")).and_then(|_| {
            let (start, end) = first.split_once('-')?;
            let address = |text: &str| usize::from_str_radix(text, 16).ok();
            let start = address(start)?;
            let length = address(end)?.checked_sub(start)?;
            // After offset, device and inode.
            words.nth(3).is_some_and(|path| path.starts_with('/')).then_some(Mapping { start, length })
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d000-55e000 r--p 00000000 08:01 131 /usr/bin/fleetwright-agent
Rss:                   4 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55e000-560000 r-xp 00001000 08:01 131 /usr/bin/fleetwright-agent
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
560000-561000 r--p 00003000 08:01 131 /usr/bin/fleetwright-agent
Private_Dirty:         4 kB
Anonymous:             4 kB
VmFlags: rd mr mw me ac sd
561000-562000 rw-p 00004000 08:01 131 /usr/bin/fleetwright-agent
Private_Dirty:         0 kB
VmFlags: rd wr mr mw me ac sd
7f0000-7f1000 r--p 00000000 00:00 0 [vvar]
Private_Dirty:         0 kB
VmFlags: rd mr
7f1000-7f2000 r--p 00000000 00:00 0
Private_Dirty:         0 kB
VmFlags: rd mr
";

    #[test]
    fn only_what_is_as_in_its_file_is_given_back() {
        let expected = [(0x55d000, 0x1000), (0x55e000, 0x2000)];
        assert_eq!(unchanged(SMAPS), expected.map(|(start, length)| Mapping { start, length }));
        assert!(unchanged("").is_empty());
        assert!(unchanged("x y z\n55-44 r--p\nVmFlags:\n").is_empty());
    }

    #[test]
    fn pages_that_were_given_back_are_mapped_again_when_they_are_used() {
        let resident = || -> u64 {
            let status = fs::read_to_string("/proc/self/status").expect("status");
            let line = status.lines().find(|line| line.starts_with("RssFile:")).expect("RssFile");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
        };
        let before = resident();
        give_back();
        assert!(resident() < before, "{before} KiB before, {} KiB after", resident());
        // It still runs, and says the same.
        only_what_is_as_in_its_file_is_given_back();
    }
}
