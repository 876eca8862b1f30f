//! Who may stay when a bridge has as many connections, or sessions, as it takes. Those that ask for nothing go first, so
//! that nobody keeps others out by being there.

use std::net::IpAddr;

use tokio::time::Instant;

/// Most connections at once.
pub(super) const CONNECTIONS_MAX: usize = 512;
/// The part of all that one peer keeps when others want in: one of these. Behind a proxy all come from one peer, so as long
/// as there is room, nobody is held to it.
const PEER_SHARES: usize = 4;

/// An open connection or session, as it is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) peer: IpAddr,
    /// Since when it has not asked for anything; nothing while a request of it, which has come whole, is answered.
    pub(super) idle_since: Option<Instant>,
}

/// What becomes of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Room,
    /// There is room once this one has gone.
    InPlaceOf(u64),
    Refused,
}

/// Judges a newcomer. Of the idle ones, the one goes that has been so for longest, of the peer that has most connections.
/// Where none is idle, a peer that has more than its share gives up its newest one, to another peer.
pub(super) fn admit(open: &[(u64, Open)], newcomer: IpAddr, most: usize) -> Admission {
    if open.len() < most {
        return Admission::Room;
    }
    let count = |peer: IpAddr| open.iter().filter(|(_, other)| other.peer == peer).count();
    let greediest = |idle: bool| {
        let peers = open.iter().filter(|(_, one)| one.idle_since.is_some() == idle).map(|(_, one)| one.peer);
        peers.collect::<std::collections::BTreeSet<_>>().into_iter().max_by_key(|peer| count(*peer))
    };
    if let Some(peer) = greediest(true) {
        let idle = open.iter().filter(|(_, one)| one.peer == peer).filter_map(|(id, one)| Some((one.idle_since?, *id)));
        return idle.min().map_or(Admission::Refused, |(_, id)| Admission::InPlaceOf(id));
    }
    let over = greediest(false).filter(|peer| *peer != newcomer && count(*peer) > most / PEER_SHARES);
    let newest = over.and_then(|peer| open.iter().filter(|(_, one)| one.peer == peer).map(|(id, _)| *id).max());
    newest.map_or(Admission::Refused, Admission::InPlaceOf)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn full(of: impl Fn(usize) -> (IpAddr, Option<u64>)) -> Vec<(u64, Open)> {
        let start = Instant::now();
        let open = (0..CONNECTIONS_MAX).map(|n| {
            let (peer, idle) = of(n);
            (n as u64, Open { peer, idle_since: idle.map(|s| start + Duration::from_secs(s)) })
        });
        open.collect()
    }

    #[tokio::test]
    async fn where_there_is_room_nobody_is_turned_out() {
        let mut open = full(|_| (A, None));
        open.pop();
        assert_eq!(admit(&open, A, CONNECTIONS_MAX), Admission::Room);
    }

    #[tokio::test]
    async fn the_longest_idle_one_of_whoever_has_most_goes_first() {
        let all_of_one = full(|n| (A, Some(if n == 7 { 1 } else { 2 })));
        assert_eq!(admit(&all_of_one, A, CONNECTIONS_MAX), Admission::InPlaceOf(7));
        // B's has been idle for longer, but A is the one that takes up the room.
        let one_of_another = full(|n| if n == 3 { (B, Some(0)) } else { (A, Some(n as u64 + 1)) });
        assert_eq!(admit(&one_of_another, B, CONNECTIONS_MAX), Admission::InPlaceOf(0));
        let busy_but_one = full(|n| (A, (n == 9).then_some(5)));
        assert_eq!(admit(&busy_but_one, A, CONNECTIONS_MAX), Admission::InPlaceOf(9));
    }

    #[tokio::test]
    async fn where_all_are_at_work_only_a_peer_beyond_its_share_gives_one_up() {
        let all_of_one = full(|_| (A, None));
        assert_eq!(admit(&all_of_one, A, CONNECTIONS_MAX), Admission::Refused);
        assert_eq!(admit(&all_of_one, B, CONNECTIONS_MAX), Admission::InPlaceOf(CONNECTIONS_MAX as u64 - 1));
        let fair = full(|n| (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, (n % 8) as u8)), None));
        assert_eq!(admit(&fair, B, CONNECTIONS_MAX), Admission::Refused);
    }
}
