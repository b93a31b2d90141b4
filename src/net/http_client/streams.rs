//! How many exchanges one HTTP/2 connection carries, and how many it may.
//! Is there room for one more, has its upload left, and has the connection been idle?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// Exchanges that one connection carries at a time, even if its target allows more.
pub(super) const STREAMS_MAX: u32 = 128;

/// Of all handles on one connection.
pub(super) struct Streams {
    open: AtomicUsize,
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the target, as last heard. Before that one may go: who opened the connection.
    most: watch::Sender<Option<usize>>,
    poll_requested: Notify,
    used: Mutex<Instant>,
}

/// The right to one stream, until it is dropped, and all of its upload.
pub(super) struct StreamPermit {
    stream: Arc<OpenStreamGuard>,
    /// Closed while no [`UploadPermit`] exists.
    uploading: watch::Sender<()>,
}

/// What an upload has of the slot, and each piece of it.
#[derive(Clone)]
pub(super) struct UploadPermit {
    _place: Arc<OpenStreamGuard>, // goes first: who hears that the last part has gone finds the place free
    uploading: watch::Receiver<()>,
}

/// One of the streams that are open.
struct OpenStreamGuard(Arc<Streams>);

impl Streams {
    pub(super) fn new() -> Self {
        let (open, most) = (AtomicUsize::new(0), watch::Sender::new(None));
        Self { open, most, poll_requested: Notify::new(), used: Mutex::new(Instant::now()) }
    }

    /// A stream more than the target allows would wait inside this process, for who knows how long.
    pub(super) fn slot(self: &Arc<Self>) -> Option<StreamPermit> {
        let most = self.most.borrow().unwrap_or(1).min(STREAMS_MAX as usize);
        let more = |open| (open < most).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(StreamPermit { stream: Arc::new(OpenStreamGuard(Arc::clone(self))), uploading: watch::Sender::new(()) })
    }

    pub(super) fn allow(&self, most: usize) {
        self.most.send_replace(Some(most));
    }

    pub(super) fn is_heard(&self) -> bool {
        self.most.borrow().is_some()
    }

    /// The target may have said something: whoever can tell is to have a look, where nobody knows yet.
    pub(super) fn request_settings_poll(&self) {
        if !self.is_heard() {
            self.poll_requested.notify_one();
        }
    }

    /// Resolves when somebody wants to know.
    pub(super) async fn settings_poll_requested(&self) {
        self.poll_requested.notified().await;
    }

    /// Resolves when the target has said how many it allows.
    pub(super) async fn settings_known(&self) {
        let _ = self.most.subscribe().wait_for(Option::is_some).await;
    }

    /// For how long there has been no exchange.
    pub(super) fn idle(&self) -> Duration {
        match self.open.load(Ordering::Relaxed) {
            0 => self.used.lock().elapsed(),
            _ => Duration::ZERO,
        }
    }
}

impl StreamPermit {
    pub(super) fn part(&self) -> UploadPermit {
        UploadPermit { _place: Arc::clone(&self.stream), uploading: self.uploading.subscribe() }
    }

    /// Whether nobody has a part of it.
    pub(super) fn is_uploaded(&self) -> bool {
        self.uploading.is_closed()
    }

    /// Resolves when nobody has.
    pub(super) async fn uploaded(&self) {
        self.uploading.closed().await;
    }
}

impl UploadPermit {
    /// Resolves when the slot has been dropped: the exchange is over, and its upload is not.
    pub(super) async fn outlives_slot(mut self) {
        while self.uploading.changed().await.is_ok() {}
    }
}

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        *self.0.used.lock() = Instant::now();
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

    #[tokio::test]
    async fn an_upload_has_its_slot_until_all_of_it_is_gone() {
        let streams = Arc::new(Streams::new());
        let slot = streams.slot().unwrap();
        assert!(slot.is_uploaded(), "there is none");
        let (upload, piece) = (slot.part(), slot.part());
        drop(upload);
        assert!(!slot.is_uploaded());
        drop(piece);
        slot.uploaded().await;
        let upload = slot.part();
        drop(slot);
        assert!(streams.slot().is_none());
        upload.outlives_slot().await;
        assert!(streams.slot().is_some());
    }
}
