//! `fleetwright validate`

use std::path::{Path, PathBuf};

use anyhow::Result;
use fleetwright_deploy::config::{Environment, FileKind, Manifest, Problems, Source, StandardChecks};
use serde_json::json;

use super::{Context, exit};
use crate::project;

/// Checks configuration files: manifests with everything they refer to, server definitions, environments.
#[derive(clap::Args)]
pub(crate) struct ValidateArguments {
    /// The files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(super) fn validate(arguments: &ValidateArguments, context: &Context) -> Result<u8> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    for file in &arguments.files {
        match check(file) {
            Ok(told) => warnings.extend(told),
            Err(found) => problems.extend(found.0),
        }
    }
    warnings.iter().for_each(|warning| context.ui.warn(warning));
    Problems::none_or(problems)?;
    let files: Vec<String> = arguments.files.iter().map(|file| file.display().to_string()).collect();
    context.ui.data(&json!({ "valid": files, "warnings": warnings }), || match files.len() {
        1 => "1 file is valid".to_owned(),
        n => format!("{n} files are valid"),
    });
    Ok(exit::DONE)
}

/// Checks one file as what it is. Gives what is worth a look.
fn check(file: &Path) -> Result<Vec<String>, Problems> {
    let source = project::read(file)?;
    match FileKind::of(&source)? {
        FileKind::StandardChecks => StandardChecks::parse(&source).map(|_| Vec::new()),
        FileKind::Environment => Environment::parse(&source).map(|_| Vec::new()),
        FileKind::Server => project::check_definition(file),
        FileKind::Manifest => manifest(file, &source),
    }
}

/// A manifest is checked as far as it can be without knowing the hosts: with its rules, if it names an environment.
fn manifest(file: &Path, source: &Source) -> Result<Vec<String>, Problems> {
    let manifest = Manifest::parse(source)?;
    if manifest.environment.is_none() {
        return Ok(Vec::new());
    }
    let project = project::load(file, None)?;
    fleetwright_deploy::planning::check(&project.configuration, &project.overrides)
}
