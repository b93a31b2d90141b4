//! HTTP/1.1 as clients and targets of the simulation write and read it. No code of outgate helps.
//! Where does a message end, and which body does it have?

use std::future::poll_fn;
use std::io;

use tokio::io::ReadBuf;
use tokio::time::sleep;

use super::random::Random;
use crate::net::simulated::SimulatedSocket;

/// The bytes that a peer reads at once.
const PIECE_MAX: usize = 4096;

/// The framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// A body as far as it has arrived.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) data: Vec<u8>,
    /// The bytes that the body takes, with its framing; `None`: it has not ended.
    pub(super) length: Option<usize>,
}

/// Reads what has arrived, up to `max_len` bytes. The number is 0 at the end of the stream.
pub(super) async fn read(io: &SimulatedSocket, buffer: &mut Vec<u8>, max_len: usize) -> io::Result<usize> {
    let mut piece = [0; PIECE_MAX];
    let mut piece = ReadBuf::new(&mut piece[..max_len.clamp(1, PIECE_MAX)]);
    poll_fn(|cx| io.poll_read(cx, &mut piece)).await?;
    buffer.extend_from_slice(piece.filled());
    Ok(piece.filled().len())
}

pub(super) async fn write_all(io: &SimulatedSocket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|cx| io.poll_write(cx, bytes)).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Writes in pieces, some peers slowly. Returns whether every byte was written.
pub(super) async fn write_in_pieces(io: &SimulatedSocket, bytes: &[u8], random: &mut Random) -> bool {
    let (mut rest, is_slow) = (bytes, random.permille(250));
    while !rest.is_empty() {
        let count = if is_slow { random.between(1, 300) } else { 8192 }.min(rest.len());
        if write_all(io, &rest[..count]).await.is_err() {
            return false;
        }
        rest = &rest[count..];
        if is_slow && random.permille(500) {
            sleep(random.millis(0, 60)).await;
        }
    }
    true
}

/// Returns the length of the head with which the bytes begin; `None`: it is not complete.
pub(super) fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Returns the value of a field of a head.
pub(super) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Returns the framing that a head announces; `otherwise`: if it announces none.
pub(super) fn framing(head: &str, otherwise: Framing) -> Framing {
    match (field(head, "transfer-encoding"), field(head, "content-length")) {
        (Some(_), _) => Framing::Chunked,
        (None, Some(length)) => length.parse().map_or(Framing::UntilClose, Framing::Length),
        (None, None) => otherwise,
    }
}

/// Decodes the body at the start of `bytes`.
pub(super) fn decode(bytes: &[u8], framing: Framing) -> Body {
    match framing {
        Framing::None => Body { data: Vec::new(), length: Some(0) },
        Framing::Length(length) => {
            let data = bytes[..length.min(bytes.len())].to_vec();
            let length = (data.len() == length).then_some(length);
            Body { data, length }
        }
        Framing::UntilClose => Body { data: bytes.to_vec(), length: None },
        Framing::Chunked => decode_chunks(bytes).unwrap_or_default(),
    }
}

fn decode_chunks(bytes: &[u8]) -> Option<Body> {
    let (mut body, mut at) = (Body::default(), 0);
    loop {
        let Some(line) = bytes[at..].windows(2).position(|window| window == b"\r\n") else { return Some(body) };
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        at += line + 2;
        if size == 0 {
            body.length = bytes[at..].starts_with(b"\r\n").then_some(at + 2);
            return Some(body);
        }
        let end = (at + size).min(bytes.len());
        body.data.extend_from_slice(&bytes[at..end]);
        if bytes.len() < at + size + 2 {
            return Some(body);
        }
        at += size + 2;
    }
}

/// Encodes a body in chunks of this size.
pub(super) fn encode_chunks(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(size.max(1)) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Returns a body that no other message has.
pub(super) fn body_of(message: u32, length: usize) -> Vec<u8> {
    let text = format!("<{message}>");
    text.bytes().cycle().take(length).collect()
}
