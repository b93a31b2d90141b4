//! The TCP sockets of this host by source address, as the kernel lists them (sock_diag(7)).
//! How many connections does a source address have, and how many of its ports are left?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink;

use super::netlink::{dump, u32_at};
use super::sockopt;

/// The ports of the host for outgoing connections, and their use by source addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortUsage {
    /// The ports from which the kernel chooses: those of `net.ipv4.ip_local_port_range`, for IPv6 as well. The ports of
    /// `net.ipv4.ip_local_reserved_ports` and of listeners are left out: no connection gets one, from any address.
    pub available: u32,
    /// The use of each source address that has connections.
    pub sources: BTreeMap<IpAddr, SourceUsage>,
}

/// The use of one source address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceUsage {
    /// Connections that are not in TIME_WAIT.
    pub open: u32,
    /// Connections in TIME_WAIT. They occupy their port for a minute (TCP_TIMEWAIT_LEN).
    pub time_wait: u32,
    /// The ports of the address that its fullest target occupies. The kernel needs a port that is free towards the
    /// target's address and port only; the same port may lead to other targets.
    pub fullest_target: u32,
}

impl SourceUsage {
    /// Returns how many of `ports` are left towards the fullest target.
    pub fn ports_left(self, ports: u32) -> u32 {
        ports.saturating_sub(self.fullest_target)
    }
}

/// The type of a request, and of each answer (`SOCK_DIAG_BY_FAMILY`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The length of `struct inet_diag_req_v2`: family, protocol, extensions, padding: u8; states u32; `struct
/// inet_diag_sockid`.
const REQUEST_LEN: usize = 56;
/// All states of sockets that have a port (`net/tcp_states.h`). TCP_BOUND_INACTIVE (13), a port without a connection,
/// exists since Linux 6.8.
const STATES_WITH_PORT: u32 = 0xFFFF & !(1 | 1 << CLOSE);
const TIME_WAIT: u8 = 6;
/// TCP_CLOSE: the state that some kernels show of a port without a connection.
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const BOUND_INACTIVE: u8 = 13;

/// Returns the ports of the host, and the use of each source address that `is_source` accepts.
pub fn port_usage(is_source: impl Fn(IpAddr) -> bool) -> io::Result<PortUsage> {
    let Some((low, high)) = sockopt::read_port_range() else { return Ok(PortUsage::default()) };
    let mut unavailable: HashSet<u16> = HashSet::new();
    for (first, last) in sockopt::reserved_ports() {
        unavailable.extend(first.max(low)..=last.min(high));
    }
    let mut sources: BTreeMap<IpAddr, SourceUsage> = BTreeMap::new();
    let mut ports: HashMap<(IpAddr, IpAddr, u16), u32> = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; REQUEST_LEN];
        (request[0], request[1]) = (family as u8, libc::IPPROTO_TCP as u8);
        request[4..8].copy_from_slice(&STATES_WITH_PORT.to_ne_bytes());
        // A dump that was interrupted lacks some sockets that opened or closed meanwhile.
        dump(Some(netlink::SOCK_DIAG), SOCK_DIAG_BY_FAMILY, &request, SOCK_DIAG_BY_FAMILY, |body| {
            let Some(socket) = DiagSocket::parse(body) else { return };
            if !(low..=high).contains(&socket.source_port) {
                return;
            }
            // Whatever its address is: the kernel marks the port as a whole.
            if matches!(socket.state, LISTEN | CLOSE | BOUND_INACTIVE) {
                unavailable.insert(socket.source_port);
                return;
            }
            // The kernel lists listeners before the connections that they accepted.
            if unavailable.contains(&socket.source_port) || !is_source(socket.source) {
                return;
            }
            let of_source = sources.entry(socket.source).or_default();
            match socket.state {
                TIME_WAIT => of_source.time_wait += 1,
                _ => of_source.open += 1,
            }
            let of_target = ports.entry((socket.source, socket.target, socket.target_port)).or_default();
            *of_target += 1;
            of_source.fullest_target = of_source.fullest_target.max(*of_target);
        })?;
    }
    let available = (u32::from(high - low) + 1).saturating_sub(u32::try_from(unavailable.len()).unwrap_or(u32::MAX));
    Ok(PortUsage { available, sources })
}

/// One socket of a dump (`struct inet_diag_msg`).
#[derive(Debug, PartialEq, Eq)]
struct DiagSocket {
    state: u8,
    source: IpAddr,
    source_port: u16,
    target: IpAddr,
    target_port: u16,
}

impl DiagSocket {
    /// Parses family, state, timer, retransmits: u8; and of `struct inet_diag_sockid`: source and target port, in network
    /// byte order; source and target address, 16 bytes each.
    fn parse(body: &[u8]) -> Option<Self> {
        let (family, state) = (*body.first()?, *body.get(1)?);
        let port = |offset: usize| body.get(offset..)?.first_chunk().map(|port| u16::from_be_bytes(*port));
        let address = |offset: usize| {
            if i32::from(family) == libc::AF_INET {
                Some(IpAddr::from(Ipv4Addr::from(u32_at(body, offset)?.to_ne_bytes())))
            } else {
                Some(IpAddr::from(Ipv6Addr::from(*body.get(offset..)?.first_chunk::<16>()?)))
            }
        };
        let (source_port, target_port) = (port(4)?, port(6)?);
        Some(Self { state, source: address(8)?, source_port, target: address(24)?, target_port })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn socket_diag_message_has_ports_and_addresses_of_both_families() {
        let mut body = vec![libc::AF_INET as u8, 1, 0, 0, 0x80, 0x01, 0x01, 0xbb];
        body.extend([127, 0, 7, 1]);
        body.extend([0; 12]);
        body.extend([192, 0, 2, 9]);
        body.extend([0; 44]);
        let socket = DiagSocket {
            state: 1,
            source: "127.0.7.1".parse().unwrap(),
            source_port: 32769,
            target: "192.0.2.9".parse().unwrap(),
            target_port: 443,
        };
        assert_eq!(DiagSocket::parse(&body), Some(socket));
        (body[0], body[23], body[39]) = (libc::AF_INET6 as u8, 5, 7);
        let socket = DiagSocket::parse(&body).unwrap();
        assert_eq!(socket.source, "7f00:701::5".parse::<IpAddr>().unwrap());
        assert_eq!(socket.target, "c000:209::7".parse::<IpAddr>().unwrap());
        for length in 0..40 {
            assert_eq!(DiagSocket::parse(&body[..length]), None, "{length} bytes");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "sockets of the test")]
    fn usage_counts_the_ports_towards_the_fullest_target() {
        // Another run within the last minute would have left connections in TIME_WAIT at the same address.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let source = IpAddr::from([127, a | 0x40, b, c]);
        let connect = |listener: &TcpListener| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::new(source, 0).into()).unwrap();
            socket.connect(&listener.local_addr().unwrap().into()).unwrap();
            TcpStream::from(socket)
        };
        let usage = || port_usage(|address| address == source).unwrap().sources.get(&source).copied();
        // The kernel lists its sockets piece by piece, and misses one if others come and go between the pieces.
        let assert_usage = |open, time_wait, fullest_target| {
            let expected = Some(SourceUsage { open, time_wait, fullest_target });
            assert!((0..100).any(|_| usage() == expected), "{:?} is not {expected:?}", usage());
        };
        assert_eq!(usage(), None);
        let (busy, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let mut streams: Vec<_> = [&busy, &busy, &busy, &other].into_iter().map(connect).collect();
        assert_usage(4, 0, 3);
        // The side that closes first keeps the port in TIME_WAIT.
        let (accepted, _) = other.accept().unwrap();
        drop(streams.pop());
        drop(accepted);
        assert_usage(3, 1, 3);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "sockets of the test")]
    fn usage_leaves_out_the_ports_of_listeners() {
        let available = || port_usage(|_| false).unwrap().available;
        assert!(available() > 1000);
        // Other tests open and close listeners meanwhile: a thousand are more than all of theirs.
        let before = available();
        let listeners: Vec<_> = (0..1000).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let during = available();
        assert!(during < before - 500, "{before} ports became {during}");
        drop(listeners);
        assert!(available() > during + 500);
    }
}
