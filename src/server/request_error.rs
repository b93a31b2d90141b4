//! The rules for request heads that HTTP/1 and HTTP/2 share.
//! Which requests are too large or malformed, and with which status is each refused?

use http::{Method, StatusCode};

use crate::http_message::FieldValue;
use crate::names::invalid_target_character;

/// Limits the request line of HTTP/1 and the target of HTTP/2, in bytes.
pub(super) const TARGET_MAX: usize = 16 * 1024;
pub(super) const FIELDS_MAX: usize = 100;
/// Limits all fields together, in bytes.
pub(super) const HEAD_MAX: usize = 64 * 1024;
/// Limits the method, in bytes. No registered method is half as long (RFC 9110 §16.1).
const METHOD_MAX: usize = 32;

/// The status and the detail of a refusal.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct RequestError(pub(super) StatusCode, pub(super) &'static str);

/// A request that is refused before a delivery begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidRequest {
    pub(super) error: RequestError,
    /// The method and the target, if both were parsed.
    pub(super) request_line: Option<(Method, String)>,
}

impl From<RequestError> for InvalidRequest {
    fn from(error: RequestError) -> Self {
        Self { error, request_line: None }
    }
}

pub(super) const fn bad_request(detail: &'static str) -> RequestError {
    RequestError(StatusCode::BAD_REQUEST, detail)
}

pub(super) const TOO_MANY_FIELDS: RequestError =
    RequestError(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the header fields are too large");
pub(super) const TARGET_TOO_LONG: RequestError =
    RequestError(StatusCode::URI_TOO_LONG, "the request target is too long");

pub(super) fn check_method(method: &str) -> Result<(), RequestError> {
    let is_short = method.len() <= METHOD_MAX;
    if is_short { Ok(()) } else { Err(RequestError(StatusCode::NOT_IMPLEMENTED, "the method is unknown")) }
}

pub(super) fn check_target(target: &str) -> Result<(), RequestError> {
    invalid_target_character(target).map_or(Ok(()), |detail| Err(bad_request(detail)))
}

/// Returns whether the client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
/// `expect`: the value of `Expect`.
pub(super) fn expects_continue(expect: Option<FieldValue<'_>>) -> Result<bool, RequestError> {
    match expect.map(FieldValue::as_bytes) {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
        Some(_) => Err(RequestError(StatusCode::EXPECTATION_FAILED, "the expectation is unknown")),
    }
}
