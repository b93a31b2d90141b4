//! The checks of source addresses, which `outgate egress verify` and `outgate doctor` share.
//! Can this host send from every address of every pool, and do the responses arrive?

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpAddrRange, IpNet, Ipv4AddrRange, Ipv6AddrRange};

use super::Examination;
use super::finding::Finding;
use super::uplink::{Exit, Uplink};
use crate::names::{PoolName, pluralize};
use crate::net::{dial, local, socket_diag};
use crate::state::upstreams::sources::AddressCount;

/// The most addresses per range that are bound as a test; of a larger range, the first ones.
const CHECKED_PER_RANGE_MAX: usize = 4096;
/// The most prefixes of missing addresses that one finding names.
const PREFIXES_SHOWN_MAX: usize = 20;
/// The ports below which a source address serves few connections to one target.
const EPHEMERAL_PORTS_MIN: u64 = 10_000;
/// The share of a table or of ports, in percent, at which the rest may not last.
const NEARLY_FULL_PERCENT: u64 = 80;
/// Entries of the connection tracker for each connection: one from the client, one to the target.
const TRACKED_PER_DELIVERY: u64 = 2;

impl Examination<'_> {
    /// Returns each pool, with the addresses that this host does not have.
    pub(in crate::cli) fn pools(&self) -> impl Iterator<Item = (&PoolName, Vec<IpAddr>, AddressCount)> {
        let pools = self.plan().into_iter().flat_map(|plan| &plan.pools);
        let is_missing = move |source: &IpAddr| !self.sources.has(*source) || dial::check_source(*source).is_err();
        pools.map(move |(name, pool)| {
            let ranges = pool.active_ranges(self.now);
            let addresses = ranges.iter().flat_map(|range| all_addresses(range).take(CHECKED_PER_RANGE_MAX));
            (name, addresses.filter(is_missing).collect(), self.sources.count(pool, self.now))
        })
    }
}

pub(super) fn addresses(subject: &Examination<'_>) -> Vec<Finding> {
    let check = |(name, missing, count): (&PoolName, Vec<IpAddr>, AddressCount)| {
        let AddressCount { configured, usable } = count;
        if configured == 0 {
            let message = format!("pool {name} has no address now: outgate refuses the webhooks of its routes");
            return Finding::problem(message, "add a range that has begun to `ranges`, and run `outgate reload`");
        }
        if missing.is_empty() && usable == configured {
            return Finding::ok(format!("pool {name}: {usable} usable of {configured} addresses"));
        }
        let prefixes = IpNet::aggregate(&missing.iter().copied().map(IpNet::from).collect());
        let shown = prefixes.iter().take(PREFIXES_SHOWN_MAX);
        let commands: Vec<_> = shown.map(|prefix| format!("ip route add local {prefix} dev lo")).collect();
        let message = format!(
            "pool {name}: {usable} usable of {configured} addresses; this host does not have the others, and outgate \
             does not send from them"
        );
        Finding::problem(message, commands.join("\n"))
    };
    subject.pools().map(check).chain(duplicates(subject)).collect()
}

/// Returns the addresses of pools that another host of the link has, too. The kernel lists them as local nevertheless.
fn duplicates(subject: &Examination<'_>) -> Vec<Finding> {
    let plan = subject.plan().filter(|_| subject.host.is_real());
    let (Some(plan), Ok(addresses)) = (plan, local::addresses_on_links()) else { return Vec::new() };
    let links = local::links().unwrap_or_default();
    let duplicates =
        addresses.into_iter().filter(|(source, address)| address.is_duplicate && plan.has_source(*source, subject.now));
    let finding = |(source, address): (IpAddr, local::AddressOnLink)| {
        let name = links.get(&address.link).map_or("INTERFACE", |link| link.name.as_str());
        let message = format!("another host on {name} has {source}, too: the kernel sends nothing from it");
        Finding::problem(message, format!("ip -6 address del {source} dev {name}, here or on the other host"))
    };
    duplicates.map(finding).collect()
}

/// Checks that each range has a route, and that it leads over the interface on which the responses arrive.
pub(super) fn routes(subject: &Examination<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = subject.uplinks.iter().filter_map(route_fault).collect();
    if findings.is_empty() && !subject.uplinks.is_empty() {
        let interfaces = interfaces(&subject.uplinks).into_iter().collect::<Vec<_>>().join(", ");
        let count = pluralize(subject.uplinks.len(), "range");
        findings.push(Finding::ok(format!("{count} with a route to the Internet, by {interfaces}")));
    }
    findings
}

fn route_fault(uplink: &Uplink) -> Option<Finding> {
    let Uplink { pool, range, source, exit, address_interface } = uplink;
    let version = if source.is_ipv4() { "" } else { "-6 " };
    let rule = |interface: &str| {
        format!(
            "ip {version}route add default via GATEWAY dev {interface} table 100\nip {version}rule add from {range} \
             lookup 100"
        )
    };
    match (exit, address_interface) {
        (Err(error), home) => {
            let message =
                format!("pool {pool}: no route to the Internet from {source} ({error}): connections from {range} fail");
            Some(Finding::problem(message, rule(home.as_deref().unwrap_or("INTERFACE"))))
        }
        (Ok(Exit { interface, .. }), Some(home)) if interface != home => {
            let message = format!(
                "pool {pool}: connections from {source} leave by {interface}, but the address is on {home}: responses \
                 arrive there, and a firewall or a reverse-path filter on the way drops them"
            );
            Some(Finding::problem(message, rule(home)))
        }
        _ => None,
    }
}

fn interfaces(uplinks: &[Uplink]) -> BTreeSet<&str> {
    let exits = uplinks.iter().filter_map(|uplink| uplink.exit.as_ref().ok());
    exits.map(|exit| exit.interface.as_str()).filter(|name| *name != "lo").collect()
}

/// Checks the filter of IPv4 packets whose source the routing table would reach by another interface (RFC 3704).
pub(super) fn rp_filter(subject: &Examination<'_>) -> Vec<Finding> {
    let interfaces = interfaces(&subject.uplinks);
    let mode = |interface: &str| subject.host.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"));
    let strict = |interface: &&&str| mode("all").max(mode(interface)) == Some(1);
    let found: Vec<_> = interfaces.iter().filter(strict).collect();
    match found.len() {
        0 => vec![Finding::ok("the reverse-path filter drops no response")],
        _ if interfaces.len() == 1 => {
            vec![Finding::ok(format!("the reverse-path filter is strict, and all addresses use {}", found[0]))]
        }
        _ => found
            .iter()
            .map(|interface| {
                let message = format!(
                    "the reverse-path filter of {interface} is strict, and pools use {} interfaces: the kernel drops \
                     responses that arrive by another interface than requests leave by",
                    interfaces.len()
                );
                let sysctl = format!("net/ipv4/conf/{interface}/rp_filter");
                Finding::warning(message, format!("sysctl -w {sysctl}=2"))
            })
            .collect(),
    }
}

/// Checks the table of the connection tracker, which drops new connections when it is full.
pub(super) fn conntrack(subject: &Examination<'_>) -> Vec<Finding> {
    let sysctl = |name: &str| subject.host.sysctl(&format!("net.netfilter.nf_conntrack_{name}"));
    let (Some(count), Some(max)) = (sysctl("count"), sysctl("max")) else {
        return vec![Finding::ok("this host tracks no connections")];
    };
    let needed = subject.plan().map_or(0, |plan| TRACKED_PER_DELIVERY * plan.max_connections as u64);
    let fix = |max: u64| format!("sysctl -w net.netfilter.nf_conntrack_max={max}");
    let finding = if count * 100 >= max * NEARLY_FULL_PERCENT {
        let message = format!(
            "the connection tracker has {count} of at most {max} connections: the kernel drops new connections when it \
             is full"
        );
        Finding::problem(message, fix((2 * max).max(needed)))
    } else if max < needed {
        let message = format!(
            "the connection tracker holds {max} connections, and `max_connections` of outgate may need {needed}: the \
             kernel then drops new connections"
        );
        Finding::warning(message, fix(needed))
    } else {
        Finding::ok(format!("the connection tracker has {count} of at most {max} connections"))
    };
    vec![finding]
}

/// Checks the ports that the kernel chooses for outgoing connections, and those of the listeners.
pub(super) fn ports(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(range) = subject.host.text("proc/sys/net/ipv4/ip_local_port_range") else { return Vec::new() };
    let mut bounds = range.split_whitespace().filter_map(|bound| bound.parse::<u64>().ok());
    let (Some(low), Some(high)) = (bounds.next(), bounds.next()) else { return Vec::new() };
    let count = (high + 1).saturating_sub(low);
    let mut findings = Vec::new();
    if count < EPHEMERAL_PORTS_MIN {
        let message = format!(
            "the kernel has {count} ports for outgoing connections ({low} to {high}): a source address holds no more \
             connections to one target"
        );
        findings.push(Finding::warning(message, "sysctl -w net.ipv4.ip_local_port_range=\"15000 60999\""));
    }
    findings.extend(listener_ports(subject, low..=high));
    findings.extend(fullest_source(subject));
    if findings.is_empty() {
        findings.push(Finding::ok(format!("{count} ports for outgoing connections from each source address")));
    }
    findings
}

/// Returns the listeners whose port the kernel may give to an outgoing connection, so that a restart finds it occupied.
fn listener_ports(subject: &Examination<'_>, range: std::ops::RangeInclusive<u64>) -> Option<Finding> {
    let config = subject.config()?;
    let reserved = subject.host.text("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let is_reserved = |port: u64| {
        reserved.split(',').any(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            matches!((first.trim().parse(), last.trim().parse()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
        })
    };
    let ports = config.binds().filter_map(|bind| bind.address.tcp()).map(|address| u64::from(address.port()));
    let exposed = ports.filter(|port| range.contains(port) && !is_reserved(*port));
    let exposed: Vec<String> = exposed.map(|port| port.to_string()).collect();
    let message = format!(
        "outgate listens on port {} of the range from which the kernel takes ports for outgoing connections: a start \
         may find it occupied",
        exposed.join(", ")
    );
    let ports = [reserved].into_iter().filter(|ports| !ports.is_empty()).chain(exposed.clone());
    let fix = format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", ports.collect::<Vec<_>>().join(","));
    (!exposed.is_empty()).then(|| Finding::warning(message, fix))
}

/// Returns the source address with the fewest ports left towards one target, if they may not last.
fn fullest_source(subject: &Examination<'_>) -> Option<Finding> {
    let plan = subject.plan().filter(|_| subject.host.is_real())?;
    let usage = socket_diag::port_usage(|source| plan.has_source(source, subject.now)).ok()?;
    let count = u64::from(usage.available);
    let (source, usage) = usage.sources.into_iter().max_by_key(|(_, usage)| usage.fullest_target)?;
    let used = u64::from(usage.fullest_target);
    let message = format!(
        "{source} uses {used} of {count} ports towards one target: connections fail when none is left, and \
         connections in TIME_WAIT hold theirs for a minute"
    );
    let fix = "add addresses to the pool, or: sysctl -w net.ipv4.ip_local_port_range=\"15000 60999\"";
    (used * 100 >= count * NEARLY_FULL_PERCENT).then(|| Finding::problem(message, fix))
}

/// Returns every address of the range. The first and the last are usable, because the whole range is routed to the host.
fn all_addresses(range: &IpNet) -> IpAddrRange {
    match range {
        IpNet::V4(net) => Ipv4AddrRange::new(net.network(), net.broadcast()).into(),
        IpNet::V6(net) => Ipv6AddrRange::new(net.network(), net.broadcast()).into(),
    }
}
