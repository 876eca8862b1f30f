//! `fleetwright lock`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fleetwright_deploy::config::{Environment, Problem, Server, Source};
use fleetwright_deploy::ids::EnvironmentName;
use fleetwright_deploy::planning::{Circumstances, release_alone};
use fleetwright_registries::{Credentials, Door, Kind};
use serde::Serialize;

use super::{Context, exit};
use crate::secrets::Secrets;
use crate::state_dir::StateDir;
use crate::{lock, project};

/// Locks what comes with the packages of server definitions: each with its exact version and its digests, in a file
/// NAME.lock beside the definition. A definition that has one is installed from it, and from nothing else.
///
/// The registries' own clients on this machine resolve it: pip 22.2 or newer, npm. Where the package has a registry of its
/// own, they ask that one and no other; the values of its secrets are looked for on this machine, as the coordinator does.
#[derive(clap::Args)]
pub(crate) struct LockArguments {
    /// The definitions, such as config/servers/time.yaml.
    #[arg(required = true, value_name = "DEFINITION")]
    definitions: Vec<PathBuf>,
    /// The interpreter that resolves packages from PyPI: take the version that the hosts have.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// The environment whose variables and secrets a package's registry names.
    #[arg(short, long, value_name = "NAME")]
    environment: Option<EnvironmentName>,
}

#[derive(Serialize)]
struct Locked {
    lock: PathBuf,
    packages: usize,
    changed: bool,
}

pub(super) async fn lock(arguments: &LockArguments, context: &Context) -> Result<u8> {
    let mut all = Vec::new();
    for definition in &arguments.definitions {
        let (source, server) = project::definition(definition)?;
        let package = server.package.as_ref().map(|package| &package.value);
        let text = match package.map(|package| (package, &package.pypi, &package.npm)) {
            Some((package, Some(name), _)) => {
                let door = door(arguments, context, definition, &source, &server, Kind::Simple).await?;
                lock::pypi(name, package, &arguments.python, door.as_ref()).await
            }
            Some((package, None, Some(name))) => {
                let door = door(arguments, context, definition, &source, &server, Kind::Npm).await?;
                lock::npm(name, package, door.as_ref()).await
            }
            Some((_, None, None)) | None => {
                let problem =
                    Problem::in_file(&source, "its package is not one of a registry, so there is nothing to lock");
                return Err(fleetwright_deploy::config::Problems::from(
                    problem.hint("archives, files and images have digests of their own"),
                )
                .into());
            }
        };
        let text = text.with_context(|| format!("{} could not be locked", definition.display()))?;
        if text.len() > fleetwright_deploy::planning::LOCK_BYTES_MAX {
            bail!("the lock of {} is too large: {} KiB", definition.display(), text.len() >> 10);
        }
        let path = lock::path_of(definition);
        let changed = std::fs::read_to_string(&path).ok().as_ref() != Some(&text);
        if changed {
            // Whole or not at all.
            let fresh = path.with_extension("lock.new");
            let written = std::fs::write(&fresh, &text).and_then(|()| std::fs::rename(&fresh, &path));
            written.with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let packages = text.matches("==").count().max(text.matches("\"integrity\"").count());
        all.push(Locked { lock: path, packages, changed });
    }
    context.ui.data(&all, || {
        let line = |locked: &Locked| {
            let word = if locked.changed { "wrote" } else { "is as it was:" };
            format!("{word} {} with {} packages", locked.lock.display(), locked.packages)
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(exit::DONE)
}

/// The way to the registry of a package's own.
async fn door(
    arguments: &LockArguments,
    context: &Context,
    path: &Path,
    source: &Source,
    server: &Server,
    kind: Kind,
) -> Result<Option<Door>> {
    let Some(package) = server.package.as_ref().filter(|package| package.value.registry.is_some()) else {
        return Ok(None);
    };
    let circumstances = Circumstances { variables: std::env::vars().collect(), ..Circumstances::default() };
    let release = match &arguments.environment {
        Some(name) => {
            let (resolved, environment) = project::in_environment(path, &server.name.value, name)?;
            release_alone(&resolved.source, &resolved.server, environment, &circumstances)?
        }
        None => {
            let text = "apiVersion: fleetwright/v1\nname: none\n".to_owned();
            let none = Source { path: "no environment (`lock --environment NAME` names one)".to_owned(), text };
            let environment = Environment::parse(&none)?;
            release_alone(source, server, (none, environment), &circumstances)?
        }
    };
    let secrets = match context.state_dir()?.filter(StateDir::exists) {
        Some(state_dir) => Secrets::new(state_dir.secrets(), state_dir.values_key()?),
        // There are still variables and programs.
        None => Secrets::new(PathBuf::from("secrets"), [0; 32]),
    };
    let Some(registry) = tokio::task::spawn_blocking(move || secrets.of_registry(&release)).await?? else {
        return Ok(None);
    };
    let package = &package.value;
    let public = || match kind {
        Kind::Simple => lock::INDEX,
        Kind::Npm => lock::NPM,
    };
    let (username, password, token) = (registry.username, registry.password, registry.token);
    let registry = fleetwright_registries::Registry {
        kind,
        url: registry.url.unwrap_or_default(),
        credentials: Credentials::of(username.as_deref(), password.as_deref(), token.as_deref()),
        package: package.pypi.clone().or_else(|| package.npm.clone()).unwrap_or_default(),
        public: registry.public.then(|| public().to_owned()),
    };
    Ok(Some(Door::open(&registry).await?))
}
