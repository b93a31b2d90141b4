//! Parses the head of an HTTP/2 request into the terms of HTTP/1.
//! Is the head valid by the rules of HTTP/1, and which target does it name?
//!
//! h2 resets a stream whose head breaks RFC 9113 §8.2 and §8.3 (upper case, `Connection` and its like, pseudo-fields
//! that are missing or too many), or whose body is longer or shorter than its `Content-Length`.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::http_message::{FieldValue, Fields};
use crate::net::field_filter::Violation;
use crate::net::hpack::UNENCODED_PATH;
use crate::net::http_client::parse_content_length;
use crate::server::request_error::{
    FIELDS_MAX, RequestError, TARGET_MAX, TARGET_TOO_LONG, TOO_MANY_FIELDS, bad_request, check_method, check_target,
    expects_continue,
};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ParsedHead {
    /// The request target: in absolute-form, in origin-form with `Outgate-Target`, or in authority-form for CONNECT.
    pub(super) target: String,
    /// The length of the body, if the client announced one.
    pub(super) length: Option<u64>,
    /// The client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
    pub(super) expects_continue: bool,
}

/// Takes the path, byte for byte, if h2 does not read it as it was sent. The filter passes it in this field, and resets the
/// stream of a client that sends the field itself.
pub(super) fn take_unencoded_path(head: &mut Parts) -> Option<HeaderValue> {
    head.headers.remove(UNENCODED_PATH)
}

/// Checks a head by the rules of HTTP/1, so that the version does not matter. `unencoded`: the path that h2 has not read.
pub(super) fn parse_head(head: &mut Parts, unencoded: Option<&HeaderValue>) -> Result<ParsedHead, RequestError> {
    let path = unencoded.map(|path| readable_path(path).ok_or(bad_request("the path does not begin with a slash")));
    let path = path.transpose()?;
    // A client may split one Cookie into several, which are joined again (RFC 9113 §8.2.3).
    let more_cookies = head.headers.get_all(header::COOKIE).iter().skip(1).count();
    if head.headers.len() - more_cookies > FIELDS_MAX || Violation::of(&head.headers).is_some() {
        return Err(TOO_MANY_FIELDS);
    }
    check_method(head.method.as_str())?;
    if head.headers.values().any(has_surrounding_space) {
        return Err(bad_request("a field value has white space around it"));
    }
    let expects_continue = expects_continue(head.headers.get(header::EXPECT).map(FieldValue::from))?;
    let parsed =
        ParsedHead { target: build_target(head, path)?, length: content_length(&head.headers)?, expects_continue };
    if head.method == Method::CONNECT && parsed.length.is_some() {
        return Err(bad_request("a CONNECT must not have a body"));
    }
    join_cookies(&mut head.headers);
    Ok(parsed)
}

/// Returns whether white space surrounds the value (RFC 9113 §8.2.1). HTTP/1 strips it, so parsers could read different
/// values.
fn has_surrounding_space(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// Returns the text of a path, unless it is no path.
fn readable_path(path: &HeaderValue) -> Option<&str> {
    path.to_str().ok().filter(|path| path.starts_with('/'))
}

fn build_target(head: &Parts, unencoded: Option<&str>) -> Result<String, RequestError> {
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    if head.method == Method::CONNECT {
        return Ok(authority.to_owned());
    }
    let scheme = head.uri.scheme_str().unwrap_or_default();
    check_host(&head.headers, scheme, authority)?;
    // `*` is the path of an OPTIONS request for the server as a whole (RFC 9113 §8.3.1).
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    if path == "*" && unencoded.is_none() && head.method != Method::OPTIONS {
        return Err(bad_request("only OPTIONS may have the path *"));
    }
    let path = unencoded.unwrap_or(if path == "*" { "" } else { path });
    let target = match authority.is_empty() || head.headers.contains_key("outgate-target") {
        true => path.to_owned(),
        false => format!("{scheme}://{authority}{path}"),
    };
    if target.len() > TARGET_MAX {
        return Err(TARGET_TOO_LONG);
    }
    check_target(&target)?;
    Ok(target)
}

/// Checks that `Host` names the same host as `:authority` (RFC 9113 §8.3.1).
fn check_host(fields: &HeaderMap, scheme: &str, authority: &str) -> Result<(), RequestError> {
    let mut hosts = fields.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(bad_request("the request has more than one Host")),
        (Some(host), None) if !authority.is_empty() && !is_same_authority(host.as_bytes(), authority, scheme) => {
            Err(bad_request("Host differs from :authority"))
        }
        _ => Ok(()),
    }
}

/// Compares two authorities without case and the scheme's default port (RFC 3986 §6.2).
fn is_same_authority(host: &[u8], authority: &str, scheme: &str) -> bool {
    let port: &[u8] = if scheme == "https" { b":443" } else { b":80" };
    let bare = |host: &[u8]| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    bare(host) == bare(authority.as_bytes())
}

fn content_length(fields: &HeaderMap) -> Result<Option<u64>, RequestError> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(bad_request("the request has more than one Content-Length")),
        (Some(length), None) => {
            parse_content_length(length.as_bytes()).map(Some).ok_or(bad_request("Content-Length is malformed"))
        }
    }
}

/// Returns the fields, with `Host` from `:authority` if the client sent none, as a conversion to HTTP/1.1 requires (RFC 9113
/// §8.3.1).
pub(super) fn fields(head: &Parts) -> Fields {
    let mut fields = Fields::from(&head.headers);
    if let Some(authority) = head.uri.authority()
        && !fields.contains(header::HOST)
    {
        fields.insert_first(header::HOST, [authority.as_str()]);
    }
    fields
}

/// Returns the URI as the client sent it. `unencoded`: the path that h2 has not read. One that is no path is left out: behind the
/// authority, it could name another host.
pub(super) fn sent_uri(head: &Parts, unencoded: Option<&HeaderValue>) -> String {
    let (scheme, authority) = (head.uri.scheme_str(), head.uri.authority());
    match (unencoded.and_then(readable_path), scheme, authority) {
        (Some(path), Some(scheme), Some(authority)) => format!("{scheme}://{authority}{path}"),
        (Some(path), ..) => path.to_owned(),
        (None, ..) => head.uri.to_string(),
    }
}

/// Joins the `Cookie` fields into one, as a conversion to HTTP/1.1 requires (RFC 9113 §8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, whole);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parse(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<ParsedHead, u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        parse_head(&mut request.body(()).unwrap().into_parts().0, None).map_err(|error| error.0.as_u16())
    }

    #[test]
    fn http2_request_target_has_the_form_of_its_method() {
        let target = |method, uri, fields| parse(method, uri, fields).unwrap().target;
        assert_eq!(target("POST", "https://h.example/in?a=%2F", &[]), "https://h.example/in?a=%2F");
        assert_eq!(target("POST", "http://h.example:8080/", &[("host", "h.example:8080")]), "http://h.example:8080/");
        assert_eq!(target("POST", "https://proxy:1/any?x", &[("outgate-target", "https://h.example/")]), "/any?x");
        assert_eq!(target("POST", "/any", &[("host", "proxy")]), "/any");
        assert_eq!(target("OPTIONS", "*", &[]), "");
        assert_eq!(target("CONNECT", "h.example:443", &[("host", "other")]), "h.example:443");
    }

    #[test]
    fn http2_request_rejects_a_host_that_differs_from_authority() {
        for (uri, host, is_good) in [
            ("https://h.example/", "h.example", true),
            ("https://h.example/", "H.Example:443", true),
            ("https://h.example:443/", "h.example", true),
            ("http://h.example:80/", "h.example", true),
            ("https://h.example/", "h.example:80", false),
            ("https://h.example/", "other.example", false),
            ("https://h.example/", "", false),
            ("https://h.example:8443/", "h.example", false),
        ] {
            let expected = if is_good { Ok(()) } else { Err(400) };
            assert_eq!(parse("POST", uri, &[("host", host)]).map(|_| ()), expected, "{uri} {host}");
        }
        assert_eq!(parse("POST", "https://h/", &[("host", "h"), ("host", "h")]), Err(400));
    }

    #[test]
    fn http2_request_rejects_what_http1_rejects() {
        for (fields, status) in [
            (vec![("content-length", "+1")], 400),
            (vec![("content-length", "")], 400),
            (vec![("content-length", "1"), ("content-length", "1")], 400),
            (vec![("expect", "200-ok")], 417),
            (vec![("outgate-tenant", " acme")], 400),
            (vec![("outgate-tenant", "acme\t")], 400),
            (vec![("x", " ")], 400),
            (vec![("x", "y"); FIELDS_MAX + 1], 431),
            ([vec![("x", "y"); FIELDS_MAX], vec![("cookie", "a=1")]].concat(), 431),
        ] {
            assert_eq!(parse("POST", "https://h/", &fields), Err(status), "{fields:?}");
        }
        assert_eq!(parse(&"M".repeat(33), "https://h/", &[]), Err(501));
        assert_eq!(parse("GET", &format!("https://h/{}", "a".repeat(TARGET_MAX)), &[]), Err(414));
        assert_eq!(parse("GET", "https://h/a\\b", &[]), Err(400));
        assert!(parse("GET", "https://h/", &vec![("cookie", "a=1"); 2 * FIELDS_MAX]).is_ok(), "they are one field");
        let parsed = parse("POST", "https://h/", &[("content-length", "12"), ("expect", "100-Continue")]).unwrap();
        assert_eq!((parsed.length, parsed.expects_continue), (Some(12), true));
    }

    #[test]
    fn http2_request_joins_cookies_and_begins_with_host() {
        let mut head = Request::builder().uri("https://h/").header("cookie", "a=1").header("cookie", "b=2");
        head = head.header("x", "y");
        let mut head = head.body(()).unwrap().into_parts().0;
        parse_head(&mut head, None).unwrap();
        assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        let fields = fields(&head);
        let (first, value) = fields.iter().next().unwrap();
        assert!(first == *"host" && value == "h", "{fields:?}");
        assert_eq!(sent_uri(&head, None), "https://h/");
        assert_eq!(sent_uri(&head, Some(&HeaderValue::from_static("/{x}"))), "https://h/{x}");
        assert_eq!(sent_uri(&head, Some(&HeaderValue::from_static(".evil.example/"))), "https://h/");
    }
}
