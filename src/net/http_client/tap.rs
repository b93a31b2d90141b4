//! Observes the bytes and errors of an HTTP/2 connection below hyper: TLS alerts, frames, and failed writes.
//! Why did the target reject or end the connection?
//!
//! With TLS 1.3 a target rejects a client certificate, or requires a missing one, after the client has finished the
//! handshake and begun to send HTTP (RFC 8446 §4.4.2.4). hyper and h2 report the alert inconsistently; this stream sees it.
//!
//! A target may respond before it has the whole request, and then reset the connection (RFC 9112 §9.5). The kernel
//! delivers what arrived before the reset, but reports the reset to the next write first. So a failed write does not end
//! the connection here: later writes are discarded, and the read side determines the outcome of the exchange.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use rustls::{AlertDescription, Error};

use super::super::connection::MaybeTlsStream;
use super::super::field_filter::{FieldFilter, MessageKind};
use super::super::frame_budget::FrameBudget;
use super::frame_scanner::{FrameEvent, FrameScanner};
use super::streams::Streams;
use crate::panics::Mutex;

/// Bytes that are read at once while they are observed. They are copied.
const SCRATCH_LEN: usize = 16 * 1024;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8; SCRATCH_LEN]>> = RefCell::new(Box::new([0; SCRATCH_LEN]));
}

/// The number of malformed responses after which an HTTP/2 connection takes no new exchange. h2 ends a connection after
/// 1,024 streams that it has reset, and open exchanges may be among them.
const MALFORMED_RESPONSES_MAX: usize = 512;

/// The observations of one connection, shared with its handles.
#[derive(Clone, Default)]
pub(super) struct ConnObserver(Arc<ConnObservations>);

#[derive(Default)]
struct ConnObservations {
    alert: OnceLock<AlertDescription>,
    has_response: AtomicBool,
    is_unwritable: AtomicBool,
    /// the target's SETTINGS_MAX_HEADER_LIST_SIZE plus 1; 0: not announced.
    head_max: AtomicU64,
    responses: Mutex<ResponseCounts>,
    /// the target ended the connection with HTTP_1_1_REQUIRED.
    requires_http1: AtomicBool,
    /// the error code of the target's last GOAWAY plus 1; 0: none.
    goaway: AtomicU64,
    /// the number of malformed responses, whose streams were reset.
    malformed_responses: AtomicUsize,
    /// outgate ended the connection for a violation of HTTP/2.
    has_violation: AtomicBool,
    is_violation_taken: AtomicBool,
}

/// The numbers of responses over HTTP/2. They change together: a response that has begun for an exchange without one is
/// counted in the first number and not in the second.
#[derive(Default)]
struct ResponseCounts {
    begun: usize,
    /// The responses that their exchanges have received.
    received: usize,
}

impl ConnObserver {
    /// Records a response. A later alert is not a rejection of the connection.
    pub(super) fn response_received(&self) {
        self.0.has_response.store(true, Ordering::Relaxed);
    }

    /// Returns whether a write failed. Then the connection carries no further request.
    pub(super) fn is_unwritable(&self) -> bool {
        self.0.is_unwritable.load(Ordering::Relaxed)
    }

    /// Returns the largest request head that the target has announced, in bytes; `None`: not announced.
    pub(super) fn head_max(&self) -> Option<usize> {
        let announced = self.0.head_max.load(Ordering::Relaxed).checked_sub(1)?;
        Some(usize::try_from(announced).unwrap_or(usize::MAX))
    }

    /// Returns whether the target has ended the connection with GOAWAY(HTTP_1_1_REQUIRED).
    pub(super) fn requires_http1(&self) -> bool {
        self.0.requires_http1.load(Ordering::Relaxed)
    }

    /// Returns the error code of the target's last GOAWAY.
    pub(super) fn goaway(&self) -> Option<u32> {
        u32::try_from(self.0.goaway.load(Ordering::Relaxed).checked_sub(1)?).ok()
    }

    /// Counts a malformed response, which ended only its stream.
    pub(super) fn count_malformed(&self) {
        self.0.malformed_responses.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that outgate ends the connection because the target violates HTTP/2.
    pub(super) fn record_violation(&self) {
        self.0.has_violation.store(true, Ordering::Relaxed);
    }

    /// Returns whether outgate has ended the connection for a violation, to the first caller only.
    pub(super) fn take_violation(&self) -> bool {
        self.0.has_violation.load(Ordering::Relaxed) && !self.0.is_violation_taken.swap(true, Ordering::Relaxed)
    }

    /// Returns whether the connection must be replaced, before h2 ends it with all of its streams.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.malformed_responses.load(Ordering::Relaxed) >= MALFORMED_RESPONSES_MAX
    }

    /// Returns how many responses have begun over HTTP/2.
    pub(super) fn responses_begun(&self) -> usize {
        self.0.responses.lock().begun
    }

    /// Counts a response that its exchange has received over HTTP/2.
    pub(super) fn count_response(&self) {
        self.0.responses.lock().received += 1;
    }

    /// Returns whether a response may have begun for an exchange that has received none; `before`: the count before its
    /// request. The response may belong to another pending exchange, because h2 does not expose the stream identifier.
    pub(super) fn may_have_responded(&self, before: usize) -> bool {
        let counts = self.0.responses.lock();
        counts.begun > before.max(counts.received)
    }

    fn record_frame(&self, event: FrameEvent) {
        match event {
            FrameEvent::Response => self.0.responses.lock().begun += 1,
            FrameEvent::Settings { header_list_max: Some(max) } => {
                self.0.head_max.store(u64::from(max) + 1, Ordering::Relaxed);
            }
            FrameEvent::GoAway(code) => {
                self.0.goaway.store(u64::from(code) + 1, Ordering::Relaxed);
                self.0
                    .requires_http1
                    .fetch_or(h2::Reason::from(code) == h2::Reason::HTTP_1_1_REQUIRED, Ordering::Relaxed);
            }
            FrameEvent::Settings { header_list_max: None } => {}
        }
    }

    /// Returns the TLS alert that the target sent before its first response.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.0.alert.get().copied().filter(|_| !self.0.has_response.load(Ordering::Relaxed))
    }

    fn capture_alert(&self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(Error::AlertReceived(alert)) = inner {
            let _ = self.0.alert.set(*alert); // a connection has at most one alert
        }
    }
}

/// The stream below hyper, observed.
pub(super) struct TappedStream {
    io: MaybeTlsStream,
    observer: ConnObserver,
    streams: Arc<Streams>,
    frames: FrameScanner,
    filter: Box<FieldFilter>,
    /// Bytes that were read, and rewritten if necessary, and that hyper has not read yet.
    read_buffer: BytesMut,
    frame_budget: FrameBudget,
}

impl TappedStream {
    /// Wraps a stream. `list_max`: h2's limit of a field section, in bytes.
    pub(super) fn new(io: MaybeTlsStream, observer: ConnObserver, streams: Arc<Streams>, list_max: usize) -> Self {
        let filter = Box::new(FieldFilter::new(MessageKind::Responses, list_max));
        let (frames, frame_budget) = (FrameScanner::default(), FrameBudget::default());
        Self { io, observer, streams, frames, filter, read_buffer: BytesMut::new(), frame_budget }
    }

    fn poll_read_observed(&mut self, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        while self.read_buffer.is_empty() {
            let read_max = ready!(self.frame_budget.poll_read_max(cx));
            let is_done = ready!(SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                let room = buf.remaining().min(SCRATCH_LEN).min(read_max);
                let mut read = ReadBuf::new(&mut scratch[..room]);
                ready!(Pin::new(&mut self.io).poll_read(cx, read.unfilled()))?;
                let passed_len = self.observe(read.filled());
                buf.put_slice(&read.filled()[..passed_len]);
                Poll::Ready(io::Result::Ok(passed_len > 0 || read.filled().is_empty() || self.has_ended()))
            }))?;
            if is_done {
                return Poll::Ready(Ok(()));
            }
        }
        let length = self.read_buffer.len().min(buf.remaining());
        buf.put_slice(&self.read_buffer[..length]);
        self.read_buffer.advance(length);
        if self.read_buffer.is_empty() {
            self.read_buffer = BytesMut::new(); // an idle connection needs no buffer
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the length of the prefix that passes unchanged. The bytes that follow it are appended to `read_buffer`.
    fn observe(&mut self, bytes: &[u8]) -> usize {
        self.frames.scan(bytes, |notice| self.observer.record_frame(notice));
        let passed_len = self.filter.process(bytes, &mut self.read_buffer);
        self.frame_budget.consume(self.filter.take_frame_count(), bytes.len());
        if self.filter.has_ended() {
            self.observer.record_violation();
        }
        passed_len
    }

    /// Returns whether the filter has ended the connection.
    fn has_ended(&self) -> bool {
        self.filter.has_ended() && self.read_buffer.is_empty()
    }

    /// Returns the result of a write of `length` bytes. A failed write is reported as complete: see the module's
    /// documentation.
    fn absorb_write_error(&mut self, written: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(count)) if count > 0 || length == 0 => {
                self.filter.record_written(count);
                Poll::Ready(Ok(count))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.observer.0.is_unwritable.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(length))
            }
        }
    }
}

impl Read for TappedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = this.poll_read_observed(cx, buf);
        this.frame_budget.renew_if(read.is_pending());
        match &read {
            Poll::Ready(Err(error)) => this.observer.capture_alert(error),
            // `Pending` means that hyper has consumed all earlier bytes, SETTINGS included.
            Poll::Pending => this.streams.request_settings_poll(),
            Poll::Ready(Ok(())) => {}
        }
        read
    }
}

impl Write for TappedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.observer.is_unwritable() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.absorb_write_error(written, bytes.len())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.observer.is_unwritable() {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.absorb_write_error(flushed.map_ok(|()| 0), 0).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = slices.iter().map(|slice| slice.len()).sum();
        if this.observer.is_unwritable() {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.absorb_write_error(written, length)
    }
}
