//! HPACK (RFC 7541) as far as it takes to judge fields before h2 sees them.
//! Which field of a header block is malformed, and what can stand in its place?
//!
//! h2 treats a field with an upper-case name or a control character like a block that it cannot decompress, and ends the
//! connection. RFC 9113 §8.1.1 wants the stream to end.

mod huffman;

use std::collections::VecDeque;
use std::ops::Range;

use http::{HeaderName, HeaderValue, Method};

use huffman::decompress;

/// SETTINGS_HEADER_TABLE_SIZE, which we leave as it is by default (RFC 9113 §6.5.2).
const TABLE_MAX: usize = 4096;
/// What an entry takes beyond its name and value (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Octets of an integer; h2 takes no more.
const INTEGER_MAX: u32 = 5;

/// The bits that tell how a literal is represented (RFC 7541 §6.2).
const WITH_INDEXING: u8 = 0x40;

/// The block cannot be decompressed: the state of the connection is lost with it (RFC 7541 §2.3.3).
#[derive(Debug, PartialEq, Eq)]
pub struct Undecodable;

/// The dynamic table of one direction of a connection.
#[derive(Default)]
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: Option<usize>,
}

struct Entry {
    name: Box<[u8]>,
    size: usize,
    /// Its place in h2's table has a placeholder of the same size, with another name.
    is_malformed: bool,
}

/// A block with a placeholder in the place of each malformed field.
#[derive(Debug, PartialEq, Eq)]
pub struct Repaired {
    pub block: Vec<u8>,
    /// `false`: it names a field by a malformed one of before, but is itself as it should be.
    pub is_malformed: bool,
}

/// One literal, and what takes its place.
type Replacement = (Range<usize>, Vec<u8>);

impl Decoder {
    /// Returns `None` for a block that is well-formed and can be taken as it is.
    pub fn check(&mut self, block: &[u8]) -> Result<Option<Repaired>, Undecodable> {
        let (mut reader, mut replacements, mut is_malformed) = (Reader { block, at: 0 }, Vec::new(), false);
        while let Some(first) = reader.block.get(reader.at).copied() {
            match first {
                0x80.. => is_malformed |= self.entry(reader.integer(7)?)?.1,
                0x40..0x80 => is_malformed |= self.literal(&mut reader, 6, WITH_INDEXING, &mut replacements)?,
                0x20..0x40 => self.resize(reader.integer(5)?)?,
                ..0x20 => is_malformed |= self.literal(&mut reader, 4, first & 0xf0, &mut replacements)?,
            }
        }
        if replacements.is_empty() && !is_malformed {
            return Ok(None);
        }
        let (mut repaired, mut copied) = (Vec::with_capacity(block.len()), 0);
        for (place, bytes) in replacements {
            repaired.extend_from_slice(&block[copied..place.start]);
            repaired.extend(bytes);
            copied = place.end;
        }
        repaired.extend_from_slice(&block[copied..]);
        Ok(Some(Repaired { block: repaired, is_malformed }))
    }

    /// Returns whether the literal is malformed.
    fn literal(
        &mut self,
        reader: &mut Reader<'_>,
        prefix: u32,
        kind: u8,
        replacements: &mut Vec<Replacement>,
    ) -> Result<bool, Undecodable> {
        let start = reader.at;
        let (name, is_renamed) = match reader.integer(prefix)? {
            0 => (reader.string()?, false),
            index => {
                let (name, is_malformed) = self.entry(index)?;
                (name.to_vec(), is_malformed)
            }
        };
        let value = reader.string()?;
        let is_malformed = !is_well_formed(&name, &value);
        if is_malformed {
            let sizes = placeholder(name.len(), value.len()).ok_or(Undecodable)?;
            replacements.push((start..reader.at, encode(kind, &vec![b'x'; sizes.0], &vec![b'x'; sizes.1])));
        } else if is_renamed {
            replacements.push((start..reader.at, encode(kind, &name, &value)));
        }
        if kind == WITH_INDEXING {
            let size = name.len() + value.len() + ENTRY_OVERHEAD;
            self.insert(Entry { name: name.into(), size, is_malformed });
        }
        Ok(is_malformed)
    }

    /// The name at an index, and whether the entry is malformed.
    fn entry(&self, index: usize) -> Result<(&[u8], bool), Undecodable> {
        let index = index.checked_sub(1).ok_or(Undecodable)?;
        if let Some(name) = STATIC_NAMES.get(index) {
            return Ok((name.as_bytes(), false));
        }
        let entry = self.entries.get(index - STATIC_NAMES.len()).ok_or(Undecodable)?;
        Ok((&entry.name, entry.is_malformed))
    }

    fn insert(&mut self, entry: Entry) {
        self.size += entry.size;
        self.entries.push_front(entry);
        self.evict();
    }

    fn resize(&mut self, limit: usize) -> Result<(), Undecodable> {
        if limit > TABLE_MAX {
            return Err(Undecodable);
        }
        self.limit = Some(limit);
        self.evict();
        Ok(())
    }

    /// An entry that is larger than the table empties it (RFC 7541 §4.4).
    fn evict(&mut self) {
        while self.size > self.limit.unwrap_or(TABLE_MAX)
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size;
        }
    }
}

/// Whether h2 can represent the field of a request. What else is malformed it resets the stream for.
fn is_well_formed(name: &[u8], value: &[u8]) -> bool {
    match name {
        b":method" => Method::from_bytes(value).is_ok(),
        b":scheme" | b":authority" | b":path" | b":protocol" => std::str::from_utf8(value).is_ok(),
        name => HeaderName::from_lowercase(name).is_ok() && HeaderValue::from_bytes(value).is_ok(),
    }
}

/// Lengths of a name and a value that take as much of the table as these; a name cannot be empty. What is larger than the
/// table empties it, however large.
fn placeholder(name: usize, value: usize) -> Option<(usize, usize)> {
    match (name, value) {
        (0, 0) => None,
        (0, value) => Some((1, (value - 1).min(TABLE_MAX))),
        (name, value) => Some((name.min(TABLE_MAX), value.min(TABLE_MAX))),
    }
}

/// A literal whose name is no index, and nothing compressed.
pub fn encode(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    for text in [name, value] {
        encode_length(&mut bytes, text.len());
        bytes.extend_from_slice(text);
    }
    bytes
}

/// An integer with a prefix of 7 bits (RFC 7541 §5.1).
fn encode_length(bytes: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else { return bytes.push(length as u8) };
    bytes.push(127);
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, Undecodable> {
        let byte = self.block.get(self.at).copied().ok_or(Undecodable)?;
        self.at += 1;
        Ok(byte)
    }

    fn integer(&mut self, prefix: u32) -> Result<usize, Undecodable> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for octet in 0..INTEGER_MAX - 1 {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << (7 * octet);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Undecodable)
    }

    fn string(&mut self) -> Result<Vec<u8>, Undecodable> {
        let is_compressed = self.block.get(self.at).is_some_and(|byte| byte & 0x80 != 0);
        let length = self.integer(7)?;
        let end = self.at.checked_add(length).ok_or(Undecodable)?;
        let text = self.block.get(self.at..end).ok_or(Undecodable)?;
        self.at = end;
        if is_compressed { decompress(text) } else { Ok(text.to_vec()) }
    }
}

/// The names of the static table (RFC 7541 Appendix A).
static STATIC_NAMES: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::net::hpack) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    fn names(decoder: &Decoder) -> Vec<(String, usize)> {
        decoder.entries.iter().map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), entry.size)).collect()
    }

    /// RFC 7541 Appendix C.3 and C.4: the same requests, without and with Huffman coding.
    #[test]
    fn requests_of_the_rfc_are_well_formed_and_fill_the_table() {
        for blocks in [
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
        ] {
            let mut decoder = Decoder::default();
            for block in blocks {
                assert_eq!(decoder.check(&hex(block)), Ok(None), "{block}");
            }
            let expected = [("custom-key", 54), ("cache-control", 53), (":authority", 57)];
            assert_eq!(names(&decoder), expected.map(|(name, size)| (name.to_owned(), size)));
        }
    }

    #[test]
    fn malformed_field_gets_a_placeholder_of_the_same_size() {
        let mut decoder = Decoder::default();
        let bad = encode(WITH_INDEXING, b"X-Bad", b"value");
        let good = encode(WITH_INDEXING, b"x-good", b"1");
        let repaired = decoder.check(&[good.clone(), bad].concat()).unwrap().unwrap();
        let placeholder = encode(WITH_INDEXING, b"xxxxx", b"xxxxx");
        assert_eq!(repaired, Repaired { block: [good, placeholder].concat(), is_malformed: true });
        // By its index it is malformed again.
        assert!(decoder.check(&[0x80 | 62]).unwrap().unwrap().is_malformed);
        assert_eq!(decoder.check(&[0x80 | 63]), Ok(None));

        // A malformed value under a good name: who names the next field by it means the good name.
        let mut decoder = Decoder::default();
        assert!(decoder.check(&encode(WITH_INDEXING, b"x-name", b"a\0")).unwrap().unwrap().is_malformed);
        let by_name = [&[WITH_INDEXING | 62][..], &[1, b'v']].concat();
        let repaired = decoder.check(&by_name).unwrap().unwrap();
        assert_eq!(repaired, Repaired { block: encode(WITH_INDEXING, b"x-name", b"v"), is_malformed: false });
        assert_eq!(decoder.check(&[0x80 | 62]), Ok(None));
    }

    #[test]
    fn fields_that_h2_would_end_the_connection_for_are_malformed() {
        for (name, value) in [
            ("X", "y"),
            ("", "y"),
            ("x y", "z"),
            (":unknown", "x"),
            (":status", "200"),
            (":method", "a b"),
            (":method", ""),
            ("x", "a\nb"),
            ("x", "\0"),
            ("x", "\x7f"),
        ] {
            let repaired = Decoder::default().check(&encode(0, name.as_bytes(), value.as_bytes())).unwrap();
            assert!(repaired.is_some_and(|repaired| repaired.is_malformed), "{name}: {value:?}");
        }
        assert_eq!(Decoder::default().check(&encode(0, b"x", " \u{e9} ".as_bytes())), Ok(None));
    }

    #[test]
    fn block_that_cannot_be_decompressed_is_told_apart() {
        for block in
            [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x80 | 62], &[0, 5, b'x'], &[0x3f, 0xe2, 0x1f]]
        {
            assert_eq!(Decoder::default().check(block), Err(Undecodable), "{block:?}");
        }
    }
}
