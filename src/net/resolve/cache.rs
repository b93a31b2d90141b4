//! What DNS has answered, for as long as it holds, and who is asking for what right now.
//! Is this name known, or being asked for, or ours to ask for?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::ResolveFault;

const SHARDS: usize = 16;
/// Names in one shard, known or asked for. Clients choose the names, so their number must have an end.
const SHARD_CAPACITY: usize = 1024;

pub(super) type Outcome = Result<Arc<[IpAddr]>, ResolveFault>;
/// Becomes `Some` once, when the answer is there; closed without it, the question was abandoned.
pub(super) type Answer = watch::Receiver<Option<Outcome>>;

pub(super) struct Found {
    pub(super) outcome: Outcome,
    pub(super) ttl: Duration,
}

/// Sharded, since every delivery looks in; keyed with a random seed, since clients choose the names.
pub(super) struct Cache {
    shards: [Mutex<HashMap<Arc<str>, Entry>>; SHARDS],
    seed: RandomState,
}

enum Entry {
    Known { outcome: Outcome, until: Instant },
    Asked(Answer),
}

pub(super) enum Look {
    Known(Outcome),
    /// Somebody asks already.
    Asked(Answer),
    /// The caller is to ask.
    Unasked(Question, Answer),
    /// So many names are being asked for that this one has no place.
    Full,
}

/// The duty to ask for one name. Dropped without an answer, it lets the next one ask.
pub(super) struct Question {
    cache: Arc<Cache>,
    name: Arc<str>,
    answer: watch::Sender<Option<Outcome>>,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), seed: RandomState::new() }
    }

    pub(super) fn look(self: &Arc<Self>, name: &Arc<str>, now: Instant) -> Look {
        let mut shard = self.shard(name);
        match shard.get(name) {
            Some(Entry::Known { outcome, until }) if now < *until => return Look::Known(outcome.clone()),
            Some(Entry::Asked(answer)) => return Look::Asked(answer.clone()),
            Some(Entry::Known { .. }) | None => {}
        }
        if !shard.contains_key(name) && shard.len() >= SHARD_CAPACITY && !make_room(&mut shard, now) {
            return Look::Full;
        }
        let (sender, receiver) = watch::channel(None);
        shard.insert(Arc::clone(name), Entry::Asked(receiver.clone()));
        let question = Question { cache: Arc::clone(self), name: Arc::clone(name), answer: sender };
        Look::Unasked(question, receiver)
    }

    fn shard(&self, name: &str) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        let index = self.seed.hash_one(name) as usize % SHARDS;
        // No code of ours panics while it holds the lock, and the map is whole between any two calls.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    pub(super) fn answer(self, found: Found, now: Instant) {
        let known = Entry::Known { outcome: found.outcome.clone(), until: now + found.ttl };
        self.cache.shard(&self.name).insert(Arc::clone(&self.name), known);
        self.answer.send_replace(Some(found.outcome));
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if self.answer.borrow().is_none() {
            self.cache.shard(&self.name).remove(&self.name);
        }
    }
}

/// Drops what has expired, else what would expire first; what is being asked for stays.
fn make_room(shard: &mut HashMap<Arc<str>, Entry>, now: Instant) -> bool {
    shard.retain(|_, entry| !matches!(entry, Entry::Known { until, .. } if *until <= now));
    if shard.len() < SHARD_CAPACITY {
        return true;
    }
    let known = shard.iter().filter_map(|(name, entry)| match entry {
        Entry::Known { until, .. } => Some((*until, Arc::clone(name))),
        Entry::Asked(_) => None,
    });
    match known.min() {
        Some((_, name)) => shard.remove(&name).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    fn found(seconds: u64) -> Found {
        Found { outcome: Ok(Arc::new(["192.0.2.1".parse().unwrap()])), ttl: Duration::from_secs(seconds) }
    }

    fn question(look: Look) -> (Question, Answer) {
        match look {
            Look::Unasked(question, answer) => (question, answer),
            _ => panic!("not ours to ask"),
        }
    }

    fn is_known(look: &Look) -> bool {
        matches!(look, Look::Known(_))
    }

    #[test]
    fn an_answer_holds_for_its_ttl() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let acme = name("acme.example");
        question(cache.look(&acme, now)).0.answer(found(60), now);
        assert!(is_known(&cache.look(&acme, now + Duration::from_secs(59))));
        let (again, _) = question(cache.look(&acme, now + Duration::from_secs(60)));
        again.answer(found(60), now + Duration::from_secs(61));
        assert!(is_known(&cache.look(&acme, now + Duration::from_secs(120))));
    }

    #[test]
    fn one_asks_and_the_others_wait() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let acme = name("acme.example");
        let (asking, first) = question(cache.look(&acme, now));
        let Look::Asked(second) = cache.look(&acme, now) else { panic!() };
        assert!(first.borrow().is_none());
        asking.answer(found(60), now);
        for answer in [first, second] {
            assert_eq!(*answer.borrow(), Some(found(60).outcome));
        }
    }

    #[test]
    fn an_abandoned_question_is_free_again() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let acme = name("acme.example");
        let (asking, answer) = question(cache.look(&acme, now));
        drop(asking);
        assert!(answer.has_changed().is_err(), "those who wait are told");
        question(cache.look(&acme, now));
    }

    #[test]
    fn the_number_of_names_has_an_end() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let capacity = SHARDS * SHARD_CAPACITY;
        for number in 0..2 * capacity {
            let seconds = 60 + number as u64;
            question(cache.look(&name(&format!("{number}.example")), now)).0.answer(found(seconds), now);
        }
        let held: usize = cache.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= capacity && held > capacity / 2, "{held}");
        let last = name(&format!("{}.example", 2 * capacity - 1));
        assert!(is_known(&cache.look(&last, now)), "what expires first has gone first");
        assert!(!is_known(&cache.look(&name("0.example"), now)));
    }

    #[test]
    fn questions_are_not_evicted_but_refused() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let mut asking = Vec::new();
        let mut refused = 0;
        for number in 0..2 * SHARDS * SHARD_CAPACITY {
            match cache.look(&name(&format!("{number}.example")), now) {
                Look::Unasked(question, _) => asking.push(question),
                Look::Full => refused += 1,
                _ => panic!(),
            }
        }
        assert!(refused > 0 && asking.len() <= SHARDS * SHARD_CAPACITY);
        drop(asking);
        question(cache.look(&name("0.example"), now));
    }
}
