//! The body of a request over HTTP/1, as the delivery reads it.
//! Which bytes of the connection belong to this request?

use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::ConnState;
use crate::delivery::RequestBodyError;
use crate::net::body_framing::Framing;

/// The body of the request whose head was read last. After a panic, no request follows: the decoder may be out of step.
pub(in crate::server::http1) struct Http1Body {
    pub(super) conn: Weak<Mutex<ConnState>>,
    pub(super) generation: u64,
}

impl Drop for Http1Body {
    fn drop(&mut self) {
        let conn = self.conn.upgrade().filter(|_| std::thread::panicking());
        conn.into_iter().for_each(|conn| conn.lock().framing = Framing::Malformed);
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(conn) = self.conn.upgrade() else { return Poll::Ready(Some(Err(RequestBodyError::ClientGone))) };
        conn.lock().poll_body(self.generation, cx).map(|data| data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.conn.upgrade().is_some_and(|conn| {
            let state = conn.lock();
            state.generation == self.generation && state.framing.has_ended()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let remaining = self.conn.upgrade().and_then(|conn| conn.lock().framing.remaining());
        remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
