//! Reads the addresses of this host from the kernel over rtnetlink(7).
//! Which addresses belong to this host?

mod events;
mod links;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{attribute, dump_routes, u32_at};
use crate::policy::addresses::ip_from_octets;
pub use events::AddressEvents;
pub use links::{AddressOnLink, Link, RouteFromSource, addresses_on_links, links, route_from};

/// All addresses that this host accepts packets for. These are the addresses of its interfaces, and the prefixes of
/// local routes such as `ip route add local 198.51.100.0/24 dev lo` (AnyIP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPrefixes(Vec<IpNet>);

impl LocalPrefixes {
    pub fn contains(&self, ip: IpAddr) -> bool {
        // Aggregated prefixes are disjoint, so only the last one that starts at or before the address can contain it.
        let after = self.0.partition_point(|prefix| prefix.network() <= ip);
        after.checked_sub(1).is_some_and(|index| self.0[index].contains(&ip))
    }

    pub fn prefixes(&self) -> &[IpNet] {
        &self.0
    }

    /// Returns the prefixes without the addresses of `removed`.
    pub fn without(&self, removed: &[IpNet]) -> Self {
        self.0.iter().flat_map(|prefix| remove(*prefix, removed)).collect()
    }
}

fn remove(prefix: IpNet, removed: &[IpNet]) -> Vec<IpNet> {
    if removed.iter().any(|net| net.contains(&prefix)) {
        return Vec::new();
    }
    let inside: Vec<IpNet> = removed.iter().filter(|net| prefix.contains(*net)).copied().collect();
    match prefix.subnets(prefix.prefix_len() + 1) {
        Ok(halves) if !inside.is_empty() => halves.flat_map(|half| remove(half, &inside)).collect(),
        _ => vec![prefix],
    }
}

impl FromIterator<IpNet> for LocalPrefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut prefixes = IpNet::aggregate(&prefixes.into_iter().collect());
        prefixes.sort_unstable();
        Self(prefixes)
    }
}

/// Reads the local addresses from the kernel. They may change while outgate runs. A sandbox that forbids netlink causes
/// an error.
pub fn read() -> io::Result<LocalPrefixes> {
    let mut prefixes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; RTMSG_LEN];
        request[0] = family as u8;
        request[4] = libc::RT_TABLE_LOCAL;
        request[7] = libc::RTN_LOCAL;
        dump_routes(libc::RTM_GETROUTE, &request, libc::RTM_NEWROUTE, |body| prefixes.extend(local_prefix(body)))?;
    }
    Ok(prefixes.into_iter().collect())
}

/// Returns the addresses of global scope that are suitable sources, as in `ip address show scope global`. It leaves out
/// those of the loopback interface, and temporary, deprecated or tentative IPv6 addresses.
pub fn global_addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; IFADDRMSG_LEN];
        request[0] = family as u8;
        dump_routes(libc::RTM_GETADDR, &request, libc::RTM_NEWADDR, |body| addresses.extend(global_address(body)))?;
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The length of `struct rtmsg`: family, destination length, source length, tos, table, protocol, scope, type: u8;
/// flags u32.
const RTMSG_LEN: usize = 12;
/// The length of `struct ifaddrmsg`: family, prefix length, flags, scope: u8; interface index u32.
const IFADDRMSG_LEN: usize = 8;
/// The index of `lo` (`LOOPBACK_IFINDEX`): it is the first interface of every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Returns the destination of a route of type local in the local table. The table also has broadcast routes, which are
/// skipped.
fn local_prefix(body: &[u8]) -> Option<IpNet> {
    let [_, length, _, _, table, _, _, kind] = *body.first_chunk()?;
    let table =
        attribute(body, RTMSG_LEN, libc::RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(table));
    if table != u32::from(libc::RT_TABLE_LOCAL) || kind != libc::RTN_LOCAL {
        return None;
    }
    let address = ip_from_octets(attribute(body, RTMSG_LEN, libc::RTA_DST)?)?;
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

fn global_address(body: &[u8]) -> Option<IpAddr> {
    let [_, _, flags, scope] = *body.first_chunk()?;
    let flags =
        attribute(body, IFADDRMSG_LEN, libc::IFA_FLAGS).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(flags));
    // On a point-to-point link, IFA_LOCAL is this host's address, and IFA_ADDRESS the peer's. IPv6 has IFA_ADDRESS
    // only.
    let octets = attribute(body, IFADDRMSG_LEN, libc::IFA_LOCAL)
        .or_else(|| attribute(body, IFADDRMSG_LEN, libc::IFA_ADDRESS))?;
    let address = ip_from_octets(octets)?;
    // For IPv4 the bit of IFA_F_TEMPORARY means "secondary". A secondary address is usable.
    let unusable_flags = libc::IFA_F_TEMPORARY | libc::IFA_F_DEPRECATED | libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;
    let is_usable = address.is_ipv4() || flags & unusable_flags == 0;
    let is_global = scope == libc::RT_SCOPE_UNIVERSE && u32_at(body, 4)? != LOOPBACK_IFINDEX && !address.is_loopback();
    (is_usable && is_global).then_some(address)
}

#[cfg(test)]
mod tests;
