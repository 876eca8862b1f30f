//! The door: how many peers are in their handshake at once. Nobody knows them yet, so places are few. Whoever comes is let
//! in, and the one whose handshake takes longest goes for it: an honest one is over in a moment. A network that has its
//! share drives out only so many of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetwright_deploy::pace::{Bucket, Rate};
use fleetwright_deploy::shares::{Network, WaitingRoom};
use fleetwright_deploy::time::Timestamp;
use tokio::task::AbortHandle;

/// How many handshakes are under way at once. Each takes some 50 KiB, and as much again until quinn forgets it.
const HANDSHAKES_MAX: usize = 256;
/// How many of them are of one network, once places are short.
const HANDSHAKES_PER_NETWORK_MAX: usize = 64;

/// How often peers of networks that have their share may drive out their own. Each that goes takes its room until quinn
/// forgets it, so a flood must not make many of them; who comes beyond that comes again.
const DISPLACEMENTS: Rate = Rate { burst: 32, per_hour: 32 * 3_600 };

/// The places at the door.
pub(super) struct Handshakes(Mutex<Taken>);

struct Taken {
    room: WaitingRoom,
    displacements: Bucket,
    /// The handshakes that have a place, and those that lost theirs before they were under way.
    under_way: BTreeMap<u64, Handshake>,
    ids: u64,
}

/// Where a handshake is.
enum Handshake {
    /// Its task is about to be started.
    Beginning,
    /// Its task makes it.
    UnderWay(AbortHandle),
    /// Its place was given to another while its task was started: that is ended.
    Displaced,
}

/// A place, given back when it is dropped.
pub(super) struct Place {
    of: Arc<Handshakes>,
    id: u64,
}

impl Handshakes {
    pub(super) fn new(now: Timestamp) -> Arc<Self> {
        let room = WaitingRoom::new(HANDSHAKES_MAX, HANDSHAKES_PER_NETWORK_MAX);
        let displacements = Bucket::new(DISPLACEMENTS, now);
        Arc::new(Self(Mutex::new(Taken { room, displacements, under_way: BTreeMap::new(), ids: 0 })))
    }

    /// Whether a peer of this network is let in now.
    pub(super) fn lets_in(&self, network: Network, now: Timestamp) -> bool {
        let mut taken = self.taken();
        !taken.room.displaces_its_own(network) || taken.displacements.take(1, now).is_ok()
    }

    /// Begins the handshake of a peer of this network; `begin` starts a task that holds the place. Says how many others had
    /// to go for it.
    pub(super) fn begin(self: &Arc<Self>, network: Network, begin: impl FnOnce(Place) -> AbortHandle) -> usize {
        let (id, gone) = self.taken().enter(network);
        // Without the lock: on a runtime that ends, the task is dropped here, and gives the place back.
        let task = begin(Place { of: self.clone(), id });
        let displaced = self.taken().is_under_way(id, task);
        gone.tasks.iter().chain(&displaced).for_each(AbortHandle::abort);
        gone.count
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that had to go.
struct Gone {
    count: usize,
    tasks: Vec<AbortHandle>,
}

impl Taken {
    /// Gives a place to a handshake that is about to begin.
    fn enter(&mut self, network: Network) -> (u64, Gone) {
        self.ids += 1;
        let id = self.ids;
        let displaced = self.room.enter(id, network);
        let mut gone = Gone { count: 0, tasks: Vec::new() };
        for other in displaced {
            match self.under_way.remove(&other) {
                Some(Handshake::UnderWay(task)) => gone.tasks.push(task),
                Some(Handshake::Beginning) => drop(self.under_way.insert(other, Handshake::Displaced)),
                Some(Handshake::Displaced) | None => continue,
            }
            gone.count += 1;
        }
        self.under_way.insert(id, Handshake::Beginning);
        (id, gone)
    }

    /// Keeps the task of a handshake that has begun; gives it back where it has lost its place meanwhile.
    fn is_under_way(&mut self, id: u64, task: AbortHandle) -> Option<AbortHandle> {
        match self.under_way.remove(&id) {
            Some(Handshake::Beginning | Handshake::UnderWay(_)) => {
                self.under_way.insert(id, Handshake::UnderWay(task));
                None
            }
            Some(Handshake::Displaced) => Some(task),
            // It is over already.
            None => None,
        }
    }
}

impl Place {
    /// Gives the place back. Where it was another's already, the task is about to be ended and must not go on.
    pub(super) fn leave(self) -> bool {
        self.give_back()
    }

    fn give_back(&self) -> bool {
        let mut taken = self.of.taken();
        taken.room.leave(self.id);
        matches!(taken.under_way.remove(&self.id), Some(Handshake::Beginning | Handshake::UnderWay(_)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_is_let_in_and_the_oldest_of_its_network_goes() {
        let (handshakes, network) = (Handshakes::new(Timestamp::from_unix_ms(0)), Network::of([192, 0, 2, 1].into()));
        let mut tasks = Vec::new();
        for _ in 0..HANDSHAKES_MAX {
            handshakes.begin(network, |place| {
                let task = tokio::spawn(async move {
                    let _place = place;
                    std::future::pending::<()>().await;
                });
                let abort = task.abort_handle();
                tasks.push(task);
                abort
            });
        }
        let newest = tasks.pop().expect("the newest");
        assert!(tasks.remove(0).await.is_err_and(|error| error.is_cancelled()), "the oldest has gone");
        assert!(!newest.is_finished());
        let waiting = |handshakes: &Handshakes| handshakes.0.lock().expect("no panic").room.len();
        assert_eq!(waiting(&handshakes), HANDSHAKES_MAX / 2, "as many as one network may have");
        newest.abort();
        let _ = newest.await;
        assert_eq!(waiting(&handshakes), HANDSHAKES_MAX / 2 - 1, "its place is given back");
    }

    #[test]
    fn a_task_that_is_dropped_as_it_is_started_gives_its_place_back() {
        let (told, done) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let handshakes = Handshakes::new(Timestamp::from_unix_ms(0));
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let handle = runtime.handle().clone();
            // A task that is started on it now is dropped at once, in this thread.
            runtime.shutdown_background();
            handshakes.begin(Network::of([192, 0, 2, 1].into()), |place| {
                let task = handle.spawn(async move {
                    let _place = place;
                    std::future::pending::<()>().await;
                });
                task.abort_handle()
            });
            let taken = handshakes.taken();
            told.send((taken.room.len(), taken.under_way.len())).expect("it is waited for");
        });
        let left = done.recv_timeout(std::time::Duration::from_secs(30));
        assert_eq!(left.expect("it does not wait for itself"), (0, 0));
    }

    #[tokio::test]
    async fn who_loses_the_place_before_the_task_is_known_is_ended_all_the_same() {
        let (handshakes, network) = (Handshakes::new(Timestamp::from_unix_ms(0)), Network::of([192, 0, 2, 1].into()));
        let waiting = || tokio::spawn(std::future::pending::<()>());
        let mut first = None;
        handshakes.begin(network, |place| {
            for _ in 0..HANDSHAKES_MAX {
                handshakes.begin(network, |place| {
                    std::mem::forget(place);
                    waiting().abort_handle()
                });
            }
            let task = waiting();
            let abort = task.abort_handle();
            first = Some((task, place));
            abort
        });
        let (task, place) = first.expect("begun");
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
        assert!(!place.leave(), "the place is another's");
    }

    #[tokio::test]
    async fn a_flood_of_one_network_drives_out_few_of_its_own_and_others_come_in() {
        let now = Timestamp::from_unix_ms(0);
        let handshakes = Handshakes::new(now);
        let [flood, honest] = [1, 2].map(|net| Network::of([192, 0, net, 1].into()));
        let mut let_in = 0;
        for _ in 0..10_000 {
            if handshakes.lets_in(flood, now) {
                let_in += 1;
                handshakes.begin(flood, |place| {
                    tokio::spawn(async move {
                        let _place = place;
                        std::future::pending::<()>().await;
                    })
                    .abort_handle()
                });
            }
        }
        assert!(let_in <= HANDSHAKES_MAX + DISPLACEMENTS.burst as usize, "{let_in}");
        assert!(handshakes.lets_in(honest, now), "another network has its own places");
    }
}
