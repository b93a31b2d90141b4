//! Counts the streams of an HTTP/2 connection against the target's limit.
//! Is there room for another exchange, is its upload finished, and how long was the connection idle?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::panics::Mutex;

/// The largest number of concurrent exchanges on a connection, even if its target allows more.
pub(super) const STREAMS_MAX: u32 = 128;

/// The stream count that all handles on one connection share.
pub(super) struct Streams {
    usage: Mutex<StreamUse>,
    /// The target's last SETTINGS_MAX_CONCURRENT_STREAMS; `None`: not received yet. Until then only one exchange is
    /// allowed.
    max_streams: watch::Sender<Option<usize>>,
    poll_requested: Notify,
}

struct StreamUse {
    open: usize,
    /// The time at which the last exchange ended.
    last_used: Instant,
}

/// The task that drives a connection owns this. Dropping it ends the wait for the target's SETTINGS: the connection carries no
/// stream any more.
pub(super) struct StreamsOwner(pub(super) Arc<Streams>);

/// A permit for one stream. The stream stays counted until the permit and all [`UploadPermit`]s of it are dropped.
pub(super) struct StreamPermit {
    stream: Arc<OpenStreamGuard>,
    /// The channel is closed while no [`UploadPermit`] exists.
    uploading: watch::Sender<()>,
}

/// The share of an upload, and of each of its chunks, in the permit.
#[derive(Clone)]
pub(super) struct UploadPermit {
    stream: Arc<OpenStreamGuard>, // dropped first: the stream is free when `upload_finished` resolves
    uploading: watch::Receiver<()>,
}

/// A counted stream.
struct OpenStreamGuard {
    streams: Arc<Streams>,
    /// The head of the response has arrived.
    has_response: AtomicBool,
}

impl Streams {
    pub(super) fn new() -> Self {
        let usage = Mutex::new(StreamUse { open: 0, last_used: Instant::now() });
        Self { usage, max_streams: watch::Sender::new(None), poll_requested: Notify::new() }
    }

    /// Acquires a permit within the limits. h2 would queue a stream above the target's limit for an unbounded time.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<StreamPermit> {
        let max_streams = self.max_streams.borrow().unwrap_or(1).min(STREAMS_MAX as usize);
        let mut usage = self.usage.lock();
        if usage.open >= max_streams {
            return None;
        }
        usage.open += 1;
        drop(usage);
        let stream = OpenStreamGuard { streams: Arc::clone(self), has_response: AtomicBool::default() };
        Some(StreamPermit { stream: Arc::new(stream), uploading: watch::Sender::new(()) })
    }

    pub(super) fn set_max_streams(&self, max_streams: usize) {
        self.max_streams.send_replace(Some(max_streams));
    }

    pub(super) fn is_settings_known(&self) -> bool {
        self.max_streams.borrow().is_some()
    }

    /// Requests a poll of the connection's SETTINGS while they are unknown.
    pub(super) fn request_settings_poll(&self) {
        if !self.is_settings_known() {
            self.poll_requested.notify_one();
        }
    }

    /// Resolves when a poll of SETTINGS is requested.
    pub(super) async fn settings_poll_requested(&self) {
        self.poll_requested.notified().await;
    }

    /// Resolves when the target's stream limit is known, or the connection has ended.
    pub(super) fn settings_known(&self) -> impl Future<Output = ()> + use<> {
        let mut max_streams = self.max_streams.subscribe();
        async move { drop(max_streams.wait_for(Option::is_some).await) }
    }

    /// Returns the time since the last exchange ended.
    pub(super) fn idle_time(&self) -> Duration {
        let usage = self.usage.lock();
        if usage.open == 0 { usage.last_used.elapsed() } else { Duration::ZERO }
    }
}

impl StreamPermit {
    pub(super) fn upload_permit(&self) -> UploadPermit {
        UploadPermit { stream: Arc::clone(&self.stream), uploading: self.uploading.subscribe() }
    }

    /// Records whether the head of the response has arrived.
    pub(super) fn set_responded(&self, has_response: bool) {
        self.stream.has_response.store(has_response, Ordering::Relaxed);
    }

    /// Returns whether no [`UploadPermit`] exists.
    pub(super) fn is_upload_finished(&self) -> bool {
        self.uploading.is_closed()
    }

    /// Resolves when no [`UploadPermit`] exists.
    pub(super) async fn upload_finished(&self) {
        self.uploading.closed().await;
    }
}

impl UploadPermit {
    /// Returns whether the head of the response has arrived.
    pub(super) fn has_response(&self) -> bool {
        self.stream.has_response.load(Ordering::Relaxed)
    }

    /// Resolves when the [`StreamPermit`] was dropped: the exchange has ended before its upload.
    pub(super) async fn exchange_ended(mut self) {
        while self.uploading.changed().await.is_ok() {}
    }
}

impl Drop for StreamsOwner {
    fn drop(&mut self) {
        self.0.max_streams.send_if_modified(|max_streams| {
            let is_unknown = max_streams.is_none();
            max_streams.get_or_insert(0);
            is_unknown
        });
    }
}

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut usage = self.streams.usage.lock();
        (usage.open, usage.last_used) = (usage.open - 1, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_permit_is_released_on_drop() {
        let streams = Arc::new(Streams::new());
        let opener = streams.try_acquire().unwrap();
        assert!(streams.try_acquire().is_none(), "the limit is unknown");
        drop(opener);
        streams.set_max_streams(2);
        let (first, second) = (streams.try_acquire().unwrap(), streams.try_acquire().unwrap());
        assert!(streams.try_acquire().is_none());
        assert_eq!(streams.idle_time(), Duration::ZERO);
        drop(first);
        let third = streams.try_acquire().unwrap();
        streams.set_max_streams(1);
        drop((second, third));
        assert!(streams.try_acquire().is_some());
    }

    #[tokio::test]
    async fn upload_permit_holds_the_stream_until_the_last_chunk_is_dropped() {
        let streams = Arc::new(Streams::new());
        let permit = streams.try_acquire().unwrap();
        assert!(permit.is_upload_finished(), "no upload has begun");
        let (upload, chunk) = (permit.upload_permit(), permit.upload_permit());
        drop(upload);
        assert!(!permit.is_upload_finished());
        drop(chunk);
        permit.upload_finished().await;
        let upload = permit.upload_permit();
        drop(permit);
        assert!(streams.try_acquire().is_none());
        upload.exchange_ended().await;
        assert!(streams.try_acquire().is_some());
    }
}
