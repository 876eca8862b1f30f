//! The way forward: which step starts next, and when a phase is over.

use super::{Deployment, Effects, Outcome, Phase, PhaseName, StepState};
use crate::ids::{InstanceId, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::plan::{OnFailure, PauseAt, StepAction};
use crate::release::Transport;
use crate::time::Timestamp;

impl Deployment {
    /// Does everything that can be done now, phase after phase, until something has to be waited for.
    pub(super) fn advance(&mut self, now: Timestamp, effects: &mut Effects) {
        while self.held.is_empty() || matches!(self.phase, Phase::Finished { .. }) || is_active(Mutant::IgnoreHold) {
            let before = PhaseName::from(&self.phase);
            let next = match &self.phase {
                Phase::PreValidation | Phase::AwaitingOperator { .. } => None,
                Phase::Finished { outcome, cause, .. } => {
                    let late = self.late_outcome().filter(|late| late != outcome);
                    late.map(|outcome| Phase::Finished { outcome, at: now, cause: cause.clone() })
                }
                Phase::DependencyResolution => self.externals_are_there().then(|| {
                    self.begin_staging(now, effects);
                    Phase::EnvironmentSetup
                }),
                Phase::EnvironmentSetup => self.environment_is_set_up().then(|| self.group_from(0, now)),
                Phase::ServerDeployment { group } => {
                    let group = *group;
                    self.advance_group(group, now, effects)
                }
                Phase::HealthValidation { since } => {
                    let baked = since.after(self.plan.rollout.bake) <= now && self.unreachable.is_empty();
                    (baked && self.all_settled()).then_some(Phase::IntegrationTesting)
                }
                Phase::IntegrationTesting => {
                    self.start_tests(effects);
                    let over = !self.any(|state| matches!(state, StepState::Testing)) && self.all_settled();
                    over.then_some(Phase::PostDeployment)
                }
                Phase::PostDeployment => Some(Phase::Cleanup),
                Phase::Cleanup => {
                    self.start_cleaning(effects);
                    let over = !self.any(|state| matches!(state, StepState::Cleaning)) && self.all_settled();
                    over.then(|| self.ended(now))
                }
                Phase::Stopping { .. } => self.advance_stopping(now, effects),
                Phase::RollingBack { .. } => {
                    self.start_restores(now, effects);
                    self.rolled_back(now)
                }
            };
            match next {
                Some(phase) => self.enter(phase, effects),
                None if PhaseName::from(&self.phase) != before => {}
                None => return,
            }
        }
    }

    fn ended(&self, now: Timestamp) -> Phase {
        let outcome = self.forward_outcome();
        let cause = self.failures.first().filter(|_| outcome != Outcome::Succeeded).cloned();
        Phase::Finished { outcome, at: now, cause }
    }

    fn environment_is_set_up(&self) -> bool {
        let ready =
            |state: &StepState| matches!(state, StepState::Staged | StepState::Unchanged | StepState::LeftOut { .. });
        self.steps.values().all(|step| ready(&step.state))
    }

    /// The first group from `group` on that changes something; health validation when there is none.
    fn group_from(&self, group: usize, now: Timestamp) -> Phase {
        let changes = |n: &usize| self.plan.groups[*n].steps.iter().any(|step| step.action != StepAction::Unchanged);
        match (group..self.plan.groups.len()).find(changes) {
            Some(group) => Phase::ServerDeployment { group },
            None => Phase::HealthValidation { since: now },
        }
    }

    fn advance_group(&mut self, group: usize, now: Timestamp, effects: &mut Effects) -> Option<Phase> {
        if !self.passes(&PauseAt::BeforeGroup(group), now, effects) {
            return None;
        }
        // One of an earlier group that has failed since is put back, and perhaps tried again, first.
        if !(0..group).all(|earlier| self.group_is_healthy(earlier)) {
            return None;
        }
        self.start_switches(group, now, effects);
        if !self.group_is_healthy(group) {
            return None;
        }
        let Some(lost) = self.group_is_lost(group) else { return Some(self.group_from(group + 1, now)) };
        self.failures.push(lost.clone());
        if self.plan.rollout.on_failure == OnFailure::Continue {
            self.stop(lost, Outcome::PartlySucceeded, now, effects);
        } else {
            self.fail(lost, now, effects);
        }
        None
    }

    /// Whether every step of a group has come through, or was left out.
    fn group_is_healthy(&self, group: usize) -> bool {
        is_active(Mutant::SkipGroupGate)
            || self.steps.values().filter(|step| step.group == group).all(|step| came_through(&step.state))
    }

    /// Whether no step is on its way to be tried again or left out.
    fn all_settled(&self) -> bool {
        self.steps.values().all(|step| came_through(&step.state))
    }

    /// Starts as many switches of a group as its bounds allow, server by server in the plan's order.
    fn start_switches(&mut self, group: usize, now: Timestamp, effects: &mut Effects) {
        for server in self.plan.groups[group].servers.clone() {
            if !self.may_start(&server) {
                continue;
            }
            for id in self.may_switch(group, &server, now, effects) {
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

    /// Whether everything has been started that a server starts after.
    fn may_start(&self, server: &ServerName) -> bool {
        let Some(before) = self.plan.starts_after.get(server) else { return true };
        let started = |state: &StepState| {
            came_through(state) || matches!(state, StepState::Verifying { .. } | StepState::Confirming { .. })
        };
        is_active(Mutant::StartTooEarly)
            || self.steps.iter().filter(|(id, _)| before.contains(&id.server)).all(|(_, step)| started(&step.state))
    }

    /// The instances of a server that may be switched now, within its canary, its bake, its batches and
    /// `max_unavailable`.
    fn may_switch(
        &mut self,
        group: usize,
        server: &ServerName,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Vec<InstanceId> {
        let pace = self.plan.pace(server);
        let planned = self.plan.groups[group].steps.iter().filter(|step| step.instance.server == *server);
        let changing = planned.filter(|step| step.action != StepAction::Unchanged).map(|step| step.instance.clone());
        // What was left out holds up nobody, and is no canary.
        let changing: Vec<InstanceId> =
            changing.filter(|id| !matches!(self.steps[id].state, StepState::LeftOut { .. })).collect();
        let canaries = changing.len().min(pace.canary as usize);
        let baked = changing[..canaries].iter().all(|id| match &self.steps[id].state {
            StepState::Confirmed { since } => since.after(pace.bake) <= now,
            state => state.is_confirmed(),
        });
        let promoted =
            canaries == changing.len() || (baked && self.passes(&PauseAt::AfterCanary(server.clone()), now, effects));
        let open = if promoted { self.open_batches(&changing, canaries, pace.batch as usize) } else { canaries };
        let budget = (pace.max_unavailable as usize).saturating_sub(self.unavailable(server));
        let budget = if is_active(Mutant::IgnoreBudget) { usize::MAX } else { budget };
        let ready = |id: &&InstanceId| {
            matches!(self.steps[*id].state, StepState::Staged) && !self.unreachable.contains(&id.host)
        };
        changing[..open].iter().filter(ready).take(budget).cloned().collect()
    }

    /// How many instances are in the batches that have begun or may begin.
    fn open_batches(&self, changing: &[InstanceId], canaries: usize, batch: usize) -> usize {
        if batch == 0 {
            return changing.len();
        }
        let mut open = canaries;
        for instances in changing[canaries..].chunks(batch) {
            open += instances.len();
            if !instances.iter().all(|id| self.steps[id].state.is_confirmed()) {
                break;
            }
        }
        open
    }

    /// How many instances of a server are out of service, or may be: in motion, failed, or on a host that
    /// cannot be reached. An instance that is still to be created was never in service.
    pub fn unavailable(&self, server: &ServerName) -> usize {
        let of_server = self.steps.iter().filter(|(id, _)| id.server == *server);
        let out = of_server.filter(|(id, step)| {
            let existed = step.action != StepAction::Create || step.state.is_confirmed();
            let failed = matches!(step.state, StepState::Failed { .. } | StepState::Stuck { .. });
            let away = self.unreachable.contains(&id.host) && !is_active(Mutant::ForgetUnreachable);
            step.state.is_in_motion() || failed || (existed && away)
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

    /// What is in motion settles; what was only got ready is discarded.
    fn advance_stopping(&mut self, now: Timestamp, effects: &mut Effects) -> Option<Phase> {
        self.discard_unused(now, effects);
        // Nobody waits for the answer of a test any more.
        for id in self.ids_where(|state| matches!(state, StepState::Testing | StepState::Cleaning)) {
            self.set(&id, StepState::Confirmed { since: now }, effects);
        }
        if self.puts_back_while_stopping() {
            let failed = |state: &StepState| matches!(state, StepState::Failed { .. } | StepState::SettingAside { .. });
            for id in self.ids_where(failed) {
                self.set(&id, StepState::Restoring { since: now }, effects);
            }
        }
        self.stopped(now)
    }

    pub(super) fn any(&self, what: impl Fn(&StepState) -> bool) -> bool {
        self.steps.values().any(|step| what(&step.state))
    }

    pub(super) fn ids_where(&self, what: impl Fn(&StepState) -> bool) -> Vec<InstanceId> {
        self.steps.iter().filter(|(_, step)| what(&step.state)).map(|(id, _)| id.clone()).collect()
    }
}

fn came_through(state: &StepState) -> bool {
    state.is_confirmed() || matches!(state, StepState::Unchanged | StepState::LeftOut { .. })
}
