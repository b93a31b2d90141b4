//! The responses and timeouts of one target address, for each source address.
//! Does the target time out for every source, or only for some?
//!
//! A timeout of one source alone proves nothing, since the target may be down. It counts only if another source got a
//! response shortly before. One response resets the count.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The time after another source's response in which a timeout is suspicious.
pub const RESPONSE_FRESH_FOR: Duration = Duration::from_secs(60);
/// The number of consecutive suspicious timeouts that make a source suspect. One or two packets may get lost.
const TIMEOUTS_MIN: u32 = 3;
/// The maximum number of source addresses that are tracked for one target.
const SOURCES_MAX: usize = 64;

/// The observations of one target address, from its first timeout on.
#[derive(Debug, Default)]
pub struct TargetObservations {
    sources: HashMap<IpAddr, SourceObservation>,
}

#[derive(Debug, Default, Clone, Copy)]
struct SourceObservation {
    last_response: Option<Instant>,
    /// Timeouts since the last response, counted while other sources got responses.
    timeouts: u32,
    /// The time of the last of these timeouts.
    last_timeout: Option<Instant>,
}

impl TargetObservations {
    pub fn observe_response(&mut self, source: IpAddr, now: Instant) {
        if let Some(entry) = self.entry(source) {
            *entry = SourceObservation { last_response: Some(now), ..SourceObservation::default() };
        }
    }

    /// Returns whether the timeout counts: another source got a response shortly before.
    pub fn observe_timeout(&mut self, source: IpAddr, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) <= RESPONSE_FRESH_FOR;
        let is_up = self
            .sources
            .iter()
            .any(|(other, observations)| *other != source && observations.last_response.is_some_and(is_recent));
        let entry = self.entry(source).filter(|_| is_up);
        let is_counted = entry.is_some();
        if let Some(entry) = entry {
            (entry.timeouts, entry.last_timeout) = (entry.timeouts.saturating_add(1), Some(now));
        }
        is_counted
    }

    /// Returns the sources with responses and the suspect sources, each sorted. `None` if either is empty.
    pub fn gap(&self) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
        let mut lacks: Vec<_> = self.sources_where(|source| source.timeouts >= TIMEOUTS_MIN).collect();
        let mut answers: Vec<_> =
            self.sources_where(|source| source.last_response.is_some() && source.timeouts == 0).collect();
        lacks.sort_unstable();
        answers.sort_unstable();
        (!lacks.is_empty() && !answers.is_empty()).then_some((answers, lacks))
    }

    pub fn has_gap(&self) -> bool {
        self.sources_where(|source| source.timeouts >= TIMEOUTS_MIN).next().is_some()
    }

    pub fn is_suspect(&self, source: IpAddr) -> bool {
        self.sources.get(&source).is_some_and(|entry| entry.timeouts >= TIMEOUTS_MIN)
    }

    /// Makes a suspect source eligible again. One more timeout makes it suspect.
    pub fn half_open(&mut self, source: IpAddr) {
        if let Some(entry) = self.sources.get_mut(&source) {
            entry.timeouts = entry.timeouts.min(TIMEOUTS_MIN - 1);
        }
    }

    /// Evicts sources without an observation in the window. A source that left the pool gets no response that could
    /// clear it.
    pub fn evict(&mut self, now: Instant, window: Duration) {
        let is_new = |at: Instant| now.saturating_duration_since(at) <= window;
        self.sources.retain(|_, source| source.last_response.max(source.last_timeout).is_some_and(is_new));
    }

    fn sources_where(&self, predicate: impl Fn(&SourceObservation) -> bool) -> impl Iterator<Item = IpAddr> {
        self.sources.iter().filter(move |(_, observations)| predicate(observations)).map(|(source, _)| *source)
    }

    /// Returns the entry of a source. `None` if the table is full and every entry is suspect.
    fn entry(&mut self, source: IpAddr) -> Option<&mut SourceObservation> {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            let evictable = self.sources.iter().filter(|(_, entry)| entry.timeouts == 0);
            let oldest = *evictable.min_by_key(|(_, entry)| entry.last_response)?.0;
            self.sources.remove(&oldest);
        }
        Some(self.sources.entry(source).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, last])
    }

    /// Replays observations of sources at given seconds; `true` is a response.
    fn gap_after(story: &[(u8, u64, bool)]) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
        let (mut observations, start) = (TargetObservations::default(), Instant::now());
        for &(source, second, is_answer) in story {
            let now = start + Duration::from_secs(second);
            match is_answer {
                true => observations.observe_response(ip(source), now),
                false => drop(observations.observe_timeout(ip(source), now)),
            }
        }
        assert_eq!(observations.gap().is_some(), observations.has_gap());
        observations.gap()
    }

    #[test]
    fn timeouts_count_only_while_other_sources_get_responses() {
        let gap = Some((vec![ip(17)], vec![ip(18)]));
        assert_eq!(gap_after(&[(17, 0, true), (18, 1, false), (18, 2, false), (18, 60, false)]), gap);
        assert_eq!(gap_after(&[(17, 0, true), (18, 1, false), (18, 2, false)]), None, "two may be lost");
        assert_eq!(
            gap_after(&[(17, 0, true), (18, 61, false), (18, 62, false), (18, 63, false)]),
            None,
            "it may be down"
        );
        assert_eq!(gap_after(&[(18, 0, false), (18, 1, false), (18, 2, false), (17, 3, true)]), None, "it was down");
        assert_eq!(
            gap_after(&[(18, 0, true), (18, 1, false), (18, 2, false), (18, 3, false)]),
            None,
            "no other source is known to reach it"
        );
        // A source with responses and timeouts is neither up nor suspect.
        let mixed = &[(17, 0, true), (16, 0, true), (16, 1, false), (18, 1, false), (18, 2, false), (18, 3, false)];
        assert_eq!(gap_after(mixed), gap);
        let answer = &[(17, 0, true), (18, 1, false), (18, 2, false), (18, 3, true), (18, 4, false)];
        assert_eq!(gap_after(answer), None, "an answer takes it all back");
    }

    #[test]
    fn target_observations_evict_sources_that_are_no_longer_used() {
        let (mut observations, start, window) =
            (TargetObservations::default(), Instant::now(), Duration::from_secs(3600));
        observations.observe_response(ip(17), start);
        (0..3).for_each(|_| assert!(observations.observe_timeout(ip(18), start)));
        let later = start + window;
        observations.observe_response(ip(17), later);
        observations.evict(later, window);
        assert!(observations.is_suspect(ip(18)));
        observations.evict(later + Duration::from_secs(1), window);
        assert!(!observations.has_gap() && observations.sources.contains_key(&ip(17)));
    }

    #[test]
    fn target_observations_keep_suspect_sources_when_the_table_is_full() {
        let mut observations = TargetObservations::default();
        let now = Instant::now();
        observations.observe_response(ip(1), now);
        (0..3).for_each(|_| assert!(observations.observe_timeout(ip(2), now)));
        for n in 0..1000_u32 {
            observations.observe_response(IpAddr::from(n.to_be_bytes()), now + Duration::from_millis(n.into()));
        }
        assert_eq!(observations.sources.len(), SOURCES_MAX);
        assert!(observations.is_suspect(ip(2)));
        observations.half_open(ip(2));
        assert!(!observations.is_suspect(ip(2)) && !observations.has_gap());
        observations.observe_timeout(ip(2), now + Duration::from_secs(1));
        assert!(observations.is_suspect(ip(2)));
    }
}
