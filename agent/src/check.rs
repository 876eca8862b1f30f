//! Running health checks. One code path for gates and for continuous watching.

mod mcp;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, HealthCheck, McpInfo, Probe};
use fleetwright_deploy::time::Length;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::KillGroup;

pub(crate) use mcp::{McpClient, call_tool, end as end_session};

/// Most of a response body that is searched, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Most of a text that is shown, in characters.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// The clients that checks use, made once per server.
pub(crate) struct Checker {
    http: reqwest::Client,
    mcp: McpClient,
}

/// What one run found.
pub(crate) struct Found {
    pub(crate) outcome: CheckOutcome,
    /// What an MCP server said of itself.
    pub(crate) mcp: Option<McpInfo>,
}

impl Checker {
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        let http = http_client()?;
        Ok(Self { mcp: McpClient::new(http.clone()), http })
    }

    /// Runs one check, for at most its timeout.
    pub(crate) async fn run(&mut self, check: &HealthCheck) -> Found {
        let limit = check.timeout;
        let run = async {
            match &check.probe {
                Probe::Mcp { url, expected_tools } => self.mcp.check(url, expected_tools).await,
                Probe::Http { url, statuses, contains } => plain(self.http(url, statuses, contains.as_deref()).await),
                Probe::Tcp { address } => plain(tcp(address).await),
                Probe::Command { command } => plain(run_command(command).await),
                Probe::File { path, age_max } => plain(file(path, *age_max)),
                Probe::Disk { path, free_bytes_min } => plain(disk(path, *free_bytes_min)),
            }
        };
        match timeout(Duration::from(limit), run).await {
            Ok(found) => found,
            Err(_) => plain(Err(format!("no answer within {limit}"))),
        }
    }

    async fn http(&self, url: &str, statuses: &[u16], contains: Option<&str>) -> Result<String, String> {
        let mut response = self.http.get(url).send().await.map_err(|error| chain(&error))?;
        let status = response.status().as_u16();
        if !statuses.contains(&status) {
            return Err(format!("{url} answers {status}"));
        }
        if let Some(wanted) = contains {
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
                body.extend_from_slice(&chunk);
                if body.len() > BODY_BYTES_MAX {
                    break;
                }
            }
            if !String::from_utf8_lossy(&body).contains(wanted) {
                return Err(format!("the answer of {url} does not contain `{wanted}`"));
            }
        }
        Ok(format!("{url} answers {status}"))
    }
}

/// An HTTP client for endpoints of this host: no proxy, no redirects.
pub(crate) fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()
}

fn plain(result: Result<String, String>) -> Found {
    let outcome = match result {
        Ok(message) => CheckOutcome::Passing { message: shown(&message) },
        Err(message) => CheckOutcome::Failing { message: shown(&message) },
    };
    Found { outcome, mcp: None }
}

async fn tcp(address: &str) -> Result<String, String> {
    TcpStream::connect(address)
        .await
        .map(|_| format!("{address} accepts connections"))
        .map_err(|error| format!("{address}: {error}"))
}

async fn run_command(command: &[String]) -> Result<String, String> {
    let Some((program, arguments)) = command.split_first() else { return Err("the command is empty".to_owned()) };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("`{program}` could not be started: {error}"))?;
    let _group = KillGroup::of(child.id());
    let exit = child.wait().await.map_err(|error| error.to_string())?;
    if exit.success() { Ok(format!("`{program}` succeeded")) } else { Err(format!("`{program}` failed with {exit}")) }
}

fn file(path: &str, age_max: Option<Length>) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("{path}: {error}"))?;
    if let Some(age_max) = age_max {
        let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
        if age > Duration::from(age_max) {
            return Err(format!("{path} was last written {} s ago, more than {age_max}", age.as_secs()));
        }
    }
    Ok(format!("{path} is there"))
}

fn disk(path: &str, free_bytes_min: u64) -> Result<String, String> {
    let stat = rustix::fs::statvfs(Path::new(path)).map_err(|error| format!("{path}: {error}"))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let message = format!("{} MiB are free at {path}", free >> 20);
    if free >= free_bytes_min {
        Ok(message)
    } else {
        Err(format!("{message}, {} MiB are wanted", free_bytes_min >> 20))
    }
}

/// An error with all its sources, since the outermost one alone seldom says why.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = inner.source();
    }
    text
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::health::Severity;

    use super::*;

    fn check(probe: Probe, limit: Length) -> HealthCheck {
        HealthCheck {
            name: "c".to_owned(),
            severity: Severity::Critical,
            probe,
            interval: Length::from_secs(1),
            timeout: limit,
            failure_threshold: 1,
            tags: Vec::new(),
        }
    }

    async fn outcome(probe: Probe) -> CheckOutcome {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Checker::new().expect("client").run(&check(probe, Length::from_secs(5))).await.outcome
    }

    #[tokio::test]
    async fn a_command_passes_by_its_exit_status() {
        let probe = |command: &str| Probe::Command { command: vec![command.to_owned()] };
        assert!(matches!(outcome(probe("true")).await, CheckOutcome::Passing { .. }));
        assert!(matches!(outcome(probe("false")).await, CheckOutcome::Failing { .. }));
        assert!(matches!(outcome(probe("no-such-program")).await, CheckOutcome::Failing { .. }));
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_ended_with_everything_it_started() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("folder");
        let pid_file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let probe = Probe::Command { command: vec!["sh".to_owned(), "-c".to_owned(), script] };
        let found = Checker::new().expect("client").run(&check(probe, Length::from_ms(1_500))).await;
        assert_eq!(found.outcome.message(), "no answer within 1s500ms");
        let pid: i32 = std::fs::read_to_string(&pid_file).expect("pid").trim().parse().expect("number");
        // A killed process is gone as soon as it is scheduled again, which on a busy machine is not at once.
        let gone = async {
            while crate::process::Process::find(pid).is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), gone).await.expect("the grandchild is ended");
    }

    #[tokio::test]
    async fn a_tcp_port_that_nobody_listens_on_fails() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        assert!(matches!(outcome(Probe::Tcp { address: address.clone() }).await, CheckOutcome::Passing { .. }));
        drop(listener);
        assert!(matches!(outcome(Probe::Tcp { address }).await, CheckOutcome::Failing { .. }));
    }

    #[tokio::test]
    async fn a_full_enough_disk_and_a_missing_file_fail() {
        let disk = |free_bytes_min| Probe::Disk { path: "/".to_owned(), free_bytes_min };
        assert!(matches!(outcome(disk(1)).await, CheckOutcome::Passing { .. }));
        assert!(matches!(outcome(disk(u64::MAX)).await, CheckOutcome::Failing { .. }));
        let missing = Probe::File { path: "/no/such/file".to_owned(), age_max: None };
        assert!(matches!(outcome(missing).await, CheckOutcome::Failing { .. }));
    }
}
