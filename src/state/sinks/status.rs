//! The status of one sink, for readiness, metrics and the log.
//! Do messages reach this sink?

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{info, warn};

use crate::panics::Mutex;

/// The status of one sink.
pub struct SinkStatus {
    /// The URL as configured, or `journald`.
    pub name: String,
    /// The messages in words: `audit records`.
    messages: &'static str,
    dropped: AtomicU64,
    error: Mutex<Option<String>>,
}

impl SinkStatus {
    pub fn new(messages: &'static str, name: &str) -> Self {
        Self { name: name.to_owned(), messages, dropped: AtomicU64::new(0), error: Mutex::new(None) }
    }

    /// Returns the number of messages that the sink did not get.
    pub fn dropped_count(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns the reason why an operator should look at the sink.
    pub fn degraded_reason(&self) -> Option<String> {
        let error = self.error.lock().clone()?;
        Some(format!("{} do not reach {}: {error}", self.messages, self.name))
    }

    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the sink takes messages, and logs the end of a failure.
    pub fn connected(&self) {
        if self.error.lock().take().is_some() {
            let (messages, name, dropped) = (self.messages, &self.name, self.dropped_count());
            info!("{messages} are sent to {name} again; {dropped} were dropped since the start");
        }
    }

    /// Notes that the sink takes no messages, and logs the begin of a failure.
    pub fn fail(&self, reason: String) {
        let before = self.error.lock().replace(reason.clone());
        if before.is_none() {
            let (messages, name) = (self.messages, &self.name);
            warn!("cannot send {messages} to {name}: {reason}; {messages} wait for it");
        }
    }
}
