//! The verdict about one target, from its measurements.
//! Has the target's owner allowed the new range, and how sure is that?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::measurement::{Answer, Measured, Measurement, RangeToAllow};
use super::targets::ListedTarget;
use crate::names::{join_first, pluralize};
use crate::policy::egress::allow_list_gap::{AddressRange, LISTED_MAX};

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
            Self::Unreachable => ("unreachable", "no address gets an answer: the allow-list is unknown"),
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

/// The measurements of one target; `Err`: the reason that there were no connections.
pub(super) type Attempt = Result<Measured, (Verdict, String)>;

/// A line of the file with its result.
pub(super) struct ProbedTarget {
    pub listed: ListedTarget,
    pub verdict: Verdict,
    /// The measurements in sentences.
    pub detail: String,
    /// The ranges of the pool with an address that the target's allow-list probably lacks.
    pub allow: Vec<RangeToAllow>,
    pub measured: Option<Measured>,
}

impl ProbedTarget {
    /// Judges an attempt. `silent`: new ranges that no target answers.
    pub(super) fn new(listed: ListedTarget, attempt: Attempt, silent: &BTreeSet<IpNet>) -> Self {
        match attempt {
            Err((verdict, detail)) => Self { listed, verdict, detail, allow: Vec::new(), measured: None },
            Ok(mut measured) => {
                let (verdict, detail) = judge(&mut measured, silent);
                Self { listed, verdict, detail, allow: measured.to_allow(), measured: Some(measured) }
            }
        }
    }

    pub(super) fn measurements(&self) -> &[Measurement] {
        self.measured.as_ref().map_or(&[], |measured| &measured.measurements)
    }
}

/// Returns the verdict, and the sentences that state what was measured.
fn judge(measured: &mut Measured, silent: &BTreeSet<IpNet>) -> (Verdict, String) {
    let mut untested: BTreeSet<IpNet> = BTreeSet::new();
    for found in measured.measurements.iter_mut().filter(|found| found.lacking && silent.contains(&found.range)) {
        found.lacking = false;
        untested.insert(found.range);
    }
    let of = |is_meant: &dyn Fn(&Measurement) -> bool| -> Vec<&Measurement> {
        measured.measurements.iter().filter(|found| is_meant(found)).collect()
    };
    let answered = of(&|found| found.answer == Answer::Answered);
    let unanswered = of(&|found| found.answer != Answer::Answered);
    let lacking = of(&|found| found.lacking);
    let answers = |to: IpAddr| answered.iter().any(|found| found.target == to);
    // An address of the target that rejects all sources says nothing, if another one of its family answers.
    let is_closed = |found: &Measurement| {
        let has_answers = answered.iter().any(|other| other.target.is_ipv6() == found.target.is_ipv6());
        found.answer == Answer::Rejected && !answers(found.target) && has_answers
    };
    let closed = of(&is_closed);
    let is_explained = |found: &Measurement| found.lacking || untested.contains(&found.range) || is_closed(found);
    let unclear = of(&|found| found.answer != Answer::Answered && !is_explained(found));
    // A target may reject a handshake, or present another certificate, because of the source.
    let is_good = |to: IpAddr| answered.iter().any(|found| found.target == to && found.result == "ok");
    let mixed = of(&|found| found.answer == Answer::Answered && found.result != "ok" && is_good(found.target));
    let tests_new = answered.iter().any(|found| found.new);
    let tried_new = of(&|found| found.new);
    let is_complete = measured.ended() == measured.planned;
    let (accepts, from) = if measured.is_plaintext { ("accepts connections from", "from ") } else { ("answers", "") };

    let untested_because = if !measured.expects_new {
        None
    } else if !measured.pool_has_new {
        let pool = &measured.pool;
        Some(format!("Pool {pool} does not have the new range. Webhooks to this target do not leave from the range."))
    } else if !untested.is_empty() {
        let ranges = join_first(&untested.into_iter().collect::<Vec<_>>(), LISTED_MAX);
        Some(format!("No target answers {ranges}: check the routes and the announcement of this range first."))
    } else if !is_complete || tests_new || lacking.iter().any(|found| found.new) {
        None
    } else if tried_new.is_empty() {
        Some("This host has no address of the new range in the target's address family.".to_owned())
    } else if tried_new.iter().all(|found| found.answer == Answer::Rejected) {
        Some(format!("The target answers no connection where the new range was tried ({}).", codes(&tried_new)))
    } else {
        None
    };
    let is_unreachable = answered.is_empty() && unanswered.iter().all(|found| found.answer == Answer::Rejected);

    let mut sentences = Vec::new();
    let verdict = if !lacking.is_empty() {
        let (good, bad) = (list(&answered), list(&lacking));
        sentences.push(format!("The target {accepts} {good}, but not {from}{bad}."));
        sentences.push("Its allow-list probably lacks these addresses.".to_owned());
        sentences.extend(untested_because);
        let is_new = lacking.iter().any(|found| found.new);
        if is_new { Verdict::RangeNotAllowed } else { Verdict::AddressNotAllowed }
    } else if is_unreachable && is_complete {
        let count = pluralize(measured.probed, "address");
        sentences.push(format!("The target answers connections from none of the {count} ({}).", codes(&unanswered)));
        sentences.push("Its allow-list is unknown.".to_owned());
        Verdict::Unreachable
    } else if is_unreachable {
        Verdict::Unfinished
    } else if let Some(reason) = untested_because {
        sentences.push(reason);
        Verdict::Untested
    } else if !unclear.is_empty() || !mixed.is_empty() {
        if !unclear.is_empty() {
            let good = if answered.is_empty() { "no address".to_owned() } else { list(&answered) };
            sentences.push(format!("The target {accepts} {good}. Connections from {} failed.", list(&unclear)));
        }
        if measured.is_unsteady {
            sentences.push("It no longer answers an address that it answered before.".to_owned());
        }
        if !mixed.is_empty() {
            sentences.push(format!("The TLS handshake fails from {}, but not from others.", list(&mixed)));
        }
        Verdict::Unclear
    } else if !is_complete {
        Verdict::Unfinished
    } else {
        let count = pluralize(answered.iter().map(|found| found.count).sum::<usize>(), "connection");
        let accepts = if measured.is_plaintext { "accepts" } else { "answers" };
        sentences.push(format!("The target {accepts} {count} ({}).", codes(&answered)));
        Verdict::Allowed
    };
    let closed_addresses: BTreeSet<IpAddr> = closed.iter().map(|found| found.target).collect();
    if !closed_addresses.is_empty() {
        let addresses = join_first(&closed_addresses.into_iter().collect::<Vec<_>>(), LISTED_MAX);
        sentences.push(format!("No connection to its address {addresses} gets an answer ({}).", codes(&closed)));
    }
    if !is_complete {
        let (ended, planned) = (measured.ended(), measured.planned);
        sentences.push(format!("The time for the target ended after {ended} of {planned} connections."));
    }
    if measured.usable > measured.probed as u128 {
        sentences.push(format!("The probe tried {} of {} addresses, a sample.", measured.probed, measured.usable));
    }
    (verdict, sentences.join(" "))
}

/// Returns the sources of measurements with their results, unless they are good.
fn list(measurements: &[&Measurement]) -> String {
    let mut by_result: BTreeMap<&str, BTreeSet<AddressRange>> = BTreeMap::new();
    for found in measurements {
        by_result.entry(found.result).or_default().extend(&found.sources);
    }
    let parts = by_result.into_iter().map(|(result, ranges)| {
        let ranges = join_first(&ranges.into_iter().collect::<Vec<_>>(), LISTED_MAX);
        if result == "ok" { ranges } else { format!("{ranges} ({result})") }
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn codes(measurements: &[&Measurement]) -> String {
    let codes: BTreeSet<_> = measurements.iter().map(|found| found.result).collect();
    codes.into_iter().collect::<Vec<_>>().join(", ")
}
