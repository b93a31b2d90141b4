//! What went wrong with an exchange.
//! Has the target processed the request, and has it broken the rules of HTTP?

use std::io::ErrorKind;
use std::iter::successors;

use http::Request;
use hyper::client::conn::TrySendError;

use super::{Upload, Violation};

pub enum SendError {
    /// The target has not processed the request (RFC 9113 §8.7).
    Unprocessed {
        reason: Unprocessed,
        /// The request, to be sent again; `None`: too much of its body has gone to be kept.
        request: Option<Box<Request<Upload>>>,
    },
    /// Over HTTP/2 the target has sent a response that breaks a rule or a limit. Its stream is reset.
    Malformed(Violation),
    /// Some of the request may have arrived: it must not be sent again (RFC 9110 §9.2.2).
    Lost(hyper::Error),
}

/// How it is known that the target has not processed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unprocessed {
    /// The connection had ended before a byte of the request was written.
    Unsent,
    /// REFUSED_STREAM, or a GOAWAY whose last stream identifier is lower.
    Refused,
    /// HTTP_1_1_REQUIRED (RFC 9113 §7).
    RequiresHttp1,
}

/// Returns whether the target broke the rules of HTTP, rather than off.
pub fn breaks_the_protocol(error: &hyper::Error) -> bool {
    let mut causes = successors(std::error::Error::source(error), |cause| cause.source());
    error.is_parse()
        || causes.any(|cause| {
            // How hyper tells of a malformed chunk.
            let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            let is_malformed = matches!(kind, Some(ErrorKind::InvalidData | ErrorKind::InvalidInput));
            is_malformed || cause.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_library)
        })
}

/// Returns whether the target has sent a response to the request, however malformed.
pub fn shows_a_response(error: &hyper::Error) -> bool {
    // Over HTTP/2 this ends the stream. What ends the connection may concern another.
    error.is_parse() || h2_error(error).is_some_and(|error| error.is_library() && error.is_reset())
}

pub(super) fn fault(mut error: TrySendError<Request<Upload>>) -> SendError {
    match error.take_message() {
        Some(request) => SendError::Unprocessed { reason: Unprocessed::Unsent, request: Some(Box::new(request)) },
        None => SendError::Lost(error.into_error()),
    }
}

/// Returns how the target has promised not to have processed the request.
///
/// h2 reports a GOAWAY only to streams above its last stream identifier. The others may have been processed, whatever
/// its error code (RFC 9113 §6.8): to them h2 reports the end of the connection.
pub(super) fn unprocessed(error: &hyper::Error) -> Option<Unprocessed> {
    let error = h2_error(error).filter(|error| error.is_remote())?;
    match error.reason()? {
        h2::Reason::HTTP_1_1_REQUIRED => Some(Unprocessed::RequiresHttp1),
        h2::Reason::REFUSED_STREAM => Some(Unprocessed::Refused),
        _ => error.is_go_away().then_some(Unprocessed::Refused),
    }
}

/// Returns why an exchange was lost, with the name of the error code (RFC 9113 §7) if the target sent RST_STREAM or GOAWAY.
/// `goaway`: the code of the connection's last GOAWAY. The target's debug data is left out. With NO_ERROR the target lets
/// what is under way finish (RFC 9113 §6.8): something else has ended it.
pub(super) fn cause(error: &hyper::Error, goaway: Option<u32>) -> String {
    let h2 = h2_error(error);
    let reset = h2.filter(|error| error.is_remote() && error.is_reset()).and_then(h2::Error::reason);
    let goaway = goaway.map(h2::Reason::from).filter(|_| !h2.is_some_and(h2::Error::is_library));
    match (reset, goaway) {
        (Some(code), _) => format!("stream reset by the target: {code:?}"),
        (None, Some(h2::Reason::NO_ERROR)) => format!("GOAWAY: NO_ERROR, then {}", words(error)),
        (None, Some(code)) => format!("GOAWAY: {code:?}"),
        (None, None) => words(error),
    }
}

/// hyper's words, and what they leave out of an error of the HTTP/2 library: the code by which it has ended the stream or
/// the connection, or what happened to the wire.
fn words(error: &hyper::Error) -> String {
    let h2 = h2_error(error);
    let code = h2.and_then(h2::Error::reason).map(|code| format!("{code:?}"));
    let wire = || h2.and_then(h2::Error::get_io).map(ToString::to_string);
    code.or_else(wire).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}
