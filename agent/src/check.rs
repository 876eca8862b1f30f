//! Running health checks. One code path for gates, for continuous watching, and for people who ask.
//!
//! A check that hangs, forks, prints without end or answers rubbish harms nobody: each run has a time and each answer a
//! size, and whatever it started is ended with it.

mod files;
mod http;
mod mcp;
mod program;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fleetwright_deploy::health::{CheckOutcome, CheckRun, HealthCheck, McpInfo, Probe};
use fleetwright_deploy::release::{Release, reveal};
use futures_util::future::join_all;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::layout::ServerLayout;

use mcp::Asked;
pub(crate) use mcp::McpClient;

/// Most of a text that is shown, in characters.
const SHOWN_CHARACTERS_MAX: usize = 300;
/// The first pause before a failing run is tried again; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The clients that checks use, made once per server.
pub(crate) struct Checker {
    http: reqwest::Client,
    mcp: McpClient,
    secrets: BTreeMap<String, String>,
    place: Place,
}

/// The server that is checked: programs of its checks run as it does.
pub(crate) struct Place {
    pub(crate) server: ServerLayout,
    pub(crate) release: Release,
}

/// What one run found.
pub(crate) struct Found {
    pub(crate) outcome: CheckOutcome,
    /// What an MCP server said of itself.
    pub(crate) mcp: Option<McpInfo>,
    /// What a plugin measured, each as it wrote it.
    pub(crate) performance: Vec<String>,
}

impl Checker {
    /// With the values of the secrets that checks present.
    pub(crate) fn new(secrets: BTreeMap<String, String>, place: Place) -> Result<Self, reqwest::Error> {
        let http = http_client()?;
        Ok(Self { mcp: McpClient::new(http.clone()), http, secrets, place })
    }

    /// Runs one check; one that fails is tried again at once, as often as it says.
    pub(crate) async fn run(&self, check: &HealthCheck) -> Found {
        let mut pause = RETRY_PAUSE;
        for _ in 0..check.retries {
            let found = self.run_once(check).await;
            if !matches!(found.outcome, CheckOutcome::Failing { .. }) {
                return found;
            }
            sleep(pause).await;
            pause *= 2;
        }
        self.run_once(check).await
    }

    /// Runs one check once, for at most its timeout.
    async fn run_once(&self, check: &HealthCheck) -> Found {
        let run = async {
            let headers = match headers(check.probe.headers(), &self.secrets) {
                Ok(headers) => headers,
                Err(why) => return plain(Err(why)),
            };
            match &check.probe {
                Probe::Mcp { url, expected_tools, call, .. } => {
                    let release = &self.place.release;
                    let bridged = release.is_bridged() && release.mcp_url().as_ref() == Some(url);
                    let asked = Asked { url, expected_tools, call: call.as_deref(), check: &check.name, bridged };
                    self.mcp.check(asked, headers).await
                }
                Probe::Http { url, statuses, contains, more } => {
                    let client = self.http.get(url).headers(headers);
                    plain(http::check(client, url, statuses, contains.as_deref(), more).await)
                }
                Probe::Tcp { address } => plain(tcp(address).await),
                Probe::Command { command } => plain(program::check(command, &self.place).await),
                Probe::File { path, age_max, absent, sha256, mode } => {
                    plain(files::file(path, *age_max, *absent, sha256.as_deref(), *mode).await)
                }
                Probe::Disk { path, free_bytes_min, free_percent_min } => {
                    plain(files::disk(path, *free_bytes_min, *free_percent_min).await)
                }
                Probe::Systemd { unit } => plain(program::unit(unit).await),
                Probe::Custom { command } => program::plugin(command, &self.place).await,
            }
        };
        match timeout(Duration::from(check.timeout), run).await {
            Ok(found) => found,
            Err(_) => plain(Err(format!("no answer within {}", check.timeout))),
        }
    }

    /// Runs checks side by side, for a person who waits. What has not answered by the limit has failed.
    pub(crate) async fn run_all(&self, checks: &[HealthCheck], limit: Duration) -> Vec<CheckRun> {
        let runs = checks.iter().map(|check| async move {
            let began = Instant::now();
            let late = || plain(Err(format!("no answer within {} s", limit.as_secs())));
            let found = timeout(limit, self.run(check)).await.unwrap_or_else(|_| late());
            CheckRun {
                name: check.name.clone(),
                severity: check.severity,
                outcome: found.outcome,
                took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                performance: found.performance,
            }
        });
        join_all(runs).await
    }
}

/// The HTTP client for endpoints of this host: no proxy, no redirects. All servers share one, since each holds the
/// certificates of all authorities.
pub(crate) fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    let made = new_http_client()?;
    Ok(CLIENT.get_or_init(|| made).clone())
}

fn new_http_client() -> Result<reqwest::Client, reqwest::Error> {
    let client = || reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    // A host without certificates of authorities trusts nobody, and can be checked all the same.
    client().build().or_else(|_| client().tls_certs_only([]).build())
}

/// Headers with their secrets put in. What is wrong with a value is told without the value.
pub(crate) fn headers<'a>(
    written: impl Iterator<Item = (&'a String, &'a String)>,
    secrets: &BTreeMap<String, String>,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in written {
        let value = reveal(value, secrets).map_err(|error| error.to_string())?;
        let header = HeaderName::try_from(name).map_err(|_| format!("`{name}` is not the name of a header"))?;
        let mut value =
            HeaderValue::try_from(value).map_err(|_| format!("the value of the header {name} cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn plain(result: Result<String, String>) -> Found {
    let outcome = match result {
        Ok(message) => CheckOutcome::Passing { message: shown(&message) },
        Err(message) => CheckOutcome::Failing { message: shown(&message) },
    };
    Found { outcome, mcp: None, performance: Vec::new() }
}

async fn tcp(address: &str) -> Result<String, String> {
    TcpStream::connect(address)
        .await
        .map(|_| format!("{address} accepts connections"))
        .map_err(|error| format!("{address}: {error}"))
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

/// The start of a text, as one line.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests;
