//! What readers see of the fleet: the fold of what is durable. They ask no one for it, and hold nobody up.
//!
//! There are two copies of the fleet. The engine applies events to its own. After a commit it publishes that copy, and
//! goes on with the one that was published before, which first takes in the same events.

use std::sync::Arc;

use fleetwright_deploy::fleet::Fleet;
use tokio::sync::watch;

use crate::journal::NewEntry;

/// The fleet as of one entry of the journal.
pub(crate) struct View {
    /// The number of that entry.
    pub(crate) seq: u64,
    pub(crate) fleet: Fleet,
}

/// The way to the newest view.
#[derive(Clone)]
pub(crate) struct Reader(watch::Receiver<Arc<View>>);

/// Where the engine publishes what has become durable.
pub(crate) struct Publisher(watch::Sender<Arc<View>>);

/// A publisher of a fleet as it is when the journal was opened, and the way to what it publishes.
pub(crate) fn of(fleet: &Fleet, seq: u64) -> (Publisher, Reader) {
    let (publisher, reader) = watch::channel(Arc::new(View { seq, fleet: fleet.clone() }));
    (Publisher(publisher), Reader(reader))
}

impl Reader {
    /// Reads what is durable now. A reader sees its own change as soon as that was answered.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        // Nothing is locked while it is read.
        let view = self.0.borrow().clone();
        read(&view)
    }
}

impl Publisher {
    /// The engine's copy is durable now: it becomes what readers see. `entries` are what has changed since the last time.
    pub(crate) fn publish(&self, fleet: &mut Fleet, seq: u64, entries: &[NewEntry]) {
        let none = Fleet::new(fleet.name().clone());
        let view = Arc::new(View { seq, fleet: std::mem::replace(fleet, none) });
        let before = self.0.send_replace(view.clone());
        // Whoever still reads keeps the copy of before; then the engine takes a new one.
        let caught_up = Arc::try_unwrap(before).ok().map(|before| before.fleet).and_then(|mut behind| {
            let takes = |entry: &NewEntry| behind.apply(entry.event.clone(), entry.at).is_ok();
            entries.iter().all(takes).then_some(behind)
        });
        *fleet = caught_up.unwrap_or_else(|| view.fleet.clone());
        debug_assert!(*fleet == view.fleet, "both copies take the same events the same way");
    }

    /// What was durable last, for an engine that could not make more so.
    pub(crate) fn durable(&self) -> Fleet {
        self.0.borrow().fleet.clone()
    }
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::actor::Actor;
    use fleetwright_deploy::fleet::FleetEvent;
    use fleetwright_deploy::time::Timestamp;

    use super::*;

    /// Halts a fleet, or lets it go on, and gives the entry of that.
    fn decide(fleet: &mut Fleet, n: i64) -> NewEntry {
        let by = format!("person {n}");
        let (at, event) = (
            Timestamp::from_unix_ms(n),
            if fleet.halted().is_some() {
                FleetEvent::Unhalted { by }
            } else {
                FleetEvent::Halted { by, reason: String::new() }
            },
        );
        let notes = fleet.apply(event.clone(), at).expect("apply").notes;
        NewEntry { at, actor: Actor::Coordinator, event, notes }
    }

    #[test]
    fn readers_see_what_was_published_and_nothing_that_was_not() {
        let mut fleet = Fleet::new("f".parse().expect("name"));
        let (publisher, reader) = of(&fleet, 0);
        for seq in 1..=5_u32 {
            let entry = decide(&mut fleet, seq.into());
            let before = reader.read(|view| (view.seq, view.fleet.clone()));
            assert_eq!(before.0, u64::from(seq) - 1);
            assert_ne!(before.1, fleet, "it is not published yet");
            assert_eq!(publisher.durable(), before.1);
            let applied = fleet.clone();
            publisher.publish(&mut fleet, seq.into(), &[entry]);
            assert_eq!(fleet, applied, "the engine goes on with the same");
            reader.read(|view| assert_eq!((view.seq, &view.fleet), (seq.into(), &applied)));
        }
    }

    #[test]
    fn whoever_reads_for_long_keeps_what_it_reads_and_holds_nobody_up() {
        let mut fleet = Fleet::new("f".parse().expect("name"));
        let (publisher, reader) = of(&fleet, 0);
        reader.read(|view| {
            for seq in 1..=3_u32 {
                let entry = decide(&mut fleet, seq.into());
                publisher.publish(&mut fleet, seq.into(), &[entry]);
                assert_eq!(reader.read(|newest| newest.seq), u64::from(seq));
            }
            assert_eq!((view.seq, view.fleet.halted()), (0, None));
        });
        assert!(fleet.halted().is_some());
    }
}
