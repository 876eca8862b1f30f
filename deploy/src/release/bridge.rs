//! What is told to the bridge of a server that speaks over its standard input and output.

use serde::{Deserialize, Serialize};

use super::is_default;

/// Most sessions with a process of the server each, unless a definition says otherwise, and at all.
pub const OWN_SESSIONS_USUAL: u32 = 32;
/// Most sessions with a process of the server each that a definition may ask for.
pub const OWN_SESSIONS_MAX: u32 = 256;
/// Most names, and most origins, of one server.
pub const BRIDGE_NAMES_MAX: usize = 32;
/// Longest path of an endpoint, in bytes.
pub const ENDPOINT_PATH_BYTES_MAX: usize = 1024;
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

/// What is wrong with `HOST` or `HOST:PORT` as a name by which clients reach a bridge.
pub fn bridge_host_fault(authority: &str) -> Option<&'static str> {
    let (host, port) = match authority.rsplit_once(':') {
        // A colon within brackets is one of an IPv6 address.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = |text: &str| {
        text.contains(':')
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b":.".contains(&b))
    };
    let is_label = |label: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && label.bytes().all(plain)
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port);
    if authority.len() > BRIDGE_NAME_BYTES_MAX {
        Some("is longer than 253 bytes")
    } else if authority.contains('*') {
        Some("has a wildcard, and whoever owns one of those names could come by it")
    } else if authority.contains("://") || authority.contains(['/', '?', '#', '@']) {
        Some("is more than a host and a port")
    } else if authority.bytes().any(|b| b.is_ascii_uppercase()) {
        Some("is not in lower case, as names are compared")
    } else if port.is_some_and(|port| !is_port(port)) {
        Some("does not end with a port from 1 to 65535")
    } else if !inner.map_or_else(|| host.split('.').all(is_label), is_address) {
        Some("is not the name or the address of a host")
    } else {
        None
    }
}

/// What is wrong with `SCHEME://HOST` or `SCHEME://HOST:PORT` as an origin whose pages may use a bridge.
pub fn bridge_origin_fault(origin: &str) -> Option<&'static str> {
    match origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")) {
        None => Some("does not begin with http:// or https://"),
        Some(authority) => bridge_host_fault(authority),
    }
}

/// What is wrong with the path of an MCP endpoint (RFC 3986, section 3.3).
pub fn endpoint_path_fault(path: &str) -> Option<&'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b);
    if !path.starts_with('/') {
        Some("does not begin with `/`")
    } else if path.len() > ENDPOINT_PATH_BYTES_MAX {
        Some("is longer than 1024 bytes")
    } else if path.contains(['?', '#']) {
        Some("is more than a path")
    } else if !path.bytes().all(fits) {
        Some("has a character that no path has: spaces and others are written as %20 and the like")
    } else {
        None
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

    #[test]
    fn names_are_hosts_with_or_without_a_port_and_nothing_else() {
        for fits in [
            "tools",
            "tools.example.com",
            "tools.example.com:8443",
            "10.0.0.5",
            "10.0.0.5:1",
            "[::1]",
            "[fe80::1]:65535",
        ] {
            assert_eq!(bridge_host_fault(fits), None, "{fits}");
        }
        for (wrong, why) in [
            ("", "is not the name"),
            ("Tools.example", "lower case"),
            ("*.example.com", "wildcard"),
            ("*", "wildcard"),
            ("tools.example:0", "port"),
            ("tools.example:65536", "port"),
            ("tools.example:+80", "port"),
            ("tools.example:", "port"),
            ("a:b:80", "is not the name"),
            ("::1", "is not the name"),
            ("[tools]", "is not the name"),
            ("tools..example", "is not the name"),
            ("-tools", "is not the name"),
            ("--origin", "is not the name"),
            ("tools example", "is not the name"),
            ("tools\n", "is not the name"),
            ("user@tools", "more than"),
            ("tools/mcp", "more than"),
            ("http://tools", "more than"),
            ("tö.example", "is not the name"),
        ] {
            assert!(
                bridge_host_fault(wrong).is_some_and(|told| told.contains(why)),
                "{wrong}: {:?}",
                bridge_host_fault(wrong)
            );
        }
        assert!(
            bridge_host_fault(&"a.".repeat(127)).is_some_and(|why| why.contains("253")),
            "{}",
            "a.".repeat(127).len()
        );
    }

    #[test]
    fn a_path_is_one_that_a_request_can_have() {
        for fits in ["/", "/mcp", "/api/mcp/", "/a%20b", "/:x/*y", "/~me/mcp.v1"] {
            assert_eq!(endpoint_path_fault(fits), None, "{fits}");
        }
        for (wrong, why) in [
            ("", "begin with"),
            ("mcp", "begin with"),
            ("/mcp?x=1", "more than a path"),
            ("/mcp#x", "more than a path"),
            ("/a b", "character"),
            ("/{x}", "character"),
            ("/ä", "character"),
            (&format!("/{}", "a".repeat(1024)), "1024 bytes"),
        ] {
            assert!(endpoint_path_fault(wrong).is_some_and(|told| told.contains(why)), "{wrong}");
        }
        assert_eq!(bridge_origin_fault("https://tools.example:8443"), None);
        assert!(bridge_origin_fault("tools.example").is_some_and(|why| why.contains("http://")));
    }
}
