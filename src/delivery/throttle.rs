//! Bodies and tunnels that stay within the bandwidth of their limits.
//! When may these bytes pass?

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::splice::MaybeSocket;
use crate::state::limits::bandwidth::BandwidthLimiter;

/// Bytes that one read of a tunnel takes at most.
const READ_CHUNK: usize = 16 * 1024;

/// A body or stream under a bandwidth limit. Without a limit, every call goes to the inner one.
pub(super) struct Throttled<T> {
    inner: T,
    throttle: Option<Box<Throttle>>,
}

/// The bandwidth limit, and the bytes that wait for it. Bytes take their share after they have arrived.
struct Throttle {
    limiter: BandwidthLimiter,
    pending: Bytes,
}

impl<T> Throttled<T> {
    pub(super) fn new(inner: T, limiter: Option<BandwidthLimiter>) -> Self {
        Self { inner, throttle: limiter.map(|limiter| Box::new(Throttle { limiter, pending: Bytes::new() })) }
    }

    fn pending(&self) -> usize {
        self.throttle.as_ref().map_or(0, |throttle| throttle.pending.len())
    }
}

impl Throttle {
    /// Returns at most `max` of the pending bytes.
    fn poll_release(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Bytes> {
        let granted = ready!(self.limiter.poll_acquire(cx, self.pending.len().min(max)));
        if granted == self.pending.len() {
            return Poll::Ready(std::mem::take(&mut self.pending)); // frees the buffer
        }
        Poll::Ready(self.pending.split_to(granted))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Throttled<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { inner, throttle } = self.get_mut();
        let Some(throttle) = throttle else { return Pin::new(inner).poll_frame(cx) };
        if throttle.pending.is_empty() {
            let Some(frame) = ready!(Pin::new(inner).poll_frame(cx)).transpose()? else { return Poll::Ready(None) };
            match frame.into_data() {
                Ok(data) => throttle.pending = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        throttle.poll_release(cx, usize::MAX).map(|data| Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.pending() == 0 && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, pending) = (self.inner.size_hint(), self.pending() as u64);
        if pending > 0 {
            // The upper bound first: the lower may not exceed it.
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + pending);
            }
            hint.set_lower(hint.lower() + pending);
        }
        hint
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Throttled<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, throttle } = self.get_mut();
        let Some(throttle) = throttle else { return Pin::new(inner).poll_read(cx, buf) };
        if throttle.pending.is_empty() {
            let mut chunk = BytesMut::with_capacity(READ_CHUNK);
            ready!(pin!(inner.read_buf(&mut chunk)).poll(cx))?;
            throttle.pending = chunk.freeze();
        }
        buf.put_slice(&ready!(throttle.poll_release(cx, buf.remaining())));
        Poll::Ready(Ok(()))
    }
}

impl<S: MaybeSocket> MaybeSocket for Throttled<S> {
    fn read_socket(&self) -> Option<&TcpStream> {
        self.inner.read_socket().filter(|_| self.throttle.is_none())
    }

    fn write_socket(&self) -> Option<&TcpStream> {
        self.inner.write_socket()
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Throttled<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
