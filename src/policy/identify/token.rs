//! Tokens, which a client shows in `Proxy-Authorization`.
//! Whose token is this?

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use subtle::{Choice, ConstantTimeEq};

use super::{Client, Clients, sha256};

/// Longer credentials are not decoded: nobody's token is a kilobyte.
const CREDENTIAL_MAX: usize = 4096;

/// Clients may leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `Basic` (RFC 7617) or `Bearer` (RFC 6750 §2.1): a scheme in any case, one or more spaces (RFC 9110 §11.4).
pub(super) fn client<'c>(clients: &'c Clients, credential: &[u8]) -> Option<&'c Arc<Client>> {
    if credential.len() > CREDENTIAL_MAX {
        return None;
    }
    let end = credential.iter().position(|&byte| byte == b' ')?;
    let (scheme, proof) = (&credential[..end], credential[end..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        clients.by_token.get(&sha256(proof))
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        let decoded = BASE64.decode(proof).ok()?;
        // The first colon ends the name; a token may contain more of them (RFC 7617 §2).
        let colon = decoded.iter().position(|&byte| byte == b':')?;
        let token = sha256(&decoded[colon + 1..]);
        let client = clients.by_name.get(std::str::from_utf8(&decoded[..colon]).ok()?)?;
        has(client, &token).then_some(client)
    } else {
        None
    }
}

/// Every token is compared, and in constant time: how long a wrong one takes tells nothing.
fn has(client: &Client, token: &[u8; 32]) -> bool {
    client.tokens.iter().fold(Choice::from(0), |found, own| found | own.ct_eq(token)).into()
}
