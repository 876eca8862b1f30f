//! How carefully to proceed, as it is written: each field optional, so that a manifest's server entry, the
//! manifest and its environment can each say a part of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::failure::FailureKind;
use crate::ids::ServerName;
use crate::plan::{OnFailure, OnTimeout, RollbackStrategy};
use crate::time::Length;

/// A number of instances, written `2`, or a part of a server's instances, written `20%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Count(u32),
    /// So many of a hundred, at most 100.
    Percent(u32),
}

impl Share {
    /// How many of `all` that is; a part is rounded up.
    pub fn of_rounded_up(self, all: usize) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => clamp((all as u128 * u128::from(percent)).div_ceil(100)),
        }
    }

    /// How many of `all` that is; a part is rounded down, but not below 1 unless it is 0%.
    pub fn of_rounded_down(self, all: usize) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(0) => 0,
            Self::Percent(percent) => clamp(all as u128 * u128::from(percent) / 100).max(1),
        }
    }
}

fn clamp(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "So many instances, or a part of them such as 20%.",
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^[0-9]+ *%?$" }],
        })
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShareVisitor;

        impl Visitor<'_> for ShareVisitor {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of instances such as 2, or a part of them such as 20%")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Share, E> {
                u32::try_from(number).map(Share::Count).map_err(|_| E::custom(format!("{number} is too large")))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Share, E> {
                u64::try_from(number)
                    .map_err(|_| E::custom(format!("{number} is negative")))
                    .and_then(|n| self.visit_u64(n))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
                let percent = text.strip_suffix('%').and_then(|digits| digits.trim().parse::<u32>().ok());
                match (percent, text.parse::<u32>()) {
                    (Some(percent), _) if percent <= 100 => Ok(Share::Percent(percent)),
                    (None, Ok(count)) => Ok(Share::Count(count)),
                    (Some(_) | None, _) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_any(ShareVisitor)
    }
}

/// [`crate::plan::Pace`] for one server of a manifest, each field optional.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PaceWritten {
    /// How many instances go first: a number, or a part such as 20%, rounded up.
    pub canary: Option<Share>,
    /// How long canaries stay healthy before the others follow.
    pub bake: Option<Length>,
    /// How many follow at a time, each batch confirmed before the next; 0 for no batches.
    pub batch: Option<Share>,
    /// How many may be out of service at once, unreachable ones counted; a part is rounded down, to 1 at least.
    pub max_unavailable: Option<Share>,
    /// How long an instance must be healthy before it is confirmed.
    pub min_healthy_time: Option<Length>,
    /// How long it has from the switch to become healthy.
    pub healthy_deadline: Option<Length>,
    /// Whether the others follow a healthy canary without anybody's approval; `true` unless said otherwise.
    pub auto_promote: Option<bool>,
}

/// [`crate::plan::Rollout`], and what holds for every server that does not say otherwise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutWritten {
    /// How many instances go first: a number, or a part such as 20%, rounded up.
    pub canary: Option<Share>,
    /// How long canaries stay healthy before the others follow; everything once more at the end.
    pub bake: Option<Length>,
    /// How many follow at a time, each batch confirmed before the next; 0 for no batches.
    pub batch: Option<Share>,
    /// How many may be out of service at once, unreachable ones counted; a part is rounded down, to 1 at least.
    pub max_unavailable: Option<Share>,
    /// How long an instance must be healthy before it is confirmed.
    pub min_healthy_time: Option<Length>,
    /// How long it has from the switch to become healthy.
    pub healthy_deadline: Option<Length>,
    /// Whether the others follow a healthy canary without anybody's approval; `true` unless said otherwise.
    pub auto_promote: Option<bool>,
    /// How many instances are in motion at once.
    pub max_parallel: Option<u32>,
    /// How long a deployment may make no progress.
    pub progress_deadline: Option<Length>,
    /// How much longer an unconfirmed host waits until it puts itself back.
    pub confirm_timeout: Option<Length>,
    /// How many failed instances are put back and left out.
    pub failure_threshold: Option<u32>,
    /// What happens then.
    pub on_failure: Option<OnFailure>,
    /// Where the deployment waits for people.
    #[serde(default)]
    #[schemars(with = "Vec<PauseWritten>")]
    pub pauses: Vec<Spanned<PauseWritten>>,
    /// How often a step that fails is tried again.
    #[serde(default)]
    pub retry: RetryWritten,
}

impl RolloutWritten {
    /// This, with what it does not say taken from another; the points at which deployments wait are those of both.
    pub fn or(self, base: Self) -> Self {
        let retry = RetryWritten {
            attempts: self.retry.attempts.or(base.retry.attempts),
            base: self.retry.base.or(base.retry.base),
            max: self.retry.max.or(base.retry.max),
            total: self.retry.total.or(base.retry.total),
            kinds: base.retry.kinds.into_iter().chain(self.retry.kinds).collect(),
        };
        Self {
            canary: self.canary.or(base.canary),
            bake: self.bake.or(base.bake),
            batch: self.batch.or(base.batch),
            max_unavailable: self.max_unavailable.or(base.max_unavailable),
            min_healthy_time: self.min_healthy_time.or(base.min_healthy_time),
            healthy_deadline: self.healthy_deadline.or(base.healthy_deadline),
            auto_promote: self.auto_promote.or(base.auto_promote),
            max_parallel: self.max_parallel.or(base.max_parallel),
            progress_deadline: self.progress_deadline.or(base.progress_deadline),
            confirm_timeout: self.confirm_timeout.or(base.confirm_timeout),
            failure_threshold: self.failure_threshold.or(base.failure_threshold),
            on_failure: self.on_failure.or(base.on_failure),
            pauses: base.pauses.into_iter().chain(self.pauses).collect(),
            retry,
        }
    }
}

impl RollbackWritten {
    /// This, with what it does not say taken from another.
    pub fn or(self, base: Self) -> Self {
        Self {
            enabled: self.enabled.or(base.enabled),
            strategy: self.strategy.or(base.strategy),
            batch_size: self.batch_size.or(base.batch_size),
            deadline: self.deadline.or(base.deadline),
        }
    }
}

/// A point at which a deployment waits to be approved: exactly one of `before` and `after_canary`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseWritten {
    /// The group of this server waits.
    #[serde(default)]
    pub before: Option<ServerName>,
    /// The other instances of this server wait when its canaries have baked.
    #[serde(default)]
    pub after_canary: Option<ServerName>,
    /// How many people must approve; 1 unless said otherwise.
    #[serde(default)]
    pub approvals: Option<u32>,
    /// How long it waits; for ever unless said otherwise.
    #[serde(default)]
    pub timeout: Option<Length>,
    /// What happens then.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

/// [`crate::plan::RetryPolicy`], each field optional.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryWritten {
    /// How many attempts a step has that fails transiently, the first included.
    pub attempts: Option<u32>,
    /// The longest pause after the first attempt; it doubles with each.
    pub base: Option<Length>,
    /// The longest pause after any attempt.
    pub max: Option<Length>,
    /// How long after the first failure a step is still tried again.
    pub total: Option<Length>,
    /// Attempts for failures of a kind, transient or not.
    #[serde(default)]
    pub kinds: BTreeMap<FailureKind, u32>,
}

/// [`crate::plan::RollbackPolicy`], each field optional.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackWritten {
    /// Whether a failure puts everything back.
    pub enabled: Option<bool>,
    /// In which order and manner.
    pub strategy: Option<RollbackStrategy>,
    /// How many at a time, for the strategy `batch`.
    pub batch_size: Option<u32>,
    /// How long it may take.
    pub deadline: Option<Length>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> Result<Share, String> {
        serde_saphyr::from_str::<BTreeMap<String, Share>>(&format!("x: {text}"))
            .map(|map| map["x"])
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_share_is_a_count_or_a_percentage() {
        assert_eq!(share("3"), Ok(Share::Count(3)));
        assert_eq!(share("20%"), Ok(Share::Percent(20)));
        for bad in ["-1", "101%", "x", "1.5", "20 percent", "99999999999", "[]"] {
            assert!(share(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn canaries_round_up_and_what_may_be_away_rounds_down_to_at_least_one() {
        assert_eq!((Share::Percent(20).of_rounded_up(11), Share::Percent(20).of_rounded_down(11)), (3, 2));
        assert_eq!((Share::Percent(1).of_rounded_up(3), Share::Percent(1).of_rounded_down(3)), (1, 1));
        assert_eq!((Share::Percent(0).of_rounded_up(3), Share::Percent(0).of_rounded_down(3)), (0, 0));
        assert_eq!(Share::Percent(100).of_rounded_up(usize::MAX), u32::MAX);
    }
}
