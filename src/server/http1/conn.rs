//! A client's HTTP/1 connection: its stream, its read buffer, and the body of the current request.
//! Which task reads from the socket while a delivery is in progress?

mod body;
mod lingering_close;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use self::body::Http1Body;
use super::head::{self, RequestHead};
use super::response_head::write_head;
use crate::delivery::{InterimSender, RequestBodyError, SendInterim};
use crate::http_message::{Fields, keep_read_buffer};
use crate::net::body_framing::{Decoded, Framing};
use crate::net::deadline;
use crate::server::client_io::{ClientIo, Rewind, poll_read};
use crate::server::request_error::InvalidRequest;

/// Limits the bytes that are read ahead of the body's reader, and of the next request.
const READ_AHEAD_MAX: usize = 64 * 1024;
/// Limits the bytes that are read ahead before the body is requested. Many deliveries may wait for a limit then, and
/// the kernel buffers the rest.
const READ_AHEAD_MAX_UNREQUESTED: usize = 8 * 1024;
/// The time from the first byte of a head to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A connection. The task that serves its requests is the only owner, and dropping it closes the connection. A body
/// holds only a weak reference, because a delivery may keep the body for longer than the client stays connected.
pub(super) struct Conn(Arc<Mutex<ConnState>>);

struct ConnState {
    stream: Box<dyn ClientIo>,
    buffer: BytesMut,
    framing: Framing,
    /// The length of the prefix of `buffer` that is known to hold no complete head. It saves a parse for every arrival.
    scanned: usize,
    /// Set once the body has been polled.
    body_requested: bool,
    /// The last bytes read are acknowledged, or need no immediate acknowledgement.
    is_acknowledged: bool,
    /// `100 Continue` is to be sent when the body is first polled.
    continue_pending: bool,
    /// Interim responses that are written before anything else.
    pending_interim: Vec<u8>,
    /// Wakes the reader of the body.
    body_waker: Option<Waker>,
    /// Wakes the task in [`Conn::hangup`]. The socket wakes only one reader, which is this task. It reads on behalf of
    /// the body's reader, too, which may have stopped polling.
    hangup_waker: Option<Waker>,
    abort_on_drop: bool,
    /// The number of the current request. The body of an earlier request gets no more data.
    generation: u64,
}

/// The reason why no request head was read.
pub(super) enum ReadHeadError {
    /// The client closed the connection, or was idle or slow for too long. No response is sent.
    Closed,
    Invalid(InvalidRequest),
}

impl Conn {
    /// Creates a connection. `buffer` holds the bytes that were read already.
    pub(super) fn new(stream: Box<dyn ClientIo>, buffer: BytesMut) -> Self {
        let state = ConnState {
            stream,
            buffer,
            framing: Framing::Ended,
            scanned: 0,
            body_requested: false,
            is_acknowledged: false,
            continue_pending: false,
            pending_interim: Vec::new(),
            body_waker: None,
            hangup_waker: None,
            abort_on_drop: false,
            generation: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Reads the next request head. `close` ends the wait before the first byte of the head, and is dropped then; `evicted`
    /// ends it at any time.
    ///
    /// Both are references: an argument of an async function that is moved into a local would take its memory twice.
    pub(super) async fn read_head(
        &self,
        idle: Duration,
        mut close: Pin<&mut Option<impl Future<Output = ()>>>,
        mut evicted: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<RequestHead, ReadHeadError> {
        let mut deadline = Instant::now() + idle;
        let mut has_begun = false;
        self.0.lock().release_buffer();
        loop {
            if let Some(head) = self.0.lock().take_head().map_err(ReadHeadError::Invalid)? {
                return Ok(head);
            }
            if !has_begun && !self.0.lock().buffer.is_empty() {
                has_begun = true;
                close.set(None);
                deadline = Instant::now() + HEAD_TIMEOUT;
            }
            let read = poll_fn(|cx| {
                if let Poll::Ready(read) = self.0.lock().poll_read(cx) {
                    return Poll::Ready(read);
                }
                let should_close = close.as_mut().as_pin_mut().is_some_and(|close| close.poll(cx).is_ready());
                if should_close || evicted.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(0));
                }
                Poll::Pending
            });
            match deadline::timeout_at(deadline, read).await {
                Ok(Ok(length)) if length > 0 => {}
                _ => return Err(ReadHeadError::Closed),
            }
        }
    }

    /// Returns whether the request's body was read to its end.
    pub(super) fn body_has_ended(&self) -> bool {
        self.0.lock().framing.has_ended()
    }

    /// Returns whether the rest of the body can be discarded so that the next request may follow. The rest must be at
    /// most `max_bytes` long, or chunked where `allow_chunked` is set, and certain to arrive. A client that still waits
    /// for `100 Continue` may or may not send it.
    pub(super) fn can_discard_body(&self, max_bytes: u64, allow_chunked: bool) -> bool {
        let state = self.0.lock();
        let is_short = state.framing.remaining().map_or(allow_chunked, |left| left <= max_bytes);
        state.framing.has_ended() || (!state.continue_pending && state.framing != Framing::Malformed && is_short)
    }

    /// Ends an upload that continues after its response: bytes that are read from now on do not go to its body.
    pub(super) fn invalidate_body(&self) {
        let mut state = self.0.lock();
        state.generation += 1;
        if let Some(waker) = state.body_waker.take() {
            waker.wake();
        }
    }

    pub(super) fn set_abort_on_drop(&self, abort_on_drop: bool) {
        let mut state = self.0.lock();
        if state.abort_on_drop != abort_on_drop {
            state.abort_on_drop = abort_on_drop;
            state.stream.set_abort_on_drop(abort_on_drop);
        }
    }

    /// Takes the stream out of the connection. It begins with the bytes that were read ahead.
    pub(super) fn take_stream(&self) -> Box<dyn ClientIo> {
        let mut state = self.0.lock();
        let stream = std::mem::replace(&mut state.stream, Box::new(tokio::io::empty()));
        match std::mem::take(&mut state.buffer) {
            buffer if buffer.is_empty() => stream,
            buffer => Box::new(Rewind::new(buffer, stream)),
        }
    }

    pub(super) fn body(&self) -> Http1Body {
        Http1Body { generation: self.0.lock().generation, conn: Arc::downgrade(&self.0), has_ended: false }
    }

    /// Returns a sender that lasts as long as the connection.
    pub(super) fn interim_sender(&self) -> InterimSender {
        let state: Weak<Mutex<ConnState>> = Arc::downgrade(&self.0);
        state
    }

    /// Resolves when the client hangs up while it waits for a response: it closes, resets, or ends its sending
    /// direction. A half-close counts as a hangup, as in nginx and Envoy, because most clients that give up send
    /// nothing else. Bytes that the client sends ahead stay in the buffer up to [`READ_AHEAD_MAX`], and then in the
    /// socket.
    pub(super) async fn hangup(&self) {
        poll_fn(|cx| self.0.lock().poll_hangup(cx)).await;
    }

    /// Writes all bytes. Each partial write may take `write_timeout`.
    pub(super) async fn write_all(&self, mut bytes: &[u8], write_timeout: Duration) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = poll_fn(|cx| {
                let mut state = self.0.lock();
                ready!(state.poll_write_interim(cx))?;
                Pin::new(&mut state.stream).poll_write(cx, bytes)
            });
            let written = tokio::time::timeout(write_timeout, write).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        // TLS may buffer bytes that the socket did not accept.
        let flush = poll_fn(|cx| Pin::new(&mut self.0.lock().stream).poll_flush(cx));
        tokio::time::timeout(write_timeout, flush).await?
    }
}

impl SendInterim for Mutex<ConnState> {
    /// Queues an interim response. The task in [`Conn::hangup`] writes it.
    fn send_interim(&self, status: StatusCode, fields: &Fields) {
        let mut state = self.lock();
        write_head(&mut state.pending_interim, status, status.canonical_reason().unwrap_or_default(), fields);
        if let Some(waker) = state.hangup_waker.take() {
            waker.wake();
        }
    }
}

impl Drop for ConnState {
    fn drop(&mut self) {
        // The reader of the body must learn that no more data will arrive.
        if let Some(waker) = self.body_waker.take() {
            waker.wake();
        }
    }
}

impl ConnState {
    fn take_head(&mut self) -> Result<Option<RequestHead>, InvalidRequest> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        if !head::may_be_complete(&self.buffer, self.scanned) {
            self.scanned = self.buffer.len();
            return Ok(None);
        }
        let head = head::parse(&mut self.buffer)?;
        self.scanned = if head.is_some() { 0 } else { self.buffer.len() };
        if let Some(head) = &head {
            self.generation += 1;
            self.framing = head.framing;
            self.body_requested = false;
            self.continue_pending = head.expects_continue && !head.framing.has_ended();
        }
        Ok(head)
    }

    /// Passes the memory of the buffer on if it is empty.
    fn release_buffer(&mut self) {
        if self.buffer.is_empty() {
            keep_read_buffer(std::mem::take(&mut self.buffer));
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = poll_read(&mut self.stream, &mut self.buffer, cx);
        // The kernel is asked once for each arrival: the client may delay the rest of the body until the
        // acknowledgement.
        if read.is_ready() {
            self.is_acknowledged = false;
        } else if !std::mem::replace(&mut self.is_acknowledged, true) && !self.framing.is_buffered(&self.buffer) {
            self.stream.acknowledge();
        }
        read
    }

    fn poll_write_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending_interim.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending_interim))?;
            self.pending_interim.drain(..written);
            if self.pending_interim.is_empty() {
                let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.hangup_waker = Some(cx.waker().clone());
        if let Poll::Ready(Err(_)) = self.poll_write_interim(cx) {
            return Poll::Ready(());
        }
        while !self.is_full() {
            let read = ready!(self.poll_read(cx));
            if let Some(waker) = self.body_waker.take() {
                waker.wake();
            }
            if !matches!(read, Ok(1..)) {
                return Poll::Ready(());
            }
        }
        self.stream.poll_read_closed(cx)
    }

    fn is_full(&self) -> bool {
        self.buffer.len() >= if self.body_requested { READ_AHEAD_MAX } else { READ_AHEAD_MAX_UNREQUESTED }
    }

    fn poll_body(&mut self, generation: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        if generation != self.generation {
            return Poll::Ready(Some(Err(RequestBodyError::ClientGone)));
        }
        let was_full = self.is_full();
        self.body_requested = true;
        let hangup_waker = self.hangup_waker.clone();
        let polled = self.poll_body_inner(
            &mut hangup_waker.as_ref().map_or_else(|| Context::from_waker(cx.waker()), Context::from_waker),
        );
        if polled.is_pending() {
            self.body_waker = Some(cx.waker().clone());
        }
        // The buffer has capacity again for reading ahead.
        if was_full && let Some(hangup_waker) = hangup_waker {
            hangup_waker.wake();
        }
        polled
    }

    /// Polls the body with the context of the task in [`Conn::hangup`], if there is one.
    fn poll_body_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        loop {
            match self.framing.decode(&mut self.buffer) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::Incomplete) => {}
                Err(_) => return Poll::Ready(Some(Err(RequestBodyError::Malformed))),
            }
            if std::mem::take(&mut self.continue_pending) {
                self.pending_interim.extend_from_slice(CONTINUE);
            }
            if ready!(self.poll_write_interim(cx)).is_err() {
                return Poll::Ready(Some(Err(RequestBodyError::ClientGone)));
            }
            match ready!(self.poll_read(cx)) {
                Ok(length) if length > 0 => {}
                _ => return Poll::Ready(Some(Err(RequestBodyError::ClientGone))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use http_body::Body;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn hangup_detection_buffers_little_before_the_body_is_requested() {
        let (server, mut client) = tokio::io::duplex(1024 * 1024);
        let head = b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n";
        client.write_all(&[&head[..], &[7; 200_000]].concat()).await.unwrap();
        let conn = Conn::new(Box::new(server), BytesMut::new());
        assert!(conn.read_head(HEAD_TIMEOUT, pin!(Some(pending())), pin!(pending())).await.is_ok());
        let mut cx = Context::from_waker(Waker::noop());
        let mut poll_and_measure = || {
            assert!(conn.0.lock().poll_hangup(&mut cx).is_pending());
            conn.0.lock().buffer.capacity()
        };
        let capacity = poll_and_measure();
        assert!(capacity <= 3 * READ_AHEAD_MAX_UNREQUESTED, "{capacity} bytes");
        let polled = Box::pin(conn.body()).as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Some(Ok(_)))));
        assert!(poll_and_measure() >= READ_AHEAD_MAX, "a requested body is read ahead");
    }
}
