//! A fleet on this machine: a coordinator and agents as processes of their own, each with its own state folder.
//!
//! Agents enrol as they would anywhere: a token, a key made by the agent, a certificate from the coordinator.
//! Who runs is told by the locks that the processes hold, so nothing has to be remembered here.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleetwright_deploy::config::ManifestHost;
use fleetwright_deploy::fleet::Introduction;
use fleetwright_deploy::ids::{HostName, InstanceId};
use fleetwright_protocol::log_file;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use crate::api::hosts::TokenView;
use crate::api::views::HostRow;
use crate::client::Client;
use crate::operator_key::OperatorKey;
use crate::state_dir::{StateDir, lock_holder};

/// How often something that is about to happen is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long the coordinator has to answer after it was started.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(30);
/// How long all agents together have to connect.
const AGENTS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process has to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A host of a local fleet.
#[derive(Clone, Debug)]
pub(crate) struct LocalHost {
    pub(crate) name: HostName,
    pub(crate) address: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// `count` hosts: those that a manifest lists, and as many more as are wanted. Each has its own loopback address,
/// so that the same port can be used on all of them.
pub(crate) fn hosts(listed: &[ManifestHost], count: usize, first: Ipv4Addr) -> Result<Vec<LocalHost>> {
    let mut hosts = Vec::new();
    for n in 0..count {
        let address = Ipv4Addr::from(u32::from(first) + u32::try_from(n)?);
        if !address.is_loopback() {
            bail!("{address} is no loopback address\n  hint: take fewer agents, or a lower --first-address");
        }
        let listed = listed.get(n);
        let name = match listed {
            Some(host) => host.name.value.clone(),
            None => format!("host-{}", n + 1).parse()?,
        };
        let labels = listed.map(|host| host.labels.clone()).unwrap_or_default();
        let address = listed.and_then(|host| host.address.clone()).unwrap_or_else(|| address.to_string());
        hosts.push(LocalHost { name, address, labels });
    }
    Ok(hosts)
}

/// The agent's program: named by the environment, or beside this one.
pub(crate) fn agent_program() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("fleetwright-agent");
    let program = std::env::var_os("FLEETWRIGHT_AGENT_PROGRAM").map_or(beside, PathBuf::from);
    if !program.is_file() {
        bail!(
            "the agent's program is missing: {}\n  hint: `cargo build --release` builds both programs",
            program.display()
        );
    }
    Ok(program)
}

/// A coordinator that answers: the one that runs, or one that is started now. Whether it was started.
pub(crate) async fn ensure_coordinator(state_dir: &StateDir) -> Result<(Client, bool)> {
    let client = Client::new(&state_dir.socket())?;
    if client.is_up().await {
        return Ok((client, false));
    }
    // A fleet that was made by a version before has its public half nowhere.
    if !state_dir.has_operator_public() {
        OperatorKey::export(state_dir, false)?;
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("coordinator").arg("--state-dir").arg(state_dir.path());
    let mut process = spawn(&mut command, &state_dir.log())?;
    let deadline = Instant::now() + COORDINATOR_TIMEOUT;
    while !client.is_up().await {
        if let Some(exit) = process.try_wait()? {
            bail!("the coordinator ended at once ({exit}):\n{}", last_lines(&state_dir.log()));
        }
        if Instant::now() > deadline {
            bail!("the coordinator does not answer; its log is {}", state_dir.log().display());
        }
        sleep(POLL).await;
    }
    Ok((client, true))
}

/// Starts the agents that do not run, after enrolling those that are not; waits until all are connected.
pub(crate) async fn ensure_agents(
    state_dir: &StateDir,
    client: &Client,
    hosts: &[LocalHost],
    by: &str,
) -> Result<usize> {
    let program = agent_program()?;
    state_dir.make_hosts()?;
    let mut started = 0;
    for host in hosts {
        let folder = state_dir.hosts().join(host.name.as_str());
        if lock_holder(&folder.join("agent.lock")).is_some() {
            continue;
        }
        if !folder.join("identity/agent.json").exists() {
            enroll(&program, &folder, client, host, by).await?;
        }
        let mut command = Command::new(&program);
        command.arg("run").arg("--state-dir").arg(&folder);
        spawn(&mut command, &folder.join("agent.log"))?;
        started += 1;
    }
    wait_until_connected(state_dir, client, hosts).await?;
    Ok(started)
}

async fn enroll(program: &Path, folder: &Path, client: &Client, host: &LocalHost, by: &str) -> Result<()> {
    let introduction =
        Introduction { by: by.to_owned(), labels: host.labels.clone(), address: Some(host.address.clone()) };
    let path = format!("/v1/hosts/{}/token?expires_in=5m", host.name);
    let token: TokenView = client.post(&path, &introduction).await?;
    let mut command = tokio::process::Command::new(program);
    command
        .arg("enroll")
        .args(["--coordinator", &token.coordinator, "--ca-fingerprint", &token.ca_fingerprint])
        .arg("--state-dir")
        .arg(folder)
        .args(["--token-file", "-"])
        .env_remove("FLEETWRIGHT_TOKEN")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut agent = command.spawn()?;
    if let Some(mut stdin) = agent.stdin.take() {
        // Should it end before it reads, it says why.
        let _ = stdin.write_all(format!("{}\n", token.token).as_bytes()).await;
    }
    let output = agent.wait_with_output().await?;
    if !output.status.success() {
        bail!("host {} could not be enrolled:\n{}", host.name, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

async fn wait_until_connected(state_dir: &StateDir, client: &Client, hosts: &[LocalHost]) -> Result<()> {
    let deadline = Instant::now() + AGENTS_TIMEOUT;
    loop {
        let rows: Vec<HostRow> = client.get("/v1/hosts").await?;
        let connected = |host: &&LocalHost| rows.iter().any(|row| row.host == host.name && row.connected);
        let Some(missing) = hosts.iter().find(|host| !connected(host)) else { return Ok(()) };
        if Instant::now() > deadline {
            let log = state_dir.hosts().join(missing.name.as_str()).join("agent.log");
            bail!(
                "the agent of {} did not connect; its log, {}, ends with:\n{}",
                missing.name,
                log.display(),
                last_lines(&log)
            );
        }
        sleep(POLL).await;
    }
}

/// Stops everything: the agents, so that nobody starts again what is being stopped; the servers, in the order
/// given and then whatever else runs; the coordinator. Gives the number of servers that were stopped.
pub(crate) async fn stop(state_dir: &StateDir, order: &[InstanceId]) -> Result<usize> {
    let entries = std::fs::read_dir(state_dir.hosts()).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.sort();
    for folder in folders.iter().rev() {
        stop_process(&folder.join("agent.lock")).await?;
    }
    let mut stopped = 0;
    for id in order {
        let folder = state_dir.hosts().join(id.host.as_str());
        if folder.join("servers").join(id.server.as_str()).exists() {
            stop_servers(&folder, Some(id.server.as_str())).await?;
            stopped += 1;
        }
    }
    for folder in &folders {
        stop_servers(folder, None).await?;
    }
    stop_process(&state_dir.lock_file()).await?;
    Ok(stopped)
}

async fn stop_servers(folder: &Path, server: Option<&str>) -> Result<()> {
    let mut command = tokio::process::Command::new(agent_program()?);
    command.arg("stop").arg("--state-dir").arg(folder).args(server).stdin(Stdio::null());
    let output = command.output().await?;
    if !output.status.success() {
        bail!("servers of {} could not be stopped:\n{}", folder.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Ends the process that holds a lock.
async fn stop_process(lock: &Path) -> Result<()> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    let mut asked = false;
    while let Some(pid) = lock_holder(lock).and_then(Pid::from_raw) {
        if !asked {
            // That it is gone already is what was wanted.
            let _ = kill_process(pid, Signal::TERM);
            asked = true;
        }
        if Instant::now() > deadline {
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() > deadline + STOP_TIMEOUT {
            bail!("process {} cannot be ended", pid.as_raw_nonzero());
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Starts a process that outlives this one and does not get its Ctrl-C. Its output goes to a log, which it keeps small.
fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let log_file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("{} cannot be written", log.display()))?;
    let program = command.get_program().to_owned();
    command
        .env(log_file::VARIABLE, std::path::absolute(log)?)
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("{} could not be started", program.display()))
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
