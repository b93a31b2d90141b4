//! The assignments of published ranges to instances, which operators make with `outgate fleet move`.
//! From which ranges may an instance not send?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::status::{InstanceAnnouncement, TEXT_MAX};
use crate::policy::addresses::{overlapping, overlaps};
use crate::policy::egress::Pools;
use crate::policy::egress::cover::Cover;

/// The number of assigned ranges. Each makes a change of the addresses of a host slower.
pub const RANGES_MAX: usize = 4096;
/// The time, in milliseconds, by which a version may be ahead of the clock of this instance.
const AHEAD_MAX: u64 = 24 * 60 * 60 * 1000;

/// The assignments of a fleet. They only take addresses away from instances: the host of an instance must have its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// It grows with each change: the time in milliseconds since 1970, or the former version and one.
    pub version: u64,
    /// The instances by the range that customers see. No two ranges overlap.
    ranges: BTreeMap<IpNet, String>,
}

/// The reason why a range cannot be assigned.
#[derive(Debug, PartialEq, Eq)]
pub enum RangeError {
    /// This assigned range overlaps it.
    Overlaps(IpNet),
    TooMany,
}

impl Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlaps(other) => write!(f, "{other} is assigned, and overlaps it: release it first"),
            Self::TooMany => write!(f, "{RANGES_MAX} ranges are assigned, which is the most: release some first"),
        }
    }
}

impl Assignments {
    /// Reads a document of the store, which has `version` for it. An intruder there could have written it. The error says why
    /// this instance must not follow it.
    pub fn read(document: &str, version: &str, now: Timestamp) -> Result<Self, String> {
        if document.is_empty() && version == "0" {
            return Ok(Self::default());
        }
        let read: Self = serde_json::from_str(document).map_err(|error| format!("it is not readable: {error}"))?;
        if read.version.to_string() != version {
            return Err(format!("its version is {}, and the store says {version:.20}", read.version));
        }
        read.check(now).map(|()| read)
    }

    /// Checks that an instance could have written them. The error says why this instance must not follow them.
    pub fn check(&self, now: Timestamp) -> Result<(), String> {
        let has_host_bits = |range: &&IpNet| **range != range.trunc();
        // In this order, a range that overlaps a later one overlaps the next one.
        let mut neighbours = self.ranges.keys().zip(self.ranges.keys().skip(1));
        if self.version > milliseconds(now).saturating_add(AHEAD_MAX) {
            Err(format!("its version {} is more than a day ahead of the clock of this instance", self.version))
        } else if self.ranges.len() > RANGES_MAX {
            Err(format!("it has {} ranges, and the most are {RANGES_MAX}", self.ranges.len()))
        } else if let Some(name) = self.ranges.values().find(|name| name.len() > TEXT_MAX) {
            Err(format!("the name of an instance has {} bytes, and the most are {TEXT_MAX}", name.len()))
        } else if let Some(range) = self.ranges.keys().find(has_host_bits) {
            Err(format!("{range} has host bits"))
        } else if let Some((range, other)) = neighbours.find(|(range, other)| overlaps(range, other)) {
            Err(format!("{range} and {other} overlap"))
        } else {
            Ok(())
        }
    }

    pub fn ranges(&self) -> &BTreeMap<IpNet, String> {
        &self.ranges
    }

    /// Returns the next assignments, in which a range is that of an instance, or of none.
    pub fn with(&self, range: IpNet, instance: Option<&str>, now: Timestamp) -> Result<Self, RangeError> {
        let mut ranges = self.ranges.clone();
        ranges.remove(&range);
        if let Some(other) = ranges.keys().find(|other| overlaps(other, &range)) {
            return Err(RangeError::Overlaps(*other));
        }
        ranges.extend(instance.map(|instance| (range, instance.to_owned())));
        if ranges.len() > RANGES_MAX {
            return Err(RangeError::TooMany);
        }
        Ok(Self { version: milliseconds(now).max(self.version.saturating_add(1)), ranges })
    }

    /// Returns the parts of a range of which each is assigned as a whole or not at all.
    pub fn parts_of(&self, range: IpNet) -> Vec<IpNet> {
        let inside = self.ranges.range(range..).map(|(part, _)| *part).take_while(|part| range.contains(part));
        let inside: Vec<IpNet> = inside.collect();
        if inside.is_empty() {
            return vec![range];
        }
        let mut parts = Cover::of(&self.ranges, &range, &|_| true).missing;
        parts.extend(inside);
        parts.sort();
        parts
    }

    /// Returns the ranges of an instance, or those of the others.
    pub fn ranges_of(&self, instance: &str, are_own: bool) -> BTreeSet<IpNet> {
        self.ranges.iter().filter(|(_, to)| (*to == instance) == are_own).map(|(range, _)| *range).collect()
    }

    /// Returns whether a range, or a part of it, is assigned to another instance.
    pub fn is_elsewhere(&self, range: &IpNet, instance: &str) -> bool {
        let range = range.trunc();
        // In this order, a range comes directly before those that it contains, since no two of these overlap.
        let around = self.ranges.range(..range).next_back().filter(|(other, _)| other.contains(&range));
        let inside = self.ranges.range(range..).take_while(|(other, _)| range.contains(*other));
        around.into_iter().chain(inside).any(|(_, to)| to != instance)
    }
}

fn milliseconds(now: Timestamp) -> u64 {
    u64::try_from(now.as_millisecond()).unwrap_or_default()
}

/// Returns those of the ranges, of which no two overlap, from which no other live instance may still begin connections.
pub fn free_of_others(ranges: &BTreeSet<IpNet>, instance: &str, live: &[InstanceAnnouncement]) -> BTreeSet<IpNet> {
    let mut free = ranges.clone();
    // One that stops still connects for the deliveries that it has accepted.
    let others = live.iter().filter(|other| other.instance != instance);
    for part in others.flat_map(|other| &other.ranges).flat_map(|range| &range.parts) {
        let used: Vec<IpNet> = overlapping(&free, part).copied().collect();
        used.iter().for_each(|range| _ = free.remove(range));
    }
    free
}

/// Returns the source addresses of pools that customers see as `published`.
pub fn source_ranges(pools: &Pools, published: &[IpNet], now: Timestamp) -> Vec<IpNet> {
    let ranges = pools.values().flat_map(|pool| pool.announced_ranges(now));
    ranges.flat_map(|range| published.iter().filter_map(move |seen| range.source_part(seen))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::names::PoolName;
    use crate::policy::{egress, fixture};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn assignments_do_not_overlap_and_their_version_grows() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let first = Assignments::default().with(net("198.51.100.16/28"), Some("a"), at(500)).unwrap();
        let second = first.with(net("198.51.100.16/28"), Some("b"), at(100)).unwrap();
        assert_eq!((first.version, second.version), (500, 501), "also if a clock is behind");
        assert_eq!(
            second.with(net("198.51.100.20/30"), Some("a"), at(600)),
            Err(RangeError::Overlaps(net("198.51.100.16/28")))
        );
        let third = second.with(net("198.51.100.32/28"), Some("a"), at(600)).unwrap();
        assert_eq!(third.ranges_of("a", true), BTreeSet::from([net("198.51.100.32/28")]));
        assert_eq!(third.ranges_of("a", false), BTreeSet::from([net("198.51.100.16/28")]));
        assert_eq!(third.ranges_of("c", false).len(), 2);
        let released = third.with(net("198.51.100.16/28"), None, at(700)).unwrap();
        assert_eq!(released.ranges_of("c", false), BTreeSet::from([net("198.51.100.32/28")]));
    }

    /// Compares the search in the order of the ranges with a comparison of each.
    #[test]
    fn assignments_find_the_ranges_that_overlap_another_one() {
        let assigned = [
            ("198.51.100.0/29", "a"),
            ("198.51.100.16/28", "b"),
            ("198.51.100.32/32", "a"),
            ("198.51.100.64/26", "a"),
            ("2001:db8::/48", "b"),
            ("2001:db8:1::1/128", "a"),
        ];
        let with =
            |all: Assignments, (range, to): &(&str, &str)| all.with(net(range), Some(to), Timestamp::now()).unwrap();
        let all = assigned.iter().fold(Assignments::default(), with);
        let ranges: BTreeSet<IpNet> = all.ranges().keys().copied().collect();
        let (v4, v6) = (u32::from_be_bytes([198, 51, 100, 0]), 0x2001_0db8_u128 << 96);
        let v4 = (0..160_u32).flat_map(|host| [0, 8, 23, 24, 26, 27, 28, 29, 31, 32].map(|length| (v4 + host, length)));
        let v4 = v4.map(|(address, length)| IpNet::new(std::net::Ipv4Addr::from(address).into(), length).unwrap());
        let v6 = [0, 1, 1 << 80, (1 << 80) + 1, (1 << 80) + 2, 1 << 81].map(|host| v6 + host);
        let v6 = v6.into_iter().flat_map(|address| [0, 32, 47, 48, 64, 127, 128].map(|length| (address, length)));
        let v6 = v6.map(|(address, length)| IpNet::new(std::net::Ipv6Addr::from(address).into(), length).unwrap());
        for range in v4.chain(v6) {
            let expected: Vec<&IpNet> = ranges.iter().filter(|other| overlaps(other, &range)).collect();
            assert_eq!(overlapping(&ranges, &range).collect::<Vec<_>>(), expected, "{range}");
            for instance in ["a", "b", "c"] {
                let is_elsewhere = expected.iter().any(|other| all.ranges()[*other] != instance);
                assert_eq!(all.is_elsewhere(&range, instance), is_elsewhere, "{range} {instance}");
            }
        }
    }

    #[test]
    fn range_has_a_part_for_each_assignment_inside_it() {
        let assigned = |ranges: &[&str]| {
            let with =
                |assigned: Assignments, range: &&str| assigned.with(net(range), Some("a"), Timestamp::now()).unwrap();
            ranges.iter().fold(Assignments::default(), with)
        };
        for (ranges, expected) in [
            (&[][..], &["198.51.100.16/28"][..]),
            (&["198.51.100.16/28"], &["198.51.100.16/28"]),
            (&["198.51.100.0/24"], &["198.51.100.16/28"]),
            (&["198.51.100.0/28", "203.0.113.0/24", "2001:db8::/48"], &["198.51.100.16/28"]),
            (&["198.51.100.16/29"], &["198.51.100.16/29", "198.51.100.24/29"]),
            (
                &["198.51.100.20/31", "198.51.100.31/32", "198.51.100.32/28"],
                &[
                    "198.51.100.16/30",
                    "198.51.100.20/31",
                    "198.51.100.22/31",
                    "198.51.100.24/30",
                    "198.51.100.28/31",
                    "198.51.100.30/32",
                    "198.51.100.31/32",
                ],
            ),
        ] {
            let expected: Vec<IpNet> = expected.iter().map(|range| net(range)).collect();
            assert_eq!(assigned(ranges).parts_of(net("198.51.100.16/28")), expected, "{ranges:?}");
        }
        let parts = assigned(&["2001:db8::/64"]).parts_of(net("2001:db8::/48"));
        assert_eq!((parts.len(), parts[0]), (17, net("2001:db8::/64")));
    }

    #[test]
    fn document_of_the_store_is_followed_only_within_bounds() {
        const DAY: u64 = 86_400_000; // milliseconds
        let now = Timestamp::from_millisecond(1_000_000).unwrap();
        let document = |version: u64, ranges: &[String]| {
            let ranges: Vec<_> = ranges.iter().map(|range| format!("\"{range}\":\"a\"")).collect();
            format!("{{\"version\":{version},\"ranges\":{{{}}}}}", ranges.join(","))
        };
        let read = |version: u64, ranges: &[&str]| {
            let ranges: Vec<_> = ranges.iter().map(|range| (*range).to_owned()).collect();
            Assignments::read(&document(version, &ranges), &version.to_string(), now)
        };
        assert_eq!(Assignments::read("", "0", now), Ok(Assignments::default()));
        assert_eq!(read(7, &["198.51.100.16/28", "198.51.100.32/28"]).unwrap().ranges().len(), 2);
        assert!(read(1_000_000 + DAY, &[]).is_ok());
        let refused = [
            (read(1_000_001 + DAY, &[]), "ahead"),
            (read(u64::MAX, &[]), "ahead"),
            (read(7, &["198.51.100.17/28"]), "host bits"),
            (read(7, &["198.51.100.0/24", "198.51.100.16/28", "203.0.113.0/24"]), "overlap"),
            (Assignments::read(&document(8, &[]), "7", now), "its version"),
            (Assignments::read("", "7", now), "readable"),
            (Assignments::read("[]", "7", now), "readable"),
        ];
        for (result, reason) in refused {
            assert!(result.as_ref().is_err_and(|error| error.contains(reason)), "{reason}: {result:?}");
        }
        let named = |length: usize| {
            let document = format!("{{\"version\":7,\"ranges\":{{\"198.51.100.16/28\":\"{}\"}}}}", "n".repeat(length));
            Assignments::read(&document, "7", now)
        };
        assert!(named(TEXT_MAX).is_ok());
        assert!(named(TEXT_MAX + 1).is_err_and(|error| error.contains("the name of an instance has 2049 bytes")));
        let many: Vec<_> = (0..=RANGES_MAX).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
        assert!(Assignments::read(&document(7, &many), "7", now).is_err_and(|error| error.contains("the most")));
        let full = Assignments::read(&document(7, &many[1..]), "7", now).unwrap();
        assert_eq!(full.with(net("203.0.113.0/24"), Some("a"), now), Err(RangeError::TooMany));
        assert!(full.with(net(&many[1]), Some("b"), now).is_ok(), "an assigned range may change");
        let last = Assignments { version: u64::MAX, ..Assignments::default() };
        assert_eq!(last.with(net("203.0.113.0/24"), None, now).unwrap().version, u64::MAX);
    }

    #[test]
    fn range_error_names_the_range_to_release() {
        let overlaps = RangeError::Overlaps(net("198.51.100.16/28")).to_string();
        assert_eq!(overlaps, "198.51.100.16/28 is assigned, and overlaps it: release it first");
        let too_many = "4096 ranges are assigned, which is the most: release some first";
        assert_eq!(RangeError::TooMany.to_string(), too_many);
    }

    #[test]
    fn ranges_are_free_of_others_unless_one_can_use_a_part_of_them() {
        let instance = |name: &str, stopping: bool, parts: &[&str]| -> InstanceAnnouncement {
            let range = json!({
                "pool": "default", "range": "198.51.100.0/24", "source": "198.51.100.0/24", "state": "active",
                "until": null, "addresses": "256", "present": "256", "usable": "256", "parts": parts,
            });
            let announcement = json!({
                "instance": name, "process": "", "version": "", "digest": "", "common_digest": "",
                "started": "2026-01-01T00:00:00Z", "weight": 100, "limited_by": null, "blocked": [],
                "stopping": stopping, "clock_offset_ms": null, "ranges": [range],
            });
            serde_json::from_value(announcement).unwrap()
        };
        let own = instance("a", false, &["198.51.100.16/28"]);
        let nets = |list: &[&str]| list.iter().map(|range| net(range)).collect::<BTreeSet<_>>();
        let ranges = nets(&["198.51.100.16/28", "198.51.100.32/28", "198.51.100.48/28", "203.0.113.0/24"]);
        for (stopping, parts, expected) in [
            (false, &[][..], &["198.51.100.16/28", "198.51.100.32/28", "198.51.100.48/28", "203.0.113.0/24"][..]),
            (false, &["198.51.100.36/30"], &["198.51.100.16/28", "198.51.100.48/28", "203.0.113.0/24"]),
            (true, &["198.51.100.32/27"], &["198.51.100.16/28", "203.0.113.0/24"]),
            (false, &["198.51.100.0/24"], &["203.0.113.0/24"]),
        ] {
            let live = [own.clone(), instance("b", stopping, parts)];
            assert_eq!(free_of_others(&ranges, "a", &live), nets(expected), "{parts:?}");
        }
    }

    #[test]
    fn source_ranges_are_the_addresses_behind_the_published_ones() {
        let (mut config, mut behind_nat) = (fixture::config(), fixture::pool());
        let range = &mut behind_nat.ranges[0].value;
        (range.cidr, range.seen_as) = (net("10.0.0.16/28"), Some(fixture::at(6, net("198.51.100.16/28"))));
        config.egress.insert(PoolName::new("nat"), fixture::at(7, behind_nat));
        let now = Timestamp::now();
        let pools = egress::compile(&config, now, &mut Vec::new());
        let sources = |published: &[&str]| {
            let published: Vec<_> = published.iter().map(|range| net(range)).collect();
            source_ranges(&pools, &published, now)
        };
        assert_eq!(sources(&["203.0.113.0/24", "10.0.0.16/28"]), [], "no target sees these");
        assert_eq!(sources(&["127.0.0.0/16"]), [net("127.0.7.0/28")]);
        assert_eq!(sources(&["198.51.100.20/30", "127.0.7.8/32"]), [net("127.0.7.8/32"), net("10.0.0.20/30")]);
    }
}
