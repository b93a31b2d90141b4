//! The health of the source addresses: the targets that recently left one of them without an answer.
//! Does the allow-list of a target lack some source addresses, or does no target answer one of them?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::names::{Host, TenantName};
use crate::panics::Mutex;
use crate::policy::egress::Hop;
use crate::policy::egress::allow_list_gap::{AddressRange, AllowListGap};
use crate::policy::egress::ejection::{self, NETWORKS_MIN, TimeoutObservation};
use crate::policy::egress::observations::{RESPONSE_FRESH_FOR, TargetObservations};
use crate::state::counters::TableSize;

/// The number of target addresses that left a source without an answer within [`WINDOW`]. With 64 sources each they take some
/// 20 MiB. A new one evicts the least recently used one without a suspected gap. So a client that names targets that do not
/// answer can delay a suspicion, and cannot end one.
const TARGETS_MAX: usize = 4096;
/// The time after which a target without a new observation is removed.
const WINDOW: Duration = Duration::from_secs(3600);

/// The number of sources with timeout observations, and the number of observations of each: far more than decide.
const SUSPECTS_MAX: usize = 4096;
const OBSERVATIONS_MAX: usize = 64;
/// The number of slots of [`LastResponses`]. Two sources in the same slot are not distinguished: the responses to one then
/// prevent the ejection of the other.
const SLOTS: usize = 1 << 16;

/// The time for which an ejected source is deprioritised before it is tried again.
pub const EJECTION_TIME: Duration = Duration::from_secs(60);

/// The number of events about gaps that one review returns. The others wait for the next.
const EVENTS_MAX: usize = 100;

pub struct SourceHealth {
    state: Mutex<HealthState>,
    /// The number of known targets. While it is zero, no delivery takes the lock.
    size: TableSize,
    ejected: ArcSwap<HashSet<IpAddr>>,
    last_responses: LastResponses,
    /// The tenant of the first delivery, which may be `None`.
    first_tenant: OnceLock<Option<TenantName>>,
    has_several_tenants: AtomicBool,
}

/// The time of the last response of any target to each source. It is lock-free, since each response updates it.
struct LastResponses {
    start: Instant,
    /// Times in seconds since the start, plus 1. Zero: no event.
    slots: Box<[AtomicU32]>,
    random: RandomState,
}

impl LastResponses {
    fn new(now: Instant) -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self { start: now, slots, random: RandomState::new() }
    }

    fn slot(&self, source: IpAddr) -> &AtomicU32 {
        &self.slots[self.random.hash_one(source) as usize % SLOTS]
    }

    fn observe(&self, source: IpAddr, now: Instant) {
        let second = 1 + u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX - 1);
        let slot = self.slot(source);
        // One write a second at most: a cache line that is only read is shared between processors.
        if slot.load(Ordering::Relaxed) != second {
            slot.store(second, Ordering::Relaxed);
        }
    }

    /// Returns whether there was a response within the last [`RESPONSE_FRESH_FOR`].
    fn has(&self, source: IpAddr, now: Instant) -> bool {
        let second = u64::from(self.slot(source).load(Ordering::Relaxed));
        let now = now.saturating_duration_since(self.start).as_secs();
        second > 0 && now + 1 - second.min(now + 1) <= RESPONSE_FRESH_FOR.as_secs()
    }
}

#[derive(Default)]
struct HealthState {
    targets: HashMap<TargetAddress, (TargetObservations, Instant)>,
    /// The timeout observations of sources that some target does not answer while it answers others, and when each was last
    /// made.
    suspects: HashMap<IpAddr, HashMap<TimeoutObservation, Instant>>,
    /// The ejected sources, and when each was ejected.
    ejected: HashMap<IpAddr, Instant>,
    /// The gaps that were reported: the text by target.
    reported_gaps: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TargetAddress {
    host: Host,
    address: SocketAddr,
}

/// A change of the health since the last review.
pub enum HealthEvent {
    /// The text of a gap that is new, or that has other source addresses than before.
    GapSuspected(String),
    /// The target of a gap that has closed.
    GapClosed(String),
    /// The source, and the number of networks with targets that do not answer it.
    Ejected(IpAddr, usize),
    HalfOpen(IpAddr),
}

impl SourceHealth {
    pub fn new(now: Instant) -> Self {
        Self {
            state: Mutex::default(),
            size: TableSize::default(),
            ejected: ArcSwap::default(),
            last_responses: LastResponses::new(now),
            first_tenant: OnceLock::new(),
            has_several_tenants: AtomicBool::new(false),
        }
    }

    /// Records a response of a target to `source`: the source is not cut off.
    pub fn responded(&self, source: IpAddr, now: Instant) {
        self.last_responses.observe(source, now);
    }

    /// Records the outcome of dialling `host` for `tenant`.
    pub fn observe_dial(
        &self,
        host: &Host,
        tenant: Option<&TenantName>,
        answered: Option<Hop>,
        unanswered: &[Hop],
        now: Instant,
    ) {
        if self.first_tenant.get_or_init(|| tenant.cloned()).as_ref() != tenant {
            self.has_several_tenants.store(true, Ordering::Relaxed);
        }
        if let Some(hop) = answered {
            self.responded(hop.from(), now);
        }
        if unanswered.is_empty() && self.size.is_zero() {
            return;
        }
        let mut state = self.state.lock();
        for hop in unanswered {
            state.add_target(TargetAddress { host: host.clone(), address: hop.to() }, now);
        }
        // The answer first: a timeout only counts against a source if the target answers another one.
        if let Some(hop) = answered {
            state.answered(&TargetAddress { host: host.clone(), address: hop.to() }, hop.from(), now);
        }
        for hop in unanswered {
            state.unanswered(&TargetAddress { host: host.clone(), address: hop.to() }, tenant, hop.from(), now);
        }
        self.size.set(state.targets.len());
    }

    /// Returns whether deliveries should prefer other sources.
    pub fn is_ejected(&self, source: IpAddr) -> bool {
        self.ejected.load().contains(&source)
    }

    pub fn ejected(&self) -> Vec<IpAddr> {
        let mut ejected: Vec<_> = self.ejected.load().iter().copied().collect();
        ejected.sort_unstable();
        ejected
    }

    /// Returns the number of targets that answer some sources and not others.
    pub fn gap_count(&self) -> usize {
        if self.size.is_zero() {
            return 0;
        }
        self.state.lock().targets.values().filter(|(observations, _)| observations.gap().is_some()).count()
    }

    /// Returns targets with the sources that they do not answer, while they answer others.
    pub fn gap_sources(&self, max: usize) -> Vec<(Host, u16, IpAddr)> {
        if self.size.is_zero() {
            return Vec::new();
        }
        let state = self.state.lock();
        let gaps = state.targets.iter().filter_map(|(target, (observations, _))| Some((target, observations.gap()?.1)));
        let sources = gaps.flat_map(|(target, lacks)| {
            lacks.into_iter().map(|source| (target.host.clone(), target.address.port(), source))
        });
        sources.take(max).collect()
    }

    /// Returns the target and the text of each gap that the log has reported.
    pub fn gaps(&self) -> Vec<(String, String)> {
        self.state.lock().reported_gaps.clone().into_iter().collect()
    }

    /// Removes old observations, ejects and reinstates sources, and returns the changes. Call it periodically. `seen_as`
    /// returns the address that targets see for a source: reports for them name it.
    pub fn review(&self, now: Instant, seen_as: impl Fn(IpAddr) -> IpAddr) -> Vec<HealthEvent> {
        let mut state = self.state.lock();
        state.targets.retain(|_, (_, last)| now.saturating_duration_since(*last) <= WINDOW);
        state.targets.values_mut().for_each(|(observations, _)| observations.evict(now, WINDOW));
        let mut events =
            state.update_ejections(now, &self.last_responses, self.has_several_tenants.load(Ordering::Relaxed));
        events.extend(state.update_gaps(seen_as));
        self.size.set(state.targets.len());
        let ejected: HashSet<IpAddr> = state.ejected.keys().copied().collect();
        if ejected != **self.ejected.load() {
            self.ejected.store(Arc::new(ejected));
        }
        events
    }
}

impl HealthState {
    fn add_target(&mut self, target: TargetAddress, now: Instant) {
        if self.targets.len() >= TARGETS_MAX && !self.targets.contains_key(&target) {
            let without_gap = self.targets.iter().filter(|(_, (observations, _))| !observations.has_gap());
            let oldest = without_gap.min_by_key(|(_, (_, last))| *last).map(|(target, _)| target.clone());
            let Some(oldest) = oldest else { return };
            self.targets.remove(&oldest);
        }
        self.targets.entry(target).or_insert_with(|| (TargetObservations::default(), now)).1 = now;
    }

    fn answered(&mut self, target: &TargetAddress, source: IpAddr, now: Instant) {
        if let Some((observations, last)) = self.targets.get_mut(target) {
            observations.observe_response(source, now);
            *last = now;
        }
    }

    fn unanswered(&mut self, target: &TargetAddress, tenant: Option<&TenantName>, source: IpAddr, now: Instant) {
        let Some((observations, _)) = self.targets.get_mut(target) else { return };
        let is_counted = observations.observe_timeout(source, now);
        if !is_counted || !observations.is_suspect(source) {
            return;
        }
        if self.suspects.len() >= SUSPECTS_MAX && !self.suspects.contains_key(&source) {
            return;
        }
        let observed = self.suspects.entry(source).or_default();
        if observed.len() >= OBSERVATIONS_MAX {
            observed.retain(|_, at| now.saturating_duration_since(*at) <= RESPONSE_FRESH_FOR);
        }
        if observed.len() < OBSERVATIONS_MAX {
            observed.insert(TimeoutObservation::new(target.address.ip(), tenant.cloned()), now);
        }
    }

    /// Reports each gap when it is new, and when it has closed.
    fn update_gaps(&mut self, seen_as: impl Fn(IpAddr) -> IpAddr) -> Vec<HealthEvent> {
        let gap = |(address, (observations, _)): (&TargetAddress, &(TargetObservations, Instant))| {
            let (answers, lacks) = observations.gap()?;
            let ranges = |sources: Vec<IpAddr>| AddressRange::from_addresses(sources.into_iter().map(&seen_as));
            let [answers, lacks] = [answers, lacks].map(ranges);
            let target = address.describe();
            Some((target.clone(), AllowListGap { target, answers, lacks }.to_string()))
        };
        let found: BTreeMap<String, String> = self.targets.iter().filter_map(gap).collect();
        let is_closed = |target: &&String| !found.contains_key(*target);
        let closed: Vec<String> = self.reported_gaps.keys().filter(is_closed).take(EVENTS_MAX).cloned().collect();
        closed.iter().for_each(|target| drop(self.reported_gaps.remove(target)));
        let mut new = found;
        new.retain(|target, text| self.reported_gaps.get(target) != Some(text));
        let new: Vec<_> = new.into_iter().take(EVENTS_MAX - closed.len()).collect();
        let events = closed
            .into_iter()
            .map(HealthEvent::GapClosed)
            .chain(new.iter().map(|(_, text)| HealthEvent::GapSuspected(text.clone())));
        let events = events.collect();
        self.reported_gaps.extend(new);
        events
    }

    /// Ejects the sources that no target answers, and reinstates those whose ejection is over.
    fn update_ejections(
        &mut self,
        now: Instant,
        last_responses: &LastResponses,
        has_several_tenants: bool,
    ) -> Vec<HealthEvent> {
        let mut events = Vec::new();
        let reinstated: Vec<IpAddr> =
            self.ejected.iter().filter(|(_, since)| now - **since >= EJECTION_TIME).map(|(ip, _)| *ip).collect();
        for source in reinstated {
            self.ejected.remove(&source);
            self.suspects.remove(&source);
            self.targets.values_mut().for_each(|(observations, _)| observations.half_open(source));
            events.push(HealthEvent::HalfOpen(source));
        }
        self.suspects.retain(|_, observed| {
            observed.retain(|_, at| now.saturating_duration_since(*at) <= RESPONSE_FRESH_FOR);
            !observed.is_empty()
        });
        for (source, observed) in &self.suspects {
            let networks = ejection::count_networks(observed.keys(), has_several_tenants);
            let is_in_use = !self.ejected.contains_key(source);
            if networks >= NETWORKS_MIN && is_in_use && !last_responses.has(*source, now) {
                events.push(HealthEvent::Ejected(*source, networks));
                self.ejected.insert(*source, now);
            }
        }
        events
    }
}

impl TargetAddress {
    fn describe(&self) -> String {
        match &self.host {
            Host::Name(name) => format!("{name}:{} at {}", self.address.port(), self.address.ip()),
            Host::Ip(_) => self.address.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_list_gap_stays_suspected_among_many_targets_without_an_answer() {
        let (health, now) = (SourceHealth::new(Instant::now()), Instant::now());
        let hop = |from: u8, to: u32| {
            Hop::for_test(IpAddr::from([198, 51, 100, from]), SocketAddr::new(IpAddr::from(to.to_be_bytes()), 443))
        };
        let host = |name: u32| Host::Name(format!("{name}.example").into());
        for _ in 0..3 {
            health.observe_dial(&host(0), None, Some(hop(17, 0)), &[hop(18, 0)], now);
        }
        assert_eq!(health.gap_count(), 1);
        for name in 1..=TARGETS_MAX as u32 + 100 {
            health.observe_dial(&host(name), None, None, &[hop(18, name)], now);
        }
        let kept = health.state.lock().targets.len();
        assert_eq!((kept, health.gap_count()), (TARGETS_MAX, 1));
        let suspected = |events: Vec<HealthEvent>| {
            events.iter().filter(|event| matches!(event, HealthEvent::GapSuspected(_))).count()
        };
        assert_eq!(
            (suspected(health.review(now, |source| source)), suspected(health.review(now, |source| source))),
            (1, 0),
            "a gap is reported once"
        );
        health.observe_dial(&host(0), None, Some(hop(18, 0)), &[], now);
        assert!(
            matches!(health.review(now, |source| source).as_slice(), [HealthEvent::GapClosed(target)] if target == "0.example:443 at 0.0.0.0")
        );
    }

    #[test]
    fn allow_list_gaps_beyond_one_review_are_reported_by_the_next() {
        let (health, now) = (SourceHealth::new(Instant::now()), Instant::now());
        let hop = |from: u8, to: u32| {
            Hop::for_test(IpAddr::from([198, 51, 100, from]), SocketAddr::new(IpAddr::from(to.to_be_bytes()), 443))
        };
        let all = EVENTS_MAX as u32 + 10;
        for name in 0..all {
            let host = Host::Name(format!("{name}.example").into());
            (0..3).for_each(|_| health.observe_dial(&host, None, Some(hop(17, name)), &[hop(18, name)], now));
        }
        let suspected = |events: Vec<HealthEvent>| {
            events.iter().filter(|event| matches!(event, HealthEvent::GapSuspected(_))).count()
        };
        let counts = [
            suspected(health.review(now, |source| source)),
            suspected(health.review(now, |source| source)),
            suspected(health.review(now, |source| source)),
        ];
        assert_eq!(counts, [EVENTS_MAX, 10, 0]);
    }
}
