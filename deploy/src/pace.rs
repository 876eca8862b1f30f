//! How much of something one party may have in a time: token buckets, and samples of what would be said too often.
//! The time is an argument.

use std::collections::BTreeMap;

use crate::time::{Length, Timestamp};

/// An hour, in milliseconds.
const HOUR_MS: i64 = 3_600_000;

/// How much at once, and how much in an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How much may be taken at once after a long pause.
    pub burst: u32,
    /// How much comes back in an hour.
    pub per_hour: u32,
}

/// What is left of a rate. Something larger than what is left may be taken as long as anything is left: it is owed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    /// What is left, times the milliseconds of an hour. Below zero, it is owed.
    left: i64,
    at: Timestamp,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Timestamp) -> Self {
        Self { rate, left: i64::from(rate.burst) * HOUR_MS, at: now }
    }

    /// Takes this much, or says after how long there is something again.
    pub fn take(&mut self, amount: u32, now: Timestamp) -> Result<(), Length> {
        self.refill(now);
        if self.left <= 0 {
            let ms = (-self.left) / i64::from(self.rate.per_hour.max(1)) + 1;
            return Err(Length::from_ms(ms.unsigned_abs()));
        }
        self.owe(amount);
        Ok(())
    }

    /// Takes this much whether it is there or not: it has happened already.
    pub fn charge(&mut self, amount: u32, now: Timestamp) {
        self.refill(now);
        self.owe(amount);
    }

    /// Whether anything is left.
    pub fn has_some(&mut self, now: Timestamp) -> bool {
        self.refill(now);
        self.left > 0
    }

    /// Whether all of it is left.
    pub fn is_full(&mut self, now: Timestamp) -> bool {
        self.refill(now);
        self.left >= i64::from(self.rate.burst) * HOUR_MS
    }

    fn owe(&mut self, amount: u32) {
        // What is owed is never more than one burst below zero, so that nobody waits for ever.
        let floor = -i64::from(self.rate.burst.max(amount)) * HOUR_MS;
        self.left = (self.left - i64::from(amount) * HOUR_MS).max(floor);
    }

    fn refill(&mut self, now: Timestamp) {
        // A clock that was set back gives nothing, and takes nothing.
        let ms = i64::try_from(now.since(self.at).ms()).unwrap_or(i64::MAX);
        let full = i64::from(self.rate.burst) * HOUR_MS;
        self.left = self.left.saturating_add(ms.saturating_mul(self.rate.per_hour.into())).min(full);
        self.at = now;
    }
}

/// Says of each kind of line only some, and how many were not said.
#[derive(Clone, Debug)]
pub struct Sampled<K> {
    rate: Rate,
    kinds: BTreeMap<K, (Bucket, u64)>,
}

impl<K: Ord> Sampled<K> {
    /// Nothing was said yet. There must be a bound to the kinds that are asked about.
    pub fn new(rate: Rate) -> Self {
        Self { rate, kinds: BTreeMap::new() }
    }

    /// Whether a line of this kind is said now, and how many were not since the last one.
    pub fn says(&mut self, kind: K, now: Timestamp) -> Option<u64> {
        let (bucket, unsaid) = self.kinds.entry(kind).or_insert_with(|| (Bucket::new(self.rate, now), 0));
        match bucket.take(1, now) {
            Ok(()) => Some(std::mem::take(unsaid)),
            Err(_) => {
                *unsaid += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    #[test]
    fn what_is_taken_comes_back_with_time_and_never_more_than_a_burst() {
        let rate = Rate { burst: 2, per_hour: 3_600 };
        let mut bucket = Bucket::new(rate, at(0));
        assert_eq!((bucket.take(1, at(0)), bucket.take(1, at(0))), (Ok(()), Ok(())));
        let wait = bucket.take(1, at(0)).expect_err("it is empty");
        assert!(wait <= Length::from_ms(1_001), "{wait}");
        assert_eq!(bucket.take(1, at(0).after(wait)), Ok(()));
        assert_eq!((bucket.take(1, at(90_000_000)), bucket.take(1, at(90_000_000))), (Ok(()), Ok(())));
        assert!(bucket.take(1, at(90_000_000)).is_err());
    }

    #[test]
    fn something_large_is_taken_whole_and_owed() {
        let mut bucket = Bucket::new(Rate { burst: 10, per_hour: 3_600 }, at(0));
        assert_eq!(bucket.take(15, at(0)), Ok(()));
        assert!(bucket.take(1, at(4_000)).is_err());
        assert_eq!(bucket.take(1, at(5_002)), Ok(()));
    }

    #[test]
    fn a_clock_that_is_set_neither_locks_anybody_out_nor_gives_more_than_a_burst() {
        let mut bucket = Bucket::new(Rate { burst: 1, per_hour: 3_600 }, at(1_000_000_000));
        assert_eq!(bucket.take(1, at(0)), Ok(()));
        assert!(bucket.take(1, at(0)).is_err());
        assert_eq!(bucket.take(1, at(1_001)), Ok(()));
        assert_eq!(bucket.take(1, at(i64::MAX)), Ok(()));
        assert!(bucket.take(1, at(i64::MAX)).is_err());
    }

    #[test]
    fn of_a_flood_of_lines_some_are_said_with_the_number_of_the_others() {
        let mut sampled = Sampled::new(Rate { burst: 2, per_hour: 360 });
        let said: Vec<Option<u64>> = (0..5).map(|_| sampled.says("a", at(0))).collect();
        assert_eq!(said, [Some(0), Some(0), None, None, None]);
        assert_eq!(sampled.says("b", at(0)), Some(0));
        assert_eq!(sampled.says("a", at(10_001)), Some(3));
    }
}
