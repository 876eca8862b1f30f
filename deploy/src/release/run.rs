//! What is started, how it is kept running, and what it may use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr};

use crate::time::Length;

/// The variable with the token that clients of a bridge must present, if any. The server does not see it.
pub const BRIDGE_TOKEN_VARIABLE: &str = "FLEETWRIGHT_BRIDGE_TOKEN";
/// Fewest characters of that token: it must not be guessed.
pub const BRIDGE_TOKEN_CHARACTERS_MIN: usize = 16;

/// What is started, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The program and its arguments; programs of the package come first in its search path. Of an image: what is given
    /// to its entrypoint, in place of what the image would give to it; nothing to leave it as it is.
    pub command: Vec<String>,
    /// Its environment, besides a search path, a home and a locale.
    pub environment: BTreeMap<String, String>,
    /// How it speaks.
    pub transport: Transport,
    /// Where it listens, if it does.
    pub endpoint: Option<Endpoint>,
    /// When its runtime starts it again.
    pub restart: RestartPolicy,
    /// Whether it does its work and ends: it is healthy once it has ended with exit status 0.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub completes: bool,
    /// How long it has to end after SIGTERM before its whole process group is killed.
    pub stop_timeout: Length,
    /// What keeps it running.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub runtime: RuntimeChoice,
    /// The user it runs as, in a container one of the image; nothing for one of its own under systemd, and the agent's otherwise.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub user: Option<String>,
    /// Folders and files outside its data folder that it may write to, under systemd.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub writable: Vec<String>,
    /// The most it may use.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub resources: Resources,
    /// How its bridge meets clients, where it has one.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub bridge: super::Bridge,
}

/// How a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// MCP over its standard input and output; bridged to streamable HTTP on its endpoint.
    Stdio,
    /// MCP over streamable HTTP.
    Http,
    /// No MCP: any other daemon.
    None,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub address: String,
    /// The TCP port.
    pub port: u16,
    /// The path of its MCP endpoint.
    pub path: String,
}

impl Endpoint {
    /// The endpoint as a URL.
    pub fn url(&self) -> String {
        format!("http://{}:{}{}", self.address, self.port, self.path)
    }

    /// `ADDRESS:PORT`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

/// When a server that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Whatever its exit status was.
    #[default]
    Always,
    /// Only when its exit status was not 0.
    OnFailure,
    /// Never.
    Never,
}

/// What keeps a server running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RuntimeChoice {
    /// The best that its host has.
    #[default]
    Auto,
    /// A systemd unit.
    Systemd,
    /// A supervisor process of the agent's.
    Process,
    /// The agent of the host itself: the release takes its place.
    Agent,
}

/// A runtime that a host has.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, IntoStaticStr, EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RuntimeKind {
    /// A systemd unit.
    Systemd,
    /// A supervisor process of the agent's.
    Process,
    /// The agent of the host itself.
    Agent,
}

/// The most that a server may use. Nothing for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory, in bytes; what takes more is killed and started again.
    pub memory_bytes: Option<u64>,
    /// Processor time, in hundredths of one processor.
    pub cpu_percent: Option<u32>,
    /// Processes and threads at once.
    pub tasks: Option<u32>,
    /// Room of its data and output on the disk, in bytes: it is measured, and what takes more is told, and stopped when the
    /// disk is low.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}
