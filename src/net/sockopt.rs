//! The socket options that no library offers.
//! How is a source address used by a hundred thousand connections at once, and what keeps a client from waiting?

#![expect(unsafe_code, reason = "setsockopt for options that neither socket2 nor rustix wraps")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use libc::c_int;

/// `linux/in.h`, since Linux 6.3; not in the libc crate.
const IP_LOCAL_PORT_RANGE: c_int = 51;
const PORT_RANGE_SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Says, before `bind`, that the port is to be chosen at `connect`.
///
/// A plain `bind(address, 0)` takes a port from every destination at once: measured with the default range, one
/// source address ends at 28,234 connections (EADDRINUSE), whatever their number of destinations, and `bind` slows
/// from 34 µs to 7 ms on the way. With IP_BIND_ADDRESS_NO_PORT the kernel wants the four-tuple unique and no more:
/// 112,938 connections to four destinations.
///
/// That alone still ends at 2 ms a `connect`, since the kernel first searches the ports of one parity only and
/// scans ever longer past half of the range. With an explicit IP_LOCAL_PORT_RANGE it searches all of them: 35 µs at
/// first, 39 µs at the last port. So the socket gets the range that it would have had in any case.
///
/// Both are options of level IP on IPv6 sockets too, and both need no privilege. Without them (an older kernel, a
/// sandbox) connections still leave from the bound address, only fewer of them: not an error.
pub(super) fn defer_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    optional(set(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1))?;
    static RANGE: OnceLock<Option<u32>> = OnceLock::new();
    let range = RANGE.get_or_init(|| fs::read_to_string(PORT_RANGE_SYSCTL).ok().and_then(|text| port_range(&text)));
    match range {
        Some(range) => optional(set(socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())),
        None => Ok(()),
    }
}

/// Has the kernel filter a netlink dump by the fields of the request: a router's table may hold a million routes,
/// and those that are wanted are a handful. Kernels before 4.20 send everything.
pub(super) fn filter_dumps(netlink: BorrowedFd<'_>) -> io::Result<()> {
    optional(set(netlink, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1))
}

/// Sends the acknowledgment that the kernel delays (tcp(7), TCP_QUICKACK). The kernel goes back to delayed ones by itself.
///
/// A client with Nagle's algorithm on (RFC 896) that writes a request's head and body apart sends the body when the head
/// is acknowledged, 40 ms later: Python's requests and urllib3 do so.
pub(super) fn acknowledge(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1)
}

/// `32768\t60999` as the option wants it: the upper bound in the upper half.
fn port_range(text: &str) -> Option<u32> {
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(low)), Some(Ok(high))) if low <= high => Some(u32::from(high) << 16 | u32::from(low)),
        _ => None,
    }
}

fn optional(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => Ok(()),
        outcome => outcome,
    }
}

fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
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
    fn both_families_take_the_options() {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let Ok(socket) = Socket::new(domain, Type::STREAM, None) else { continue };
            defer_port(socket.as_fd()).unwrap();
            let address: std::net::SocketAddr =
                if domain == Domain::IPV4 { "127.0.0.9:0".parse().unwrap() } else { "[::1]:0".parse().unwrap() };
            if socket.bind(&address.into()).is_ok() {
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                assert_eq!(port, 0, "no port is taken before connect");
            }
        }
    }

    #[test]
    fn the_range_is_packed_high_half_first() {
        assert_eq!(port_range("32768\t60999\n"), Some(60999 << 16 | 32768));
        for bad in ["", "1", "2 1", "1 65536", "a b"] {
            assert_eq!(port_range(bad), None, "{bad:?}");
        }
    }
}
