//! The way forward: which step starts next, and when a phase is over.

use super::{Deployment, Effects, Outcome, Phase, StepState};
use crate::ids::{InstanceId, ServerName};
use crate::plan::StepAction;
use crate::release::Transport;
use crate::time::Timestamp;

impl Deployment {
    /// Does everything that can be done now, phase after phase, until something has to be waited for.
    pub(super) fn advance(&mut self, now: Timestamp, effects: &mut Effects) {
        loop {
            let next = match &self.phase {
                Phase::PreValidation | Phase::AwaitingOperator { .. } => None,
                Phase::Finished { outcome, cause, .. } => {
                    let late = self.late_outcome().filter(|late| late != outcome);
                    late.map(|outcome| Phase::Finished { outcome, at: now, cause: cause.clone() })
                }
                Phase::DependencyResolution => Some(Phase::EnvironmentSetup),
                Phase::EnvironmentSetup => self.environment_is_set_up().then(|| self.group_from(0, now)),
                Phase::ServerDeployment { group } => {
                    let group = *group;
                    self.start_switches(group, now, effects);
                    self.group_is_healthy(group).then(|| self.group_from(group + 1, now))
                }
                Phase::HealthValidation { since } => {
                    let baked = since.after(self.plan.rollout.bake) <= now && self.unreachable.is_empty();
                    baked.then_some(Phase::IntegrationTesting)
                }
                Phase::IntegrationTesting => {
                    self.start_tests(effects);
                    let over = !self.any(|state| matches!(state, StepState::Testing));
                    over.then_some(Phase::PostDeployment)
                }
                Phase::PostDeployment => Some(Phase::Cleanup),
                Phase::Cleanup => {
                    self.start_cleaning(effects);
                    let over = !self.any(|state| matches!(state, StepState::Cleaning));
                    over.then_some(Phase::Finished { outcome: Outcome::Succeeded, at: now, cause: None })
                }
                Phase::Stopping { .. } => self.stopped(now),
                Phase::RollingBack { .. } => {
                    self.start_restores(now, effects);
                    self.rolled_back(now)
                }
            };
            match next {
                Some(phase) => self.enter(phase, effects),
                None => return,
            }
        }
    }

    fn environment_is_set_up(&self) -> bool {
        self.steps.values().all(|step| matches!(step.state, StepState::Staged | StepState::Unchanged))
    }

    /// The first group from `group` on that changes something; health validation when there is none.
    fn group_from(&self, group: usize, now: Timestamp) -> Phase {
        let changes = |n: &usize| self.plan.groups[*n].steps.iter().any(|step| step.action != StepAction::Unchanged);
        match (group..self.plan.groups.len()).find(changes) {
            Some(group) => Phase::ServerDeployment { group },
            None => Phase::HealthValidation { since: now },
        }
    }

    fn group_is_healthy(&self, group: usize) -> bool {
        let mut steps = self.steps.values().filter(|step| step.group == group);
        steps.all(|step| step.state.is_confirmed() || matches!(step.state, StepState::Unchanged))
    }

    /// Starts as many switches of a group as its bounds allow, server by server in the plan's order.
    fn start_switches(&mut self, group: usize, now: Timestamp, effects: &mut Effects) {
        for server in self.plan.groups[group].servers.clone() {
            for id in self.may_switch(group, &server, now) {
                let in_motion = self.steps.values().filter(|step| step.state.is_in_motion()).count();
                if in_motion >= self.plan.rollout.max_parallel as usize {
                    return;
                }
                effects.notes.push(self.note(Some(&id), "switching", "switching".to_owned()));
                self.progress_at = now;
                self.set(&id, StepState::Switching { since: now }, effects);
            }
        }
    }

    /// The instances of a server that may be switched now, within its canary, its bake and `max_unavailable`.
    fn may_switch(&self, group: usize, server: &ServerName, now: Timestamp) -> Vec<InstanceId> {
        let rollout = &self.plan.rollout;
        let planned = self.plan.groups[group].steps.iter().filter(|step| step.instance.server == *server);
        let changing: Vec<&InstanceId> =
            planned.filter(|step| step.action != StepAction::Unchanged).map(|step| &step.instance).collect();
        let canaries = changing.len().min(rollout.canary as usize);
        let baked = changing[..canaries].iter().all(|id| match &self.steps[*id].state {
            StepState::Confirmed { since } => since.after(rollout.bake) <= now,
            _ => false,
        });
        let open = if baked { changing.len() } else { canaries };
        let budget = (rollout.max_unavailable as usize).saturating_sub(self.unavailable(server));
        let ready = |id: &&&InstanceId| {
            matches!(self.steps[**id].state, StepState::Staged) && !self.unreachable.contains(&id.host)
        };
        changing[..open].iter().filter(ready).take(budget).map(|id| (*id).clone()).collect()
    }

    /// How many instances of a server are out of service, or may be: in motion, failed, or on a host that
    /// cannot be reached. An instance that is still to be created was never in service.
    pub fn unavailable(&self, server: &ServerName) -> usize {
        let of_server = self.steps.iter().filter(|(id, _)| id.server == *server);
        let out = of_server.filter(|(id, step)| {
            let existed = step.action != StepAction::Create || step.state.is_confirmed();
            let failed = matches!(step.state, StepState::Failed { .. } | StepState::Stuck { .. });
            step.state.is_in_motion() || failed || (existed && self.unreachable.contains(&id.host))
        });
        out.count()
    }

    /// Every confirmed MCP server is spoken to; other servers have nothing to test.
    fn start_tests(&mut self, effects: &mut Effects) {
        for id in self.ids_where(|state| matches!(state, StepState::Confirmed { .. })) {
            let speaks_mcp = self.planned_release(&id).is_some_and(|release| release.run.transport != Transport::None);
            self.set(&id, if speaks_mcp { StepState::Testing } else { StepState::Tested }, effects);
        }
    }

    fn start_cleaning(&mut self, effects: &mut Effects) {
        for id in self.ids_where(|state| matches!(state, StepState::Tested)) {
            self.set(&id, StepState::Cleaning, effects);
        }
    }

    /// Pruning that does not end is no reason to undo anything: the next deployment prunes again.
    pub(super) fn give_up_cleaning(&mut self, effects: &mut Effects) {
        for id in self.ids_where(|state| matches!(state, StepState::Cleaning)) {
            effects.notes.push(self.note(Some(&id), "not_cleaned", "old releases were not pruned in time".to_owned()));
            self.set(&id, StepState::Done, effects);
        }
    }

    pub(super) fn any(&self, what: impl Fn(&StepState) -> bool) -> bool {
        self.steps.values().any(|step| what(&step.state))
    }

    pub(super) fn ids_where(&self, what: impl Fn(&StepState) -> bool) -> Vec<InstanceId> {
        self.steps.iter().filter(|(_, step)| what(&step.state)).map(|(id, _)| id.clone()).collect()
    }
}
