//! Connections to targets that may serve another delivery.
//! Is there an open connection that is in every respect what a new one would be?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Timeouts;
use crate::names::{Target, TenantName};
use crate::net::exchange::Connection;
use crate::policy::egress::Hop;

/// Everything that makes a connection what it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub from: IpAddr,
    pub target: Target,
    /// The fingerprint of the trust policy that its certificate satisfied.
    pub trust: [u8; 32],
    /// Set where the route is tenant-specific.
    pub tenant: Option<TenantName>,
}

/// Idle connections kept for one key, and altogether.
const PER_KEY_MAX: usize = 256;
const TOTAL_MAX: usize = 10_000;
/// Locks are held for a few instructions; this many keep even those apart.
const SHARDS: usize = 16;

pub struct Reuse {
    shards: [Mutex<HashMap<Key, Vec<Idle>>>; SHARDS],
    hasher: RandomState,
    idle: AtomicUsize,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection in use. Dropping it closes the connection; only [`Lease::give_back`] keeps it.
pub struct Lease {
    connection: Connection,
    key: Key,
    home: Arc<Reuse>,
}

impl Reuse {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            idle: AtomicUsize::new(0),
        }
    }

    pub fn lease(home: &Arc<Reuse>, key: Key, connection: Connection) -> Lease {
        Lease { connection, key, home: Arc::clone(home) }
    }

    /// The connection used last, so that the others can grow old and go. One that the peer has closed, that is too
    /// old, or whose target address the guard would no longer clear is dropped on the way.
    pub async fn take(self: &Arc<Self>, key: &Key, limits: &Timeouts, may_go: impl Fn(Hop) -> bool) -> Option<Lease> {
        while let Some(Idle { mut connection, since }) = self.pop(key) {
            let fresh = since.elapsed() < limits.idle && connection.born().elapsed() < limits.reuse;
            if fresh && may_go(connection.hop()) && connection.is_reusable().await {
                return Some(Self::lease(self, key.clone(), connection));
            }
        }
        None
    }

    fn pop(&self, key: &Key) -> Option<Idle> {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let idle = shard.get_mut(key)?.pop()?;
        self.idle.fetch_sub(1, Ordering::Relaxed);
        Some(idle)
    }

    fn push(&self, key: Key, connection: Connection) {
        if connection.is_closed() || self.idle.load(Ordering::Relaxed) >= TOTAL_MAX {
            return;
        }
        let mut shard = self.shard(&key).lock().unwrap_or_else(PoisonError::into_inner);
        let list = shard.entry(key).or_default();
        if list.len() < PER_KEY_MAX {
            list.push(Idle { connection, since: Instant::now() });
            self.idle.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn shard(&self, key: &Key) -> &Mutex<HashMap<Key, Vec<Idle>>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Drops what is closed, has been idle for too long or is too old, and what leaves from a source that `keeps`
    /// does not keep.
    pub fn sweep(&self, idle_most: Duration, age_most: Duration, keeps: impl Fn(IpAddr) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|key, list| {
                let before = list.len();
                list.retain(|idle| {
                    keeps(key.from)
                        && !idle.connection.is_closed()
                        && idle.since.elapsed() < idle_most
                        && idle.connection.born().elapsed() < age_most
                });
                self.idle.fetch_sub(before - list.len(), Ordering::Relaxed);
                !list.is_empty()
            });
        }
    }

    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }
}

impl Lease {
    /// After the last byte of an answer that did not end the connection.
    pub fn give_back(self) {
        let Lease { connection, key, home } = self;
        home.push(key, connection);
    }
}

impl Deref for Lease {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
