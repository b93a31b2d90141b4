//! Credentials: a header by which a target knows us, as it is written or with a token that is fetched for it.
//! What does a target that lets nobody in without want to see?

mod challenge;
mod compile;
mod oauth2;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::names::CredentialName;
pub use challenge::rejects_token;
pub use compile::{check_guard, compile};
pub use oauth2::{Grant, GrantError, OAuth2, backoff};

/// What a route's `credential` names.
pub struct Credential {
    pub name: CredentialName,
    /// What a client sent under this name is replaced.
    pub header: HeaderName,
    pub value: CredentialValue,
    /// It may leave over plaintext http, where the route does.
    pub allows_plaintext: bool,
    /// As the configuration calls it.
    kind: &'static str,
}

pub enum CredentialValue {
    Static(HeaderValue),
    OAuth2(Arc<OAuth2>),
}

impl Credential {
    /// Whether tokens of this fingerprint are for it.
    pub fn has_fingerprint(&self, fingerprint: &[u8; 32]) -> bool {
        matches!(&self.value, CredentialValue::OAuth2(oauth2) if oauth2.fingerprint == *fingerprint)
    }

    /// As the configuration calls it: `basic`, `bearer`, `header` or `oauth2`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

/// A longer token fits into the head of no request.
const TOKEN_MAX: usize = 16 << 10;

/// RFC 6750 §2.1. Its `b64token` is not insisted on, since tokens with a `!` or `|` are given out; but white space would
/// end the token, and what is not ASCII would be read by each target in its own way.
fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let is_valid = (1..=TOKEN_MAX).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    is_valid.then(|| secret_value(&[b"Bearer ", token])).flatten()
}

/// Wiped when the last copy of it is dropped, left out of `Debug`, and of HPACK's tables (RFC 7541 §7.1.3).
fn secret_value(parts: &[&[u8]]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(secret_bytes(parts)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Sized at once, so that no half-grown copy stays behind in memory.
fn secret_bytes(parts: &[&[u8]]) -> Bytes {
    let mut bytes = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Bytes::from_owner(bytes)
}
