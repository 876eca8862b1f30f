//! Speaking to an MCP server: it is healthy when it lists its tools, whatever else it answers.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, McpInfo};
use fleetwright_deploy::limits::{NAME_BYTES_MAX, TOOLS_MAX, size};
use fleetwright_deploy::release::ToolCall;
use reqwest::header::HeaderMap;
use rmcp::ClientServiceExt;
use rmcp::model::{CallToolRequestParams, PaginatedRequestParams, ProtocolVersion, Tool};
use rmcp::service::{ClientInitializeError, ClientLifecycleMode, RoleClient, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;

use super::budget::{self, BoundedClient, Budget, EVENTS_BYTES_MAX};
use super::{Found, chain};

type Session = RunningService<RoleClient, ()>;

/// Most pages in which a server may list its tools.
const PAGES_MAX: usize = 100;

/// How long a session may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Speaks both eras of the protocol, and remembers which one a server answered to.
pub(crate) struct McpClient {
    http: reqwest::Client,
    legacy: AtomicBool,
}

impl McpClient {
    pub(crate) fn new(http: reqwest::Client) -> Self {
        Self { http, legacy: AtomicBool::new(false) }
    }

    /// Lists the tools of a server. One that answers without end fails with the limit that it has passed.
    pub(crate) async fn check(&self, url: &str, headers: HeaderMap, expected_tools: &[String]) -> Found {
        let budget = Budget::default();
        tokio::select! {
            biased;
            why = budget.spent() => failing(format!("{url} {why}")),
            found = self.check_within(&budget, url, headers, expected_tools) => found,
        }
    }

    async fn check_within(&self, budget: &Budget, url: &str, headers: HeaderMap, expected: &[String]) -> Found {
        let session = match self.connect(budget, url, headers).await {
            Ok(session) => session,
            Err(error) => return not_connected(url, &error),
        };
        let listed = list_tools(&session, budget).await;
        let info = session.peer().peer_info();
        end(session).await;
        let tools = match listed {
            Ok(tools) => tools,
            Err(error) if error.auth_challenge().is_some() => return needs_authentication(url),
            Err(error) => return failing(format!("{url} does not list its tools: {}", chain(&error))),
        };
        let missing: Vec<&str> = expected.iter().filter(|wanted| !tools.contains(wanted)).map(String::as_str).collect();
        if !missing.is_empty() {
            return failing(format!(
                "{url} lacks the expected tools {}; it has {}",
                missing.join(", "),
                tools.join(", ")
            ));
        }
        let server = info.as_ref().and_then(|info| info.server_info.clone());
        let info = McpInfo {
            name: server.as_ref().map(|server| server.name.clone()).unwrap_or_default(),
            version: server.map(|server| server.version).unwrap_or_default(),
            protocol: info.map(|info| info.protocol_version.to_string()).unwrap_or_default(),
            tools,
        };
        let own = [("name", &info.name), ("version", &info.version), ("protocol version", &info.protocol)];
        if let Some((what, text)) = own.into_iter().find(|(_, text)| text.len() > NAME_BYTES_MAX) {
            let (bytes, limit) = (size(text.len()), size(NAME_BYTES_MAX));
            return failing(format!("{url} says a {what} of {bytes} of itself, the limit is {limit}"));
        }
        let message = format!("{url} lists {} tools", info.tools.len());
        Found { outcome: CheckOutcome::Passing { message }, mcp: Some(info), performance: Vec::new() }
    }

    /// Speaks to a server as a client would: handshake, tools, and these calls. A server that asks for credentials
    /// cannot be tested, and has not failed.
    pub(crate) async fn test(&self, url: &str, headers: HeaderMap, calls: &[ToolCall]) -> Result<(), String> {
        let budget = Budget::default();
        tokio::select! {
            biased;
            why = budget.spent() => Err(format!("{url} {why}")),
            outcome = self.test_within(&budget, url, headers, calls) => outcome,
        }
    }

    async fn test_within(
        &self,
        budget: &Budget,
        url: &str,
        headers: HeaderMap,
        calls: &[ToolCall],
    ) -> Result<(), String> {
        let session = match self.connect(budget, url, headers).await {
            Ok(session) => session,
            Err(error) if error.auth_challenge().is_some() => return Ok(()),
            Err(error) => return Err(format!("{url} does not complete the MCP handshake: {}", chain(&error))),
        };
        let mut outcome = list_tools(&session, budget).await.map(drop).map_err(|error| error.to_string());
        for call in calls {
            if outcome.is_ok() {
                outcome = call_tool(&session, call).await;
            }
        }
        end(session).await;
        outcome
    }

    /// The modern era first, unless the server turned out to speak the older one only.
    async fn connect(&self, budget: &Budget, url: &str, headers: HeaderMap) -> Result<Session, ClientInitializeError> {
        if !self.legacy.load(Ordering::Relaxed) {
            let modern = ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: None,
            };
            match self.open(budget, url, headers.clone(), modern).await {
                Ok(session) => return Ok(session),
                Err(error) if error.auth_challenge().is_some() => return Err(error),
                Err(_) => {}
            }
        }
        let session = self.open(budget, url, headers, ClientLifecycleMode::Initialize).await?;
        self.legacy.store(true, Ordering::Relaxed);
        Ok(session)
    }

    async fn open(
        &self,
        budget: &Budget,
        url: &str,
        headers: HeaderMap,
        lifecycle: ClientLifecycleMode,
    ) -> Result<Session, ClientInitializeError> {
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name?, value))).collect();
        let config = budget::config(url).custom_headers(headers);
        let client = BoundedClient { http: self.http.clone(), budget: budget.clone() };
        let transport = StreamableHttpClientTransport::with_client(client, config);
        ().serve_with_lifecycle(transport, lifecycle).await
    }
}

/// The names of the tools of a server, in order: page by page, of each page no more than its names.
async fn list_tools(session: &Session, budget: &Budget) -> Result<Vec<String>, ServiceError> {
    let (mut names, mut bytes, mut cursor) = (Vec::new(), 0, None);
    for _ in 0..PAGES_MAX {
        let page = session.list_tools(Some(PaginatedRequestParams::default().with_cursor(cursor))).await?;
        bytes += page.tools.iter().map(length).sum::<usize>();
        names.extend(page.tools.into_iter().map(|tool| tool.name.into_owned()));
        if names.len() > TOOLS_MAX {
            budget.over(format!("lists more than {TOOLS_MAX} tools"));
        } else if bytes > EVENTS_BYTES_MAX {
            budget.over(format!("lists tools of more than {}", size(EVENTS_BYTES_MAX)));
        } else if let Some(long) = names.iter().find(|name| name.len() > NAME_BYTES_MAX) {
            let (bytes, limit) = (size(long.len()), size(NAME_BYTES_MAX));
            budget.over(format!("lists a tool whose name is {bytes} long, the limit is {limit}"));
        }
        if budget.is_over() {
            return std::future::pending().await;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            names.sort();
            return Ok(names);
        }
    }
    budget.over(format!("lists its tools in more than {PAGES_MAX} pages"));
    std::future::pending().await
}

/// How long a tool is as JSON, in bytes.
fn length(tool: &Tool) -> usize {
    struct Counted(usize);
    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // A tool that was read can be written.
    let _ = serde_json::to_writer(&mut counted, tool);
    counted.0
}

/// Calls a tool, and looks for the text that its answer must contain.
async fn call_tool(session: &Session, call: &ToolCall) -> Result<(), String> {
    let request = CallToolRequestParams::new(call.tool.clone()).with_arguments(call.arguments.clone());
    let result =
        session.call_tool(request).await.map_err(|error| format!("tool `{}`: {}", call.tool, chain(&error)))?;
    let text = serde_json::to_string(&result.content).unwrap_or_default();
    if result.is_error == Some(true) {
        return Err(format!("tool `{}` answers with an error: {text}", call.tool));
    }
    match &call.contains {
        Some(wanted) if !text.contains(wanted.as_str()) => {
            Err(format!("the answer of tool `{}` does not contain `{wanted}`: {text}", call.tool))
        }
        Some(_) | None => Ok(()),
    }
}

/// Ends a session, so that the server need not keep it.
async fn end(session: Session) {
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, session.cancel()).await;
}

fn not_connected(url: &str, error: &ClientInitializeError) -> Found {
    if error.auth_challenge().is_some() {
        return needs_authentication(url);
    }
    failing(format!("{url} does not complete the MCP handshake: {}", chain(error)))
}

fn needs_authentication(url: &str) -> Found {
    let message = format!("{url} asks for credentials");
    Found { outcome: CheckOutcome::NeedsAuthentication { message }, mcp: None, performance: Vec::new() }
}

fn failing(message: String) -> Found {
    super::plain(Err(message))
}
