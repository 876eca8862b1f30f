//! The container engine of this host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, NetworkCreateRequest};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, CreateImageOptions, InspectContainerOptions, InspectNetworkOptions,
    RemoveContainerOptions, RemoveImageOptions, StartContainerOptions, StopContainerOptions, WaitContainerOptions,
};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::host::Version;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{STEP, engine_failure};

/// Where engines listen, besides where `DOCKER_HOST` says.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/run/podman/podman.sock"];
/// How long one answer of the engine may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an image may take to come.
const PULL_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How long the engine has to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the engine.
pub(crate) struct Engine(Docker);

/// How a container has ended.
pub(super) struct Ended {
    pub(super) status: i64,
    pub(super) out_of_memory: bool,
}

/// Where this host's engine listens: the sockets that are there, and none where `DOCKER_HOST` names something else; nothing
/// where there is no engine to ask.
pub(crate) fn socket() -> Option<Vec<PathBuf>> {
    match std::env::var("DOCKER_HOST") {
        Ok(named) => Some(named.strip_prefix("unix://").map(PathBuf::from).into_iter().collect()),
        Err(_) => SOCKETS.iter().find(|socket| Path::new(socket).exists()).map(|socket| vec![PathBuf::from(socket)]),
    }
}

/// Which engine answers on this host, `docker` or `podman`, and its version; or why that cannot be known.
pub(crate) async fn engine_version() -> Result<(&'static str, Version), String> {
    let asked = async {
        let engine = Engine::connect().await.map_err(|failure| failure.message)?;
        let said = engine.0.version().await.map_err(|error| error.to_string())?;
        let podman = said.components.iter().flatten().any(|component| component.name.starts_with("Podman"));
        let text = said.version.ok_or("it does not say its version")?;
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let version = Version::try_from(text[..end].trim_end_matches('.').to_owned());
        Ok((if podman { "podman" } else { "docker" }, version.map_err(|error| error.to_string())?))
    };
    timeout(VERSION_TIMEOUT, asked).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

impl Engine {
    /// The engine that `DOCKER_HOST` names, or the first one whose socket is there.
    pub(crate) async fn connect() -> Result<Self, Failure> {
        let named = std::env::var("DOCKER_HOST").ok();
        let found = || SOCKETS.iter().find(|socket| Path::new(socket).exists()).map(|path| format!("unix://{path}"));
        let Some(host) = named.or_else(found) else {
            let message = format!("this host has no container engine: there is neither {}", SOCKETS.join(" nor "));
            return Err(Failure::new(FailureKind::DependencyError, STEP, message)
                .hint("install one, on Debian for example with `apt-get install docker.io`"));
        };
        let connected = Docker::connect_with_host(&host).map(|docker| docker.with_timeout(ANSWER_TIMEOUT));
        let failed = |error| engine_failure(&format!("the container engine at {host} does not answer"), &error);
        // Older engines refuse what they do not know.
        let docker = connected.map_err(failed)?.negotiate_version().await.map_err(failed)?;
        Ok(Self(docker))
    }

    /// Fetches an image by its digest, unless it is there.
    pub(crate) async fn pull(&self, image: &str, credentials: Option<DockerCredentials>) -> Result<(), Failure> {
        if self.0.inspect_image(image).await.is_ok() {
            return Ok(());
        }
        let options = CreateImageOptions { from_image: Some(image.to_owned()), ..CreateImageOptions::default() };
        let failed = |error| engine_failure(&format!("the image {image} does not come"), &error);
        let pulling = async {
            let mut progress = self.0.create_image(Some(options), None, credentials);
            while let Some(step) = progress.next().await {
                let step = step.map_err(failed)?;
                if let Some(message) = step.error_detail.and_then(|detail| detail.message) {
                    return Err(failed(Error::DockerStreamError { error: message }));
                }
            }
            Ok(())
        };
        timeout(PULL_TIMEOUT, pulling).await.map_err(|_| {
            let message = format!("the image {image} has not come within {} s", PULL_TIMEOUT.as_secs());
            Failure::new(FailureKind::TimeoutError, STEP, message)
                .hint("check the host's connection to the registry; what has come stays")
        })??;
        // That it is there under its digest is what counts, whatever was said on the way.
        self.0.inspect_image(image).await.map(drop).map_err(failed)
    }

    /// Removes an image that nothing uses any more; one that something else uses stays.
    pub(crate) async fn remove_image(&self, image: &str) {
        if let Err(error) = self.0.remove_image(image, None::<RemoveImageOptions>, None).await {
            tracing::debug!(image, %error, "an image stays");
        }
    }

    /// The user that an image runs as, unless its maker left that open.
    pub(super) async fn image_user(&self, image: &str) -> Result<Option<String>, Failure> {
        let found = self.0.inspect_image(image).await;
        let found = found.map_err(|error| engine_failure(&format!("the image {image}"), &error))?;
        Ok(found.config.and_then(|config| config.user).filter(|user| !user.is_empty()))
    }

    /// Makes a network where there is none of that name.
    pub(super) async fn ensure_network(&self, network: &str) -> Result<(), Failure> {
        if matches!(network, "bridge" | "host" | "none")
            || self.0.inspect_network(network, None::<InspectNetworkOptions>).await.is_ok()
        {
            return Ok(());
        }
        let wanted = NetworkCreateRequest { name: network.to_owned(), ..NetworkCreateRequest::default() };
        match self.0.create_network(wanted).await {
            // Another server's container has made it in the same moment.
            Err(Error::DockerResponseServerError { status_code: 409, .. }) | Ok(_) => Ok(()),
            Err(error) => Err(engine_failure(&format!("the network {network} cannot be made"), &error)),
        }
    }

    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<(), Failure> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        let created = self.0.create_container(Some(options), body).await;
        created.map(drop).map_err(|error| engine_failure("the container cannot be made", &error))
    }

    /// Standard input (where asked for) and output of a container that is not started yet.
    pub(super) async fn attach(&self, name: &str, stdin: bool) -> Result<AttachContainerResults, Failure> {
        let options = AttachContainerOptions {
            stream: true,
            stdin,
            stdout: true,
            stderr: true,
            ..AttachContainerOptions::default()
        };
        let attached = self.0.attach_container(name, Some(options)).await;
        attached.map_err(|error| engine_failure("the container cannot be attached to", &error))
    }

    pub(super) async fn start(&self, name: &str) -> Result<(), Failure> {
        let started = self.0.start_container(name, None::<StartContainerOptions>).await;
        started.map_err(|error| engine_failure("the container cannot be started", &error))
    }

    /// The first process of a container.
    pub(super) async fn pid(&self, name: &str) -> Option<i32> {
        let found = self.0.inspect_container(name, None::<InspectContainerOptions>).await.ok()?;
        i32::try_from(found.state?.pid?).ok().filter(|pid| *pid > 0)
    }

    /// Waits until a container has ended.
    pub(super) async fn ended(&self, name: &str) -> Result<Ended, Failure> {
        let mut waiting = self.0.wait_container(name, None::<WaitContainerOptions>);
        let lost = || {
            let message = "the container engine is gone, and with it the container";
            Failure::new(FailureKind::NetworkError, STEP, message)
                .hint("look at the container engine on the host: `systemctl status docker`")
        };
        let status = match waiting.next().await {
            Some(Ok(ended)) => ended.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
            Some(Err(error)) => return Err(engine_failure("the container is lost", &error)),
            None => return Err(lost()),
        };
        let state = self.0.inspect_container(name, None::<InspectContainerOptions>).await;
        let state = state.ok().and_then(|found| found.state);
        let out_of_memory = state.and_then(|state| state.oom_killed).unwrap_or(false);
        Ok(Ended { status, out_of_memory })
    }

    /// Asks a container to end, and ends it after a while.
    pub(super) async fn stop(&self, name: &str, patience: Duration) {
        let seconds = i32::try_from(patience.as_secs()).unwrap_or(i32::MAX).max(1);
        let options = StopContainerOptions { t: Some(seconds), ..StopContainerOptions::default() };
        let docker = self.0.clone().with_timeout(patience + ANSWER_TIMEOUT);
        if let Err(error) = docker.stop_container(name, Some(options)).await {
            tracing::debug!(name, %error, "the container could not be asked to end");
        }
    }

    /// Removes a container with everything in it, whether it runs or not. That there is none is what was wanted.
    pub(crate) async fn remove_container(&self, name: &str) -> Result<(), Failure> {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match self.0.remove_container(name, Some(options)).await {
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            // The engine is removing it already.
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => self.until_gone(name).await,
            Err(error) => Err(engine_failure(&format!("the container {name} cannot be removed"), &error)),
        }
    }

    async fn until_gone(&self, name: &str) -> Result<(), Failure> {
        let options = WaitContainerOptions { condition: "removed".to_owned() };
        let mut waiting = self.0.wait_container(name, Some(options));
        match timeout(ANSWER_TIMEOUT, waiting.next()).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let message = format!("the container {name} is not removed");
                Err(Failure::new(FailureKind::TimeoutError, STEP, message)
                    .hint("see the log of the container engine on the host"))
            }
        }
    }
}
