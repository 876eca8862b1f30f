//! Deployments that are history: nothing can come of them any more. They leave the fleet for an archive, so that what is
//! kept in memory and in each snapshot does not grow with all that has ever been.

use std::collections::{BTreeMap, BTreeSet};

use super::deployments::may_count;
use super::{Fleet, Refused, note};
use crate::deployment::{Deployment, DeploymentSummary, Effects, Phase};
use crate::failure::{Failure, FailureKind};
use crate::ids::{DeploymentId, InstanceId, ReleaseId, ServerName};
use crate::instance::UNDOS_MAX;
use crate::time::{Length, Timestamp};

/// How much of the past stays with the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How many newer deployments must have touched every instance of one that goes: so many can be undone, one after the
    /// other.
    pub newer: usize,
    /// How long after its end that counts. What is older stays only for instances that are there: the deployments that their
    /// hosts can undo, and those that had planned what would run then.
    pub lifetime: Length,
}

impl Default for Retention {
    fn default() -> Self {
        Self { newer: 10, lifetime: Length::from_secs(90 * 24 * 3_600) }
    }
}

/// A deployment in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastDeployment {
    /// Its line in a list.
    pub summary: DeploymentSummary,
    /// The releases that it had planned for each server.
    pub planned: BTreeMap<ServerName, BTreeSet<ReleaseId>>,
    /// All of it.
    pub deployment: Deployment,
}

impl PastDeployment {
    /// A deployment as it goes to the archive.
    pub fn new(deployment: &Deployment) -> Self {
        let mut planned: BTreeMap<ServerName, BTreeSet<ReleaseId>> = BTreeMap::new();
        for step in deployment.plan().steps() {
            planned.entry(step.instance.server.clone()).or_default().extend(step.release_id.clone());
        }
        Self { summary: DeploymentSummary::new(deployment), planned, deployment: deployment.clone() }
    }
}

impl Fleet {
    /// The deployments that may go to the archive, the oldest first.
    pub fn history(&self, retention: Retention, now: Timestamp) -> Vec<DeploymentId> {
        let mut newer: BTreeMap<&InstanceId, usize> = BTreeMap::new();
        // What runs, and what would run again, is known by a deployment that had planned it: by the newest of them.
        let mut wanted: BTreeSet<(&InstanceId, &ReleaseId)> =
            self.instances().iter().map(|(id, record)| (id, &record.release_id)).collect();
        let mut history = Vec::new();
        for deployment in self.deployments().rev() {
            let touched = || deployment.steps().iter().filter(|(_, step)| step.touched).map(|(id, _)| id);
            let is_young = within(retention.lifetime, deployment, now);
            let enough = |id| match self.instances.get(id) {
                _ if is_young => retention.newer,
                Some(_) => UNDOS_MAX,
                None => 0,
            };
            let is_recent = || touched().any(|id| newer.get(id).copied().unwrap_or_default() < enough(id));
            let planned = |id| Some((id, deployment.planned(id)?.release_id.as_ref()?));
            let before = |id| Some((id, deployment.planned(id)?.previous.as_ref()?));
            let may_be_undone = !self.is_over(deployment, now) || is_recent();
            let mut is_wanted = false;
            touched().filter_map(planned).for_each(|of| is_wanted |= wanted.remove(&of));
            if may_be_undone {
                wanted.extend(touched().filter_map(before));
            } else if !is_wanted {
                history.push(deployment.id().clone());
            }
            for id in touched() {
                *newer.entry(id).or_default() += 1;
            }
        }
        history.reverse();
        history
    }

    /// Whether nothing can come of a deployment any more, and nothing runs as it has made it.
    fn is_over(&self, deployment: &Deployment, now: Timestamp) -> bool {
        let mut ids = deployment.steps().iter().map(|(id, _)| id);
        let owns = |id: &InstanceId| self.instances.get(id).is_some_and(|record| record.deployment == *deployment.id());
        !deployment.is_open() && !may_count(deployment, now) && !ids.any(owns)
    }

    /// Deployments go to the archive, all of these or none.
    pub(super) fn deployments_archived(
        &mut self,
        ids: &BTreeSet<DeploymentId>,
        now: Timestamp,
    ) -> Result<Effects, Refused> {
        let is_history = |id: &&DeploymentId| self.deployment(id).is_some_and(|of| self.is_over(of, now));
        if let Some(other) = ids.iter().find(|id| !is_history(id)) {
            let message = format!("deployment {other} is not over, or not known");
            let failure = Failure::new(FailureKind::DeploymentError, "archive", message);
            return Err(Box::new(failure.hint("only what is over goes to the archive")).into());
        }
        ids.iter().for_each(|id| self.deployments.remove(id));
        Ok(note("archived", format!("deployments in the archive from now on: {}", ids.len())))
    }
}

fn within(lifetime: Length, deployment: &Deployment, now: Timestamp) -> bool {
    match deployment.phase() {
        Phase::Finished { at, .. } => now <= at.after(lifetime),
        _ => true,
    }
}
