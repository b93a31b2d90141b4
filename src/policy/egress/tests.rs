//! Properties of source selection, and the problems of configured pools.
//! Does every delivery leave from a permitted source?

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::actions::customer_actions;
use super::*;
use crate::config::{Located, PoolRange, SourceSpan};
use crate::host::canonical;
use crate::names::{Scheme, Target};
use crate::policy::fixture::messages;
use crate::policy::guard::{Guard, LocalAddresses};

fn at<T>(value: T) -> Located<T> {
    Located { value, span: SourceSpan { file: 0, start: 0, end: 0 } }
}

/// Parses a range from `CIDR`, `CIDR from YEAR`, `CIDR until YEAR` or both.
fn range(text: &str) -> PoolRange {
    let words: Vec<_> = text.split(' ').collect();
    let year = |key: &str| {
        let index = words.iter().position(|word| *word == key)?;
        Some(january(words[index + 1].parse().unwrap()))
    };
    let seen_as = words.iter().position(|word| *word == "as").map(|index| at(words[index + 1].parse().unwrap()));
    PoolRange { cidr: words[0].parse().unwrap(), seen_as, from: year("from"), until: year("until") }
}

fn january(year: u16) -> Timestamp {
    format!("{year}-01-01T00:00:00Z").parse().unwrap()
}

fn section(ranges: &[&str], exclude: &[&str], select: SelectionPolicy) -> config::Pool {
    config::Pool {
        ranges: ranges.iter().map(|text| at(range(text))).collect(),
        exclude: exclude.iter().map(|text| at(text.parse().unwrap())).collect(),
        select,
        failover: true,
        notice: Duration::ZERO,
        force: false,
    }
}

fn pool(ranges: &[&str], exclude: &[&str], select: SelectionPolicy) -> Pool {
    Pool::new(&PoolName::new("test"), &section(ranges, exclude, select))
}

pub(super) fn cleared(answers: &[&str]) -> ClearedAddresses {
    let list = |texts: &[&str]| texts.iter().map(|text| at(text.parse().unwrap())).collect();
    let guard = config::Guard { allow: list(&["2001:db8::/32"]), deny: Vec::new(), ports: Vec::new() };
    let resolver = config::Resolver { servers: Vec::new(), hosts: BTreeMap::new() };
    let target = Target { scheme: Scheme::Https, host: canonical("hooks.acme.com").unwrap(), port: 443 };
    let answers: Vec<_> = answers.iter().map(|text| text.parse().unwrap()).collect();
    Guard::new(&guard, &resolver, &BTreeMap::new()).clear(&target, &answers, &LocalAddresses::default()).unwrap()
}

const ALL: &dyn Fn(IpAddr) -> bool = &|_| true;

/// Returns the first source for an IPv4 target.
fn first_source(pool: &Pool, affinity: u64, sequence: u64, usable: &dyn Fn(IpAddr) -> bool) -> Option<IpAddr> {
    pool.select_source(false, affinity, sequence, january(2026), usable)
}

#[test]
fn hops_interleave_families_and_then_fail_over() {
    let ranges = ["198.51.100.0/31", "2001:db8:5::/127"];
    let targets = cleared(&["1.1.1.1", "1.0.0.1", "2001:db8::1", "9.9.9.9"]);
    let hops = select_hops(&pool(&ranges, &[], SelectionPolicy::Spread), &targets, 0, 0, january(2026), ALL).unwrap();
    let text: Vec<_> = hops.iter().map(|hop| format!("{} {}", hop.from(), hop.to())).collect();
    let expected = [
        "2001:db8:5:: [2001:db8::1]:443",
        "198.51.100.0 1.1.1.1:443",
        "198.51.100.0 1.0.0.1:443",
        "198.51.100.0 9.9.9.9:443",
        "2001:db8:5::1 [2001:db8::1]:443",
        "198.51.100.1 1.1.1.1:443",
        "198.51.100.1 1.0.0.1:443",
        "198.51.100.1 9.9.9.9:443",
    ];
    assert_eq!(text, expected);

    let single = Pool { failover: false, ..pool(&ranges, &[], SelectionPolicy::Spread) };
    assert_eq!(select_hops(&single, &targets, 0, 0, january(2026), ALL).unwrap()[..], hops[..4]);
    let only = |ip: IpAddr| ip == hops[1].from();
    let alone =
        select_hops(&pool(&ranges, &[], SelectionPolicy::Spread), &targets, 0, 7, january(2026), &only).unwrap();
    assert_eq!(alone[..], hops[1..4]);
}

#[test]
fn sticky_sources_are_those_of_the_first_hop_of_each_family() {
    let pool = pool(&["198.51.100.0/28", "2001:db8:5::/124"], &[], SelectionPolicy::Sticky);
    let targets = cleared(&["1.1.1.1", "2001:db8::1"]);
    for affinity in 0..100 {
        let hops = select_hops(&pool, &targets, affinity, 7, january(2026), ALL).unwrap();
        let sources: Vec<_> = pool.sticky_sources(affinity, january(2026)).collect();
        assert_eq!(sources, [hops[0].from(), hops[1].from()]);
    }
}

/// Customers may route by the source address, so an upgrade must not move a target to another source.
#[test]
fn sticky_sources_survive_upgrades() {
    let pool = pool(&["198.51.100.0/28", "192.0.2.0/30", "2001:db8:5::/64"], &[], SelectionPolicy::Sticky);
    let sources = |affinity| pool.sticky_sources(affinity, january(2026)).map(|ip| ip.to_string()).collect::<Vec<_>>();
    assert_eq!(sources(0), ["2001:db8:5:0:9b2b:76b:c12b:ad63", "198.51.100.6"]);
    assert_eq!(sources(1), ["2001:db8:5:0:c9a8:c824:a455:d39e", "198.51.100.4"]);
    assert_eq!(sources(0x0123_4567_89ab_cdef), ["2001:db8:5:0:35f1:1b67:5a5d:f073", "198.51.100.10"]);
    assert_eq!(sources(u64::MAX), ["2001:db8:5:0:968a:40ea:da94:90e5", "198.51.100.15"]);
}

/// A connection of an ended range outlives it, and another range may have its addresses by then.
#[test]
fn seen_as_translates_by_the_active_range_of_the_address_family() {
    let ranges = [
        "10.0.0.0/31 as 198.51.100.0/31 from 2026",
        "10.0.0.0/31 as 203.0.113.0/31 until 2026",
        "10.0.1.0/31",
        "::a00:100/127 as 2001:db8:5::/127",
        "10.0.2.0/31 as 192.0.2.0/31 until 2025",
    ];
    let pool = pool(&ranges, &[], SelectionPolicy::Sticky);
    let seen = |source: &str, year| pool.seen_as(source.parse().unwrap(), january(year)).to_string();
    assert_eq!(seen("10.0.0.1", 2025), "203.0.113.1");
    assert_eq!(seen("10.0.0.1", 2026), "198.51.100.1");
    assert_eq!(seen("10.0.2.0", 2026), "192.0.2.0", "the range ended, and no other has the address");
    // The IPv4 address 10.0.1.1 and the IPv6 address ::a00:101 are one number.
    assert_eq!(seen("10.0.1.1", 2026), "10.0.1.1");
    assert_eq!(seen("::a00:101", 2026), "2001:db8:5::1");
    assert_eq!(seen("10.0.3.0", 2026), "10.0.3.0");
}

#[test]
fn hops_are_capped_for_a_target_with_many_addresses() {
    let answers: Vec<_> = (0..1000).map(|n| format!("1.1.{}.{}", n / 250, n % 250)).collect();
    let answers: Vec<_> = answers.iter().map(String::as_str).collect();
    let hops = select_hops(
        &pool(&["198.51.100.0/28"], &[], SelectionPolicy::Sticky),
        &cleared(&answers),
        0,
        0,
        january(2026),
        ALL,
    )
    .unwrap();
    assert_eq!(hops.len(), 2 * TARGET_ADDRESSES_MAX);
}

#[test]
fn hop_selection_fails_without_a_usable_source() {
    let v4 = pool(&["198.51.100.0/28"], &[], SelectionPolicy::Sticky);
    let later = pool(&["198.51.100.0/28 from 2027"], &[], SelectionPolicy::Sticky);
    let select =
        |pool: &Pool, target: &str, usable| select_hops(pool, &cleared(&[target]), 0, 0, january(2026), usable);
    assert_eq!(select(&v4, "2001:db8::1", ALL), Err(HopError::NoCommonFamily));
    assert_eq!(select(&v4, "1.1.1.1", &|_| false), Err(HopError::NoUsableSource));
    assert_eq!(select(&v4, "2001:db8::1", &|_| false), Err(HopError::NoUsableSource));
    assert_eq!(select(&later, "1.1.1.1", ALL), Err(HopError::NoUsableSource));
}

#[test]
fn pool_ranges_are_active_from_their_start_until_their_end() {
    let ranges = ["198.51.100.16/28", "2001:db8:5::/64 from 2027", "192.0.2.0/28 until 2027", "198.51.100.0/28"];
    let pool = pool(&ranges, &["198.51.100.16/31", "192.0.2.15/32"], SelectionPolicy::Sticky);
    let text = |year| pool.active_ranges(january(year)).iter().map(ToString::to_string).collect::<Vec<_>>();
    let rest = ["198.51.100.0/28", "198.51.100.18/31", "198.51.100.20/30", "198.51.100.24/29"];
    let mut before = vec!["192.0.2.0/29", "192.0.2.8/30", "192.0.2.12/31", "192.0.2.14/32"];
    before.extend(rest);
    assert_eq!(text(2026), before);
    assert_eq!(text(2027), [&rest[..], &["2001:db8:5::/64"]].concat());
    assert_eq!([pool.size(january(2026), false), pool.size(january(2026), true)], [45, 0]);
    assert_eq!([pool.size(january(2027), false), pool.size(january(2027), true)], [30, 1 << 64]);
    let has = |ip: &str, year| pool.contains(ip.parse().unwrap(), january(year));
    assert!(has("198.51.100.18", 2026) && has("192.0.2.14", 2026) && has("2001:db8:5::1", 2027));
    assert!(!has("198.51.100.17", 2026) && !has("192.0.2.15", 2026) && !has("192.0.2.14", 2027));
    assert!(!has("2001:db8:5::1", 2026) && !has("2001:db8:6::", 2027));
    let standing: Vec<_> = pool.announced_ranges(january(2027)).map(|part| part.phase).collect();
    assert_eq!(standing.iter().filter(|standing| **standing == RangePhase::Ended).count(), 4);
    assert_eq!(pool.announced_ranges(january(2026)).last().unwrap().phase, RangePhase::Active);
}

#[test]
fn source_selection_does_not_enumerate_a_large_pool() {
    let calls = Cell::new(0);
    let none = |_| {
        calls.set(calls.get() + 1);
        false
    };
    for select in [SelectionPolicy::Sticky, SelectionPolicy::Spread, SelectionPolicy::Random] {
        calls.set(0);
        let pool = pool(&["2001:db8:5::/64", "10.0.0.0/8"], &["2001:db8:5::/96"], select);
        let hops = select_hops(&pool, &cleared(&["1.1.1.1", "2001:db8::1"]), 1, 2, january(2026), &none);
        assert_eq!(hops, Err(HopError::NoUsableSource));
        assert!(calls.get() <= 2 * (u128::from(DRAWS_MAX) + WALK_MAX), "{select:?} asked {} times", calls.get());
    }
}

/// Many deliveries use every address about equally often and never an excluded one, even if half of the addresses are
/// unusable.
#[test]
fn source_selection_spreads_load_evenly() {
    for select in [SelectionPolicy::Sticky, SelectionPolicy::Spread, SelectionPolicy::Random] {
        let pool = pool(&["198.51.100.0/28", "192.0.2.0/30", "203.0.113.7/32"], &["198.51.100.0/29"], select);
        for (usable, addresses) in [(ALL, 13), (&|ip| ip_to_u128(ip) & 1 == 0, 6)] {
            let mut load: HashMap<IpAddr, u32> = HashMap::new();
            for n in 0..13_000 {
                *load.entry(first_source(&pool, mix(7, n), n, usable).unwrap()).or_default() += 1;
            }
            assert_eq!(load.len(), addresses, "{select:?}");
            let fair = 13_000.0 / addresses as f64;
            for (ip, count) in load {
                // Five standard deviations.
                assert!((f64::from(count) - fair).abs() < 5.0 * fair.sqrt(), "{select:?} {ip} {count} of {fair}");
            }
        }
    }
}

macro_rules! never {
    ($range:literal, $net:literal, $what:literal) => {
        concat!("`", $range, "` cannot be a source: ", $net, " is ", $what, ", to which the kernel binds no connection")
    };
}

#[test]
fn pool_check_reports_each_problem() {
    type Written<'a> = (&'a [&'a str], &'a [&'a str]);
    let table: &[(&[Written<'_>], &[&str])] = &[
        (&[(&["8.8.8.0/28", "2600::/64"], &["8.8.8.0/32"])], &[]),
        (&[(&["127.0.7.0/24"], &[])], &["warning: `127.0.7.0/24` is not public: Loopback, RFC 1122"]),
        (&[(&["4000::/64"], &[])], &["warning: `4000::/64` is not public: outside Global Unicast 2000::/3, RFC 4291"]),
        (&[(&["8.8.0.0/16", "8.8.8.0/28"], &[])], &["`8.8.8.0/28` overlaps `8.8.0.0/16`"]),
        (&[(&["8.8.8.0/28", "8.8.8.0/28"], &[])], &["`8.8.8.0/28` overlaps `8.8.8.0/28`"]),
        (&[(&["8.8.8.0/28 until 2027", "8.8.0.0/16 from 2027"], &[])], &[]),
        (&[(&["8.8.8.0/28 until 2028", "8.8.0.0/16 from 2027"], &[])], &["`8.8.0.0/16` overlaps `8.8.8.0/28`"]),
        (
            &[(&["8.8.8.0/28"], &["8.8.9.0/32"])],
            &["warning: `8.8.9.0/32` excludes nothing: no range of egress.p0 has it"],
        ),
        (&[(&[], &[])], &["egress.p0 has no address"]),
        (&[(&["8.8.8.0/28"], &["8.8.8.0/29", "8.8.8.8/29"])], &["egress.p0 has no address"]),
        (&[(&["8.8.8.0/28 from 2027"], &[])], &["warning: egress.p0 has no address until 2027-01-01T00:00:00Z"]),
        (&[(&["8.8.8.0/28 until 2025"], &[])], &["warning: egress.p0 no longer has an address: every range has ended"]),
        (
            &[(&["8.8.8.0/28 until 2025", "8.8.9.0/28", "8.8.10.0/28 from 2024 until 2026"], &[])],
            &[
                "warning: `8.8.8.0/28` has ended: no new connection leaves from it",
                "warning: `8.8.10.0/28` has ended: no new connection leaves from it",
            ],
        ),
        (
            &[(&["8.8.8.0/28 from 2025 until 2025", "8.8.9.0/28"], &[])],
            &["`8.8.8.0/28` is never active: it ends before it begins"],
        ),
        (&[(&["2600::/15"], &[])], &["`2600::/15` is too wide for a pool"]),
        (&[(&["0.0.0.0/32"], &[])], &[never!("0.0.0.0/32", "0.0.0.0/32", "the unspecified address")]),
        (&[(&["0.0.0.0/8"], &[])], &[never!("0.0.0.0/8", "0.0.0.0/32", "the unspecified address")]),
        (&[(&["224.0.0.0/28"], &[])], &[never!("224.0.0.0/28", "224.0.0.0/4", "multicast")]),
        (&[(&["255.255.255.0/24"], &[])], &[never!("255.255.255.0/24", "255.255.255.255/32", "the broadcast address")]),
        (&[(&["::/128"], &[])], &[never!("::/128", "::/128", "the unspecified address")]),
        (&[(&["ff0e::/64"], &[])], &[never!("ff0e::/64", "ff00::/8", "multicast")]),
        (&[(&["fe80::1/128"], &[])], &[never!("fe80::1/128", "fe80::/10", "link-local, of one interface only")]),
        (
            &[(&["255.255.255.0/24"], &["255.255.255.255/32"])],
            &["warning: `255.255.255.0/24` is not public: Reserved, RFC 1112"],
        ),
        (
            &[(&["8.8.8.0/28"], &[]), (&["8.8.8.8/32"], &[])],
            &["warning: `8.8.8.8/32` is shared by egress.p0 and egress.p1"],
        ),
        (&[(&["8.8.8.0/28"], &["8.8.8.8/32"]), (&["8.8.8.8/32"], &[])], &[]),
        (
            &[(&["8.8.8.0/28 until 2027"], &[]), (&["8.8.8.8/32", "8.8.9.0/28"], &[])],
            &["warning: `8.8.8.8/32` is shared by egress.p0 and egress.p1"],
        ),
        (&[(&["8.8.8.0/28 until 2027"], &[]), (&["8.8.8.8/32 from 2027", "8.8.9.0/28"], &[])], &[]),
        (&[(&["8.8.8.0/28"], &[]), (&["2600::/64"], &[])], &[]),
        // NAT
        (&[(&["10.0.0.0/31 as 8.8.8.0/31", "10.0.1.0/31 as 8.8.8.2/31"], &[])], &[]),
        (
            &[(&["10.0.0.0/31 as 2600::/31"], &[])],
            &["`10.0.0.0/31` cannot be seen as `2600::/31`, which is of another address family"],
        ),
        (
            &[(&["10.0.0.0/31 as 8.8.8.0/30"], &[])],
            &["`10.0.0.0/31` cannot be seen as `8.8.8.0/30`, which has another size"],
        ),
        (
            &[(&["10.0.0.0/31 as 8.8.8.0/31", "10.0.1.0/31 as 8.8.8.0/31"], &[])],
            &["targets see two ranges with the same addresses, of `8.8.8.0/31`"],
        ),
        (
            &[(&["10.0.0.0/31 as 8.8.8.0/31", "8.8.8.0/28"], &[])],
            &["targets see two ranges with the same addresses, of `8.8.8.0/28`"],
        ),
        (&[(&["10.0.0.0/31 as 8.8.8.0/31 until 2027", "8.8.8.0/28 from 2027", "8.8.9.0/28"], &[])], &[]),
    ];
    for (pools, expected) in table {
        let written = pools.iter().enumerate().map(|(index, (ranges, exclude))| {
            (PoolName::new(format!("p{index}")), at(section(ranges, exclude, SelectionPolicy::Sticky)))
        });
        let mut problems = Vec::new();
        check::check(&written.collect(), january(2026), &mut problems);
        assert_eq!(messages(&problems), *expected, "{pools:?}");
    }
}

#[test]
fn customers_must_allow_a_range_that_has_begun_at_once() {
    let pools = |ranges: &[&str]| {
        let pool = pool(ranges, &[], SelectionPolicy::Sticky);
        BTreeMap::from([(pool.name().clone(), Arc::new(pool))])
    };
    let actions = |from: &str| {
        let (before, after) = (["8.8.8.0/28".to_owned()], ["8.8.8.0/28".to_owned(), format!("8.8.9.0/28 from {from}")]);
        let [before, after] =
            [&before[..], &after].map(|texts| pools(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
        customer_actions(&before, &after, false, january(2026))
    };
    assert_eq!(actions("2025"), ["egress.test: customers must allow 8.8.9.0/28 at once"]);
    assert_eq!(actions("2026"), ["egress.test: customers must allow 8.8.9.0/28 at once"]);
    assert_eq!(actions("2027"), ["egress.test: customers must allow 8.8.9.0/28 before 2027-01-01T00:00:00Z"]);
}

fn selects() -> impl Strategy<Value = SelectionPolicy> {
    prop_oneof![Just(SelectionPolicy::Sticky), Just(SelectionPolicy::Spread), Just(SelectionPolicy::Random)]
}

proptest! {
    /// The loss of an address moves only the keys on it; its return moves them back.
    #[test]
    fn sticky_selection_moves_only_keys_of_a_lost_address(lost in any::<[bool; 24]>(), next in 0u128..24, affinities in any::<[u64; 32]>()) {
        let pool = pool(&["198.51.100.0/28", "192.0.2.0/29"], &[], SelectionPolicy::Sticky);
        let next = pool.nth(false, next, january(2026)).unwrap();
        let up = |ip: IpAddr| !lost[usize::try_from(ip_to_u128(ip) & 15).unwrap() + if pool.ranges[0].contains(ip_to_u128(ip)) { 0 } else { 16 }];
        for affinity in affinities {
            let before = first_source(&pool, affinity, 0, &up);
            let after = first_source(&pool, affinity, 0, &|ip| ip != next && up(ip));
            prop_assert!(after == before || before == Some(next));
        }
    }

    /// An exclusion also moves only the keys of that address. An added range takes its share and moves no other key.
    #[test]
    fn sticky_selection_moves_only_its_share_when_ranges_change(affinity: u64, host in 0u8..16) {
        let ranges = ["198.51.100.0/28", "192.0.2.0/29"];
        let excluded = format!("198.51.100.{host}/32");
        let before = first_source(&pool(&ranges, &[], SelectionPolicy::Sticky), affinity, 0, ALL).unwrap();
        let without = first_source(&pool(&ranges, &[&excluded], SelectionPolicy::Sticky), affinity, 0, ALL).unwrap();
        prop_assert!(without == before || before.to_string() + "/32" == excluded);
        let more = [ranges[1], "203.0.113.0/27", ranges[0]];
        let added = first_source(&pool(&more, &[&excluded], SelectionPolicy::Sticky), affinity, 0, ALL).unwrap();
        prop_assert!(added == without || added.to_string().starts_with("203.0.113."));
    }

    /// Round robin visits each address exactly once in as many deliveries as there are addresses.
    #[test]
    fn spread_visits_each_address_equally(start in 0..u64::MAX - 32) {
        let pool = pool(&["198.51.100.0/28", "192.0.2.0/30", "192.0.2.9/32"], &["198.51.100.4/30"], SelectionPolicy::Spread);
        let size = u64::try_from(pool.size(january(2026), false)).unwrap();
        let seen: BTreeSet<_> = (start..start + size).map(|sequence| first_source(&pool, 0, sequence, ALL)).collect();
        prop_assert_eq!(seen.len() as u64, size);
    }

    /// A selected source is active, usable, of the target's family, and in the published list. Every usable source of a
    /// small pool is found.
    #[test]
    fn selected_sources_are_active_and_usable(
        select in selects(), affinity: u64, sequence: u64, year in 2024u16..2030, usable_hosts in proptest::collection::btree_set(0u128..4096, 0..3),
        excluded in 0u8..=255, targets in proptest::sample::subsequence(vec!["1.1.1.1", "2001:db8::1", "2001:db8::2"], 1..=3),
    ) {
        let ranges = ["198.51.100.0/24 until 2027", "10.0.0.0/20 from 2026", "2001:db8:5::/118", "2001:db8:6::/64 from 2028"];
        let pool = pool(&ranges, &[&format!("198.51.100.{excluded}/32"), "10.0.15.0/24"], select);
        let now = january(year);
        let up = |ip: IpAddr| usable_hosts.contains(&(ip_to_u128(ip) & 0xfff)) && !ip.to_string().starts_with("2001:db8:6");
        let active = pool.active_ranges(now);
        let listed = |ip: IpAddr| active.iter().any(|net| net.contains(&ip));
        match select_hops(&pool, &cleared(&targets), affinity, sequence, now, &up) {
            Ok(hops) => for hop in hops {
                prop_assert!(listed(hop.from()) && pool.contains(hop.from(), now) && up(hop.from()));
                prop_assert_eq!(hop.from().is_ipv6(), hop.to().is_ipv6());
            },
            // The selection may give up on a large pool, here one with a /64.
            Err(_) if year >= 2028 => {}
            Err(_) => {
                let usable = |v6: bool| (0..pool.size(now, v6)).any(|index| up(pool.nth(v6, index, now).unwrap()));
                let wanted = |v6| targets.iter().any(|to| to.contains(':') == v6);
                prop_assert!(![false, true].into_iter().any(|v6| wanted(v6) && usable(v6)));
            }
        }
    }
}
