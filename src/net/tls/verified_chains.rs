//! The chains that a trust has accepted, so that the next handshake with the same host need not verify their signatures.
//! Is this chain one that was verified, and has nothing happened since that could change the verdict?
//!
//! A trust does not change: its verdict depends on the chain, the name and the time. The peer proves in each handshake that
//! it holds the certificate's key, whether its chain is in the cache or not.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::config::VerifyMode;
use crate::digest::Fingerprint;
use crate::lru::LruCache;
use crate::panics::Mutex;
use crate::policy::trust::Trust;
use crate::policy::trust::error::CertificateRejection;

/// The largest number of chains of one trust. Each takes about 150 bytes.
const CHAINS_MAX: usize = 16_384;

/// A trust, and the chains that it has accepted. A rejection is not stored: it names its reason anew.
pub(super) struct VerifiedChains {
    pub(super) trust: Arc<Trust>,
    accepted: Mutex<LruCache<[u8; 32], Acceptance>>,
}

/// The times from the verification until the verdict may change.
#[derive(Clone, Copy)]
struct Acceptance {
    verified_at: UnixTime,
    until: UnixTime,
}

impl VerifiedChains {
    pub(super) fn new(trust: &Arc<Trust>) -> Self {
        Self { trust: Arc::clone(trust), accepted: Mutex::new(LruCache::new(CHAINS_MAX)) }
    }

    /// Verifies a target's chain and name, as [`Trust::verify`] does.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), CertificateRejection> {
        if self.trust.verify == VerifyMode::None {
            return Ok(());
        }
        let key = key_of(leaf, intermediates, name);
        let accepted = self.accepted.lock().get(&key).copied();
        // A clock that was set back is no reason to trust a certificate that is not valid yet.
        if accepted.is_some_and(|accepted| accepted.verified_at <= now && now < accepted.until) {
            return Ok(());
        }
        self.trust.verify(leaf, intermediates, name, now)?;
        if let Some(until) = self.trust.next_change(leaf, intermediates, now) {
            self.accepted.lock().insert(key, Acceptance { verified_at: now, until });
        }
        Ok(())
    }
}

fn key_of(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], name: &ServerName<'_>) -> [u8; 32] {
    let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.as_ref());
    Fingerprint::of_parts(std::iter::once(name.to_str().as_bytes()).chain(chain))
}

impl fmt::Debug for VerifiedChains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifiedChains").field(&self.trust).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
    use rustls::RootCertStore;
    use rustls::crypto::aws_lc_rs;

    use super::*;
    use crate::config::TlsVersion;
    use crate::policy::trust::error::VerifyError;

    /// 2027-01-10 at noon, and a day.
    const NOON: u64 = 1_799_582_400;
    const DAY: u64 = 24 * 3600;
    /// The end of the leaf.
    const NOT_AFTER: u64 = 1_799_712_000;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn name(text: &'static str) -> ServerName<'static> {
        ServerName::try_from(text).unwrap()
    }

    /// A trust in one root, and a leaf of that root for hooks.acme.example, valid from 2027-01-09 to 2027-01-12.
    fn chains_and_leaf() -> (VerifiedChains, CertificateDer<'static>) {
        let mut root = CertificateParams::new([]).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "root");
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let mut leaf = CertificateParams::new(["hooks.acme.example".to_owned()]).unwrap();
        leaf.not_before = date_time_ymd(2027, 1, 9);
        leaf.not_after = date_time_ymd(2027, 1, 12);
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = aws_lc_rs::default_provider();
        let trust = Trust::with_roots(roots, TlsVersion::V1_2, VerifyMode::Full, false, &provider);
        (VerifiedChains::new(&Arc::new(trust)), leaf)
    }

    #[test]
    fn verified_chain_is_verified_again_when_its_verdict_may_have_changed() {
        let (chains, leaf) = chains_and_leaf();
        let verify = |seconds, host| {
            let verified = chains.verify(&leaf, &[], &name(host), at(seconds));
            verified.map_err(|rejection| rejection.error)
        };
        assert_eq!(verify(NOON, "hooks.acme.example"), Ok(()));
        assert_eq!(verify(NOON + 1, "hooks.acme.example"), Ok(()));
        assert_eq!(verify(NOON, "other.example"), Err(VerifyError::NameMismatch));
        assert_eq!(verify(NOON + 2 * DAY, "hooks.acme.example"), Err(VerifyError::Expired));
        assert_eq!(verify(NOON - 2 * DAY, "hooks.acme.example"), Err(VerifyError::NotYetValid));
        assert_eq!(verify(NOON, "hooks.acme.example"), Ok(()), "a rejection at another time changes nothing");
        // Verified in the last second of its validity, it has ended in the next.
        assert_eq!(verify(NOT_AFTER, "hooks.acme.example"), Ok(()));
        assert_eq!(verify(NOT_AFTER + 1, "hooks.acme.example"), Err(VerifyError::Expired));
        let other = VerifiedChains::new(&chains.trust);
        let verify = |seconds| other.verify(&leaf, &[], &name("hooks.acme.example"), at(seconds)).is_ok();
        assert!(verify(NOT_AFTER) && !verify(NOT_AFTER + 1) && !verify(NOT_AFTER + DAY));
    }

    /// An entry that no verification would make shows what the cache answers by itself.
    #[test]
    fn verified_chain_answers_for_its_own_name_and_within_its_times() {
        let (chains, leaf) = chains_and_leaf();
        let [here, other] = ["elsewhere.example", "hooks.acme.example"].map(name);
        let acceptance = Acceptance { verified_at: at(NOON), until: at(NOON + 60) };
        chains.accepted.lock().insert(key_of(&leaf, &[], &here), acceptance);
        let is_accepted = |name: &ServerName<'_>, more: &[CertificateDer<'_>], seconds| {
            chains.verify(&leaf, more, name, at(seconds)).is_ok()
        };
        assert!(is_accepted(&here, &[], NOON) && is_accepted(&here, &[], NOON + 59));
        assert!(!is_accepted(&here, &[], NOON - 1) && !is_accepted(&here, &[], NOON + 60));
        assert!(!is_accepted(&here, std::slice::from_ref(&leaf), NOON), "another chain");
        assert_eq!(chains.accepted.lock().len(), 1, "a rejected chain is not stored");
        assert!(is_accepted(&other, &[], NOON));
        let until = chains.accepted.lock().get(&key_of(&leaf, &[], &other)).unwrap().until;
        assert_eq!(until, at(NOT_AFTER + 1), "the second after notAfter");
    }
}
