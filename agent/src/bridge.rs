//! The bridge of one stdio MCP server to streamable HTTP. It ends when the server ends, so that whoever
//! supervises it sees the crash.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, ErrorData, GetPromptRequestParams,
    GetPromptResponse, Implementation, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ServerConfig,
};
use rmcp::service::{ClientLifecycleMode, Peer, RequestContext, RoleClient, RoleServer, ServiceError};
use rmcp::transport::TokioChildProcess;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ClientServiceExt, ServerHandler};
use tokio::process::Command;

/// How long the server has to answer the handshake: packages that import much need seconds on a busy host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest request body that is taken, in bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Runs the server and speaks streamable HTTP for it on `listen`, until it ends.
pub async fn bridge(listen: &str, path: &str, command: &[String]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    // The port first: a server whose port is taken should not be started at all.
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("{listen} cannot be listened on"))?;
    let mut server = Command::new(program);
    server.args(arguments);
    let process = TokioChildProcess::new(server).with_context(|| format!("`{program}` could not be started"))?;
    let handshake = ().serve_with_lifecycle(process, ClientLifecycleMode::Initialize);
    let running = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .with_context(|| format!("the MCP handshake did not end within {} s", HANDSHAKE_TIMEOUT.as_secs()))?
        .context("the MCP handshake failed")?;
    let info = server_config(running.peer());
    let peer = running.peer().clone();
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .with_allowed_hosts(["localhost", "127.0.0.1", host]);
    let service = StreamableHttpService::new(
        move || Ok(Bridged { info: info.clone(), server: peer.clone() }),
        Arc::new(LocalSessionManager::default()),
        config,
    );
    let router = axum::Router::new().route_service(path, service);
    tokio::select! {
        ended = running.waiting() => {
            tracing::warn!("the MCP server ended: {ended:?}");
            Ok(ExitCode::FAILURE)
        }
        served = axum::serve(listener, router) => {
            served?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What the server said of itself in its handshake.
fn server_config(server: &Peer<RoleClient>) -> ServerConfig {
    let mut config = ServerConfig::default();
    if let Some(info) = server.peer_info() {
        config.capabilities = info.capabilities.clone();
        config.server_info = info.server_info.clone().unwrap_or_else(|| Implementation::new("", ""));
        config.instructions.clone_from(&info.instructions);
        config.protocol_version = info.protocol_version.clone();
    }
    config
}

/// Passes each request on to the server.
struct Bridged {
    info: ServerConfig,
    server: Peer<RoleClient>,
}

type Call = RequestContext<RoleServer>;

impl ServerHandler for Bridged {
    fn get_info(&self) -> ServerConfig {
        self.info.clone()
    }

    async fn list_tools(&self, request: Option<PaginatedRequestParams>, _: Call) -> Result<ListToolsResult, ErrorData> {
        self.server.list_tools(request).await.map_err(passed_on)
    }

    async fn call_tool(&self, request: CallToolRequestParams, _: Call) -> Result<CallToolResponse, ErrorData> {
        self.server.call_tool_once(request).await.map_err(passed_on)
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        _: Call,
    ) -> Result<ListPromptsResult, ErrorData> {
        self.server.list_prompts(request).await.map_err(passed_on)
    }

    async fn get_prompt(&self, request: GetPromptRequestParams, _: Call) -> Result<GetPromptResponse, ErrorData> {
        self.server.get_prompt_once(request).await.map_err(passed_on)
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        _: Call,
    ) -> Result<ListResourcesResult, ErrorData> {
        self.server.list_resources(request).await.map_err(passed_on)
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        _: Call,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        self.server.list_resource_templates(request).await.map_err(passed_on)
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Call,
    ) -> Result<ReadResourceResponse, ErrorData> {
        self.server.read_resource_once(request).await.map_err(passed_on)
    }

    async fn complete(&self, request: CompleteRequestParams, _: Call) -> Result<CompleteResult, ErrorData> {
        self.server.complete(request).await.map_err(passed_on)
    }
}

/// The server's own error as it is; anything else says what happened to the server.
fn passed_on(error: ServiceError) -> ErrorData {
    match error {
        ServiceError::McpError(error) => error,
        other => ErrorData::internal_error(format!("the MCP server behind the bridge: {other}"), None),
    }
}
