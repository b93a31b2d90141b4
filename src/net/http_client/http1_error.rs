//! The errors of an exchange over HTTP/1.1.
//! Has the target violated the protocol, or has the connection ended?

use std::{fmt, io};

/// A limit of a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLimit {
    Count,
    Bytes,
}

#[derive(Debug)]
pub enum Http1Error {
    HeadTooLarge(HeadLimit),
    /// The head of the response is malformed.
    Head(httparse::Error),
    /// The status code is below 100.
    Status,
    /// The fields of the response contradict each other, or HTTP, in how its body is framed.
    Framing,
    /// The body of the response is not framed as its head announced.
    Chunk,
    /// The target sent more interim responses than the caller accepts.
    TooManyInterim,
    /// The connection ended within the response, or before it.
    Incomplete,
    /// The body of the request ended with an error, or not at its announced length.
    Upload,
    Io(io::Error),
}

impl Http1Error {
    /// Returns whether the target violated the protocol, rather than closed the connection.
    pub(super) fn is_protocol_error(&self) -> bool {
        self.implies_response() || matches!(self, Self::Chunk)
    }

    /// Returns whether the target has sent the head of a response that is malformed or too large.
    pub(super) fn implies_response(&self) -> bool {
        matches!(self, Self::HeadTooLarge(_) | Self::Head(_) | Self::Status | Self::Framing | Self::TooManyInterim)
    }
}

impl fmt::Display for Http1Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeadTooLarge(_) => f.write_str("the response head is too large"),
            Self::Head(error) => write!(f, "the response head is malformed: {error}"),
            Self::Status => f.write_str("the status code of the response is not one of HTTP"),
            Self::Framing => f.write_str("the response has a malformed Content-Length or Transfer-Encoding"),
            Self::Chunk => f.write_str("a chunk of the response is malformed"),
            Self::TooManyInterim => f.write_str("the target sent too many interim responses"),
            Self::Incomplete => f.write_str("the connection ended before the end of the response"),
            Self::Upload => f.write_str("the request body ended early"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Http1Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Head(error) => Some(error),
            _ => None,
        }
    }
}
