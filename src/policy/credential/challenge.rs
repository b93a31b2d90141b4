//! The challenge of a target that rejects a token (`WWW-Authenticate`, RFC 6750 §3).
//! Does the target need another token?

use http::{StatusCode, header};

use crate::http_message::Fields;

/// Returns whether the target rejects the token itself, and not the operation.
pub fn rejects_token(status: StatusCode, fields: &Fields) -> bool {
    status == StatusCode::UNAUTHORIZED
        && fields.get_all(&header::WWW_AUTHENTICATE).any(|value| has_invalid_token_error(value.as_bytes()))
}

/// Returns whether a Bearer challenge has the error `invalid_token`. Commas separate both challenges and parameters
/// (RFC 9110 §11.6.1). An element that begins with a word and white space starts a new challenge.
fn has_invalid_token_error(list: &[u8]) -> bool {
    let mut is_bearer = false;
    for element in split_elements(list) {
        let name_end = element.iter().position(|byte| b"= \t".contains(byte)).unwrap_or(element.len());
        let parameter = match element.get(name_end) {
            Some(b'=') => element,
            // RFC 9110 §5.6.3 calls the white space in `error = x` bad.
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

/// Splits a list at its unquoted commas.
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
            (r#"Bearer realm="y", error = "invalid_token""#, true),
            (r#"Bearer realm="a\"b, Bearer error=x", ERROR="invalid_token""#, true),
            (r#"Bearer error="insufficient_scope""#, false),
            (r#"Bearer realm="error=invalid_token""#, false),
            (r#"Bearer realm="\", error=invalid_token""#, false),
            (r#"Bearer realm="y", Custom error="invalid_token""#, false),
            (r#"DPoP error="invalid_token""#, false),
            ("Bearer", false),
            ("", false),
        ] {
            let fields = Fields::from_iter([(header::WWW_AUTHENTICATE, value.parse().unwrap())]);
            assert_eq!(rejects_token(StatusCode::UNAUTHORIZED, &fields), expected, "{value}");
            assert!(!rejects_token(StatusCode::FORBIDDEN, &fields));
        }
    }
}
