//! Servers that no client can use: each kind is told in words for people.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::fake::{Heard, json as json_response, response};
use super::*;

/// Whether a text is for people: no name of a program's inside, no markup, one line.
fn is_for_people(text: &str) -> bool {
    let inside = ["::", "<", "Error {", "Some(", "None", "Err(", "rmcp", "reqwest", "hyper", "Transport"];
    !inside.iter().any(|word| text.contains(word)) && !text.contains(char::is_control)
}

async fn fails(kind: &str, url: &str, words: &str) {
    let outcome = found(url).await.outcome;
    let told = outcome.message();
    assert!(matches!(outcome, CheckOutcome::Failing { .. }), "{kind}: {told}");
    assert!(told.contains(words), "{kind}: {told}");
    assert!(is_for_people(told) && told.starts_with(url), "{kind}: {told}");
    let tested = client().test(url, HeaderMap::new(), &[]).await.expect_err(kind);
    assert!(is_for_people(&tested) && tested.contains(words), "{kind}: {tested}");
}

fn with_head(status: u16, kind: &str, body: &str) -> String {
    response(status, &format!("content-type: {kind}\r\n"), body)
}

#[tokio::test]
async fn whatever_a_server_answers_instead_of_mcp_is_told_in_words_for_people() {
    const PAGE: &str =
        "<!DOCTYPE html><html><head><title>My shop</title></head><body class=\"a::b\">Hello</body></html>";
    type Answer = fn(&Heard) -> String;
    let kinds: [(&str, Answer, &str); 22] = [
        ("a web page", |_| with_head(200, "text/html; charset=utf-8", PAGE), "`transport: none`"),
        (
            "not found",
            |_| with_head(404, "text/html", PAGE),
            "answers 404: its MCP endpoint may be at another path (`run.path`)",
        ),
        ("not allowed", |_| response(405, "allow: GET\r\n", ""), "`transport: none`"),
        (
            "its own fault",
            |_| with_head(500, "text/plain", "Internal Server Error"),
            "answers 500, and not as MCP does",
        ),
        ("as JSON", |_| json_response(500, "", &json!({ "error": "no disk" })), "it says “no disk”"),
        ("not at home", |_| with_head(502, "text/html", PAGE), "answers 502"),
        (
            "no more sessions",
            |_| response(503, "", "too many sessions"),
            "takes no further clients; it says “too many sessions”",
        ),
        (
            "another host",
            |_| response(403, "", "the Host header does not name this bridge"),
            "refuses clients that come this way",
        ),
        ("a redirect", |_| response(302, "location: /login?next=x\r\n", ""), "sends clients to /login: set `run.path`"),
        ("a redirect to nowhere", |_| response(308, "", ""), "sends clients to nowhere"),
        ("no type", |_| response(200, "", "ok"), "no content type"),
        ("plain text", |_| with_head(200, "text/plain", "ok"), "`text/plain` in place of JSON"),
        ("garbage", |_| with_head(200, "application/json", "{\"jsonrpc\": <oops"), "no JSON, though it says so"),
        ("another JSON", |_| json_response(200, "", &json!({ "status": "up" })), "does not say `jsonrpc: 2.0`"),
        ("a list", |_| json_response(200, "", &json!([])), "it is a list"),
        (
            "another id",
            |_| json_response(200, "", &json!({ "jsonrpc": "2.0", "id": 999, "result": {} })),
            "as 999: its client waits for ever",
        ),
        (
            "another id among events",
            |_| with_head(200, "text/event-stream", "data: {\"jsonrpc\":\"2.0\",\"id\":999,\"result\":{}}\n\n"),
            "as 999: its client waits for ever",
        ),
        ("no event", |_| with_head(200, "text/event-stream", ": nothing\n\n"), "ends its events before the answer"),
        (
            "garbage among events",
            |_| with_head(200, "text/event-stream", "data: {oops\n\n"),
            "no JSON, though it says so",
        ),
        ("a refused handshake", |heard| heard.error(200, -32603), "refuses `initialize` with error -32603"),
        (
            "cut off",
            |_| "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{".to_owned(),
            "breaks",
        ),
        ("no HTTP", |_| "220 mail.example ESMTP\r\n".to_owned(), "HTTP"),
    ];
    for (kind, answer, words) in kinds {
        let fake = Fake::new(answer).await;
        fails(kind, &fake.url, words).await;
    }
}

#[tokio::test]
async fn what_breaks_the_rules_of_its_era_is_told_with_what_a_client_meets() {
    type Answer = fn(&Heard) -> String;
    let discovered =
        |heard: &Heard| heard.result(modern(json!({ "supportedVersions": ["2026-07-28"], "capabilities": {} })));
    let kinds: [(&str, Answer, &str); 9] = [
        (
            "discovery without a type",
            |heard| heard.result(json!({ "supportedVersions": ["2026-07-28"], "capabilities": {} })),
            "without `resultType`",
        ),
        (
            "a later revision",
            |heard| heard.result(modern(json!({ "supportedVersions": ["2031-01-01"], "capabilities": {} }))),
            "only revisions of MCP that clients of today do not: 2031-01-01",
        ),
        (
            "no tools",
            |heard| if heard.method() == "tools/list" { heard.result(json!({})) } else { shaking(heard, &[]) },
            "without `tools` as a list",
        ),
        (
            "no name",
            |heard| match heard.method() {
                "initialize" => heard.result(json!({ "protocolVersion": "2025-11-25", "capabilities": {} })),
                _ => shaking(heard, &[]),
            },
            "without `serverInfo`",
        ),
        (
            "no version",
            |heard| match heard.method() {
                "initialize" => {
                    heard.result(json!({ "capabilities": {}, "serverInfo": { "name": "a", "version": "1" } }))
                }
                _ => shaking(heard, &[]),
            },
            "without `protocolVersion`",
        ),
        (
            "an unknown version",
            |heard| {
                match heard.method() {
            "initialize" => heard.result(json!({ "protocolVersion": "1", "capabilities": {}, "serverInfo": { "name": "a", "version": "1" } })),
            _ => shaking(heard, &[]),
        }
            },
            "only revisions of MCP that clients of today do not: 1",
        ),
        (
            "a refused notification",
            |heard| match heard.method() {
                "notifications/initialized" => response(400, "", "no"),
                _ => shaking(heard, &[]),
            },
            "refuses `notifications/initialized`, at which clients give up",
        ),
        (
            "a list that is refused",
            |heard| if heard.method() == "tools/list" { heard.error(200, -32000) } else { shaking(heard, &[]) },
            "refuses `tools/list` with error -32000; it says “as it says”",
        ),
        (
            "a list without an end",
            |heard| match heard.method() {
                "tools/list" => heard.result(json!({ "tools": [], "nextCursor": "again" })),
                _ => shaking(heard, &[]),
            },
            "lists its tools in more than 100 pages",
        ),
    ];
    for (kind, answer, words) in kinds {
        let fake = Fake::new(answer).await;
        fails(kind, &fake.url, words).await;
    }
    let fake = Fake::new(move |heard| match heard.method() {
        "server/discover" => discovered(heard),
        _ => heard.result(json!({ "tools": [tool("a")] })),
    })
    .await;
    fails(
        "a modern list without its fields",
        &fake.url,
        "offers 2026-07-28 and answers `tools/list` without `resultType`",
    )
    .await;
    let fake = Fake::new(|heard| shaking(heard, &[json!({ "name": "a" })])).await;
    let outcome = found(&fake.url).await.outcome;
    assert!(matches!(outcome, CheckOutcome::Failing { .. }), "{}", outcome.message());
    assert!(
        outcome.message().contains("lists 1 tools, and clients can use none: a: it has no `inputSchema`"),
        "{}",
        outcome.message()
    );
}

#[tokio::test]
async fn where_nobody_answers_it_is_told_why() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    fails("a closed port", &format!("http://{closed}/mcp"), "accepts no connections: nothing listens there").await;
    fails("no such name", "http://no-such-host.invalid/mcp", "leads nowhere").await;
    fails("no such address", "http://192.0.2.1.x:0/mcp", "").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}/mcp", listener.local_addr().expect("address"));
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    fails("one that hangs up", &url, "breaks the connection before it answers").await;
}

#[tokio::test]
async fn tls_where_none_is_expected_and_none_where_it_is() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let now = crate::clock::now().unix_ms() / 1_000;
    let authority = fleetwright_certs::Authority::create("demo", now).expect("authority");
    let (certificate, key_pem) = authority.issue_coordinator("c", now).expect("certificate");
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(key_pem.as_bytes()).expect("key");
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der], key);
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config.expect("settings")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    fails("an unknown certificate", &format!("https://{address}/mcp"), "TLS certificate that this host does not trust")
        .await;
    fails("TLS behind http", &format!("http://{address}/mcp"), "").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("https://{}/mcp", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    fails("http behind https", &url, "does not speak TLS").await;
}

#[tokio::test]
async fn events_without_end_end_with_a_limit() {
    for (block, words) in [
        (
            format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":\"{}\"}}\n\n", "x".repeat(60_000)),
            "sends events of more than 4 MiB",
        ),
        (": ping\n\n".repeat(8_000), "sends events of more than 4 MiB"),
        ("data: {\"method\":\"m\"}\n\n".repeat(3_000), "sends more than 10000 events"),
        ("x".repeat(64_000), "sends an event of more than 1 MiB"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/mcp", listener.local_addr().expect("address"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let block = block.clone();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(head.as_bytes()).await;
                    while stream.write_all(block.as_bytes()).await.is_ok() {}
                });
            }
        });
        fails("endless events", &url, words).await;
    }
}
