//! What one host may ask of the coordinator, over all its connections together: whoever floods waits, and takes nothing
//! from the others. A host that keeps to its work never notices.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleetwright_deploy::ids::HostName;
use fleetwright_deploy::pace::{Bucket, Rate};
use fleetwright_deploy::time::{Length, Timestamp};
use fleetwright_protocol::frame::MESSAGE_BYTES_MAX;
use fleetwright_protocol::{Clock, close};
use quinn::Connection;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many connections a host may make: a fresh one after every switch, and again after it has lost one.
const CONNECTIONS: Rate = Rate { burst: 64, per_hour: 3_600 };
/// How many messages it may send.
const MESSAGES: Rate = Rate { burst: 1_000, per_hour: 200 * 3_600 };
/// How many bytes of them: the rate is 1 MiB a second.
const MESSAGE_BYTES: Rate = Rate { burst: 8 * 1024 * 1024, per_hour: 1024 * 1024 * 3_600 };
/// How many connections of a host are open at once: the one in use, and the one that it takes over from.
const CONNECTIONS_OPEN_MAX: usize = 2;
/// How many bytes of frames of a host are held at once: one of the largest, or many small ones.
const FRAMES_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// How many of its questions about artifacts are answered at once; each answer may be some MiB.
const ARTIFACT_ANSWERS_MAX: usize = 3;
/// How long somebody who waits sleeps at most before it looks again, since clocks may be set.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The allowances of all hosts that have connected.
#[derive(Default)]
pub(super) struct Allowances(Mutex<BTreeMap<HostName, Arc<Allowance>>>);

impl Allowances {
    /// That of a host, which must be an enrolled one.
    pub(super) fn of(&self, host: &HostName, clock: &Clock) -> Arc<Allowance> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(host.clone()).or_insert_with(|| Arc::new(Allowance::new(clock.clone()))).clone()
    }
}

/// What one host has left.
pub(super) struct Allowance {
    clock: Clock,
    rates: Mutex<Rates>,
    open: Mutex<VecDeque<(u64, Connection)>>,
    frames: Semaphore,
    artifact_answers: Semaphore,
}

struct Rates {
    connections: Bucket,
    messages: Bucket,
    bytes: Bucket,
}

/// A connection among those of its host that are open, until it is dropped.
pub(super) struct Open {
    of: Arc<Allowance>,
    id: u64,
}

impl Allowance {
    fn new(clock: Clock) -> Self {
        let now = clock.now();
        let full = |rate| Bucket::new(rate, now);
        let rates = Rates { connections: full(CONNECTIONS), messages: full(MESSAGES), bytes: full(MESSAGE_BYTES) };
        Self {
            clock,
            rates: Mutex::new(rates),
            open: Mutex::default(),
            frames: Semaphore::new(FRAMES_BYTES_MAX),
            artifact_answers: Semaphore::new(ARTIFACT_ANSWERS_MAX),
        }
    }

    /// Takes one more connection in, unless there were too many of late. An older one goes where there are more than
    /// [`CONNECTIONS_OPEN_MAX`].
    pub(super) fn open(self: &Arc<Self>, id: u64, connection: &Connection) -> Option<Open> {
        self.rates(|rates, now| rates.connections.take(1, now)).ok()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.len() >= CONNECTIONS_OPEN_MAX {
            let from: Vec<SocketAddr> = open.iter().map(|(_, connection)| connection.remote_address()).collect();
            let goes = displaced(&from, connection.remote_address());
            if let Some((_, older)) = open.remove(goes) {
                older.close(close::SUPERSEDED.into(), b"newer connections took over");
            }
        }
        open.push_back((id, connection.clone()));
        Some(Open { of: self.clone(), id })
    }

    /// Waits until the host may send one more message.
    pub(super) async fn message(&self) {
        self.until(|rates, now| rates.messages.take(1, now)).await;
    }

    /// Waits until there is room for a frame of so many bytes, which it takes until it is dropped.
    pub(super) async fn frame(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let bytes = u32::try_from(bytes.clamp(1, FRAMES_BYTES_MAX)).unwrap_or(u32::MAX);
        self.until(|rates, now| rates.bytes.take(bytes, now)).await;
        self.frames.acquire_many(bytes).await.ok()
    }

    /// Waits until one more question about artifacts may be answered.
    pub(super) async fn artifact_answer(&self) -> Option<SemaphorePermit<'_>> {
        self.artifact_answers.acquire().await.ok()
    }

    async fn until(&self, mut take: impl FnMut(&mut Rates, Timestamp) -> Result<(), Length>) {
        while let Err(wait) = self.rates(&mut take) {
            tokio::time::sleep(SLEEP_MAX.min(wait.into())).await;
        }
    }

    fn rates<T>(&self, of: impl FnOnce(&mut Rates, Timestamp) -> T) -> T {
        of(&mut self.rates.lock().unwrap_or_else(PoisonError::into_inner), self.clock.now())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.of.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != self.id);
    }
}

/// Which of the connections from these addresses, the oldest first, goes for a newer one: the oldest of the same peer if
/// there is one, or else from the same address. So whoever else has the certificate of a host does not hide by making more
/// connections.
fn displaced(older: &[SocketAddr], newer: SocketAddr) -> usize {
    let of_peer = older.iter().position(|from| *from == newer);
    of_peer.or_else(|| older.iter().position(|from| from.ip() == newer.ip())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_for_a_newer_one_of_its_own_peer_first() {
        let [honest, thief, third] = [1, 2, 3].map(|n| SocketAddr::from(([192, 0, 2, n], 40_000)));
        assert_eq!(displaced(&[honest, thief], thief), 1);
        assert_eq!(displaced(&[thief, honest], thief), 0);
        assert_eq!(displaced(&[honest, thief], third), 0, "the oldest");
        let [one, two] = [1, 2].map(|port| SocketAddr::from(([192, 0, 2, 9], port)));
        assert_eq!(displaced(&[one, two], two), 1, "both behind one address");
        assert_eq!(displaced(&[honest, one], two), 1, "its address is as near as it gets");
    }
}
