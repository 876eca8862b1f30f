//! What agents tell, and what the coordinator answers. The host is never in a message: it is in the certificate.

use std::collections::BTreeMap;

use fleetwright_deploy::health::{CheckReport, HealthReport, HealthStatus, McpInfo};
use fleetwright_deploy::host::{Facts, HostView, Version};
use fleetwright_deploy::ids::{DeploymentId, ReleaseId, ServerName};
use fleetwright_deploy::instance::StepReport;
use fleetwright_deploy::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::artifact::{Listed, Packed};

/// What an agent tells, by version of its shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The first shape.
    V1(AgentMessageV1),
}

/// What an agent tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessageV1 {
    /// The first message on every connection, of agents that do not say how large their disk is.
    Hello {
        /// The version of the agent.
        agent_version: String,
        /// The host.
        view: HelloView,
    },
    /// What became of a step. Sent again until it is acknowledged.
    Step {
        /// The deployment.
        deployment: DeploymentId,
        /// The server.
        server: ServerName,
        /// The attempt.
        attempt: u32,
        /// What became of it.
        report: StepReport,
    },
    /// The health of a server changed, of agents that do not say what bridges and left-out tools there are.
    Health {
        /// The server.
        server: ServerName,
        /// The release that was looked at.
        release: ReleaseId,
        /// What was found.
        report: HealthTold,
        /// The last lines of its output, when it is unhealthy.
        output: Vec<String>,
    },
    /// A sample of the host's metrics. Lost ones are not sent again.
    Metrics(MetricsSample),
    /// Samples of the host's metrics, the oldest first, at most [`SAMPLES_MAX`]. Sent again until they are acknowledged.
    MetricsBatch(Vec<MetricsSample>),
    /// Asks for the chunks of an artifact that a release of this host is made of.
    ListChunks {
        /// SHA-256 of the artifact, hexadecimal.
        sha256: String,
        /// The number of the first one that is wanted.
        from: u32,
    },
    /// Asks for chunks of such an artifact.
    GetChunks {
        /// SHA-256 of the artifact, hexadecimal.
        sha256: String,
        /// Their numbers in its list, at most [`CHUNKS_MAX`](crate::artifact::CHUNKS_MAX).
        numbers: Vec<u32>,
    },
    /// The first message on every connection.
    Greeting {
        /// The version of the agent.
        agent_version: String,
        /// The host.
        view: HostView,
    },
    /// The health of a server changed.
    Condition {
        /// The server.
        server: ServerName,
        /// The release that was looked at.
        release: ReleaseId,
        /// What was found.
        report: HealthReport,
        /// The last lines of its output, when it is unhealthy.
        output: Vec<String>,
    },
}

/// The health of a server as [`AgentMessageV1::Health`] tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthTold {
    /// The verdict over all checks.
    pub status: HealthStatus,
    /// The newest outcome of each check.
    pub checks: Vec<CheckReport>,
    /// What its MCP endpoint said, where it has one.
    pub mcp: Option<McpTold>,
    /// How often its runtime has started it again since it was deployed.
    pub restarts: u32,
}

/// What an MCP server said of itself, as [`AgentMessageV1::Health`] tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpTold {
    /// `serverInfo.name`.
    pub name: String,
    /// `serverInfo.version`.
    pub version: String,
    /// The protocol version that was negotiated.
    pub protocol: String,
    /// The names of its tools, in order.
    pub tools: Vec<String>,
}

impl From<HealthTold> for HealthReport {
    fn from(told: HealthTold) -> Self {
        let HealthTold { status, checks, mcp, restarts } = told;
        let mcp = mcp.map(|McpTold { name, version, protocol, tools }| McpInfo {
            name,
            version,
            protocol,
            tools,
            ..McpInfo::default()
        });
        Self { status, checks, mcp, restarts }
    }
}

/// A host as [`AgentMessageV1::Hello`] tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloView {
    /// The address its servers listen on.
    pub address: String,
    /// The agent's state folder on the host.
    pub state_dir: String,
    /// Labels that placement selects by.
    pub labels: BTreeMap<String, String>,
    /// What it has.
    pub facts: Option<HelloFacts>,
}

/// What a host has, as [`AgentMessageV1::Hello`] tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloFacts {
    /// The operating system.
    pub os: String,
    /// The processor architecture.
    pub arch: String,
    /// Logical processors.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// The programs and engines found, with their versions.
    pub runtimes: BTreeMap<String, Vec<Version>>,
}

impl From<HelloView> for HostView {
    fn from(view: HelloView) -> Self {
        let HelloView { address, state_dir, labels, facts } = view;
        let facts = facts.map(|facts| {
            let HelloFacts { os, arch, cpus, memory_bytes, runtimes } = facts;
            Facts { os, arch, cpus, memory_bytes, disk_bytes: 0, runtimes }
        });
        Self { address, state_dir, labels, facts }
    }
}

/// Most samples in one message.
pub const SAMPLES_MAX: usize = 60;

/// The coordinator's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorReply {
    /// It is durable, or needs not be.
    Acknowledged,
    /// It will never be taken: there is no use in sending it again.
    Refused(String),
    /// The list that was asked for.
    Listed(Listed),
    /// The chunks that were asked for, in that order.
    Chunks(Vec<Packed>),
}

/// The metrics of a host at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsSample {
    /// When.
    pub at: Timestamp,
    /// Use of all processors together, in thousandths.
    pub cpu_permille: u32,
    /// Used memory, in bytes.
    pub memory_used_bytes: u64,
    /// All memory, in bytes.
    pub memory_total_bytes: u64,
    /// Free space where the agent keeps its state, in bytes.
    pub disk_free_bytes: u64,
    /// All space there, in bytes.
    pub disk_total_bytes: u64,
    /// Bytes received on all interfaces since the host started.
    pub network_received_bytes: u64,
    /// Bytes sent on all interfaces since the host started.
    pub network_sent_bytes: u64,
    /// The servers of this host.
    pub servers: Vec<ServerMetrics>,
}

/// The metrics of a server: its whole process group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetrics {
    /// The server.
    pub server: ServerName,
    /// Processor use, in thousandths of one processor.
    pub cpu_permille: u32,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Number of processes.
    pub processes: u32,
}
