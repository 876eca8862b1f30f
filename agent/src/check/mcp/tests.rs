mod broken;
mod fake;
mod right;

use std::collections::BTreeMap;

use fleetwright_deploy::health::McpCall;
use fleetwright_deploy::release::ToolCall;
use fleetwright_deploy::time::Length;
use serde_json::{Value, json};

use super::*;
use fake::{Fake, modern, shaking};

fn client() -> McpClient {
    let _ = rustls::crypto::ring::default_provider().install_default();
    McpClient::new(crate::check::http_client().expect("a client"))
}

fn asked(url: &str) -> Asked<'_> {
    Asked { url, expected_tools: &[], call: None, check: "tools", bridged: false }
}

/// What one check of a new client finds.
async fn found(url: &str) -> Found {
    client().check(asked(url), HeaderMap::new()).await
}

fn tool(name: &str) -> Value {
    json!({ "name": name, "inputSchema": { "type": "object" } })
}

fn call(wanted: &str, interval: Length) -> McpCall {
    let call = ToolCall {
        tool: "count".to_owned(),
        arguments: serde_json::Map::new(),
        contains: None,
        json: BTreeMap::from([("$.state".to_owned(), Value::from(wanted))]),
    };
    McpCall { call, interval }
}
