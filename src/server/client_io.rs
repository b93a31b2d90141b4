//! A client's stream of bytes, independent of its transport.
//! Which operations does every transport of a client support?

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;

use crate::delivery::tunnel::TunnelBytes;
use crate::http_message::{keep_read_buffer, take_read_buffer};
use crate::net::listen;
use crate::net::splice::MaybeSocket;
use crate::net::tls::accept::TlsAcceptError;

/// A client's stream: a socket, TLS over it, a stream of HTTP/2, or the inside of a tunnel.
pub(super) trait ClientIo: AsyncRead + AsyncWrite + MaybeSocket + Send + Unpin {
    /// Sets whether dropping the stream resets the connection, so that no peer takes its end for the end of a response.
    fn set_abort_on_drop(&mut self, abort: bool);

    /// Resolves when the peer will send no more, even if bytes are still unread. It replaces the waker of `poll_read`.
    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Makes TCP acknowledge the received bytes at once: the client may delay the next ones until then (RFC 896).
    fn acknowledge(&mut self) {}
}

impl ClientIo for listen::ClientStream {
    fn set_abort_on_drop(&mut self, abort: bool) {
        listen::ClientStream::set_abort_on_drop(self, abort);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        listen::ClientStream::poll_read_closed(self, cx)
    }

    fn acknowledge(&mut self) {
        listen::ClientStream::quickack(self);
    }
}

impl MaybeSocket for tokio::io::Empty {}

/// Replaces a stream that was taken out of its connection.
impl ClientIo for tokio::io::Empty {
    fn set_abort_on_drop(&mut self, _: bool) {}

    fn poll_read_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

#[cfg(test)]
impl ClientIo for tokio::io::DuplexStream {
    fn set_abort_on_drop(&mut self, _: bool) {}

    fn poll_read_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl ClientIo for Box<dyn ClientIo> {
    fn set_abort_on_drop(&mut self, abort: bool) {
        (**self).set_abort_on_drop(abort);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (**self).poll_read_closed(cx)
    }

    fn acknowledge(&mut self) {
        (**self).acknowledge();
    }
}

impl MaybeSocket for Box<dyn ClientIo> {
    fn read_socket(&self) -> Option<&TcpStream> {
        (**self).read_socket()
    }

    fn write_socket(&self) -> Option<&TcpStream> {
        (**self).write_socket()
    }
}

impl<S> MaybeSocket for TlsStream<S> {}

impl<S: ClientIo> ClientIo for TlsStream<S> {
    fn set_abort_on_drop(&mut self, abort: bool) {
        self.get_mut().0.set_abort_on_drop(abort);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.poll_read_closed(cx)
    }

    fn acknowledge(&mut self) {
        self.get_mut().0.acknowledge();
    }
}

/// Limits the empty lines before a request, in bytes.
const EMPTY_LINES_MAX: usize = 64;

/// The free capacity below which a read buffer grows, in bytes.
const READ_BUFFER_MIN: usize = 1024;
const READ_BUFFER_LEN: usize = 8 * 1024;

thread_local! {
    /// The buffer for the first bytes of a request. Each thread shares one among its idle connections.
    static SCRATCH_BUFFER: RefCell<Box<[u8; 2 * READ_BUFFER_LEN]>> = RefCell::new(Box::new([0; 2 * READ_BUFFER_LEN]));
}

/// Reads available bytes into `buffer`. An empty buffer gets about as much as has arrived, and only then:
/// an idle connection holds no memory for its next request.
pub(super) fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.is_empty() && buffer.capacity() < READ_BUFFER_MIN {
        return SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[..]);
            ready!(Pin::new(stream).poll_read(cx, &mut read))?;
            let length = read.filled().len();
            if length > 0 {
                keep_read_buffer(std::mem::replace(buffer, take_read_buffer(length, length)));
                buffer.extend_from_slice(read.filled());
            }
            Poll::Ready(Ok(read.filled().len()))
        });
    }
    if buffer.capacity() - buffer.len() < READ_BUFFER_MIN {
        buffer.reserve(READ_BUFFER_LEN);
    }
    pin!(stream.read_buf(buffer)).poll(cx)
}

/// Returns whether the client speaks plain HTTP, and the stream with its first bytes restored. A method begins with a
/// letter, a TLS handshake does not. Empty lines before a request are skipped (RFC 9112 §2.2).
pub(super) async fn detect_http<S: ClientIo>(
    mut stream: S,
    deadline: Instant,
) -> Result<(bool, Rewind<S>), TlsAcceptError> {
    let mut received = BytesMut::new();
    loop {
        let read = timeout_at(deadline, poll_fn(|cx| poll_read(&mut stream, &mut received, cx))).await;
        if read.map_err(|_| TlsAcceptError::Timeout)?.map_err(TlsAcceptError::Failed)? == 0 {
            return Err(TlsAcceptError::Failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let first_byte = received.iter().find(|byte| !matches!(byte, b'\r' | b'\n'));
        if first_byte.is_some() || received.len() > EMPTY_LINES_MAX {
            let is_http = first_byte.is_some_and(u8::is_ascii_alphabetic);
            return Ok((is_http, Rewind::new(received, stream)));
        }
    }
}

/// Reads up to `max_bytes` bytes and discards them. Returns their number, or 0 at the end of the stream.
pub(super) fn poll_discard(
    stream: &mut (impl AsyncRead + Unpin),
    max_bytes: u64,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    SCRATCH_BUFFER.with_borrow_mut(|scratch| {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(scratch.len());
        let mut read = ReadBuf::new(&mut scratch[..max_bytes]);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// A stream whose first bytes were read already, and are returned again.
pub(super) struct Rewind<S> {
    prefix: BytesMut,
    stream: S,
}

impl<S: ClientIo> Rewind<S> {
    pub(super) fn new(prefix: BytesMut, stream: S) -> Self {
        // An empty buffer may have capacity, which would last as long as the connection.
        let prefix = if prefix.is_empty() { BytesMut::new() } else { prefix };
        Self { prefix, stream }
    }
}

impl<S: ClientIo> MaybeSocket for Rewind<S> {
    fn read_socket(&self) -> Option<&TcpStream> {
        self.stream.read_socket().filter(|_| self.prefix.is_empty())
    }

    fn write_socket(&self) -> Option<&TcpStream> {
        self.stream.write_socket()
    }
}

impl<S: ClientIo> ClientIo for Rewind<S> {
    fn set_abort_on_drop(&mut self, abort: bool) {
        self.stream.set_abort_on_drop(abort);
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
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            self.prefix = BytesMut::new(); // frees its memory while the connection is open
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

/// The client's stream of an inspected tunnel. It counts the tunnel's bytes.
pub(super) struct CountingStream<S> {
    pub(super) stream: S,
    pub(super) counters: Arc<TunnelBytes>,
}

impl<S> MaybeSocket for CountingStream<S> {}

impl<S: ClientIo> ClientIo for CountingStream<S> {
    fn set_abort_on_drop(&mut self, abort: bool) {
        self.stream.set_abort_on_drop(abort);
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
        self.counters.up.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: ClientIo> AsyncWrite for CountingStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.count_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.count_written(&written);
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
    fn count_written(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = written {
            self.counters.down.fetch_add(*written as u64, Ordering::Relaxed);
        }
    }
}
