//! Installing packages into a release's own folder, by the registries' own clients, at exact versions.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::host::Requirement;
use fleetwright_deploy::release::{Package, Release};
use tokio::process::Command;

use crate::facts;
use crate::layout::ReleaseLayout;

/// How long one call of a package client may take.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(600);
const STEP: &str = "install";

/// Installs the package of a release and keeps the list of everything that came with it.
pub(crate) async fn install(release: &Release, layout: &ReleaseLayout) -> Result<(), Failure> {
    match &release.package {
        Package::None => Ok(()),
        Package::Pypi { name, version, with } => pypi(release, layout, name, version, with).await,
        Package::Npm { name, version } => npm(layout, name, version).await,
    }
}

async fn pypi(
    release: &Release,
    layout: &ReleaseLayout,
    name: &str,
    version: &str,
    with: &[String],
) -> Result<(), Failure> {
    let app = layout.app();
    let least = release.requires.iter().find(|requirement| requirement.runtime == "python");
    let python = suitable_python(least).await?;
    run(Command::new(&python).args(["-m", "venv"]).arg(&app), "python -m venv").await?;
    let pip = app.join("bin/python");
    let wanted = format!("{name}=={version}");
    let mut install = Command::new(&pip);
    install
        .args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet", "--"])
        .arg(&wanted)
        .args(with);
    run(&mut install, "pip install").await.map_err(|failure| explain(failure, &wanted, "PyPI"))?;
    let freeze =
        run(Command::new(&pip).args(["-m", "pip", "freeze", "--disable-pip-version-check"]), "pip freeze").await?;
    write(&layout.lock_file(), freeze.as_bytes())
}

/// The oldest interpreter that meets the need: packages support older ones longer than they take to support new ones.
async fn suitable_python(least: Option<&Requirement>) -> Result<std::path::PathBuf, Failure> {
    let mut pythons = facts::pythons().await;
    pythons.retain(|python| least.and_then(|need| need.at_least.as_ref()).is_none_or(|least| python.version >= *least));
    pythons.sort_by(|a, b| a.version.cmp(&b.version));
    let preferred = pythons.iter().position(|python| python.version >= preferred_python()).unwrap_or(0);
    pythons.into_iter().nth(preferred).map(|python| python.program).ok_or_else(|| {
        let wanted = least.map_or_else(|| "python".to_owned(), Requirement::to_string);
        Failure::new(
            FailureKind::DependencyError,
            STEP,
            format!("no interpreter on this host is {wanted} and has venv"),
        )
        .hint("install it, on Debian for example with `apt-get install python3 python3-venv`")
    })
}

/// Interpreters from this version on are preferred over older ones.
fn preferred_python() -> fleetwright_deploy::host::Version {
    fleetwright_deploy::host::Version::from([3, 10])
}

async fn npm(layout: &ReleaseLayout, name: &str, version: &str) -> Result<(), Failure> {
    let app = layout.app();
    std::fs::create_dir_all(&app).map_err(|error| file_failure(&app, &error))?;
    let wanted = format!("{name}@{version}");
    let mut install = Command::new("npm");
    install
        .args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--save-exact",
            "--loglevel=error",
            "--prefix",
        ])
        .arg(&app)
        .arg("--")
        .arg(&wanted);
    run(&mut install, "npm install").await.map_err(|failure| explain(failure, &wanted, "the npm registry"))?;
    let lock = std::fs::read(app.join("package-lock.json")).map_err(|error| file_failure(&app, &error))?;
    write(&layout.lock_file(), &lock)
}

/// Says what the client's output means for the operator.
fn explain(failure: Failure, wanted: &str, registry: &str) -> Failure {
    let output = failure.output.join("\n");
    let has = |words: &[&str]| words.iter().any(|word| output.contains(word));
    let output_lines = failure.output.clone();
    let told = if has(&["No matching distribution found", "E404", "ETARGET", "Could not find a version"]) {
        Failure::new(FailureKind::DependencyError, STEP, format!("{registry} has no {wanted} for this host")).hint(
            "check the package's name and version in the server's definition, and the runtime's version on the host",
        )
    } else if has(&[
        "Connection",
        "ENOTFOUND",
        "ECONNREFUSED",
        "ETIMEDOUT",
        "EAI_AGAIN",
        "Temporary failure",
        "Read timed out",
    ]) {
        Failure::new(FailureKind::NetworkError, STEP, format!("{registry} cannot be reached from this host"))
            .hint("check the host's connection and proxy settings; then deploy again")
    } else if has(&["No space left", "ENOSPC"]) {
        Failure::new(FailureKind::ResourceError, STEP, "the disk is full").hint("free some space on the host")
    } else {
        return failure;
    };
    told.output(output_lines.iter().map(String::as_str))
}

/// Runs a client to its end and gives its standard output.
async fn run(command: &mut Command, what: &str) -> Result<String, Failure> {
    let child = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(CLIENT_TIMEOUT, child).await {
        Err(_) => {
            let message = format!("`{what}` did not end within {} s", CLIENT_TIMEOUT.as_secs());
            return Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                .hint("check the host's connection to the registry"));
        }
        Ok(Err(error)) => {
            let message = format!("`{what}` could not be started: {error}");
            return Err(Failure::new(FailureKind::DependencyError, STEP, message).hint("install it on the host"));
        }
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let failure = Failure::new(FailureKind::DeploymentError, STEP, format!("`{what}` failed with {}", output.status));
    Err(failure.output(text.lines()).hint("see its output"))
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, content).map_err(|error| file_failure(path, &error))
}

/// A failure to read or write a file.
pub(crate) fn file_failure(path: &Path, error: &std::io::Error) -> Failure {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => FailureKind::PermissionError,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FailureKind::ResourceError,
        _ => FailureKind::DeploymentError,
    };
    Failure::new(kind, "files", format!("{}: {error}", path.display()))
}
