//! The assignments of published ranges to instances, which operators make with `outgate fleet move`.
//! From which ranges may an instance not send?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::status::InstanceAnnouncement;
use crate::policy::addresses::overlaps;
use crate::policy::egress::Pools;

/// The assignments of a fleet. They only take addresses away from instances: the host of an instance must have its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// It grows with each change.
    pub version: u64,
    /// The instances by the range that customers see. No two ranges overlap.
    ranges: BTreeMap<IpNet, String>,
}

impl Assignments {
    pub fn ranges(&self) -> &BTreeMap<IpNet, String> {
        &self.ranges
    }

    /// Returns the next assignments, in which a range is that of an instance, or of none. The error is another range that
    /// overlaps it.
    pub fn with(&self, range: IpNet, instance: Option<&str>, now: Timestamp) -> Result<Self, IpNet> {
        let mut ranges = self.ranges.clone();
        ranges.remove(&range);
        if let Some(other) = ranges.keys().find(|other| overlaps(other, &range)) {
            return Err(*other);
        }
        ranges.extend(instance.map(|instance| (range, instance.to_owned())));
        let now = u64::try_from(now.as_millisecond()).unwrap_or_default();
        Ok(Self { version: now.max(self.version + 1), ranges })
    }

    /// Returns the ranges of an instance, or those of the others.
    pub fn ranges_of(&self, instance: &str, are_own: bool) -> BTreeSet<IpNet> {
        self.ranges.iter().filter(|(_, to)| (*to == instance) == are_own).map(|(range, _)| *range).collect()
    }
}

/// Returns whether another live instance may still begin connections from a range.
pub fn is_used_elsewhere(range: &IpNet, instance: &str, live: &[InstanceAnnouncement]) -> bool {
    let others = live.iter().filter(|other| other.instance != instance && !other.stopping);
    let mut parts = others.flat_map(|other| &other.ranges).flat_map(|range| &range.parts);
    parts.any(|part| overlaps(part, range))
}

/// Returns the source addresses of pools that customers see as `published`.
pub fn source_ranges(pools: &Pools, published: &[IpNet], now: Timestamp) -> Vec<IpNet> {
    let ranges = pools.values().flat_map(|pool| pool.announced_ranges(now));
    ranges.flat_map(|range| published.iter().filter_map(move |seen| range.source_part(seen))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn assignments_do_not_overlap_and_their_version_grows() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let first = Assignments::default().with(net("198.51.100.16/28"), Some("a"), at(500)).unwrap();
        let second = first.with(net("198.51.100.16/28"), Some("b"), at(100)).unwrap();
        assert_eq!((first.version, second.version), (500, 501), "also if a clock is behind");
        assert_eq!(second.with(net("198.51.100.20/30"), Some("a"), at(600)), Err(net("198.51.100.16/28")));
        let third = second.with(net("198.51.100.32/28"), Some("a"), at(600)).unwrap();
        assert_eq!(third.ranges_of("a", true), BTreeSet::from([net("198.51.100.32/28")]));
        assert_eq!(third.ranges_of("a", false), BTreeSet::from([net("198.51.100.16/28")]));
        assert_eq!(third.ranges_of("c", false).len(), 2);
        let released = third.with(net("198.51.100.16/28"), None, at(700)).unwrap();
        assert_eq!(released.ranges_of("c", false), BTreeSet::from([net("198.51.100.32/28")]));
    }
}
