//! The output of a filter of bytes: those that came, as they are, and others in their place.
//! How much of the input need not be copied?

use std::ops::Range;

use bytes::BytesMut;

pub(super) struct FilterOutput<'a> {
    input: &'a [u8],
    /// Bytes of the input that pass first, as they are.
    passes: usize,
    rest: &'a mut BytesMut,
}

impl<'a> FilterOutput<'a> {
    pub(super) fn new(input: &'a [u8], rest: &'a mut BytesMut) -> Self {
        Self { input, passes: 0, rest }
    }

    pub(super) fn input(&self) -> &'a [u8] {
        self.input
    }

    pub(super) fn passes(&self) -> usize {
        self.passes
    }

    /// Passes a part of the input: without a copy, as long as nothing was held back or written before.
    pub(super) fn pass(&mut self, part: Range<usize>) {
        if part.start == self.passes && self.rest.is_empty() {
            self.passes = part.end;
        } else {
            self.rest.extend_from_slice(&self.input[part]);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }
}
