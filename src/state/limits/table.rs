//! The keys that one limit counts separately, bounded in number.
//! Which limiter counts for this key?

use std::hash::{Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::panics::{Mutex, MutexGuard};
use crate::policy::limits::saturating_nanos;
use crate::state::hashed::{GatheredKey, HashedMap};
use crate::state::limits::decisions::LimitDecisions;
use crate::state::limits::limiter_state::LimiterState;

/// The number of locks that the keys of one limit are spread over.
pub(in crate::state) const SHARDS: usize = 64;

/// The time between two searches of a full shard for idle keys. A flood of new keys must not cost a search each.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The keys of one limit.
pub(in crate::state) struct LimitTable {
    shards: [Mutex<TableShard>; SHARDS],
    shard_max: usize,
    decisions: Arc<LimitDecisions>,
    /// Seeded at random, since clients choose the keys.
    hashers: [RandomState; 2],
}

/// The hash of a key in 128 bits, with secret seeds. The table stores no key, since names would take most of its memory.
/// The chance that any two of a million keys collide is 1 in 10^26.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyHash([u64; 2]);

impl KeyHash {
    fn shard(self) -> usize {
        (self.0[0] % SHARDS as u64) as usize
    }
}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[1]);
    }
}

#[derive(Default)]
struct TableShard {
    limiters: HashedMap<KeyHash, Arc<LimiterState>>,
    swept_at: Option<u64>,
    /// The keys that were near full at the last sweep.
    near_full: usize,
    /// When the shard is full, all new keys share this limiter. A key that gets its own later inherits its debt.
    overflow: Arc<LimiterState>,
}

impl LimitTable {
    pub(in crate::state) fn new(keys_max: usize, decisions: Arc<LimitDecisions>) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            shard_max: keys_max.div_ceil(SHARDS),
            decisions,
            hashers: Default::default(),
        }
    }

    /// Returns the limiter of a key, and adds it to the table if it is new. Also returns the number of the overflow limiter, if it
    /// is one.
    pub(in crate::state) fn limiter(
        &self,
        key: impl Hash,
        now: impl Fn() -> u64,
    ) -> (Arc<LimiterState>, Option<usize>) {
        let (hash, mut shard) = self.shard_of(key);
        if let Some(limiter) = shard.limiters.get(&hash) {
            return (Arc::clone(limiter), None);
        }
        if shard.limiters.len() >= self.shard_max && !shard.make_room(now()) {
            return (Arc::clone(&shard.overflow), Some(hash.shard()));
        }
        let limiter = Arc::new(shard.overflow.inherit());
        shard.limiters.insert(hash, Arc::clone(&limiter));
        (limiter, None)
    }

    /// Returns the same limiter as [`limiter`](Self::limiter), without adding a new key to the table.
    pub(in crate::state) fn peek(&self, key: impl Hash) -> Arc<LimiterState> {
        let (hash, shard) = self.shard_of(key);
        match shard.limiters.get(&hash) {
            Some(limiter) => Arc::clone(limiter),
            None if shard.limiters.len() >= self.shard_max => Arc::clone(&shard.overflow),
            None => Arc::new(shard.overflow.inherit()),
        }
    }

    fn shard_of(&self, key: impl Hash) -> (KeyHash, MutexGuard<'_, TableShard>) {
        let key = GatheredKey::of(&key);
        let hash = KeyHash([key.hash(&self.hashers[0]), key.hash(&self.hashers[1])]);
        (hash, self.shards[hash.shard()].lock())
    }

    /// Returns where the decisions of the limit are counted.
    pub(in crate::state) fn decisions(&self) -> &Arc<LimitDecisions> {
        &self.decisions
    }

    /// Drops the idle limiters of one shard.
    pub(in crate::state) fn sweep(&self, shard: usize, now: u64) {
        self.shards[shard % SHARDS].lock().sweep(now);
    }

    pub(in crate::state) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().limiters.len()).sum()
    }

    /// Returns the number of keys, and how many of them were near full at the last sweep.
    pub(in crate::state) fn count(&self) -> (usize, usize) {
        let shards = self.shards.iter().map(|shard| {
            let shard = shard.lock();
            (shard.limiters.len(), shard.near_full)
        });
        shards.fold((0, 0), |(keys, near_full), shard| (keys + shard.0, near_full + shard.1))
    }

    pub(in crate::state) fn is_idle(&self, now: u64) -> bool {
        self.shards.iter().all(|shard| {
            let shard = shard.lock();
            let overflow = &shard.overflow;
            shard.limiters.is_empty() && Arc::strong_count(overflow) == 1 && overflow.is_idle(now)
        })
    }
}

impl TableShard {
    fn make_room(&mut self, now: u64) -> bool {
        if self.swept_at.is_some_and(|swept_at| now < swept_at + saturating_nanos(SWEEP_INTERVAL)) {
            return false;
        }
        let before = self.limiters.len();
        self.sweep(now);
        self.limiters.len() < before
    }

    /// Drops the limiters that are idle and that no delivery holds. While the shard is locked, no delivery can get one.
    fn sweep(&mut self, now: u64) {
        self.swept_at = Some(now);
        let mut near_full = 0;
        self.limiters.retain(|_, limiter| {
            let is_used = Arc::strong_count(limiter) > 1 || !limiter.is_idle(now);
            near_full += usize::from(is_used && limiter.is_near_full(now));
            is_used
        });
        self.near_full = near_full;
        self.limiters.shrink_to(self.limiters.len() * 2);
    }
}
