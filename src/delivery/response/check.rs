//! The check of a target's response before outgate forwards it.
//! May the client get this response?

use http::{StatusCode, Version, header};
use http_body::Body;

use crate::config::ResponseHeadMax;
use crate::delivery::errors::head_too_large;
use crate::delivery::refusal::{Code, Refusal};
use crate::http_message::{FieldValue, Response};
use crate::net::http_client::{self, HeadLimit};

/// Checks the head of a response. `body_max`: in bytes.
///
/// A response that is refused shows, too, that the target has got the request.
pub(in crate::delivery) fn check(
    response: &Response<impl Body>,
    body_max: u64,
    head_max: ResponseHeadMax,
) -> Result<(), Refusal> {
    check_head(response, body_max, head_max).map_err(Refusal::responded)
}

fn check_head(response: &Response<impl Body>, body_max: u64, head_max: ResponseHeadMax) -> Result<(), Refusal> {
    // Over HTTP/1.1, the parser enforces both limits.
    if response.version == Version::HTTP_2 {
        if response.fields.len() > head_max.count {
            return Err(head_too_large(head_max, HeadLimit::Count));
        }
        if http_client::field_section_size(&response.fields) > head_max.bytes {
            return Err(head_too_large(head_max, HeadLimit::Bytes));
        }
    }
    // outgate requests no upgrade.
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::target(Code::ResponseMalformed, "switched protocols without a request to do so"));
    }
    let mut codings = response.fields.get_all(&header::TRANSFER_ENCODING);
    let is_chunked = |coding: FieldValue<'_>| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    // outgate decodes chunked only, and once: the client would get any other coding without its name. A second line is a second
    // coding (RFC 9110 §5.3), and chunked must not be applied twice (RFC 9112 §6.1).
    if !(codings.next().is_none_or(is_chunked) && codings.next().is_none()) {
        let refusal =
            Refusal::target(Code::ResponseMalformed, "used a transfer coding other than chunked, or chunked twice");
        return Err(refusal.proxy_status("http_response_transfer_coding"));
    }
    if response.body.size_hint().lower() > body_max {
        return Err(Refusal::part_of_target(
            Code::ResponseTooLarge,
            "response is longer than the route's response_max",
        ));
    }
    Ok(())
}
