//! What a target must prove, over which version of TLS, and what we prove to it.
//! Whose word is good enough for this target?

mod chain;
mod compile;
pub mod fault;
mod strict;
mod verify;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::RootCertStore;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use super::anchors::Anchors;
use super::revocation::Crl;
use crate::config::{CrlPolicy, TlsVersion, VerifyMode};
use crate::names::TrustName;
pub use compile::compile;

/// The trust of a route that names none.
pub const PUBLIC_TRUST: &str = "public";

/// A trust policy, compiled.
pub struct Trust {
    pub name: TrustName,
    /// SHA-256 over all that makes a connection acceptable here, and over who we are on it, and over nothing else:
    /// connections and TLS sessions may be shared exactly where it is equal. The name is not part of it.
    pub fingerprint: [u8; 32],
    pub roots: Arc<RootCertStore>,
    anchors: Anchors,
    /// Paths may go through these, though targets do not send them. Nothing is trusted for being here.
    intermediates: Vec<CertificateDer<'static>>,
    pub min_version: TlsVersion,
    pub verify: VerifyMode,
    /// The rules of the Web PKI count.
    pub strict: bool,
    /// One of them is in the chain; empty: any key will do.
    pub pins: BTreeSet<[u8; 32]>,
    /// Whether a certificate must have a current list that speaks of it, where there are lists.
    pub crl_policy: CrlPolicy,
    /// What a target that asks is shown.
    pub identity: Option<Arc<CertifiedKey>>,
    /// The newest of an issuer first.
    crls: Vec<Crl>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trust").field(&self.name).finish()
    }
}

impl Trust {
    /// How many revocation lists are asked.
    pub fn crl_count(&self) -> usize {
        self.crls.len()
    }

    /// How many certificates are trusted for themselves alone.
    pub fn directly_trusted_count(&self) -> usize {
        self.anchors.directly_trusted().len()
    }
}

/// What a fingerprint is of.
struct FingerprintInput<'a> {
    roots: &'a RootCertStore,
    anchors: &'a Anchors,
    /// Certificates in DER.
    intermediates: Vec<&'a [u8]>,
    min_version: TlsVersion,
    verify: VerifyMode,
    strict: bool,
    pins: &'a BTreeSet<[u8; 32]>,
    /// Lists in DER.
    crls: Vec<&'a [u8]>,
    crl_policy: CrlPolicy,
    identity: Option<&'a CertifiedKey>,
}

/// Roots, pins and lists count as sets: neither their order nor where they were read from says whom they trust.
fn fingerprint(input: &FingerprintInput<'_>) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    digest.update(b"outgate trust\0");
    digest.update(&[
        match input.min_version {
            TlsVersion::V1_2 => 2,
            TlsVersion::V1_3 => 3,
        },
        match input.verify {
            VerifyMode::Full => 1,
            VerifyMode::None => 0,
        },
        u8::from(input.strict),
        match input.crl_policy {
            CrlPolicy::Require => 1,
            CrlPolicy::Lenient => 0,
        },
    ]);
    let anchors = input.roots.roots.iter().map(|anchor| {
        let constraints = anchor.name_constraints.as_deref();
        [Some(anchor.subject.as_ref()), Some(anchor.subject_public_key_info.as_ref()), constraints]
    });
    let mut anchors: Vec<[Option<&[u8]>; 3]> = anchors.collect();
    anchors.sort_unstable();
    anchors.dedup();
    let chain = input.identity.map(|identity| identity.cert.as_slice()).unwrap_or_default();
    let own: Vec<&[u8]> = input.anchors.directly_trusted().iter().map(|der| der.as_ref()).collect();
    let parts: [Vec<Option<&[u8]>>; 7] = [
        anchors.into_iter().flatten().collect(),
        input.pins.iter().map(|pin| Some(pin.as_slice())).collect(),
        sorted_set(&input.crls),
        sorted_set(&own),
        // They say whose revocation lists count.
        input.anchors.terms().into_iter().flatten().collect(),
        sorted_set(&input.intermediates),
        // The key is the leaf's: it need not be part of it.
        chain.iter().map(|der| Some(der.as_ref())).collect(),
    ];
    for parts in parts {
        // Each list after its length and each part after its own, so that no two sets of terms read alike.
        digest.update(&(parts.len() as u64).to_be_bytes());
        for part in parts {
            digest.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            digest.update(part.unwrap_or_default());
        }
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.finish().as_ref());
    fingerprint
}

fn sorted_set<'a>(ders: &[&'a [u8]]) -> Vec<Option<&'a [u8]>> {
    let set: BTreeSet<&[u8]> = ders.iter().copied().collect();
    set.into_iter().map(Some).collect()
}

#[cfg(test)]
mod tests;
