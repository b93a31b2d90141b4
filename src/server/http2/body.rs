//! The body of an HTTP/2 request.
//! When is it asked for, and how much may come ahead?

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};

use super::reply::Reply;
use crate::delivery::InboundFault;

pub(super) struct ClientBody {
    incoming: RecvStream,
    /// What is still to come, if the client has told: h2 sees to it that this is true.
    left: Option<u64>,
    /// Through which `100 Continue` goes, while it is due.
    continues: Option<Reply>,
}

impl ClientBody {
    pub(super) fn new(incoming: RecvStream, length: Option<u64>, continues: Option<Reply>) -> Self {
        Self { incoming, left: length, continues }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = InboundFault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, InboundFault>>> {
        let mut polled = self.incoming.poll_data(cx);
        if polled.is_pending()
            && let Some(reply) = self.continues.take()
        {
            reply.proceed();
            polled = self.incoming.poll_data(cx);
        }
        // Trailers are dropped, as those of HTTP/1 are.
        Poll::Ready(match ready!(polled) {
            Some(Ok(data)) => {
                // The window opens again by what was taken in: a client cannot send faster than that.
                let _ = self.incoming.flow_control().release_capacity(data.len());
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Err(fault)) if fault.is_library() => Some(Err(InboundFault::Malformed)),
            Some(Err(_)) => Some(Err(InboundFault::Gone)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
