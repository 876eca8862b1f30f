//! Files that have no name any more and take up room all the same, because a process of a server holds them open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fleetwright_deploy::room::Used;

/// Most processes of the host, and most open files of one server, that are looked at.
const PROCESSES_MAX: usize = 100_000;
pub(super) const OPEN_MAX: usize = 200_000;

/// The processes of this host, as they were at one moment.
pub(super) struct Processes(BTreeMap<i32, Process>);

struct Process {
    parent: i32,
    group: i32,
    session: i32,
    user: u32,
}

impl Processes {
    pub(super) fn now() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self(pids.filter_map(|pid| Some((pid, Process::find(pid)?))).take(PROCESSES_MAX).collect())
    }

    /// Those of a server: what its leader has started, whatever it calls itself, and whatever runs as its own user.
    pub(super) fn of(&self, leader: Option<i32>, user: Option<u32>) -> BTreeSet<i32> {
        let led = |process: &Process| leader.is_some_and(|leader| [process.group, process.session].contains(&leader));
        let own = |process: &Process| user == Some(process.user);
        let mut of: BTreeSet<i32> = leader.filter(|leader| self.0.contains_key(leader)).into_iter().collect();
        of.extend(self.0.iter().filter(|(_, process)| led(process) || own(process)).map(|(pid, _)| *pid));
        loop {
            let children = self.0.iter().filter(|(pid, process)| of.contains(&process.parent) && !of.contains(pid));
            let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
            if children.is_empty() {
                return of;
            }
            of.extend(children);
        }
    }

    /// What the files without a name that these processes hold open, or in their memory, take up, by device; and whether
    /// they hold more than is looked at.
    pub(super) fn unnamed_files(&self, processes: &BTreeSet<i32>, most: usize) -> (BTreeMap<u64, Used>, bool) {
        let (mut used, mut seen) = (BTreeMap::<u64, Used>::new(), BTreeSet::new());
        let held = processes.iter().flat_map(|pid| ["fd", "map_files"].map(|held| format!("/proc/{pid}/{held}")));
        for (count, entry) in held.flat_map(|held| fs::read_dir(held).into_iter().flatten().flatten()).enumerate() {
            if count == most {
                return (used, true);
            }
            // Looked at through the descriptor of the process itself: no path is followed.
            let Ok(file) = fs::metadata(entry.path()) else { continue };
            if file.nlink() == 0 && seen.insert((file.dev(), file.ino())) {
                let used = used.entry(file.dev()).or_default();
                used.bytes = used.bytes.saturating_add(file.blocks().saturating_mul(512));
                used.files += 1;
            }
        }
        (used, false)
    }
}

impl Process {
    fn find(pid: i32) -> Option<Self> {
        let user = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may be anything.
        let mut rest = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(1);
        let mut next = || rest.next()?.parse().ok();
        Some(Self { parent: next()?, group: next()?, session: next()?, user })
    }
}

/// The user that a server's data belong to, if that is neither root nor the agent's own.
pub(super) fn own_user(data: &Path) -> Option<u32> {
    let user = fs::symlink_metadata(data).ok()?.uid();
    (user != 0 && user != rustix::process::geteuid().as_raw()).then_some(user)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_file_that_was_removed_while_it_is_open_counts_for_whoever_holds_it() {
        let folder = tempfile::tempdir().expect("folder");
        let device = fs::metadata(folder.path()).expect("there").dev();
        let path = folder.path().join("hidden");
        let mut file = fs::File::create(&path).expect("file");
        file.write_all(&vec![1; 2 << 20]).expect("write");
        fs::remove_file(&path).expect("removed");
        // Two processes with the same file: one led by the other.
        let mut child = Command::new("sh")
            .args(["-c", "cat; true"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(file)
            .spawn()
            .expect("sh");
        let pid = i32::try_from(child.id()).expect("a number");
        let processes = Processes::now();
        let of = processes.of(Some(pid), None);
        let (used, is_more) = processes.unnamed_files(&of, OPEN_MAX);
        let (_, is_over) = processes.unnamed_files(&of, 2);
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(of.contains(&pid) && !of.contains(&i32::try_from(std::process::id()).expect("a number")));
        assert!(is_over && !is_more, "more than two are open, and no more than there may be");
        let used = used[&device];
        assert_eq!(used.files, 1, "once, whoever holds it");
        assert!((2 << 20..3 << 20).contains(&used.bytes), "{used:?}");
    }

    #[test]
    fn what_has_left_its_leader_is_found_by_its_user() {
        let process = |parent, group, user| Process { parent, group, session: group, user };
        let processes = Processes(BTreeMap::from([
            (10, process(1, 10, 900)),
            (11, process(10, 10, 900)),
            (12, process(11, 12, 0)),
            (20, process(1, 20, 900)),
            (30, process(1, 30, 901)),
        ]));
        assert_eq!(processes.of(Some(10), None), [10, 11, 12].into());
        assert_eq!(processes.of(Some(10), Some(900)), [10, 11, 12, 20].into());
        assert_eq!(processes.of(None, None), [].into());
    }
}
