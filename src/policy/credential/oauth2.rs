//! The client credentials grant of OAuth 2.0 (RFC 6749 §4.4): the request, the parsed response and the lifetimes,
//! without I/O.
//! Which request fetches a token, and is the response a token?

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;

use super::bearer;
use crate::http_message::Request;
use crate::names::{CredentialName, Target, USER_AGENT};

/// A token endpoint, and the request that fetches a token.
pub struct OAuth2 {
    pub credential: CredentialName,
    /// SHA-256 over the credential's name and the request. Tokens are shared exactly under an equal fingerprint.
    pub fingerprint: [u8; 32],
    pub endpoint: Target,
    pub(super) path_and_query: PathAndQuery,
    /// The `Authorization` value if the client authenticates in a header.
    pub(super) authorization: Option<HeaderValue>,
    /// The form, including the client's secret if it is not in a header.
    pub(super) body: Bytes,
}

/// A token as a header value.
#[derive(Debug)]
pub struct Grant {
    pub value: HeaderValue,
    /// The lifetime from the response on.
    pub(super) lifetime: Duration,
}

/// The reason why a response is no token.
#[derive(Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The endpoint rejected the client or the request, with an error code of RFC 6749 §5.2 if it sent one.
    Refused(StatusCode, Option<&'static str>),
    /// The endpoint failed, or limits the rate of requests.
    Unavailable(StatusCode),
    /// The response is no token.
    Malformed(&'static str),
}

/// The lifetime of a token without `expires_in` (RFC 6749 §5.1 leaves it to documentation). It is short enough for most
/// endpoints.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(300);
/// The maximum lifetime. One request a day costs nothing.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The maximum margin before the expiry in which a token is not used: the webhook is still in transit, and clocks
/// differ.
pub(super) const EXPIRY_MARGIN_MAX: Duration = Duration::from_secs(60);

/// The error codes of RFC 6749 §5.2. `error_description` is ignored, since it may contain what outgate sent.
const ERROR_CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Returns how long to wait after this number of consecutive failures.
pub fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

impl OAuth2 {
    /// Returns the token request.
    pub fn request(&self) -> Request<Bytes> {
        let host = HeaderValue::try_from(self.endpoint.authority().to_string()).ok().map(|host| (header::HOST, host));
        let fields = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
            (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
        ];
        let authorization = self.authorization.clone().map(|value| (header::AUTHORIZATION, value));
        let fields = host.into_iter().chain(fields).chain(authorization).collect();
        let target = self.path_and_query.as_str();
        Request { fields, ..Request::new(Method::POST, target, self.body.clone()) }
    }

    /// Parses a token response (RFC 6749 §5.1, §5.2). Unknown members are ignored, as the RFC requires; duplicate
    /// members are an error.
    pub fn parse_response(status: StatusCode, body: &[u8]) -> Result<Grant, GrantError> {
        #[derive(Deserialize)]
        struct TokenResponse<'a> {
            #[serde(borrow)]
            access_token: Cow<'a, str>,
            #[serde(borrow)]
            token_type: Cow<'a, str>,
            expires_in: Option<Seconds>,
        }
        match status {
            status if status.is_success() => {}
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => return Err(GrantError::Unavailable(status)),
            status if status.is_client_error() => return Err(GrantError::Refused(status, error_code(body))),
            status if status.is_server_error() => return Err(GrantError::Unavailable(status)),
            _ => return Err(GrantError::Malformed("a redirection, which outgate does not follow")),
        }
        let response: TokenResponse<'_> = serde_json::from_slice(body)
            .map_err(|_| GrantError::Malformed("a body that is not the JSON of RFC 6749 §5.1"))?;
        if !response.token_type.eq_ignore_ascii_case("bearer") {
            return Err(GrantError::Malformed("a token of a type other than Bearer"));
        }
        let value = bearer(response.access_token.as_bytes());
        let value = value.ok_or(GrantError::Malformed("a token that a header field cannot carry"))?;
        let lifetime = match response.expires_in {
            None => LIFETIME_DEFAULT,
            Some(Seconds::Number(seconds)) => Duration::from_secs(seconds),
            Some(Seconds::Text(text)) => {
                let seconds = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
                Duration::from_secs(
                    seconds.ok_or(GrantError::Malformed("an expires_in that is not a number of seconds"))?,
                )
            }
        };
        Ok(Grant { value, lifetime: lifetime.min(LIFETIME_MAX) })
    }
}

/// RFC 6749 defines a number; some well-known endpoints send a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

fn error_code(body: &[u8]) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct ErrorResponse<'a> {
        #[serde(borrow)]
        error: Cow<'a, str>,
    }
    let response: ErrorResponse<'_> = serde_json::from_slice(body).ok()?;
    ERROR_CODES.into_iter().find(|code| *code == response.error)
}

impl Grant {
    /// Returns how long the token may be sent.
    pub fn usable_for(&self) -> Duration {
        self.lifetime - self.margin()
    }

    /// Returns the time after which outgate fetches a new token while this one is still valid.
    pub fn refresh_after(&self) -> Duration {
        self.lifetime - 2 * self.margin()
    }

    fn margin(&self) -> Duration {
        (self.lifetime / 4).min(EXPIRY_MARGIN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::TOKEN_MAX;
    use super::*;

    fn parse(status: u16, body: &str) -> Result<Grant, GrantError> {
        OAuth2::parse_response(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn token_response_gives_the_token_and_its_lifetime() {
        for (body, usable, refresh) in [
            (r#"{"access_token":"t","token_type":"Bearer","expires_in":3600}"#, 3540, 3480),
            (r#"{"expires_in":"300","token_type":"bEARER","access_token":"t","scope":"a","x":[1]}"#, 240, 180),
            (r#"{"access_token":"t","token_type":"bearer"}"#, 240, 180),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":null}"#, 240, 180),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":40}"#, 30, 20),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":0}"#, 0, 0),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":18446744073709551615}"#, 86_340, 86_280),
        ] {
            let grant = parse(200, body).unwrap();
            assert_eq!((grant.value.as_bytes(), grant.value.is_sensitive()), (&b"Bearer t"[..], true));
            assert_eq!((grant.usable_for().as_secs(), grant.refresh_after().as_secs()), (usable, refresh), "{body}");
        }
        assert_eq!(
            parse(201, "{\"access_token\":\"a!|b\\u003d\",\"token_type\":\"bearer\"}").unwrap().value,
            "Bearer a!|b="
        );
    }

    #[test]
    fn token_response_refuses_malformed_tokens() {
        let no_json = "a body that is not the JSON of RFC 6749 §5.1";
        let no_header = "a token that a header field cannot carry";
        for (body, reason) in [
            ("", no_json),
            ("<html>", no_json),
            ("[]", no_json),
            (r#"{"access_token":"t"}"#, no_json),
            (r#"{"token_type":"bearer"}"#, no_json),
            (r#"{"access_token":5,"token_type":"bearer"}"#, no_json),
            (r#"{"access_token":"t","access_token":"u","token_type":"bearer"}"#, no_json),
            (r#"{"access_token":"t","token_type":"bearer"} x"#, no_json),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":-1}"#, no_json),
            (r#"{"access_token":"t","token_type":"bearer","expires_in":1.5}"#, no_json),
            (r#"{"access_token":"t","token_type":"mac"}"#, "a token of a type other than Bearer"),
            (r#"{"access_token":"","token_type":"bearer"}"#, no_header),
            (r#"{"access_token":"a b","token_type":"bearer"}"#, no_header),
            (r#"{"access_token":"a\r\nX: y","token_type":"bearer"}"#, no_header),
            (r#"{"access_token":"é","token_type":"bearer"}"#, no_header),
            (
                r#"{"access_token":"t","token_type":"bearer","expires_in":"+5"}"#,
                "an expires_in that is not a number of seconds",
            ),
            (
                r#"{"access_token":"t","token_type":"bearer","expires_in":""}"#,
                "an expires_in that is not a number of seconds",
            ),
        ] {
            assert_eq!(parse(200, body).unwrap_err(), GrantError::Malformed(reason), "{body}");
        }
        let long = format!(r#"{{"access_token":"{}","token_type":"bearer"}}"#, "t".repeat(TOKEN_MAX + 1));
        assert_eq!(parse(200, &long).unwrap_err(), GrantError::Malformed(no_header));
    }

    #[test]
    fn token_response_separates_refusals_from_failures() {
        let refused = |status: u16, code| GrantError::Refused(StatusCode::from_u16(status).unwrap(), code);
        let failing = |status: u16| GrantError::Unavailable(StatusCode::from_u16(status).unwrap());
        for (status, body, expected) in [
            (401, r#"{"error":"invalid_client","error_description":"hunter2"}"#, refused(401, Some("invalid_client"))),
            (400, r#"{"error":"hunter2"}"#, refused(400, None)),
            (404, "<html>", refused(404, None)),
            (429, r#"{"error":"slow_down"}"#, failing(429)),
            (503, "", failing(503)),
            (302, "", GrantError::Malformed("a redirection, which outgate does not follow")),
        ] {
            assert_eq!(parse(status, body).unwrap_err(), expected, "{status}");
        }
    }

    #[test]
    fn token_endpoint_backoff_doubles_after_each_failure() {
        let seconds: Vec<u64> = [0, 1, 2, 3, 5, 6, 7, u32::MAX].map(|failures| backoff(failures).as_secs()).into();
        assert_eq!(seconds, [1, 1, 2, 4, 16, 30, 30, 30]);
    }
}
