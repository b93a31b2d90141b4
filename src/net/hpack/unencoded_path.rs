//! Paths with characters that senders should have percent-encoded, and that h2 would reset the stream for.
//! How does such a path get past h2?
//!
//! In its place h2 reads another one, and the path follows as a field. The server reads it there, byte for byte: what a
//! client has signed of it must still verify.

use super::rules::{NameClass, PseudoHeader};
use super::static_table::STATIC_TABLE;
use super::{BlockReader, CompressionError, HpackDecoder, WITH_INDEXING};
use crate::names;

/// The field that carries the path.
pub const UNENCODED_PATH: &str = "outgate-unencoded-path";

/// The path that h2 reads in its place.
pub(super) const PLACEHOLDER: &[u8] = b"/";

/// Whether a path is to be carried past h2. One with another character that may not stand in a path is left for h2.
pub(super) fn is_unencoded(class: NameClass, value: &[u8]) -> bool {
    matches!(class, NameClass::Pseudo(PseudoHeader::Path))
        && value.starts_with(b"/")
        && value.iter().copied().any(names::is_unencoded)
        && value.iter().all(u8::is_ascii_graphic)
}

impl HpackDecoder {
    /// Whether the block has such a path. Changes nothing: entries that the block itself makes are only counted, since a
    /// path among them is seen where it is made.
    pub fn has_unencoded_path(&self, block: &[u8]) -> bool {
        self.find_unencoded_path(block).unwrap_or(false)
    }

    fn find_unencoded_path(&self, block: &[u8]) -> Result<bool, CompressionError> {
        let (mut reader, mut made) = (BlockReader { block, at: 0 }, 0);
        let entry = |index: usize, made: usize| {
            let index = index.checked_sub(STATIC_TABLE.len() + 1)?.checked_sub(made)?;
            self.entries.get(index)
        };
        while let Some(first) = reader.block.get(reader.at).copied() {
            match first {
                0x80.. => {
                    let index = reader.integer(7)?;
                    if entry(index, made).is_some_and(|entry| entry.is_unencoded) {
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
                            None => entry(index, made).map_or(NameClass::Regular, |entry| entry.class),
                        },
                    };
                    if matches!(class, NameClass::Pseudo(PseudoHeader::Path)) {
                        if is_unencoded(class, &reader.string()?) {
                            return Ok(true);
                        }
                    } else {
                        reader.skip_string()?;
                    }
                    made += usize::from(is_indexed);
                }
            }
        }
        Ok(false)
    }
}
