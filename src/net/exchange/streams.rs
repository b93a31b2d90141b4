//! How many exchanges one HTTP/2 connection carries, and how many it may.
//! Is there room for one more, and has it been idle?

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Of all handles on one connection.
pub(super) struct Streams {
    open: AtomicUsize,
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the target, as last heard. Before that one may go: who opened the connection.
    most: watch::Sender<Option<usize>>,
    used: Mutex<Instant>,
}

/// The right to one stream, until it is dropped.
pub(super) struct Slot(Arc<Streams>);

impl Streams {
    pub(super) fn new() -> Self {
        Self { open: AtomicUsize::new(0), most: watch::Sender::new(None), used: Mutex::new(Instant::now()) }
    }

    /// A stream more than the target allows would wait inside this process, for who knows how long.
    pub(super) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let most = self.most.borrow().unwrap_or(1);
        let more = |open| (open < most).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Slot(Arc::clone(self)))
    }

    pub(super) fn allow(&self, most: usize) {
        self.most.send_replace(Some(most));
    }

    pub(super) fn is_heard(&self) -> bool {
        self.most.borrow().is_some()
    }

    /// Resolves when the target has said how many it allows.
    pub(super) async fn heard(&self) {
        let _ = self.most.subscribe().wait_for(Option::is_some).await;
    }

    /// For how long there has been no exchange.
    pub(super) fn idle(&self) -> Duration {
        match self.open.load(Ordering::Relaxed) {
            0 => self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed(),
            _ => Duration::ZERO,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_held_until_it_is_dropped() {
        let streams = Arc::new(Streams::new());
        let opener = streams.slot().unwrap();
        assert!(streams.slot().is_none(), "nobody knows yet");
        drop(opener);
        streams.allow(2);
        let (first, second) = (streams.slot().unwrap(), streams.slot().unwrap());
        assert!(streams.slot().is_none());
        assert_eq!(streams.idle(), Duration::ZERO);
        drop(first);
        let third = streams.slot().unwrap();
        streams.allow(1);
        drop((second, third));
        assert!(streams.slot().is_some());
    }
}
