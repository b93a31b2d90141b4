//! The announcements of the instances of a fleet, and the problems that they show together.
//! Has each published range exactly one host, and do the instances agree?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::policy::addresses::overlapping;
use crate::policy::egress::cover::Cover;

/// The clock offset that concerns an operator, in milliseconds.
const CLOCK_OFFSET_MAX: i64 = 1000;
/// The time after the start of a process, in milliseconds, in which the last announcement of a process of the same name may
/// still have been on its way.
const SUCCESSION_MARGIN: i64 = 1000;
/// The digits of a digest in a message.
const DIGEST_SHOWN: usize = 12;

/// Limits the ranges of an announcement.
pub const RANGES_MAX: usize = 1024;
/// Limits the parts of one range. A host that has every second address of a large range has more.
pub const PARTS_MAX: usize = 256;
/// Limits a text of an announcement, in bytes. The longest is the reason why a bundle cannot be read.
pub const TEXT_MAX: usize = 2048;
/// Limits the reasons why an instance is not ready.
const REASONS_MAX: usize = 16;

/// One announcement of an instance. Other versions of outgate read it, so that a new member needs a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceAnnouncement {
    pub instance: String,
    /// The identity of the process. A restarted instance has another.
    pub process: String,
    pub version: String,
    /// The digest of the active configuration.
    pub digest: String,
    /// The digest of what the hosts of a fleet should have in common.
    pub common_digest: String,
    pub started: Timestamp,
    pub weight: u8,
    pub limited_by: Option<String>,
    /// The reasons why the instance is not ready.
    pub blocked: Vec<String>,
    /// Whether the process only finishes its deliveries in flight.
    pub stopping: bool,
    /// The milliseconds by which the clock of the instance is ahead of the store's. `None`: not measured yet.
    pub clock_offset_ms: Option<i64>,
    pub ranges: Vec<RangeAnnouncement>,
    /// Reason why the instance cannot read the bundle of the rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_error: Option<String>,
    /// The time of the announcement on the store's clock, in milliseconds since 1970. The reader sets it.
    #[serde(default)]
    pub announced_ms: i64,
}

/// A configured range, as one instance has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangeAnnouncement {
    pub pool: String,
    /// The addresses that targets see.
    pub range: IpNet,
    /// The addresses of the host, which differ from `range` behind NAT.
    pub source: IpNet,
    pub state: RangeState,
    pub until: Option<Timestamp>,
    /// The numbers of addresses: configured, those that the host has, and those that the instance can use. They are text,
    /// since an IPv6 range has more than a JSON number can represent.
    pub addresses: String,
    pub present: String,
    pub usable: String,
    /// The parts of `range` that the instance can use.
    pub parts: Vec<IpNet>,
    /// Whether the instance can use too many parts to list, so that `parts` has addresses that it cannot use, too.
    #[serde(default)]
    pub is_truncated: bool,
}

/// The state of a range on one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeState {
    /// Customers know it; no webhook leaves from it yet.
    Upcoming,
    Active,
    /// It is active, and its end is known.
    Retiring,
    /// It is assigned to another instance. This one begins no connection from it, and has some.
    Draining,
    /// It is assigned to another instance, and this one has no connection from it.
    Free,
    /// It is assigned to this instance, and another one has not left it yet.
    Waiting,
}

impl RangeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upcoming => "upcoming",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Draining => "draining",
            Self::Free => "free",
            Self::Waiting => "waiting",
        }
    }
}

impl InstanceAnnouncement {
    /// Returns whether an instance could have written it.
    pub fn is_within_limits(&self) -> bool {
        let is_short = |text: &String| text.len() <= TEXT_MAX;
        let texts = [&self.instance, &self.process, &self.version, &self.digest, &self.common_digest];
        let mut texts = texts.into_iter().chain(&self.limited_by).chain(&self.blocked).chain(&self.bundle_error);
        let is_range_within_limits = |range: &RangeAnnouncement| {
            let texts = [&range.pool, &range.addresses, &range.present, &range.usable];
            range.parts.len() <= PARTS_MAX && texts.into_iter().all(is_short)
        };
        self.ranges.len() <= RANGES_MAX
            && self.blocked.len() <= REASONS_MAX
            && texts.all(is_short)
            && self.ranges.iter().all(is_range_within_limits)
    }
}

impl RangeAnnouncement {
    fn is_sent_from(&self) -> bool {
        self.state != RangeState::Upcoming
    }

    /// Returns whether the host lacks addresses of the range, which is not that of another instance.
    fn is_lacked(&self) -> bool {
        let is_assigned_elsewhere = matches!(self.state, RangeState::Draining | RangeState::Free);
        !is_assigned_elsewhere && !self.is_truncated && self.present != self.addresses
    }
}

/// A problem of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FleetProblem {
    pub problem: FleetProblemKind,
    /// The range, the instance, both, or the number of the rollout.
    pub subject: String,
    pub what: String,
}

/// The number of kinds of problems.
pub const FLEET_PROBLEM_KINDS: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetProblemKind {
    RangeWithoutHost,
    RangeClaimedTwice,
    RangeNotOnHost,
    ConfigurationDiffers,
    ClockOffset,
    DuplicateInstance,
    RolloutFailed,
    RolloutWaiting,
    BundleUnreadable,
    InstanceLost,
}

impl FleetProblemKind {
    /// The kinds with their names.
    pub const ALL: [(Self, &'static str); FLEET_PROBLEM_KINDS] = [
        (Self::RangeWithoutHost, "range_without_host"),
        (Self::RangeClaimedTwice, "range_claimed_twice"),
        (Self::RangeNotOnHost, "range_not_on_host"),
        (Self::ConfigurationDiffers, "configuration_differs"),
        (Self::ClockOffset, "clock_offset"),
        (Self::DuplicateInstance, "duplicate_instance"),
        (Self::RolloutFailed, "rollout_failed"),
        (Self::RolloutWaiting, "rollout_waiting"),
        (Self::BundleUnreadable, "bundle_unreadable"),
        (Self::InstanceLost, "instance_lost"),
    ];
}

/// Returns the problems of the live instances, in a stable order. The ranges of the instances `missed`, which do not run, are
/// published, too.
pub fn problems(announcements: &[InstanceAnnouncement], missed: &[&InstanceAnnouncement]) -> Vec<FleetProblem> {
    // A process that stops soon sends from no address any more, and its successor may have its name already.
    let live: Vec<_> = announcements.iter().filter(|announcement| !announcement.stopping).collect();
    let usable = usable_parts(&live);
    let mut problems = Vec::new();
    let mut add = |problem, subject: String, what| problems.push(FleetProblem { problem, subject, what });
    let is_held_back = |found: &&RangeAnnouncement| matches!(found.state, RangeState::Draining | RangeState::Free);
    let held_back = joined(live.iter().flat_map(|found| &found.ranges).filter(is_held_back));
    let missed_ranges: Vec<_> = missed.iter().map(|gone| (gone.instance.as_str(), joined(&gone.ranges))).collect();
    for range in missing_ranges(live.iter().chain(missed), &usable) {
        let is_in = |ranges: &BTreeSet<IpNet>| overlapping(ranges, &range).next().is_some();
        let gone: Vec<_> = missed_ranges.iter().filter(|(_, had)| is_in(had)).map(|(name, _)| *name).collect();
        let what = match &*gone {
            _ if is_in(&held_back) => format!(
                "no instance has {range}, which customers allow: it is assigned to an instance that does not run, or whose host \
                 lacks the addresses. `outgate fleet move` assigns it to another one"
            ),
            [] => format!("no instance has {range}, which customers allow: give its addresses to a host"),
            names => format!(
                "no instance has {range}, which customers allow and {} listed: start outgate there, or stop it there for good \
                 and give the addresses to another host",
                names.join(", ")
            ),
        };
        add(FleetProblemKind::RangeWithoutHost, range.to_string(), what);
    }
    for (range, instances) in shared_ranges(&live) {
        let names = instances.into_iter().collect::<Vec<_>>().join(", ");
        add(
            FleetProblemKind::RangeClaimedTwice,
            range.to_string(),
            format!("{names} send from {range}, and responses reach one host only: take it from the others"),
        );
    }
    for (instance, range) in lacked_ranges(&live, &usable) {
        let RangeAnnouncement { source, present, addresses, .. } = range;
        let what = format!(
            "{instance} lists {source}, and its host has {present} of the {addresses} addresses: give it the others, or \
             remove the range from the file of this host"
        );
        add(FleetProblemKind::RangeNotOnHost, format!("{instance} {source}"), what);
    }
    for announcement in &live {
        if let Some(error) = &announcement.bundle_error {
            let instance = announcement.instance.clone();
            let what = format!("{instance} cannot read the bundle of the rollout, and tries again: {error}");
            add(FleetProblemKind::BundleUnreadable, instance, what);
        }
    }
    for (instance, what) in differing_configurations(&live) {
        add(FleetProblemKind::ConfigurationDiffers, instance, what);
    }
    for announcement in &live {
        let InstanceAnnouncement { instance, clock_offset_ms, .. } = announcement;
        if let Some(offset) = clock_offset_ms.filter(|offset| offset.saturating_abs() > CLOCK_OFFSET_MAX) {
            let what = format!("the clock of {instance} differs by {offset} ms from that of the store: check its NTP");
            add(FleetProblemKind::ClockOffset, instance.clone(), what);
        }
    }
    for instance in duplicates(&live) {
        let what =
            format!("two processes have the name {instance}: give each its own fleet.instance, and restart them");
        add(FleetProblemKind::DuplicateInstance, instance.to_owned(), what);
    }
    problems.sort();
    problems.dedup();
    problems
}

/// Returns the ranges as few that do not overlap.
fn joined<'a>(ranges: impl IntoIterator<Item = &'a RangeAnnouncement>) -> BTreeSet<IpNet> {
    IpNet::aggregate(&ranges.into_iter().map(|range| range.range).collect()).into_iter().collect()
}

/// Returns the addresses that instances can use.
fn usable_parts(live: &[&InstanceAnnouncement]) -> BTreeMap<IpNet, ()> {
    let ranges = live.iter().flat_map(|announcement| &announcement.ranges);
    ranges.flat_map(|range| &range.parts).map(|part| (*part, ())).collect()
}

/// Returns the ranges of instances whose hosts lack addresses of them. A host without any address of a range that other hosts
/// have is no problem: it waits for the range, as with VRRP.
fn lacked_ranges<'a>(
    live: &[&'a InstanceAnnouncement],
    usable: &BTreeMap<IpNet, ()>,
) -> Vec<(&'a str, &'a RangeAnnouncement)> {
    let waits = |range: &RangeAnnouncement| {
        range.present == "0" && Cover::of(usable, &range.range, &|()| true).missing.is_empty()
    };
    let lacked = |announcement: &&'a InstanceAnnouncement| {
        let instance = announcement.instance.as_str();
        let lacked = announcement.ranges.iter().filter(|range| range.is_lacked() && !waits(range));
        lacked.map(|range| (instance, range)).collect::<Vec<_>>()
    };
    live.iter().flat_map(lacked).collect()
}

/// Returns the parts of published ranges that no instance can use.
fn missing_ranges<'a>(
    publishers: impl Iterator<Item = &'a &'a InstanceAnnouncement>,
    usable: &BTreeMap<IpNet, ()>,
) -> BTreeSet<IpNet> {
    let published: BTreeSet<IpNet> =
        publishers.flat_map(|announcement| &announcement.ranges).map(|range| range.range).collect();
    let missing = published.iter().flat_map(|range| Cover::of(usable, range, &|()| true).missing);
    IpNet::aggregate(&missing.collect()).into_iter().collect()
}

/// Returns the addresses from which several instances send, with their names.
fn shared_ranges<'a>(live: &[&'a InstanceAnnouncement]) -> BTreeMap<IpNet, BTreeSet<&'a str>> {
    let mut claims = BTreeMap::<IpNet, BTreeSet<&str>>::new();
    for announcement in live {
        let exact = announcement.ranges.iter().filter(|range| range.is_sent_from() && !range.is_truncated);
        for part in exact.flat_map(|range| &range.parts) {
            claims.entry(*part).or_default().insert(&announcement.instance);
        }
    }
    // In the order of the table, the ranges that contain a range come before it.
    let (mut around, mut shared) = (Vec::<(IpNet, BTreeSet<&str>)>::new(), BTreeMap::<_, Vec<IpNet>>::new());
    for (range, mut names) in claims {
        while around.pop_if(|(wider, _)| !wider.contains(&range)).is_some() {}
        names.extend(around.last().into_iter().flat_map(|(_, names)| names));
        if names.len() > 1 {
            shared.entry(names.clone()).or_default().push(range);
        }
        around.push((range, names));
    }
    let aggregated = |(names, ranges): (BTreeSet<_>, Vec<_>)| {
        IpNet::aggregate(&ranges).into_iter().map(move |range| (range, names.clone()))
    };
    shared.into_iter().flat_map(aggregated).collect()
}

/// Returns the instances whose configuration is not that of most.
fn differing_configurations(live: &[&InstanceAnnouncement]) -> Vec<(String, String)> {
    let mut counts = BTreeMap::<&str, usize>::new();
    live.iter().for_each(|announcement| *counts.entry(&announcement.common_digest).or_default() += 1);
    let Some((common, count)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return Vec::new() };
    let usual = live.iter().find(|announcement| announcement.common_digest == common);
    let shown =
        |announcement: &InstanceAnnouncement| announcement.digest.chars().take(DIGEST_SHOWN).collect::<String>();
    let differs = |announcement: &&&InstanceAnnouncement| announcement.common_digest != common;
    let describe = |announcement: &&InstanceAnnouncement| {
        let what = format!(
            "{} has the configuration {}, and {count} of {} instances have that of {} ({}): give all the same configuration",
            announcement.instance,
            shown(announcement),
            live.len(),
            usual.map_or("", |usual| &usual.instance),
            usual.map_or_else(String::new, |usual| shown(usual)),
        );
        (announcement.instance.clone(), what)
    };
    live.iter().filter(differs).map(describe).collect()
}

/// Returns the names of several processes that run at the same time: the older has announced itself after the younger began.
fn duplicates<'a>(live: &[&'a InstanceAnnouncement]) -> BTreeSet<&'a str> {
    let mut by_name = BTreeMap::<&str, Vec<&InstanceAnnouncement>>::new();
    live.iter().for_each(|announcement| by_name.entry(&announcement.instance).or_default().push(announcement));
    let began = |younger: &InstanceAnnouncement| {
        let started = younger.started.as_millisecond().saturating_sub(younger.clock_offset_ms.unwrap_or_default());
        started.saturating_add(SUCCESSION_MARGIN)
    };
    let is_duplicate = |processes: &[&InstanceAnnouncement]| {
        let Some(youngest) = processes.iter().max_by_key(|process| began(process)) else { return false };
        processes.iter().any(|older| older.process != youngest.process && older.announced_ms > began(youngest))
    };
    by_name.into_iter().filter(|(_, processes)| is_duplicate(processes)).map(|(name, _)| name).collect()
}

/// Returns, for each published range, the instances that have addresses of it.
pub fn ranges(announcements: &[InstanceAnnouncement]) -> BTreeMap<IpNet, Vec<(&str, &RangeAnnouncement)>> {
    let mut ranges = BTreeMap::<_, Vec<_>>::new();
    for announcement in announcements {
        for range in &announcement.ranges {
            let hosts = ranges.entry(range.range).or_default();
            if range.present != "0" {
                hosts.push((announcement.instance.as_str(), range));
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests;
