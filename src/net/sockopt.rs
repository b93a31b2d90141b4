//! Socket options that neither socket2 nor rustix wraps.
//! How do a hundred thousand connections share one source address?

#![expect(unsafe_code, reason = "setsockopt for options that neither socket2 nor rustix wraps")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use libc::c_int;

/// The option's number in `linux/in.h`, since Linux 6.3. The libc crate does not have it.
const IP_LOCAL_PORT_RANGE: c_int = 51;
/// The option's number in `linux/in6.h`. The libc crate does not have it.
const IPV6_MINHOPCOUNT: c_int = 73;
const PORT_RANGE_SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED_PORTS_SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The system's range when it was last read, as IP_LOCAL_PORT_RANGE has it: the upper bound in the upper half.
static RANGE: AtomicU32 = AtomicU32::new(UNREAD);
const UNREAD: u32 = 0;
/// No range: its upper bound would be below its lower bound.
const UNREADABLE: u32 = 1;

/// Defers the choice of the source port from `bind` to `connect`. It must be called before `bind`.
///
/// A plain `bind(address, 0)` reserves a port for all destinations. Measured with the default range, one source address
/// is exhausted at 28,234 connections (EADDRINUSE), whatever the number of destinations. Meanwhile `bind` slows down
/// from 34 µs to 7 ms. With IP_BIND_ADDRESS_NO_PORT the kernel requires a unique four-tuple only: 112,938 connections
/// to four destinations.
///
/// With this option alone, `connect` slows down to 2 ms: the kernel first searches the ports of one parity, and the
/// search grows past half of the range. With an explicit IP_LOCAL_PORT_RANGE it searches all ports: 35 µs at first, 39
/// µs at the last port. So the socket gets the system's range explicitly.
///
/// Both options have level IP on IPv6 sockets too, and need no privilege. If the kernel lacks them (an older kernel, a
/// sandbox), connections still leave from the bound address, but fewer fit: this is not an error.
pub(super) fn defer_port_selection(socket: BorrowedFd<'_>) -> io::Result<()> {
    ignore_unsupported(set_option(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1))?;
    let range = match RANGE.load(Ordering::Relaxed) {
        UNREAD => {
            read_port_range();
            RANGE.load(Ordering::Relaxed)
        }
        range => range,
    };
    match range {
        UNREAD | UNREADABLE => Ok(()),
        range => ignore_unsupported(set_option(socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())),
    }
}

/// Reads the first and the last port of the system's range. Connections from now on use it: an operator may widen the
/// range of a host that runs out of ports.
#[expect(clippy::disallowed_methods, reason = "the kernel's range of local ports")]
pub(super) fn read_port_range() -> Option<(u16, u16)> {
    let range = fs::read_to_string(PORT_RANGE_SYSCTL).ok().and_then(|text| port_range(&text));
    let value = range.map_or(UNREADABLE, |(low, high)| u32::from(high) << 16 | u32::from(low));
    RANGE.store(value, Ordering::Relaxed);
    range
}

/// Returns the ranges of ports that the kernel gives to no outgoing connection, as they are now.
#[expect(clippy::disallowed_methods, reason = "the kernel's reserved ports")]
pub(super) fn reserved_ports() -> Vec<(u16, u16)> {
    port_list(&fs::read_to_string(RESERVED_PORTS_SYSCTL).unwrap_or_default())
}

/// Parses `8080,9000-9010`.
fn port_list(text: &str) -> Vec<(u16, u16)> {
    let parse = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter_map(parse).collect()
}

/// Makes the kernel filter a netlink dump by the fields of the request. A router's table may hold a million routes, of
/// which outgate needs a handful. Kernels before 4.20 send all of them.
pub(super) fn enable_strict_dumps(netlink: BorrowedFd<'_>) -> io::Result<()> {
    ignore_unsupported(set_option(netlink, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1))
}

/// Sends the delayed acknowledgment now (tcp(7), TCP_QUICKACK). The kernel returns to delayed acknowledgments by
/// itself.
///
/// Some clients, such as Python's requests and urllib3, write the head and the body of a request separately with
/// Nagle's algorithm on (RFC 896). They send the body when the head is acknowledged, which takes 40 ms otherwise.
pub(super) fn set_quickack(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1)
}

/// Makes a TCP socket ignore packets with a lower TTL (IPv4) or hop limit (IPv6). RFC 5082 is what the options are for.
/// Connections inherit the minimum of their listener. 0 ends it.
pub(super) fn set_min_ttl(socket: BorrowedFd<'_>, is_ipv6: bool, min: u8) -> io::Result<()> {
    let (level, option) = match is_ipv6 {
        false => (libc::IPPROTO_IP, libc::IP_MINTTL),
        true => (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    };
    set_option(socket, level, option, min.into())
}

/// Parses `32768\t60999`.
fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(low)), Some(Ok(high))) if low <= high => Some((low, high)),
        _ => None,
    }
}

fn ignore_unsupported(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => Ok(()),
        outcome => outcome,
    }
}

fn set_option(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open; the kernel reads one `c_int`, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn sockopt_defers_the_port_for_both_families() {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let Ok(socket) = Socket::new(domain, Type::STREAM, None) else { continue };
            defer_port_selection(socket.as_fd()).unwrap();
            let address: std::net::SocketAddr =
                if domain == Domain::IPV4 { "127.0.0.9:0".parse().unwrap() } else { "[::1]:0".parse().unwrap() };
            if socket.bind(&address.into()).is_ok() {
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                assert_eq!(port, 0, "the kernel chooses the port at connect");
            }
        }
    }

    #[test]
    fn sockopt_reserved_ports_are_ports_and_ranges() {
        assert_eq!(port_list("8080,9000-9010\n"), [(8080, 8080), (9000, 9010)]);
        assert_eq!(port_list("\n"), []);
    }

    #[test]
    fn sockopt_port_range_has_two_ports_in_order() {
        assert_eq!(port_range("32768\t60999\n"), Some((32768, 60999)));
        for bad in ["", "1", "2 1", "1 65536", "a b"] {
            assert_eq!(port_range(bad), None, "{bad:?}");
        }
    }
}
