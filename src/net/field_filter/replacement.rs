//! The frames that the filter writes for h2 as replacements of others.
//! Which frames make h2 reset a stream or end the connection?

use super::FRAME_SIZE_MAX;
use super::violation::{VIOLATION_FIELD, Violation};
use crate::net::filter_output::FilterOutput;
use crate::net::frame::{
    CONTINUATION, END_HEADERS, END_STREAM, FRAME_HEADER_LEN, HAS_PRIORITY, HEADERS, PADDED, stream_id,
};
use crate::net::hpack::{self, EMPTY_TABLE};

/// The static table index of `:status: 500` (RFC 7541 Appendix A).
const STATUS_500: u8 = 0x80 | 14;
/// The static table index of `:scheme: http`.
const SCHEME_HTTP: u8 = 0x80 | 6;
/// The static table index of `:path: /`.
const PATH_ROOT: u8 = 0x80 | 4;
/// An invalid index: no field has the index 0 (RFC 7541 §6.1).
const NO_INDEX: u8 = 0x80;

/// The first frame of a block.
#[derive(Clone)]
pub(super) struct HeadersFrame {
    pub(super) stream: u32,
    pub(super) ends_stream: bool,
    /// The stream depends on itself. h2 resets such a stream without reading the block, whose entries its table then
    /// lacks.
    pub(super) depends_on_itself: bool,
    /// The number of CONTINUATION frames so far.
    pub(super) continuations: usize,
}

impl HeadersFrame {
    pub(super) fn of(frame: &[u8]) -> Self {
        let dependency = if frame[4] & PADDED == 0 { FRAME_HEADER_LEN } else { FRAME_HEADER_LEN + 1 };
        let depends_on_itself = frame[4] & HAS_PRIORITY != 0
            && frame.get(dependency..dependency + 4).is_some_and(|number| stream_id(number) == stream_id(&frame[5..]));
        Self { depends_on_itself, ..Self::new(stream_id(&frame[5..]), frame[4] & END_STREAM != 0) }
    }

    fn new(stream: u32, ends_stream: bool) -> Self {
        Self { stream, ends_stream, depends_on_itself: false, continuations: 0 }
    }
}

impl FilterOutput<'_> {
    pub(super) fn write_block(&mut self, headers: &HeadersFrame, block: &[u8]) {
        let ends_stream = if headers.ends_stream { END_STREAM } else { 0 };
        let mut pieces = block.chunks(FRAME_SIZE_MAX).peekable();
        let first = pieces.next().unwrap_or_default();
        let ends_block = |is_last| if is_last { END_HEADERS } else { 0 };
        self.write_frame(HEADERS, ends_stream | ends_block(pieces.peek().is_none()), headers.stream, first);
        while let Some(piece) = pieces.next() {
            self.write_frame(CONTINUATION, ends_block(pieces.peek().is_none()), headers.stream, piece);
        }
    }

    /// Writes a block for which h2 resets the stream with PROTOCOL_ERROR (RFC 9113 §8.2.2).
    pub(super) fn write_malformed(&mut self, headers: &HeadersFrame) {
        let mut block = vec![EMPTY_TABLE];
        hpack::encode(&mut block, 0, b"connection", b"close");
        self.write_block(headers, &block);
    }

    /// Writes a response that carries the violation, and trailers for which h2 resets the stream. h2 delivers the
    /// response before it resets the stream.
    pub(super) fn write_violation(&mut self, stream: u32, violation: Violation) {
        let mut block = vec![EMPTY_TABLE, STATUS_500];
        hpack::encode(&mut block, 0, VIOLATION_FIELD.as_bytes(), violation.as_str().as_bytes());
        self.write_block(&HeadersFrame::new(stream, false), &block);
        self.write_malformed(&HeadersFrame::new(stream, true));
    }

    /// Writes the replacement of a request whose head is too large. It is a HEAD, so that the response is valid for any
    /// method.
    pub(super) fn write_large_request(&mut self, headers: &HeadersFrame) {
        let mut block = vec![EMPTY_TABLE, SCHEME_HTTP, PATH_ROOT];
        hpack::encode(&mut block, 0, b":method", b"HEAD");
        hpack::encode(&mut block, 0, VIOLATION_FIELD.as_bytes(), Violation::TooLarge.as_str().as_bytes());
        self.write_block(headers, &block);
    }

    /// Writes a block that h2 cannot decompress: h2 ends the connection.
    pub(super) fn write_undecodable(&mut self, stream: u32) {
        self.write_frame(HEADERS, END_HEADERS, stream, &[NO_INDEX]);
    }

    /// Writes a CONTINUATION that continues no block: h2 ends the connection with PROTOCOL_ERROR (RFC 9113 §6.10).
    pub(super) fn write_misplaced(&mut self, stream: u32) {
        self.write_frame(CONTINUATION, END_HEADERS, stream, &[]);
    }

    /// Writes a block with more than `max_continuations` CONTINUATION frames: h2 ends the connection with
    /// ENHANCE_YOUR_CALM.
    pub(super) fn write_excess_continuations(&mut self, stream: u32, max_continuations: usize) {
        self.write_frame(HEADERS, 0, stream, &[]);
        for _ in 0..=max_continuations {
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
