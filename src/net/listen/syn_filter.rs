//! A socket filter that drops new TCP handshakes of a listener that another process replaces.
//! How is a listener closed without resetting a connection?

use std::io;

use socket2::{SockFilter, SockRef};
use tokio::net::TcpListener;

/// The offset of the flags in the TCP header (RFC 9293 §3.1), in bytes.
const TCP_FLAGS_OFFSET: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;
const ACCEPT_PACKET: u32 = u32::MAX;
const DROP_PACKET: u32 = 0;

/// Drops new handshakes; those in progress can complete.
///
/// The kernel assigns a handshake to one of the sockets that share an address, and resets it if that socket closes. A
/// client whose SYN is dropped retransmits it after a second, when this socket has been closed. Connections of this
/// socket inherit the filter, but it matches none of their packets.
pub(super) fn drop_syn(listener: &TcpListener) -> io::Result<()> {
    let [load, and, equals, end] = [
        libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
        libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ]
    .map(|code| code as u16);
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(load, 0, 0, TCP_FLAGS_OFFSET),
        SockFilter::new(and, 0, 0, SYN | ACK),
        SockFilter::new(equals, 0, 1, SYN),
        SockFilter::new(end, 0, 0, DROP_PACKET),
        SockFilter::new(end, 0, 0, ACCEPT_PACKET),
    ])
}
