//! How much one host may add to the coordinator's journal by itself: by coming and going, and by the health of its
//! servers. Steps of deployments are not counted: an order has one outcome.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::ServerName;
use crate::pace::{Bucket, Rate};
use crate::time::{Length, Timestamp};

/// What a host may add by greetings, in bytes.
pub const GREETINGS: Rate = Rate { burst: 1024 * 1024, per_hour: 4 * 1024 * 1024 };
/// What it may add by reports of health, in bytes.
pub const HEALTH: Rate = Rate { burst: 1024 * 1024, per_hour: 4 * 1024 * 1024 };
/// What of that each of its servers has for itself, in bytes: it is told at once whatever its neighbours do.
pub const HEALTH_OF_SERVER: Rate = Rate { burst: 64 * 1024, per_hour: 256 * 1024 };
/// What a host has at once that was known before the coordinator was started: what it had used up is not remembered, and
/// is not given again.
const AT_ONCE_AFTER_RESTART_BYTES: u32 = 128 * 1024;
/// For how many servers of a host it is remembered what they have added.
const SERVERS_MAX: usize = 1_024;
/// How long it is said that a host used up its budget after it last did.
const TOLD_FOR: Length = Length::from_secs(3_600);

/// That a host has used up its budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverBudget {
    /// Since when.
    pub since: Timestamp,
    /// When it last did.
    pub last: Timestamp,
    /// How many of its greetings were refused.
    pub greetings_refused: u64,
    /// How many of its reports of health were held back, and were kept only where they were the newest of their server.
    pub health_held_back: u64,
}

/// What one host has left.
#[derive(Clone, Debug)]
pub struct JournalBudget {
    greetings: Bucket,
    health: Bucket,
    servers: BTreeMap<ServerName, Bucket>,
    over: Option<OverBudget>,
}

impl JournalBudget {
    /// A whole one.
    pub fn new(now: Timestamp) -> Self {
        let (greetings, health) = (Bucket::new(GREETINGS, now), Bucket::new(HEALTH, now));
        Self { greetings, health, servers: BTreeMap::new(), over: None }
    }

    /// That of a host that was known before the coordinator was started.
    pub fn after_restart(now: Timestamp) -> Self {
        let mut budget = Self::new(now);
        budget.greetings.charge(GREETINGS.burst - AT_ONCE_AFTER_RESTART_BYTES, now);
        budget.health.charge(HEALTH.burst - AT_ONCE_AFTER_RESTART_BYTES, now);
        budget
    }

    /// Whether a greeting that adds so many bytes is taken.
    pub fn takes_greeting(&mut self, bytes: u32, now: Timestamp) -> bool {
        let taken = self.greetings.take(bytes, now).is_ok();
        if !taken {
            self.note(now).greetings_refused += 1;
        }
        taken
    }

    /// A host went, which added so many bytes.
    pub fn went(&mut self, bytes: u32, now: Timestamp) {
        self.greetings.charge(bytes, now);
    }

    /// Whether a report of a server's health that adds so many bytes is taken now; otherwise it is held back. What the host
    /// has in common goes to those first that wait (`others_wait`).
    pub fn takes_health(&mut self, server: &ServerName, bytes: u32, others_wait: bool, now: Timestamp) -> bool {
        let in_common = self.health.has_some(now) && !others_wait;
        let taken = self.has_own(server, now) || in_common;
        if taken {
            self.health.charge(bytes, now);
            if let Some(own) = self.own(server, now) {
                own.charge(bytes, now);
            }
        } else {
            self.note(now).health_held_back += 1;
        }
        taken
    }

    /// Whether something of a server that was held back may be taken now.
    pub fn takes_health_again(&mut self, server: &ServerName, now: Timestamp) -> bool {
        self.has_own(server, now) || self.health.has_some(now)
    }

    fn has_own(&mut self, server: &ServerName, now: Timestamp) -> bool {
        self.own(server, now).is_some_and(|own| own.has_some(now))
    }

    /// What a server has for itself; nothing where a host has too many.
    fn own(&mut self, server: &ServerName, now: Timestamp) -> Option<&mut Bucket> {
        if !self.servers.contains_key(server) && self.servers.len() >= SERVERS_MAX {
            self.servers.retain(|_, own| !own.is_full(now));
            if self.servers.len() >= SERVERS_MAX {
                return None;
            }
        }
        Some(self.servers.entry(server.clone()).or_insert_with(|| Bucket::new(HEALTH_OF_SERVER, now)))
    }

    /// That the host has used it up, as long as it is worth knowing.
    pub fn over(&self, now: Timestamp) -> Option<&OverBudget> {
        self.over.as_ref().filter(|over| now.since(over.last) < TOLD_FOR)
    }

    fn note(&mut self, now: Timestamp) -> &mut OverBudget {
        if self.over(now).is_none() {
            self.over = None;
        }
        let fresh = || OverBudget { since: now, last: now, greetings_refused: 0, health_held_back: 0 };
        let over = self.over.get_or_insert_with(fresh);
        over.last = now;
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServerName {
        text.parse().expect("name")
    }

    #[test]
    fn a_server_that_floods_holds_up_itself_and_not_its_neighbours() {
        let at = |second: i64| Timestamp::from_unix_ms(second * 1_000);
        let mut budget = JournalBudget::new(at(0));
        let (loud, quiet) = (name("loud"), name("quiet"));
        let mut taken = 0;
        for second in 0..3_600 {
            // Each report of the loud one is as large as they get. One of them always waits, and comes as soon as it may.
            if budget.takes_health_again(&loud, at(second)) {
                taken += u32::from(budget.takes_health(&loud, 80_000, false, at(second)));
            }
            if second % 60 == 0 {
                assert!(budget.takes_health(&quiet, 2_000, true, at(second)), "after {second} s");
            }
        }
        let most = (HEALTH.burst + HEALTH.per_hour + HEALTH_OF_SERVER.burst + HEALTH_OF_SERVER.per_hour) / 80_000 + 2;
        assert!(taken <= most, "{taken} of the loud one in an hour, at most {most}");
    }

    #[test]
    fn a_restart_of_the_coordinator_gives_a_known_host_a_part_at_once_and_an_honest_one_enough() {
        let now = Timestamp::from_unix_ms(0);
        let mut budget = JournalBudget::after_restart(now);
        assert!(budget.takes_greeting(1_500, now));
        for n in 0..50 {
            assert!(budget.takes_health(&name(&format!("s{n}")), 1_500, false, now), "its {n}th server");
        }
        let taken = (0..100_000).filter(|_| budget.takes_greeting(24_000, now)).count();
        assert_eq!(taken, 6, "128 KiB, with what was taken already");
    }

    #[test]
    fn a_host_with_very_many_servers_takes_no_more_memory_for_them() {
        let now = Timestamp::from_unix_ms(0);
        let mut budget = JournalBudget::new(now);
        for n in 0..5_000 {
            budget.takes_health(&name(&format!("s{n}")), 100, false, now);
        }
        assert_eq!(budget.servers.len(), SERVERS_MAX);
        let later = Timestamp::from_unix_ms(3_600_000);
        assert!(budget.takes_health(&name("another"), 100, false, later) && budget.servers.len() == 1);
    }

    #[test]
    fn a_host_that_floods_adds_little_more_than_its_budget_and_is_named() {
        let start = Timestamp::from_unix_ms(0);
        let mut budget = JournalBudget::new(start);
        assert_eq!(budget.over(start), None);
        let (mut greetings, mut health) = (0, 0);
        for n in 0..100_000 {
            let now = Timestamp::from_unix_ms(n);
            greetings += 24_000 * u64::from(budget.takes_greeting(24_000, now));
            health += 1_000 * u64::from(budget.takes_health(&name("a"), 1_000, false, now));
        }
        let most = |rate: Rate| u64::from(rate.burst) + u64::from(rate.per_hour) / 30 + 24_000;
        assert!(greetings < most(GREETINGS) && health < most(HEALTH) + most(HEALTH_OF_SERVER), "{greetings} {health}");
        let over = budget.over(Timestamp::from_unix_ms(100_000)).expect("it is named");
        assert!(over.greetings_refused > 90_000 && over.health_held_back > 90_000);
        assert_eq!(budget.over(Timestamp::from_unix_ms(100_000_000)), None, "an hour later it is forgotten");
    }

    #[test]
    fn what_a_host_does_without_malice_is_always_taken() {
        let mut budget = JournalBudget::new(Timestamp::from_unix_ms(0));
        for second in 0..20_000 {
            let now = Timestamp::from_unix_ms(second * 2_000);
            assert!(budget.takes_greeting(1_500, now), "it comes back every two seconds");
            assert!(budget.takes_health(&name("a"), 2_000, false, now), "a server of it flaps every two seconds");
        }
    }
}
