//! A client that speaks HTTP/2 frame by frame.
//! How is a request written, and which frames respond to it?

pub use super::frames::frame;
use super::{Client, Outgate};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// An HPACK field without indexing or compression (RFC 7541 §6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        length(&mut bytes, text.len());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// An integer with a prefix of 7 bits (RFC 7541 §5.1).
fn length(bytes: &mut Vec<u8>, mut length: usize) {
    if length < 127 {
        return bytes.push(length as u8);
    }
    bytes.push(127);
    length -= 127;
    while length >= 128 {
        bytes.push((length % 128) as u8 | 128);
        length /= 128;
    }
    bytes.push(length as u8);
}

pub fn head(url: &str) -> Vec<u8> {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_at(rest.find('/').unwrap());
    [field(":method", "POST"), field(":scheme", scheme), field(":authority", authority), field(":path", path)].concat()
}

pub fn connect_http2(outgate: &Outgate) -> Client {
    let mut client = outgate.connect();
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    client
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub payload: Vec<u8>,
}

pub fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let end = (9 + length).min(bytes.len());
        frames.push(Frame { kind: bytes[3], payload: bytes[9..end].to_vec() });
        bytes = &bytes[end..];
    }
    frames
}

/// Reads frames up to one of these kinds.
pub fn read_until_frame(client: &mut Client, kinds: &[u8]) -> Vec<Frame> {
    let mut bytes = Vec::new();
    loop {
        bytes.extend(client.read_some());
        let received = frames(&bytes);
        if received.iter().any(|frame| kinds.contains(&frame.kind)) {
            return received;
        }
    }
}

/// The code of the last GOAWAY or of the reset of a stream.
pub fn error_code(frames: &[Frame], kind: u8) -> Option<u32> {
    let at = if kind == GOAWAY { 4 } else { 0 };
    let last = frames.iter().rev().find(|frame| frame.kind == kind)?;
    Some(u32::from_be_bytes(last.payload[at..at + 4].try_into().unwrap()))
}

/// Returns the complete frames, and the number of their bytes.
pub fn whole_frames(bytes: &[u8]) -> (Vec<Frame>, usize) {
    let mut end = 0;
    while let Some([a, b, c]) = bytes.get(end..end + 3)
        && let next = end + 9 + u32::from_be_bytes([0, *a, *b, *c]) as usize
        && next <= bytes.len()
    {
        end = next;
    }
    (frames(&bytes[..end]), end)
}
