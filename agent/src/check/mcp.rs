//! Speaking to an MCP server as a client does: it is healthy when clients of its eras can list its tools, and when the tool
//! that its check calls answers as it should, whatever else it answers.

mod call;
mod conversation;
mod demands;
mod events;
mod exchange;
mod fault;
#[cfg(test)]
mod tests;
mod tools;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fleetwright_deploy::health::{CheckOutcome, McpCall, McpInfo};
use fleetwright_deploy::limits::{LEFT_OUT_MAX, NAME_BYTES_MAX, size};
use fleetwright_deploy::release::ToolCall;
use reqwest::header::HeaderMap;
use tokio::time::Instant;

use self::conversation::{Conversation, Era};
use self::exchange::Exchange;
use self::fault::Fault;
use self::tools::Listed;
use super::Found;

/// How often the older era is looked at beside the modern one, where a server speaks both.
const OTHER_ERA_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Speaks both eras of the protocol, and remembers which one a server answered to.
pub(crate) struct McpClient {
    http: reqwest::Client,
    memory: Mutex<Memory>,
}

/// What is known from one run to the next.
#[derive(Default)]
struct Memory {
    legacy: bool,
    /// When the older era was found right beside the modern one.
    other_era: Option<Instant>,
    /// When the call of each check was answered as it should be.
    called: BTreeMap<String, Instant>,
}

/// What is asked of a server.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) url: &'a str,
    pub(crate) expected_tools: &'a [String],
    pub(crate) call: Option<&'a McpCall>,
    /// The name of the check.
    pub(crate) check: &'a str,
    /// Whether a bridge answers there, which clients have no other way around.
    pub(crate) bridged: bool,
}

impl McpClient {
    pub(crate) fn new(http: reqwest::Client) -> Self {
        Self { http, memory: Mutex::default() }
    }

    /// Goes the way of a client.
    pub(crate) async fn check(&self, asked: Asked<'_>, headers: HeaderMap) -> Found {
        let exchange = Exchange::new(&self.http, asked.url, headers);
        let mut conversation = match self.begin(&exchange).await {
            Ok(conversation) => conversation,
            Err(fault) => return refused(&asked, &fault),
        };
        let found = self.looked_at(&mut conversation, &asked).await;
        let era = conversation.era;
        conversation.end().await;
        let (info, message) = match found {
            Ok(found) => found,
            Err(Stop::Fault(fault)) => return refused(&asked, &fault),
            Err(Stop::Found(message)) => return failing(asked.url, &message),
        };
        if era == Era::Modern
            && let Err(fault) = self.other_era(&exchange).await
        {
            let message = format!("to clients of the older era it {}", fault.words());
            return failing(asked.url, &format!("serves clients of {}; {message}", conversation::MODERN));
        }
        let message = format!("{} {message}", asked.url);
        let outcome = match info.left_out.is_empty() {
            true => CheckOutcome::Passing { message },
            false => CheckOutcome::Warning { message },
        };
        Found { outcome, mcp: Some(info), performance: Vec::new() }
    }

    /// Lists the tools of a server, and calls the one that the check calls, if it is time.
    async fn looked_at(
        &self,
        conversation: &mut Conversation<'_>,
        asked: &Asked<'_>,
    ) -> Result<(McpInfo, String), Stop> {
        let listed = tools::list(conversation).await?;
        let info = info(conversation, &listed);
        let own = [("name", &info.name), ("version", &info.version), ("protocol version", &info.protocol)];
        if let Some((what, text)) = own.into_iter().find(|(_, text)| text.len() > NAME_BYTES_MAX) {
            let (bytes, limit) = (size(text.len()), size(NAME_BYTES_MAX));
            return Err(Stop::Found(format!("says a {what} of {bytes} of itself, the limit is {limit}")));
        }
        let (usable, all) = (listed.usable.len(), listed.usable.len() + listed.left_out.len());
        if usable == 0 && all > 0 {
            return Err(Stop::Found(format!("lists {all} tools, and clients can use none: {}", listed.left_out[0])));
        }
        let missing: Vec<&str> =
            asked.expected_tools.iter().filter(|wanted| !info.tools.contains(wanted)).map(String::as_str).collect();
        if !missing.is_empty() {
            let (missing, tools) = (missing.join(", "), info.tools.join(", "));
            return Err(Stop::Found(format!("lacks the expected tools {missing}; it has {tools}")));
        }
        if let Some(wanted) = asked.call.filter(|wanted| self.is_due(asked.check, wanted)) {
            let called = call::call(conversation, &listed, &wanted.call).await;
            called.map_err(|why| Stop::Found(format!("lists {all} tools, but {why}")))?;
            self.memory().called.insert(asked.check.to_owned(), Instant::now());
        }
        let called =
            asked.call.map_or_else(String::new, |wanted| format!(", and `{}` answers as it should", wanted.call.tool));
        let message = match listed.left_out.as_slice() {
            [] => format!("lists {all} tools{called}"),
            left_out => {
                format!("lists {all} tools, {} of which clients cannot use: {}", left_out.len(), left_out.join("; "))
            }
        };
        Ok((info, message))
    }

    /// Whether a check's call is to be made: it has never been right, or not for as long as it says. One that has failed is
    /// made again at once.
    fn is_due(&self, check: &str, call: &McpCall) -> bool {
        // What fails is not remembered, so it is due until it is right.
        let right = self.memory().called.remove(check);
        let due = right.is_none_or(|at| at.elapsed() >= Duration::from(call.interval));
        if let Some(at) = right.filter(|_| !due) {
            self.memory().called.insert(check.to_owned(), at);
        }
        due
    }

    /// Looks whether a server of the modern era has an older one as well, and whether that is right, too.
    async fn other_era(&self, exchange: &Exchange<'_>) -> Result<(), Fault> {
        if self.memory().other_era.is_some_and(|at| at.elapsed() < OTHER_ERA_INTERVAL) {
            return Ok(());
        }
        match Conversation::shake_hands(exchange).await {
            Ok(mut conversation) => {
                let listed = tools::list(&mut conversation).await;
                conversation.end().await;
                listed?;
            }
            // Whoever refuses a handshake says that it speaks the modern era alone.
            Err(
                Fault::Refused { .. } | Fault::Status { status: 400 | 404 | 405 | 501, .. } | Fault::NoCommonVersion(_),
            ) => {}
            Err(fault) => return Err(fault),
        }
        self.memory().other_era = Some(Instant::now());
        Ok(())
    }

    /// Speaks to a server as a client would: handshake, tools, and these calls. A server that asks for credentials
    /// cannot be tested, and has not failed.
    pub(crate) async fn test(&self, url: &str, headers: HeaderMap, calls: &[ToolCall]) -> Result<(), String> {
        let exchange = Exchange::new(&self.http, url, headers);
        let told = |fault: Fault| format!("{url} {}", fault.words());
        let mut conversation = match self.begin(&exchange).await {
            Ok(conversation) => conversation,
            Err(Fault::Credentials { shown: false }) => return Ok(()),
            Err(fault) => return Err(told(fault)),
        };
        let mut outcome = Ok(());
        match tools::list(&mut conversation).await {
            Ok(listed) => {
                for call in calls {
                    outcome = call::call(&mut conversation, &listed, call).await;
                    if outcome.is_err() {
                        break;
                    }
                }
            }
            Err(fault) => outcome = Err(told(fault)),
        }
        conversation.end().await;
        outcome
    }

    /// The modern era first, unless the server turned out to speak the older one only.
    async fn begin<'a>(&self, exchange: &'a Exchange<'a>) -> Result<Conversation<'a>, Fault> {
        let known_legacy = self.memory().legacy;
        match Conversation::begin(exchange, known_legacy).await {
            Ok(conversation) => {
                self.memory().legacy = conversation.era == Era::Legacy;
                Ok(conversation)
            }
            Err(fault) => {
                // Another server may be there the next time.
                self.memory().legacy = false;
                Err(fault)
            }
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a look at a server ends early.
enum Stop {
    Fault(Fault),
    /// It answers as it should, and with what it should not.
    Found(String),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn info(conversation: &Conversation<'_>, listed: &Listed) -> McpInfo {
    let said = &conversation.said;
    McpInfo {
        name: said.name.clone(),
        version: said.version.clone(),
        protocol: conversation.version.clone(),
        tools: listed.names(),
        bridge: said.bridge.clone(),
        left_out: listed.left_out.iter().take(LEFT_OUT_MAX).cloned().collect(),
        left_out_count: u32::try_from(listed.left_out.len()).unwrap_or(u32::MAX),
    }
}

/// A server that asks for credentials is up; a bridge that does so of its own check is closed to everybody.
fn refused(asked: &Asked<'_>, fault: &Fault) -> Found {
    if *fault == (Fault::Credentials { shown: false }) && !asked.bridged {
        let message = format!("{} asks for credentials", asked.url);
        return Found { outcome: CheckOutcome::NeedsAuthentication { message }, mcp: None, performance: Vec::new() };
    }
    failing(asked.url, &fault.words())
}

fn failing(url: &str, message: &str) -> Found {
    super::plain(Err(format!("{url} {message}")))
}
