//! Who may have how much of what is there for peers that nobody knows yet. Peers are told apart by the network they come
//! from; as long as there is plenty, no network is held to its share.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::{BTreeMap, VecDeque};

/// How many bits of an address name a network: of IPv4, and of IPv6.
const V4_PREFIX_BITS: u32 = 24;
const V6_PREFIX_BITS: u32 = 48;

/// The network of a peer. On loopback every address is one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network(IpAddr);

impl Network {
    /// The network that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self(match address {
            address if address.is_loopback() => address,
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << (32 - V4_PREFIX_BITS))).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - V6_PREFIX_BITS))).into(),
        })
    }
}

/// Places for peers, as many as are taken and by whom.
#[derive(Clone, Debug)]
pub struct Shares {
    places_max: usize,
    share_max: usize,
    taken: usize,
    by_network: BTreeMap<Network, usize>,
}

impl Shares {
    /// So many places; once half of them are taken, so many for each network.
    pub fn new(places_max: usize, share_max: usize) -> Self {
        Self { places_max, share_max, taken: 0, by_network: BTreeMap::new() }
    }

    /// Takes a place, if there is one for this network.
    pub fn take(&mut self, network: Network) -> bool {
        if self.taken >= self.places_max || self.is_over(network) {
            return false;
        }
        self.taken += 1;
        *self.by_network.entry(network).or_default() += 1;
        true
    }

    /// Gives a place back.
    pub fn give_back(&mut self, network: Network) {
        if let Some(taken) = self.by_network.get_mut(&network) {
            (self.taken, *taken) = (self.taken - 1, *taken - 1);
            if *taken == 0 {
                self.by_network.remove(&network);
            }
        }
    }

    /// The network with the most places, if it has more than its share.
    fn greedy(&self) -> Option<Network> {
        let largest = self.by_network.iter().max_by_key(|(_, taken)| **taken);
        largest.filter(|(_, taken)| **taken > self.share_max).map(|(network, _)| *network)
    }

    /// Whether places are short and the network has its share of them.
    fn is_over(&self, network: Network) -> bool {
        let short = self.taken >= self.places_max / 2;
        short && self.by_network.get(&network).is_some_and(|taken| *taken >= self.share_max)
    }
}

/// Peers that have yet to say what they want. Whoever comes is let in; those who have waited longest go for it when there
/// is no room: of the same network, if that has its share; of the largest, if one has more than its share; or of all.
#[derive(Clone, Debug)]
pub struct WaitingRoom {
    shares: Shares,
    /// The oldest first.
    waiting: VecDeque<(u64, Network)>,
}

impl WaitingRoom {
    /// A room of so many places; once half of them are taken, so many for each network.
    pub fn new(places_max: usize, share_max: usize) -> Self {
        Self { shares: Shares::new(places_max, share_max), waiting: VecDeque::new() }
    }

    /// Lets a peer in, and says who must go for it.
    pub fn enter(&mut self, peer: u64, network: Network) -> Vec<u64> {
        let mut gone = Vec::new();
        while !self.shares.take(network) {
            let from = if self.shares.is_over(network) { Some(network) } else { self.shares.greedy() };
            let oldest = self.waiting.iter().find(|(_, of)| from.is_none_or(|from| *of == from)).copied();
            // Nobody waits only where there are no places at all.
            let Some((id, _)) = oldest else { break };
            self.leave(id);
            gone.push(id);
        }
        self.waiting.push_back((peer, network));
        gone
    }

    /// Whether a peer that comes from this network now would drive out one of its own.
    pub fn displaces_its_own(&self, network: Network) -> bool {
        let full = self.shares.taken >= self.shares.places_max;
        self.shares.is_over(network) || (full && self.shares.greedy() == Some(network))
    }

    /// A peer has said what it wants, or is gone.
    pub fn leave(&mut self, peer: u64) {
        if let Some(at) = self.waiting.iter().position(|(id, _)| *id == peer)
            && let Some((_, network)) = self.waiting.remove(at)
        {
            self.shares.give_back(network);
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::of(text.parse().expect("an address"))
    }

    #[test]
    fn neighbours_are_one_network_and_loopback_addresses_are_not() {
        assert_eq!(network("192.0.2.1"), network("192.0.2.200"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:ffff::2"));
        assert_ne!(network("2001:db8:1:1::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.9"));
        assert_ne!(network("127.0.0.1"), network("127.0.0.2"));
    }

    #[test]
    fn one_network_never_has_the_places_of_others_and_has_plenty_while_nobody_else_wants_them() {
        let (mut shares, greedy, other) = (Shares::new(8, 2), network("192.0.2.1"), network("198.51.100.1"));
        let taken = (0..100).filter(|_| shares.take(greedy)).count();
        assert_eq!(taken, 4, "half of all");
        assert!(shares.take(other) && shares.take(other));
        assert!(!shares.take(other), "places are short, and it has its share");
        for n in 0..2 {
            assert!(shares.take(network(&format!("203.0.{n}.1"))));
        }
        assert!(!shares.take(network("203.0.9.1")), "all are taken");
        shares.give_back(greedy);
        assert!(shares.take(network("203.0.9.1")));
    }

    #[test]
    fn whoever_is_idle_longest_goes_first_and_never_somebody_of_a_smaller_network() {
        let (greedy, other) = (network("192.0.2.1"), network("198.51.100.1"));
        let mut room = WaitingRoom::new(8, 2);
        assert!((0..4).all(|peer| room.enter(peer, greedy).is_empty()));
        assert_eq!(room.enter(4, greedy), [0], "its own oldest");
        assert!(room.enter(5, other).is_empty());
        for peer in 6..1_000 {
            assert!(!room.enter(peer, greedy).contains(&5));
        }
        assert_eq!(room.len(), 4, "half of all");
        room.leave(5);
        assert_eq!(room.len(), 3);
    }

    #[test]
    fn there_are_never_more_than_there_are_places_and_the_greedy_go_first() {
        let (greedy, small) = (network("192.0.2.1"), network("198.51.100.1"));
        let mut room = WaitingRoom::new(8, 2);
        assert!((0..4).all(|peer| room.enter(peer, greedy).is_empty()));
        assert!(room.enter(4, small).is_empty());
        for n in 5..8 {
            assert!(room.enter(n, network(&format!("203.0.{n}.1"))).is_empty());
        }
        assert_eq!(room.enter(8, network("203.0.8.1")), [0], "the oldest of the greedy network");
        assert_eq!(room.enter(9, greedy), [1, 2], "until there is room for it");
        for peer in 10..1_000 {
            room.enter(peer, network(&format!("203.{}.{}.1", peer / 256, peer % 256)));
            assert!(room.len() <= 8 && room.shares.taken == room.len());
        }
    }

    #[test]
    fn a_full_room_of_many_networks_lets_the_newest_in() {
        let mut room = WaitingRoom::new(4, 1);
        for n in 0..50_u64 {
            let gone = room.enter(n, network(&format!("203.0.{n}.1")));
            assert_eq!(gone, n.checked_sub(4).into_iter().collect::<Vec<_>>());
        }
        assert_eq!(room.len(), 4);
    }
}
