//! The resolver configuration of this host: `/etc/hosts` and `/etc/resolv.conf`.
//! Which name servers and static names apply if the configuration has no name server?

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

/// The files of this host.
const SYSTEM_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// The configuration of a resolver. A reload with an equal one keeps the resolver and its cache.
#[derive(Clone, PartialEq, Eq)]
pub struct ResolverConfig {
    servers: Vec<SocketAddr>,
    hosts: BTreeMap<Host, Vec<IpAddr>>,
    /// The text of `/etc/hosts` and `/etc/resolv.conf`, if `resolver.servers` is empty.
    system: Option<(String, String)>,
}

impl ResolverConfig {
    /// Returns the files that it is read from, besides the configuration.
    pub fn files(config: &config::Resolver) -> &'static [&'static str] {
        if config.servers.is_empty() { &SYSTEM_FILES } else { &[] }
    }

    pub fn read(config: &config::Resolver) -> io::Result<Self> {
        let system = match config.servers.is_empty() {
            true => Some((text_of(SYSTEM_FILES[0])?, text_of(SYSTEM_FILES[1])?)),
            false => None,
        };
        let servers = config.servers.iter().map(|server| server.value).collect();
        Ok(Self { servers, hosts: config.hosts.clone(), system })
    }

    /// Returns the likely problems of the system's name servers, for `check` and the log.
    pub fn warnings(&self) -> Vec<String> {
        let Some((_, resolv_conf)) = &self.system else { return Vec::new() };
        let (servers, invalid) = name_servers(resolv_conf);
        let mut warnings: Vec<String> = invalid
            .into_iter()
            .map(|word| format!("{}: nameserver {word:?} is not an IP address; it is ignored", SYSTEM_FILES[1]))
            .collect();
        if servers.is_empty() {
            warnings.push(format!(
                "no name server is configured: resolver.servers is empty and {} has no nameserver line; \
                 queries are sent to 127.0.0.1:{PORT}",
                SYSTEM_FILES[1]
            ));
        }
        warnings
    }

    /// Returns the name servers: those of `resolver.servers`, or else those of the system.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let Some((_, resolv_conf)) = &self.system else { return self.servers.clone() };
        match name_servers(resolv_conf).0 {
            // resolv.conf(5): without a nameserver line, the server on this host is used.
            none if none.is_empty() => vec![(Ipv4Addr::LOCALHOST, PORT).into()],
            servers => servers,
        }
    }

    /// Returns the static names, for which no query is sent.
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

/// Returns the address of every `nameserver` line, and the words that are no address. Other lines are ignored.
fn name_servers(resolv_conf: &str) -> (Vec<SocketAddr>, Vec<&str>) {
    let (mut servers, mut invalid) = (Vec::new(), Vec::new());
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let word = words.next().unwrap_or_default();
        match name_server(word) {
            Some(server) if servers.contains(&server) => {}
            Some(server) => servers.push(server),
            None => invalid.push(word),
        }
    }
    (servers, invalid)
}

/// Parses an address, with the scope of a link-local one: `fe80::1%eth0`.
fn name_server(word: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = word.split_once('%') else {
        return word.parse::<IpAddr>().ok().map(|address| (address, PORT).into());
    };
    let by_name = || fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok()?.trim().parse().ok();
    let is_name = !scope.contains('/');
    let scope = scope.parse().ok().or_else(|| if is_name { by_name() } else { None })?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

/// Parses hosts(5): an address and its names on each line. A name may be on several lines.
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

/// Reads a file. A missing file is empty.
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
    fn hosts_file_gives_each_name_its_addresses() {
        let hosts = hosts_file(
            "127.0.0.1\tlocalhost\n# a comment\n10.0.0.1 Box.Example box # the box\n2001:db8::1 box.example\n\nodd line\n",
        );
        let of = |name| hosts.get(name).map(|addresses| addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of("box.example").unwrap(), ["10.0.0.1", "2001:db8::1"]);
        assert_eq!(of("box").unwrap(), ["10.0.0.1"]);
        assert_eq!(of("line"), None);
    }

    #[test]
    fn resolv_conf_gives_the_servers_of_every_nameserver_line() {
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
    fn resolv_conf_without_name_servers_causes_a_warning() {
        let config = |text: &str| ResolverConfig {
            servers: Vec::new(),
            hosts: BTreeMap::new(),
            system: Some((String::new(), text.to_owned())),
        };
        assert_eq!(config("nameserver 192.0.2.53\n").warnings(), [""; 0]);
        let none = config("search example.org\nnameserver 300.1.1.1\n");
        assert_eq!(
            none.warnings(),
            [
                "/etc/resolv.conf: nameserver \"300.1.1.1\" is not an IP address; it is ignored",
                "no name server is configured: resolver.servers is empty and /etc/resolv.conf has no nameserver line; \
                 queries are sent to 127.0.0.1:53",
            ]
        );
        assert_eq!(none.servers(), ["127.0.0.1:53".parse().unwrap()]);
    }
}
