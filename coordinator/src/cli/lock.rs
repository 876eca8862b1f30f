//! `fleetwright lock`

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use fleetwright_deploy::config::Problem;
use serde::Serialize;

use super::{Context, exit};
use crate::{lock, project};

/// Locks what comes with the packages of server definitions: each with its exact version and its digests, in a file
/// NAME.lock beside the definition. A definition that has one is installed from it, and from nothing else.
///
/// The registries' own clients on this machine resolve it: pip 22.2 or newer, npm.
#[derive(clap::Args)]
pub(crate) struct LockArguments {
    /// The definitions, such as config/servers/time.yaml.
    #[arg(required = true, value_name = "DEFINITION")]
    definitions: Vec<PathBuf>,
    /// The interpreter that resolves packages from PyPI: take the version that the hosts have.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: String,
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
            Some((package, Some(name), _)) => lock::pypi(name, package, &arguments.python).await,
            Some((package, None, Some(name))) => lock::npm(name, package).await,
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
