//! The two eras of the protocol, and what the words of one are in the other. The older one begins with a handshake and
//! has sessions (2024-11-05 to 2025-11-25); in the modern one (2026-07-28) each request says by itself all there is to know.

use serde_json::json;
use serde_json::value::RawValue;

use super::message::{self, Answer, Fields, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, Raw, fields, raw, text};

/// The versions of the older era, the newest last.
pub(super) const LEGACY_VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
pub(super) const LEGACY_NEWEST: &str = LEGACY_VERSIONS[LEGACY_VERSIONS.len() - 1];
/// The version of the modern era.
pub(super) const MODERN: &str = "2026-07-28";

/// What fields of `_meta` that belong to the protocol begin with.
pub(super) const META_PREFIX: &str = "io.modelcontextprotocol/";
pub(super) const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub(super) const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
pub(super) const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub(super) const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
pub(super) const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";
/// Where the bridge says what it is.
const META_BRIDGE: &str = "dev.fleetwright/bridge";

pub(super) const HEADER_MISMATCH: i64 = -32020;
pub(super) const MISSING_CAPABILITY: i64 = -32021;
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;
/// "Resource not found" of the older era; the modern one says that the parameters are invalid.
const RESOURCE_NOT_FOUND: i64 = -32002;
/// "URL elicitation required", which 2025-11-25 alone has.
const URL_ELICITATION_REQUIRED: i64 = -32042;

/// Results that say for how long they may be kept (2026-07-28, server/utilities/caching).
const CACHEABLE: [&str; 6] =
    ["server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"];
/// Methods of the older era that the modern one has no more.
const REMOVED: [&str; 5] = ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];

/// Whether a method is of the older era alone.
pub(super) fn is_removed(method: &str) -> bool {
    REMOVED.contains(&method) || is_task(method)
}

/// Whether a method is of tasks. Those of a shared server cannot be told apart by whose they are, and the two eras mean
/// different things by the same words.
pub(super) fn is_task(method: &str) -> bool {
    method.starts_with("tasks/")
}

/// How important a log message is, least first (RFC 5424, section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Level(usize);

const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

impl Level {
    pub(super) const ALL: Self = Self(0);
    pub(super) const INFO: Self = Self(1);

    pub(super) fn parse(name: &str) -> Option<Self> {
        LEVELS.iter().position(|level| *level == name).map(Self)
    }

    pub(super) fn name(self) -> &'static str {
        LEVELS[self.0]
    }
}

/// The version that a client of the older era is answered with: its own where both know it, else the newest of the
/// server's (2025-11-25, basic/lifecycle, "Version negotiation").
pub(super) fn negotiated(asked: Option<&str>, server: &str) -> String {
    let known = asked.filter(|asked| LEGACY_VERSIONS.contains(asked) && *asked <= server);
    known.unwrap_or(server).to_owned()
}

/// How the bridge describes itself in what a client learns first.
#[derive(Clone, Debug)]
pub(super) struct Described {
    /// The newest version that the server itself speaks.
    pub(super) protocol: String,
    /// Whether clients of the modern era are served.
    pub(super) modern: bool,
    pub(super) sessions: &'static str,
}

impl Described {
    fn stamp(&self, result: &mut Fields) {
        let mut meta = fields(result.get("_meta").map(|meta| &**meta)).unwrap_or_default();
        let eras: &[&str] = if self.modern { &["legacy", "modern"] } else { &["legacy"] };
        meta.insert(
            META_BRIDGE.to_owned(),
            raw(&json!({ "protocol": self.protocol, "eras": eras, "sessions": self.sessions })),
        );
        result.insert("_meta".to_owned(), raw(&meta));
    }

    /// The server's own answer to `initialize` or `server/discover`, with this.
    pub(super) fn stamped(&self, result: &RawValue) -> Raw {
        let Some(mut result) = fields(Some(result)) else { return result.to_owned() };
        self.stamp(&mut result);
        raw(&result)
    }

    /// The answer to `initialize`, made of what the server said in the same era.
    pub(super) fn initialized(&self, info: &Fields, asked: Option<&str>, shared: bool) -> Raw {
        let mut result = info.clone();
        let own = text(info, "protocolVersion").unwrap_or_else(|| LEGACY_NEWEST.to_owned());
        result.insert("protocolVersion".to_owned(), raw(&negotiated(asked, &own)));
        if shared {
            without_tasks(&mut result);
        }
        self.stamp(&mut result);
        raw(&result)
    }

    /// The answer to `initialize`, made of what a server of the modern era said.
    pub(super) fn initialized_of_modern(&self, info: &Fields, asked: Option<&str>) -> Raw {
        let mut result = Fields::new();
        result.insert("protocolVersion".to_owned(), raw(&negotiated(asked, LEGACY_NEWEST)));
        result.insert("serverInfo".to_owned(), server_info(info));
        let mut capabilities = fields(info.get("capabilities").map(|part| &**part)).unwrap_or_default();
        // The two eras mean different things by these.
        capabilities.remove("extensions");
        result.insert("capabilities".to_owned(), raw(&capabilities));
        if let Some(instructions) = info.get("instructions") {
            result.insert("instructions".to_owned(), instructions.clone());
        }
        self.stamp(&mut result);
        raw(&result)
    }

    /// The answer to `server/discover`, made of what a server of the older era said.
    pub(super) fn discovered_of_legacy(&self, info: &Fields, versions: &[&str]) -> Raw {
        let mut result = Fields::new();
        result.insert("supportedVersions".to_owned(), raw(versions));
        let mut capabilities = info.clone();
        without_tasks(&mut capabilities);
        result
            .insert("capabilities".to_owned(), capabilities.remove("capabilities").unwrap_or_else(|| raw(&json!({}))));
        if let Some(instructions) = info.get("instructions") {
            result.insert("instructions".to_owned(), instructions.clone());
        }
        self.stamp(&mut result);
        modern_result("server/discover", &raw(&result), info)
    }
}

/// What the server says its name and version are, in either era.
pub(super) fn server_info(info: &Fields) -> Raw {
    let meta = fields(info.get("_meta").map(|meta| &**meta)).unwrap_or_default();
    let own = meta.get(META_SERVER).or_else(|| info.get("serverInfo"));
    own.cloned().unwrap_or_else(|| raw(&json!({ "name": "", "version": "" })))
}

fn without_tasks(result: &mut Fields) {
    if let Some(mut capabilities) = fields(result.get("capabilities").map(|part| &**part)) {
        capabilities.remove("tasks");
        result.insert("capabilities".to_owned(), raw(&capabilities));
    }
}

/// A result of a server of the older era, as the modern one wants it: nothing may be kept, since the server has not said so.
pub(super) fn modern_result(method: &str, result: &RawValue, info: &Fields) -> Raw {
    let Some(mut result) = fields(Some(result)) else { return result.to_owned() };
    let mut set = |name: &str, value: Raw| {
        result.entry(name.to_owned()).or_insert(value);
    };
    set("resultType", raw("complete"));
    if CACHEABLE.contains(&method) {
        set("ttlMs", raw(&0));
        set("cacheScope", raw("private"));
    }
    let mut meta = fields(result.get("_meta").map(|meta| &**meta)).unwrap_or_default();
    meta.entry(META_SERVER.to_owned()).or_insert_with(|| server_info(info));
    result.insert("_meta".to_owned(), raw(&meta));
    raw(&result)
}

/// An error of a server of the older era, as the modern one wants it.
pub(super) fn modern_error(error: &RawValue) -> Raw {
    let other = match message::code(error) {
        Some(RESOURCE_NOT_FOUND) => INVALID_PARAMS,
        Some(URL_ELICITATION_REQUIRED | UNSUPPORTED_VERSION | HEADER_MISMATCH | MISSING_CAPABILITY) => INTERNAL_ERROR,
        _ => return error.to_owned(),
    };
    let Some(mut error) = fields(Some(error)) else { return error.to_owned() };
    error.insert("code".to_owned(), raw(&other));
    raw(&error)
}

/// An answer of a server of the older era, for a client of the modern one.
pub(super) fn modern_answer(method: &str, answer: Answer, info: &Fields) -> Answer {
    match answer {
        Ok(result) => Ok(modern_result(method, &result, info)),
        Err(error) => Err(modern_error(&error)),
    }
}

/// A result of a server of the modern era, for a client of the older one.
pub(super) fn legacy_result(result: &RawValue) -> Raw {
    let Some(mut result) = fields(Some(result)) else { return result.to_owned() };
    for name in ["resultType", "ttlMs", "cacheScope"] {
        result.remove(name);
    }
    // Clients of the older era take objects alone (SEP-2106).
    if result.get("structuredContent").is_some_and(|content| !content.get().starts_with('{')) {
        result.remove("structuredContent");
    }
    raw(&result)
}

/// Parameters without what their `_meta` says in the modern era.
pub(super) fn without_modern_meta(params: Option<&RawValue>) -> Option<Raw> {
    let Some(mut all) = fields(params) else { return params.map(ToOwned::to_owned) };
    let Some(mut meta) = fields(all.get("_meta").map(|meta| &**meta)) else { return Some(raw(&all)) };
    meta.retain(|key, _| !key.starts_with(META_PREFIX));
    if meta.is_empty() {
        all.remove("_meta");
    } else {
        all.insert("_meta".to_owned(), raw(&meta));
    }
    Some(raw(&all))
}

/// That a version is not spoken, with those that are.
pub(super) fn unsupported(requested: &str, supported: &[&str]) -> Raw {
    raw(&json!({
        "code": UNSUPPORTED_VERSION,
        "message": "Unsupported protocol version",
        "data": { "requested": requested, "supported": supported },
    }))
}

pub(super) fn no_such_method(method: &str) -> Raw {
    message::failure(METHOD_NOT_FOUND, &format!("there is no method `{method}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(raw: &RawValue) -> serde_json::Value {
        serde_json::from_str(raw.get()).expect("JSON")
    }

    fn info() -> Fields {
        let said = json!({
            "protocolVersion": "2025-06-18", "serverInfo": { "name": "s", "version": "1" }, "instructions": "be kind",
            "capabilities": { "tools": { "listChanged": true }, "tasks": { "list": {} } },
        });
        fields(Some(&raw(&said))).expect("an object")
    }

    const DESCRIBED: fn() -> Described =
        || Described { protocol: "2025-06-18".to_owned(), modern: true, sessions: "shared" };

    #[test]
    fn a_result_gets_what_the_modern_era_demands_and_keeps_what_it_says() {
        let listed = value(&modern_result("tools/list", &raw(&json!({ "tools": [], "ttlMs": 5 })), &info()));
        assert_eq!(listed["resultType"], "complete");
        assert_eq!((&listed["ttlMs"], &listed["cacheScope"]), (&json!(5), &json!("private")));
        assert_eq!(listed["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "s");
        let called = value(&modern_result("tools/call", &raw(&json!({ "content": [] })), &info()));
        assert!(called.get("ttlMs").is_none() && called["resultType"] == "complete", "{called}");
        let back = value(&legacy_result(&raw(&listed)));
        assert!(
            back.get("resultType").is_none() && back.get("ttlMs").is_none() && back["tools"] == json!([]),
            "{back}"
        );
    }

    #[test]
    fn errors_of_one_era_are_those_of_the_other() {
        let of =
            |code: i64| value(&modern_error(&raw(&json!({ "code": code, "message": "m", "data": 1 }))))["code"].clone();
        assert_eq!(
            (of(-32002), of(-32042), of(-32601), of(7)),
            (json!(-32602), json!(-32603), json!(-32601), json!(7))
        );
    }

    #[test]
    fn a_client_is_answered_with_its_own_version_where_the_server_knows_it() {
        for (asked, server, wanted) in [
            (Some("2025-03-26"), "2025-06-18", "2025-03-26"),
            (Some("2025-11-25"), "2025-06-18", "2025-06-18"),
            (Some("2026-07-28"), "2025-11-25", "2025-11-25"),
            (Some("1999-01-01"), "2025-11-25", "2025-11-25"),
            (None, "2025-11-25", "2025-11-25"),
        ] {
            assert_eq!(negotiated(asked, server), wanted, "{asked:?} {server}");
        }
    }

    #[test]
    fn what_a_client_learns_first_is_right_in_each_era() {
        let first = value(&DESCRIBED().initialized(&info(), Some("2025-03-26"), true));
        assert_eq!(first["protocolVersion"], "2025-03-26");
        assert_eq!(first["capabilities"], json!({ "tools": { "listChanged": true } }), "tasks of all are nobody's");
        assert_eq!(first["_meta"]["dev.fleetwright/bridge"]["protocol"], "2025-06-18");
        let modern = value(&DESCRIBED().discovered_of_legacy(&info(), &[MODERN]));
        assert_eq!(modern["supportedVersions"], json!([MODERN]));
        assert_eq!((&modern["ttlMs"], &modern["resultType"]), (&json!(0), &json!("complete")));
        assert_eq!(modern["instructions"], "be kind");
        let discovered = fields(Some(&raw(&modern))).expect("an object");
        let back = value(&DESCRIBED().initialized_of_modern(&discovered, None));
        assert_eq!(back["serverInfo"], json!({ "name": "s", "version": "1" }));
        assert_eq!(back["protocolVersion"], LEGACY_NEWEST);
    }

    #[test]
    fn parameters_lose_what_the_modern_era_says_in_them_alone() {
        let params = raw(&json!({ "x": 1, "_meta": { META_VERSION: MODERN, "mine": 2, "progressToken": 3 } }));
        let left = value(&without_modern_meta(Some(&params)).expect("parameters"));
        assert_eq!(left, json!({ "x": 1, "_meta": { "mine": 2, "progressToken": 3 } }));
        let params = raw(&json!({ "_meta": { META_VERSION: MODERN } }));
        assert_eq!(without_modern_meta(Some(&params)).expect("parameters").get(), "{}");
        assert!(without_modern_meta(None).is_none());
    }
}
