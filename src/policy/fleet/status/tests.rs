//! Tables of announcements, and the problems that they have.
//! Is each problem found, and no other?

use super::*;

const SECOND: i64 = 1000;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn range(range: &str, state: RangeState, parts: &[&str]) -> RangeAnnouncement {
    let (range, parts): (IpNet, _) = (range.parse().unwrap(), nets(parts));
    let size = |net: &IpNet| 1_u128 << (net.max_prefix_len() - net.prefix_len());
    let present = parts.iter().map(size).sum::<u128>().to_string();
    RangeAnnouncement {
        pool: "default".to_owned(),
        range,
        source: range,
        state,
        until: None,
        addresses: size(&range).to_string(),
        usable: present.clone(),
        present,
        parts,
        is_truncated: false,
    }
}

fn instance(name: &str, ranges: &[RangeAnnouncement]) -> InstanceAnnouncement {
    InstanceAnnouncement {
        instance: name.to_owned(),
        process: format!("process of {name}"),
        version: "0.1.0".to_owned(),
        digest: format!("digest of {name}"),
        common_digest: "common".to_owned(),
        started: Timestamp::from_millisecond(1_000_000).unwrap(),
        weight: 100,
        limited_by: None,
        blocked: Vec::new(),
        stopping: false,
        clock_offset_ms: Some(0),
        ranges: ranges.to_vec(),
        bundle_error: None,
        announced_ms: 2_000_000,
    }
}

fn problems(announcements: &[InstanceAnnouncement]) -> Vec<FleetProblem> {
    super::problems(announcements, &[])
}

/// Returns the problems, apart from ranges that a host lacks, which have a test of their own.
fn found(announcements: &[InstanceAnnouncement]) -> Vec<(FleetProblemKind, String)> {
    let others = problems(announcements).into_iter().filter(|found| found.problem != FleetProblemKind::RangeNotOnHost);
    others.map(|problem| (problem.problem, problem.subject)).collect()
}

fn missing(subject: &str) -> (FleetProblemKind, String) {
    (FleetProblemKind::RangeWithoutHost, subject.to_owned())
}

fn claimed(subject: &str) -> (FleetProblemKind, String) {
    (FleetProblemKind::RangeClaimedTwice, subject.to_owned())
}

const ALL: &str = "198.51.100.16/28";

#[test]
fn range_that_no_instance_can_use_is_a_problem_also_in_parts() {
    let with = |state, first: &[&str], second: &[&str]| {
        found(&[instance("a", &[range(ALL, state, first)]), instance("b", &[range(ALL, state, second)])])
    };
    assert_eq!(with(RangeState::Active, &[ALL], &[]), []);
    assert_eq!(with(RangeState::Active, &["198.51.100.16/29"], &["198.51.100.24/29"]), []);
    assert_eq!(with(RangeState::Active, &["198.51.100.16/29"], &[]), [missing("198.51.100.24/29")]);
    assert_eq!(with(RangeState::Active, &[], &[]), [missing(ALL)]);
    assert_eq!(with(RangeState::Upcoming, &[], &[]), [missing(ALL)], "a range that begins later needs a host, too");
    let mut stopping = instance("a", &[range(ALL, RangeState::Active, &[ALL])]);
    stopping.stopping = true;
    let other = instance("b", &[range(ALL, RangeState::Active, &[])]);
    assert_eq!(found(&[stopping, other]), [missing(ALL)], "a process that stops sends nothing");
    assert_eq!(found(&[]), []);
    // The instance to which it was assigned has died, and this host has the addresses.
    let free = problems(&[instance("b", &[range(ALL, RangeState::Free, &[])])]);
    assert_eq!((free.len(), free[0].problem), (1, FleetProblemKind::RangeWithoutHost));
    assert!(free[0].what.contains("it is assigned to an instance that does not run"), "{}", free[0].what);
    let lost = problems(&[instance("b", &[range(ALL, RangeState::Active, &[])])]);
    assert!(lost[0].what.ends_with("give its addresses to a host"), "{}", lost[0].what);
}

#[test]
fn range_that_the_host_of_an_instance_lacks_is_a_problem_unless_it_waits_for_the_range() {
    let lacked = |first: RangeAnnouncement, second: RangeAnnouncement| {
        let problems = problems(&[instance("a", &[first]), instance("b", &[second])]);
        let lacked = problems.into_iter().filter(|found| found.problem == FleetProblemKind::RangeNotOnHost);
        lacked.map(|problem| problem.subject).collect::<Vec<_>>()
    };
    let (a, b) = ("a 198.51.100.16/28", "b 198.51.100.16/28");
    let half = "198.51.100.16/29";
    let active = |parts: &[&str]| range(ALL, RangeState::Active, parts);
    assert!(lacked(active(&[ALL]), active(&[])).is_empty(), "b waits for the range");
    assert_eq!(lacked(active(&[half]), active(&[])), [a, b], "no host has the other half");
    assert_eq!(lacked(active(&[half]), active(&["198.51.100.24/29"])), [a, b], "each lists more than it has");
    assert_eq!(lacked(active(&[ALL]), active(&[half])), [b]);
    assert_eq!(lacked(range(ALL, RangeState::Upcoming, &[]), range(ALL, RangeState::Retiring, &[])), [a, b]);
    assert_eq!(lacked(range(ALL, RangeState::Waiting, &[]), range(ALL, RangeState::Free, &[])), [a]);
    assert!(lacked(active(&[ALL]), range(ALL, RangeState::Draining, &[half])).is_empty(), "it is assigned to a");
    let mut withheld = range(ALL, RangeState::Waiting, &[]);
    withheld.present = withheld.addresses.clone();
    assert!(
        lacked(withheld, range(ALL, RangeState::Draining, &[])).is_empty(),
        "a has the addresses, and may not use them"
    );
    let what = &problems(&[instance("a", &[active(&[half])])])[1].what;
    assert!(what.starts_with("a lists 198.51.100.16/28, and its host has 8 of the 16 addresses: "), "{what}");
}

#[test]
fn bundle_that_an_instance_cannot_read_is_a_problem() {
    let error = Some("the bucket of the bundles fails: 403".to_owned());
    let announcement = InstanceAnnouncement { bundle_error: error, ..instance("a", &[]) };
    assert_eq!(found(&[announcement, instance("b", &[])]), [(FleetProblemKind::BundleUnreadable, "a".to_owned())]);
}

#[test]
fn address_that_two_instances_send_from_is_a_problem() {
    let with = |first: &[&str], second: &[&str]| {
        let range = |parts: &[&str]| [range(ALL, RangeState::Retiring, parts)];
        found(&[instance("a", &range(first)), instance("b", &range(second))])
    };
    assert_eq!(with(&[ALL], &[ALL]), [claimed(ALL)]);
    assert_eq!(with(&[ALL], &["198.51.100.20/32"]), [claimed("198.51.100.20/32")]);
    assert_eq!(with(&["198.51.100.20/30"], &[ALL]), [claimed("198.51.100.20/30")]);
    let halves = ["198.51.100.16/29", "198.51.100.24/29"];
    assert_eq!(with(&halves, &[ALL]), [claimed(ALL)], "adjacent addresses are one problem");
    assert_eq!(with(&halves[..1], &halves[1..]), []);
    let upcoming = |name| instance(name, &[range(ALL, RangeState::Upcoming, &[ALL])]);
    assert_eq!(found(&[upcoming("a"), upcoming("b")]), [], "no instance sends from it yet");
    let twice = instance("a", &[range(ALL, RangeState::Active, &[ALL]), range(ALL, RangeState::Active, &[ALL])]);
    assert_eq!(found(&[twice]), [], "two pools of one instance");
    let what = &problems(&[
        instance("a", &[range(ALL, RangeState::Active, &[ALL])]),
        instance("c", &[range(ALL, RangeState::Active, &[ALL])]),
        instance("b", &[range("198.51.100.0/24", RangeState::Active, &["198.51.100.0/24"])]),
    ])[0]
        .what;
    assert!(what.starts_with("a, b, c send from 198.51.100.16/28"), "{what}");
}

#[test]
fn range_with_too_many_parts_to_list_is_no_problem() {
    let mut truncated = range(ALL, RangeState::Active, &[ALL]);
    truncated.is_truncated = true;
    let first = instance("a", &[truncated]);
    assert_eq!(found(&[first.clone(), instance("b", &[range(ALL, RangeState::Active, &[ALL])])]), []);
    assert_eq!(found(&[first, instance("b", &[range(ALL, RangeState::Active, &[])])]), []);
}

#[test]
fn announcement_beyond_the_limits_is_recognized() {
    let of = |ranges: usize, parts: usize| {
        let range = range(ALL, RangeState::Active, &vec!["198.51.100.20/32"; parts]);
        instance("a", &vec![range; ranges])
    };
    assert!(of(RANGES_MAX, 1).is_within_limits() && of(1, PARTS_MAX).is_within_limits());
    assert!(!of(RANGES_MAX + 1, 1).is_within_limits() && !of(1, PARTS_MAX + 1).is_within_limits());
    // Each text of an announcement has a bound.
    let json = serde_json::to_value(InstanceAnnouncement {
        limited_by: Some("ports".to_owned()),
        blocked: vec!["draining".to_owned()],
        bundle_error: Some("403".to_owned()),
        ..of(1, 1)
    });
    let with = |path: &str, length: usize| {
        let mut json = json.as_ref().unwrap().clone();
        *json.pointer_mut(path).unwrap() = "x".repeat(length).into();
        serde_json::from_value::<InstanceAnnouncement>(json).unwrap().is_within_limits()
    };
    let texts =
        ["instance", "process", "version", "digest", "common_digest", "limited_by", "bundle_error", "blocked/0"];
    let of_ranges = ["pool", "addresses", "present", "usable"].map(|name| format!("ranges/0/{name}"));
    for path in texts.map(str::to_owned).into_iter().chain(of_ranges) {
        let path = format!("/{path}");
        assert!(with(&path, TEXT_MAX) && !with(&path, TEXT_MAX + 1), "{path}");
    }
    let blocked = |count| InstanceAnnouncement { blocked: vec![String::new(); count], ..of(1, 1) }.is_within_limits();
    assert!(blocked(REASONS_MAX) && !blocked(REASONS_MAX + 1));
    let hostile = InstanceAnnouncement { clock_offset_ms: Some(i64::MIN), ..of(1, 1) };
    let offset = (FleetProblemKind::ClockOffset, "a".to_owned());
    assert!(found(&[hostile.clone(), hostile]).contains(&offset), "a strange number is no panic");
}

#[test]
fn instance_that_differs_from_most_is_a_problem() {
    let [mut first, mut second, third] = ["a", "b", "c"].map(|name| instance(name, &[]));
    assert_eq!(found(&[first.clone(), second.clone(), third.clone()]), []);
    second.common_digest = "other".to_owned();
    let differs = [(FleetProblemKind::ConfigurationDiffers, "b".to_owned())];
    assert_eq!(found(&[second.clone(), first.clone(), third]), differs);
    assert_eq!(found(&[second.clone(), first.clone()]).len(), 1, "of two instances, one is reported");
    first.digest = "0123456789abcdef".to_owned();
    let expected = "b has the configuration digest of b, and 2 of 3 instances have that of a (0123456789ab): \
                    give all the same configuration";
    assert_eq!(problems(&[second, first.clone(), first])[0].what, expected);
}

#[test]
fn clock_that_differs_by_more_than_a_second_is_a_problem() {
    for (offset, is_problem) in [(None, false), (Some(1000), false), (Some(1001), true), (Some(-1001), true)] {
        let announcement = InstanceAnnouncement { clock_offset_ms: offset, ..instance("a", &[]) };
        let expected = [(FleetProblemKind::ClockOffset, "a".to_owned())];
        assert_eq!(found(&[announcement]), expected[..usize::from(is_problem)], "{offset:?}");
    }
}

#[test]
fn processes_of_one_name_are_a_problem_while_both_run() {
    let older = instance("a", &[]);
    let younger = |after_announcement: i64, offset: i64| {
        let started = Timestamp::from_millisecond(older.announced_ms + after_announcement + offset).unwrap();
        let process = "another process".to_owned();
        InstanceAnnouncement { process, started, clock_offset_ms: Some(offset), ..older.clone() }
    };
    let duplicate = [(FleetProblemKind::DuplicateInstance, "a".to_owned())];
    assert_eq!(found(&[older.clone(), younger(10, 0)]), [], "the older was killed, and the younger is its successor");
    assert_eq!(found(&[older.clone(), younger(-SECOND / 2, 0)]), [], "its last announcement was on its way");
    assert_eq!(found(&[older.clone(), younger(-SECOND, 0)]), [], "it was sent a second after the start");
    assert_eq!(found(&[older.clone(), younger(-SECOND - 1, 0)]), duplicate);
    assert_eq!(found(&[older.clone(), younger(-2 * SECOND, 0)]), duplicate);
    assert_eq!(found(&[younger(-2 * SECOND, 900), older.clone()]), duplicate, "the clock of the younger is corrected");
    let mut stopping = older.clone();
    stopping.stopping = true;
    assert_eq!(found(&[stopping, younger(-2 * SECOND, 0)]), [], "a process that stops hands over");
}

#[test]
fn announcement_is_read_back_as_it_was_written() {
    let announcement = instance("a", &[range(ALL, RangeState::Active, &["198.51.100.20/32"])]);
    let text = serde_json::to_string(&announcement).unwrap();
    assert_eq!(serde_json::from_str::<InstanceAnnouncement>(&text).unwrap(), announcement);
    assert!(text.len() < 720, "an announcement of one range is small: {}", text.len());
}

#[test]
fn range_has_the_instances_with_addresses_of_it_as_hosts() {
    let other = "203.0.113.0/28";
    let (half, none) = (range(ALL, RangeState::Active, &["198.51.100.16/29"]), range(other, RangeState::Active, &[]));
    let announcements = [
        instance("a", &[half.clone(), none.clone()]),
        instance("b", &[range(ALL, RangeState::Active, &[]), none]),
        instance("c", std::slice::from_ref(&half)),
    ];
    let expected = [(nets(&[ALL])[0], vec![("a", &half), ("c", &half)]), (nets(&[other])[0], vec![])];
    assert_eq!(ranges(&announcements), BTreeMap::from(expected));
}

#[test]
fn range_state_has_the_name_of_its_announcement() {
    for (state, name) in [
        (RangeState::Upcoming, "upcoming"),
        (RangeState::Active, "active"),
        (RangeState::Retiring, "retiring"),
        (RangeState::Draining, "draining"),
        (RangeState::Free, "free"),
        (RangeState::Waiting, "waiting"),
    ] {
        assert_eq!((state.as_str(), serde_json::to_value(state).unwrap()), (name, name.into()));
    }
}
