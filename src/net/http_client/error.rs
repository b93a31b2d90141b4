//! The errors of an exchange with a target.
//! Has the target processed the request, and has it violated the protocol?

use std::fmt;
use std::iter::successors;

use hyper::client::conn::TrySendError;

use super::http1_error::{HeadLimit, Http1Error};
use super::request::RetryHead;
use super::{Upload, Violation};
use crate::http_message::Request;

pub enum SendError {
    /// The target has not processed the request (RFC 9113 §8.7).
    Unprocessed {
        reason: Unprocessed,
        /// The request for another attempt; `None`: too much of its body was sent to be replayed.
        request: Option<Box<Request<Upload>>>,
    },
    /// The request has no form in HTTP/2. Nothing was sent.
    Invalid,
    /// The target sent a response over HTTP/2 that violates a rule or a limit. Its stream is reset.
    Malformed(Violation),
    /// A part of the request may have arrived: it must not be sent again (RFC 9110 §9.2.2).
    Lost(ExchangeError),
}

/// The evidence that the target has not processed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unprocessed {
    /// The connection had ended before a byte of the request was written.
    Unsent,
    /// The target sent REFUSED_STREAM, or a GOAWAY with a lower last stream identifier.
    Refused,
    /// The target sent HTTP_1_1_REQUIRED (RFC 9113 §7).
    RequiresHttp1,
}

/// The error of an exchange whose request may have arrived.
#[derive(Debug)]
pub enum ExchangeError {
    Http1(Http1Error),
    Http2(hyper::Error),
}

impl ExchangeError {
    /// Returns whether the target violated the protocol, rather than closed the connection.
    pub fn is_protocol_error(&self) -> bool {
        match self {
            Self::Http1(error) => error.is_protocol_error(),
            Self::Http2(error) => is_protocol_error(error),
        }
    }

    /// Returns whether the target has sent a response to the request, even a malformed one.
    pub fn implies_response(&self) -> bool {
        match self {
            Self::Http1(error) => error.implies_response(),
            Self::Http2(error) => implies_response(error),
        }
    }

    /// Returns the limit that the head of the response exceeds.
    pub fn head_limit(&self) -> Option<HeadLimit> {
        match self {
            Self::Http1(Http1Error::HeadTooLarge(limit)) => Some(*limit),
            _ => None,
        }
    }

    /// Describes a lost exchange. `goaway`: the code of the connection's last GOAWAY.
    pub(super) fn describe(&self, goaway: Option<u32>) -> String {
        match self {
            Self::Http1(error) => error.to_string(),
            Self::Http2(error) => failure_cause(error, goaway),
        }
    }
}

impl From<Http1Error> for ExchangeError {
    fn from(error: Http1Error) -> Self {
        Self::Http1(error)
    }
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        Self::Http2(error)
    }
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http1(error) => error.fmt(f),
            Self::Http2(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ExchangeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Http1(error) => error.source(),
            Self::Http2(error) => error.source(),
        }
    }
}

fn is_protocol_error(error: &hyper::Error) -> bool {
    let mut causes = successors(std::error::Error::source(error), |cause| cause.source());
    error.is_parse() || causes.any(|cause| cause.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_library))
}

/// Returns whether h2 ended the whole connection because the target violated HTTP/2.
pub(super) fn ends_connection(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|error| error.is_library() && error.is_go_away())
}

pub(super) fn implies_response(error: &hyper::Error) -> bool {
    // Over HTTP/2 such a response ends the stream. An error that ends the connection may concern another stream.
    error.is_parse() || h2_error(error).is_some_and(|error| error.is_library() && error.is_reset())
}

/// Returns the request if hyper has written no byte of it, or else the error.
/// `head`: of this request.
pub(super) fn from_try_send_error(
    mut error: TrySendError<http::Request<Upload>>,
    head: RetryHead,
) -> Result<SendError, (hyper::Error, RetryHead)> {
    match error.take_message() {
        Some(request) => {
            let request = Some(head.with_body(request.into_body()));
            Ok(SendError::Unprocessed { reason: Unprocessed::Unsent, request })
        }
        None => Err((error.into_error(), head)),
    }
}

/// Returns the evidence that the target has not processed the request.
///
/// h2 reports a GOAWAY only to streams above its last stream identifier. The others may have been processed, whatever
/// its error code (RFC 9113 §6.8): h2 reports the end of the connection to them.
pub(super) fn unprocessed_reason(error: &hyper::Error) -> Option<Unprocessed> {
    let error = h2_error(error).filter(|error| error.is_remote())?;
    match error.reason()? {
        h2::Reason::HTTP_1_1_REQUIRED => Some(Unprocessed::RequiresHttp1),
        h2::Reason::REFUSED_STREAM => Some(Unprocessed::Refused),
        _ => error.is_go_away().then_some(Unprocessed::Refused),
    }
}

/// Describes a lost exchange, with the name of the error code (RFC 9113 §7) if the target sent RST_STREAM or GOAWAY.
/// `goaway`: the code of the connection's last GOAWAY. The target's debug data is left out. NO_ERROR lets open streams
/// finish (RFC 9113 §6.8), so another event ended the exchange.
fn failure_cause(error: &hyper::Error, goaway: Option<u32>) -> String {
    let h2 = h2_error(error);
    let reset = h2.filter(|error| error.is_remote() && error.is_reset()).and_then(h2::Error::reason);
    let goaway = goaway.map(h2::Reason::from).filter(|_| !h2.is_some_and(h2::Error::is_library));
    match (reset, goaway) {
        (Some(code), _) => format!("stream reset by the target: {code:?}"),
        (None, Some(h2::Reason::NO_ERROR)) => format!("GOAWAY: NO_ERROR, then {}", describe(error)),
        (None, Some(code)) => format!("GOAWAY: {code:?}"),
        (None, None) => describe(error),
    }
}

/// Returns hyper's description with the detail that it omits. That is the code by which h2 ended the stream or the
/// connection, or the I/O error.
fn describe(error: &hyper::Error) -> String {
    let h2 = h2_error(error);
    let code = h2.and_then(h2::Error::reason).map(|code| format!("{code:?}"));
    let io_error = || h2.and_then(h2::Error::get_io).map(ToString::to_string);
    code.or_else(io_error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}
