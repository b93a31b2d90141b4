//! The body of an HTTP/2 request.
//! When is `100 Continue` sent, how much may the client send ahead, and what becomes of an unread rest?

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::respond::Responder;
use crate::delivery::RequestBodyError;
use crate::server::lingering;

pub(super) struct Http2Body {
    /// `None` while the value is being dropped.
    incoming: Option<RecvStream>,
    on_drop: Option<oneshot::Sender<RecvStream>>,
    /// The number of bytes that remain, if the client announced a length. h2 enforces that the length is true.
    remaining: Option<u64>,
    /// The sender of `100 Continue`, until it is sent.
    pending_continue: Option<Responder>,
}

/// The rest of a body that was dropped before its end.
pub(super) struct RemainingBody(oneshot::Receiver<RecvStream>);

impl Http2Body {
    pub(super) fn new(
        incoming: RecvStream,
        length: Option<u64>,
        pending_continue: Option<Responder>,
    ) -> (Self, RemainingBody) {
        let (on_drop, receiver) = oneshot::channel();
        (
            Self { incoming: Some(incoming), on_drop: Some(on_drop), remaining: length, pending_continue },
            RemainingBody(receiver),
        )
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if let (Some(incoming), Some(on_drop)) = (self.incoming.take(), self.on_drop.take())
            && !incoming.is_end_stream()
        {
            let _ = on_drop.send(incoming);
        }
    }
}

impl RemainingBody {
    /// Discards up to `max_bytes` bytes of the rest, as in HTTP/1. A reset directly after the response is permitted
    /// (RFC 9113 §8.1), but makes clients that are still sending drop the response.
    pub(super) async fn discard(self, max_bytes: u64) {
        let discarding = async {
            let Ok(mut incoming) = self.0.await else { return };
            let mut remaining = max_bytes;
            while remaining > 0
                && let Ok(Some(Ok(data))) = timeout(lingering::LINGERING_TIMEOUT, incoming.data()).await
            {
                remaining = remaining.saturating_sub(data.len() as u64);
                let _ = incoming.flow_control().release_capacity(data.len());
            }
        };
        let _ = timeout(lingering::LINGERING_TIME, discarding).await;
    }
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Self { incoming: Some(incoming), remaining, pending_continue, .. } = &mut *self else {
            return Poll::Ready(None);
        };
        let mut polled = incoming.poll_data(cx);
        if polled.is_pending()
            && let Some(responder) = pending_continue.take()
        {
            responder.send_continue();
            polled = incoming.poll_data(cx);
        }
        // Trailers are dropped, as in HTTP/1.
        Poll::Ready(match ready!(polled) {
            Some(Ok(data)) => {
                // The window grows by the bytes taken: a client cannot send faster than the target accepts them.
                let _ = incoming.flow_control().release_capacity(data.len());
                *remaining = remaining.map(|remaining| remaining.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Err(error)) if error.is_library() => Some(Err(RequestBodyError::Malformed)),
            Some(Err(_)) => Some(Err(RequestBodyError::ClientGone)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.remaining {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(remaining) => SizeHint::with_exact(remaining),
            None => SizeHint::default(),
        }
    }
}
