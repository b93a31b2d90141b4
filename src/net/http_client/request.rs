//! Converts a request for HTTP/2.
//! Where do host and path belong, and how large is the head?

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Uri, header};

use super::Upload;
use crate::http_message::{Fields, Request};

/// The overhead of each field, in bytes, beyond its name and value (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Returns the size of a field section in bytes (RFC 9113 §6.5.2).
pub fn field_section_size(fields: &Fields) -> usize {
    let sizes = fields.iter().map(|(name, value)| name.len() + value.as_bytes().len() + FIELD_OVERHEAD);
    sizes.sum()
}

/// Returns the size of the head in bytes, as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 §6.5.2).
pub fn head_size(request: &Request<Upload>) -> usize {
    let (path, method) = (request.target.len(), request.method.as_str().len());
    // The Host field counts for `:authority`.
    let pseudo = [":method".len() + method, ":scheme".len() + "https".len(), ":path".len() + path];
    field_section_size(&request.fields) + pseudo.iter().map(|length| length + FIELD_OVERHEAD).sum::<usize>()
}

/// Converts a request for HTTP/2: the target is in pseudo-header fields (RFC 9113 §8.3.1), and connection-specific
/// fields are removed (§8.2.2).
///
/// # Errors
///
/// `Host` or the target is not one of a URI.
pub(super) fn into_http2(request: Request<Upload>) -> Result<http::Request<Upload>, http::Error> {
    let Request { method, target, mut fields, body } = request;
    let host = fields.get(header::HOST).map(|host| Authority::try_from(host.as_bytes())).transpose()?;
    fields.remove(header::HOST);
    fields.remove(header::TRANSFER_ENCODING);
    let mut parts = http::uri::Parts::default();
    (parts.scheme, parts.authority) = (host.is_some().then_some(Scheme::HTTPS), host);
    parts.path_and_query = Some(PathAndQuery::try_from(&*target)?);
    let mut converted = http::Request::new(body);
    (*converted.method_mut(), *converted.uri_mut()) = (method, Uri::from_parts(parts)?);
    (*converted.headers_mut(), *converted.version_mut()) = (HeaderMap::from(&fields), http::Version::HTTP_2);
    Ok(converted)
}

/// A copy of a request's head, for another attempt.
pub(super) struct RetryHead(Request<()>);

impl RetryHead {
    pub(super) fn of(request: &Request<Upload>) -> Self {
        let Request { method, target, fields, .. } = request;
        Self(Request { method: method.clone(), target: target.clone(), fields: fields.clone(), body: () })
    }

    pub(super) fn with_body(self, body: Upload) -> Box<Request<Upload>> {
        Box::new(self.0.map(|()| body))
    }
}
