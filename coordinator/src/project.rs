//! Finding and reading what operators write: a manifest, its environment and its servers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use fleetwright_deploy::config::{
    Environment, Layer, Manifest, Problem, Problems, Resolved, SOURCE_BYTES_MAX, Server, Source, StandardChecks,
    near_miss,
};
use fleetwright_deploy::ids::{EnvironmentName, HostName, InstanceId, ServerName};
use fleetwright_deploy::planning::{Configuration, Files, Needs, check_alone, sharing_warning};
use fleetwright_deploy::release::ARTIFACT_SCHEME;
use serde_saphyr::Spanned;

use crate::local_artifact::LocalArtifact;
use crate::lock;

/// What an operator has written, and the files that it names.
pub(crate) struct Project {
    pub(crate) configuration: Configuration,
    /// Files that become artifacts of the coordinator's when they are deployed.
    pub(crate) artifacts: Vec<LocalArtifact>,
    /// Rules that are set aside, each with the reason.
    pub(crate) overrides: BTreeMap<String, String>,
    /// The files that templates may read.
    pub(crate) files: Files,
}

/// Largest file that a template may read, in bytes: it becomes a part of releases.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// How many environments may extend each other.
const EXTENDS_MAX: usize = 8;

/// An environment, with all that it extends: the one that all others extend first, itself last.
pub(crate) struct Environments(Vec<(Source, Environment)>);

impl Environments {
    /// Everything together, as it counts.
    pub(crate) fn merged(&self) -> Option<(Source, Environment)> {
        let chain = self.0.iter().cloned();
        chain.reduce(|(base_source, base), (source, environment)| (source, environment.extend(base, &base_source)))
    }

    /// What is said of a server: for all hosts, then for one, which counts more whichever environment says it.
    pub(crate) fn layers(&self, server: &ServerName, host: Option<&HostName>) -> Vec<Layer> {
        let of = |host| self.0.iter().filter_map(move |(source, of)| of.layer_of(&source.path, server, host));
        of(None).chain(host.into_iter().flat_map(|host| of(Some(host)))).collect()
    }

    /// The hosts for which something is said of a server.
    fn hosts(&self, server: &ServerName) -> BTreeSet<HostName> {
        let hosts = self.0.iter().flat_map(|(_, environment)| &environment.hosts);
        hosts.filter(|(_, of)| of.servers.contains_key(server)).map(|(host, _)| host.clone()).collect()
    }

    /// Servers that something is said of and nothing is known of.
    fn unknown_servers(&self, config: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (source, environment) in &self.0 {
            let of_hosts = environment.hosts.values().flat_map(|of| &of.servers);
            for (server, written) in environment.servers.iter().chain(of_hosts) {
                let path = config.join("servers").join(format!("{server}.yaml"));
                if !path.exists() {
                    problems.push(unknown(source, written, server.as_str(), "server", &path));
                }
            }
        }
        problems
    }
}

/// Reads a manifest and everything it refers to. All problems of all files are told at once.
pub(crate) fn load(manifest: &Path, environment: Option<&EnvironmentName>) -> Result<Project, Problems> {
    let source = read(manifest)?;
    let parsed = Manifest::parse(&source)?;
    let config = config_folder(manifest);
    let mut problems = Vec::new();
    let environments =
        load_environments(&source, &parsed, environment, &config).map_err(|error| problems.extend(error.0)).ok();
    let standard = standard_checks(&config).unwrap_or_else(|error| {
        problems.extend(error.0);
        None
    });
    let (mut servers, mut on_hosts, mut artifacts) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for entry in &parsed.servers {
        let name = &entry.server.value;
        let path = config.join("servers").join(format!("{name}.yaml"));
        if !path.exists() {
            problems.push(unknown(&source, &entry.server, name.as_str(), "server", &path));
            continue;
        }
        let hosts = environments.as_ref().map(|all| all.hosts(name)).unwrap_or_default();
        for host in std::iter::once(None).chain(hosts.iter().map(Some)) {
            let layers = environments.as_ref().map(|all| all.layers(name, host)).unwrap_or_default();
            match load_server(&path, &layers, standard.as_ref(), &mut artifacts) {
                Ok(found) => match host {
                    None => drop(servers.insert(name.clone(), found)),
                    Some(host) => drop(on_hosts.insert(InstanceId::new(name.clone(), host.clone()), found)),
                },
                Err(error) => {
                    problems.extend(error.0);
                    break;
                }
            }
        }
    }
    problems.extend(environments.as_ref().map(|all| all.unknown_servers(&config)).unwrap_or_default());
    Problems::none_or(problems)?;
    // Without an environment there was a problem.
    let environment = environments.and_then(|all| all.merged());
    let environment = environment.ok_or_else(|| Problems::from(Problem::in_file(&source, "no environment")))?;
    let configuration = Configuration { manifest: (source, parsed), environment, servers, on_hosts };
    Ok(Project { configuration, artifacts, overrides: BTreeMap::new(), files: files(&config) })
}

/// A definition with the layers over it, its lock, and the file that its package names.
fn load_server(
    path: &Path,
    layers: &[Layer],
    standard: Option<&StandardChecks>,
    artifacts: &mut Vec<LocalArtifact>,
) -> Result<(Source, Server), Problems> {
    let Resolved { source, mut server, .. } = Server::resolve(&read(path)?, layers, standard)?;
    server.lock = lock_of(&source, path)?;
    artifacts.extend(local_artifact(&source, &mut server, path)?);
    Ok((source, server))
}

/// The definition of one server as it counts in an environment, for all hosts or for one.
pub(crate) fn resolve(
    config: &Path,
    server: &ServerName,
    environment: Option<&EnvironmentName>,
    host: Option<&HostName>,
) -> Result<Resolved, Problems> {
    let path = config.join("servers").join(format!("{server}.yaml"));
    if !path.exists() {
        let problem =
            Problem::in_file(&Source { path: shown(&path), text: String::new() }, "no such server is defined");
        return Err(problem.hint(suggestion(server.as_str(), &path)).into());
    }
    let layers = match environment {
        None => Vec::new(),
        Some(name) => {
            let path = config.join("environments").join(format!("{name}.yaml"));
            if !path.exists() {
                let source = Source { path: shown(&path), text: String::new() };
                return Err(Problem::in_file(&source, "no such environment is defined")
                    .hint(suggestion(name.as_str(), &path))
                    .into());
            }
            chain(&path)?.layers(server, host)
        }
    };
    Server::resolve(&read(&path)?, &layers, standard_checks(config)?.as_ref())
}

/// A definition as it counts in an environment, and that environment.
pub(crate) fn in_environment(
    path: &Path,
    server: &ServerName,
    environment: &EnvironmentName,
) -> Result<(Resolved, (Source, Environment)), Problems> {
    let config = path.parent().unwrap_or_else(|| Path::new("")).join("..");
    let resolved = resolve(&config, server, Some(environment), None)?;
    let path = config.join("environments").join(format!("{environment}.yaml"));
    let missing = || Problem::in_file(&Source { path: shown(&path), text: String::new() }, "says nothing");
    let merged = chain(&path)?.merged().ok_or_else(|| Problems::from(missing()))?;
    Ok((resolved, merged))
}

/// An environment and all that it extends.
fn chain(path: &Path) -> Result<Environments, Problems> {
    let mut all: Vec<(Source, Environment)> = Vec::new();
    let mut next = path.to_owned();
    loop {
        let source = read(&next)?;
        let environment = Environment::parse(&source)?;
        let extends = environment.extends.clone();
        all.insert(0, (source, environment));
        let Some(extends) = extends else { return Ok(Environments(all)) };
        let (source, _) = &all[0];
        next = next.with_file_name(format!("{}.yaml", extends.value));
        if !next.exists() {
            return Err(unknown(source, &extends, extends.value.as_str(), "environment", &next).into());
        }
        let names: Vec<String> = all.iter().rev().map(|(_, of)| of.name.value.to_string()).collect();
        if names.iter().any(|name| *name == extends.value.as_str()) {
            let problem = Problem::at(
                source,
                &extends,
                format!("environments extend each other in a circle: {} → {}", names.join(" → "), extends.value),
            );
            return Err(problem.hint("let one of them extend nothing").into());
        }
        if all.len() >= EXTENDS_MAX {
            let problem =
                Problem::at(source, &extends, format!("more than {EXTENDS_MAX} environments extend each other"));
            return Err(problem.into());
        }
    }
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

fn load_environments(
    source: &Source,
    manifest: &Manifest,
    chosen: Option<&EnvironmentName>,
    config: &Path,
) -> Result<Environments, Problems> {
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
    chain(&path)
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
pub(crate) fn config_folder(manifest: &Path) -> PathBuf {
    let folder = manifest.parent().unwrap_or_else(|| Path::new(""));
    let beside = folder.join("config");
    if beside.is_dir() { beside } else { folder.join("..").join("config") }
}

/// The files that templates may read: those in `files` beside `config`.
fn files(config: &Path) -> Files {
    let folder = config.join("..").join("files");
    Files::new(move |path| {
        let read = || {
            let (folder, path) = (folder.canonicalize()?, folder.join(path).canonicalize()?);
            // A link that leads out is no file of the project's.
            if !path.starts_with(&folder) {
                return Err(std::io::Error::other("it is outside of the folder"));
            }
            let mut text = String::new();
            std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
            if text.len() as u64 > FILE_BYTES_MAX {
                return Err(std::io::Error::other(format!("it has more than {} KiB", FILE_BYTES_MAX >> 10)));
            }
            Ok(text)
        };
        read().map_err(|error| error.to_string())
    })
}

/// The standard checks of a project, where it has some: `health-checks/standard-checks.yaml` beside `config`.
pub(crate) fn standard_checks(config: &Path) -> Result<Option<StandardChecks>, Problems> {
    let path = config.join("..").join("health-checks").join("standard-checks.yaml");
    if !path.exists() {
        return Ok(None);
    }
    StandardChecks::parse(&read(&path)?).map(Some)
}

/// A definition, as it is written in its file, with the standard checks of its project.
pub(crate) fn definition(path: &Path) -> Result<(Source, Server), Problems> {
    let source = read(path)?;
    let config = path.parent().unwrap_or_else(|| Path::new("")).join("..");
    let server = Server::parse_with(&source, standard_checks(&config)?.as_ref())?;
    Ok((source, server))
}

/// Checks a definition as far as it goes without an environment: whether it can be rendered at all. What environments say of
/// this server may mend it, so then it is only told.
pub(crate) fn check_definition(path: &Path) -> Result<Vec<String>, Problems> {
    let (source, mut server) = definition(path)?;
    let config = path.parent().unwrap_or_else(|| Path::new("")).join("..");
    server.lock = lock_of(&source, path)?;
    let Some(needs) = Needs::named_in(&source.text) else { return Ok(Vec::new()) };
    // A file that is not built yet is missed by the plan.
    if local_artifact(&source, &mut server, path).is_err() {
        return Ok(Vec::new());
    }
    match check_alone(&source, &server, &needs, &files(&config)) {
        Err(problems) if is_layered(&config, &server.name.value) => {
            Ok(problems.0.iter().map(ToString::to_string).collect())
        }
        checked => checked.map(|()| sharing_warning(&source, &server).into_iter().collect()),
    }
}

/// Whether an environment of the project says something of a server.
fn is_layered(config: &Path, server: &ServerName) -> bool {
    let entries = std::fs::read_dir(config.join("environments")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Environment::parse(&read(&entry.path()).ok()?).ok()).any(|environment| {
        let of_hosts = environment.hosts.values().map(|of| &of.servers);
        std::iter::once(&environment.servers).chain(of_hosts).any(|servers| servers.contains_key(server))
    })
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
    String::from_utf8(bytes).map(|text| Source { path: shown.clone(), text }).map_err(|error| {
        let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        let (line, column) =
            (valid.split('\n').count(), valid.rsplit('\n').next().map_or(0, |last| last.chars().count()));
        let source = Source { path: shown, text: valid };
        Problem::at_line(&source, line as u64, column as u64 + 1, "from here on the file is not UTF-8")
            .hint("save it as UTF-8")
            .into()
    })
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
