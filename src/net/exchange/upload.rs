//! A request body on its way to a target.
//! What does the connection send after the head, and has all of it left?

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::streams::Part;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub struct Upload {
    content: Content,
    slot: Option<Part>,
}

enum Content {
    Whole(Option<Bytes>),
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

/// Some of it. It has the slot of its stream until it is written: HTTP/2 may keep it back for as long as the target
/// opens no window, whatever became of the exchange.
pub struct Piece {
    bytes: Bytes,
    _slot: Option<Part>,
}

impl Upload {
    pub fn whole(bytes: Bytes) -> Self {
        Self { content: Content::Whole((!bytes.is_empty()).then_some(bytes)), slot: None }
    }

    pub fn stream(body: impl Body<Data = Bytes, Error = BoxError> + Send + 'static) -> Self {
        Self { content: Content::Stream(Box::pin(body)), slot: None }
    }

    /// The same once more; a stream cannot be had twice.
    pub(super) fn again(&self) -> Option<Self> {
        match &self.content {
            Content::Whole(bytes) => Some(Self { content: Content::Whole(bytes.clone()), slot: None }),
            Content::Stream(_) => None,
        }
    }

    /// On which stream it goes from now on.
    pub(super) fn goes_on(&mut self, slot: Option<Part>) {
        self.slot = slot;
    }
}

impl Body for Upload {
    type Data = Piece;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BoxError>>> {
        let Self { content, slot } = &mut *self;
        let piece = |bytes| Piece { bytes, _slot: slot.clone() };
        match content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(piece(bytes))))),
            Content::Stream(body) => {
                body.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Stream(body) => body.size_hint(),
        }
    }
}

impl Buf for Piece {
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
