//! How an image is run as a container.

use serde::{Deserialize, Serialize};

/// What a container has besides its image, its command and its limits. Nothing more is given to it: no capabilities,
/// no new privileges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The TCP port that the program listens on in the container, published as the endpoint; the endpoint's own unless
    /// it is said.
    pub port: Option<u16>,
    /// The network: `bridge` unless it is said, `host`, `none`, or the name of one, which is made where it is missing.
    pub network: Option<String>,
    /// What is mounted besides the data folder, the rendered files and the secrets.
    pub volumes: Vec<Volume>,
    /// Linux capabilities it keeps, such as `NET_BIND_SERVICE`.
    pub capabilities: Vec<String>,
    /// Whether its own file system cannot be written; `/tmp` can.
    pub read_only: bool,
}

/// Something of the host's that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// An absolute path of the host, or the name of a volume of the engine's.
    pub source: String,
    /// Where it is in the container.
    pub target: String,
    /// Whether it cannot be written.
    pub read_only: bool,
}

impl Volume {
    /// As the engine takes it, and as definitions write it: `SOURCE:TARGET`, then `:ro` where it cannot be written.
    pub fn bind(&self) -> String {
        let mode = if self.read_only { ":ro" } else { "" };
        format!("{}:{}{mode}", self.source, self.target)
    }
}
