//! How many exchanges one HTTP/2 connection carries, and how many it may.
//! Is there room for one more, and has it been idle?

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of all handles on one connection.
pub(super) struct Streams {
    open: AtomicUsize,
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the target, as last heard.
    most: AtomicUsize,
    used: Mutex<Instant>,
}

/// The right to one stream, until it is dropped.
pub(super) struct Slot(Arc<Streams>);

impl Streams {
    pub(super) fn new(most: usize) -> Self {
        Self { open: AtomicUsize::new(0), most: AtomicUsize::new(most), used: Mutex::new(Instant::now()) }
    }

    /// A stream more than the target allows would wait inside this process, for who knows how long.
    pub(super) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let most = self.most.load(Ordering::Relaxed);
        let more = |open| (open < most).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Slot(Arc::clone(self)))
    }

    pub(super) fn allow(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
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
        let streams = Arc::new(Streams::new(2));
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
