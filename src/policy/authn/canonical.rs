//! The texts that Twilio's client libraries hash for a request: as sent, or in canonical form.
//! Which texts may the request hash cover?

use http::header;

use crate::http_message::FieldValue;
use crate::policy::message::SignableRequest;
use crate::policy::percent::unescape;

/// Returns the hashed text before the hash of the body: the form of the Python library, and that of the Java and Node
/// libraries.
///
/// One canonical form stands for many paths and queries, but only the signed one may be forwarded. So the canonical
/// form counts only if it equals the request as sent. The two then differ at most in the port of `Host`. `names` are
/// sorted. Returns `None` if a field is missing.
pub(super) fn signed_texts(request: &SignableRequest<'_>, names: &[&str]) -> Option<Vec<Vec<u8>>> {
    let as_sent = canonical_text(request, names, false)?;
    let canonical = is_canonical(request).then(|| canonical_text(request, names, true)).flatten();
    Some(std::iter::once(as_sent.clone()).chain(canonical.filter(|canonical| *canonical != as_sent)).collect())
}

/// Returns whether the query parameters are sorted. Every library sorts them before it hashes them.
pub(super) fn is_sorted(request: &SignableRequest<'_>) -> bool {
    let query = request.query().unwrap_or_default();
    sort_query(query) == query
}

fn is_canonical(request: &SignableRequest<'_>) -> bool {
    let query = request.query().unwrap_or_default();
    canonical_path(request.path()) == request.path() && canonical_query(query) == query
}

/// Returns the text for these fields. `bare_host` removes the default port of the target's scheme from `Host`.
fn canonical_text(request: &SignableRequest<'_>, names: &[&str], bare_host: bool) -> Option<Vec<u8>> {
    let (path, query) = (request.path(), request.query().unwrap_or_default());
    let mut text = format!("{}\n{path}\n{query}\n", request.method).into_bytes();
    for name in names {
        let mut values: Vec<&[u8]> = request.fields.get_all(*name).map(FieldValue::as_bytes).collect();
        if values.is_empty() {
            return None;
        }
        values.sort_unstable();
        let mut value = values.join(&b',');
        if bare_host && *name == header::HOST.as_str() {
            // The port of another scheme is significant. Without a scheme, the field that names the target says where
            // the request goes.
            let ports: &[&[u8]] = match request.scheme() {
                Some(scheme) if scheme.eq_ignore_ascii_case("https") => &[b":443"],
                Some(_) => &[b":80"],
                None => &[b":443", b":80"],
            };
            let bare = ports.iter().find_map(|port| value.strip_suffix(*port));
            value = bare.map(<[u8]>::to_vec).unwrap_or(value);
        }
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        text.extend_from_slice(&value);
        text.push(b'\n');
    }
    text.push(b'\n');
    text.extend_from_slice(names.join(";").as_bytes());
    text.push(b'\n');
    Some(text)
}

fn sort_query(query: &str) -> String {
    let mut pairs: Vec<&str> = query.split('&').collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn canonical_query(query: &str) -> String {
    sort_query(&query.replace('+', "%20").replace('*', "%2A").replace("%7E", "~"))
}

/// Removes empty and dot segments, and normalises the percent-encoding of each segment.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.split('/') {
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in segments {
        out.push('/');
        encode(unescape(segment.as_bytes(), |escape| escape.length == 3).map(|(_, byte)| byte), &mut out);
    }
    if ends_open || out.is_empty() {
        out.push('/');
    }
    out
}

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3).
fn encode(bytes: impl Iterator<Item = u8>, out: &mut String) {
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_message::Fields;
    use crate::policy::authn::body_check::BodyCheck;
    use http::{HeaderName, HeaderValue, Method};
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/twilio_client_validation.json")).unwrap()
    }

    #[test]
    fn canonical_form_matches_published_paths_and_queries() {
        let vectors = vectors();
        for (list, form) in
            [("canonical_path", canonical_path as fn(&str) -> String), ("canonical_query", canonical_query)]
        {
            for vector in vectors[list].as_array().unwrap() {
                let input = vector["input"].as_str().unwrap();
                assert_eq!(form(input), vector["expected"].as_str().unwrap(), "{list} {input}");
            }
        }
    }

    #[test]
    fn canonical_path_keeps_a_trailing_slash() {
        assert_eq!(
            (canonical_path("/in/").as_str(), canonical_path("/in/..").as_str(), canonical_path("/%2f%").as_str()),
            ("/in/", "/", "/%2F%25")
        );
    }

    /// The canonical forms of all of these requests have the same hash.
    #[test]
    fn canonical_form_counts_only_for_requests_sent_in_it() {
        let host = |host: &'static str| Fields::from_iter([(header::HOST, HeaderValue::from_static(host))]);
        let forms = |target: &str, host: &Fields| {
            let request = SignableRequest { method: &Method::POST, target, fields: host, has_body: true };
            (is_sorted(&request), signed_texts(&request, &["host"]).unwrap().len())
        };
        let (bare, tls, plain) = (host("a.example"), host("a.example:443"), host("a.example:80"));
        for (target, host, expected) in [
            ("https://a.example/in?a=1&b=2", &bare, (true, 1)),
            ("https://a.example:443/in?a=1&b=2", &tls, (true, 2)),
            ("http://a.example:80/in", &plain, (true, 2)),
            ("https://a.example:80/in", &plain, (true, 1)),
            ("https://a.example:443/in/../x", &tls, (true, 1)),
            ("https://a.example:443//in", &tls, (true, 1)),
            ("https://a.example:443/%69n", &tls, (true, 1)),
            ("https://a.example:443/in?a=b+c", &tls, (true, 1)),
            ("https://a.example:443/in?b=2&a=1", &tls, (false, 1)),
        ] {
            assert_eq!(forms(target, host), expected, "{target}");
        }
    }

    #[test]
    fn canonical_request_hashes_match_published_ones() {
        for vector in vectors()["request_hash"].as_array().unwrap() {
            let text = |key: &str| vector[key].as_str().unwrap();
            let headers = vector["headers"].as_array().unwrap().iter();
            let fields = headers.map(|header| {
                let name = HeaderName::from_bytes(header[0].as_str().unwrap().as_bytes()).unwrap();
                (name, HeaderValue::from_str(header[1].as_str().unwrap()).unwrap())
            });
            let map = Fields::from_iter(fields);
            let method = Method::from_bytes(text("method").as_bytes()).unwrap();
            // The request must be sent in this form, since the hash is equal for other forms.
            let (sent_path, query) = text("target").split_once('?').unwrap_or((text("target"), ""));
            let query = if query.is_empty() { String::new() } else { format!("?{}", canonical_query(query)) };
            let target = canonical_path(sent_path) + &query;
            let request = SignableRequest { method: &method, target: &target, fields: &map, has_body: true };
            let names: Vec<&str> = text("hrh").split(';').collect();
            let texts = signed_texts(&request, &names).unwrap();
            let body_check = BodyCheck::RequestHash { texts, expected: text("rqh").to_owned() };
            assert_eq!(body_check.verify(text("body").as_bytes()), Ok(()), "{}", text("name"));
            assert!(body_check.verify(b"another").is_err(), "{}", text("name"));
        }
    }
}
