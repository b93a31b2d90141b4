//! The bytes of an HTTP/2 peer before h2 reads them: a malformed field must not end the connection.
//! How does a malformed field end its stream alone (RFC 9113 §8.1.1)?
//!
//! h2 treats an upper-case name or a control character like a block that it cannot decompress, and ends the connection.
//! White space around a value and pseudo-header fields of trailers pass it. So each block is judged here first. One
//! with a malformed field is replaced by one with a field that h2 resets the stream for. From then on h2 gets each block
//! rewritten so that it refers to no block of before. All other bytes pass as they are.

mod replacement;

use std::collections::BTreeSet;

use bytes::BytesMut;
use http::HeaderMap;
use tokio::time::Instant;

use super::filter_output::FilterOutput;
use super::hpack::{CheckedBlock, FieldRule, FieldSection, HpackDecoder, RewrittenBlock};
use super::leaky_bucket::LeakyBucket;
use replacement::HeadersFrame;

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const FRAME_HEAD: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE, which we leave as it is by default (RFC 9113 §6.5.2), in bytes.
const FRAME_MAX: usize = 16 * 1024;
/// Frames of one block after its first, at least. h2 takes five where it takes fields of less than 80 KiB.
const CONTINUATIONS_LEAST: usize = 8;
/// A request head that decodes to so many times what h2 accepts ends the connection; h2 does the same (RFC 9113 §10.5.1).
const REQUEST_MARGIN: usize = 4;
/// Bytes that rewriting may add at once: an index of one byte becomes a field of up to 4 KiB. Four times what the heads of
/// 128 streams can share.
const EXPANSION_MAX: u64 = 2 * 1024 * 1024;
const EXPANSION_FORGOTTEN_PER_SECOND: u64 = 4 * 1024 * 1024;
/// Streams that are remembered to have begun a body; the oldest is forgotten for one more, and its trailers pass as a head.
const BODIES_MAX: usize = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY_FRAME: u8 = 2;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The kind of messages that the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Requests,
    Responses,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    Field(FieldRule),
    /// Its head is larger than the limit.
    TooLarge,
}

/// The field that tells a [`Violation`] behind h2, in the place of the refused head. A peer that sends it refuses its own message.
const VIOLATION: &str = "outgate-response-violation";
const TOO_LARGE: &str = "too_large";

impl Violation {
    /// Returns what is wrong with the message that had this head in its place.
    pub fn of(head: &HeaderMap) -> Option<Self> {
        let word = head.get(VIOLATION)?.as_bytes();
        let rule = FieldRule::ALL.into_iter().find(|rule| rule.as_str().as_bytes() == word);
        rule.map(Violation::Field).or((word == TOO_LARGE.as_bytes()).then_some(Violation::TooLarge))
    }

    fn as_str(self) -> &'static str {
        match self {
            Violation::Field(rule) => rule.as_str(),
            Violation::TooLarge => TOO_LARGE,
        }
    }
}

/// Frames in, frames out.
pub struct FieldFilter {
    messages: MessageKind,
    /// Bytes of a section for which h2 refuses it (SETTINGS_MAX_HEADER_LIST_SIZE).
    list_max: usize,
    decoder: HpackDecoder,
    /// Bytes of the frame at hand that are still to come, the preface at first.
    left: usize,
    /// The frame at hand begins or continues a block; its head is in `raw` from here.
    gathers_from: Option<usize>,
    /// The head of the next frame, as far as it has come.
    head: Vec<u8>,
    /// The block that is gathered: its frames as they came, and what they carry.
    raw: Vec<u8>,
    block: Vec<u8>,
    opening: Option<HeadersFrame>,
    /// Streams whose head has come, and whose end has not.
    bodies: BTreeSet<u32>,
    /// h2's dynamic table is empty: what refers to ours is written out.
    rewrites: bool,
    /// The connection is to end before the next frame.
    ends: bool,
    /// Frames since the last call of [`FieldFilter::take_answerable`] that h2 may answer with a reset.
    answerable: usize,
    /// Bytes that rewriting has added lately.
    expansion: LeakyBucket,
    /// Nothing passes any more: h2 ends the connection for what has passed.
    has_ended: bool,
}

impl FieldFilter {
    /// `list_max`: bytes of a field section, above which h2 is set to refuse it.
    pub fn new(messages: MessageKind, list_max: usize) -> Self {
        Self {
            messages,
            list_max,
            decoder: HpackDecoder::default(),
            left: if messages == MessageKind::Requests { PREFACE } else { 0 },
            gathers_from: None,
            head: Vec::new(),
            raw: Vec::new(),
            block: Vec::new(),
            opening: None,
            bodies: BTreeSet::new(),
            rewrites: false,
            ends: false,
            answerable: 0,
            expansion: LeakyBucket::new(EXPANSION_FORGOTTEN_PER_SECOND),
            has_ended: false,
        }
    }

    /// Takes the next bytes of the connection. Returns how many of them pass first, as they are; what comes behind these is
    /// added to `rest`.
    pub fn read(&mut self, input: &[u8], rest: &mut BytesMut) -> usize {
        let (mut output, mut at) = (FilterOutput::new(input, rest), 0);
        while at < input.len() && !self.has_ended {
            let wanted = if self.left > 0 { self.left } else { FRAME_HEAD - self.head.len() };
            let end = input.len().min(at + wanted);
            if self.left == 0 {
                let held = self.head.len();
                self.head.extend_from_slice(&input[at..end]);
                if self.head.len() == FRAME_HEAD {
                    let whole = self.begin(held, at..end, &mut output);
                    at = whole.unwrap_or(end);
                    continue;
                }
            } else if self.gathers_from.is_some() {
                self.raw.extend_from_slice(&input[at..end]);
                self.left -= end - at;
            } else {
                output.pass(at..end);
                self.left -= end - at;
            }
            at = end;
            if self.left == 0 && self.head.is_empty() {
                self.end(&mut output);
            }
        }
        output.passes()
    }

    /// Ends the connection before the next frame, with ENHANCE_YOUR_CALM.
    pub fn end_connection(&mut self) {
        self.ends = true;
    }

    /// Returns whether nothing passes any more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Forgets a stream that was reset.
    pub fn forget(&mut self, stream: u32) {
        self.bodies.remove(&stream);
    }

    /// Returns how many frames h2 may have answered with a reset since the last call.
    pub fn take_answerable(&mut self) -> usize {
        std::mem::take(&mut self.answerable)
    }

    /// Begins a frame whose head has come, `held` bytes of it before this input. Returns where the frame ends in the input, if
    /// the frame was judged where it lies.
    fn begin(&mut self, held: usize, place: std::ops::Range<usize>, output: &mut FilterOutput<'_>) -> Option<usize> {
        let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
        let (kind, flags, stream) = (self.head[3], self.head[4], stream(&self.head[5..]));
        let continues = match &mut self.opening {
            None if self.ends => {
                self.end_calmly(stream, output);
                return None;
            }
            None => kind == HEADERS,
            Some(opening) => {
                opening.continuations += 1;
                kind == CONTINUATION && stream == opening.stream
            }
        };
        // A push was not permitted (RFC 9113 §8.4).
        if self.opening.is_some() && !continues || kind == PUSH_PROMISE {
            self.end_misplaced(stream, output);
            return None;
        }
        if length > FRAME_MAX {
            output.write(&self.head); // h2 reads no further: FRAME_SIZE_ERROR
            self.stop();
            return None;
        }
        if self.opening.as_ref().is_some_and(|opening| opening.continuations > self.continuations_max()) {
            self.end_too_large(output);
            return None;
        }
        self.left = length;
        if continues {
            let whole = place.end + length;
            if held == 0 && self.opening.is_none() && flags & END_HEADERS != 0 && whole <= output.input().len() {
                self.left = 0;
                self.head.clear();
                self.judge_frame(place.start..whole, output);
                return Some(whole);
            }
            self.gathers_from = Some(self.raw.len());
            self.raw.extend_from_slice(&self.head);
        } else {
            self.note(kind, flags, stream);
            output.write(&self.head[..held]);
            output.pass(place);
        }
        self.head.clear();
        if length == 0 {
            self.end(output);
        }
        None
    }

    /// Takes note of a frame that carries no block.
    fn note(&mut self, kind: u8, flags: u8, stream: u32) {
        match kind {
            DATA if self.bodies.contains(&stream) => {}
            DATA | PRIORITY_FRAME => self.answerable += 1,
            _ => {}
        }
        if kind == RST_STREAM || kind == DATA && flags & END_STREAM != 0 {
            self.bodies.remove(&stream);
        }
    }

    /// Ends a frame that has come in pieces.
    fn end(&mut self, output: &mut FilterOutput<'_>) {
        let Some(from) = self.gathers_from.take() else { return };
        let frame = &self.raw[from..];
        let Some(fragment) = fragment(frame) else { return self.end_misplaced(stream(&frame[5..]), output) };
        self.block.extend_from_slice(fragment);
        let ends_block = frame[4] & END_HEADERS != 0;
        let opening = self.opening.get_or_insert_with(|| HeadersFrame::of(frame));
        if !ends_block {
            return;
        }
        let (opening, raw, block) = (opening.clone(), std::mem::take(&mut self.raw), std::mem::take(&mut self.block));
        self.opening = None;
        if self.judge(&opening, &block, output) {
            // h2 counts frames: a block in many small ones would end the connection.
            match opening.continuations < CONTINUATIONS_LEAST / 2 {
                true => output.write(&raw),
                false => output.write_block(&opening, &block),
            }
        }
    }

    /// Judges a frame of the input with a whole block.
    fn judge_frame(&mut self, place: std::ops::Range<usize>, output: &mut FilterOutput<'_>) {
        let frame = &output.input()[place.clone()];
        let Some(fragment) = fragment(frame) else { return self.end_misplaced(stream(&frame[5..]), output) };
        if self.judge(&HeadersFrame::of(frame), fragment, output) {
            output.pass(place);
        }
    }

    /// Returns whether a block passes as it came; else writes what h2 gets in its place.
    fn judge(&mut self, opening: &HeadersFrame, block: &[u8], output: &mut FilterOutput<'_>) -> bool {
        self.answerable += 1;
        self.rewrites |= opening.depends_on_itself;
        let head = if self.messages == MessageKind::Requests { FieldSection::Request } else { FieldSection::Response };
        let section = if self.bodies.contains(&opening.stream) { FieldSection::Trailers } else { head };
        let is_request = matches!(section, FieldSection::Request);
        self.rewrites = self.rewrites || is_request && self.decoder.has_unencoded_path(block);
        let mut rewritten = self.rewrites.then(|| RewrittenBlock::new(self.list_max));
        let checked = self.decoder.check(block, section, rewritten.as_mut());
        let Ok(CheckedBlock { size, broken, is_interim }) = checked else {
            output.write_undecodable(opening.stream);
            self.stop();
            return false;
        };
        let is_too_large = match self.messages {
            MessageKind::Requests if size > REQUEST_MARGIN * self.list_max => {
                self.end_calmly(opening.stream, output);
                return false;
            }
            MessageKind::Requests => false,
            MessageKind::Responses => size >= self.list_max,
        };
        // RFC 9113 §8.1: an interim response ends no stream.
        let broken = broken.or((is_interim && opening.ends_stream).then_some(FieldRule::Status)).map(Violation::Field);
        if let Some(violation) = broken.or(is_too_large.then_some(Violation::TooLarge)) {
            self.rewrites = true;
            self.bodies.remove(&opening.stream);
            match section {
                FieldSection::Response => output.write_violation(opening.stream, violation),
                FieldSection::Request | FieldSection::Trailers => output.write_malformed(opening),
            }
            return false;
        }
        if opening.ends_stream {
            self.bodies.remove(&opening.stream);
        } else if !is_interim {
            self.bodies.insert(opening.stream);
            if self.bodies.len() > BODIES_MAX {
                self.bodies.pop_first();
            }
        }
        // h2 would answer 431 without a record, or not see the path that is carried past it.
        let size = rewritten.as_ref().map_or(size, |rewritten| size.max(rewritten.size));
        if is_request && size >= self.list_max {
            self.rewrites = true;
            output.write_large_request(opening);
            return false;
        }
        let Some(RewrittenBlock { block: rewritten, .. }) = rewritten else { return true };
        let added = rewritten.len().saturating_sub(block.len());
        if self.expansion.add(added as u64, Instant::now()) > EXPANSION_MAX {
            self.end_calmly(opening.stream, output);
        } else {
            output.write_block(opening, &rewritten);
        }
        false
    }

    /// Has h2 end the connection with PROTOCOL_ERROR. What came must not pass: h2 ends no more than a stream for some of it.
    fn end_misplaced(&mut self, stream: u32, output: &mut FilterOutput<'_>) {
        output.write_misplaced(stream);
        self.stop();
    }

    /// A block of more frames than are taken ends the connection, and still names the limit.
    fn end_too_large(&mut self, output: &mut FilterOutput<'_>) {
        let Some(opening) = self.opening.take() else { return };
        if self.messages == MessageKind::Responses && !self.bodies.contains(&opening.stream) {
            output.write_violation(opening.stream, Violation::TooLarge);
        }
        self.end_calmly(opening.stream, output);
    }

    /// Has h2 end the connection: with ENHANCE_YOUR_CALM where a client may read that.
    fn end_calmly(&mut self, stream: u32, output: &mut FilterOutput<'_>) {
        match self.messages {
            // The frame that was to come may have been of no stream, such as PING.
            MessageKind::Requests => output.write_endless(stream.max(1), self.continuations_max()),
            MessageKind::Responses => output.write_undecodable(stream),
        }
        self.stop();
    }

    fn continuations_max(&self) -> usize {
        CONTINUATIONS_LEAST.max(self.list_max / FRAME_MAX * 5 / 4)
    }

    /// Judges no further, and holds nothing for it.
    fn stop(&mut self) {
        *self = Self { has_ended: true, left: 0, ..Self::new(self.messages, self.list_max) };
    }
}

/// Reads the identifier of a stream, without the bit that is reserved (RFC 9113 §4.1).
fn stream(number: &[u8]) -> u32 {
    u32::from_be_bytes([number[0], number[1], number[2], number[3]]) & (u32::MAX >> 1)
}

/// The part of a block that a frame carries, without padding and priority (RFC 9113 §6.2).
fn fragment(frame: &[u8]) -> Option<&[u8]> {
    let (head, mut payload) = frame.split_at(FRAME_HEAD);
    let flags = if head[3] == HEADERS { head[4] } else { 0 };
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (first, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

/// Any bytes come out the same however they arrive, and hold no malformed field afterwards.
#[cfg(any(test, fuzzing))]
pub mod fuzz;

#[cfg(test)]
mod tests;
