//! What can happen to a fleet.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use super::Introduction;
use crate::deployment::{DeploymentEvent, Options};
use crate::health::HealthReport;
use crate::host::HostView;
use crate::ids::{DeploymentId, HostName, InstanceId, ReleaseId};
use crate::plan::{Plan, RollbackStrategy};
use crate::time::Timestamp;

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
        plan: Arc<Plan>,
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
    /// Deployments of which nothing can come any more went to the archive.
    DeploymentsArchived {
        /// The deployments.
        deployments: BTreeSet<DeploymentId>,
    },
    /// An artifact was added to those that the coordinator keeps for hosts.
    ArtifactAdded {
        /// Its SHA-256, hexadecimal.
        sha256: String,
        /// Its name.
        name: String,
    },
    /// Artifacts were removed.
    ArtifactsRemoved {
        /// Their SHA-256, hexadecimal.
        sha256: BTreeSet<String>,
    },
    /// Somebody was told which secrets there are and who uses them; of values nobody is.
    SecretsListed,
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
