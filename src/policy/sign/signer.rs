//! A signer: named keys under one scheme, of which those in force sign a webhook.
//! Which headers prove to the receiver that this webhook came from the platform?

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use jiff::Timestamp;
use smallvec::SmallVec;

use super::error::SignError;
use super::keyring::Keyring;
use super::scheme::{Headers, Mutations, Scheme, SignerKey, SigningInput};
use super::tenants::TenantKeyrings;
use crate::config::{Encoding, HmacAlgorithm, Problem, SourceSpan, WarningCode, truncate_similar};
use crate::names::{KeyId, SignerName, TenantName};

/// The headers of a signature, and the keys that made it.
#[derive(Debug)]
pub struct Signature {
    pub headers: Headers,
    pub keys: KeyIds,
}

/// The keys that sign one webhook: one, or two while they rotate.
pub type KeyIds = SmallVec<[KeyId; 2]>;

pub type Signers = BTreeMap<SignerName, Arc<Signer>>;

/// The options on which the parsing of a secret depends.
#[derive(PartialEq, Eq)]
pub(super) struct KeyFormat {
    pub(super) scheme: &'static str,
    pub(super) algorithm: Option<HmacAlgorithm>,
    pub(super) key_encoding: Option<Encoding>,
    /// The tag, because some tags allow only key pairs.
    pub(super) tag: Option<String>,
}

/// A signer, which the `sign` of a route names.
pub struct Signer {
    pub(super) name: SignerName,
    /// The name of its scheme.
    pub(super) scheme_name: &'static str,
    pub(super) scheme: Box<dyn Scheme>,
    /// The headers that the scheme owns.
    pub(super) headers: Vec<HeaderName>,
    /// The format in which its keys were parsed.
    pub(super) key_format: KeyFormat,
    /// The keys of all tenants without keys of their own, if there are any.
    pub(super) shared: Option<Keyring>,
    /// Whether every written key was parsed. Rejected keys, and a signer without keys, are reported by the compiler.
    pub(super) is_complete: bool,
    /// The keys of tenants with keys of their own.
    pub(super) tenants: Option<TenantKeyrings>,
    pub(super) span: SourceSpan,
}

impl Signer {
    pub fn name(&self) -> &SignerName {
        &self.name
    }

    pub fn scheme(&self) -> &'static str {
        self.scheme_name
    }

    /// Returns the headers that its scheme owns, in lower case.
    pub fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// Returns the changes that the webhook needs before any signer signs it. A change after a signature would break that
    /// signature.
    pub fn mutations(&self, input: &SigningInput<'_>) -> Result<Mutations, SignError> {
        self.scheme.mutations(input)
    }

    /// Signs with every key in force at `input.now`: while keys rotate, a receiver may know the old or the new one.
    /// If the scheme carries one signature, only the newest key signs.
    pub fn sign(&self, input: &SigningInput<'_>) -> Result<Signature, SignError> {
        if !valid_id(input.id) {
            return Err(SignError::Unsignable("the webhook id has characters that cannot be signed"));
        }
        let keys: SmallVec<[&SignerKey; 2]> =
            self.keys_of(input.tenant)?.signing_keys(input.now, self.scheme.is_single_signature()).collect();
        if keys.is_empty() {
            return Err(SignError::NoActiveKey);
        }
        let headers = self.scheme.sign(input, &keys)?;
        Ok(Signature { headers, keys: keys.iter().map(|key| key.id.clone()).collect() })
    }

    /// Returns how many tenants have keys of their own; `None` if the signer has no `key_dir`.
    pub fn tenants(&self) -> Option<usize> {
        self.tenants.as_ref().map(TenantKeyrings::count)
    }

    /// Returns whether all tenants share a secret with which receivers also verify.
    pub fn shares_a_secret(&self) -> bool {
        self.shared.iter().flat_map(|keys| &keys.keys).any(|key| key.public.is_none())
    }

    /// Returns whether the tenant has a folder of its own, even an empty one.
    pub fn has_own_keys(&self, tenant: &TenantName) -> bool {
        self.tenants.as_ref().is_some_and(|tenants| tenants.keyring(tenant).is_some())
    }

    /// Returns the tenants whose folder has a problem. They keep the keys of the previous plan, if any.
    pub fn broken_tenants(&self) -> impl Iterator<Item = &TenantName> {
        self.tenants.iter().flat_map(TenantKeyrings::broken)
    }

    /// Returns the keys that sign for this tenant: those of its folder if it has one, even an empty one; otherwise the
    /// shared keys. They are never those of another tenant.
    pub fn keys_of(&self, tenant: Option<&TenantName>) -> Result<&Keyring, SignError> {
        let own = self.tenants.as_ref().zip(tenant).and_then(|(tenants, tenant)| tenants.keyring(tenant));
        let none = if tenant.is_some() { SignError::NoTenantKeys } else { SignError::NoTenant };
        own.or(self.shared.as_ref()).ok_or(none)
    }

    /// Returns the keys that sign for this tenant at this time, the newest first.
    pub fn signing_keys(&self, tenant: Option<&TenantName>, now: Timestamp) -> impl Iterator<Item = &KeyId> {
        let keys = self.keys_of(tenant).into_iter();
        keys.flat_map(move |keys| keys.signing_keys(now, self.scheme.is_single_signature())).map(|key| &key.id)
    }

    /// Returns the first moment at which an owner of keys has none in force: the shared keys, or those of a tenant.
    pub fn next_gap(&self, now: Timestamp) -> Option<Timestamp> {
        let shared = self.shared.iter().filter(|_| self.is_complete);
        let own = self.tenants.iter().flat_map(TenantKeyrings::keyrings);
        shared.chain(own).filter_map(|keys| keys.next_gap(now)).min()
    }

    /// Returns the problems of the keys at this time. No shared key in force is a problem; a later gap is a warning. A
    /// tenant without a key is only a warning: one of thousands must not prevent a start.
    pub fn problems(&self, now: Timestamp) -> Vec<Problem> {
        let help = "add a key, or change `from` and `until` so that one key follows the other without a gap";
        let shared = self.shared.as_ref().filter(|_| self.is_complete);
        let shared = shared.and_then(|keys| keys.upcoming_gap(format_args!("the signer {}", self.name), now));
        let shared = shared.map(|gap| match gap.is_now {
            true => Problem::at(self.span, gap.message),
            false => Problem::warning(WarningCode::NoKeyInForce, Some(self.span), gap.message),
        });
        let mut problems = Vec::from_iter(shared.map(|problem| problem.help(help)));
        if let Some(tenants) = &self.tenants {
            problems.extend(truncate_similar(tenants.warnings(self.span, now), &tenants.location()));
        }
        problems
    }
}

/// Returns whether a client's `Webhook-Id` may be kept: 1 to 256 letters, digits and `-_~+@`. None of these separates the
/// id from the text that follows it in a signed message: Standard Webhooks uses a full stop, templates any other text.
pub fn valid_id(id: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~+@".contains(&byte);
    (1..=256).contains(&id.len()) && id.bytes().all(is_safe)
}
