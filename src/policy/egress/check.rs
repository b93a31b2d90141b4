//! The validation of configured pools.
//! Which ranges would surprise the operator, or the customers who allow-list them?

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;

use super::{AddressSpan, Pool, RangePhase, SourceRange, is_v6};
use crate::config::WarningCode;
use crate::config::{self, Located, PoolRange, Problem, SourceSpan};
use crate::names::PoolName;
use crate::policy::addresses::{self, overlaps};

/// The shortest prefix of a range. A wider range is likely a typing error, since no platform has that many addresses.
const PREFIX_LEN_MIN_V4: u8 = 8;
const PREFIX_LEN_MIN_V6: u8 = 16;

/// Ranges that the kernel binds no connection to, or treats as "any address", which would choose a source outside the
/// pool.
const UNUSABLE_SOURCES: [(IpNet, &str); 7] = [
    (v4([0, 0, 0, 0], 32), "the unspecified address"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255, 255, 255, 255], 32), "the broadcast address"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "the unspecified address"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped: write the IPv4 address"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local, of one interface only"),
];

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_octets(octets), length))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

/// The `from` and `until` of a range.
type ActiveWindow = (Option<Timestamp>, Option<Timestamp>);
type Pools = BTreeMap<PoolName, Located<config::Pool>>;

pub(super) fn check(pools: &Pools, now: Timestamp, problems: &mut Vec<Problem>) {
    for (name, pool) in pools {
        for range in &pool.ranges {
            check_range(range, &pool.exclude, problems);
        }
        check_ended(name, pool, now, problems);
        check_overlaps(&pool.ranges, problems);
        for exclude in &pool.exclude {
            if !pool.ranges.iter().any(|range| overlaps(&range.cidr, exclude)) {
                let message = format!("`{}` excludes nothing: no range of egress.{name} has it", exclude.value);
                problems.push(Problem::warning(WarningCode::ExcludesNothing, Some(exclude.span), message));
            }
        }
        check_empty(name, pool, now, problems);
    }
    check_shared(pools, problems);
}

fn check_range(range: &Located<PoolRange>, exclude: &[Located<IpNet>], problems: &mut Vec<Problem>) {
    let cidr = range.cidr;
    let widest = if is_v6(&cidr) { PREFIX_LEN_MIN_V6 } else { PREFIX_LEN_MIN_V4 };
    if cidr.prefix_len() < widest {
        problems.push(
            Problem::at(range.span, format!("`{cidr}` is too wide for a pool"))
                .help(format!("write the ranges that are routed to this host, /{widest} at most")),
        );
        return;
    }
    let is_excluded = |net: &IpNet| exclude.iter().any(|excluded| excluded.contains(net));
    if let Some((net, reason)) = UNUSABLE_SOURCES.iter().find(|(net, _)| overlaps(net, &cidr) && !is_excluded(net)) {
        let message =
            format!("`{cidr}` cannot be a source: {net} is {reason}, to which the kernel binds no connection");
        let help = "write addresses that are routed to this host; `exclude` leaves out some of a range";
        problems.push(Problem::at(range.span, message).help(help));
        return;
    }
    if let (Some(from), Some(until)) = (range.from, range.until)
        && from >= until
    {
        problems.push(
            Problem::at(range.span, format!("`{cidr}` is never active: it ends before it begins"))
                .label(format!("from {from} until {until}"))
                .help("write a later `until`"),
        );
    }
    if let Some(seen_as) = &range.seen_as {
        check_seen_as(&cidr, seen_as, problems);
    }
    // The range may be special in part or as a whole.
    // Behind NAT, the outside range counts.
    let (seen, span) = range.seen_as.as_ref().map_or((cidr, range.span), |seen_as| (seen_as.value, seen_as.span));
    let special = addresses::registered_range(seen.network())
        .or_else(|| addresses::special_ranges().find(|row| overlaps(&row.cidr, &seen)));
    if let Some(special) = special {
        problems.push(
            Problem::warning(WarningCode::NotPublic, Some(span), format!("`{seen}` is not public: {special}"))
                .help("write seen_as, the addresses of a NAT that targets on the Internet see; without a NAT, they receive no packet"),
        );
    }
}

/// Checks that each address of a range has one outside address.
fn check_seen_as(cidr: &IpNet, seen_as: &Located<IpNet>, problems: &mut Vec<Problem>) {
    let (inside, outside) = (cidr.prefix_len(), seen_as.prefix_len());
    let (message, help) = if is_v6(cidr) != is_v6(seen_as) {
        let message = format!("`{cidr}` cannot be seen as `{}`, which is of another address family", seen_as.value);
        (
            message,
            "write addresses of the same family: a NAT that translates between families is not supported".to_owned(),
        )
    } else if inside != outside {
        let message = format!("`{cidr}` cannot be seen as `{}`, which has another size", seen_as.value);
        (
            message,
            format!("write a range of the same size, /{inside}: the first address is seen as the first one, and so on"),
        )
    } else {
        return;
    };
    problems.push(Problem::at(seen_as.span, message).help(help));
}

/// Warns about ended ranges, which may be in the configuration for customers or by mistake. [`check_empty`] reports a
/// pool without other ranges.
fn check_ended(name: &PoolName, pool: &Located<config::Pool>, now: Timestamp, problems: &mut Vec<Problem>) {
    let ended = |range: &&Located<PoolRange>| range.until.is_some_and(|until| until <= now && range.from < Some(until));
    if pool.ranges.iter().all(|range| ended(&range)) {
        return;
    }
    for range in pool.ranges.iter().filter(ended) {
        let message = format!("`{}` has ended: no new connection leaves from it", range.cidr);
        let help = format!(
            "remove it when `outgate egress list --pool {name}` no longer lists it: then no connection uses it"
        );
        problems.push(Problem::warning(WarningCode::RangeEnded, Some(range.span), message).help(help));
    }
}

/// Reports ranges that overlap in addresses and time: their addresses would count twice.
fn check_overlaps(ranges: &[Located<PoolRange>], problems: &mut Vec<Problem>) {
    for (index, range) in ranges.iter().enumerate() {
        let earlier = &ranges[..index];
        if let Some(first) = earlier.iter().find(|first| {
            overlaps(&first.cidr, &range.cidr) && windows_overlap((first.from, first.until), (range.from, range.until))
        }) {
            problems.push(
                Problem::at(range.span, format!("`{}` overlaps `{}`", range.cidr, first.cidr))
                    .related(first.span, "first used here")
                    .help("write each address once, or give the ranges times that do not overlap"),
            );
        } else if let Some((first, span)) = earlier.iter().find_map(|first| shared_outside(first, range)) {
            problems.push(
                Problem::at(span, format!("targets see two ranges with the same addresses, of `{}`", outside(range)))
                    .related(first, "first used here")
                    .help("write each outside address once, or give the ranges times that do not overlap"),
            );
        }
    }
}

/// Returns the addresses that targets see for a range.
fn outside(range: &PoolRange) -> &IpNet {
    range.seen_as.as_ref().map_or(&range.cidr, |seen_as| &seen_as.value)
}

/// Returns the spans of two ranges if targets see the same addresses for both, and one of them is behind NAT.
fn shared_outside(first: &Located<PoolRange>, range: &Located<PoolRange>) -> Option<(SourceSpan, SourceSpan)> {
    let is_shared = (first.seen_as.is_some() || range.seen_as.is_some())
        && overlaps(outside(first), outside(range))
        && windows_overlap((first.from, first.until), (range.from, range.until));
    let span = |range: &Located<PoolRange>| range.seen_as.as_ref().map_or(range.span, |seen_as| seen_as.span);
    is_shared.then(|| (span(first), span(range)))
}

fn check_empty(name: &PoolName, pool: &Located<config::Pool>, now: Timestamp, problems: &mut Vec<Problem>) {
    let ranges = Pool::new(name, pool).ranges;
    if ranges.is_empty() {
        problems.push(
            Problem::at(pool.span, format!("egress.{name} has no address"))
                .help("write at least one range, and let `exclude` leave some of it"),
        );
    } else if !ranges.iter().any(|range| range.phase(now) == RangePhase::Active) {
        let upcoming = |range: &SourceRange| range.from.filter(|_| range.phase(now) == RangePhase::Upcoming);
        let message = match ranges.iter().filter_map(upcoming).min() {
            Some(from) => format!("egress.{name} has no address until {from}"),
            None => format!("egress.{name} no longer has an address: every range has ended"),
        };
        problems.push(
            Problem::warning(WarningCode::NoAddress, Some(pool.span), message)
                .help("its deliveries are refused as no_egress"),
        );
    }
}

/// Warns about addresses of two pools: a customer who allows one pool then receives webhooks from both.
fn check_shared(pools: &Pools, problems: &mut Vec<Problem>) {
    let compiled = |(name, pool): (&PoolName, &Located<config::Pool>)| {
        let ranges = pool.ranges.iter().map(|range| (range.span, SourceRange::new(range, pool)));
        (name.clone(), ranges.collect::<Vec<_>>())
    };
    let compiled: Vec<_> = pools.iter().map(compiled).collect();
    for (index, (name, ranges)) in compiled.iter().enumerate() {
        for (other, others) in &compiled[..index] {
            let pairs = ranges.iter().flat_map(|range| others.iter().map(move |other| (range, other)));
            if let Some(((place, range), (first, _))) = pairs.into_iter().find(|((_, a), (_, b))| ranges_overlap(a, b))
            {
                problems.push(
                    Problem::warning(
                        WarningCode::SharedRange,
                        Some(*place),
                        format!("`{}` is shared by egress.{other} and egress.{name}", range.cidr),
                    )
                    .related(*first, format!("in egress.{other} here")),
                );
            }
        }
    }
}

fn ranges_overlap(a: &SourceRange, b: &SourceRange) -> bool {
    let touch = |x: &AddressSpan| b.spans.iter().any(|y| x.first <= y.last && y.first <= x.last);
    a.is_v6() == b.is_v6() && windows_overlap((a.from, a.until), (b.from, b.until)) && a.spans.iter().any(touch)
}

/// Returns whether both windows are active at some time.
fn windows_overlap(a: ActiveWindow, b: ActiveWindow) -> bool {
    let before_end =
        |from: Option<Timestamp>, until: Option<Timestamp>| from.is_none_or(|f| until.is_none_or(|u| f < u));
    before_end(a.0, b.1) && before_end(b.0, a.1)
}
