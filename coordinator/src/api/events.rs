//! Events over a WebSocket: first those after the number that the follower names, then new ones as they come.

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::{Api, Queried};
use crate::engine::Handle;
use crate::journal::EventRecord;

/// How many records are read from the journal at once.
const PAGE: usize = 500;

#[derive(Deserialize)]
pub(super) struct EventsQuery {
    /// The last number that the follower has seen; 0 for everything.
    #[serde(default)]
    after: u64,
    /// Whether new ones are wanted too.
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

pub(super) async fn events(
    State(api): State<Api>,
    Queried(query): Queried<EventsQuery>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.on_upgrade(move |socket| async move {
        if let Some(mut socket) = stream(socket, api.engine, query).await {
            // A follower that is gone needs no goodbye.
            let _ = socket.send(Message::Close(None)).await;
        }
    })
}

/// Sends records until the follower leaves or has all it asked for; gives the socket back in the second case.
async fn stream(mut socket: WebSocket, engine: Handle, query: EventsQuery) -> Option<WebSocket> {
    let mut last = query.after;
    // Subscribed before the journal is read, so that nothing falls between the two.
    let mut live = engine.records.subscribe();
    loop {
        last = catch_up(&mut socket, &engine, last).await?;
        if !query.follow {
            return Some(socket);
        }
        loop {
            let record = tokio::select! {
                record = live.recv() => record,
                incoming = socket.recv() => match incoming {
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Binary(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                },
            };
            match record {
                Ok(record) if record.seq > last => {
                    last = record.seq;
                    send(&mut socket, &record).await?;
                }
                Ok(_) => {}
                // Too slow for the live stream: the journal has what was missed.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Some(socket),
            }
        }
    }
}

async fn catch_up(socket: &mut WebSocket, engine: &Handle, mut last: u64) -> Option<u64> {
    loop {
        let records = engine.records(last, PAGE).await;
        let records = records.inspect_err(|error| tracing::error!(%error, "the journal cannot be read")).ok()?;
        for record in &records {
            send(socket, record).await?;
            last = record.seq;
        }
        if records.len() < PAGE {
            return Some(last);
        }
    }
}

async fn send(socket: &mut WebSocket, record: &EventRecord) -> Option<()> {
    let text = serde_json::to_string(record).ok()?;
    socket.send(Message::Text(text.into())).await.ok()
}
