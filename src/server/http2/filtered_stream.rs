//! A client's HTTP/2 connection behind the filter of fields. It counts the streams that h2 resets.
//! After how many stream resets by h2 does a connection end?
//!
//! h2 counts its resets over the whole life of a connection, so a busy client exceeds every limit in time. This module
//! counts resets as they are written, in a leaky bucket. A reset that waits to be written takes about 2 KiB of memory.
//! h2 reads all input before it writes, and a client may read nothing. So this module also limits the frames between
//! two writes that could cause a reset.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::net::field_filter::{FieldFilter, MessageKind};
use crate::net::frame::{FRAME_HEADER_LEN, RST_STREAM};
use crate::net::frame_budget::FrameBudget;
use crate::net::leaky_bucket::LeakyBucket;
use crate::server::request_error::HEAD_MAX;

/// The capacity of the leaky bucket: the streams of one connection that h2 may reset at once.
const RESETS_MAX: u64 = 4096;
/// The leak rate of the bucket. That number of resets costs a few milliseconds.
const RESETS_LEAK_PER_SECOND: u64 = 1024;
/// Limits the frames that may cause a reset until h2 has written all its responses to them. h2 reads no more at the
/// limit; one further read may exceed it. The frames of an honest client are its request heads.
const PENDING_RESETS_MAX: usize = 1024;

/// The length of the payload of RST_STREAM, an error code, in bytes.
const ERROR_CODE_LEN: usize = 4;

/// A client's connection behind the filter.
pub(super) struct FilteredStream<S> {
    stream: S,
    filter: FieldFilter,
    /// Bytes that passed the filter and were not read yet.
    read_buffer: BytesMut,
    scanner: ResetScanner,
    /// The streams that h2 has reset recently.
    resets: LeakyBucket,
    /// The frames since the last complete write that h2 may respond to with a reset.
    pending_resets: usize,
    /// h2 has found nothing to read, and no write has blocked since. After such a read h2 writes everything that is
    /// queued. Before other reads h2 writes only what exceeds its buffer, such as responses to PING.
    writes_all: bool,
    frame_budget: FrameBudget,
}

impl<S> FilteredStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            filter: FieldFilter::new(MessageKind::Requests, HEAD_MAX),
            read_buffer: BytesMut::new(),
            scanner: ResetScanner::default(),
            resets: LeakyBucket::new(RESETS_LEAK_PER_SECOND),
            pending_resets: 0,
            writes_all: false,
            frame_budget: FrameBudget::default(),
        }
    }

    /// Updates the counters after a write of `slices`.
    fn observe_write<'a>(&mut self, written: &Poll<io::Result<usize>>, slices: impl Iterator<Item = &'a [u8]>) {
        self.writes_all &= written.is_ready();
        let Poll::Ready(Ok(mut count)) = *written else { return };
        self.filter.record_written(count);
        for slice in slices {
            let (part, _) = slice.split_at(count.min(slice.len()));
            count -= part.len();
            self.scanner.scan(part, |stream, code| {
                self.filter.forget_stream(stream);
                if is_sent_by_h2(code) && self.resets.add(1, Instant::now()) > RESETS_MAX {
                    self.filter.end_connection();
                }
            });
        }
    }
}

/// Returns whether h2 itself resets streams with this code. outgate uses the other codes.
fn is_sent_by_h2(code: u32) -> bool {
    use h2::Reason;
    let sent_by_h2 =
        [Reason::PROTOCOL_ERROR, Reason::FLOW_CONTROL_ERROR, Reason::STREAM_CLOSED, Reason::REFUSED_STREAM];
    sent_by_h2.contains(&code.into())
}

/// Reads at most `max` bytes.
fn poll_read_at_most(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
    max: usize,
) -> Poll<io::Result<()>> {
    if buf.remaining() <= max {
        return Pin::new(stream).poll_read(cx, buf);
    }
    let mut part = ReadBuf::new(buf.initialize_unfilled_to(max));
    ready!(Pin::new(stream).poll_read(cx, &mut part))?;
    let count = part.filled().len();
    buf.advance(count);
    Poll::Ready(Ok(()))
}

impl<S: AsyncRead + Unpin> AsyncRead for FilteredStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.writes_all) {
            this.pending_resets = 0;
        }
        if this.pending_resets >= PENDING_RESETS_MAX {
            this.writes_all = true;
            return Poll::Pending; // `poll_flush` wakes the task
        }
        while this.read_buffer.is_empty() {
            let before = buf.filled().len();
            let read = match this.frame_budget.poll_read_max(cx) {
                Poll::Ready(max) => poll_read_at_most(&mut this.stream, cx, buf, max),
                Poll::Pending => Poll::Pending,
            };
            this.writes_all = read.is_pending();
            this.frame_budget.renew_if(read.is_pending());
            ready!(read)?;
            let input = &buf.filled()[before..];
            let input_len = input.len();
            let passed_len = this.filter.process(input, &mut this.read_buffer);
            buf.set_filled(before + passed_len);
            this.frame_budget.consume(this.filter.take_frame_count(), input_len);
            this.pending_resets += this.filter.take_resettable();
            if passed_len > 0 || input_len == 0 || this.filter.has_ended() && this.read_buffer.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        let length = this.read_buffer.len().min(buf.remaining());
        buf.put_slice(&this.read_buffer[..length]);
        this.read_buffer.advance(length);
        if this.read_buffer.is_empty() {
            this.read_buffer = BytesMut::new(); // frees the memory while the connection is idle
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FilteredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.observe_write(&written, std::iter::once(bytes));
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.observe_write(&written, slices.iter().map(|slice| &**slice));
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.writes_all &= flushed.is_ready();
        if self.writes_all && self.pending_resets >= PENDING_RESETS_MAX {
            cx.waker().wake_by_ref(); // reading may continue
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Finds RST_STREAM frames in the written bytes, at every split.
#[derive(Default)]
struct ResetScanner {
    /// The bytes of a frame header, and of an error code, that were scanned so far.
    frame: Vec<u8>,
    /// The number of payload bytes to skip.
    skip: usize,
}

impl ResetScanner {
    /// Calls `reset` with the stream and the error code of each RST_STREAM.
    fn scan(&mut self, mut bytes: &[u8], mut reset: impl FnMut(u32, u32)) {
        while !bytes.is_empty() {
            let needed = match self.frame.len() {
                0 if self.skip > 0 => self.skip,
                length @ ..FRAME_HEADER_LEN => FRAME_HEADER_LEN - length,
                length => FRAME_HEADER_LEN + ERROR_CODE_LEN - length,
            };
            let (part, rest) = bytes.split_at(needed.min(bytes.len()));
            bytes = rest;
            if self.skip > 0 {
                self.skip -= part.len();
                continue;
            }
            self.frame.extend_from_slice(part);
            match self.frame[..] {
                [a, b, c, kind, _, _, _, _, _] if kind != RST_STREAM => {
                    self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
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
    fn reset_scanner_finds_rst_stream_at_every_split() {
        let frames = b"\0\0\x04\0\0\0\0\0\x01\0\0\x04\x03\0\0\x04\x03\0\0\0\0\x05\0\0\0\x07\0\0\0\x04\x01\0\0\0\0\
            \0\0\x04\x03\0\0\0\0\x07\0\0\0\x08";
        for split in 0..=frames.len() {
            let (mut scanner, mut resets) = (ResetScanner::default(), Vec::new());
            let (first, second) = frames.split_at(split);
            for part in [first, second] {
                scanner.scan(part, |stream, code| resets.push((stream, code)));
            }
            assert_eq!(resets, [(5, 7), (7, 8)], "{split}");
        }
    }
}
