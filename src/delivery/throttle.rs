//! Bodies and tunnels that pass no faster than the bandwidth of their limits.
//! When may these bytes go on?

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::RequestBody;
use crate::state::limits::bandwidth::BandwidthLimiter;

/// Read of a tunnel at once.
const CHUNK: usize = 16 * 1024;

/// Where nothing is to be paid it is as if it were not there.
pub(super) struct Throttled<T> {
    inner: T,
    gate: Option<Box<Throttle>>,
}

/// Bytes are paid for when they are at hand, so nobody has paid for what does not come.
struct Throttle {
    tolls: BandwidthLimiter,
    pending: Bytes,
}

/// A request's body.
pub(super) fn inbound(body: RequestBody, tolls: Option<BandwidthLimiter>) -> RequestBody {
    if tolls.is_some() { Box::pin(Throttled::new(body, tolls)) } else { body }
}

impl<T> Throttled<T> {
    pub(super) fn new(inner: T, tolls: Option<BandwidthLimiter>) -> Self {
        Self { inner, gate: tolls.map(|tolls| Box::new(Throttle { tolls, pending: Bytes::new() })) }
    }

    fn pending(&self) -> usize {
        self.gate.as_ref().map_or(0, |gate| gate.pending.len())
    }
}

impl Throttle {
    /// Some of what is pending.
    fn poll_pass(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Bytes> {
        let paid = ready!(self.tolls.poll_acquire(cx, self.pending.len().min(most)));
        if paid == self.pending.len() {
            return Poll::Ready(std::mem::take(&mut self.pending)); // whose memory is not kept
        }
        Poll::Ready(self.pending.split_to(paid))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Throttled<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { inner, gate } = self.get_mut();
        let Some(gate) = gate else { return Pin::new(inner).poll_frame(cx) };
        if gate.pending.is_empty() {
            let Some(frame) = ready!(Pin::new(inner).poll_frame(cx)).transpose()? else { return Poll::Ready(None) };
            match frame.into_data() {
                Ok(data) => gate.pending = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        gate.poll_pass(cx, usize::MAX).map(|data| Some(Ok(Frame::data(data))))
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
        let Self { inner, gate } = self.get_mut();
        let Some(gate) = gate else { return Pin::new(inner).poll_read(cx, buf) };
        if gate.pending.is_empty() {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            ready!(pin!(inner.read_buf(&mut chunk)).poll(cx))?;
            gate.pending = chunk.freeze();
        }
        buf.put_slice(&ready!(gate.poll_pass(cx, buf.remaining())));
        Poll::Ready(Ok(()))
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
