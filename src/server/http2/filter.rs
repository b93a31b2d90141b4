//! The bytes of an HTTP/2 client before h2 reads them: a malformed field must not end its connection.
//! How does h2 come to reset the stream alone (RFC 9113 §8.1.1)?
//!
//! Frames pass as they are. The block of a head or of trailers is gathered, so that a malformed field in it can be replaced
//! by a placeholder, and the block be given a field for which h2 resets the stream.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::hpack::{self, Decoder};

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const FRAME_HEAD: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE, which we leave as it is by default (RFC 9113 §6.5.2), in bytes.
const FRAME_MAX: usize = 16 * 1024;
/// Frames of one block after its first. h2 takes five, and ends the connection with the next.
const CONTINUATIONS_MAX: usize = 8;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What is done with the bytes of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    Passes,
    /// Begins or continues a block; its head is in `raw` from here.
    Gathers {
        from: usize,
    },
}

/// Frames in, frames out.
struct Filter {
    decoder: Decoder,
    /// Bytes of the frame at hand that are still to come, the preface at first.
    left: usize,
    frame: Frame,
    /// The head of the next frame, as far as it has come.
    head: Vec<u8>,
    /// The block that is gathered: its frames as they came, and what they carry.
    raw: BytesMut,
    block: Vec<u8>,
    opening: Option<Opening>,
    /// Everything passes: h2 is about to end the connection, or will judge by itself.
    has_given_up: bool,
    /// Nothing passes any more: h2 ends the connection for what has passed.
    has_ended: bool,
}

/// Of the first frame of a block.
struct Opening {
    stream: [u8; 4],
    ends_stream: bool,
    continuations: usize,
}

impl Filter {
    fn new() -> Self {
        Self {
            decoder: Decoder::default(),
            left: PREFACE,
            frame: Frame::Passes,
            head: Vec::with_capacity(FRAME_HEAD),
            raw: BytesMut::new(),
            block: Vec::new(),
            opening: None,
            has_given_up: false,
            has_ended: false,
        }
    }

    fn push(&mut self, mut input: &[u8], out: &mut BytesMut) {
        while !input.is_empty() && !self.has_given_up && !self.has_ended {
            let wanted = if self.left > 0 { self.left } else { FRAME_HEAD - self.head.len() };
            let (piece, rest) = input.split_at(wanted.min(input.len()));
            input = rest;
            if self.left == 0 {
                self.head.extend_from_slice(piece);
                if self.head.len() < FRAME_HEAD {
                    continue;
                }
                self.begin(out);
            } else {
                let to = if self.frame == Frame::Passes { &mut *out } else { &mut self.raw };
                to.extend_from_slice(piece);
                self.left -= piece.len();
            }
            if self.left == 0 && self.head.is_empty() {
                self.end(out);
            }
        }
        if !self.has_ended {
            out.extend_from_slice(input);
        }
    }

    /// A frame whose head has come.
    fn begin(&mut self, out: &mut BytesMut) {
        let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
        let continues = match &mut self.opening {
            None => self.head[3] == HEADERS,
            Some(opening) => {
                opening.continuations += 1;
                let is_next = self.head[3] == CONTINUATION && self.head[5..] == opening.stream;
                is_next && opening.continuations <= CONTINUATIONS_MAX
            }
        };
        if length > FRAME_MAX || (self.opening.is_some() && !continues) {
            self.raw.extend_from_slice(&self.head);
            return self.give_up(out);
        }
        self.frame = if continues { Frame::Gathers { from: self.raw.len() } } else { Frame::Passes };
        let to = if continues { &mut self.raw } else { &mut *out };
        to.extend_from_slice(&self.head);
        self.head.clear();
        self.left = length;
    }

    /// A frame that has come whole.
    fn end(&mut self, out: &mut BytesMut) {
        let Frame::Gathers { from } = std::mem::replace(&mut self.frame, Frame::Passes) else { return };
        let frame = &self.raw[from..];
        let flags = frame[4];
        let Some(fragment) = fragment(frame) else { return self.give_up(out) };
        self.block.extend_from_slice(fragment);
        self.opening.get_or_insert_with(|| Opening {
            stream: [frame[5], frame[6], frame[7], frame[8]],
            ends_stream: flags & END_STREAM != 0,
            continuations: 0,
        });
        if flags & END_HEADERS == 0 {
            return;
        }
        match self.decoder.check(&self.block) {
            Ok(None) => out.extend_from_slice(&self.raw),
            Ok(Some(repaired)) => {
                let mut block = repaired.block;
                if repaired.is_malformed {
                    // h2 resets a stream for it (RFC 9113 §8.2.2).
                    block.extend(hpack::encode(0, b"connection", b"close"));
                }
                if let Some(opening) = &self.opening {
                    opening.write(&block, out);
                }
            }
            Err(hpack::Fault::Undecodable) => return self.give_up(out),
            Err(hpack::Fault::TooLarge) => {
                if let Some(opening) = &self.opening {
                    opening.write_endless(out);
                }
                *self = Self { has_ended: true, ..Self::new() };
                return;
            }
        }
        // A connection that waits holds no memory for a block.
        (self.raw, self.block, self.opening) = (BytesMut::new(), Vec::new(), None);
    }

    fn give_up(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.raw);
        *self = Self { has_given_up: true, ..Self::new() };
    }
}

impl Opening {
    fn write(&self, block: &[u8], out: &mut BytesMut) {
        let count = block.chunks(FRAME_MAX).len();
        for (index, piece) in block.chunks(FRAME_MAX).enumerate() {
            let kind = if index == 0 { HEADERS } else { CONTINUATION };
            let ends_stream = if index == 0 && self.ends_stream { END_STREAM } else { 0 };
            let ends_block = if index + 1 == count { END_HEADERS } else { 0 };
            self.write_frame(kind, ends_stream | ends_block, piece, out);
        }
    }

    /// Writes a block of more frames than h2 takes: it ends the connection with ENHANCE_YOUR_CALM.
    fn write_endless(&self, out: &mut BytesMut) {
        self.write_frame(HEADERS, 0, &[], out);
        for _ in 0..=CONTINUATIONS_MAX {
            self.write_frame(CONTINUATION, 0, &[], out);
        }
    }

    fn write_frame(&self, kind: u8, flags: u8, payload: &[u8], out: &mut BytesMut) {
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&self.stream);
        out.extend_from_slice(payload);
    }
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

const SCRATCH: usize = 16 * 1024;

thread_local! {
    /// Where bytes arrive before they are judged.
    static SCRATCH_BUFFER: RefCell<Box<[u8; SCRATCH]>> = RefCell::new(Box::new([0; SCRATCH]));
}

/// A client's connection behind the filter.
pub(super) struct Filtered<S> {
    stream: S,
    filter: Filter,
    /// Judged, and not read yet.
    passed: BytesMut,
}

impl<S> Filtered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, filter: Filter::new(), passed: BytesMut::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, filter, passed } = self.get_mut();
        while passed.is_empty() {
            let length = ready!(SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                let mut read = ReadBuf::new(&mut scratch[..]);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
                filter.push(read.filled(), passed);
                Poll::Ready(io::Result::Ok(read.filled().len()))
            }))?;
            if length == 0 || filter.has_ended && passed.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        let length = passed.len().min(buf.remaining());
        buf.put_slice(&passed[..length]);
        passed.advance(length);
        if passed.is_empty() {
            *passed = BytesMut::new(); // the room is not needed while the connection waits
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// So many times the bytes that went in may come out: a malformed field of two bytes may take ten that name no index.
#[cfg(any(test, fuzzing))]
const GROWTH: usize = 5;
/// Bytes of a block that has too many frames.
#[cfg(any(test, fuzzing))]
const ENDLESS: usize = (CONTINUATIONS_MAX + 2) * FRAME_HEAD;

/// What a client sends after the preface comes out the same however it arrives, and bytes that hold no malformed field as
/// they are.
#[cfg(any(test, fuzzing))]
pub fn fields(data: &[u8]) {
    let input = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], data].concat();
    let run = |input: &[u8], step: usize| {
        let (mut filter, mut out) = (Filter::new(), BytesMut::new());
        input.chunks(step).for_each(|piece| filter.push(piece, &mut out));
        (out, filter.raw, filter.head)
    };
    let whole = run(&input, input.len());
    let step = 1 + data.len() % 13;
    assert_eq!(run(&input, step), whole, "in pieces of {step}");
    assert!(whole.0.len() <= GROWTH * input.len() + ENDLESS, "{} became {} bytes", input.len(), whole.0.len());
    // No malformed field is left in what came out.
    assert_eq!(run(&whole.0, whole.0.len()).0, whole.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn filtered(frames: &[u8]) -> Vec<u8> {
        let (mut filter, mut out) = (Filter::new(), BytesMut::new());
        filter.push(&[0; PREFACE], &mut out);
        filter.push(frames, &mut out);
        out[PREFACE..].to_vec()
    }

    #[test]
    fn frames_without_a_malformed_field_pass_as_they_are() {
        let block = hpack::encode(0, b"x", b"y");
        let padded = [&[3][..], &block, &[0; 3]].concat();
        for frames in [
            frame(4, 0, &[]),
            frame(HEADERS, END_HEADERS, &block),
            frame(HEADERS, END_HEADERS | PADDED, &padded),
            frame(HEADERS, END_HEADERS | PRIORITY, &[&[0; 5][..], &block].concat()),
            [frame(HEADERS, 0, &block[..2]), frame(CONTINUATION, END_HEADERS, &block[2..])].concat(),
            // What h2 ends the connection for.
            frame(HEADERS, END_HEADERS, &[0x80]),
            frame(HEADERS, END_HEADERS | PADDED, &[9]),
            [frame(HEADERS, 0, &block), frame(4, 0, &[]), frame(0, 0, b"x")].concat(),
            [frame(HEADERS, 0, &block), frame(CONTINUATION, 0, &[]).repeat(20)].concat(),
        ] {
            assert_eq!(filtered(&frames), frames);
        }
    }

    #[test]
    fn malformed_field_makes_a_block_that_resets_its_stream() {
        let bad = hpack::encode(0, b"X-Bad", b"y");
        let reset = [hpack::encode(0, b"xxxxx", b"x"), hpack::encode(0, b"connection", b"close")].concat();
        let next = frame(0, END_STREAM, b"{}");
        for frames in [
            frame(HEADERS, END_HEADERS, &bad),
            frame(HEADERS, END_HEADERS | PADDED, &[&[1][..], &bad, &[0]].concat()),
            [frame(HEADERS, 0, &bad[..3]), frame(CONTINUATION, END_HEADERS, &bad[3..])].concat(),
        ] {
            let expected = [frame(HEADERS, END_HEADERS, &reset), next.clone()].concat();
            assert_eq!(filtered(&[frames, next.clone()].concat()), expected);
        }
    }

    #[test]
    fn block_that_decodes_to_too_much_ends_the_connection_and_does_not_pass() {
        let bomb = hpack::encode(0x40, &[b'n'; 4000], b"\0");
        let block = [bomb, b"\x0f\x2f\0".repeat(47_000)].concat();
        let (first, rest) = block.split_at(FRAME_MAX);
        let mut frames = frame(HEADERS, END_STREAM, first);
        let count = rest.chunks(FRAME_MAX).len();
        for (index, piece) in rest.chunks(FRAME_MAX).enumerate() {
            frames.extend(frame(CONTINUATION, if index + 1 == count { END_HEADERS } else { 0 }, piece));
        }
        frames.extend(frame(0, END_STREAM, b"{}"));
        let endless = frame(CONTINUATION, 0, &[]).repeat(CONTINUATIONS_MAX + 1);
        assert_eq!(filtered(&frames), [frame(HEADERS, 0, &[]), endless].concat());
        fields(&frames);
        // Small blocks, of which none is too large: what they come to does not grow.
        let small = frame(HEADERS, END_HEADERS, &b"\x0f\x2f\0".repeat(40));
        let opening = frame(HEADERS, END_HEADERS, &hpack::encode(0x40, &[b'n'; 4000], b"\0"));
        fields(&[opening, small.repeat(1000)].concat());
        fields(&frame(HEADERS, END_HEADERS, &b"\x02\0\x08\0".repeat(2000)));
    }
}
