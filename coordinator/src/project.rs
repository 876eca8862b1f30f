//! Finding and reading what operators write: a manifest, its environment and its servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fleetwright_deploy::config::{
    Environment, Manifest, Problem, Problems, SOURCE_BYTES_MAX, Server, Source, near_miss,
};
use fleetwright_deploy::ids::EnvironmentName;
use fleetwright_deploy::planning::Configuration;
use fleetwright_deploy::release::ARTIFACT_SCHEME;
use serde_saphyr::Spanned;

use crate::local_artifact::LocalArtifact;
use crate::lock;

/// What an operator has written, and the files that it names.
pub(crate) struct Project {
    pub(crate) configuration: Configuration,
    /// Files that become artifacts of the coordinator's when they are deployed.
    pub(crate) artifacts: Vec<LocalArtifact>,
}

/// Reads a manifest and everything it refers to. All problems of all files are told at once.
pub(crate) fn load(manifest: &Path, environment: Option<&EnvironmentName>) -> Result<Project, Problems> {
    let source = read(manifest)?;
    let parsed = Manifest::parse(&source)?;
    let config = config_folder(manifest);
    let mut problems = Vec::new();
    let environment =
        load_environment(&source, &parsed, environment, &config).map_err(|error| problems.extend(error.0));
    let (mut servers, mut artifacts) = (BTreeMap::new(), Vec::new());
    for entry in &parsed.servers {
        let path = config.join("servers").join(format!("{}.yaml", entry.server.value));
        if !path.exists() {
            problems.push(unknown(&source, &entry.server, entry.server.value.as_str(), "server", &path));
            continue;
        }
        let server = read(&path).and_then(|source| {
            let mut server = Server::parse(&source)?;
            server.lock = lock_of(&source, &path)?;
            artifacts.extend(local_artifact(&source, &mut server, &path)?);
            Ok((server, source))
        });
        match server {
            Ok((server, source)) => {
                servers.insert(entry.server.value.clone(), (source, server));
            }
            Err(error) => problems.extend(error.0),
        }
    }
    Problems::none_or(problems)?;
    // Without an environment there was a problem.
    let environment = environment.map_err(|()| Problems::from(Problem::in_file(&source, "no environment")))?;
    Ok(Project { configuration: Configuration { manifest: (source, parsed), environment, servers }, artifacts })
}

/// The lock beside a definition, where there is one.
fn lock_of(source: &Source, definition: &Path) -> Result<Option<String>, Problem> {
    let path = lock::path_of(definition);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::in_file(source, format!("its lock {} cannot be read: {error}", shown(&path)))),
    }
}

/// The file that a definition names in place of a URL, read whole; the definition then names the artifact that it
/// becomes.
fn local_artifact(source: &Source, server: &mut Server, definition: &Path) -> Result<Option<LocalArtifact>, Problem> {
    let Some(package) = &mut server.package else { return Ok(None) };
    let written = &mut package.value;
    let Some(named) = written.archive.as_mut().or(written.file.as_mut()) else { return Ok(None) };
    if named.value.contains(':') {
        return Ok(None);
    }
    let path = definition.parent().unwrap_or_else(|| Path::new("")).join(&named.value);
    let local = LocalArtifact::read(&path).map_err(|error| {
        let problem = Problem::at(source, named, format!("{} cannot be read: {error}", shown(&path)));
        problem.hint("name a file by its path from this definition, or by its URL")
    })?;
    let digest = package.value.sha256.as_ref().map(|said| said.value.to_ascii_lowercase());
    let written = &mut package.value;
    if let (Some(said), Some(digest)) = (&written.sha256, digest)
        && digest != local.sha256
    {
        let message = format!("{} has the SHA-256 {}, not this one", shown(&path), local.sha256);
        return Err(Problem::at(source, said, message)
            .hint("leave `sha256` out: it is computed; of archives, without the compression"));
    }
    let Some(named) = written.archive.as_mut().or(written.file.as_mut()) else { return Ok(None) };
    named.value = format!("{ARTIFACT_SCHEME}{}", local.name);
    let sha256 = Spanned { value: local.sha256.clone(), referenced: named.referenced, defined: named.defined };
    written.sha256 = Some(sha256);
    Ok(Some(local))
}

fn load_environment(
    source: &Source,
    manifest: &Manifest,
    chosen: Option<&EnvironmentName>,
    config: &Path,
) -> Result<(Source, Environment), Problems> {
    let name = match (chosen, &manifest.environment) {
        (Some(name), _) => name.clone(),
        (None, Some(written)) => written.value.clone(),
        (None, None) => {
            let problem = Problem::in_file(source, "no environment is named");
            return Err(problem.hint("name one with `-e NAME`, or as `environment:` in the manifest").into());
        }
    };
    let path = config.join("environments").join(format!("{name}.yaml"));
    if !path.exists() {
        let problem = match (&manifest.environment, chosen) {
            (Some(written), None) => unknown(source, written, name.as_str(), "environment", &path),
            _ => {
                let problem = Problem::in_file(source, format!("environment `{name}` is not defined"));
                problem.hint(suggestion(name.as_str(), &path))
            }
        };
        return Err(problem.into());
    }
    let source = read(&path)?;
    let environment = Environment::parse(&source)?;
    Ok((source, environment))
}

fn unknown<T>(source: &Source, at: &Spanned<T>, name: &str, kind: &str, path: &Path) -> Problem {
    Problem::at(source, at, format!("{kind} `{name}` is not defined")).hint(suggestion(name, path))
}

fn suggestion(name: &str, path: &Path) -> String {
    let folder = path.parent().unwrap_or(path);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let known: Vec<String> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned)).collect();
    near_miss(name, known.iter().map(String::as_str)).unwrap_or_else(|| format!("define it in {}", path.display()))
}

/// The folder `config` beside the manifest's own folder, or beside the manifest.
fn config_folder(manifest: &Path) -> PathBuf {
    let folder = manifest.parent().unwrap_or_else(|| Path::new(""));
    let beside = folder.join("config");
    if beside.is_dir() { beside } else { folder.join("..").join("config") }
}

/// Reads a file as configuration.
pub(crate) fn read(path: &Path) -> Result<Source, Problems> {
    let shown = shown(path);
    let empty = Source { path: shown.clone(), text: String::new() };
    let problem = |message: String| Problems::from(Problem::in_file(&empty, message));
    let metadata = std::fs::metadata(path).map_err(|error| problem(format!("cannot be read: {error}")))?;
    if !metadata.is_file() || metadata.len() > SOURCE_BYTES_MAX as u64 {
        return Err(problem(format!("is no file of at most {SOURCE_BYTES_MAX} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|error| problem(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| problem(format!("is not UTF-8: {error}")))?;
    Ok(Source { path: shown, text })
}

/// A path without the detours that come from joining.
fn shown(path: &Path) -> String {
    let mut parts: Vec<std::path::Component<'_>> = Vec::new();
    for part in path.components() {
        let up = part == std::path::Component::ParentDir;
        if up && matches!(parts.last(), Some(std::path::Component::Normal(_))) {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.into_iter().collect::<PathBuf>().display().to_string()
}
