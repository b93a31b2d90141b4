//! The errors of keys and signatures.
//! Why is there no key, or no signature?

use std::fmt;

/// An error in a secret, which never quotes the secret. `message` continues "the secret of the key ID".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyParseError {
    pub(super) message: String,
    pub(super) help: String,
}

pub(super) fn key_parse_error(message: impl Into<String>, help: impl Into<String>) -> KeyParseError {
    KeyParseError { message: message.into(), help: help.into() }
}

/// The reason that a webhook is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignError {
    NoActiveKey,
    /// The signer has keys for tenants alone, and the webhook is for none.
    NoTenant,
    /// The tenant has no keys, and none are shared.
    NoTenantKeys,
    /// The cryptographic library failed.
    BackendFailed,
    /// No signature of this request would verify; the text says why.
    Unsignable(&'static str),
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoActiveKey => "no key is in force",
            Self::NoTenant => "each tenant has keys of its own, and no tenant is named",
            Self::NoTenantKeys => "the tenant has no keys",
            Self::BackendFailed => "the key could not sign",
            Self::Unsignable(reason) => reason,
        })
    }
}

impl std::error::Error for SignError {}

/// The reason that no key was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKeyError {
    /// The name, and the schemes that exist.
    UnknownScheme(String, String),
    /// The name, and the algorithms of the scheme's keys.
    UnknownAlgorithm(String, String),
    /// The system returned no random bytes.
    NoRandomness,
}

impl fmt::Display for NewKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownScheme(scheme, suggestion) => write!(f, "no scheme is named {scheme:?}; {suggestion}"),
            Self::UnknownAlgorithm(algorithm, available) => {
                write!(f, "the scheme has no keys for {algorithm:?}; it supports {available}")
            }
            Self::NoRandomness => f.write_str("the operating system returned no random bytes"),
        }
    }
}

impl std::error::Error for NewKeyError {}

#[cfg(test)]
mod tests {
    use crate::policy::sign::new_key;

    #[test]
    fn new_key_names_what_exists() {
        let error = |scheme, algorithm| new_key(scheme, algorithm).unwrap_err().to_string();
        let schemes =
            "the schemes are standard-webhooks, rfc9421, twilio, sendgrid, stripe, github, slack, shopify, hmac";
        assert_eq!(error("x", None), format!("no scheme is named \"x\"; {schemes}"));
        assert!(error("rfc9421", Some("x")).starts_with("the scheme has no keys for \"x\"; it supports "));
        assert_eq!(super::NewKeyError::NoRandomness.to_string(), "the operating system returned no random bytes");
    }
}
