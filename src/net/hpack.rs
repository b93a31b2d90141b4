//! An HPACK decoder (RFC 7541) that validates fields before h2 reads them.
//! Is a field section well-formed, and how is it rewritten without references to earlier fields?

mod huffman;
mod rules;
mod static_table;
mod unencoded_path;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use rules::{FieldKind, NameClass, SectionValidator};
pub use rules::{FieldRule, FieldSection, UNENCODED_PATH};
use static_table::STATIC_TABLE;
use unencoded_path::{PLACEHOLDER, is_unencoded};

/// The default of SETTINGS_HEADER_TABLE_SIZE, which outgate does not change (RFC 9113 §6.5.2).
const TABLE_MAX: usize = 4096;
/// The overhead of a table entry, in bytes, beyond its name and value (RFC 7541 §4.1). A field section counts it for
/// each field, too.
const ENTRY_OVERHEAD: usize = 32;
/// The largest number of octets of an integer, as in h2.
const INTEGER_MAX: u32 = 5;
/// The bits of a literal field with incremental indexing (RFC 7541 §6.2.1).
const WITH_INDEXING: u8 = 0x40;
/// The bits of a literal field without indexing (RFC 7541 §6.2.2).
const WITHOUT_INDEXING: u8 = 0;

/// A dynamic table size update to 0, which empties the table (RFC 7541 §6.3).
pub const EMPTY_TABLE: u8 = 0x20;

/// The block cannot be decompressed, so the state of the connection is lost (RFC 7541 §2.3.3).
#[derive(Debug, PartialEq, Eq)]
pub struct CompressionError;

/// The result of validating a block.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckedBlock {
    /// The size in bytes, as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 §6.5.2).
    pub size: usize,
    /// The first rule that a field violates.
    pub violated: Option<FieldRule>,
    /// The section is the head of an interim response (1xx).
    pub is_interim: bool,
}

/// The decoder of one direction of a connection, with its dynamic table.
#[derive(Default)]
pub struct HpackDecoder {
    /// The dynamic table, the newest entry first.
    entries: VecDeque<TableEntry>,
    size: usize,
    limit: Option<usize>,
}

struct TableEntry {
    name: Arc<[u8]>,
    value: Box<[u8]>,
    class: NameClass,
    kind: FieldKind,
    /// The entry is a path that h2 must not read. It is computed once, because thousands of indices may refer to the
    /// entry.
    is_unencoded: bool,
}

/// The name of a literal field.
enum LiteralName<'a> {
    Literal(Cow<'a, [u8]>),
    Static(&'static [u8]),
    Entry(Arc<[u8]>),
}

/// A block with the fields of another, without references to the dynamic table.
pub struct RewrittenBlock {
    pub block: Vec<u8>,
    /// The size from which h2 rejects a section, in bytes. Fields after that are left out.
    list_max: usize,
    /// The size of the fields in bytes, as h2 counts it.
    pub size: usize,
    /// The path for the field [`UNENCODED_PATH`], which is written last.
    path: Option<Vec<u8>>,
}

impl HpackDecoder {
    /// Decodes a block with the dynamic table, and validates it. Writes the same fields to `rewritten` if it is given.
    pub fn decode_and_validate(
        &mut self,
        block: &[u8],
        section: FieldSection,
        mut rewritten: Option<&mut RewrittenBlock>,
    ) -> Result<CheckedBlock, CompressionError> {
        let (mut reader, mut validator, mut size) = (BlockReader { block, at: 0 }, SectionValidator::new(section), 0);
        while let Some(first) = reader.block.get(reader.at).copied() {
            match first {
                0x80.. => {
                    let index = reader.integer(7)?.checked_sub(1).ok_or(CompressionError)?;
                    size += self.indexed(index, &mut validator, rewritten.as_deref_mut())?;
                }
                0x20..0x40 => self.resize(reader.integer(5)?)?,
                _ => size += self.literal(&mut reader, first, &mut validator, rewritten.as_deref_mut())?,
            }
        }
        if let Some(rewritten) = rewritten {
            rewritten.finish();
        }
        let (violated, is_interim) = validator.finish();
        Ok(CheckedBlock { size, violated, is_interim })
    }

    /// Decodes an indexed field, and returns its size; `index` is counted from 0.
    fn indexed(
        &self,
        index: usize,
        validator: &mut SectionValidator,
        rewritten: Option<&mut RewrittenBlock>,
    ) -> Result<usize, CompressionError> {
        if let Some((name, value)) = STATIC_TABLE.get(index) {
            validator.add(NameClass::of(name.as_bytes()).validate(value.as_bytes()));
            let size = name.len() + value.len() + ENTRY_OVERHEAD;
            if let Some(rewritten) = rewritten {
                rewritten.push(size, |block| block.push(0x80 | (index + 1) as u8));
            }
            return Ok(size);
        }
        let entry = self.entries.get(index - STATIC_TABLE.len()).ok_or(CompressionError)?;
        validator.add(entry.kind);
        if let Some(rewritten) = rewritten {
            rewritten.field(entry.is_unencoded, &entry.name, &entry.value);
        }
        Ok(entry.size())
    }

    /// Decodes a literal field, and returns its size.
    fn literal(
        &mut self,
        reader: &mut BlockReader<'_>,
        first: u8,
        validator: &mut SectionValidator,
        rewritten: Option<&mut RewrittenBlock>,
    ) -> Result<usize, CompressionError> {
        let is_indexed = first & WITH_INDEXING != 0;
        let (name, class) = match reader.integer(if is_indexed { 6 } else { 4 })? {
            0 => {
                let name = reader.string()?;
                let class = NameClass::of(&name);
                (LiteralName::Literal(name), class)
            }
            index => self.literal_name(index - 1)?,
        };
        let value = reader.string()?;
        let kind = class.validate(&value);
        validator.add(kind);
        let size = name.bytes().len() + value.len() + ENTRY_OVERHEAD;
        let is_unencoded = is_unencoded(class, &value);
        if let Some(rewritten) = rewritten {
            rewritten.field(is_unencoded, name.bytes(), &value);
        }
        if is_indexed {
            self.insert(TableEntry { name: name.into_shared(), value: value.into(), class, kind, is_unencoded });
        }
        Ok(size)
    }

    fn literal_name(&self, index: usize) -> Result<(LiteralName<'static>, NameClass), CompressionError> {
        if let Some((name, _)) = STATIC_TABLE.get(index) {
            return Ok((LiteralName::Static(name.as_bytes()), NameClass::of(name.as_bytes())));
        }
        let entry = self.entries.get(index - STATIC_TABLE.len()).ok_or(CompressionError)?;
        Ok((LiteralName::Entry(Arc::clone(&entry.name)), entry.class))
    }

    /// Adds an entry. One that is larger than the table empties it (RFC 7541 §4.4).
    fn insert(&mut self, entry: TableEntry) {
        self.size += entry.size();
        self.entries.push_front(entry);
        self.evict();
    }

    fn resize(&mut self, limit: usize) -> Result<(), CompressionError> {
        if limit > TABLE_MAX {
            return Err(CompressionError);
        }
        self.limit = Some(limit);
        self.evict();
        Ok(())
    }

    fn evict(&mut self) {
        while self.size > self.limit.unwrap_or(TABLE_MAX)
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }
}

impl TableEntry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

impl LiteralName<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            LiteralName::Literal(name) => name,
            LiteralName::Static(name) => name,
            LiteralName::Entry(name) => name,
        }
    }

    fn into_shared(self) -> Arc<[u8]> {
        match self {
            LiteralName::Entry(name) => name,
            name => name.bytes().into(),
        }
    }
}

impl RewrittenBlock {
    /// Creates an empty block; `list_max`: the size from which h2 rejects a section, as [`CheckedBlock::size`] counts
    /// it.
    pub fn new(list_max: usize) -> Self {
        Self { block: vec![EMPTY_TABLE], list_max, size: 0, path: None }
    }

    fn field(&mut self, is_unencoded: bool, name: &[u8], value: &[u8]) {
        if self.size >= self.list_max {
            return;
        }
        if is_unencoded {
            self.path = Some(value.to_vec());
        }
        let value = if is_unencoded { PLACEHOLDER } else { value };
        self.push(name.len() + value.len() + ENTRY_OVERHEAD, |block| encode(block, WITHOUT_INDEXING, name, value));
    }

    fn finish(&mut self) {
        if let Some(path) = self.path.take() {
            let name = UNENCODED_PATH.as_bytes();
            self.push(name.len() + path.len() + ENTRY_OVERHEAD, |block| encode(block, WITHOUT_INDEXING, name, &path));
        }
    }

    /// Adds a field of `size` bytes. The first field that exceeds the limit is replaced by one of plain bytes, because
    /// its index of one byte could become thousands.
    fn push(&mut self, size: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if self.size >= self.list_max {
            return;
        }
        if self.size + size < self.list_max {
            write(&mut self.block);
        } else {
            encode(&mut self.block, WITHOUT_INDEXING, b"x", &vec![b'x'; self.list_max - self.size]);
        }
        self.size += size;
    }
}

/// Writes a literal field without an indexed name or Huffman coding; `kind`: the bits of its representation.
pub fn encode(block: &mut Vec<u8>, kind: u8, name: &[u8], value: &[u8]) {
    block.push(kind);
    for text in [name, value] {
        encode_length(block, text.len());
        block.extend_from_slice(text);
    }
}

/// Writes an integer with a prefix of 7 bits (RFC 7541 §5.1).
fn encode_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else { return block.push(length as u8) };
    block.push(127);
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

struct BlockReader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> BlockReader<'a> {
    fn byte(&mut self) -> Result<u8, CompressionError> {
        let byte = self.block.get(self.at).copied().ok_or(CompressionError)?;
        self.at += 1;
        Ok(byte)
    }

    fn integer(&mut self, prefix: u32) -> Result<usize, CompressionError> {
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
        Err(CompressionError)
    }

    fn skip_string(&mut self) -> Result<(), CompressionError> {
        let length = self.integer(7)?;
        self.at = self.at.checked_add(length).filter(|end| *end <= self.block.len()).ok_or(CompressionError)?;
        Ok(())
    }

    fn string(&mut self) -> Result<Cow<'a, [u8]>, CompressionError> {
        let is_compressed = self.block.get(self.at).is_some_and(|byte| byte & 0x80 != 0);
        let length = self.integer(7)?;
        let end = self.at.checked_add(length).ok_or(CompressionError)?;
        let text = self.block.get(self.at..end).ok_or(CompressionError)?;
        self.at = end;
        Ok(if is_compressed { huffman::decompress(text)?.into() } else { text.into() })
    }
}

#[cfg(test)]
mod tests;
