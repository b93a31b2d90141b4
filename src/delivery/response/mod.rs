//! The response that a client gets: the target's, with the fields of its hop replaced, or a refusal.
//! Which fields does the client see?

mod body;
mod check;
mod unread;

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use http_body::Body;
use httpdate::HttpDate;
use tokio::time::Instant;

use super::capture::CaptureTap;
use super::record::Record;
use super::refusal::{PROXY_STATUS, Refusal};
use super::request::fields;
use super::throttle::Throttled;
use crate::http_message::{Fields, Response, Text};
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
    let Response { status, version, mut fields, body, .. } = response;
    // An HTTP/1.0 target that keeps the connection open says so in `Connection`, which outgate does not read.
    let ends_connection = version == Version::HTTP_10
        || has_connection_option(&fields, &header::CONNECTION, "close")
        || precedes_close(status);
    // A response over HTTP/2 ends no more than its stream.
    let is_reusable = version == Version::HTTP_2 || !ends_connection;
    fields::strip(&mut fields);
    fields.remove("proxy-authentication-info");
    fields::add_via(&mut fields, version, pseudonym);
    if !fields.contains(header::DATE) {
        // RFC 9110 §6.6.1: a recipient with a clock adds the Date that is missing.
        fields.append(header::DATE, Text(HttpDate::from(SystemTime::now())));
    }
    fields.append(&PROXY_STATUS, [pseudonym, "; received-status=", status.as_str()]);
    add_outgate_fields(&mut fields, &record);
    record.answered(status.as_u16());
    let has_body = allows_body(method, status);
    if !has_body {
        fields::remove_malformed_content_length(&mut fields);
    }
    // Allocated before the value is made, so that an optimised build makes it in its place: `Box::new` copies it from the stack.
    let relayed = Box::write(
        Box::new_uninit(),
        RelayedBody {
            missing: if has_body { body.size_hint().exact() } else { Some(0) },
            body: Some(Throttled::new(body, permits.limits.bandwidth_limiter())),
            connection: Some(connection),
            is_reusable,
            is_http2: version == Version::HTTP_2,
            remaining: body_max,
            record,
            capture,
            _permits: permits,
            deadline,
            sleep: None,
            is_aborted: false,
        },
    );
    Response { version, fields, ..Response::new(status, ResponseBody::Relayed(relayed)) }
}

/// Returns outgate's own response to `OPTIONS` with `Max-Forwards: 0` (RFC 9110 §7.6.2).
pub(super) fn options(mut record: Box<Record>, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = Response::new(StatusCode::OK, ResponseBody::Full(None));
    let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    response.fields.insert(header::ALLOW, &allow);
    add_own_fields(&mut response.fields, &record, pseudonym);
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
    add_own_fields(&mut response.fields, record, pseudonym);
    response.map(|body| ResponseBody::Full(Some(body)))
}

/// Adds the fields of every response to one that outgate itself makes.
pub(super) fn add_own_fields(fields: &mut Fields, record: &Record, pseudonym: &str) {
    // outgate received this response in no version of HTTP: its semantics are those of HTTP/1.1.
    fields::add_via(fields, Version::HTTP_11, pseudonym);
    // A refusal has set this field with its error.
    if !fields.contains(&PROXY_STATUS) {
        fields.append(&PROXY_STATUS, [pseudonym]);
    }
    add_outgate_fields(fields, record);
}

/// Adds the fields that show that the response has passed outgate.
fn add_outgate_fields(fields: &mut Fields, record: &Record) {
    fields.insert(&OUTGATE_REQUEST_ID, [record.request_id()]);
    match record.source() {
        Some(source) => fields.insert(&OUTGATE_EGRESS, Text(source)),
        None => fields.insert(&OUTGATE_EGRESS, &NO_EGRESS),
    }
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
