//! The guard against server-side request forgery.
//! May a delivery go to this name, port and address?
//!
//! The guard checks names before DNS, so that a forbidden name causes no query. It checks every address after DNS,
//! because the attacker controls the answers. Only [`Guard::clear`] makes addresses that may be dialled.

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::addresses::{SpecialRange, embedded_ipv4, overlaps, registered_range, special_range, special_ranges};
use crate::config::WarningCode;
use crate::config::{self, Config, Located, Problem};
use crate::host::is_subdomain_of;
use crate::names::{Host, PoolName, Scheme, Target};

/// Special-use names, with everything below them. They are local to this host or network, or never resolve.
const SPECIAL_USE_NAMES: &[&str] = &[
    // RFC 6761 §6
    "localhost",
    "test",
    "invalid",
    "example",
    "local",                        // RFC 6762
    "onion",                        // RFC 7686
    "home.arpa",                    // RFC 8375
    "alt",                          // RFC 9476
    "internal",                     // ICANN, reserved for private use in 2024; metadata.google.internal, *.ec2.internal
    "metadata.goog",                // Google Cloud
    "metadata.packet.net",          // Equinix Metal
    "metadata.platformequinix.com", // Equinix Metal, since its rename
    "metadata.tencentyun.com",
    "api.metadata.cloud.ibm.com", // cloud.ibm.com/apidocs/vpc-metadata
    "kubernetes.default.svc",     // completed by a search list, in a cluster
];

/// The compiled guard.
#[derive(Debug)]
pub struct Guard {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    /// Denied networks that only report.
    deny_report_only: Vec<IpNet>,
    ports: Vec<u16>,
    /// Names with addresses that the operator configured, and so trusts.
    pinned_names: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// Every range of every pool, active or not. They belong to outgate even if this host does not have them.
    pools: Vec<(PoolName, IpNet)>,
}

/// The addresses and listeners of this host.
#[derive(Clone, Debug, Default)]
pub struct LocalAddresses {
    pub prefixes: Vec<IpNet>,
    /// The listeners of outgate; a wildcard address stands for every address of this host.
    pub listeners: Vec<SocketAddr>,
}

/// The reason why a target is forbidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    Port(u16),
    Name,
    /// The rule is for the operator's record. A client could learn the internal network from it.
    Address {
        address: IpAddr,
        rule: String,
    },
    /// The target is a listener of outgate.
    LoopsBack,
}

/// The checked addresses of a target, which may be dialled. Only [`Guard::clear`] creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClearedAddresses {
    addresses: SmallVec<[IpAddr; 4]>,
    port: u16,
    would_deny: Option<IpNet>,
}

impl ClearedAddresses {
    /// Returns the addresses in the order of the DNS answer.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
    pub fn port(&self) -> u16 {
        self.port
    }
    /// Returns the report-only entry of `guard.deny` that matches one of them.
    pub fn would_deny(&self) -> Option<IpNet> {
        self.would_deny
    }
}

impl Guard {
    pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> Self {
        check_allow(&config.guard, problems);
        Self::new(&config.guard, &config.resolver, &config.egress)
    }

    pub(super) fn new(
        guard: &config::Guard,
        resolver: &config::Resolver,
        egress: &BTreeMap<PoolName, Located<config::Pool>>,
    ) -> Self {
        let cidrs = |list: &[Located<IpNet>]| list.iter().map(|cidr| cidr.trunc()).collect();
        let denied = |report_only| {
            let matching = guard.deny.iter().filter(|deny| deny.report_only == report_only);
            matching.map(|deny| deny.cidr.trunc()).collect()
        };
        let name = |(host, addresses): (&Host, &Vec<IpAddr>)| match host {
            Host::Name(name) => Some((Arc::clone(name), addresses.clone())),
            Host::Ip(_) => None,
        };
        let ranges = |(name, pool): (&PoolName, &Located<config::Pool>)| {
            let name = name.clone();
            pool.ranges.iter().map(move |range| (name.clone(), range.cidr.trunc())).collect::<Vec<_>>()
        };
        Self {
            allow: cidrs(&guard.allow),
            deny: denied(false),
            deny_report_only: denied(true),
            ports: guard.ports.iter().map(|port| port.value).collect(),
            pinned_names: resolver.hosts.iter().filter_map(name).collect(),
            pools: egress.iter().flat_map(ranges).collect(),
        }
    }

    /// Returns the report-only entries of `guard.deny`.
    pub fn report_only_denials(&self) -> &[IpNet] {
        &self.deny_report_only
    }

    /// Checks the port and the name, before DNS.
    pub fn check_name(&self, target: &Target, route_ports: &[u16], plaintext_allowed: bool) -> Result<(), Forbidden> {
        let port = target.port;
        let plaintext = target.scheme == Scheme::Http && plaintext_allowed && port == Scheme::Http.default_port();
        if !plaintext && !self.ports.contains(&port) && !route_ports.contains(&port) {
            return Err(Forbidden::Port(port));
        }
        match &target.host {
            Host::Name(name) if is_special_use(name) && !self.pinned_names.contains_key(name) => Err(Forbidden::Name),
            Host::Name(_) | Host::Ip(_) => Ok(()),
        }
    }

    /// Returns what this guard permits and `former` did not, one sentence each.
    pub fn widened_since(&self, former: &Self) -> Vec<String> {
        let is_within = |network: &IpNet, list: &[IpNet]| list.iter().any(|other| other.contains(network));
        let allowed = self.allow.iter().filter(|network| !is_within(network, &former.allow));
        let allowed = allowed.map(|network| format!("guard.allow has {network}"));
        let denied = former.deny.iter().filter(|network| !is_within(network, &self.deny));
        let denied = denied.map(|network| format!("guard.deny lacks {network}"));
        let ports = self.ports.iter().filter(|port| !former.ports.contains(port));
        let ports = ports.map(|port| format!("guard.ports has {port}"));
        let pinned =
            self.pinned_names.iter().filter(|(name, addresses)| former.pinned_names.get(*name) != Some(addresses));
        let pinned = pinned.map(|(name, _)| format!("resolver.hosts has other addresses for {name}"));
        allowed.chain(denied).chain(ports).chain(pinned).collect()
    }

    /// Checks every address of the target. One forbidden address forbids the whole name, since the next lookup might
    /// return that address alone.
    pub fn clear(
        &self,
        target: &Target,
        answers: &[IpAddr],
        own: &LocalAddresses,
    ) -> Result<ClearedAddresses, Forbidden> {
        let answers = match &target.host {
            Host::Ip(ip) => std::slice::from_ref(ip),
            Host::Name(_) => answers,
        };
        for &address in answers {
            self.check_address(address, target.port, own)?;
        }
        // An IPv4-mapped address is dialled as the IPv4 address that was checked, from an IPv4 source. From an IPv6
        // socket, the kernel would send IPv4 from another source than the bound one.
        let addresses = answers.iter().map(IpAddr::to_canonical).collect();
        let would_deny = self
            .deny_report_only
            .iter()
            .find(|deny| answers.iter().any(|address| self.embedded_forms(*address).any(|form| deny.contains(&form))));
        Ok(ClearedAddresses { addresses, port: target.port, would_deny: would_deny.copied() })
    }

    /// Returns the addresses that a host has without DNS: an address literal, or the operator's configured addresses.
    pub fn pinned_addresses<'a>(&'a self, host: &'a Host) -> Option<&'a [IpAddr]> {
        match host {
            Host::Ip(address) => Some(std::slice::from_ref(address)),
            Host::Name(name) => self.pinned_names.get(name).map(Vec::as_slice),
        }
    }

    /// Returns the reason why every delivery to this host is refused, whatever the port and the local addresses.
    pub fn denies(&self, host: &Host) -> Option<Forbidden> {
        let check_address = |address: &IpAddr| self.check_address(*address, 0, &LocalAddresses::default()).err();
        match host {
            Host::Ip(address) => check_address(address),
            Host::Name(name) => match self.pinned_names.get(name) {
                Some(addresses) => addresses.iter().find_map(check_address),
                None => is_special_use(name).then_some(Forbidden::Name),
            },
        }
    }

    /// Returns the reason why every delivery below this domain is refused.
    pub fn denies_subdomains(&self, parent: &str) -> Option<Forbidden> {
        let has_pinned_name = || self.pinned_names.keys().any(|name| is_subdomain_of(name, parent));
        (is_special_use(parent) && !has_pinned_name()).then_some(Forbidden::Name)
    }

    fn check_address(&self, address: IpAddr, port: u16, local: &LocalAddresses) -> Result<(), Forbidden> {
        if self.embedded_forms(address).any(|form| self.loops_back(form, port, local)) {
            return Err(Forbidden::LoopsBack);
        }
        let refuse = |rule: String| Err(Forbidden::Address { address, rule });
        if let Some(metadata) = special_range(address).filter(|range| range.is_metadata) {
            return refuse(metadata.to_string());
        }
        for form in self.embedded_forms(address) {
            if let Some(deny) = self.deny.iter().find(|deny| deny.contains(&form)) {
                return refuse(format!("guard.deny {deny}"));
            }
            if self.allow.iter().any(|allow| allow.contains(&form)) {
                continue;
            }
            if let Some(range) = registered_range(form) {
                return refuse(range.to_string());
            }
            if let Some((pool, _)) = self.pools.iter().find(|(_, range)| range.contains(&form)) {
                return refuse(format!("an address of egress.{pool}"));
            }
            if is_local(form, local) {
                return refuse("an address of this host".to_owned());
            }
        }
        Ok(())
    }

    /// Returns an address and the IPv4 addresses embedded in it. Each needs its own exception: an exception for a
    /// translation prefix does not cover the addresses behind it.
    ///
    /// Inside `64:ff9b:1::/48`, the prefix length of an `allow` entry selects the translator's layout, if RFC 6052 §2.2
    /// defines that length. Otherwise every layout counts, and almost no address passes.
    fn embedded_forms(&self, address: IpAddr) -> impl Iterator<Item = IpAddr> {
        let layout = move |length: u8| {
            let prefixes = self.allow.iter().filter(|allow| allow.contains(&address)).map(IpNet::prefix_len);
            prefixes.max().is_none_or(|allowed| allowed == length || !matches!(allowed, 48 | 56 | 64 | 96))
        };
        let inner = embedded_ipv4(address).filter(move |inner| inner.translation.is_none_or(layout));
        iter::once(address).chain(inner.map(|inner| IpAddr::V4(inner.address)))
    }

    fn loops_back(&self, address: IpAddr, port: u16, local: &LocalAddresses) -> bool {
        local.listeners.iter().any(|listener| {
            let here = || is_local(address, local) || self.pools.iter().any(|(_, range)| range.contains(&address));
            listener.port() == port
                // Linux treats the unspecified address as this host.
                && (listener.ip() == address || address.is_unspecified() || (listener.ip().is_unspecified() && here()))
        })
    }
}

fn is_local(address: IpAddr, local: &LocalAddresses) -> bool {
    address.is_loopback() || local.prefixes.iter().any(|net| net.contains(&address))
}

fn is_special_use(name: &str) -> bool {
    SPECIAL_USE_NAMES.iter().any(|special| name == *special || is_subdomain_of(name, special))
}

fn check_allow(guard: &config::Guard, problems: &mut Vec<Problem>) {
    for allow in &guard.allow {
        if allow.prefix_len() == 0 {
            problems.push(
                Problem::at(
                    allow.span,
                    format!("`{}` allows every address, so the guard would permit private networks", allow.value),
                )
                .help("write the networks of your receivers"),
            );
            continue;
        }
        if let Some(deny) = guard.deny.iter().find(|deny| !deny.report_only && deny.cidr.contains(&allow.value)) {
            problems.push(
                Problem::warning(
                    WarningCode::AllowWithoutEffect,
                    Some(allow.span),
                    format!("`{}` has no effect: guard.deny precedes guard.allow", allow.value),
                )
                .related(deny.span, "denied here"),
            );
        }
        if let Some(metadata) = special_ranges().find(|row| row.is_metadata && overlaps(&row.cidr, &allow.value)) {
            let SpecialRange { cidr, name, .. } = metadata;
            problems.push(
                Problem::warning(
                    WarningCode::AllowMetadata,
                    Some(allow.span),
                    format!("`{}` covers cloud metadata addresses", allow.value),
                )
                .label(format!("{cidr} is {name}"))
                .help("outgate refuses metadata addresses, whatever guard.allow lists"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
