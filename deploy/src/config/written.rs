//! Configuration as it is written: what YAML may hold, with the places kept where errors will point.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::host::{FactName, Requirement, Version};
use crate::ids::{EnvironmentName, HostName, ManifestName, ServerName};
use crate::release::{RestartPolicy, RuntimeChoice, Sessions, Transport};
use crate::time::Length;

use super::checks::{Check, CheckWritten};
use super::dependency::{DependencyWritten, ExternalWritten};
use super::layers::Field;
use super::problem::Source;
use super::rollout::{PaceWritten, RollbackWritten, RolloutWritten};
use super::rules::Rules;
use super::text::Text;

/// The version of the format that this release reads.
pub const API_VERSION: &str = "fleetwright/v1";

/// A manifest: which servers run where, in which order, how carefully.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`API_VERSION`].
    #[serde(rename = "apiVersion")]
    #[schemars(with = "Text")]
    pub api_version: Spanned<String>,
    /// Its name.
    #[schemars(with = "ManifestName")]
    pub name: Spanned<ManifestName>,
    /// What it is for, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// The environment it is deployed to unless the command names another.
    #[serde(default)]
    #[schemars(with = "Option<EnvironmentName>")]
    pub environment: Option<Spanned<EnvironmentName>>,
    /// The hosts, for planning without a coordinator and for `up`.
    #[serde(default)]
    pub hosts: Vec<ManifestHost>,
    /// Endpoints outside the fleet that must answer before anything is got ready.
    #[serde(default)]
    pub externals: Vec<ExternalWritten>,
    /// The servers.
    pub servers: Vec<ManifestServer>,
    /// How carefully groups proceed.
    #[serde(default)]
    pub rollout: RolloutWritten,
    /// What happens on failure.
    #[serde(default)]
    pub rollback: RollbackWritten,
}

/// A host as a manifest names it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestHost {
    /// Its name.
    #[schemars(with = "HostName")]
    pub name: Spanned<HostName>,
    /// The address its servers listen on.
    #[serde(default)]
    pub address: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it has, for planning without asking it; nothing means that every need counts as met.
    #[serde(default)]
    pub runtimes: Option<BTreeMap<String, Vec<Version>>>,
}

/// A server's entry in a manifest.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestServer {
    /// The server, defined in `config/servers/NAME.yaml`.
    #[schemars(with = "ServerName")]
    pub server: Spanned<ServerName>,
    /// Servers that must be healthy, started or completed before this one is deployed, and externals.
    #[serde(default)]
    #[schemars(with = "Vec<DependencyWritten>")]
    pub depends_on: Vec<Spanned<DependencyWritten>>,
    /// Within a group, higher ones start first.
    #[serde(default)]
    pub priority: i32,
    /// Whether it is left out, rather than refused, when no host meets its needs.
    #[serde(default)]
    pub optional: bool,
    /// Where it runs.
    #[serde(default)]
    pub place: Place,
    /// How fast its instances are switched, where that is not as for the others.
    #[serde(default)]
    pub rollout: PaceWritten,
}

/// Where a server runs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// How many instances; 1 unless `hosts` names them.
    #[serde(default)]
    #[schemars(with = "Option<u32>")]
    pub count: Option<Spanned<u32>>,
    /// Labels a host must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Exactly these hosts.
    #[serde(default)]
    #[schemars(with = "Vec<HostName>")]
    pub hosts: Vec<Spanned<HostName>>,
    /// A label over whose values its instances are spread as evenly as can be; hosts without it will not do.
    #[serde(default)]
    pub spread: Option<String>,
    /// Servers with which it shares no host.
    #[serde(default)]
    #[schemars(with = "Vec<ServerName>")]
    pub apart_from: Vec<Spanned<ServerName>>,
}

/// An environment: named settings, secrets and rules.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// [`API_VERSION`].
    #[serde(rename = "apiVersion")]
    #[schemars(with = "Text")]
    pub api_version: Spanned<String>,
    /// Its name.
    #[schemars(with = "EnvironmentName")]
    pub name: Spanned<EnvironmentName>,
    /// What it is for, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// The environment from which everything comes that this one does not say itself.
    #[serde(default)]
    #[schemars(with = "Option<EnvironmentName>")]
    pub extends: Option<Spanned<EnvironmentName>>,
    /// What templates see as `env.NAME`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Text>")]
    pub variables: BTreeMap<String, Spanned<String>>,
    /// The secrets that templates may name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, SecretWritten>")]
    pub secrets: BTreeMap<String, Spanned<SecretWritten>>,
    /// What a manifest must satisfy.
    #[serde(default)]
    pub rules: Rules,
    /// How much of what hosts have may be given away as limits of servers.
    #[serde(default)]
    pub capacity: CapacityWritten,
    /// Which of the facts that agents tell of their hosts may decide where servers go; all of them when it is not said.
    /// Needs that go by others are left to the host itself, which looks before anything is touched.
    #[serde(default)]
    pub trusted_facts: Option<BTreeSet<FactName>>,
    /// Defaults for the manifests of this environment.
    #[serde(default)]
    pub rollout: RolloutWritten,
    /// Defaults for the manifests of this environment.
    #[serde(default)]
    pub rollback: RollbackWritten,
    /// Parts of server definitions that count here in place of what the definitions say.
    #[serde(default)]
    #[schemars(with = "BTreeMap<ServerName, serde_json::Value>")]
    pub servers: BTreeMap<ServerName, Spanned<serde_json::Value>>,
    /// The same for single hosts.
    #[serde(default)]
    pub hosts: BTreeMap<HostName, HostWritten>,
    /// Where that is written which comes from an environment that this one extends.
    #[serde(skip)]
    pub inherited: BTreeMap<Field, BTreeMap<String, Source>>,
}

/// How much of what a host has the limits of its servers may come to; 100% unless said otherwise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CapacityWritten {
    /// Of its memory, such as 90%.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub memory: Option<Spanned<String>>,
    /// Of its processor time, such as 400%.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub cpu: Option<Spanned<String>>,
}

impl CapacityWritten {
    /// This, with what it does not say taken from another.
    pub fn or(self, base: Self) -> Self {
        Self { memory: self.memory.or(base.memory), cpu: self.cpu.or(base.cpu) }
    }
}

/// What an environment says of one host.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostWritten {
    /// Parts of server definitions that count on this host.
    #[serde(default)]
    #[schemars(with = "BTreeMap<ServerName, serde_json::Value>")]
    pub servers: BTreeMap<ServerName, Spanned<serde_json::Value>>,
}

/// Where the value of a secret comes from: exactly one of `env`, `file`, `age` and `command`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretWritten {
    /// The coordinator's environment variable; without it, the file of the secret's name in the coordinator's
    /// `secrets` folder.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub env: Option<Spanned<String>>,
    /// A file of the coordinator's; relative to its `secrets` folder.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub file: Option<Spanned<String>>,
    /// A file encrypted with age; relative to the coordinator's `secrets` folder.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub age: Option<Spanned<String>>,
    /// A program that prints it.
    #[serde(default)]
    #[schemars(with = "Option<Vec<String>>")]
    pub command: Option<Spanned<Vec<String>>>,
    /// A stand-in for environments in which no real value is needed; only with `env`.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub fallback: Option<Spanned<String>>,
}

/// A server definition.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// [`API_VERSION`].
    #[serde(rename = "apiVersion")]
    #[schemars(with = "Text")]
    pub api_version: Spanned<String>,
    /// Its name.
    #[schemars(with = "ServerName")]
    pub name: Spanned<ServerName>,
    /// What it is for, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// What is installed.
    #[serde(default)]
    #[schemars(with = "Option<PackageWritten>")]
    pub package: Option<Spanned<PackageWritten>>,
    /// What is started, and how.
    pub run: RunWritten,
    /// How its image is run, for packages that are one.
    #[serde(default)]
    #[schemars(with = "Option<ContainerWritten>")]
    pub container: Option<Spanned<ContainerWritten>>,
    /// What a host must have.
    #[serde(default)]
    pub requires: Vec<Requirement>,
    /// Whether it must not go to a host for what that says of itself: no fact decides where it goes, whatever the environment
    /// trusts.
    #[serde(default)]
    pub sensitive: bool,
    /// Files of the release.
    #[serde(default)]
    pub files: Vec<WrittenFile>,
    /// What is checked.
    #[serde(default)]
    #[schemars(with = "Vec<CheckWritten>")]
    pub health_checks: Vec<Spanned<CheckWritten>>,
    /// Calls that integration testing makes.
    #[serde(default)]
    pub integration_tests: Vec<WrittenToolCall>,
    /// What a snapshot takes along.
    #[serde(default)]
    pub snapshot: SnapshotWritten,
    /// The most it may use.
    #[serde(default)]
    pub resources: ResourcesWritten,
    /// Why a step to this definition cannot be undone, where it cannot.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub irreversible: Option<Spanned<String>>,
    /// What is checked, with everything that comes from standard checks.
    #[serde(skip)]
    #[schemars(with = "Vec<Check>")]
    pub checks: Vec<Spanned<Check>>,
    /// The text of the lock beside it, where there is one.
    #[serde(skip)]
    pub lock: Option<String>,
}

/// The most that a server may use.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourcesWritten {
    /// Memory, such as `256MiB`.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub memory: Option<Spanned<String>>,
    /// Processor time, such as `50%`; 100% is one processor.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub cpu: Option<Spanned<String>>,
    /// Processes and threads at once.
    #[serde(default)]
    #[schemars(with = "Option<u32>")]
    pub tasks: Option<Spanned<u32>>,
    /// Room on the disk for its data, its output and its temporary files, such as `2GiB`. It is measured once a minute: what
    /// takes more is degraded, and is stopped when the disk is low.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub disk: Option<Spanned<String>>,
}

/// How an image is run.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerWritten {
    /// The TCP port that the program listens on in the container.
    #[serde(default)]
    pub port: Option<u16>,
    /// The network.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub network: Option<Spanned<String>>,
    /// What is mounted: `SOURCE:TARGET` or `SOURCE:TARGET:ro`; templates.
    #[serde(default)]
    #[schemars(with = "Vec<Text>")]
    pub volumes: Vec<Spanned<String>>,
    /// Linux capabilities it keeps.
    #[serde(default)]
    #[schemars(with = "Vec<Text>")]
    pub capabilities: Vec<Spanned<String>>,
    /// Whether its own file system cannot be written.
    #[serde(default)]
    pub read_only: bool,
}

/// What is installed: exactly one of `pypi`, `npm`, `archive`, `file` and `oci`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageWritten {
    /// A distribution from PyPI.
    #[serde(default)]
    pub pypi: Option<String>,
    /// A package from the npm registry.
    #[serde(default)]
    pub npm: Option<String>,
    /// The URL of a tar archive.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub archive: Option<Spanned<String>>,
    /// The URL of a program of one file.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub file: Option<Spanned<String>>,
    /// The name of an image, without tag and digest.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub oci: Option<Spanned<String>>,
    /// The digest of its manifest, for `oci`.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub digest: Option<Spanned<String>>,
    /// SHA-256 of what is fetched, for `archive` and `file`.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub sha256: Option<Spanned<String>>,
    /// How many of the first parts of each path are left out, for `archive`.
    #[serde(default)]
    pub strip: u32,
    /// The exact version.
    #[schemars(with = "Text")]
    pub version: Spanned<String>,
    /// Further exact requirements, for `pypi`.
    #[serde(default)]
    #[schemars(with = "Vec<Text>")]
    pub with: Vec<Spanned<String>>,
    /// Whether what the index has as source only may be built on the host, by programs that come with it, for `pypi`.
    #[serde(default)]
    pub build: bool,
    /// The registry that it comes from, for `pypi`, `npm` and `oci`; the public one without it.
    #[serde(default)]
    #[schemars(with = "Option<RegistryWritten>")]
    pub registry: Option<Spanned<RegistryWritten>>,
}

/// A registry of a package's own. The package, and all that comes with it, is taken from there and from nowhere else.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryWritten {
    /// Its URL, a template: of a simple index (PEP 503), or of a registry of npm's. Of an image, the name says it.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub url: Option<Spanned<String>>,
    /// The user that it is asked as, a template.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub username: Option<Spanned<String>>,
    /// That user's password, a template that names a secret.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub password: Option<Spanned<String>>,
    /// What it is asked with instead of user and password, a template that names a secret; for `pypi` and `npm`.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub token: Option<Spanned<String>>,
    /// Whether what it does not have may come from the public registry. The package itself never does.
    #[serde(default)]
    pub public: bool,
}

impl PackageWritten {
    /// The one thing it is; nothing when it is none or several.
    pub fn kind(&self) -> Option<&'static str> {
        let kinds = [
            ("pypi", self.pypi.is_some()),
            ("npm", self.npm.is_some()),
            ("archive", self.archive.is_some()),
            ("file", self.file.is_some()),
            ("oci", self.oci.is_some()),
        ];
        let mut said = kinds.into_iter().filter(|(_, is_said)| *is_said).map(|(kind, _)| kind);
        said.next().filter(|_| said.next().is_none())
    }
}

/// What is started, and how.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunWritten {
    /// The program and its arguments; may be left out for an image, and where a package of `pypi`, `npm` or `file` has one
    /// program, or one of its own name.
    #[serde(default)]
    #[schemars(with = "Vec<Text>")]
    pub command: Vec<Spanned<String>>,
    /// How it speaks.
    #[serde(default = "no_transport")]
    pub transport: Transport,
    /// The TCP port of its endpoint.
    #[serde(default)]
    #[schemars(with = "Option<u16>")]
    pub port: Option<Spanned<u16>>,
    /// The path of its MCP endpoint.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub path: Option<Spanned<String>>,
    /// Its environment.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Text>")]
    pub environment: BTreeMap<String, Spanned<String>>,
    /// Whether it does its work and ends: it has come through once it has ended with exit status 0, and is not started
    /// again.
    #[serde(default)]
    pub completes: bool,
    /// When it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How long it has to end.
    #[serde(default)]
    pub stop_timeout: Option<Length>,
    /// What keeps it running; the best that its host has unless said otherwise.
    #[serde(default)]
    pub runtime: RuntimeChoice,
    /// The user it runs as.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub user: Option<Spanned<String>>,
    /// What it may write to besides its data folder; templates.
    #[serde(default)]
    #[schemars(with = "Vec<Text>")]
    pub writable: Vec<Spanned<String>>,
    /// Which process of a bridged server clients speak to: the one that they share, or one of its own for each session.
    #[serde(default)]
    #[schemars(with = "Option<Sessions>")]
    pub sessions: Option<Spanned<Sessions>>,
    /// Most sessions at once that have a process of their own; 32 unless said otherwise, at most 256.
    #[serde(default)]
    #[schemars(with = "Option<u32>", range(min = 1, max = 256))]
    pub sessions_max: Option<Spanned<u32>>,
    /// Names by which clients reach a bridged server besides its address: `HOST` or `HOST:PORT`; templates.
    #[serde(default)]
    #[schemars(with = "Vec<Text>", length(max = 32))]
    pub hosts: Vec<Spanned<String>>,
    /// Origins whose pages may speak to a bridged server from a browser, such as `https://chat.example.com`; templates.
    #[serde(default)]
    #[schemars(with = "Vec<Text>", length(max = 32))]
    pub origins: Vec<Spanned<String>>,
}

fn no_transport() -> Transport {
    Transport::None
}

/// A file of a release.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenFile {
    /// Its path below the release's `config` folder.
    #[schemars(with = "Text")]
    pub path: Spanned<String>,
    /// Its content, a template.
    #[schemars(with = "Text")]
    pub content: Spanned<String>,
    /// Its permission bits, in octal; `0600` unless said otherwise.
    #[serde(default)]
    #[schemars(with = "Option<Text>")]
    pub mode: Option<Spanned<String>>,
}

/// A call that integration testing makes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenToolCall {
    /// The tool.
    pub tool: String,
    /// Its arguments.
    #[serde(default)]
    pub arguments: serde_json::Map<String, serde_json::Value>,
    /// A text that the answer must contain.
    #[serde(default)]
    pub contains: Option<String>,
    /// What must be found in an answer that is JSON, by JSONPath (RFC 9535).
    #[serde(default)]
    pub json: BTreeMap<String, serde_json::Value>,
}

/// What a snapshot takes along besides the release.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotWritten {
    /// The server's data folder.
    #[serde(default)]
    pub data: bool,
    /// Files and folders of the host; absolute paths, templates.
    #[serde(default)]
    #[schemars(with = "Vec<Text>")]
    pub paths: Vec<Spanned<String>>,
    /// A database to be dumped.
    #[serde(default)]
    pub database: Option<DatabaseWritten>,
}

/// How a database is dumped and restored. Both commands are templates, and run in the data folder with the server's
/// environment.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseWritten {
    /// Writes the dump to its standard output.
    #[schemars(with = "Vec<Text>")]
    pub dump: Spanned<Vec<Spanned<String>>>,
    /// Reads the dump from its standard input.
    #[schemars(with = "Vec<Text>")]
    pub restore: Spanned<Vec<Spanned<String>>>,
}
