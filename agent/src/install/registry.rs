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
        Error::Refused { status: 401 | 403, with_credentials: true, .. } => (
            FailureKind::PermissionError,
            "it does not take the user and password, or the token, of the package's `registry`: see the values of those secrets",
        ),
        Error::Refused { status: 401 | 403, with_credentials: false, .. } => (
            FailureKind::PermissionError,
            "it lets nobody in without credentials, and those of the package's `registry` are for its own address alone: see where that registry keeps its files",
        ),
        Error::Refused { status: 407, .. } => (
            FailureKind::ConfigurationError,
            "this is the proxy of the host: see HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the agent's environment",
        ),
        Error::Refused { .. } | Error::NoUrl(_) | Error::NoRegistry { .. } => {
            (FailureKind::ConfigurationError, "see that the `url` of the package's `registry` is right")
        }
        Error::NoPublicUrl => (
            FailureKind::ConfigurationError,
            "see PIP_INDEX_URL and npm_config_registry in the agent's environment on the host",
        ),
        Error::Unsendable(_) => {
            (FailureKind::ConfigurationError, "see the values of the secrets that the package's `registry` names")
        }
        Error::PassesOn { .. } => (
            FailureKind::DependencyError,
            "put the package into the registry: one that another registry has is not taken in its name",
        ),
        Error::Missing(_) => (FailureKind::DependencyError, "see that the package's name and version are right"),
        Error::Closed(_) => {
            (FailureKind::ResourceError, "see what is wrong with the host's own network; then deploy again")
        }
        Error::Unreachable { .. } => {
            (FailureKind::NetworkError, "check the connection from this host to the registry; then deploy again")
        }
    };
    Failure::new(kind, STEP, format!("the package's registry: {error}")).hint(hint)
}

/// What it means that the registry does not have a name: it may hide what the account must not see.
pub(super) fn without(name: &str, is_package: bool, registry: &str, asks_public: bool) -> Failure {
    let account = "see the `url` of the package's `registry`, and that its account may read it: many registries hide what an account may not see";
    let hint = match (is_package, asks_public) {
        (true, _) => account.to_owned(),
        (false, true) => format!("put it there, or {account}"),
        (false, false) => format!(
            "put it there, let it come from the public registry with `registry: {{ public: true }}`, or {account}"
        ),
    };
    let also = if asks_public && !is_package { ", and neither has the public one" } else { "" };
    Failure::new(FailureKind::DependencyError, STEP, format!("{registry} has no {name}{also}")).hint(hint)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_of_its_kind_and_says_what_to_do() {
        let url = || "https://own.example/simple".to_owned();
        let refused = |status, with_credentials| Error::Refused { url: url(), status, with_credentials };
        let busy = Error::Unreachable { url: url(), why: "it answers 429 Too Many Requests".to_owned() };
        let passes_on = Error::PassesOn { url: url(), to: "pypi.org".to_owned() };
        let no_registry = Error::NoRegistry { url: url(), why: "is no simple index".to_owned() };
        for (error, kind, words) in [
            (refused(401, true), FailureKind::PermissionError, "values of those secrets"),
            (refused(403, false), FailureKind::PermissionError, "where that registry keeps its files"),
            (refused(407, true), FailureKind::ConfigurationError, "HTTPS_PROXY"),
            (refused(400, true), FailureKind::ConfigurationError, "`url`"),
            (busy, FailureKind::NetworkError, "deploy again"),
            (passes_on, FailureKind::DependencyError, "put the package into the registry"),
            (no_registry, FailureKind::ConfigurationError, "`url`"),
            (Error::NoPublicUrl, FailureKind::ConfigurationError, "PIP_INDEX_URL"),
            (Error::Unsendable("a line break"), FailureKind::ConfigurationError, "secrets"),
            (Error::Closed("no port".to_owned()), FailureKind::ResourceError, "host's own network"),
            (Error::Missing(url()), FailureKind::DependencyError, "name and version"),
        ] {
            let failure = trouble(&error);
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.hint.as_ref().is_some_and(|hint| hint.contains(words)), "{failure:?}");
        }
        assert!(trouble(&Error::Unreachable { url: url(), why: "it answers 500".to_owned() }).transient);
    }
}
