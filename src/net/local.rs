//! Reads the addresses of this host from the kernel over rtnetlink(7).
//! Which addresses belong to this host?

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::sockopt;
use crate::policy::addresses::ip_from_octets;

/// All addresses that this host accepts packets for. These are the addresses of its interfaces, and the prefixes of
/// local routes such as `ip route add local 198.51.100.0/24 dev lo` (AnyIP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPrefixes(Vec<IpNet>);

impl LocalPrefixes {
    pub fn contains(&self, ip: IpAddr) -> bool {
        // Aggregated prefixes are disjoint, so only the last one that starts at or before the address can contain it.
        let after = self.0.partition_point(|prefix| prefix.network() <= ip);
        after.checked_sub(1).is_some_and(|index| self.0[index].contains(&ip))
    }

    pub fn prefixes(&self) -> &[IpNet] {
        &self.0
    }
}

impl FromIterator<IpNet> for LocalPrefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut prefixes = IpNet::aggregate(&prefixes.into_iter().collect());
        prefixes.sort_unstable();
        Self(prefixes)
    }
}

/// Reads the local addresses from the kernel. They may change while outgate runs. A sandbox that forbids netlink causes
/// an error.
pub fn read() -> io::Result<LocalPrefixes> {
    let mut prefixes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; RTMSG_LEN];
        request[0] = family as u8;
        request[4] = libc::RT_TABLE_LOCAL;
        request[7] = libc::RTN_LOCAL;
        dump(libc::RTM_GETROUTE, &request, libc::RTM_NEWROUTE, |body| prefixes.extend(local_prefix(body)))?;
    }
    Ok(prefixes.into_iter().collect())
}

/// Returns the addresses of global scope that are suitable sources, as in `ip address show scope global`. It leaves out
/// those of the loopback interface, and temporary, deprecated or tentative IPv6 addresses.
pub fn global_addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; IFADDRMSG_LEN];
        request[0] = family as u8;
        dump(libc::RTM_GETADDR, &request, libc::RTM_NEWADDR, |body| addresses.extend(global_address(body)))?;
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The length of `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32. Netlink uses host byte
/// order.
const NLMSG_HEADER_LEN: usize = 16;
/// The length of `struct rtmsg`: family, destination length, source length, tos, table, protocol, scope, type: u8;
/// flags u32.
const RTMSG_LEN: usize = 12;
/// The length of `struct ifaddrmsg`: family, prefix length, flags, scope: u8; interface index u32.
const IFADDRMSG_LEN: usize = 8;
/// The longest datagram of a dump, in bytes: NLMSG_GOODSIZE is 8 KiB, or 32 KiB for a reader with a buffer of that
/// size.
const DATAGRAM_MAX: usize = 32 * 1024;
/// Attempts at a dump. A dump during which the table changed is inconsistent and is repeated.
const DUMP_ATTEMPTS: usize = 5;
/// The index of `lo` (`LOOPBACK_IFINDEX`): it is the first interface of every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Sends a dump request, and calls `on_body` with the body of each answer of the type `message_type`.
fn dump(kind: u16, request: &[u8], message_type: u16, mut on_body: impl FnMut(&[u8])) -> io::Result<()> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut bodies = Vec::new();
        match dump_once(kind, request, message_type, &mut bodies) {
            Ok(DumpResult::Complete) => {
                bodies.iter().for_each(|body| on_body(body));
                return Ok(());
            }
            Ok(DumpResult::Interrupted) => {}
            // A kernel without the family, or without local routes of it, has no addresses of the family.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the routing table changed during each attempt to read it"))
}

fn dump_once(kind: u16, request: &[u8], message_type: u16, bodies: &mut Vec<Vec<u8>>) -> io::Result<DumpResult> {
    // Netlink protocol 0 is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::enable_strict_dumps(socket.as_fd())?;
    let mut message = Vec::with_capacity(NLMSG_HEADER_LEN + request.len());
    message.extend(u32::try_from(NLMSG_HEADER_LEN + request.len()).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: the socket sends one request only
    message.extend(request);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut interrupted = false;
    loop {
        let (_, length) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let datagram = buffer.get(..length).filter(|datagram| !datagram.is_empty()).ok_or_else(malformed)?;
        match walk_messages(datagram, message_type, &mut interrupted, |body| bodies.push(body.to_vec()))? {
            DumpProgress::More => {}
            DumpProgress::Done if interrupted => return Ok(DumpResult::Interrupted),
            DumpProgress::Done => return Ok(DumpResult::Complete),
        }
    }
}

enum DumpResult {
    Complete,
    Interrupted,
}

#[derive(Debug, PartialEq)]
enum DumpProgress {
    More,
    Done,
}

/// Parses the messages of one datagram.
fn walk_messages(
    mut datagram: &[u8],
    message_type: u16,
    interrupted: &mut bool,
    mut on_body: impl FnMut(&[u8]),
) -> io::Result<DumpProgress> {
    while !datagram.is_empty() {
        let length = u32_at(datagram, 0).ok_or_else(malformed)? as usize;
        let kind = u16_at(datagram, 4).ok_or_else(malformed)?;
        let flags = u16_at(datagram, 6).ok_or_else(malformed)?;
        let body = datagram.get(NLMSG_HEADER_LEN..length).ok_or_else(malformed)?;
        *interrupted |= i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
        match i32::from(kind) {
            // Both types carry a negative errno. The errno of a successful dump is zero.
            libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                let errno = u32_at(body, 0).unwrap_or(0).cast_signed();
                return if errno < 0 { Err(io::Error::from_raw_os_error(-errno)) } else { Ok(DumpProgress::Done) };
            }
            _ if kind == message_type => on_body(body),
            _ => {}
        }
        datagram = datagram.get(aligned(length)..).unwrap_or(&[]);
    }
    Ok(DumpProgress::More)
}

/// Returns the destination of a route of type local in the local table. The table also has broadcast routes, which are
/// skipped.
fn local_prefix(body: &[u8]) -> Option<IpNet> {
    let [_, length, _, _, table, _, _, kind] = *body.first_chunk()?;
    let table =
        attribute(body, RTMSG_LEN, libc::RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(table));
    if table != u32::from(libc::RT_TABLE_LOCAL) || kind != libc::RTN_LOCAL {
        return None;
    }
    let address = ip_from_octets(attribute(body, RTMSG_LEN, libc::RTA_DST)?)?;
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

fn global_address(body: &[u8]) -> Option<IpAddr> {
    let [_, _, flags, scope] = *body.first_chunk()?;
    let flags =
        attribute(body, IFADDRMSG_LEN, libc::IFA_FLAGS).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(flags));
    // On a point-to-point link, IFA_LOCAL is this host's address, and IFA_ADDRESS the peer's. IPv6 has IFA_ADDRESS
    // only.
    let octets = attribute(body, IFADDRMSG_LEN, libc::IFA_LOCAL)
        .or_else(|| attribute(body, IFADDRMSG_LEN, libc::IFA_ADDRESS))?;
    let address = ip_from_octets(octets)?;
    // For IPv4 the bit of IFA_F_TEMPORARY means "secondary". A secondary address is usable.
    let unusable_flags = libc::IFA_F_TEMPORARY | libc::IFA_F_DEPRECATED | libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;
    let is_usable = address.is_ipv4() || flags & unusable_flags == 0;
    let is_global = scope == libc::RT_SCOPE_UNIVERSE && u32_at(body, 4)? != LOOPBACK_IFINDEX && !address.is_loopback();
    (is_usable && is_global).then_some(address)
}

/// Returns the value of the first attribute of a type (`struct rtattr`: length u16, type u16, value).
fn attribute(body: &[u8], header: usize, attribute_type: u16) -> Option<&[u8]> {
    let mut rest = body.get(header..)?;
    while !rest.is_empty() {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        if u16_at(rest, 2)? == attribute_type {
            return Some(value);
        }
        rest = rest.get(aligned(length)..).unwrap_or(&[]);
    }
    None
}

/// Rounds a length up to a multiple of four, where the next message or attribute begins.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")
}

#[cfg(test)]
mod tests;
