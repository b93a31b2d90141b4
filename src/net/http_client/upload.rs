//! A request body that is sent to a target, and that can be replayed while it is buffered.
//! What does the connection send after the head, and is all of it sent?

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

/// The largest piece, in bytes, of a body that is sent in pieces. Over HTTP/2, hyper and h2 take up to two pieces more than the
/// target's window has room for.
const PIECE_MAX: usize = 16 * 1024;

/// The largest part of a streaming body, in bytes, that is buffered until the response begins. A request that the
/// target has not processed can then be sent again.
const REPLAY_BUFFER_MAX: usize = 64 * 1024;

pub struct Upload {
    content: UploadContent,
    permit: Option<UploadPermit>,
    /// The task that sends the body can be ended; see [`driver::bind_upload`].
    is_bound: bool,
}

enum UploadContent {
    Whole(Option<Bytes>),
    Pieces(Pieces),
    Stream(BoxBody),
    Replayable(ReplayAttempt),
    /// The body has failed after the response had begun: nothing more of it is sent, and it does not end either.
    Stopped,
}

/// Follows a body that is sent in pieces.
pub trait PieceObserver: Send + Sync {
    /// The connection has accepted all earlier pieces of this attempt, and takes one of this length.
    fn taken(&self, length: u64, is_first: bool, is_last: bool);
}

/// A whole body that the connection takes in pieces, so that its progress is known.
#[derive(Clone)]
struct Pieces {
    rest: Bytes,
    is_first: bool,
    observer: Arc<dyn PieceObserver>,
}

/// An attempt to send a body that can be replayed.
struct ReplayAttempt {
    source: Arc<Mutex<ReplaySource>>,
    /// The bytes that an earlier attempt has read, and that this attempt has not sent.
    replayed: Bytes,
    /// The number of the attempt, from 0. Only the last attempt may read the body.
    attempt: usize,
}

struct ReplaySource {
    body: BoxBody,
    /// All bytes that were read of `body`; `None`: more than [`REPLAY_BUFFER_MAX`], or no longer needed.
    buffered: Option<BytesMut>,
    /// The number of the last attempt.
    attempt: usize,
}

/// Replays the body of a request. The body is buffered until the handle is dropped.
pub(super) struct ReplayHandle(ReplayContent);

enum ReplayContent {
    Whole(Bytes),
    Pieces(Pieces),
    Source(Arc<Mutex<ReplaySource>>),
    Nothing,
}

/// A chunk of a body. It holds the stream's permit until it is written: h2 may buffer it while the target opens no
/// window, even after the exchange has ended.
pub struct UploadChunk {
    bytes: Bytes,
    _permit: Option<UploadPermit>,
}

impl Upload {
    pub fn whole(bytes: Bytes) -> Self {
        Self { content: UploadContent::Whole((!bytes.is_empty()).then_some(bytes)), permit: None, is_bound: false }
    }

    /// Sends a whole body like [`Upload::whole`]. The observer learns how far the connection is, if the body has several pieces.
    pub fn observed(bytes: Bytes, observer: Arc<dyn PieceObserver>) -> Self {
        Self {
            content: UploadContent::Pieces(Pieces { rest: bytes, is_first: true, observer }),
            permit: None,
            is_bound: false,
        }
    }

    pub fn stream(body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self { content: UploadContent::Stream(Box::pin(body)), permit: None, is_bound: false }
    }

    /// Starts to buffer the bytes that are sent of the body.
    pub(super) fn buffer_for_replay(&mut self) -> ReplayHandle {
        let source = match std::mem::replace(&mut self.content, UploadContent::Whole(None)) {
            UploadContent::Whole(bytes) => {
                self.content = UploadContent::Whole(bytes.clone());
                return ReplayHandle(bytes.map_or(ReplayContent::Nothing, ReplayContent::Whole));
            }
            UploadContent::Pieces(pieces) => {
                self.content = UploadContent::Pieces(pieces.clone());
                return ReplayHandle(ReplayContent::Pieces(pieces));
            }
            // This is the second attempt, or a later one.
            UploadContent::Replayable(attempt) => {
                let source = Arc::clone(&attempt.source);
                self.content = UploadContent::Replayable(attempt);
                return ReplayHandle(ReplayContent::Source(source));
            }
            UploadContent::Stopped => {
                self.content = UploadContent::Stopped;
                return ReplayHandle(ReplayContent::Nothing);
            }
            UploadContent::Stream(body) => {
                Arc::new(Mutex::new(ReplaySource { body, buffered: Some(BytesMut::new()), attempt: 0 }))
            }
        };
        self.content = UploadContent::Replayable(ReplayAttempt {
            source: Arc::clone(&source),
            replayed: Bytes::new(),
            attempt: 0,
        });
        ReplayHandle(ReplayContent::Source(source))
    }

    /// Sets the permit of the stream that sends the body.
    pub(super) fn set_stream(&mut self, permit: Option<UploadPermit>) {
        self.permit = permit;
        self.is_bound = false;
    }
}

impl ReplayHandle {
    /// Returns the same body for another attempt; `None`: too much of it was sent. The earlier attempt reads no more.
    pub(super) fn replay(mut self) -> Option<Upload> {
        let content = match std::mem::replace(&mut self.0, ReplayContent::Nothing) {
            ReplayContent::Nothing => UploadContent::Whole(None),
            ReplayContent::Whole(bytes) => UploadContent::Whole(Some(bytes)),
            ReplayContent::Pieces(pieces) => UploadContent::Pieces(pieces),
            ReplayContent::Source(source) => {
                let mut locked = source.lock();
                let first = Bytes::copy_from_slice(locked.buffered.as_ref()?);
                locked.attempt += 1;
                let attempt = locked.attempt;
                drop(locked);
                UploadContent::Replayable(ReplayAttempt { source, replayed: first, attempt })
            }
        };
        Some(Upload { content, permit: None, is_bound: false })
    }
}

impl Pieces {
    fn next(&mut self) -> Option<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_MAX));
        if piece.is_empty() {
            return None;
        }
        self.observer.taken(piece.len() as u64, std::mem::take(&mut self.is_first), self.rest.is_empty());
        Some(piece)
    }
}

impl ReplayAttempt {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.replayed.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.replayed)))));
        }
        let mut source = self.source.lock();
        if source.attempt != self.attempt {
            return Poll::Ready(Some(Err("the request is sent over another connection".into())));
        }
        let frame = ready!(source.body.as_mut().poll_frame(cx));
        let buffered = &mut source.buffered;
        match frame.as_ref().and_then(|frame| frame.as_ref().ok()).map(Frame::data_ref) {
            Some(Some(data))
                if buffered.as_ref().is_some_and(|bytes| bytes.len() + data.len() <= REPLAY_BUFFER_MAX) =>
            {
                buffered.iter_mut().for_each(|bytes| bytes.extend_from_slice(data));
            }
            // The body is too large to be buffered, or has trailers, which are not buffered.
            Some(_) => *buffered = None,
            None => {}
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, first) = (self.source.lock().body.size_hint(), self.replayed.len() as u64);
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
        let Self { content, permit, is_bound } = &mut *self;
        if !*is_bound
            && let Some(permit) = permit
            && !matches!(content, UploadContent::Whole(_))
        {
            *is_bound = driver::bind_upload(permit);
            if !*is_bound {
                // hyper polls the body once before it spawns the task that sends it.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let chunk = |bytes| UploadChunk { bytes, _permit: permit.clone() };
        let frame = match content {
            UploadContent::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(chunk(bytes))))),
            UploadContent::Pieces(pieces) => {
                return Poll::Ready(pieces.next().map(|bytes| Ok(Frame::data(chunk(bytes)))));
            }
            UploadContent::Stream(body) => body.as_mut().poll_frame(cx),
            UploadContent::Replayable(attempt) => attempt.poll_frame(cx),
            UploadContent::Stopped => return Poll::Pending,
        };
        // hyper would reset the stream. But an early response goes on although the rest of its request will not follow. The
        // task that sends the body ends after the exchange; until then hyper may poll again.
        if matches!(frame, Poll::Ready(Some(Err(_)))) && permit.as_ref().is_some_and(UploadPermit::has_response) {
            *content = UploadContent::Stopped;
            return Poll::Pending;
        }
        frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            UploadContent::Whole(bytes) => bytes.is_none(),
            UploadContent::Pieces(pieces) => pieces.rest.is_empty(),
            UploadContent::Stream(body) => body.is_end_stream(),
            UploadContent::Stopped => false,
            UploadContent::Replayable(attempt) => {
                attempt.replayed.is_empty() && attempt.source.lock().body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            UploadContent::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            UploadContent::Pieces(pieces) => SizeHint::with_exact(pieces.rest.len() as u64),
            UploadContent::Stream(body) => body.size_hint(),
            UploadContent::Stopped => SizeHint::default(),
            UploadContent::Replayable(attempt) => attempt.size_hint(),
        }
    }
}

impl Drop for ReplayHandle {
    fn drop(&mut self) {
        if let ReplayContent::Source(source) = &self.0 {
            source.lock().buffered = None;
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
