//! A signer: named keys under one scheme, of which those in force sign a webhook.
//! Which headers prove to the receiver that this webhook came from the platform?

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::error::SignError;
use super::keyring::Keyring;
use super::scheme::{Mutations, Scheme, SignerKey, SigningInput};
use super::tenants::TenantKeyrings;
use crate::config::{Encoding, HmacAlgorithm, Problem, SourceSpan, WarningCode, truncate_similar};
use crate::names::{KeyId, SignerName, TenantName};

/// What is added to a webhook, and the keys it came from.
#[derive(Debug)]
pub struct Signature {
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub keys: Vec<KeyId>,
}

pub type Signers = BTreeMap<SignerName, Arc<Signer>>;

/// All that says how a secret is read.
#[derive(PartialEq, Eq)]
pub(super) struct KeyFormat {
    pub(super) scheme: &'static str,
    pub(super) algorithm: Option<HmacAlgorithm>,
    pub(super) key_encoding: Option<Encoding>,
    /// Some tags allow key pairs alone.
    pub(super) tag: Option<String>,
}

/// A signer: what a route's `sign` names.
pub struct Signer {
    pub(super) name: SignerName,
    /// The name of its scheme.
    pub(super) known_as: &'static str,
    pub(super) scheme: Box<dyn Scheme>,
    /// What its keys were read by.
    pub(super) key_format: KeyFormat,
    /// Of all tenants that have none of their own, if there are any.
    pub(super) shared: Option<Keyring>,
    /// Whether these are all that are written. Of a rejected key, or of none at all, is reported elsewhere.
    pub(super) is_complete: bool,
    /// Each with keys of its own.
    pub(super) tenants: Option<TenantKeyrings>,
    pub(super) place: SourceSpan,
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
            problems.extend(truncate_similar(tenants.warnings(self.place, now), &tenants.location()));
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
