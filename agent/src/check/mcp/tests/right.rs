//! Servers that clients can use, and what is made of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Heard, json as json_response, response};
use super::*;

/// A server of the modern era alone.
fn new(heard: &Heard, tools: &[Value]) -> String {
    match heard.method() {
        "server/discover" => heard.result(modern(json!({ "supportedVersions": ["2026-07-28"], "capabilities": {},
            "_meta": { "io.modelcontextprotocol/serverInfo": { "name": "new", "version": "2" } } }))),
        "tools/list" => heard.result(modern(json!({ "tools": tools }))),
        _ => heard.error(404, -32601),
    }
}

#[tokio::test]
async fn a_server_of_the_modern_era_is_asked_as_its_clients_ask() {
    let fake = Fake::new(|heard| new(heard, &[tool("b"), tool("a")])).await;
    let found = found(&fake.url).await;
    assert!(matches!(found.outcome, CheckOutcome::Passing { .. }), "{}", found.outcome.message());
    let info = found.mcp.expect("what it said");
    assert_eq!((info.name.as_str(), info.version.as_str(), info.protocol.as_str()), ("new", "2", "2026-07-28"));
    assert_eq!(info.tools, ["a", "b"]);
    assert_eq!(fake.methods(), ["server/discover", "tools/list", "initialize"], "it is asked for the older era, too");
    for heard in &fake.heard()[..2] {
        assert_eq!(heard.header("mcp-protocol-version"), "2026-07-28");
        assert_eq!(heard.header("mcp-method"), heard.method());
        assert_eq!(heard.header("mcp-session-id"), "");
        let meta = &heard.body["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert!(meta["io.modelcontextprotocol/clientInfo"]["name"].is_string());
        assert!(meta["io.modelcontextprotocol/clientCapabilities"].is_object());
    }
}

#[tokio::test]
async fn a_server_of_the_older_era_gets_a_handshake_its_session_and_a_farewell() {
    let fake = Fake::new(|heard| {
        let cursor = heard.body["params"]["cursor"].as_str();
        match heard.method() {
            "initialize" => {
                let result = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": { "name": "old", "version": "1" } });
                json_response(200, "mcp-session-id: s-1\r\n", &json!({ "jsonrpc": "2.0", "id": heard.body["id"], "result": result }))
            }
            "tools/list" if cursor.is_none() => heard.result(json!({ "tools": [tool("a")], "nextCursor": "next" })),
            "tools/list" => {
                let answer = json!({ "jsonrpc": "2.0", "id": heard.body["id"], "result": { "tools": [tool("b")] } });
                let events = format!(": hello\n\nid: 1\ndata:\n\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}}\n\ndata: {answer}\n\n");
                response(200, "content-type: text/event-stream\r\n", &events)
            }
            _ => shaking(heard, &[]),
        }
    })
    .await;
    let client = client();
    let check = client.check(asked(&fake.url), HeaderMap::new()).await;
    assert!(check.outcome.message().ends_with("lists 2 tools"), "{}", check.outcome.message());
    assert_eq!(check.mcp.expect("what it said").protocol, "2025-06-18");
    let first = ["server/discover", "initialize", "notifications/initialized", "tools/list", "tools/list", "DELETE"];
    assert_eq!(fake.methods(), first);
    for heard in &fake.heard()[2..] {
        assert_eq!((heard.header("mcp-session-id"), heard.header("mcp-protocol-version")), ("s-1", "2025-06-18"));
        assert!(heard.header("mcp-method").is_empty() && heard.body["params"].get("_meta").is_none());
    }
    client.check(asked(&fake.url), HeaderMap::new()).await;
    assert_eq!(fake.methods()[first.len()..], first[1..], "its era is remembered");
}

#[tokio::test]
async fn what_a_bridge_translates_is_told_and_both_of_its_eras_are_looked_at() {
    let meta = json!({ "dev.fleetwright/bridge": { "protocol": "2025-11-25", "eras": ["legacy", "modern"], "sessions": "shared" } });
    let fake = Fake::new(move |heard| match heard.method() {
        "server/discover" => heard.result(modern(
            json!({ "supportedVersions": ["2026-07-28", "2025-11-25"], "capabilities": {}, "_meta": meta }),
        )),
        "tools/list" if heard.header("mcp-protocol-version") == "2026-07-28" => {
            heard.result(modern(json!({ "tools": [tool("a")] })))
        }
        _ => shaking(heard, &[tool("a")]),
    })
    .await;
    let client = client();
    let check = client.check(asked(&fake.url), HeaderMap::new()).await;
    let info = check.mcp.expect("what it said");
    assert_eq!(info.spoken(), "2025-11-25 (bridged)");
    assert_eq!(info.bridge.map(|bridge| bridge.sessions).as_deref(), Some("shared"));
    let first = ["server/discover", "tools/list", "initialize", "notifications/initialized", "tools/list"];
    assert_eq!(fake.methods(), first);
    client.check(asked(&fake.url), HeaderMap::new()).await;
    assert_eq!(fake.methods()[first.len()..], first[..2], "the older era is not looked at every time");
}

#[tokio::test]
async fn a_server_that_answers_one_era_only_in_name_is_unhealthy() {
    let fake = Fake::new(|heard| match (heard.method(), heard.header("mcp-protocol-version")) {
        ("tools/list", "2025-11-25") => heard.error(200, -32603),
        ("initialize" | "notifications/initialized", _) => shaking(heard, &[]),
        _ => new(heard, &[tool("a")]),
    })
    .await;
    let outcome = found(&fake.url).await.outcome;
    assert!(matches!(outcome, CheckOutcome::Failing { .. }));
    assert!(outcome.message().contains("to clients of the older era it refuses `tools/list`"), "{}", outcome.message());
}

#[tokio::test]
async fn tools_that_no_client_can_use_are_counted_with_the_reason() {
    let tools = [
        tool("a"),
        json!({ "name": "b" }),
        tool("c"),
        tool("a"),
        json!({ "name": "d", "inputSchema": { "type": "array" } }),
    ];
    let fake = Fake::new(move |heard| shaking(heard, &tools)).await;
    let found = found(&fake.url).await;
    assert!(matches!(found.outcome, CheckOutcome::Warning { .. }), "{}", found.outcome.message());
    assert!(found.outcome.message().contains("b: it has no `inputSchema`"), "{}", found.outcome.message());
    let info = found.mcp.expect("what it said");
    assert_eq!(info.counted(), "2 of 5; 3 left out: b, a, d");
    assert_eq!(info.tools, ["a", "c"]);
}

#[tokio::test]
async fn a_call_is_made_at_its_own_interval_and_again_at_once_until_it_is_right() {
    let state = Arc::new(AtomicUsize::new(0));
    let now = state.clone();
    let fake = Fake::new(move |heard| match heard.method() {
        "tools/call" => {
            let state = if now.load(Ordering::Relaxed) == 0 { "no database" } else { "fine" };
            heard.result(json!({ "content": [{ "type": "text", "text": json!({ "state": state }).to_string() }] }))
        }
        _ => shaking(heard, &[tool("count")]),
    })
    .await;
    let (client, hourly) = (client(), call("fine", Length::from_secs(3_600)));
    let check = || client.check(Asked { call: Some(&hourly), ..asked(&fake.url) }, HeaderMap::new());
    let calls = || fake.methods().iter().filter(|method| *method == "tools/call").count();
    for made in 1..=2 {
        let outcome = check().await.outcome;
        assert!(matches!(outcome, CheckOutcome::Failing { .. }), "{}", outcome.message());
        assert!(
            outcome.message().contains("lists 1 tools, but $.state in the answer of tool `count` is \"no database\""),
            "{}",
            outcome.message()
        );
        assert_eq!(calls(), made);
    }
    state.store(1, Ordering::Relaxed);
    for _ in 0..3 {
        let outcome = check().await.outcome;
        assert!(outcome.message().contains("`count` answers as it should"), "{}", outcome.message());
        assert_eq!(calls(), 3, "what is right is not asked again before its time");
    }
    let always = call("fine", Length::from_ms(1));
    tokio::time::sleep(Duration::from_millis(2)).await;
    client.check(Asked { call: Some(&always), ..asked(&fake.url) }, HeaderMap::new()).await;
    assert_eq!(calls(), 4);
    let unknown = McpCall { call: ToolCall { tool: "sum".to_owned(), ..hourly.call.clone() }, ..hourly.clone() };
    let outcome =
        client.check(Asked { call: Some(&unknown), check: "sum", ..asked(&fake.url) }, HeaderMap::new()).await.outcome;
    assert!(
        outcome.message().ends_with("/mcp lists 1 tools, but it has no tool `sum` to be called; it has count"),
        "{}",
        outcome.message()
    );
}

#[tokio::test]
async fn a_modern_call_repeats_in_headers_what_is_for_those_on_the_way() {
    let fake = Fake::new(|heard| match heard.method() {
        "tools/call" => {
            heard.result(json!({ "resultType": "complete", "content": [], "structuredContent": { "state": "fine" } }))
        }
        _ => new(heard, &[tool("count")]),
    })
    .await;
    let wanted = call("fine", Length::from_secs(60));
    let outcome = client().check(Asked { call: Some(&wanted), ..asked(&fake.url) }, HeaderMap::new()).await.outcome;
    assert!(matches!(outcome, CheckOutcome::Passing { .. }), "{}", outcome.message());
    let heard = fake.heard().into_iter().find(|heard| heard.method() == "tools/call").expect("a call");
    assert_eq!((heard.header("mcp-method"), heard.header("mcp-name")), ("tools/call", "count"));
}

#[tokio::test]
async fn who_asks_for_credentials_is_up_but_a_bridge_that_refuses_its_own_check_is_closed() {
    let fake = Fake::new(|_| response(401, "www-authenticate: Bearer\r\n", "")).await;
    assert!(matches!(found(&fake.url).await.outcome, CheckOutcome::NeedsAuthentication { .. }));
    let bridge = Asked { bridged: true, ..asked(&fake.url) };
    let outcome = client().check(bridge, HeaderMap::new()).await.outcome;
    assert!(
        matches!(outcome, CheckOutcome::Failing { .. }) && outcome.message().contains("presents none"),
        "{}",
        outcome.message()
    );
    let shown = HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, "Bearer x".parse().expect("a value"))]);
    let outcome = client().check(asked(&fake.url), shown).await.outcome;
    assert!(
        matches!(outcome, CheckOutcome::Failing { .. }) && outcome.message().contains("refuses the credentials"),
        "{}",
        outcome.message()
    );
}

#[tokio::test]
async fn credentials_go_to_the_server_of_the_check_and_nowhere_else() {
    let other = Fake::new(|heard| shaking(heard, &[])).await;
    let to = other.url.clone();
    let fake = Fake::new(move |_| response(307, &format!("location: {to}?token=t\r\n"), "")).await;
    let shown = HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, "Bearer secret".parse().expect("a value"))]);
    let outcome = client().check(asked(&fake.url), shown).await.outcome;
    assert!(outcome.message().contains(&format!("sends clients to {}:", other.url)), "{}", outcome.message());
    assert!(!outcome.message().contains("secret") && !outcome.message().contains("token"), "{}", outcome.message());
    assert_eq!(fake.heard()[0].header("authorization"), "Bearer secret");
    assert!(other.heard().is_empty());
}
