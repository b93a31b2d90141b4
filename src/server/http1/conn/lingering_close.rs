//! Reading away what a client still sends behind its answer.
//! Does the answer reach a client that is still writing its request?

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Conn, ConnState};
use crate::server::client_io::poll_discard;
use crate::server::http1::body::{Decoded, Framing};
use crate::server::lingering;

/// For the half-close to be written, and between two pieces behind it.
const LINGER: Duration = Duration::from_secs(1);

impl Conn {
    /// Reads away up to `most` bytes of the body, so that a client which is still writing comes to read its answer. True
    /// if the body was read to its end, and the next request may follow.
    pub(in crate::server::http1) async fn drain_body(&self, most: u64, deadline: Instant) -> bool {
        self.abandon_body();
        let mut left = most;
        while !self.body_has_ended() {
            let piece = poll_fn(|cx| self.0.lock().poll_drain(cx));
            match timeout_at(deadline.min(Instant::now() + lingering::STALL), piece).await {
                Ok(Ok(length)) if length <= left => left -= length,
                _ => return false,
            }
        }
        true
    }

    /// Ends our direction: the client sees that no more comes, and may still write.
    pub(in crate::server::http1) async fn half_close(&self) {
        let shutdown = poll_fn(|cx| pin!(self.0.lock().stream.shutdown()).poll(cx));
        // On a connection that is gone already, which reading will tell.
        let _ = timeout(LINGER, shutdown).await;
    }

    /// Ends the connection so that the answer arrives: a close with unread bytes in the kernel would reset it
    /// (RFC 9112 §9.6), so what still comes is read away until the client has closed.
    pub(in crate::server::http1) async fn lingering_close(&self, most: u64, deadline: Instant) {
        self.half_close().await;
        let mut left = most;
        while left > 0 {
            let piece = poll_fn(|cx| self.0.lock().poll_discard(left, cx));
            match timeout_at(deadline.min(Instant::now() + LINGER), piece).await {
                Ok(Ok(length)) if length > 0 => left -= length,
                _ => return,
            }
        }
    }
}

impl ConnState {
    /// Reads away some of the body; gives the length in bytes, which may be 0.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if self.owes_continue {
            // The client sends the body or leaves it out: where the next request begins is unknown (RFC 9110 §10.1.1).
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        loop {
            match self.framing {
                Framing::Length(left) if self.buffer.is_empty() => {
                    let length = ready!(self.poll_discard(left, cx))?;
                    self.framing = Framing::length(left - length);
                    let is_closed = length == 0;
                    return Poll::Ready(if is_closed { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) });
                }
                _ => match self.framing.decode(&mut self.buffer) {
                    Ok(Decoded::Data(data)) => return Poll::Ready(Ok(data.len() as u64)),
                    Ok(Decoded::End) => return Poll::Ready(Ok(0)),
                    Ok(Decoded::Incomplete) if ready!(self.poll_read(cx))? > 0 => {}
                    Ok(Decoded::Incomplete) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    Err(_) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                },
            }
        }
    }

    /// Reads away up to `most` bytes, whatever they are, those in the buffer first, and keeps none of them.
    fn poll_discard(&mut self, most: u64, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(std::mem::replace(&mut self.buffer, BytesMut::new()).len() as u64));
        }
        poll_discard(&mut self.stream, most, cx).map_ok(|length| length as u64)
    }
}
