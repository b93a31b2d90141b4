//! The check of a request body against its verified signature.
//! Is this the body that the client signed?

use data_encoding::HEXLOWER;
use subtle::ConstantTimeEq;

use super::AuthnError;
use crate::digest::sha256;
use crate::policy::message::digest::ContentDigest;

/// A digest of the body that a signature covers. The check needs the whole body.
#[derive(Debug)]
pub enum BodyCheck {
    /// Twilio's request hash: the hexadecimal SHA-256 of one of these texts, followed by the hexadecimal SHA-256 of the
    /// body.
    RequestHash { texts: Vec<Vec<u8>>, expected: String },
    /// The digests of `Content-Digest` (RFC 9530 §2), all of which must match.
    ContentDigest(Vec<ContentDigest>),
}

impl BodyCheck {
    pub fn verify(&self, body: &[u8]) -> Result<(), AuthnError> {
        match self {
            Self::RequestHash { texts, expected } => {
                // Twilio's libraries write no hash for an empty body.
                let body = if body.is_empty() { String::new() } else { HEXLOWER.encode(&sha256(body)) };
                let matches = |text: &Vec<u8>| {
                    let hash = HEXLOWER.encode(&sha256(&[text, body.as_bytes()].concat()));
                    bool::from(hash.as_bytes().ct_eq(expected.as_bytes()))
                };
                let is_match = texts.iter().any(matches);
                if is_match {
                    Ok(())
                } else {
                    Err(AuthnError::Signature("the request differs from the one that was signed"))
                }
            }
            Self::ContentDigest(digests) => {
                let is_match = digests.iter().all(|digest| digest.matches(body));
                if is_match { Ok(()) } else { Err(AuthnError::Signature("the body does not match Content-Digest")) }
            }
        }
    }
}
