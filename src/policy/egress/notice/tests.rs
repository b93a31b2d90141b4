//! Tables of announcements over time.
//! Which start is early, and which change do the receivers of notices learn of?

use super::*;
use crate::config::{self, PoolRange};
use crate::names::PoolName;
use crate::policy::fixture::{self, day as at, messages};

fn dates(announced: Option<i64>, starts: Option<i64>) -> Announcement {
    let notice_end = announced.map(|day| at(day + 14));
    Announcement { announced: announced.map(at), notice_end, starts: starts.map(at), until: None, removed: None }
}

fn announcements(ranges: &[(&str, Option<i64>, Option<i64>)]) -> Announcements {
    let ranges = ranges.iter().map(|(cidr, announced, starts)| (cidr.parse().unwrap(), dates(*announced, *starts)));
    Announcements { ranges: ranges.collect(), notified_until: at(0) }
}

#[test]
fn a_range_has_the_latest_dates_of_its_parts() {
    let known = announcements(&[
        ("198.51.100.0/25", Some(3), Some(20)),
        ("198.51.100.128/26", Some(5), Some(10)),
        ("198.51.100.192/26", None, None),
    ]);
    let find = |cidr: &str| known.find(&cidr.parse().unwrap(), at(6)).map(|found| (found.announced, found.starts));
    assert_eq!(find("198.51.100.64/28"), Some((Some(at(3)), Some(at(20)))));
    assert_eq!(find("198.51.100.128/25"), Some((Some(at(5)), Some(at(10)))));
    assert_eq!(find("198.51.100.0/24"), Some((Some(at(5)), Some(at(20)))));
    assert_eq!(find("198.51.100.0/23"), None);
}

#[test]
fn a_start_is_early_if_it_precedes_the_notice_and_the_announced_start() {
    let (notice, now) = (Duration::from_secs(14 * 86_400), at(100));
    let earliest = |known: Option<Announcement>| earliest(known, notice, now);
    assert_eq!(earliest(None), Some(at(114)), "unknown: the notice begins now");
    assert_eq!(earliest(Some(dates(Some(95), Some(130)))), Some(at(109)), "moved to an earlier time");
    assert_eq!(earliest(Some(dates(Some(99), Some(99)))), None, "forced before: it is in use");
    assert_eq!(earliest(Some(dates(Some(200), Some(200)))), None, "in use, and the clock was set back");
    assert_eq!(earliest(Some(dates(None, Some(120)))), Some(at(120)), "known before: the notice is not known");
    assert_eq!(earliest(Some(dates(None, None))), None, "in use since before");
}

#[test]
fn a_proposed_start_is_a_full_day_that_comes_late_enough() {
    assert_eq!(next_day(at(3)), at(4));
    assert_eq!(next_day(at(3) + Duration::from_secs(23 * 3600)), at(4));
    assert_eq!(next_day(at(4) - Duration::from_secs(30)), at(5), "there is time to write it");
}

#[test]
fn a_removed_range_is_known_for_a_day_and_then_ends() {
    let known = announcements(&[("192.0.2.0/28", Some(10), Some(30))]);
    let cidr = "192.0.2.0/28".parse().unwrap();
    let removed = known.adopt(&Pools::new(), at(40));
    assert!(removed.find(&cidr, at(40)).is_some(), "a rollback may restore it");
    assert_eq!(removed.find(&cidr, at(41)), None);
    let changes = |known: &Announcements, since, now| known.changes(at(since), at(now)).into_keys().collect::<Vec<_>>();
    assert_eq!(changes(&removed, 39, 40), []);
    assert_eq!(changes(&removed, 40, 41), [(at(41), RangeChange::Ended)]);
    // It stays until the receivers know, and not longer.
    assert_eq!(removed.adopt(&Pools::new(), at(50)).ranges.len(), 1);
    assert_eq!(removed.with_notified(at(41)).adopt(&Pools::new(), at(50)).ranges.len(), 0);
    let restored = removed.adopt(&pools_of(&[("192.0.2.0/28", None, None)]), at(40));
    assert_eq!(restored.ranges[&cidr], dates(Some(10), Some(30)), "it is not removed, and keeps its dates");
}

#[test]
fn a_range_whose_until_has_come_must_be_announced_again() {
    let mut known = announcements(&[("192.0.2.0/28", Some(10), Some(30))]);
    let cidr = "192.0.2.0/28".parse().unwrap();
    known.ranges.get_mut(&cidr).unwrap().until = Some(at(40));
    assert!(known.find(&cidr, at(39)).is_some());
    assert_eq!(known.adopt(&Pools::new(), at(41)).find(&cidr, at(41)), None);
}

#[test]
fn a_change_is_told_once_and_a_range_that_is_split_does_not_end() {
    let mut known = announcements(&[("192.0.2.0/28", None, None), ("192.0.2.16/28", Some(10), Some(30))]);
    let names = |known: &Announcements, since, now| -> Vec<(RangeChange, Vec<String>)> {
        let changes = known.changes(at(since), at(now)).into_iter();
        changes.map(|((_, change), all)| (change, all.iter().map(|(cidr, _)| cidr.to_string()).collect())).collect()
    };
    let of = |change, cidrs: &[&str]| vec![(change, cidrs.iter().map(ToString::to_string).collect::<Vec<_>>())];
    assert_eq!(names(&known, 5, 12), of(RangeChange::Announced, &["192.0.2.16/28"]));
    assert_eq!(names(&known, 12, 29), vec![]);
    assert_eq!(names(&known, 29, 30), of(RangeChange::Started, &["192.0.2.16/28"]));
    // The first range is replaced with its lower half, and the second one with both halves.
    for cidr in ["192.0.2.0/28", "192.0.2.16/28"] {
        known.ranges.get_mut(&cidr.parse().unwrap()).unwrap().removed = Some(at(40));
    }
    for cidr in ["192.0.2.0/29", "192.0.2.16/29", "192.0.2.24/29"] {
        known.ranges.insert(cidr.parse().unwrap(), dates(None, None));
    }
    assert_eq!(names(&known, 40, 41), of(RangeChange::Ended, &["192.0.2.8/29"]));
    assert_eq!(names(&known, 41, 99), vec![]);
}

/// Returns the pool `default` with these ranges: CIDR, `from` and `until` as days.
fn pool_of(ranges: &[(&str, Option<i64>, Option<i64>)]) -> config::Pool {
    let ranges = ranges.iter().map(|(cidr, from, until)| {
        let range = PoolRange { cidr: cidr.parse().unwrap(), seen_as: None, from: from.map(at), until: until.map(at) };
        fixture::at(0, range)
    });
    config::Pool { ranges: ranges.collect(), notice: Duration::from_secs(14 * 86_400), ..fixture::pool() }
}

fn pools_of(ranges: &[(&str, Option<i64>, Option<i64>)]) -> Pools {
    let name = PoolName::new("default");
    Pools::from([(name.clone(), Pool::new(&name, &pool_of(ranges)).into())])
}

#[test]
fn ranges_of_a_host_whose_customers_know_them_have_no_notice() {
    let pools = pools_of(&[
        ("192.0.2.0/28", None, None),
        ("192.0.2.16/28", Some(100), Some(200)),
        ("192.0.2.32/28", Some(101), None),
        ("192.0.2.48/28", None, Some(99)),
    ]);
    let known = Announcements::known(&pools, at(100));
    let unannounced =
        |starts: Option<i64>, until: Option<i64>| Announcement { until: until.map(at), ..dates(None, starts) };
    let expected = [
        ("192.0.2.0/28", unannounced(None, None)),
        ("192.0.2.16/28", unannounced(None, Some(200))),
        ("192.0.2.32/28", unannounced(Some(101), None)),
    ];
    assert_eq!(known.ranges, expected.map(|(cidr, dates)| (cidr.parse().unwrap(), dates)).into());
    assert_eq!(known.notified_until(), at(100));
    assert_eq!(known.with_notified(at(101)), Announcements { notified_until: at(101), ..known.clone() });
}

#[test]
fn a_range_is_announced_when_it_is_adopted() {
    let ranges = [("192.0.2.0/28", None, Some(200)), ("192.0.2.16/28", Some(130), None)];
    let adopted = announcements(&[]).adopt(&pools_of(&ranges), at(100));
    let expected = [
        ("192.0.2.0/28", Announcement { until: Some(at(200)), ..dates(Some(100), Some(100)) }),
        ("192.0.2.16/28", dates(Some(100), Some(130))),
    ];
    assert_eq!(adopted.ranges, expected.map(|(cidr, dates)| (cidr.parse().unwrap(), dates)).into());
    // A later adoption keeps the date of the announcement. The start follows the configuration until it has come.
    let moved = adopted.adopt(&pools_of(&[("192.0.2.0/28", None, None), ("192.0.2.16/28", Some(120), None)]), at(110));
    let expected = [("192.0.2.0/28", dates(Some(100), Some(100))), ("192.0.2.16/28", dates(Some(100), Some(120)))];
    assert_eq!(moved.ranges, expected.map(|(cidr, dates)| (cidr.parse().unwrap(), dates)).into());
    assert_eq!(adopted.before(at(100)).ranges.len(), 0);
    assert_eq!(adopted.before(at(101)), adopted);
}

#[test]
fn a_range_is_early_from_its_start_to_the_end_of_its_notice() {
    let early = |starts: i64, now: i64| -> Vec<(Timestamp, Timestamp)> {
        let pools = pools_of(&[("192.0.2.0/28", None, None)]);
        let known = announcements(&[("192.0.2.0/28", Some(100), Some(starts))]);
        let pool = pools.values().next().unwrap();
        known.early(pool, at(now)).map(|range| (range.starts, range.notice_end)).collect()
    };
    assert_eq!(early(113, 113), [(at(113), at(114))]);
    assert_eq!(early(114, 113), [], "it starts with the end of its notice");
    assert_eq!(early(113, 114), [], "its notice has ended");
    assert_eq!(early(120, 113), []);
}

#[test]
fn a_configuration_that_sends_before_the_notice_has_a_problem() {
    let known = announcements(&[("192.0.2.0/28", Some(100), Some(200))]);
    let problems = |ranges: &[(&str, Option<i64>, Option<i64>)], force: bool| {
        let pool = config::Pool { force, ..pool_of(ranges) };
        let egress = [(PoolName::new("default"), fixture::at(2, pool))].into();
        messages(&known.problems(&Config { egress, ..fixture::config() }, at(110)))
    };
    let of = |when: &str, since: &str| {
        vec![format!("egress.default would send from 192.0.2.0/28 {when}, before its notice ends: customers {since}")]
    };
    let since = "know it since 1970-04-11T00:00:00Z only";
    assert_eq!(problems(&[("192.0.2.0/28", None, None)], false), of("at once", since));
    assert_eq!(problems(&[("192.0.2.0/28", Some(110), None)], false), of("at once", since), "it begins now");
    assert_eq!(problems(&[("192.0.2.0/28", Some(113), None)], false), of("from 1970-04-24T00:00:00Z on", since));
    assert_eq!(problems(&[("192.0.2.0/28", Some(114), None)], false), Vec::<String>::new(), "the notice has ended");
    assert_eq!(problems(&[("192.0.2.0/28", None, None)], true), Vec::<String>::new(), "force = true");
    assert_eq!(problems(&[("192.0.2.0/28", None, Some(110))], false), Vec::<String>::new(), "it has ended");
    let unknown = problems(&[("192.0.2.16/28", None, None)], false);
    assert!(unknown[0].ends_with("192.0.2.16/28 at once, before its notice ends: customers do not know it yet"));
}
