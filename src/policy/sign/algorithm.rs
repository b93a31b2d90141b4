//! The algorithms of signing keys.
//! Which name does each algorithm have?

use crate::config::HmacAlgorithm;

/// The algorithm of a key. Names are those of the registry of RFC 9421 §6.2, which has none for the other HMACs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    HmacSha1,
    HmacSha256,
    HmacSha512,
    Ed25519,
    EcdsaP256Sha256,
    RsaPssSha512,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmac-sha1",
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha512 => "hmac-sha512",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::RsaPssSha512 => "rsa-pss-sha512",
        }
    }
}

impl From<HmacAlgorithm> for Algorithm {
    fn from(algorithm: HmacAlgorithm) -> Self {
        match algorithm {
            HmacAlgorithm::Sha1 => Self::HmacSha1,
            HmacAlgorithm::Sha256 => Self::HmacSha256,
            HmacAlgorithm::Sha512 => Self::HmacSha512,
        }
    }
}
