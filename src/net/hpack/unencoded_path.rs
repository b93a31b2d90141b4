//! Carries a path through h2 that h2 would not read as it was sent, or for which it would reset the stream.
//! How does the server read such a path byte for byte?
//!
//! h2 reads a placeholder, and the path follows in a field. The server reads the path from the field, byte for byte,
//! because a client's signature may cover it.

use super::rules::{NameClass, PseudoHeader};
use super::static_table::STATIC_TABLE;
use super::{BlockReader, CompressionError, HpackDecoder, WITH_INDEXING};
use crate::names;

/// The path that h2 reads instead.
pub(super) const PLACEHOLDER: &[u8] = b"/";

/// Returns whether a path must be carried in a field: h2 would refuse it, remove its fragment, or give it a slash. A path with any
/// other invalid character is left to h2.
pub(super) fn is_unencoded(class: NameClass, value: &[u8]) -> bool {
    let is_path = value.starts_with(b"/") || value == b"*";
    matches!(class, NameClass::Pseudo(PseudoHeader::Path))
        && !value.is_empty()
        && (!is_path || value.iter().any(|byte| *byte == b'#' || names::needs_encoding(*byte)))
        && value.iter().all(u8::is_ascii_graphic)
}

impl HpackDecoder {
    /// Returns whether the block has such a path. The dynamic table does not change. Entries that the block itself adds
    /// are only counted, because a path among them is found where it is added.
    pub fn has_unencoded_path(&self, block: &[u8]) -> bool {
        self.find_unencoded_path(block).unwrap_or(false)
    }

    fn find_unencoded_path(&self, block: &[u8]) -> Result<bool, CompressionError> {
        let (mut reader, mut inserted) = (BlockReader { block, at: 0 }, 0);
        let entry = |index: usize, inserted: usize| {
            let index = index.checked_sub(STATIC_TABLE.len() + 1)?.checked_sub(inserted)?;
            self.entries.get(index)
        };
        while let Some(first) = reader.block.get(reader.at).copied() {
            match first {
                0x80.. => {
                    let index = reader.integer(7)?;
                    if entry(index, inserted).is_some_and(|entry| entry.is_unencoded) {
                        return Ok(true);
                    }
                }
                0x20..0x40 => drop(reader.integer(5)?),
                _ => {
                    let is_indexed = first & WITH_INDEXING != 0;
                    let class = match reader.integer(if is_indexed { 6 } else { 4 })? {
                        0 => NameClass::of(&reader.string()?),
                        index => match STATIC_TABLE.get(index - 1) {
                            Some((name, _)) => NameClass::of(name.as_bytes()),
                            None => entry(index, inserted).map_or(NameClass::Regular, |entry| entry.class),
                        },
                    };
                    if matches!(class, NameClass::Pseudo(PseudoHeader::Path)) {
                        if is_unencoded(class, &reader.string()?) {
                            return Ok(true);
                        }
                    } else {
                        reader.skip_string()?;
                    }
                    inserted += usize::from(is_indexed);
                }
            }
        }
        Ok(false)
    }
}
