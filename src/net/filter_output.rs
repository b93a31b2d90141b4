//! The output of a byte filter: a part of the input that passes unchanged, and replaced bytes behind it.
//! How much of the input need not be copied?

use std::ops::Range;

use bytes::BytesMut;

pub(super) struct FilterOutput<'a> {
    input: &'a [u8],
    /// The length of the input's prefix that passes unchanged.
    passthrough: usize,
    rest: &'a mut BytesMut,
}

impl<'a> FilterOutput<'a> {
    pub(super) fn new(input: &'a [u8], rest: &'a mut BytesMut) -> Self {
        Self { input, passthrough: 0, rest }
    }

    pub(super) fn input(&self) -> &'a [u8] {
        self.input
    }

    pub(super) fn passthrough(&self) -> usize {
        self.passthrough
    }

    /// Passes a part of the input. It is not copied while nothing was held back or written before it.
    pub(super) fn pass_through(&mut self, range: Range<usize>) {
        if range.start == self.passthrough && self.rest.is_empty() {
            self.passthrough = range.end;
        } else {
            self.rest.extend_from_slice(&self.input[range]);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }
}
