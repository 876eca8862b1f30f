//! A plan: the immutable, ordered outcome of planning. It leaves no choice to whoever executes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::ids::{EnvironmentName, Generation, HostName, InstanceId, ManifestName, PlanId, ReleaseId, ServerName};
use crate::release::Release;
use crate::time::Length;

/// What a step does to its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StepAction {
    /// It does not exist yet.
    Create,
    /// It runs another release.
    Update,
    /// It runs this release already.
    Unchanged,
    /// The manifest no longer has it.
    Remove,
}

/// One instance's passage from its present release to the planned one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The instance.
    pub instance: InstanceId,
    /// What is done to it.
    pub action: StepAction,
    /// The release it runs when the plan was made.
    pub previous: Option<ReleaseId>,
    /// The release it is to run; nothing for a removal.
    pub release: Option<Release>,
    /// The hash of that release.
    pub release_id: Option<ReleaseId>,
}

/// Servers with no dependency between them, deployed in parallel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The servers, in the order in which their instances are started: by priority, then by name.
    pub servers: Vec<ServerName>,
    /// Their steps, in that order and then by host.
    pub steps: Vec<PlannedStep>,
}

/// A server that the manifest marks optional and whose need no host meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The server.
    pub server: ServerName,
    /// Why no host would do.
    pub reason: String,
}

/// How carefully a group proceeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How many instances of each server go first, and must stay healthy for [`Self::bake`] before the others.
    pub canary: u32,
    /// How long everything must stay healthy: the canaries before the others, and all servers at the end.
    pub bake: Length,
    /// How many instances of one server may be out of service at once; unreachable ones count.
    pub max_unavailable: u32,
    /// How many instances may be in motion at once, over all servers.
    pub max_parallel: u32,
    /// How long an instance must be healthy before it is confirmed.
    pub min_healthy_time: Length,
    /// How long an instance has to become healthy after it was switched.
    pub healthy_deadline: Length,
    /// How long the deployment may go without progress.
    pub progress_deadline: Length,
    /// How long a host waits to be confirmed before it puts itself back.
    pub confirm_timeout: Length,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            canary: 0,
            bake: Length::ZERO,
            max_unavailable: 1,
            max_parallel: 16,
            min_healthy_time: Length::from_secs(1),
            healthy_deadline: Length::from_secs(120),
            progress_deadline: Length::from_secs(600),
            confirm_timeout: Length::from_secs(60),
        }
    }
}

/// In which order and manner touched instances are put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RollbackStrategy {
    /// Everything touched, at once.
    Immediate,
    /// In reverse order, a few at a time.
    Batch,
    /// In reverse dependency order, one group after the other.
    #[default]
    Graceful,
    /// At once, without waiting for servers to stop.
    Aggressive,
    /// Nothing moves until a person says so.
    Manual,
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

/// The immutable, ordered outcome of planning. Its id is the hash of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The manifest it was made from.
    pub manifest: ManifestName,
    /// The environment it was made for.
    pub environment: EnvironmentName,
    /// The generation of the fleet when it was made; its deployment raises the fleet to the next one.
    pub parent: Generation,
    /// The groups, in the order in which they are deployed; removals come last.
    pub groups: Vec<Group>,
    /// Servers left out.
    pub skipped: Vec<Skipped>,
    /// How carefully groups proceed.
    pub rollout: Rollout,
    /// What happens on failure.
    pub rollback: RollbackPolicy,
}

/// How many steps of a plan do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// Instances that do not exist yet.
    pub create: usize,
    /// Instances that run another release.
    pub update: usize,
    /// Instances that run the planned release already.
    pub unchanged: usize,
    /// Instances the manifest no longer has.
    pub remove: usize,
}

impl PlanSummary {
    /// How many instances the plan changes.
    pub fn changes(self) -> usize {
        self.create + self.update + self.remove
    }
}

impl Plan {
    /// The content hash of this plan.
    pub fn id(&self) -> PlanId {
        PlanId::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// All steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &PlannedStep> {
        self.groups.iter().flat_map(|group| &group.steps)
    }

    /// The steps that change something, in order, each with the number of its group.
    pub fn changes(&self) -> impl Iterator<Item = (usize, &PlannedStep)> {
        let numbered = self.groups.iter().enumerate().flat_map(|(n, group)| group.steps.iter().map(move |s| (n, s)));
        numbered.filter(|(_, step)| step.action != StepAction::Unchanged)
    }

    /// How many steps do what.
    pub fn summary(&self) -> PlanSummary {
        let mut summary = PlanSummary::default();
        for step in self.steps() {
            match step.action {
                StepAction::Create => summary.create += 1,
                StepAction::Update => summary.update += 1,
                StepAction::Unchanged => summary.unchanged += 1,
                StepAction::Remove => summary.remove += 1,
            }
        }
        summary
    }

    /// For every host that the plan changes, the servers it changes there and the release each is to run.
    pub fn per_host(&self) -> BTreeMap<HostName, Vec<(ServerName, Option<ReleaseId>)>> {
        let mut hosts: BTreeMap<HostName, Vec<(ServerName, Option<ReleaseId>)>> = BTreeMap::new();
        for (_, step) in self.changes() {
            let InstanceId { server, host } = step.instance.clone();
            hosts.entry(host).or_default().push((server, step.release_id.clone()));
        }
        hosts
    }
}
