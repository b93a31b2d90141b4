//! Sends outgate's own webhooks to one receiver, in their order.
//! What happens to a webhook while its receiver is away?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use tokio::sync::mpsc::{Receiver, channel};

use crate::delivery;
use crate::http_message::Fields;
use crate::names::USER_AGENT;
use crate::policy::Plan;
use crate::policy::own_webhook::OwnWebhook;
use crate::state::Runtime;
use crate::state::sinks::{SinkQueue, SinkStatus};

/// The webhooks that wait for a receiver. Further ones are dropped and counted.
const QUEUE_MAX: usize = 1000;
/// The pause before the second attempt. It doubles up to the maximum.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The age of a message at which outgate no longer tries to send it.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A webhook that waits for its receiver.
#[derive(Clone)]
pub(super) struct WebhookMessage {
    /// The same at each attempt, so that a receiver can ignore a copy.
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) queued: Instant,
}

/// Finds the receiver in the active configuration. `None`: it is no receiver any more.
pub(super) type FindReceiver = Box<dyn Fn(&Plan) -> Option<&OwnWebhook> + Send + Sync>;

/// The webhooks for one receiver, and the task that sends them.
pub(super) struct WebhookQueue {
    sink: SinkQueue<WebhookMessage>,
    waiting: Arc<AtomicUsize>,
}

impl WebhookQueue {
    /// `messages`: what the webhooks are, in words. `name`: the receiver in log lines.
    pub(super) fn open(runtime: &Arc<Runtime>, messages: &'static str, name: &str, find: FindReceiver) -> Self {
        let (queue, receiver) = channel(QUEUE_MAX);
        let (status, waiting) = (Arc::new(SinkStatus::new(messages, name)), Arc::new(AtomicUsize::new(0)));
        let sender = WebhookSender {
            runtime: Arc::clone(runtime),
            find,
            status: Arc::clone(&status),
            waiting: Arc::clone(&waiting),
        };
        Self { sink: SinkQueue { task: tokio::spawn(sender.run(receiver)), queue, status }, waiting }
    }

    pub(super) fn status(&self) -> &Arc<SinkStatus> {
        &self.sink.status
    }

    /// Queues a webhook. Never waits.
    pub(super) fn send(&self, message: WebhookMessage) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if !self.sink.send(message) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns whether no webhook waits for the receiver.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }
}

struct WebhookSender {
    runtime: Arc<Runtime>,
    find: FindReceiver,
    status: Arc<SinkStatus>,
    waiting: Arc<AtomicUsize>,
}

impl WebhookSender {
    async fn run(self, mut queue: Receiver<WebhookMessage>) {
        while let Some(message) = queue.recv().await {
            self.send_until_taken(&message).await;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Tries until the receiver takes the message, until the message is too old, or until the configuration has no such
    /// receiver any more.
    async fn send_until_taken(&self, message: &WebhookMessage) {
        let mut pause = PAUSE_MIN;
        loop {
            match self.send(message).await {
                Ok(true) => return self.status.connected(),
                Ok(false) => return,
                Err(error) => self.status.fail(error),
            }
            if message.queued.elapsed() >= AGE_MAX {
                return self.status.count_dropped();
            }
            tokio::time::sleep(pause).await;
            pause = PAUSE_MAX.min(2 * pause);
        }
    }

    /// Sends a message. Returns `false` if the active configuration has no such receiver.
    async fn send(&self, message: &WebhookMessage) -> Result<bool, String> {
        let active = self.runtime.active_config();
        let Some(webhook) = (self.find)(&active.plan) else { return Ok(false) };
        let id = HeaderValue::try_from(&message.id).map_err(|error| error.to_string())?;
        let fields = Fields::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
            (HeaderName::from_static("webhook-id"), id),
        ]);
        delivery::deliver_own(&self.runtime, &active, webhook, fields, message.body.clone()).await.map(|()| true)
    }
}
