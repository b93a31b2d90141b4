//! The interfaces by which the source addresses of the pools leave this host, as its routing tables say.
//! Where does a connection from this address go, and where does its response come back?

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::Timestamp;

use crate::names::PoolName;
use crate::net::local::{self, AddressOnLink, Link, RouteFromSource};
use crate::policy::Plan;
use crate::policy::egress::Pool;
use crate::state::upstreams::sources::SourcesSnapshot;

/// A target for the question which route the kernel would choose: a.root-servers.net, which no host reaches by a route
/// of its own. No packet is sent.
const TARGET_V4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
const TARGET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);
/// Ranges that are looked up. All addresses of a range have one route, unless a rule of the host divides it.
const RANGES_MAX: usize = 1024;

/// The way of one source address, which stands for its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Uplink {
    pub(super) pool: PoolName,
    pub(super) range: IpNet,
    pub(super) source: IpAddr,
    /// The interface by which packets leave, or why the kernel has no route.
    pub(super) exit: Result<Exit, String>,
    /// The interface that has the address, and to which responses come. `None`: a local route or `lo` has it.
    pub(super) address_interface: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) interface: String,
    pub(super) mtu: u32,
}

/// Returns the uplink of each range whose addresses this host has. Loopback addresses have none.
pub(super) fn read(plan: &Plan, sources: &SourcesSnapshot, now: Timestamp) -> Vec<Uplink> {
    let (Ok(links), Ok(addresses)) = (local::links(), local::addresses_on_links()) else { return Vec::new() };
    let usable = |pool: &Pool| sources.usable_ranges(&pool.active_ranges(now));
    let ranges = plan.pools.iter().flat_map(|(name, pool)| usable(pool).into_iter().map(move |range| (name, range)));
    let ranges = ranges.filter(|(_, range)| !range.addr().is_loopback()).take(RANGES_MAX);
    ranges.map(|(pool, range)| uplink(pool, range, &links, &addresses)).collect()
}

fn uplink(
    pool: &PoolName,
    range: IpNet,
    links: &BTreeMap<u32, Link>,
    addresses: &BTreeMap<IpAddr, AddressOnLink>,
) -> Uplink {
    let source = range.addr();
    let target: IpAddr = if source.is_ipv4() { TARGET_V4.into() } else { TARGET_V6.into() };
    let name = |link: &Link| link.name.clone();
    let exit = match local::route_from(source, target) {
        Ok(RouteFromSource { link, .. }) => links.get(&link).ok_or_else(String::new),
        Err(error) => Err(error.to_string()),
    };
    let exit = exit.map(|link| Exit { interface: name(link), mtu: link.mtu });
    let address_interface = addresses.get(&source).and_then(|address| links.get(&address.link)).map(name);
    let address_interface = address_interface.filter(|name| name != "lo");
    Uplink { pool: pool.clone(), range, source, exit, address_interface }
}
