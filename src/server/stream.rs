//! A client's connection as bytes, whatever they come through.
//! What is there to read, and how does it end?

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::net::listen;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether to drop it resets the connection, so that nobody takes its end for the end of an answer.
    fn resets_when_dropped(&mut self, resets: bool);
}

impl Stream for listen::Stream {
    fn resets_when_dropped(&mut self, resets: bool) {
        listen::Stream::resets_when_dropped(self, resets);
    }
}

/// In place of a stream that was taken out.
impl Stream for tokio::io::Empty {
    fn resets_when_dropped(&mut self, _: bool) {}
}

impl Stream for Box<dyn Stream> {
    fn resets_when_dropped(&mut self, resets: bool) {
        (**self).resets_when_dropped(resets);
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    fn resets_when_dropped(&mut self, resets: bool) {
        self.get_mut().0.resets_when_dropped(resets);
    }
}

/// A stream whose first bytes were read already, to see what they are.
pub(super) struct Replayed<S> {
    first: BytesMut,
    stream: S,
}

impl<S: Stream> Replayed<S> {
    pub(super) fn new(first: BytesMut, stream: S) -> Self {
        // A buffer with nothing in it has room all the same, for as long as the connection lives.
        let first = if first.is_empty() { BytesMut::new() } else { first };
        Self { first, stream }
    }
}

impl<S: Stream> Stream for Replayed<S> {
    fn resets_when_dropped(&mut self, resets: bool) {
        self.stream.resets_when_dropped(resets);
    }
}

impl<S: Stream> AsyncRead for Replayed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            self.first = BytesMut::new(); // the room it took is not needed for as long as the connection lives
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Replayed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
