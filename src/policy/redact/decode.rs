//! Text with its percent-encoding removed, and the place of each byte in the text as it was written.
//! Which characters of the original stand for this byte?

use std::borrow::Cow;
use std::ops::Range;

use crate::policy::percent::unescape;

/// Further layers of percent-encoding that are removed. Servers behind proxies decode twice, rarely three times.
const LAYERS_MAX: usize = 4;

/// A text and its decoded bytes.
pub(super) struct Decoded<'a> {
    raw: &'a str,
    bytes: Cow<'a, [u8]>,
    /// The place in `raw` at which each byte of `bytes` begins; `None`: nothing is encoded.
    starts: Option<Vec<usize>>,
}

impl<'a> Decoded<'a> {
    /// Removes one layer of percent-encoding.
    pub(super) fn new(raw: &'a str) -> Self {
        if !raw.contains('%') {
            return Self { raw, bytes: Cow::Borrowed(raw.as_bytes()), starts: None };
        }
        let (starts, bytes): (_, Vec<u8>) = unescape(raw.as_bytes(), |_| true).unzip();
        Self { raw, bytes: Cow::Owned(bytes), starts: Some(starts) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_encoded(&self) -> bool {
        self.starts.is_some()
    }

    /// Returns the further layers, each decoded. The last one is still encoded if there are more than [`LAYERS_MAX`].
    pub(super) fn layers(&self) -> Vec<Vec<u8>> {
        std::iter::successors(decode(&self.bytes), |bytes| decode(bytes)).take(LAYERS_MAX + 1).collect()
    }

    /// Returns whether a text has more layers than outgate removes.
    pub(super) fn is_too_deep(layers: &[Vec<u8>]) -> bool {
        layers.len() > LAYERS_MAX
    }

    /// Returns the place in `raw` of the characters that stand for the byte at `place`.
    pub(super) fn span(&self, place: usize) -> Range<usize> {
        let Some(starts) = &self.starts else { return place..place + 1 };
        let start = |place: usize| starts.get(place).copied().unwrap_or(self.raw.len());
        start(place)..start(place + 1)
    }

    pub(super) fn raw(&self) -> &'a str {
        self.raw
    }
}

/// Removes one layer; `None`: nothing is encoded.
fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let decoded: Vec<u8> = unescape(bytes, |_| true).map(|(_, byte)| byte).collect();
    (decoded.len() < bytes.len()).then_some(decoded)
}
