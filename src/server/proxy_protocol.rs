//! The PROXY protocol, versions 1 and 2: what a load balancer says before anything else of whom a connection is for.
//! Whose connection is this?
//!
//! "The PROXY protocol, Versions 1 & 2", Willy Tarreau. Once asked for, the header is required: to guess whether it is
//! there would let a client write its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// From the connection's start to the header's end.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

const V1_SIGNATURE: &[u8] = b"PROXY ";
/// With its CRLF (§2.1).
const V1_MAX: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and transport, and the length of the rest (§2.2).
const V2_FIXED: usize = 16;
/// Addresses and additional fields; the latter are a few hundred bytes where a certificate is handed on.
const V2_REST_MAX: usize = 4096;
const READ_SIZE: usize = 512;

/// For whom a connection is.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum ProxiedSource {
    /// Whoever sent the header: a health check, or a connection of which it knows nothing else.
    Sender,
    Address(IpAddr),
    /// A process on the sender's own host.
    Unix,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ProxyHeaderError {
    Missing,
    /// Longer than the version allows, or than anybody needs.
    TooLong,
    Line,
    Version(u8),
    Command(u8),
    /// A family or transport that is none, or no stream.
    Family(u8),
    /// Too short for the addresses that it announces.
    Addresses,
    /// The end of the connection, or of our patience.
    Cut,
}

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyHeaderError::Missing => f.write_str("no PROXY protocol header"),
            ProxyHeaderError::TooLong => f.write_str("a PROXY protocol header that is too long"),
            ProxyHeaderError::Line => f.write_str("a malformed PROXY protocol line"),
            ProxyHeaderError::Version(version) => write!(f, "PROXY protocol version {version}"),
            ProxyHeaderError::Command(command) => write!(f, "unknown PROXY protocol command {command}"),
            ProxyHeaderError::Family(family) => write!(f, "unknown PROXY protocol family and transport {family:#04x}"),
            ProxyHeaderError::Addresses => f.write_str("a PROXY protocol header without room for its addresses"),
            ProxyHeaderError::Cut => f.write_str("no whole PROXY protocol header in time"),
        }
    }
}

impl std::error::Error for ProxyHeaderError {}

/// Reads the header off `stream`; what came after it is left in `buffer`.
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<ProxiedSource, ProxyHeaderError> {
    loop {
        if let Some((origin, length)) = parse(buffer)? {
            buffer.advance(length);
            return Ok(origin);
        }
        buffer.reserve(READ_SIZE);
        match stream.read_buf(buffer).await {
            Ok(length) if length > 0 => {}
            _ => return Err(ProxyHeaderError::Cut),
        }
    }
}

/// The origin and the header's length; `None` while it is incomplete. What cannot become one is refused at once.
fn parse(bytes: &[u8]) -> Result<Option<(ProxiedSource, usize)>, ProxyHeaderError> {
    let may_become = |signature: &[u8]| {
        let length = bytes.len().min(signature.len());
        bytes[..length] == signature[..length]
    };
    if may_become(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if may_become(V1_SIGNATURE) {
        parse_v1(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxiedSource, usize)>, ProxyHeaderError> {
    let Some(end) = memchr::memchr(b'\n', &bytes[..bytes.len().min(V1_MAX)]) else {
        return if bytes.len() < V1_MAX { Ok(None) } else { Err(ProxyHeaderError::TooLong) };
    };
    // Behind UNKNOWN anything may stand; in an address no replacement character passes.
    let line = String::from_utf8_lossy(bytes[..end].strip_suffix(b"\r").ok_or(ProxyHeaderError::Line)?);
    let mut words = line.split(' ').skip(1);
    let origin = match words.next() {
        Some("TCP4") => ProxiedSource::Address(v1_source::<Ipv4Addr>(words)?),
        Some("TCP6") => ProxiedSource::Address(v1_source::<Ipv6Addr>(words)?),
        // "The receiver must ignore anything presented before the CRLF is found."
        Some("UNKNOWN") => ProxiedSource::Sender,
        _ => return Err(ProxyHeaderError::Line),
    };
    Ok(Some((origin, end + 1)))
}

/// Source and destination, address and port, and nothing behind.
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

/// Decimal, without a sign and leading zeros.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port.to_string() == text)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxiedSource, usize)>, ProxyHeaderError> {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED) else { return Ok(None) };
    let (version, command, family) = (fixed[12] >> 4, fixed[12] & 0xf, fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    match (version, command) {
        (2, 0 | 1) => {}
        (2, command) => return Err(ProxyHeaderError::Command(command)),
        (version, _) => return Err(ProxyHeaderError::Version(version)),
    }
    if length > V2_REST_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    let addresses = match family {
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        // A health check may leave anything here (§2.2).
        _ if command == 0 => 0,
        family => return Err(ProxyHeaderError::Family(family)),
    };
    if command == 1 && length < addresses {
        return Err(ProxyHeaderError::Addresses);
    }
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    let origin = match (command, family) {
        (1, 0x11) => v2_address::<4>(rest).map(IpAddr::from),
        (1, 0x21) => v2_address::<16>(rest).map(|bytes| IpAddr::from(bytes).to_canonical()),
        (1, 0x31) => return Ok(Some((ProxiedSource::Unix, V2_FIXED + length))),
        _ => None,
    };
    Ok(Some((origin.map_or(ProxiedSource::Sender, ProxiedSource::Address), V2_FIXED + length)))
}

/// The source stands first.
fn v2_address<const LENGTH: usize>(rest: &[u8]) -> Option<[u8; LENGTH]> {
    rest.first_chunk().copied()
}

/// Whatever more comes, a verdict stays.
#[cfg(any(test, fuzzing))]
pub fn introductions(data: &[u8]) {
    let mut verdict = None;
    for end in 0..=data.len() {
        let found = parse(&data[..end]);
        match &verdict {
            Some(verdict) => assert_eq!(verdict, &found, "after {end} bytes"),
            None if found != Ok(None) => verdict = Some(found),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
