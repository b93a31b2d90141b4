//! A listener on the wire: for the alert by which a target refuses us when the handshake seems over, for the first bytes
//! of a response, and for a failed write that a response may explain.
//! Has the target sent us away, and in which words?
//!
//! With TLS 1.3 a target judges our certificate, or misses it, after we have finished and begun to speak HTTP (RFC 8446
//! §4.4.2.4). What becomes of the error on its way through HTTP's layers differs; here it comes by in any case.
//!
//! A target may respond before it has the whole request, and then reset the connection (RFC 9112 §9.5). The kernel
//! delivers what arrived before the reset, but reports the reset to the next write first. So a failed write does not end
//! the connection here: what is written after it is discarded, and the read side decides what the exchange was.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use rustls::{AlertDescription, Error};

use super::super::connection::MaybeTlsStream;
use super::super::field_filter::{FieldFilter, MessageKind};
use super::super::tls::TlsError;
use super::frame_scanner::{FrameEvent, FrameScanner};
use super::streams::Streams;
use super::trailer_filter::TrailerFilter;

/// Bytes read at once while they are observed; they are copied.
const SCRATCH: usize = 16 * 1024;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8; SCRATCH]>> = RefCell::new(Box::new([0; SCRATCH]));
}

/// Malformed responses over one HTTP/2 connection, behind which it takes no new exchange. The library ends a connection
/// after 1,024 streams that it has reset; those that are under way may be among them.
const MALFORMED_MAX: usize = 512;
const NEXT: u8 = 1;
/// The response to HEAD.
const NEXT_TO_HEAD: u8 = 2;
/// RFC 9113 §7.
const HTTP_1_1_REQUIRED: u32 = 13;

/// What one connection has heard.
#[derive(Clone, Default)]
pub(super) struct ConnObserver(Arc<ConnObservations>);

#[derive(Default)]
struct ConnObservations {
    alert: OnceLock<AlertDescription>,
    answered: AtomicBool,
    /// HTTP/1.1: a request was sent whose response head is not complete.
    awaits_response: AtomicBool,
    /// HTTP/1.1: [`NEXT`] or [`NEXT_TO_HEAD`] if a request is sent of whose response nothing was read.
    next: AtomicU8,
    /// HTTP/1.1: bytes that came since the last request was sent, until its response head was complete.
    response_bytes: AtomicUsize,
    is_unwritable: AtomicBool,
    /// HTTP/2: SETTINGS_MAX_HEADER_LIST_SIZE of the target, and 1 more; 0 while it has announced none.
    head_max: AtomicU64,
    /// HTTP/2: responses that have begun.
    begun: AtomicUsize,
    /// HTTP/2: those among them that their exchanges have received.
    taken: AtomicUsize,
    /// HTTP/2: the target has ended the connection with HTTP_1_1_REQUIRED.
    requires_http1: AtomicBool,
    /// HTTP/2: the error code of the target's last GOAWAY, and 1 more; 0 while there is none.
    goaway: AtomicU64,
    /// HTTP/2: malformed responses, whose streams were reset.
    malformed: AtomicUsize,
}

impl ConnObserver {
    /// Counts the bytes of the next response, of HTTP/1.1; `to_head`: to a request with the method HEAD.
    pub(super) fn expect_response(&self, to_head: bool) {
        self.0.next.store(if to_head { NEXT_TO_HEAD } else { NEXT }, Ordering::Relaxed);
        self.0.response_bytes.store(0, Ordering::Relaxed);
        self.0.awaits_response.store(true, Ordering::Relaxed);
    }

    /// From now on an alert ends a connection that was good, and refuses nobody.
    pub(super) fn answered(&self) {
        self.0.answered.store(true, Ordering::Relaxed);
        self.0.awaits_response.store(false, Ordering::Relaxed);
    }

    /// Returns the bytes of the response that have arrived before its head was complete.
    pub(super) fn response_bytes(&self) -> usize {
        self.0.response_bytes.load(Ordering::Relaxed)
    }

    /// Returns whether a write has failed: the connection carries no further request.
    pub(super) fn is_unwritable(&self) -> bool {
        self.0.is_unwritable.load(Ordering::Relaxed)
    }

    /// Returns the largest request head that the target has announced, in bytes; `None`: it has announced none.
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

    /// Counts a response that was malformed, and ended no more than its stream.
    pub(super) fn count_malformed(&self) {
        self.0.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether the connection is to be replaced: the HTTP/2 library would end it, with all of its streams.
    pub(super) fn is_spent(&self) -> bool {
        self.0.malformed.load(Ordering::Relaxed) >= MALFORMED_MAX
    }

    /// Returns how many responses have begun over HTTP/2.
    pub(super) fn begun(&self) -> usize {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// Counts a response that its exchange has received over HTTP/2.
    pub(super) fn take_response(&self) {
        self.0.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether a response may have begun to an exchange that has received none: `before` had begun when its request
    /// was sent. Where several exchanges wait it may be any of theirs, since the HTTP/2 library does not
    /// tell the number of a stream.
    pub(super) fn may_have_responded(&self, before: usize) -> bool {
        self.begun() > before.max(self.0.taken.load(Ordering::Relaxed))
    }

    fn notice(&self, notice: FrameEvent) {
        match notice {
            FrameEvent::Response => drop(self.0.begun.fetch_add(1, Ordering::Relaxed)),
            FrameEvent::Settings { header_list_max: Some(max) } => {
                self.0.head_max.store(u64::from(max) + 1, Ordering::Relaxed);
            }
            FrameEvent::GoAway(code) => {
                self.0.goaway.store(u64::from(code) + 1, Ordering::Relaxed);
                self.0.requires_http1.fetch_or(code == HTTP_1_1_REQUIRED, Ordering::Relaxed);
            }
            FrameEvent::Settings { header_list_max: None } => {}
        }
    }

    pub(super) fn fault(&self) -> Option<TlsError> {
        let alert = self.0.alert.get().filter(|_| !self.0.answered.load(Ordering::Relaxed))?;
        Some(Error::AlertReceived(*alert).into())
    }

    fn capture_alert(&self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(Error::AlertReceived(alert)) = inner {
            let _ = self.0.alert.set(*alert); // the first is the last
        }
    }
}

/// The wire, listened to.
pub(super) struct TappedStream {
    wire: MaybeTlsStream,
    farewell: ConnObserver,
    version: ObservedVersion,
    /// Bytes that were read and, where it was necessary, changed. hyper has not read them yet.
    passed: BytesMut,
}

/// The version of HTTP, with what is read of it beside the library.
enum ObservedVersion {
    Http1(TrailerFilter),
    Http2 { streams: Arc<Streams>, frames: FrameScanner, filter: Box<FieldFilter> },
}

impl TappedStream {
    /// `streams`: of HTTP/2; `list_max`: bytes of a field section that HTTP/2 is set to accept.
    pub(super) fn new(
        wire: MaybeTlsStream,
        farewell: ConnObserver,
        streams: Option<Arc<Streams>>,
        list_max: usize,
    ) -> Self {
        let version = match streams {
            Some(streams) => {
                let filter = Box::new(FieldFilter::new(MessageKind::Responses, list_max));
                ObservedVersion::Http2 { streams, frames: FrameScanner::default(), filter }
            }
            None => ObservedVersion::Http1(TrailerFilter::default()),
        };
        Self { wire, farewell, version, passed: BytesMut::new() }
    }

    fn is_observed(&mut self) -> bool {
        let ObservedVersion::Http1(trailers) = &mut self.version else { return true };
        match self.farewell.0.next.swap(0, Ordering::Relaxed) {
            0 => {}
            next => trailers.expect(next == NEXT_TO_HEAD),
        }
        let awaits_response = self.farewell.0.awaits_response.load(Ordering::Relaxed);
        awaits_response || !trailers.is_passing() || !self.passed.is_empty() || self.farewell.is_unwritable()
    }

    fn poll_read_observed(&mut self, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        while self.passed.is_empty() {
            let is_done = ready!(SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                let room = buf.remaining().min(SCRATCH);
                let mut read = ReadBuf::new(&mut scratch[..room]);
                ready!(Pin::new(&mut self.wire).poll_read(cx, read.unfilled()))?;
                let passes = self.observe(read.filled())?;
                buf.put_slice(&read.filled()[..passes]);
                Poll::Ready(io::Result::Ok(passes > 0 || read.filled().is_empty() || self.has_ended()))
            }))?;
            if is_done {
                return Poll::Ready(Ok(()));
            }
        }
        let length = self.passed.len().min(buf.remaining());
        buf.put_slice(&self.passed[..length]);
        self.passed.advance(length);
        if self.passed.is_empty() {
            self.passed = BytesMut::new(); // the room is not needed while the connection waits
        }
        Poll::Ready(Ok(()))
    }

    /// Returns how many of the bytes pass first, as they are. What comes behind these is added to `passed`.
    fn observe(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.version {
            ObservedVersion::Http1(trailers) => {
                self.farewell.0.response_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
                let passes = trailers.read(bytes, &mut self.passed);
                self.end(bytes).map(|()| passes)
            }
            ObservedVersion::Http2 { frames, filter, .. } => {
                frames.read(bytes, |notice| self.farewell.notice(notice));
                Ok(filter.read(bytes, &mut self.passed))
            }
        }
    }

    /// Returns whether the filter has ended the connection.
    fn has_ended(&self) -> bool {
        matches!(&self.version, ObservedVersion::Http2 { filter, .. } if filter.has_ended() && self.passed.is_empty())
    }

    /// Returns the end of the connection as an error where it may not be an orderly one.
    fn end(&self, bytes: &[u8]) -> io::Result<()> {
        // The failed write took the socket's error away. Without TLS nothing else tells a reset from an orderly end,
        // which would make a response whole that only the end of the connection delimits.
        if bytes.is_empty() && self.farewell.is_unwritable() && matches!(self.wire, MaybeTlsStream::Http(_)) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    /// Returns what a write of `length` bytes came to. A failed write is taken for a whole one: see the module.
    fn written(&self, written: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(count)) if count > 0 || length == 0 => Poll::Ready(Ok(count)),
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.farewell.0.is_unwritable.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(length))
            }
        }
    }
}

impl Read for TappedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = if this.is_observed() {
            this.poll_read_observed(cx, buf)
        } else {
            Pin::new(&mut this.wire).poll_read(cx, buf)
        };
        match (&read, &this.version) {
            (Poll::Ready(Err(error)), _) => this.farewell.capture_alert(error),
            // Who waits for more has acted on all that came before.
            (Poll::Pending, ObservedVersion::Http2 { streams, .. }) => streams.request_settings_poll(),
            _ => {}
        }
        read
    }
}

impl Write for TappedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.farewell.is_unwritable() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.wire).poll_write(cx, bytes);
        this.written(written, bytes.len())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.farewell.is_unwritable() {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut this.wire).poll_flush(cx);
        this.written(flushed.map_ok(|()| 0), 0).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = slices.iter().map(|slice| slice.len()).sum();
        if this.farewell.is_unwritable() {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(&mut this.wire).poll_write_vectored(cx, slices);
        this.written(written, length)
    }
}
