//! How carefully a plan is carried out: per server its pace, and for the whole what stops it, for whom it waits
//! and what is tried again.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use super::RetryPolicy;
use crate::ids::ServerName;
use crate::time::Length;

/// How fast the instances of one server are switched. Percentages were resolved when the plan was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// How many instances go first, and must stay healthy for [`Self::bake`] before the others.
    pub canary: u32,
    /// How long the canaries must stay healthy.
    pub bake: Length,
    /// How many instances make one batch after the canaries; the next one begins when all of a batch are
    /// confirmed. 0 for no batches.
    pub batch: u32,
    /// How many instances may be out of service at once; unreachable ones count.
    pub max_unavailable: u32,
    /// How long an instance must be healthy before it is confirmed.
    pub min_healthy_time: Length,
    /// How long an instance has to become healthy after it was switched.
    pub healthy_deadline: Length,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            canary: 0,
            bake: Length::ZERO,
            batch: 0,
            max_unavailable: 1,
            min_healthy_time: Length::from_secs(1),
            healthy_deadline: Length::from_secs(120),
        }
    }
}

/// What is done when more instances have failed than [`Rollout::failure_threshold`] allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OnFailure {
    /// Everything touched is put back.
    #[default]
    Rollback,
    /// Nothing moves until a person decides.
    Pause,
    /// The failed instance alone is put back and left out; the others go on.
    Continue,
}

/// Where a deployment waits for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseAt {
    /// Before the first switch of this group, from 0.
    BeforeGroup(usize),
    /// After the canaries of this server have baked, before its other instances.
    AfterCanary(ServerName),
}

/// What happens when nobody has decided in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OnTimeout {
    /// It goes on.
    Approve,
    /// It fails.
    #[default]
    Reject,
}

/// A point at which a deployment waits to be approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausePoint {
    /// Where.
    pub at: PauseAt,
    /// How many different people must approve. From two on, whoever started the deployment does not count.
    pub approvals: u32,
    /// How long it waits; nothing for as long as it takes.
    pub timeout: Option<Length>,
    /// What happens then.
    pub on_timeout: OnTimeout,
}

/// How carefully the whole proceeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How many instances may be in motion at once, over all servers.
    pub max_parallel: u32,
    /// How long all checks of all servers must hold together at the end.
    pub bake: Length,
    /// How long the deployment may go without progress; time in which it is paused does not count.
    pub progress_deadline: Length,
    /// How long a host waits to be confirmed before it puts itself back.
    pub confirm_timeout: Length,
    /// How many instances may fail, each put back and left out, before [`Self::on_failure`] decides.
    pub failure_threshold: u32,
    /// What is done then.
    pub on_failure: OnFailure,
    /// Where it waits for people.
    pub pauses: Vec<PausePoint>,
    /// What is tried again.
    pub retry: RetryPolicy,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_parallel: 16,
            bake: Length::ZERO,
            progress_deadline: Length::from_secs(600),
            confirm_timeout: Length::from_secs(60),
            failure_threshold: 0,
            on_failure: OnFailure::Rollback,
            pauses: Vec::new(),
            retry: RetryPolicy::default(),
        }
    }
}
