//! How much a server may answer to one check: bytes are counted before anything is made of them, whatever the server
//! says of their number and however it sends them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use fleetwright_deploy::limits::size;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use sse_stream::Sse;
use tokio::sync::Notify;

/// Most bytes of one answer or event, and of all events of one check or test together.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
pub(super) const EVENTS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most events of one check or test.
const EVENTS_MAX: usize = 10_000;
/// Most of an error's page that is read, in bytes.
const ERROR_BYTES_MAX: usize = 4 * 1024;

type Events = BoxStream<'static, Result<Sse, SseError>>;
type Failed = StreamableHttpError<reqwest::Error>;
type Headers = HashMap<HeaderName, HeaderValue>;

/// What one check or test may still receive. The first limit that is passed is remembered, and ends it.
#[derive(Clone, Default)]
pub(super) struct Budget(Arc<Spent>);

#[derive(Default)]
struct Spent {
    bytes: AtomicUsize,
    events: AtomicUsize,
    over: OnceLock<String>,
    told: Notify,
}

impl Budget {
    /// Notes which limit was passed.
    pub(super) fn over(&self, why: String) {
        let _ = self.0.over.set(why);
        self.0.told.notify_waiters();
    }

    /// Whether a limit was passed: whoever waits for that ends everything else.
    pub(super) fn is_over(&self) -> bool {
        self.0.over.get().is_some()
    }

    /// Waits until a limit is passed, and says which.
    pub(super) async fn spent(&self) -> String {
        loop {
            let told = self.0.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(why) = self.0.over.get() {
                return why.clone();
            }
            told.await;
        }
    }

    fn note(&self, error: &Failed) {
        if matches!(error, StreamableHttpError::ResponseBodyTooLarge { .. }) {
            self.over(format!("answers with more than {}", size(ANSWER_BYTES_MAX)));
        }
    }

    /// Counts an event; whether it may still be looked at.
    fn take(&self, event: &Result<Sse, SseError>) -> bool {
        let bytes = match event {
            Ok(event) => event.data.as_ref().map_or(0, String::len),
            Err(error) => {
                // The one error that tells of a limit is private to the client that counts.
                if error.to_string().contains(&format!("maximum size of {ANSWER_BYTES_MAX} bytes")) {
                    self.over(format!("sends an event of more than {}", size(ANSWER_BYTES_MAX)));
                }
                return true;
            }
        };
        let all = self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let count = self.0.events.fetch_add(1, Ordering::Relaxed) + 1;
        if all > EVENTS_BYTES_MAX {
            self.over(format!("sends events of more than {}", size(EVENTS_BYTES_MAX)));
        } else if count > EVENTS_MAX {
            self.over(format!("sends more than {EVENTS_MAX} events"));
        }
        !self.is_over()
    }
}

/// The settings of a transport whose answers are bounded.
pub(super) fn config(url: &str) -> StreamableHttpClientTransportConfig {
    StreamableHttpClientTransportConfig::with_uri(url)
        .max_json_response_size(ANSWER_BYTES_MAX)
        .max_sse_event_size(ANSWER_BYTES_MAX)
        .max_error_response_size(ERROR_BYTES_MAX)
}

/// The client of one check or test.
#[derive(Clone)]
pub(super) struct BoundedClient {
    pub(super) http: reqwest::Client,
    pub(super) budget: Budget,
}

impl BoundedClient {
    fn counted(&self, events: Events) -> Events {
        let budget = self.budget.clone();
        events.take_while(move |event| std::future::ready(budget.take(event))).boxed()
    }
}

impl StreamableHttpClient for BoundedClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let mut limits = StreamableHttpResponseLimits::default();
        limits.max_json_response_size = ANSWER_BYTES_MAX;
        limits.max_sse_event_size = ANSWER_BYTES_MAX;
        limits.max_error_response_size = ERROR_BYTES_MAX;
        self.post_message_with_response_limits(uri, message, session_id, auth_header, custom_headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let http = &self.http;
        let answer =
            http.post_message_with_response_limits(uri, message, session_id, auth_header, custom_headers, limits).await;
        match answer {
            Ok(StreamableHttpPostResponse::Sse(events, session)) => {
                Ok(StreamableHttpPostResponse::Sse(self.counted(events), session))
            }
            Ok(other) => Ok(other),
            Err(error) => {
                self.budget.note(&error);
                Err(error)
            }
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), Failed> {
        self.http.delete_session(uri, session_id, auth_header, custom_headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<Events, Failed> {
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            ANSWER_BYTES_MAX,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<Events, Failed> {
        let http = &self.http;
        let events = http
            .get_stream_with_max_sse_event_size(
                uri,
                session_id,
                last_event_id,
                auth_header,
                custom_headers,
                max_sse_event_size,
            )
            .await?;
        Ok(self.counted(events))
    }
}
