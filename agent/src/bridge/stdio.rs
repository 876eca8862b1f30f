//! The server behind the bridge: a child that speaks JSON-RPC in lines, asked by many at once.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

/// How long the server has to answer the handshake: packages that import much need seconds on a busy host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the last words of a server that has ended may still come.
const LEFTOVER_TIMEOUT: Duration = Duration::from_millis(200);
/// How many lines wait to be written; whoever has more waits too.
const LINES_MAX: usize = 256;
/// Longest line that the server may write, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many notifications of one request wait to be read; more are dropped.
const PROGRESS_MAX: usize = 256;
/// How many other notifications a slow client may fall behind.
const NOTIFICATIONS_MAX: usize = 256;
/// The version of the protocol that the handshake offers.
const LEGACY_VERSION: &str = "2025-11-25";
const MODERN_VERSION: &str = "2026-07-28";

/// A notification, with its method.
pub(super) type Notification = Arc<(String, Value)>;

/// A server that was started and has answered the handshake.
pub(super) struct StdioServer {
    shared: Arc<Shared>,
    /// What it said of itself: the result of `initialize`, or of `server/discover`.
    pub(super) info: Value,
    /// Its process.
    pub(super) pid: Option<i32>,
    /// Whether it speaks the modern era only.
    modern: bool,
}

struct Shared {
    lines: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    pending: Mutex<BTreeMap<u64, Pending>>,
    next: AtomicU64,
    notifications: broadcast::Sender<Notification>,
}

/// A request that waits for its answer.
struct Pending {
    answer: oneshot::Sender<Result<Value, Value>>,
    /// Who asked to be told of progress, and under which token.
    progress: Option<(mpsc::Sender<Value>, Value)>,
}

/// A request on its way.
pub(super) struct Asked {
    pub(super) answer: oneshot::Receiver<Result<Value, Value>>,
    pub(super) progress: mpsc::Receiver<Value>,
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Asked {
    /// Whoever no longer waits has cancelled, unless the answer has come.
    fn drop(&mut self) {
        if self.shared.pending().remove(&self.id).is_some() {
            let params = json!({ "requestId": self.id, "reason": "the client no longer waits" });
            self.shared.try_send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params }));
        }
    }
}

impl StdioServer {
    /// Starts the server, and shakes hands. The receiver tells how it ended.
    pub(super) async fn start(command: &[String], hidden: &str) -> Result<(Self, oneshot::Receiver<String>)> {
        let (program, arguments) = command.split_first().context("no command was given")?;
        let mut child = Command::new(program)
            .args(arguments)
            .env_remove(hidden)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("`{program}` could not be started"))?;
        let (stdin, stdout) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let (lines, to_write) = mpsc::channel(LINES_MAX);
        let (notifications, _) = broadcast::channel(NOTIFICATIONS_MAX);
        let shared = Arc::new(Shared {
            lines: Mutex::new(Some(lines)),
            pending: Mutex::default(),
            next: AtomicU64::new(1),
            notifications,
        });
        tokio::spawn(write(stdin, to_write));
        let (tell, ended) = oneshot::channel();
        let reading = shared.clone();
        tokio::spawn(async move {
            let exit = {
                let output = read(stdout, &reading);
                tokio::pin!(output);
                tokio::select! {
                    () = &mut output => child.wait().await,
                    exit = child.wait() => {
                        // What it left behind may keep its output open: that is not waited for.
                        let _ = timeout(LEFTOVER_TIMEOUT, output).await;
                        exit
                    }
                }
            };
            // Nobody will answer any more.
            reading.pending().clear();
            let _ = tell.send(exit.map_or_else(|error| error.to_string(), |exit| exit.to_string()));
        });
        let mut server = Self { shared, info: Value::Null, pid, modern: false };
        timeout(HANDSHAKE_TIMEOUT, server.shake_hands())
            .await
            .with_context(|| format!("the MCP handshake did not end within {} s", HANDSHAKE_TIMEOUT.as_secs()))??;
        Ok((server, ended))
    }

    /// Servers of the older era answer `initialize`; others `server/discover`.
    async fn shake_hands(&mut self) -> Result<()> {
        let client = json!({ "name": "fleetwright-bridge", "version": env!("CARGO_PKG_VERSION") });
        let params = json!({ "protocolVersion": LEGACY_VERSION, "capabilities": {}, "clientInfo": client });
        match self.ask("initialize", params).await? {
            Ok(info) => {
                self.info = info;
                self.notify("notifications/initialized", Value::Null).await;
                return Ok(());
            }
            Err(error) => {
                tracing::info!(%error, "the server does not take `initialize`; asking as the modern era does")
            }
        }
        self.modern = true;
        match self.ask("server/discover", json!({})).await? {
            Ok(info) => self.info = info,
            Err(error) => bail!("the MCP handshake failed: {error}"),
        }
        Ok(())
    }

    /// Whether it speaks 2026-07-28, and nothing older.
    pub(super) fn is_modern(&self) -> bool {
        self.modern
    }

    async fn ask(&self, method: &str, params: Value) -> Result<Result<Value, Value>> {
        let mut asked = self.request(method, params, Map::new()).await?;
        (&mut asked.answer).await.context("the server ended during the MCP handshake")
    }

    /// Sends a request with these parameters and this `_meta`.
    pub(super) async fn request(&self, method: &str, mut params: Value, mut meta: Map<String, Value>) -> Result<Asked> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let (progress, progressed) = mpsc::channel(PROGRESS_MAX);
        // Tokens of different clients may be the same, so the server gets the id in their place.
        let token = meta.remove("progressToken");
        if token.is_some() {
            meta.insert("progressToken".to_owned(), id.into());
        }
        self.dress(&mut meta);
        if !meta.is_empty() {
            if !params.is_object() {
                params = json!({});
            }
            params["_meta"] = Value::Object(meta);
        }
        let pending = Pending { answer, progress: token.map(|token| (progress, token)) };
        self.shared.pending().insert(id, pending);
        let asked = Asked { answer: answered, progress: progressed, id, shared: self.shared.clone() };
        let mut message = json!({ "jsonrpc": "2.0", "id": id, "method": method });
        if !params.is_null() {
            message["params"] = params;
        }
        self.shared.send(&message).await.context("the server has ended")?;
        Ok(asked)
    }

    /// What belongs to one era says nothing in the other.
    fn dress(&self, meta: &mut Map<String, Value>) {
        const PREFIX: &str = "io.modelcontextprotocol/";
        if !self.modern {
            meta.retain(|key, _| !key.starts_with(PREFIX));
            return;
        }
        let client = json!({ "name": "fleetwright-bridge", "version": env!("CARGO_PKG_VERSION") });
        let usual =
            [("protocolVersion", MODERN_VERSION.into()), ("clientInfo", client), ("clientCapabilities", json!({}))];
        for (key, value) in usual {
            meta.entry(format!("{PREFIX}{key}")).or_insert(value);
        }
    }

    /// Sends a notification.
    pub(super) async fn notify(&self, method: &str, params: Value) {
        let mut message = json!({ "jsonrpc": "2.0", "method": method });
        if !params.is_null() {
            message["params"] = params;
        }
        let _ = self.shared.send(&message).await;
    }

    /// What the server tells everybody from now on.
    pub(super) fn notifications(&self) -> broadcast::Receiver<Notification> {
        self.shared.notifications.subscribe()
    }

    /// Closes the server's input, which asks it to end.
    pub(super) fn close(&self) {
        self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> Option<mpsc::Sender<Vec<u8>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, message: &Value) -> Option<()> {
        self.lines()?.send(line(message)).await.ok()
    }

    fn try_send(&self, message: &Value) {
        if let Some(lines) = self.lines() {
            let _ = lines.try_send(line(message));
        }
    }

    /// Takes in what the server wrote.
    fn take(&self, mut message: Value) {
        let id = message.get("id").cloned().filter(|id| !id.is_null());
        let method = message.get("method").and_then(Value::as_str).map(str::to_owned);
        match (method, id) {
            (Some(method), Some(id)) => self.asked_by_server(&method, &id),
            (Some(method), None) => self.notified(method, message["params"].take()),
            (None, Some(id)) => {
                let Some(pending) = id.as_u64().and_then(|id| self.pending().remove(&id)) else { return };
                let answer = match message.get_mut("error") {
                    Some(error) => Err(error.take()),
                    None => Ok(message["result"].take()),
                };
                let _ = pending.answer.send(answer);
            }
            (None, None) => {}
        }
    }

    /// Many share the server, so it was told that its client can do nothing for it: only `ping` has an answer.
    fn asked_by_server(&self, method: &str, id: &Value) {
        let answer = if method == "ping" {
            json!({ "jsonrpc": "2.0", "id": id, "result": {} })
        } else {
            let message = format!("the bridge passes no `{method}` on: many clients share this server");
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": message } })
        };
        self.try_send(&answer);
    }

    fn notified(&self, method: String, mut params: Value) {
        if method == "notifications/progress" {
            let token = params.get("progressToken").and_then(Value::as_u64);
            let pending = self.pending();
            if let Some((progress, token)) = token.and_then(|id| pending.get(&id)?.progress.as_ref()) {
                params["progressToken"] = token.clone();
                let _ = progress.try_send(params);
            }
            return;
        }
        // That nobody listens is fine.
        let _ = self.notifications.send(Arc::new((method, params)));
    }
}

fn line(message: &Value) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

async fn write(mut stdin: ChildStdin, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
}

async fn read(stdout: ChildStdout, shared: &Shared) {
    let mut stdout = BufReader::with_capacity(32 * 1024, stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut stdout, &mut line).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, "the server's output cannot be read");
                return;
            }
        }
        match serde_json::from_slice::<Value>(&line) {
            Ok(Value::Array(batch)) => batch.into_iter().for_each(|message| shared.take(message)),
            Ok(message) => shared.take(message),
            Err(_) if line.iter().all(u8::is_ascii_whitespace) => {}
            Err(error) => tracing::warn!(%error, "the server wrote a line that is no JSON"),
        }
        // One large answer should not cost its memory for ever.
        line.shrink_to(256 * 1024);
    }
}

/// Reads a line; whether there was one.
async fn read_line(from: &mut BufReader<ChildStdout>, line: &mut Vec<u8>) -> Result<bool> {
    loop {
        let available = from.fill_buf().await?;
        if available.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..taken]);
        from.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
        if line.len() > LINE_BYTES_MAX {
            bail!("a line is longer than {} MiB", LINE_BYTES_MAX >> 20);
        }
    }
}
