//! The part of a request that is not written yet.
//! Which bytes does the target get next, and from which buffer?

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::Body;
use tokio::io::AsyncWrite;

use super::head::{RequestFraming, write_request};
use crate::http_message::{Fields, HeadBuffer, Request};
use crate::net::http_client::Upload;
use crate::net::http_client::http1_error::Http1Error;

const CHUNK_END: &[u8] = b"\r\n";
const CHUNK_END_AND_LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A request that is being written.
pub(super) struct Outgoing {
    /// The head, or the size of a chunk.
    before: HeadBuffer,
    /// The bytes of `before` that are written.
    written: usize,
    /// A part of the body, in the buffer into which it was read.
    chunk: Bytes,
    after: &'static [u8],
    /// `None`: the whole body was taken.
    body: Option<Upload>,
    framing: RequestFraming,
    is_flushed: bool,
}

/// Why a request can no longer be written.
pub(super) enum OutgoingError {
    /// The body of the request failed.
    Body(Http1Error),
    /// The connection takes no more bytes.
    Unwritable,
}

impl Outgoing {
    /// Returns the request to write, and empty fields with the memory of its fields.
    pub(super) fn new(mut request: Request<Upload>) -> (Self, Fields) {
        let mut before = HeadBuffer::take();
        let framing = write_request(&mut request, &mut before);
        let Request { mut fields, body, .. } = request;
        fields.clear();
        let outgoing =
            Self { before, written: 0, chunk: Bytes::new(), after: b"", body: Some(body), framing, is_flushed: false };
        (outgoing, fields)
    }

    /// Writes until the whole request is written.
    pub(super) fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), OutgoingError>> {
        loop {
            // The first part of the body goes with the head. A later one is taken when the target has room for it.
            let takes_body = self.chunk.is_empty() && self.after.is_empty() && self.body.is_some();
            let is_body_pending = takes_body && self.poll_body(cx).map_err(OutgoingError::Body)?.is_pending();
            if self.has_bytes() {
                ready!(self.poll_write_bytes(io, cx)).map_err(|_| OutgoingError::Unwritable)?;
                self.is_flushed = false;
            } else if !self.is_flushed {
                ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(|_| OutgoingError::Unwritable)?;
                self.is_flushed = true;
            } else if is_body_pending {
                return Poll::Pending;
            } else if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn has_bytes(&self) -> bool {
        self.written < self.before.len() || !self.chunk.is_empty() || !self.after.is_empty()
    }

    /// Takes the next part of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http1Error>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(())) };
        if self.framing == RequestFraming::Length(0) && body.is_end_stream() {
            self.body = None;
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let has_ended = body.is_end_stream();
                // Trailers are dropped: they were not announced to the target.
                let data =
                    frame.into_data().map_or_else(|_| Bytes::new(), |mut data| data.copy_to_bytes(data.remaining()));
                self.push(data, has_ended)?;
                if has_ended {
                    self.end()?;
                }
            }
            Some(Err(_)) => return Poll::Ready(Err(Http1Error::Upload)),
            None => {
                if self.framing == RequestFraming::Chunked {
                    self.after = LAST_CHUNK;
                }
                self.end()?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn push(&mut self, data: Bytes, is_last: bool) -> Result<(), Http1Error> {
        self.before.drain(..std::mem::take(&mut self.written));
        match &mut self.framing {
            RequestFraming::Length(remaining) => {
                *remaining = remaining.checked_sub(data.len() as u64).ok_or(Http1Error::Upload)?;
            }
            // An empty chunk would end the body.
            RequestFraming::Chunked if data.is_empty() => self.after = if is_last { LAST_CHUNK } else { b"" },
            RequestFraming::Chunked => {
                write!(self.before, "{:x}\r\n", data.len()).map_err(|_| Http1Error::Upload)?;
                self.after = if is_last { CHUNK_END_AND_LAST_CHUNK } else { CHUNK_END };
            }
        }
        self.chunk = data;
        Ok(())
    }

    /// Ends the body, which must have its announced length.
    fn end(&mut self) -> Result<(), Http1Error> {
        self.body = None;
        match self.framing {
            RequestFraming::Length(1..) => Err(Http1Error::Upload),
            _ => Ok(()),
        }
    }

    fn poll_write_bytes(&mut self, io: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let slices = [IoSlice::new(&self.before[self.written..]), IoSlice::new(&self.chunk), IoSlice::new(self.after)];
        let mut count = ready!(Pin::new(io).poll_write_vectored(cx, &slices))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let taken = count.min(self.before.len() - self.written);
        self.written += taken;
        count -= taken;
        let taken = count.min(self.chunk.len());
        self.chunk.advance(taken);
        self.after = self.after.get(count - taken..).unwrap_or_default();
        Poll::Ready(Ok(()))
    }
}
