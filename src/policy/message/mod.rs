//! HTTP messages as their signatures speak of them (RFC 9421, RFC 9530): what was sent, fields member by member, digests.
//! Which bytes does a signature stand for?

pub(crate) mod digest;
pub(crate) mod members;
mod request;

pub use request::SignableRequest;
pub(crate) use request::is_of_one_hop;

/// What is signed (RFC 9421 §2.5): a line for each component, then `params`, the value of `@signature-params`, without
/// an end of line.
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
