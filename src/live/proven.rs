//! Targets that have proven their name a moment ago, for tunnels: their own handshake is not ours to see.
//! Must this target show its certificate once more?

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::lru::LruCache;
use crate::names::Host;
use crate::net::tls::Proof;
use crate::policy::egress::Hop;
use crate::policy::trust::Trust;

/// How long a proof is good for other tunnels.
const GOOD_FOR: Duration = Duration::from_secs(60);
const PROOFS_MAX: usize = 10_000;

/// Everything that the proof was about.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    hop: Hop,
    host: Host,
    trust: [u8; 32],
}

/// A new proof evicts the least recently used one.
pub struct Proven(Mutex<LruCache<Key, (Instant, Proof)>>);

impl Default for Proven {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(PROOFS_MAX)))
    }
}

impl Key {
    pub fn of(hop: Hop, host: &Host, trust: &Trust) -> Self {
        Self { hop, host: host.clone(), trust: trust.fingerprint }
    }
}

impl Proven {
    pub fn get(&self, key: &Key) -> Option<Proof> {
        let mut proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, proof) = proofs.get(key)?;
        (since.elapsed() < GOOD_FOR && Timestamp::now() < proof.expires).then(|| proof.clone())
    }

    pub fn put(&self, key: Key, proof: Proof) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (Instant::now(), proof));
    }
}
