//! The selection of many source addresses of a pool, to find out which of them a target accepts.
//! Which source addresses must be probed to represent the whole pool?

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    AddressSpan, AnnouncedRange, Hop, HopError, Pool, RangePhase, TARGET_ADDRESSES_MAX, interleave, ip_to_u128, is_v6,
    u128_to_ip,
};
use crate::policy::guard::ClearedAddresses;

/// The hops from each source, in turn, to every target address of its family.
pub struct Survey {
    pub hops: Vec<Hop>,
    /// The sources of the hops in order, IPv4 first.
    pub sources: Vec<IpAddr>,
    /// The number of addresses that the sources represent.
    pub population: u128,
}

impl Survey {
    pub fn is_sample(&self) -> bool {
        self.population > self.sources.len() as u128
    }
}

/// The choice of the ranges that a probe compares with the active ones.
pub enum NewRanges {
    None,
    /// The ranges whose `from` is in the future.
    Upcoming,
    /// The ranges that lie within these networks, as the host or as targets see them.
    Within(Vec<IpNet>),
}

/// The ranges of a pool that a probe compares. None of them has ended.
pub struct ComparedRanges {
    pub new: Vec<AnnouncedRange>,
    /// The ranges that deliveries leave from, without the new ones.
    pub active: Vec<AnnouncedRange>,
}

impl ComparedRanges {
    /// Returns the range with the address, as the host sees it.
    pub fn range_of(&self, source: IpAddr) -> Option<&AnnouncedRange> {
        self.new.iter().chain(&self.active).find(|range| range.cidr.contains(&source))
    }
}

impl Pool {
    pub fn compared_ranges(&self, new: &NewRanges, now: Timestamp) -> ComparedRanges {
        let is_new = |range: &AnnouncedRange| match new {
            NewRanges::None => false,
            // The next period of an active range is no new range.
            NewRanges::Upcoming => range.phase == RangePhase::Upcoming && !self.contains(range.cidr.network(), now),
            NewRanges::Within(nets) => nets.iter().any(|net| net.contains(&range.cidr) || net.contains(&range.seen_as)),
        };
        let ranges = self.announced_ranges(now).filter(|range| range.phase != RangePhase::Ended);
        let (new, mut active): (Vec<_>, Vec<_>) = ranges.partition(is_new);
        active.retain(|range| range.phase == RangePhase::Active);
        ComparedRanges { new, active }
    }

    /// Returns whether deliveries leave from the address, now or later.
    fn announces(&self, ip: IpAddr, now: Timestamp) -> bool {
        let mut ranges = self.ranges.iter().filter(|range| range.phase(now) != RangePhase::Ended);
        ranges.any(|range| range.is_v6() == ip.is_ipv6() && range.contains(ip_to_u128(ip)))
    }
}

/// Returns hops from every address of the pool in `groups`, or from a sample of `sources_max` addresses of a group that
/// has more. Each span of a group gets its share of the sample, which includes its first and last address.
pub fn survey(
    pool: &Pool,
    cleared: &ClearedAddresses,
    groups: &[Vec<IpNet>],
    sources_max: usize,
    now: Timestamp,
) -> Result<Survey, HopError> {
    let has_family = |v6| cleared.addresses().iter().any(|to| to.is_ipv6() == v6);
    let (mut sources, mut population) = (Vec::new(), 0u128);
    for usable in groups {
        let families = [false, true].into_iter().filter(|v6| has_family(*v6));
        let spans: Vec<(bool, AddressSpan)> =
            families.flat_map(|v6| merge_spans(usable, v6).into_iter().map(move |span| (v6, span))).collect();
        let sizes: Vec<u128> = spans.iter().map(|(_, span)| span.size()).collect();
        let drawn = spans.iter().zip(allocate_shares(&sizes, sources_max)).flat_map(|((v6, span), share)| {
            let v6 = *v6;
            span.sample(share).map(move |number| u128_to_ip(number, v6))
        });
        sources.extend(drawn.filter(|source| pool.announces(*source, now)));
        population = sizes.iter().copied().fold(population, u128::saturating_add);
    }
    if population == 0 {
        let has_usable = groups.iter().any(|usable| !usable.is_empty());
        return Err(if has_usable { HopError::NoCommonFamily } else { HopError::NoUsableSource });
    }
    sources.sort_unstable();
    let hops_from = |from: IpAddr| {
        let to =
            interleave(cleared.addresses()).filter(move |to| to.is_ipv6() == from.is_ipv6()).take(TARGET_ADDRESSES_MAX);
        let seen_as = pool.seen_as(from, now);
        to.map(move |to| Hop { from, seen_as, to: (to, cleared.port()).into() })
    };
    Ok(Survey { hops: sources.iter().copied().flat_map(hops_from).collect(), sources, population })
}

/// Merges adjacent and overlapping networks into spans.
fn merge_spans(nets: &[IpNet], v6: bool) -> Vec<AddressSpan> {
    let mut spans: Vec<AddressSpan> = nets.iter().filter(|net| is_v6(net) == v6).map(AddressSpan::of).collect();
    spans.sort_unstable_by_key(|span| span.first);
    let mut merged: Vec<AddressSpan> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
            _ => merged.push(span),
        }
    }
    merged
}

/// Divides `total` among spans by their sizes. Larger spans get what smaller ones do not need.
fn allocate_shares(sizes: &[u128], total: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|index| sizes[*index]);
    let (mut shares, mut left) = (vec![0; sizes.len()], total);
    for (done, index) in order.into_iter().enumerate() {
        let fair = left / (sizes.len() - done);
        shares[index] = usize::try_from(sizes[index]).unwrap_or(usize::MAX).min(fair);
        left -= shares[index];
    }
    shares
}

impl AddressSpan {
    /// Returns at most `count` addresses as numbers, evenly spaced from the first to the last.
    fn sample(self, count: usize) -> impl Iterator<Item = u128> {
        let count = (count as u128).min(self.size());
        let gaps = count.saturating_sub(1).max(1);
        let (step, rest) = ((self.last - self.first) / gaps, (self.last - self.first) % gaps);
        (0..count).map(move |index| self.first + index * step + index * rest / gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, PoolRange};
    use crate::names::PoolName;
    use crate::policy::egress::tests::cleared;
    use crate::policy::fixture;

    fn sampled(first: u128, last: u128, count: usize) -> Vec<u128> {
        AddressSpan { first, last }.sample(count).collect()
    }

    #[test]
    fn survey_sample_has_the_first_and_the_last_address() {
        assert_eq!(sampled(16, 31, 16), (16..=31).collect::<Vec<_>>());
        assert_eq!(sampled(16, 31, 99), (16..=31).collect::<Vec<_>>());
        assert_eq!(sampled(16, 31, 4), [16, 21, 26, 31]);
        assert_eq!(sampled(0, 9, 4), [0, 3, 6, 9]);
        assert_eq!(sampled(0, 10, 4), [0, 3, 6, 10]);
        assert_eq!((sampled(5, 5, 4), sampled(5, 9, 1), sampled(5, 9, 0)), (vec![5], vec![5], vec![]));
        let wide = sampled(0, u128::MAX, 4096);
        assert_eq!((wide.len(), wide[0], wide[4095]), (4096, 0, u128::MAX));
        assert!(wide.is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn survey_shares_are_fair_and_never_exceed_a_span() {
        assert_eq!(allocate_shares(&[16, 1 << 64], 32), [16, 16]);
        assert_eq!(allocate_shares(&[1 << 64, 4, 1 << 80], 32), [14, 4, 14]);
        assert_eq!(allocate_shares(&[2, 3], 32), [2, 3]);
        assert_eq!(allocate_shares(&[100; 3], 32), [10, 11, 11]);
        assert_eq!(allocate_shares(&[100; 3], 2), [0, 1, 1]);
    }

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    /// A range: its CIDR, the CIDR that targets see, and `from` and `until` as days.
    type Range<'a> = (&'a str, Option<&'a str>, [Option<i64>; 2]);

    fn pool_of(ranges: &[Range<'_>]) -> Pool {
        let ranges = ranges.iter().map(|(cidr, seen_as, [from, until])| {
            let seen_as = seen_as.map(|cidr| fixture::at(0, cidr.parse().unwrap()));
            let range = PoolRange { cidr: cidr.parse().unwrap(), seen_as, from: from.map(at), until: until.map(at) };
            fixture::at(0, range)
        });
        Pool::new(&PoolName::new("default"), &config::Pool { ranges: ranges.collect(), ..fixture::pool() })
    }

    #[test]
    fn survey_compares_new_ranges_with_active_ones() {
        let pool = pool_of(&[
            ("192.0.2.0/30", Some("203.0.113.0/30"), [None, None]),
            ("192.0.2.4/30", None, [Some(90), Some(110)]),
            ("192.0.2.4/30", None, [Some(110), None]), // the next period of an active range
            ("192.0.2.8/30", None, [Some(101), None]),
            ("192.0.2.12/30", None, [None, Some(100)]), // it has ended
        ]);
        let compared = |new: NewRanges| {
            let compared = pool.compared_ranges(&new, at(100));
            let texts =
                |ranges: &[AnnouncedRange]| ranges.iter().map(|range| range.cidr.to_string()).collect::<Vec<_>>();
            (texts(&compared.new), texts(&compared.active))
        };
        let of = |new: &[&str], active: &[&str]| {
            let texts = |cidrs: &[&str]| cidrs.iter().map(ToString::to_string).collect::<Vec<_>>();
            (texts(new), texts(active))
        };
        let net = |cidr: &str| NewRanges::Within(vec![cidr.parse().unwrap()]);
        assert_eq!(compared(NewRanges::None), of(&[], &["192.0.2.0/30", "192.0.2.4/30"]));
        assert_eq!(compared(NewRanges::Upcoming), of(&["192.0.2.8/30"], &["192.0.2.0/30", "192.0.2.4/30"]));
        assert_eq!(compared(net("192.0.2.0/29")), of(&["192.0.2.0/30", "192.0.2.4/30", "192.0.2.4/30"], &[]));
        assert_eq!(compared(net("203.0.113.0/24")), of(&["192.0.2.0/30"], &["192.0.2.4/30"]), "as targets see it");
        let ranges = pool.compared_ranges(&NewRanges::Upcoming, at(100));
        let range_of = |ip: &str| ranges.range_of(ip.parse().unwrap()).map(|range| range.cidr.to_string());
        assert_eq!(range_of("192.0.2.3").as_deref(), Some("192.0.2.0/30"));
        assert_eq!(range_of("192.0.2.8").as_deref(), Some("192.0.2.8/30"));
        assert_eq!(range_of("192.0.2.12"), None);
    }

    #[test]
    fn survey_has_hops_from_the_sources_that_the_pool_announces() {
        let pool = pool_of(&[
            ("192.0.2.0/30", Some("203.0.113.0/30"), [None, None]),
            ("192.0.2.8/30", None, [Some(101), None]),
            ("192.0.2.12/30", None, [None, Some(100)]),
            ("2001:db8::/126", None, [None, None]),
        ]);
        let group = |cidrs: &[&str]| cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<IpNet>>();
        let (v4, both) = (cleared(&["1.1.1.1"]), cleared(&["1.1.1.1", "2001:db8::1"]));
        let survey = |cleared: &ClearedAddresses, groups: &[Vec<IpNet>], max: usize| {
            survey(&pool, cleared, groups, max, at(100))
        };
        let all = [group(&["192.0.2.0/30", "2001:db8::/126"]), group(&["192.0.2.8/29"])];
        let found = survey(&v4, &all, 100).unwrap();
        let sources: Vec<String> = found.sources.iter().map(ToString::to_string).collect();
        let expected =
            ["192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.11"];
        assert_eq!(sources, expected, "no address that has ended, and none without a target of its family");
        assert_eq!((found.population, found.is_sample()), (12, true));
        let hop = &found.hops[1];
        assert_eq!(
            (hop.from().to_string(), hop.seen_as().to_string()),
            ("192.0.2.1".to_owned(), "203.0.113.1".to_owned())
        );
        let whole = survey(&both, &[group(&["192.0.2.0/30", "2001:db8::/126"])], 100).unwrap();
        assert_eq!((whole.sources.len(), whole.hops.len(), whole.is_sample()), (8, 8, false));
        let refused = |groups: &[Vec<IpNet>]| survey(&v4, groups, 100).err().map(|error| format!("{error:?}"));
        assert_eq!(refused(&[group(&["2001:db8::/126"])]).as_deref(), Some("NoCommonFamily"));
        assert_eq!(refused(&[group(&[])]).as_deref(), Some("NoUsableSource"));
    }

    #[test]
    fn survey_merges_adjacent_ranges() {
        let nets: Vec<IpNet> = ["192.0.2.18/31", "192.0.2.17/32", "192.0.2.20/30", "192.0.2.32/32", "2001:db8::/64"]
            .map(|net| net.parse().unwrap())
            .into();
        let ends = |v6| {
            merge_spans(&nets, v6)
                .iter()
                .map(|span| (u128_to_ip(span.first, v6), u128_to_ip(span.last, v6)))
                .collect::<Vec<_>>()
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(ends(false), [(ip("192.0.2.17"), ip("192.0.2.23")), (ip("192.0.2.32"), ip("192.0.2.32"))]);
        assert_eq!(ends(true), [(ip("2001:db8::"), ip("2001:db8::ffff:ffff:ffff:ffff"))]);
    }
}
