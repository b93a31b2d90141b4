//! The special-purpose address registries, and the IPv4 addresses that are embedded in IPv6 addresses.
//! Which addresses are not the public Internet?
//!
//! The table holds every row of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), revision of
//! 2025-10-09. It includes the globally reachable rows, since none of them serves webhooks. Multicast and deprecated
//! IPv6 forms come from other registries and are marked so. In IPv6, only Global Unicast `2000::/3` is public.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv6Net};

/// Returns the address of four or sixteen octets.
pub fn ip_from_octets(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// An address range that is not part of the public Internet.
#[derive(Debug, PartialEq, Eq)]
pub struct SpecialRange {
    pub cidr: IpNet,
    pub name: &'static str,
    /// The RFC that defines the range.
    pub reference: &'static str,
    /// Whether a cloud provider serves instance credentials or other metadata from this range.
    pub is_metadata: bool,
}

impl fmt::Display for SpecialRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_metadata {
            write!(f, "cloud metadata, {}", self.name)
        } else {
            write!(f, "{}, {}", self.name, self.reference)
        }
    }
}

/// Returns the special range of an address or of an IPv4 address embedded in it. `None` means that the address is
/// public.
pub fn special_range(ip: IpAddr) -> Option<&'static SpecialRange> {
    let inner = || embedded_ipv4(ip).filter_map(|inner| registered_range(inner.address.into()));
    // Metadata comes first, since no configuration can allow it.
    inner().find(|range| range.is_metadata).or_else(|| registered_range(ip)).or_else(|| inner().next())
}

/// Returns the special range of an address itself, without its embedded IPv4 addresses.
pub fn registered_range(ip: IpAddr) -> Option<&'static SpecialRange> {
    match ip {
        IpAddr::V4(ip) => find_range(&TABLE.v4, ip.to_bits()),
        IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000 => find_range(&TABLE.v6, ip.to_bits()),
        IpAddr::V6(ip) => find_range(&TABLE.v6, ip.to_bits()).or(Some(&NOT_GLOBAL_UNICAST)),
    }
}

/// Returns every special range of both families.
pub fn special_ranges() -> impl Iterator<Item = &'static SpecialRange> {
    TABLE.v4.iter().map(|(_, row)| row).chain(TABLE.v6.iter().map(|(_, row)| row))
}

fn find_range<T: PartialOrd>(
    rows: &'static [(RangeInclusive<T>, SpecialRange)],
    bits: T,
) -> Option<&'static SpecialRange> {
    rows.iter().find(|(range, _)| range.contains(&bits)).map(|(_, special)| special)
}

/// Returns whether two ranges have an address in common.
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Returns those of the ranges, of which no two overlap, that overlap `range`.
pub fn overlapping<'a>(ranges: &'a BTreeSet<IpNet>, range: &IpNet) -> impl Iterator<Item = &'a IpNet> {
    let range = range.trunc();
    let around = ranges.range(..range).next_back().filter(|other| other.contains(&range));
    around.into_iter().chain(ranges.range(range..).take_while(move |other| range.contains(*other)))
}

/// An IPv4 address embedded in an IPv6 address. A translator, a tunnel or the kernel may send to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedIpv4 {
    pub address: Ipv4Addr,
    /// The prefix length that an operator's translation prefix would need for this layout (RFC 6052 §2.2). The same
    /// address embeds another IPv4 address for each length.
    pub translation: Option<u8>,
}

/// Returns the IPv4 addresses that an IPv6 address may embed.
pub fn embedded_ipv4(ip: IpAddr) -> impl Iterator<Item = EmbeddedIpv4> {
    let mut found = [None; 5];
    if let IpAddr::V6(ip) = ip {
        extract_ipv4(ip.to_bits(), |index, translation, bits| {
            found[index] = Some(EmbeddedIpv4 { address: Ipv4Addr::from_bits(bits), translation });
        });
    }
    found.into_iter().flatten()
}

/// Calls `emit` with each IPv4 address in the IPv6 address `bits`. Each layout has its own index.
fn extract_ipv4(bits: u128, mut emit: impl FnMut(usize, Option<u8>, u32)) {
    let low = bits as u32;
    match (bits >> 32, bits >> 80, bits >> 96, bits >> 112) {
        // IPv4-compatible (RFC 4291 §2.5.5.1), which `::` and `::1` are not; -mapped (§2.5.5.2); -translated (RFC 2765
        // §2.1); the well-known translation prefix 64:ff9b::/96 (RFC 6052 §2.1).
        (0, ..) if low > 1 => emit(0, None, low),
        (0xffff | 0xffff_0000 | 0x0064_ff9b_0000_0000_0000_0000, ..) => emit(0, None, low),
        // 64:ff9b:1::/48, local-use translation (RFC 8215), in every layout of RFC 6052 §2.2 that fits. Octet 8 (bits
        // 64 to 71) is skipped.
        (_, 0x0064_ff9b_0001, ..) => {
            let before = (bits >> 64) as u64;
            let after = (bits as u64) << 8;
            emit(0, Some(48), ((before << 16) as u32) | (after >> 48) as u32);
            emit(1, Some(56), ((before << 24) as u32) | (after >> 40) as u32);
            emit(2, Some(64), (after >> 32) as u32);
            emit(3, Some(96), low);
        }
        // Teredo (RFC 4380 §4): the server, and the client with its bits inverted.
        (_, _, 0x2001_0000, _) => {
            emit(0, None, (bits >> 64) as u32);
            emit(1, None, !low);
        }
        // 6to4 (RFC 3056 §2).
        (_, _, _, 0x2002) => emit(0, None, (bits >> 80) as u32),
        _ => {}
    }
    // ISATAP (RFC 5214 §6.1) is recognised by its interface identifier, under any prefix.
    if matches!((bits >> 32) as u32, 0x0000_5efe | 0x0200_5efe) {
        emit(4, None, low);
    }
}

static TABLE: LazyLock<SpecialRangeTable> = LazyLock::new(SpecialRangeTable::new);

/// The special ranges as numbers, metadata first and then the most specific first. So the first match is the answer.
struct SpecialRangeTable {
    v4: Vec<(RangeInclusive<u32>, SpecialRange)>,
    v6: Vec<(RangeInclusive<u128>, SpecialRange)>,
}

impl SpecialRangeTable {
    fn new() -> Self {
        let cidr = |text: &str| text.parse::<IpNet>().expect("the rows below are CIDRs");
        let metadata = METADATA_RANGES.iter().map(|&(text, name)| SpecialRange {
            cidr: cidr(text),
            name,
            reference: "cloud metadata",
            is_metadata: true,
        });
        let registry = IANA_RANGES.iter().chain(OTHER_RANGES).map(|&(text, name, reference)| SpecialRange {
            cidr: cidr(text),
            name,
            reference,
            is_metadata: false,
        });
        let mut rows: Vec<_> = metadata.chain(registry).collect();
        rows.sort_by_key(|row| (!row.is_metadata, std::cmp::Reverse(row.cidr.prefix_len())));
        let mut table = Self { v4: Vec::new(), v6: Vec::new() };
        for row in rows {
            match row.cidr {
                IpNet::V4(net) => table.v4.push((net.network().to_bits()..=net.broadcast().to_bits(), row)),
                IpNet::V6(net) => table.v6.push((net.network().to_bits()..=net.broadcast().to_bits(), row)),
            }
        }
        table
    }
}

/// RFC 4291 §2.4; all other IPv6 space is unallocated or special.
static NOT_GLOBAL_UNICAST: SpecialRange = SpecialRange {
    cidr: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    name: "outside Global Unicast 2000::/3",
    reference: "RFC 4291",
    is_metadata: false,
};

/// The rows of the two IANA registries, in their order.
const IANA_RANGES: &[(&str, &str, &str)] = &[
    ("0.0.0.0/8", "This network", "RFC 791"),
    ("0.0.0.0/32", "This host on this network", "RFC 1122"),
    ("10.0.0.0/8", "Private-Use", "RFC 1918"),
    ("100.64.0.0/10", "Shared Address Space (CGNAT)", "RFC 6598"),
    ("127.0.0.0/8", "Loopback", "RFC 1122"),
    ("169.254.0.0/16", "Link Local", "RFC 3927"),
    ("172.16.0.0/12", "Private-Use", "RFC 1918"),
    ("192.0.0.0/24", "IETF Protocol Assignments", "RFC 6890"),
    ("192.0.0.0/29", "IPv4 Service Continuity Prefix (DS-Lite)", "RFC 7335"),
    ("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
    ("192.0.0.9/32", "Port Control Protocol Anycast", "RFC 7723"),
    ("192.0.0.10/32", "TURN Anycast", "RFC 8155"),
    ("192.0.0.170/32", "NAT64/DNS64 Discovery", "RFC 8880 and 7050"),
    ("192.0.0.171/32", "NAT64/DNS64 Discovery", "RFC 8880 and 7050"),
    ("192.0.2.0/24", "Documentation TEST-NET-1", "RFC 5737"),
    ("192.31.196.0/24", "AS112-v4", "RFC 7535"),
    ("192.52.193.0/24", "AMT", "RFC 7450"),
    ("192.88.99.0/24", "Deprecated 6to4 Relay Anycast", "RFC 7526"),
    ("192.88.99.2/32", "6a44-relay anycast address", "RFC 6751"),
    ("192.168.0.0/16", "Private-Use", "RFC 1918"),
    ("192.175.48.0/24", "Direct Delegation AS112 Service", "RFC 7534"),
    ("198.18.0.0/15", "Benchmarking", "RFC 2544"),
    ("198.51.100.0/24", "Documentation TEST-NET-2", "RFC 5737"),
    ("203.0.113.0/24", "Documentation TEST-NET-3", "RFC 5737"),
    ("240.0.0.0/4", "Reserved", "RFC 1112"),
    ("255.255.255.255/32", "Limited Broadcast", "RFC 8190 and 919"),
    ("::1/128", "Loopback", "RFC 4291"),
    ("::/128", "Unspecified", "RFC 4291"),
    ("::ffff:0:0/96", "IPv4-mapped", "RFC 4291"),
    ("64:ff9b::/96", "IPv4-IPv6 Translation (NAT64 well-known)", "RFC 6052"),
    ("64:ff9b:1::/48", "IPv4-IPv6 Translation (local use)", "RFC 8215"),
    ("100::/64", "Discard-Only", "RFC 6666"),
    ("100:0:0:1::/64", "Dummy IPv6 Prefix", "RFC 9780"),
    ("2001::/23", "IETF Protocol Assignments", "RFC 2928"),
    ("2001::/32", "Teredo", "RFC 4380 and 8190"),
    ("2001:1::1/128", "PCP Anycast", "RFC 7723"),
    ("2001:1::2/128", "TURN Anycast", "RFC 8155"),
    ("2001:1::3/128", "DNS-SD SRP Anycast", "RFC 9665"),
    ("2001:2::/48", "Benchmarking", "RFC 5180 and 1752"),
    ("2001:3::/32", "AMT", "RFC 7450"),
    ("2001:4:112::/48", "AS112-v6", "RFC 7535"),
    ("2001:10::/28", "Deprecated ORCHID", "RFC 4843"),
    ("2001:20::/28", "ORCHIDv2", "RFC 7343"),
    ("2001:30::/28", "Drone Remote ID (DETs)", "RFC 9374"),
    ("2001:db8::/32", "Documentation", "RFC 3849"),
    ("2002::/16", "6to4", "RFC 3056"),
    ("2620:4f:8000::/48", "Direct Delegation AS112 Service", "RFC 7534"),
    ("3fff::/20", "Documentation", "RFC 9637"),
    ("5f00::/16", "Segment Routing (SRv6) SIDs", "RFC 9602"),
    ("fc00::/7", "Unique-Local", "RFC 4193 and 8190"),
    ("fe80::/10", "Link-Local Unicast", "RFC 4291"),
];

/// Special ranges that the two registries do not list.
const OTHER_RANGES: &[(&str, &str, &str)] = &[
    ("224.0.0.0/4", "Multicast", "RFC 5771"),
    ("::/96", "IPv4-compatible (deprecated)", "RFC 4291"),
    ("::ffff:0:0:0/96", "IPv4-translated (SIIT, obsolete)", "RFC 2765 and 7915"),
    ("fec0::/10", "Site-local (deprecated)", "RFC 3879"),
    ("ff00::/8", "Multicast", "RFC 4291"),
];

/// Metadata addresses, from the documentation of each cloud provider.
const METADATA_RANGES: &[(&str, &str)] = &[
    ("169.254.169.254/32", "AWS, Azure, Google, IBM, Linode, Oracle, DigitalOcean, Hetzner, OpenStack and others"),
    ("fd00:ec2::254/128", "AWS"),
    ("169.254.170.2/32", "AWS ECS task credentials"),
    ("169.254.170.23/32", "AWS EKS pod identity"),
    ("fd00:ec2::23/128", "AWS EKS pod identity"),
    ("169.254.169.253/32", "AWS VPC DNS"),
    ("fd00:ec2::253/128", "AWS VPC DNS"),
    ("169.254.169.123/32", "AWS time"),
    ("100.100.100.200/32", "Alibaba Cloud"),
    ("192.0.0.192/32", "Oracle Cloud Classic"),
    ("fd00:c1::a9fe:a9fe/128", "Oracle Cloud"),
    ("169.254.0.23/32", "Tencent Cloud"),
    ("169.254.42.42/32", "Scaleway"),
    ("fd00:42::42/128", "Scaleway"),
    ("fd20:ce::254/128", "Google Cloud"),
    // techdocs.akamai.com/cloud-computing/docs/metadata-service-api
    ("fd00:a9fe:a9fe::1/128", "Linode (Akamai)"),
    ("fe80::a9fe:a9fe/128", "OpenStack and Linode (Akamai)"),
    // These are public addresses, which no registry lists.
    ("168.63.129.16/32", "Azure WireServer"),
    ("192.80.8.124/32", "Equinix Metal"),
    ("161.26.0.0/16", "IBM Cloud service endpoints"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn special_name(text: &str) -> Option<String> {
        special_range(text.parse().unwrap()).map(ToString::to_string)
    }

    #[test]
    fn special_ranges_contain_their_first_and_last_address() {
        for row in special_ranges() {
            for ip in [row.cidr.network(), row.cidr.broadcast()] {
                let hit = registered_range(ip).unwrap();
                assert!(row.cidr.contains(&hit.cidr), "{row} is shadowed by {hit} at {ip}");
            }
        }
        assert_eq!((TABLE.v4.len(), TABLE.v6.len()), (27 + 12, 29 + 8));
    }

    #[test]
    fn public_addresses_are_in_no_special_range() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "161.27.0.1",
            "168.63.129.17",
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2003::1",
            "3ffe:ffff::1",
            // ISATAP around a public IPv4 address
            "2606:4700::200:5efe:101:101",
        ] {
            assert_eq!(special_name(text), None, "{text}");
        }
    }

    #[test]
    fn ipv6_outside_global_unicast_is_special() {
        for text in ["1fff:ffff::1", "4000::1", "200::1", "8000::", "fe00::1"] {
            assert_eq!(special_name(text).as_deref(), Some("outside Global Unicast 2000::/3, RFC 4291"), "{text}");
        }
    }

    /// Every embedding of 169.254.169.254 must be recognised, or an `allow` entry for the embedding would reach it.
    #[test]
    fn metadata_addresses_are_found_in_every_ipv6_embedding() {
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:a9:fe:a9fe::",
            "64:ff9b:1:0:a9:fea9:fe00:0",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe:8000:cfc6:5601:1",
            "2001:0:c000:22d:8000:cfc6:5601:5601",
            "2001:db8::5efe:a9fe:a9fe",
            "2606:4700::200:5efe:a9fe:a9fe",
        ] {
            assert!(special_range(text.parse().unwrap()).is_some_and(|special| special.is_metadata), "{text}");
        }
        assert!(special_range("168.63.129.16".parse().unwrap()).unwrap().is_metadata);
        assert!(special_range("64:ff9b::a83f:8110".parse().unwrap()).unwrap().is_metadata);
        assert!(special_range("fd00:ec2::254".parse().unwrap()).unwrap().is_metadata);
        assert!(special_range("fd00:a9fe:a9fe::1".parse().unwrap()).unwrap().is_metadata);
    }

    #[test]
    fn private_addresses_are_found_under_public_ipv6_prefixes() {
        assert_eq!(special_name("2606:4700::5efe:a00:1").as_deref(), Some("Private-Use, RFC 1918"));
        assert_eq!(special_name("192.0.0.9").as_deref(), Some("Port Control Protocol Anycast, RFC 7723"));
    }

    #[test]
    fn loopback_and_unspecified_are_not_ipv4_compatible() {
        for text in ["::", "::1"] {
            assert_eq!(embedded_ipv4(text.parse().unwrap()).count(), 0, "{text}");
        }
    }
}
