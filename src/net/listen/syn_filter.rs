//! The new TCP handshakes of a listener that another process is about to replace.
//! How is a listener closed without resetting a connection?

use std::io;

use socket2::{SockFilter, SockRef};
use tokio::net::TcpListener;

/// The offset of the flags in the TCP header (RFC 9293 §3.1), in bytes.
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;
const KEEP_ALL: u32 = u32::MAX;
const DROP: u32 = 0;

/// Leaves new handshakes without an answer, while those that have begun can end.
///
/// The kernel assigns a handshake to one of the sockets that share an address, and resets it if that socket closes. A client
/// whose SYN is ignored sends it again after a second, when this socket is gone from the address. The connections of this
/// socket inherit the filter, which drops nothing of them.
pub(super) fn ignore_new(listener: &TcpListener) -> io::Result<()> {
    let [load, and, equals, end] = [
        libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
        libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ]
    .map(|code| code as u16);
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(load, 0, 0, FLAGS),
        SockFilter::new(and, 0, 0, SYN | ACK),
        SockFilter::new(equals, 0, 1, SYN),
        SockFilter::new(end, 0, 0, DROP),
        SockFilter::new(end, 0, 0, KEEP_ALL),
    ])
}
