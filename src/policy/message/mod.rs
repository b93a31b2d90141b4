//! HTTP messages as signatures cover them (RFC 9421, RFC 9530): requests, dictionary members and digests.
//! Which bytes does a signature cover?

pub(crate) mod digest;
pub(crate) mod members;
mod request;

pub(crate) use request::is_of_one_hop;
pub use request::{SignableRequest, has_connection_option};

/// Returns the signature base (RFC 9421 §2.5): a line for each component, then `params`, the value of
/// `@signature-params`, without a line end.
pub(crate) fn signature_base<'a>(
    covered: impl IntoIterator<Item = &'a str>,
    params: &str,
    request: &SignableRequest<'_>,
) -> Result<String, &'static str> {
    let mut base = String::new();
    for name in covered {
        base.push_str(&format!("\"{name}\": {}\n", request.component(name)?));
    }
    base.push_str(&format!("\"@signature-params\": {params}"));
    Ok(base)
}
