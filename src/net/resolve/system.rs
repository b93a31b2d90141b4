//! What this host says of names and name servers: `/etc/hosts` and `/etc/resolv.conf`.
//! Which servers are asked where the configuration names none?

#![expect(clippy::disallowed_methods, reason = "reads the system's resolv.conf and hosts")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use crate::config;
use crate::names::Host;

/// The port of name servers in resolv.conf(5).
const PORT: u16 = 53;

/// What this host says of names.
const SYSTEM: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// What a resolver is made of: where it is equal, a resolver and what it remembers may be kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ResolverConfig {
    servers: Vec<SocketAddr>,
    hosts: BTreeMap<Host, Vec<IpAddr>>,
    /// This host's `/etc/hosts` and `/etc/resolv.conf`, where `resolver.servers` is empty.
    system: Option<(String, String)>,
}

impl ResolverConfig {
    /// The files that it is read from, beside the configuration.
    pub fn files(config: &config::Resolver) -> &'static [&'static str] {
        if config.servers.is_empty() { &SYSTEM } else { &[] }
    }

    pub fn read(config: &config::Resolver) -> io::Result<Self> {
        let system = match config.servers.is_empty() {
            true => Some((text_of(SYSTEM[0])?, text_of(SYSTEM[1])?)),
            false => None,
        };
        let servers = config.servers.iter().map(|server| server.value).collect();
        Ok(Self { servers, hosts: config.hosts.clone(), system })
    }

    /// What is likely wrong with the system's name servers, for `check` and the log.
    pub fn warnings(&self) -> Vec<String> {
        let Some((_, resolv_conf)) = &self.system else { return Vec::new() };
        let (servers, unread) = name_servers(resolv_conf);
        let mut warnings: Vec<String> = unread
            .into_iter()
            .map(|word| format!("{}: nameserver {word:?} is not an IP address; it is not asked", SYSTEM[1]))
            .collect();
        if servers.is_empty() {
            warnings.push(format!(
                "no name server is configured: resolver.servers is empty and {} has no nameserver line; \
                 names are asked of 127.0.0.1:{PORT}",
                SYSTEM[1]
            ));
        }
        warnings
    }

    /// With `resolver.servers`, exactly those and `resolver.hosts` count. Without, the system's files do as well.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        let Some((_, resolv_conf)) = &self.system else { return self.servers.clone() };
        match name_servers(resolv_conf).0 {
            // resolv.conf(5): then this host is asked.
            none if none.is_empty() => vec![(Ipv4Addr::LOCALHOST, PORT).into()],
            servers => servers,
        }
    }

    /// Names that DNS is not asked for.
    pub(super) fn hosts(&self) -> HashMap<Arc<str>, Arc<[IpAddr]>> {
        let mut hosts = self.system.as_ref().map(|(hosts, _)| hosts_file(hosts)).unwrap_or_default();
        for (host, addresses) in &self.hosts {
            if let Host::Name(name) = host {
                hosts.insert(Arc::clone(name), addresses.as_slice().into());
            }
        }
        hosts
    }
}

/// The address of every `nameserver` line, and the words that are no address. Other lines do not matter, whether they
/// can be read or not.
fn name_servers(resolv_conf: &str) -> (Vec<SocketAddr>, Vec<&str>) {
    let (mut servers, mut unread) = (Vec::new(), Vec::new());
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let word = words.next().unwrap_or_default();
        match name_server(word) {
            Some(server) if servers.contains(&server) => {}
            Some(server) => servers.push(server),
            None => unread.push(word),
        }
    }
    (servers, unread)
}

/// An address, with the scope of a link-local one: `fe80::1%eth0`.
fn name_server(word: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = word.split_once('%') else {
        return word.parse::<IpAddr>().ok().map(|address| (address, PORT).into());
    };
    let by_name = || fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok()?.trim().parse().ok();
    let is_name = !scope.contains('/');
    let scope = scope.parse().ok().or_else(|| if is_name { by_name() } else { None })?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

/// hosts(5): an address, then names for it; a name may stand on several lines.
fn hosts_file(text: &str) -> HashMap<Arc<str>, Arc<[IpAddr]>> {
    let mut hosts: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            let addresses = hosts.entry(name.to_ascii_lowercase().into()).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    hosts.into_iter().map(|(name, addresses)| (name, addresses.into())).collect()
}

/// A file that is not there says nothing.
fn text_of(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file() {
        let hosts = hosts_file(
            "127.0.0.1\tlocalhost\n# a comment\n10.0.0.1 Box.Example box # the box\n2001:db8::1 box.example\n\nodd line\n",
        );
        let of = |name| hosts.get(name).map(|addresses| addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of("box.example").unwrap(), ["10.0.0.1", "2001:db8::1"]);
        assert_eq!(of("box").unwrap(), ["10.0.0.1"]);
        assert_eq!(of("line"), None);
    }

    #[test]
    fn every_nameserver_line_of_resolv_conf_counts_whatever_the_others_say() {
        let of = |text| name_servers(text).0.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("nameserver 192.0.2.53\nnameserver 2001:db8::53\n"), ["192.0.2.53:53", "[2001:db8::53]:53"]);
        assert_eq!(
            of("options edns0 trust-ad unheard-of:9 ndots:x\nnameserver 192.0.2.1\nsortlist 10.0.0.0/255.0.0.0\n\
                domain\nsearch -\n  nameserver\t192.0.2.2 # the second\n!?\nnameserver 192.0.2.3\n\
                nameserver 192.0.2.4\nnameserver 192.0.2.1\n"),
            ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53", "192.0.2.4:53"]
        );
        assert_eq!(of("nameserver fe80::1%7\n"), ["[fe80::1%7]:53"]);
        assert_eq!(of("# nameserver 192.0.2.1\n; nameserver 192.0.2.1\nnameservers 192.0.2.1\n"), [""; 0]);
    }

    #[test]
    fn a_system_without_name_servers_is_warned_of() {
        let basis = |text: &str| ResolverConfig {
            servers: Vec::new(),
            hosts: BTreeMap::new(),
            system: Some((String::new(), text.to_owned())),
        };
        assert_eq!(basis("nameserver 192.0.2.53\n").warnings(), [""; 0]);
        let none = basis("search example.org\nnameserver 300.1.1.1\n");
        assert_eq!(
            none.warnings(),
            [
                "/etc/resolv.conf: nameserver \"300.1.1.1\" is not an IP address; it is not asked",
                "no name server is configured: resolver.servers is empty and /etc/resolv.conf has no nameserver line; \
                 names are asked of 127.0.0.1:53",
            ]
        );
        assert_eq!(none.servers(), ["127.0.0.1:53".parse().unwrap()]);
    }
}
