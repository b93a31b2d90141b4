//! The notice that customers get before webhooks leave from an address.
//! Was each address announced long enough before outgate sends from it?
//!
//! An address counts as announced once it is in an active configuration, in any pool: from then on
//! `outgate egress list` and the publication contain it. Behind NAT, the addresses that targets see count (`seen_as`).

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::cover::Cover;
use super::{AnnouncedRange, Pool, Pools, RangePhase, SourceRange};
use crate::config::{Config, Problem};

/// The time for which a removed range counts as announced: a rollback may restore it without notice. The receivers of
/// notices learn of its end afterwards.
const RETURN_MAX: Duration = Duration::from_secs(24 * 3600);
/// Seconds.
const DAY: i64 = 24 * 3600;

/// The dates of one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The time since which the range is in the active configuration. `None`: since before outgate stored that.
    pub announced: Option<Timestamp>,
    /// The end of the notice that its pool gave at the announcement.
    pub notice_end: Option<Timestamp>,
    /// The time from which webhooks leave from the range. `None`: since before outgate stored that.
    pub starts: Option<Timestamp>,
    /// The time from which they no longer do.
    pub until: Option<Timestamp>,
    /// The time since which the range is in no active configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Timestamp>,
}

impl Announcement {
    /// Returns the time from which customers need not allow the range.
    pub fn end(&self) -> Option<Timestamp> {
        let removed = self.removed.map(|removed| later(removed, RETURN_MAX));
        self.until.into_iter().chain(removed).min()
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        self.end().is_none_or(|end| now < end)
    }
}

/// The ranges of the active configuration, with the dates of their announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcements {
    ranges: BTreeMap<IpNet, Announcement>,
    /// The time up to which the receivers of notices know what happened.
    notified_until: Timestamp,
}

/// A range from which webhooks leave before its notice ends.
pub struct EarlyRange {
    pub cidr: IpNet,
    pub starts: Timestamp,
    pub notice_end: Timestamp,
}

/// A change of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeChange {
    Announced,
    Started,
    Ended,
}

/// The changes of ranges in the order of time.
pub type RangeChanges = BTreeMap<(Timestamp, RangeChange), Vec<(IpNet, Announcement)>>;

impl Announcements {
    /// Returns the announcements of a host whose customers know its ranges already.
    pub fn known(pools: &Pools, now: Timestamp) -> Self {
        let known = |(_, range): (&Pool, AnnouncedRange)| {
            let starts = range.from.filter(|from| now < *from);
            let dates = Announcement { announced: None, notice_end: None, starts, until: range.until, removed: None };
            (range.seen_as, dates)
        };
        Self::collect(pools.values().flat_map(|pool| sent_ranges(pool, now)).map(known), now)
    }

    /// Returns the announcements after the adoption of these pools.
    pub fn adopt(&self, pools: &Pools, now: Timestamp) -> Self {
        let announce = |(pool, range): (&Pool, AnnouncedRange)| {
            let starts = start(range.from, now);
            let known = self.find(&range.seen_as, now).unwrap_or_else(|| Announcement {
                announced: Some(now),
                notice_end: Some(later(now, pool.notice)),
                starts: Some(starts),
                until: None,
                removed: None,
            });
            // A range that is in use has been so for longer than its `from` says.
            let starts = if starts <= now { known.starts.min(Some(starts)) } else { Some(starts) };
            (range.seen_as, Announcement { starts, until: range.until, removed: None, ..known })
        };
        let announced = pools.values().flat_map(|pool| sent_ranges(pool, now)).map(announce);
        let mut next = Self::collect(announced, self.notified_until);
        for (cidr, known) in &self.ranges {
            let removed = known.removed.or(known.is_valid(now).then_some(now));
            let known = Announcement { removed, ..*known };
            if known.is_valid(now) || known.end().is_some_and(|end| end > self.notified_until) {
                next.ranges.entry(*cidr).or_insert(known);
            }
        }
        next
    }

    /// Collects the ranges of all pools. A range of two pools starts with the first and ends with the last.
    fn collect(announced: impl Iterator<Item = (IpNet, Announcement)>, notified_until: Timestamp) -> Self {
        let mut ranges = BTreeMap::<IpNet, Announcement>::new();
        for (cidr, announcement) in announced {
            let known = ranges.entry(cidr).or_insert(announcement);
            known.starts = known.starts.min(announcement.starts);
            known.until = known.until.zip(announcement.until).map(|(a, b)| a.max(b));
        }
        Self { ranges, notified_until }
    }

    /// Returns the dates that hold for every address of a range: the latest of its parts. `None`: an address is not
    /// announced.
    fn find(&self, cidr: &IpNet, now: Timestamp) -> Option<Announcement> {
        let cover = Cover::of(&self.ranges, cidr, &|dates| dates.is_valid(now));
        let latest = |a: Announcement, b: Announcement| Announcement {
            announced: a.announced.max(b.announced),
            notice_end: a.notice_end.max(b.notice_end),
            starts: a.starts.max(b.starts),
            until: a.until.into_iter().chain(b.until).min(),
            removed: a.removed.max(b.removed),
        };
        cover.entries.into_iter().copied().reduce(latest).filter(|_| cover.missing.is_empty())
    }

    /// Returns a problem for each range from which a configuration would send without notice.
    pub fn problems(&self, config: &Config, now: Timestamp) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, pool) in config.egress.iter().filter(|(_, pool)| !pool.force) {
            for range in &pool.ranges {
                let (compiled, starts) = (SourceRange::new(range, pool), start(range.from, now));
                if compiled.phase(now) == RangePhase::Ended {
                    continue;
                }
                let mut seen = compiled.to_nets().map(|cidr| compiled.seen_as(&cidr));
                let early = seen.find_map(|cidr| {
                    let known = self.find(&cidr, now);
                    let earliest = earliest(known, pool.notice, now)?;
                    (starts < earliest).then_some((cidr, known, earliest))
                });
                let Some((cidr, known, earliest)) = early else { continue };
                let since = match known.and_then(|known| known.announced) {
                    Some(announced) => format!("customers know it since {announced:.0} only"),
                    None => "customers do not know it yet".to_owned(),
                };
                let when = range
                    .from
                    .filter(|from| now < *from)
                    .map_or("at once".to_owned(), |from| format!("from {from:.0} on"));
                let message = format!("egress.{name} would send from {cidr} {when}, before its notice ends: {since}");
                let help = format!(
                    "write from = \"{}\" or later, which gives customers the time of egress.{name}.notice; or write \
                     force = true in [egress.{name}], and lose the webhooks of those who have not allowed the range",
                    next_day(earliest)
                );
                problems.push(Problem::at(range.span, message).help(help));
            }
        }
        problems
    }

    /// Returns the announcements that were made before a time.
    pub fn before(&self, at: Timestamp) -> Self {
        let mut former = self.clone();
        former.ranges.retain(|_, dates| dates.announced < Some(at));
        former
    }

    /// Returns the time up to which the receivers of notices know what happened.
    pub fn notified_until(&self) -> Timestamp {
        self.notified_until
    }

    /// Returns the same announcements after the receivers of notices got those up to `notified_until`.
    pub fn with_notified(&self, notified_until: Timestamp) -> Self {
        Self { notified_until, ..self.clone() }
    }

    /// Returns what happened after `since` and until `now`, with the ranges in question.
    pub fn changes(&self, since: Timestamp, now: Timestamp) -> RangeChanges {
        let mut changes = RangeChanges::new();
        for (cidr, dates) in &self.ranges {
            let starts = dates.starts.filter(|_| dates.removed.is_none());
            let dated = [
                (RangeChange::Announced, dates.announced),
                (RangeChange::Started, starts),
                (RangeChange::Ended, dates.end()),
            ];
            for (change, at) in dated {
                let Some(at) = at.filter(|at| since < *at && *at <= now) else { continue };
                // Other ranges may contain parts of one that has ended.
                let parts = match change {
                    RangeChange::Ended => Cover::of(&self.ranges, cidr, &|dates| dates.is_valid(now)).missing,
                    RangeChange::Announced | RangeChange::Started => vec![*cidr],
                };
                if !parts.is_empty() {
                    changes.entry((at, change)).or_default().extend(parts.into_iter().map(|part| (part, *dates)));
                }
            }
        }
        changes
    }

    /// Returns the ranges of a pool from which webhooks leave before their notice ends.
    pub fn early<'a>(&'a self, pool: &'a Pool, now: Timestamp) -> impl Iterator<Item = EarlyRange> + 'a {
        sent_ranges(pool, now).filter_map(move |(_, range)| {
            let dates = self.find(&range.seen_as, now)?;
            let (starts, notice_end) = (dates.starts?, dates.notice_end?);
            (starts < notice_end && now < notice_end).then_some(EarlyRange { cidr: range.seen_as, starts, notice_end })
        })
    }
}

/// Returns the ranges that webhooks leave from, now or later.
pub(super) fn sent_ranges(pool: &Pool, now: Timestamp) -> impl Iterator<Item = (&Pool, AnnouncedRange)> {
    pool.announced_ranges(now).filter(|range| range.phase != RangePhase::Ended).map(move |range| (pool, range))
}

/// Returns the time from which a configuration that is adopted now sends from a range.
fn start(from: Option<Timestamp>, now: Timestamp) -> Timestamp {
    from.map_or(now, |from| from.max(now))
}

/// Returns the earliest time at which a range may start. `None`: any time.
fn earliest(known: Option<Announcement>, notice: Duration, now: Timestamp) -> Option<Timestamp> {
    // A range that was in use from its announcement on is in use, also if the clock was set back.
    match known {
        None => Some(later(now, notice)),
        Some(Announcement { announced: None, starts, .. }) => starts,
        Some(Announcement { announced, starts, .. }) if starts <= announced => None,
        Some(Announcement { announced: Some(announced), starts, .. }) => starts.min(Some(later(announced, notice))),
    }
}

fn later(at: Timestamp, time: Duration) -> Timestamp {
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}

/// Returns the first midnight (UTC) after `at` and the time to write it. The same problem has the same text all day.
fn next_day(at: Timestamp) -> Timestamp {
    Timestamp::from_second((at.as_second() + 60).div_euclid(DAY) * DAY + DAY).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
