//! Secret keys: shared secrets, and the private halves of key pairs.
//! Which signature do these bytes get?

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PSS_SHA512, RsaKeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use data_encoding::HEXLOWER_PERMISSIVE;
use smallvec::{SmallVec, smallvec};
use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, NewKeyError, SignError, key_parse_error};
use super::public::PublicKey;
use crate::config::{Encoding, HmacAlgorithm};

/// The length of the shortest shared secret: 128 bits.
const SHARED_BYTES_MIN: usize = 16;

/// The length of a generated secret: that of SHA-256. A longer one is no stronger (RFC 2104 §3).
const SHARED_BYTES_NEW: usize = 32;

/// A signature as its algorithm makes it. All but those of RSA are inline: the longest is ECDSA P-256 in DER.
pub(super) type RawSignature = SmallVec<[u8; 72]>;

/// A key that signs. The cryptographic library wipes it when it is dropped.
pub(super) enum SecretKey {
    /// The key schedule, which is computed once.
    Hmac(HmacAlgorithm, Box<hmac::Key>),
    Ed25519(Ed25519KeyPair),
    /// The pair, which knows whether its signatures are r and s or DER.
    EcdsaP256(EcdsaKeyPair),
    RsaPss(Box<RsaKeyPair>),
}

impl SecretKey {
    pub(super) fn hmac(algorithm: HmacAlgorithm, secret: &[u8]) -> Self {
        let hash = match algorithm {
            HmacAlgorithm::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            HmacAlgorithm::Sha256 => hmac::HMAC_SHA256,
            HmacAlgorithm::Sha512 => hmac::HMAC_SHA512,
        };
        Self::Hmac(algorithm, Box::new(hmac::Key::new(hash, secret)))
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(algorithm, _) => (*algorithm).into(),
            Self::Ed25519(_) => Algorithm::Ed25519,
            Self::EcdsaP256(_) => Algorithm::EcdsaP256Sha256,
            Self::RsaPss(_) => Algorithm::RsaPssSha512,
        }
    }

    /// Returns the raw signature of the concatenated parts.
    /// `message`: its parts, in order.
    pub(super) fn sign(&self, message: impl IntoIterator<Item: AsRef<[u8]>>) -> Result<RawSignature, SignError> {
        let signature = match self {
            Self::Hmac(_, key) => {
                let mut context = hmac::Context::with_key(key);
                message.into_iter().for_each(|part| context.update(part.as_ref()));
                Ok(context.sign().as_ref().into())
            }
            Self::Ed25519(pair) => pair.try_sign(&concat(message)).map(|signature| signature.as_ref().into()),
            Self::EcdsaP256(pair) => {
                pair.sign(&SystemRandom::new(), &concat(message)).map(|signature| signature.as_ref().into())
            }
            Self::RsaPss(pair) => {
                let mut signature: RawSignature = smallvec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PSS_SHA512, &SystemRandom::new(), &concat(message), &mut signature).map(|()| signature)
            }
        };
        signature.map_err(|_| SignError::BackendFailed)
    }

    pub(super) fn public(&self) -> Option<PublicKey> {
        match self {
            Self::Hmac(..) => None,
            Self::Ed25519(pair) => PublicKey::ed25519(pair.public_key()),
            Self::EcdsaP256(pair) => PublicKey::p256(pair.public_key()),
            Self::RsaPss(pair) => PublicKey::rsa(pair.public_key()),
        }
    }
}

fn concat(parts: impl IntoIterator<Item: AsRef<[u8]>>) -> Vec<u8> {
    let mut whole = Vec::new();
    parts.into_iter().for_each(|part| whole.extend_from_slice(part.as_ref()));
    whole
}

/// Parses a shared secret in the encoding in which the operator keeps it.
pub(super) fn parse_shared_secret(
    algorithm: HmacAlgorithm,
    encoding: Encoding,
    secret: &[u8],
) -> Result<SecretKey, KeyParseError> {
    const HELP: &str = "`outgate keys new` makes a secret; the receiver must have the same one";
    if is_pem(secret) {
        return Err(key_parse_error("is a PEM file, and the scheme requires a shared secret", HELP));
    }
    let decoded = Zeroizing::new(match encoding {
        Encoding::Text => secret.to_vec(),
        Encoding::Hex => HEXLOWER_PERMISSIVE.decode(secret).map_err(|_| key_parse_error("is not hexadecimal", HELP))?,
        Encoding::Base64 | Encoding::Base64Url => {
            BASE64_STANDARD.decode(secret).map_err(|_| key_parse_error("is not base64 with padding", HELP))?
        }
    });
    if decoded.len() < SHARED_BYTES_MIN {
        return Err(key_parse_error(
            format!("is too short: {} bytes, not {SHARED_BYTES_MIN} or more", decoded.len()),
            HELP,
        ));
    }
    Ok(SecretKey::hmac(algorithm, &decoded))
}

/// Returns whether the secret is a PEM file, so that an error can say that the wrong kind of key stands here.
pub(super) fn is_pem(secret: &[u8]) -> bool {
    memchr::memmem::find(secret, b"-----BEGIN ").is_some()
}

/// Generates a shared secret with this prefix and encoding.
pub(super) fn generate_shared_secret(
    prefix: &str,
    encode: fn(&[u8]) -> String,
) -> Result<Zeroizing<String>, NewKeyError> {
    let mut secret = Zeroizing::new([0; SHARED_BYTES_NEW]);
    rand::fill(secret.as_mut()).map_err(|_| NewKeyError::NoRandomness)?;
    Ok(Zeroizing::new(format!("{prefix}{}", Zeroizing::new(encode(secret.as_ref())).as_str())))
}

pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    #[test]
    fn shared_secrets_are_decoded_or_refused() {
        let long = "0123456789abcdef";
        for (encoding, secret, expected) in [
            (Encoding::Text, long, None),
            (Encoding::Text, "0123456789abcde", Some("is too short: 15 bytes, not 16 or more")),
            (Encoding::Hex, "000102030405060708090A0b0c0d0e0f", None),
            (Encoding::Hex, long, Some("is too short: 8 bytes, not 16 or more")),
            (Encoding::Hex, "0x0102030405060708090a0b0c0d0e0f", Some("is not hexadecimal")),
            (Encoding::Hex, "000", Some("is not hexadecimal")),
            (Encoding::Base64, "AAECAwQFBgcICQoLDA0ODw==", None),
            (Encoding::Base64, "AAECAwQFBgcICQoLDA0ODw", Some("is not base64 with padding")),
            (Encoding::Base64, "AAEC", Some("is too short: 3 bytes, not 16 or more")),
            (
                Encoding::Text,
                "-----BEGIN PRIVATE KEY-----",
                Some("is a PEM file, and the scheme requires a shared secret"),
            ),
        ] {
            let message = parse_shared_secret(HmacAlgorithm::Sha256, encoding, secret.as_bytes())
                .err()
                .map(|error| error.message);
            assert_eq!(message.as_deref(), expected, "{secret}");
        }
    }

    /// RFC 2202 §3, case 2, and RFC 4231 §4.3.
    #[test]
    fn hmac_matches_published_vectors() {
        for (algorithm, expected) in [
            (HmacAlgorithm::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (HmacAlgorithm::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                HmacAlgorithm::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
            ),
        ] {
            let key = SecretKey::hmac(algorithm, b"Jefe");
            assert_eq!(
                HEXLOWER.encode(&key.sign([&b"what do ya want "[..], b"for nothing?"]).unwrap()),
                expected,
                "{algorithm:?}"
            );
        }
    }
}
