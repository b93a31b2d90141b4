//! The body of a request over HTTP/1, as the delivery reads it.
//! Which bytes of the connection belong to this request?

use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};

use super::ConnState;
use crate::delivery::RequestBodyError;
use crate::net::body_framing::Framing;

/// The body of the request whose head was read last.
pub(in crate::server::http1) struct Http1Body {
    pub(super) conn: Weak<Mutex<ConnState>>,
    pub(super) generation: u64,
    /// The whole body was read. The connection may have a later request since.
    pub(super) has_ended: bool,
}

impl Http1Body {
    /// Returns what the connection says of this body; `None`: it is gone, or has a later request.
    fn with_state<T>(&self, read: impl FnOnce(&ConnState) -> T) -> Option<T> {
        let conn = self.conn.upgrade()?;
        let state = conn.lock();
        (state.generation == self.generation).then(|| read(&state))
    }
}

/// The connection during one poll of the body. If the poll panics, no request follows, because the decoder may have lost its
/// place. The mark is set before another task can lock the connection.
struct Decoding<'a>(MutexGuard<'a, ConnState>);

impl Drop for Decoding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.framing = Framing::Malformed;
        }
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let Some(conn) = self.conn.upgrade() else { return Poll::Ready(Some(Err(RequestBodyError::ClientGone))) };
        let mut decoding = Decoding(conn.lock());
        let polled = decoding.0.poll_body(self.generation, cx);
        self.has_ended = decoding.0.generation == self.generation && decoding.0.framing.has_ended();
        polled.map(|data| data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.with_state(|state| state.framing.has_ended()).unwrap_or_default()
    }

    fn size_hint(&self) -> SizeHint {
        if self.has_ended {
            return SizeHint::with_exact(0);
        }
        let remaining = self.with_state(|state| state.framing.remaining()).flatten();
        remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bytes::BytesMut;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::super::Conn;
    use super::*;
    use crate::net::splice::MaybeSocket;
    use crate::server::client_io::ClientIo;

    /// A stream whose second read panics.
    struct PanickingStream(bool);

    impl AsyncRead for PanickingStream {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            assert!(!std::mem::replace(&mut self.0, true), "a mistake");
            Poll::Pending
        }
    }

    impl AsyncWrite for PanickingStream {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl MaybeSocket for PanickingStream {}

    impl ClientIo for PanickingStream {
        fn set_abort_on_drop(&mut self, _: bool) {}

        fn poll_read_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    /// A target's connection holds the body of an upload for longer than the task that panicked.
    #[test]
    fn panic_while_a_body_is_polled_makes_the_rest_of_the_connection_unusable() {
        let conn = Conn::new(Box::new(PanickingStream(false)), BytesMut::new());
        conn.0.lock().framing = Framing::length(5);
        let mut body = conn.body();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_pending());
        assert!(conn.can_discard_body(5, false));
        assert!(crate::panics::catch(|| Pin::new(&mut body).poll_frame(&mut cx).is_pending()).is_err());
        assert!(!conn.can_discard_body(5, false), "the body still exists: {:?}", body.size_hint());
    }

    /// A target's connection may hold a body for longer than the request: a bandwidth limit delays the end that it sees.
    #[test]
    fn body_that_was_read_stays_ended_when_the_next_request_begins() {
        let conn = Conn::new(Box::new(PanickingStream(false)), BytesMut::from("first"));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        conn.0.lock().framing = Framing::length(5);
        let (mut read, unread) = (conn.body(), conn.body());
        assert!(matches!(Pin::new(&mut read).poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        conn.invalidate_body();
        conn.0.lock().framing = Framing::length(7);
        assert!(read.is_end_stream() && matches!(Pin::new(&mut read).poll_frame(&mut cx), Poll::Ready(None)));
        assert_eq!((read.size_hint().exact(), unread.size_hint().exact()), (Some(0), None));
        assert_eq!((unread.is_end_stream(), conn.body().size_hint().exact()), (false, Some(7)));
    }
}
