//! What must hold before something new is begun: the fleet as it is decides, not the deployment alone.

use std::collections::BTreeSet;

use super::Fleet;
use crate::deployment::{Deployment, Step, StepState};
use crate::failure::{Failure, FailureKind};
use crate::ids::{DeploymentId, InstanceId};
use crate::mutant::{Mutant, is_active};
use crate::plan::{EXTERNALS_MAX, Plan};

impl Fleet {
    /// What a plan must satisfy now to be executed (the pre_validation phase).
    pub fn may_start(&self, plan: &Plan) -> Result<(), Box<Failure>> {
        let refuse =
            |kind, message: String, hint: &str| Err(Box::new(Failure::new(kind, "pre_validation", message).hint(hint)));
        if let Some(halt) = &self.halted {
            return Err(Box::new(halt.refusal("pre_validation")));
        }
        if plan.summary().changes() == 0 {
            return refuse(
                FailureKind::ConfigurationError,
                "the plan changes nothing".to_owned(),
                "there is nothing to do",
            );
        }
        if plan.externals.len() > EXTERNALS_MAX {
            let message = format!("the plan has {} externals; at most {EXTERNALS_MAX} are asked", plan.externals.len());
            return refuse(FailureKind::ConfigurationError, message, "plan again, with fewer of them");
        }
        for (_, step) in plan.changes() {
            let id = &step.instance;
            let owner = self.deployments.under_way().find(|deployment| deployment.holds(id));
            if let Some(owner) = owner.filter(|_| !is_active(Mutant::TwoOwners)) {
                let (name, by, since) = (owner.id(), &owner.options().started_by, owner.started_at());
                let message = format!("deployment {name}, started by {by} at {since}, works on {id}");
                let hint = format!(
                    "wait for it (`--wait`), end it (`fleetwright deploy cancel {name}`), or undo it (`fleetwright rollback {name}`)"
                );
                return refuse(FailureKind::DeploymentError, message, &hint);
            }
            if self.instances.get(id).map(|record| &record.release_id) != step.previous.as_ref() {
                return refuse(
                    FailureKind::ConfigurationError,
                    format!("{id} has changed since the plan was made"),
                    "plan again",
                );
            }
            match self.hosts.get(&id.host) {
                None => {
                    let message = format!("host {} is not enrolled", id.host);
                    return refuse(
                        FailureKind::DependencyError,
                        message,
                        "enrol it: `fleetwright hosts token HOST` prints how",
                    );
                }
                Some(host) if !host.connected => {
                    let message = format!("host {} is not connected", id.host);
                    return refuse(
                        FailureKind::NetworkError,
                        message,
                        "look at the agent on that host, or place the servers elsewhere",
                    );
                }
                Some(_) => {}
            }
        }
        if plan.parent != self.generation {
            let message =
                format!("the plan was made at generation {}, the fleet is at {}", plan.parent, self.generation);
            return refuse(FailureKind::ConfigurationError, message, "plan again");
        }
        Ok(())
    }

    /// What must hold for a deployment to be rolled back now.
    pub fn may_roll_back(&self, id: &DeploymentId, only: &BTreeSet<InstanceId>) -> Result<&Deployment, Box<Failure>> {
        let Some(deployment) = self.deployments.get(id) else {
            let failure =
                Failure::new(FailureKind::ConfigurationError, "rollback", format!("there is no deployment {id}"));
            return Err(Box::new(failure.hint("`fleetwright deploy list` shows the newest, `--before ID` older ones")));
        };
        let newer: Vec<&Deployment> = self.deployments.newer_than(id).collect();
        if let Some(halt) = self.halted.as_ref().filter(|_| deployment.outcome().is_some()) {
            return Err(Box::new(halt.refusal("rollback")));
        }
        let meant = |id: &InstanceId| only.is_empty() || only.contains(id);
        for (_, step) in deployment.plan().changes().filter(|(_, step)| meant(&step.instance)) {
            // What is back already, or was taken on from there, is no obstacle.
            if !deployment.steps().get(&step.instance).is_some_and(|step| step.state.is_touched()) {
                continue;
            }
            let to =
                |server| format!("`fleetwright rollback {server} --to DEPLOYMENT` takes it to what one had planned");
            // The deployment that had planned it may be in the archive.
            if step.previous.as_ref().is_some_and(|before| self.release(&step.instance, before).is_none()) {
                let message = format!("it is no longer known what {} ran before deployment {id}", step.instance);
                let failure = Failure::new(FailureKind::DeploymentError, "rollback", message);
                return Err(Box::new(failure.hint(to(&step.instance.server))));
            }
            let owner = self.deployments.under_way().find(|other| other.id() != id && other.holds(&step.instance));
            if let Some(owner) = owner.filter(|_| !is_active(Mutant::TwoOwners)) {
                let message = format!("deployment {} works on {}", owner.id(), step.instance);
                let failure = Failure::new(FailureKind::DeploymentError, "rollback", message);
                return Err(Box::new(failure.hint(format!("wait for it, or roll back {} first", owner.id()))));
            }
            let back = |state: &StepState| matches!(state, StepState::Restored | StepState::LeftOut { .. });
            let changed = |step: &Step| step.touched && !back(&step.state);
            if let Some(other) = newer.iter().find(|other| other.steps().get(&step.instance).is_some_and(changed)) {
                let message = format!("deployment {} has changed {} since", other.id(), step.instance);
                let failure = Failure::new(FailureKind::DeploymentError, "rollback", message);
                // What a later one has taken on from there is no longer that deployment's to undo.
                let undone_first = other.steps().get(&step.instance).is_some_and(|step| step.state.is_touched());
                let hint =
                    if undone_first { format!("roll back {} first", other.id()) } else { to(&step.instance.server) };
                return Err(Box::new(failure.hint(hint)));
            }
        }
        Ok(deployment)
    }

    /// What is stuck may be declared to be in order unless another deployment works on it.
    pub(super) fn may_resolve(&self, id: &DeploymentId, instances: &BTreeSet<InstanceId>) -> Result<(), Box<Failure>> {
        let steps = self.deployments.get(id).into_iter().flat_map(|deployment| deployment.steps().iter());
        let stuck = |step: &Step| matches!(step.state, StepState::Stuck { .. });
        let meant = steps.filter(|(_, step)| stuck(step)).map(|(instance, _)| instance);
        for instance in meant.filter(|instance| instances.is_empty() || instances.contains(*instance)) {
            if let Some(owner) = self.deployments.under_way().find(|other| other.id() != id && other.holds(instance)) {
                let message = format!("deployment {} works on {instance}", owner.id());
                let failure = Failure::new(FailureKind::DeploymentError, "resolve", message);
                return Err(Box::new(failure.hint(format!("wait for {} to end", owner.id()))));
            }
        }
        Ok(())
    }
}
