//! A request body on its way to a target.
//! What does the connection send after the head, and has all of it left?

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::driver;
use super::streams::UploadPermit;

type BodyError = Box<dyn std::error::Error + Send + Sync>;
type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>;

/// Bytes of a streaming body that are kept until the response begins, so that a request that the target has not
/// processed can be sent again.
const KEPT_MAX: usize = 64 * 1024;

pub struct Upload {
    content: UploadContent,
    slot: Option<UploadPermit>,
    /// The task that sends it can be ended: see [`driver::bind`].
    is_bound: bool,
}

enum UploadContent {
    Whole(Option<Bytes>),
    Stream(BoxBody),
    Replayable(ReplayAttempt),
}

/// One sending of a body that may be sent again.
struct ReplayAttempt {
    source: Arc<Mutex<ReplaySource>>,
    /// What an earlier sending has read, still to be sent by this one.
    first: Bytes,
    /// Counted from 0. Only the last sending may read on.
    sending: usize,
}

struct ReplaySource {
    body: BoxBody,
    /// All that was read of `body`; `None`: more than [`KEPT_MAX`], or no longer needed.
    kept: Option<BytesMut>,
    /// The last sending.
    sending: usize,
}

/// The body of a request that is being sent, to be sent again; until it is dropped, the body is kept.
pub(super) struct ReplayHandle(ReplayContent);

enum ReplayContent {
    Whole(Bytes),
    Source(Arc<Mutex<ReplaySource>>),
    Nothing,
}

/// Some of it. It has the slot of its stream until it is written: HTTP/2 may keep it back for as long as the target
/// opens no window, whatever became of the exchange.
pub struct UploadChunk {
    bytes: Bytes,
    _slot: Option<UploadPermit>,
}

impl Upload {
    pub fn whole(bytes: Bytes) -> Self {
        Self { content: UploadContent::Whole((!bytes.is_empty()).then_some(bytes)), slot: None, is_bound: false }
    }

    pub fn stream(body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self { content: UploadContent::Stream(Box::pin(body)), slot: None, is_bound: false }
    }

    /// Keeps what is sent of the body from now on.
    pub(super) fn buffer_for_replay(&mut self) -> ReplayHandle {
        let source = match std::mem::replace(&mut self.content, UploadContent::Whole(None)) {
            UploadContent::Whole(bytes) => {
                self.content = UploadContent::Whole(bytes.clone());
                return ReplayHandle(bytes.map_or(ReplayContent::Nothing, ReplayContent::Whole));
            }
            // It is sent for the second time, or a later one.
            UploadContent::Replayable(sharing) => {
                let source = Arc::clone(&sharing.source);
                self.content = UploadContent::Replayable(sharing);
                return ReplayHandle(ReplayContent::Source(source));
            }
            UploadContent::Stream(body) => {
                Arc::new(Mutex::new(ReplaySource { body, kept: Some(BytesMut::new()), sending: 0 }))
            }
        };
        self.content =
            UploadContent::Replayable(ReplayAttempt { source: Arc::clone(&source), first: Bytes::new(), sending: 0 });
        ReplayHandle(ReplayContent::Source(source))
    }

    /// On which stream it goes from now on.
    pub(super) fn goes_on(&mut self, slot: Option<UploadPermit>) {
        self.slot = slot;
        self.is_bound = false;
    }
}

impl ReplayHandle {
    /// Returns the same body for another sending; `None`: too much of it has gone. The sending before reads no more.
    pub(super) fn again(mut self) -> Option<Upload> {
        let content = match std::mem::replace(&mut self.0, ReplayContent::Nothing) {
            ReplayContent::Nothing => UploadContent::Whole(None),
            ReplayContent::Whole(bytes) => UploadContent::Whole(Some(bytes)),
            ReplayContent::Source(source) => {
                let mut locked = source.lock();
                let first = Bytes::copy_from_slice(locked.kept.as_ref()?);
                locked.sending += 1;
                let sending = locked.sending;
                drop(locked);
                UploadContent::Replayable(ReplayAttempt { source, first, sending })
            }
        };
        Some(Upload { content, slot: None, is_bound: false })
    }
}

impl ReplayAttempt {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        let mut source = self.source.lock();
        if source.sending != self.sending {
            return Poll::Ready(Some(Err("the request is sent over another connection".into())));
        }
        let frame = ready!(source.body.as_mut().poll_frame(cx));
        let ReplaySource { kept, .. } = &mut *source;
        match frame.as_ref().and_then(|frame| frame.as_ref().ok()).map(Frame::data_ref) {
            Some(Some(data)) if kept.as_ref().is_some_and(|kept| kept.len() + data.len() <= KEPT_MAX) => {
                kept.iter_mut().for_each(|kept| kept.extend_from_slice(data));
            }
            // Too much, or trailers, which are not kept.
            Some(_) => *kept = None,
            None => {}
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, first) = (self.source.lock().body.size_hint(), self.first.len() as u64);
        match hint.exact() {
            Some(rest) => hint.set_exact(rest + first),
            None => hint.set_lower(hint.lower() + first),
        }
        hint
    }
}

impl Body for Upload {
    type Data = UploadChunk;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<UploadChunk>, BodyError>>> {
        let Self { content, slot, is_bound } = &mut *self;
        if !*is_bound
            && let Some(part) = slot
            && !matches!(content, UploadContent::Whole(_))
        {
            *is_bound = driver::bind(part);
            if !*is_bound {
                // hyper polls it once before it spawns the task that sends it.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let piece = |bytes| UploadChunk { bytes, _slot: slot.clone() };
        let frame = match content {
            UploadContent::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(piece(bytes))))),
            UploadContent::Stream(body) => body.as_mut().poll_frame(cx),
            UploadContent::Replayable(sharing) => sharing.poll_frame(cx),
        };
        frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            UploadContent::Whole(bytes) => bytes.is_none(),
            UploadContent::Stream(body) => body.is_end_stream(),
            UploadContent::Replayable(sharing) => {
                sharing.first.is_empty() && sharing.source.lock().body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            UploadContent::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            UploadContent::Stream(body) => body.size_hint(),
            UploadContent::Replayable(sharing) => sharing.size_hint(),
        }
    }
}

impl Drop for ReplayHandle {
    fn drop(&mut self) {
        if let ReplayContent::Source(source) = &self.0 {
            source.lock().kept = None;
        }
    }
}

impl Buf for UploadChunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }
    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }
    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }
    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}
