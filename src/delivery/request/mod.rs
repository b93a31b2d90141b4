//! The types of a request that a client sends.
//! What does a server give to the delivery?

pub(super) mod body;
pub(super) mod fields;
pub(super) mod max_forwards;
pub(super) mod target;
pub(super) mod tunnel_mode;
pub(super) mod webhook_id;

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use http_body::Body;

use crate::http_message::Fields;
use crate::policy::authn::Caller;

/// A request as a server has read it.
pub struct ProxyRequest {
    pub method: Method,
    /// The version that the client speaks.
    pub version: Version,
    /// The request target, byte for byte.
    pub target: String,
    pub fields: Fields,
    pub body: RequestBody,
    pub caller: Arc<Caller>,
    /// `None`: the client does not understand interim responses.
    pub interim: Option<InterimSender>,
}

/// Sends interim responses to the client of one request, while the client is connected.
pub type InterimSender = Weak<dyn SendInterim>;

pub trait SendInterim: Send + Sync {
    /// Sends an interim response (1xx) to the client at once.
    fn send_interim(&self, status: StatusCode, fields: &Fields);
}

/// A request body as the server reads it from the client's connection.
pub type RequestBody = Pin<Box<dyn Body<Data = Bytes, Error = RequestBodyError> + Send>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestBodyError {
    Malformed,
    TooLarge,
    Timeout,
    /// The client closed the connection before the end of the body.
    ClientGone,
    /// The bodies that outgate holds have reached their maximum.
    NoMemory,
}

impl fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RequestBodyError::Malformed => "the body's framing is malformed",
            RequestBodyError::TooLarge => "the body is larger than the route allows",
            RequestBodyError::Timeout => "the body did not arrive in time",
            RequestBodyError::ClientGone => "the client closed the connection",
            RequestBodyError::NoMemory => "outgate holds too many bodies",
        })
    }
}

impl std::error::Error for RequestBodyError {}
