//! Installing packages into a release's own folder: by the registries' own clients, at exact versions, or by a URL with
//! the digest of what must come.

mod archive;
mod artifact;
mod client;
mod download;
mod pypi;
mod reuse;

use std::fs;
use std::path::Path;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Package, Release, is_artifact};

pub use self::archive::unpack;
pub(crate) use self::archive::unpack_within_limits;
pub(crate) use self::artifact::{Artifacts, listed};
use self::client::Client;
pub(crate) use self::client::end_leftover;
pub(crate) use self::reuse::share;
use crate::container;
use crate::layout::ReleaseLayout;
use crate::stage::remove_folder;

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
        Package::Pypi { name, version, with, lock, build } => {
            let wanted =
                pypi::Wanted { package: format!("{name}=={version}"), with, lock: lock.as_deref(), build: *build };
            pypi::install(release, layout, &wanted, installer).await
        }
        Package::Npm { name, version, lock: Some(lock) } => locked_npm(layout, name, version, lock, installer).await,
        Package::Npm { name, version, lock: None } => npm(layout, &format!("{name}@{version}"), installer).await,
        Package::Archive { url, sha256, strip, .. } => {
            let packed = layout.folder().join("archive");
            fetch(url, sha256, &packed, layout, artifacts).await?;
            let client = Client::prepare(layout, installer, &[]).await?;
            let packed = client.take_in(&packed)?;
            archive::unpack_aside(&client, &packed, &layout.app(), *strip).await.inspect_err(|_| {
                // What did come is not worth its room.
                let _ = remove_folder(&layout.app());
                let _ = remove_folder(client.scratch());
            })?;
            client.finish().await?;
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

async fn npm(layout: &ReleaseLayout, wanted: &str, installer: &Path) -> Result<(), Failure> {
    let client = Client::prepare(layout, installer, &[]).await?;
    let app = layout.app();
    let mut words = npm_words("install", &app);
    words.extend(["--save-exact", "--"].map(str::to_owned));
    words.push(wanted.to_owned());
    let installed = client.run(&words, "npm install").await;
    installed.map_err(|failure| explain(failure, wanted, "the npm registry"))?;
    client.finish().await?;
    let lock = client::read_kept(&app.join("package-lock.json"))?;
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
    let root = serde_json::json!({ "name": "fleetwright-release", "private": true, "dependencies": { name: version } });
    let root = root.to_string();
    let files = [("package.json", root.as_str()), ("package-lock.json", lock)];
    let client = Client::prepare(layout, installer, &files).await?;
    let installed = client.run(&npm_words("ci", &layout.app()), "npm ci").await;
    installed.map_err(|failure| explain_lock(failure, &format!("{name}@{version}")))?;
    client.finish().await?;
    write(&layout.lock_file(), lock.as_bytes())
}

/// Scripts of packages never run.
fn npm_words(what: &str, app: &Path) -> Vec<String> {
    let words = ["npm", what, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"];
    words.into_iter().map(str::to_owned).chain([app.display().to_string()]).collect()
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

    #[test]
    fn a_client_that_fails_is_told_with_its_output() {
        let line = "ERROR: No matching distribution found for nothing==1";
        let failure = Failure::new(FailureKind::DeploymentError, STEP, "`pip install` failed").output(line.lines());
        let told = explain(failure, "nothing==1", "PyPI");
        assert_eq!(told.kind, FailureKind::DependencyError);
        assert_eq!(told.output, [line]);
    }
}
