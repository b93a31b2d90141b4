//! Netlink dumps: a request to the kernel, and the messages of its answer (netlink(7)).
//! What does the kernel list?

use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::sockopt;

/// The length of `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32. Netlink uses host byte
/// order.
pub(super) const NLMSG_HEADER_LEN: usize = 16;
/// The longest datagram of a dump, in bytes: NLMSG_GOODSIZE is 8 KiB, or 32 KiB for a reader with a buffer of that
/// size.
pub(super) const DATAGRAM_MAX: usize = 32 * 1024;
/// Attempts at a dump. A dump during which the table changed is inconsistent and is repeated.
const DUMP_ATTEMPTS: usize = 5;

/// Sends a dump request to rtnetlink(7), and calls `on_body` with the body of each answer of the type `message_type`.
pub(super) fn dump_routes(
    kind: u16,
    request: &[u8],
    message_type: u16,
    mut on_body: impl FnMut(&[u8]),
) -> io::Result<()> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut bodies = Vec::new();
        match dump(None, kind, request, message_type, |body| bodies.push(body.to_vec())) {
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

/// Sends a request for one object to rtnetlink(7).
pub(super) fn lookup(kind: u16, request: &[u8], message_type: u16, on_body: impl FnMut(&[u8])) -> io::Result<()> {
    // The acknowledgment ends the answer, as NLMSG_DONE ends a dump.
    exchange(None, (kind, libc::NLM_F_ACK), request, message_type, on_body).map(drop)
}

/// Sends a dump request once. `protocol`: `None` is NETLINK_ROUTE.
pub(super) fn dump(
    protocol: Option<Protocol>,
    kind: u16,
    request: &[u8],
    message_type: u16,
    on_body: impl FnMut(&[u8]),
) -> io::Result<DumpResult> {
    exchange(protocol, (kind, libc::NLM_F_DUMP), request, message_type, on_body)
}

fn exchange(
    protocol: Option<Protocol>,
    (kind, flags): (u16, i32),
    request: &[u8],
    message_type: u16,
    mut on_body: impl FnMut(&[u8]),
) -> io::Result<DumpResult> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    sockopt::enable_strict_dumps(socket.as_fd())?;
    let mut message = Vec::with_capacity(NLMSG_HEADER_LEN + request.len());
    message.extend(u32::try_from(NLMSG_HEADER_LEN + request.len()).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: the socket sends one request only
    message.extend(request);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut interrupted = false;
    loop {
        let (_, length) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let datagram = buffer.get(..length).filter(|datagram| !datagram.is_empty()).ok_or_else(malformed)?;
        let on_message = |kind, body: &[u8]| {
            if kind == message_type {
                on_body(body);
            }
        };
        match walk_messages(datagram, &mut interrupted, on_message)? {
            DumpProgress::More => {}
            DumpProgress::Done if interrupted => return Ok(DumpResult::Interrupted),
            DumpProgress::Done => return Ok(DumpResult::Complete),
        }
    }
}

/// The end of a dump without an error.
pub(super) enum DumpResult {
    Complete,
    /// The table changed meanwhile.
    Interrupted,
}

#[derive(Debug, PartialEq)]
pub(super) enum DumpProgress {
    More,
    Done,
}

/// Parses the messages of one datagram, and calls `on_message` with the type and the body of each.
pub(super) fn walk_messages(
    mut datagram: &[u8],
    interrupted: &mut bool,
    mut on_message: impl FnMut(u16, &[u8]),
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
            _ => on_message(kind, body),
        }
        datagram = datagram.get(aligned(length)..).unwrap_or(&[]);
    }
    Ok(DumpProgress::More)
}

/// Returns the value of the first attribute of a type (`struct rtattr`: length u16, type u16, value).
pub(super) fn attribute(body: &[u8], header: usize, attribute_type: u16) -> Option<&[u8]> {
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

/// Appends an attribute to a request whose length is a multiple of four.
pub(super) fn push_attribute(request: &mut Vec<u8>, attribute_type: u16, value: &[u8]) {
    request.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    request.extend(attribute_type.to_ne_bytes());
    request.extend(value);
    request.resize(aligned(request.len()), 0);
}

/// Rounds a length up to a multiple of four, where the next message or attribute begins.
pub(super) fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")
}
