//! The keys of all signers, and those that everybody may know.
//! Which keys are there, and what do receivers verify with?

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::algorithm::Algorithm;
use super::public::PublicKey;
use super::signer::{Signer, Signers};
use crate::names::{KeyId, SignerName, TenantName};

/// A key, as its operator wants to see it.
pub struct ListedKey<'a> {
    pub signer: &'a SignerName,
    pub scheme: &'static str,
    /// Whose key it is; `None`: of all that have none of their own.
    pub tenant: Option<&'a TenantName>,
    pub id: &'a KeyId,
    pub algorithm: Algorithm,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub state: KeyState,
    pub public: Option<&'a PublicKey>,
    /// The public half in the scheme's own writing, if it has one.
    pub written: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It begins later.
    Announced,
    /// It signs.
    Active,
    /// It is in force, and its scheme carries one signature, which is a newer key's.
    Replaced,
    Ended,
}

impl KeyState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Active => "active",
            Self::Replaced => "replaced",
            Self::Ended => "ended",
        }
    }
}

impl Signer {
    /// Those of this tenant, or those that are shared if it is `None` or has none of its own; the newest first.
    pub fn list<'a>(&'a self, tenant: Option<&'a TenantName>, now: Timestamp) -> impl Iterator<Item = ListedKey<'a>> {
        let active: BTreeSet<&KeyId> = self.signing_keys(tenant, now).collect();
        let owner = tenant.filter(|tenant| self.has_own_keys(tenant));
        let keys = self.keys_of(tenant).into_iter().flat_map(|keys| &keys.keys);
        keys.map(move |key| ListedKey {
            signer: &self.name,
            scheme: self.known_as,
            tenant: owner,
            id: &key.id,
            algorithm: key.secret.algorithm(),
            from: key.from,
            until: key.until,
            state: match () {
                () if active.contains(&key.id) => KeyState::Active,
                () if key.until.is_some_and(|until| until <= now) => KeyState::Ended,
                () if key.from.is_some_and(|from| now < from) => KeyState::Announced,
                () => KeyState::Replaced,
            },
            public: key.public.as_ref(),
            written: key.public.as_ref().and_then(|public| self.scheme.write_public(public)),
        })
    }
}

/// How long after its end a key is published: receivers take what it signed a moment before.
const VERIFIES: SignedDuration = SignedDuration::from_mins(5);

/// Every public half that verifies something of this tenant, or will: receivers must have a key before it signs. `None`:
/// what is shared, and nothing that is a tenant's own.
pub fn published<'a>(
    signers: &'a Signers,
    tenant: Option<&'a TenantName>,
    now: Timestamp,
) -> impl Iterator<Item = (ListedKey<'a>, &'a PublicKey)> {
    let listed = signers.values().flat_map(move |signer| signer.list(tenant, now));
    let is_of_use = move |key: &ListedKey<'_>| key.until.is_none_or(|until| now < until + VERIFIES);
    listed.filter(is_of_use).filter_map(|key| key.public.map(|public| (key, public)))
}

/// A JWK Set (RFC 7517 §5): keys are known by their thumbprints.
pub fn jwks(signers: &Signers, tenant: Option<&TenantName>, now: Timestamp) -> Value {
    let mut seen = BTreeSet::new();
    let keys = published(signers, tenant, now).filter(|(_, public)| seen.insert(public.thumbprint()));
    json!({ "keys": keys.map(|(_, public)| public.jwk()).collect::<Vec<_>>() })
}

/// A key directory for HTTP Message Signatures: keys are known by their thumbprints.
pub fn directory(signers: &Signers, tenant: Option<&TenantName>, now: Timestamp) -> Value {
    let mut seen = BTreeSet::new();
    let keys = published(signers, tenant, now)
        .filter(|(key, public)| key.scheme == super::rfc9421::KNOWN.name && seen.insert(public.thumbprint()));
    json!({ "keys": keys.map(|(key, public)| public.directory_entry(key.from, key.until)).collect::<Vec<_>>() })
}
