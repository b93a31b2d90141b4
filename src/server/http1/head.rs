//! Parses the head of an HTTP/1 request, and rejects heads that two parsers could read differently.
//! Is the head valid, and how is the body framed?

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::{HeaderName, Method, StatusCode, Version, header};

use crate::http_message::Fields;
use crate::net::body_framing::Framing;
use crate::net::head_end;
use crate::net::http_client::parse_content_length;
use crate::policy::message::has_connection_option;
use crate::server::request_error::{
    FIELDS_MAX, HEAD_MAX, InvalidRequest, RequestError, TARGET_MAX, TARGET_TOO_LONG, TOO_MANY_FIELDS, bad_request,
    check_method, check_target, expects_continue,
};

#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    /// The request target, byte for byte as the client sent it.
    pub(super) target: String,
    pub(super) version: Version,
    pub(super) fields: Fields,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Takes a complete head from the front of `buffer`. Returns `None` while the head is incomplete.
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
            Err(RequestError(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the version is not HTTP/1.0 or HTTP/1.1"))
        }
        Err(httparse::Error::Token) => Err(bad_request("the request line has a character that is not allowed there")),
        Err(_) => Err(bad_request("a header field is malformed")),
    };
    let line = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let length = match length {
        Err(RequestError(StatusCode::HTTP_VERSION_NOT_SUPPORTED, _))
            if let Some(line_with_spaces) = request_line_with_spaces(buffer) =>
        {
            return Err(check_request_line(line_with_spaces)
                .map_or_else(|invalid| invalid, |_| bad_request("the request line is malformed").into()));
        }
        Err(error) => return Err(InvalidRequest { error, request_line: check_request_line(line).ok() }),
        Ok(length) => length,
    };
    let request_line = check_request_line(line)?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut fields = Fields::default();
    fields.append_parsed(parsed.headers, length);
    let checked = if has_bare_line_feed(buffer.get(..length).unwrap_or_default()) {
        Err(bad_request("a line ends in a bare line feed"))
    } else {
        check_fields(&fields, version, &request_line.0)
    };
    buffer.advance(length);
    match checked {
        Ok((framing, expects_continue)) => {
            let (method, target) = request_line;
            let keep_alive = allows_keep_alive(&fields, version);
            Ok(Some(RequestHead { method, target, version, fields, framing, keep_alive, expects_continue }))
        }
        Err(error) => Err(InvalidRequest { error, request_line: Some(request_line) }),
    }
}

/// Checks the method and the target.
fn check_request_line((method, target): (&str, &str)) -> Result<(Method, String), InvalidRequest> {
    check_method(method)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad_request("the method is malformed"))?;
    match check_target(target) {
        Ok(()) => Ok((method, target.to_owned())),
        Err(error) => Err(InvalidRequest { error, request_line: Some((method, target.to_owned())) }),
    }
}

/// Returns the method and the target of an HTTP/1 request line whose target contains spaces. httparse takes the part
/// after the first space in such a target for the version.
fn request_line_with_spaces(buffer: &[u8]) -> Option<(&str, &str)> {
    let line = &buffer[..memchr::memchr(b'\n', buffer)?];
    let (method, rest) = std::str::from_utf8(line).ok()?.trim_end_matches('\r').split_once(' ')?;
    let (target, version) = rest.rsplit_once(' ')?;
    (matches!(version, "HTTP/1.0" | "HTTP/1.1") && target.contains(' ')).then_some((method, target))
}

/// Checks the fields. Returns the framing of the body, and whether the client expects `100 Continue`.
fn check_fields(fields: &Fields, version: Version, method: &Method) -> Result<(Framing, bool), RequestError> {
    check_host(fields, version, method)?;
    // RFC 9110 §10.1.1: ignored in HTTP/1.0.
    let expects_continue = version != Version::HTTP_10 && expects_continue(fields.get(header::EXPECT))?;
    Ok((parse_framing(fields, version)?, expects_continue))
}

/// Returns whether `buffer` should be parsed, given that its first `scanned` bytes hold no complete head. The first
/// bytes always are parsed, so that input other than HTTP is refused at once.
pub(super) fn may_be_complete(buffer: &[u8], scanned: usize) -> bool {
    let crosses = |limit| scanned <= limit && limit < buffer.len();
    scanned == 0 || head_end::has_arrived(buffer, scanned) || crosses(TARGET_MAX) || crosses(HEAD_MAX)
}

/// Skips the empty lines before the request line (RFC 9112 §2.2).
fn skip_empty_lines(buffer: &mut BytesMut) {
    while buffer.starts_with(b"\r\n") {
        let _ = buffer.split_to(2);
    }
}

/// Returns whether a line of the head ends in a bare line feed. RFC 9112 §2.2 allows recipients to accept it, and
/// recipients that disagree enable request smuggling.
fn has_bare_line_feed(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

/// Checks `Host`: an HTTP/1.1 request has exactly one valid one (RFC 9112 §3.2). An HTTP/1.0 request may have none:
/// Python's standard library sends such a CONNECT.
fn check_host(fields: &Fields, version: Version, method: &Method) -> Result<(), RequestError> {
    let mut hosts = fields.get_all(&header::HOST);
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(bad_request("the request has more than one Host")),
        // The Host of a CONNECT differs between clients, and outgate ignores it.
        (Some(_), None) if method == Method::CONNECT => Ok(()),
        (Some(host), None) if is_valid_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err(bad_request("Host is malformed")),
        (None, _) if version == Version::HTTP_11 => Err(bad_request("the request has no Host")),
        (None, _) => Ok(()),
    }
}

/// Returns whether all characters may occur in `uri-host [ ":" port ]` (RFC 3986 §3.2.2). An empty Host is valid with a
/// target in absolute form.
fn is_valid_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

/// Determines the framing by RFC 9112 §6.3, with the stricter choice where it leaves one.
fn parse_framing(fields: &Fields, version: Version) -> Result<Framing, RequestError> {
    let mut lengths = fields.get_all(&header::CONTENT_LENGTH);
    if fields.contains(header::TRANSFER_ENCODING) {
        if version == Version::HTTP_10 {
            return Err(bad_request("an HTTP/1.0 request has Transfer-Encoding"));
        }
        if lengths.next().is_some() {
            return Err(bad_request("the request has both Transfer-Encoding and Content-Length"));
        }
        return check_chunked(fields).map(|()| Framing::chunked());
    }
    let mut length = None;
    for value in lengths {
        let value = parse_content_length(value.as_bytes()).ok_or(bad_request("Content-Length is malformed"))?;
        if length.replace(value).is_some_and(|other| other != value) {
            return Err(bad_request("the request has two Content-Length fields with different values"));
        }
    }
    Ok(Framing::length(length.unwrap_or(0)))
}

fn check_chunked(fields: &Fields) -> Result<(), RequestError> {
    let mut codings = Vec::new();
    for value in fields.get_all(&header::TRANSFER_ENCODING) {
        let value = value.to_str().map_err(|_| bad_request("Transfer-Encoding is malformed"))?;
        codings.extend(value.split(',').map(|coding| coding.trim_matches([' ', '\t'])));
    }
    let is_chunked = |coding: &&str| coding.eq_ignore_ascii_case("chunked");
    match codings.split_last() {
        Some((last, [])) if is_chunked(last) => Ok(()),
        Some((last, before)) if is_chunked(last) && !before.iter().any(is_chunked) => {
            Err(RequestError(StatusCode::NOT_IMPLEMENTED, "the transfer coding is not chunked"))
        }
        _ => Err(bad_request("chunked is not the last transfer coding, or occurs twice")),
    }
}

/// Returns whether the client allows the connection to persist (RFC 9112 §9.3). A proxy gives HTTP/1.0 clients no
/// persistent connection (RFC 9112 §C.2.2).
fn allows_keep_alive(fields: &Fields, version: Version) -> bool {
    static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    version == Version::HTTP_11
        && !has_connection_option(fields, &header::CONNECTION, "close")
        && !has_connection_option(fields, &PROXY_CONNECTION, "close")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<RequestHead>, RequestError> {
        parse(&mut BytesMut::from(text)).map_err(|invalid| invalid.error)
    }

    #[test]
    fn http1_head_parser_takes_the_head_and_leaves_the_body() {
        let mut buffer = BytesMut::from("\r\nPOST http://h/p?q HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
        let head = parse(&mut buffer).unwrap().unwrap();
        assert_eq!((head.method, head.target.as_str()), (Method::POST, "http://h/p?q"));
        assert_eq!(head.framing, Framing::length(5));
        assert!(head.keep_alive && !head.expects_continue);
        assert_eq!(&buffer[..], b"hello");
    }

    #[test]
    fn http1_head_parser_rejects_ambiguous_requests() {
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
    fn http1_head_parser_waits_for_the_rest_of_an_incomplete_head() {
        let whole = "POST http://h/ HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n";
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).unwrap().is_none(), "{end}");
        }
        assert!(read(whole).unwrap().is_some());
    }

    #[test]
    fn http1_keep_alive_requires_http11_and_no_close_option() {
        let keeps = |text: &str| read(text).unwrap().unwrap().keep_alive;
        assert!(keeps("GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(!keeps("GET http://h/ HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keeps("GET http://h/ HTTP/1.1\r\nHost: h\r\nProxy-Connection: close\r\n\r\n"));
        assert!(!keeps("GET http://h/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    }
}
