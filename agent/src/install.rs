//! Installing packages into a release's own folder: by the registries' own clients, at exact versions, or by a URL with
//! the digest of what must come.

mod archive;
mod artifact;
mod bounds;
mod client;
mod download;
pub(crate) mod programs;
mod pypi;
mod registry;
mod reuse;
mod taken;
mod told;
mod user;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::interpreter::fits_node;
use fleetwright_deploy::release::{Package, Registry, Release, index_name, is_artifact};
use fleetwright_registries::{Door, Kind};

pub use self::archive::unpack;
pub(crate) use self::archive::unpack_within_limits;
pub(crate) use self::artifact::{Artifacts, listed};
use self::client::Client;
pub(crate) use self::client::end_leftover;
pub(crate) use self::reuse::share;
pub(crate) use self::told::hint_of_what_came_with;
use crate::aside::aside;
use crate::container;
use crate::facts::Known;
use crate::layout::ReleaseLayout;
use crate::stage::remove_folder;

const STEP: &str = "install";
/// Most characters of a package's `engines` that are shown.
const ENGINES_SHOWN_MAX: usize = 200;

/// Installs the package of a release and keeps the list of everything that came with it. While a client is at
/// work, `installer` names its process. `secrets` are those of the release, for its registry.
pub(crate) async fn install(
    release: &Release,
    layout: &ReleaseLayout,
    installer: &Path,
    host: (&Artifacts, &Known),
    secrets: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let registry = registry::of(release, secrets)?;
    if let Err(failure) = install_package(release, layout, installer, host, registry.as_ref()).await {
        // What did come is not worth its room.
        let (app, scratch) = (layout.app(), layout.scratch());
        aside(move || remove_folder(&app).and_then(|()| remove_folder(&scratch))).await?;
        return Err(failure);
    }
    programs::settle(release, layout)
}

async fn install_package(
    release: &Release,
    layout: &ReleaseLayout,
    installer: &Path,
    (artifacts, facts): (&Artifacts, &Known),
    registry: Option<&Registry>,
) -> Result<(), Failure> {
    match release.package.itself() {
        Package::None | Package::Private { .. } => Ok(()),
        Package::Pypi { name, version, with, lock, build } => {
            let package = format!("{name}=={version}");
            let wanted = pypi::Wanted { name, package, with, lock: lock.as_deref(), build: *build, registry };
            pypi::install(release, layout, &wanted, installer, facts).await
        }
        Package::Npm { name, version, lock } => {
            let door = match registry {
                Some(registry) => Some(registry::door(registry, Kind::Npm, name).await?),
                None => None,
            };
            match lock {
                Some(lock) => locked_npm(layout, name, version, lock, installer, door).await?,
                None => npm(layout, name, version, installer, door).await?,
            }
            check_engines(&layout.app(), name, facts).await
        }
        Package::Archive { url, sha256, strip, .. } => {
            let packed = layout.folder().join("archive");
            fetch(url, sha256, &packed, layout, artifacts).await?;
            let client = Client::prepare(layout, installer, &[], None).await?;
            let packed = client.take_in(&packed)?;
            archive::unpack_aside(&client, &packed, &layout.app(), *strip).await?;
            client.finish().await?;
            write(&layout.lock_file(), format!("{sha256}  {url}\n").as_bytes())
        }
        Package::Oci { image, digest, .. } => {
            let image = format!("{image}@{digest}");
            container::fetch(artifacts.layout(), &image, registry).await?;
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

async fn npm(
    layout: &ReleaseLayout,
    name: &str,
    version: &str,
    installer: &Path,
    door: Option<Door>,
) -> Result<(), Failure> {
    let wanted = format!("{name}@{version}");
    let client = Client::prepare(layout, installer, &[], door).await?;
    let app = layout.app();
    let mut words = npm_words("install", &app);
    words.extend(["--save-exact", "--"].map(str::to_owned));
    words.push(wanted.clone());
    let installed = client.run(&words, "npm install").await;
    installed.map_err(|failure| explain(failure, &wanted, "the npm registry", &client))?;
    client.finish().await?;
    let lock = taken::read_kept(&app.join("package-lock.json"))?;
    write(&layout.lock_file(), &lock)
}

/// Installs exactly what is locked.
async fn locked_npm(
    layout: &ReleaseLayout,
    name: &str,
    version: &str,
    lock: &str,
    installer: &Path,
    door: Option<Door>,
) -> Result<(), Failure> {
    let given = if door.is_some() { registry::without_places(lock) } else { lock.to_owned() };
    let root = serde_json::json!({ "name": "fleetwright-release", "private": true, "dependencies": { name: version } });
    let root = root.to_string();
    let files = [("package.json", root.as_str()), ("package-lock.json", given.as_str())];
    let client = Client::prepare(layout, installer, &files, door).await?;
    let installed = client.run(&npm_words("ci", &layout.app()), "npm ci").await;
    installed.map_err(|failure| explain_lock(failure, &format!("{name}@{version}"), &client))?;
    client.finish().await?;
    write(&layout.lock_file(), lock.as_bytes())
}

/// Whether the host's Node is one that the package says it runs on. npm itself only warns.
async fn check_engines(app: &Path, name: &str, facts: &Known) -> Result<(), Failure> {
    let package = programs::package_json(app, name);
    let (Some(range), Some(node)) = (package["engines"]["node"].as_str(), facts.node().await) else { return Ok(()) };
    if fits_node(&node, range) {
        tracing::info!(package = name, version = %node, engines = range, "this Node fits the package");
        return Ok(());
    }
    let range: String = range.chars().take(ENGINES_SHOWN_MAX).filter(|c| !c.is_control()).collect();
    let message = format!("{name} runs on node {range}, and this host has {node}");
    Err(Failure::new(FailureKind::DependencyError, STEP, message)
        .hint("install such a Node on the host; `requires: [\"node>=VERSION\"]` takes only hosts that have it"))
}

/// Scripts of packages never run.
fn npm_words(what: &str, app: &Path) -> Vec<String> {
    let words = ["npm", what, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"];
    words.into_iter().map(str::to_owned).chain([app.display().to_string()]).collect()
}

/// Says what it means that a client has failed: the registry of the package's own may have, before it.
fn explain(failure: Failure, wanted: &str, registry: &str, client: &Client) -> Failure {
    told_by_registry(failure, wanted, client, |failure, shown| {
        told::explain(failure, wanted, shown.unwrap_or(registry))
    })
}

fn explain_lock(failure: Failure, wanted: &str, client: &Client) -> Failure {
    told_by_registry(failure, wanted, client, |failure, shown| {
        told::explain_lock(failure, wanted, shown.unwrap_or("the registry"))
    })
}

fn told_by_registry(
    failure: Failure,
    wanted: &str,
    client: &Client,
    otherwise: impl FnOnce(Failure, Option<&str>) -> Failure,
) -> Failure {
    let Some(door) = client.door() else { return otherwise(failure, None) };
    // A client that says itself what is wrong is right, whatever else has gone wrong on the way.
    if told::is_reason_of_its_own(&failure.output) {
        return otherwise(failure, Some(door.shown()));
    }
    let lines = [door.left_out(), failure.output.clone()].concat();
    let with_lines = |failure: Failure| failure.output(lines.iter().map(String::as_str));
    if let Some(trouble) = door.trouble() {
        return with_lines(registry::trouble(&trouble));
    }
    let missing = door.missing();
    let (sought, is_package) = told::sought(&failure.output, wanted);
    match missing.iter().find(|name| index_name(name) == index_name(&sought)) {
        Some(name) => with_lines(registry::without(name, is_package, door.shown(), door.asks_public())),
        None => with_lines(otherwise(failure, Some(door.shown()))),
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
