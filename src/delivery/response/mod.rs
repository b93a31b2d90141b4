//! The response that a client gets: the target's, with the fields of its hop replaced, or a refusal.
//! Which fields does the client see?

mod body;
mod check;
mod unread;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body;
use tokio::time::Instant;

use super::capture::CaptureTap;
use super::record::Record;
use super::refusal::Refusal;
use super::request::fields;
use super::throttle::Throttled;
use crate::net::http_client::TargetBody;
use crate::policy::message::has_connection_option;
use crate::state::limits::LimitPermit;
use crate::state::limits::admission::InFlightGuard;
use crate::state::upstreams::pool::PooledConnection;

use body::RelayedBody;
pub use body::{ResponseAborted, ResponseBody};
pub(super) use check::check;
pub use unread::{refuse_plaintext, refuse_tls, refuse_unread};

static OUTGATE_REQUEST_ID: HeaderName = HeaderName::from_static("outgate-request-id");
static OUTGATE_EGRESS: HeaderName = HeaderName::from_static("outgate-egress");
/// The value of `Outgate-Egress` if no source address was chosen.
const NO_EGRESS: HeaderValue = HeaderValue::from_static("none");

/// The target's response, and the values that its delivery holds until the last byte.
pub(super) struct UpstreamResponse {
    pub(super) connection: PooledConnection,
    pub(super) permits: HeldPermits,
    pub(super) response: Response<TargetBody>,
    /// The length limit of the body, in bytes.
    pub(super) body_max: u64,
    pub(super) capture: Option<Arc<CaptureTap>>,
}

/// The places that a delivery holds until its last byte. Dropping them frees them.
pub(super) struct HeldPermits {
    pub(super) limits: LimitPermit,
    pub(super) _in_flight: InFlightGuard,
}

/// Returns the target's response as the client gets it. `method`: of the request.
pub(super) fn relay(
    method: &Method,
    upstream: UpstreamResponse,
    mut record: Box<Record>,
    deadline: Instant,
    pseudonym: &str,
) -> Response<ResponseBody> {
    let UpstreamResponse { connection, permits, response, body_max, capture } = upstream;
    capture.iter().for_each(|capture| capture.responded(&response));
    let version = response.version();
    let (mut head, body) = response.into_parts();
    // hyper would speak HTTP/1.0 to this target from now on, which has no chunks to send a stream in.
    let ends_connection = version == Version::HTTP_10
        || has_connection_option(&head.headers, &header::CONNECTION, "close")
        || precedes_close(head.status);
    // A response over HTTP/2 ends no more than its stream.
    let is_reusable = version == Version::HTTP_2 || !ends_connection;
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
    add_outgate_fields(&mut head.headers, &record);
    record.answered(head.status.as_u16());
    let has_body = allows_body(method, head.status);
    if !has_body {
        fields::remove_malformed_content_length(&mut head.headers);
    }
    let relayed = RelayedBody {
        missing: if has_body { body.size_hint().exact() } else { Some(0) },
        body: Some(Throttled::new(body, permits.limits.bandwidth_limiter())),
        connection: Some(connection),
        is_reusable,
        is_http2: version == Version::HTTP_2,
        remaining: body_max,
        record,
        capture,
        _permits: permits,
        deadline: Box::pin(tokio::time::sleep_until(deadline)),
    };
    Response::from_parts(head, ResponseBody::Relayed(Box::new(relayed)))
}

/// Returns outgate's own response to `OPTIONS` with `Max-Forwards: 0` (RFC 9110 §7.6.2).
pub(super) fn options(mut record: Box<Record>, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(None));
    let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    response.headers_mut().insert(header::ALLOW, allow);
    add_own_fields(response.headers_mut(), &record, pseudonym);
    record.answered(200);
    record.complete();
    response
}

/// Records a refusal, and returns its response.
pub(super) fn refuse(refusal: Refusal, mut record: Box<Record>, pseudonym: &str) -> Response<ResponseBody> {
    record.refused(&refusal);
    respond(refusal, &record, pseudonym)
}

/// Returns the response of a refusal that is recorded already.
pub(super) fn respond(refusal: Refusal, record: &Record, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = refusal.respond(pseudonym, record.request_id(), record.redactor());
    add_own_fields(response.headers_mut(), record, pseudonym);
    response.map(|body| ResponseBody::Full(Some(body)))
}

/// Adds the fields of every response to one that outgate itself makes.
pub(super) fn add_own_fields(headers: &mut HeaderMap, record: &Record, pseudonym: &str) {
    // outgate received this response in no version of HTTP: its semantics are those of HTTP/1.1.
    fields::add_via(headers, Version::HTTP_11, pseudonym);
    if let Ok(name) = HeaderValue::try_from(pseudonym) {
        // A refusal has set this field with its error.
        headers.entry("proxy-status").or_insert(name);
    }
    add_outgate_fields(headers, record);
}

/// Adds the fields that show that the response has passed outgate.
fn add_outgate_fields(headers: &mut HeaderMap, record: &Record) {
    if let Ok(id) = HeaderValue::from_str(record.request_id()) {
        headers.insert(&OUTGATE_REQUEST_ID, id);
    }
    let source = record.source().and_then(|source| HeaderValue::try_from(source.to_string()).ok());
    headers.insert(&OUTGATE_EGRESS, source.unwrap_or(NO_EGRESS));
}

/// Returns whether a response to `method` with this status has a body (RFC 9112 §6.3, rule 1).
fn allows_body(method: &Method, status: StatusCode) -> bool {
    method != Method::HEAD && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// Returns whether servers close the connection after this status without `Connection: close`.
///
/// They do so after 408 (RFC 9110 §15.5.9), and after 413, which leaves a body that the server does not read (§15.5.14).
fn precedes_close(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE)
}
