//! One client's view of the server behind the bridge.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rmcp::ServerHandler;
use rmcp::model::{
    CustomNotification, CustomRequest, CustomResult, ErrorData, Implementation, ProgressNotification, ProtocolVersion,
    ServerConfig, ServerNotification, SubscriptionFilter,
};
use rmcp::service::{NotificationContext, Peer, RequestContext, RoleServer, SubscriptionContext};
use serde_json::{Map, Value};
use tokio::sync::broadcast::error::RecvError;

use super::envelope;
use super::stdio::{Notification, StdioServer};

/// How often it is looked whether a client that is told of changes is still there.
const PEER_LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Passes on what one client says, and what is for it. Whatever is not of the transport comes as a custom message (see
/// [`super::envelope`]), so that rmcp hands it over as it is.
pub(super) struct Bridged {
    server: Arc<StdioServer>,
    info: ServerConfig,
}

impl Bridged {
    pub(super) fn new(server: Arc<StdioServer>) -> Self {
        let info = config(&server.info);
        Self { server, info }
    }

    async fn pass_on(&self, request: CustomRequest, context: RequestContext<RoleServer>) -> Result<Value, ErrorData> {
        let method = envelope::opened(&request.method);
        let meta = match serde_json::to_value(&context.meta) {
            Ok(Value::Object(meta)) => meta,
            _ => Map::new(),
        };
        let asked = self.server.request(method, request.params.unwrap_or(Value::Null), meta).await;
        let mut asked = asked.map_err(|error| internal(&error.to_string()))?;
        loop {
            tokio::select! {
                biased;
                Some(progress) = asked.progress.recv() => tell_progress(&context.peer, progress).await,
                answer = &mut asked.answer => {
                    while let Ok(progress) = asked.progress.try_recv() {
                        tell_progress(&context.peer, progress).await;
                    }
                    return match answer {
                        Ok(Ok(result)) => Ok(result),
                        Ok(Err(error)) => Err(told(error)),
                        Err(_) => Err(internal("the MCP server behind the bridge has ended")),
                    };
                }
                // Dropping what was asked tells the server.
                () = context.ct.cancelled() => return Err(internal("cancelled")),
            }
        }
    }
}

impl ServerHandler for Bridged {
    fn get_info(&self) -> ServerConfig {
        self.info.clone()
    }

    /// Results of a server of the older era lack what 2026-07-28 demands of them, so clients are not offered that era:
    /// those that speak both then shake hands as the older one does.
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        let newest =
            if self.server.is_modern() { ProtocolVersion::V_2026_07_28 } else { ProtocolVersion::V_2025_11_25 };
        Cow::Borrowed(ProtocolVersion::known_up_to(&newest))
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        self.pass_on(request, context).await.map(CustomResult::new)
    }

    async fn on_custom_notification(&self, notification: CustomNotification, _: NotificationContext<RoleServer>) {
        let method = envelope::opened(&notification.method);
        self.server.notify(method, notification.params.unwrap_or(Value::Null)).await;
    }

    /// The server was told once; from now on this client hears what it tells everybody.
    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        tokio::spawn(tell_everything(self.server.clone(), context.peer));
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    /// The modern era's way to hear what the server tells everybody.
    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let mut notifications = self.server.notifications();
        loop {
            tokio::select! {
                () = subscription.cancelled() => return Ok(()),
                next = notifications.recv() => match next {
                    Ok(notification) => {
                        if let Ok(typed) = serde_json::from_value(message(&notification)) {
                            let _ = subscription.sink().send(typed).await;
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Ok(()),
                },
            }
        }
    }
}

/// Tells a client everything that the server tells everybody, until the client is gone.
async fn tell_everything(server: Arc<StdioServer>, peer: Peer<RoleServer>) {
    let mut notifications = server.notifications();
    loop {
        let next = tokio::select! {
            next = notifications.recv() => next,
            () = tokio::time::sleep(PEER_LOOK_INTERVAL) => {
                if peer.is_transport_closed() {
                    return;
                }
                continue;
            }
        };
        match next {
            Ok(notification) => {
                let (method, params) = (*notification).clone();
                let params = Some(params).filter(|params| !params.is_null());
                let custom = ServerNotification::CustomNotification(CustomNotification::new(method, params));
                if peer.send_notification(custom).await.is_err() {
                    return;
                }
            }
            Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "a slow client misses notifications"),
            Err(RecvError::Closed) => return,
        }
    }
}

async fn tell_progress(peer: &Peer<RoleServer>, params: Value) {
    let Ok(params) = serde_json::from_value(params) else { return };
    let notification = ServerNotification::ProgressNotification(ProgressNotification::new(params));
    let _ = peer.send_notification(notification).await;
}

fn message(notification: &Notification) -> Value {
    let (method, params) = &**notification;
    serde_json::json!({ "method": method, "params": params })
}

/// What the server said of itself in its handshake.
fn config(info: &Value) -> ServerConfig {
    let mut config = ServerConfig::default();
    let part = |name: &str| info.get(name).cloned().unwrap_or_default();
    config.capabilities = serde_json::from_value(part("capabilities")).unwrap_or_default();
    config.server_info = serde_json::from_value(part("serverInfo")).unwrap_or_else(|_| Implementation::new("", ""));
    config.instructions = part("instructions").as_str().map(str::to_owned);
    if let Ok(version) = serde_json::from_value(part("protocolVersion")) {
        config.protocol_version = version;
    }
    config
}

/// The server's own error, as it is.
fn told(error: Value) -> ErrorData {
    serde_json::from_value(error.clone()).unwrap_or_else(|_| internal(&error.to_string()))
}

fn internal(message: &str) -> ErrorData {
    ErrorData::internal_error(message.to_owned(), None)
}
