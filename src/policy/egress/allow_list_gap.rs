//! The report about a target that responds to some source addresses and not to others.
//! Which source addresses does the target's allow-list seem to lack?

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{AddressSpan, ip_to_u128};
use crate::names::join_first;

/// The maximum number of ranges in a report; more are summarised by their number.
pub const LISTED_MAX: usize = 8;

/// The evidence that a target's allow-list lacks some source addresses. Only the target's operator can confirm it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowListGap {
    /// The target as host and port.
    pub target: String,
    pub answers: Vec<AddressRange>,
    pub lacks: Vec<AddressRange>,
}

/// A range of source addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// Returns exactly these addresses, in the smallest number of ranges.
    pub fn from_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Self> {
        let mut nets = IpNet::aggregate(&addresses.into_iter().map(IpNet::from).collect());
        nets.sort_unstable();
        nets.iter().map(|net| Self { first: net.network(), last: net.broadcast() }).collect()
    }

    /// Returns ranges from a sorted sample of probed addresses. Each range spans consecutive members of the sample.
    pub fn from_sample(probed: &[IpAddr], is_member: impl Fn(IpAddr) -> bool) -> Vec<Self> {
        let runs = probed.chunk_by(|one, next| one.is_ipv6() == next.is_ipv6() && is_member(*one) == is_member(*next));
        let ends = runs.filter_map(|run| Some(Self { first: *run.first()?, last: *run.last()? }));
        ends.filter(|run| is_member(run.first)).collect()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        let mut nets = AddressSpan { first: ip_to_u128(*first), last: ip_to_u128(*last) }.to_nets(first.is_ipv6());
        match (nets.next(), nets.next()) {
            _ if first == last => first.fmt(f),
            (Some(net), None) => net.fmt(f),
            _ => write!(f, "{first} to {last}"),
        }
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for AllowListGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks = join_ranges(&self.lacks);
        let is_one = matches!(&self.lacks[..], [one] if one.first == one.last);
        write!(f, "{} responds to {}, but not to {lacks}: ", self.target, join_ranges(&self.answers))?;
        write!(f, "its allow-list may lack {}", if is_one { "that address" } else { "those addresses" })
    }
}

/// Joins ranges as `a, b and c`.
fn join_ranges(ranges: &[AddressRange]) -> String {
    if ranges.len() > LISTED_MAX {
        return join_first(ranges, LISTED_MAX);
    }
    let parts: Vec<String> = ranges.iter().map(AddressRange::to_string).collect();
    match parts.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn message(answers: Vec<AddressRange>, lacks: Vec<AddressRange>) -> String {
        AllowListGap { target: "hooks.acme.example:443".to_owned(), answers, lacks }.to_string()
    }

    #[test]
    fn allow_list_gap_names_missing_addresses_as_ranges() {
        let exactly = |texts: &[&str]| AddressRange::from_addresses(ips(texts));
        assert_eq!(
            message(exactly(&["198.51.100.19", "198.51.100.17"]), exactly(&["198.51.100.18"])),
            "hooks.acme.example:443 responds to 198.51.100.17 and 198.51.100.19, but not to 198.51.100.18: its \
             allow-list may lack that address"
        );
        let upper: Vec<String> = (24..32).map(|last| format!("198.51.100.{last}")).collect();
        let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
        assert_eq!(
            message(exactly(&["198.51.100.16", "198.51.100.17", "198.51.100.19"]), exactly(&upper)),
            "hooks.acme.example:443 responds to 198.51.100.16/31 and 198.51.100.19, but not to 198.51.100.24/29: its \
             allow-list may lack those addresses"
        );
        let odd: Vec<String> = (0..20).map(|n| format!("198.51.100.{}", 2 * n + 1)).collect();
        let odd: Vec<&str> = odd.iter().map(String::as_str).collect();
        let listed = join_ranges(&exactly(&odd[..LISTED_MAX]));
        assert!(listed.ends_with("198.51.100.13 and 198.51.100.15"), "{listed}");
        assert!(join_ranges(&exactly(&odd)).ends_with("198.51.100.15 and 12 more"), "{}", join_ranges(&exactly(&odd)));
    }

    #[test]
    fn address_ranges_from_a_sample_name_their_ends() {
        let probed = ips(&["192.0.2.0", "192.0.2.100", "192.0.2.200", "192.0.2.255", "2001:db8::", "2001:db8::ffff"]);
        let ranges = |is_member: &dyn Fn(IpAddr) -> bool| {
            AddressRange::from_sample(&probed, is_member).iter().map(AddressRange::to_string).collect::<Vec<_>>()
        };
        assert_eq!(ranges(&|_| true), ["192.0.2.0/24", "2001:db8::/112"]);
        assert_eq!(ranges(&|ip| ip != probed[1]), ["192.0.2.0", "192.0.2.200 to 192.0.2.255", "2001:db8::/112"]);
        assert_eq!(ranges(&|ip| ip == probed[1]), ["192.0.2.100"]);
        assert_eq!(ranges(&|_| false), [""; 0]);
    }
}
