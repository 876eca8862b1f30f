//! Installing packages into a release's own folder: by the registries' own clients, at exact versions, or by a URL with
//! the digest of what must come.

mod archive;
mod artifact;
mod download;
mod reuse;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::host::Version;
use fleetwright_deploy::release::{Package, Release, is_artifact};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

pub use self::archive::unpack;
pub(crate) use self::archive::unpack_within_limits;
pub(crate) use self::artifact::{Artifacts, listed};
pub(crate) use self::reuse::share;
use crate::layout::ReleaseLayout;
use crate::{container, facts};

use crate::process::{KillGroup, Process, kill_group};

/// How long one call of a package client may take.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a client that was killed has to be gone.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(10);
const LEFTOVER_POLL: Duration = Duration::from_millis(20);
const STEP: &str = "install";

/// Installs the package of a release and keeps the list of everything that came with it. While a client is at
/// work, `installer` names its process.
pub(crate) async fn install(
    release: &Release,
    layout: &ReleaseLayout,
    installer: &Path,
    artifacts: &Artifacts,
) -> Result<(), Failure> {
    match &release.package {
        Package::None => Ok(()),
        Package::Pypi { name, version, with, lock } => {
            let wanted = format!("{name}=={version}");
            pypi(release, layout, &wanted, with, lock.as_deref(), installer).await
        }
        Package::Npm { name, version, lock: Some(lock) } => locked_npm(layout, name, version, lock, installer).await,
        Package::Npm { name, version, lock: None } => npm(layout, &format!("{name}@{version}"), installer).await,
        Package::Archive { url, sha256, strip, .. } => {
            let (packed, app) = (layout.folder().join("archive"), layout.app());
            fetch(url, sha256, &packed, layout, artifacts).await?;
            fs::create_dir_all(&app).map_err(|error| file_failure(&app, &error))?;
            let unpacked = archive::unpack_aside(&packed, &app, *strip, installer).await;
            unpacked.inspect_err(|_| {
                // What did come is not worth its room.
                let _ = fs::remove_dir_all(&app);
                let _ = fs::remove_file(&packed);
            })?;
            fs::remove_file(&packed).map_err(|error| file_failure(&packed, &error))?;
            write(&layout.lock_file(), format!("{sha256}  {url}\n").as_bytes())
        }
        Package::Oci { image, digest, .. } => {
            let image = format!("{image}@{digest}");
            container::fetch(artifacts.layout(), &image).await?;
            write(&layout.lock_file(), format!("{image}\n").as_bytes())
        }
        Package::File { url, sha256, name, .. } => {
            let (folder, program) = (layout.app().join("bin"), layout.app().join("bin").join(name));
            fs::create_dir_all(&folder).map_err(|error| file_failure(&folder, &error))?;
            fetch(url, sha256, &program, layout, artifacts).await?;
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&program, executable).map_err(|error| file_failure(&program, &error))?;
            write(&layout.lock_file(), format!("{sha256}  {url}\n").as_bytes())
        }
    }
}

/// Fetches what a URL names, and checks its digest.
async fn fetch(
    url: &str,
    sha256: &str,
    to: &Path,
    layout: &ReleaseLayout,
    artifacts: &Artifacts,
) -> Result<(), Failure> {
    if is_artifact(url) {
        artifacts.fetch(sha256, to, &layout.chunks()).await?;
        return download::check_digest(url, sha256, to).await;
    }
    download::download(url, sha256, to).await
}

async fn pypi(
    release: &Release,
    layout: &ReleaseLayout,
    wanted: &str,
    with: &[String],
    lock: Option<&str>,
    installer: &Path,
) -> Result<(), Failure> {
    let app = layout.app();
    let least = release.requires.iter().find_map(|requirement| requirement.least_version("python"));
    let python = suitable_python(least, lock.and_then(locked_for)).await?;
    run(Command::new(&python).args(["-m", "venv"]).arg(&app), "python -m venv", installer).await?;
    let pip = app.join("bin/python");
    let report = layout.folder().join("report.json");
    let mut install = Command::new(&pip);
    install.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]);
    if let Some(lock) = lock {
        // Exactly what is locked, and nothing that the index would add today.
        write(&layout.lock_file(), lock.as_bytes())?;
        install.args(["--require-hashes", "--no-deps", "--requirement"]).arg(layout.lock_file());
        run(&mut install, "pip install", installer).await.map_err(|failure| explain_lock(failure, wanted))?;
        let mut check = Command::new(&pip);
        check.args(["-m", "pip", "check", "--disable-pip-version-check"]);
        return run(&mut check, "pip check", installer)
            .await
            .map(drop)
            .map_err(|failure| explain_lock(failure, wanted));
    }
    let reports = supports_reports(&pip, installer).await;
    if reports {
        install.arg("--report").arg(&report);
    }
    install.arg("--").arg(wanted).args(with);
    run(&mut install, "pip install", installer).await.map_err(|failure| explain(failure, wanted, "PyPI"))?;
    let installed = fs::read(&report).ok().filter(|_| reports).and_then(|report| with_digests(&report));
    let _ = fs::remove_file(&report);
    let installed = match installed {
        Some(installed) => installed,
        None => {
            let mut list = Command::new(&pip);
            list.args(["-m", "pip", "freeze", "--disable-pip-version-check"]);
            run(&mut list, "pip freeze", installer).await?
        }
    };
    write(&layout.lock_file(), installed.as_bytes())
}

/// Whether this pip tells what it has installed: it does from 22.2 on.
async fn supports_reports(pip: &Path, installer: &Path) -> bool {
    let said = run(Command::new(pip).args(["-m", "pip", "--version"]), "pip --version", installer).await;
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

/// Says what it means when what is locked cannot be installed.
fn explain_lock(failure: Failure, wanted: &str) -> Failure {
    let output = failure.output.join("\n");
    let has = |words: &[&str]| words.iter().any(|word| output.contains(word));
    let again = "lock it anew with the interpreter that the hosts have: `fleetwright lock DEFINITION --python PROGRAM`";
    let (kind, message, hint) = if has(&["DO NOT MATCH THE HASHES", "EINTEGRITY"]) {
        let message = format!("the registry gives something else for {wanted} than its lock names");
        (
            FailureKind::PermissionError,
            message,
            "somebody may have changed a package: see what came before you lock it anew",
        )
    } else if has(&["which is not installed", "has requirement", "No matching distribution", "Requires-Python"]) {
        (FailureKind::DependencyError, format!("the lock of {wanted} does not fit this host's interpreter"), again)
    } else {
        return explain(failure, wanted, "the registry");
    };
    let lines = failure.output.clone();
    Failure::new(kind, STEP, message).hint(hint).output(lines.iter().map(String::as_str))
}

/// The interpreter that a lock was resolved by, as it says in its first line.
fn locked_for(lock: &str) -> Option<Version> {
    let first = lock.lines().next()?.strip_prefix('#')?;
    let version = first.rsplit_once("Python ")?.1.trim().trim_end_matches('.');
    Version::try_from(version.to_owned()).ok()
}

/// The interpreter of the series that a lock was resolved by; else the oldest one that meets the need: packages support
/// older ones longer than they take to support new ones.
async fn suitable_python(least: Option<&Version>, locked_for: Option<Version>) -> Result<std::path::PathBuf, Failure> {
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

async fn npm(layout: &ReleaseLayout, wanted: &str, installer: &Path) -> Result<(), Failure> {
    let app = layout.app();
    fs::create_dir_all(&app).map_err(|error| file_failure(&app, &error))?;
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
        .arg(wanted);
    run(&mut install, "npm install", installer)
        .await
        .map_err(|failure| explain(failure, wanted, "the npm registry"))?;
    let lock = fs::read(app.join("package-lock.json")).map_err(|error| file_failure(&app, &error))?;
    write(&layout.lock_file(), &lock)
}

/// Installs exactly what is locked.
async fn locked_npm(
    layout: &ReleaseLayout,
    name: &str,
    version: &str,
    lock: &str,
    installer: &Path,
) -> Result<(), Failure> {
    let app = layout.app();
    fs::create_dir_all(&app).map_err(|error| file_failure(&app, &error))?;
    let root = serde_json::json!({ "name": "fleetwright-release", "private": true, "dependencies": { name: version } });
    write(&app.join("package.json"), root.to_string().as_bytes())?;
    write(&app.join("package-lock.json"), lock.as_bytes())?;
    let mut install = Command::new("npm");
    install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]).arg(&app);
    let installed = run(&mut install, "npm ci", installer).await;
    installed.map_err(|failure| explain_lock(failure, &format!("{name}@{version}")))?;
    write(&layout.lock_file(), lock.as_bytes())
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

/// Ends a package client that an agent which was killed has left behind: two at work on one folder spoil it.
pub(crate) async fn end_leftover(installer: &Path) -> Result<(), Failure> {
    let left = fs::read(installer).ok().and_then(|bytes| serde_json::from_slice::<Process>(&bytes).ok());
    if let Some(left) = left.filter(|left| left.is_alive()) {
        kill_group(left.pid, Signal::KILL);
        let deadline = Instant::now() + LEFTOVER_TIMEOUT;
        while left.is_alive() {
            if Instant::now() > deadline {
                let message =
                    format!("package client {} of an earlier run does not end although it was killed", left.pid);
                return Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                    .hint("look for what it waits for on the host, for example a disk"));
            }
            sleep(LEFTOVER_POLL).await;
        }
    }
    let _ = fs::remove_file(installer);
    Ok(())
}

/// Runs a client to its end, and gives its standard output.
async fn run(command: &mut Command, what: &str, installer: &Path) -> Result<String, Failure> {
    let output = to_end(command, what, installer).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let failure = Failure::new(FailureKind::DeploymentError, STEP, format!("`{what}` failed with {}", output.status));
    Err(failure.output(text.lines()).hint("see its output"))
}

/// Runs a client to its end, in a process group of its own.
async fn to_end(command: &mut Command, what: &str, installer: &Path) -> Result<Output, Failure> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let message = format!("`{what}` could not be started: {error}");
            Failure::new(FailureKind::DependencyError, STEP, message).hint("install it on the host")
        })?;
    let _group = KillGroup::of(child.id());
    if let Some(process) = child.id().and_then(|pid| Process::find(i32::try_from(pid).ok()?)) {
        write(installer, &serde_json::to_vec(&process).unwrap_or_default())?;
    }
    let ended = tokio::time::timeout(CLIENT_TIMEOUT, child.wait_with_output()).await;
    let _ = fs::remove_file(installer);
    match ended {
        Err(_) => {
            let message = format!("`{what}` did not end within {} s", CLIENT_TIMEOUT.as_secs());
            Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                .hint("check the host's connection to the registry"))
        }
        Ok(Err(error)) => Err(file_failure(Path::new(what), &error)),
        Ok(Ok(output)) => Ok(output),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    fs::write(path, content).map_err(|error| file_failure(path, &error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_a_killed_agent_left_behind_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().expect("folder");
        let installer = folder.path().join("installer.json");
        let mut left = Command::new("sh");
        let mut left = left.args(["-c", "sleep 1000 & wait"]).process_group(0).spawn().expect("spawn");
        let process = Process::find(i32::try_from(left.id().expect("pid")).expect("pid")).expect("a process");
        fs::write(&installer, serde_json::to_vec(&process).expect("JSON")).expect("write");
        end_leftover(&installer).await.expect("it ends");
        assert!(!process.is_alive() && !installer.exists());
        left.wait().await.expect("wait");
        end_leftover(&installer).await.expect("nothing is left");
    }

    #[test]
    fn a_lock_says_by_which_interpreter_it_was_resolved() {
        let lock = "# Written by `fleetwright lock`, resolved by Python 3.11.7.\nsix==1.16.0\n";
        assert_eq!(locked_for(lock), Some(Version::from([3, 11, 7])));
        assert_eq!(locked_for("six==1.16.0\n"), None);
    }

    #[tokio::test]
    async fn a_client_that_fails_is_told_with_its_output() {
        let folder = tempfile::tempdir().expect("folder");
        let installer = folder.path().join("installer.json");
        let mut client = Command::new("sh");
        client.args(["-c", "echo ERROR: No matching distribution found for nothing==1 >&2; exit 1"]);
        let failure = run(&mut client, "pip install", &installer).await.expect_err("it fails");
        let told = explain(failure, "nothing==1", "PyPI");
        assert_eq!(told.kind, FailureKind::DependencyError);
        assert_eq!(told.output, ["ERROR: No matching distribution found for nothing==1"]);
        assert!(!installer.exists());
    }
}
