//! What one address of a target has answered to our addresses, and which of them it seems not to let in.
//! Is it silent to everybody, or to some of us?
//!
//! That one address of ours gets no answer says nothing: the target may be down. It says something when another one had
//! an answer a moment before. So only such silence is counted, and an answer takes it all back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long an answer to another address of ours makes silence suspicious.
pub const MOMENT: Duration = Duration::from_secs(60);
/// Such silences in a row: a packet gets lost, a second one too.
const SUSPICIOUS: u32 = 3;
/// Addresses of ours that are told apart at one target.
const SOURCES_MAX: usize = 64;

/// One address of a target, since it first left one of ours without an answer.
#[derive(Debug, Default)]
pub struct TargetObservations {
    sources: HashMap<IpAddr, SourceObservation>,
}

#[derive(Debug, Default, Clone, Copy)]
struct SourceObservation {
    answered: Option<Instant>,
    /// While others had answers; since the last answer of its own.
    silences: u32,
    /// The last of them.
    silent: Option<Instant>,
}

impl TargetObservations {
    pub fn answered(&mut self, source: IpAddr, now: Instant) {
        if let Some(known) = self.of(source) {
            *known = SourceObservation { answered: Some(now), ..SourceObservation::default() };
        }
    }

    /// True if it is counted: another of our addresses had an answer a moment ago.
    pub fn unanswered(&mut self, source: IpAddr, now: Instant) -> bool {
        let moment = |at: Instant| now.saturating_duration_since(at) <= MOMENT;
        let is_up = self.sources.iter().any(|(other, heard)| *other != source && heard.answered.is_some_and(moment));
        let known = self.of(source).filter(|_| is_up);
        let is_counted = known.is_some();
        if let Some(known) = known {
            (known.silences, known.silent) = (known.silences.saturating_add(1), Some(now));
        }
        is_counted
    }

    /// Those that had answers and those that have none, each in order; neither is empty.
    pub fn gap(&self) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
        let mut lacks: Vec<_> = self.chosen(|source| source.silences >= SUSPICIOUS).collect();
        let mut answers: Vec<_> = self.chosen(|source| source.answered.is_some() && source.silences == 0).collect();
        lacks.sort_unstable();
        answers.sort_unstable();
        (!lacks.is_empty() && !answers.is_empty()).then_some((answers, lacks))
    }

    pub fn has_gap(&self) -> bool {
        self.chosen(|source| source.silences >= SUSPICIOUS).next().is_some()
    }

    pub fn lacks(&self, source: IpAddr) -> bool {
        self.sources.get(&source).is_some_and(|known| known.silences >= SUSPICIOUS)
    }

    /// One more silence, and the address is suspicious again.
    pub fn half_open(&mut self, source: IpAddr) {
        if let Some(known) = self.sources.get_mut(&source) {
            known.silences = known.silences.min(SUSPICIOUS - 1);
        }
    }

    /// Addresses of ours that were not heard of for so long: who left the pool must not stay suspected, since nobody can
    /// take it back by an answer.
    pub fn forget(&mut self, now: Instant, window: Duration) {
        let is_new = |at: Instant| now.saturating_duration_since(at) <= window;
        self.sources.retain(|_, source| source.answered.max(source.silent).is_some_and(is_new));
    }

    fn chosen(&self, is_meant: impl Fn(&SourceObservation) -> bool) -> impl Iterator<Item = IpAddr> {
        self.sources.iter().filter(move |(_, heard)| is_meant(heard)).map(|(source, _)| *source)
    }

    /// `None`: there are too many, and none of them can be forgotten for this one.
    fn of(&mut self, source: IpAddr) -> Option<&mut SourceObservation> {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            let harmless = self.sources.iter().filter(|(_, known)| known.silences == 0);
            let oldest = *harmless.min_by_key(|(_, known)| known.answered)?.0;
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

    /// What is heard by source, at so many seconds: `true` is an answer.
    fn gap_after(story: &[(u8, u64, bool)]) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
        let (mut heard, start) = (TargetObservations::default(), Instant::now());
        for &(source, second, is_answer) in story {
            let now = start + Duration::from_secs(second);
            match is_answer {
                true => heard.answered(ip(source), now),
                false => drop(heard.unanswered(ip(source), now)),
            }
        }
        assert_eq!(heard.gap().is_some(), heard.has_gap());
        heard.gap()
    }

    #[test]
    fn silence_counts_while_others_have_answers() {
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
        let answer = &[(17, 0, true), (18, 1, false), (18, 2, false), (18, 3, true), (18, 4, false)];
        assert_eq!(gap_after(answer), None, "an answer takes it all back");
    }

    #[test]
    fn an_address_that_is_not_tried_any_more_is_not_suspected_for_ever() {
        let (mut heard, start, window) = (TargetObservations::default(), Instant::now(), Duration::from_secs(3600));
        heard.answered(ip(17), start);
        (0..3).for_each(|_| assert!(heard.unanswered(ip(18), start)));
        let later = start + window;
        heard.answered(ip(17), later);
        heard.forget(later, window);
        assert!(heard.lacks(ip(18)));
        heard.forget(later + Duration::from_secs(1), window);
        assert!(!heard.has_gap() && heard.sources.contains_key(&ip(17)));
    }

    #[test]
    fn however_many_addresses_of_ours_there_are_the_silent_ones_stay_known() {
        let mut heard = TargetObservations::default();
        let now = Instant::now();
        heard.answered(ip(1), now);
        (0..3).for_each(|_| assert!(heard.unanswered(ip(2), now)));
        for n in 0..1000_u32 {
            heard.answered(IpAddr::from(n.to_be_bytes()), now + Duration::from_millis(n.into()));
        }
        assert_eq!(heard.sources.len(), SOURCES_MAX);
        assert!(heard.lacks(ip(2)));
        heard.half_open(ip(2));
        assert!(!heard.lacks(ip(2)) && !heard.has_gap());
        heard.unanswered(ip(2), now + Duration::from_secs(1));
        assert!(heard.lacks(ip(2)));
    }
}
