//! Which of our addresses targets answer, kept of those that lately left one without an answer.
//! Does somebody's allow-list lack some of us, or is one of our addresses cut off from everybody?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::names::{Host, TenantName};
use crate::policy::egress::Hop;
use crate::policy::egress::allow_list_gap::{AddressRange, AllowListGap};
use crate::policy::egress::ejection::{self, NETWORKS_MIN, TimeoutObservation};
use crate::policy::egress::observations::{RESPONSE_FRESH_FOR, TargetObservations};

/// Targets, by address, that left one of ours without an answer within [`WINDOW`]. With 64 of our addresses each they
/// take some 20 MiB. One more makes the one go that was heard of least recently and is under no suspicion: who names
/// targets that do not answer can delay a suspicion, not end one.
const PLACES_MAX: usize = 4096;
/// What is not heard of for so long is forgotten.
const WINDOW: Duration = Duration::from_secs(3600);

/// Sources of which witnesses are remembered, and how many of each: far more than decide.
const SUSPECTS_MAX: usize = 4096;
const WITNESSES_MAX: usize = 64;
/// Of the memory of answers: two sources that fall into one slot are taken for one, and the other one's answers then keep
/// a source from being ejected.
const SLOTS: usize = 1 << 16;

/// How long it comes last, before it is tried again.
const REST: Duration = Duration::from_secs(60);

/// Gaps told at a time; the others wait for the next.
const NEWS_MAX: usize = 100;

pub struct SourceHealth {
    state: Mutex<HealthState>,
    /// While every target answers there are none, and nobody locks.
    count: AtomicUsize,
    ejected: ArcSwap<HashSet<IpAddr>>,
    answers: LastResponses,
    /// The first tenant that was seen, `None` in it for deliveries without one, and whether there was another.
    tenant: OnceLock<Option<TenantName>>,
    has_several_tenants: AtomicBool,
}

/// When any target last answered each source: lock-free, since each response counts.
struct LastResponses {
    start: Instant,
    /// In seconds since the start, from 1; 0: never.
    slots: Box<[AtomicU32]>,
    random: RandomState,
}

impl LastResponses {
    fn new() -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self { start: Instant::now(), slots, random: RandomState::new() }
    }

    fn slot(&self, source: IpAddr) -> &AtomicU32 {
        &self.slots[self.random.hash_one(source) as usize % SLOTS]
    }

    fn note(&self, source: IpAddr, now: Instant) {
        let second = 1 + u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX - 1);
        let slot = self.slot(source);
        // Not written again within a second: processors share what they only read.
        if slot.load(Ordering::Relaxed) != second {
            slot.store(second, Ordering::Relaxed);
        }
    }

    /// Whether there was one within the last [`MOMENT`].
    fn has(&self, source: IpAddr, now: Instant) -> bool {
        let second = u64::from(self.slot(source).load(Ordering::Relaxed));
        let now = now.saturating_duration_since(self.start).as_secs();
        second > 0 && now + 1 - second.min(now + 1) <= RESPONSE_FRESH_FOR.as_secs()
    }
}

#[derive(Default)]
struct HealthState {
    known: HashMap<TargetAddress, (TargetObservations, Instant)>,
    /// The sources that some target leaves without an answer while it answers others: for whom, and when last.
    suspects: HashMap<IpAddr, HashMap<TimeoutObservation, Instant>>,
    /// Since when.
    ejected: HashMap<IpAddr, Instant>,
    /// Gaps that were told, in their words.
    reported_gaps: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TargetAddress {
    host: Host,
    to: SocketAddr,
}

/// What there is to tell that was not told before.
pub enum HealthEvent {
    /// New, or other addresses of ours than before.
    GapSuspected(String),
    /// The target of a gap.
    GapClosed(String),
    /// Ejected: targets in so many networks leave it without an answer.
    Ejected(IpAddr, usize),
    HalfOpen(IpAddr),
}

impl Default for SourceHealth {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            count: AtomicUsize::new(0),
            ejected: ArcSwap::default(),
            answers: LastResponses::new(),
            tenant: OnceLock::new(),
            has_several_tenants: AtomicBool::new(false),
        }
    }
}

impl SourceHealth {
    /// Notes a response to a request from `source`, over whichever connection: the source is not cut off.
    pub fn responded(&self, source: IpAddr) {
        self.answers.note(source, Instant::now());
    }

    /// What came of one dialling of `host` for `tenant`.
    pub fn observe_dial(&self, host: &Host, tenant: Option<&TenantName>, answered: Option<Hop>, unanswered: &[Hop]) {
        if self.tenant.get_or_init(|| tenant.cloned()).as_ref() != tenant {
            self.has_several_tenants.store(true, Ordering::Relaxed);
        }
        if let Some(hop) = answered {
            self.responded(hop.from());
        }
        if unanswered.is_empty() && self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let mut places = self.state.lock();
        for hop in unanswered {
            places.remember(TargetAddress { host: host.clone(), to: hop.to() }, now);
        }
        // The answer first: it is what makes the silence towards others mean something.
        if let Some(hop) = answered {
            places.answered(&TargetAddress { host: host.clone(), to: hop.to() }, hop.from(), now);
        }
        for hop in unanswered {
            places.unanswered(&TargetAddress { host: host.clone(), to: hop.to() }, tenant, hop.from(), now);
        }
        self.count.store(places.known.len(), Ordering::Relaxed);
    }

    /// Whether deliveries should rather leave from another address, while there is one.
    pub fn is_resting(&self, source: IpAddr) -> bool {
        self.ejected.load().contains(&source)
    }

    pub fn ejected(&self) -> Vec<IpAddr> {
        let mut resting: Vec<_> = self.ejected.load().iter().copied().collect();
        resting.sort_unstable();
        resting
    }

    /// How many targets answer some of our addresses and not others.
    pub fn gaps(&self) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.state.lock().known.values().filter(|(heard, _)| heard.gap().is_some()).count()
    }

    /// Forgets what is old, and tells what is new. Call it from time to time.
    pub fn review(&self) -> Vec<HealthEvent> {
        let now = Instant::now();
        let mut places = self.state.lock();
        places.known.retain(|_, (_, last)| now.saturating_duration_since(*last) <= WINDOW);
        places.known.values_mut().for_each(|(heard, _)| heard.evict(now, WINDOW));
        let mut news = places.rest(now, &self.answers, self.has_several_tenants.load(Ordering::Relaxed));
        news.extend(places.gaps());
        self.count.store(places.known.len(), Ordering::Relaxed);
        let resting: HashSet<IpAddr> = places.ejected.keys().copied().collect();
        if resting != **self.ejected.load() {
            self.ejected.store(Arc::new(resting));
        }
        news
    }
}

impl HealthState {
    fn remember(&mut self, place: TargetAddress, now: Instant) {
        if self.known.len() >= PLACES_MAX && !self.known.contains_key(&place) {
            let harmless = self.known.iter().filter(|(_, (heard, _))| !heard.has_gap());
            let oldest = harmless.min_by_key(|(_, (_, last))| *last).map(|(place, _)| place.clone());
            let Some(oldest) = oldest else { return };
            self.known.remove(&oldest);
        }
        self.known.entry(place).or_insert_with(|| (TargetObservations::default(), now)).1 = now;
    }

    fn answered(&mut self, place: &TargetAddress, source: IpAddr, now: Instant) {
        if let Some((heard, last)) = self.known.get_mut(place) {
            heard.observe_response(source, now);
            *last = now;
        }
    }

    fn unanswered(&mut self, place: &TargetAddress, tenant: Option<&TenantName>, source: IpAddr, now: Instant) {
        let Some((heard, _)) = self.known.get_mut(place) else { return };
        let is_counted = heard.observe_timeout(source, now);
        if !is_counted || !heard.is_suspect(source) {
            return;
        }
        if self.suspects.len() >= SUSPECTS_MAX && !self.suspects.contains_key(&source) {
            return;
        }
        let witnesses = self.suspects.entry(source).or_default();
        if witnesses.len() >= WITNESSES_MAX {
            witnesses.retain(|_, at| now.saturating_duration_since(*at) <= RESPONSE_FRESH_FOR);
        }
        if witnesses.len() < WITNESSES_MAX {
            witnesses.insert(TimeoutObservation::new(place.to.ip(), tenant.cloned()), now);
        }
    }

    /// Each gap when it is new, and when it is closed.
    fn gaps(&mut self) -> Vec<HealthEvent> {
        let gap = |(place, (heard, _)): (&TargetAddress, &(TargetObservations, Instant))| {
            let (answers, lacks) = heard.gap()?;
            let [answers, lacks] = [answers, lacks].map(AddressRange::from_addresses);
            let target = place.in_words();
            Some((target.clone(), AllowListGap { target, answers, lacks }.to_string()))
        };
        let found: BTreeMap<String, String> = self.known.iter().filter_map(gap).collect();
        let is_closed = |target: &&String| !found.contains_key(*target);
        let closed: Vec<String> = self.reported_gaps.keys().filter(is_closed).take(NEWS_MAX).cloned().collect();
        closed.iter().for_each(|target| drop(self.reported_gaps.remove(target)));
        let mut new = found;
        new.retain(|target, words| self.reported_gaps.get(target) != Some(words));
        let new: Vec<_> = new.into_iter().take(NEWS_MAX - closed.len()).collect();
        let news = closed
            .into_iter()
            .map(HealthEvent::GapClosed)
            .chain(new.iter().map(|(_, words)| HealthEvent::GapSuspected(words.clone())));
        let news = news.collect();
        self.reported_gaps.extend(new);
        news
    }

    /// Which sources no target answers any more, and which are to be tried again.
    fn rest(&mut self, now: Instant, answers: &LastResponses, has_several_tenants: bool) -> Vec<HealthEvent> {
        let mut news = Vec::new();
        let rested: Vec<IpAddr> =
            self.ejected.iter().filter(|(_, since)| now - **since >= REST).map(|(ip, _)| *ip).collect();
        for source in rested {
            self.ejected.remove(&source);
            self.suspects.remove(&source);
            self.known.values_mut().for_each(|(heard, _)| heard.half_open(source));
            news.push(HealthEvent::HalfOpen(source));
        }
        self.suspects.retain(|_, witnesses| {
            witnesses.retain(|_, at| now.saturating_duration_since(*at) <= RESPONSE_FRESH_FOR);
            !witnesses.is_empty()
        });
        for (source, witnesses) in &self.suspects {
            let networks = ejection::count_networks(witnesses.keys(), has_several_tenants);
            let is_used = !self.ejected.contains_key(source);
            if networks >= NETWORKS_MIN && is_used && !answers.has(*source, now) {
                news.push(HealthEvent::Ejected(*source, networks));
                self.ejected.insert(*source, now);
            }
        }
        news
    }
}

impl TargetAddress {
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
        let reach = SourceHealth::default();
        let hop = |from: u8, to: u32| {
            Hop::for_test(IpAddr::from([198, 51, 100, from]), SocketAddr::new(IpAddr::from(to.to_be_bytes()), 443))
        };
        let host = |name: u32| Host::Name(format!("{name}.example").into());
        for _ in 0..3 {
            reach.observe_dial(&host(0), None, Some(hop(17, 0)), &[hop(18, 0)]);
        }
        assert_eq!(reach.gaps(), 1);
        for name in 1..=PLACES_MAX as u32 + 100 {
            reach.observe_dial(&host(name), None, None, &[hop(18, name)]);
        }
        let kept = reach.state.lock().known.len();
        assert_eq!((kept, reach.gaps()), (PLACES_MAX, 1));
        let told =
            |news: Vec<HealthEvent>| news.iter().filter(|news| matches!(news, HealthEvent::GapSuspected(_))).count();
        assert_eq!((told(reach.review()), told(reach.review())), (1, 0), "once");
        reach.observe_dial(&host(0), None, Some(hop(18, 0)), &[]);
        assert!(
            matches!(reach.review().as_slice(), [HealthEvent::GapClosed(target)] if target == "0.example:443 at 0.0.0.0")
        );
    }

    #[test]
    fn what_is_too_much_for_one_time_is_told_the_next() {
        let reach = SourceHealth::default();
        let hop = |from: u8, to: u32| {
            Hop::for_test(IpAddr::from([198, 51, 100, from]), SocketAddr::new(IpAddr::from(to.to_be_bytes()), 443))
        };
        let all = NEWS_MAX as u32 + 10;
        for name in 0..all {
            let host = Host::Name(format!("{name}.example").into());
            (0..3).for_each(|_| reach.observe_dial(&host, None, Some(hop(17, name)), &[hop(18, name)]));
        }
        let told =
            |news: Vec<HealthEvent>| news.iter().filter(|news| matches!(news, HealthEvent::GapSuspected(_))).count();
        let both = [told(reach.review()), told(reach.review()), told(reach.review())];
        assert_eq!(both, [NEWS_MAX, 10, 0]);
    }
}
