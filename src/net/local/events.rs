//! Changes of this host's addresses, as the kernel announces them over rtnetlink(7).
//! When must outgate read its addresses again?

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use super::super::netlink::{DATAGRAM_MAX, walk_messages};
use super::local_prefix;

/// Links, because the kernel removes routes without a message when an interface goes down; addresses; and routes,
/// because an AnyIP prefix is a route.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE;

/// Datagrams that are read before other tasks run. A router announces thousands of routes at once.
const DATAGRAMS_PER_TURN: usize = 64;

/// A subscription to the changes.
pub struct AddressEvents {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl AddressEvents {
    /// Subscribes. A sandbox that forbids netlink causes an error.
    #[expect(
        deprecated,
        reason = "`register` is unsafe for types whose descriptor may change; that of OwnedFd does not"
    )]
    pub fn subscribe() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS.cast_unsigned()))?;
        Ok(Self { socket: AsyncFd::new(socket)?, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// Waits until the addresses of this host may have changed. It is cancel safe.
    pub async fn changed(&mut self) -> io::Result<()> {
        let buffer = &mut self.buffer[..];
        loop {
            let mut is_change = false;
            let mut ready = self.socket.readable().await?;
            for _ in 0..DATAGRAMS_PER_TURN {
                match ready.try_io(|socket| Ok(rustix::net::recv(socket.get_ref(), &mut *buffer, RecvFlags::empty())?))
                {
                    Ok(Ok((_, length))) => is_change |= concerns_addresses(buffer.get(..length).unwrap_or_default()),
                    // The kernel dropped messages, which may have been about addresses.
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => is_change = true,
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => break,
                }
            }
            if is_change {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Returns whether a message of the datagram is about an address, an interface or a local route. A message that cannot
/// be parsed may be.
fn concerns_addresses(datagram: &[u8]) -> bool {
    let mut found = false;
    let walked = walk_messages(datagram, &mut false, |kind, body| {
        found |= !matches!(kind, libc::RTM_NEWROUTE | libc::RTM_DELROUTE) || local_prefix(body).is_some();
    });
    found || walked.is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_events_ignore_routes_to_other_hosts() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes
        };
        // family, destination length, source length, tos, table, protocol, scope, type; flags; RTA_DST 192.0.2.1
        let route = |table: u8, kind: u8| [2, 32, 0, 0, table, 4, 0, kind, 0, 0, 0, 0, 8, 0, 1, 0, 192, 0, 2, 1];
        let [unicast, local] = [route(libc::RT_TABLE_MAIN, libc::RTN_UNICAST), route(255, libc::RTN_LOCAL)];
        assert!(!concerns_addresses(&message(libc::RTM_NEWROUTE, &unicast)));
        assert!(concerns_addresses(&message(libc::RTM_DELROUTE, &local)));
        let both = [message(libc::RTM_NEWROUTE, &unicast), message(libc::RTM_NEWROUTE, &local)].concat();
        assert!(concerns_addresses(&both));
        assert!(concerns_addresses(&message(libc::RTM_NEWADDR, &[0; 8])));
        assert!(concerns_addresses(&[1, 2, 3]), "malformed");
    }
}
