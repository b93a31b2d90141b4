//! The `Content-Digest` field (RFC 9530 §2).
//! Does this body match the digest in the field?

use aws_lc_rs::digest::{self, SHA256, SHA512};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderName;

use super::members;
use crate::digest::sha256;
use crate::http_message::Fields;

pub(crate) static CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

#[derive(Debug)]
pub struct ContentDigest {
    algorithm: &'static digest::Algorithm,
    expected: Vec<u8>,
}

impl ContentDigest {
    pub(crate) fn matches(&self, body: &[u8]) -> bool {
        digest::digest(self.algorithm, body).as_ref() == self.expected
    }
}

/// Returns an algorithm that is still active (RFC 9530 §5).
fn algorithm(name: &str) -> Option<&'static digest::Algorithm> {
    match name {
        "sha-256" => Some(&SHA256),
        "sha-512" => Some(&SHA512),
        _ => None,
    }
}

/// Returns every digest of a known algorithm; `None` if the field is malformed.
pub(crate) fn parse(fields: &Fields) -> Option<Vec<ContentDigest>> {
    let supported = |member: &members::Member<'_>| Some((algorithm(member.label)?, member.bytes()));
    let all = members::parse_all(fields, &CONTENT_DIGEST)?;
    let supported = all.iter().filter_map(supported);
    supported.map(|(algorithm, bytes)| Some(ContentDigest { algorithm, expected: bytes? })).collect()
}

/// Returns the field value for a body.
pub(crate) fn sha256_field(body: &[u8]) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(sha256(body)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// Vectors of RFC 9421 Appendix B.2 and RFC 9530 Appendix B.
    #[test]
    fn content_digest_matches_published_digests() {
        let fields = |value| Fields::from_iter([(CONTENT_DIGEST.clone(), HeaderValue::from_static(value))]);
        let body = br#"{"hello": "world"}"#;
        assert_eq!(sha256_field(body), "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:");
        let sha512 =
            "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
        for (value, body, expected) in [
            ("sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:", &body[..], Some(vec![true])),
            (sha512, body, Some(vec![true])),
            (sha512, b"{}", Some(vec![false])),
            ("sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:", b"{\"hello\": \"world\"}\n", Some(vec![true])),
            ("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", b"", Some(vec![true])),
            ("md5=:AAAA:", body, Some(vec![])),
            ("sha-256=\"x\"", body, None),
            ("sha-256", body, None),
            ("no dictionary", body, None),
        ] {
            let found =
                parse(&fields(value)).map(|all| all.iter().map(|digest| digest.matches(body)).collect::<Vec<_>>());
            assert_eq!(found, expected, "{value}");
        }
    }
}
