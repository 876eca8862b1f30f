//! The command's side of the coordinator's interface.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fleetwright_deploy::failure::Failure;
use futures_util::{Stream, StreamExt};
use reqwest::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::api::{ErrorBody, short_path};
use crate::journal::EventRecord;

/// A coordinator, reached by its unix socket.
pub(crate) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
    /// Keeps the short path to the socket valid.
    folder: File,
}

impl Client {
    /// A client for the coordinator with this socket. Nothing is sent yet.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let folder = socket.parent().context("the socket is in no folder")?;
        let folder = File::open(folder).with_context(|| format!("{} cannot be opened", folder.display()))?;
        // Nothing here is TLS, and not every host has certificates of authorities.
        let http = reqwest::Client::builder().tls_certs_only([]).no_proxy();
        let http = http.unix_socket(short_path(&folder, socket)).build()?;
        Ok(Self { http, socket: socket.to_owned(), folder })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.answer(self.http.get(url(path))).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.answer(self.http.post(url(path)).json(body)).await
    }

    /// Sends a body in parts.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static,
    ) -> Result<T> {
        self.answer(self.http.post(url(path)).body(Body::wrap_stream(body))).await
    }

    async fn answer<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T> {
        let response = request.send().await.with_context(|| {
            format!("no coordinator answers on {}\n  hint: start it with `fleetwright coordinator`, or a whole fleet with `fleetwright up MANIFEST`", self.socket.display())
        })?;
        if response.status().is_success() {
            return response
                .json()
                .await
                .context("the coordinator's answer cannot be read: are command and coordinator of the same version?");
        }
        let status = response.status();
        let body = response.bytes().await?;
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { error }) => Err(error.into()),
            Err(_) => anyhow::bail!("the coordinator answers {status}: {}", String::from_utf8_lossy(&body)),
        }
    }

    /// Whether a coordinator answers.
    pub(crate) async fn is_up(&self) -> bool {
        self.get::<serde_json::Value>("/v1/status").await.is_ok()
    }

    /// Follows events after a number.
    pub(crate) async fn events(&self, after: u64, follow: bool) -> Result<Events> {
        let stream = UnixStream::connect(short_path(&self.folder, &self.socket)).await?;
        let request = format!("ws://coordinator/v1/events?after={after}&follow={follow}").into_client_request()?;
        let (stream, _) =
            tokio_tungstenite::client_async(request, stream).await.context("events cannot be followed")?;
        Ok(Events { stream })
    }
}

/// Events as they come.
pub(crate) struct Events {
    stream: WebSocketStream<UnixStream>,
}

impl Events {
    /// The next one; nothing when there will be no more.
    pub(crate) async fn next(&mut self) -> Result<Option<EventRecord>> {
        while let Some(message) = self.stream.next().await {
            match message.context("the coordinator is gone")? {
                Message::Text(text) => return Ok(Some(serde_json::from_str(&text)?)),
                Message::Close(_) => return Ok(None),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(None)
    }
}

/// The failure that an error is, if it is one of the eight kinds.
pub(crate) fn failure_in(error: &anyhow::Error) -> Option<&Failure> {
    error.downcast_ref()
}

fn url(path: &str) -> String {
    format!("http://coordinator{path}")
}
