//! What a signing scheme is: keys of a kind, headers, and how signatures stand in them.
//! What must a scheme know, and what is it given?

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, NewKeyError, SignError};
use super::key::SecretKey;
use super::public::PublicKey;
use crate::config::{self, Problem};
use crate::names::{KeyId, Target, TenantName};

pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// A scheme, told all that it wants to know.
pub(super) trait Scheme: Send + Sync {
    /// The headers that are its own: what a client sent of them goes, and two signers of one webhook must not set the
    /// same.
    fn headers(&self) -> Vec<HeaderName>;

    /// Whether receivers read one signature and no more. Then the newest key in force signs alone.
    fn carries_one(&self) -> bool;

    /// From the secret as an operator keeps it. By the key's format and nothing else that the scheme was told.
    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError>;

    /// What must change about the webhook before anybody signs it.
    fn mutations(&self, _draft: &SigningInput<'_>) -> Result<Mutations, SignError> {
        Ok(Mutations::default())
    }

    /// The headers for these keys, at least one, the newest first.
    fn sign(&self, draft: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError>;

    /// A public key in the scheme's own writing, if it has one.
    fn write_public(&self, _key: &PublicKey) -> Option<String> {
        None
    }
}

/// A scheme before it is told anything.
pub(super) struct SchemeSpec {
    pub(super) name: &'static str,
    /// The keys of `[signers.NAME]` that it takes, besides those that each takes.
    pub(super) options: &'static [&'static str],
    pub(super) build: Build,
    /// Of each algorithm that its keys may be for, one that the scheme takes; the first unless another is asked for.
    pub(super) new_keys: &'static [(Algorithm, NewKey)],
}

pub(super) type Build = fn(&config::Signer, &mut Vec<Problem>) -> Option<Box<dyn Scheme>>;

pub(super) type NewKey = fn() -> Result<Zeroizing<String>, NewKeyError>;

/// A key and when it is in force.
pub(super) struct SignerKey {
    pub(super) id: KeyId,
    /// Inclusive; `None`: always was.
    pub(super) from: Option<Timestamp>,
    /// Exclusive; `None`: for ever.
    pub(super) until: Option<Timestamp>,
    pub(super) secret: SecretKey,
    /// `None`: a secret that both sides have.
    pub(super) public: Option<PublicKey>,
}

/// A webhook about to leave.
pub struct SigningInput<'a> {
    pub method: &'a Method,
    pub target: &'a Target,
    pub tenant: Option<&'a TenantName>,
    pub path_and_query: &'a str,
    /// With `Host`.
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub now: Timestamp,
    /// `Webhook-Id`: [valid](super::valid_id), the same on each attempt.
    pub id: &'a str,
}

impl SigningInput<'_> {
    pub(super) fn url(&self) -> String {
        format!("{}{}", self.target, self.path_and_query)
    }

    /// Seconds since 1970, of this attempt and not of the event.
    pub(super) fn timestamp(&self) -> String {
        self.now.as_second().to_string()
    }
}

/// What a signature needs of the webhook that it is for.
#[derive(Debug, Default)]
pub struct Mutations {
    pub path_and_query: Option<String>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

pub(super) fn header(name: HeaderName, value: &str) -> Result<(HeaderName, HeaderValue), SignError> {
    // Digits, signatures and the texts of schemes always are a header's value; only the id comes from elsewhere.
    let value = HeaderValue::from_str(value).map_err(|_| SignError::Unsignable("the webhook id cannot be signed"))?;
    Ok((name, value))
}
