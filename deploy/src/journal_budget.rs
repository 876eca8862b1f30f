//! How much one host may add to the coordinator's journal by itself: by coming and going, and by the health of its
//! servers. Steps of deployments are not counted: an order has one outcome.

use serde::{Deserialize, Serialize};

use crate::pace::{Bucket, Rate};
use crate::time::{Length, Timestamp};

/// What a host may add by greetings, in bytes.
pub const GREETINGS: Rate = Rate { burst: 1024 * 1024, per_hour: 4 * 1024 * 1024 };
/// What it may add by reports of health, in bytes.
pub const HEALTH: Rate = Rate { burst: 1024 * 1024, per_hour: 4 * 1024 * 1024 };
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
    over: Option<OverBudget>,
}

impl JournalBudget {
    /// A whole one.
    pub fn new(now: Timestamp) -> Self {
        Self { greetings: Bucket::new(GREETINGS, now), health: Bucket::new(HEALTH, now), over: None }
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

    /// Whether a report of health that adds so many bytes is taken now; otherwise it is held back.
    pub fn takes_health(&mut self, bytes: u32, now: Timestamp) -> bool {
        let taken = self.health.take(bytes, now).is_ok();
        if !taken {
            self.note(now).health_held_back += 1;
        }
        taken
    }

    /// A report of health is held back, since others wait already.
    pub fn holds_back(&mut self, now: Timestamp) {
        self.note(now).health_held_back += 1;
    }

    /// Whether something that was held back may be taken now.
    pub fn takes_health_again(&mut self, now: Timestamp) -> bool {
        self.health.has_some(now)
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

    #[test]
    fn a_host_that_floods_adds_little_more_than_its_budget_and_is_named() {
        let start = Timestamp::from_unix_ms(0);
        let mut budget = JournalBudget::new(start);
        assert_eq!(budget.over(start), None);
        let (mut greetings, mut health) = (0, 0);
        for n in 0..100_000 {
            let now = Timestamp::from_unix_ms(n);
            greetings += 24_000 * u64::from(budget.takes_greeting(24_000, now));
            health += 1_000 * u64::from(budget.takes_health(1_000, now));
        }
        let most = |rate: Rate| u64::from(rate.burst) + u64::from(rate.per_hour) / 30 + 24_000;
        assert!(greetings < most(GREETINGS) && health < most(HEALTH), "{greetings} {health}");
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
            assert!(budget.takes_health(2_000, now), "a server of it flaps every two seconds");
        }
    }
}
