//! Making locks: the registries' own clients resolve what comes with a package, and the digests of every file of it are
//! taken from the registry, so that the lock counts for whatever platform a host has.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleetwright_deploy::config::PackageWritten;
use fleetwright_deploy::release::index_name;
use fleetwright_registries::{Door, Error};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Client;
use reqwest::header::ACCEPT;
use serde::Deserialize;
use tokio::process::Command;

/// How long one answer of a registry may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How many projects are asked for at once.
const QUESTIONS_MAX: usize = 8;
/// What a client that asks through a door needs of the environment.
const NEEDED: [&str; 9] =
    ["PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYENV_ROOT", "PYENV_VERSION"];
/// The index that is asked unless pip is told of another.
pub(crate) const INDEX: &str = "https://pypi.org/simple";
/// The registry of npm's.
pub(crate) const NPM: &str = "https://registry.npmjs.org";
/// PEP 691.
pub(crate) const SIMPLE_JSON: &str = "application/vnd.pypi.simple.v1+json";

/// What `pip install --report` writes (version 1).
#[derive(Deserialize)]
struct Report {
    install: Vec<Installed>,
}

#[derive(Deserialize)]
struct Installed {
    metadata: Metadata,
    download_info: Download,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    version: String,
}

#[derive(Deserialize)]
struct Download {
    url: String,
    archive_info: Option<Archive>,
}

#[derive(Deserialize)]
struct Archive {
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Default, Deserialize)]
pub(crate) struct Hashes {
    pub(crate) sha256: Option<String>,
}

/// A project of an index (PEP 691).
#[derive(Deserialize)]
pub(crate) struct Project {
    pub(crate) files: Vec<File>,
}

#[derive(Deserialize)]
pub(crate) struct File {
    pub(crate) filename: String,
    #[serde(default)]
    pub(crate) url: String,
    pub(crate) hashes: Hashes,
}

/// The lock of a package from PyPI, as a requirements file with digests. `python` resolves it.
pub(crate) async fn pypi(name: &str, package: &PackageWritten, python: &str, door: Option<&Door>) -> Result<String> {
    let folder = Scratch::new()?;
    let report = folder.0.join("report.json");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--report"])
        .arg(&report)
        // As on hosts: a source is built there only where the definition says so.
        .args(["--only-binary", ":all:"].iter().filter(|_| !package.build))
        .arg("--")
        .arg(format!("{name}=={}", package.version.value))
        .args(package.with.iter().map(|extra| &extra.value));
    through(&mut pip, door, &folder.0);
    told(run(&mut pip, &format!("{python} -m pip")).await, door)?;
    let report: Report = serde_json::from_slice(&std::fs::read(&report)?).context("pip's report cannot be read")?;
    let index = match door {
        Some(door) => Index::Door(door),
        None => Index::Public(index(python).await, Client::builder().timeout(ANSWER_TIMEOUT).build()?),
    };
    let asked = stream::iter(report.install).map(|installed| requirement(installed, &index));
    let mut lines: Vec<String> = asked.buffer_unordered(QUESTIONS_MAX).try_collect().await?;
    lines.sort();
    let version = run(Command::new(python).arg("--version"), python).await?;
    Ok(format!("# Written by `fleetwright lock`, resolved by {}.\n{}", version.trim(), lines.concat()))
}

/// What has the digests of the files of a project.
enum Index<'a> {
    Door(&'a Door),
    Public(String, Client),
}

impl Index<'_> {
    /// The names of the files of a project, each with its digest.
    async fn files(&self, name: &str) -> Result<Vec<(String, Option<String>)>> {
        Ok(match self {
            Self::Door(door) => {
                let project = match door.project(name).await {
                    Err(Error::Missing(_)) => Default::default(),
                    other => other.context("the package's registry")?,
                };
                project.files.into_iter().map(|file| (file.filename, file.sha256)).collect()
            }
            Self::Public(index, http) => {
                let asked = http.get(format!("{index}/{name}/")).header(ACCEPT, SIMPLE_JSON).send().await;
                let Ok(answer) = asked.and_then(reqwest::Response::error_for_status) else { return Ok(Vec::new()) };
                let files = answer.json::<Project>().await.map(|project| project.files).unwrap_or_default();
                files.into_iter().map(|file| (file.filename, file.hashes.sha256)).collect()
            }
        })
    }
}

/// Makes a client ask through a door, and nobody else. It sees nothing of the environment but what it needs: a variable
/// may hold the registry's password, and what is built runs programs of others.
fn through(client: &mut Command, door: Option<&Door>, folder: &Path) {
    let Some(door) = door else { return };
    client.env_clear();
    let needed = std::env::vars_os().filter(|(name, _)| NEEDED.contains(&&*name.to_string_lossy()));
    client.envs(needed).envs(door.settings(&folder.join("no-settings")));
}

/// What a client said, with the registry in the place of the door; where the registry itself is what failed, that.
fn told(said: Result<String>, door: Option<&Door>) -> Result<String> {
    let Some(door) = door else { return said };
    said.map_err(|error| match door.trouble() {
        Some(trouble) => anyhow::Error::new(trouble).context("the package's registry"),
        None => anyhow::anyhow!("{}", door.cleaned(&format!("{error:#}"))),
    })
}

/// One requirement with the digests of all its files.
async fn requirement(installed: Installed, index: &Index<'_>) -> Result<String> {
    let Installed { metadata: Metadata { name, version }, download_info } = installed;
    let Some(own) = download_info.archive_info.and_then(|archive| archive.hashes.sha256) else {
        let url = match index {
            Index::Door(door) => door.cleaned(&download_info.url),
            Index::Public(..) => download_info.url,
        };
        bail!("{name} {version} comes from {url}, which has no digest");
    };
    let normal = index_name(&name);
    let mut digests = BTreeSet::from([own]);
    // An index that gives no digests leaves the one of the file that was looked at.
    let files = index.files(&normal).await?;
    let files = files.into_iter().filter(|(filename, _)| version_of(filename) == Some(version.as_str()));
    digests.extend(files.filter_map(|(_, sha256)| sha256));
    let digests: Vec<String> = digests.iter().map(|digest| format!(" \\\n    --hash=sha256:{digest}")).collect();
    Ok(format!("{normal}=={version}{}\n", digests.concat()))
}

/// The version in the name of a file of an index.
pub(crate) fn version_of(filename: &str) -> Option<&str> {
    if let Some(wheel) = filename.strip_suffix(".whl") {
        return wheel.split('-').nth(1);
    }
    let stem = [".tar.gz", ".zip", ".tar.bz2"].iter().find_map(|suffix| filename.strip_suffix(suffix))?;
    Some(stem.rsplit_once('-')?.1)
}

/// The index that pip asks.
pub(crate) async fn index(python: &str) -> String {
    let named = match std::env::var("PIP_INDEX_URL") {
        Ok(named) => named,
        Err(_) => {
            let mut ask = Command::new(python);
            ask.args(["-m", "pip", "config", "get", "global.index-url"]);
            run(&mut ask, "pip config").await.unwrap_or_default()
        }
    };
    let named = named.trim().trim_end_matches('/');
    if named.is_empty() { INDEX.to_owned() } else { named.to_owned() }
}

/// The lock of a package from the npm registry: npm's own.
pub(crate) async fn npm(name: &str, package: &PackageWritten, door: Option<&Door>) -> Result<String> {
    let folder = Scratch::new()?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"])
        .args(["--loglevel=error", "--prefix"])
        .arg(&folder.0)
        .arg("--")
        .arg(format!("{name}@{}", package.version.value));
    through(&mut npm, door, &folder.0);
    told(run(&mut npm, "npm").await, door)?;
    let lock: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.0.join("package-lock.json"))?)?;
    let bare = lock["packages"].as_object().into_iter().flatten();
    let bare =
        bare.filter(|(path, _)| !path.is_empty()).find(|(_, of)| of["integrity"].is_null() && of["link"].is_null());
    if let Some((path, _)) = bare {
        bail!("the registry gives no digest for {path}");
    }
    // The root is named after the folder in which it was made: without that, the same lock has the same bytes.
    let mut lock = lock;
    for named in ["/name", "/packages//name"] {
        if let Some(value) = lock.pointer_mut(named) {
            *value = "fleetwright-release".into();
        }
    }
    Ok(serde_json::to_string_pretty(&lock)? + "\n")
}

async fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().await;
    let output =
        output.with_context(|| format!("`{what}` could not be started\n  hint: install it on this machine"))?;
    if !output.status.success() {
        bail!("`{what}` failed with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A folder that is gone when it is dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).context("random numbers")?;
        let path = std::env::temp_dir().join(format!("fleetwright-lock-{}", hex::encode(random)));
        // What is in it names the door.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where the lock of a definition is.
pub(crate) fn path_of(definition: &Path) -> std::path::PathBuf {
    definition.with_extension("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_asks_through_a_door_sees_nothing_of_the_environment_but_what_it_needs() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = fleetwright_registries::Registry {
            kind: fleetwright_registries::Kind::Simple,
            url: "http://127.0.0.1:1/simple".to_owned(),
            credentials: None,
            package: "acme".to_owned(),
            public: None,
        };
        let door = Door::open(&registry).await.expect("a door");
        let mut client = Command::new("env");
        client.env("FW_REGISTRY_PASSWORD", "hunter2");
        through(&mut client, Some(&door), Path::new("/nowhere"));
        let seen = run(&mut client, "env").await.expect("it runs");
        let names = seen.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        let odd: Vec<&str> = names.filter(|name| !NEEDED.contains(name) && !name.starts_with("PIP_")).collect();
        assert_eq!(odd, [] as [&str; 0], "cargo's own variables are those of this process");
        assert!(seen.contains(&format!("PIP_INDEX_URL={}", door.url())), "{seen}");
    }

    #[test]
    fn the_version_is_found_in_every_kind_of_file_name() {
        assert_eq!(version_of("mcp_server_time-2026.10.19-py3-none-any.whl"), Some("2026.10.19"));
        assert_eq!(version_of("mcp-server-time-1.0.post1.tar.gz"), Some("1.0.post1"));
        assert_eq!(version_of("six-1.16.0.zip"), Some("1.16.0"));
        assert_eq!(version_of("six-1.16.0.exe"), None);
    }
}
