//! The state of one HTTP/1.1 connection: the request on its way out, and the response on its way in.
//! Where in the exchange is the connection, and what may happen next?
//!
//! A target may respond before it has the whole request, and then reset the connection (RFC 9112 §9.5). The kernel
//! delivers what arrived before the reset, but reports the reset to the next write first. So a failed write ends the
//! upload only, and the read side determines the outcome of the exchange.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;

use super::head::{self, ResponseFraming};
use super::outgoing::{Outgoing, OutgoingError};
use crate::config::ResponseHeadMax;
use crate::http_message::{Fields, Request, Response, keep_read_buffer, take_read_buffer};
use crate::net::body_framing::{Decoded, Framing};
use crate::net::http_client::Upload;
use crate::net::http_client::http1_error::Http1Error;

/// The free capacity below which the read buffer grows, in bytes.
const READ_BUFFER_MIN: usize = 1024;
/// The growth of the read buffer for a head, and for a body, in bytes.
const HEAD_BUFFER_LEN: usize = 4 * 1024;
const BODY_BUFFER_LEN: usize = 16 * 1024;

/// Gets each interim response (1xx). Returns whether another may follow.
pub type OnInterim<'a> = dyn FnMut(StatusCode, &Fields) -> bool + Send + 'a;

/// A connection that carries one exchange at a time.
pub(super) struct Exchange<S> {
    /// `None`: the connection is closed.
    io: Option<S>,
    /// The stream has no TLS, which would distinguish an end from a reset.
    is_plaintext: bool,
    head_max: ResponseHeadMax,
    /// Bytes that were read and belong to no message yet.
    buffer: BytesMut,
    /// The length of the prefix of `buffer` that is known to hold no complete head.
    scanned: usize,
    outgoing: Option<Outgoing>,
    /// Empty fields, with the memory of those of the request: the response gets it.
    spare_fields: Fields,
    incoming: Incoming,
    /// Bytes that were read since the last request.
    response_bytes: usize,
    /// The target has ended the connection, or takes no more bytes. The connection carries no further request.
    is_unwritable: bool,
    /// The target has not got its whole request, and never will.
    is_request_cut: bool,
    has_response: bool,
    alert: Option<AlertDescription>,
}

/// The part of the response that is expected next.
enum Incoming {
    Nothing,
    /// The head of a response to this method.
    Head(Method),
    Body(ResponseFraming),
    /// The exchange has failed.
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<S> {
    pub(super) fn new(io: S, is_plaintext: bool, head_max: ResponseHeadMax) -> Self {
        Self {
            io: Some(io),
            is_plaintext,
            head_max,
            buffer: BytesMut::new(),
            scanned: 0,
            outgoing: None,
            spare_fields: Fields::default(),
            incoming: Incoming::Nothing,
            response_bytes: 0,
            is_unwritable: false,
            is_request_cut: false,
            has_response: false,
            alert: None,
        }
    }

    /// Returns whether the connection can carry an exchange: neither a byte nor an end has arrived since the last one. TLS may
    /// hold bytes that the kernel no longer has, and reads what TLS sends of its own, such as session tickets.
    pub(super) fn is_quiet(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        // One byte, and no buffer: an idle connection holds no memory for its next response.
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        let Some(io) = &mut self.io else { return false };
        let reading = pin!(unconstrained(poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut read))));
        let Poll::Ready(outcome) = reading.poll(&mut Context::from_waker(Waker::noop())) else { return true };
        outcome.unwrap_or_else(|error| self.capture_alert(&error));
        self.is_unwritable = true; // what arrived is not a response to the next request
        false
    }

    /// Returns whether the last exchange is complete, and the connection can carry another as far as it has read.
    fn is_idle(&self) -> bool {
        let is_complete = matches!(self.incoming, Incoming::Nothing) && self.outgoing.is_none();
        is_complete && self.buffer.is_empty() && !self.is_closed()
    }

    pub(super) fn is_closed(&self) -> bool {
        let is_failed = self.is_request_cut || matches!(self.incoming, Incoming::Failed);
        self.io.is_none() || self.is_unwritable || is_failed
    }

    pub(super) fn is_upload_finished(&self) -> bool {
        self.outgoing.is_none()
    }

    pub(super) fn response_bytes(&self) -> usize {
        self.response_bytes
    }

    /// Returns the TLS alert that the target sent before its first response.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.alert.filter(|_| !self.has_response)
    }

    pub(super) fn begin(&mut self, request: Request<Upload>) {
        self.incoming = Incoming::Head(request.method.clone());
        let (outgoing, spare_fields) = Outgoing::new(request);
        (self.outgoing, self.spare_fields) = (Some(outgoing), spare_fields);
        (self.response_bytes, self.scanned) = (0, 0);
    }

    /// Writes the request, and reads up to the head of its final response.
    pub(super) fn poll_response(
        &mut self,
        on_interim: &mut OnInterim<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Http1Error>> {
        let uploaded = self.poll_upload(cx);
        let polled = self.poll_head(on_interim, cx);
        match (uploaded, polled) {
            // A response that has arrived counts, even if the rest of the request will not follow.
            (_, Poll::Ready(Ok(head))) => Poll::Ready(Ok(head)),
            (Err(error), _) | (Ok(()), Poll::Ready(Err(error))) => Poll::Ready(Err(self.fail(error))),
            (Ok(()), Poll::Pending) => Poll::Pending,
        }
    }

    /// Reads the next part of the body; `None`: the body has ended.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Http1Error>> {
        self.poll_data(cx).map_err(|error| self.fail(error))
    }

    /// Writes the rest of a request whose response has begun.
    pub(super) fn poll_upload_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error of the body ends the upload, and the response goes on.
        let _ = self.poll_upload(cx);
        if self.outgoing.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns whether the target must not take the end of the connection for the end of its request.
    pub(super) fn must_reset(&self) -> bool {
        self.is_request_cut || self.outgoing.is_some() || matches!(self.incoming, Incoming::Failed)
    }

    /// Returns the number of bytes that the body still has; `None`: unknown.
    pub(super) fn remaining(&self) -> Option<u64> {
        match &self.incoming {
            Incoming::Nothing => Some(0),
            Incoming::Body(ResponseFraming::Delimited(framing)) => framing.remaining(),
            Incoming::Body(ResponseFraming::UntilClose) | Incoming::Head(_) | Incoming::Failed => None,
        }
    }

    /// Closes the connection. An idle one tells the target so; there is no wait for it.
    pub(super) fn close(&mut self) {
        let is_idle = self.is_idle();
        if let Some(mut io) = self.io.take().filter(|_| is_idle) {
            let _ = Pin::new(&mut io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        self.outgoing = None;
        self.buffer = BytesMut::new();
    }

    fn fail(&mut self, error: Http1Error) -> Http1Error {
        (self.incoming, self.outgoing) = (Incoming::Failed, None);
        error
    }

    /// Writes as much of the request as the target takes now.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Http1Error> {
        let (Some(outgoing), Some(io)) = (&mut self.outgoing, &mut self.io) else { return Ok(()) };
        match outgoing.poll_write(io, cx) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                (self.outgoing, self.is_request_cut) = (None, true);
                return match error {
                    // The socket still tells an orderly end of the response from a reset.
                    OutgoingError::Body(error) => Err(error),
                    OutgoingError::Unwritable => {
                        self.is_unwritable = true;
                        Ok(())
                    }
                };
            }
        }
        self.outgoing = None;
        Ok(())
    }

    fn poll_head(
        &mut self,
        on_interim: &mut OnInterim<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Http1Error>> {
        loop {
            let Incoming::Head(method) = &self.incoming else { return Poll::Ready(Err(Http1Error::Incomplete)) };
            if !self.buffer.is_empty() && head::may_be_complete(&self.buffer, self.scanned, self.head_max) {
                if let Some(head) = head::parse_response(&mut self.buffer, self.head_max, &mut self.spare_fields)? {
                    self.scanned = 0;
                    let is_interim = head.status.is_informational();
                    if is_interim && head.status != StatusCode::SWITCHING_PROTOCOLS {
                        if !on_interim(head.status, &head.fields) {
                            return Poll::Ready(Err(Http1Error::TooManyInterim));
                        }
                        continue;
                    }
                    self.has_response = true;
                    self.set_body(head::response_framing(&head, method, self.head_max)?);
                    return Poll::Ready(Ok(head));
                }
                self.scanned = self.buffer.len();
            }
            let count = ready!(self.poll_read(cx)).map_err(Http1Error::Io)?;
            if count == 0 {
                return Poll::Ready(Err(Http1Error::Incomplete));
            }
            self.response_bytes += count;
        }
    }

    fn set_body(&mut self, framing: ResponseFraming) {
        self.incoming = match framing {
            ResponseFraming::Delimited(framing) if framing.has_ended() => Incoming::Nothing,
            framing => Incoming::Body(framing),
        };
        self.release_buffer();
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Http1Error>> {
        loop {
            let framing = match &mut self.incoming {
                Incoming::Body(framing) => framing,
                Incoming::Nothing => return Poll::Ready(Ok(None)),
                Incoming::Head(_) | Incoming::Failed => return Poll::Ready(Err(Http1Error::Incomplete)),
            };
            let decoded = match framing {
                ResponseFraming::Delimited(framing) => {
                    framing.decode(&mut self.buffer).map_err(|_| Http1Error::Chunk)?
                }
                ResponseFraming::UntilClose if self.buffer.is_empty() => Decoded::Incomplete,
                ResponseFraming::UntilClose => Decoded::Data(self.buffer.split().freeze()),
            };
            match decoded {
                Decoded::Data(data) => {
                    let framing = *framing;
                    self.set_body(framing);
                    return Poll::Ready(Ok(Some(data)));
                }
                Decoded::End => {
                    self.set_body(ResponseFraming::Delimited(Framing::Ended));
                    return Poll::Ready(Ok(None));
                }
                Decoded::Incomplete => {}
            }
            let is_until_close = *framing == ResponseFraming::UntilClose;
            match ready!(self.poll_read(cx)).map_err(Http1Error::Io)? {
                0 if is_until_close => {
                    // The target has ended the connection, which carries no further request.
                    (self.incoming, self.is_unwritable) = (Incoming::Nothing, true);
                    return Poll::Ready(Ok(None));
                }
                0 => return Poll::Ready(Err(Http1Error::Incomplete)),
                _ => {}
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if self.buffer.capacity() == 0 {
            self.buffer = take_read_buffer(READ_BUFFER_MIN, HEAD_BUFFER_LEN);
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BUFFER_MIN {
            let is_body = matches!(self.incoming, Incoming::Body(_));
            self.buffer.reserve(if is_body { BODY_BUFFER_LEN } else { HEAD_BUFFER_LEN });
        }
        let read = ready!(pin!(io.read_buf(&mut self.buffer)).poll(cx));
        Poll::Ready(match read {
            // The failed write consumed the socket's error. Without TLS a reset then looks like an orderly end, which
            // would complete a response that is delimited by the end of the connection.
            Ok(0) if self.is_unwritable && self.is_plaintext => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(count) => Ok(count),
            Err(error) => {
                self.capture_alert(&error);
                Err(error)
            }
        })
    }

    fn capture_alert(&mut self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(rustls::Error::AlertReceived(alert)) = inner {
            self.alert = Some(*alert);
        }
    }

    /// Passes the memory of the buffer on if the connection reads nothing more.
    fn release_buffer(&mut self) {
        if self.buffer.is_empty() && matches!(self.incoming, Incoming::Nothing) {
            keep_read_buffer(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fuzz::ScriptedTarget;
    use super::*;

    /// Sends a request whose response arrives in these pieces, and reads the response to its end.
    fn after_response(pieces: &[u8], step: usize) -> Exchange<ScriptedTarget> {
        let head_max = ResponseHeadMax { count: 10, bytes: 1000 };
        let mut exchange = Exchange::new(ScriptedTarget::new(pieces, step), true, head_max);
        assert!(exchange.is_quiet());
        exchange.begin(Request::new(Method::GET, "/", Upload::whole(Bytes::new())));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(matches!(exchange.poll_response(&mut |_, _| true, cx), Poll::Ready(Ok(_))));
        while !matches!(exchange.poll_body(cx), Poll::Ready(Ok(None) | Err(_))) {}
        exchange
    }

    #[test]
    fn bytes_that_follow_a_response_in_the_stream_make_its_connection_unusable() {
        const RESPONSE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
        let twice = RESPONSE.repeat(2);
        // The second response is in the buffer, or still in the stream as TLS holds it.
        for step in [twice.len(), RESPONSE.len()] {
            assert!(!after_response(&twice, step).is_quiet(), "in pieces of {step}");
        }
    }

    #[test]
    fn empty_lines_before_a_response_count_as_a_part_of_its_head() {
        let head_max = ResponseHeadMax { count: 10, bytes: 100 };
        let lines = b"\r\n".repeat(1000);
        let mut exchange = Exchange::new(ScriptedTarget::new(&lines, 64), true, head_max);
        exchange.begin(Request::new(Method::GET, "/", Upload::whole(Bytes::new())));
        let polled = exchange.poll_response(&mut |_, _| true, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Err(Http1Error::HeadTooLarge(_)))));
        assert!(exchange.must_reset() && exchange.is_closed());
    }
}
