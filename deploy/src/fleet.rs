//! The whole fleet as the coordinator knows it: the fold of its journal.
//!
//! [`Fleet::apply`] takes one event in. What a new deployment must satisfy is checked by [`Fleet::may_start`]
//! before its event is made.

mod admission;
mod deployments;
mod event;
mod hosts;
mod instances;
mod kept;
mod past;
mod settling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::deployments::Deployments;
use self::instances::Instances;
use self::kept::KeptFleet;
use crate::deployment::{
    Action, Deployment, DeploymentEvent, Effects, Hold, HoldKind, IllegalEvent, Note, Options, Order,
};
use crate::failure::{Failure, FailureKind, cut};
use crate::health::{HealthReport, HealthStatus};
use crate::host::HostView;
use crate::ids::{DeploymentId, FleetName, Generation, HostName, InstanceId, ReleaseId, ServerName};
use crate::mutant::{Mutant, is_active};
use crate::plan::{External, Plan, PlannedStep};
use crate::time::Timestamp;

pub use event::FleetEvent;
pub use hosts::{Claim, Host, Introduction, SEEN_TWICE_PAUSE, SeenTwice};
pub use instances::InstanceRecord;
pub use past::{PastDeployment, Retention};

/// Of how many deployments, the newest first, a host that comes back hears.
const ANNOUNCEMENTS_MAX: usize = 64;

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

/// The whole fleet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "KeptFleet")]
pub struct Fleet {
    name: FleetName,
    generation: Generation,
    hosts: BTreeMap<HostName, Host>,
    tokens: BTreeMap<String, Token>,
    instances: Instances,
    deployments: Deployments,
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
pub type OrderFor<'a> = (&'a Deployment, &'a InstanceId, u32, Order);

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
            instances: Instances::default(),
            deployments: Deployments::default(),
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
        self.instances.by_id()
    }

    /// The servers that run on a host.
    pub fn running_on(&self, host: &HostName) -> impl ExactSizeIterator<Item = &ServerName> {
        self.instances.on(host)
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
        self.deployments.iter()
    }

    /// The operator's signed intent of a deployment for a host.
    pub fn intent(&self, deployment: &DeploymentId, host: &HostName) -> Option<&str> {
        self.deployments.intents(deployment)?.get(host).map(String::as_str)
    }

    /// What a host is to know about the operator's intents for it that still count: each with its deployment, and whether
    /// that has ended.
    pub fn announcements<'a>(
        &'a self,
        host: &'a HostName,
        now: Timestamp,
    ) -> impl Iterator<Item = (&'a DeploymentId, &'a str, bool)> {
        let told = self.deployments.announced(now).filter_map(|(of, intents)| {
            let intent = intents.get(host)?;
            Some((of.id(), intent.as_str(), of.outcome().is_some()))
        });
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
        self.deployments.intents(deployment).into_iter().flat_map(BTreeMap::keys)
    }

    /// Whether a host is to stage a release that is made of this artifact, and so may have it.
    pub fn may_fetch(&self, host: &HostName, sha256: &str) -> bool {
        let wants =
            |step: &PlannedStep| step.release.as_ref().and_then(|release| release.package.artifact()) == Some(sha256);
        self.deployments.under_way().any(|of| of.steps().on(host).filter_map(|(id, _)| of.planned(id)).any(wants))
    }

    /// The artifacts that what runs, and what is being deployed, is made of.
    pub fn artifacts(&self) -> BTreeSet<&str> {
        let steps = self.deployments.under_way().flat_map(|deployment| deployment.plan().steps());
        let planned = steps.filter_map(|step| step.release.as_deref());
        let present = self.instances().values().map(|record| &*record.release);
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
        let planned = self.deployments.under_way().flat_map(|of| of.steps().on(host)).map(|(id, _)| &id.server);
        self.instances.on(host).chain(planned).collect()
    }

    /// A token that lets a host enrol now.
    pub fn token(&self, token_sha256: &str, now: Timestamp) -> Option<&Token> {
        self.tokens.get(token_sha256).filter(|token| now < token.not_after)
    }

    /// The orders to a host that are not answered yet.
    pub fn outstanding<'a>(&'a self, host: &'a HostName) -> impl Iterator<Item = OrderFor<'a>> {
        self.deployments.open().flat_map(move |deployment| {
            let orders = deployment.outstanding_on(host);
            orders.map(move |(id, attempt, order)| (deployment, id, attempt, order))
        })
    }

    /// Externals that deployments wait for, each with the deployment and the attempt.
    pub fn questions(&self) -> impl Iterator<Item = (&DeploymentId, &External, u32)> {
        self.deployments
            .under_way()
            .flat_map(|of| of.questions().map(move |(external, attempt)| (of.id(), external, attempt)))
    }

    /// The earliest deadline of any deployment.
    pub fn deadline(&self) -> Option<(DeploymentId, Timestamp)> {
        let due = self.deployments.under_way().filter_map(|of| Some((of.id(), of.deadline()?)));
        due.min_by_key(|(_, at)| *at).map(|(id, at)| (id.clone(), at))
    }

    /// In what that which is counted or remembered differs from what there is, if it does. For tests.
    pub fn disagreement(&self) -> Option<String> {
        let instances = Instances::from(self.instances().clone());
        let hosts = (instances != self.instances).then(|| "what hosts have is not what runs".to_owned());
        hosts.or_else(|| self.deployments.disagreement())
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
                self.deployment_started(plan, options, intents, now)
            }
            FleetEvent::DeploymentsArchived { deployments } => self.deployments_archived(&deployments, now),
            FleetEvent::ArtifactAdded { sha256, name } => {
                Ok(note("artifact_added", format!("artifact {name} was added, SHA-256 {sha256}")))
            }
            FleetEvent::ArtifactsRemoved { sha256 } => {
                let used = self.artifacts();
                if let Some(used) = sha256.iter().find(|sha256| used.contains(sha256.as_str())) {
                    let message = format!("artifact {used} is used by what runs or is being deployed");
                    let failure = Failure::new(FailureKind::DeploymentError, "artifacts", message);
                    return Err(Box::new(failure.hint("deploy something else first; nothing was removed")).into());
                }
                let removed: Vec<&str> = sha256.iter().map(String::as_str).collect();
                Ok(note("artifacts_removed", format!("artifacts were removed: {}", removed.join(", "))))
            }
            FleetEvent::SecretsListed => Ok(note("secrets_listed", "the secrets were listed".to_owned())),
            FleetEvent::Halted { by, reason } => self.halt(by, reason, now),
            FleetEvent::Unhalted { by } => self.unhalt(by, now),
            FleetEvent::RollbackRequested { deployment, by, strategy, only, intents } => {
                let over = !self.may_roll_back(&deployment, &only)?.is_open();
                let hosts = &self.hosts;
                let connected = |host: &HostName| hosts.get(host).is_some_and(|host| host.connected);
                let event = DeploymentEvent::RollbackRequested { by, strategy, only };
                let told = self.deployments.change(&deployment, |of| {
                    if over {
                        of.reopen(connected);
                    }
                    of.apply(event, now)
                });
                let told = told.ok_or(Refused::NoChange)??;
                let mut effects = Effects::default();
                effects.actions.push(Action::Announce { deployment: deployment.clone() });
                self.take_in(&deployment, told, &mut effects, now);
                self.generation = self.generation.next();
                self.deployments.sign(&deployment, intents);
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
        for name in &hosts {
            if let Some(host) = self.hosts.get_mut(name) {
                (host.connected, host.since) = (false, now);
            }
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
        plan: Arc<Plan>,
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
        self.deployments.add(deployment, intents, now);
        effects.actions.push(Action::Announce { deployment: id.clone() });
        self.take_in(&id, started, &mut effects, now);
        Ok(effects)
    }

    fn tell(&mut self, id: &DeploymentId, event: DeploymentEvent, now: Timestamp) -> Result<Effects, Refused> {
        let told = self.deployments.change(id, |deployment| {
            let was_under_way = deployment.outcome().is_none();
            let from_deployment = deployment.apply(event, now)?;
            Ok::<_, IllegalEvent>((from_deployment, was_under_way && deployment.outcome().is_some()))
        });
        let (from_deployment, ends) = told.ok_or(Refused::NoChange)??;
        let mut effects = Effects::default();
        self.take_in(id, from_deployment, &mut effects, now);
        if ends {
            effects.actions.push(Action::Announce { deployment: id.clone() });
        }
        Ok(effects)
    }

    /// Lets every deployment of which something can still come have an event, if it can use it.
    fn tell_all(&mut self, event: &DeploymentEvent, now: Timestamp, effects: &mut Effects) {
        let open: Vec<DeploymentId> = self.deployments.open().map(|deployment| deployment.id().clone()).collect();
        for id in open {
            if let Ok(more) = self.tell(&id, event.clone(), now) {
                effects.actions.extend(more.actions);
                effects.notes.extend(more.notes);
            }
        }
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
