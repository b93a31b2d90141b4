//! Frames that the filter writes in the place of others, for h2 to read.
//! Which frames make h2 reset a stream or end the connection?

use super::{
    CONTINUATION, END_HEADERS, END_STREAM, FRAME_HEAD, FRAME_MAX, HEADERS, PADDED, PRIORITY, VIOLATION, Violation,
    stream,
};
use crate::net::filter_output::FilterOutput;
use crate::net::hpack::{self, EMPTY_TABLE};

/// `:status: 500` in the static table (RFC 7541 Appendix A).
const STATUS_500: u8 = 0x80 | 14;
/// `:scheme: http` and `:path: /`, likewise.
const SCHEME_HTTP: u8 = 0x80 | 6;
const PATH_ROOT: u8 = 0x80 | 4;
/// No field has the index 0 (RFC 7541 §6.1).
const NO_INDEX: u8 = 0x80;
/// The first frame of a block.
#[derive(Clone)]
pub(super) struct HeadersFrame {
    pub(super) stream: u32,
    pub(super) ends_stream: bool,
    /// Its stream depends on itself: h2 resets that without reading the block, and loses the state of the table.
    pub(super) depends_on_itself: bool,
    /// Frames behind it, so far.
    pub(super) continuations: usize,
}

impl HeadersFrame {
    pub(super) fn of(frame: &[u8]) -> Self {
        let dependency = if frame[4] & PADDED == 0 { FRAME_HEAD } else { FRAME_HEAD + 1 };
        let depends_on_itself = frame[4] & PRIORITY != 0
            && frame.get(dependency..dependency + 4).is_some_and(|number| stream(number) == stream(&frame[5..]));
        Self { depends_on_itself, ..Self::new(stream(&frame[5..]), frame[4] & END_STREAM != 0) }
    }

    fn new(stream: u32, ends_stream: bool) -> Self {
        Self { stream, ends_stream, depends_on_itself: false, continuations: 0 }
    }
}

impl FilterOutput<'_> {
    pub(super) fn write_block(&mut self, opening: &HeadersFrame, block: &[u8]) {
        let ends_stream = if opening.ends_stream { END_STREAM } else { 0 };
        let mut pieces = block.chunks(FRAME_MAX).peekable();
        let first = pieces.next().unwrap_or_default();
        let ends_block = |is_last| if is_last { END_HEADERS } else { 0 };
        self.write_frame(HEADERS, ends_stream | ends_block(pieces.peek().is_none()), opening.stream, first);
        while let Some(piece) = pieces.next() {
            self.write_frame(CONTINUATION, ends_block(pieces.peek().is_none()), opening.stream, piece);
        }
    }

    /// Writes a block for which h2 resets the stream with PROTOCOL_ERROR (RFC 9113 §8.2.2).
    pub(super) fn write_malformed(&mut self, opening: &HeadersFrame) {
        let mut block = vec![EMPTY_TABLE];
        hpack::encode(&mut block, 0, b"connection", b"close");
        self.write_block(opening, &block);
    }

    /// Writes a response that tells what is wrong, and trailers for which h2 resets the stream: it hands out the one before it
    /// acts on the other.
    pub(super) fn write_violation(&mut self, stream: u32, violation: Violation) {
        let mut block = vec![EMPTY_TABLE, STATUS_500];
        hpack::encode(&mut block, 0, VIOLATION.as_bytes(), violation.as_str().as_bytes());
        self.write_block(&HeadersFrame::new(stream, false), &block);
        self.write_malformed(&HeadersFrame::new(stream, true));
    }

    /// Writes a request in the place of one whose head is too large. It is a HEAD, so that the answer fits any method.
    pub(super) fn write_large_request(&mut self, opening: &HeadersFrame) {
        let mut block = vec![EMPTY_TABLE, SCHEME_HTTP, PATH_ROOT];
        hpack::encode(&mut block, 0, b":method", b"HEAD");
        hpack::encode(&mut block, 0, VIOLATION.as_bytes(), Violation::TooLarge.as_str().as_bytes());
        self.write_block(opening, &block);
    }

    /// Writes a block that h2 cannot decompress: it ends the connection.
    pub(super) fn write_undecodable(&mut self, stream: u32) {
        self.write_frame(HEADERS, END_HEADERS, stream, &[NO_INDEX]);
    }

    /// Writes a frame that continues no block: h2 ends the connection with PROTOCOL_ERROR (RFC 9113 §6.10).
    pub(super) fn write_misplaced(&mut self, stream: u32) {
        self.write_frame(CONTINUATION, END_HEADERS, stream, &[]);
    }

    /// Writes a block of more than `most` frames behind the first: h2 ends the connection with ENHANCE_YOUR_CALM.
    pub(super) fn write_endless(&mut self, stream: u32, most: usize) {
        self.write_frame(HEADERS, 0, stream, &[]);
        for _ in 0..=most {
            self.write_frame(CONTINUATION, 0, stream, &[]);
        }
    }

    fn write_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&(payload.len() as u32).to_be_bytes()[1..]);
        self.write(&[kind, flags]);
        self.write(&stream.to_be_bytes());
        self.write(payload);
    }
}
