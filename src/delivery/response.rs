//! The answer on its way back: the target's, cleaned and marked, or a refusal.
//! What does the client get to see, and when is the delivery over?

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::pacing::Paced;
use super::record::Record;
use super::refusal::{Code, Refusal};
use super::{Held, fields};
use crate::live::reuse::Lease;
use crate::net::exchange;

/// The body of every answer. Dropping it ends the delivery: the permit is freed, the record written.
pub enum Outbound {
    /// Ours.
    Whole(Option<Bytes>),
    /// The target's, streamed.
    Relayed(Box<Relayed>),
}

pub struct Relayed {
    body: Paced<Incoming>,
    /// Held until the body has ended.
    lease: Option<Lease>,
    /// Whether it goes back for reuse then.
    keeps: bool,
    /// How much more of it may come, in bytes.
    left: u64,
    record: Box<Record>,
    _held: Held,
    deadline: Pin<Box<Sleep>>,
}

/// The target broke off in the middle of its answer, or we did: the client's connection must not end cleanly.
#[derive(Debug)]
pub struct BrokeOff;

/// The target's answer as the client gets it; `limit`: of its body, in bytes.
pub(super) fn relay(
    response: Response<Incoming>,
    lease: Lease,
    held: Held,
    mut record: Box<Record>,
    deadline: Instant,
    limit: u64,
    pseudonym: &str,
) -> Response<Outbound> {
    let version = response.version();
    let (mut head, body) = response.into_parts();
    // hyper would speak HTTP/1.0 to this target from now on, which has no chunks to send a stream in.
    let keeps = version != Version::HTTP_10 && !says_close(&head.headers);
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
    let relayed = Relayed {
        body: Paced::new(body, held.permit.tolls()),
        lease: Some(lease),
        keeps,
        left: limit,
        record,
        _held: held,
        deadline: Box::pin(tokio::time::sleep_until(deadline)),
    };
    Response::from_parts(head, Outbound::Relayed(Box::new(relayed)))
}

/// Our own answer to `OPTIONS` with `Max-Forwards: 0` (RFC 9110 §7.6.2).
pub(super) fn options(mut record: Box<Record>) -> Response<Outbound> {
    let mut response = Response::new(Outbound::Whole(None));
    let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    response.headers_mut().insert(header::ALLOW, allow);
    mark(response.headers_mut(), &record);
    record.answered(200);
    record.complete();
    response
}

/// A refusal as the client gets it.
pub(super) fn refuse(refusal: Refusal, mut record: Box<Record>, pseudonym: &str) -> Response<Outbound> {
    record.refused(&refusal);
    let mut response = refusal.respond(pseudonym, record.request_id());
    mark(response.headers_mut(), &record);
    response.map(|body| Outbound::Whole(Some(body)))
}

/// The headers whose presence proves that we spoke.
pub(super) fn mark(headers: &mut HeaderMap, record: &Record) {
    if let Ok(id) = HeaderValue::from_str(record.request_id()) {
        headers.insert(&OUTGATE_REQUEST_ID, id);
    }
    if let Some(source) = record.source().and_then(|source| HeaderValue::try_from(source.to_string()).ok()) {
        headers.insert(&OUTGATE_EGRESS, source);
    }
}

static OUTGATE_REQUEST_ID: http::HeaderName = http::HeaderName::from_static("outgate-request-id");
static OUTGATE_EGRESS: http::HeaderName = http::HeaderName::from_static("outgate-egress");

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

impl Relayed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(self.deadline.as_mut().poll(cx));
                self.record.broke_off(Code::ResponseTimeout);
                return Poll::Ready(Some(Err(BrokeOff)));
            }
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = self.left.checked_sub(length) else {
                    self.record.broke_off(Code::ResponseTooLarge);
                    return Poll::Ready(Some(Err(BrokeOff)));
                };
                self.left = left;
                self.record.received(length);
                // The server stops asking after the last byte of a known length, so the end must be seen here.
                if self.body.is_end_stream() {
                    self.end();
                }
                Some(Ok(frame))
            }
            Some(Err(fault)) => {
                if let Some(lease) = &mut self.lease {
                    lease.end_exchange();
                }
                let malformed = exchange::breaks_the_protocol(&fault);
                let code = if malformed { Code::ResponseMalformed } else { Code::ConnectionLost };
                self.record.broke_off(code);
                Some(Err(BrokeOff))
            }
            None => {
                self.end();
                None
            }
        })
    }

    fn end(&mut self) {
        self.record.complete();
        match self.lease.take() {
            Some(lease) if self.keeps => lease.give_back(),
            Some(mut lease) => lease.end_exchange(),
            None => {}
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        // An answer without a body is never asked for one.
        if self.body.is_end_stream() {
            self.end();
        }
    }
}

impl Outbound {
    /// Until when the whole answer must be out; `None` for what is ours and short.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Outbound::Whole(_) => None,
            Outbound::Relayed(relayed) => Some(relayed.deadline.deadline()),
        }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        match &mut *self {
            Outbound::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outbound::Relayed(relayed) => relayed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outbound::Whole(bytes) => bytes.is_none(),
            Outbound::Relayed(relayed) => relayed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outbound::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Outbound::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
