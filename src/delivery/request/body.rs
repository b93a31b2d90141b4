//! The body of a request: buffered if it is signed, and otherwise streamed under the same limit.
//! How many bytes does outgate accept from a client, and for how long?

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::{RequestBody, RequestBodyError};
use crate::net::deadline;
use crate::net::http_client::{PieceObserver, Upload};
use crate::state::limits::memory_budget::{MemoryFull, MemoryReservation};

/// The largest buffer that outgate allocates for an announced length, in bytes. Above it, the buffer grows with the bytes
/// that arrive.
const PREALLOCATE_MAX: u64 = 64 * 1024;

/// The part of each body that does not count in the memory of all bodies, in bytes. Most webhooks are smaller.
const UNCOUNTED_MAX: usize = 16 * 1024;

/// The largest whole body without a progress, in bytes. The kernel usually takes it at once.
const UNOBSERVED_MAX: usize = 64 * 1024;

/// Checks an announced length before the first byte, so that a client gets no `100 Continue` for a body that is refused.
pub(in crate::delivery) fn check_length(body: &impl Body, max: u64) -> Result<(), RequestBodyError> {
    if body.size_hint().lower() > max { Err(RequestBodyError::TooLarge) } else { Ok(()) }
}

/// Gets each part of a body as it passes, and `None` after the last.
pub(in crate::delivery) type BodyObserver = Box<dyn Fn(Option<&[u8]>) + Send + Sync>;

/// Bounds the time that the client takes for its body.
pub(in crate::delivery) fn with_timeout(
    body: RequestBody,
    timeout: Duration,
    observer: Option<BodyObserver>,
) -> TimeoutBody {
    let observer = match observer {
        Some(observe) if body.is_end_stream() => {
            observe(None);
            None
        }
        observer => observer,
    };
    TimeoutBody { body, remaining: timeout, sleep: None, observer }
}

/// A body with a timeout that runs only while outgate waits for the client.
///
/// The delivery polls for no frame, and the timeout stops, while the target accepts no more bytes or a bandwidth limit
/// holds them back.
pub(in crate::delivery) struct TimeoutBody {
    body: RequestBody,
    /// The time that the client has left.
    remaining: Duration,
    /// Set while outgate waits for the client.
    sleep: Option<Pin<Box<Sleep>>>,
    observer: Option<BodyObserver>,
}

impl Body for TimeoutBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let polled = self.body.as_mut().poll_frame(cx);
        if polled.is_ready() {
            if let Some(sleep) = self.sleep.take() {
                self.remaining = sleep.deadline().saturating_duration_since(Instant::now());
            }
            if let Some(observe) = &self.observer {
                if let Poll::Ready(Some(Ok(frame))) = &polled {
                    frame.data_ref().into_iter().for_each(|data| observe(Some(data)));
                }
                // After the last byte of a known length, hyper does not poll the body again.
                if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
                    observe(None);
                }
            }
            return polled;
        }
        let remaining = self.remaining;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(remaining)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(RequestBodyError::Timeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A whole body, and the memory that it takes.
struct HeldBody {
    bytes: Bytes,
    _reservation: MemoryReservation,
}

impl AsRef<[u8]> for HeldBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the whole body. All but small bodies count in the memory of bodies, until the last part of them is dropped.
pub(in crate::delivery) async fn buffer(
    mut body: impl Body<Data = Bytes, Error = RequestBodyError> + Unpin,
    max: u64,
    mut reservation: MemoryReservation,
) -> Result<Bytes, RequestBodyError> {
    let expected = body.size_hint().lower();
    let mut single_frame = Bytes::new();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let before = single_frame.len() + buffer.len();
        let length = before + data.len();
        if length as u64 > max {
            return Err(RequestBodyError::TooLarge);
        }
        let growth = length.saturating_sub(UNCOUNTED_MAX) - before.saturating_sub(UNCOUNTED_MAX);
        reservation.grow(growth).map_err(|MemoryFull| RequestBodyError::NoMemory)?;
        if single_frame.is_empty() && buffer.is_empty() && (data.len() as u64) == expected {
            single_frame = data; // most webhooks arrive in one frame, which is not copied
            continue;
        }
        if buffer.is_empty() {
            buffer.reserve(usize::try_from(expected.min(PREALLOCATE_MAX)).unwrap_or(0));
            buffer.extend_from_slice(&std::mem::take(&mut single_frame));
        }
        buffer.extend_from_slice(&data);
    }
    let whole = if buffer.is_empty() { single_frame } else { buffer.freeze() };
    Ok(match whole.len() {
        0..=UNCOUNTED_MAX => whole,
        _ => Bytes::from_owner(HeldBody { bytes: whole, _reservation: reservation }),
    })
}

/// Returns a whole body to send. A large one has a progress: the target may take longer for it than the response timeout.
pub(in crate::delivery) fn whole(body: Bytes) -> (Upload, Option<Arc<UploadProgress>>) {
    if body.len() <= UNOBSERVED_MAX {
        return (Upload::whole(body), None);
    }
    let progress = Arc::new(UploadProgress::default());
    (Upload::observed(body, Arc::<UploadProgress>::clone(&progress)), Some(progress))
}

/// Returns a body that streams, and its progress.
pub(in crate::delivery) fn stream(
    body: impl Body<Data = Bytes, Error = RequestBodyError> + Unpin + Send + 'static,
    max: u64,
) -> (Upload, Arc<UploadProgress>) {
    let progress = Arc::new(UploadProgress::default());
    if body.is_end_stream() {
        progress.finish();
        return (Upload::whole(Bytes::new()), progress);
    }
    let limited = LimitedBody { body, remaining: max, progress: Arc::clone(&progress) };
    (Upload::stream(limited), progress)
}

/// The progress of an upload, shared by the connection that sends it and the delivery.
pub(in crate::delivery) struct UploadProgress {
    bytes: AtomicU64,
    error: OnceLock<RequestBodyError>,
    wait: Mutex<UploadWait>,
    /// Notified when the upload waits for the target again.
    changed: Notify,
}

/// The time that an upload waits, by the side that it waits for.
struct UploadWait {
    stage: UploadStage,
    /// The sum of the waits for the target before this stage.
    waited_for_target: Duration,
}

impl UploadWait {
    fn set_stage(&mut self, stage: UploadStage) {
        if let UploadStage::Target(since) = self.stage {
            self.waited_for_target += since.elapsed();
        }
        self.stage = stage;
    }
}

/// The side that an upload waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UploadStage {
    Client,
    /// The connection has accepted every byte so far, and has not polled for more since.
    Target(Instant),
    /// The last byte has passed, or the upload has failed.
    Ended(Instant),
}

impl Default for UploadProgress {
    fn default() -> Self {
        let wait =
            Mutex::new(UploadWait { stage: UploadStage::Target(Instant::now()), waited_for_target: Duration::ZERO });
        Self { bytes: AtomicU64::default(), error: OnceLock::new(), wait, changed: Notify::new() }
    }
}

impl UploadProgress {
    pub(in crate::delivery) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the error of the body. The connection that sent it reports only that the upload failed.
    pub(in crate::delivery) fn error(&self) -> Option<RequestBodyError> {
        self.error.get().copied()
    }

    /// Restarts the wait for the target when the request is sent.
    pub(in crate::delivery) fn restart(&self) {
        if let UploadStage::Target(since) | UploadStage::Ended(since) = &mut self.wait.lock().stage {
            *since = Instant::now();
        }
    }

    /// Resolves when the target has accepted no byte for the time that `timeout` returns, or has not responded within that
    /// time after the last byte. Only one caller may wait.
    ///
    /// `timeout` is called at the beginning of each wait, with the sum of the upload's earlier waits for the target.
    pub(in crate::delivery) async fn stalled(&self, timeout: impl Fn(Duration) -> Duration) {
        let mut wait: Option<(Instant, Instant)> = None;
        loop {
            let (stage, waited) = {
                let wait = self.wait.lock();
                (wait.stage, wait.waited_for_target)
            };
            match stage {
                UploadStage::Client => self.changed.notified().await,
                UploadStage::Target(since) | UploadStage::Ended(since) => match wait {
                    Some((begun, due)) if begun == since && due <= Instant::now() => return,
                    Some((begun, due)) if begun == since => deadline::passed(due).await,
                    _ => wait = Some((since, since + timeout(waited))),
                },
            }
        }
    }

    pub(in crate::delivery) fn has_ended(&self) -> bool {
        matches!(self.wait.lock().stage, UploadStage::Ended(_))
    }

    fn finish(&self) {
        let mut wait = self.wait.lock();
        if !matches!(wait.stage, UploadStage::Ended(_)) {
            wait.set_stage(UploadStage::Ended(Instant::now()));
            self.changed.notify_one();
        }
    }

    /// The connection polls for more bytes.
    fn on_poll(&self) {
        let mut wait = self.wait.lock();
        if matches!(wait.stage, UploadStage::Target(_)) {
            wait.set_stage(UploadStage::Client);
        }
    }

    fn on_data(&self, length: u64) {
        self.bytes.fetch_add(length, Ordering::Relaxed);
        self.wait.lock().set_stage(UploadStage::Target(Instant::now()));
        self.changed.notify_one();
    }
}

impl PieceObserver for UploadProgress {
    fn taken(&self, length: u64, is_first: bool, is_last: bool) {
        if is_first {
            self.bytes.store(0, Ordering::Relaxed); // an earlier attempt may have sent some
        }
        self.on_data(length);
        if is_last {
            self.finish();
        }
    }
}

/// A body that fails when it exceeds its limit.
struct LimitedBody<B> {
    body: B,
    /// Bytes that the client may still send.
    remaining: u64,
    progress: Arc<UploadProgress>,
}

impl<B: Body<Data = Bytes, Error = RequestBodyError> + Unpin> LimitedBody<B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.progress.on_poll();
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()? else {
            return Poll::Ready(None);
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.remaining = self.remaining.checked_sub(length).ok_or(RequestBodyError::TooLarge)?;
        self.progress.on_data(length);
        Poll::Ready(Some(Ok(frame)))
    }
}

impl<B> Drop for LimitedBody<B> {
    fn drop(&mut self) {
        self.progress.finish();
    }
}

impl<B: Body<Data = Bytes, Error = RequestBodyError> + Unpin> Body for LimitedBody<B> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = ready!(self.poll(cx));
        if let Some(Err(error)) = &polled {
            let _ = self.progress.error.set(*error);
        }
        // After the last byte of a known length, hyper does not poll the body again.
        if !matches!(polled, Some(Ok(_))) || self.body.is_end_stream() {
            self.progress.finish();
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::state::limits::memory_budget::MemoryBudget;

    #[tokio::test]
    async fn body_that_arrives_at_once_counts_in_the_memory_of_bodies() {
        let memory = MemoryBudget::for_bodies(4 * 1024); // 1 KiB for bodies
        let buffered = async |length: usize| {
            let body = Full::from(vec![7; length]).map_err(|never| match never {});
            buffer(Box::pin(body), u64::MAX, memory.reservation()).await
        };
        let held = buffered(UNCOUNTED_MAX + 1024).await.unwrap();
        assert_eq!(held.len(), UNCOUNTED_MAX + 1024);
        assert_eq!(buffered(UNCOUNTED_MAX + 1).await, Err(RequestBodyError::NoMemory));
        assert!(buffered(UNCOUNTED_MAX).await.is_ok());
        drop(held);
        assert!(buffered(UNCOUNTED_MAX + 1).await.is_ok());
    }
}
