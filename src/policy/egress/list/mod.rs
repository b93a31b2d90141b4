//! The list of the ranges that customers allow: exact CIDRs, their states and dates, and a serial.
//! Which addresses must a customer's firewall accept, and since when is the list as it is?
//!
//! A range is in the list from its announcement until no connection from it can exist.

mod document;
pub mod format;
mod template;
mod version;

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ipnet::IpNet;
use jiff::Timestamp;

use super::{AnnouncedRange, Pool, RangePhase};
use crate::digest::sha256;
use crate::names::PoolName;
pub use version::ListVersion;

/// Limits the part of a pool's name in identifiers. With it, the name of an ipset has its 31 characters at most.
const SLUG_MAX: usize = 16;

/// The ranges of one pool or of all pools, at one time.
pub struct EgressList {
    /// `None`: all pools.
    pub pool: Option<PoolName>,
    pub ranges: Vec<ListedRange>,
    /// All ranges, in the smallest number of CIDRs, IPv4 first.
    pub prefixes: Vec<IpNet>,
    /// The time of the last change: of the configured ranges, or of the state of one of them.
    pub changed_at: Timestamp,
    /// The time since which the ranges are configured.
    pub configured_at: Timestamp,
    /// The time of the next change of a state.
    pub next_change: Option<Timestamp>,
}

/// A CIDR of one pool, with its validity period and its state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedRange {
    pub pool: PoolName,
    pub cidr: IpNet,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub state: RangeState,
}

/// The state of a range, as customers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RangeState {
    /// outgate will send from the range.
    Announced,
    /// outgate sends from the range.
    Active,
    /// The end of the range is known, or past while earlier connections may still exist.
    Retiring,
}

impl RangeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Active => "active",
            Self::Retiring => "retiring",
        }
    }
}

impl EgressList {
    /// Lists the ranges of all `pools`, or of one of them. A range stays in the list for `grace` after its end.
    pub fn new<'p>(
        pools: impl IntoIterator<Item = &'p Pool>,
        pool: Option<&PoolName>,
        grace: Duration,
        version: &ListVersion,
        now: Timestamp,
    ) -> Self {
        let mut groups: BTreeMap<_, Vec<IpNet>> = BTreeMap::new();
        let (mut changed_at, mut next_change) = (version.since, None);
        for pool in pools.into_iter().filter(|found| pool.is_none_or(|pool| pool == found.name())) {
            for range in pool.announced_ranges(now) {
                for time in changes(&range, grace) {
                    match time <= now {
                        true => changed_at = changed_at.max(time),
                        false => next_change = Some(next_change.map_or(time, |next: Timestamp| next.min(time))),
                    }
                }
                if let Some(state) = state(&range, grace, now) {
                    let key = (pool.name(), range.from, range.until, state);
                    groups.entry(key).or_default().push(range.seen_as);
                }
            }
        }
        let mut ranges: Vec<ListedRange> = groups
            .into_iter()
            .flat_map(|((pool, from, until, state), cidrs)| {
                let listed = move |cidr| ListedRange { pool: pool.clone(), cidr, from, until, state };
                IpNet::aggregate(&cidrs).into_iter().map(listed)
            })
            .collect();
        ranges.sort_unstable();
        let prefixes = IpNet::aggregate(&ranges.iter().map(|range| range.cidr).collect());
        Self { pool: pool.cloned(), ranges, prefixes, changed_at, configured_at: version.since, next_change }
    }

    /// Returns the serial: the Unix time of the last change, in seconds. It never decreases.
    pub fn serial(&self) -> i64 {
        self.changed_at.as_second()
    }

    /// Returns the time of the last change (RFC 3339).
    pub fn date(&self) -> String {
        rfc3339(self.changed_at)
    }

    /// Returns the CIDRs of one family.
    pub fn family(&self, v6: bool) -> impl Iterator<Item = &IpNet> {
        self.prefixes.iter().filter(move |net| super::is_v6(net) == v6)
    }

    /// Returns the name of the list in identifiers and paths: `outgate` or `outgate-POOL`, of lower-case letters, digits
    /// and hyphens. It contains nothing that has a meaning in a format.
    pub fn name(&self) -> String {
        self.pool.as_ref().map_or_else(|| "outgate".to_owned(), |pool| format!("outgate-{}", slug(pool)))
    }
}

/// Returns the name of a pool in identifiers and paths. Two pools have different ones: a name that had to be changed gets
/// a part of its hash.
pub fn slug(pool: &PoolName) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let name = pool.as_str();
    if name.len() <= SLUG_MAX && name.chars().all(plain) && !name.starts_with('-') && !name.ends_with('-') {
        return name.to_owned();
    }
    let hash = &HEXLOWER.encode(&sha256(name.as_bytes()))[..4];
    let lower = name.to_ascii_lowercase().replace(|c| !plain(c), "-");
    format!("{}-{hash}", &lower[..lower.len().min(SLUG_MAX - 1 - hash.len())])
}

/// Returns the times at which the state of a range changes.
fn changes(range: &AnnouncedRange, grace: Duration) -> impl Iterator<Item = Timestamp> {
    range.from.into_iter().chain(range.until).chain(gone_at(range, grace))
}

/// Returns the time from which a range is no longer in the list.
fn gone_at(range: &AnnouncedRange, grace: Duration) -> Option<Timestamp> {
    range.until.and_then(|until| until.checked_add(grace).ok())
}

/// Returns the state of a range; `None`: it is no longer in the list.
fn state(range: &AnnouncedRange, grace: Duration, now: Timestamp) -> Option<RangeState> {
    let is_gone = range.phase == RangePhase::Ended && gone_at(range, grace).is_some_and(|gone| gone <= now);
    let state = match (range.phase, range.until) {
        (RangePhase::Upcoming, _) => RangeState::Announced,
        (_, Some(_)) => RangeState::Retiring,
        (_, None) => RangeState::Active,
    };
    (!is_gone).then_some(state)
}

/// Returns a time in UTC without fractions of a second (RFC 3339).
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
