//! The server behind a bridge: which eras it speaks, and the process that its clients share.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::child::{Asked, Child, Group, Logs, NotAsked, Program, Question};
use super::era::{LEGACY_NEWEST, LEGACY_VERSIONS, META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN, negotiated};
use super::hub::Hub;
use super::message::{Answer, Fields, Raw, fields, raw, text};

/// How long a server has to answer the handshake: packages that import much need seconds on a busy host.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server of the modern era is waited for before the older handshake is tried as well. Servers of the older era
/// may leave a question that they do not know without an answer (2026-07-28, basic/transports/stdio).
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(4);

/// The era in which a process is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Era {
    Legacy,
    Modern,
}

/// A server that was started and has answered.
pub(super) struct Server {
    /// The process that all clients share.
    pub(super) child: Child,
    pub(super) era: Era,
    /// What it said of itself: the result of `initialize`, or of `server/discover`.
    pub(super) info: Fields,
    pub(super) capabilities: Fields,
    pub(super) hub: Arc<Hub>,
    pub(super) program: Program,
}

/// What is asked of a process that was just started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// First whether it is of the modern era, then the handshake of the older one.
    Both,
    Only(Era),
}

/// What a process has answered.
enum Opened {
    Is(Era, Raw),
    /// It is of the other era, or did not bear to be asked: another process must be started.
    Again(Opening),
}

impl Server {
    /// Starts a server, and finds out which era it is of. The receiver tells how it ended.
    pub(super) async fn start(program: Program) -> Result<(Self, oneshot::Receiver<String>)> {
        let within =
            format!("the MCP handshake did not end within {} s\n  hint: {SPEAKS_STDIO}", HANDSHAKE_TIMEOUT.as_secs());
        timeout(HANDSHAKE_TIMEOUT, Self::try_start(program)).await.map_err(|_| anyhow!(within))?
    }

    async fn try_start(program: Program) -> Result<(Self, oneshot::Receiver<String>)> {
        let mut opening = Opening::Both;
        // Both at first, then each era alone at most once.
        for _ in 0..3 {
            let hub = Arc::new(Hub::default());
            let hears = hub.clone();
            let (child, ended) =
                Child::start(&program, Group::OfTheBridge, Box::new(move |child, heard| hears.heard(child, heard)))?;
            let opened = match open(&child, opening).await {
                Ok(opened) => opened,
                Err(error) => return Err(with_exit(error, ended).await),
            };
            match opened {
                Opened::Is(era, info) => {
                    let info = fields(Some(&info)).context("the MCP handshake failed: the answer is no object")?;
                    let capabilities = fields(info.get("capabilities").map(|part| &**part)).unwrap_or_default();
                    return Ok((Self { child, era, info, capabilities, hub, program }, ended));
                }
                Opened::Again(with) => {
                    opening = with;
                    child.end();
                    let _ = ended.await;
                }
            }
        }
        bail!("the MCP handshake failed: the server is of no era")
    }

    /// The newest version that the server itself speaks.
    pub(super) fn protocol(&self) -> String {
        match self.era {
            Era::Modern => MODERN.to_owned(),
            Era::Legacy => text(&self.info, "protocolVersion").unwrap_or_else(|| LEGACY_NEWEST.to_owned()),
        }
    }

    /// The versions of the older era that its clients may speak.
    pub(super) fn legacy_versions(&self) -> Vec<&'static str> {
        let newest = match self.era {
            Era::Modern => LEGACY_NEWEST.to_owned(),
            Era::Legacy => negotiated(None, &self.protocol()),
        };
        LEGACY_VERSIONS.into_iter().filter(|version| **version <= *newest).collect()
    }
}

/// What a server that is bridged must do.
const SPEAKS_STDIO: &str = "a bridged server speaks MCP over its standard input and output; one that speaks HTTP itself has \
                            `transport: http`, and what it writes at its start is in its log";
/// How long the end of a server that fails in its handshake is waited for.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a server could not be spoken to, with how it ended where it has.
async fn with_exit(error: anyhow::Error, ended: oneshot::Receiver<String>) -> anyhow::Error {
    match timeout(EXIT_TIMEOUT, ended).await {
        Ok(Ok(exit)) => anyhow!("{error:#} ({exit})\n  hint: {SPEAKS_STDIO}"),
        Ok(Err(_)) | Err(_) => anyhow!("{error:#}\n  hint: {SPEAKS_STDIO}"),
    }
}

/// What the bridge says of itself with each of its own requests in the modern era.
pub(super) fn own_meta() -> serde_json::Value {
    json!({ META_VERSION: MODERN, META_CLIENT: own_name(), META_CAPABILITIES: {} })
}

fn own_name() -> serde_json::Value {
    json!({ "name": "fleetwright-bridge", "version": env!("CARGO_PKG_VERSION") })
}

async fn ask(child: &Child, method: &str, params: serde_json::Value) -> Result<Asked, NotAsked> {
    child.ask(Question { method, params: Some(raw(&params)), owner: 0, logs: Logs::Never }).await
}

async fn discover(child: &Child) -> Result<Asked, NotAsked> {
    ask(child, "server/discover", json!({ "_meta": own_meta() })).await
}

async fn initialize(child: &Child) -> Result<Asked, NotAsked> {
    let params = json!({ "protocolVersion": LEGACY_NEWEST, "capabilities": {}, "clientInfo": own_name() });
    ask(child, "initialize", params).await
}

/// Asks a process that was just started which era it is of.
async fn open(child: &Child, opening: Opening) -> Result<Opened> {
    const ENDED: &str = "the server ended during the MCP handshake";
    let mut discovering = match opening {
        Opening::Only(Era::Legacy) => return shake_hands(child, initialize(child).await.context(ENDED)?).await,
        Opening::Only(Era::Modern) | Opening::Both => match discover(child).await {
            Ok(asked) => asked,
            Err(_) if opening == Opening::Both => return Ok(Opened::Again(Opening::Only(Era::Legacy))),
            Err(ended) => return Err(ended).context(ENDED),
        },
    };
    let patience = if opening == Opening::Both { DISCOVER_TIMEOUT } else { HANDSHAKE_TIMEOUT };
    let discovered = tokio::select! {
        answer = &mut discovering.answer => Some(answer),
        () = sleep(patience) => None,
    };
    match discovered {
        Some(Ok(answer)) => match modern(&answer) {
            Some(info) => Ok(Opened::Is(Era::Modern, info)),
            None if opening == Opening::Both => shake_hands(child, initialize(child).await.context(ENDED)?).await,
            None => bail!("the MCP handshake failed: {}", of(&answer)),
        },
        // Some do not bear a question before the handshake.
        Some(Err(_)) if opening == Opening::Both => {
            tracing::info!(
                "the server ended when it was asked which era of the protocol it speaks; it is started anew"
            );
            Ok(Opened::Again(Opening::Only(Era::Legacy)))
        }
        Some(Err(_)) => bail!(ENDED),
        None => open_late(child, discovering).await,
    }
}

/// Tries the older handshake while the answer to the modern question may still come: the server may only be slow to start.
async fn open_late(child: &Child, mut discovering: Asked) -> Result<Opened> {
    const ENDED: &str = "the server ended during the MCP handshake";
    let mut shaking = initialize(child).await.context(ENDED)?;
    tokio::select! {
        biased;
        answer = &mut discovering.answer => match answer {
            // The handshake that was begun has made this process one of the older era.
            Ok(answer) if modern(&answer).is_some() => Ok(Opened::Again(Opening::Only(Era::Modern))),
            Ok(_) => shake_hands(child, shaking).await,
            Err(_) => bail!(ENDED),
        },
        answer = &mut shaking.answer => shaken(child, answer.ok().context(ENDED)?).await,
    }
}

async fn shake_hands(child: &Child, mut shaking: Asked) -> Result<Opened> {
    let answer = (&mut shaking.answer).await.ok().context("the server ended during the MCP handshake")?;
    shaken(child, answer).await
}

async fn shaken(child: &Child, answer: Answer) -> Result<Opened> {
    match answer {
        Ok(info) => {
            child.tell("notifications/initialized", None).await;
            Ok(Opened::Is(Era::Legacy, info))
        }
        Err(error) => bail!("the MCP handshake failed: {}", error.get()),
    }
}

/// What a server of the modern era has said of itself, if it is one that speaks the version that the bridge does.
fn modern(answer: &Answer) -> Option<Raw> {
    let info = answer.as_ref().ok()?;
    let versions: Vec<String> = serde_json::from_str(fields(Some(info))?.get("supportedVersions")?.get()).ok()?;
    versions.iter().any(|version| version == MODERN).then(|| info.clone())
}

fn of(answer: &Answer) -> &str {
    match answer {
        Ok(result) => result.get(),
        Err(error) => error.get(),
    }
}
