//! Lists of keys: those of a signer, and the public halves that receivers verify with.
//! Which keys are there, and which of them are published?

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::algorithm::Algorithm;
use super::public::PublicKey;
use super::signer::{Signer, Signers};
use crate::names::{KeyId, SignerName, TenantName};

/// A key as `outgate keys` lists it.
pub struct ListedKey<'a> {
    pub signer: &'a SignerName,
    pub scheme: &'static str,
    /// The tenant whose key it is; `None` if the tenants without keys of their own share it.
    pub tenant: Option<&'a TenantName>,
    pub id: &'a KeyId,
    pub algorithm: Algorithm,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub state: KeyState,
    pub public: Option<&'a PublicKey>,
    /// The public half in the scheme's own encoding, if it has one.
    pub written: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// The key begins later.
    Announced,
    /// The key signs.
    Active,
    /// The key is in force, but the scheme carries one signature, and a newer key makes it.
    Replaced,
    /// The key signs no more.
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
    /// Lists the keys of this tenant, the newest first; the shared keys if `tenant` is `None` or has no folder.
    pub fn list<'a>(&'a self, tenant: Option<&'a TenantName>, now: Timestamp) -> impl Iterator<Item = ListedKey<'a>> {
        let active: BTreeSet<&KeyId> = self.signing_keys(tenant, now).collect();
        let owner = tenant.filter(|tenant| self.has_own_keys(tenant));
        let keys = self.keys_of(tenant).into_iter().flat_map(|keys| &keys.keys);
        keys.map(move |key| ListedKey {
            signer: &self.name,
            scheme: self.scheme_name,
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
            written: key.public.as_ref().and_then(|public| self.scheme.encode_public_key(public)),
        })
    }
}

/// The time that a key stays published after its end: a receiver may verify a signature of the last moment.
const PUBLISHED_AFTER_END: SignedDuration = SignedDuration::from_mins(5);

/// Returns every public half that verifies a signature for this tenant, now or later: receivers must have a key before it
/// signs. If `tenant` is `None`, these are the shared keys.
pub fn published<'a>(
    signers: &'a Signers,
    tenant: Option<&'a TenantName>,
    now: Timestamp,
) -> impl Iterator<Item = (ListedKey<'a>, &'a PublicKey)> {
    let listed = signers.values().flat_map(move |signer| signer.list(tenant, now));
    let is_published = move |key: &ListedKey<'_>| key.until.is_none_or(|until| now < until + PUBLISHED_AFTER_END);
    listed.filter(is_published).filter_map(|key| key.public.map(|public| (key, public)))
}

/// Returns a JWK Set (RFC 7517 §5). The id of a key is its thumbprint.
pub fn jwks(signers: &Signers, tenant: Option<&TenantName>, now: Timestamp) -> Value {
    let mut seen = BTreeSet::new();
    let keys = published(signers, tenant, now).filter(|(_, public)| seen.insert(public.thumbprint()));
    json!({ "keys": keys.map(|(_, public)| public.jwk()).collect::<Vec<_>>() })
}

/// Returns a key directory for HTTP Message Signatures. The id of a key is its thumbprint.
pub fn directory(signers: &Signers, tenant: Option<&TenantName>, now: Timestamp) -> Value {
    let mut seen = BTreeSet::new();
    let keys = published(signers, tenant, now)
        .filter(|(key, public)| key.scheme == super::rfc9421::SPEC.name && seen.insert(public.thumbprint()));
    json!({ "keys": keys.map(|(key, public)| public.directory_entry(key.from, key.until)).collect::<Vec<_>>() })
}
