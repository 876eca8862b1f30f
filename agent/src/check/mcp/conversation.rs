//! A conversation with an MCP server as a client has it, in either era: that of 2026-07-28, in which every request says all
//! that is needed, and the older one of handshakes and sessions.

use std::time::Duration;

use fleetwright_deploy::health::BridgeInfo;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::demands;
use super::exchange::{Exchange, Refusal, Reply, SESSION};
use super::fault::Fault;

/// The revision of the modern era, and those of the older one, the newest first.
pub(super) const MODERN: &str = "2026-07-28";
pub(super) const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// What a server answers that speaks other revisions of the modern era.
const UNSUPPORTED_VERSION: i64 = -32022;
/// How long a server has for the question whether it is of the modern era. One of the older may never answer it.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a session may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
const BRIDGE_META: &str = "dev.fleetwright/bridge";
const SERVER_META: &str = "io.modelcontextprotocol/serverInfo";

/// An era of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Era {
    Modern,
    Legacy,
}

/// What a server said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) name: String,
    pub(super) version: String,
    /// What a bridge says of the server behind it.
    pub(super) bridge: Option<BridgeInfo>,
}

/// A conversation that has begun.
pub(super) struct Conversation<'a> {
    exchange: &'a Exchange<'a>,
    pub(super) era: Era,
    /// The revision that is spoken.
    pub(super) version: String,
    session: Option<HeaderValue>,
    pub(super) said: Said,
    next_id: u64,
}

impl<'a> Conversation<'a> {
    /// Begins as a client does that knows both eras: with the modern one, unless the server is known to be older.
    pub(super) async fn begin(exchange: &'a Exchange<'a>, known_legacy: bool) -> Result<Self, Fault> {
        if !known_legacy && let Some(modern) = Self::discover(exchange).await? {
            return Ok(modern);
        }
        Self::shake_hands(exchange).await
    }

    fn new(exchange: &'a Exchange<'a>, era: Era, version: &str) -> Self {
        Self { exchange, era, version: version.to_owned(), session: None, said: Said::default(), next_id: 1 }
    }

    /// Asks a server for what it speaks; nothing where it is of the older era.
    async fn discover(exchange: &'a Exchange<'a>) -> Result<Option<Self>, Fault> {
        let mut this = Self::new(exchange, Era::Modern, MODERN);
        let mut again = true;
        loop {
            let method = "server/discover";
            let asked = timeout(DISCOVER_TIMEOUT, this.send(method, Map::new(), HeaderMap::new())).await;
            let late = || Fault::Late { method: method.to_owned(), seconds: DISCOVER_TIMEOUT.as_secs() };
            let result = match asked.unwrap_or_else(|_| Err(late())) {
                Ok(Reply { answer: Ok(result), .. }) => result,
                Ok(Reply { answer: Err(refusal), .. }) if refusal.code == UNSUPPORTED_VERSION => {
                    let theirs = versions(refusal.data.get("supported"));
                    if theirs.iter().any(|version| version == MODERN) && std::mem::take(&mut again) {
                        continue;
                    }
                    if theirs.is_empty() || theirs.iter().any(|version| LEGACY.contains(&version.as_str())) {
                        return Ok(None);
                    }
                    return Err(Fault::NoCommonVersion(theirs.join(", ")));
                }
                Ok(Reply { answer: Err(_), .. }) => return Ok(None),
                Err(fault) if fault.may_be_the_era() => return Ok(None),
                Err(fault) => return Err(fault),
            };
            let theirs = versions(result.get("supportedVersions"));
            if !theirs.iter().any(|version| version == MODERN) {
                if theirs.iter().all(|version| !LEGACY.contains(&version.as_str())) && !theirs.is_empty() {
                    return Err(Fault::NoCommonVersion(theirs.join(", ")));
                }
                return Ok(None);
            }
            demands::discovered(&result)?;
            let meta = result.get("_meta").cloned().unwrap_or_default();
            let server = meta.get(SERVER_META).or_else(|| result.get("serverInfo")).cloned().unwrap_or_default();
            this.said = said(&server, &meta);
            return Ok(Some(this));
        }
    }

    /// Begins as clients of the older era do.
    pub(super) async fn shake_hands(exchange: &'a Exchange<'a>) -> Result<Self, Fault> {
        let mut this = Self::new(exchange, Era::Legacy, LEGACY[0]);
        let params = json!({ "protocolVersion": LEGACY[0], "capabilities": {}, "clientInfo": client() });
        let Value::Object(params) = params else { return Err(Fault::Ended) };
        let method = "initialize";
        // The version is agreed upon in the body: no header says it yet.
        let message = json!({ "jsonrpc": "2.0", "id": this.id(), "method": method, "params": params });
        let reply = exchange.ask(&message, this.next_id - 1, HeaderMap::new()).await?;
        let result = reply.answer.map_err(|refusal| refused(method, refusal))?;
        let version = demands::shaken(&result)?;
        if !LEGACY.contains(&version) {
            return Err(Fault::NoCommonVersion(version.to_owned()));
        }
        this.version = version.to_owned();
        this.session = reply.session;
        let meta = result.get("_meta").cloned().unwrap_or_default();
        this.said = said(&result.get("serverInfo").cloned().unwrap_or_default(), &meta);
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        match exchange.tell(&initialized, this.headers("notifications/initialized", HeaderMap::new())).await {
            Ok(()) => Ok(this),
            Err(Fault::Status { status, said }) => {
                let fault = Fault::Status { status, said };
                this.end().await;
                Err(Fault::Violation(format!(
                    "shakes hands and then refuses `notifications/initialized`, at which clients give up: it {}",
                    fault.words()
                )))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Asks for a result; `more` are headers that the method has of its own.
    pub(super) async fn ask(
        &mut self,
        method: &str,
        params: Map<String, Value>,
        more: HeaderMap,
    ) -> Result<Map<String, Value>, Fault> {
        self.send(method, params, more).await?.answer.map_err(|refusal| refused(method, refusal))
    }

    async fn send(&mut self, method: &str, mut params: Map<String, Value>, more: HeaderMap) -> Result<Reply, Fault> {
        if self.era == Era::Modern {
            let meta = json!({
                "io.modelcontextprotocol/protocolVersion": self.version,
                "io.modelcontextprotocol/clientInfo": client(),
                "io.modelcontextprotocol/clientCapabilities": {},
            });
            params.insert("_meta".to_owned(), meta);
        }
        let id = self.id();
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.exchange.ask(&message, id, self.headers(method, more)).await
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn headers(&self, method: &str, mut headers: HeaderMap) -> HeaderMap {
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("mcp-protocol-version", &self.version);
        if self.era == Era::Modern {
            set("mcp-method", method);
        }
        if let Some(session) = &self.session {
            headers.insert(HeaderName::from_static(SESSION), session.clone());
        }
        headers
    }

    /// Ends it, so that the server need not keep a session.
    pub(super) async fn end(self) {
        if self.session.is_some() {
            let headers = self.headers("", HeaderMap::new());
            let _ = timeout(GOODBYE_TIMEOUT, self.exchange.leave(headers)).await;
        }
    }
}

fn client() -> Value {
    json!({ "name": "fleetwright", "version": env!("CARGO_PKG_VERSION") })
}

fn refused(method: &str, refusal: Refusal) -> Fault {
    let Refusal { code, message, status, .. } = refusal;
    Fault::Refused { method: method.to_owned(), code, message, status }
}

fn versions(listed: Option<&Value>) -> Vec<String> {
    let listed = listed.and_then(Value::as_array).into_iter().flatten();
    listed.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a server said of itself, and a bridge of it.
fn said(server: &Value, meta: &Value) -> Said {
    let text = |name: &str| server.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let bridge = meta.get(BRIDGE_META).filter(|bridge| bridge.is_object()).map(|bridge| {
        let text = |name: &str| bridge.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        BridgeInfo { protocol: text("protocol"), eras: versions(bridge.get("eras")), sessions: text("sessions") }
    });
    Said { name: text("name"), version: text("version"), bridge }
}
