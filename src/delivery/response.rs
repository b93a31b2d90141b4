//! The answer on its way back: the target's, cleaned and marked, or a refusal.
//! What does the client get to see, and when is the delivery over?

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, timeout};

use super::record::Record;
use super::refusal::{Code, Refusal};
use super::throttle::Throttled;
use super::{Guards, UpstreamResponse, fields};
use crate::net::http_client;
use crate::state::upstreams::pool::PooledConnection;

/// The body of every answer. Dropping it ends the delivery: the permit is freed, the record written.
pub enum ResponseBody {
    /// Ours.
    Full(Option<Bytes>),
    /// The target's, streamed.
    Relayed(Box<RelayedBody>),
}

pub struct RelayedBody {
    /// `None` only while this is being dropped.
    body: Option<Throttled<Incoming>>,
    /// Bytes of the announced length that are still missing. `None`: the target announced no length.
    missing: Option<u64>,
    /// Held until the body has ended.
    lease: Option<PooledConnection>,
    /// Whether it goes back for reuse then.
    keeps: bool,
    is_http2: bool,
    /// How much more of it may come, in bytes.
    left: u64,
    record: Box<Record>,
    _held: Guards,
    deadline: Pin<Box<Sleep>>,
}

/// The target broke off in the middle of its answer, or we did: the client's connection must not end cleanly.
#[derive(Debug)]
pub struct ResponseAborted;

/// The cause in the record where hyper reports RST_STREAM or GOAWAY with NO_ERROR like END_STREAM (RFC 9113
/// §8.1).
const NO_ERROR_END: &str = "stream reset by the target, or GOAWAY: NO_ERROR";

/// The time for END_STREAM to follow the last byte of an announced length. The client already has its whole response.
const END_STREAM_WITHIN: Duration = Duration::from_secs(1);

/// Returns the target's answer as the client gets it; `method`: of the request.
pub(super) fn relay(
    method: &Method,
    UpstreamResponse { lease, held, answer, limit }: UpstreamResponse,
    mut record: Box<Record>,
    deadline: Instant,
    pseudonym: &str,
) -> Response<ResponseBody> {
    let version = answer.version();
    let (mut head, body) = answer.into_parts();
    // hyper would speak HTTP/1.0 to this target from now on, which has no chunks to send a stream in.
    let ends = version == Version::HTTP_10 || says_close(&head.headers) || precedes_close(head.status);
    // A response over HTTP/2 ends no more than its stream.
    let keeps = version == Version::HTTP_2 || !ends;
    fields::strip(&mut head.headers);
    head.headers.remove("proxy-authentication-info");
    head.headers.remove(header::CONNECTION);
    fields::add_via(&mut head.headers, version, pseudonym);
    if !head.headers.contains_key(header::DATE) {
        // RFC 9110 §6.6.1: a recipient with a clock adds the Date that is missing.
        let now = httpdate::fmt_http_date(std::time::SystemTime::now());
        head.headers.extend(HeaderValue::try_from(now).ok().map(|now| (header::DATE, now)));
    }
    if let Ok(value) = HeaderValue::try_from(format!("{pseudonym}; received-status={}", head.status.as_u16())) {
        head.headers.append("proxy-status", value);
    }
    mark(&mut head.headers, &record);
    record.answered(head.status.as_u16());
    let has_body = allows_body(method, head.status);
    if !has_body {
        fields::check_content_length(&mut head.headers);
    }
    let relayed = RelayedBody {
        missing: if has_body { body.size_hint().exact() } else { Some(0) },
        body: Some(Throttled::new(body, held.permit.bandwidth_limiter())),
        lease: Some(lease),
        keeps,
        is_http2: version == Version::HTTP_2,
        left: limit,
        record,
        _held: held,
        deadline: Box::pin(tokio::time::sleep_until(deadline)),
    };
    Response::from_parts(head, ResponseBody::Relayed(Box::new(relayed)))
}

/// Our own answer to `OPTIONS` with `Max-Forwards: 0` (RFC 9110 §7.6.2).
pub(super) fn options(mut record: Box<Record>, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(None));
    let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    response.headers_mut().insert(header::ALLOW, allow);
    mark_own(response.headers_mut(), &record, pseudonym);
    record.answered(200);
    record.complete();
    response
}

/// A refusal as the client gets it.
pub(super) fn refuse(refusal: Refusal, mut record: Box<Record>, pseudonym: &str) -> Response<ResponseBody> {
    record.refused(&refusal);
    self::refusal(refusal, &record, pseudonym)
}

/// The response of a refusal that is recorded already.
pub(super) fn refusal(refusal: Refusal, record: &Record, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = refusal.respond(pseudonym, record.request_id());
    mark_own(response.headers_mut(), record, pseudonym);
    response.map(|body| ResponseBody::Full(Some(body)))
}

/// Adds to a response of our own the fields that every response carries.
pub(super) fn mark_own(headers: &mut HeaderMap, record: &Record, pseudonym: &str) {
    // It was received in no version of HTTP: this is the one that its semantics are of.
    fields::add_via(headers, Version::HTTP_11, pseudonym);
    if let Ok(name) = HeaderValue::try_from(pseudonym) {
        // A refusal has said more there.
        headers.entry("proxy-status").or_insert(name);
    }
    mark(headers, record);
}

/// The headers whose presence proves that we spoke.
fn mark(headers: &mut HeaderMap, record: &Record) {
    if let Ok(id) = HeaderValue::from_str(record.request_id()) {
        headers.insert(&OUTGATE_REQUEST_ID, id);
    }
    let source = record.source().and_then(|source| HeaderValue::try_from(source.to_string()).ok());
    headers.insert(&OUTGATE_EGRESS, source.unwrap_or(NO_EGRESS));
}

/// Says that no source address was chosen.
const NO_EGRESS: HeaderValue = HeaderValue::from_static("none");

static OUTGATE_REQUEST_ID: http::HeaderName = http::HeaderName::from_static("outgate-request-id");
static OUTGATE_EGRESS: http::HeaderName = http::HeaderName::from_static("outgate-egress");

/// Whether a response to `method` with this status has a body (RFC 9112 §6.3, rule 1).
fn allows_body(method: &Method, status: StatusCode) -> bool {
    method != Method::HEAD && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// Returns whether servers close the connection behind this status without having said so: after 408 (RFC 9110 §15.5.9), and
/// after 413, which leaves a body that the server does not read (§15.5.14).
fn precedes_close(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE)
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

impl RelayedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        let polled = self.poll_body(cx);
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(self.deadline.as_mut().poll(cx));
                return Poll::Ready(Some(Err(self.abort(Code::ResponseTimeout, None))));
            }
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = self.left.checked_sub(length) else {
                    return Poll::Ready(Some(Err(self.abort(Code::ResponseTooLarge, None))));
                };
                self.left = left;
                self.record.received(length);
                self.missing = self.missing.map(|missing| missing.saturating_sub(length));
                // The server does not poll after the last byte of an announced length, so the end must be seen here.
                if self.is_whole()
                    && let Some(fault) = self.poll_end(cx)
                {
                    return Poll::Ready(Some(Err(fault)));
                }
                Some(Ok(frame))
            }
            Some(Err(fault)) => Some(Err(self.fail(&fault))),
            None if self.has_ended() && self.missing.is_none_or(|missing| missing == 0) => {
                self.end();
                None
            }
            None => Some(Err(self.abort(Code::ConnectionLost, Some(NO_ERROR_END.into())))),
        })
    }

    /// Looks for what has arrived behind the last byte. An end other than END_STREAM makes the response incomplete while
    /// the client can still learn of it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<ResponseAborted> {
        while !self.has_ended() {
            match self.poll_body(cx) {
                Poll::Pending => return None,
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_none_or(Bytes::is_empty) => {}
                Poll::Ready(Some(Ok(_))) => return Some(self.abort(Code::ResponseMalformed, None)),
                Poll::Ready(Some(Err(fault))) => return Some(self.fail(&fault)),
                Poll::Ready(None) if self.has_ended() => {}
                Poll::Ready(None) => {
                    return Some(self.abort(Code::ConnectionLost, Some(NO_ERROR_END.into())));
                }
            }
        }
        self.end();
        None
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    /// Returns whether the target has ended the response in an orderly way.
    fn has_ended(&self) -> bool {
        self.body.as_ref().is_none_or(|body| !self.is_http2 || body.is_end_stream())
    }

    /// Returns whether every byte of the response was polled: the announced length, or all up to the end.
    fn is_whole(&self) -> bool {
        match self.missing {
            Some(missing) => missing == 0,
            None => self.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn fail(&mut self, fault: &hyper::Error) -> ResponseAborted {
        let malformed = http_client::is_protocol_error(fault);
        let cause = self.lease.as_ref().map(|lease| lease.failure_cause(fault));
        self.abort(if malformed { Code::ResponseMalformed } else { Code::ConnectionLost }, cause)
    }

    /// Drops the lease of an unfinished exchange, so that the target's connection is not reused.
    fn abort(&mut self, code: Code, cause: Option<String>) -> ResponseAborted {
        self.record.broke_off(code, cause);
        self.lease = None;
        ResponseAborted
    }

    fn end(&mut self) {
        self.record.complete();
        if let Some(lease) = self.lease.take() {
            release(lease, self.keeps);
        }
    }
}

fn release(mut lease: PooledConnection, keeps: bool) {
    if keeps { lease.release() } else { lease.finish_exchange() }
}

/// Waits for the END_STREAM of a response whose announced length has arrived, and returns the connection to the pool. A
/// stream that stays open is reset; one that ends otherwise leaves the connection broken.
async fn await_end(mut body: Throttled<Incoming>, lease: PooledConnection, keeps: bool) {
    let ending = async {
        while let Some(frame) = body.frame().await {
            if !frame.is_ok_and(|frame| frame.data_ref().is_none_or(Bytes::is_empty)) {
                return false;
            }
        }
        body.is_end_stream()
    };
    let is_orderly = timeout(END_STREAM_WITHIN, ending).await.unwrap_or(true);
    drop(body);
    if is_orderly {
        release(lease, keeps);
    }
}

impl Drop for RelayedBody {
    fn drop(&mut self) {
        // A response without a body is never polled.
        if !self.is_whole() {
            return;
        }
        if self.has_ended() {
            self.end();
            return;
        }
        self.record.complete();
        if let (Some(body), Some(lease)) = (self.body.take(), self.lease.take()) {
            tokio::spawn(await_end(body, lease, self.keeps));
        }
    }
}

impl ResponseBody {
    /// Until when the whole answer must be out; `None` for what is ours and short.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            ResponseBody::Full(_) => None,
            ResponseBody::Relayed(relayed) => Some(relayed.deadline.deadline()),
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
