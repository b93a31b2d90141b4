//! Converts a request into the form of each HTTP version.
//! Where do host and path belong, and how large is the head?

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Uri, header};

use super::Upload;

/// The overhead of each field, in bytes, beyond its name and value (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Returns the size of a field section in bytes (RFC 9113 §6.5.2).
pub fn field_section_size(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum()
}

/// Returns the size of the head in bytes, as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 §6.5.2).
pub fn head_size(request: &Request<Upload>) -> usize {
    let path = request.uri().path_and_query().map_or(1, |path| path.as_str().len());
    let method = request.method().as_str().len();
    // The Host field counts for `:authority`.
    let pseudo = [":method".len() + method, ":scheme".len() + "https".len(), ":path".len() + path];
    field_section_size(request.headers()) + pseudo.iter().map(|length| length + FIELD_OVERHEAD).sum::<usize>()
}

/// Converts a request for HTTP/2: the target is in pseudo-header fields (RFC 9113 §8.3.1), and connection-specific
/// fields are removed (§8.2.2).
pub(super) fn into_http2(mut request: Request<Upload>) -> Request<Upload> {
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    if let Some(host) = request.headers_mut().remove(header::HOST) {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(host.as_bytes())).ok();
        let path = request.uri().path_and_query().cloned();
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    *request.version_mut() = http::Version::HTTP_2;
    request
}

/// A copy of a request's head, for another attempt.
pub(super) struct RetryHead(Request<()>);

impl RetryHead {
    /// Copies the parts of the head that [`into_http2`] changes.
    pub(super) fn of(request: &Request<Upload>) -> Self {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        Self(head)
    }

    pub(super) fn with_body(self, body: Upload) -> Box<Request<Upload>> {
        Box::new(self.0.map(|()| body))
    }
}
