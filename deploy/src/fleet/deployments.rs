//! The deployments of a fleet: all that were started, and those of which something can still come.

use std::collections::{BTreeMap, BTreeSet};

use crate::admission::INTENT_LIFETIME_MAX;
use crate::deployment::{Deployment, Phase};
use crate::ids::{DeploymentId, HostName};
use crate::time::Timestamp;

/// Every deployment, numbered in the order in which they were started.
#[derive(Clone, Debug, Default)]
pub(super) struct Deployments {
    started: BTreeMap<u64, Started>,
    numbers: BTreeMap<DeploymentId, u64>,
    /// Those of which something can still come: only these are told what happens to hosts and to other deployments.
    open: BTreeSet<u64>,
    /// Those whose intents may still count at a host.
    announced: BTreeSet<u64>,
}

/// A deployment, and what its operator has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Started {
    deployment: Deployment,
    /// The signed intent for each host.
    intents: BTreeMap<HostName, String>,
}

impl Deployments {
    /// Adds one that begins.
    pub(super) fn add(&mut self, deployment: Deployment, intents: BTreeMap<HostName, String>, now: Timestamp) {
        let over = |number: &u64| self.started.get(number).is_none_or(|of| !may_count(&of.deployment, now));
        let over: Vec<u64> = self.announced.iter().copied().filter(over).collect();
        for number in over {
            self.announced.remove(&number);
        }
        self.keep(deployment, intents);
    }

    /// Adds one as it was kept; without `now` nothing is known to be over.
    pub(super) fn keep(&mut self, mut deployment: Deployment, intents: BTreeMap<HostName, String>) {
        let number = self.started.last_key_value().map_or(0, |(last, _)| last + 1);
        self.numbers.insert(deployment.id().clone(), number);
        self.announced.insert(number);
        if deployment.is_open() {
            self.open.insert(number);
        } else {
            deployment.close();
        }
        self.started.insert(number, Started { deployment, intents });
    }

    pub(super) fn get(&self, id: &DeploymentId) -> Option<&Deployment> {
        Some(&self.of(id)?.deployment)
    }

    fn of(&self, id: &DeploymentId) -> Option<&Started> {
        self.started.get(self.numbers.get(id)?)
    }

    /// All of them, the oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Deployment> {
        self.started.values().map(|of| &of.deployment)
    }

    /// Those that were started after one, the newest first.
    pub(super) fn newer_than(&self, id: &DeploymentId) -> impl Iterator<Item = &Deployment> {
        let after = self.numbers.get(id).map_or(u64::MAX, |number| number + 1);
        self.started.range(after..).rev().map(|(_, of)| &of.deployment)
    }

    /// Those of which something can still come, the oldest first.
    pub(super) fn open(&self) -> impl Iterator<Item = &Deployment> {
        self.open.iter().filter_map(|number| Some(&self.started.get(number)?.deployment))
    }

    /// Those that have not ended, the oldest first.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Deployment> {
        self.open().filter(|deployment| deployment.outcome().is_none())
    }

    /// The operator's intents of a deployment, by host.
    pub(super) fn intents(&self, id: &DeploymentId) -> Option<&BTreeMap<HostName, String>> {
        Some(&self.of(id)?.intents)
    }

    /// Those whose intents still count somewhere, the newest first, each with its intents.
    pub(super) fn announced(&self, now: Timestamp) -> impl Iterator<Item = (&Deployment, &BTreeMap<HostName, String>)> {
        let known = self.announced.iter().rev().filter_map(|number| self.started.get(number));
        let counting = known.filter(move |of| may_count(&of.deployment, now));
        counting.map(|of| (&of.deployment, &of.intents))
    }

    /// The operator has signed more.
    pub(super) fn sign(&mut self, id: &DeploymentId, intents: BTreeMap<HostName, String>) {
        let Some(number) = self.numbers.get(id) else { return };
        if let Some(of) = self.started.get_mut(number) {
            of.intents.extend(intents);
            self.announced.insert(*number);
        }
    }

    /// Changes a deployment; whether anything can still come of it is found out anew.
    pub(super) fn change<T>(&mut self, id: &DeploymentId, change: impl FnOnce(&mut Deployment) -> T) -> Option<T> {
        let number = self.numbers.get(id)?;
        let deployment = &mut self.started.get_mut(number)?.deployment;
        let changed = change(deployment);
        if deployment.is_open() {
            self.open.insert(*number);
        } else {
            deployment.close();
            self.open.remove(number);
        }
        Some(changed)
    }

    /// Forgets one of which nothing can come any more.
    pub(super) fn remove(&mut self, id: &DeploymentId) {
        if let Some(number) = self.numbers.remove(id) {
            self.started.remove(&number);
            self.open.remove(&number);
            self.announced.remove(&number);
        }
    }

    /// In what that which is remembered differs from what there is, if it does.
    pub(super) fn disagreement(&self) -> Option<String> {
        let open = self.started.iter().filter(|(_, of)| of.deployment.is_open()).map(|(number, _)| *number).collect();
        if self.open != open {
            return Some(format!("open are {:?}, not {open:?}", self.open));
        }
        self.iter().find_map(|of| Some(format!("{}: {}", of.id(), of.disagreement()?)))
    }
}

/// Whether the intents of a deployment may still count at a host.
pub(super) fn may_count(deployment: &Deployment, now: Timestamp) -> bool {
    match deployment.phase() {
        Phase::Finished { at, .. } => now <= at.after(INTENT_LIFETIME_MAX),
        _ => true,
    }
}

impl PartialEq for Deployments {
    /// The rest follows from what was started, in its order; the numbers have gaps where some have gone to the archive.
    fn eq(&self, other: &Self) -> bool {
        self.started.values().eq(other.started.values())
    }
}

impl Eq for Deployments {}
