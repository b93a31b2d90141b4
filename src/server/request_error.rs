//! What no request may look like, in whatever version of HTTP it came.
//! How much of it is too much, and what do we tell its client?

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::names::refused_character;

/// A request line of HTTP/1, a target of HTTP/2.
pub(super) const TARGET_MAX: usize = 16 * 1024;
pub(super) const FIELDS_MAX: usize = 100;
/// All of them together.
pub(super) const HEAD_MAX: usize = 64 * 1024;
/// No registered method is half as long (RFC 9110 §16.1).
const METHOD_MAX: usize = 32;

/// Why a request is refused: the status, and what to tell the client.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct RequestError(pub(super) StatusCode, pub(super) &'static str);

/// A request that is refused before a delivery begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidRequest {
    pub(super) why: RequestError,
    /// The method and the target, where they were read.
    pub(super) asked: Option<(Method, String)>,
}

impl From<RequestError> for InvalidRequest {
    fn from(why: RequestError) -> Self {
        Self { why, asked: None }
    }
}

pub(super) const fn bad_request(why: &'static str) -> RequestError {
    RequestError(StatusCode::BAD_REQUEST, why)
}

pub(super) const TOO_MANY_FIELDS: RequestError =
    RequestError(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the header fields are too large");
pub(super) const TARGET_TOO_LONG: RequestError =
    RequestError(StatusCode::URI_TOO_LONG, "the request target is too long");

pub(super) fn judge_method(method: &str) -> Result<(), RequestError> {
    let is_short = method.len() <= METHOD_MAX;
    if is_short { Ok(()) } else { Err(RequestError(StatusCode::NOT_IMPLEMENTED, "an unknown method")) }
}

pub(super) fn judge_target(target: &str) -> Result<(), RequestError> {
    refused_character(target).map_or(Ok(()), |why| Err(bad_request(why)))
}

/// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
pub(super) fn expects_continue(fields: &HeaderMap) -> Result<bool, RequestError> {
    match fields.get(header::EXPECT).map(HeaderValue::as_bytes) {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
        Some(_) => Err(RequestError(StatusCode::EXPECTATION_FAILED, "an unknown expectation")),
    }
}
