//! A fleet as a snapshot holds it, and as it is read back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::deployments::Deployments;
use super::instances::{InstanceRecord, Instances};
use super::{Fleet, Halt, Host, Token};
use crate::deployment::Deployment;
use crate::ids::{DeploymentId, FleetName, Generation, HostName, InstanceId};

/// What a fleet is made of, without what follows from that.
#[derive(Deserialize)]
pub(super) struct KeptFleet {
    name: FleetName,
    generation: Generation,
    hosts: BTreeMap<HostName, Host>,
    tokens: BTreeMap<String, Token>,
    instances: Instances,
    deployments: BTreeMap<DeploymentId, Deployment>,
    intents: BTreeMap<DeploymentId, BTreeMap<HostName, String>>,
    order: Vec<DeploymentId>,
    halted: Option<Halt>,
}

impl From<KeptFleet> for Fleet {
    fn from(mut kept: KeptFleet) -> Self {
        let mut deployments = Deployments::default();
        for id in kept.order {
            if let Some(deployment) = kept.deployments.remove(&id) {
                deployments.keep(deployment, kept.intents.remove(&id).unwrap_or_default());
            }
        }
        Self {
            name: kept.name,
            generation: kept.generation,
            hosts: kept.hosts,
            tokens: kept.tokens,
            instances: kept.instances,
            deployments,
            halted: kept.halted,
        }
    }
}

impl Serialize for Fleet {
    /// As a snapshot holds it, and as it is read back.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Kept<'a> {
            name: &'a FleetName,
            generation: Generation,
            hosts: &'a BTreeMap<HostName, Host>,
            tokens: &'a BTreeMap<String, Token>,
            instances: &'a BTreeMap<InstanceId, InstanceRecord>,
            deployments: BTreeMap<&'a DeploymentId, &'a Deployment>,
            intents: BTreeMap<&'a DeploymentId, &'a BTreeMap<HostName, String>>,
            order: Vec<&'a DeploymentId>,
            halted: &'a Option<Halt>,
        }
        let order: Vec<&DeploymentId> = self.deployments().map(Deployment::id).collect();
        Kept {
            name: &self.name,
            generation: self.generation,
            hosts: &self.hosts,
            tokens: &self.tokens,
            instances: self.instances.by_id(),
            deployments: self.deployments().map(|deployment| (deployment.id(), deployment)).collect(),
            intents: order.iter().filter_map(|id| Some((*id, self.deployments.intents(id)?))).collect(),
            order,
            halted: &self.halted,
        }
        .serialize(serializer)
    }
}
