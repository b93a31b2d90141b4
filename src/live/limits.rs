//! The counters of every limit, which outlive reloads and are bounded in number.
//! Is there room for one more delivery, now?

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::nanos::Nanos;
use tokio::time::Instant;

use super::bucket::{Bucket, Full, Place};
use crate::names::LimitName;
use crate::policy::admit::{Limit, LimitKey, RateLeft, Standing, Who};

/// Keys one limit counts apart. Clients choose keys (a tenant, a host), so there must be an end to them; at half a
/// kilobyte each, this many take 128 MiB.
pub const KEYS_MAX: usize = 262_144;

/// Locks one limit's keys are spread over.
const SHARDS: usize = 64;

/// A full shard is searched for idle keys at most this often: a flood of new keys must not pay for a search each.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The state of all limits, by name and key. It knows no quota and no maximum: those come with each delivery, from the
/// plan that it runs under.
pub struct Limits<C: Clock = DefaultClock> {
    tables: RwLock<HashMap<LimitName, Table<C>>>,
    clock: C,
    keys_max: usize,
}

/// What one delivery holds of its limits, freed on drop: keep it until the last byte of the response.
pub struct Permit<C: Clock = DefaultClock>(Vec<Share<C>>);

/// A delivery's share of one limit.
struct Share<C: Clock> {
    standing: Standing,
    bucket: Arc<Bucket<C::Instant>>,
    place: Option<Place<C::Instant>>,
}

/// Refused, and by what.
#[derive(Debug)]
pub struct Limited {
    pub kind: Kind,
    pub limit: LimitName,
    /// Before this time there is no room, as far as is known.
    pub retry_after: Duration,
    /// For [`headers`](crate::policy::admit::headers): what this delivery was let through, and what it was not.
    pub standings: Vec<Standing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rate,
    Concurrency,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Rate => "rate",
            Kind::Concurrency => "concurrency",
        };
        write!(f, "{what} limit {} reached", self.limit)
    }
}

impl std::error::Error for Limited {}

impl<C: Clock> Permit<C> {
    /// For [`headers`](crate::policy::admit::headers).
    pub fn standings(&self) -> impl Iterator<Item = &Standing> {
        self.0.iter().map(|share| &share.standing)
    }
}

impl Limits {
    pub fn new() -> Self {
        Self::with_clock(DefaultClock::default())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clock> Limits<C> {
    pub fn with_clock(clock: C) -> Self {
        Self { tables: RwLock::default(), clock, keys_max: KEYS_MAX }
    }

    /// All of the limits or none. Places are taken first, since they can be given back; the tokens of a rate cannot,
    /// so where a later limit's rate refuses, those taken from an earlier one are spent.
    ///
    /// Each limit may hold the delivery back for its own `wait` from now, so all together for the longest of them.
    /// Give limits in one order everywhere (a route has them by name): two deliveries that wait for a place which the
    /// other holds would wait in vain.
    pub async fn admit(&self, limits: &[Arc<Limit>], who: &Who<'_>) -> Result<Permit<C>, Limited> {
        let mut shares: Vec<Share<C>> = limits.iter().map(|limit| self.share(limit, who)).collect();
        let mut begun = None;
        let mut deadline = |wait: Duration| *begun.get_or_insert_with(Instant::now) + wait;
        for Share { standing: Standing { limit, places, .. }, bucket, place } in &mut shares {
            let Some(maximum) = limit.concurrency else { continue };
            let entered = match bucket.enter(maximum) {
                Err(_) if !limit.wait.is_zero() => bucket.wait_to_enter(deadline(limit.wait)).await,
                decided => decided,
            };
            match entered {
                Ok((entered, left)) => (*place, *places) = (Some(entered), Some(left)),
                Err(Full(after)) => {
                    *places = Some(0);
                    let limit = limit.name.clone();
                    return Err(Limited::new(Kind::Concurrency, limit, after, shares));
                }
            }
        }
        for Share { standing: Standing { limit, rate, .. }, bucket, .. } in &mut shares {
            let Some(quota) = limit.quota else { continue };
            let taken = match bucket.take(quota, self.clock.now()) {
                Err(_) if !limit.wait.is_zero() => bucket.wait_to_take(quota, &self.clock, deadline(limit.wait)).await,
                decided => decided,
            };
            match taken {
                Ok(remaining) => *rate = Some(RateLeft { remaining, next: quota.interval() }),
                Err(Full(after)) => {
                    *rate = Some(RateLeft { remaining: 0, next: after });
                    let limit = limit.name.clone();
                    return Err(Limited::new(Kind::Rate, limit, after, shares));
                }
            }
        }
        Ok(Permit(shares))
    }

    /// Drops what is as if it had never been used. Call it from time to time: keys of limits that no plan names any
    /// more go this way too.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for table in self.tables.read().unwrap_or_else(PoisonError::into_inner).values() {
            for shard in &table.shards {
                lock(shard).sweep(now);
            }
        }
        self.tables.write().unwrap_or_else(PoisonError::into_inner).retain(|_, table| !table.is_idle(now));
    }

    /// How many keys are counted.
    pub fn keys(&self) -> usize {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.values().flat_map(|table| &table.shards).map(|shard| lock(shard).buckets.len()).sum()
    }

    fn share(&self, limit: &Arc<Limit>, who: &Who<'_>) -> Share<C> {
        let standing = Standing { limit: limit.clone(), rate: None, places: None };
        Share { standing, bucket: self.bucket(limit, who), place: None }
    }

    fn bucket(&self, limit: &Limit, who: &Who<'_>) -> Arc<Bucket<C::Instant>> {
        let key = limit.key(who);
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&limit.name) {
            return table.bucket(key, &self.clock);
        }
        drop(tables);
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let table = tables.entry(limit.name.clone()).or_insert_with(|| Table::new(self.keys_max));
        table.bucket(key, &self.clock)
    }
}

impl Limited {
    fn new<C: Clock>(kind: Kind, limit: LimitName, retry_after: Duration, shares: Vec<Share<C>>) -> Self {
        let standings = shares.into_iter().map(|share| share.standing).collect();
        Self { kind, limit, retry_after, standings }
    }
}

/// The keys of one limit.
struct Table<C: Clock> {
    shards: [Mutex<Shard<C>>; SHARDS],
    shard_max: usize,
    /// Keyed at random, since clients choose keys.
    hasher: RandomState,
    /// Where there is no room for a new key, newcomers count together: none of them gets a fresh start.
    overflow: Arc<Bucket<C::Instant>>,
}

struct Shard<C: Clock> {
    buckets: HashMap<LimitKey, Arc<Bucket<C::Instant>>>,
    swept: Option<C::Instant>,
}

impl<C: Clock> Table<C> {
    fn new(keys_max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(Shard { buckets: HashMap::new(), swept: None })),
            shard_max: keys_max.div_ceil(SHARDS),
            hasher: RandomState::new(),
            overflow: Arc::new(Bucket::new()),
        }
    }

    fn bucket(&self, key: LimitKey, clock: &C) -> Arc<Bucket<C::Instant>> {
        let shard = self.hasher.hash_one(&key) % SHARDS as u64;
        let mut shard = lock(&self.shards[shard as usize]);
        if let Some(bucket) = shard.buckets.get(&key) {
            return bucket.clone();
        }
        if shard.buckets.len() >= self.shard_max && !shard.make_room(clock.now()) {
            return self.overflow.clone();
        }
        shard.buckets.entry(key).or_insert_with(|| Arc::new(Bucket::new())).clone()
    }

    fn is_idle(&self, now: C::Instant) -> bool {
        let empty = self.shards.iter().all(|shard| lock(shard).buckets.is_empty());
        empty && Arc::strong_count(&self.overflow) == 1 && self.overflow.is_idle(now)
    }
}

impl<C: Clock> Shard<C> {
    fn make_room(&mut self, now: C::Instant) -> bool {
        if self.swept.is_some_and(|swept| now < swept + Nanos::from(SWEEP_EVERY)) {
            return false;
        }
        let before = self.buckets.len();
        self.sweep(now);
        self.buckets.len() < before
    }

    /// Nobody can take hold of a bucket that only the shard holds, while the shard is locked.
    fn sweep(&mut self, now: C::Instant) {
        self.swept = Some(now);
        self.buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_idle(now));
        self.buckets.shrink_to(self.buckets.len() * 2);
    }
}

fn lock<C: Clock>(shard: &Mutex<Shard<C>>) -> MutexGuard<'_, Shard<C>> {
    // Nothing panics half-way through a change of a shard.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Per;
    use crate::names::{ClientName, Host, PoolName, RouteName};
    use crate::policy::admit::Quota;
    use governor::clock::FakeRelativeClock;
    use std::num::NonZeroU32;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Nothing here waits, so no runtime is needed.
    fn admitted(limits: &Limits<FakeRelativeClock>, limit: &Arc<Limit>, host: usize) -> bool {
        let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
        let host = Host::Name(host.to_string().into());
        let who = Who { client: &client, tenant: None, route: &route, host: &host, egress: &egress };
        let mut admission = std::pin::pin!(limits.admit(std::slice::from_ref(limit), &who));
        let polled = admission.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        matches!(polled, std::task::Poll::Ready(Ok(_)))
    }

    #[test]
    fn keys_are_bounded_and_no_newcomer_resets_anyone() {
        let clock = FakeRelativeClock::default();
        let limits = Limits { keys_max: SHARDS, ..Limits::with_clock(clock.clone()) };
        let quota = Quota { count: NonZeroU32::MIN, period: HOUR, burst: NonZeroU32::MIN };
        let limit = Arc::new(Limit {
            name: LimitName::new("l"),
            quota: Some(quota),
            concurrency: Some(1),
            per: vec![Per::Host],
            wait: Duration::ZERO,
        });
        let flood = (0..5000).filter(|&host| admitted(&limits, &limit, host)).count();
        assert_eq!((limits.keys(), flood), (SHARDS, SHARDS + 1), "one each, and one for all others together");
        assert!(!admitted(&limits, &limit, 0), "the first key still knows what it used");
        assert!(!admitted(&limits, &limit, 9000), "and so do newcomers");

        // An hour later nobody owes anything, and old keys make room for new ones.
        clock.advance(HOUR);
        let again = (5000..10_000).filter(|&host| admitted(&limits, &limit, host)).count();
        assert_eq!((limits.keys(), again), (SHARDS, SHARDS + 1));

        limits.sweep();
        assert_eq!(limits.keys(), SHARDS, "not one of them is idle");
        clock.advance(HOUR);
        limits.sweep();
        assert_eq!((limits.keys(), limits.tables.read().unwrap().len()), (0, 0));
    }
}
