//! Servers that are images: an engine (Docker or Podman, by the Docker Engine API) runs each as a container.
//!
//! What keeps such a server running is the same as for every other one: a systemd unit or a supervisor, which here keeps
//! a small program of the agent's ([`run()`]) that makes the container, is its standard input and output, and ends with
//! it. So restarts, logs and the bridge are the same whatever a server is made of.

mod engine;
mod run;

use std::collections::BTreeSet;
use std::fs;

use bollard::auth::DockerCredentials;
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Registry, Release};
use serde::{Deserialize, Serialize};

pub(crate) use engine::{Engine, engine_version, socket};
pub(crate) use run::run;

use crate::install::file_failure;
use crate::layout::{Layout, ReleaseLayout, ServerLayout};
use crate::process::Process;
use crate::runtime::users::User;
use crate::stage;

const STEP: &str = "container";

/// What a server's folder remembers of its container, from before it is made until it is removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Marker {
    name: String,
    /// Its first process, as this host sees it.
    process: Option<Process>,
}

fn marker(server: &ServerLayout) -> Option<Marker> {
    serde_json::from_slice(&fs::read(server.container()).ok()?).ok()
}

/// The name of a server's container. Agents of several fleets on one host have names of their own.
fn name(server: &ServerLayout) -> String {
    let folder = blake3::hash(server.folder().as_os_str().as_encoded_bytes()).to_hex();
    format!("fleetwright-{}-{}", server.name(), &folder[..8])
}

/// The first process of a server's container, where there is one.
pub(crate) fn pid(server: &ServerLayout) -> Option<i32> {
    let process = marker(server)?.process?;
    process.is_alive().then_some(process.pid)
}

/// Removes a server's container, should whoever ran it have been killed before it could.
pub(crate) async fn remove_leftover(server: &ServerLayout) -> Result<(), Failure> {
    let Some(left) = marker(server) else { return Ok(()) };
    Engine::connect().await?.remove_container(&left.name).await?;
    match fs::remove_file(server.container()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_failure(&server.container(), &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Remembers an image before it is fetched, so that it is removed again whatever becomes of its release.
fn remember_image(layout: &Layout, image: &str) -> Result<(), Failure> {
    let path = layout.images().join(blake3::hash(image.as_bytes()).to_hex().as_str());
    let written = fs::create_dir_all(layout.images()).and_then(|()| fs::write(&path, image));
    written.map_err(|error| file_failure(&path, &error))
}

/// Fetches the image of a release, from a registry that may want to know who asks.
pub(crate) async fn fetch(layout: &Layout, image: &str, registry: Option<&Registry>) -> Result<(), Failure> {
    let engine = Engine::connect().await?;
    remember_image(layout, image)?;
    // The engine is told with this one order, and keeps it nowhere.
    let credentials = registry.map(|registry| DockerCredentials {
        username: registry.username.clone(),
        password: registry.password.clone(),
        serveraddress: image.split_once('/').map(|(host, _)| host.to_owned()),
        ..DockerCredentials::default()
    });
    engine.pull(image, credentials).await
}

/// Removes the images that were fetched for releases which are no longer there, nor about to be.
pub(crate) async fn remove_unused_images(layout: &Layout) -> Result<(), Failure> {
    let mut used = BTreeSet::new();
    for server in fs::read_dir(layout.servers()).into_iter().flatten().flatten() {
        let server = ServerLayout::at(&server.path());
        let staged = fs::read_dir(server.releases()).into_iter().flatten().flatten();
        used.extend(staged.filter_map(|release| stage::load(&ReleaseLayout::at(&release.path()))?.package.image()));
        used.extend(stage::coming(&server).iter().filter_map(|release| release.package.image()));
    }
    for record in fs::read_dir(layout.images()).into_iter().flatten().flatten() {
        let Some(image) = fs::read_to_string(record.path()).ok().filter(|image| !used.contains(image)) else {
            continue;
        };
        Engine::connect().await?.remove_image(&image).await;
        fs::remove_file(record.path()).map_err(|error| file_failure(&record.path(), &error))?;
    }
    Ok(())
}

/// The user of the host that owns what a container may write: the numeric one that its release or its image names.
pub(crate) async fn user_of(release: &Release, image: &str) -> Result<Option<User>, Failure> {
    let named = match &release.run.user {
        Some(user) => Some(user.clone()),
        None => Engine::connect().await?.image_user(image).await?,
    };
    Ok(named.as_deref().and_then(numeric))
}

fn numeric(user: &str) -> Option<User> {
    let (uid, gid) = user.split_once(':').unwrap_or((user, user));
    Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

/// A failure of an engine, told by what it means for the operator.
fn engine_failure(what: &str, error: &bollard::errors::Error) -> Failure {
    use bollard::errors::Error;
    let (kind, hint) = match error {
        Error::DockerResponseServerError { status_code: 404, .. } => (
            FailureKind::DependencyError,
            "check the image's name and digest, and whether the host may read its registry",
        ),
        Error::DockerResponseServerError { status_code: 401 | 403, .. } => (
            FailureKind::PermissionError,
            "give the package a `registry` with `username` and `password`, or log the engine of the host in: `docker login REGISTRY`, as root",
        ),
        Error::DockerResponseServerError { .. } | Error::DockerStreamError { .. } => {
            (FailureKind::DeploymentError, "see the log of the container engine on the host")
        }
        _ => (FailureKind::NetworkError, "look at the container engine on the host: `systemctl status docker`"),
    };
    Failure::new(kind, STEP, format!("{what}: {error}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_users_of_the_host() {
        assert_eq!(numeric("1000"), Some(User { uid: 1000, gid: 1000 }));
        assert_eq!(numeric("1000:50"), Some(User { uid: 1000, gid: 50 }));
        assert_eq!((numeric("app"), numeric("1000:app"), numeric("")), (None, None, None));
    }

    #[test]
    fn containers_of_different_fleets_have_different_names() {
        let of = |folder: &str| name(&ServerLayout::at(std::path::Path::new(folder)));
        assert!(of("/a/servers/time").starts_with("fleetwright-time-"));
        assert_ne!(of("/a/servers/time"), of("/b/servers/time"));
    }
}
