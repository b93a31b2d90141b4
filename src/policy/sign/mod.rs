//! Signers: named keys under one scheme; which of them are in force, and what they say about a webhook.
//! Which headers prove to the receiver that this came from us?

mod algorithm;
mod compile;
mod fault;
#[cfg(test)]
mod fixture;
mod github;
mod hmac;
mod key;
mod keyring;
mod listing;
mod pem;
mod pem_encoding;
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
mod tenants;
mod twilio;

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use crate::config::WarningCode;
use crate::config::{Problem, SourceSpan, few};
use crate::names::{KeyId, SignerName, TenantName};
pub use algorithm::Algorithm;
use compile::KeyFormat;
pub use compile::compile;
pub use fault::{NewKeyError, SignError};
pub use keyring::Keyring;
pub use listing::{KeyState, ListedKey, Signers, directory, jwks, published};
pub use public::PublicKey;
pub use registry::{new_key, schemes};
pub use scheme::{Mutations, SigningInput};
use scheme::{Scheme, SignerKey};
use tenants::TenantKeyrings;

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
    /// What its keys were read by.
    key_format: KeyFormat,
    /// Of all tenants that have none of their own, if there are any.
    shared: Option<Keyring>,
    /// Whether these are all that are written. Of a rejected key, or of none at all, is reported elsewhere.
    is_complete: bool,
    /// Each with keys of its own.
    tenants: Option<TenantKeyrings>,
    place: SourceSpan,
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
    pub fn mutations(&self, draft: &SigningInput<'_>) -> Result<Mutations, SignError> {
        self.scheme.mutations(draft)
    }

    /// Signs with every key in force at `draft.now`: while keys rotate, a receiver may know the old or the new one.
    /// Where the scheme carries one signature, the newest signs.
    pub fn sign(&self, draft: &SigningInput<'_>) -> Result<Signature, SignError> {
        if !valid_id(draft.id) {
            return Err(SignError::Unsignable("the webhook id cannot be signed"));
        }
        let keys: Vec<&SignerKey> = self.keys_of(draft.tenant)?.signing(draft.now, self.scheme.carries_one()).collect();
        if keys.is_empty() {
            return Err(SignError::NoActiveKey);
        }
        let headers = self.scheme.sign(draft, &keys)?;
        Ok(Signature { headers, keys: keys.iter().map(|key| key.id.clone()).collect() })
    }

    /// How many tenants have keys of their own; `None`: none can.
    pub fn tenants(&self) -> Option<usize> {
        self.tenants.as_ref().map(TenantKeyrings::count)
    }

    /// Whether receivers verify with the very secret that signs, and tenants have the same.
    pub fn shares_a_secret(&self) -> bool {
        self.shared.iter().flat_map(|keys| &keys.keys).any(|key| key.public.is_none())
    }

    /// Whether the tenant has a folder of its own, whatever stands in it.
    pub fn has_own_keys(&self, tenant: &TenantName) -> bool {
        self.tenants.as_ref().is_some_and(|tenants| tenants.keyring(tenant).is_some())
    }

    /// Tenants whose folder is broken: they keep the keys that they had, and have none if they had none.
    pub fn broken_tenants(&self) -> impl Iterator<Item = &TenantName> {
        self.tenants.iter().flat_map(TenantKeyrings::broken)
    }

    /// What signs for this tenant: its own keys where it has a folder, and be it an empty one; else those that all share,
    /// if there are any. Never another tenant's.
    pub fn keys_of(&self, tenant: Option<&TenantName>) -> Result<&Keyring, SignError> {
        let own = self.tenants.as_ref().zip(tenant).and_then(|(tenants, tenant)| tenants.keyring(tenant));
        let none = if tenant.is_some() { SignError::NoTenantKeys } else { SignError::NoTenant };
        own.or(self.shared.as_ref()).ok_or(none)
    }

    /// The keys that sign for this tenant at this time, the newest first.
    pub fn signing_keys(&self, tenant: Option<&TenantName>, now: Timestamp) -> impl Iterator<Item = &KeyId> {
        let keys = self.keys_of(tenant).into_iter();
        keys.flat_map(move |keys| keys.signing(now, self.scheme.carries_one())).map(|key| &key.id)
    }

    /// What an operator should know of its keys at this time: none of the shared ones in force is a problem, a gap to
    /// come is a warning. So is a tenant without a key: one of thousands must not keep the others from starting.
    pub fn problems(&self, now: Timestamp) -> Vec<Problem> {
        let help = "add a key, or move from and until so that one follows the other";
        let shared = self.shared.as_ref().filter(|_| self.is_complete);
        let shared = shared.and_then(|keys| keys.gap(format_args!("the signer {}", self.name), now));
        let shared = shared.map(|gap| match gap.is_now {
            true => Problem::at(self.place, gap.message),
            false => Problem::warning(WarningCode::NoKeyInForce, Some(self.place), gap.message),
        });
        let mut problems = Vec::from_iter(shared.map(|problem| problem.help(help)));
        if let Some(tenants) = &self.tenants {
            problems.extend(few(tenants.warnings(self.place, now), &tenants.location()));
        }
        problems
    }
}

/// May a client's `Webhook-Id` be kept? Only of letters, digits and `-_~+@`, none of which separates the id from what
/// follows it in what is signed or in a header: Standard Webhooks ends it with a full stop, templates with what they
/// like. Not so long that it makes the header a burden.
pub fn valid_id(id: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~+@".contains(&byte);
    (1..=256).contains(&id.len()) && id.bytes().all(is_safe)
}
