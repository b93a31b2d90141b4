//! Credentials of outgate towards targets: a configured header, or an OAuth 2.0 token that outgate fetches.
//! Which header authenticates outgate to the target?

mod challenge;
mod compile;
mod oauth2;
mod seal;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::names::CredentialName;
pub use challenge::rejects_token;
pub use compile::{check_guard, compile};
pub use oauth2::{Grant, GrantError, OAuth2, backoff};
pub use seal::{SEALED_MAX, TokenSeal};

/// A credential that routes refer to.
pub struct Credential {
    pub name: CredentialName,
    /// The header to set. It replaces the client's header of this name.
    pub header: HeaderName,
    pub value: CredentialValue,
    /// Whether it may be sent over plaintext http on a route that allows that.
    pub allows_plaintext: bool,
    /// The scheme as the configuration calls it.
    kind: &'static str,
}

pub enum CredentialValue {
    Static(HeaderValue),
    OAuth2(Arc<OAuth2>),
}

impl Credential {
    /// Returns whether tokens of this fingerprint belong to this credential.
    pub fn has_fingerprint(&self, fingerprint: &[u8; 32]) -> bool {
        matches!(&self.value, CredentialValue::OAuth2(oauth2) if oauth2.fingerprint == *fingerprint)
    }

    /// Returns the scheme: `basic`, `bearer`, `header` or `oauth2`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

/// The maximum length of a token. A longer one does not fit into a request head.
const TOKEN_MAX: usize = 16 << 10;

/// Returns the `Bearer` credential of a token (RFC 6750 §2.1). Some servers issue tokens beyond `b64token`, with `!` or
/// `|`, so any visible ASCII passes. White space would end the token, and targets read other bytes differently.
fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let is_valid = (1..=TOKEN_MAX).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    is_valid.then(|| secret_value(&[b"Bearer ", token])).flatten()
}

/// Builds a secret header value. It is wiped when its last copy is dropped, and kept out of `Debug` and HPACK's tables
/// (RFC 7541 §7.1.3).
fn secret_value(parts: &[&[u8]]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(secret_bytes(parts)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Concatenates the parts of a secret. The buffer never grows, so no partial copy stays in memory.
fn secret_bytes(parts: &[&[u8]]) -> Bytes {
    let mut bytes = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Bytes::from_owner(bytes)
}
