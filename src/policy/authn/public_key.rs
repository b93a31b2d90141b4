//! Public keys of clients, with the algorithms that each may verify with.
//! Did the holder of the private key sign this message?

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA512, VerificationAlgorithm,
};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::signed_der::bits;
use crate::digest::sha256;

/// The permitted size of an RSA modulus in bits.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum SignatureAlgorithm {
    /// `RS256` (RFC 7518 §3.3), `rsa-v1_5-sha256` (RFC 9421 §3.3.2).
    RsaV15Sha256,
    /// `PS256` (RFC 7518 §3.5).
    RsaPssSha256,
    /// `rsa-pss-sha512` (RFC 9421 §3.3.1).
    RsaPssSha512,
    /// `ecdsa-p256-sha256` (RFC 9421 §3.3.4): r and s, 32 bytes each.
    EcdsaP256Sha256,
    /// `ed25519` (RFC 9421 §3.3.6).
    Ed25519,
}

/// A public key, parsed once for each algorithm that it supports. An algorithm of another kind of key finds no key, so
/// a message cannot choose how its signature is read.
pub(in crate::policy) struct VerifyingKey(Vec<(SignatureAlgorithm, ParsedPublicKey)>);

/// The reason why a key is unusable.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::policy) enum VerifyingKeyError {
    /// The bytes are no SubjectPublicKeyInfo, or no key of the stated kind.
    Malformed,
    UnsupportedKind,
    RsaBits(usize),
}

impl fmt::Display for VerifyingKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("is malformed"),
            Self::UnsupportedKind => f.write_str("is of a kind that is not supported"),
            Self::RsaBits(bits) => write!(f, "has {bits} bits"),
        }
    }
}

impl VerifyingKey {
    /// Parses a DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub(in crate::policy) fn parse(der: &[u8]) -> Result<Self, VerifyingKeyError> {
        let Ok(([], info)) = SubjectPublicKeyInfo::from_der(der) else { return Err(VerifyingKeyError::Malformed) };
        let kind = &info.algorithm.algorithm;
        let algorithms: &[SignatureAlgorithm] = if *kind == OID_PKCS1_RSAENCRYPTION {
            let Ok(Parsed::RSA(rsa)) = info.parsed() else { return Err(VerifyingKeyError::Malformed) };
            match bits(rsa.modulus) {
                RSA_BITS_MIN..=RSA_BITS_MAX => &[
                    SignatureAlgorithm::RsaV15Sha256,
                    SignatureAlgorithm::RsaPssSha256,
                    SignatureAlgorithm::RsaPssSha512,
                ],
                bits => return Err(VerifyingKeyError::RsaBits(bits)),
            }
        } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            if curve != Some(OID_EC_P256) {
                return Err(VerifyingKeyError::UnsupportedKind);
            }
            &[SignatureAlgorithm::EcdsaP256Sha256]
        } else if *kind == OID_SIG_ED25519 {
            &[SignatureAlgorithm::Ed25519]
        } else {
            return Err(VerifyingKeyError::UnsupportedKind);
        };
        let key = |algorithm: &SignatureAlgorithm| {
            let key = ParsedPublicKey::new(algorithm.verification_algorithm(), &info.subject_public_key.data);
            key.map(|key| (*algorithm, key)).map_err(|_| VerifyingKeyError::Malformed)
        };
        algorithms.iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    pub(in crate::policy) fn is_for(&self, algorithm: SignatureAlgorithm) -> bool {
        self.0.iter().any(|(supported, _)| *supported == algorithm)
    }

    /// Returns the first of these algorithms with which the signature verifies.
    pub(in crate::policy) fn verify(
        &self,
        by: &[SignatureAlgorithm],
        message: &[u8],
        signature: &[u8],
    ) -> Option<SignatureAlgorithm> {
        let matches = |(algorithm, key): &&(SignatureAlgorithm, ParsedPublicKey)| {
            by.contains(algorithm) && key.verify_sig(message, signature).is_ok()
        };
        self.0.iter().find(matches).map(|(algorithm, _)| *algorithm)
    }
}

impl SignatureAlgorithm {
    fn verification_algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::RsaV15Sha256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::RsaPssSha256 => &RSA_PSS_2048_8192_SHA256,
            Self::RsaPssSha512 => &RSA_PSS_2048_8192_SHA512,
            Self::EcdsaP256Sha256 => &ECDSA_P256_SHA256_FIXED,
            Self::Ed25519 => &ED25519,
        }
    }

    /// Returns a hash that is equal for every valid signature derived from one without the key. For an ECDSA signature
    /// (r, s), another valid one is (r, n-s).
    pub(super) fn replay_key(self, signature: &[u8]) -> [u8; 32] {
        match self {
            Self::EcdsaP256Sha256 => sha256(&signature[..signature.len() / 2]),
            _ => sha256(signature),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        RSA_PSS_SHA256, RsaKeyPair,
    };

    fn spki(key: &impl KeyPair<PublicKey: AsDer<aws_lc_rs::encoding::PublicKeyX509Der<'static>>>) -> Vec<u8> {
        key.public_key().as_der().unwrap().as_ref().to_vec()
    }

    #[test]
    fn verifying_keys_accept_supported_kinds_only() {
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let ed25519 = Ed25519KeyPair::generate().unwrap();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        assert!(VerifyingKey::parse(&spki(&p256)).is_ok());
        assert!(VerifyingKey::parse(&spki(&ed25519)).is_ok());
        assert!(VerifyingKey::parse(&spki(&rsa)).is_ok());
        assert_eq!(VerifyingKey::parse(&spki(&p384)).err(), Some(VerifyingKeyError::UnsupportedKind));
        let (mut longer, shorter) = (spki(&ed25519), spki(&rsa));
        longer.push(0);
        assert_eq!(VerifyingKey::parse(&longer).err(), Some(VerifyingKeyError::Malformed));
        assert_eq!(VerifyingKey::parse(&shorter[..100]).err(), Some(VerifyingKeyError::Malformed));
        assert_eq!(VerifyingKey::parse(b"").err(), Some(VerifyingKeyError::Malformed));
        let mut off_curve = spki(&p256);
        *off_curve.last_mut().unwrap() ^= 1;
        assert_eq!(VerifyingKey::parse(&off_curve).err(), Some(VerifyingKeyError::Malformed));
    }

    #[test]
    fn verifying_key_refuses_rsa_of_1024_bits() {
        // SubjectPublicKeyInfo { rsaEncryption, NULL }, BIT STRING { SEQUENCE { INTEGER of 1024 bits, 65537 } }
        let mut der = vec![0x30, 0x81, 0x9f, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
        der.extend([0x01, 0x05, 0x00, 0x03, 0x81, 0x8d, 0x00, 0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00]);
        der.extend([0xff; 128]);
        der.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
        assert_eq!(VerifyingKey::parse(&der).err(), Some(VerifyingKeyError::RsaBits(1024)));
    }

    #[test]
    fn verifying_key_checks_only_algorithms_of_its_kind() {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PSS_SHA256, &SystemRandom::new(), b"message", &mut signature).unwrap();
        let public = VerifyingKey::parse(&spki(&key)).unwrap();
        let all = [SignatureAlgorithm::RsaV15Sha256, SignatureAlgorithm::RsaPssSha256, SignatureAlgorithm::Ed25519];
        assert_eq!(public.verify(&all, b"message", &signature), Some(SignatureAlgorithm::RsaPssSha256));
        assert_eq!(public.verify(&all, b"massage", &signature), None);
        for other in [SignatureAlgorithm::RsaV15Sha256, SignatureAlgorithm::RsaPssSha512, SignatureAlgorithm::Ed25519] {
            assert_eq!(public.verify(&[other], b"message", &signature), None);
        }
    }

    #[test]
    fn replay_key_is_equal_for_malleated_ecdsa_signatures() {
        let (one, other) = ([[1; 32], [2; 32]].concat(), [[1; 32], [3; 32]].concat());
        assert_eq!(
            SignatureAlgorithm::EcdsaP256Sha256.replay_key(&one),
            SignatureAlgorithm::EcdsaP256Sha256.replay_key(&other)
        );
        let unrelated = [[4; 32], [2; 32]].concat();
        assert_ne!(
            SignatureAlgorithm::EcdsaP256Sha256.replay_key(&one),
            SignatureAlgorithm::EcdsaP256Sha256.replay_key(&unrelated)
        );
        assert_ne!(SignatureAlgorithm::Ed25519.replay_key(&one), SignatureAlgorithm::Ed25519.replay_key(&other));
    }
}
