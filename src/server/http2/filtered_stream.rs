//! A client's connection behind the filter of its fields, and the streams of it that h2 resets.
//! When has a client had so many streams reset that its connection ends?
//!
//! h2 counts them over the whole life of a connection, which a busy client exceeds in time. Here they are counted as they
//! are written, and forgotten at a rate. Until it is written, each waits in memory, in about 2 KiB: h2 reads all that has
//! come before it writes, and a client may read nothing. So the frames that could cause a reset are counted between writes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::net::field_filter::{FieldFilter, MessageKind};
use crate::net::leaky_bucket::LeakyBucket;
use crate::server::request_error::HEAD_MAX;

/// Streams of one connection that h2 may reset at once.
const RESETS_MAX: u64 = 4096;
/// So many of them are forgotten in a second: to reset them costs a few milliseconds.
const RESETS_FORGOTTEN_PER_SECOND: u64 = 1024;
/// Frames that h2 may answer with a reset and after which it reads no more until it has written all answers. One read more
/// may come on top. Of an honest client these are the heads of its requests.
const UNWRITTEN_MAX: usize = 1024;

const FRAME_HEAD: usize = 9;
const RST_STREAM: u8 = 3;
/// Bytes of the payload of RST_STREAM: an error code.
const CODE: usize = 4;

/// A client's connection behind the filter.
pub(super) struct FilteredStream<S> {
    stream: S,
    filter: FieldFilter,
    /// Judged, and not read yet.
    passed: BytesMut,
    written: ResetScanner,
    /// Streams that h2 has reset lately.
    resets: LeakyBucket,
    /// Frames that h2 may answer with a reset, since it last wrote all that was queued.
    unwritten: usize,
    /// h2 has found nothing to read, and no write of it was held up since. Whenever it finds nothing, it writes all that is
    /// queued; before each other read it writes only what its buffer has no room for, such as answers to PING.
    writes_all: bool,
}

impl<S> FilteredStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            filter: FieldFilter::new(MessageKind::Requests, HEAD_MAX),
            passed: BytesMut::new(),
            written: ResetScanner::default(),
            resets: LeakyBucket::new(RESETS_FORGOTTEN_PER_SECOND),
            unwritten: 0,
            writes_all: false,
        }
    }

    /// Takes note of what a write of these bytes came to.
    fn note<'a>(&mut self, written: &Poll<io::Result<usize>>, slices: impl Iterator<Item = &'a [u8]>) {
        self.writes_all &= written.is_ready();
        let Poll::Ready(Ok(mut count)) = *written else { return };
        for slice in slices {
            let (part, _) = slice.split_at(count.min(slice.len()));
            count -= part.len();
            self.written.read(part, |stream, code| {
                self.filter.forget(stream);
                if is_of_library(code) && self.resets.add(1, Instant::now()) > RESETS_MAX {
                    self.filter.end_connection();
                }
            });
        }
    }
}

/// Returns whether h2 resets streams with this code by itself; we do with the others.
fn is_of_library(code: u32) -> bool {
    use h2::Reason;
    let by_itself = [Reason::PROTOCOL_ERROR, Reason::FLOW_CONTROL_ERROR, Reason::STREAM_CLOSED, Reason::REFUSED_STREAM];
    by_itself.contains(&code.into())
}

impl<S: AsyncRead + Unpin> AsyncRead for FilteredStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.writes_all) {
            this.unwritten = 0;
        }
        if this.unwritten >= UNWRITTEN_MAX {
            this.writes_all = true;
            return Poll::Pending; // `poll_flush` wakes
        }
        while this.passed.is_empty() {
            let before = buf.filled().len();
            let read = Pin::new(&mut this.stream).poll_read(cx, buf);
            this.writes_all = read.is_pending();
            ready!(read)?;
            let input = &buf.filled()[before..];
            let has_come = !input.is_empty();
            let passes = this.filter.read(input, &mut this.passed);
            buf.set_filled(before + passes);
            this.unwritten += this.filter.take_answerable();
            if passes > 0 || !has_come || this.filter.has_ended() && this.passed.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        let length = this.passed.len().min(buf.remaining());
        buf.put_slice(&this.passed[..length]);
        this.passed.advance(length);
        if this.passed.is_empty() {
            this.passed = BytesMut::new(); // the room is not needed while the connection waits
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FilteredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(&written, std::iter::once(bytes));
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(&written, slices.iter().map(|slice| &**slice));
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.writes_all &= flushed.is_ready();
        if self.writes_all && self.unwritten >= UNWRITTEN_MAX {
            cx.waker().wake_by_ref(); // to read on
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The frames that are written, however they are split.
#[derive(Default)]
struct ResetScanner {
    /// The head of a frame, and an error code, as far as they have come.
    frame: Vec<u8>,
    /// Bytes of a payload that are of no interest.
    skips: usize,
}

impl ResetScanner {
    /// Calls `reset` with the stream and the error code of each RST_STREAM.
    fn read(&mut self, mut bytes: &[u8], mut reset: impl FnMut(u32, u32)) {
        while !bytes.is_empty() {
            let wanted = match self.frame.len() {
                0 if self.skips > 0 => self.skips,
                length @ ..FRAME_HEAD => FRAME_HEAD - length,
                length => FRAME_HEAD + CODE - length,
            };
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.skips > 0 {
                self.skips -= part.len();
                continue;
            }
            self.frame.extend_from_slice(part);
            match self.frame[..] {
                [a, b, c, kind, _, _, _, _, _] if kind != RST_STREAM => {
                    self.skips = u32::from_be_bytes([0, a, b, c]) as usize;
                    self.frame.clear();
                }
                [_, _, _, _, _, a, b, c, d, e, f, g, h] => {
                    reset(u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
                    self.frame.clear();
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_found_however_the_frames_are_split() {
        let frames = b"\0\0\x04\0\0\0\0\0\x01\0\0\x04\x03\0\0\x04\x03\0\0\0\0\x05\0\0\0\x07\0\0\0\x04\x01\0\0\0\0\
            \0\0\x04\x03\0\0\0\0\x07\0\0\0\x08";
        for split in 0..=frames.len() {
            let (mut written, mut resets) = (ResetScanner::default(), Vec::new());
            let (first, second) = frames.split_at(split);
            for part in [first, second] {
                written.read(part, |stream, code| resets.push((stream, code)));
            }
            assert_eq!(resets, [(5, 7), (7, 8)], "{split}");
        }
    }
}
