//! Discards the bytes that a client sends after its response.
//! How does a response arrive at a client that is still sending its request?

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Conn, ConnState};
use crate::net::body_framing::{Decoded, Framing};
use crate::server::client_io::poll_discard;
use crate::server::lingering;

/// The time for the half-close to be written, and between two reads after it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Conn {
    /// Discards up to `bytes_left` bytes of the body, so that a client that is still sending comes to read its response.
    /// Returns whether the body was read to its end. The next request may then follow.
    pub(in crate::server::http1) async fn discard_body(&self, bytes_left: &mut u64, deadline: Instant) -> bool {
        self.invalidate_body();
        while !self.body_has_ended() {
            let piece = poll_fn(|cx| self.0.lock().poll_discard_body(cx));
            let wait = timeout_at(deadline.min(Instant::now() + lingering::LINGERING_TIMEOUT), piece);
            let Ok(Ok(length)) = wait.await else { return false };
            let is_too_long = length > *bytes_left;
            *bytes_left = bytes_left.saturating_sub(length);
            if is_too_long {
                return false;
            }
        }
        true
    }

    /// Ends the sending direction. The client sees the end of the stream, and may still send.
    pub(in crate::server::http1) async fn half_close(&self) {
        let shutdown = poll_fn(|cx| pin!(self.0.lock().stream.shutdown()).poll(cx));
        // An error means that the connection is gone; the next read returns it, too.
        let _ = timeout(CLOSE_TIMEOUT, shutdown).await;
    }

    /// Closes the connection so that the response arrives. A close with unread bytes in the kernel would reset the
    /// connection (RFC 9112 §9.6), so the bytes that still arrive are discarded until the client has closed.
    pub(in crate::server::http1) async fn lingering_close(&self, mut bytes_left: u64, deadline: Instant) {
        self.half_close().await;
        while bytes_left > 0 {
            let piece = poll_fn(|cx| self.0.lock().poll_discard(bytes_left, cx));
            match timeout_at(deadline.min(Instant::now() + CLOSE_TIMEOUT), piece).await {
                // More than the rest may be in the buffer.
                Ok(Ok(length)) if length > 0 => bytes_left = bytes_left.saturating_sub(length),
                _ => return,
            }
        }
    }
}

impl ConnState {
    /// Discards a part of the body. Returns its length in bytes, which may be 0.
    fn poll_discard_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if self.continue_pending {
            // The client may send the body or leave it out: the start of the next request is unknown (RFC 9110
            // §10.1.1).
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        loop {
            match self.framing {
                Framing::Length(remaining) if self.buffer.is_empty() => {
                    let length = ready!(self.poll_discard(remaining, cx))?;
                    self.framing = Framing::length(remaining - length);
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

    /// Discards up to `max_bytes` bytes of any content, those in the buffer first.
    fn poll_discard(&mut self, max_bytes: u64, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(std::mem::replace(&mut self.buffer, BytesMut::new()).len() as u64));
        }
        poll_discard(&mut self.stream, max_bytes, cx).map_ok(|length| length as u64)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lingering_close_ends_when_more_bytes_than_its_limit_were_read_ahead() {
        let (stream, mut client) = tokio::io::duplex(64);
        let conn = Conn::new(Box::new(stream), BytesMut::from("more"));
        let begun = Instant::now();
        conn.lingering_close(1, begun + lingering::LINGERING_TIME).await;
        assert!(begun.elapsed().is_zero(), "it waits for no more bytes");
        assert_eq!(
            tokio::io::AsyncReadExt::read(&mut client, &mut [0; 1]).await.unwrap(),
            0,
            "the sending direction ended"
        );
    }
}
