//! What a target says of a token that it does not take (RFC 6750 §3, in `WWW-Authenticate`).
//! Does it want another token?

use http::{HeaderMap, StatusCode, header};

/// Whether the target refuses the very token, and not what is done with it.
pub fn rejects_token(status: StatusCode, fields: &HeaderMap) -> bool {
    status == StatusCode::UNAUTHORIZED
        && fields.get_all(header::WWW_AUTHENTICATE).iter().any(|value| has_invalid_token_error(value.as_bytes()))
}

/// A list of challenges, whose parameters are separated by commas as they are themselves (RFC 9110 §11.6.1): what has a
/// word and white space in front of its name begins a new one.
fn has_invalid_token_error(list: &[u8]) -> bool {
    let mut is_bearer = false;
    for element in split_elements(list) {
        let name_end = element.iter().position(|byte| b"= \t".contains(byte)).unwrap_or(element.len());
        let parameter = match element.get(name_end) {
            Some(b'=') => element,
            // `error = x`, with the white space that RFC 9110 §5.6.3 calls bad.
            Some(_) if element[name_end..].trim_ascii_start().starts_with(b"=") => element,
            _ => {
                is_bearer = element[..name_end].eq_ignore_ascii_case(b"bearer");
                element[name_end..].trim_ascii_start()
            }
        };
        let mut parts = parameter.splitn(2, |byte| *byte == b'=');
        let is_error = parts.next().is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"error"));
        let value = parts.next().unwrap_or_default().trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        if is_bearer && is_error && value == b"invalid_token" {
            return true;
        }
    }
    false
}

/// What stands between commas that are not quoted.
fn split_elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let is_end = move |byte: &u8| {
        match (*byte, is_escaped) {
            (b'"', false) => is_quoted = !is_quoted,
            (b'\\', false) => {
                is_escaped = is_quoted;
                return false;
            }
            (b',', _) if !is_quoted => return true,
            _ => {}
        }
        is_escaped = false;
        false
    };
    list.split(is_end).map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_rejection_is_read_from_bearer_challenges_only() {
        for (value, expected) in [
            (r#"Bearer error="invalid_token""#, true),
            (r#"bearer realm="a, b", error="invalid_token", error_description="expired""#, true),
            (r#"Basic realm="x", Bearer realm="y",error=invalid_token"#, true),
            (r#"Negotiate, Bearer error = "invalid_token""#, true),
            (r#"Bearer realm="a\"b, Bearer error=x", ERROR="invalid_token""#, true),
            (r#"Bearer error="insufficient_scope""#, false),
            (r#"Bearer realm="error=invalid_token""#, false),
            (r#"Bearer realm="\", error=invalid_token""#, false),
            (r#"Bearer realm="y", Custom error="invalid_token""#, false),
            (r#"DPoP error="invalid_token""#, false),
            ("Bearer", false),
            ("", false),
        ] {
            let fields = HeaderMap::from_iter([(header::WWW_AUTHENTICATE, value.parse().unwrap())]);
            assert_eq!(rejects_token(StatusCode::UNAUTHORIZED, &fields), expected, "{value}");
            assert!(!rejects_token(StatusCode::FORBIDDEN, &fields));
        }
    }
}
