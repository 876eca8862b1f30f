//! One instance on its host, as its agent decides about it.
//!
//! [`Instance::apply`] is the only way its state changes. A refused event leaves the state as it was. Every
//! action may be performed again after a crash: performing one twice has the effect of performing it once.

use serde::{Deserialize, Serialize};
use strum::EnumDiscriminants;

use crate::failure::{Failure, FailureKind};
use crate::ids::{DeploymentId, ReleaseId, ServerName, SnapshotId};
use crate::mutant::{Mutant, is_active};
use crate::time::{Length, Timestamp};

/// How many deployments a host can undo one after the other; what older ones replaced is pruned.
pub const UNDOS_MAX: usize = 2;

/// Which attempt of which deployment an event belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepKey {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Its attempt at the step, from 1.
    pub attempt: u32,
}

/// What a switch is to achieve, and by when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchSpec {
    /// The release to run; nothing to remove the instance.
    pub target: Option<ReleaseId>,
    /// When the host puts itself back unless it is confirmed; nothing where it never does.
    pub dead_man: Option<Timestamp>,
    /// How long the new release has to become healthy.
    pub healthy_deadline: Length,
    /// How long it must be healthy without a break.
    pub min_healthy_time: Length,
}

/// An instance in the midst of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// Whose switch it is.
    pub key: StepKey,
    /// What it is to achieve.
    pub spec: SwitchSpec,
    /// The snapshot that undoes it.
    pub snapshot: SnapshotId,
    /// The release that ran before.
    pub previous: Option<ReleaseId>,
    /// The deployment that had made it so.
    pub previous_by: Option<DeploymentId>,
}

/// Why an instance is being put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreCause {
    /// The coordinator said so.
    Commanded,
    /// The host was not confirmed in time.
    NotConfirmed,
    /// A person has done it by hand.
    ByHand,
}

/// Where an instance stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(derive(strum::EnumIter, strum::IntoStaticStr), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum InstanceState {
    /// No step is under way.
    Idle,
    /// A release is being fetched, installed and rendered beside the running one.
    Staging {
        /// Whose step it is.
        key: StepKey,
        /// What is being staged.
        release: ReleaseId,
    },
    /// A release is ready beside the running one.
    Staged {
        /// Whose step it is.
        key: StepKey,
        /// What is ready.
        release: ReleaseId,
    },
    /// What is needed to undo the step is being kept.
    Snapshotting(Switch),
    /// The old release is being stopped and the new one started; the dead-man timer runs.
    Switching(Switch),
    /// The new release runs and must become and stay healthy.
    Verifying(Switch),
    /// The new release is healthy and waits to be confirmed over a fresh connection.
    Verified(Switch),
    /// The switch failed; the instance waits to be put back, by command or by the dead-man timer.
    Failed {
        /// The switch that failed.
        switch: Switch,
        /// Why.
        failure: Failure,
    },
    /// The snapshot is being put back.
    Restoring {
        /// The switch that is being undone.
        switch: Switch,
        /// Why.
        cause: RestoreCause,
        /// Whether the server gets its time to end before it is killed.
        drain: bool,
    },
    /// Putting back failed too: a person is needed.
    Stuck {
        /// The switch that could not be undone.
        switch: Switch,
        /// Why.
        failure: Failure,
    },
}

/// What can happen to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(derive(strum::EnumIter, strum::IntoStaticStr), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum InstanceEvent {
    /// The coordinator asks to stage a release.
    StageRequested {
        /// Whose step it is.
        key: StepKey,
        /// What to stage.
        release: ReleaseId,
    },
    /// Staging ended well.
    StageSucceeded {
        /// Whose step it is.
        key: StepKey,
    },
    /// Staging failed; nothing that runs was touched.
    StageFailed {
        /// Whose step it is.
        key: StepKey,
        /// Why.
        failure: Failure,
    },
    /// The coordinator asks to switch.
    SwitchRequested {
        /// Whose step it is.
        key: StepKey,
        /// What to achieve.
        spec: SwitchSpec,
    },
    /// The snapshot is safe.
    SnapshotSucceeded {
        /// Whose step it is.
        key: StepKey,
    },
    /// No snapshot could be taken; nothing that runs was touched.
    SnapshotFailed {
        /// Whose step it is.
        key: StepKey,
        /// Why.
        failure: Failure,
    },
    /// The new release was started (or the instance removed).
    SwitchSucceeded {
        /// Whose step it is.
        key: StepKey,
    },
    /// The new release could not be started.
    SwitchFailed {
        /// Whose step it is.
        key: StepKey,
        /// Why.
        failure: Failure,
    },
    /// The new release has been healthy for its minimum time.
    BecameHealthy {
        /// Whose step it is.
        key: StepKey,
    },
    /// The new release ended, or did not become healthy in time.
    BecameUnhealthy {
        /// Whose step it is.
        key: StepKey,
        /// Why.
        failure: Failure,
    },
    /// The coordinator confirms the switch over a connection made after it.
    ConfirmRequested {
        /// Whose step it is.
        key: StepKey,
    },
    /// The coordinator asks to undo what the deployment did here.
    RestoreRequested {
        /// Whose step it is.
        key: StepKey,
        /// Whether the server gets its time to end before it is killed.
        drain: bool,
    },
    /// A person has put the stuck instance back by hand.
    ResolveRequested {
        /// Whose step it is.
        key: StepKey,
    },
    /// The snapshot is back, and what it held runs again.
    RestoreSucceeded {
        /// Whose step it is.
        key: StepKey,
    },
    /// The snapshot could not be put back.
    RestoreFailed {
        /// Whose step it is.
        key: StepKey,
        /// Why.
        failure: Failure,
    },
    /// The time of [`Instance::deadline`] has come.
    DeadlinePassed,
}

/// What the agent must do, after the event that led to it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceAction {
    /// Preflight, fetch, install and render the release.
    Stage {
        /// Whose step it is.
        key: StepKey,
        /// What to stage.
        release: ReleaseId,
    },
    /// Remove what was staged but will not be used.
    Discard {
        /// The release that is not wanted.
        release: ReleaseId,
    },
    /// Keep what is needed to undo the switch.
    TakeSnapshot(Switch),
    /// Stop what runs, switch, start the target.
    Switch(Switch),
    /// Watch the new release until it has been healthy for its minimum time, or fails.
    Verify(Switch),
    /// Put the snapshot back and start what it held.
    Restore {
        /// The switch to undo.
        switch: Switch,
        /// Why.
        cause: RestoreCause,
        /// Whether the server gets its time to end before it is killed.
        drain: bool,
    },
    /// Stop whatever runs, and run this, or nothing; data stays as it is.
    Run {
        /// What to run.
        release: Option<ReleaseId>,
    },
    /// Tell the coordinator, reliably.
    Report {
        /// Whose step it is.
        key: StepKey,
        /// What to tell.
        report: StepReport,
    },
}

/// What an agent tells about a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, EnumDiscriminants)]
#[strum_discriminants(derive(strum::EnumIter, strum::IntoStaticStr), strum(serialize_all = "snake_case"))]
#[serde(rename_all = "snake_case")]
pub enum StepReport {
    /// The release is ready beside the running one.
    Staged,
    /// The new release was started and is being checked.
    Switched,
    /// The new release is healthy; confirm it over the connection this came on.
    Verified,
    /// The confirmation is durable on the host.
    Confirmed,
    /// The step failed.
    Failed(Failure),
    /// What the deployment did here is undone.
    Restored {
        /// Why.
        cause: RestoreCause,
        /// What runs there now.
        running: Option<ReleaseId>,
    },
    /// What the deployment did here could not be undone.
    Stuck(Failure),
    /// Integration testing passed.
    Tested,
    /// Integration testing failed.
    TestFailed(Failure),
    /// Old releases and snapshots are pruned.
    Cleaned,
}

/// An event that does not fit the state it came upon. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not fit an instance that is {state}{detail}")]
pub struct IllegalEvent {
    event: &'static str,
    state: &'static str,
    detail: String,
}

/// One instance on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    server: ServerName,
    current: Option<ReleaseId>,
    state: InstanceState,
    /// The deployment that made the current release so.
    current_by: Option<DeploymentId>,
    /// The confirmed switches that can still be undone by command, the newest last.
    undos: Vec<Switch>,
    /// The last step that was begun here.
    handled: Option<StepKey>,
    /// The last step that was undone here: what comes late for it is not obeyed any more.
    undone: Option<StepKey>,
}

impl Instance {
    /// An instance that does not exist on its host yet.
    pub fn new(server: ServerName) -> Self {
        Self {
            server,
            current: None,
            current_by: None,
            state: InstanceState::Idle,
            undos: Vec::new(),
            handled: None,
            undone: None,
        }
    }

    /// The server.
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// The release that is meant to run now.
    pub fn current(&self) -> Option<&ReleaseId> {
        self.current.as_ref()
    }

    /// Where it stands.
    pub fn state(&self) -> &InstanceState {
        &self.state
    }

    /// The deployment whose step is under way, if one is.
    pub fn under_way(&self) -> Option<&DeploymentId> {
        let key = match &self.state {
            InstanceState::Idle => return None,
            InstanceState::Staging { key, .. } | InstanceState::Staged { key, .. } => key,
            InstanceState::Snapshotting(switch)
            | InstanceState::Switching(switch)
            | InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. }
            | InstanceState::Restoring { switch, .. }
            | InstanceState::Stuck { switch, .. } => &switch.key,
        };
        Some(&key.deployment)
    }

    /// The confirmed switches that can still be undone, the newest last: at most [`UNDOS_MAX`].
    pub fn undos(&self) -> &[Switch] {
        &self.undos
    }

    /// When the host puts itself back, if it is to.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        if is_active(Mutant::NoDeadMan) {
            return None;
        }
        let dead_man = match &self.state {
            InstanceState::Snapshotting(switch)
            | InstanceState::Switching(switch)
            | InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. } => switch.spec.dead_man?,
            InstanceState::Idle
            | InstanceState::Staging { .. }
            | InstanceState::Staged { .. }
            | InstanceState::Restoring { .. }
            | InstanceState::Stuck { .. } => return None,
        };
        Some((dead_man, "the coordinator to confirm the switch; without it the host puts itself back"))
    }

    /// The actions that a restarted agent must perform to go on where it was.
    pub fn resume(&self) -> Vec<InstanceAction> {
        match &self.state {
            InstanceState::Staging { key, release } => {
                vec![InstanceAction::Stage { key: key.clone(), release: release.clone() }]
            }
            InstanceState::Snapshotting(switch) => vec![InstanceAction::TakeSnapshot(switch.clone())],
            InstanceState::Switching(switch) => vec![InstanceAction::Switch(switch.clone())],
            InstanceState::Verifying(switch) => vec![InstanceAction::Verify(switch.clone())],
            InstanceState::Verified(switch) => vec![report(&switch.key, StepReport::Verified)],
            InstanceState::Restoring { switch, cause, drain } => {
                vec![InstanceAction::Restore { switch: switch.clone(), cause: *cause, drain: *drain }]
            }
            InstanceState::Idle
            | InstanceState::Staged { .. }
            | InstanceState::Failed { .. }
            | InstanceState::Stuck { .. } => Vec::new(),
        }
    }

    /// Takes one event in: the new state, and what must be done about it.
    pub fn apply(&mut self, event: InstanceEvent, now: Timestamp) -> Result<Vec<InstanceAction>, IllegalEvent> {
        match event {
            InstanceEvent::StageRequested { key, release } => self.stage(key, release),
            InstanceEvent::SwitchRequested { key, spec } => self.switch(key, spec, now),
            InstanceEvent::RestoreRequested { key, drain } => self.restore(&key, drain),
            InstanceEvent::ResolveRequested { key } => self.resolve(&key),
            InstanceEvent::ConfirmRequested { key } => self.confirm(&key, now),
            InstanceEvent::DeadlinePassed => self.deadline_passed(now),
            InstanceEvent::StageSucceeded { .. }
            | InstanceEvent::StageFailed { .. }
            | InstanceEvent::SnapshotSucceeded { .. }
            | InstanceEvent::SnapshotFailed { .. }
            | InstanceEvent::SwitchSucceeded { .. }
            | InstanceEvent::SwitchFailed { .. }
            | InstanceEvent::BecameHealthy { .. }
            | InstanceEvent::BecameUnhealthy { .. }
            | InstanceEvent::RestoreSucceeded { .. }
            | InstanceEvent::RestoreFailed { .. } => self.performed(event),
        }
    }

    /// A release may be staged while nothing is under way, or over what was staged and not used.
    fn stage(&mut self, key: StepKey, release: ReleaseId) -> Result<Vec<InstanceAction>, IllegalEvent> {
        self.refuse_late("stage_requested", &key)?;
        let mut actions = Vec::new();
        match &self.state {
            InstanceState::Staging { release: old, .. } | InstanceState::Staged { release: old, .. } => {
                if *old != release && self.current.as_ref() != Some(old) {
                    actions.push(InstanceAction::Discard { release: old.clone() });
                }
            }
            _ if self.is_at_rest() => {}
            _ => return Err(self.illegal("stage_requested", self.owner())),
        }
        self.keep_what_is_left();
        self.handled = Some(key.clone());
        self.state = InstanceState::Staging { key: key.clone(), release: release.clone() };
        actions.push(InstanceAction::Stage { key, release });
        Ok(actions)
    }

    /// A switch needs its release staged by the same step; a removal needs an instance at rest.
    fn switch(&mut self, key: StepKey, spec: SwitchSpec, now: Timestamp) -> Result<Vec<InstanceAction>, IllegalEvent> {
        self.refuse_late("switch_requested", &key)?;
        if spec.dead_man.is_some_and(|at| at <= now) {
            return Err(self.illegal("switch_requested", "; its dead-man deadline has passed".to_owned()));
        }
        let fits = match (&self.state, &spec.target) {
            (InstanceState::Staged { key: staged, release }, Some(target)) => *staged == key && release == target,
            (_, None) => self.is_at_rest(),
            _ => false,
        };
        if !fits {
            return Err(self.illegal("switch_requested", self.owner()));
        }
        self.keep_what_is_left();
        let snapshot = SnapshotId::new(&key.deployment, key.attempt);
        let (previous, previous_by) = (self.current.clone(), self.current_by.clone());
        let switch = Switch { key: key.clone(), spec, snapshot, previous, previous_by };
        self.handled = Some(key);
        self.state = InstanceState::Snapshotting(switch.clone());
        Ok(vec![InstanceAction::TakeSnapshot(switch)])
    }

    /// What the agent did for the state ended, well or badly.
    fn performed(&mut self, event: InstanceEvent) -> Result<Vec<InstanceAction>, IllegalEvent> {
        let name: &'static str = InstanceEventDiscriminants::from(&event).into();
        let (next, actions) = match (self.state.clone(), event) {
            (InstanceState::Staging { key, release }, InstanceEvent::StageSucceeded { key: of }) if key == of => {
                (InstanceState::Staged { key, release }, vec![report(&of, StepReport::Staged)])
            }
            (InstanceState::Staging { key, .. }, InstanceEvent::StageFailed { key: of, failure }) if key == of => {
                (InstanceState::Idle, vec![report(&of, StepReport::Failed(failure))])
            }
            (InstanceState::Snapshotting(switch), InstanceEvent::SnapshotSucceeded { key }) if switch.key == key => {
                (InstanceState::Switching(switch.clone()), vec![InstanceAction::Switch(switch)])
            }
            (InstanceState::Snapshotting(switch), InstanceEvent::SnapshotFailed { key, failure })
                if switch.key == key =>
            {
                (InstanceState::Idle, vec![report(&key, StepReport::Failed(failure))])
            }
            (InstanceState::Switching(switch), InstanceEvent::SwitchSucceeded { key }) if switch.key == key => {
                self.current.clone_from(&switch.spec.target);
                self.current_by = Some(switch.key.deployment.clone());
                match switch.spec.target {
                    Some(_) => (
                        InstanceState::Verifying(switch.clone()),
                        vec![report(&key, StepReport::Switched), InstanceAction::Verify(switch)],
                    ),
                    None => (InstanceState::Verified(switch), vec![report(&key, StepReport::Verified)]),
                }
            }
            (InstanceState::Switching(switch), InstanceEvent::SwitchFailed { key, failure })
            | (
                InstanceState::Verifying(switch) | InstanceState::Verified(switch),
                InstanceEvent::BecameUnhealthy { key, failure },
            ) if switch.key == key => (
                InstanceState::Failed { switch, failure: failure.clone() },
                vec![report(&key, StepReport::Failed(failure))],
            ),
            (InstanceState::Verifying(switch), InstanceEvent::BecameHealthy { key }) if switch.key == key => {
                (InstanceState::Verified(switch), vec![report(&key, StepReport::Verified)])
            }
            (InstanceState::Restoring { switch, cause, .. }, InstanceEvent::RestoreSucceeded { key })
                if switch.key == key =>
            {
                if !is_active(Mutant::ForgetRestored) {
                    self.current = switch.previous;
                    self.current_by = switch.previous_by;
                }
                self.undone = Some(key.clone());
                self.undos.retain(|undo| undo.key.deployment != switch.key.deployment);
                (InstanceState::Idle, vec![report(&key, self.restored(cause))])
            }
            (InstanceState::Restoring { switch, .. }, InstanceEvent::RestoreFailed { key, failure })
                if switch.key == key =>
            {
                (
                    InstanceState::Stuck { switch, failure: failure.clone() },
                    vec![report(&key, StepReport::Stuck(failure))],
                )
            }
            _ => return Err(self.illegal(name, self.owner())),
        };
        self.state = next;
        Ok(actions)
    }

    /// A confirmation counts only before the deadline: then the host puts itself back, however late it notices.
    fn confirm(&mut self, key: &StepKey, now: Timestamp) -> Result<Vec<InstanceAction>, IllegalEvent> {
        let too_late = self.deadline().is_some_and(|(at, _)| at <= now) && !is_active(Mutant::ConfirmAfterDeadline);
        match &self.state {
            InstanceState::Verified(switch) if switch.key == *key && too_late => {
                Err(self.illegal("confirm_requested", "; its dead-man deadline has passed".to_owned()))
            }
            InstanceState::Verified(switch) if switch.key == *key && is_active(Mutant::RevertConfirmed) => {
                Ok(vec![report(key, StepReport::Confirmed)])
            }
            InstanceState::Verified(switch) if switch.key == *key => {
                let switch = switch.clone();
                self.keep_undo(switch);
                self.state = InstanceState::Idle;
                Ok(vec![report(key, StepReport::Confirmed)])
            }
            _ => Err(self.illegal("confirm_requested", self.owner())),
        }
    }

    /// Undoes whatever the deployment did here, from any state. What it did not touch needs no undoing.
    fn restore(&mut self, key: &StepKey, drain: bool) -> Result<Vec<InstanceAction>, IllegalEvent> {
        if self.handled.as_ref().is_some_and(|handled| is_later(handled, key)) {
            return Err(self.illegal("restore_requested", "; a later attempt is under way".to_owned()));
        }
        let deployment = &key.deployment;
        let switch = match &self.state {
            InstanceState::Staging { key: of, release } | InstanceState::Staged { key: of, release }
                if of.deployment == *deployment =>
            {
                let discard = InstanceAction::Discard { release: release.clone() };
                let unused = self.current.as_ref() != Some(release);
                self.state = InstanceState::Idle;
                self.undone = Some(key.clone());
                let told = report(key, self.restored(RestoreCause::Commanded));
                return Ok(if unused { vec![discard, told] } else { vec![told] });
            }
            InstanceState::Snapshotting(switch)
            | InstanceState::Switching(switch)
            | InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. }
            | InstanceState::Stuck { switch, .. }
                if switch.key.deployment == *deployment =>
            {
                switch.clone()
            }
            InstanceState::Restoring { switch, .. } if switch.key.deployment == *deployment => return Ok(Vec::new()),
            // What another deployment has left at rest, or has only got ready, is not this one's to undo.
            _ if self.is_at_rest() => match self.undos.iter().position(|undo| undo.key.deployment == *deployment) {
                Some(n) if n + 1 == self.undos.len() => self.undos[n].clone(),
                Some(_) => {
                    let newest = self.undos.last().map(|undo| undo.key.deployment.to_string()).unwrap_or_default();
                    let owner = format!("; deployment {newest} has changed it since");
                    return Err(self.illegal("restore_requested", owner));
                }
                None if self.current_by.as_ref() == Some(deployment) => {
                    let why = "; what it replaced was pruned since".to_owned();
                    return Err(self.illegal("restore_requested", why));
                }
                None => {
                    self.undone = Some(key.clone());
                    return Ok(vec![report(key, self.restored(RestoreCause::Commanded))]);
                }
            },
            _ => return Err(self.illegal("restore_requested", self.owner())),
        };
        let switch = Switch { key: key.clone(), ..switch };
        let cause = RestoreCause::Commanded;
        self.state = InstanceState::Restoring { switch: switch.clone(), cause, drain };
        Ok(vec![InstanceAction::Restore { switch, cause, drain }])
    }

    /// Takes it that what ran before the stuck step is back, by somebody's hand.
    fn resolve(&mut self, key: &StepKey) -> Result<Vec<InstanceAction>, IllegalEvent> {
        match &self.state {
            InstanceState::Stuck { switch, .. } if switch.key.deployment == key.deployment => {
                self.current.clone_from(&switch.previous);
                self.current_by.clone_from(&switch.previous_by);
                self.undos.retain(|undo| undo.key.deployment != key.deployment);
                self.undone = Some(key.clone());
                self.state = InstanceState::Idle;
                let told = report(key, self.restored(RestoreCause::ByHand));
                Ok(vec![InstanceAction::Run { release: self.current.clone() }, told])
            }
            // What this deployment left can no longer be undone, or was undone already: what runs is what is to run.
            InstanceState::Idle => {
                self.undos.retain(|undo| undo.key.deployment != key.deployment);
                self.undone = Some(key.clone());
                Ok(vec![report(key, self.restored(RestoreCause::ByHand))])
            }
            _ => Err(self.illegal("resolve_requested", self.owner())),
        }
    }

    /// Whether nothing is under way that ends by itself: a later deployment may go on from here. A switch that
    /// the host would not undo by itself, and whose deployment has gone on without it, is at rest.
    fn is_at_rest(&self) -> bool {
        match &self.state {
            InstanceState::Idle
            | InstanceState::Staging { .. }
            | InstanceState::Staged { .. }
            | InstanceState::Stuck { .. } => true,
            InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. } => switch.spec.dead_man.is_none(),
            InstanceState::Snapshotting(_) | InstanceState::Switching(_) | InstanceState::Restoring { .. } => false,
        }
    }

    /// What a failed or stuck step has left can still be undone after another one that is undone itself.
    fn keep_what_is_left(&mut self) {
        if let InstanceState::Stuck { switch, .. }
        | InstanceState::Failed { switch, .. }
        | InstanceState::Verifying(switch)
        | InstanceState::Verified(switch) = &self.state
        {
            let switch = switch.clone();
            self.keep_undo(switch);
        }
    }

    fn keep_undo(&mut self, switch: Switch) {
        self.undos.retain(|undo| undo.key.deployment != switch.key.deployment);
        self.undos.push(switch);
        let too_many = self.undos.len().saturating_sub(UNDOS_MAX);
        self.undos.drain(..too_many);
    }

    fn restored(&self, cause: RestoreCause) -> StepReport {
        StepReport::Restored { cause, running: self.current.clone() }
    }

    /// What comes late for a step that was undone, or for an attempt before the last one, is not obeyed.
    fn refuse_late(&self, event: &'static str, key: &StepKey) -> Result<(), IllegalEvent> {
        if is_active(Mutant::ObeyLate) {
            return Ok(());
        }
        if self.undone.as_ref().is_some_and(|undone| undone == key || is_later(undone, key)) {
            return Err(self.illegal(event, "; that step was undone".to_owned()));
        }
        if self.handled.as_ref().is_some_and(|handled| is_later(handled, key)) {
            return Err(self.illegal(event, "; a later attempt is under way".to_owned()));
        }
        Ok(())
    }

    fn deadline_passed(&mut self, now: Timestamp) -> Result<Vec<InstanceAction>, IllegalEvent> {
        if self.deadline().is_none_or(|(at, _)| at > now) {
            return Err(self.illegal("deadline_passed", "; no deadline has passed".to_owned()));
        }
        match &self.state {
            InstanceState::Snapshotting(switch)
            | InstanceState::Switching(switch)
            | InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. } => {
                let (switch, cause, drain) = (switch.clone(), RestoreCause::NotConfirmed, true);
                self.state = InstanceState::Restoring { switch: switch.clone(), cause, drain };
                Ok(vec![InstanceAction::Restore { switch, cause, drain }])
            }
            InstanceState::Idle
            | InstanceState::Staging { .. }
            | InstanceState::Staged { .. }
            | InstanceState::Restoring { .. }
            | InstanceState::Stuck { .. } => Err(self.illegal("deadline_passed", self.owner())),
        }
    }

    /// Which deployment works on the instance, as the end of an error message.
    fn owner(&self) -> String {
        match &self.state {
            InstanceState::Idle => String::new(),
            InstanceState::Staging { key, .. } | InstanceState::Staged { key, .. } => {
                format!("; deployment {} works on it", key.deployment)
            }
            InstanceState::Snapshotting(switch)
            | InstanceState::Switching(switch)
            | InstanceState::Verifying(switch)
            | InstanceState::Verified(switch)
            | InstanceState::Failed { switch, .. }
            | InstanceState::Restoring { switch, .. }
            | InstanceState::Stuck { switch, .. } => format!("; deployment {} works on it", switch.key.deployment),
        }
    }

    fn illegal(&self, event: &'static str, detail: String) -> IllegalEvent {
        IllegalEvent { event, state: InstanceStateDiscriminants::from(&self.state).into(), detail }
    }
}

impl From<IllegalEvent> for Failure {
    fn from(error: IllegalEvent) -> Self {
        Self::new(FailureKind::DeploymentError, "command", error.to_string())
    }
}

/// Whether `one` is a later attempt of the same step.
fn is_later(one: &StepKey, other: &StepKey) -> bool {
    one.deployment == other.deployment && one.attempt > other.attempt
}

fn report(key: &StepKey, report: StepReport) -> InstanceAction {
    InstanceAction::Report { key: key.clone(), report }
}

#[cfg(test)]
mod tests;
