//! Taking a body in: whole if it is to be signed, as a stream under the same cap if not.
//! How much of the client's body do we accept, and for how long?

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

use super::refusal::{Code, Refusal};
use crate::net::http_client::Upload;

/// A request body as the server reads it off the client's connection.
pub type RequestBody = Pin<Box<dyn Body<Data = Bytes, Error = RequestBodyError> + Send>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestBodyError {
    Malformed,
    TooLarge,
    Timeout,
    /// The client hung up in the middle.
    ClientGone,
}

impl std::fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RequestBodyError::Malformed => "the body's framing is malformed",
            RequestBodyError::TooLarge => "the body is larger than the route allows",
            RequestBodyError::Timeout => "the body did not arrive in time",
            RequestBodyError::ClientGone => "the client hung up",
        })
    }
}

impl std::error::Error for RequestBodyError {}

impl From<RequestBodyError> for Refusal {
    fn from(fault: RequestBodyError) -> Self {
        let detail = fault.to_string();
        match fault {
            RequestBodyError::Malformed => Refusal::malformed(detail),
            RequestBodyError::ClientGone => Refusal::malformed(detail).client_gone(),
            RequestBodyError::TooLarge => Refusal::new(Code::BodyTooLarge, detail),
            RequestBodyError::Timeout => Refusal::new(Code::BodyTimeout, detail),
        }
    }
}

/// The largest buffer made on a client's word alone; beyond it, memory follows the bytes that came.
const TRUSTED_LENGTH: u64 = 64 * 1024;

/// A length that is told in advance is judged in advance: no `100 Continue` for what will be refused.
pub(super) fn judge_length(body: &RequestBody, most: u64) -> Result<(), RequestBodyError> {
    if body.size_hint().lower() > most { Err(RequestBodyError::TooLarge) } else { Ok(()) }
}

/// Bounds the time that the client takes for its body.
pub(super) fn timed(body: RequestBody, within: Duration) -> RequestBody {
    if body.is_end_stream() { body } else { Box::pin(TimeoutBody { body, left: within, waiting: None }) }
}

/// A body with a timeout that runs only while the client is waited for. It stands still while the target takes no more, or
/// a bandwidth limit holds the bytes back: then the delivery asks for no frame.
struct TimeoutBody {
    body: RequestBody,
    /// How much longer the client may take.
    left: Duration,
    /// Set while the client is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
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
            if let Some(waiting) = self.waiting.take() {
                self.left = waiting.deadline().saturating_duration_since(Instant::now());
            }
            return polled;
        }
        let left = self.left;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Some(Err(RequestBodyError::Timeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The whole body, for a signer to see.
pub(super) async fn buffer(mut body: RequestBody, most: u64) -> Result<Bytes, RequestBodyError> {
    let expected = body.size_hint().lower();
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if (first.len() + gathered.len() + data.len()) as u64 > most {
            return Err(RequestBodyError::TooLarge);
        }
        if first.is_empty() && gathered.is_empty() && (data.len() as u64) == expected {
            first = data; // the usual webhook: it came in one piece and is not copied
            continue;
        }
        if gathered.is_empty() {
            gathered.reserve(usize::try_from(expected.min(TRUSTED_LENGTH)).unwrap_or(0));
            gathered.extend_from_slice(&std::mem::take(&mut first));
        }
        gathered.extend_from_slice(&data);
    }
    Ok(if gathered.is_empty() { first } else { gathered.freeze() })
}

/// A body passed on as it comes, and what becomes of it.
pub(super) fn stream(body: RequestBody, most: u64) -> (Upload, Arc<UploadProgress>) {
    let progress = Arc::new(UploadProgress::default());
    if body.is_end_stream() {
        progress.end();
        return (Upload::whole(Bytes::new()), progress);
    }
    let capped = LimitedBody { body, left: most, progress: Arc::clone(&progress) };
    (Upload::stream(capped), progress)
}

/// How far an upload that streams has come, for those who do not carry it.
pub(super) struct UploadProgress {
    bytes: AtomicU64,
    fault: OnceLock<RequestBodyError>,
    waits: Mutex<UploadWait>,
    /// The target is waited for again.
    changed: Notify,
}

/// The waits of an upload.
struct UploadWait {
    stage: UploadStage,
    /// How long the upload has waited for the target, before this stage.
    target: Duration,
}

impl UploadWait {
    fn set_stage(&mut self, stage: UploadStage) {
        if let UploadStage::Target(since) = self.stage {
            self.target += since.elapsed();
        }
        self.stage = stage;
    }
}

/// Which side an upload waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UploadStage {
    Client,
    /// The connection has taken all that it was given, and has not asked for more since.
    Target(Instant),
    /// The last byte has passed, or no more will.
    Ended(Instant),
}

impl Default for UploadProgress {
    fn default() -> Self {
        let waits = Mutex::new(UploadWait { stage: UploadStage::Target(Instant::now()), target: Duration::ZERO });
        Self { bytes: AtomicU64::default(), fault: OnceLock::new(), waits, changed: Notify::new() }
    }
}

impl UploadProgress {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What was wrong with it: the connection that it went over only knows that it failed.
    pub(super) fn fault(&self) -> Option<RequestBodyError> {
        self.fault.get().copied()
    }

    /// The request goes out now: what the target is waited for begins anew.
    pub(super) fn begin(&self) {
        if let UploadStage::Target(since) | UploadStage::Ended(since) = &mut self.waits.lock().stage {
            *since = Instant::now();
        }
    }

    /// Resolves, for one caller, when the target has been waited for as long as `patience` says at the beginning of the
    /// wait: since it took the last byte, or since it took some of the upload and no more. `patience` gets the sum of the
    /// upload's earlier waits for the target.
    pub(super) async fn overdue(&self, patience: impl Fn(Duration) -> Duration) {
        let mut wait: Option<(Instant, Instant)> = None;
        loop {
            let (stage, waited) = {
                let waits = self.waits.lock();
                (waits.stage, waits.target)
            };
            match stage {
                UploadStage::Client => self.changed.notified().await,
                UploadStage::Target(since) | UploadStage::Ended(since) => match wait {
                    Some((begun, due)) if begun == since && due <= Instant::now() => return,
                    Some((begun, due)) if begun == since => tokio::time::sleep_until(due).await,
                    _ => wait = Some((since, since + patience(waited))),
                },
            }
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.waits.lock().stage, UploadStage::Ended(_))
    }

    fn end(&self) {
        let mut waits = self.waits.lock();
        if !matches!(waits.stage, UploadStage::Ended(_)) {
            waits.set_stage(UploadStage::Ended(Instant::now()));
            self.changed.notify_one();
        }
    }

    /// The connection asks for more.
    fn asked(&self) {
        let mut waits = self.waits.lock();
        if matches!(waits.stage, UploadStage::Target(_)) {
            waits.set_stage(UploadStage::Client);
        }
    }

    fn took(&self, length: u64) {
        self.bytes.fetch_add(length, Ordering::Relaxed);
        self.waits.lock().set_stage(UploadStage::Target(Instant::now()));
        self.changed.notify_one();
    }
}

struct LimitedBody {
    body: RequestBody,
    left: u64,
    progress: Arc<UploadProgress>,
}

impl LimitedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.progress.asked();
        let Some(frame) = ready!(self.body.as_mut().poll_frame(cx)).transpose()? else { return Poll::Ready(None) };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.left = self.left.checked_sub(length).ok_or(RequestBodyError::TooLarge)?;
        self.progress.took(length);
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for LimitedBody {
    fn drop(&mut self) {
        self.progress.end();
    }
}

impl Body for LimitedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = ready!(self.poll(cx));
        if let Some(Err(fault)) = &polled {
            let _ = self.progress.fault.set(*fault);
        }
        // After the last byte of a known length, hyper does not poll the body again.
        if !matches!(polled, Some(Ok(_))) || self.body.is_end_stream() {
            self.progress.end();
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
