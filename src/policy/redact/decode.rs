//! Text with its percent-encoding removed, and the place of each byte in the text as it was written.
//! Which characters of the original stand for this byte?

use std::borrow::Cow;
use std::ops::Range;

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
    /// Removes one layer of percent-encoding (RFC 3986 §2.1). A `%` without two hexadecimal digits stands for itself.
    pub(super) fn new(raw: &'a str) -> Self {
        if !raw.contains('%') {
            return Self { raw, bytes: Cow::Borrowed(raw.as_bytes()), starts: None };
        }
        let (mut bytes, mut starts, mut at) = (Vec::with_capacity(raw.len()), Vec::with_capacity(raw.len()), 0);
        while let Some((byte, length)) = first(&raw.as_bytes()[at..]) {
            bytes.push(byte);
            starts.push(at);
            at += length;
        }
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
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some((byte, length)) = first(&bytes[at..]) {
        decoded.push(byte);
        at += length;
    }
    (decoded.len() < bytes.len()).then_some(decoded)
}

/// Returns the first byte that a text stands for, and how many bytes of the text stand for it.
fn first(text: &[u8]) -> Option<(u8, usize)> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match text {
        [] => None,
        [b'%', high, low, ..] => match (hex(*high), hex(*low)) {
            (Some(high), Some(low)) => Some((high << 4 | low, 3)),
            _ => Some((b'%', 1)),
        },
        [byte, ..] => Some((*byte, 1)),
    }
}
