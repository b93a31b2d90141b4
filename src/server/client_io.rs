//! A client's connection as bytes, whatever they come through.
//! What is there to read, and how does it end?

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;

use crate::delivery::tunnel::TunnelBytes;
use crate::net::listen;
use crate::net::tls::accept::TlsAcceptError;

pub(super) trait ClientIo: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether to drop it resets the connection, so that nobody takes its end for the end of an answer.
    fn resets_when_dropped(&mut self, resets: bool);

    /// Waits, beside all that is still unread, until no more will come. In place of `poll_read`: it takes its waker.
    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Acknowledges at once what has arrived, where the stream is TCP: the client holds back what follows (RFC 896).
    fn acknowledge(&mut self) {}
}

impl ClientIo for listen::ClientStream {
    fn resets_when_dropped(&mut self, resets: bool) {
        listen::ClientStream::set_abort_on_drop(self, resets);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        listen::ClientStream::poll_read_closed(self, cx)
    }

    fn acknowledge(&mut self) {
        listen::ClientStream::quickack(self);
    }
}

/// In place of a stream that was taken out.
impl ClientIo for tokio::io::Empty {
    fn resets_when_dropped(&mut self, _: bool) {}

    fn poll_read_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

#[cfg(test)]
impl ClientIo for tokio::io::DuplexStream {
    fn resets_when_dropped(&mut self, _: bool) {}

    fn poll_read_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl ClientIo for Box<dyn ClientIo> {
    fn resets_when_dropped(&mut self, resets: bool) {
        (**self).resets_when_dropped(resets);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (**self).poll_read_closed(cx)
    }

    fn acknowledge(&mut self) {
        (**self).acknowledge();
    }
}

impl<S: ClientIo> ClientIo for TlsStream<S> {
    fn resets_when_dropped(&mut self, resets: bool) {
        self.get_mut().0.resets_when_dropped(resets);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.poll_read_closed(cx)
    }

    fn acknowledge(&mut self) {
        self.get_mut().0.acknowledge();
    }
}

/// Bytes of empty lines before a request.
const EMPTY_LINES_MAX: usize = 64;

/// With less room than this, more is made.
const ROOM_LEAST: usize = 1024;
const ROOM: usize = 8 * 1024;

thread_local! {
    /// Where the first bytes of a request arrive.
    static SCRATCH: RefCell<Box<[u8; 2 * ROOM]>> = RefCell::new(Box::new([0; 2 * ROOM]));
}

/// Reads what there is. A buffer that has never had room gets as much as has come, and none before: whoever waits for the
/// next request holds no memory for it.
pub(super) fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() == 0 {
        return SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[..]);
            ready!(Pin::new(stream).poll_read(cx, &mut read))?;
            buffer.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        });
    }
    if buffer.capacity() - buffer.len() < ROOM_LEAST {
        buffer.reserve(ROOM);
    }
    pin!(stream.read_buf(buffer)).poll(cx)
}

/// Returns whether the first byte is that of a request in plain HTTP (a method begins with a letter, a TLS handshake does
/// not), and the stream from its first byte on. Empty lines before a request are skipped (RFC 9112 §2.2).
pub(super) async fn detect_http<S: ClientIo>(
    mut stream: S,
    deadline: Instant,
) -> Result<(bool, Rewind<S>), TlsAcceptError> {
    let mut first = BytesMut::new();
    loop {
        let read = timeout_at(deadline, poll_fn(|cx| poll_read(&mut stream, &mut first, cx))).await;
        if read.map_err(|_| TlsAcceptError::Timeout)?.map_err(TlsAcceptError::Failed)? == 0 {
            return Err(TlsAcceptError::Failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let begin = first.iter().find(|byte| !matches!(byte, b'\r' | b'\n'));
        if begin.is_some() || first.len() > EMPTY_LINES_MAX {
            let is_http = begin.is_some_and(u8::is_ascii_alphabetic);
            return Ok((is_http, Rewind::new(first, stream)));
        }
    }
}

/// Reads up to `most` bytes and drops them; gives their number, 0 at the end of the stream.
pub(super) fn poll_discard(
    stream: &mut (impl AsyncRead + Unpin),
    most: u64,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(scratch.len());
        let mut read = ReadBuf::new(&mut scratch[..most]);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// A stream whose first bytes were read already, to see what they are.
pub(super) struct Rewind<S> {
    first: BytesMut,
    stream: S,
}

impl<S: ClientIo> Rewind<S> {
    pub(super) fn new(first: BytesMut, stream: S) -> Self {
        // A buffer with nothing in it has room all the same, for as long as the connection lives.
        let first = if first.is_empty() { BytesMut::new() } else { first };
        Self { first, stream }
    }
}

impl<S: ClientIo> ClientIo for Rewind<S> {
    fn resets_when_dropped(&mut self, resets: bool) {
        self.stream.resets_when_dropped(resets);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_read_closed(cx)
    }

    fn acknowledge(&mut self) {
        self.stream.acknowledge();
    }
}

impl<S: ClientIo> AsyncRead for Rewind<S> {
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

impl<S: ClientIo> AsyncWrite for Rewind<S> {
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

/// The client's end of a tunnel that ends here: its bytes are counted.
pub(super) struct CountingStream<S> {
    pub(super) stream: S,
    pub(super) passed: Arc<TunnelBytes>,
}

impl<S: ClientIo> ClientIo for CountingStream<S> {
    fn resets_when_dropped(&mut self, resets: bool) {
        self.stream.resets_when_dropped(resets);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_read_closed(cx)
    }

    fn acknowledge(&mut self) {
        self.stream.acknowledge();
    }
}

impl<S: ClientIo> AsyncRead for CountingStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.passed.up.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: ClientIo> AsyncWrite for CountingStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.count_down(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.count_down(&written);
        written
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

impl<S> CountingStream<S> {
    fn count_down(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = written {
            self.passed.down.fetch_add(*written as u64, Ordering::Relaxed);
        }
    }
}
