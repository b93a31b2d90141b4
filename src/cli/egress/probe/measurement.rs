//! The verdict about one target, from the results of its connections.
//! Has the target's owner allowed the new range, and how sure is that?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use super::targets::ListedTarget;
use crate::delivery::ProbeReport;
use crate::names::{join_first, pluralize};
use crate::policy::egress::allow_list_gap::AddressRange;
use crate::policy::egress::list::rfc3339;
use crate::policy::egress::{AnnouncedRange, RangePhase};

/// The most ranges of addresses that a sentence names.
const RANGES_MAX: usize = 8;

/// The conclusion about one target. [`Verdict::words`] explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    RangeNotAllowed,
    AddressNotAllowed,
    Unreachable,
    Untested,
    Unclear,
    Refused,
    Unfinished,
    Allowed,
}

impl Verdict {
    /// Returns the name in reports, and its meaning.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::RangeNotAllowed => ("range_not_allowed", "the allow-list probably lacks addresses of the new range"),
            Self::AddressNotAllowed => ("address_not_allowed", "the allow-list probably lacks active addresses"),
            Self::Unreachable => ("unreachable", "no address gets an answer: its allow-list is unknown"),
            Self::Untested => ("untested", "no connection tests the new range"),
            Self::Unclear => ("unclear", "some connections failed for other reasons"),
            Self::Refused => ("refused", "outgate would refuse deliveries: no connection was opened"),
            Self::Unfinished => ("unfinished", "the command or its time for the target ended before"),
            Self::Allowed => ("allowed", "every probed address gets an answer"),
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.words().0
    }

    /// Returns whether the customer must allow more addresses, as far as a probe can tell.
    pub(super) fn concerns_customer(self) -> bool {
        matches!(self, Self::RangeNotAllowed | Self::AddressNotAllowed)
    }
}

/// The meaning of a connection's result for the allow-list of the target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Answered,
    /// TCP failed, or the target closed the connection before its first byte.
    Rejected,
    Unclear,
}

/// The connections to one address of the target that had the same result.
#[derive(Clone, Serialize)]
pub(super) struct Measurement {
    pub target: IpAddr,
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

/// A range that the customer must allow, with the time from which webhooks leave from it; `None`: they do now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct RangeToAllow {
    pub cidr: IpNet,
    pub from: Option<Timestamp>,
}

/// A line of the file with its result.
pub(super) struct ProbedTarget {
    pub listed: ListedTarget,
    /// Scheme, host and port without phone numbers: a path may be a secret.
    pub target: String,
    pub outcome: Outcome,
}

/// The result for one target.
#[derive(Clone)]
pub(super) struct Outcome {
    pub verdict: Verdict,
    pub detail: String,
    pub pool: Option<String>,
    pub measurements: Vec<Measurement>,
    /// The ranges of the pool with an address that the target's allow-list probably lacks.
    pub allow: Vec<RangeToAllow>,
    pub at: Option<Timestamp>,
}

impl Outcome {
    /// Returns the outcome of a target without connections.
    pub(super) fn without_connections(verdict: Verdict, detail: String) -> Self {
        Self { verdict, detail, pool: None, measurements: Vec::new(), allow: Vec::new(), at: None }
    }

    /// Judges the connections. `names_new`: the operator names new ranges, which the pool may not have.
    pub(super) fn new(report: &ProbeReport, names_new: bool, now: Timestamp) -> Self {
        let measurements = measure(report);
        let pool = &report.route.pool;
        let lacks = |net: &IpNet| {
            let rejected = report.results.iter().filter(|result| result.is_rejected());
            rejected
                .filter(|result| net.contains(&result.hop.seen_as()))
                .any(|result| measurements.iter().any(|found| found.lacking && found.target == result.hop.to().ip()))
        };
        let ranges = pool.announced_ranges(now).filter(|range| range.phase != RangePhase::Ended);
        let allow: BTreeSet<_> =
            ranges.filter(|range| lacks(&range.seen_as)).map(|range| RangeToAllow::new(&range)).collect();
        let (verdict, detail) = judge(report, &measurements, names_new || !report.new.is_empty());
        let pool = Some(pool.name().to_string());
        Self { verdict, detail, pool, measurements, allow: allow.into_iter().collect(), at: Some(now) }
    }

    /// Returns the number of connections from new or from active addresses, and how many of them the target answered.
    pub(super) fn counts(&self, new: bool) -> (usize, usize) {
        let sum = |is_counted: &dyn Fn(&Measurement) -> bool| {
            self.measurements
                .iter()
                .filter(|found| found.new == new && is_counted(found))
                .map(|found| found.count)
                .sum()
        };
        (sum(&|_| true), sum(&|found| found.answer == Answer::Answered))
    }

    /// Returns the sources that the target's allow-list probably lacks.
    pub(super) fn lacking(&self) -> Vec<AddressRange> {
        let lacking = self.measurements.iter().filter(|found| found.lacking);
        let ranges: BTreeSet<_> = lacking.flat_map(|found| &found.sources).collect();
        ranges.into_iter().copied().collect()
    }
}

fn measure(report: &ProbeReport) -> Vec<Measurement> {
    let is_new = |source: IpAddr| report.new.iter().any(|range| range.cidr.contains(&source));
    let mut groups: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for result in &report.results {
        let answer = match (result.is_answered(), result.is_rejected()) {
            (true, _) => Answer::Answered,
            (_, true) => Answer::Rejected,
            _ => Answer::Unclear,
        };
        let code = result.outcome.as_ref().err().map_or("ok", |refusal| refusal.code.name());
        let group = (result.hop.to().ip(), is_new(result.hop.from()), answer, code);
        groups.entry(group).or_default().push(result.hop.seen_as());
    }
    let answers: BTreeSet<IpAddr> =
        groups.keys().filter(|(_, _, answer, _)| *answer == Answer::Answered).map(|(to, ..)| *to).collect();
    let measurement = |((target, new, answer, result), sources): (_, Vec<IpAddr>)| Measurement {
        target,
        new,
        result,
        count: sources.len(),
        sources: AddressRange::from_addresses(sources),
        answer,
        lacking: answer == Answer::Rejected && answers.contains(&target),
    };
    groups.into_iter().map(measurement).collect()
}

/// Returns the verdict, and the sentence that states what was measured.
fn judge(report: &ProbeReport, measurements: &[Measurement], expects_new: bool) -> (Verdict, String) {
    let of = |is_meant: &dyn Fn(&Measurement) -> bool| -> Vec<&Measurement> {
        measurements.iter().filter(|found| is_meant(found)).collect()
    };
    let answered = of(&|found| found.answer == Answer::Answered);
    let new_lacking = of(&|found| found.lacking && found.new);
    let active_lacking = of(&|found| found.lacking && !found.new);
    let unanswered = of(&|found| found.answer != Answer::Answered);
    // An address of a target that answers no source says nothing, if another one of its family answers.
    let has_answers = |v6: bool| answered.iter().any(|found| found.target.is_ipv6() == v6);
    let is_explained = |found: &&&Measurement| found.answer == Answer::Rejected && has_answers(found.target.is_ipv6());
    let pool = report.route.pool.name();
    let gap = |lacking: &[&Measurement]| {
        format!("it answers {}, but not {}: its allow-list probably lacks them", list(&answered), list(lacking))
    };
    if !new_lacking.is_empty() {
        (Verdict::RangeNotAllowed, gap(&new_lacking))
    } else if answered.is_empty() && unanswered.iter().all(|found| found.answer == Answer::Rejected) {
        let detail = format!("it answers no address ({}), so its allow-list is unknown", codes(&unanswered));
        (Verdict::Unreachable, detail)
    } else if expects_new && report.new.is_empty() {
        (Verdict::Untested, format!("pool {pool} does not have the new range: webhooks to it do not leave from there"))
    } else if expects_new && !measurements.iter().any(|found| found.new) {
        (Verdict::Untested, "this host has no address of the new range in the target's address family".to_owned())
    } else if expects_new && !answered.iter().any(|found| found.new) {
        let detail = format!("nothing answers where the new range was tried ({})", codes(&unanswered));
        (Verdict::Untested, detail)
    } else if !active_lacking.is_empty() {
        (Verdict::AddressNotAllowed, gap(&active_lacking))
    } else if unanswered.iter().filter(|found| !is_explained(found)).count() > 0 {
        (Verdict::Unclear, format!("it answers {}; others failed: {}", list(&answered), list(&unanswered)))
    } else {
        let count: usize = answered.iter().map(|found| found.count).sum();
        (Verdict::Allowed, format!("it answers {} ({})", pluralize(count, "connection"), codes(&answered)))
    }
}

/// Returns the sources of measurements with their results, unless they are good.
fn list(measurements: &[&Measurement]) -> String {
    let mut by_result: BTreeMap<&str, BTreeSet<AddressRange>> = BTreeMap::new();
    for found in measurements {
        by_result.entry(found.result).or_default().extend(&found.sources);
    }
    let parts = by_result.into_iter().map(|(result, ranges)| {
        let ranges = join_first(&ranges.into_iter().collect::<Vec<_>>(), RANGES_MAX);
        if result == "ok" { ranges } else { format!("{ranges} ({result})") }
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn codes(measurements: &[&Measurement]) -> String {
    let codes: BTreeSet<_> = measurements.iter().map(|found| found.result).collect();
    codes.into_iter().collect::<Vec<_>>().join(", ")
}

impl RangeToAllow {
    pub(super) fn new(range: &AnnouncedRange) -> Self {
        Self { cidr: range.seen_as, from: range.from.filter(|_| range.phase == RangePhase::Upcoming) }
    }
}

impl std::fmt::Display for RangeToAllow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.from {
            Some(from) => write!(f, "{} (in use from {} on)", self.cidr, rfc3339(from)),
            None => write!(f, "{} (in use)", self.cidr),
        }
    }
}
