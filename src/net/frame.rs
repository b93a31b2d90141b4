//! The layout, types and flags of HTTP/2 frames (RFC 9113 §4.1, §6).
//! Which numbers identify a frame?

/// The connection preface of a client (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame header, in bytes.
pub const FRAME_HEADER_LEN: usize = 9;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// The flag of a SETTINGS frame that acknowledges the receiver's settings.
pub const ACK: u8 = 0x1;
/// The flag of a HEADERS or DATA frame that is the last of its stream.
pub const END_STREAM: u8 = 0x1;
/// The flag of a HEADERS or CONTINUATION frame that is the last of its field block.
pub const END_HEADERS: u8 = 0x4;
/// The flag of a HEADERS or DATA frame with padding.
pub const PADDED: u8 = 0x8;
/// The flag of a HEADERS frame with a priority.
pub const HAS_PRIORITY: u8 = 0x20;

/// Reads the stream identifier in the first four bytes, and ignores the reserved bit.
pub(super) fn stream_id(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & (u32::MAX >> 1)
}
