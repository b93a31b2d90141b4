//! The body of a response on its way to the client.
//! Is the response complete, and what happens to the target's connection afterwards?

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::HeldPermits;
use crate::delivery::capture::CaptureTap;
use crate::delivery::record::Record;
use crate::delivery::refusal::Code;
use crate::delivery::throttle::Throttled;
use crate::net::http_client::{ExchangeError, TargetBody};
use crate::panics;
use crate::state::upstreams::pool::PooledConnection;

/// The body of every response. Dropping it ends the delivery: it frees the permits and writes the record.
pub enum ResponseBody {
    /// The body of a response of outgate's own.
    Full(Option<Bytes>),
    /// The target's body, which streams.
    Relayed(Box<RelayedBody>),
}

pub struct RelayedBody {
    /// `None`: the response has ended, or was aborted.
    pub(super) body: Option<Throttled<TargetBody>>,
    /// Bytes of the announced length that are still missing. `None`: the target announced no length.
    pub(super) missing: Option<u64>,
    /// The connection, until the body has ended.
    pub(super) connection: Option<PooledConnection>,
    /// The connection returns to the pool after the exchange.
    pub(super) is_reusable: bool,
    pub(super) is_http2: bool,
    /// Bytes that the target may still send.
    pub(super) remaining: u64,
    pub(super) record: Box<Record>,
    pub(super) capture: Option<Arc<CaptureTap>>,
    pub(super) _permits: HeldPermits,
    pub(super) deadline: Instant,
    /// Set once the delivery has waited for the target.
    pub(super) sleep: Option<Pin<Box<Sleep>>>,
    pub(super) is_aborted: bool,
}

/// The target or outgate has aborted the response, so the client's connection must not end cleanly.
#[derive(Debug)]
pub struct ResponseAborted;

/// The cause in the record where hyper reports RST_STREAM or GOAWAY with NO_ERROR like END_STREAM (RFC 9113 §8.1).
const NO_ERROR_END: &str = "stream reset by the target, or GOAWAY: NO_ERROR";

/// The time for END_STREAM to follow the last byte of an announced length. The client already has its whole response.
const END_STREAM_TIMEOUT: Duration = Duration::from_secs(1);

impl RelayedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        let polled = self.poll_body(cx);
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let deadline = self.deadline;
                let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                ready!(sleep.as_mut().poll(cx));
                return Poll::Ready(Some(Err(self.abort(Code::ResponseTimeout, None))));
            }
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(remaining) = self.remaining.checked_sub(length) else {
                    return Poll::Ready(Some(Err(self.abort(Code::ResponseTooLarge, None))));
                };
                self.remaining = remaining;
                self.record.received(length);
                if let (Some(capture), Some(data)) = (&self.capture, frame.data_ref()) {
                    capture.response_data(Some(data));
                }
                self.missing = self.missing.map(|missing| missing.saturating_sub(length));
                // The server does not poll after the last byte of an announced length, so the end must be seen here.
                if self.is_whole()
                    && let Some(error) = self.poll_end(cx)
                {
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(self.fail(&error))),
            None if self.has_ended() && self.missing.is_none_or(|missing| missing == 0) => {
                self.end();
                None
            }
            None => Some(Err(self.abort(Code::ConnectionLost, Some(NO_ERROR_END.into())))),
        })
    }

    /// Polls for the end of the response after its last byte. Any end other than END_STREAM makes the response incomplete
    /// while the server can still abort it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<ResponseAborted> {
        while !self.has_ended() {
            match self.poll_body(cx) {
                Poll::Pending => return None,
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_none_or(Bytes::is_empty) => {}
                Poll::Ready(Some(Ok(_))) => return Some(self.abort(Code::ResponseMalformed, None)),
                Poll::Ready(Some(Err(error))) => return Some(self.fail(&error)),
                Poll::Ready(None) if self.has_ended() => {}
                Poll::Ready(None) => {
                    return Some(self.abort(Code::ConnectionLost, Some(NO_ERROR_END.into())));
                }
            }
        }
        self.end();
        None
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    /// Returns whether the target has ended the response in an orderly way.
    fn has_ended(&self) -> bool {
        self.body.as_ref().is_none_or(|body| !self.is_http2 || body.is_end_stream())
    }

    /// Returns whether every byte of the response was polled: the announced length, or all up to the end.
    fn is_whole(&self) -> bool {
        match self.missing {
            _ if self.is_aborted => false,
            Some(missing) => missing == 0,
            None => self.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn fail(&mut self, error: &ExchangeError) -> ResponseAborted {
        let malformed = error.is_protocol_error();
        let cause = self.connection.as_ref().map(|connection| connection.failure_cause(error));
        self.abort(if malformed { Code::ResponseMalformed } else { Code::ConnectionLost }, cause)
    }

    /// Drops the connection of an unfinished exchange, so that no other delivery uses it.
    fn abort(&mut self, code: Code, cause: Option<String>) -> ResponseAborted {
        self.record.aborted(code, cause);
        self.capture.iter().for_each(|capture| capture.failed(code.name()));
        (self.connection, self.body, self.is_aborted) = (None, None, true);
        ResponseAborted
    }

    fn complete(&mut self) {
        self.record.complete();
        self.capture.iter().for_each(|capture| capture.response_data(None));
    }

    fn end(&mut self) {
        self.complete();
        // The connection may carry another exchange from now on.
        self.body = None;
        if let Some(connection) = self.connection.take() {
            connection.release(std::time::Instant::now(), self.is_reusable);
        }
    }
}

/// Waits for the END_STREAM of a response whose announced length has arrived, and returns the connection to the pool. A
/// stream that stays open is reset; one that ends otherwise leaves the connection broken.
async fn await_end(mut body: Throttled<TargetBody>, connection: PooledConnection, is_reusable: bool) {
    let ending = async {
        while let Some(frame) = body.frame().await {
            if !frame.is_ok_and(|frame| frame.data_ref().is_none_or(Bytes::is_empty)) {
                return false;
            }
        }
        body.is_end_stream()
    };
    let is_orderly = timeout(END_STREAM_TIMEOUT, ending).await.unwrap_or(true);
    drop(body);
    if is_orderly {
        connection.release(std::time::Instant::now(), is_reusable);
    }
}

impl Drop for RelayedBody {
    fn drop(&mut self) {
        // A response without a body is never polled. After a panic, no other exchange gets the connection.
        if std::thread::panicking() || !self.is_whole() {
            return;
        }
        if self.has_ended() {
            self.end();
            return;
        }
        self.complete();
        if let (Some(body), Some(connection)) = (self.body.take(), self.connection.take()) {
            panics::spawn(await_end(body, connection, self.is_reusable));
        }
    }
}

impl ResponseBody {
    /// Returns the time at which the client must have the whole response. `None`: a short response of outgate's own.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            ResponseBody::Full(_) => None,
            ResponseBody::Relayed(relayed) => Some(relayed.deadline),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        match &mut *self {
            ResponseBody::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResponseBody::Relayed(relayed) => relayed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Full(bytes) => bytes.is_none(),
            ResponseBody::Relayed(relayed) => relayed.is_whole(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            ResponseBody::Relayed(relayed) => relayed.body.as_ref().map_or_else(SizeHint::default, Body::size_hint),
        }
    }
}
