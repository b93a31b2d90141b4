//! Sends alerts as webhooks of outgate itself, in their order.
//! What happens to alerts while their receiver is away?

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use tokio::sync::mpsc::Receiver;

use crate::delivery;
use crate::state::Runtime;
use crate::state::sinks::SinkStatus;

/// The pause before the second attempt. It doubles up to the maximum.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The age of a message at which outgate no longer tries to send it.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// An alert that waits for its receiver.
pub(super) struct WebhookMessage {
    /// The same at each attempt, so that a receiver can ignore a copy.
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) queued: Instant,
}

/// Sends the messages of the queue. Each is tried until the receiver takes it, until it is too old, or until the
/// configuration has no webhook any more.
pub(super) async fn run(runtime: Arc<Runtime>, mut queue: Receiver<WebhookMessage>, status: Arc<SinkStatus>) {
    while let Some(message) = queue.recv().await {
        let mut pause = PAUSE_MIN;
        loop {
            match send(&runtime, &message).await {
                Ok(true) => break status.connected(),
                Ok(false) => break,
                Err(error) => status.fail(error),
            }
            if message.queued.elapsed() >= AGE_MAX {
                status.count_dropped();
                break;
            }
            tokio::time::sleep(pause).await;
            pause = PAUSE_MAX.min(2 * pause);
        }
    }
}

/// Sends a message to the webhook of the active configuration. Returns `false` if it has none.
async fn send(runtime: &Arc<Runtime>, message: &WebhookMessage) -> Result<bool, String> {
    let active = runtime.active_config();
    let Some(webhook) = &active.plan.alerts.webhook else { return Ok(false) };
    let mut fields = HeaderMap::new();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(header::USER_AGENT, HeaderValue::from_static(concat!("outgate/", env!("CARGO_PKG_VERSION"))));
    fields.insert("webhook-id", HeaderValue::try_from(&message.id).map_err(|error| error.to_string())?);
    delivery::deliver_own(runtime, &active, webhook, fields, message.body.clone()).await.map(|()| true)
}
