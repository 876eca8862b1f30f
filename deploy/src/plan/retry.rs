//! Which failures of a step are tried again, how often, and after which pauses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};
use crate::ids::DeploymentId;
use crate::time::Length;

/// Bounds on trying a step again: in attempts, and in time since it first failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How many attempts a step has, the first included, when it fails transiently.
    pub attempts: u32,
    /// The longest pause after the first attempt; it doubles with each attempt.
    pub base: Length,
    /// The longest pause after any attempt.
    pub max: Length,
    /// How long after its first failure a step is still tried again.
    pub total: Length,
    /// Attempts for failures of these kinds, whether transient or not.
    pub kinds: BTreeMap<FailureKind, u32>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: Length::from_secs(2),
            max: Length::from_secs(60),
            total: Length::from_secs(600),
            kinds: BTreeMap::new(),
        }
    }
}

impl RetryPolicy {
    /// How many attempts a step has that failed like this.
    pub fn attempts_for(&self, failure: &Failure) -> u32 {
        let otherwise = if failure.transient { self.attempts } else { 1 };
        self.kinds.get(&failure.kind).copied().unwrap_or(otherwise)
    }

    /// The pause after the given attempt, from 1: exponential back-off with full jitter. What would be drawn at
    /// random comes from the hash of what is tried, so that hosts spread and a replay pauses as long.
    pub fn pause(&self, deployment: &DeploymentId, tried: &str, attempt: u32) -> Length {
        let doublings = attempt.saturating_sub(1).min(32);
        let ceiling = self.base.ms().saturating_mul(1 << doublings).min(self.max.ms());
        let hash = blake3::hash(format!("{deployment}/{tried}/{attempt}").as_bytes());
        let drawn = hash.as_bytes().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        Length::from_ms(drawn % ceiling.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(attempt: u32) -> Vec<u64> {
        let deployment: DeploymentId = "d1-aa".parse().expect("id");
        (0..1_000).map(|n| RetryPolicy::default().pause(&deployment, &format!("s@h{n}"), attempt).ms()).collect()
    }

    #[test]
    fn pauses_are_spread_evenly_below_a_ceiling_that_doubles_up_to_its_own() {
        for (attempt, ceiling) in [(1, 2_000), (2, 4_000), (5, 32_000), (6, 60_000), (4_000, 60_000)] {
            let drawn = pauses(attempt);
            assert!(drawn.iter().all(|ms| *ms <= ceiling));
            let mean = drawn.iter().sum::<u64>() / 1_000;
            assert!((ceiling * 2 / 5..ceiling * 3 / 5).contains(&mean), "{mean} ms on average below {ceiling}");
        }
    }

    #[test]
    fn only_transient_failures_are_tried_again_unless_their_kind_says_otherwise() {
        let mut policy = RetryPolicy::default();
        let network = Failure::new(FailureKind::NetworkError, "install", "no route");
        let health = Failure::new(FailureKind::HealthCheckError, "health gate", "no answer");
        assert_eq!((policy.attempts_for(&network), policy.attempts_for(&health)), (3, 1));
        policy.kinds.extend([(FailureKind::NetworkError, 1), (FailureKind::HealthCheckError, 2)]);
        assert_eq!((policy.attempts_for(&network), policy.attempts_for(&health)), (1, 2));
    }
}
