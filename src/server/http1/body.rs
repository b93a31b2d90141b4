//! The body of an HTTP/1 request, decoded strictly.
//! Where does this body end?

use bytes::{Buf, Bytes, BytesMut};

/// A chunk size in hexadecimal: more digits could only be an attack on the parser.
const SIZE_DIGITS_MAX: usize = 16;
/// Chunk extensions and trailers of one body, in bytes; nobody reads them (RFC 9112 §7.1.1 asks for a limit).
const SURPLUS_MAX: usize = 8 * 1024;

/// How much of a body is still to come.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Framing {
    Length(u64),
    Chunked {
        state: ChunkState,
        surplus: usize,
    },
    Ended,
    /// Where the body ends is unknown, and so is where the next request begins.
    Malformed,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum ChunkState {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
}

pub(super) enum Decoded {
    Data(Bytes),
    /// More bytes must be read first.
    Incomplete,
    End,
}

/// Chunked framing that breaks RFC 9112 §7.1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidChunk;

impl Framing {
    pub(super) fn length(length: u64) -> Self {
        if length == 0 { Framing::Ended } else { Framing::Length(length) }
    }

    pub(super) fn chunked() -> Self {
        Framing::Chunked { state: ChunkState::Size, surplus: 0 }
    }

    pub(super) fn has_ended(&self) -> bool {
        *self == Framing::Ended
    }

    /// What is certain about the length; `None` for chunked.
    pub(super) fn remaining(&self) -> Option<u64> {
        match self {
            Framing::Length(length) => Some(*length),
            Framing::Chunked { .. } | Framing::Malformed => None,
            Framing::Ended => Some(0),
        }
    }

    /// Whether the rest of the body stands in `buffer`, as far as is easily seen: of chunks, whether it ends like the last.
    pub(super) fn is_whole(&self, buffer: &[u8]) -> bool {
        match self {
            Framing::Length(length) => buffer.len() as u64 >= *length,
            Framing::Chunked { .. } => buffer.ends_with(b"\r\n\r\n"),
            Framing::Ended | Framing::Malformed => true,
        }
    }

    /// After an error, every call gives one.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, InvalidChunk> {
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
        while let Framing::Chunked { state, surplus } = self {
            match state {
                ChunkState::Size => {
                    let Some(line) = take_line(buffer, SIZE_DIGITS_MAX + SURPLUS_MAX)? else {
                        return Ok(Decoded::Incomplete);
                    };
                    let (size, extension) = size_line(&line)?;
                    *surplus += extension;
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
                    let Some(line) = take_line(buffer, SURPLUS_MAX)? else { return Ok(Decoded::Incomplete) };
                    *surplus += line.len() + 2;
                    if line.is_empty() {
                        *self = Framing::Ended;
                        return Ok(Decoded::End);
                    }
                }
            }
            if let Framing::Chunked { surplus, .. } = self
                && *surplus > SURPLUS_MAX
            {
                return Err(InvalidChunk);
            }
        }
        Ok(Decoded::End)
    }
}

fn take_data(buffer: &mut BytesMut, length: &mut u64) -> Bytes {
    let most = usize::try_from(*length).unwrap_or(usize::MAX).min(buffer.len());
    *length -= most as u64;
    buffer.split_to(most).freeze()
}

/// A line without its CRLF. A bare line feed is an error here (RFC 9112 erratum 7633), a bare carriage return too.
fn take_line(buffer: &mut BytesMut, longest: usize) -> Result<Option<Bytes>, InvalidChunk> {
    let Some(end) = memchr::memchr2(b'\n', b'\r', buffer) else {
        return if buffer.len() > longest { Err(InvalidChunk) } else { Ok(None) };
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

/// chunk-size [ chunk-ext ]: digits, then nothing or an extension, which is skipped.
fn size_line(line: &[u8]) -> Result<(u64, usize), InvalidChunk> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = &line[digits..];
    if digits == 0 || digits > SIZE_DIGITS_MAX || !(extension.is_empty() || extension[0] == b';') {
        return Err(InvalidChunk);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| InvalidChunk)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| InvalidChunk)?;
    Ok((size, extension.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `step` bytes; gives the body and what is left over.
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
    fn chunks_are_joined_however_they_arrive() {
        let text = b"4;a=b\r\nWiki\r\n6\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nHost: x\r\n\r\nNEXT";
        for step in 1..text.len() {
            let (body, rest) = decode(text, step).unwrap();
            assert_eq!(body, b"Wikipedia in \r\n\r\nchunks.");
            assert_eq!(rest, b"NEXT");
        }
    }

    #[test]
    fn loose_chunks_are_refused() {
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
    fn extensions_and_trailers_have_an_end() {
        let extension = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(9);
        assert!(decode(format!("{extension}0\r\n\r\n").as_bytes(), 64).is_err());
        let trailers = "X: y\r\n".repeat(2000);
        assert!(decode(format!("0\r\n{trailers}\r\n").as_bytes(), 64).is_err());
    }
}
