//! Tables of announcements over time.
//! Which start is early, and which change do the receivers of notices learn of?

use super::*;

fn at(day: i64) -> Timestamp {
    Timestamp::from_second(day * 86_400).unwrap()
}

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
