//! Packages from a registry of their own: their clients go through a door of the agent's, which has the credentials.

use std::collections::BTreeMap;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{MissingSecret, Package, Registry, Release};
use fleetwright_registries::{self as registries, Credentials, Door, Error, Kind};

use super::STEP;

/// The public registries, unless the agent's own environment names others.
const PUBLIC_INDEX: &str = "https://pypi.org/simple";
const PUBLIC_NPM: &str = "https://registry.npmjs.org";

/// The registry of a release's package, with the secrets put in.
pub(super) fn of(release: &Release, secrets: &BTreeMap<String, String>) -> Result<Option<Registry>, Failure> {
    let missing = |error: MissingSecret| Failure::new(FailureKind::ConfigurationError, STEP, error.to_string());
    if let Package::Private { package, .. } = &release.package
        && !matches!(**package, Package::Pypi { .. } | Package::Npm { .. } | Package::Oci { .. })
    {
        let message = "only packages of `pypi`, `npm` and `oci` come from a registry of their own";
        return Err(Failure::new(FailureKind::ConfigurationError, STEP, message));
    }
    release.package.registry().map(|registry| registry.revealed(secrets)).transpose().map_err(missing)
}

/// Opens a door to it for this package.
pub(super) async fn door(registry: &Registry, kind: Kind, package: &str) -> Result<Door, Failure> {
    let Registry { url, username, password, token, public } = registry;
    let credentials = Credentials::of(username.as_deref(), password.as_deref(), token.as_deref());
    let named = |variable: &str, usual: &str| std::env::var(variable).unwrap_or_else(|_| usual.to_owned());
    let of_kind = || match kind {
        Kind::Simple => named("PIP_INDEX_URL", PUBLIC_INDEX),
        Kind::Npm => named("npm_config_registry", PUBLIC_NPM),
    };
    let registry = registries::Registry {
        kind,
        url: url.clone().unwrap_or_default(),
        credentials,
        package: package.to_owned(),
        public: public.then(of_kind),
    };
    Door::open(&registry).await.map_err(|error| trouble(&error))
}

/// What it means that the registry gives nothing.
pub(super) fn trouble(error: &Error) -> Failure {
    let (kind, hint) = match error {
        Error::Refused { status: 401 | 403, .. } => (
            FailureKind::PermissionError,
            "it does not take the user and password, or the token, of the package's `registry`: see the values of those secrets",
        ),
        Error::Refused { .. } | Error::NoUrl(_) => {
            (FailureKind::ConfigurationError, "see that the `url` of the package's `registry` is right")
        }
        Error::Missing(_) => (FailureKind::DependencyError, "see that the package's name and version are right"),
        Error::Unreachable { .. } => {
            (FailureKind::NetworkError, "check the connection from this host to the registry; then deploy again")
        }
    };
    Failure::new(kind, STEP, format!("the package's registry: {error}")).hint(hint)
}

/// A lock of npm's without the places that its packages were at: the registry says those.
pub(super) fn without_places(lock: &str) -> String {
    let Ok(mut tree) = serde_json::from_str::<serde_json::Value>(lock) else { return lock.to_owned() };
    for package in tree["packages"].as_object_mut().into_iter().flat_map(|packages| packages.values_mut()) {
        if let Some(package) = package.as_object_mut().filter(|package| package.contains_key("integrity")) {
            package.remove("resolved");
        }
    }
    tree.to_string()
}
