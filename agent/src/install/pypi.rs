//! Packages from PyPI, by pip in a virtual environment of the release's own.

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::host::Version;
use fleetwright_deploy::release::interpreter::{self, Interpreter, choose, locked_for};
use fleetwright_deploy::release::{Registry, Release};
use fleetwright_registries::Kind;

use super::client::Client;
use super::taken::read_kept;
use super::told::not_found;
use super::{STEP, explain, explain_lock, registry, told, write};
use crate::facts::{Known, Python};
use crate::layout::ReleaseLayout;
use crate::stage::remove_folder;

/// What is wanted of the index.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) package: String,
    pub(super) with: &'a [String],
    pub(super) lock: Option<&'a str>,
    /// Whether what the index has as source only may be built on this host.
    pub(super) build: bool,
    /// The index that it comes from, where it is not the one that the host is set to.
    pub(super) registry: Option<&'a Registry>,
}

/// Installs it, and keeps the list of everything that came with it. Where the package itself asks for another interpreter
/// than the one that was taken first, it is installed for one that fits.
pub(super) async fn install(
    release: &Release,
    layout: &ReleaseLayout,
    wanted: &Wanted<'_>,
    installer: &std::path::Path,
    facts: &Known,
) -> Result<(), Failure> {
    facts.settle_python(STEP).await?;
    let found = facts.pythons().await;
    let mut of_package: Option<String> = None;
    loop {
        let python = suitable_python(&found, release, wanted, of_package.as_deref());
        let python = python.map_err(|lacking| facts.lacks_python(lacking))?;
        match install_for(python, layout, wanted, installer).await {
            Ok(installed) => return write(&layout.lock_file(), installed.as_bytes()),
            Err(Refused { failure, requires_python: Some(spec) }) if of_package.is_none() => {
                tracing::info!(server = %release.server, version = %python.version, requires = spec, "this interpreter does not fit the package");
                of_package = Some(spec);
                if suitable_python(&found, release, wanted, of_package.as_deref()).is_err() {
                    return Err(
                        no_python(release, of_package.as_deref()).output(failure.output.iter().map(String::as_str))
                    );
                }
                remove_folder(&layout.app())?;
            }
            Err(Refused { failure, .. }) => return Err(failure),
        }
    }
}

/// Why nothing was installed.
struct Refused {
    failure: Failure,
    /// What the package says of the interpreter, where it is for another one.
    requires_python: Option<String>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, requires_python: None }
    }
}

async fn install_for(
    python: &Python,
    layout: &ReleaseLayout,
    wanted: &Wanted<'_>,
    installer: &std::path::Path,
) -> Result<String, Refused> {
    let app = layout.app();
    let door = match wanted.registry {
        Some(registry) => Some(registry::door(registry, Kind::Simple, wanted.name).await?),
        None => None,
    };
    let client = Client::prepare(layout, installer, &[], door).await?.in_interpreter(&python.program);
    let venv = [python.program.display().to_string(), "-m".to_owned(), "venv".to_owned(), app.display().to_string()];
    client.run(&venv, "python -m venv").await?;
    // What is in the environment by now came with the interpreter.
    let pip = Pip { program: app.join("bin/python").display().to_string(), client: &client };
    let installed = match wanted.lock {
        Some(lock) => locked(&pip, lock, wanted).await.map(|()| lock.to_owned()),
        None => newest(&pip, wanted).await,
    }?;
    client.finish().await?;
    Ok(installed)
}

struct Pip<'a> {
    program: String,
    client: &'a Client,
}

impl Pip<'_> {
    async fn run(&self, what: &str, arguments: &[&str]) -> Result<String, Failure> {
        self.ask(what, arguments).await.map_err(|refused| refused.failure)
    }

    async fn ask(&self, what: &str, arguments: &[&str]) -> Result<String, Refused> {
        let words =
            [self.program.as_str(), "-m", "pip"].into_iter().chain(what.split(' ')).chain(arguments.iter().copied());
        let words: Vec<String> = words.map(str::to_owned).collect();
        let what = format!("pip {what}");
        let output = self.client.output(&words, &what).await?;
        let requires_python = told::requires_python(&String::from_utf8_lossy(&output.stderr));
        self.client.judge(output, &what).map_err(|failure| Refused { failure, requires_python })
    }
}

/// Most characters of a URL that are shown.
const URL_SHOWN_MAX: usize = 200;
const QUIET: [&str; 4] = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--quiet"];
/// A source is built by programs that come with it, and so is nothing but a program that runs here unasked.
const WHEELS_ONLY: [&str; 2] = ["--only-binary", ":all:"];

/// Exactly what is locked, and nothing that the index would add today.
async fn locked(pip: &Pip<'_>, lock: &str, wanted: &Wanted<'_>) -> Result<(), Refused> {
    let requirements = pip.client.scratch().join("requirements.txt").display().to_string();
    pip.client.give("requirements.txt", lock)?;
    let mut arguments = QUIET.to_vec();
    arguments.extend(WHEELS_ONLY.iter().filter(|_| !wanted.build));
    arguments.extend(["--require-hashes", "--no-deps", "--requirement", requirements.as_str()]);
    if let Err(Refused { failure, requires_python }) = pip.ask("install", &arguments).await {
        let failure = match sources_only(pip, &failure, wanted).await {
            Some(told) => told,
            None => explain_lock(failure, &wanted.package, pip.client),
        };
        return Err(Refused { failure, requires_python });
    }
    let check = pip.run("check", &["--disable-pip-version-check"]).await;
    check.map(drop).map_err(|failure| explain_lock(failure, &wanted.package, pip.client).into())
}

/// What the index gives today.
async fn newest(pip: &Pip<'_>, wanted: &Wanted<'_>) -> Result<String, Refused> {
    let report = pip.client.scratch().join("report.json");
    let reports = supports_reports(pip).await;
    let shown = report.display().to_string();
    let mut arguments = QUIET.to_vec();
    arguments.extend(WHEELS_ONLY.iter().filter(|_| !wanted.build));
    arguments.extend(["--report", shown.as_str()].iter().filter(|_| reports));
    arguments.extend(["--", wanted.package.as_str()]);
    arguments.extend(wanted.with.iter().map(String::as_str));
    if let Err(Refused { failure, requires_python }) = pip.ask("install", &arguments).await {
        let failure = match sources_only(pip, &failure, wanted).await {
            Some(told) => told,
            None => explain(failure, &wanted.package, "PyPI", pip.client),
        };
        return Err(Refused { failure, requires_python });
    }
    let report = if reports { read_kept(&report).ok() } else { None };
    if let (Some(door), Some(report)) = (pip.client.door(), &report)
        && let Some((name, url)) = past(report, |url| door.has_given(url))
    {
        let message =
            format!("{name}, which comes with {}, comes from {url} and not from {}", wanted.package, door.shown());
        let failure = Failure::new(FailureKind::PermissionError, STEP, message);
        return Err(failure.hint("put it into the package's registry: what is there counts, and nothing else").into());
    }
    let told = report.and_then(|report| with_digests(&report));
    match told {
        Some(told) => Ok(told),
        None => Ok(pip.run("freeze", &["--disable-pip-version-check"]).await?),
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

/// Whether this pip tells what it has installed: it does from 22.2 on.
async fn supports_reports(pip: &Pip<'_>) -> bool {
    let said = pip.run("--version", &[]).await;
    let version = said.ok().and_then(|said| Version::try_from(said.split(' ').nth(1)?.to_owned()).ok());
    version.is_some_and(|version| version >= Version::from([22, 2]))
}

/// What pip says that it has installed from somewhere else, and from where.
fn past(report: &[u8], is_own: impl Fn(&str) -> bool) -> Option<(String, String)> {
    let report: serde_json::Value = serde_json::from_slice(report).ok()?;
    report["install"].as_array()?.iter().find_map(|of| {
        let url = of["download_info"]["url"].as_str()?;
        let shown = url.split(['?', '#']).next().unwrap_or_default().chars().take(URL_SHOWN_MAX).collect();
        (!is_own(url)).then(|| (of["metadata"]["name"].as_str().unwrap_or("something").to_owned(), shown))
    })
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

/// The interpreter that the package is installed for; the log says which, and why.
fn suitable_python<'a>(
    found: &'a [Python],
    release: &Release,
    wanted: &Wanted<'_>,
    of_package: Option<&str>,
) -> Result<&'a Python, Failure> {
    let interpreter = |python: &Python| Interpreter { version: python.version.clone(), is_usual: python.is_usual };
    let all: Vec<Interpreter> = found.iter().map(interpreter).collect();
    let locked_for = wanted.lock.and_then(locked_for);
    let least = least_python(release);
    let chosen = choose(&all, interpreter::Wanted { least, locked_for: locked_for.as_ref(), of_package });
    let Some((number, why)) = chosen else { return Err(no_python(release, of_package)) };
    let python = &found[number];
    tracing::info!(server = %release.server, version = %python.version, program = %python.program.display(), why = %why, "installing for this Python");
    Ok(python)
}

fn least_python(release: &Release) -> Option<&Version> {
    release.requires.iter().find_map(|requirement| requirement.least_version("python"))
}

fn no_python(release: &Release, of_package: Option<&str>) -> Failure {
    let least = least_python(release).map(|least| format!("python>={least}"));
    let of_package = of_package.map(|spec| format!("Python {spec}, which the package asks for,"));
    let wanted: Vec<String> = least.into_iter().chain(of_package).collect();
    let wanted = if wanted.is_empty() { "python".to_owned() } else { wanted.join(" and ") };
    let message = format!("no interpreter on this host is {wanted} and has venv");
    Failure::new(FailureKind::DependencyError, STEP, message)
        .hint("install it, on Debian for example with `apt-get install python3 python3-venv`; with `requires`, only hosts that have it are taken")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_past_the_door_is_named_with_its_place() {
        let of = |url: &str| {
            let installed = serde_json::json!({ "metadata": { "name": "x" }, "download_info": { "url": url } });
            serde_json::json!({ "install": [installed] }).to_string()
        };
        let is_own = |url: &str| url.starts_with("http://127.0.0.1:1/key/files/");
        assert_eq!(past(of("http://127.0.0.1:1/key/files/0/x.whl").as_bytes(), is_own), None);
        let elsewhere = past(of("https://elsewhere/x.whl?token=hunter2#sha256=0").as_bytes(), is_own);
        assert_eq!(elsewhere, Some(("x".to_owned(), "https://elsewhere/x.whl".to_owned())));
    }
}
