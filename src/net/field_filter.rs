//! Filters the frames of an HTTP/2 peer before h2 reads them, so that a malformed field does not end the connection.
//! How does a malformed field end only its stream (RFC 9113 §8.1.1)?
//!
//! h2 treats an upper-case name or a control character like a compression error, and ends the connection. It accepts
//! white space around a value, and pseudo-header fields in trailers. So this filter validates each block first. A block
//! with a malformed field is replaced by a block for which h2 resets the stream. From then on each block is rewritten
//! without references to earlier blocks, because h2's dynamic table lacks entries. All other bytes pass unchanged.

mod frame_limits;
mod interim;
mod replacement;
mod violation;

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::BytesMut;
use tokio::time::Instant;

use super::filter_output::FilterOutput;
use super::frame::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_HEADER_LEN, HAS_PRIORITY, HEADERS, PADDED, PREFACE, PRIORITY,
    PUSH_PROMISE, RST_STREAM, stream_id,
};
use super::hpack::{CheckedBlock, FieldRule, FieldSection, HpackDecoder, RewrittenBlock};
use super::leaky_bucket::LeakyBucket;
use frame_limits::FrameLimits;
pub use interim::INTERIM_MAX;
use interim::InterimCounts;
use replacement::HeadersFrame;
pub use violation::Violation;

const PREFACE_LEN: usize = PREFACE.len();
/// The default of SETTINGS_MAX_FRAME_SIZE, in bytes, which outgate does not change (RFC 9113 §6.5.2).
const FRAME_SIZE_MAX: usize = 16 * 1024;
/// The lower bound of the limit of CONTINUATION frames in a block. h2 accepts five for a list limit below 80 KiB.
const CONTINUATIONS_MIN: usize = 8;
/// The factor of h2's list limit above which a request head ends the connection; h2 does the same (RFC 9113 §10.5.1).
const REQUEST_HEADER_LIST_FACTOR: usize = 4;
/// The bytes that rewriting may add in a burst: four times those that the heads of 128 streams can share.
const EXPANSION_MAX: u64 = 2 * 1024 * 1024;
const EXPANSION_LEAK_PER_SECOND: u64 = 4 * 1024 * 1024;
/// The open bodies that are remembered. Above it the lowest stream is forgotten, and its trailers are taken for a head.
const OPEN_BODIES_MAX: usize = 1024;

/// The kind of messages that the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Requests,
    Responses,
}

/// A filter that reads frames of a connection, and writes frames for h2.
pub struct FieldFilter {
    messages: MessageKind,
    /// The size from which h2 rejects a section, in bytes (SETTINGS_MAX_HEADER_LIST_SIZE).
    list_max: usize,
    decoder: HpackDecoder,
    /// The bytes of the current frame that have not arrived; at first, those of the preface.
    remaining: usize,
    /// The start of the current frame in `raw`, if the frame begins or continues a block.
    frame_start: Option<usize>,
    /// The part of the next frame header that has arrived.
    frame_header: Vec<u8>,
    /// The frames of the current block, unchanged.
    raw: Vec<u8>,
    /// The field block fragments of the current block.
    field_block: Vec<u8>,
    headers: Option<HeadersFrame>,
    /// The streams whose head has arrived and whose end has not.
    open_bodies: BTreeSet<u32>,
    interim_counts: InterimCounts,
    /// The frames since the last call of [`FieldFilter::take_frame_count`].
    frame_count: usize,
    frame_limits: FrameLimits,
    /// h2's dynamic table is empty, so blocks are rewritten without references to it.
    is_rewriting: bool,
    /// The connection must end before the next frame.
    end_requested: bool,
    /// The number of frames since the last call of [`FieldFilter::take_resettable`] that h2 may answer with a reset.
    resettable: usize,
    /// The bytes that rewriting has added lately.
    expansion: LeakyBucket,
    /// No more bytes pass: h2 ends the connection for the last frame.
    has_ended: bool,
}

impl FieldFilter {
    /// Creates a filter; `list_max`: h2's limit of a field section, in bytes.
    pub fn new(messages: MessageKind, list_max: usize) -> Self {
        Self {
            messages,
            list_max,
            decoder: HpackDecoder::default(),
            remaining: if messages == MessageKind::Requests { PREFACE_LEN } else { 0 },
            frame_start: None,
            frame_header: Vec::new(),
            raw: Vec::new(),
            field_block: Vec::new(),
            headers: None,
            open_bodies: BTreeSet::new(),
            interim_counts: InterimCounts::default(),
            frame_count: 0,
            frame_limits: FrameLimits::default(),
            is_rewriting: false,
            end_requested: false,
            resettable: 0,
            expansion: LeakyBucket::new(EXPANSION_LEAK_PER_SECOND),
            has_ended: false,
        }
    }

    /// Filters the next bytes of the connection. Returns the length of the prefix that passes unchanged; the bytes that
    /// follow it are appended to `rest`.
    pub fn process(&mut self, input: &[u8], rest: &mut BytesMut) -> usize {
        let (mut output, mut at) = (FilterOutput::new(input, rest), 0);
        while at < input.len() && !self.has_ended {
            let needed = if self.remaining > 0 { self.remaining } else { FRAME_HEADER_LEN - self.frame_header.len() };
            let end = input.len().min(at + needed);
            if self.remaining == 0 {
                let buffered = self.frame_header.len();
                self.frame_header.extend_from_slice(&input[at..end]);
                if self.frame_header.len() == FRAME_HEADER_LEN {
                    let frame_end = self.begin_frame(buffered, at..end, &mut output);
                    at = frame_end.unwrap_or(end);
                    continue;
                }
            } else if self.frame_start.is_some() {
                self.raw.extend_from_slice(&input[at..end]);
                self.remaining -= end - at;
            } else {
                output.pass_through(at..end);
                self.remaining -= end - at;
            }
            at = end;
            if self.remaining == 0 && self.frame_header.is_empty() {
                self.end_frame(&mut output);
            }
        }
        output.passthrough()
    }

    /// Makes h2 end the connection before the next frame, with ENHANCE_YOUR_CALM.
    pub fn end_connection(&mut self) {
        self.end_requested = true;
    }

    /// Returns whether no more bytes pass.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Records bytes that were written to the peer.
    pub fn record_written(&mut self, length: usize) {
        self.frame_limits.record_written(length);
    }

    /// Forgets a stream that was reset.
    pub fn forget_stream(&mut self, stream: u32) {
        self.open_bodies.remove(&stream);
    }

    /// Returns the number of frames that began since the last call.
    pub fn take_frame_count(&mut self) -> usize {
        std::mem::take(&mut self.frame_count)
    }

    /// Returns the number of frames since the last call that h2 may have answered with a reset.
    pub fn take_resettable(&mut self) -> usize {
        std::mem::take(&mut self.resettable)
    }

    /// Begins a frame whose header is complete; `buffered`: the bytes of it that arrived before this input. Returns the
    /// end of the frame in the input if the whole frame was filtered in place.
    fn begin_frame(&mut self, buffered: usize, range: Range<usize>, output: &mut FilterOutput<'_>) -> Option<usize> {
        let length = u32::from_be_bytes([0, self.frame_header[0], self.frame_header[1], self.frame_header[2]]) as usize;
        let (kind, flags, stream) = (self.frame_header[3], self.frame_header[4], stream_id(&self.frame_header[5..]));
        let carries_block = match &mut self.headers {
            None if self.end_requested => {
                self.end_for_excess(stream, output);
                return None;
            }
            None => kind == HEADERS,
            Some(headers) => {
                headers.continuations += 1;
                kind == CONTINUATION && stream == headers.stream
            }
        };
        self.frame_count += 1;
        // The client never permits a push (RFC 9113 §8.4).
        if self.headers.is_some() && !carries_block || kind == PUSH_PROMISE {
            self.end_with_protocol_error(stream, output);
            return None;
        }
        if length > FRAME_SIZE_MAX {
            output.write(&self.frame_header); // h2 ends the connection: FRAME_SIZE_ERROR
            self.stop();
            return None;
        }
        if self.headers.as_ref().is_some_and(|headers| headers.continuations > self.continuations_max()) {
            self.end_too_large(output);
            return None;
        }
        self.remaining = length;
        if carries_block {
            let frame_end = range.end + length;
            if buffered == 0 && self.headers.is_none() && flags & END_HEADERS != 0 && frame_end <= output.input().len()
            {
                self.remaining = 0;
                self.frame_header.clear();
                self.filter_frame(range.start..frame_end, output);
                return Some(frame_end);
            }
            self.frame_start = Some(self.raw.len());
            self.raw.extend_from_slice(&self.frame_header);
        } else {
            self.observe_frame(kind, flags, stream);
            output.write(&self.frame_header[..buffered]);
            output.pass_through(range);
        }
        self.frame_header.clear();
        if length == 0 {
            self.end_frame(output);
        }
        None
    }

    /// Tracks a frame that carries no block.
    fn observe_frame(&mut self, kind: u8, flags: u8, stream: u32) {
        if kind == PRIORITY || kind == DATA && !self.open_bodies.contains(&stream) {
            self.resettable += 1;
        }
        if self.frame_limits.exceed_max_with(kind) {
            self.end_connection();
        }
        if kind == RST_STREAM || kind == DATA && flags & END_STREAM != 0 {
            self.open_bodies.remove(&stream);
            self.interim_counts.forget(stream);
        }
    }

    /// Completes a frame that arrived in pieces.
    fn end_frame(&mut self, output: &mut FilterOutput<'_>) {
        let Some(from) = self.frame_start.take() else { return };
        let frame = &self.raw[from..];
        let Some(fragment) = fragment(frame) else {
            return self.end_with_protocol_error(stream_id(&frame[5..]), output);
        };
        self.field_block.extend_from_slice(fragment);
        let ends_block = frame[4] & END_HEADERS != 0;
        let headers = self.headers.get_or_insert_with(|| HeadersFrame::of(frame));
        if !ends_block {
            return;
        }
        let (headers, raw, block) =
            (headers.clone(), std::mem::take(&mut self.raw), std::mem::take(&mut self.field_block));
        self.headers = None;
        if self.filter_block(&headers, &block, output) {
            // h2 limits the frames of a block. A block in many small frames would end the connection.
            match headers.continuations < CONTINUATIONS_MIN / 2 {
                true => output.write(&raw),
                false => output.write_block(&headers, &block),
            }
        }
    }

    /// Filters a frame that contains a whole block, in place.
    fn filter_frame(&mut self, range: Range<usize>, output: &mut FilterOutput<'_>) {
        let frame = &output.input()[range.clone()];
        let Some(fragment) = fragment(frame) else {
            return self.end_with_protocol_error(stream_id(&frame[5..]), output);
        };
        if self.filter_block(&HeadersFrame::of(frame), fragment, output) {
            output.pass_through(range);
        }
    }

    /// Returns whether a block passes unchanged; otherwise writes its replacement.
    fn filter_block(&mut self, headers: &HeadersFrame, block: &[u8], output: &mut FilterOutput<'_>) -> bool {
        self.resettable += 1;
        self.is_rewriting |= headers.depends_on_itself;
        let head = if self.messages == MessageKind::Requests { FieldSection::Request } else { FieldSection::Response };
        let section = if self.open_bodies.contains(&headers.stream) { FieldSection::Trailers } else { head };
        let is_request = matches!(section, FieldSection::Request);
        self.is_rewriting = self.is_rewriting || is_request && self.decoder.has_unencoded_path(block);
        let mut rewritten = self.is_rewriting.then(|| RewrittenBlock::new(self.list_max));
        let checked = self.decoder.decode_and_validate(block, section, rewritten.as_mut());
        let Ok(CheckedBlock { size, violated, is_interim }) = checked else {
            output.write_undecodable(headers.stream);
            self.stop();
            return false;
        };
        let is_too_large = match self.messages {
            MessageKind::Requests if size > REQUEST_HEADER_LIST_FACTOR * self.list_max => {
                self.end_for_excess(headers.stream, output);
                return false;
            }
            MessageKind::Requests => false,
            MessageKind::Responses => size >= self.list_max,
        };
        // An interim response must not end its stream (RFC 9113 §8.1).
        let violation =
            violated.or((is_interim && headers.ends_stream).then_some(FieldRule::Status)).map(Violation::Field);
        if let Some(violation) = violation.or(is_too_large.then_some(Violation::TooLarge)) {
            self.is_rewriting = true;
            self.open_bodies.remove(&headers.stream);
            match section {
                FieldSection::Response => output.write_violation(headers.stream, violation),
                FieldSection::Request | FieldSection::Trailers => output.write_malformed(headers),
            }
            return false;
        }
        if self.interim_counts.exceed_max_with(headers.stream, is_interim) {
            output.write_violation(headers.stream, Violation::TooManyInterim);
            self.end_for_excess(headers.stream, output);
            return false;
        }
        if headers.ends_stream {
            self.open_bodies.remove(&headers.stream);
        } else if !is_interim {
            self.open_bodies.insert(headers.stream);
            if self.open_bodies.len() > OPEN_BODIES_MAX {
                self.open_bodies.pop_first();
            }
        }
        // h2 would answer 431 without a record, or would not read the path that is carried in a field.
        let size = rewritten.as_ref().map_or(size, |rewritten| size.max(rewritten.size));
        if is_request && size >= self.list_max {
            self.is_rewriting = true;
            output.write_large_request(headers);
            return false;
        }
        let Some(RewrittenBlock { block: rewritten, .. }) = rewritten else { return true };
        let added = rewritten.len().saturating_sub(block.len());
        if self.expansion.add(added as u64, Instant::now()) > EXPANSION_MAX {
            self.end_for_excess(headers.stream, output);
        } else {
            output.write_block(headers, &rewritten);
        }
        false
    }

    /// Makes h2 end the connection with PROTOCOL_ERROR. The input must not pass, because h2 ends only the stream for
    /// some of it.
    fn end_with_protocol_error(&mut self, stream: u32, output: &mut FilterOutput<'_>) {
        output.write_misplaced(stream);
        self.stop();
    }

    /// Ends the connection for a block with too many frames, and reports the exceeded limit.
    fn end_too_large(&mut self, output: &mut FilterOutput<'_>) {
        let Some(headers) = self.headers.take() else { return };
        if self.messages == MessageKind::Responses && !self.open_bodies.contains(&headers.stream) {
            output.write_violation(headers.stream, Violation::TooLarge);
        }
        self.end_for_excess(headers.stream, output);
    }

    /// Makes h2 end the connection, with ENHANCE_YOUR_CALM if the peer is a client.
    fn end_for_excess(&mut self, stream: u32, output: &mut FilterOutput<'_>) {
        match self.messages {
            // The next frame may belong to no stream, such as PING.
            MessageKind::Requests => output.write_excess_continuations(stream.max(1), self.continuations_max()),
            MessageKind::Responses => output.write_undecodable(stream),
        }
        self.stop();
    }

    fn continuations_max(&self) -> usize {
        CONTINUATIONS_MIN.max(self.list_max / FRAME_SIZE_MAX * 5 / 4)
    }

    /// Stops filtering, and frees the buffers.
    fn stop(&mut self) {
        *self = Self { has_ended: true, remaining: 0, ..Self::new(self.messages, self.list_max) };
    }
}

/// Returns the field block fragment of a frame, without padding and priority (RFC 9113 §6.2); `None`: the frame is
/// malformed.
fn fragment(frame: &[u8]) -> Option<&[u8]> {
    let (head, mut payload) = frame.split_at(FRAME_HEADER_LEN);
    let flags = if head[3] == HEADERS { head[4] } else { 0 };
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (first, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if flags & HAS_PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

/// Properties of the filter for any bytes.
#[cfg(any(test, fuzzing))]
pub mod fuzz;

#[cfg(test)]
mod tests;
