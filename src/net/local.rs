//! The addresses of this host, asked of the kernel over rtnetlink(7).
//! Which addresses are ours?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use ipnet::IpNet;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::sockopt;

/// Every address that this host answers for: its interfaces' and, in one prefix each, what a route such as
/// `ip route add local 198.51.100.0/24 dev lo` (AnyIP) gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPrefixes(Vec<IpNet>);

impl LocalPrefixes {
    pub fn contains(&self, ip: IpAddr) -> bool {
        // Aggregated prefixes are disjoint, so the last that starts at or before the address is the only candidate.
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

/// Asks anew: addresses come and go while outgate runs. A sandbox that forbids netlink answers with an error.
pub fn read() -> io::Result<LocalPrefixes> {
    let mut prefixes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; ROUTE_HEADER];
        request[0] = family as u8;
        request[4] = libc::RT_TABLE_LOCAL;
        request[7] = libc::RTN_LOCAL;
        dump(libc::RTM_GETROUTE, &request, libc::RTM_NEWROUTE, |body| prefixes.extend(local_prefix(body)))?;
    }
    Ok(prefixes.into_iter().collect())
}

/// The addresses of global scope, as `ip address show scope global` lists them, that are fit to send from: not those
/// of the loopback interface, and of IPv6 neither temporary, deprecated nor unconfirmed ones.
pub fn global_addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; ADDRESS_HEADER];
        request[0] = family as u8;
        dump(libc::RTM_GETADDR, &request, libc::RTM_NEWADDR, |body| addresses.extend(global_address(body)))?;
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32; in host order, as all of netlink is.
const HEADER: usize = 16;
/// `struct rtmsg`: family, destination length, source length, tos, table, protocol, scope, type: u8; flags u32.
const ROUTE_HEADER: usize = 12;
/// `struct ifaddrmsg`: family, prefix length, flags, scope: u8; interface index u32.
const ADDRESS_HEADER: usize = 8;
/// One datagram of a dump is at most this long (NLMSG_GOODSIZE, 8 KiB, or 32 KiB to those who read so much).
const DATAGRAM: usize = 32 * 1024;
/// A dump that the table changed under is inconsistent and is begun again, this often.
const DUMP_ATTEMPTS: usize = 5;
/// `LOOPBACK_IFINDEX`: `lo` is the first interface of every network namespace.
const LOOPBACK_INTERFACE: u32 = 1;

/// Sends a dump request and hands the body of each answer of type `wanted` to `take`.
fn dump(kind: u16, request: &[u8], wanted: u16, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut bodies = Vec::new();
        match dump_once(kind, request, wanted, &mut bodies) {
            Ok(DumpResult::Complete) => {
                bodies.iter().for_each(|body| take(body));
                return Ok(());
            }
            Ok(DumpResult::Interrupted) => {}
            // A kernel without the family, or with nothing in its local table, has no addresses of it.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the routing table kept changing while it was read"))
}

fn dump_once(kind: u16, request: &[u8], wanted: u16, bodies: &mut Vec<Vec<u8>>) -> io::Result<DumpResult> {
    // Protocol 0 of netlink is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::filter_dumps(socket.as_fd())?;
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: the socket asks but one question
    message.extend(request);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    let mut interrupted = false;
    loop {
        let (_, length) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let datagram = buffer.get(..length).filter(|datagram| !datagram.is_empty()).ok_or_else(malformed)?;
        match messages(datagram, wanted, &mut interrupted, |body| bodies.push(body.to_vec()))? {
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

/// Walks the messages of one datagram.
fn messages(
    mut datagram: &[u8],
    wanted: u16,
    interrupted: &mut bool,
    mut take: impl FnMut(&[u8]),
) -> io::Result<DumpProgress> {
    while !datagram.is_empty() {
        let length = u32_at(datagram, 0).ok_or_else(malformed)? as usize;
        let kind = u16_at(datagram, 4).ok_or_else(malformed)?;
        let flags = u16_at(datagram, 6).ok_or_else(malformed)?;
        let body = datagram.get(HEADER..length).ok_or_else(malformed)?;
        *interrupted |= i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
        match i32::from(kind) {
            // Both carry an errno, negative; of a dump that ended well it is zero.
            libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                let errno = u32_at(body, 0).unwrap_or(0).cast_signed();
                return if errno < 0 { Err(io::Error::from_raw_os_error(-errno)) } else { Ok(DumpProgress::Done) };
            }
            _ if kind == wanted => take(body),
            _ => {}
        }
        datagram = datagram.get(aligned(length)..).unwrap_or(&[]);
    }
    Ok(DumpProgress::More)
}

/// The destination of a route of type local in the table local; broadcast routes stand there too and are not ours.
fn local_prefix(body: &[u8]) -> Option<IpNet> {
    let [_, length, _, _, table, _, _, kind] = *body.first_chunk()?;
    let table =
        attribute(body, ROUTE_HEADER, libc::RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(table));
    if table != u32::from(libc::RT_TABLE_LOCAL) || kind != libc::RTN_LOCAL {
        return None;
    }
    let address = address(attribute(body, ROUTE_HEADER, libc::RTA_DST)?)?;
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

fn global_address(body: &[u8]) -> Option<IpAddr> {
    let [_, _, flags, scope] = *body.first_chunk()?;
    let flags =
        attribute(body, ADDRESS_HEADER, libc::IFA_FLAGS).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(flags));
    // On a point-to-point link IFA_ADDRESS is the peer's, and IFA_LOCAL ours; IPv6 has IFA_ADDRESS alone.
    let ours = attribute(body, ADDRESS_HEADER, libc::IFA_LOCAL)
        .or_else(|| attribute(body, ADDRESS_HEADER, libc::IFA_ADDRESS))?;
    let address = address(ours)?;
    // For IPv4 the bit of IFA_F_TEMPORARY says "secondary", which is as good as any.
    let unfit = libc::IFA_F_TEMPORARY | libc::IFA_F_DEPRECATED | libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;
    let fit = address.is_ipv4() || flags & unfit == 0;
    let global = scope == libc::RT_SCOPE_UNIVERSE && u32_at(body, 4)? != LOOPBACK_INTERFACE && !address.is_loopback();
    (fit && global).then_some(address)
}

/// The value of the first attribute (`struct rtattr`: length u16, type u16, value) of a type.
fn attribute(body: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(header..)?;
    while !rest.is_empty() {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        if u16_at(rest, 2)? == wanted {
            return Some(value);
        }
        rest = rest.get(aligned(length)..).unwrap_or(&[]);
    }
    None
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// Messages and attributes begin at multiples of four.
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
