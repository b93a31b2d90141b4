//! Properties of the list and of its formats.
//! Does every format have exactly the addresses of the plan?

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use proptest::prelude::*;
use serde_json::Value;

use super::format::{FORMATS, Format};
use super::*;
use crate::config::{self, Located, PoolRange, SelectionPolicy, SourceSpan};

const GRACE: Duration = Duration::from_secs(3600);

fn at<T>(value: T) -> Located<T> {
    Located { value, span: SourceSpan { file: 0, start: 0, end: 0 } }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pool(name: &str, ranges: Vec<PoolRange>, exclude: &[IpNet]) -> Pool {
    let ranges = ranges.into_iter().map(at).collect();
    let exclude = exclude.iter().map(|net| at(*net)).collect();
    let pool = config::Pool {
        ranges,
        exclude,
        select: SelectionPolicy::Sticky,
        failover: true,
        notice: Duration::ZERO,
        force: false,
    };
    Pool::new(&PoolName::new(name), &pool)
}

/// Parses a range from `CIDR`, `CIDR from TIME`, `CIDR until TIME`, `CIDR as CIDR`, or several of them.
fn range(text: &str) -> PoolRange {
    let words: Vec<_> = text.split(' ').collect();
    let word = |key: &str| Some(words[words.iter().position(|word| *word == key)? + 1]);
    let seen_as = word("as").map(|text| at(net(text)));
    PoolRange { cidr: net(words[0]), seen_as, from: word("from").map(time), until: word("until").map(time) }
}

fn list_at(pools: &[Pool], since: &str, now: &str) -> EgressList {
    let version = ListVersion::of(pools.iter(), GRACE, None, time(since), time(now));
    EgressList::new(pools, None, GRACE, &version, time(now))
}

/// Returns the CIDRs in the text of a format: every word that is one, and every address that has a mask or is a host.
fn parse(format: &Format, text: &str) -> Vec<IpNet> {
    if format.media_type() == "application/json" {
        fn collect(value: &Value, found: &mut Vec<IpNet>) {
            match value {
                Value::String(text) => found.extend(text.parse::<IpNet>().ok()),
                Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
                Value::Object(members) => members.values().for_each(|value| collect(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        collect(&serde_json::from_str(text).unwrap(), &mut found);
        return found;
    }
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !["#", "!", ";", "/*"].iter().any(|start| line.starts_with(start))) {
        let mut words = line.split(|c: char| c.is_whitespace() || "\"',;={}()".contains(c)).peekable();
        let mut is_host = false;
        while let Some(word) = words.next() {
            let word = word.trim_start_matches("ip4:").trim_start_matches("ip6:");
            let mask = words.peek().and_then(|next| next.parse::<IpAddr>().ok());
            match (word.parse::<IpNet>(), word.parse::<IpAddr>(), mask) {
                (Ok(net), ..) => found.push(net),
                (_, Ok(ip), Some(mask)) => found.push(IpNet::with_netmask(ip, mask).unwrap()),
                (_, Ok(ip), None) if is_host => found.push(ip.into()),
                (_, Ok(ip), None) => assert!(ip.is_ipv4() && line.contains(&format!(" {ip}")), "{line}"),
                _ => {}
            }
            is_host = word == "host";
        }
    }
    found
}

/// An address of the two networks that the property draws ranges from.
fn universe() -> impl Iterator<Item = IpAddr> {
    let v4 = (0..=255).map(|last| Ipv4Addr::new(198, 51, 100, last).into());
    v4.chain((0..=255).map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()))
}

prop_compose! {
    fn part_of_the_universe()(v6: bool, last: u8, host_bits in 0u8..=5) -> IpNet {
        let (ip, length): (IpAddr, u8) = match v6 {
            false => (Ipv4Addr::new(198, 51, 100, last).into(), 32),
            true => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(), 128),
        };
        IpNet::new(ip, length - host_bits).unwrap().trunc()
    }
}

proptest! {
    #[test]
    fn every_format_has_exactly_the_addresses_of_the_plan(
        ranges in prop::collection::vec((part_of_the_universe(), prop::sample::select(vec![
            "", "from 2027-01-01T00:00:00Z", "until 2027-01-01T00:00:00Z", "until 2026-05-31T23:30:00Z", "until 2026-05-01T00:00:00Z",
        ]), 0..2usize), 1..12),
        exclude in prop::collection::vec(part_of_the_universe(), 0..4),
    ) {
        let of_pool = |index| -> Vec<PoolRange> {
            let chosen = ranges.iter().filter(|(.., pool)| *pool == index);
            chosen.map(|(cidr, dates, _)| range(format!("{cidr} {dates}").trim())).collect()
        };
        let pools = [pool("default", of_pool(0), &exclude), pool("EU west.1", of_pool(1), &exclude)];
        let list = list_at(&pools, "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
        let is_listed = |ip: &IpAddr| {
            // The last range ended a month ago, when the longest delivery has an hour.
            let mut holding = ranges.iter().filter(|(_, dates, _)| *dates != "until 2026-05-01T00:00:00Z");
            holding.any(|(cidr, ..)| cidr.contains(ip)) && !exclude.iter().any(|exclude| exclude.contains(ip))
        };
        let expected: BTreeSet<IpAddr> = universe().filter(is_listed).collect();
        for format in FORMATS.iter() {
            let found = parse(format, &format.render(&list));
            let family = |ip: &IpAddr| match &*format.name { "aws" => ip.is_ipv4(), "aws-ipv6" => ip.is_ipv6(), _ => true };
            let expected: BTreeSet<IpAddr> = expected.iter().copied().filter(family).collect();
            let addresses: BTreeSet<IpAddr> = universe().filter(|ip| found.iter().any(|net| net.contains(ip))).collect();
            prop_assert_eq!(&addresses, &expected, "{}: {:?}", format.name, &found);
            prop_assert!(found.iter().all(|net| expected.contains(&net.network()) && expected.contains(&net.broadcast())));
            let distinct: BTreeSet<IpNet> = found.iter().copied().collect();
            if !["csv", "json"].contains(&&*format.name) {
                prop_assert_eq!(distinct.len(), IpNet::aggregate(&found).len(), "{} is not aggregated", format.name);
            }
        }
    }
}

#[test]
fn list_has_announced_active_and_retiring_ranges_with_their_dates() {
    let ranges = [
        "198.51.100.0/25",
        "198.51.100.128/25",
        "192.0.2.0/28 from 2027-01-01T00:00:00Z",
        "192.0.2.16/28 until 2026-12-01T00:00:00Z",
        "192.0.2.32/28 until 2026-05-31T23:30:00Z",
        "192.0.2.48/28 until 2026-05-01T00:00:00Z",
        "10.0.0.16/30 as 203.0.113.16/30",
    ];
    let pools = [pool("default", ranges.map(range).into(), &[net("10.0.0.17/32")])];
    let list = list_at(&pools, "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    let listed: Vec<_> = list.ranges.iter().map(|range| format!("{} {}", range.cidr, range.state.as_str())).collect();
    assert_eq!(
        listed,
        [
            "192.0.2.0/28 announced",
            "192.0.2.16/28 retiring",
            "192.0.2.32/28 retiring",
            "198.51.100.0/24 active",
            "203.0.113.16/32 active",
            "203.0.113.18/31 active"
        ]
    );
    let prefixes: Vec<_> = list.prefixes.iter().map(IpNet::to_string).collect();
    assert_eq!(
        prefixes,
        ["192.0.2.0/27", "192.0.2.32/28", "198.51.100.0/24", "203.0.113.16/32", "203.0.113.18/31"],
        "the list shows what targets see"
    );
    assert_eq!((list.date().as_str(), list.serial()), ("2026-05-31T23:30:00Z", 1_780_270_200), "the last end");
    assert_eq!(list.next_change.map(rfc3339).as_deref(), Some("2026-06-01T00:30:00Z"), "the end of its grace");
}

#[test]
fn serial_grows_with_each_change_and_stays_otherwise() {
    let (one, two) =
        ([pool("default", vec![range("192.0.2.0/28")], &[])], [pool("default", vec![range("192.0.2.0/27")], &[])]);
    let of = |pools: &[Pool], former: Option<&ListVersion>, changed: &str, now: &str| {
        ListVersion::of(pools.iter(), GRACE, former, time(changed), time(now))
    };
    let first = of(&one, None, "2026-01-01T00:00:00.75Z", "2026-02-01T00:00:00Z");
    assert_eq!(rfc3339(first.since), "2026-01-01T00:00:00Z");
    let same = of(&one, Some(&first), "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z");
    assert_eq!(same.since, first.since);
    let changed = of(&two, Some(&same), "2026-04-01T00:00:00Z", "2026-04-01T00:00:00Z");
    assert_eq!(rfc3339(changed.since), "2026-04-01T00:00:00Z");
    // A file with an old date, or a second change within one second.
    let back = of(&one, Some(&changed), "2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z");
    assert_eq!(rfc3339(back.since), "2026-04-01T00:00:01Z");
}

#[test]
fn names_of_pools_are_safe_in_every_format_and_distinct() {
    let slugs: Vec<_> = [
        "default",
        "eu-1",
        "EU-1",
        "eu_1",
        "eu.1",
        "..",
        "-",
        "a-",
        "a-very-long-name-of-a-pool",
        "a-very-long-name-of-a-pooI",
    ]
    .map(|name| slug(&PoolName::new(name)))
    .into();
    assert_eq!(slugs[..2], ["default", "eu-1"]);
    assert_eq!(slugs.iter().collect::<BTreeSet<_>>().len(), slugs.len(), "{slugs:?}");
    for slug in &slugs {
        assert!(slug.len() <= SLUG_MAX && slug.ends_with(|c: char| c.is_ascii_alphanumeric()), "{slug}");
        assert!(slug.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{slug}");
    }
}

#[test]
fn comments_have_the_serial_and_the_date() {
    let pools = [pool("default", vec![range("192.0.2.0/28"), range("2001:db8::/64")], &[])];
    let list = list_at(&pools, "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    for format in FORMATS.iter() {
        let text = format.render(&list);
        let has_comments = !["text", "fortigate", "jafar"].contains(&&*format.name);
        assert_eq!(text.contains("1767225600"), has_comments, "{}: {text}", format.name);
        assert_eq!(text.contains("2026-01-01T00:00:00Z"), has_comments || format.name == "jafar", "{}", format.name);
        assert!(!text.contains('<') || format.name == "ipset", "{}: a placeholder is left: {text}", format.name);
    }
}

#[test]
fn five_thousand_ranges_are_rendered_in_every_format() {
    let ranges = (0..5000u32).map(|index| PoolRange {
        cidr: IpNet::new(Ipv4Addr::from_bits(0xc612_0000 + 2 * index).into(), 32).unwrap(),
        seen_as: None,
        from: None,
        until: None,
    });
    let pools = [pool("default", ranges.collect(), &[])];
    let started = Instant::now();
    let list = list_at(&pools, "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    let lengths: Vec<usize> = FORMATS.iter().map(|format| format.render(&list).len()).collect();
    eprintln!(
        "{} formats of {} CIDRs, {} bytes: {:?}",
        FORMATS.len(),
        list.prefixes.len(),
        lengths.iter().sum::<usize>(),
        started.elapsed()
    );
    assert_eq!(list.prefixes.len(), 5000);
    assert!(
        FORMATS
            .iter()
            .zip(lengths)
            .all(|(format, length)| format.name == "aws-ipv6" || length > 5000 * "198.18.0.0".len())
    );
}

#[test]
fn list_name_has_the_slug_of_its_pool() {
    let version = ListVersion::of([].iter(), GRACE, None, time("2026-01-01T00:00:00Z"), time("2026-01-01T00:00:00Z"));
    let name = |pool: Option<&str>| {
        let (pools, pool): ([Pool; 0], _) = ([], pool.map(PoolName::new));
        EgressList::new(&pools, pool.as_ref(), GRACE, &version, time("2026-01-01T00:00:00Z")).name()
    };
    assert_eq!([None, Some("eu-1")].map(name), ["outgate", "outgate-eu-1"]);
}

#[test]
fn documents_have_the_keys_and_priorities_of_their_products() {
    let pools = [pool("default", vec![range("192.0.2.0/28"), range("192.0.2.32/32"), range("2001:db8::/64")], &[])];
    let list = list_at(&pools, "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    let render = |name: &str| Format::find(name).unwrap().render(&list);
    assert!(Format::find("").is_none());
    let keys = |name: &str| {
        let document: Value = serde_json::from_str(&render(name)).unwrap();
        let prefixes = document["prefixes"].as_array().unwrap().clone();
        let pair = |prefix: &Value| ["ipv4Prefix", "ipv6Prefix"].map(|key| prefix[key].as_str().map(str::to_owned));
        prefixes.iter().map(pair).collect::<Vec<_>>()
    };
    let v4 = |text: &str| [Some(text.to_owned()), None];
    let expected = [v4("192.0.2.0/28"), v4("192.0.2.32/32"), [None, Some("2001:db8::/64".to_owned())]];
    assert_eq!(keys("jafar"), expected);
    assert!(render("asa").contains(" network-object host 192.0.2.32\n"), "{}", render("asa"));

    let many = (0..255u32).map(|index| {
        let cidr = IpNet::new(Ipv4Addr::from_bits(0xc612_0000 + 2 * index).into(), 32).unwrap();
        PoolRange { cidr, seen_as: None, from: None, until: None }
    });
    let list = list_at(&[pool("default", many.collect(), &[])], "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    let document = Format::find("gcp").unwrap().render(&list);
    let document: Value = serde_json::from_str(&document).unwrap();
    let rules = document["rules"].as_array().unwrap().iter();
    let priorities: Vec<_> = rules.map(|rule| rule["priority"].as_u64().unwrap()).collect();
    let allowed: Vec<u64> = (1000..1000 + priorities.len() as u64 - 1).collect();
    assert!(allowed.len() > 1);
    assert_eq!(priorities, [allowed, vec![2_147_483_647]].concat());
}
