//! The results of one target's connections, in groups with the same result.
//! Which sources does the target answer, and which does it reject?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use crate::delivery::ProbeReport;
use crate::names::{Scheme, Target};
use crate::policy::egress::allow_list_gap::AddressRange;
use crate::policy::egress::list::rfc3339;
use crate::policy::egress::{AnnouncedRange, RangePhase};

/// The fewest hosts whose rejections show that the operator's own routes are wrong.
const CONTROL_MIN: usize = 2;

/// The meaning of a connection's result for the allow-list of the target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Answered,
    /// TCP failed, or the target closed the connection during the handshake.
    Rejected,
    /// The fault may be this host's, or the target does not answer a source that it answered before.
    Unclear,
}

/// The connections to one address of the target, from one range, that had the same result.
#[derive(Clone, Serialize)]
pub(super) struct Measurement {
    pub target: IpAddr,
    /// The range as the target sees it.
    pub range: IpNet,
    pub new: bool,
    /// `ok`, or the code of the refusal.
    pub result: &'static str,
    pub count: usize,
    /// The sources as the target sees them.
    pub sources: Vec<AddressRange>,
    pub answer: Answer,
    /// Whether the target rejects the sources and answers others.
    pub lacking: bool,
}

/// A range that the customer must allow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct RangeToAllow {
    pub cidr: IpNet,
    /// The time from which webhooks leave from it; `None`: they do now.
    pub from: Option<Timestamp>,
    /// The end of its last period.
    pub until: Option<Timestamp>,
}

/// The measurements of one target.
#[derive(Clone)]
pub(super) struct Measured {
    pub pool: String,
    pub is_plaintext: bool,
    /// Whether a range is new: the operator names one, or the pool has one.
    pub expects_new: bool,
    pub pool_has_new: bool,
    pub measurements: Vec<Measurement>,
    /// The ranges of the pool.
    pub ranges: Vec<RangeToAllow>,
    /// Whether an address of the target did not answer a source that it had answered before.
    pub is_unsteady: bool,
    /// The connections that the probe planned.
    pub planned: usize,
    pub probed: usize,
    pub usable: u128,
    pub at: Timestamp,
}

impl Measured {
    /// `names_new`: the operator names new ranges, which the pool may not have.
    pub(super) fn new(report: &ProbeReport, names_new: bool, now: Timestamp) -> Self {
        let (pool, new) = (&report.route.pool, &report.ranges.new);
        Self {
            pool: pool.name().to_string(),
            is_plaintext: report.target.scheme == Scheme::Http,
            expects_new: names_new || !new.is_empty(),
            pool_has_new: !new.is_empty(),
            measurements: measure(report),
            ranges: RangeToAllow::merge(pool.announced_ranges(now)),
            is_unsteady: !report.unsteady.is_empty(),
            planned: report.survey.hops.len(),
            probed: report.survey.sources.len(),
            usable: report.survey.population,
            at: now,
        }
    }

    /// Returns the number of connections that ended.
    pub(super) fn ended(&self) -> usize {
        self.measurements.iter().map(|found| found.count).sum()
    }

    /// Returns the number of connections from new or from active addresses, and how many of them the target answered.
    pub(super) fn counts(&self, new: bool) -> (usize, usize) {
        let of = || self.measurements.iter().filter(move |found| found.new == new);
        let answered = of().filter(|found| found.answer == Answer::Answered);
        (of().map(|found| found.count).sum(), answered.map(|found| found.count).sum())
    }

    /// Returns the sources that the target's allow-list probably lacks.
    pub(super) fn lacking(&self) -> Vec<AddressRange> {
        let lacking = self.measurements.iter().filter(|found| found.lacking);
        let ranges: BTreeSet<_> = lacking.flat_map(|found| &found.sources).collect();
        ranges.into_iter().copied().collect()
    }

    /// Returns the ranges with an address that the target's allow-list probably lacks.
    pub(super) fn to_allow(&self) -> Vec<RangeToAllow> {
        let lacks = |cidr: IpNet| self.measurements.iter().any(|found| found.lacking && found.range == cidr);
        self.ranges.iter().filter(|range| lacks(range.cidr)).copied().collect()
    }
}

fn measure(report: &ProbeReport) -> Vec<Measurement> {
    let mut groups: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for result in &report.results {
        let is_unsteady = report.unsteady.contains(&result.hop.to());
        let answer = match (result.is_answered(), result.is_rejected() && !is_unsteady) {
            (true, _) => Answer::Answered,
            (_, true) => Answer::Rejected,
            _ => Answer::Unclear,
        };
        let (from, seen_as) = (result.hop.from(), result.hop.seen_as());
        let range = report.ranges.range_of(from).map_or_else(|| seen_as.into(), |range| range.seen_as);
        let is_new = report.ranges.new.iter().any(|range| range.cidr.contains(&from));
        let code = result.outcome.as_ref().err().map_or("ok", |refusal| refusal.code.name());
        groups.entry((result.hop.to().ip(), is_new, range, answer, code)).or_default().push(seen_as);
    }
    let answers: BTreeSet<IpAddr> =
        groups.keys().filter(|(.., answer, _)| *answer == Answer::Answered).map(|(to, ..)| *to).collect();
    let measurement = |((target, new, range, answer, result), sources): (_, Vec<IpAddr>)| Measurement {
        target,
        range,
        new,
        result,
        count: sources.len(),
        sources: AddressRange::from_addresses(sources),
        answer,
        lacking: answer == Answer::Rejected && answers.contains(&target),
    };
    groups.into_iter().map(measurement).collect()
}

/// Returns the new ranges that no target answers, although several answer active addresses. The fault is probably on the
/// operator's side.
pub(super) fn silent_ranges<'a>(all: impl Iterator<Item = (&'a Target, &'a Measured)>) -> BTreeSet<IpNet> {
    let (mut lacking, mut answered): (BTreeMap<_, BTreeSet<_>>, _) = (BTreeMap::new(), BTreeSet::new());
    for (target, measured) in all {
        for found in measured.measurements.iter().filter(|found| found.new) {
            match found.answer {
                Answer::Answered => drop(answered.insert(found.range)),
                _ if found.lacking => drop(lacking.entry(found.range).or_default().insert(&target.host)),
                _ => {}
            }
        }
    }
    lacking.retain(|range, hosts| hosts.len() >= CONTROL_MIN && !answered.contains(range));
    lacking.into_keys().collect()
}

impl RangeToAllow {
    /// Returns each range once. A range may have several periods.
    pub(super) fn merge(ranges: impl IntoIterator<Item = AnnouncedRange>) -> Vec<Self> {
        let mut merged: BTreeMap<IpNet, Self> = BTreeMap::new();
        for range in ranges.into_iter().filter(|range| range.phase != RangePhase::Ended) {
            let from = range.from.filter(|_| range.phase == RangePhase::Upcoming);
            let period = Self { cidr: range.seen_as, from, until: range.until };
            let known = merged.entry(range.seen_as).or_insert(period);
            known.from = known.from.min(from);
            known.until = known.until.and_then(|until| Some(until.max(range.until?)));
        }
        merged.into_values().collect()
    }
}

impl std::fmt::Display for RangeToAllow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (in use", self.cidr)?;
        match (self.from, self.until) {
            (None, None) => {}
            (Some(from), None) => write!(f, " from {} on", rfc3339(from))?,
            (None, Some(until)) => write!(f, " until {}", rfc3339(until))?,
            (Some(from), Some(until)) => write!(f, " from {} until {}", rfc3339(from), rfc3339(until))?,
        }
        f.write_str(")")
    }
}
