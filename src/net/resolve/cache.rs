//! What DNS has answered, for as long as it holds, and which names are being asked for right now.
//! Is this name known, or being asked for, or for the caller to ask for?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::answer::{AnswerWithTtl, FamilyAnswer};

const SHARDS: usize = 16;
/// Names and families in one shard, known or asked for. Clients choose the names, so their number must have an end.
const SHARD_CAPACITY: usize = 2048;

/// Questions under way at once, each with a few open sockets. Those that nobody waits for any more count, too.
const QUESTIONS_MAX: usize = 4096;

/// RFC 9520 §3.2: that every server fails is remembered too, for at least this long.
const FAULT_TTL: Duration = Duration::from_secs(1);
/// The same where the name has addresses of the other family.
const PARTIAL_TTL: Duration = Duration::from_secs(10);

/// Sharded, since every delivery looks in; keyed with a random seed, since clients choose the names.
pub(super) struct DnsCache {
    shards: [Mutex<CacheShard>; SHARDS],
    seed: RandomState,
    questions: AtomicUsize,
}

type CacheShard = HashMap<QueryKey, CacheEntry>;

/// A name, in one address family.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct QueryKey {
    pub(super) name: Arc<str>,
    pub(super) v6: bool,
}

enum CacheEntry {
    Answered { half: FamilyAnswer, since: Instant, until: Instant },
    InFlight(Arc<InFlightQuery>),
}

pub(super) enum CacheLookup {
    Hit(FamilyAnswer, Instant),
    /// It is being asked for.
    InFlight(QueryWaiter),
    /// The caller is to ask.
    Miss(QueryGuard, QueryWaiter),
    /// So many names are being asked for that this one has no place.
    Full,
}

/// A question under way, and those who wait for it.
pub(super) struct InFlightQuery {
    pub(super) started: Instant,
    /// Becomes `Some` once.
    outcome: watch::Sender<Option<FamilyAnswer>>,
    waiters: watch::Sender<usize>,
    joined: Notify,
    /// What some server has said instead of answering.
    fault: Mutex<Option<&'static str>>,
}

/// Waits for a question; counted while it lives.
pub(super) struct QueryWaiter {
    pub(super) flight: Arc<InFlightQuery>,
    outcome: watch::Receiver<Option<FamilyAnswer>>,
}

/// The duty to ask for one name. Dropped without an answer, it lets the next one ask.
pub(super) struct QueryGuard {
    cache: Arc<DnsCache>,
    key: QueryKey,
    pub(super) flight: Arc<InFlightQuery>,
}

impl InFlightQuery {
    fn new(now: Instant) -> Self {
        Self {
            started: now,
            outcome: watch::Sender::new(None),
            waiters: watch::Sender::new(0),
            joined: Notify::new(),
            fault: Mutex::default(),
        }
    }

    /// Resolves when one more waits for the answer.
    pub(super) async fn joined(&self) {
        self.joined.notified().await;
    }

    /// Keeps what a server has said instead of answering, for those who give up before another one answers.
    pub(super) fn note(&self, fault: &'static str) {
        *self.fault.lock() = Some(fault);
    }

    pub(super) fn fault(&self) -> Option<&'static str> {
        *self.fault.lock()
    }

    pub(super) fn has_waiters(&self) -> bool {
        *self.waiters.borrow() > 0
    }

    /// Resolves when nobody waits for the answer.
    async fn is_unwanted(&self) {
        let _ = self.waiters.subscribe().wait_for(|waiters| *waiters == 0).await;
    }

    /// Resolves when somebody waits for the answer.
    async fn is_wanted(&self) {
        let _ = self.waiters.subscribe().wait_for(|waiters| *waiters > 0).await;
    }
}

impl QueryWaiter {
    fn new(flight: &Arc<InFlightQuery>) -> Self {
        flight.waiters.send_modify(|waiters| *waiters += 1);
        flight.joined.notify_one();
        Self { flight: Arc::clone(flight), outcome: flight.outcome.subscribe() }
    }

    pub(super) async fn answered(&mut self) -> FamilyAnswer {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        outcome.ok().and_then(|half| half.clone()).unwrap_or(FamilyAnswer::Failed(ABANDONED))
    }
}

impl Drop for QueryWaiter {
    fn drop(&mut self) {
        self.flight.waiters.send_modify(|waiters| *waiters -= 1);
    }
}

/// The question ended without an answer, with its task.
const ABANDONED: &str = "the question was abandoned";

impl DnsCache {
    pub(super) fn new() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, seed: RandomState::new(), questions: AtomicUsize::new(0) }
    }

    pub(super) fn lookup(self: &Arc<Self>, key: QueryKey, now: Instant) -> CacheLookup {
        let mut shard = self.shard(&key);
        match shard.get(&key) {
            Some(CacheEntry::Answered { half, since, until }) if now < *until => {
                return CacheLookup::Hit(half.clone(), *since);
            }
            Some(CacheEntry::InFlight(flight)) => return CacheLookup::InFlight(QueryWaiter::new(flight)),
            Some(CacheEntry::Answered { .. }) | None => {}
        }
        if !shard.contains_key(&key) && shard.len() >= SHARD_CAPACITY && !make_room(&mut shard, now) {
            return CacheLookup::Full;
        }
        if self.questions.fetch_add(1, Ordering::Relaxed) >= QUESTIONS_MAX {
            self.questions.fetch_sub(1, Ordering::Relaxed);
            return CacheLookup::Full;
        }
        let flight = Arc::new(InFlightQuery::new(now));
        shard.insert(key.clone(), CacheEntry::InFlight(Arc::clone(&flight)));
        let waiter = QueryWaiter::new(&flight);
        CacheLookup::Miss(QueryGuard { cache: Arc::clone(self), key, flight }, waiter)
    }

    /// Both families of a name are in one shard.
    fn shard(&self, key: &QueryKey) -> MutexGuard<'_, CacheShard> {
        let index = self.seed.hash_one(&key.name) as usize % SHARDS;
        // No code of ours panics while it holds the lock, and the map is whole between any two calls.
        self.shards[index].lock()
    }
}

impl QueryGuard {
    pub(super) fn answer(self, found: AnswerWithTtl, now: Instant) {
        let AnswerWithTtl { half, mut ttl } = found;
        let mut shard = self.cache.shard(&self.key);
        if let FamilyAnswer::Failed(_) = half {
            let other = shard.get(&QueryKey { v6: !self.key.v6, ..self.key.clone() });
            let is_partial = matches!(other, Some(CacheEntry::Answered { half: FamilyAnswer::Addresses(_), .. }));
            ttl = if is_partial { PARTIAL_TTL } else { FAULT_TTL };
        }
        shard.insert(self.key.clone(), CacheEntry::Answered { half: half.clone(), since: now, until: now + ttl });
        drop(shard);
        self.flight.outcome.send_replace(Some(half));
    }

    /// Resolves when nobody has waited for the answer for as long as `linger`.
    pub(super) async fn is_unwanted_for(&self, linger: Duration) {
        loop {
            self.flight.is_unwanted().await;
            if tokio::time::timeout(linger, self.flight.is_wanted()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for QueryGuard {
    fn drop(&mut self) {
        self.cache.questions.fetch_sub(1, Ordering::Relaxed);
        if self.flight.outcome.borrow().is_none() {
            self.cache.shard(&self.key).remove(&self.key);
            // Who has come since hears at once, and may ask again.
            self.flight.outcome.send_replace(Some(FamilyAnswer::Failed(ABANDONED)));
        }
    }
}

/// Drops what has expired, else what would expire first; what is being asked for stays.
fn make_room(shard: &mut CacheShard, now: Instant) -> bool {
    shard.retain(|_, entry| !matches!(entry, CacheEntry::Answered { until, .. } if *until <= now));
    if shard.len() < SHARD_CAPACITY {
        return true;
    }
    let known = shard.iter().filter_map(|(key, entry)| match entry {
        CacheEntry::Answered { until, .. } => Some((*until, key)),
        CacheEntry::InFlight(_) => None,
    });
    let first = known.min_by_key(|(until, _)| *until).map(|(_, key)| key.clone());
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

    fn half() -> FamilyAnswer {
        FamilyAnswer::Addresses(Arc::new(["192.0.2.1".parse().unwrap()]))
    }

    fn found(seconds: u64) -> AnswerWithTtl {
        AnswerWithTtl { half: half(), ttl: Duration::from_secs(seconds) }
    }

    fn question(look: CacheLookup) -> (QueryGuard, QueryWaiter) {
        match look {
            CacheLookup::Miss(question, waiter) => (question, waiter),
            _ => panic!("not ours to ask"),
        }
    }

    fn is_known(look: &CacheLookup) -> bool {
        matches!(look, CacheLookup::Hit(..))
    }

    #[test]
    fn an_answer_holds_for_its_ttl() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let acme = name("acme.example");
        question(cache.lookup(acme.clone(), now)).0.answer(found(60), now);
        assert!(is_known(&cache.lookup(acme.clone(), now + Duration::from_secs(59))));
        let (again, _) = question(cache.lookup(acme.clone(), now + Duration::from_secs(60)));
        again.answer(found(60), now + Duration::from_secs(61));
        assert!(is_known(&cache.lookup(acme.clone(), now + Duration::from_secs(120))));
    }

    #[test]
    fn one_asks_and_the_others_wait() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let acme = name("acme.example");
        let (asking, first) = question(cache.lookup(acme.clone(), now));
        let CacheLookup::InFlight(second) = cache.lookup(acme.clone(), now) else { panic!() };
        assert!(first.outcome.borrow().is_none());
        asking.answer(found(60), now);
        for waiter in [first, second] {
            assert_eq!(*waiter.outcome.borrow(), Some(half()));
        }
    }

    #[test]
    fn an_abandoned_question_is_free_again() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let acme = name("acme.example");
        let (asking, waiter) = question(cache.lookup(acme.clone(), now));
        drop(asking);
        assert!(waiter.outcome.borrow().is_some(), "those who wait are told");
        question(cache.lookup(acme, now));
    }

    #[test]
    fn a_fault_is_kept_longer_where_the_other_family_has_addresses() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let (v4, v6) = (name("acme.example"), QueryKey { v6: true, ..name("acme.example") });
        let fault = || AnswerWithTtl { half: FamilyAnswer::Failed("SERVFAIL"), ttl: Duration::ZERO };
        question(cache.lookup(v6.clone(), now)).0.answer(fault(), now);
        assert!(!is_known(&cache.lookup(v6.clone(), now + FAULT_TTL)));
        question(cache.lookup(v4, now)).0.answer(found(60), now);
        let later = now + 2 * FAULT_TTL;
        question(cache.lookup(v6.clone(), later)).0.answer(fault(), later);
        assert!(is_known(&cache.lookup(v6, later + 2 * FAULT_TTL)));
    }

    #[test]
    fn the_number_of_names_has_an_end() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let capacity = SHARDS * SHARD_CAPACITY;
        for number in 0..2 * capacity {
            let seconds = 60 + number as u64;
            question(cache.lookup(name(&format!("{number}.example")), now)).0.answer(found(seconds), now);
        }
        let held: usize = cache.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(held <= capacity && held > capacity / 2, "{held}");
        let last = name(&format!("{}.example", 2 * capacity - 1));
        assert!(is_known(&cache.lookup(last, now)), "what expires first has gone first");
        assert!(!is_known(&cache.lookup(name("0.example"), now)));
    }

    #[test]
    fn questions_are_not_evicted_but_refused() {
        let (cache, now) = (Arc::new(DnsCache::new()), Instant::now());
        let mut asking = Vec::new();
        let mut refused = 0;
        for number in 0..2 * SHARDS * SHARD_CAPACITY {
            match cache.lookup(name(&format!("{number}.example")), now) {
                CacheLookup::Miss(question, _) => asking.push(question),
                CacheLookup::Full => refused += 1,
                _ => panic!(),
            }
        }
        assert!(refused > 0 && asking.len() == QUESTIONS_MAX, "{}", asking.len());
        drop(asking);
        question(cache.lookup(name("0.example"), now));
    }
}
