//! What is wrong with a server that speaks MCP, or does not: in the words of who runs it, with what a client would meet.

use fleetwright_deploy::limits::size;
use serde_json::Value;

/// Most of a server's own words that are shown, in characters.
const SAID_CHARACTERS_MAX: usize = 120;

/// Why one exchange, or a whole conversation, does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody answers there at all.
    Unreachable(String),
    /// It wants credentials; whether it was shown some.
    Credentials { shown: bool },
    /// It sends its clients elsewhere.
    Redirect { status: u16, to: String },
    /// It answers with a status that MCP has no meaning for, and in words that are no JSON-RPC.
    Status { status: u16, said: String },
    /// It answers with something else than JSON or events.
    Kind { kind: String, said: String },
    /// It says JSON, and is not.
    Garbage(String),
    /// It is JSON, and no answer of JSON-RPC.
    NoAnswer(String),
    /// It answers another request.
    OtherRequest { asked: u64, answered: String },
    /// Its events end, and the answer is not among them.
    Ended,
    /// It answers with an error of JSON-RPC.
    Refused { method: String, code: i64, message: String, status: u16 },
    /// It answers, and not as its era demands.
    Violation(String),
    /// It speaks no revision of the protocol that a client does.
    NoCommonVersion(String),
    /// It answers more than is taken from it.
    Over(String),
    /// It does not answer in the time that a part of a check has.
    Late { method: String, seconds: u64 },
}

impl Fault {
    /// What is wrong, after the URL, and what to do about it where that is known.
    pub(super) fn words(&self) -> String {
        const NO_MCP: &str =
            "its MCP endpoint may be at another path (`run.path`), and a server without MCP has `transport: none`";
        match self {
            Self::Unreachable(why) | Self::Over(why) => why.clone(),
            Self::Credentials { shown: false } => {
                "asks for credentials, and the check presents none: say them in its `headers`".to_owned()
            }
            Self::Credentials { shown: true } => {
                "refuses the credentials that the check presents, as it would a client's".to_owned()
            }
            Self::Redirect { status, to } => {
                format!(
                    "answers {status} and sends clients to {to}: set `run.path` to where its MCP endpoint is; clients take their credentials nowhere else"
                )
            }
            Self::Status { status: status @ (400 | 404 | 405 | 406 | 410 | 415 | 501), said } => {
                format!("answers {status}: {NO_MCP}{}", quoted(said))
            }
            Self::Status { status: 403, said } => {
                format!(
                    "answers 403: it refuses clients that come this way, by their address, name or origin{}",
                    quoted(said)
                )
            }
            Self::Status { status: 503, said } => format!("answers 503: it takes no further clients{}", quoted(said)),
            Self::Status { status, said } => format!("answers {status}, and not as MCP does{}", quoted(said)),
            Self::Kind { kind, said } => format!("answers with {kind} in place of JSON: {NO_MCP}{}", quoted(said)),
            Self::Garbage(said) => format!("answers with what is no JSON, though it says so{}", quoted(said)),
            Self::NoAnswer(why) => format!("answers with what is no answer of JSON-RPC: {why}: {NO_MCP}"),
            Self::OtherRequest { asked, answered } => {
                format!("answers request {asked} as {}: its client waits for ever", shortened(answered))
            }
            Self::Ended => "ends its events before the answer: its client gets none".to_owned(),
            Self::Refused { method, code, message, status } => {
                let http = if *status == 200 { String::new() } else { format!(" (HTTP {status})") };
                format!("refuses `{method}` with error {code}{http}{}", quoted(message))
            }
            Self::Violation(what) => what.clone(),
            Self::NoCommonVersion(theirs) => {
                format!("speaks only revisions of MCP that clients of today do not: {}", shortened(theirs))
            }
            Self::Late { method, seconds } => format!("does not answer `{method}` within {seconds} s"),
        }
    }

    /// Whether this is an answer of a server that is there, to a question of the other era: the handshake may go all the
    /// same. What is certain, whatever the era, is no matter of it.
    pub(super) fn may_be_the_era(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Credentials { .. } | Self::Redirect { .. } | Self::Over(_) => false,
            Self::Violation(_) | Self::NoCommonVersion(_) => false,
            Self::Status { .. }
            | Self::Kind { .. }
            | Self::Garbage(_)
            | Self::NoAnswer(_)
            | Self::OtherRequest { .. }
            | Self::Ended
            | Self::Refused { .. }
            | Self::Late { .. } => true,
        }
    }
}

/// Words of the server's own, at the end of ours.
fn quoted(said: &str) -> String {
    let said = shortened(said);
    if said.is_empty() { String::new() } else { format!("; it says “{said}”") }
}

/// The start of a text of the server's, as one line, without what looks like markup or a name of a program's inside.
pub(super) fn shortened(text: &str) -> String {
    let plain = plain(text);
    let mut words = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = words.char_indices().nth(SAID_CHARACTERS_MAX) {
        words.truncate(at);
        words.push('…');
    }
    words
}

/// A text without tags, and without control characters.
fn plain(text: &str) -> String {
    let (mut plain, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => {
                inside = false;
                plain.push(' ');
            }
            _ if inside => {}
            c => plain.push(if c.is_control() { ' ' } else { c }),
        }
    }
    plain
}

/// Why a request did not come through, in words for people: what the libraries say of it is about themselves.
pub(super) fn unreachable(url: &str, error: &reqwest::Error) -> Fault {
    let mut source = std::error::Error::source(error);
    let (mut system, mut said) = (None, Vec::new());
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<std::io::Error>()
            && error.raw_os_error().is_some()
        {
            system = Some(error.kind());
        }
        said.push(inner.to_string().to_ascii_lowercase());
        source = inner.source();
    }
    let says = |words: &[&str]| said.iter().any(|text| words.iter().any(|word| text.contains(word)));
    let tls = url.starts_with("https://");
    use std::io::ErrorKind;
    let words = match system {
        Some(ErrorKind::ConnectionRefused) => "accepts no connections: nothing listens there",
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
            "cannot be reached: there is no way to its address"
        }
        Some(ErrorKind::AddrNotAvailable) => "cannot be reached: this host has no such address",
        Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => "breaks the connection before it answers",
        Some(ErrorKind::TimedOut) => "does not answer: the connection timed out",
        _ if tls && says(&["certificate", "unknownissuer"]) => {
            "presents a TLS certificate that this host does not trust, as its clients would not"
        }
        _ if tls && says(&["corrupt", "invalidcontenttype", "tls", "handshake"]) => {
            "does not speak TLS, which its URL demands"
        }
        _ if says(&["dns", "lookup address", "name or service"]) => "has a name that leads nowhere",
        _ if says(&["invalid http version", "invalid http"]) && !tls => {
            "does not speak HTTP there; where it speaks TLS, give the check the `url` that begins with https"
        }
        _ if says(&["eof", "closed before message completed", "incomplete", "connection closed", "unexpected end"]) => {
            "breaks the connection before it answers"
        }
        _ if says(&["message head is too large", "invalid header", "invalid status", "parse"]) => {
            "answers with what is no HTTP"
        }
        _ if error.is_builder() => "is no URL that can be asked",
        _ if error.is_timeout() => "does not answer in time",
        _ => "breaks off in the midst of its answer",
    };
    Fault::Unreachable(words.to_owned())
}

/// That an answer has more bytes than are taken.
pub(super) fn too_large(limit: usize) -> Fault {
    Fault::Over(format!("answers with more than {}", size(limit)))
}

/// A short name of what JSON holds.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing (null)",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "fields",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_shown_without_markup_and_short() {
        assert_eq!(shortened("<html><h1>Not\n found</h1>"), "Not found");
        assert_eq!(shortened("a \u{1b}[31mb"), "a [31mb");
        assert_eq!(shortened(&"x".repeat(500)).chars().count(), SAID_CHARACTERS_MAX + 1);
        assert_eq!(shortened("<unclosed"), "");
    }
}
