//! What instances run from now on, once a step has come to rest.

use std::sync::Arc;

use super::{Fleet, InstanceRecord};
use crate::deployment::{Action, Deployment, Effects};
use crate::failure::{Failure, FailureKind};
use crate::ids::{DeploymentId, InstanceId, ReleaseId};
use crate::plan::{Plan, StepAction};
use crate::release::Release;
use crate::time::Timestamp;

impl Fleet {
    /// Instances a plan leaves as they are still take their group, and their manifest, from it.
    pub(super) fn adopt_unchanged(&mut self, plan: &Plan) {
        for (group, planned) in plan.groups.iter().enumerate() {
            for step in planned.steps.iter().filter(|step| step.action == StepAction::Unchanged) {
                if let Some(record) = self.instances.get_mut(&step.instance) {
                    record.group = group;
                    record.manifest.clone_from(&plan.manifest);
                }
            }
        }
    }

    /// Remembers what settled; everything else is for the coordinator to perform.
    pub(super) fn take_in(&mut self, id: &DeploymentId, from: Effects, effects: &mut Effects, now: Timestamp) {
        for action in from.actions {
            match action {
                Action::Settled { instance, release, trouble } => self.settle(id, instance, release, trouble, now),
                Action::Send { .. } | Action::Ask { .. } | Action::Announce { .. } => effects.actions.push(action),
            }
        }
        effects.notes.extend(from.notes);
    }

    /// A release that an instance runs, or that some deployment has planned for it.
    pub(super) fn release(&self, instance: &InstanceId, id: &ReleaseId) -> Option<Arc<Release>> {
        let running = self.instances.get(instance).filter(|record| record.release_id == *id);
        let planned = || {
            let steps = self.deployments().rev().filter_map(|deployment| deployment.planned(instance));
            steps.filter(|step| step.release_id.as_ref() == Some(id)).find_map(|step| step.release.as_ref())
        };
        running.map(|record| &record.release).or_else(planned).cloned()
    }

    fn settle(
        &mut self,
        id: &DeploymentId,
        instance: InstanceId,
        release: Option<ReleaseId>,
        trouble: Option<Failure>,
        now: Timestamp,
    ) {
        // From here on it is known what the instance runs: what older deployments left unsettled there is history.
        if trouble.is_none() {
            let others = self.deployments.open().map(Deployment::id).filter(|other| *other != id).cloned();
            for other in others.collect::<Vec<_>>() {
                self.deployments.change(&other, |other| other.supersede(&instance, id));
            }
        }
        let Some(release) = release else {
            self.instances.remove(&instance);
            return;
        };
        let Some(deployment) = self.deployments.get(id) else { return };
        let release_id = release;
        let Some(release) = self.release(&instance, &release_id) else {
            // A host's word decides what its instances run, but only of what was planned for them.
            if let Some(record) = self.instances.get_mut(&instance) {
                let message = format!("its host runs release {}, which was never planned for it", release_id.short());
                let failure = Failure::new(FailureKind::DeploymentError, "restore", message);
                let failure = failure.hint("look at the host; deploying again takes it on");
                record.trouble = Some(failure.at(&instance.host, &instance.server));
            }
            return;
        };
        let health = self.instances.get(&instance).filter(|record| record.release_id == release_id);
        let record = InstanceRecord {
            manifest: deployment.plan().manifest.clone(),
            group: deployment.steps().get(&instance).map_or(0, |step| step.group),
            health: health.map(|record| record.health.clone()).unwrap_or_default(),
            release,
            release_id,
            deployment: id.clone(),
            since: now,
            trouble,
        };
        self.instances.insert(instance, record);
    }
}
