//! A plan: the immutable, ordered outcome of planning. It leaves no choice to whoever executes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::admission::{BEGIN_WITHIN_MIN, INTENT_LIFETIME_MAX, Purpose};
use crate::ids::{EnvironmentName, Generation, HostName, InstanceId, ManifestName, PlanId, ReleaseId, ServerName};
use crate::release::Release;
use crate::time::Length;

mod external;
mod retry;
mod rollback;
mod rollout;
#[cfg(feature = "planning")]
mod written;

pub use external::{EXTERNAL_TIMEOUT_MAX, EXTERNALS_MAX, External, ExternalEndpoint};
pub use retry::RetryPolicy;
pub use rollback::{RollbackAction, RollbackPolicy, RollbackStep, RollbackStrategy};
pub use rollout::{OnFailure, OnTimeout, Pace, PauseAt, PausePoint, Rollout};
#[cfg(feature = "planning")]
pub(crate) use written::{PlanHash, add_step, begin_group};

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
    pub release: Option<Arc<Release>>,
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

/// A broken rule of the environment that an operator has set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleOverride {
    /// The rule.
    pub rule: String,
    /// Why.
    pub reason: String,
    /// Where it is broken, and how.
    pub broken: Vec<String>,
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
    /// How fast the instances of each server are switched.
    pub paces: BTreeMap<ServerName, Pace>,
    /// How carefully the whole proceeds.
    pub rollout: Rollout,
    /// What happens on failure.
    pub rollback: RollbackPolicy,
    /// Servers that begin, within their group, only once these others of it have been started.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub starts_after: BTreeMap<ServerName, BTreeSet<ServerName>>,
    /// What must answer before anything is got ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub externals: Vec<External>,
    /// Rules that it breaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<RuleOverride>,
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
    /// The content hash of this plan: of its JSON, with its fields in a fixed order.
    pub fn id(&self) -> PlanId {
        PlanId::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// How fast the instances of a server are switched.
    pub fn pace(&self, server: &ServerName) -> Pace {
        self.paces.get(server).copied().unwrap_or_default()
    }

    /// How long an operator's intent may take to reach a host: as long as the plan waits for one, and a little.
    pub fn begin_within(&self, purpose: Purpose) -> Length {
        let waits = match purpose {
            Purpose::Deploy => self.rollout.progress_deadline,
            Purpose::RollBack => self.rollback.deadline,
        };
        waits.plus(BEGIN_WITHIN_MIN).min(INTENT_LIFETIME_MAX)
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
