//! The trait of signature schemes, and its inputs and outputs.
//! Which methods does a scheme have, and which data does it get?

use http::{HeaderName, Method};
use jiff::Timestamp;
use smallvec::SmallVec;
use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, NewKeyError, SignError};
use super::key::SecretKey;
use super::public::PublicKey;
use crate::config::{self, Problem};
use crate::http_message::{FieldText, Fields};
use crate::names::{KeyId, Target, TenantName};

/// The headers that a signer sets. No scheme owns more than three, apart from templates.
pub(super) type Headers = SmallVec<[(HeaderName, FieldText); 3]>;

/// A signature scheme with its options: which kinds of keys it takes, and how its headers carry signatures.
pub(super) trait Scheme: Send + Sync {
    /// Returns the headers that the scheme owns. outgate removes those that the client sent, and two signers of one
    /// webhook must not own the same header.
    fn headers(&self) -> Vec<HeaderName>;

    /// Returns whether receivers read only one signature. If so, only the newest key in force signs.
    fn is_single_signature(&self) -> bool;

    /// Parses a secret as the operator keeps it. Of the options, the result depends only on those of `KeyFormat`.
    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError>;

    /// Returns the changes that the webhook needs before any signer signs it.
    fn mutations(&self, _draft: &SigningInput<'_>) -> Result<Mutations, SignError> {
        Ok(Mutations::default())
    }

    /// Signs with these keys, of which there is at least one, the newest first; returns the headers.
    fn sign(&self, input: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError>;

    /// Returns a public key in the scheme's own encoding, if it has one.
    fn encode_public_key(&self, _key: &PublicKey) -> Option<String> {
        None
    }
}

/// A scheme without options, as the registry lists it.
pub(super) struct SchemeSpec {
    pub(super) name: &'static str,
    /// The keys of `[signers.NAME]` that the scheme takes besides those of every scheme.
    pub(super) options: &'static [&'static str],
    pub(super) build: Build,
    /// The generator of a key for each algorithm; the first is the default.
    pub(super) new_keys: &'static [(Algorithm, NewKey)],
}

pub(super) type Build = fn(&config::Signer, &mut Vec<Problem>) -> Option<Box<dyn Scheme>>;

pub(super) type NewKey = fn() -> Result<Zeroizing<String>, NewKeyError>;

/// A key, and the time in which it is in force.
pub(super) struct SignerKey {
    pub(super) id: KeyId,
    /// The first moment; `None` if the key has no beginning.
    pub(super) from: Option<Timestamp>,
    /// The first moment after the end; `None` if the key has no end.
    pub(super) until: Option<Timestamp>,
    pub(super) secret: SecretKey,
    /// `None` if the key is a shared secret.
    pub(super) public: Option<PublicKey>,
}

/// A webhook to sign.
pub struct SigningInput<'a> {
    pub method: &'a Method,
    pub target: &'a Target,
    pub tenant: Option<&'a TenantName>,
    pub path_and_query: &'a str,
    /// The headers, `Host` included.
    pub headers: &'a Fields,
    pub body: &'a [u8],
    pub now: Timestamp,
    /// The `Webhook-Id`, which is [valid](super::valid_id) and the same on each attempt.
    pub id: &'a str,
}

impl SigningInput<'_> {
    pub(super) fn url(&self) -> String {
        format!("{}{}", self.target, self.path_and_query)
    }

    /// Returns the time of this attempt (not of the event), in seconds since 1970.
    pub(super) fn timestamp(&self) -> String {
        self.now.as_second().to_string()
    }
}

/// The changes that a signature requires of the webhook.
#[derive(Debug, Default)]
pub struct Mutations {
    pub path_and_query: Option<String>,
    pub headers: Headers,
}

pub(super) fn header(name: HeaderName, value: String) -> Result<(HeaderName, FieldText), SignError> {
    // Digits, signatures and the texts of schemes are valid values; only the id comes from a client.
    let value =
        FieldText::new(value).ok_or(SignError::Unsignable("the webhook id has characters that cannot be signed"))?;
    Ok((name, value))
}
