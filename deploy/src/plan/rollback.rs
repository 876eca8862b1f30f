//! How touched instances are put back: the policy, and the rollback plan that follows from a plan.

use serde::{Deserialize, Serialize};
use strum::{EnumIter, EnumString, IntoStaticStr};

use super::{Plan, PlannedStep, StepAction};
use crate::ids::InstanceId;
use crate::time::Length;

/// In which order and manner touched instances are put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, EnumString, EnumIter)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RollbackStrategy {
    /// Everything touched, at once.
    Immediate,
    /// In reverse order, [`RollbackPolicy::batch_size`] at a time.
    Batch,
    /// In reverse dependency order: servers are drained, and a group is put back only when what was put back
    /// before it is healthy again, or known to be stuck.
    #[default]
    Graceful,
    /// At once, killing servers instead of draining them; a single failure holds up nothing.
    Aggressive,
    /// Nothing moves until a person says so.
    Manual,
}

impl RollbackStrategy {
    /// Whether servers get their time to end before they are killed.
    pub fn drains(self) -> bool {
        self != Self::Aggressive
    }

    /// How it proceeds, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Immediate => "everything touched, at once",
            Self::Batch => "in reverse order, a batch at a time",
            Self::Graceful => "in reverse dependency order, each group healthy before the next",
            Self::Aggressive => "at once, servers are killed instead of drained",
            Self::Manual => "a person decides first, then everything at once",
        }
    }
}

/// What happens when a deployment fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackPolicy {
    /// Whether touched instances are put back at all.
    pub enabled: bool,
    /// In which order and manner.
    pub strategy: RollbackStrategy,
    /// How many at a time, for [`RollbackStrategy::Batch`].
    pub batch_size: u32,
    /// How long the rollback may take; what is not back by then is stuck.
    pub deadline: Length,
}

impl Default for RollbackPolicy {
    fn default() -> Self {
        Self { enabled: true, strategy: RollbackStrategy::Graceful, batch_size: 1, deadline: Length::from_secs(300) }
    }
}

/// What a host does to put an instance back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RollbackAction {
    /// The new release is stopped; one that does not end is killed.
    StopServer,
    /// The release that ran before is current again, with its rendered files.
    RestoreConfig,
    /// The data folder is as the snapshot has it.
    RestoreFiles,
    /// The database is as its dump has it.
    RestoreDatabase,
    /// The release that ran before is started, and must pass its own checks.
    RestartServer,
    /// The new release is removed from the host.
    CleanupResources,
}

/// How one instance would be put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackStep {
    /// The instance.
    pub instance: InstanceId,
    /// What its host does, in order.
    pub actions: Vec<RollbackAction>,
}

impl RollbackStep {
    fn of(step: &PlannedStep) -> Self {
        use RollbackAction::{
            CleanupResources, RestartServer, RestoreConfig, RestoreDatabase, RestoreFiles, StopServer,
        };
        let new = step.release.as_ref();
        let files = new.is_none_or(|release| release.snapshot_data || !release.snapshot_paths.is_empty());
        let database = new.is_some_and(|release| release.database.is_some());
        let kept = [(files, RestoreFiles), (database, RestoreDatabase)];
        let kept = kept.into_iter().filter_map(|(wanted, action)| wanted.then_some(action));
        let (before, after): (&[RollbackAction], &[RollbackAction]) = match step.action {
            StepAction::Create => (&[StopServer], &[CleanupResources]),
            StepAction::Update => (&[StopServer, RestoreConfig], &[RestartServer, CleanupResources]),
            StepAction::Remove => (&[RestoreConfig], &[RestartServer]),
            StepAction::Unchanged => return Self { instance: step.instance.clone(), actions: Vec::new() },
        };
        let actions = before.iter().copied().chain(kept).chain(after.iter().copied()).collect();
        Self { instance: step.instance.clone(), actions }
    }
}

impl Plan {
    /// The rounds in which a strategy puts back what this plan changes, should all of it be touched: the next
    /// round begins when the one before has settled.
    pub fn rollback_rounds(&self, strategy: RollbackStrategy) -> Vec<Vec<RollbackStep>> {
        let reverse: Vec<(usize, RollbackStep)> = self.changes().map(|(g, step)| (g, RollbackStep::of(step))).collect();
        let reverse = reverse.into_iter().rev();
        match strategy {
            RollbackStrategy::Immediate | RollbackStrategy::Aggressive | RollbackStrategy::Manual => {
                vec![reverse.map(|(_, step)| step).collect()]
            }
            RollbackStrategy::Batch => {
                let steps: Vec<RollbackStep> = reverse.map(|(_, step)| step).collect();
                steps.chunks(self.rollback.batch_size.max(1) as usize).map(<[_]>::to_vec).collect()
            }
            RollbackStrategy::Graceful => {
                let mut rounds: Vec<(usize, Vec<RollbackStep>)> = Vec::new();
                for (group, step) in reverse {
                    match rounds.last_mut() {
                        Some((of, round)) if *of == group => round.push(step),
                        Some(_) | None => rounds.push((group, vec![step])),
                    }
                }
                rounds.into_iter().map(|(_, round)| round).collect()
            }
        }
    }
}
