//! What runs on the hosts of a fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::health::HealthReport;
use crate::ids::{DeploymentId, HostName, InstanceId, ManifestName, ReleaseId, ServerName};
use crate::release::Release;
use crate::time::Timestamp;

/// What an instance runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// The manifest it belongs to.
    pub manifest: ManifestName,
    /// The group it was deployed in, from 0.
    pub group: usize,
    /// The release.
    pub release: Arc<Release>,
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

/// The instances of a fleet, and which of them each host has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<InstanceId, InstanceRecord>", into = "BTreeMap<InstanceId, InstanceRecord>")]
pub(super) struct Instances {
    by_id: BTreeMap<InstanceId, InstanceRecord>,
    on: BTreeMap<HostName, BTreeSet<ServerName>>,
}

impl Instances {
    pub(super) fn by_id(&self) -> &BTreeMap<InstanceId, InstanceRecord> {
        &self.by_id
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<&InstanceRecord> {
        self.by_id.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &InstanceId) -> Option<&mut InstanceRecord> {
        self.by_id.get_mut(id)
    }

    /// The servers that a host has.
    pub(super) fn on(&self, host: &HostName) -> impl ExactSizeIterator<Item = &ServerName> {
        const NONE: &BTreeSet<ServerName> = &BTreeSet::new();
        self.on.get(host).unwrap_or(NONE).iter()
    }

    pub(super) fn insert(&mut self, id: InstanceId, record: InstanceRecord) {
        self.on.entry(id.host.clone()).or_default().insert(id.server.clone());
        self.by_id.insert(id, record);
    }

    pub(super) fn remove(&mut self, id: &InstanceId) {
        self.by_id.remove(id);
        if let Some(servers) = self.on.get_mut(&id.host) {
            servers.remove(&id.server);
            if servers.is_empty() {
                self.on.remove(&id.host);
            }
        }
    }
}

impl From<BTreeMap<InstanceId, InstanceRecord>> for Instances {
    fn from(by_id: BTreeMap<InstanceId, InstanceRecord>) -> Self {
        let mut on: BTreeMap<HostName, BTreeSet<ServerName>> = BTreeMap::new();
        for InstanceId { server, host } in by_id.keys() {
            on.entry(host.clone()).or_default().insert(server.clone());
        }
        Self { by_id, on }
    }
}

impl From<Instances> for BTreeMap<InstanceId, InstanceRecord> {
    fn from(instances: Instances) -> Self {
        instances.by_id
    }
}
