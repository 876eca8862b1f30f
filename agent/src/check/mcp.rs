//! Speaking to an MCP server: it is healthy when it lists its tools, whatever else it answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, McpInfo};
use fleetwright_deploy::release::ToolCall;
use reqwest::header::HeaderMap;
use rmcp::ClientServiceExt;
use rmcp::model::{CallToolRequestParams, ProtocolVersion};
use rmcp::service::{ClientInitializeError, ClientLifecycleMode, RoleClient, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;

use super::{Found, chain};

type Session = RunningService<RoleClient, ()>;

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

    /// Lists the tools of a server.
    pub(crate) async fn check(&self, url: &str, headers: HeaderMap, expected_tools: &[String]) -> Found {
        let session = match self.connect(url, headers).await {
            Ok(session) => session,
            Err(error) => return not_connected(url, &error),
        };
        let listed = session.list_all_tools().await;
        let info = session.peer().peer_info();
        end(session).await;
        let tools = match listed {
            Ok(tools) => tools,
            Err(error) if error.auth_challenge().is_some() => return needs_authentication(url),
            Err(error) => return failing(format!("{url} does not list its tools: {}", chain(&error))),
        };
        let mut tools: Vec<String> = tools.into_iter().map(|tool| tool.name.into_owned()).collect();
        tools.sort();
        let missing: Vec<&str> =
            expected_tools.iter().filter(|wanted| !tools.contains(wanted)).map(String::as_str).collect();
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
        let message = format!("{url} lists {} tools", info.tools.len());
        Found { outcome: CheckOutcome::Passing { message }, mcp: Some(info), performance: Vec::new() }
    }

    /// The modern era first, unless the server turned out to speak the older one only.
    pub(crate) async fn connect(&self, url: &str, headers: HeaderMap) -> Result<Session, ClientInitializeError> {
        if !self.legacy.load(Ordering::Relaxed) {
            let modern = ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: None,
            };
            match self.open(url, headers.clone(), modern).await {
                Ok(session) => return Ok(session),
                Err(error) if error.auth_challenge().is_some() => return Err(error),
                Err(_) => {}
            }
        }
        let session = self.open(url, headers, ClientLifecycleMode::Initialize).await?;
        self.legacy.store(true, Ordering::Relaxed);
        Ok(session)
    }

    async fn open(
        &self,
        url: &str,
        headers: HeaderMap,
        lifecycle: ClientLifecycleMode,
    ) -> Result<Session, ClientInitializeError> {
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name?, value))).collect();
        let config = StreamableHttpClientTransportConfig::with_uri(url).custom_headers(headers);
        let transport = StreamableHttpClientTransport::with_client(self.http.clone(), config);
        ().serve_with_lifecycle(transport, lifecycle).await
    }
}

/// Calls a tool, and looks for the text that its answer must contain.
pub(crate) async fn call_tool(session: &Session, call: &ToolCall) -> Result<(), String> {
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
pub(crate) async fn end(session: Session) {
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
