//! Spans of addresses as numbers: sizes, holes, and the CIDRs that cover a span exactly.
//! Which addresses does this part of a range have?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::AnnouncedRange;
use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

/// A span of addresses as numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressSpan {
    pub(super) first: u128,
    pub(super) last: u128,
}

impl AddressSpan {
    pub(super) fn of(net: &IpNet) -> Self {
        Self { first: ip_to_u128(net.network()), last: ip_to_u128(net.broadcast()) }
    }

    /// Returns the number of addresses. `check` refuses ranges that would overflow it.
    pub(super) fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// Returns the span without the addresses in `hole`.
    pub(super) fn without(self, hole: &AddressSpan) -> impl Iterator<Item = AddressSpan> {
        if hole.last < self.first || self.last < hole.first {
            return [Some(self), None].into_iter().flatten();
        }
        let before = (self.first < hole.first).then(|| AddressSpan { first: self.first, last: hole.first - 1 });
        let after = (hole.last < self.last).then(|| AddressSpan { first: hole.last + 1, last: self.last });
        [before, after].into_iter().flatten()
    }

    pub(super) fn to_nets(self, v6: bool) -> IpSubnets {
        if v6 {
            Ipv6Subnets::new(Ipv6Addr::from_bits(self.first), Ipv6Addr::from_bits(self.last), 0).into()
        } else {
            Ipv4Subnets::new(Ipv4Addr::from_bits(self.first as u32), Ipv4Addr::from_bits(self.last as u32), 0).into()
        }
    }
}

impl AnnouncedRange {
    /// Returns the addresses that targets see for a part of the range.
    pub fn seen_part(&self, part: &IpNet) -> IpNet {
        translate(part, &self.cidr, &self.seen_as)
    }

    /// Returns the part of this range that targets see as `seen`.
    pub fn part(&self, seen: &IpNet) -> Option<Self> {
        let cidr = self.source_part(seen)?;
        Some(Self { cidr, seen_as: self.seen_part(&cidr), ..self.clone() })
    }

    /// Returns the source addresses of the range that targets see as addresses of `seen`, which may be wider than the range.
    pub fn source_part(&self, seen: &IpNet) -> Option<IpNet> {
        let wider = seen.contains(&self.seen_as).then_some(self.seen_as);
        let part = wider.or_else(|| self.seen_as.contains(seen).then_some(*seen))?;
        Some(translate(&part, &self.seen_as, &self.cidr))
    }
}

/// Returns the part of `to` that corresponds to a part of `from`. Both have the same family and size, as `check` ensures.
pub(super) fn translate(part: &IpNet, from: &IpNet, to: &IpNet) -> IpNet {
    let offset = ip_to_u128(part.network()) - ip_to_u128(from.network());
    let first = u128_to_ip(ip_to_u128(to.network()) | offset, is_v6(to));
    IpNet::new(first, part.prefix_len()).unwrap_or(*part)
}

pub(super) fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

pub(super) fn ip_to_u128(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

pub(super) fn u128_to_ip(number: u128, v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from_bits(number).into() } else { Ipv4Addr::from_bits(number as u32).into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::egress::RangePhase;

    /// A range behind NAT, of which targets see other addresses.
    #[test]
    fn part_of_a_range_has_the_addresses_that_targets_see() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let range = AnnouncedRange {
            cidr: net("192.0.2.32/28"),
            seen_as: net("203.0.113.0/28"),
            from: None,
            until: None,
            phase: RangePhase::Active,
        };
        assert_eq!(range.seen_part(&net("192.0.2.36/30")), net("203.0.113.4/30"));
        let part = AnnouncedRange { cidr: net("192.0.2.40/29"), seen_as: net("203.0.113.8/29"), ..range.clone() };
        assert_eq!(range.part(&net("203.0.113.8/29")), Some(part));
        assert_eq!(range.part(&net("203.0.112.0/20")), Some(range.clone()));
        assert_eq!(range.part(&net("203.0.113.16/28")), None);
    }
}
