//! Names and identifiers, each a type of its own. A value of one of these types has been validated, so it is
//! safe to use as one component of a path or of a SPIFFE URI.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Longest DNS-style label (RFC 1035, section 2.3.4), used for every name a person chooses.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest host name (RFC 1035, section 2.3.4).
pub const HOST_NAME_BYTES_MAX: usize = 253;
/// How many hexadecimal digits of a content hash are shown to people.
pub const SHORT_HASH_DIGITS: usize = 12;

/// Why a text is no valid name or identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what}: {why}")]
pub struct InvalidId {
    what: &'static str,
    text: String,
    why: &'static str,
}

fn check_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > NAME_BYTES_MAX {
        return Err("it is longer than 63 characters");
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !text.bytes().all(allowed) {
        return Err("only lower-case letters, digits and `-` may be used");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it must start and end with a letter or a digit");
    }
    Ok(())
}

fn check_host_name(text: &str) -> Result<(), &'static str> {
    if text.len() > HOST_NAME_BYTES_MAX {
        return Err("it is longer than 253 characters");
    }
    text.split('.').try_for_each(check_label)
}

fn check_hash(text: &str) -> Result<(), &'static str> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(hex) { Ok(()) } else { Err("it must be 64 lower-case hexadecimal digits") }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The text of this identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                match $check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(InvalidId { what: $what, text, why }),
                }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        #[cfg(feature = "planning")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                // Names of digits alone are numbers to YAML.
                schemars::json_schema!({ "type": ["string", "integer"], "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$" })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_id!(
    /// A host: one machine with one agent. Dot-separated labels of lower-case letters, digits and `-`.
    HostName, "host name", check_host_name
);
text_id!(
    /// A server: a deployable thing, defined once.
    ServerName, "server name", check_label
);
text_id!(
    /// An environment.
    EnvironmentName, "environment name", check_label
);
text_id!(
    /// A manifest.
    ManifestName, "manifest name", check_label
);
text_id!(
    /// A fleet; the trust domain of its SPIFFE identities.
    FleetName, "fleet name", check_label
);
text_id!(
    /// One execution of a plan: `d`, the generation it raised the fleet to, `-`, and the start of the plan's id.
    DeploymentId, "deployment id", check_label
);
text_id!(
    /// What a host kept of an instance before a step.
    SnapshotId, "snapshot id", check_label
);
text_id!(
    /// The content hash (BLAKE3, hexadecimal) of a release.
    ReleaseId, "release id", check_hash
);
text_id!(
    /// The content hash (BLAKE3, hexadecimal) of a plan.
    PlanId, "plan id", check_hash
);

impl ReleaseId {
    /// The id of the release with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// The first digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..SHORT_HASH_DIGITS]
    }
}

impl PlanId {
    /// The id of the plan with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// The id of the plan whose bytes have this hash.
    #[cfg(feature = "planning")]
    pub(crate) fn from_hash(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }

    /// The first digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..SHORT_HASH_DIGITS]
    }
}

impl DeploymentId {
    /// The id of the deployment that raises the fleet to `generation` by executing `plan`.
    pub fn new(generation: Generation, plan: &PlanId) -> Self {
        Self(format!("d{}-{}", generation.0, &plan.0[..8]))
    }

    /// The generation that it raised the fleet to, as its id says.
    pub fn generation(&self) -> Option<Generation> {
        self.0.strip_prefix('d')?.split_once('-')?.0.parse().ok().map(Generation)
    }
}

impl SnapshotId {
    /// The snapshot taken by `deployment` before the given attempt at a step.
    pub fn new(deployment: &DeploymentId, attempt: u32) -> Self {
        Self(format!("{deployment}-{attempt}"))
    }
}

/// Identifies a command: the same order of the same attempt always has the same id, so that sending it again
/// cannot make it happen twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId(pub [u8; 16]);

impl CommandId {
    /// The id of an order. One that was asked for anew, with a newer intent, is another command than the one before.
    pub fn of(
        deployment: &DeploymentId,
        instance: &InstanceId,
        attempt: u32,
        order: &'static str,
        intent: Generation,
    ) -> Self {
        let hash = blake3::hash(format!("{deployment}/{instance}/{attempt}/{order}/{intent}").as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        Self(id)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A counter per fleet that only rises; an agent refuses an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One server on one host, written `SERVER@HOST`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct InstanceId {
    /// The server.
    pub server: ServerName,
    /// The host it is on.
    pub host: HostName,
}

impl InstanceId {
    /// The instance of `server` on `host`.
    pub fn new(server: ServerName, host: HostName) -> Self {
        Self { server, host }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.server, self.host))
    }
}

impl FromStr for InstanceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let Some((server, host)) = text.split_once('@') else {
            return Err(InvalidId { what: "instance", text: text.to_owned(), why: "write it as SERVER@HOST" });
        };
        Ok(Self { server: server.parse()?, host: host.parse()? })
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl Serialize for InstanceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&[self.server.as_str(), "@", self.host.as_str()].concat())
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", "..", ".", "a/b", "a b", "A", "-a", "a-", "a\n", "a\0", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<ServerName>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["a..b", ".a", "a.", "a/b", &"a.".repeat(200)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_instance_is_written_server_at_host_and_read_back() {
        let id: InstanceId = "time@web-1.example".parse().expect("valid");
        assert_eq!(id.server.as_str(), "time");
        assert_eq!(id.host.as_str(), "web-1.example");
        assert_eq!(id.to_string(), "time@web-1.example");
        assert!("time".parse::<InstanceId>().is_err());
    }
}
