//! HTTP messages as outgate reads, changes and writes them, in any HTTP version.
//! Which parts does a message have?

mod field;
mod fields;
mod shared_text;
mod spare;

use std::borrow::Cow;

use http::{Method, StatusCode, Version};

pub use field::{FieldName, FieldText, FieldValue, NotText, Text};
pub use fields::Fields;
pub use shared_text::SharedText;
pub use spare::{HeadBuffer, keep_read_buffer, take_read_buffer};

/// A request for a target.
#[derive(Debug)]
pub struct Request<B> {
    pub method: Method,
    /// The request target in origin-form, or `*` (RFC 9112 §3.2).
    pub target: SharedText,
    pub fields: Fields,
    pub body: B,
}

/// A response of a target, or of outgate itself.
#[derive(Debug)]
pub struct Response<B> {
    pub status: StatusCode,
    /// The version in which the response arrived.
    pub version: Version,
    /// The reason phrase over HTTP/1.1; `None`: that of the status.
    pub reason: Option<Cow<'static, str>>,
    pub fields: Fields,
    pub body: B,
}

impl<B> Request<B> {
    pub fn new(method: Method, target: impl Into<SharedText>, body: B) -> Self {
        Self { method, target: target.into(), fields: Fields::default(), body }
    }

    pub fn map<C>(self, f: impl FnOnce(B) -> C) -> Request<C> {
        let Self { method, target, fields, body } = self;
        Request { method, target, fields, body: f(body) }
    }
}

impl<B> From<http::Response<B>> for Response<B> {
    fn from(response: http::Response<B>) -> Self {
        let (head, body) = response.into_parts();
        let fields = Fields::from(&head.headers);
        Self { version: head.version, fields, ..Self::new(head.status, body) }
    }
}

impl<B> Response<B> {
    pub fn new(status: StatusCode, body: B) -> Self {
        Self { status, version: Version::HTTP_11, reason: None, fields: Fields::default(), body }
    }

    pub fn map<C>(self, f: impl FnOnce(B) -> C) -> Response<C> {
        let Self { status, version, reason, fields, body } = self;
        Response { status, version, reason, fields, body: f(body) }
    }
}
