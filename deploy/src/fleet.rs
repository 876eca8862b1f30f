//! The whole fleet as the coordinator knows it: the fold of its journal.
//!
//! [`Fleet::apply`] takes one event in. What a new deployment must satisfy is checked by [`Fleet::may_start`]
//! before its event is made.

mod hosts;

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::admission::INTENT_LIFETIME_MAX;
use crate::deployment::{
    Action, Deployment, DeploymentEvent, Effects, Hold, HoldKind, IllegalEvent, Note, Options, Phase, Step, StepState,
};
use crate::failure::{Failure, FailureKind, cut};
use crate::health::{HealthReport, HealthStatus};
use crate::host::HostView;
use crate::ids::{DeploymentId, FleetName, Generation, HostName, InstanceId, ManifestName, ReleaseId, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::plan::{EXTERNALS_MAX, External, Plan, PlannedStep, RollbackStrategy, StepAction};
use crate::release::Release;
use crate::time::Timestamp;

pub use hosts::{Claim, Host, Introduction, SEEN_TWICE_PAUSE, SeenTwice};

/// Of how many deployments, the newest first, a host that comes back hears.
const ANNOUNCEMENTS_MAX: usize = 64;

/// What can happen to a fleet. One of these is one entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case", tag = "type")]
#[strum(serialize_all = "snake_case")]
pub enum FleetEvent {
    /// The coordinator started: no agent is connected yet.
    CoordinatorStarted,
    /// A token was made with which one host may enrol once.
    TokenIssued {
        /// The host it is for.
        host: HostName,
        /// SHA-256 of the token, hexadecimal; the token itself is kept nowhere.
        token_sha256: String,
        /// When it expires.
        not_after: Timestamp,
        /// What is said of the host.
        #[serde(default)]
        introduction: Introduction,
    },
    /// A host enrolled with its token, which is used up by that.
    HostEnrolled {
        /// The host.
        host: HostName,
        /// SHA-256 of its certificate, hexadecimal.
        certificate_sha256: String,
        /// What was said of the host with its token.
        #[serde(default)]
        introduction: Introduction,
    },
    /// A host's agent connected and told about its host.
    HostConnected {
        /// The host.
        host: HostName,
        /// What it told.
        view: HostView,
        /// Whether its labels and its address there are mere claims. In journals of before they counted.
        #[serde(default)]
        claimed: bool,
    },
    /// A host's agent is no longer connected.
    HostDisconnected {
        /// The host.
        host: HostName,
    },
    /// The health of an instance changed.
    HealthReported {
        /// The instance.
        instance: InstanceId,
        /// The release that was looked at.
        release: ReleaseId,
        /// What was found.
        report: HealthReport,
        /// The last lines of the server's output, when it is unhealthy.
        output: Vec<String>,
    },
    /// A deployment begins.
    DeploymentStarted {
        /// The plan it executes.
        plan: Box<Plan>,
        /// What the operator chose besides.
        options: Options,
        /// The operator's signed intent for each host, as it goes to that host.
        intents: BTreeMap<HostName, String>,
    },
    /// A rollback of a deployment was asked for and signed.
    RollbackRequested {
        /// The deployment.
        deployment: DeploymentId,
        /// Who asked.
        by: String,
        /// In which order and manner; as the plan says when it is not said.
        strategy: Option<RollbackStrategy>,
        /// Only these instances; all that were touched when it is empty.
        only: BTreeSet<InstanceId>,
        /// The operator's signed intent for each host.
        intents: BTreeMap<HostName, String>,
    },
    /// Everything stops where it is, in all deployments, and no new one may start.
    Halted {
        /// Who said so.
        by: String,
        /// Why.
        reason: String,
    },
    /// Everything goes on.
    Unhalted {
        /// Who said so.
        by: String,
    },
    /// Something happened to a deployment.
    Deployment {
        /// The deployment.
        deployment: DeploymentId,
        /// What happened.
        event: DeploymentEvent,
    },
    /// An operator gave a host labels, or took some away.
    HostLabelled {
        /// The host.
        host: HostName,
        /// The labels that change; those without a value are taken away.
        labels: BTreeMap<String, Option<String>>,
        /// Who said so.
        by: String,
    },
    /// An operator said where the servers of a host listen.
    HostAddressed {
        /// The host.
        host: HostName,
        /// The address.
        address: String,
        /// Who said so.
        by: String,
    },
    /// Two connections with the certificate of one host lived at once, and came from two addresses.
    HostSeenTwice {
        /// The host.
        host: HostName,
        /// From where the older connection came, and from where the newer.
        addresses: [IpAddr; 2],
    },
}

/// A token with which a host may enrol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The host it is for.
    pub host: HostName,
    /// When it expires.
    pub not_after: Timestamp,
    /// What was said of the host.
    #[serde(default)]
    pub introduction: Introduction,
}

/// What an instance runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// The manifest it belongs to.
    pub manifest: ManifestName,
    /// The group it was deployed in, from 0.
    pub group: usize,
    /// The release.
    pub release: Release,
    /// The hash of the release.
    pub release_id: ReleaseId,
    /// The deployment that made it so.
    pub deployment: DeploymentId,
    /// Since when.
    pub since: Timestamp,
    /// How it is doing.
    pub health: HealthReport,
    /// What is wrong with it, when a person should look.
    pub trouble: Option<Failure>,
}

/// The whole fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    name: FleetName,
    generation: Generation,
    hosts: BTreeMap<HostName, Host>,
    tokens: BTreeMap<String, Token>,
    instances: BTreeMap<InstanceId, InstanceRecord>,
    deployments: BTreeMap<DeploymentId, Deployment>,
    intents: BTreeMap<DeploymentId, BTreeMap<HostName, String>>,
    order: Vec<DeploymentId>,
    halted: Option<Halt>,
}

/// Why nothing new starts in the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

impl Halt {
    fn refusal(&self, step: &str) -> Failure {
        let why = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        let message = format!("the fleet is halted since {} by {}{why}", self.since, self.by);
        Failure::new(FailureKind::PermissionError, step, message).hint("`fleetwright unhalt` lets it go on")
    }
}

/// An order for a host, with the deployment it belongs to.
pub type OrderFor<'a> = (&'a Deployment, &'a InstanceId, u32, crate::deployment::Order);

/// What a fleet does not take in. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The event is about a deployment, which does not take it.
    #[error(transparent)]
    Deployment(#[from] IllegalEvent),
    /// It may not be done, and the operator is told why.
    #[error(transparent)]
    Failure(#[from] Box<Failure>),
    /// The event changes nothing.
    #[error("nothing changes by it")]
    NoChange,
}

impl Fleet {
    /// A fleet without hosts.
    pub fn new(name: FleetName) -> Self {
        Self {
            name,
            generation: Generation::default(),
            hosts: BTreeMap::new(),
            tokens: BTreeMap::new(),
            instances: BTreeMap::new(),
            deployments: BTreeMap::new(),
            intents: BTreeMap::new(),
            order: Vec::new(),
            halted: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &FleetName {
        &self.name
    }

    /// Its generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Its hosts.
    pub fn hosts(&self) -> &BTreeMap<HostName, Host> {
        &self.hosts
    }

    /// What runs on them.
    pub fn instances(&self) -> &BTreeMap<InstanceId, InstanceRecord> {
        &self.instances
    }

    /// Why nothing new starts, if it does not.
    pub fn halted(&self) -> Option<&Halt> {
        self.halted.as_ref()
    }

    /// A deployment.
    pub fn deployment(&self, id: &DeploymentId) -> Option<&Deployment> {
        self.deployments.get(id)
    }

    /// Every deployment, the oldest first.
    pub fn deployments(&self) -> impl DoubleEndedIterator<Item = &Deployment> {
        self.order.iter().filter_map(|id| self.deployments.get(id))
    }

    /// The operator's signed intent of a deployment for a host.
    pub fn intent(&self, deployment: &DeploymentId, host: &HostName) -> Option<&str> {
        self.intents.get(deployment)?.get(host).map(String::as_str)
    }

    /// What a host is to know about the operator's intents for it that still count: each with its deployment, and whether
    /// that has ended.
    pub fn announcements<'a>(
        &'a self,
        host: &'a HostName,
        now: Timestamp,
    ) -> impl Iterator<Item = (&'a DeploymentId, &'a str, bool)> {
        let counts = move |deployment: &&Deployment| match deployment.phase() {
            Phase::Finished { at, .. } => now <= at.after(INTENT_LIFETIME_MAX),
            _ => true,
        };
        let counting = self.deployments().rev().filter(counts);
        let told = counting
            .filter_map(move |of| self.announcement(of.id(), host).map(|(intent, ended)| (of.id(), intent, ended)));
        told.take(ANNOUNCEMENTS_MAX)
    }

    /// What a host is to know about the operator's newest intent for it in a deployment: that, and whether the deployment
    /// has ended.
    pub fn announcement(&self, deployment: &DeploymentId, host: &HostName) -> Option<(&str, bool)> {
        let ended = self.deployments.get(deployment)?.outcome().is_some();
        Some((self.intent(deployment, host)?, ended))
    }

    /// The hosts that the operator has signed an intent for in a deployment.
    pub fn intended(&self, deployment: &DeploymentId) -> impl Iterator<Item = &HostName> {
        self.intents.get(deployment).into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether a host is to stage a release that is made of this artifact, and so may have it.
    pub fn may_fetch(&self, host: &HostName, sha256: &str) -> bool {
        let wants = |step: &PlannedStep| {
            step.instance.host == *host
                && step.release.as_ref().and_then(|release| release.package.artifact()) == Some(sha256)
        };
        self.steps_under_way().any(wants)
    }

    fn steps_under_way(&self) -> impl Iterator<Item = &PlannedStep> {
        let running = self.deployments().filter(|deployment| deployment.outcome().is_none());
        running.flat_map(|deployment| deployment.plan().steps())
    }

    /// The artifacts that what runs, and what is being deployed, is made of.
    pub fn artifacts(&self) -> BTreeSet<&str> {
        let planned = self.steps_under_way().filter_map(|step| step.release.as_deref());
        let present = self.instances.values().map(|record| &record.release);
        planned.chain(present).filter_map(|release| release.package.artifact()).collect()
    }

    /// Whether a greeting of a host would change anything: it would not where the host is connected and as it was.
    pub fn greeting_changes(&self, host: &HostName, view: &HostView) -> bool {
        !self.hosts.get(host).is_some_and(|known| known.connected && known.view.as_ref() == Some(view))
    }

    /// Whether a report of health would change anything.
    pub fn health_changes(&self, id: &InstanceId, release: &ReleaseId, report: &HealthReport) -> bool {
        self.instances.get(id).is_some_and(|record| record.release_id == *release && record.health != *report)
    }

    /// The servers that a host has, or is to have.
    pub fn servers_of(&self, host: &HostName) -> BTreeSet<&ServerName> {
        let planned = self.steps_under_way().map(|step| &step.instance);
        self.instances.keys().chain(planned).filter(|id| id.host == *host).map(|id| &id.server).collect()
    }

    /// A token that lets a host enrol now.
    pub fn token(&self, token_sha256: &str, now: Timestamp) -> Option<&Token> {
        self.tokens.get(token_sha256).filter(|token| now < token.not_after)
    }

    /// The orders to a host that are not answered yet.
    pub fn outstanding<'a>(&'a self, host: &'a HostName) -> impl Iterator<Item = OrderFor<'a>> {
        self.deployments().flat_map(move |deployment| {
            let orders = deployment.outstanding().filter(move |(id, _, _)| id.host == *host);
            orders.map(move |(id, attempt, order)| (deployment, id, attempt, order))
        })
    }

    /// Externals that deployments wait for, each with the deployment and the attempt.
    pub fn questions(&self) -> impl Iterator<Item = (&DeploymentId, &External, u32)> {
        let live = self.deployments().filter(|deployment| deployment.outcome().is_none());
        live.flat_map(|of| of.questions().map(move |(external, attempt)| (of.id(), external, attempt)))
    }

    /// The earliest deadline of any deployment.
    pub fn deadline(&self) -> Option<(DeploymentId, Timestamp)> {
        let live = self.deployments().filter(|deployment| deployment.outcome().is_none());
        live.filter_map(|deployment| Some((deployment.id().clone(), deployment.deadline()?.until?)))
            .min_by_key(|(_, at)| *at)
    }

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
            let owner = self.deployments().find(|deployment| deployment.holds(id));
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
            return Err(Box::new(failure.hint("`fleetwright deploy list` shows all of them")));
        };
        let newer: Vec<&Deployment> = self.deployments().rev().take_while(|other| other.id() != id).collect();
        if let Some(halt) = self.halted.as_ref().filter(|_| deployment.outcome().is_some()) {
            return Err(Box::new(halt.refusal("rollback")));
        }
        let meant = |id: &InstanceId| only.is_empty() || only.contains(id);
        for (_, step) in deployment.plan().changes().filter(|(_, step)| meant(&step.instance)) {
            // What is back already, or was taken on from there, is no obstacle.
            if !deployment.steps().get(&step.instance).is_some_and(|step| step.state.is_touched()) {
                continue;
            }
            let owner = self.deployments().find(|other| other.id() != id && other.holds(&step.instance));
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
                let hint = if undone_first {
                    format!("roll back {} first", other.id())
                } else {
                    format!(
                        "`fleetwright rollback {} --to DEPLOYMENT` takes it to what one had planned",
                        step.instance.server
                    )
                };
                return Err(Box::new(failure.hint(hint)));
            }
        }
        Ok(deployment)
    }

    /// Takes one event in.
    pub fn apply(&mut self, event: FleetEvent, now: Timestamp) -> Result<Effects, Refused> {
        match event {
            FleetEvent::CoordinatorStarted => Ok(self.coordinator_started(now)),
            FleetEvent::TokenIssued { host, token_sha256, not_after, introduction } => {
                hosts::check_introduction(&introduction)?;
                self.tokens.retain(|_, token| now < token.not_after);
                let told = note("token_issued", format!("{host} may enrol until {not_after}"));
                self.tokens.insert(token_sha256, Token { host, not_after, introduction });
                Ok(told)
            }
            FleetEvent::HostEnrolled { host, certificate_sha256, introduction } => {
                Ok(self.host_enrolled(host, certificate_sha256, introduction, now))
            }
            FleetEvent::HostConnected { host, view, claimed } => self.host_connected(&host, view, claimed, now),
            FleetEvent::HostLabelled { host, labels, by } => self.host_labelled(&host, labels, &by),
            FleetEvent::HostAddressed { host, address, by } => self.host_addressed(&host, address, &by),
            FleetEvent::HostSeenTwice { host, addresses } => self.host_seen_twice(&host, addresses, now),
            FleetEvent::HostDisconnected { host } => self.host_disconnected(&host, now),
            FleetEvent::HealthReported { instance, release, report, output } => {
                self.health_reported(&instance, &release, report, &output, now)
            }
            FleetEvent::DeploymentStarted { plan, options, intents } => {
                self.deployment_started(*plan, options, intents, now)
            }
            FleetEvent::Halted { by, reason } => self.halt(by, reason, now),
            FleetEvent::Unhalted { by } => self.unhalt(by, now),
            FleetEvent::RollbackRequested { deployment, by, strategy, only, intents } => {
                self.may_roll_back(&deployment, &only)?;
                let event = DeploymentEvent::RollbackRequested { by, strategy, only };
                let mut effects = self.tell(&deployment, event, now)?;
                self.generation = self.generation.next();
                effects.actions.insert(0, Action::Announce { deployment: deployment.clone() });
                self.intents.entry(deployment).or_default().extend(intents);
                Ok(effects)
            }
            FleetEvent::Deployment { deployment, event } => {
                if let DeploymentEvent::ResolveRequested { instances, .. } = &event {
                    self.may_resolve(&deployment, instances)?;
                }
                self.tell(&deployment, event, now)
            }
        }
    }

    /// What is stuck may be declared to be in order unless another deployment works on it.
    fn may_resolve(&self, id: &DeploymentId, instances: &BTreeSet<InstanceId>) -> Result<(), Box<Failure>> {
        let steps = self.deployments.get(id).map(Deployment::steps);
        let stuck = |step: &Step| matches!(step.state, StepState::Stuck { .. });
        let meant = steps.into_iter().flatten().filter(|(_, step)| stuck(step)).map(|(instance, _)| instance);
        for instance in meant.filter(|instance| instances.is_empty() || instances.contains(*instance)) {
            if let Some(owner) = self.deployments().find(|other| other.id() != id && other.holds(instance)) {
                let message = format!("deployment {} works on {instance}", owner.id());
                let failure = Failure::new(FailureKind::DeploymentError, "resolve", message);
                return Err(Box::new(failure.hint(format!("wait for {} to end", owner.id()))));
            }
        }
        Ok(())
    }

    fn halt(&mut self, by: String, reason: String, now: Timestamp) -> Result<Effects, Refused> {
        if let Some(halt) = &self.halted {
            return Err(Refused::Failure(Box::new(halt.refusal("halt"))));
        }
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let mut effects = note("halted", format!("the fleet was halted by {by}{why}"));
        let hold = Hold { kind: HoldKind::Halt, by: by.clone(), reason: reason.clone(), since: now };
        self.halted = Some(Halt { by, reason, since: now });
        self.tell_all(&DeploymentEvent::Held(hold), now, &mut effects);
        Ok(effects)
    }

    fn unhalt(&mut self, by: String, now: Timestamp) -> Result<Effects, Refused> {
        if self.halted.take().is_none() {
            let failure = Failure::new(FailureKind::ConfigurationError, "unhalt", "the fleet is not halted");
            return Err(Refused::Failure(Box::new(failure.hint("`fleetwright status` shows what is under way"))));
        }
        let mut effects = note("unhalted", format!("the fleet goes on, says {by}"));
        self.tell_all(&DeploymentEvent::Released { kind: HoldKind::Halt, by }, now, &mut effects);
        Ok(effects)
    }

    fn coordinator_started(&mut self, now: Timestamp) -> Effects {
        let mut effects = note("coordinator_started", "the coordinator started".to_owned());
        let connected = self.hosts.iter().filter(|(_, host)| host.connected && !is_active(Mutant::RememberConnections));
        let connected: BTreeSet<HostName> = connected.map(|(name, _)| name.clone()).collect();
        self.disconnected(connected, now, &mut effects);
        effects
    }

    /// Hosts are no longer connected, all of them at once.
    fn disconnected(&mut self, hosts: BTreeSet<HostName>, now: Timestamp, effects: &mut Effects) {
        for (_, host) in self.hosts.iter_mut().filter(|(name, _)| hosts.contains(*name)) {
            (host.connected, host.since) = (false, now);
        }
        self.tell_all(&DeploymentEvent::HostsDisconnected { hosts }, now, effects);
    }

    fn host_disconnected(&mut self, name: &HostName, now: Timestamp) -> Result<Effects, Refused> {
        if !self.hosts.get(name).is_some_and(|host| host.connected) {
            return Err(Refused::NoChange);
        }
        let mut effects = note("host_disconnected", format!("{name} is no longer connected"));
        self.disconnected([name.clone()].into(), now, &mut effects);
        Ok(effects)
    }

    fn health_reported(
        &mut self,
        id: &InstanceId,
        release: &ReleaseId,
        report: HealthReport,
        output: &[String],
        now: Timestamp,
    ) -> Result<Effects, Refused> {
        let Some(record) = self.instances.get_mut(id).filter(|record| record.release_id == *release) else {
            return Err(Refused::NoChange);
        };
        let status = report.status;
        let reason = report.reason();
        if record.health == report {
            return Err(Refused::NoChange);
        }
        let was = record.health.status;
        let changed = was != status;
        record.health = report;
        let mut effects = Effects::default();
        if changed {
            let word: &'static str = status.into();
            let message =
                if status == HealthStatus::Healthy { word.to_owned() } else { cut(format!("{word}: {reason}")) };
            effects.notes.push(Note { instance: Some(id.clone()), ..one_note("health", message) });
        }
        let event =
            DeploymentEvent::HealthChanged { instance: id.clone(), was, status, reason, output: output.to_vec() };
        self.tell_all(&event, now, &mut effects);
        Ok(effects)
    }

    fn deployment_started(
        &mut self,
        plan: Plan,
        options: Options,
        intents: BTreeMap<HostName, String>,
        now: Timestamp,
    ) -> Result<Effects, Refused> {
        self.may_start(&plan)?;
        let connected: BTreeSet<HostName> =
            self.hosts.iter().filter(|(_, host)| host.connected).map(|(name, _)| name.clone()).collect();
        self.adopt_unchanged(&plan);
        let mut deployment = Deployment::new(plan, options, &connected, now);
        let id = deployment.id().clone();
        let mut effects = note("deployment_started", format!("started by {}", deployment.options().started_by));
        effects.notes[0].deployment = Some(id.clone());
        let started = deployment.apply(DeploymentEvent::Started, now)?;
        self.generation = self.generation.next();
        self.deployments.insert(id.clone(), deployment);
        self.order.push(id.clone());
        self.intents.insert(id.clone(), intents);
        effects.actions.push(Action::Announce { deployment: id.clone() });
        self.take_in(&id, started, &mut effects, now);
        Ok(effects)
    }

    /// Instances a plan leaves as they are still take their group, and their manifest, from it.
    fn adopt_unchanged(&mut self, plan: &Plan) {
        for (group, planned) in plan.groups.iter().enumerate() {
            for step in planned.steps.iter().filter(|step| step.action == StepAction::Unchanged) {
                if let Some(record) = self.instances.get_mut(&step.instance) {
                    record.group = group;
                    record.manifest.clone_from(&plan.manifest);
                }
            }
        }
    }

    fn tell(&mut self, id: &DeploymentId, event: DeploymentEvent, now: Timestamp) -> Result<Effects, Refused> {
        let Some(deployment) = self.deployments.get_mut(id) else { return Err(Refused::NoChange) };
        let was_under_way = deployment.outcome().is_none();
        let from_deployment = deployment.apply(event, now)?;
        let ends = was_under_way && deployment.outcome().is_some();
        let mut effects = Effects::default();
        self.take_in(id, from_deployment, &mut effects, now);
        if ends {
            effects.actions.push(Action::Announce { deployment: id.clone() });
        }
        Ok(effects)
    }

    /// Lets every deployment that can use an event have it.
    fn tell_all(&mut self, event: &DeploymentEvent, now: Timestamp, effects: &mut Effects) {
        for id in self.order.clone() {
            if let Ok(more) = self.tell(&id, event.clone(), now) {
                effects.actions.extend(more.actions);
                effects.notes.extend(more.notes);
            }
        }
    }

    /// Remembers what settled; everything else is for the coordinator to perform.
    fn take_in(&mut self, id: &DeploymentId, from: Effects, effects: &mut Effects, now: Timestamp) {
        for action in from.actions {
            match action {
                Action::Settled { instance, release, trouble } => self.settle(id, instance, release, trouble, now),
                Action::Send { .. } | Action::Ask { .. } | Action::Announce { .. } => effects.actions.push(action),
            }
        }
        effects.notes.extend(from.notes);
    }

    /// A release that some deployment has planned.
    fn release(&self, id: &ReleaseId) -> Option<Release> {
        let running = self.instances.values().find(|record| record.release_id == *id).map(|record| &record.release);
        let planned = || {
            let mut steps = self.deployments().rev().flat_map(|deployment| deployment.plan().steps());
            steps.find(|step| step.release_id.as_ref() == Some(id)).and_then(|step| step.release.as_deref())
        };
        running.or_else(planned).cloned()
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
            for other in self.deployments.values_mut().filter(|other| other.id() != id) {
                other.supersede(&instance, id);
            }
        }
        let Some(release) = release else {
            self.instances.remove(&instance);
            return;
        };
        let Some(deployment) = self.deployments.get(id) else { return };
        let release_id = release;
        let Some(release) = self.release(&release_id).filter(|release| release.server == instance.server) else {
            // A host's word decides what its instances run, but only of what was planned for them.
            if let Some(record) = self.instances.get_mut(&instance) {
                let message =
                    format!("its host runs release {}, which was planned for no such server", release_id.short());
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

fn one_note(what: &str, message: String) -> Note {
    Note { deployment: None, instance: None, what: what.to_owned(), message, failure: None }
}

fn note(what: &str, message: String) -> Effects {
    Effects { actions: Vec::new(), notes: vec![one_note(what, message)] }
}

#[cfg(test)]
mod tests;
