//! What goes wrong with keys and signatures.
//! Why is there no key, or no signature?

use std::fmt;

/// What is wrong with a secret, without saying any of it; `message` goes on after "the secret of the key ID ".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyParseError {
    pub(super) message: String,
    pub(super) help: String,
}

pub(super) fn key_parse_error(message: impl Into<String>, help: impl Into<String>) -> KeyParseError {
    KeyParseError { message: message.into(), help: help.into() }
}

/// Why a webhook is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignError {
    NoActiveKey,
    /// The signer has keys for tenants alone, and the webhook is for none.
    NoTenant,
    /// The tenant has no keys, and none are shared.
    NoTenantKeys,
    /// The library could not.
    BackendFailed,
    /// The request is such that no signature of it would hold: what is wrong with it.
    Unsignable(&'static str),
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoActiveKey => "no key is in force",
            Self::NoTenant => "each tenant has keys of its own, and no tenant is named",
            Self::NoTenantKeys => "the tenant has no keys",
            Self::BackendFailed => "the key could not sign",
            Self::Unsignable(why) => why,
        })
    }
}

impl std::error::Error for SignError {}

/// Why there is no new key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKeyError {
    /// With what there is instead.
    UnknownScheme(String, String),
    /// Of this scheme, with what there is instead.
    UnknownAlgorithm(String, String),
    /// The system gave no random bytes.
    NoRandomness,
}

impl fmt::Display for NewKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownScheme(scheme, which) => write!(f, "no scheme is named {scheme:?}; {which}"),
            Self::UnknownAlgorithm(algorithm, which) => {
                write!(f, "the scheme has no keys for {algorithm:?}; there is: {which}")
            }
            Self::NoRandomness => f.write_str("no random bytes"),
        }
    }
}

impl std::error::Error for NewKeyError {}
