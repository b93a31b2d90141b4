//! The framing of an HTTP/1 body: a length, or chunks, decoded strictly (RFC 9112 §6 and §7).
//! Where does this body end?

use bytes::{Buf, Bytes, BytesMut};

/// Limits the hexadecimal digits of a chunk size. No honest client sends more.
const CHUNK_SIZE_DIGITS_MAX: usize = 16;
/// Limits the chunk extensions and trailers of a request, in bytes (RFC 9112 §7.1.1). outgate ignores them.
const REQUEST_OVERHEAD_MAX: usize = 8 * 1024;

/// The framing of a body, and the decoder's position in it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Framing {
    Length(u64),
    Chunked {
        state: ChunkState,
        overhead: usize,
        rules: ChunkRules,
    },
    Ended,
    /// The end of the body, and thus the start of the next request, is unknown.
    Malformed,
}

/// The leniency of a decoder of chunks.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) struct ChunkRules {
    /// Limits the chunk extensions and trailers of one body, in bytes. outgate ignores them.
    overhead_max: usize,
    /// White space may follow the size of a chunk. Some servers pad the size with it, and peers accept that.
    allows_padding: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum ChunkState {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
}

pub(crate) enum Decoded {
    Data(Bytes),
    /// The decoder needs more bytes.
    Incomplete,
    End,
}

/// Chunked framing that breaks RFC 9112 §7.1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidChunk;

impl Framing {
    pub(crate) fn length(length: u64) -> Self {
        if length == 0 { Framing::Ended } else { Framing::Length(length) }
    }

    pub(crate) fn chunked() -> Self {
        let rules = ChunkRules { overhead_max: REQUEST_OVERHEAD_MAX, allows_padding: false };
        Framing::Chunked { state: ChunkState::Size, overhead: 0, rules }
    }

    /// Chunks of a response, in which white space may follow the size. `overhead_max`: of extensions and trailers, in bytes.
    pub(crate) fn padded_chunks(overhead_max: usize) -> Self {
        let rules = ChunkRules { overhead_max, allows_padding: true };
        Framing::Chunked { state: ChunkState::Size, overhead: 0, rules }
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self == Framing::Ended
    }

    /// Returns the number of bytes that remain, or `None` if it is unknown.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self {
            Framing::Length(length) => Some(*length),
            Framing::Chunked { .. } | Framing::Malformed => None,
            Framing::Ended => Some(0),
        }
    }

    /// Returns whether `buffer` seems to hold the rest of the body. A chunked body counts as complete if the buffer
    /// ends like a last chunk.
    pub(crate) fn is_buffered(&self, buffer: &[u8]) -> bool {
        match self {
            Framing::Length(length) => buffer.len() as u64 >= *length,
            Framing::Chunked { .. } => buffer.ends_with(b"\r\n\r\n"),
            Framing::Ended | Framing::Malformed => true,
        }
    }

    /// Decodes the next part of the body. After an error every further call returns an error.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, InvalidChunk> {
        let decoded = self.decode_next(buffer);
        if decoded.is_err() {
            *self = Framing::Malformed;
        }
        decoded
    }

    fn decode_next(&mut self, buffer: &mut BytesMut) -> Result<Decoded, InvalidChunk> {
        match self {
            Framing::Malformed => Err(InvalidChunk),
            Framing::Ended => Ok(Decoded::End),
            Framing::Length(_) if buffer.is_empty() => Ok(Decoded::Incomplete),
            Framing::Length(length) => {
                let data = take_data(buffer, length);
                if *length == 0 {
                    *self = Framing::Ended;
                }
                Ok(Decoded::Data(data))
            }
            Framing::Chunked { .. } => self.decode_chunked(buffer),
        }
    }

    fn decode_chunked(&mut self, buffer: &mut BytesMut) -> Result<Decoded, InvalidChunk> {
        while let Framing::Chunked { state, overhead, rules } = self {
            let ChunkRules { overhead_max, allows_padding } = *rules;
            match state {
                ChunkState::Size => {
                    let Some(line) = take_line(buffer, CHUNK_SIZE_DIGITS_MAX + overhead_max)? else {
                        return Ok(Decoded::Incomplete);
                    };
                    let (size, extension) = parse_chunk_size(&line, allows_padding)?;
                    *overhead += extension;
                    *state = if size == 0 { ChunkState::Trailer } else { ChunkState::Data(size) };
                }
                ChunkState::Data(_) if buffer.is_empty() => return Ok(Decoded::Incomplete),
                ChunkState::Data(length) => {
                    let data = take_data(buffer, length);
                    if *length == 0 {
                        *state = ChunkState::DataEnd;
                    }
                    return Ok(Decoded::Data(data));
                }
                ChunkState::DataEnd => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        *state = ChunkState::Size;
                    }
                    Some(_) => return Err(InvalidChunk),
                    None if !buffer.is_empty() && buffer[0] != b'\r' => return Err(InvalidChunk),
                    None => return Ok(Decoded::Incomplete),
                },
                ChunkState::Trailer => {
                    let Some(line) = take_line(buffer, overhead_max)? else { return Ok(Decoded::Incomplete) };
                    *overhead += line.len() + 2;
                    if line.is_empty() {
                        *self = Framing::Ended;
                        return Ok(Decoded::End);
                    }
                }
            }
            if let Framing::Chunked { overhead, .. } = self
                && *overhead > overhead_max
            {
                return Err(InvalidChunk);
            }
        }
        Ok(Decoded::End)
    }
}

fn take_data(buffer: &mut BytesMut, length: &mut u64) -> Bytes {
    let taken = usize::try_from(*length).unwrap_or(usize::MAX).min(buffer.len());
    *length -= taken as u64;
    buffer.split_to(taken).freeze()
}

/// Takes a line without its CRLF. A bare line feed (RFC 9112 erratum 7633) or carriage return is an error.
fn take_line(buffer: &mut BytesMut, max_len: usize) -> Result<Option<Bytes>, InvalidChunk> {
    let Some(end) = memchr::memchr2(b'\n', b'\r', buffer) else {
        return if buffer.len() > max_len { Err(InvalidChunk) } else { Ok(None) };
    };
    match (buffer[end], buffer.get(end + 1)) {
        (b'\r', Some(b'\n')) => {
            let line = buffer.split_to(end).freeze();
            buffer.advance(2);
            Ok(Some(line))
        }
        (b'\r', None) => Ok(None),
        _ => Err(InvalidChunk),
    }
}

/// Parses `chunk-size [ chunk-ext ]`. Returns the size, and the length of what follows it, which is ignored.
fn parse_chunk_size(line: &[u8], allows_padding: bool) -> Result<(u64, usize), InvalidChunk> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = if allows_padding { line[digits..].trim_ascii() } else { &line[digits..] };
    if digits == 0 || digits > CHUNK_SIZE_DIGITS_MAX || !(extension.is_empty() || extension[0] == b';') {
        return Err(InvalidChunk);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| InvalidChunk)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| InvalidChunk)?;
    Ok((size, line.len() - digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `text` in pieces of `step` bytes. Returns the body and the bytes that follow it.
    fn decode(text: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>), InvalidChunk> {
        let (mut framing, mut buffer, mut body) = (Framing::chunked(), BytesMut::new(), Vec::new());
        let mut pieces = text.chunks(step);
        loop {
            match framing.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::End => {
                    buffer.extend(pieces.flatten());
                    return Ok((body, buffer.to_vec()));
                }
                Decoded::Incomplete => buffer.extend_from_slice(pieces.next().expect("the body ends")),
            }
        }
    }

    #[test]
    fn chunked_decoder_joins_chunks_at_every_split() {
        let text = b"4;a=b\r\nWiki\r\n6\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nHost: x\r\n\r\nNEXT";
        for step in 1..text.len() {
            let (body, rest) = decode(text, step).unwrap();
            assert_eq!(body, b"Wikipedia in \r\n\r\nchunks.");
            assert_eq!(rest, b"NEXT");
        }
    }

    #[test]
    fn chunked_decoder_rejects_malformed_chunks() {
        for text in [
            &b"0x5\r\nhello\r\n0\r\n\r\n"[..],
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5;a=\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloXX0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"10000000000000000\r\n",
            b"fffffffffffffffff\r\n",
            b"\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"0\r\nX: y\n\r\n",
        ] {
            assert_eq!(decode(text, text.len()).unwrap_err(), InvalidChunk, "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn padded_chunks_may_have_white_space_after_the_size() {
        for (text, is_accepted) in [(&b"2 \t\r\nhi\r\n0 ;a\r\n\r\n"[..], true), (b" 2\r\nhi\r\n0\r\n\r\n", false)] {
            let (mut framing, mut buffer) = (Framing::padded_chunks(100), BytesMut::from(text));
            let decoded = framing.decode(&mut buffer);
            assert_eq!(matches!(decoded, Ok(Decoded::Data(data)) if data == "hi"), is_accepted);
        }
    }

    #[test]
    fn chunked_decoder_limits_extensions_and_trailers() {
        let extension = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(9);
        assert!(decode(format!("{extension}0\r\n\r\n").as_bytes(), 64).is_err());
        let trailers = "X: y\r\n".repeat(2000);
        assert!(decode(format!("0\r\n{trailers}\r\n").as_bytes(), 64).is_err());
    }
}
