//! A client's connection: its bytes in both directions, and the body that is being read off it.
//! What is read, and by whom, while a delivery goes on?

mod lingering_close;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::body::{Decoded, Framing};
use super::head::{self, RequestHead};
use crate::delivery::RequestBodyError;
use crate::server::client_io::{ClientIo, Rewind, poll_read};
use crate::server::request_error::InvalidRequest;

/// Bytes that are read ahead of the body's reader, and of the next request.
const READ_AHEAD_MAX: usize = 64 * 1024;
/// The same before the body is asked for. Many deliveries may wait like that, and the kernel keeps the rest.
const READ_AHEAD_MAX_WAITING: usize = 8 * 1024;
/// From the first byte of a head to its last: a slow client cannot hold a connection with less.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The connection. The loop that answers is its one owner, and it closes with that; a body that is read off it does not
/// keep it, since whoever carries the body to a target may do so for longer than there is a client.
pub(super) struct Conn(Arc<Mutex<ConnState>>);

/// Through which interim answers go, while there is a connection.
pub(super) struct InterimWriter(Weak<Mutex<ConnState>>);

struct ConnState {
    stream: Box<dyn ClientIo>,
    buffer: BytesMut,
    framing: Framing,
    /// How much of it is no whole head: it is not parsed again for every byte that comes.
    examined: usize,
    /// Somebody has asked for the body.
    is_asked_for: bool,
    /// What was read last is acknowledged, or needs no haste.
    is_acknowledged: bool,
    /// `100 Continue` is due when the body is first asked for.
    owes_continue: bool,
    /// Interim answers that are still to be written, before anything else.
    interim: Vec<u8>,
    /// Wakes the reader of the body.
    body_waker: Option<Waker>,
    /// Wakes the task in [`Conn::hangs_up`]. The socket wakes one reader only, and this is the one: it reads for the body's
    /// reader too, which may have stopped to poll.
    lookout_waker: Option<Waker>,
    resets: bool,
    /// Whose turn it is to read: a body of a former turn gets nothing any more.
    generation: u64,
}

/// Why no head came.
pub(super) enum ReadHeadError {
    /// The client closed, or was idle or slow for too long: nothing to answer.
    Closed,
    Invalid(InvalidRequest),
}

impl Conn {
    /// `buffer` has what was read of it already.
    pub(super) fn new(stream: Box<dyn ClientIo>, buffer: BytesMut) -> Self {
        let state = ConnState {
            stream,
            buffer,
            framing: Framing::Ended,
            examined: 0,
            is_asked_for: false,
            is_acknowledged: false,
            owes_continue: false,
            interim: Vec::new(),
            body_waker: None,
            lookout_waker: None,
            resets: false,
            generation: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The next request's head. A connection that has sent nothing of it yet ends when `over` does, and any when `evicted`
    /// does.
    pub(super) async fn head(
        &self,
        idle: Duration,
        close: impl Future<Output = ()>,
        evicted: impl Future<Output = ()>,
    ) -> Result<RequestHead, ReadHeadError> {
        let (mut over, mut evicted) = (pin!(Some(close)), pin!(evicted));
        let mut deadline = Instant::now() + idle;
        let mut begun = false;
        self.0.lock().release();
        loop {
            if let Some(head) = self.0.lock().take_head().map_err(ReadHeadError::Invalid)? {
                return Ok(head);
            }
            if !begun && !self.0.lock().buffer.is_empty() {
                begun = true;
                over.set(None);
                deadline = Instant::now() + HEAD_TIMEOUT;
            }
            let read = poll_fn(|cx| {
                if let Poll::Ready(read) = self.0.lock().poll_read(cx) {
                    return Poll::Ready(read);
                }
                let is_over = over.as_mut().as_pin_mut().is_some_and(|over| over.poll(cx).is_ready());
                if is_over || evicted.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(0));
                }
                Poll::Pending
            });
            match tokio::time::timeout_at(deadline, read).await {
                Ok(Ok(length)) if length > 0 => {}
                _ => return Err(ReadHeadError::Closed),
            }
        }
    }

    /// Whether the request's body was read to its end.
    pub(super) fn body_has_ended(&self) -> bool {
        self.0.lock().framing.has_ended()
    }

    /// Whether what is left of the body can be read away so that the next request may follow: it has no more than `most`
    /// bytes, or as many as chunks will tell where `takes_chunks` is set, and it is certain to come. A client that still
    /// waits for `100 Continue` may send it or not.
    pub(super) fn can_drain_body(&self, most: u64, takes_chunks: bool) -> bool {
        let state = self.0.lock();
        let is_short = state.framing.remaining().map_or(takes_chunks, |left| left <= most);
        state.framing.has_ended() || (!state.owes_continue && state.framing != Framing::Malformed && is_short)
    }

    /// Ends an upload that still streams although its answer is out: what is read from now on is not its body.
    pub(super) fn abandon_body(&self) {
        let mut state = self.0.lock();
        state.generation += 1;
        if let Some(waker) = state.body_waker.take() {
            waker.wake();
        }
    }

    pub(super) fn set_abort_on_drop(&self, resets: bool) {
        let mut state = self.0.lock();
        if state.resets != resets {
            state.resets = resets;
            state.stream.resets_when_dropped(resets);
        }
    }

    /// What comes through the connection from now on, beginning with what was read ahead.
    pub(super) fn take_stream(&self) -> Rewind<Box<dyn ClientIo>> {
        let mut state = self.0.lock();
        let stream = std::mem::replace(&mut state.stream, Box::new(tokio::io::empty()));
        Rewind::new(std::mem::take(&mut state.buffer), stream)
    }

    pub(super) fn body(&self) -> Http1Body {
        Http1Body { generation: self.0.lock().generation, conn: Arc::downgrade(&self.0) }
    }

    pub(super) fn interim_writer(&self) -> InterimWriter {
        InterimWriter(Arc::downgrade(&self.0))
    }

    /// Resolves when the client hangs up while its answer is awaited: it closes, resets, or ends its own direction. A
    /// half-close counts as a hang-up, as in nginx and Envoy, since most clients that give up send nothing else. What the
    /// client sends ahead, of the body and behind it, is kept for later: here up to [`READ_AHEAD_MAX`], and in the socket.
    pub(super) async fn hangs_up(&self) {
        poll_fn(|cx| self.0.lock().poll_hang_up(cx)).await;
    }

    /// Writes all of it; each piece of progress may take `patience`.
    pub(super) async fn write_all(&self, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = poll_fn(|cx| {
                let mut state = self.0.lock();
                ready!(state.poll_interim(cx))?;
                Pin::new(&mut state.stream).poll_write(cx, bytes)
            });
            let written = tokio::time::timeout(patience, write).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        // TLS may hold back what the socket had no room for.
        let flush = poll_fn(|cx| Pin::new(&mut self.0.lock().stream).poll_flush(cx));
        tokio::time::timeout(patience, flush).await?
    }
}

impl InterimWriter {
    /// An interim answer, which whoever looks out for a hang-up writes.
    pub(super) fn interim(&self, head: &[u8]) {
        let Some(line) = self.0.upgrade() else { return };
        let mut state = line.lock();
        state.interim.extend_from_slice(head);
        if let Some(waker) = state.lookout_waker.take() {
            waker.wake();
        }
    }
}

impl Drop for ConnState {
    fn drop(&mut self) {
        // Whoever waits for more of a body learns that none will come.
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
        if !head::may_be_whole(&self.buffer, self.examined) {
            self.examined = self.buffer.len();
            return Ok(None);
        }
        let head = head::parse(&mut self.buffer)?;
        self.examined = if head.is_some() { 0 } else { self.buffer.len() };
        if let Some(head) = &head {
            self.generation += 1;
            self.framing = head.framing;
            self.is_asked_for = false;
            self.owes_continue = head.expects_continue && !head.framing.has_ended();
        }
        Ok(head)
    }

    /// Gives the buffer's memory back where it holds nothing.
    fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = poll_read(&mut self.stream, &mut self.buffer, cx);
        // Once for each arrival: the client may hold the rest of the body back until it is acknowledged.
        if read.is_ready() {
            self.is_acknowledged = false;
        } else if !std::mem::replace(&mut self.is_acknowledged, true) && !self.framing.is_whole(&self.buffer) {
            self.stream.acknowledge();
        }
        read
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.interim))?;
            self.interim.drain(..written);
            if self.interim.is_empty() {
                let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.lookout_waker = Some(cx.waker().clone());
        if let Poll::Ready(Err(_)) = self.poll_interim(cx) {
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
        self.buffer.len() >= if self.is_asked_for { READ_AHEAD_MAX } else { READ_AHEAD_MAX_WAITING }
    }

    fn poll_body(&mut self, turn: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        if turn != self.generation {
            return Poll::Ready(Some(Err(RequestBodyError::ClientGone)));
        }
        let was_full = self.is_full();
        self.is_asked_for = true;
        let reader = self.lookout_waker.clone();
        let polled = self
            .poll_body_now(&mut reader.as_ref().map_or_else(|| Context::from_waker(cx.waker()), Context::from_waker));
        if polled.is_pending() {
            self.body_waker = Some(cx.waker().clone());
        }
        // There is room again to read ahead.
        if was_full && let Some(reader) = reader {
            reader.wake();
        }
        polled
    }

    /// `cx` is that of the connection's task, where it looks out for a hang-up.
    fn poll_body_now(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        loop {
            match self.framing.decode(&mut self.buffer) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::Incomplete) => {}
                Err(_) => return Poll::Ready(Some(Err(RequestBodyError::Malformed))),
            }
            if std::mem::take(&mut self.owes_continue) {
                self.interim.extend_from_slice(CONTINUE);
            }
            if ready!(self.poll_interim(cx)).is_err() {
                return Poll::Ready(Some(Err(RequestBodyError::ClientGone)));
            }
            match ready!(self.poll_read(cx)) {
                Ok(length) if length > 0 => {}
                _ => return Poll::Ready(Some(Err(RequestBodyError::ClientGone))),
            }
        }
    }
}

/// The body of the request whose head was read last.
pub(super) struct Http1Body {
    conn: Weak<Mutex<ConnState>>,
    generation: u64,
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(line) = self.conn.upgrade() else { return Poll::Ready(Some(Err(RequestBodyError::ClientGone))) };
        line.lock().poll_body(self.generation, cx).map(|data| data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.conn.upgrade().is_some_and(|line| {
            let state = line.lock();
            state.generation == self.generation && state.framing.has_ended()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let remaining = self.conn.upgrade().and_then(|line| line.lock().framing.remaining());
        remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn hang_up_costs_little_memory_while_nobody_asks_for_the_body() {
        let (near, mut far) = tokio::io::duplex(1024 * 1024);
        let head = b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n";
        far.write_all(&[&head[..], &[7; 200_000]].concat()).await.unwrap();
        let line = Conn::new(Box::new(near), BytesMut::new());
        assert!(line.head(HEAD_TIMEOUT, pending(), pending()).await.is_ok());
        let mut cx = Context::from_waker(Waker::noop());
        let mut looks_out = || {
            assert!(line.0.lock().poll_hang_up(&mut cx).is_pending());
            line.0.lock().buffer.capacity()
        };
        let held = looks_out();
        assert!(held <= 3 * READ_AHEAD_MAX_WAITING, "{held} bytes");
        let asked = Box::pin(line.body()).as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(asked, Poll::Ready(Some(Ok(_)))));
        assert!(looks_out() >= READ_AHEAD_MAX, "a body that is read is read ahead");
    }
}
