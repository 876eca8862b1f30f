//! The way forward: which step starts next, and when a phase is over.

use super::step::StepStateName;
use super::steps::Lane;
use super::{Deployment, Effects, Outcome, Phase, PhaseName, StepState};
use crate::ids::{InstanceId, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::plan::{OnFailure, PauseAt};
use crate::release::Transport;
use crate::time::{Length, Timestamp};

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
                    let over = !self.steps.any(|state| state == StepStateName::Testing) && self.all_settled();
                    over.then_some(Phase::PostDeployment)
                }
                Phase::PostDeployment => Some(Phase::Cleanup),
                Phase::Cleanup => {
                    self.start_cleaning(effects);
                    let over = !self.steps.any(|state| state == StepStateName::Cleaning) && self.all_settled();
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
        !self.steps.any(|state| !state.is_set_up())
    }

    /// The first group from `group` on that changes something; health validation when there is none.
    fn group_from(&self, group: usize, now: Timestamp) -> Phase {
        let changes = |n: &usize| self.steps.lanes(*n).any(Lane::changes);
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
        let healthy_up_to = |group: usize, of: &Self| {
            is_active(Mutant::SkipGroupGate) || of.steps.first_behind().is_none_or(|behind| behind >= group)
        };
        if !healthy_up_to(group, self) {
            return None;
        }
        self.start_switches(group, now, effects);
        if !healthy_up_to(group + 1, self) {
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

    /// Whether no step is on its way to be tried again or left out.
    fn all_settled(&self) -> bool {
        self.steps.first_behind().is_none()
    }

    /// Starts as many switches of a group as its bounds allow, server by server in the plan's order.
    fn start_switches(&mut self, group: usize, now: Timestamp, effects: &mut Effects) {
        let ready: Vec<usize> = self.steps.ready(group).collect();
        for lane in ready {
            if !self.may_start(self.steps.lane(lane).server()) {
                continue;
            }
            for id in self.may_switch(lane, now, effects) {
                // Nothing further is looked at until there is a place for this one.
                if self.steps.count(StepStateName::is_in_motion) >= self.plan.rollout.max_parallel as usize {
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
        is_active(Mutant::StartTooEarly) || before.iter().all(|server| self.steps.is_started(server))
    }

    /// The instances of a server that may be switched now, within its canary, its bake, its batches and `max_unavailable`.
    /// What was left out holds up nobody, and is no canary.
    fn may_switch(&mut self, number: usize, now: Timestamp, effects: &mut Effects) -> Vec<InstanceId> {
        let lane = self.steps.lane(number);
        let (server, pace) = (lane.server().clone(), lane.pace());
        let canaries = Self::canaries(lane);
        let promoted = canaries == lane.changing()
            || (self.has_baked(lane, pace.bake, now)
                && self.passes(&PauseAt::AfterCanary(server.clone()), now, effects));
        let lane = self.steps.lane(number);
        let open = if promoted { lane.open(canaries, pace.batch as usize) } else { canaries };
        let budget = (pace.max_unavailable as usize).saturating_sub(self.unavailable(&server));
        let budget = if is_active(Mutant::IgnoreBudget) { usize::MAX } else { budget };
        // One more than there are places says that the others have to wait.
        let places =
            (self.plan.rollout.max_parallel as usize).saturating_sub(self.steps.count(StepStateName::is_in_motion));
        self.steps.switchable(lane, lane.end_of(open)).take(budget.min(places + 1)).cloned().collect()
    }

    /// How many instances of a server go ahead of the others.
    fn canaries(lane: &Lane) -> usize {
        lane.changing().min(lane.pace().canary as usize)
    }

    /// Whether every canary is confirmed, and has stayed healthy for the bake time.
    fn has_baked(&self, lane: &Lane, bake: Length, now: Timestamp) -> bool {
        let end = lane.end_of(Self::canaries(lane));
        lane.is_confirmed(end)
            && self.steps.in_lane(lane, 0..end).all(|(_, step)| match &step.state {
                StepState::Confirmed { since } => since.after(bake) <= now,
                state => state.is_confirmed(),
            })
    }

    /// How many instances of a server are out of service, or may be: in motion, failed, or on a host that
    /// cannot be reached. An instance that is still to be created was never in service.
    pub fn unavailable(&self, server: &ServerName) -> usize {
        self.steps.unavailable(server)
    }

    /// Every confirmed MCP server is spoken to; other servers have nothing to test.
    fn start_tests(&mut self, effects: &mut Effects) {
        for id in self.steps.ids_where(|state| state == StepStateName::Confirmed) {
            let speaks_mcp = self.planned_release(&id).is_some_and(|release| release.run.transport != Transport::None);
            self.set(&id, if speaks_mcp { StepState::Testing } else { StepState::Tested }, effects);
        }
    }

    fn start_cleaning(&mut self, effects: &mut Effects) {
        for id in self.steps.ids_where(|state| state == StepStateName::Tested) {
            self.set(&id, StepState::Cleaning, effects);
        }
    }

    /// Pruning that does not end is no reason to undo anything: the next deployment prunes again.
    pub(super) fn give_up_cleaning(&mut self, effects: &mut Effects) {
        for id in self.steps.ids_where(|state| state == StepStateName::Cleaning) {
            effects.notes.push(self.note(Some(&id), "not_cleaned", "old releases were not pruned in time".to_owned()));
            self.set(&id, StepState::Done, effects);
        }
    }

    /// What is in motion settles; what was only got ready is discarded.
    fn advance_stopping(&mut self, now: Timestamp, effects: &mut Effects) -> Option<Phase> {
        self.discard_unused(now, effects);
        // Nobody waits for the answer of a test any more.
        for id in self.steps.ids_where(|state| matches!(state, StepStateName::Testing | StepStateName::Cleaning)) {
            self.set(&id, StepState::Confirmed { since: now }, effects);
        }
        if self.puts_back_while_stopping() {
            let failed = |state| matches!(state, StepStateName::Failed | StepStateName::SettingAside);
            for id in self.steps.ids_where(failed) {
                self.set(&id, StepState::Restoring { since: now }, effects);
            }
        }
        self.stopped(now)
    }
}
