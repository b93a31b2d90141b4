//! Signers: named keys under one scheme; which of them are in force, and what they say about a webhook.
//! Which headers prove to the receiver that this came from us?

mod algorithm;
mod armour;
mod compile;
mod fault;
#[cfg(test)]
mod fixture;
mod github;
mod hmac;
mod key;
mod listing;
mod pem;
mod public;
mod registry;
mod rfc9421;
mod scheme;
mod sendgrid;
mod shopify;
mod slack;
mod standard_webhooks;
mod stripe;
mod template;
mod twilio;

use http::{HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};

use crate::config::{Place, Problem};
use crate::names::{KeyId, SignerName};
pub use algorithm::Algorithm;
pub use compile::compile;
pub use fault::{NewKeyError, SignError};
pub use listing::{Listed, Signers, State, directory, jwks, published};
pub use public::PublicKey;
pub use registry::{new_key, schemes};
pub use scheme::{Changes, Draft};
use scheme::{Key, Scheme};

/// How long before the last key ends an operator is told.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What is added to a webhook, and the keys it came from.
#[derive(Debug)]
pub struct Signature {
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub keys: Vec<KeyId>,
}

/// A signer: what a route's `sign` names.
pub struct Signer {
    name: SignerName,
    /// The name of its scheme.
    known_as: &'static str,
    scheme: Box<dyn Scheme>,
    /// The newest first.
    keys: Vec<Key>,
    place: Place,
}

impl Signer {
    pub fn name(&self) -> &SignerName {
        &self.name
    }

    pub fn scheme(&self) -> &'static str {
        self.known_as
    }

    /// The headers that are its own, lower case.
    pub fn headers(&self) -> Vec<HeaderName> {
        self.scheme.headers()
    }

    /// What must change about the webhook before any signer signs it: what one changed after another had signed would
    /// break the first signature.
    pub fn prepare(&self, draft: &Draft<'_>) -> Result<Changes, SignError> {
        self.scheme.prepare(draft)
    }

    /// Signs with every key in force at `draft.now`: while keys rotate, a receiver may know the old or the new one.
    /// Where the scheme carries one signature, the newest signs.
    pub fn sign(&self, draft: &Draft<'_>) -> Result<Signature, SignError> {
        if !valid_id(draft.id) {
            return Err(SignError::Unsignable("the webhook id cannot be signed"));
        }
        let keys: Vec<&Key> = self.signing(draft.now).collect();
        if keys.is_empty() {
            return Err(SignError::NoKey);
        }
        let headers = self.scheme.sign(draft, &keys)?;
        Ok(Signature { headers, keys: keys.iter().map(|key| key.id.clone()).collect() })
    }

    /// What an operator should know of its keys at this time: none in force is a problem, a gap to come is a warning.
    pub fn problems(&self, now: Timestamp) -> Vec<Problem> {
        let Some(gap) = self.next_gap(now) else { return Vec::new() };
        let next = self.keys.iter().filter_map(|key| key.from).filter(|&from| from > gap).min();
        let until = next.map_or(String::new(), |next| format!(" until {next}"));
        let help = "add a key, or move from and until so that one follows the other";
        if gap == now {
            let message = format!("no key of the signer {} is in force{until}", self.name);
            vec![Problem::at(self.place, message).help(help)]
        } else if gap.duration_since(now) <= WARN_BEFORE {
            let message = format!("no key of the signer {} is in force from {gap}{until}", self.name);
            vec![Problem::warning(Some(self.place), message).help(help)]
        } else {
            Vec::new()
        }
    }

    /// The keys that sign at this time, the newest first.
    pub fn signing_keys(&self, now: Timestamp) -> impl Iterator<Item = &KeyId> {
        self.signing(now).map(|key| &key.id)
    }

    fn signing(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.in_force(now).take(if self.scheme.carries_one() { 1 } else { usize::MAX })
    }

    fn in_force(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        let in_force = move |key: &&Key| key.from.is_none_or(|t| t <= now) && key.until.is_none_or(|t| now < t);
        self.keys.iter().filter(in_force)
    }

    /// The first moment from `now` on without a key; `None`: there is always one.
    fn next_gap(&self, now: Timestamp) -> Option<Timestamp> {
        let mut gap = now;
        loop {
            let ends: Vec<_> = self.in_force(gap).map(|key| key.until).collect();
            if ends.contains(&None) {
                return None;
            }
            match ends.into_iter().flatten().max() {
                Some(end) => gap = end,
                None => return Some(gap),
            }
        }
    }
}

/// May a client's `Webhook-Id` be kept? Visible ASCII without a full stop, which ends the id in what Standard Webhooks
/// signs; not so long that it makes the header a burden.
pub fn valid_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.')
}
