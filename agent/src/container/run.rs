//! Running one server's container, as the program that a systemd unit or a supervisor keeps.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use fleetwright_certs::store;
use fleetwright_deploy::release::{BRIDGE_TOKEN_VARIABLE, Container, Release, Transport};
use futures_util::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt, copy};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::{Engine, Marker, name};
use crate::layout::{ReleaseLayout, ServerLayout};
use crate::process::Process;
use crate::stage;

/// Where a container finds the values of its secrets, a file each.
const SECRETS: &str = "/run/secrets";
/// How long the last words of a container that has ended may take to come.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// The exit status of what ended because of SIGTERM.
const TERMINATED: u8 = 143;

/// Runs the container of a server's release until it ends or this program is told to. The exit status is the
/// container's.
pub(crate) async fn run(server_dir: &Path, release_dir: &Path) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (server, layout) = (ServerLayout::at(server_dir), ReleaseLayout::at(release_dir));
    let Some(release) = stage::load(&layout) else { bail!("{} holds no release", release_dir.display()) };
    let environment = fs::read(layout.environment()).context("the environment of the release cannot be read")?;
    let environment = serde_json::from_slice(&environment)?;
    let (body, stdin) = (body(&server, &layout, &release, environment)?, release.run.transport == Transport::Stdio);
    let (engine, name) = (Engine::connect().await?, name(&server));
    // Written before there is anything, so that whatever is left behind is found.
    remember(&server, &Marker { name: name.clone(), process: None })?;
    engine.remove_container(&name).await?;
    engine.ensure_network(network(&release.container)).await?;
    engine.create(&name, body).await?;
    let attached = engine.attach(&name, stdin).await?;
    engine.start(&name).await?;
    let process = engine.pid(&name).await.and_then(Process::find);
    remember(&server, &Marker { name: name.clone(), process })?;
    // The engine takes a closed standard input for the end of the whole attachment, so that of others stays open.
    let _input = if stdin {
        tokio::spawn(pass_stdin(attached.input));
        None
    } else {
        Some(attached.input)
    };
    let output = tokio::spawn(pass_output(attached.output));
    let ended = tokio::select! {
        ended = engine.ended(&name) => Some(ended),
        _ = terminate.recv() => {
            engine.stop(&name, release.run.stop_timeout.into()).await;
            None
        }
    };
    // What was said last is the part worth reading.
    let _ = timeout(LAST_WORDS_TIMEOUT, output).await;
    let code = match ended {
        None => ExitCode::from(TERMINATED),
        Some(ended) => {
            let ended = ended?;
            if ended.out_of_memory {
                tracing::error!("the container was ended by the kernel: it took more memory than it may");
            }
            ExitCode::from(u8::try_from(ended.status).unwrap_or(u8::MAX))
        }
    };
    engine.remove_container(&name).await?;
    let _ = fs::remove_file(server.container());
    Ok(code)
}

fn remember(server: &ServerLayout, marker: &Marker) -> Result<()> {
    Ok(store::write_private(&server.container(), &serde_json::to_vec(marker)?)?)
}

fn network(container: &Container) -> &str {
    container.network.as_deref().unwrap_or("bridge")
}

/// What the engine is asked for. Its folders are where they are on the host, so that a release means the same whatever
/// it is run by.
fn body(
    server: &ServerLayout,
    layout: &ReleaseLayout,
    release: &Release,
    environment: BTreeMap<String, String>,
) -> Result<ContainerCreateBody> {
    let (run, container) = (&release.run, &release.container);
    let image = release.package.image().context("the release is no image")?;
    let (data, config) = (server.data(), layout.config());
    let shown_config = server.current_release().config();
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is no text");
    let mut binds = vec![format!("{0}:{0}", text(&data)?), format!("{}:{}:ro", text(&config)?, text(&shown_config)?)];
    if !release.secrets_of_server().is_empty() {
        binds.push(format!("{}:{SECRETS}:ro", text(&layout.secrets())?));
    }
    binds.extend(container.volumes.iter().map(fleetwright_deploy::release::Volume::bind));
    let network = network(container);
    let mut ports = HashMap::new();
    if let Some(at) = run.endpoint.as_ref().filter(|_| run.transport != Transport::Stdio && network != "host") {
        let binding = PortBinding { host_ip: Some(at.address.clone()), host_port: Some(at.port.to_string()) };
        ports.insert(format!("{}/tcp", container.port.unwrap_or(at.port)), Some(vec![binding]));
    }
    let limit = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let limits = &run.resources;
    let host = HostConfig {
        binds: Some(binds),
        network_mode: Some(network.to_owned()),
        memory: limits.memory_bytes.map(limit),
        // No swap besides: it would only put off the end.
        memory_swap: limits.memory_bytes.map(limit),
        nano_cpus: limits.cpu_percent.map(|percent| i64::from(percent) * 10_000_000),
        pids_limit: limits.tasks.map(i64::from),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(container.capabilities.clone()),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(container.read_only),
        tmpfs: container
            .read_only
            .then(|| HashMap::from([("/tmp".to_owned(), "rw,noexec,nosuid,size=64m".to_owned())])),
        init: Some(true),
        port_bindings: (!ports.is_empty()).then(|| ports.clone()),
        ..HostConfig::default()
    };
    let stdin = run.transport == Transport::Stdio;
    let environment = environment.into_iter().filter(|(name, _)| name != BRIDGE_TOKEN_VARIABLE);
    Ok(ContainerCreateBody {
        image: Some(image),
        cmd: (!run.command.is_empty()).then(|| run.command.clone()),
        env: Some(environment.map(|(name, value)| format!("{name}={value}")).collect()),
        user: run.user.clone(),
        labels: Some(HashMap::from([
            ("dev.fleetwright.server".to_owned(), release.server.to_string()),
            ("dev.fleetwright.release".to_owned(), release.id().to_string()),
        ])),
        attach_stdin: Some(stdin),
        open_stdin: Some(stdin),
        stdin_once: Some(stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        exposed_ports: (!ports.is_empty()).then(|| ports.into_keys().collect()),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    })
}

/// Gives the container what this program is given, until there is no more.
async fn pass_stdin(mut to: std::pin::Pin<Box<dyn AsyncWrite + Send>>) {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let Ok(mut from) = stdin.and_then(pipe::Receiver::from_owned_fd) else {
        tracing::error!("standard input is no pipe");
        return;
    };
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Says what the container says.
async fn pass_output(
    mut from: std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>,
) {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(Ok(part)) = from.next().await {
        let written = match part {
            LogOutput::StdOut { message } | LogOutput::Console { message } => {
                stdout.write_all(&message).await.and(stdout.flush().await)
            }
            LogOutput::StdErr { message } => stderr.write_all(&message).await.and(stderr.flush().await),
            LogOutput::StdIn { .. } => Ok(()),
        };
        if written.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::release::{Endpoint, Package, Resources, Volume};

    use super::*;

    fn release() -> Release {
        let mut release = Release::plain("time".parse().expect("name"), Vec::new());
        release.package = Package::Oci {
            image: "ghcr.io/example/time".to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            version: "1.2".to_owned(),
        };
        release.run.endpoint = Some(Endpoint { address: "127.0.0.2".to_owned(), port: 8801, path: "/mcp".to_owned() });
        release
    }

    fn body_of(release: &Release) -> ContainerCreateBody {
        let server = ServerLayout::at(Path::new("/state/servers/time"));
        let layout = server.release(&release.id());
        let environment = BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            (BRIDGE_TOKEN_VARIABLE.to_owned(), "for the bridge alone".to_owned()),
        ]);
        body(&server, &layout, release, environment).expect("a body")
    }

    #[test]
    fn a_container_is_given_what_its_release_says_and_nothing_else() {
        let mut release = release();
        release.run.transport = Transport::Http;
        release.run.resources =
            Resources { memory_bytes: Some(1 << 28), cpu_percent: Some(50), tasks: Some(64), disk_bytes: None };
        release.container = Container {
            port: Some(8080),
            network: Some("backend".to_owned()),
            volumes: vec![Volume { source: "cache".to_owned(), target: "/cache".to_owned(), read_only: true }],
            capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            read_only: true,
        };
        let value = serde_json::to_value(body_of(&release)).expect("JSON");
        insta::assert_snapshot!(serde_json::to_string_pretty(&value).expect("JSON"));
    }

    #[test]
    fn a_stdio_server_is_spoken_to_and_publishes_nothing() {
        let mut release = release();
        release.run.transport = Transport::Stdio;
        let body = body_of(&release);
        assert_eq!((body.open_stdin, body.stdin_once, body.exposed_ports), (Some(true), Some(true), None));
        assert!(body.host_config.expect("a host").port_bindings.is_none() && body.cmd.is_none());
    }
}
