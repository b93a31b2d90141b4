//! The interfaces of this host, the addresses on them, and the routes from a source address.
//! By which interface would a connection from this address leave, and which interface has the address?

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::super::netlink::{attribute, dump_routes, lookup, push_attribute, u32_at};
use super::{IFADDRMSG_LEN, RTMSG_LEN};
use crate::policy::addresses::ip_from_octets;

/// The length of `struct ifinfomsg`: family, padding: u8; type u16; index, flags, change: u32.
const IFINFOMSG_LEN: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub mtu: u32,
}

/// The route of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteFromSource {
    /// The index of the interface.
    pub link: u32,
    /// `None`: the target is on the link.
    pub gateway: Option<IpAddr>,
}

/// Returns the interfaces by index.
pub fn links() -> io::Result<BTreeMap<u32, Link>> {
    let mut links = BTreeMap::new();
    dump_routes(libc::RTM_GETLINK, &[0; IFINFOMSG_LEN], libc::RTM_NEWLINK, |body| links.extend(link(body)))?;
    Ok(links)
}

/// The state of an address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOnLink {
    /// The index of the interface.
    pub link: u32,
    /// Another host of the link has the address (RFC 4862 §5.4), and the kernel sends nothing from it.
    pub is_duplicate: bool,
}

/// Returns the addresses of the interfaces.
pub fn addresses_on_links() -> io::Result<BTreeMap<IpAddr, AddressOnLink>> {
    let mut addresses = BTreeMap::new();
    let address = |body: &[u8]| {
        let octets = attribute(body, IFADDRMSG_LEN, libc::IFA_LOCAL)
            .or_else(|| attribute(body, IFADDRMSG_LEN, libc::IFA_ADDRESS))?;
        let flags = attribute(body, IFADDRMSG_LEN, libc::IFA_FLAGS).and_then(|value| u32_at(value, 0));
        let is_duplicate = flags.is_some_and(|flags| flags & libc::IFA_F_DADFAILED != 0);
        Some((ip_from_octets(octets)?, AddressOnLink { link: u32_at(body, 4)?, is_duplicate }))
    };
    dump_routes(libc::RTM_GETADDR, &[0; IFADDRMSG_LEN], libc::RTM_NEWADDR, |body| addresses.extend(address(body)))?;
    Ok(addresses)
}

/// Returns the route that the kernel would choose, as `ip route get TARGET from SOURCE` prints it. It sends no packet. Both
/// addresses have one family.
pub fn route_from(source: IpAddr, target: IpAddr) -> io::Result<RouteFromSource> {
    let (family, bits) = if source.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let mut request = vec![0; RTMSG_LEN];
    (request[0], request[1], request[2]) = (family as u8, bits, bits);
    push_attribute(&mut request, libc::RTA_DST, &octets(target));
    push_attribute(&mut request, libc::RTA_SRC, &octets(source));
    let mut route = None;
    lookup(libc::RTM_GETROUTE, &request, libc::RTM_NEWROUTE, |body| route = parse_route(body))?;
    route.ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
}

fn link(body: &[u8]) -> Option<(u32, Link)> {
    let name = attribute(body, IFINFOMSG_LEN, libc::IFLA_IFNAME)?;
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    let mtu = u32_at(attribute(body, IFINFOMSG_LEN, libc::IFLA_MTU)?, 0)?;
    Some((u32_at(body, 4)?, Link { name, mtu }))
}

fn parse_route(body: &[u8]) -> Option<RouteFromSource> {
    let link = u32_at(attribute(body, RTMSG_LEN, libc::RTA_OIF)?, 0)?;
    let gateway = attribute(body, RTMSG_LEN, libc::RTA_GATEWAY).and_then(ip_from_octets);
    Some(RouteFromSource { link, gateway })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_this_host_include_the_loopback_interface_and_its_address() {
        let (Ok(links), Ok(addresses)) = (links(), addresses_on_links()) else { return }; // a sandbox without netlink
        let (index, lo) = links.iter().find(|(_, link)| link.name == "lo").unwrap();
        assert!(lo.mtu >= 1500, "{lo:?}");
        let loopback = AddressOnLink { link: *index, is_duplicate: false };
        assert_eq!(addresses.get(&IpAddr::from([127, 0, 0, 1])), Some(&loopback));
    }

    #[test]
    fn route_from_a_loopback_address_to_another_leaves_by_the_loopback_interface() {
        let Ok(links) = links() else { return };
        let route = route_from([127, 0, 7, 1].into(), [127, 0, 0, 1].into()).unwrap();
        assert_eq!((links[&route.link].name.as_str(), route.gateway), ("lo", None));
        assert!(route_from([192, 0, 2, 77].into(), [127, 0, 0, 1].into()).is_err(), "no address of this host");
    }
}
