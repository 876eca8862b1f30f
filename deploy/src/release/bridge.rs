//! What is told to the bridge of a server that speaks over its standard input and output.

use serde::{Deserialize, Serialize};

use super::is_default;

/// Most sessions with a process of the server each, unless a definition says otherwise, and at all.
pub const OWN_SESSIONS_USUAL: u32 = 32;
/// Most sessions with a process of the server each that a definition may ask for.
pub const OWN_SESSIONS_MAX: u32 = 256;
/// Most names, and most origins, of one server.
pub const BRIDGE_NAMES_MAX: usize = 32;
/// Longest name of a host, in bytes (RFC 1035, section 2.3.4), with or without its port.
pub const BRIDGE_NAME_BYTES_MAX: usize = 253;

/// Which process of a bridged server a client speaks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "planning", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Sessions {
    /// The one that all clients share.
    #[default]
    Shared,
    /// One of its own for each session: for servers that keep something of a client between its requests.
    Own,
}

/// How the bridge of a server meets clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Which process a client speaks to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sessions: Sessions,
    /// Most sessions at once that have a process of their own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sessions_max: Option<u32>,
    /// Names by which clients reach it, besides its own address: `HOST` or `HOST:PORT`, in lower case.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hosts: Vec<String>,
    /// Origins whose pages may speak to it from a browser: `SCHEME://HOST` or `SCHEME://HOST:PORT`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub origins: Vec<String>,
}

impl Bridge {
    /// What this says on the command line of a bridge. Nothing where it says nothing.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.sessions == Sessions::Own {
            let most = self.sessions_max.unwrap_or(OWN_SESSIONS_USUAL).to_string();
            arguments.extend(["--sessions", "own", "--sessions-max", &most].map(str::to_owned));
        }
        for (flag, values) in [("--host", &self.hosts), ("--origin", &self.origins)] {
            arguments.extend(values.iter().flat_map(|value| [flag.to_owned(), value.clone()]));
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_told_only_what_a_definition_says() {
        assert!(Bridge::default().arguments().is_empty());
        let bridge = Bridge {
            sessions: Sessions::Own,
            sessions_max: None,
            hosts: vec!["tools.example".to_owned(), "10.0.0.5:8801".to_owned()],
            origins: vec!["https://chat.example".to_owned()],
        };
        assert_eq!(
            bridge.arguments().join(" "),
            "--sessions own --sessions-max 32 --host tools.example --host 10.0.0.5:8801 --origin https://chat.example"
        );
        let few = Bridge { sessions_max: Some(4), hosts: Vec::new(), origins: Vec::new(), ..bridge };
        assert_eq!(few.arguments().join(" "), "--sessions own --sessions-max 4");
    }
}
