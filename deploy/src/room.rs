//! Room on a host's disk: when there is too little of it for the agent to go on, which server takes it, and when there
//! is enough again. What is measured comes in; what to do comes out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ReleaseId, ServerName};
use crate::limits::size;

/// What is kept in reserve on a disk that is large enough, in bytes: an agent can put releases back within it.
pub const RESERVE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// On a small disk the reserve is one part of so many.
const RESERVE_PARTS: u64 = 32;
/// Room is enough again once there is as much as so many reserves: what was stopped does not come and go.
const ENOUGH_RESERVES: u64 = 4;
/// What a server must have grown by, at least, to be what fills a disk: one part of so many of the reserve.
const GROWTH_PARTS: u64 = 16;
/// How many files are kept in reserve on a disk that is large enough: what it takes to put a release back.
pub const RESERVE_FILES_MAX: u64 = 256;

/// The room on the file system with the agent's state. A file system runs out of bytes, or of files where it has a number
/// of them that does not grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What is free for everybody, in bytes.
    pub free_bytes: u64,
    /// How many files there may be; 0 where they are not counted.
    pub total_files: u64,
    /// How many more there may be.
    pub free_files: u64,
    /// What the data and the output of servers take up there. Servers that keep them elsewhere are not in it.
    pub servers: BTreeMap<ServerName, Used>,
    /// What servers take up elsewhere. It says nothing of who fills this disk.
    #[serde(skip)]
    pub elsewhere: BTreeMap<ServerName, Elsewhere>,
}

/// What a server takes up on other disks than the one with the agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// All of it.
    pub used: Used,
    /// Whether one of these disks has as little room as counts as low on the one with the state.
    pub is_low: bool,
    /// Whether one of them has not enough for what was stopped to run again.
    pub lacks_enough: bool,
    /// What cannot be measured, in words.
    pub unmeasured: Vec<String>,
}

/// What a server takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, folders, links: whatever the file system counts.
    pub files: u64,
    /// Whether there is more, so deep that nobody has put it there to use it.
    pub is_too_deep: bool,
    /// Whether there is more that takes too long to be gone through.
    pub is_too_much: bool,
}

impl Used {
    /// Whether there is more than can be counted.
    pub fn is_uncounted(&self) -> bool {
        self.is_too_deep || self.is_too_much
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            files: self.files.saturating_add(other.files),
            is_too_deep: self.is_too_deep || other.is_too_deep,
            is_too_much: self.is_too_much || other.is_too_much,
        }
    }
}

/// What an agent must still know of its disk after it was started again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// How it was when there was room last.
    pub before: Option<Room>,
    /// The servers that are stopped until there is room.
    pub held: BTreeMap<ServerName, Held>,
}

/// A server that is stopped until there is room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it ran: another release is not what fills the disk.
    pub release: Option<ReleaseId>,
    /// Why it is stopped, in words.
    pub reason: String,
}

impl Remembered {
    /// Whether it says so nearly the same that it need not be written again: who fills the disk is told by more.
    pub fn is_nearly(&self, other: &Self) -> bool {
        let near = match (&self.before, &other.before) {
            (Some(one), Some(other)) => one.is_nearly(other),
            (one, other) => one == other,
        };
        near && self.held == other.held
    }
}

/// A server that fills the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    /// The server.
    pub server: ServerName,
    /// Why it, in words.
    pub reason: String,
}

/// What is kept in reserve on a disk of this size, in bytes.
pub fn reserve_bytes(total_bytes: u64) -> u64 {
    RESERVE_BYTES_MAX.min(total_bytes / RESERVE_PARTS)
}

/// How many files are kept in reserve on a disk that may have so many.
pub fn reserve_files(total_files: u64) -> u64 {
    RESERVE_FILES_MAX.min(total_files / RESERVE_PARTS)
}

impl Room {
    /// Whether there is so little that the agent may be unable to go on.
    pub fn is_critical(&self) -> bool {
        self.lacks_bytes() || self.lacks_files()
    }

    /// What a server takes up on all disks.
    pub fn used_by(&self, server: &ServerName) -> Used {
        let here = self.servers.get(server).copied().unwrap_or_default();
        here.and(self.elsewhere.get(server).map(|elsewhere| elsewhere.used).unwrap_or_default())
    }

    /// Whether a disk is low on which a server takes up more than next to nothing.
    pub fn is_low_for(&self, server: &ServerName) -> bool {
        let least = reserve_bytes(self.total_bytes) / GROWTH_PARTS;
        let here = self.servers.get(server).is_some_and(|used| used.bytes > least || used.is_uncounted());
        (here && self.is_critical()) || self.elsewhere.get(server).is_some_and(|elsewhere| elsewhere.is_low)
    }

    fn is_nearly(&self, other: &Self) -> bool {
        let bytes = reserve_bytes(self.total_bytes) / GROWTH_PARTS;
        let files = reserve_files(self.total_files) / GROWTH_PARTS;
        let used = |room: &Self, server: &ServerName| room.servers.get(server).copied().unwrap_or_default();
        let near = |one: Used, other: Used| {
            one.bytes.abs_diff(other.bytes) <= bytes
                && one.files.abs_diff(other.files) <= files
                && (one.is_too_deep, one.is_too_much) == (other.is_too_deep, other.is_too_much)
        };
        let free = |room: &Self| Used { bytes: room.free_bytes, files: room.free_files, ..Used::default() };
        let totals = |room: &Self| (room.total_bytes, room.total_files);
        let mut servers = self.servers.keys().chain(other.servers.keys());
        totals(self) == totals(other)
            && near(free(self), free(other))
            && servers.all(|server| near(used(self, server), used(other, server)))
    }

    fn lacks_bytes(&self) -> bool {
        self.free_bytes < reserve_bytes(self.total_bytes)
    }

    fn lacks_files(&self) -> bool {
        self.free_files < reserve_files(self.total_files)
    }

    /// Whether there is so much that what was stopped may run again.
    pub fn is_enough(&self) -> bool {
        self.free_bytes >= reserve_bytes(self.total_bytes).saturating_mul(ENOUGH_RESERVES)
            && self.free_files >= reserve_files(self.total_files).saturating_mul(ENOUGH_RESERVES)
    }

    /// The server to stop: the one that has grown most since there was room (`before`), in what is lacking. Nothing while
    /// there is room, and nothing when no server has grown enough to be the reason: most of what is gone must be with it.
    /// One that has become too deep to be counted comes first; one that cannot be counted in time, or could not before either,
    /// comes last, since nothing says that it is the reason but that no other is.
    pub fn offender(&self, before: &Self) -> Option<Offender> {
        let bytes = self.lacks_bytes().then(|| {
            let least = reserve_bytes(self.total_bytes) / GROWTH_PARTS;
            let gone = before.free_bytes.saturating_sub(self.free_bytes);
            let (server, grown) = self.grown_most(before, |used| used.bytes, least.max(gone / 2))?;
            let words = |bytes: u64| size(usize::try_from(bytes).unwrap_or(usize::MAX));
            let what =
                format!("its data and output have grown by {}, and {} are free", words(grown), words(self.free_bytes));
            Some((server, what))
        });
        let files = || {
            self.lacks_files().then(|| {
                let least = reserve_files(self.total_files) / GROWTH_PARTS;
                let gone = before.free_files.saturating_sub(self.free_files);
                let (server, grown) = self.grown_most(before, |used| used.files, least.max(gone / 2))?;
                let free = self.free_files;
                Some((server, format!("it has made {grown} files more, and the disk has room for {free}")))
            })
        };
        if !self.is_critical() {
            return None;
        }
        let too_deep = |was| self.uncounted(before, |used| used.is_too_deep, was);
        let too_much = |was| self.uncounted(before, |used| used.is_too_much, was);
        let counted = || bytes.flatten().or_else(|| files().flatten());
        let last = || too_much(false).or_else(|| too_deep(true)).or_else(|| too_much(true));
        let (server, what) = too_deep(false).or_else(counted).or_else(last)?;
        Some(Offender { server, reason: format!("it fills the disk: {what}; it is stopped until there is room") })
    }

    /// A server of which `is` is so now, and was or was not `before`.
    fn uncounted(&self, before: &Self, is: fn(&Used) -> bool, was: bool) -> Option<(ServerName, String)> {
        let was_so = |server: &ServerName| before.servers.get(server).is_some_and(is);
        let (server, _) = self.servers.iter().find(|(server, used)| is(used) && was_so(server) == was)?;
        Some((server.clone(), "it has more than can be counted".to_owned()))
    }

    fn grown_most(&self, before: &Self, of: fn(&Used) -> u64, least: u64) -> Option<(ServerName, u64)> {
        let grown = |(server, used): (&ServerName, &Used)| {
            (of(used).saturating_sub(before.servers.get(server).map_or(0, of)), server.clone())
        };
        let (grown, server) = self.servers.iter().map(grown).max_by_key(|(grown, _)| *grown)?;
        (grown > least).then_some((server, grown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn name(text: &str) -> ServerName {
        text.parse().expect("name")
    }

    fn room(free_bytes: u64, servers: &[(&str, u64)]) -> Room {
        let used = |bytes: u64| Used { bytes, files: 1, ..Used::default() };
        let servers = servers.iter().map(|(server, bytes)| (name(server), used(*bytes))).collect();
        Room { total_bytes: 1024 * MIB, free_bytes, servers, ..Room::default() }
    }

    /// A disk with much room for bytes.
    fn files(free_files: u64, servers: &[(&str, u64)]) -> Room {
        let used = |files: u64| Used { files, ..Used::default() };
        let servers = servers.iter().map(|(server, files)| (name(server), used(*files))).collect();
        let (total_bytes, free_bytes, total_files) = (1024 * MIB, 512 * MIB, 64 * 1024);
        Room { total_bytes, free_bytes, total_files, free_files, servers, ..Room::default() }
    }

    #[test]
    fn what_has_grown_most_is_stopped_not_what_is_largest() {
        let before = room(500 * MIB, &[("large", 400 * MIB), ("quiet", MIB)]);
        let now = room(0, &[("large", 401 * MIB), ("quiet", MIB), ("new", 300 * MIB)]);
        let offender = now.offender(&before).expect("an offender");
        assert_eq!(offender.server, name("new"));
        assert!(offender.reason.contains("300 MiB") && offender.reason.contains("0 bytes are free"), "{offender:?}");
    }

    #[test]
    fn what_an_agent_remembers_is_written_again_only_when_it_would_tell_something_else() {
        let of = |room: Room| Remembered { before: Some(room), held: BTreeMap::new() };
        let written = of(room(500 * MIB, &[("a", 10 * MIB)]));
        assert!(written.is_nearly(&of(room(499 * MIB, &[("a", 11 * MIB)]))));
        for other in [
            of(room(498 * MIB, &[("a", 10 * MIB)])),
            of(room(500 * MIB, &[("a", 12 * MIB)])),
            of(room(500 * MIB, &[("a", 10 * MIB), ("b", 2 * MIB)])),
            Remembered::default(),
            Remembered {
                held: [(name("a"), Held { release: None, reason: "full".to_owned() })].into(),
                ..written.clone()
            },
        ] {
            assert!(!written.is_nearly(&other), "{other:?}");
        }
    }

    #[test]
    fn a_disk_is_low_for_whoever_takes_room_on_it() {
        let at = |free, here, is_low| {
            let elsewhere =
                Elsewhere { used: Used { bytes: 5 * MIB, ..Used::default() }, is_low, ..Elsewhere::default() };
            Room { elsewhere: [(name("a"), elsewhere)].into(), ..room(free, &[("a", here)]) }
        };
        assert!(!at(0, MIB / 2, false).is_low_for(&name("a")), "it has only its output there");
        assert!(at(0, 2 * MIB, false).is_low_for(&name("a")) && !at(500 * MIB, 2 * MIB, false).is_low_for(&name("a")));
        assert!(at(500 * MIB, MIB / 2, true).is_low_for(&name("a")));
        assert_eq!(at(0, 2 * MIB, false).used_by(&name("a")).bytes, 7 * MIB);
    }

    #[test]
    fn nobody_is_stopped_while_there_is_room_or_when_no_server_is_the_reason() {
        let before = Room::default();
        assert_eq!(room(17 * MIB, &[("a", 900 * MIB)]).offender(&before), None, "there is room");
        let full = room(0, &[("a", 900 * MIB)]);
        assert_eq!(full.offender(&full), None, "somebody else fills the disk");
        let before = room(500 * MIB, &[("a", 900 * MIB)]);
        let little = room(0, &[("a", 920 * MIB)]);
        assert_eq!(little.offender(&before), None, "what it has grown by is not what is gone");
        let before = Room::default();
        assert_eq!(room(0, &[]).offender(&before), None, "every server keeps its data elsewhere");
    }

    #[test]
    fn what_was_stopped_runs_again_only_when_there_is_much_more_room_than_it_was_stopped_at() {
        assert!(room(15 * MIB, &[]).is_critical());
        for free in [17 * MIB, 63 * MIB] {
            assert!(!room(free, &[]).is_critical() && !room(free, &[]).is_enough());
        }
        assert!(room(64 * MIB, &[]).is_enough());
        let small = Room { total_bytes: 64 * MIB, free_bytes: 8 * MIB, ..Room::default() };
        assert!(small.is_enough(), "on a small disk the marks are lower");
    }

    #[test]
    fn who_has_become_too_deep_to_be_counted_is_stopped_first_and_who_was_so_before_last() {
        let more = |room: &Room, server: &str| {
            let mut room = room.clone();
            room.servers.entry(name(server)).or_default().is_too_deep = true;
            room
        };
        let before = room(500 * MIB, &[("deep", MIB), ("new", MIB)]);
        let now = room(0, &[("deep", 2 * MIB), ("new", 400 * MIB)]);
        assert_eq!(now.offender(&before).map(|of| of.server), Some(name("new")));
        let offender = more(&now, "deep").offender(&before).expect("an offender");
        assert_eq!(offender.server, name("deep"));
        assert!(offender.reason.contains("more than can be counted"), "{offender:?}");
        let deep_before = more(&before, "deep");
        assert_eq!(more(&now, "deep").offender(&deep_before).map(|of| of.server), Some(name("new")));
        let nobody = room(0, &[("deep", MIB), ("new", MIB)]);
        assert_eq!(more(&nobody, "deep").offender(&deep_before).map(|of| of.server), Some(name("deep")));
        assert_eq!(more(&room(500 * MIB, &[]), "deep").offender(&before), None, "there is room");
        // What takes long to be counted is no reason as long as there is another.
        let long = |room: &Room, server: &str| {
            let mut room = room.clone();
            room.servers.entry(name(server)).or_default().is_too_much = true;
            room
        };
        assert_eq!(long(&now, "deep").offender(&before).map(|of| of.server), Some(name("new")));
        assert_eq!(long(&nobody, "deep").offender(&before).map(|of| of.server), Some(name("deep")));
    }

    #[test]
    fn a_disk_without_files_is_full_too_and_who_has_made_them_is_stopped() {
        let before = files(60_000, &[("large", 4_000), ("quiet", 10)]);
        let now = files(0, &[("large", 4_100), ("quiet", 10), ("new", 59_000)]);
        assert!(now.is_critical() && !now.is_enough() && before.is_enough());
        let offender = now.offender(&before).expect("an offender");
        assert_eq!(offender.server, name("new"));
        assert!(offender.reason.contains("59000 files") && offender.reason.contains("has room for 0"), "{offender:?}");
        assert_eq!(files(0, &[("large", 4_100)]).offender(&before), None, "somebody else has made them");
        assert!(!room(512 * MIB, &[]).is_critical(), "where files are not counted, none are lacking");
    }
}
