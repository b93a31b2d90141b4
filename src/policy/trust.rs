//! Trust policies: what a target must prove, over which TLS version, and which certificate outgate presents.
//! Which targets are trusted under this policy?

mod chain;
mod compile;
pub mod error;
mod strict;
mod verify;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use super::anchors::Anchors;
use super::revocation::Crl;
use crate::config::{CrlPolicy, TlsVersion, VerifyMode};
use crate::digest::Fingerprint;
use crate::names::TrustName;
pub use compile::compile;

/// The trust policy of a route that names none.
pub const PUBLIC_TRUST: &str = "public";

/// A compiled trust policy.
pub struct Trust {
    pub name: TrustName,
    /// SHA-256 over everything that makes a connection acceptable, and over the presented identity. Connections and TLS
    /// sessions are shared exactly under an equal fingerprint. The name is not part of it.
    pub fingerprint: [u8; 32],
    pub roots: Arc<RootCertStore>,
    anchors: Anchors,
    /// Intermediates that targets may omit. They are not trusted by themselves.
    intermediates: Vec<CertificateDer<'static>>,
    pub min_version: TlsVersion,
    pub verify: VerifyMode,
    /// Whether the rules of the Web PKI apply.
    pub strict: bool,
    /// SHA-256 of pinned keys, one of which must be in the chain. If empty, any key is accepted.
    pub pins: BTreeSet<[u8; 32]>,
    /// Whether a current list must cover each certificate, if lists are configured.
    pub crl_policy: CrlPolicy,
    /// The certificate for targets that request one.
    pub identity: Option<Arc<CertifiedKey>>,
    /// Revocation lists, the newest of an issuer first.
    crls: Vec<Crl>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trust").field(&self.name).finish()
    }
}

impl Trust {
    /// Returns the number of revocation lists.
    pub fn crl_count(&self) -> usize {
        self.crls.len()
    }

    /// Returns whether this policy trusts every root and every certificate that the other one trusts.
    pub fn roots_include(&self, other: &Self) -> bool {
        other.roots.roots.iter().all(|root| self.roots.roots.contains(root))
            && other.anchors.directly_trusted().iter().all(|der| self.anchors.directly_trusted().contains(der))
    }

    /// Returns the number of directly trusted certificates.
    pub fn directly_trusted_count(&self) -> usize {
        self.anchors.directly_trusted().len()
    }
}

/// The input of a trust fingerprint.
struct FingerprintInput<'a> {
    roots: &'a RootCertStore,
    anchors: &'a Anchors,
    /// Certificates in DER.
    intermediates: Vec<&'a [u8]>,
    min_version: TlsVersion,
    verify: VerifyMode,
    strict: bool,
    pins: &'a BTreeSet<[u8; 32]>,
    /// Revocation lists in DER.
    crls: Vec<&'a [u8]>,
    crl_policy: CrlPolicy,
    identity: Option<&'a CertifiedKey>,
}

/// Returns the fingerprint of a policy. Roots, pins and lists are sets: neither their order nor their source changes
/// the trust.
fn fingerprint(input: &FingerprintInput<'_>) -> [u8; 32] {
    let mut fingerprint = Fingerprint::default();
    fingerprint.bytes(b"outgate trust\0");
    fingerprint.bytes(&[
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
        // They decide whose revocation lists count.
        input.anchors.terms().into_iter().flatten().collect(),
        sorted_set(&input.intermediates),
        // The private key is not part of it, since the leaf determines it.
        chain.iter().map(|der| Some(der.as_ref())).collect(),
    ];
    for parts in parts {
        fingerprint.number(parts.len() as u64);
        for part in parts {
            // An absent part differs from an empty one.
            match part {
                Some(part) => fingerprint.part(part),
                None => fingerprint.number(u64::MAX),
            }
        }
    }
    fingerprint.finish()
}

fn sorted_set<'a>(ders: &[&'a [u8]]) -> Vec<Option<&'a [u8]>> {
    let set: BTreeSet<&[u8]> = ders.iter().copied().collect();
    set.into_iter().map(Some).collect()
}

#[cfg(test)]
mod tests;
