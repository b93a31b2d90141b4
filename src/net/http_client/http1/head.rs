//! The heads of HTTP/1.1 messages: of a request as it is written, and of a response as it is read.
//! How is the body of this response framed?

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::{HeaderValue, Method, StatusCode, Version, header};
use http_body::Body;

use crate::config::ResponseHeadMax;
use crate::http_message::{Fields, Request, Response};
use crate::net::body_framing::Framing;
use crate::net::head_end;
use crate::net::http_client::http1_error::{HeadLimit, Http1Error};
use crate::net::http_client::{Upload, parse_content_length};

/// The number of fields up to which the parser needs no allocation.
const STACK_FIELDS: usize = 128;

/// The framing of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestFraming {
    /// The number of bytes that are still to be written.
    Length(u64),
    Chunked,
}

/// The framing of a response's body (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFraming {
    Delimited(Framing),
    /// The end of the connection delimits the body.
    UntilClose,
}

/// Writes the head of a request (RFC 9112 §3). Returns the framing of the body.
pub(super) fn write_request(request: &mut Request<Upload>, out: &mut Vec<u8>) -> RequestFraming {
    let framing = set_framing(request);
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    request.fields.write(out);
    out.extend_from_slice(b"\r\n");
    framing
}

/// Makes the fields announce the framing of the body, whatever they said before.
fn set_framing(request: &mut Request<Upload>) -> RequestFraming {
    let Request { fields, body, .. } = request;
    // A body that is sent again is known in full, and keeps the framing of its first attempt.
    match body.size_hint().exact().filter(|_| !fields.contains(header::TRANSFER_ENCODING)) {
        Some(length) => {
            // A request without a body says so only if its sender did, or must (RFC 9110 §8.6).
            if length > 0 || fields.contains(header::CONTENT_LENGTH) {
                fields.insert(header::CONTENT_LENGTH, length);
            }
            RequestFraming::Length(length)
        }
        None => {
            fields.remove(header::CONTENT_LENGTH);
            fields.insert(header::TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
            RequestFraming::Chunked
        }
    }
}

/// Returns whether `buffer` should be parsed, given that its first `scanned` bytes hold no complete head.
pub(super) fn may_be_complete(buffer: &[u8], scanned: usize, max: ResponseHeadMax) -> bool {
    // The first bytes always are parsed, so that bytes other than HTTP are refused at once.
    scanned == 0 || head_end::has_arrived(buffer, scanned) || buffer.len() > max.bytes
}

/// Takes a complete response head from the front of `buffer`. Returns `None` while the head is incomplete.
/// `spare`: empty fields, whose memory the response gets.
pub(super) fn parse_response(
    buffer: &mut BytesMut,
    max: ResponseHeadMax,
    spare: &mut Fields,
) -> Result<Option<Response<()>>, Http1Error> {
    let mut stack = [const { MaybeUninit::uninit() }; STACK_FIELDS];
    let mut heap = Vec::new();
    let slots = match stack.get_mut(..max.count) {
        Some(slots) => slots,
        None => {
            heap.resize_with(max.count, MaybeUninit::uninit);
            &mut heap
        }
    };
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true); // they are removed (RFC 9112 §5.1)
    let length = match config.parse_response_with_uninit_headers(&mut parsed, buffer, slots) {
        Ok(httparse::Status::Complete(length)) if length <= max.bytes => length,
        Ok(httparse::Status::Partial) if buffer.len() <= max.bytes => return Ok(None),
        Ok(_) => return Err(Http1Error::HeadTooLarge(HeadLimit::Bytes)),
        Err(httparse::Error::TooManyHeaders) => return Err(Http1Error::HeadTooLarge(HeadLimit::Count)),
        Err(error) => return Err(Http1Error::Head(error)),
    };
    let status = StatusCode::from_u16(parsed.code.unwrap_or_default()).map_err(|_| Http1Error::Status)?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut fields = std::mem::take(spare);
    fields.append_parsed(parsed.headers, length);
    buffer.advance(length);
    Ok(Some(Response { version, fields, ..Response::new(status, ()) }))
}

/// Returns the framing of the body of a final response to `method` (RFC 9112 §6.3).
/// `max`: the limit of the head, and of the trailers.
pub(super) fn response_framing(
    head: &Response<()>,
    method: &Method,
    max: ResponseHeadMax,
) -> Result<ResponseFraming, Http1Error> {
    let Response { status, fields, .. } = head;
    let has_no_body =
        matches!(*status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_no_body || *method == Method::HEAD {
        return Ok(ResponseFraming::Delimited(Framing::Ended));
    }
    if let Some(last) = fields.get_all(&header::TRANSFER_ENCODING).next_back() {
        if head.version == Version::HTTP_10 {
            return Err(Http1Error::Framing); // HTTP/1.0 has no transfer codings (RFC 9112 §6.1)
        }
        let last = last.to_str().unwrap_or_default().rsplit(',').next().unwrap_or_default();
        return Ok(match last.trim().eq_ignore_ascii_case("chunked") {
            true => ResponseFraming::Delimited(Framing::padded_chunks(max.bytes)),
            false => ResponseFraming::UntilClose,
        });
    }
    let mut length = None;
    // A list of equal values is one length (RFC 9110 §8.6).
    let values = fields.get_all(&header::CONTENT_LENGTH);
    for value in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let next = parse_content_length(value.trim_ascii()).ok_or(Http1Error::Framing)?;
        if length.replace(next).is_some_and(|length| length != next) {
            return Err(Http1Error::Framing);
        }
    }
    Ok(length.map_or(ResponseFraming::UntilClose, |length| ResponseFraming::Delimited(Framing::length(length))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const MAX: ResponseHeadMax = ResponseHeadMax { count: 4, bytes: 200 };

    fn parse(text: &str) -> Result<Option<Response<()>>, Http1Error> {
        parse_response(&mut BytesMut::from(text), MAX, &mut Fields::default())
    }

    fn framing(fields: &str, method: &Method) -> Result<ResponseFraming, Http1Error> {
        let head = parse(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).unwrap().unwrap();
        response_framing(&head, method, MAX)
    }

    #[test]
    fn request_has_one_framing() {
        for (coding, framing, end) in [
            (None, RequestFraming::Length(2), "content-length: 2\r\n\r\n"),
            (Some("chunked"), RequestFraming::Chunked, "\r\n\r\n"),
        ] {
            let body = Upload::whole(Bytes::from_static(b"hi"));
            let mut request = Request::new(Method::GET, "/a?b", body);
            let coding = coding.map(|coding| (header::TRANSFER_ENCODING, HeaderValue::from_static(coding)));
            request.fields = coding.into_iter().collect();
            let mut head = Vec::new();
            assert_eq!(write_request(&mut request, &mut head), framing);
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("GET /a?b HTTP/1.1\r\n") && head.ends_with(end), "{head}");
            assert_eq!(head.contains("content-length"), framing != RequestFraming::Chunked, "{head}");
        }
    }

    #[test]
    fn response_head_is_taken_from_the_front_of_the_buffer() {
        let mut buffer = BytesMut::from("HTTP/1.1 207 Multi\r\nA : b\r\na:c \r\n\r\nbody");
        let head = parse_response(&mut buffer, MAX, &mut Fields::default()).unwrap().unwrap();
        assert_eq!((head.status.as_u16(), head.version, &buffer[..]), (207, Version::HTTP_11, &b"body"[..]));
        assert_eq!(head.fields.get_all("a").collect::<Vec<_>>(), ["b", "c"]);
        assert!(parse("HTTP/1.1 200 OK\r\nA: b\r\n").unwrap().is_none());
    }

    #[test]
    fn response_head_beyond_a_limit_is_an_error() {
        let fields = "A: b\r\n".repeat(5);
        let error = parse(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).unwrap_err();
        assert!(matches!(error, Http1Error::HeadTooLarge(HeadLimit::Count)), "{error}");
        for end in ["\r\n\r\n", ""] {
            let error = parse(&format!("HTTP/1.1 200 OK\r\nA: {}{end}", "b".repeat(200))).unwrap_err();
            assert!(matches!(error, Http1Error::HeadTooLarge(HeadLimit::Bytes)), "{error}");
        }
    }

    #[test]
    fn malformed_response_head_is_an_error() {
        for text in
            ["SSH-2.0-x\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 200 OK\r\n A: b\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(matches!(parse("HTTP/1.1 099 OK\r\n\r\n"), Err(Http1Error::Status)));
    }

    #[test]
    fn response_framing_follows_the_fields() {
        let (get, delimited) = (&Method::GET, ResponseFraming::Delimited);
        assert_eq!(
            framing("Content-Length: 5, 5\r\nContent-Length: 5\r\n", get).unwrap(),
            delimited(Framing::Length(5))
        );
        assert_eq!(framing("Content-Length: 5\r\n", &Method::HEAD).unwrap(), delimited(Framing::Ended));
        let chunked = delimited(Framing::padded_chunks(MAX.bytes));
        assert_eq!(framing("Transfer-Encoding: gzip, Chunked\r\nContent-Length: 5\r\n", get).unwrap(), chunked);
        assert_eq!(framing("Transfer-Encoding: chunked, gzip\r\n", get).unwrap(), ResponseFraming::UntilClose);
        assert_eq!(framing("", get).unwrap(), ResponseFraming::UntilClose);
        for fields in
            ["Content-Length: 5, 6\r\n", "Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: +5\r\n"]
        {
            assert!(matches!(framing(fields, get), Err(Http1Error::Framing)), "{fields}");
        }
    }
}
