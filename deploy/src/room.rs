//! Room on a host's disk: when there is too little of it for the agent to go on, which server takes it, and when there
//! is enough again. What is measured comes in; what to do comes out.

use std::collections::BTreeMap;

use crate::ids::ServerName;
use crate::limits::size;

/// What is kept in reserve on a disk that is large enough, in bytes: an agent can put releases back within it.
pub const RESERVE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// On a small disk the reserve is one part of so many.
const RESERVE_PARTS: u64 = 32;
/// Room is enough again once there is as much as so many reserves: what was stopped does not come and go.
const ENOUGH_RESERVES: u64 = 4;
/// What a server must have grown by, at least, to be what fills a disk: one part of so many of the reserve.
const GROWTH_PARTS: u64 = 16;

/// The room on the file system with the agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What is free for everybody, in bytes.
    pub free_bytes: u64,
    /// What the data and the output of servers take up there, in bytes. Servers that keep them elsewhere are not in it.
    pub servers: BTreeMap<ServerName, u64>,
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

impl Room {
    /// Whether there is so little that the agent may be unable to go on.
    pub fn is_critical(&self) -> bool {
        self.free_bytes < reserve_bytes(self.total_bytes)
    }

    /// Whether there is so much that what was stopped may run again.
    pub fn is_enough(&self) -> bool {
        self.free_bytes >= reserve_bytes(self.total_bytes).saturating_mul(ENOUGH_RESERVES)
    }

    /// The server to stop: the one that has grown most since there was room (`before`). Nothing while there is room, and
    /// nothing when no server has grown enough to be the reason: most of what is gone must be with it.
    pub fn offender(&self, before: &Self) -> Option<Offender> {
        if !self.is_critical() {
            return None;
        }
        let grown = |(server, bytes): (&ServerName, &u64)| {
            (bytes.saturating_sub(before.servers.get(server).copied().unwrap_or(0)), server.clone())
        };
        let (bytes, server) = self.servers.iter().map(grown).max_by_key(|(bytes, _)| *bytes)?;
        let gone = before.free_bytes.saturating_sub(self.free_bytes);
        let least = (reserve_bytes(self.total_bytes) / GROWTH_PARTS).max(gone / 2);
        (bytes > least).then(|| {
            let words = |bytes: u64| size(usize::try_from(bytes).unwrap_or(usize::MAX));
            let reason = format!(
                "it fills the disk: its data and output have grown by {}, and {} are free; it is stopped until there is room",
                words(bytes),
                words(self.free_bytes),
            );
            Offender { server, reason }
        })
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
        let servers = servers.iter().map(|(server, bytes)| (name(server), *bytes)).collect();
        Room { total_bytes: 1024 * MIB, free_bytes, servers }
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
}
