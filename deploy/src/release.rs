//! A release: the immutable desired state of one instance, rendered, addressed by the hash of its bytes.
//!
//! Secrets are not in it. Where a secret's value belongs, the rendered text holds a marker, and
//! [`Release::secrets`] holds a keyed digest of the value, so that a rotated secret is another release.

mod bridge;
mod container;
pub mod interpreter;
mod kept;
mod package_name;
mod registry;
mod run;
mod secret;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::health::{HealthCheck, Probe};
use crate::host::Requirement;
use crate::ids::{ReleaseId, ServerName};
use crate::time::{Length, Timestamp};

pub use bridge::{
    BRIDGE_NAME_BYTES_MAX, BRIDGE_NAMES_MAX, Bridge, ENDPOINT_PATH_BYTES_MAX, OWN_SESSIONS_MAX, OWN_SESSIONS_USUAL,
    Sessions, bridge_host_fault, bridge_origin_fault, endpoint_path_fault,
};
pub use container::{Container, Volume};
pub use kept::Database;
pub use package_name::{index_name, is_npm_name, is_pypi_name};
pub use registry::Registry;
pub use run::{
    BRIDGE_TOKEN_CHARACTERS_MIN, BRIDGE_TOKEN_VARIABLE, Endpoint, Resources, RestartPolicy, Run, RuntimeChoice,
    RuntimeKind, Transport,
};
use secret::secrets_in;
pub use secret::{
    MARKER_END, MARKER_SIGN, MARKER_START, MissingSecret, SecretEncoding, SecretKey, SecretSource, SecretUse,
    UnboundSecret, has_marker, is_secret_name, marker, masked, reveal,
};

/// The desired state of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The server it is a release of.
    pub server: ServerName,
    /// What is installed.
    pub package: Package,
    /// What a host must have for it.
    pub requires: Vec<Requirement>,
    /// What is started, and how.
    pub run: Run,
    /// How its image is run, where it is one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub container: Container,
    /// Files written into the release's `config` folder.
    pub files: Vec<ConfigFile>,
    /// What is checked.
    pub health_checks: Vec<HealthCheck>,
    /// Tool calls that integration testing makes.
    pub tool_calls: Vec<ToolCall>,
    /// Whether a snapshot takes the data folder along.
    pub snapshot_data: bool,
    /// Files and folders outside the release that a snapshot takes along.
    #[serde(default, skip_serializing_if = "is_default")]
    pub snapshot_paths: Vec<String>,
    /// A database that a snapshot dumps.
    #[serde(default, skip_serializing_if = "is_default")]
    pub database: Option<Database>,
    /// Why a step to this release cannot be undone, where it cannot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub irreversible: Option<String>,
    /// Keyed digests of the secrets that its texts name.
    pub secrets: BTreeMap<String, SecretUse>,
    /// The time its templates were given, where one of them asked.
    pub rendered_at: Option<Timestamp>,
}

/// What is installed before a server can be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Package {
    /// Nothing: the program is on the host, or among the release's files.
    None,
    /// A distribution from PyPI, in a virtual environment of its own.
    Pypi {
        /// The distribution's name.
        name: String,
        /// Its exact version.
        version: String,
        /// Further exact requirements, such as `mcp==1.28.0`.
        with: Vec<String>,
        /// Everything that comes with it, as a requirements file with digests; without it, what the index gives.
        #[serde(default, skip_serializing_if = "is_default")]
        lock: Option<String>,
        /// Whether what comes as source only may be built on the host. Without it, nothing is installed but wheels.
        #[serde(default, skip_serializing_if = "is_default")]
        build: bool,
    },
    /// A package from the npm registry, in a prefix of its own; its install scripts do not run.
    Npm {
        /// The package's name, with its scope.
        name: String,
        /// Its exact version.
        version: String,
        /// Everything that comes with it, as npm's `package-lock.json`; without it, what the registry gives.
        #[serde(default, skip_serializing_if = "is_default")]
        lock: Option<String>,
    },
    /// A tar archive, compressed with gzip or not, unpacked into the release's `app` folder.
    Archive {
        /// Where it is fetched: `https://`, `http://`, `file://`, or `artifact:` for the coordinator.
        url: String,
        /// SHA-256 of its bytes, hexadecimal.
        sha256: String,
        /// Its version, for people.
        version: String,
        /// How many of the first parts of each path are left out.
        strip: u32,
    },
    /// A program of one file.
    File {
        /// Where it is fetched: `https://`, `http://`, `file://`, or `artifact:` for the coordinator.
        url: String,
        /// SHA-256 of its bytes, hexadecimal.
        sha256: String,
        /// Its version, for people.
        version: String,
        /// What it is called on the host.
        name: String,
    },
    /// An image of a container, from a registry (OCI Distribution Specification).
    Oci {
        /// Its name without tag and digest, such as `ghcr.io/example/server`.
        image: String,
        /// The digest of its manifest, `sha256:HEX`.
        digest: String,
        /// Its version, for people: its tag, mostly.
        version: String,
    },
    /// A package of PyPI's, npm's or OCI's kind from a registry of its own. What does not know of these does not know
    /// the variant: it must not install the package from another registry.
    Private {
        /// The registry.
        registry: Registry,
        /// The package.
        package: Box<Self>,
    },
}

impl Package {
    /// The version that is deployed, where there is a package.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Pypi { version, .. }
            | Self::Npm { version, .. }
            | Self::Archive { version, .. }
            | Self::File { version, .. }
            | Self::Oci { version, .. } => Some(version),
            Self::Private { package, .. } => package.version(),
        }
    }

    /// The package itself, wherever it comes from.
    pub fn itself(&self) -> &Self {
        match self {
            Self::Private { package, .. } => package.itself(),
            _ => self,
        }
    }

    /// The registry of its own that it comes from.
    pub fn registry(&self) -> Option<&Registry> {
        match self {
            Self::Private { registry, .. } => Some(registry),
            _ => None,
        }
    }

    /// The image that is run, by its digest, where it is one.
    pub fn image(&self) -> Option<String> {
        match self {
            Self::Oci { image, digest, .. } => Some(format!("{image}@{digest}")),
            Self::Private { package, .. } => package.image(),
            Self::None | Self::Pypi { .. } | Self::Npm { .. } | Self::Archive { .. } | Self::File { .. } => None,
        }
    }

    /// SHA-256 of the artifact of the coordinator's that is installed, where it is one.
    pub fn artifact(&self) -> Option<&str> {
        match self {
            Self::Archive { url, sha256, .. } | Self::File { url, sha256, .. } if is_artifact(url) => Some(sha256),
            Self::Archive { .. }
            | Self::File { .. }
            | Self::None
            | Self::Pypi { .. }
            | Self::Npm { .. }
            | Self::Oci { .. }
            | Self::Private { .. } => None,
        }
    }
}

/// What an artifact's URL begins with; its name, for people, follows.
pub const ARTIFACT_SCHEME: &str = "artifact:";

/// Whether a URL names an artifact that the coordinator keeps.
pub fn is_artifact(url: &str) -> bool {
    url.starts_with(ARTIFACT_SCHEME)
}

impl std::fmt::Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.pad("no package"),
            Self::Pypi { name, version, .. } => f.pad(&format!("pypi {name} {version}")),
            Self::Npm { name, version, .. } => f.pad(&format!("npm {name} {version}")),
            Self::Archive { url, version, .. } => f.pad(&format!("archive {url} {version}")),
            Self::File { name, version, .. } => f.pad(&format!("file {name} {version}")),
            Self::Oci { image, version, .. } => f.pad(&format!("oci {image} {version}")),
            Self::Private { registry: Registry { url: Some(url), .. }, package } => {
                f.pad(&format!("{package} from {url}"))
            }
            Self::Private { package, .. } => package.fmt(f),
        }
    }
}

/// A file of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Its path below the release's `config` folder; relative, without `..`.
    pub path: String,
    /// Its content, with markers where secrets belong.
    pub content: String,
    /// Its permission bits.
    pub mode: u32,
}

/// A call that integration testing makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: serde_json::Map<String, serde_json::Value>,
    /// A text that the answer must contain.
    pub contains: Option<String>,
    /// What must be found in an answer that is JSON, by JSONPath (RFC 9535).
    #[serde(default, skip_serializing_if = "is_default")]
    pub json: BTreeMap<String, serde_json::Value>,
}

/// Fields that came later are left out where they say nothing, so that older releases keep their ids.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Release {
    /// The values of its secrets as they are put into its texts, if each is the one that the release was made with.
    pub fn take_secrets<'a>(
        &self,
        sent: &'a BTreeMap<String, (&'a str, SecretKey)>,
    ) -> Result<BTreeMap<String, String>, UnboundSecret> {
        if let Some(unknown) = sent.keys().find(|name| !self.secrets.contains_key(*name)) {
            return Err(UnboundSecret::Unknown(unknown.clone()));
        }
        let values = self.secrets.iter().map(|(name, secret)| {
            let (value, key) = sent.get(name).ok_or_else(|| UnboundSecret::Missing(name.clone()))?;
            Ok((name.clone(), secret.check(name, value, key)?))
        });
        values.collect()
    }

    /// A release that runs a command, and nothing else.
    pub fn plain(server: ServerName, command: Vec<String>) -> Self {
        Self {
            server,
            package: Package::None,
            requires: Vec::new(),
            run: Run {
                command,
                environment: BTreeMap::new(),
                transport: Transport::None,
                endpoint: None,
                restart: RestartPolicy::Always,
                completes: false,
                stop_timeout: Length::from_secs(10),
                runtime: RuntimeChoice::Auto,
                user: None,
                writable: Vec::new(),
                resources: Resources::default(),
                bridge: Bridge::default(),
            },
            container: Container::default(),
            files: Vec::new(),
            health_checks: Vec::new(),
            tool_calls: Vec::new(),
            snapshot_data: false,
            snapshot_paths: Vec::new(),
            database: None,
            irreversible: None,
            secrets: BTreeMap::new(),
            rendered_at: None,
        }
    }

    /// The bytes that the id is the hash of: JSON with its fields in a fixed order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1024);
        self.write(&mut bytes);
        bytes
    }

    /// Appends those bytes.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        // Writing to memory what has no map with odd keys cannot fail.
        let _ = serde_json::to_writer(bytes, self);
    }

    /// The content hash of this release.
    pub fn id(&self) -> ReleaseId {
        ReleaseId::of(&self.to_bytes())
    }

    /// The MCP endpoint, if it has one.
    pub fn mcp_url(&self) -> Option<String> {
        match self.run.transport {
            Transport::Stdio | Transport::Http => self.run.endpoint.as_ref().map(Endpoint::url),
            Transport::None => None,
        }
    }

    /// The headers that its own MCP endpoint is asked with, as its checks have them.
    pub fn mcp_headers(&self) -> BTreeMap<String, String> {
        let own = self.mcp_url();
        let mut checks = self.health_checks.iter().filter_map(|check| match &check.probe {
            Probe::Mcp { url, headers, .. } if Some(url) == own.as_ref() => Some(headers.clone()),
            _ => None,
        });
        checks.next().unwrap_or_default()
    }

    /// The secrets that its checks present.
    pub fn checked_secrets(&self) -> BTreeSet<String> {
        let headers = self.health_checks.iter().flat_map(|check| check.probe.headers());
        headers.flat_map(|(_, value)| secrets_in(value)).collect()
    }

    /// Whether a bridge speaks HTTP for it.
    pub fn is_bridged(&self) -> bool {
        self.run.transport == Transport::Stdio && self.run.endpoint.is_some()
    }

    /// Whether its bridge asks for a token.
    pub fn has_bridge_token(&self) -> bool {
        self.is_bridged() && self.run.environment.contains_key(BRIDGE_TOKEN_VARIABLE)
    }

    /// The secrets that are given to the server: all but those of its bridge's token, which only who speaks to the bridge
    /// needs, and those of the registry that its package comes from, which only the agent asks. What its checks present
    /// besides is no reason to give it one of these.
    pub fn secrets_of_server(&self) -> BTreeSet<String> {
        let mut given: BTreeSet<String> = self.secrets.keys().cloned().collect();
        let token = self.run.environment.get(BRIDGE_TOKEN_VARIABLE).filter(|_| self.is_bridged());
        let mut others = token.map(|token| secrets_in(token)).unwrap_or_default();
        others.extend(self.package.registry().map(Registry::secrets).unwrap_or_default());
        if others.is_empty() {
            return given;
        }
        let mut rest = Self { secrets: BTreeMap::new(), health_checks: Vec::new(), ..self.clone() };
        if token.is_some() {
            rest.run.environment.remove(BRIDGE_TOKEN_VARIABLE);
        }
        rest.package = self.package.itself().clone();
        let elsewhere = secrets_in(&String::from_utf8_lossy(&rest.to_bytes()));
        let only = others.into_iter().filter(|name| !elsewhere.contains(name));
        only.for_each(|name| {
            given.remove(&name);
        });
        given
    }

    /// The tools that its MCP checks expect.
    pub fn expected_tools(&self) -> Vec<String> {
        let tools = self.health_checks.iter().filter_map(|check| match &check.probe {
            Probe::Mcp { expected_tools, .. } => Some(expected_tools),
            _ => None,
        });
        tools.flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_not_given_what_only_its_packages_registry_asks_for() {
        let of = |name: &str| format!("{MARKER_START}{name}{MARKER_END}");
        let mut release = Release::plain("a".parse().expect("name"), Vec::new());
        for name in ["pypi", "key"] {
            let source = SecretSource::Named { variable: name.to_owned(), fallback: None };
            release.secrets.insert(name.to_owned(), SecretUse { source, digest: None, encode: None });
        }
        let package =
            Package::Pypi { name: "a".to_owned(), version: "1".to_owned(), with: Vec::new(), lock: None, build: false };
        let registry = Registry { password: Some(of("pypi")), username: Some("u".to_owned()), ..Registry::default() };
        release.package = Package::Private { registry, package: Box::new(package) };
        release.run.environment.insert("KEY".to_owned(), of("key"));
        assert_eq!(release.secrets_of_server().into_iter().collect::<Vec<_>>(), ["key"]);
        // What the server asks for itself, it gets.
        release.run.environment.insert("PIP".to_owned(), of("pypi"));
        assert_eq!(release.secrets_of_server().len(), 2);
    }

    #[test]
    fn an_agent_that_knows_of_no_registries_does_not_take_such_a_package_for_a_public_one() {
        let package = Package::Npm { name: "a".to_owned(), version: "1.0.0".to_owned(), lock: None };
        let registry = Registry { url: Some("https://npm.example".to_owned()), ..Registry::default() };
        let private = Package::Private { registry, package: Box::new(package.clone()) };
        let json = serde_json::to_string(&private).expect("JSON");
        assert!(json.starts_with(r#"{"private":{"#), "{json}");
        assert_eq!(serde_json::from_str::<Package>(&json).expect("a package"), private);
        assert_eq!(private.to_string(), "npm a 1.0.0 from https://npm.example");
        assert_eq!((private.version(), private.itself()), (Some("1.0.0"), &package));
    }

    #[test]
    fn a_server_is_not_given_what_only_its_bridge_asks_for() {
        let of = |name: &str| format!("{MARKER_START}{name}{MARKER_END}");
        let mut release = Release::plain("a".parse().expect("name"), vec!["serve".to_owned()]);
        let used = |name: &str| {
            let source = SecretSource::Named { variable: name.to_owned(), fallback: None };
            (name.to_owned(), SecretUse { source, digest: None, encode: None })
        };
        release.secrets = ["token", "shared", "key"].map(used).into();
        release.run.transport = Transport::Stdio;
        release.run.environment = [("KEY", of("key")), ("ALSO", of("shared"))].map(|(n, v)| (n.to_owned(), v)).into();
        release.run.environment.insert(BRIDGE_TOKEN_VARIABLE.to_owned(), of("token") + &of("shared"));
        let all: BTreeSet<String> = release.secrets.keys().cloned().collect();
        assert_eq!(release.secrets_of_server(), all, "without a bridge the variable is like any other");
        release.run.endpoint = Some(Endpoint { address: "::1".to_owned(), port: 8801, path: "/mcp".to_owned() });
        assert_eq!(release.secrets_of_server(), ["key", "shared"].map(str::to_owned).into());
    }
}
