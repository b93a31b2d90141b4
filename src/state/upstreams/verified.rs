//! The targets that were verified recently, or that do not speak TLS. Opaque tunnels use it, since outgate does not see
//! their handshake. Must outgate verify the certificate of this target again?

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::lru::LruCache;
use crate::names::Host;
use crate::net::tls::HandshakeInfo;
use crate::panics::Mutex;
use crate::policy::egress::Hop;
use crate::policy::trust::Trust;

/// The time for which a verification serves other tunnels.
const VALID_FOR: Duration = Duration::from_secs(60);
/// The time for which a target that responded in plaintext is not asked for TLS again. If it begins to speak TLS, outgate
/// verifies it after this time.
const PLAINTEXT_FOR: Duration = Duration::from_secs(10);
const TARGETS_MAX: usize = 10_000;

/// The addresses, the name and the trust that a verification was about.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VerifiedTargetKey {
    hop: Hop,
    host: Host,
    trust: [u8; 32],
}

/// The outcome of a verification that permits a tunnel.
#[derive(Clone)]
pub enum TargetProof {
    Verified(HandshakeInfo),
    /// The target responded to the ClientHello in plaintext, and the route allows plaintext.
    Plaintext,
}

/// The cache of verifications. A new one evicts the least recently used one.
pub struct VerifiedTargetCache(Mutex<LruCache<VerifiedTargetKey, (Instant, TargetProof)>>);

impl Default for VerifiedTargetCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(TARGETS_MAX)))
    }
}

impl VerifiedTargetKey {
    pub fn of(hop: Hop, host: &Host, trust: &Trust) -> Self {
        Self { hop, host: host.clone(), trust: trust.fingerprint }
    }
}

impl VerifiedTargetCache {
    /// Returns a recent verification. A certificate must be valid at `wall_clock`.
    pub fn get(&self, key: &VerifiedTargetKey, now: Instant, wall_clock: Timestamp) -> Option<TargetProof> {
        let mut verified = self.0.lock();
        let (since, proof) = verified.get(key)?;
        let age = now.saturating_duration_since(*since);
        let is_valid = match proof {
            TargetProof::Verified(handshake) => age < VALID_FOR && wall_clock < handshake.expires,
            TargetProof::Plaintext => age < PLAINTEXT_FOR,
        };
        is_valid.then(|| proof.clone())
    }

    pub fn insert(&self, key: VerifiedTargetKey, proof: TargetProof, now: Instant) {
        self.0.lock().insert(key, (now, proof));
    }
}
