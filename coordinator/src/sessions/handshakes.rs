//! The door: how many peers are in their handshake at once. Nobody knows them yet, so places are few, and no network has
//! those of the others.

use std::sync::{Arc, Mutex, PoisonError};

use fleetwright_deploy::shares::{Network, Shares};

/// How many handshakes are under way at once. Each takes some 50 KiB, and as much again until quinn forgets it.
const HANDSHAKES_MAX: usize = 256;
/// How many of them are of one network, once places are short.
const HANDSHAKES_PER_NETWORK_MAX: usize = 16;

/// The places at the door.
pub(super) struct Handshakes(Mutex<Shares>);

/// A place, given back when it is dropped.
pub(super) struct Place {
    of: Arc<Handshakes>,
    network: Network,
}

impl Handshakes {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Shares::new(HANDSHAKES_MAX, HANDSHAKES_PER_NETWORK_MAX))))
    }

    /// A place for a peer of this network, if there is one.
    pub(super) fn place(self: &Arc<Self>, network: Network) -> Option<Place> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(network);
        taken.then(|| Place { of: self.clone(), network })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.network);
    }
}
