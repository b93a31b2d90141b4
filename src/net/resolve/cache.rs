//! The answers of name servers until their TTL ends, and the queries in flight.
//! Is the answer for this name cached, on its way, or for the caller to query?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{AnswerWithTtl, FamilyAnswer};
use crate::panics::{Mutex, MutexGuard};
use crate::single_flight::{Flight, Follower, Leader};

const SHARDS: usize = 16;
/// The capacity of one shard in entries: a name in one family, cached or in flight. Clients choose the names, so their
/// number must be bounded.
const SHARD_CAPACITY: usize = 2048;

/// The number of queries in flight. Each has a few open sockets. Queries without a waiting caller count, too.
const QUERIES_MAX: usize = 4096;

/// The TTL of a failure of all servers: RFC 9520 §3.2 demands at least this.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// The TTL of such a failure where the name has addresses of the other family.
const PARTIAL_TTL: Duration = Duration::from_secs(10);

/// Sharded, since every delivery looks names up. The shard is chosen with a random seed, since clients choose the names.
pub(super) struct DnsCache {
    shards: [Mutex<CacheShard>; SHARDS],
    seed: RandomState,
    /// A permit for each query that may still begin.
    queries: Arc<Semaphore>,
}

type CacheShard = HashMap<QueryKey, CacheEntry>;

/// A name, in one address family.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct QueryKey {
    pub(super) name: Arc<str>,
    pub(super) v6: bool,
}

enum CacheEntry {
    Answered { answer: FamilyAnswer, since: Instant, until: Instant },
    InFlight(QueryFlight),
}

pub(super) enum CacheLookup {
    Hit(FamilyAnswer, Instant),
    InFlight(QueryWaiter),
    /// The caller runs the query.
    Miss(QueryGuard, QueryWaiter),
    /// There are as many queries in flight as there may be.
    Full,
}

/// A query in flight, which all callers that need its answer share.
pub(super) type QueryFlight = Flight<FamilyAnswer, QueryProgress>;

/// The progress of a query, which a caller reads when its own timeout ends.
pub(super) struct QueryProgress {
    pub(super) started: Instant,
    /// The error that a server returned instead of an answer.
    error: Mutex<Option<&'static str>>,
}

impl QueryProgress {
    fn new(now: Instant) -> Self {
        Self { started: now, error: Mutex::default() }
    }

    /// Keeps the error of a server for the callers that give up before another server answers.
    pub(super) fn set_error(&self, error: &'static str) {
        *self.error.lock() = Some(error);
    }

    pub(super) fn error(&self) -> Option<&'static str> {
        *self.error.lock()
    }
}

/// A caller that waits for a query.
pub(super) struct QueryWaiter(Follower<FamilyAnswer, QueryProgress>);

impl QueryWaiter {
    pub(super) async fn answered(&mut self) -> FamilyAnswer {
        self.0.result().await.unwrap_or(FamilyAnswer::Failed(ABANDONED))
    }

    pub(super) fn progress(&self) -> &QueryProgress {
        self.0.progress()
    }
}

/// The answer for the callers of a query that ended without one, with its task.
const ABANDONED: &str = "the query was abandoned";

/// The duty to run one query. Dropping it without an answer lets the next caller run it.
pub(super) struct QueryGuard {
    cache: Arc<DnsCache>,
    key: QueryKey,
    _permit: OwnedSemaphorePermit, // returned before the leader wakes the callers
    leader: Leader<FamilyAnswer, QueryProgress>,
}

impl DnsCache {
    pub(super) fn new() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, seed: RandomState::new(), queries: Arc::new(Semaphore::new(QUERIES_MAX)) }
    }

    pub(super) fn lookup(self: &Arc<Self>, key: QueryKey, now: Instant) -> CacheLookup {
        let mut shard = self.shard(&key);
        match shard.get(&key) {
            Some(CacheEntry::Answered { answer, since, until }) if now < *until => {
                return CacheLookup::Hit(answer.clone(), *since);
            }
            Some(CacheEntry::InFlight(flight)) => return CacheLookup::InFlight(QueryWaiter(flight.join())),
            Some(CacheEntry::Answered { .. }) | None => {}
        }
        if !shard.contains_key(&key) && shard.len() >= SHARD_CAPACITY && !evict(&mut shard, now) {
            return CacheLookup::Full;
        }
        let Ok(permit) = Arc::clone(&self.queries).try_acquire_owned() else { return CacheLookup::Full };
        let leader = Flight::begin(QueryProgress::new(now));
        shard.insert(key.clone(), CacheEntry::InFlight(leader.flight().clone()));
        let waiter = QueryWaiter(leader.flight().join());
        CacheLookup::Miss(QueryGuard { cache: Arc::clone(self), key, leader, _permit: permit }, waiter)
    }

    /// Returns the shard of a name, which holds both of its families.
    fn shard(&self, key: &QueryKey) -> MutexGuard<'_, CacheShard> {
        let index = self.seed.hash_one(&key.name) as usize % SHARDS;
        self.shards[index].lock()
    }
}

impl QueryGuard {
    pub(super) fn flight(&self) -> &QueryFlight {
        self.leader.flight()
    }

    pub(super) fn answer(self, AnswerWithTtl { answer, mut ttl }: AnswerWithTtl, now: Instant) {
        let mut shard = self.cache.shard(&self.key);
        if let FamilyAnswer::Failed(_) = answer {
            let other = shard.get(&QueryKey { v6: !self.key.v6, ..self.key.clone() });
            let is_partial = matches!(other, Some(CacheEntry::Answered { answer: FamilyAnswer::Addresses(_), .. }));
            ttl = if is_partial { PARTIAL_TTL } else { FAILURE_TTL };
        }
        let entry = CacheEntry::Answered { answer: answer.clone(), since: now, until: now + ttl };
        shard.insert(self.key.clone(), entry);
        drop(shard);
        self.leader.finish(answer);
    }

    /// Resolves when no caller has waited for the answer for as long as `linger`.
    pub(super) async fn unwanted_for(&self, linger: Duration) {
        self.leader.unwanted_for(linger).await;
    }
}

impl Drop for QueryGuard {
    fn drop(&mut self) {
        if !self.leader.is_finished() {
            // The leader wakes the callers afterwards: they find no flight, and may begin another.
            self.cache.shard(&self.key).remove(&self.key);
        }
    }
}

/// Removes the expired answers, or else the answer that expires first. Queries in flight stay. Returns whether the shard
/// has room.
fn evict(shard: &mut CacheShard, now: Instant) -> bool {
    shard.retain(|_, entry| !matches!(entry, CacheEntry::Answered { until, .. } if *until <= now));
    if shard.len() < SHARD_CAPACITY {
        return true;
    }
    let answered = shard.iter().filter_map(|(key, entry)| match entry {
        CacheEntry::Answered { until, .. } => Some((*until, key)),
        CacheEntry::InFlight(_) => None,
    });
    let first = answered.min_by_key(|(until, _)| *until).map(|(_, key)| key.clone());
    match first {
        Some(key) => shard.remove(&key).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> QueryKey {
        QueryKey { name: text.into(), v6: false }
    }

    fn addresses() -> FamilyAnswer {
        FamilyAnswer::Addresses(Arc::new(["192.0.2.1".parse().unwrap()]))
    }

    fn answer(seconds: u64) -> AnswerWithTtl {
        AnswerWithTtl { answer: addresses(), ttl: Duration::from_secs(seconds) }
    }

    fn miss(lookup: CacheLookup) -> (QueryGuard, QueryWaiter) {
        match lookup {
            CacheLookup::Miss(guard, waiter) => (guard, waiter),
            _ => panic!("no query to run"),
        }
    }

    fn is_hit(lookup: &CacheLookup) -> bool {
        matches!(lookup, CacheLookup::Hit(..))
    }

    #[test]
    fn dns_answer_is_cached_for_its_ttl() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let acme = name("acme.example");
        miss(cache.lookup(acme.clone(), now)).0.answer(answer(60), now);
        assert!(is_hit(&cache.lookup(acme.clone(), now + Duration::from_secs(59))));
        let (guard, _) = miss(cache.lookup(acme.clone(), now + Duration::from_secs(60)));
        guard.answer(answer(60), now + Duration::from_secs(61));
        assert!(is_hit(&cache.lookup(acme.clone(), now + Duration::from_secs(120))));
    }

    #[tokio::test]
    async fn dns_query_is_sent_once_for_all_waiting_callers() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let acme = name("acme.example");
        let (guard, first) = miss(cache.lookup(acme.clone(), now));
        let CacheLookup::InFlight(second) = cache.lookup(acme.clone(), now) else { panic!() };
        guard.answer(answer(60), now);
        for mut waiter in [first, second] {
            assert_eq!(waiter.answered().await, addresses());
        }
    }

    #[tokio::test]
    async fn dns_query_that_is_abandoned_wakes_its_callers_and_may_begin_again() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let acme = name("acme.example");
        let (guard, mut waiter) = miss(cache.lookup(acme.clone(), now));
        drop(guard);
        assert_eq!(waiter.answered().await, FamilyAnswer::Failed(ABANDONED));
        miss(cache.lookup(acme, now));
    }

    #[test]
    fn dns_failure_is_cached_longer_where_the_other_family_has_addresses() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let (v4, v6) = (name("acme.example"), QueryKey { v6: true, ..name("acme.example") });
        let failure = || AnswerWithTtl { answer: FamilyAnswer::Failed("SERVFAIL"), ttl: Duration::ZERO };
        miss(cache.lookup(v6.clone(), now)).0.answer(failure(), now);
        assert!(!is_hit(&cache.lookup(v6.clone(), now + FAILURE_TTL)));
        miss(cache.lookup(v4, now)).0.answer(answer(60), now);
        let later = now + 2 * FAILURE_TTL;
        miss(cache.lookup(v6.clone(), later)).0.answer(failure(), later);
        assert!(is_hit(&cache.lookup(v6, later + 2 * FAILURE_TTL)));
    }

    #[test]
    fn dns_cache_is_bounded_and_evicts_the_answer_that_expires_first() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let capacity = SHARDS * SHARD_CAPACITY;
        for number in 0..2 * capacity {
            let seconds = 60 + number as u64;
            miss(cache.lookup(name(&format!("{number}.example")), now)).0.answer(answer(seconds), now);
        }
        let entries: usize = cache.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(entries <= capacity && entries > capacity / 2, "{entries}");
        let last = name(&format!("{}.example", 2 * capacity - 1));
        assert!(is_hit(&cache.lookup(last, now)));
        assert!(!is_hit(&cache.lookup(name("0.example"), now)));
    }

    #[test]
    fn dns_queries_in_flight_are_bounded_and_never_evicted() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let mut guards = Vec::new();
        let mut refused = 0;
        for number in 0..2 * SHARDS * SHARD_CAPACITY {
            match cache.lookup(name(&format!("{number}.example")), now) {
                CacheLookup::Miss(guard, _) => guards.push(guard),
                CacheLookup::Full => refused += 1,
                _ => panic!(),
            }
        }
        assert!(refused > 0 && guards.len() == QUERIES_MAX, "{}", guards.len());
        drop(guards);
        miss(cache.lookup(name("0.example"), now));
    }
}
