//! What operators write: manifests, server definitions and environments, from YAML text to checked values.
//!
//! Reading files is the caller's business: texts come in with the paths they were read from, so that every
//! error can say file, line and column.

mod checks;
mod dependency;
mod import;
mod kind;
mod layers;
mod problem;
mod recovery;
mod rollout;
mod rules;
mod text;
mod written;

pub use checks::{Check, CheckType, CheckWritten, StandardCheck, StandardChecks};
pub use dependency::{Condition, DependencyWritten, ExternalWritten};
pub use import::{
    ENTRY_BYTES_MAX, Entered, Found, IMPORTED_REGISTRIES, ImportChoice, ImportError, ImportQuestion, Imported,
    without_secrets,
};
pub use kind::FileKind;
pub use layers::{Field, Layer, Resolved};
pub use problem::{Problem, Problems, Source, near_miss};
pub use rollout::{PaceWritten, PauseWritten, RetryWritten, RollbackWritten, RolloutWritten, Share};
pub use rules::{BUILT_IN_RULES, RuleScope, RuleSeverity, RuleWritten, Rules};
pub use written::{
    API_VERSION, CapacityWritten, ContainerWritten, DatabaseWritten, Environment, Manifest, ManifestHost,
    ManifestServer, PackageWritten, Place, RegistryWritten, ResourcesWritten, RunWritten, SecretWritten, Server,
    SnapshotWritten, WrittenFile, WrittenToolCall,
};

use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

/// The standard checks that ship.
pub const SHIPPED_STANDARD_CHECKS: &str = include_str!("../health-checks/standard-checks.yaml");

/// Largest file that is read as configuration, in bytes: a manifest of a hundred thousand servers.
pub const SOURCE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Largest definition of a server or an environment, in bytes.
pub const DEFINITION_BYTES_MAX: usize = 1024 * 1024;

/// What a file may hold besides: enough for the largest that are read, and little enough to stay within memory and time.
const NODES_MAX: usize = 4_000_000;
const EVENTS_MAX: usize = 12_000_000;
const ALIASES_MAX: usize = 10_000;

/// Reads one kind of configuration file, of at most so many bytes.
fn parse<T: DeserializeOwned>(source: &Source, bytes_max: usize) -> Result<T, Problems> {
    if source.text.len() > bytes_max {
        let message = format!("the file has {} bytes; at most {bytes_max} are read", source.text.len());
        return Err(Problem::in_file(source, message).into());
    }
    read(&source.text).map_err(|error| {
        let mut problems = vec![Problem::from_yaml(source, &error)];
        problems.extend(recovery::further::<T>(source, bytes_max));
        Problems(problems)
    })
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: EVENTS_MAX,
            max_aliases: ALIASES_MAX,
        },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// What a file says, as it is written; it was read before, so it can be read.
pub(crate) fn value_of(source: &Source) -> serde_json::Value {
    read(&source.text).unwrap_or_default()
}

/// Every file says which version of the format it is written in.
fn check_api_version(source: &Source, written: &Spanned<String>) -> Result<(), Problems> {
    if written.value == API_VERSION {
        return Ok(());
    }
    let message = format!("apiVersion `{}` is not known", written.value);
    Err(Problem::at(source, written, message).hint(format!("write `apiVersion: {API_VERSION}`")).into())
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(source: &Source) -> Result<Self, Problems> {
        let manifest: Self = parse(source, SOURCE_BYTES_MAX)?;
        check_api_version(source, &manifest.api_version)?;
        Ok(manifest)
    }
}

impl Server {
    /// Reads a server definition, which must bear the name of its file, in a project without standard checks.
    pub fn parse(source: &Source) -> Result<Self, Problems> {
        Self::parse_with(source, None)
    }

    /// Reads a server definition, which must bear the name of its file.
    pub fn parse_with(source: &Source, standard: Option<&StandardChecks>) -> Result<Self, Problems> {
        let server = Self::written(source, standard)?;
        check_api_version(source, &server.api_version)?;
        source.check_name(&server.name, server.name.value.as_str())?;
        Ok(server)
    }

    fn written(source: &Source, standard: Option<&StandardChecks>) -> Result<Self, Problems> {
        let mut server: Self = parse(source, DEFINITION_BYTES_MAX)?;
        server.checks = checks::complete(source, &server.health_checks, standard)?;
        Ok(server)
    }
}

impl Environment {
    /// Reads an environment, which must bear the name of its file.
    pub fn parse(source: &Source) -> Result<Self, Problems> {
        let environment: Self = parse(source, DEFINITION_BYTES_MAX)?;
        check_api_version(source, &environment.api_version)?;
        source.check_name(&environment.name, environment.name.value.as_str())?;
        Ok(environment)
    }
}
