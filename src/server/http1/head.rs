//! The head of an HTTP/1 request, read strictly: what two parsers could read in two ways is refused.
//! Is this a request, and how long is its body?

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use super::body::Framing;
use crate::server::request_error::{
    FIELDS_MAX, HEAD_MAX, InvalidRequest, RequestError, TARGET_MAX, TARGET_TOO_LONG, TOO_MANY_FIELDS, bad_request,
    expects_continue, judge_method, judge_target,
};

#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    /// As sent, byte for byte.
    pub(super) target: String,
    pub(super) version: Version,
    pub(super) fields: HeaderMap,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Takes a whole head off the front of `buffer`; `None` while it is incomplete.
pub(super) fn parse(buffer: &mut BytesMut) -> Result<Option<RequestHead>, InvalidRequest> {
    skip_empty_lines(buffer);
    if buffer.len() > TARGET_MAX && memchr::memchr(b'\n', &buffer[..TARGET_MAX]).is_none() {
        return Err(TARGET_TOO_LONG.into());
    }
    let mut slots = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(buffer, &mut slots) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => Ok(length),
        Ok(httparse::Status::Complete(_)) => Err(TOO_MANY_FIELDS),
        Ok(httparse::Status::Partial) if buffer.len() > HEAD_MAX => Err(TOO_MANY_FIELDS),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(TOO_MANY_FIELDS),
        Err(httparse::Error::Version) => {
            Err(RequestError(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "not HTTP/1.0 or HTTP/1.1"))
        }
        Err(httparse::Error::Token) => Err(bad_request("a character that may not stand in the request line")),
        Err(_) => Err(bad_request("a malformed header field")),
    };
    let line = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let length = match length {
        Err(RequestError(StatusCode::HTTP_VERSION_NOT_SUPPORTED, _)) if let Some(spaced) = spaced_line(buffer) => {
            return Err(
                judge_line(spaced).map_or_else(|unread| unread, |_| bad_request("a malformed request line").into())
            );
        }
        Err(why) => return Err(InvalidRequest { why, asked: judge_line(line).ok() }),
        Ok(length) => length,
    };
    let asked = judge_line(line)?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let start = buffer.as_ptr() as usize;
    let spans: Vec<_> =
        parsed.headers.iter().map(|field| (span(start, field.name.as_bytes()), span(start, field.value))).collect();

    let head = buffer.split_to(length).freeze();
    match judge(&head, &spans, version, &asked.0) {
        Ok((fields, framing, expects_continue)) => {
            let (method, target) = asked;
            let keep_alive = keep_alive(&fields, version);
            Ok(Some(RequestHead { method, target, version, fields, framing, keep_alive, expects_continue }))
        }
        Err(why) => Err(InvalidRequest { why, asked: Some(asked) }),
    }
}

/// Judges the method and the target.
fn judge_line((method, target): (&str, &str)) -> Result<(Method, String), InvalidRequest> {
    judge_method(method)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad_request("a malformed method"))?;
    match judge_target(target) {
        Ok(()) => Ok((method, target.to_owned())),
        Err(why) => Err(InvalidRequest { why, asked: Some((method, target.to_owned())) }),
    }
}

/// The method and the target of a request line of HTTP/1 with spaces in its target, behind which a parser looks for the
/// version in vain.
fn spaced_line(buffer: &[u8]) -> Option<(&str, &str)> {
    let line = &buffer[..memchr::memchr(b'\n', buffer)?];
    let (method, rest) = std::str::from_utf8(line).ok()?.trim_end_matches('\r').split_once(' ')?;
    let (target, version) = rest.rsplit_once(' ')?;
    (matches!(version, "HTTP/1.0" | "HTTP/1.1") && target.contains(' ')).then_some((method, target))
}

/// Judges what follows the request line. Returns the fields, and what they say of the body and of `100 Continue`.
fn judge(
    head: &Bytes,
    spans: &[(ByteRange, ByteRange)],
    version: Version,
    method: &Method,
) -> Result<(HeaderMap, Framing, bool), RequestError> {
    if has_bare_line_feed(head) {
        return Err(bad_request("a line that ends in a bare line feed"));
    }
    let fields = fields(head, spans)?;
    one_host(&fields, version, method)?;
    // RFC 9110 §10.1.1: ignored in HTTP/1.0.
    let expects_continue = version != Version::HTTP_10 && expects_continue(&fields)?;
    let framing = framing(&fields, version)?;
    Ok((fields, framing, expects_continue))
}

/// Whether it is worth to parse what came, of which `examined` bytes are no whole head. The first piece always is: what
/// is no HTTP at all is told so at once.
pub(super) fn may_be_whole(buffer: &[u8], examined: usize) -> bool {
    let crosses = |limit| examined <= limit && limit < buffer.len();
    let fresh = &buffer[examined.saturating_sub(3)..];
    let ends = memchr::memmem::find(fresh, b"\n\r\n").is_some() || memchr::memmem::find(fresh, b"\n\n").is_some();
    examined == 0 || ends || crosses(TARGET_MAX) || crosses(HEAD_MAX)
}

/// RFC 9112 §2.2: a server ignores empty lines before the request line.
fn skip_empty_lines(buffer: &mut BytesMut) {
    while buffer.starts_with(b"\r\n") {
        let _ = buffer.split_to(2);
    }
}

/// RFC 9112 §2.2 lets a recipient take a bare line feed for a line's end; recipients that differ in it are how
/// requests are smuggled.
fn has_bare_line_feed(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

type ByteRange = std::ops::Range<usize>;

fn span(start: usize, part: &[u8]) -> ByteRange {
    let from = part.as_ptr() as usize - start;
    from..from + part.len()
}

fn fields(head: &Bytes, spans: &[(ByteRange, ByteRange)]) -> Result<HeaderMap, RequestError> {
    let mut fields = HeaderMap::with_capacity(spans.len() + 8); // what we add on the way stands here too
    for (name, value) in spans {
        let name = HeaderName::from_bytes(&head[name.clone()]).map_err(|_| bad_request("a malformed field name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice(value.clone()))
            .map_err(|_| bad_request("a character that may not stand in a field value"))?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// RFC 9112 §3.2: exactly one Host in an HTTP/1.1 request, and a valid one. HTTP/1.0 has none; Python's standard
/// library sends `CONNECT` so.
fn one_host(fields: &HeaderMap, version: Version, method: &Method) -> Result<(), RequestError> {
    let mut hosts = fields.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(bad_request("more than one Host")),
        // What a CONNECT says in Host differs from client to client, and nothing is read from it.
        (Some(_), None) if method == Method::CONNECT => Ok(()),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err(bad_request("a malformed Host")),
        (None, _) if version == Version::HTTP_11 => Err(bad_request("no Host")),
        (None, _) => Ok(()),
    }
}

/// uri-host [ ":" port ], by its characters (RFC 3986 §3.2.2); an empty one is what absolute-form may carry.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

/// RFC 9112 §6.3, and where it leaves a choice, the stricter one.
fn framing(fields: &HeaderMap, version: Version) -> Result<Framing, RequestError> {
    let lengths = fields.get_all(header::CONTENT_LENGTH);
    if fields.contains_key(header::TRANSFER_ENCODING) {
        if version == Version::HTTP_10 {
            return Err(bad_request("Transfer-Encoding in HTTP/1.0"));
        }
        if lengths.iter().next().is_some() {
            return Err(bad_request("both Transfer-Encoding and Content-Length"));
        }
        return chunked(fields).map(|()| Framing::chunked());
    }
    let mut length = None;
    for value in lengths {
        let value = decimal(value.as_bytes()).ok_or(bad_request("a malformed Content-Length"))?;
        if length.replace(value).is_some_and(|other| other != value) {
            return Err(bad_request("Content-Length twice, with different values"));
        }
    }
    Ok(Framing::length(length.unwrap_or(0)))
}

fn chunked(fields: &HeaderMap) -> Result<(), RequestError> {
    let mut codings = Vec::new();
    for value in fields.get_all(header::TRANSFER_ENCODING) {
        let value = value.to_str().map_err(|_| bad_request("a malformed Transfer-Encoding"))?;
        codings.extend(value.split(',').map(|coding| coding.trim_matches([' ', '\t'])));
    }
    let is_chunked = |coding: &&str| coding.eq_ignore_ascii_case("chunked");
    match codings.split_last() {
        Some((last, [])) if is_chunked(last) => Ok(()),
        Some((last, before)) if is_chunked(last) && !before.iter().any(is_chunked) => {
            Err(RequestError(StatusCode::NOT_IMPLEMENTED, "a transfer coding other than chunked"))
        }
        _ => Err(bad_request("chunked is not the last transfer coding, once")),
    }
}

/// 1*DIGIT, no sign, no list, no overflow (RFC 9110 §8.6).
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// RFC 9112 §9.3. An HTTP/1.0 client gets no persistent connection from a proxy (§C.2.2).
fn keep_alive(fields: &HeaderMap, version: Version) -> bool {
    let says_close = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    };
    version == Version::HTTP_11
        && !fields.get_all(header::CONNECTION).iter().any(says_close)
        && !fields.get_all("proxy-connection").iter().any(says_close)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<RequestHead>, RequestError> {
        parse(&mut BytesMut::from(text)).map_err(|unread| unread.why)
    }

    #[test]
    fn a_plain_request_is_read_to_its_end() {
        let mut buffer = BytesMut::from("\r\nPOST http://h/p?q HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
        let head = parse(&mut buffer).unwrap().unwrap();
        assert_eq!((head.method, head.target.as_str()), (Method::POST, "http://h/p?q"));
        assert_eq!(head.framing, Framing::length(5));
        assert!(head.keep_alive && !head.expects_continue);
        assert_eq!(&buffer[..], b"hello");
    }

    #[test]
    fn what_two_parsers_could_read_in_two_ways_is_refused() {
        let post = |fields: &str| format!("POST http://h/ HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        for (text, status) in [
            (post("Content-Length: 5\r\nTransfer-Encoding: chunked"), 400),
            (post("Transfer-Encoding: chunked\r\nContent-Length: 5"), 400),
            (post("Content-Length: 5\r\nContent-Length: 6"), 400),
            (post("Content-Length: +5"), 400),
            (post("Content-Length: -1"), 400),
            (post("Content-Length: 0x5"), 400),
            (post("Content-Length: 5, 6"), 400),
            (post("Content-Length: 5,5"), 400),
            (post("Content-Length:"), 400),
            (post("Content-Length: 18446744073709551621"), 400),
            (post("Transfer-Encoding : chunked"), 400),
            (post("Transfer-Encoding: \x0bchunked"), 400),
            (post("Transfer-Encoding: chunked, identity"), 400),
            (post("Transfer-Encoding: identity"), 400),
            (post("Transfer-Encoding: xchunked"), 400),
            (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400),
            (post("Transfer-Encoding: gzip, chunked"), 501),
            (post("X: a\r\n b"), 400),
            (post(" X: a"), 400),
            (post("X: a\0b"), 400),
            (post("X: a\rb"), 400),
            (post("X: a\nY: b"), 400),
            (post("Expect: 200-ok"), 417),
            (post("Host: h"), 400),
            ("POST http://h/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400),
            ("POST http://h/ HTTP/1.1\r\n\r\n".into(), 400),
            ("POST http://h/ HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), 400),
            ("POST http://h/ HTTP/1.1\r\nHost: h/path\r\n\r\n".into(), 400),
            ("POST http://h/ HTTP/1.1\nHost: h\n\n".into(), 400),
            ("POST http://h/#f HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("POST http://h/a\\b HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("POST http://h/é HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("POST http://h/\t HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("POST http://h/a b c HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("POST http://h/ HTTP/1.2\r\nHost: h\r\n\r\n".into(), 505),
            ("POST http://h/a b HTTP/1.2\r\nHost: h\r\n\r\n".into(), 505),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
            ("GET /\r\n\r\n".into(), 400),
            (format!("{} http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(33)), 501),
            (format!("GET http://h/{}", "a".repeat(TARGET_MAX)), 414),
            (post(&"X: y\r\n".repeat(FIELDS_MAX)), 431),
            (post(&format!("X: {}", "y".repeat(HEAD_MAX))), 431),
        ] {
            let refused = read(&text).expect_err(&text).0;
            assert_eq!(refused.as_u16(), status, "{text:?}");
        }
    }

    #[test]
    fn a_head_in_pieces_is_waited_for() {
        let whole = "POST http://h/ HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n";
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).unwrap().is_none(), "{end}");
        }
        assert!(read(whole).unwrap().is_some());
    }

    #[test]
    fn a_connection_persists_only_where_both_sides_mean_it() {
        let keeps = |text: &str| read(text).unwrap().unwrap().keep_alive;
        assert!(keeps("GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(!keeps("GET http://h/ HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keeps("GET http://h/ HTTP/1.1\r\nHost: h\r\nProxy-Connection: close\r\n\r\n"));
        assert!(!keeps("GET http://h/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    }
}
