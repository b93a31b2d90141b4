//! HPACK (RFC 7541) as far as it takes to judge fields before h2 sees them.
//! Which field of a header block is malformed, and what can stand in its place?
//!
//! h2 treats a field with an upper-case name or a control character like a block that it cannot decompress, and ends the
//! connection. RFC 9113 §8.1.1 wants the stream to end.

mod huffman;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};

use Fault::Undecodable;
use huffman::decompress;

/// SETTINGS_HEADER_TABLE_SIZE, which we leave as it is by default (RFC 9113 §6.5.2).
const TABLE_MAX: usize = 4096;
/// Bytes of one block when it is decoded, as SETTINGS_MAX_HEADER_LIST_SIZE counts them (RFC 9113 §6.5.2): four times the
/// largest request head. h2 ends the connection for so many, too.
const DECODED_MAX: usize = 256 * 1024;
/// What an entry takes beyond its name and value (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Octets of an integer; h2 takes no more.
const INTEGER_MAX: u32 = 5;

/// The bits that tell how a literal is represented (RFC 7541 §6.2).
const WITH_INDEXING: u8 = 0x40;

/// Why a block ends the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The block cannot be decompressed: the state of the connection is lost with it (RFC 7541 §2.3.3).
    Undecodable,
    /// It decodes to more than [`DECODED_MAX`] (RFC 9113 §10.5.1).
    TooLarge,
}

/// The dynamic table of one direction of a connection.
#[derive(Default)]
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: Option<usize>,
}

struct Entry {
    name: Name,
    size: usize,
    /// Its place in h2's table has a placeholder of the same size.
    is_malformed: bool,
}

/// A name, judged once: a block may name thousands of fields by one entry.
#[derive(Clone)]
struct Name {
    text: Arc<[u8]>,
    class: Class,
    /// h2's table has a placeholder instead, of the same length unless this is empty.
    is_renamed: bool,
}

#[derive(Clone, Copy)]
enum Class {
    Method,
    /// Another pseudo-header field of a request.
    Pseudo,
    Field,
    Malformed,
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
    /// Returns `None` for a block that is well-formed and can be taken as it is. What comes out is at most a few times as
    /// large as the block.
    pub fn check(&mut self, block: &[u8]) -> Result<Option<Repaired>, Fault> {
        let (mut reader, mut replacements, mut is_malformed) = (Reader { block, at: 0 }, Vec::new(), false);
        let mut decoded = 0;
        while let Some(first) = reader.block.get(reader.at).copied() {
            let (size, is_bad) = match first {
                0x80.. => self.indexed(reader.integer(7)?)?,
                0x40..0x80 => self.literal(&mut reader, 6, WITH_INDEXING, &mut replacements)?,
                0x20..0x40 => {
                    self.resize(reader.integer(5)?)?;
                    continue;
                }
                ..0x20 => self.literal(&mut reader, 4, first & 0xf0, &mut replacements)?,
            };
            decoded += size;
            is_malformed |= is_bad;
            if decoded > DECODED_MAX {
                return Err(Fault::TooLarge);
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

    /// Returns the decoded size of the literal, and whether it is malformed.
    fn literal(
        &mut self,
        reader: &mut Reader<'_>,
        prefix: u32,
        kind: u8,
        replacements: &mut Vec<Replacement>,
    ) -> Result<(usize, bool), Fault> {
        let start = reader.at;
        let mut name = match reader.integer(prefix)? {
            0 => Name::new(&reader.string()?),
            index => self.name(index)?,
        };
        let value_start = reader.at;
        let value = reader.string()?;
        let is_malformed = !name.allows(&value);
        if is_malformed {
            let sizes = placeholder(name.text.len(), value.len()).ok_or(Undecodable)?;
            let filler = vec![b'x'; sizes.1];
            // An index stays where it can: a name that is written out for each would make a large block of a small one.
            let keeps_name = if name.is_renamed { !name.text.is_empty() } else { name.allows(&filler) };
            if keeps_name {
                let mut bytes = Vec::new();
                encode_text(&mut bytes, &filler);
                replacements.push((value_start..reader.at, bytes));
            } else {
                replacements.push((start..reader.at, encode(kind, &vec![b'x'; sizes.0], &filler)));
                name.is_renamed = true;
            }
        } else if name.is_renamed {
            replacements.push((start..reader.at, encode(kind, &name.text, &value))); // `:method`, and no longer name
            name.is_renamed = false;
        }
        let size = name.text.len() + value.len() + ENTRY_OVERHEAD;
        if kind == WITH_INDEXING {
            self.insert(Entry { name, size, is_malformed });
        }
        Ok((size, is_malformed))
    }

    /// Returns the decoded size of the field at an index, without a value of the static table, and whether it is malformed.
    fn indexed(&self, index: usize) -> Result<(usize, bool), Fault> {
        match self.entry(index)? {
            Ok(name) => Ok((name.len() + ENTRY_OVERHEAD, false)),
            Err(entry) => Ok((entry.size, entry.is_malformed)),
        }
    }

    fn name(&self, index: usize) -> Result<Name, Fault> {
        Ok(match self.entry(index)? {
            Ok(name) => Name::new(name.as_bytes()),
            Err(entry) => entry.name.clone(),
        })
    }

    /// The name of the static table at an index, or the entry of the dynamic one.
    fn entry(&self, index: usize) -> Result<Result<&'static str, &Entry>, Fault> {
        let index = index.checked_sub(1).ok_or(Undecodable)?;
        if let Some(name) = STATIC_NAMES.get(index) {
            return Ok(Ok(name));
        }
        self.entries.get(index - STATIC_NAMES.len()).map(Err).ok_or(Undecodable)
    }

    fn insert(&mut self, entry: Entry) {
        self.size += entry.size;
        self.entries.push_front(entry);
        self.evict();
    }

    fn resize(&mut self, limit: usize) -> Result<(), Fault> {
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

impl Name {
    fn new(text: &[u8]) -> Self {
        let class = match text {
            b":method" => Class::Method,
            b":scheme" | b":authority" | b":path" | b":protocol" => Class::Pseudo,
            text if HeaderName::from_lowercase(text).is_ok() => Class::Field,
            _ => Class::Malformed,
        };
        Self { text: text.into(), class, is_renamed: false }
    }

    /// Whether h2 can represent the field of a request. What else is malformed it resets the stream for.
    fn allows(&self, value: &[u8]) -> bool {
        match self.class {
            Class::Method => Method::from_bytes(value).is_ok(),
            Class::Pseudo => std::str::from_utf8(value).is_ok(),
            Class::Field => HeaderValue::from_bytes(value).is_ok(),
            Class::Malformed => false,
        }
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
    encode_text(&mut bytes, name);
    encode_text(&mut bytes, value);
    bytes
}

fn encode_text(bytes: &mut Vec<u8>, text: &[u8]) {
    encode_length(bytes, text.len());
    bytes.extend_from_slice(text);
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
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.block.get(self.at).copied().ok_or(Undecodable)?;
        self.at += 1;
        Ok(byte)
    }

    fn integer(&mut self, prefix: u32) -> Result<usize, Fault> {
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

    fn string(&mut self) -> Result<Vec<u8>, Fault> {
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
mod tests;
