//! The bodies of requests: read whole, within a time and within the room that there is for all of them together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Largest body that is taken, in bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the rest of a request may take once its head is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of all large bodies together that are being read, in KiB.
const BODIES_KIB_MAX: usize = 64 * 1024;
/// A body up to this size needs no room of the large ones: whoever sends those slowly keeps no small one out.
const SMALL_KIB: usize = 64;

/// The room for bodies that are being read.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_KIB_MAX)))
    }
}

impl Room {
    /// Reads a body, as far as there is time and room for it.
    pub(super) async fn read(&self, body: Body) -> Result<Vec<u8>, Response> {
        timeout(BODY_TIMEOUT, self.read_parts(body)).await.unwrap_or_else(|_| {
            let message = format!("the request did not come whole within {} s\n", BODY_TIMEOUT.as_secs());
            Err((StatusCode::REQUEST_TIMEOUT, [(CONNECTION, "close")], message).into_response())
        })
    }

    async fn read_parts(&self, body: Body) -> Result<Vec<u8>, Response> {
        let (mut whole, mut taken) = (Vec::new(), None::<SemaphorePermit<'_>>);
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response())?;
            if whole.len() + part.len() > REQUEST_BYTES_MAX {
                let message = format!("a message has at most {} MiB\n", REQUEST_BYTES_MAX >> 20);
                return Err((StatusCode::PAYLOAD_TOO_LARGE, message).into_response());
            }
            let before = taken.as_ref().map_or(0, SemaphorePermit::num_permits);
            let more = (whole.len() + part.len()).div_ceil(1024).saturating_sub(SMALL_KIB).saturating_sub(before);
            let Ok(more) = self.0.try_acquire_many(u32::try_from(more).unwrap_or(u32::MAX)) else {
                let later = [(RETRY_AFTER, HeaderValue::from_static("1"))];
                let message = "too much is being sent at once; try again later\n";
                return Err((StatusCode::SERVICE_UNAVAILABLE, later, message).into_response());
            };
            match &mut taken {
                Some(taken) => taken.merge(more),
                None => taken = Some(more),
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    }
}
