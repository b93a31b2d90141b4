//! The body of an HTTP/2 request.
//! When is it asked for, how much may come ahead, and what if nobody wants the rest?

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
    /// `None` once this is being dropped.
    incoming: Option<RecvStream>,
    unread: Option<oneshot::Sender<RecvStream>>,
    /// What is still to come, if the client has told: h2 sees to it that this is true.
    left: Option<u64>,
    /// Through which `100 Continue` goes, while it is due.
    continues: Option<Responder>,
}

/// What still comes of a body that was dropped before its end.
pub(super) struct RemainingBody(oneshot::Receiver<RecvStream>);

impl Http2Body {
    pub(super) fn new(
        incoming: RecvStream,
        length: Option<u64>,
        continues: Option<Responder>,
    ) -> (Self, RemainingBody) {
        let (unread, rest) = oneshot::channel();
        (Self { incoming: Some(incoming), unread: Some(unread), left: length, continues }, RemainingBody(rest))
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if let (Some(incoming), Some(unread)) = (self.incoming.take(), self.unread.take())
            && !incoming.is_end_stream()
        {
            let _ = unread.send(incoming);
        }
    }
}

impl RemainingBody {
    /// Reads away up to `most` bytes of it, as in HTTP/1: to reset a stream right behind its answer is permitted (RFC 9113
    /// §8.1), but makes clients in the middle of sending drop the answer.
    pub(super) async fn drain(self, most: u64) {
        let draining = async {
            let Ok(mut incoming) = self.0.await else { return };
            let mut left = most;
            while left > 0
                && let Ok(Some(Ok(data))) = timeout(lingering::LINGERING_TIMEOUT, incoming.data()).await
            {
                left = left.saturating_sub(data.len() as u64);
                let _ = incoming.flow_control().release_capacity(data.len());
            }
        };
        let _ = timeout(lingering::LINGERING_TIME, draining).await;
    }
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Self { incoming: Some(incoming), left, continues, .. } = &mut *self else { return Poll::Ready(None) };
        let mut polled = incoming.poll_data(cx);
        if polled.is_pending()
            && let Some(reply) = continues.take()
        {
            reply.proceed();
            polled = incoming.poll_data(cx);
        }
        // Trailers are dropped, as those of HTTP/1 are.
        Poll::Ready(match ready!(polled) {
            Some(Ok(data)) => {
                // The window opens again by what was taken in: a client cannot send faster than that.
                let _ = incoming.flow_control().release_capacity(data.len());
                *left = left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Err(fault)) if fault.is_library() => Some(Err(RequestBodyError::Malformed)),
            Some(Err(_)) => Some(Err(RequestBodyError::ClientGone)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
