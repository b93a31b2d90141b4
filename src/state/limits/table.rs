//! The keys that one limit counts apart, each with its bucket, bounded in number.
//! Which bucket counts for this key?

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::state::limits::limiter_state::LimiterState;
use crate::state::limits::rate::nanoseconds;

/// Locks one limit's keys are spread over.
pub(in crate::state) const SHARDS: usize = 64;

/// A full shard is searched for idle keys at most this often: a flood of new keys must not pay for a search each.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The keys of one limit.
pub(in crate::state) struct LimitTable {
    shards: [Mutex<TableShard>; SHARDS],
    shard_max: usize,
    /// Keyed at random, since clients choose keys.
    hashers: [RandomState; 2],
}

/// A key is known by its hash alone, in 128 bits under keys that nobody knows: names would take more room than all the
/// rest. That any two of a million meet has the chance of 1 to 10^26.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyHash([u64; 2]);

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[1]);
    }
}

/// Of what is a hash already.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Default)]
struct TableShard {
    buckets: HashMap<KeyHash, Arc<LimiterState>, std::hash::BuildHasherDefault<IdentityHasher>>,
    swept: Option<u64>,
    /// Where there is no room for a new key, newcomers count together: none of them gets a fresh start.
    overflow: Arc<LimiterState>,
}

impl LimitTable {
    pub(in crate::state) fn new(keys_max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            shard_max: keys_max.div_ceil(SHARDS),
            hashers: Default::default(),
        }
    }

    pub(in crate::state) fn bucket(&self, key: impl Hash, now: impl Fn() -> u64) -> Arc<LimiterState> {
        let (print, mut shard) = self.shard_of(key);
        if let Some(bucket) = shard.buckets.get(&print) {
            return Arc::clone(bucket);
        }
        if shard.buckets.len() >= self.shard_max && !shard.make_room(now()) {
            return Arc::clone(&shard.overflow);
        }
        let bucket = Arc::new(shard.overflow.inherit());
        shard.buckets.insert(print, Arc::clone(&bucket));
        bucket
    }

    /// As [`bucket`](Self::bucket), for who only looks: what there is, or what a new one would begin as.
    pub(in crate::state) fn peek(&self, key: impl Hash) -> Arc<LimiterState> {
        let (print, shard) = self.shard_of(key);
        match shard.buckets.get(&print) {
            Some(bucket) => Arc::clone(bucket),
            None if shard.buckets.len() >= self.shard_max => Arc::clone(&shard.overflow),
            None => Arc::new(shard.overflow.inherit()),
        }
    }

    fn shard_of(&self, key: impl Hash) -> (KeyHash, MutexGuard<'_, TableShard>) {
        let print = KeyHash([self.hashers[0].hash_one(&key), self.hashers[1].hash_one(&key)]);
        (print, self.shards[(print.0[0] % SHARDS as u64) as usize].lock())
    }

    /// Drops what is idle of a part of the keys.
    pub(in crate::state) fn sweep(&self, part: usize, now: u64) {
        self.shards[part % SHARDS].lock().sweep(now);
    }

    pub(in crate::state) fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().buckets.len()).sum()
    }

    pub(in crate::state) fn is_idle(&self, now: u64) -> bool {
        self.shards.iter().all(|shard| {
            let shard = shard.lock();
            let overflow = &shard.overflow;
            shard.buckets.is_empty() && Arc::strong_count(overflow) == 1 && overflow.is_idle(now)
        })
    }
}

impl TableShard {
    fn make_room(&mut self, now: u64) -> bool {
        if self.swept.is_some_and(|swept| now < swept + nanoseconds(SWEEP_EVERY)) {
            return false;
        }
        let before = self.buckets.len();
        self.sweep(now);
        self.buckets.len() < before
    }

    /// Nobody can take hold of a bucket that only the shard holds, while the shard is locked.
    fn sweep(&mut self, now: u64) {
        self.swept = Some(now);
        self.buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_idle(now));
        self.buckets.shrink_to(self.buckets.len() * 2);
    }
}
