//! The PROXY protocol, versions 1 and 2: the header in which a load balancer names the client of a connection.
//! Which client address does a PROXY header name?
//!
//! "The PROXY protocol, Versions 1 & 2", Willy Tarreau. The header is required on a listener that expects it: if it
//! were optional, a client could write its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The time from the connection's start to the header's end.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

const V1_SIGNATURE: &[u8] = b"PROXY ";
/// The maximum length, CRLF included (§2.1).
const V1_LEN_MAX: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The length of signature, version and command, family and transport, and the length field (§2.2).
const V2_HEADER_LEN: usize = 16;
/// Limits addresses and additional fields. The latter take a few hundred bytes if they carry a certificate.
const V2_PAYLOAD_MAX: usize = 4096;
const READ_SIZE: usize = 512;

/// The client of a connection, as the PROXY header names it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum ProxiedSource {
    /// The sender of the header: a health check, or a connection whose client the sender does not know.
    Sender,
    Address(IpAddr),
    /// A process on the sender's host.
    Unix,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ProxyHeaderError {
    Missing,
    /// The header is longer than the version or outgate allows.
    TooLong,
    Line,
    Version(u8),
    Command(u8),
    /// The family or transport is unknown, or is not a stream.
    Family(u8),
    /// The header is too short for the addresses of its family.
    Addresses,
    /// The connection ended or timed out before the header was complete.
    Cut,
}

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyHeaderError::Missing => f.write_str("the client sent no PROXY protocol header"),
            ProxyHeaderError::TooLong => f.write_str("the PROXY protocol header is too long"),
            ProxyHeaderError::Line => f.write_str("the PROXY protocol line is malformed"),
            ProxyHeaderError::Version(version) => write!(f, "PROXY protocol version {version} is not supported"),
            ProxyHeaderError::Command(command) => write!(f, "the PROXY protocol command {command} is unknown"),
            ProxyHeaderError::Family(family) => {
                write!(f, "the PROXY protocol family and transport {family:#04x} are unknown")
            }
            ProxyHeaderError::Addresses => f.write_str("the PROXY protocol header is too short for its addresses"),
            ProxyHeaderError::Cut => f.write_str("the client sent no complete PROXY protocol header in time"),
        }
    }
}

impl std::error::Error for ProxyHeaderError {}

/// Reads the header from `stream`. The bytes that follow the header are left in `buffer`.
pub(super) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<ProxiedSource, ProxyHeaderError> {
    loop {
        if let Some((source, length)) = parse(buffer)? {
            buffer.advance(length);
            return Ok(source);
        }
        buffer.reserve(READ_SIZE);
        match stream.read_buf(buffer).await {
            Ok(length) if length > 0 => {}
            _ => return Err(ProxyHeaderError::Cut),
        }
    }
}

/// Returns the source and the header's length, or `None` while the header is incomplete. Bytes that cannot become a
/// header are refused at once.
fn parse(bytes: &[u8]) -> Result<Option<(ProxiedSource, usize)>, ProxyHeaderError> {
    let is_prefix_of = |signature: &[u8]| {
        let length = bytes.len().min(signature.len());
        bytes[..length] == signature[..length]
    };
    if is_prefix_of(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if is_prefix_of(V1_SIGNATURE) {
        parse_v1(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxiedSource, usize)>, ProxyHeaderError> {
    let Some(end) = memchr::memchr(b'\n', &bytes[..bytes.len().min(V1_LEN_MAX)]) else {
        return if bytes.len() < V1_LEN_MAX { Ok(None) } else { Err(ProxyHeaderError::TooLong) };
    };
    // Any bytes may follow UNKNOWN. The lossy conversion is safe: no address contains a replacement character.
    let line = String::from_utf8_lossy(bytes[..end].strip_suffix(b"\r").ok_or(ProxyHeaderError::Line)?);
    let mut words = line.split(' ').skip(1);
    let source = match words.next() {
        Some("TCP4") => ProxiedSource::Address(v1_source::<Ipv4Addr>(words)?),
        Some("TCP6") => ProxiedSource::Address(v1_source::<Ipv6Addr>(words)?),
        // "The receiver must ignore anything presented before the CRLF is found."
        Some("UNKNOWN") => ProxiedSource::Sender,
        _ => return Err(ProxyHeaderError::Line),
    };
    Ok(Some((source, end + 1)))
}

/// Parses source and destination, each with address and port, and returns the source. Nothing may follow them.
fn v1_source<'a, A: std::str::FromStr + Into<IpAddr>>(
    words: impl Iterator<Item = &'a str>,
) -> Result<IpAddr, ProxyHeaderError> {
    let words: Vec<&str> = words.take(5).collect();
    let [source, destination, source_port, destination_port] = words[..] else { return Err(ProxyHeaderError::Line) };
    let address = |text: &str| text.parse::<A>().map(Into::<IpAddr>::into).map_err(|_| ProxyHeaderError::Line);
    let source = address(source)?;
    address(destination)?;
    match is_port(source_port) && is_port(destination_port) {
        true => Ok(source.to_canonical()),
        false => Err(ProxyHeaderError::Line),
    }
}

/// Returns whether `text` is a decimal port without a sign or leading zeros.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port.to_string() == text)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxiedSource, usize)>, ProxyHeaderError> {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_HEADER_LEN) else { return Ok(None) };
    let (version, command, family) = (fixed[12] >> 4, fixed[12] & 0xf, fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    match (version, command) {
        (2, 0 | 1) => {}
        (2, command) => return Err(ProxyHeaderError::Command(command)),
        (version, _) => return Err(ProxyHeaderError::Version(version)),
    }
    if length > V2_PAYLOAD_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    let addresses = match family {
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        // The family of a LOCAL command, such as a health check, is ignored (§2.2).
        _ if command == 0 => 0,
        family => return Err(ProxyHeaderError::Family(family)),
    };
    if command == 1 && length < addresses {
        return Err(ProxyHeaderError::Addresses);
    }
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    let source = match (command, family) {
        (1, 0x11) => v2_source::<4>(rest).map(IpAddr::from),
        (1, 0x21) => v2_source::<16>(rest).map(|bytes| IpAddr::from(bytes).to_canonical()),
        (1, 0x31) => return Ok(Some((ProxiedSource::Unix, V2_HEADER_LEN + length))),
        _ => None,
    };
    Ok(Some((source.map_or(ProxiedSource::Sender, ProxiedSource::Address), V2_HEADER_LEN + length)))
}

/// Returns the source address, which comes first.
fn v2_source<const LENGTH: usize>(rest: &[u8]) -> Option<[u8; LENGTH]> {
    rest.first_chunk().copied()
}

/// Checks that further bytes never change the result of the parser.
#[cfg(any(test, fuzzing))]
pub fn proxy_headers(data: &[u8]) {
    let mut result = None;
    for end in 0..=data.len() {
        let found = parse(&data[..end]);
        match &result {
            Some(result) => assert_eq!(result, &found, "after {end} bytes"),
            None if found != Ok(None) => result = Some(found),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
