//! An MCP server that answers as a test says, byte by byte.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) verb: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Value,
}

impl Heard {
    pub(super) fn method(&self) -> &str {
        self.body["method"].as_str().unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The whole HTTP response with a result.
    pub(super) fn result(&self, result: Value) -> String {
        json(200, "", &json!({ "jsonrpc": "2.0", "id": self.body["id"], "result": result }))
    }

    pub(super) fn error(&self, status: u16, code: i64) -> String {
        let error = json!({ "code": code, "message": "as it says", "data": { "supported": ["2025-11-25"] } });
        json(status, "", &json!({ "jsonrpc": "2.0", "id": self.body["id"], "error": error }))
    }
}

pub(super) fn response(status: u16, head: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{head}\r\n{body}", body.len())
}

pub(super) fn json(status: u16, head: &str, body: &Value) -> String {
    response(status, &format!("content-type: application/json\r\n{head}"), &body.to_string())
}

/// What 2026-07-28 demands of a list, with this besides.
pub(super) fn modern(more: Value) -> Value {
    let mut result = json!({ "resultType": "complete", "ttlMs": 0, "cacheScope": "private" });
    result.as_object_mut().expect("fields").extend(more.as_object().cloned().expect("fields"));
    result
}

/// Answers as a server of the older era does whose tools are these.
pub(super) fn shaking(heard: &Heard, tools: &[Value]) -> String {
    match heard.method() {
        "initialize" => heard.result(json!({
            "protocolVersion": heard.body["params"]["protocolVersion"], "capabilities": {}, "serverInfo": { "name": "fake", "version": "1" } })),
        "tools/list" => heard.result(json!({ "tools": tools })),
        _ if heard.body.get("id").is_none() => response(202, "", ""),
        _ => heard.error(200, -32601),
    }
}

pub(super) struct Fake {
    pub(super) url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Fake {
    /// A server that answers what it hears like this.
    pub(super) async fn new(answer: impl Fn(&Heard) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/mcp", listener.local_addr().expect("address"));
        let (heard, answer) = (Arc::<Mutex<Vec<Heard>>>::default(), Arc::new(answer));
        let all = heard.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, all) = (answer.clone(), all.clone());
                tokio::spawn(async move { serve(stream, &*answer, &all).await });
            }
        });
        Self { url, heard }
    }

    pub(super) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("lock").clone()
    }

    /// The methods that it was asked with, and `DELETE` where a session was ended.
    pub(super) fn methods(&self) -> Vec<String> {
        let name = |heard: Heard| if heard.verb == "POST" { heard.method().to_owned() } else { heard.verb };
        self.heard().into_iter().map(name).collect()
    }
}

async fn serve(mut stream: TcpStream, answer: &(dyn Fn(&Heard) -> String + Send + Sync), all: &Mutex<Vec<Heard>>) {
    let mut bytes = Vec::new();
    let (end, length) = loop {
        let mut block = [0; 4096];
        let Ok(read @ 1..) = stream.read(&mut block).await else { return };
        bytes.extend_from_slice(&block[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        let length = length.unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            break (end, length);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let heard = Heard {
        verb: head.split(' ').next().unwrap_or_default().to_owned(),
        headers: head.lines().filter_map(pair).collect(),
        body: serde_json::from_slice(&bytes[end + 4..end + 4 + length]).unwrap_or_default(),
    };
    let answer = answer(&heard);
    all.lock().expect("lock").push(heard);
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
