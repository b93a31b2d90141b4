//! Authentication by a token in `Proxy-Authorization`.
//! Which client has this token?

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use subtle::{Choice, ConstantTimeEq};

use super::{Client, Clients};
use crate::digest::sha256;

/// The maximum length of a credential. Tokens are far shorter than 4 KiB.
const CREDENTIAL_MAX: usize = 4096;

/// Base64 with optional padding, which some clients omit.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A credential in a header field: the hash of a token, and the user name of `Basic`.
pub(super) struct TokenCredential {
    pub(super) user: Option<String>,
    pub(super) token: [u8; 32],
}

impl TokenCredential {
    /// Parses a `Basic` (RFC 7617) or `Bearer` (RFC 6750 §2.1) credential. The scheme has any case, and one or more
    /// spaces follow it (RFC 9110 §11.4).
    pub(super) fn parse(credential: &[u8]) -> Option<Self> {
        let (scheme, proof) = split_scheme(credential)?;
        if scheme.eq_ignore_ascii_case(b"bearer") {
            Some(Self { user: None, token: sha256(proof) })
        } else if scheme.eq_ignore_ascii_case(b"basic") {
            let (user, token) = decode_basic(proof)?;
            Some(Self { user: Some(user), token: sha256(&token) })
        } else {
            None
        }
    }

    /// Returns whether the token is one of these. Every token is compared in constant time, so that the duration reveals
    /// nothing.
    pub(super) fn is_one_of(&self, tokens: &[[u8; 32]]) -> bool {
        tokens.iter().fold(Choice::from(0), |found, own| found | own.ct_eq(&self.token)).into()
    }
}

/// Returns the client of a credential.
pub(super) fn authenticate<'c>(clients: &'c Clients, credential: &[u8]) -> Option<&'c Arc<Client>> {
    let credential = TokenCredential::parse(credential)?;
    match &credential.user {
        None => clients.by_token.get(&credential.token),
        Some(user) => clients.by_name.get(user.as_str()).filter(|client| credential.is_one_of(&client.tokens)),
    }
}

/// Returns the name in a `Basic` credential.
pub(super) fn basic_user(credential: &[u8]) -> Option<String> {
    let (scheme, proof) = split_scheme(credential)?;
    scheme.eq_ignore_ascii_case(b"basic").then(|| decode_basic(proof))?.map(|(user, _)| user)
}

/// Splits a credential into its scheme and the rest.
fn split_scheme(credential: &[u8]) -> Option<(&[u8], &[u8])> {
    if credential.len() > CREDENTIAL_MAX {
        return None;
    }
    let end = credential.iter().position(|&byte| byte == b' ')?;
    Some((&credential[..end], credential[end..].trim_ascii()))
}

/// Returns the name and the token of a `Basic` credential. The first colon ends the name; a token may contain more of them
/// (RFC 7617 §2).
fn decode_basic(proof: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut name = BASE64.decode(proof).ok()?;
    let colon = name.iter().position(|&byte| byte == b':')?;
    let token = name.split_off(colon + 1);
    name.truncate(colon);
    Some((String::from_utf8(name).ok()?, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_one_of_several_wherever_it_is() {
        let credential = TokenCredential::parse(b"Bearer secret").unwrap();
        let (own, other) = (credential.token, [7; 32]);
        for (tokens, expected) in [
            (&[][..], false),
            (&[other], false),
            (&[own], true),
            (&[own, other], true),
            (&[other, own], true),
            (&[own, own], true),
            (&[other, other], false),
        ] {
            assert_eq!(credential.is_one_of(tokens), expected, "{tokens:?}");
        }
    }

    #[test]
    fn credential_longer_than_the_maximum_is_not_read() {
        let user = |length: usize| {
            // Leading spaces of the proof are ignored, so any length is possible.
            let (scheme, proof) = ("Basic ", "YmlsbGluZzp4");
            let padding = " ".repeat(length - scheme.len() - proof.len());
            basic_user(format!("{scheme}{padding}{proof}").as_bytes())
        };
        assert_eq!(user(CREDENTIAL_MAX).as_deref(), Some("billing"));
        assert_eq!([CREDENTIAL_MAX + 1, CREDENTIAL_MAX + 2].map(user), [None, None]);
    }
}
