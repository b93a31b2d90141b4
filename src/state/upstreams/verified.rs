//! The targets whose certificate was verified recently. Opaque tunnels use it, since outgate does not see their handshake.
//! Must outgate verify the certificate of this target again?

use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::lru::LruCache;
use crate::names::Host;
use crate::net::tls::HandshakeInfo;
use crate::policy::egress::Hop;
use crate::policy::trust::Trust;

/// The time for which a verification serves other tunnels.
const VALID_FOR: Duration = Duration::from_secs(60);
const TARGETS_MAX: usize = 10_000;

/// The addresses, the name and the trust that a verification was about.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VerifiedTargetKey {
    hop: Hop,
    host: Host,
    trust: [u8; 32],
}

/// The cache of verifications. A new one evicts the least recently used one.
pub struct VerifiedTargetCache(Mutex<LruCache<VerifiedTargetKey, (Instant, HandshakeInfo)>>);

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
    /// Returns a recent verification whose certificate is valid at `wall_clock`.
    pub fn get(&self, key: &VerifiedTargetKey, now: Instant, wall_clock: Timestamp) -> Option<HandshakeInfo> {
        let mut verified = self.0.lock();
        let (since, handshake) = verified.get(key)?;
        let is_valid = now.saturating_duration_since(*since) < VALID_FOR && wall_clock < handshake.expires;
        is_valid.then(|| handshake.clone())
    }

    pub fn insert(&self, key: VerifiedTargetKey, handshake: HandshakeInfo, now: Instant) {
        self.0.lock().insert(key, (now, handshake));
    }
}
