//! Targets that have proven their name a moment ago, for tunnels: their own handshake is not ours to see.
//! Must this target show its certificate once more?

use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::lru::LruCache;
use crate::names::Host;
use crate::net::tls::HandshakeInfo;
use crate::policy::egress::Hop;
use crate::policy::trust::Trust;

/// How long a proof is good for other tunnels.
const GOOD_FOR: Duration = Duration::from_secs(60);
const PROOFS_MAX: usize = 10_000;

/// Everything that the proof was about.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VerifiedTargetKey {
    hop: Hop,
    host: Host,
    trust: [u8; 32],
}

/// A new proof evicts the least recently used one.
pub struct VerifiedTargetCache(Mutex<LruCache<VerifiedTargetKey, (Instant, HandshakeInfo)>>);

impl Default for VerifiedTargetCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(PROOFS_MAX)))
    }
}

impl VerifiedTargetKey {
    pub fn of(hop: Hop, host: &Host, trust: &Trust) -> Self {
        Self { hop, host: host.clone(), trust: trust.fingerprint }
    }
}

impl VerifiedTargetCache {
    pub fn get(&self, key: &VerifiedTargetKey) -> Option<HandshakeInfo> {
        let mut proofs = self.0.lock();
        let (since, proof) = proofs.get(key)?;
        (since.elapsed() < GOOD_FOR && Timestamp::now() < proof.expires).then(|| proof.clone())
    }

    pub fn put(&self, key: VerifiedTargetKey, proof: HandshakeInfo) {
        self.0.lock().insert(key, (Instant::now(), proof));
    }
}
