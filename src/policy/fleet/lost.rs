//! The instances of a fleet whose announcements have ended, and the ranges that they published.
//! Which instances should run and do not, and which promises does the fleet break without them?

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use super::status::{self, FleetProblem, FleetProblemKind, InstanceAnnouncement, RangeAnnouncement};

/// The time, in milliseconds, for which an instance that an operator has stopped is no problem. An upgrade takes less.
const STOP_GRACE: i64 = 5 * 60 * 1000;

/// The instances of a fleet, as its store has them.
#[derive(Default)]
pub struct FleetInstances {
    /// The announcements of the live processes, by the name of the instance.
    pub live: Vec<InstanceAnnouncement>,
    /// The other instances that the store remembers, by their names.
    pub lost: Vec<LostInstance>,
    /// The time of the store, in milliseconds since 1970.
    pub now_ms: i64,
}

/// An instance without a live process.
pub struct LostInstance {
    /// The last announcement of its last process.
    last: InstanceAnnouncement,
    unseen_ms: i64,
}

/// An instance as operators see it.
pub struct InstanceRow {
    pub shown: InstanceAnnouncement,
    /// `live`, `stopping`, `stopped` by an operator, or `lost`.
    pub state: &'static str,
    /// The time since its last announcement.
    pub unseen_seconds: i64,
}

impl LostInstance {
    /// Returns the name of the instance.
    pub fn instance(&self) -> &str {
        &self.last.instance
    }

    /// Creates what an instance has left behind. A range that has ended since is no longer a published one.
    fn new(mut last: InstanceAnnouncement, now_ms: i64) -> Self {
        let has_ended = |range: &RangeAnnouncement| range.until.is_some_and(|until| until.as_millisecond() <= now_ms);
        last.ranges.retain(|range| !has_ended(range));
        let unseen_ms = now_ms.saturating_sub(last.announced_ms).max(0);
        Self { last, unseen_ms }
    }

    /// Returns the row of the instance, which gets no traffic.
    fn row(&self) -> InstanceRow {
        let (state, unseen_seconds) = (if self.last.stopping { "stopped" } else { "lost" }, self.unseen_ms / 1000);
        let blocked = vec![format!("{state}, last seen {:#} ago", SignedDuration::from_secs(unseen_seconds))];
        let last = self.last.clone();
        let shown = InstanceAnnouncement { weight: 0, limited_by: None, blocked, clock_offset_ms: None, ..last };
        InstanceRow { shown, state, unseen_seconds }
    }

    fn is_missed(&self) -> bool {
        !self.last.stopping || self.unseen_ms >= STOP_GRACE
    }

    fn problem(&self) -> FleetProblem {
        let name = &self.last.instance;
        let seen = Timestamp::from_millisecond(self.last.announced_ms).unwrap_or_default();
        let remedy = "start it, or run `outgate fleet forget` with its name if it does not return";
        let what = match self.last.stopping {
            true => format!("{name} was stopped at {seen:.0}, and has not started again: {remedy}"),
            false => format!(
                "{name} was last seen at {seen:.0}: it has died, or it does not reach the store and goes on to send: {remedy}"
            ),
        };
        FleetProblem { problem: FleetProblemKind::InstanceLost, subject: name.clone(), what }
    }
}

impl FleetInstances {
    /// `lost` has the last announcements of instances. One that has a live process is not lost.
    pub fn new(live: Vec<InstanceAnnouncement>, lost: impl Iterator<Item = InstanceAnnouncement>, now_ms: i64) -> Self {
        let is_live = |last: &InstanceAnnouncement| live.iter().any(|found| found.instance == last.instance);
        let lost = lost.filter(|last| !is_live(last)).map(|last| LostInstance::new(last, now_ms));
        Self { lost: lost.collect(), live, now_ms }
    }

    /// Returns the problems of the fleet, in a stable order. The ranges of an instance that is missed are still published.
    pub fn problems(&self) -> Vec<FleetProblem> {
        let missed: Vec<_> = self.lost.iter().filter(|lost| lost.is_missed()).collect();
        let last: Vec<_> = missed.iter().map(|lost| &lost.last).collect();
        let mut problems = status::problems(&self.live, &last);
        problems.extend(missed.into_iter().map(LostInstance::problem));
        problems.sort();
        problems
    }

    /// Returns the live processes and the lost instances, in the order of their names.
    pub fn rows(&self) -> Vec<InstanceRow> {
        let live = |found: &InstanceAnnouncement| InstanceRow {
            shown: found.clone(),
            state: if found.stopping { "stopping" } else { "live" },
            unseen_seconds: self.now_ms.saturating_sub(found.announced_ms).max(0) / 1000,
        };
        let mut rows: Vec<_> = self.live.iter().map(live).chain(self.lost.iter().map(LostInstance::row)).collect();
        rows.sort_by(|a, b| (&a.shown.instance, &a.shown.process).cmp(&(&b.shown.instance, &b.shown.process)));
        rows
    }

    /// Returns, for each published range, the live instances that have addresses of it.
    pub fn ranges(&self) -> BTreeMap<IpNet, Vec<(&str, &RangeAnnouncement)>> {
        let mut ranges = status::ranges(&self.live);
        for range in self.lost.iter().flat_map(|lost| &lost.last.ranges) {
            ranges.entry(range.range).or_default();
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fleet::status::RangeState;

    const NOW: i64 = 1_800_000_000_000;
    const RANGE: &str = "198.51.100.16/28";

    /// Returns the announcement of an instance some milliseconds ago.
    fn instance(name: &str, parts: &[&str], ago: i64, stopping: bool) -> InstanceAnnouncement {
        let range = RangeAnnouncement {
            pool: "default".to_owned(),
            range: RANGE.parse().unwrap(),
            source: RANGE.parse().unwrap(),
            state: RangeState::Active,
            until: None,
            addresses: "16".to_owned(),
            present: if parts.is_empty() { "0" } else { "16" }.to_owned(),
            usable: "16".to_owned(),
            parts: parts.iter().map(|part| part.parse().unwrap()).collect(),
            is_truncated: false,
        };
        InstanceAnnouncement {
            instance: name.to_owned(),
            process: format!("process of {name}"),
            version: "0.1.0".to_owned(),
            digest: String::new(),
            common_digest: String::new(),
            started: Timestamp::UNIX_EPOCH,
            weight: 100,
            limited_by: None,
            blocked: Vec::new(),
            stopping,
            clock_offset_ms: Some(0),
            ranges: vec![range],
            bundle_error: None,
            announced_ms: NOW - ago,
        }
    }

    fn fleet(live: Vec<InstanceAnnouncement>, lost: Vec<InstanceAnnouncement>) -> FleetInstances {
        FleetInstances::new(live, lost.into_iter(), NOW)
    }

    fn found(fleet: &FleetInstances) -> Vec<(FleetProblemKind, String)> {
        fleet.problems().into_iter().map(|problem| (problem.problem, problem.subject)).collect()
    }

    #[test]
    fn ranges_of_a_lost_instance_are_published_and_need_another_host() {
        let lost = || vec![instance("b", &[RANGE], 7_000, false)];
        let alone = fleet(Vec::new(), lost());
        let missing = (FleetProblemKind::RangeWithoutHost, RANGE.to_owned());
        let missed = (FleetProblemKind::InstanceLost, "b".to_owned());
        assert_eq!(found(&alone), [missing.clone(), missed.clone()]);
        assert_eq!(alone.ranges()[&RANGE.parse().unwrap()], [], "its last addresses are no host");
        let what = &alone.problems()[0].what;
        assert!(what.starts_with("no instance has 198.51.100.16/28, which customers allow and b listed: "), "{what}");
        assert_eq!(found(&fleet(vec![instance("a", &[RANGE], 0, false)], lost())), [missed]);
        let half = fleet(vec![instance("a", &["198.51.100.16/29"], 0, false)], lost());
        assert!(found(&half).contains(&(FleetProblemKind::RangeWithoutHost, "198.51.100.24/29".to_owned())));
        assert_eq!(found(&fleet(vec![instance("b", &[RANGE], 0, false)], lost())), [], "it has come back");
        let mut ended = lost();
        ended[0].ranges[0].until = Some(Timestamp::from_millisecond(NOW).unwrap());
        assert_eq!(found(&fleet(Vec::new(), ended)).len(), 1, "the range has ended since");
    }

    #[test]
    fn stopped_instance_is_a_problem_when_it_does_not_start_again() {
        for (ago, is_problem) in [(0, false), (299_999, false), (300_000, true)] {
            let fleet = fleet(Vec::new(), vec![instance("b", &[RANGE], ago, true)]);
            assert_eq!(fleet.problems().len(), if is_problem { 2 } else { 0 }, "{ago}");
            assert!(fleet.ranges().contains_key(&RANGE.parse().unwrap()), "the range stays in the table");
        }
    }

    #[test]
    fn row_of_an_instance_states_whether_it_is_live() {
        let live = vec![instance("c", &[RANGE], 1_500, false), instance("d", &[RANGE], 0, true)];
        let lost = vec![instance("b", &[RANGE], 65_000, false), instance("a", &[RANGE], 7_000, true)];
        let rows = fleet(live, lost).rows();
        let shown: Vec<_> = rows.iter().map(|row| (&*row.shown.instance, row.state, row.unseen_seconds)).collect();
        assert_eq!(shown, [("a", "stopped", 7), ("b", "lost", 65), ("c", "live", 1), ("d", "stopping", 0)]);
        assert_eq!((rows[1].shown.weight, &*rows[1].shown.blocked), (0, &["lost, last seen 1m 5s ago".to_owned()][..]));
        // What limits an instance and its clock are known only while it is live.
        let limited =
            InstanceAnnouncement { limited_by: Some("ports".to_owned()), ..instance("a", &[RANGE], 0, false) };
        let of_instance = |row: &InstanceRow| (row.shown.limited_by.clone(), row.shown.clock_offset_ms);
        let as_lost = fleet(Vec::new(), vec![limited.clone()]);
        assert_eq!((as_lost.lost[0].instance(), of_instance(&as_lost.rows()[0])), ("a", (None, None)));
        let as_live = fleet(vec![limited], Vec::new());
        assert_eq!(of_instance(&as_live.rows()[0]), (Some("ports".to_owned()), Some(0)));
        // A forged time is no panic.
        let forged = InstanceAnnouncement { announced_ms: i64::MIN, ..instance("b", &[], 0, false) };
        let fleet = fleet(Vec::new(), vec![forged]);
        assert_eq!((fleet.rows().len(), fleet.problems().len()), (1, 2));
    }
}
