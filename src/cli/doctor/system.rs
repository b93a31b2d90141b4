//! The checks of the kernel and the network: file limits, listeners, the clock, name servers, MTU, entropy.
//! Does this host have what outgate needs to run?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};

use super::super::service::Unit;
use super::Examination;
use super::finding::Finding;
use super::uplink::Exit;
use crate::net::clock::{self, ClockState};
use crate::net::fd_limit;
use crate::net::resolve::ResolverConfig;

/// Connections that every host should be able to hold.
const CONNECTIONS_MIN: u64 = 1000;
/// The error of the clock from which signatures may be refused. Standard Webhooks and RFC 9421 profiles allow minutes,
/// and some receivers allow less.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(1);
/// The time in which a name server must respond: the default of `timeouts.dns`.
const NAME_SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// A query for the name servers of the root (RFC 1035 §4.1): id, recursion desired, one question, ".", NS, IN.
const ROOT_QUERY: [u8; 17] = [0x6f, 0x67, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
/// The least MTU of an IPv6 link (RFC 8200 §5).
const IPV6_MTU_MIN: u32 = 1280;
const ETHERNET_MTU: u32 = 1500;
/// Bits of entropy below which an older kernel may wait.
const ENTROPY_MIN: u64 = 64;

/// Checks how many files the service may open: each connection is one.
pub(super) fn files(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(config) = subject.config() else { return Vec::new() };
    // The default follows the limit, down to this number.
    let connections = config.server.max_connections.as_ref().map_or(CONNECTIONS_MIN, |written| written.value as u64);
    let needed = fd_limit::needed(connections);
    let of_unit = subject.unit.as_ref().and_then(Unit::file_limit);
    let (limit, whose) = match of_unit {
        Some(limit) => (Some(limit), "outgate.service"),
        None => (fd_limit::limit().filter(|_| subject.host.is_real()), "a process of this user"),
    };
    let mut findings = Vec::new();
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        let message = format!(
            "{whose} may open {limit} files, and {connections} connections of clients need {needed}: outgate accepts \
             fewer"
        );
        let fix = match of_unit {
            Some(_) => format!("systemctl edit outgate, with the lines [Service] and LimitNOFILE={needed}"),
            None => format!("ulimit -Hn {needed}, as root, before outgate starts"),
        };
        findings.push(Finding::warning(message, fix));
    }
    for sysctl in ["fs.nr_open", "fs.file-max"] {
        if let Some(limit) = subject.host.sysctl(sysctl).filter(|limit| *limit < needed) {
            let message = format!("{sysctl} is {limit}, and {connections} connections of clients need {needed} files");
            findings.push(Finding::warning(message, format!("sysctl -w {sysctl}={needed}")));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(format!("outgate may open the {needed} files that {connections} connections need")));
    }
    findings
}

/// Checks that the service may bind the ports of its listeners.
pub(super) fn listeners(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(config) = subject.config() else { return Vec::new() };
    let first = subject.host.sysctl("net.ipv4.ip_unprivileged_port_start").unwrap_or(1024);
    let has_capability =
        subject.unit.as_ref().is_none_or(|unit| unit.list("AmbientCapabilities").contains("CAP_NET_BIND_SERVICE"));
    let privileged =
        config.binds().filter_map(|bind| bind.address.tcp()).filter(|address| u64::from(address.port()) < first);
    let findings = privileged.filter(|address| address.port() > 0 && !has_capability).map(|address| {
        let message = format!(
            "outgate.service may not listen on {address}: ports below {first} need CAP_NET_BIND_SERVICE, which the unit \
             does not grant"
        );
        let fix = format!("write \"systemd\" in server.listen, ListenStream={address} in outgate.socket, and enable it");
        Finding::problem(message, fix)
    });
    let findings: Vec<_> = findings.collect();
    if findings.is_empty() { vec![Finding::ok("no listener needs a privilege")] } else { findings }
}

/// Checks that a time daemon corrects the clock: signatures, tokens and certificates depend on it.
pub(super) fn clock(subject: &Examination<'_>) -> Vec<Finding> {
    match clock::state() {
        Ok(state) if subject.host.is_real() => vec![judge_clock(state)],
        _ => Vec::new(),
    }
}

fn judge_clock(ClockState { is_synchronised, error_max }: ClockState) -> Finding {
    match () {
        () if !is_synchronised => Finding::problem(
            "no time daemon synchronises the clock: receivers refuse signatures with a wrong time, and outgate judges \
             certificates and tokens wrongly",
            "timedatectl set-ntp true; or: apt install chrony",
        ),
        () if error_max > CLOCK_ERROR_MAX => Finding::warning(
            format!("the clock may be wrong by {} ms: the time daemon reaches no server", error_max.as_millis()),
            "systemctl restart systemd-timesyncd; or: chronyc sources",
        ),
        () => Finding::ok(format!("the clock is synchronised, to {} ms at worst", error_max.as_millis())),
    }
}

/// Asks each name server for the servers of the root.
pub(super) fn resolver(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(config) = subject.config() else { return Vec::new() };
    let Ok(resolver) = ResolverConfig::read(&config.resolver) else {
        let message = "the system's /etc/resolv.conf or /etc/hosts cannot be read: outgate resolves no name";
        return vec![Finding::problem(message, "chmod 644 /etc/resolv.conf /etc/hosts")];
    };
    let servers = resolver.servers();
    let silent: Vec<SocketAddr> = servers.iter().copied().filter(|server| ask(*server).is_none()).collect();
    let list = |servers: &[SocketAddr]| servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fix = "write servers that respond into resolver.servers, or into /etc/resolv.conf, and run `outgate reload`";
    let finding = match silent.len() {
        0 => Finding::ok(format!("the name servers respond ({})", list(&servers))),
        all if all == servers.len() => {
            let message = format!("no name server responds ({}): outgate cannot resolve targets", list(&silent));
            Finding::problem(message, fix)
        }
        _ => {
            let message = format!("{} does not respond: outgate resolves names more slowly", list(&silent));
            Finding::warning(message, fix)
        }
    };
    vec![finding]
}

fn ask(server: SocketAddr) -> Option<()> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.set_read_timeout(Some(NAME_SERVER_TIMEOUT)).ok()?;
    socket.connect(server).ok()?;
    socket.send(&ROOT_QUERY).ok()?;
    let mut response = [0; 512];
    // An error of the server is a response, too.
    let length = socket.recv(&mut response).ok()?;
    (length >= 12 && response[..2] == ROOT_QUERY[..2]).then_some(())
}

/// Checks the MTU of the interfaces by which the pools leave.
pub(super) fn mtu(subject: &Examination<'_>) -> Vec<Finding> {
    let exits = subject.uplinks.iter().filter_map(|uplink| Some((uplink.exit.as_ref().ok()?, uplink.source.is_ipv6())));
    let mut exits: Vec<_> = exits.collect();
    exits.retain(|(exit, _)| exit.interface != "lo");
    exits.sort_by_key(|(exit, is_v6)| (exit.interface.as_str(), std::cmp::Reverse(*is_v6)));
    exits.dedup_by_key(|(exit, _)| exit.interface.as_str());
    let probes = subject.host.sysctl("net.ipv4.tcp_mtu_probing").is_some_and(|mode| mode > 0);
    let findings = exits.into_iter().map(|(Exit { interface: name, mtu }, is_v6)| match *mtu {
        _ if is_v6 && *mtu < IPV6_MTU_MIN => Finding::problem(
            format!("the MTU of {name} is {mtu}, and IPv6 needs {IPV6_MTU_MIN}: the kernel sends no IPv6 there"),
            format!("ip link set {name} mtu {IPV6_MTU_MIN}"),
        ),
        _ if *mtu != ETHERNET_MTU && !probes => Finding::warning(
            format!(
                "the MTU of {name} is {mtu}, not {ETHERNET_MTU}: large requests hang if a firewall drops the ICMP \
                     messages that report a smaller MTU on the way"
            ),
            "sysctl -w net.ipv4.tcp_mtu_probing=1",
        ),
        _ => Finding::ok(format!("the MTU of {name} is {mtu}")),
    });
    findings.collect()
}

/// Checks that the kernel has random bytes at once, which every TLS handshake needs.
pub(super) fn entropy(subject: &Examination<'_>) -> Vec<Finding> {
    let mut byte = [0];
    let is_waiting = subject.host.is_real() && getrandom(&mut byte[..], GetRandomFlags::NONBLOCK).is_err();
    let available = subject.host.sysctl("kernel.random.entropy_avail");
    if is_waiting || available.is_some_and(|available| available < ENTROPY_MIN) {
        let message = format!(
            "the kernel has {} bits of entropy: TLS handshakes and keys may wait for more",
            available.unwrap_or_default()
        );
        return vec![Finding::problem(message, "apt install rng-tools-debian; in a virtual machine add virtio-rng")];
    }
    vec![Finding::ok("the kernel has random bytes")]
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn clock_that_nothing_corrects_is_a_problem() {
        let judge = |is_synchronised, seconds| {
            let error_max = Duration::from_secs(seconds);
            judge_clock(ClockState { is_synchronised, error_max }).level
        };
        assert_eq!([judge(true, 0), judge(true, 5), judge(false, 0)], [Level::Ok, Level::Warning, Level::Problem]);
    }

    #[test]
    fn name_server_that_does_not_exist_does_not_respond() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let responder = std::thread::spawn(move || {
            let mut query = [0; 512];
            let (length, from) = server.recv_from(&mut query).unwrap();
            server.send_to(&query[..length], from).unwrap();
        });
        assert_eq!(ask(address), Some(()));
        responder.join().unwrap();
        assert_eq!(ask(address), None, "the port is closed");
    }
}
