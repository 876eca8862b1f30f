//! Packages from PyPI, by pip in a virtual environment of the release's own.

use std::path::PathBuf;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::host::Version;
use fleetwright_deploy::release::Release;

use super::client::{self, Client};
use super::{STEP, explain, explain_lock, write};
use crate::facts;
use crate::layout::ReleaseLayout;

/// What is wanted of the index.
pub(super) struct Wanted<'a> {
    pub(super) package: String,
    pub(super) with: &'a [String],
    pub(super) lock: Option<&'a str>,
    /// Whether what the index has as source only may be built on this host.
    pub(super) build: bool,
}

/// Installs it, and keeps the list of everything that came with it.
pub(super) async fn install(
    release: &Release,
    layout: &ReleaseLayout,
    wanted: &Wanted<'_>,
    installer: &std::path::Path,
) -> Result<(), Failure> {
    let app = layout.app();
    let least = release.requires.iter().find_map(|requirement| requirement.least_version("python"));
    let python = suitable_python(least, wanted.lock.and_then(locked_for)).await?;
    let client = Client::prepare(layout, installer, &[]).await?;
    let venv = [python.display().to_string(), "-m".to_owned(), "venv".to_owned(), app.display().to_string()];
    client.run(&venv, "python -m venv").await?;
    // What is in the environment by now came with the interpreter.
    let pip = Pip { program: app.join("bin/python").display().to_string(), client: &client };
    let installed = match wanted.lock {
        Some(lock) => locked(&pip, lock, wanted).await.map(|()| lock.to_owned()),
        None => newest(&pip, wanted).await,
    }?;
    client.finish().await?;
    write(&layout.lock_file(), installed.as_bytes())
}

struct Pip<'a> {
    program: String,
    client: &'a Client,
}

impl Pip<'_> {
    async fn run(&self, what: &str, arguments: &[&str]) -> Result<String, Failure> {
        let words =
            [self.program.as_str(), "-m", "pip"].into_iter().chain(what.split(' ')).chain(arguments.iter().copied());
        let words: Vec<String> = words.map(str::to_owned).collect();
        self.client.run(&words, &format!("pip {what}")).await
    }
}

const QUIET: [&str; 4] = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--quiet"];
/// A source is built by programs that come with it, and so is nothing but a program that runs here unasked.
const WHEELS_ONLY: [&str; 2] = ["--only-binary", ":all:"];

/// Exactly what is locked, and nothing that the index would add today.
async fn locked(pip: &Pip<'_>, lock: &str, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let requirements = pip.client.scratch().join("requirements.txt").display().to_string();
    pip.client.give("requirements.txt", lock)?;
    let mut arguments = QUIET.to_vec();
    arguments.extend(WHEELS_ONLY.iter().filter(|_| !wanted.build));
    arguments.extend(["--require-hashes", "--no-deps", "--requirement", requirements.as_str()]);
    if let Err(failure) = pip.run("install", &arguments).await {
        return Err(match sources_only(pip, &failure, wanted).await {
            Some(told) => told,
            None => explain_lock(failure, &wanted.package),
        });
    }
    let check = pip.run("check", &["--disable-pip-version-check"]).await;
    check.map(drop).map_err(|failure| explain_lock(failure, &wanted.package))
}

/// What the index gives today.
async fn newest(pip: &Pip<'_>, wanted: &Wanted<'_>) -> Result<String, Failure> {
    let report = pip.client.scratch().join("report.json");
    let reports = supports_reports(pip).await;
    let shown = report.display().to_string();
    let mut arguments = QUIET.to_vec();
    arguments.extend(WHEELS_ONLY.iter().filter(|_| !wanted.build));
    arguments.extend(["--report", shown.as_str()].iter().filter(|_| reports));
    arguments.extend(["--", wanted.package.as_str()]);
    arguments.extend(wanted.with.iter().map(String::as_str));
    if let Err(failure) = pip.run("install", &arguments).await {
        return Err(match sources_only(pip, &failure, wanted).await {
            Some(told) => told,
            None => explain(failure, &wanted.package, "PyPI"),
        });
    }
    let told = if reports { client::read_kept(&report).ok().and_then(|report| with_digests(&report)) } else { None };
    match told {
        Some(told) => Ok(told),
        None => pip.run("freeze", &["--disable-pip-version-check"]).await,
    }
}

/// What it means when pip finds nothing that it need not build: the index has it, but as source only.
async fn sources_only(pip: &Pip<'_>, failure: &Failure, wanted: &Wanted<'_>) -> Option<Failure> {
    if wanted.build {
        return None;
    }
    let (name, version) = not_found(&failure.output)?;
    // This lists what there is, and runs nothing of it.
    let arguments = ["--disable-pip-version-check", "--no-binary", ":all:", "--", name];
    let listed = pip.run("index versions", &arguments).await.ok()?;
    let sources = listed.lines().find_map(|line| line.trim().strip_prefix("Available versions:"))?;
    let is_there = match version {
        Some(version) => sources.split(',').any(|source| source.trim() == version),
        None => failure.output.iter().any(|line| line.contains("(from versions: none)")),
    };
    if !is_there {
        return None;
    }
    let message = format!("{name} comes as source only for this host, which does not build unless it is told to");
    let told = Failure::new(FailureKind::DependencyError, STEP, message);
    Some(told.output(failure.output.iter().map(String::as_str)).hint(
        "building runs programs of the package on the host: if you trust it, write `package: { build: true }` in the definition",
    ))
}

/// The distribution that pip did not find, and the version where it was one alone.
fn not_found(output: &[String]) -> Option<(&str, Option<&str>)> {
    let line = output.iter().find_map(|line| line.split_once("No matching distribution found for "))?.1;
    let wanted = line.split([' ', ';']).next().unwrap_or_default();
    let end =
        wanted.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')).unwrap_or(wanted.len());
    let version = wanted[end..].split_once("==").map(|(_, version)| version).filter(|version| !version.contains(','));
    Some((&wanted[..end], version)).filter(|(name, _)| !name.is_empty())
}

/// Whether this pip tells what it has installed: it does from 22.2 on.
async fn supports_reports(pip: &Pip<'_>) -> bool {
    let said = pip.run("--version", &[]).await;
    let version = said.ok().and_then(|said| Version::try_from(said.split(' ').nth(1)?.to_owned()).ok());
    version.is_some_and(|version| version >= Version::from([22, 2]))
}

/// What pip says that it has installed, as a requirements file with digests.
fn with_digests(report: &[u8]) -> Option<String> {
    let report: serde_json::Value = serde_json::from_slice(report).ok()?;
    let line = |of: &serde_json::Value| {
        let (name, version) = (of["metadata"]["name"].as_str()?, of["metadata"]["version"].as_str()?);
        let digest = of["download_info"]["archive_info"]["hashes"]["sha256"].as_str()?;
        Some(format!("{name}=={version} --hash=sha256:{digest}\n"))
    };
    let mut lines: Vec<String> = report["install"].as_array()?.iter().map(line).collect::<Option<_>>()?;
    lines.sort();
    Some(lines.concat())
}

/// The interpreter that a lock was resolved by, as it says in its first line.
fn locked_for(lock: &str) -> Option<Version> {
    let first = lock.lines().next()?.strip_prefix('#')?;
    let version = first.rsplit_once("Python ")?.1.trim().trim_end_matches('.');
    Version::try_from(version.to_owned()).ok()
}

/// The interpreter of the series that a lock was resolved by; else the oldest one that meets the need: packages support
/// older ones longer than they take to support new ones.
async fn suitable_python(least: Option<&Version>, locked_for: Option<Version>) -> Result<PathBuf, Failure> {
    let mut pythons = facts::pythons().await;
    pythons.retain(|python| least.is_none_or(|least| python.version >= *least));
    pythons.sort_by(|a, b| a.version.cmp(&b.version));
    let same = |python: &facts::Python| locked_for.as_ref().is_some_and(|of| of.series() == python.version.series());
    let usual = || pythons.iter().position(|python| python.version >= preferred_python()).unwrap_or(0);
    let preferred = pythons.iter().position(same).unwrap_or_else(usual);
    pythons.into_iter().nth(preferred).map(|python| python.program).ok_or_else(|| {
        let wanted = least.map_or_else(|| "python".to_owned(), |least| format!("python>={least}"));
        Failure::new(
            FailureKind::DependencyError,
            STEP,
            format!("no interpreter on this host is {wanted} and has venv"),
        )
        .hint("install it, on Debian for example with `apt-get install python3 python3-venv`")
    })
}

/// Interpreters from this version on are preferred over older ones.
fn preferred_python() -> Version {
    Version::from([3, 10])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_says_by_which_interpreter_it_was_resolved() {
        let lock = "# Written by `fleetwright lock`, resolved by Python 3.11.7.\nsix==1.16.0\n";
        assert_eq!(locked_for(lock), Some(Version::from([3, 11, 7])));
        assert_eq!(locked_for("six==1.16.0\n"), None);
    }

    #[test]
    fn what_pip_did_not_find_is_found_in_its_output() {
        let output = |line: &str| vec!["ERROR: Could not find a version".to_owned(), line.to_owned()];
        let found = |line| {
            let output = output(line);
            not_found(&output).map(|(name, version)| (name.to_owned(), version.map(str::to_owned)))
        };
        let of = |name: &str, version: Option<&str>| Some((name.to_owned(), version.map(str::to_owned)));
        assert_eq!(found("ERROR: No matching distribution found for a-b.c_d==1.0"), of("a-b.c_d", Some("1.0")));
        assert_eq!(found("ERROR: No matching distribution found for a[x]==1.0"), of("a", Some("1.0")));
        assert_eq!(found("ERROR: No matching distribution found for dep>=2 (from a)"), of("dep", None));
        assert_eq!(found("ERROR: something else"), None);
    }
}
