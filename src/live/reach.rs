//! Which of our addresses targets answer, kept of those that lately left one without an answer.
//! Does somebody's allow-list lack some of us, or is one of our addresses cut off from everybody?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::names::Host;
use crate::policy::egress::Hop;
use crate::policy::egress::gap::{Gap, Stretch};
use crate::policy::egress::heard::{Heard, MOMENT};

/// Targets, by address, that left one of ours without an answer within [`WINDOW`]. With 64 of our addresses each they
/// take some 20 MiB. One more makes the one go that was heard of least recently and is under no suspicion: who names
/// targets that do not answer can delay a suspicion, not end one.
const PLACES_MAX: usize = 4096;
/// What is not heard of for so long is forgotten.
const WINDOW: Duration = Duration::from_secs(3600);

/// An address of ours that so many hosts leave without an answer, and none gives one, is cut off.
const CUT_OFF: usize = 4;
/// How long it comes last, before it is tried again.
const REST: Duration = Duration::from_secs(60);

/// Gaps told at a time; the others wait for the next.
const NEWS_MAX: usize = 100;

#[derive(Default)]
pub struct Reach {
    places: Mutex<Places>,
    /// While every target answers there are none, and nobody locks.
    count: AtomicUsize,
    resting: ArcSwap<HashSet<IpAddr>>,
}

#[derive(Default)]
struct Places {
    known: HashMap<Place, (Heard, Instant)>,
    /// Our addresses that some target leaves without an answer, and when they last had one from whomever.
    suspects: HashMap<IpAddr, Option<Instant>>,
    /// Since when.
    resting: HashMap<IpAddr, Instant>,
    /// Gaps that were told, in their words.
    told: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    host: Host,
    to: SocketAddr,
}

/// What there is to tell that was not told before.
pub enum News {
    /// New, or other addresses of ours than before.
    Gap(String),
    /// The target of a gap.
    Closed(String),
    /// Cut off from so many hosts.
    CutOff(IpAddr, usize),
    TriedAgain(IpAddr),
}

impl Reach {
    /// What came of one dialling of `host`.
    pub fn heard(&self, host: &Host, answered: Option<Hop>, unanswered: &[Hop]) {
        if unanswered.is_empty() && self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let mut places = self.places();
        for hop in unanswered {
            places.remember(Place { host: host.clone(), to: hop.to() }, now);
        }
        // The answer first: it is what makes the silence towards others mean something.
        if let Some(hop) = answered {
            places.answered(&Place { host: host.clone(), to: hop.to() }, hop.from(), now);
        }
        for hop in unanswered {
            places.unanswered(&Place { host: host.clone(), to: hop.to() }, hop.from(), now);
        }
        self.count.store(places.known.len(), Ordering::Relaxed);
    }

    /// Whether deliveries should rather leave from another address, while there is one.
    pub fn is_resting(&self, source: IpAddr) -> bool {
        self.resting.load().contains(&source)
    }

    pub fn resting(&self) -> Vec<IpAddr> {
        let mut resting: Vec<_> = self.resting.load().iter().copied().collect();
        resting.sort_unstable();
        resting
    }

    /// How many targets answer some of our addresses and not others.
    pub fn gaps(&self) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.places().known.values().filter(|(heard, _)| heard.gap().is_some()).count()
    }

    /// Forgets what is old, and tells what is new. Call it from time to time.
    pub fn review(&self) -> Vec<News> {
        let now = Instant::now();
        let mut places = self.places();
        places.known.retain(|_, (_, last)| now.saturating_duration_since(*last) <= WINDOW);
        places.known.values_mut().for_each(|(heard, _)| heard.forget(now, WINDOW));
        let mut news = places.rest(now);
        news.extend(places.gaps());
        self.count.store(places.known.len(), Ordering::Relaxed);
        let resting: HashSet<IpAddr> = places.resting.keys().copied().collect();
        if resting != **self.resting.load() {
            self.resting.store(Arc::new(resting));
        }
        news
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing panics half-way through a change.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn remember(&mut self, place: Place, now: Instant) {
        if self.known.len() >= PLACES_MAX && !self.known.contains_key(&place) {
            let harmless = self.known.iter().filter(|(_, (heard, _))| !heard.has_gap());
            let oldest = harmless.min_by_key(|(_, (_, last))| *last).map(|(place, _)| place.clone());
            let Some(oldest) = oldest else { return };
            self.known.remove(&oldest);
        }
        self.known.entry(place).or_insert_with(|| (Heard::default(), now)).1 = now;
    }

    fn answered(&mut self, place: &Place, source: IpAddr, now: Instant) {
        if let Some(answered) = self.suspects.get_mut(&source) {
            *answered = Some(now);
        }
        if let Some((heard, last)) = self.known.get_mut(place) {
            heard.answered(source, now);
            *last = now;
        }
    }

    fn unanswered(&mut self, place: &Place, source: IpAddr, now: Instant) {
        let Some((heard, _)) = self.known.get_mut(place) else { return };
        heard.unanswered(source, now);
        if heard.lacks(source) {
            self.suspects.entry(source).or_default();
        }
    }

    /// Each gap when it is new, and when it is closed.
    fn gaps(&mut self) -> Vec<News> {
        let gap = |(place, (heard, _)): (&Place, &(Heard, Instant))| {
            let (answers, lacks) = heard.gap()?;
            let [answers, lacks] = [answers, lacks].map(Stretch::exactly);
            let target = place.in_words();
            Some((target.clone(), Gap { target, answers, lacks }.to_string()))
        };
        let found: BTreeMap<String, String> = self.known.iter().filter_map(gap).collect();
        let is_closed = |target: &&String| !found.contains_key(*target);
        let closed: Vec<String> = self.told.keys().filter(is_closed).take(NEWS_MAX).cloned().collect();
        closed.iter().for_each(|target| drop(self.told.remove(target)));
        let mut new = found;
        new.retain(|target, words| self.told.get(target) != Some(words));
        let new: Vec<_> = new.into_iter().take(NEWS_MAX - closed.len()).collect();
        let news = closed.into_iter().map(News::Closed).chain(new.iter().map(|(_, words)| News::Gap(words.clone())));
        let news = news.collect();
        self.told.extend(new);
        news
    }

    /// Which of our addresses nobody answers any more, and which are to be tried again.
    fn rest(&mut self, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        let rested: Vec<IpAddr> =
            self.resting.iter().filter(|(_, since)| now - **since >= REST).map(|(ip, _)| *ip).collect();
        for source in rested {
            self.resting.remove(&source);
            self.known.values_mut().for_each(|(heard, _)| heard.forgive(source));
            news.push(News::TriedAgain(source));
        }
        let mut silent: HashMap<IpAddr, HashSet<&Host>> = HashMap::new();
        for (place, (heard, _)) in &self.known {
            for source in heard.silent(now) {
                silent.entry(source).or_default().insert(&place.host);
            }
        }
        self.suspects.retain(|source, _| silent.contains_key(source));
        for (source, hosts) in silent {
            let answered = self.suspects.get(&source).copied().flatten();
            let is_answered = answered.is_some_and(|at| now.saturating_duration_since(at) <= MOMENT);
            if hosts.len() >= CUT_OFF && !is_answered && !self.resting.contains_key(&source) {
                news.push(News::CutOff(source, hosts.len()));
                self.resting.insert(source, now);
            }
        }
        news
    }
}

impl Place {
    fn in_words(&self) -> String {
        match &self.host {
            Host::Name(name) => format!("{name}:{} at {}", self.to.port(), self.to.ip()),
            Host::Ip(_) => self.to.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_do_not_answer_end_no_suspicion() {
        let reach = Reach::default();
        let hop = |from: u8, to: u32| {
            Hop::for_test(IpAddr::from([198, 51, 100, from]), SocketAddr::new(IpAddr::from(to.to_be_bytes()), 443))
        };
        let host = |name: u32| Host::Name(format!("{name}.example").into());
        for _ in 0..3 {
            reach.heard(&host(0), Some(hop(17, 0)), &[hop(18, 0)]);
        }
        assert_eq!(reach.gaps(), 1);
        for name in 1..=PLACES_MAX as u32 + 100 {
            reach.heard(&host(name), None, &[hop(18, name)]);
        }
        let kept = reach.places().known.len();
        assert_eq!((kept, reach.gaps()), (PLACES_MAX, 1));
        let told = |news: Vec<News>| news.iter().filter(|news| matches!(news, News::Gap(_))).count();
        assert_eq!((told(reach.review()), told(reach.review())), (1, 0), "once");
        reach.heard(&host(0), Some(hop(18, 0)), &[]);
        assert!(matches!(reach.review().as_slice(), [News::Closed(target)] if target == "0.example:443 at 0.0.0.0"));
    }

    #[test]
    fn what_is_too_much_for_one_time_is_told_the_next() {
        let reach = Reach::default();
        let hop = |from: u8, to: u32| {
            Hop::for_test(IpAddr::from([198, 51, 100, from]), SocketAddr::new(IpAddr::from(to.to_be_bytes()), 443))
        };
        let all = NEWS_MAX as u32 + 10;
        for name in 0..all {
            let host = Host::Name(format!("{name}.example").into());
            (0..3).for_each(|_| reach.heard(&host, Some(hop(17, name)), &[hop(18, name)]));
        }
        let told = |news: Vec<News>| news.iter().filter(|news| matches!(news, News::Gap(_))).count();
        let both = [told(reach.review()), told(reach.review()), told(reach.review())];
        assert_eq!(both, [NEWS_MAX, 10, 0]);
    }
}
