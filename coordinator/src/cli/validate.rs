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
<<<<<<< HEAD
    match FileKind::of(&source)? {
        FileKind::StandardChecks => StandardChecks::parse(&source).map(|_| Vec::new()),
        FileKind::Environment => Environment::parse(&source).map(|_| Vec::new()),
        FileKind::Server => project::definition(file).map(|_| Vec::new()),
        FileKind::Manifest => manifest(file, &source),
=======
    let folder = file.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    let has = |field: &str| source.text.lines().any(|line| line.starts_with(field));
    if folder == "health-checks" || has("checks:") {
        StandardChecks::parse(&source).map(|_| Vec::new())
    } else if folder == "environments" {
        Environment::parse(&source).map(|_| Vec::new())
    } else if folder == "servers" || has("run:") {
        project::check_definition(file)
    } else if has("servers:") {
        manifest(file, &source)
    } else if has("variables:") || has("secrets:") || has("rules:") {
        Environment::parse(&source).map(|_| Vec::new())
    } else {
        let problem = Problem::in_file(
            &source,
            "is neither a manifest, nor a server definition, nor an environment, nor standard checks",
        );
        Err(problem.hint("a manifest has `servers:`, a server definition has `run:`").into())
>>>>>>> part-h
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
