//! The command line of the agent.

use std::ffi::OsString;
use std::io::{BufRead, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use fleetwright_deploy::ids::ServerName;
use fleetwright_deploy::printable::Printable;
use fleetwright_deploy::wording;
use fleetwright_protocol::log_file::LogFile;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::embedded::Agent;
use crate::enroll::{Enrolment, enroll};
use crate::layout::Layout;
use crate::this_host::ThisHost;
use crate::{bridge, clock, confine, container, handover, install, pages, runtime, supervise};

/// Longest token with what is around it, in bytes.
const TOKEN_BYTES_MAX: u64 = 4 * 1024;
/// Holds the token where no file does.
const TOKEN_VARIABLE: &str = "FLEETWRIGHT_TOKEN";
/// What is taken from the permissions of everything that is made: all that others may do.
const UMASK: u32 = 0o077;

/// Fleetwright's agent: stages, switches, checks and restores the servers of this host.
#[derive(Parser)]
#[command(name = "fleetwright-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gets this host a certificate from the coordinator; the key is made here and stays here.
    Enroll(EnrollArguments),
    /// Works for the coordinator until it is stopped. Servers go on without it.
    Run {
        /// The agent's state folder.
        #[arg(long, env = "FLEETWRIGHT_AGENT_STATE_DIR", default_value = "/var/lib/fleetwright-agent")]
        state_dir: PathBuf,
        /// The coordinator, if it is no longer where it was when this host enrolled.
        #[arg(long, value_name = "HOST:PORT")]
        coordinator: Option<String>,
        /// Servers become units of this host's systemd, unless their definitions say otherwise. For the one agent of a
        /// host, as root.
        #[arg(long)]
        systemd: bool,
    },
    /// Stops servers of this host, in the order given, until the agent starts the next time.
    Stop {
        /// The agent's state folder.
        #[arg(long, env = "FLEETWRIGHT_AGENT_STATE_DIR", default_value = "/var/lib/fleetwright-agent")]
        state_dir: PathBuf,
        /// The servers; all of them when none is named.
        servers: Vec<ServerName>,
    },
    /// Supervises one server. The agent starts this; a person has no need to.
    #[command(hide = true)]
    Supervise {
        /// The server's folder.
        #[arg(long)]
        server_dir: PathBuf,
    },
    /// Runs the container of one server. What keeps the server starts this; a person has no need to.
    #[command(hide = true)]
    Contain {
        /// The server's folder.
        #[arg(long)]
        server_dir: PathBuf,
        /// The folder of its release.
        #[arg(long)]
        release_dir: PathBuf,
    },
    /// Unpacks an archive, within limits of its own. The agent starts this; a person has no need to.
    #[command(hide = true)]
    Unpack {
        /// How many of the first parts of each path are left out.
        #[arg(long, default_value_t = 0)]
        strip: u32,
        /// The archive.
        archive: PathBuf,
        /// The folder; it is there, and empty.
        to: PathBuf,
    },
    /// Becomes a program that may do no more than its profile says. The agent starts this; a person has no need to.
    #[command(hide = true)]
    Confine {
        /// What the program may do.
        #[arg(long)]
        profile: String,
        /// Where it is told what became of that.
        #[arg(long)]
        report: Option<PathBuf>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Bridges one stdio MCP server to streamable HTTP, until it ends.
    Bridge(bridge::Options),
}

#[derive(clap::Args)]
struct EnrollArguments {
    /// The coordinator.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: String,
    /// A file with the token that `fleetwright hosts token` printed; `-` is standard input. Without it, the variable
    /// FLEETWRIGHT_TOKEN holds the token. It is no argument, since everybody on a host sees those.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The fingerprint of the fleet's authority that `fleetwright hosts token` printed.
    #[arg(long, value_name = "sha256:HEX")]
    ca_fingerprint: String,
    /// The address that this host's servers listen on. It counts where the token names none, until an operator says
    /// otherwise.
    #[arg(long)]
    address: Option<String>,
    /// Labels are not a host's to choose: they belong to its token.
    #[arg(long = "label", value_name = "KEY=VALUE", hide = true)]
    labels: Vec<String>,
    /// The agent's state folder.
    #[arg(long, env = "FLEETWRIGHT_AGENT_STATE_DIR", default_value = "/var/lib/fleetwright-agent")]
    state_dir: PathBuf,
}

/// The token that this host enrols with.
fn token(file: Option<&Path>) -> Result<String> {
    let mut text = String::new();
    match file {
        // One line, so that a person who types it need not end the input.
        Some(file) if file == Path::new("-") => {
            std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_line(&mut text).context("the token cannot be read")?;
        }
        Some(file) => {
            let fail = || format!("the token cannot be read from {}", file.display());
            let opened = std::fs::File::open(file).with_context(fail)?;
            opened.take(TOKEN_BYTES_MAX).read_to_string(&mut text).with_context(fail)?;
        }
        None => text = std::env::var(TOKEN_VARIABLE).unwrap_or_default(),
    }
    let token = text.trim();
    if token.is_empty() {
        bail!(
            "there is no token\n  hint: give the one that `fleetwright hosts token` printed by `--token-file FILE`, `--token-file -` or the variable {TOKEN_VARIABLE}"
        );
    }
    Ok(token.to_owned())
}

/// What is wrong with a value, in words for people.
fn refused(error: clap::Error) -> clap::Error {
    if error.kind() != clap::error::ErrorKind::ValueValidation {
        return error;
    }
    clap::Error::raw(error.kind(), wording::of_argument(&error.to_string()))
}

/// Runs the command line and gives the exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| refused(error).exit());
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEETWRIGHT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A line that cannot be written, on a full disk for example, is lost, and no more.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    // What the agent starts inherits its environment, but has logs of its own.
    let file = if matches!(arguments.command, Command::Run { .. }) { LogFile::of_environment() } else { None };
    match file {
        Some(file) => log.with_writer(std::sync::Mutex::new(Printable(file))).init(),
        None => log.with_writer(|| Printable(std::io::stderr())).init(),
    }
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Command::Unpack { strip, archive, to } = &arguments.command {
        return install::unpack_within_limits(archive, to, *strip);
    }
    match perform(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", wording::of_causes_and_hints(error.chain().map(ToString::to_string)));
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> Result<ExitCode> {
    // Before there is a second thread: what is taken away is taken from the one that asks.
    if let Command::Confine { profile, report, command } = command {
        let profile = serde_json::from_str(&profile).context("the profile cannot be read")?;
        let never = confine::enter(&profile, report.as_deref(), &command)?;
        match never {}
    }
    let small = matches!(command, Command::Supervise { .. } | Command::Contain { .. } | Command::Bridge(_));
    let runtime = if small {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?
    };
    runtime.block_on(async {
        match command {
            Command::Enroll(arguments) => enroll_host(arguments).await,
            Command::Run { state_dir, coordinator, systemd } => {
                if systemd {
                    runtime::systemd::allow();
                }
                raise_open_files();
                let state_dir = absolute(&state_dir)?;
                Layout::new(&state_dir).tighten().context("the state folder cannot be made private")?;
                handover::hand_over_at_start(&state_dir);
                run(&state_dir, coordinator).await
            }
            Command::Stop { state_dir, servers } => stop(&absolute(&state_dir)?, servers).await,
            Command::Confine { .. } => unreachable!("it was performed before"),
            Command::Supervise { server_dir } => supervise::supervise(&server_dir).await.map(|()| ExitCode::SUCCESS),
            Command::Unpack { .. } => bail!("unpacking needs no runtime"),
            Command::Contain { server_dir, release_dir } => container::run(&server_dir, &release_dir).await,
            Command::Bridge(options) => bridge::bridge(options).await,
        }
    })
}

/// Lets this process have as many files open as it may: each folder on the way into a deep one is open while that is worked
/// on.
fn raise_open_files() {
    let was = getrlimit(Resource::Nofile);
    let most = was.maximum.map_or(confine::OPEN_FILES_MAX, |maximum| maximum.min(confine::OPEN_FILES_MAX));
    if was.current.is_some_and(|current| current < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..was })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

async fn enroll_host(arguments: EnrollArguments) -> Result<ExitCode> {
    let state_dir = absolute(&arguments.state_dir)?;
    if let Some(label) = arguments.labels.first() {
        bail!(
            "a host does not choose its labels\n  hint: they belong to its token, `fleetwright hosts token HOST --label {label}`, or to an operator, `fleetwright hosts label HOST {label}`"
        );
    }
    let enrolment = Enrolment {
        coordinator: arguments.coordinator,
        token: token(arguments.token_file.as_deref())?,
        authority_fingerprint: arguments.ca_fingerprint,
        address: arguments.address,
    };
    let identity = enroll(&state_dir, enrolment, client()?, &clock::system()).await?;
    tracing::info!("enrolled as host {} of fleet {}", identity.host, identity.fleet);
    Ok(ExitCode::SUCCESS)
}

async fn run(state_dir: &Path, coordinator: Option<String>) -> Result<ExitCode> {
    let Some(mut identity) = Agent::identity(state_dir)? else {
        bail!(
            "this host is not enrolled: {} has no identity\n  hint: `fleetwright hosts token HOST`, on the coordinator, prints the command that enrols it",
            state_dir.display()
        );
    };
    if let Some(coordinator) = coordinator {
        identity.coordinator = coordinator;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ready = Agent::wait_for_room(state_dir) => ready?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    }
    let machine = ThisHost::new(state_dir, identity.address.clone(), identity.labels.clone());
    let steady = |last| clock::steady(state_dir, last);
    let agent = Agent::open(state_dir, identity, Arc::new(machine), client()?, clock::system(), steady)?;
    tokio::select! {
        ended = agent.run() => ended.map(|()| ExitCode::FAILURE),
        () = pages::keep_giving_back() => Ok(ExitCode::FAILURE),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// An endpoint that dials only.
fn client() -> Result<quinn::Endpoint> {
    Ok(quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0)))?)
}

async fn stop(state_dir: &Path, mut servers: Vec<ServerName>) -> Result<ExitCode> {
    let layout = Layout::new(state_dir);
    if servers.is_empty() {
        let entries = std::fs::read_dir(layout.servers()).into_iter().flatten().flatten();
        servers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    }
    for name in servers {
        let server = layout.server(&name);
        if !server.folder().exists() {
            bail!("this host has no server {name}");
        }
        std::fs::write(server.stopped(), b"")?;
        runtime::stop(&server, true).await?;
        tracing::info!("stopped {name}");
    }
    Ok(ExitCode::SUCCESS)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("`{}` is no path", path.display()))
}
