//! A TCP connection without a kernel: bytes in order, a half-close, a window, and resets that behave as Linux's do.
//! What does each end see after the other has closed, reset, or stopped reading?

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Fault, Operation, network};

/// One end of a connection. Dropping it closes the connection: in order, or by a reset if bytes are unread.
#[derive(Debug)]
pub(crate) struct SimulatedSocket {
    link: Arc<Link>,
    side: usize,
}

#[derive(Debug)]
struct Link {
    id: u32,
    addresses: [SocketAddr; 2],
    /// The bytes that an end holds for its reader. The other end waits beyond.
    window: usize,
    ends: Mutex<[End; 2]>,
}

/// The state of one end, as its kernel would hold it.
#[derive(Debug, Default)]
struct End {
    /// Bytes that have arrived and are not read.
    inbox: VecDeque<u8>,
    /// The other end has closed its direction.
    has_fin: bool,
    /// The error that the next operation returns (`sk_err`).
    error: Option<io::ErrorKind>,
    /// The connection was reset.
    is_reset: bool,
    is_write_closed: bool,
    is_closed: bool,
    linger_zero: bool,
    read_waker: Option<Waker>,
    write_waker: Option<Waker>,
    /// Bytes that the reader of this end has taken.
    read: u64,
}

/// The side that outgate holds. Only its operations meet faults.
const OUTGATE: usize = 0;
const PEER: usize = 1;

/// Makes a connection. The first end is outgate's.
pub(crate) fn pair(id: u32, addresses: [SocketAddr; 2], window: usize) -> (SimulatedSocket, SimulatedSocket) {
    let link = Arc::new(Link { id, addresses, window, ends: Mutex::default() });
    (SimulatedSocket { link: Arc::clone(&link), side: OUTGATE }, SimulatedSocket { link, side: PEER })
}

/// Observes outgate's end of a connection.
#[derive(Debug)]
pub(crate) struct LinkProbe(Arc<Link>);

impl LinkProbe {
    pub(crate) fn is_closed_by_outgate(&self) -> bool {
        self.0.ends.lock()[OUTGATE].is_closed
    }

    /// Returns how many bytes outgate has read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.0.ends.lock()[OUTGATE].read
    }
}

impl End {
    fn wake(&mut self) {
        self.read_waker.take().into_iter().chain(self.write_waker.take()).for_each(Waker::wake);
    }

    fn reset(&mut self) {
        (self.is_reset, self.error) = (true, Some(io::ErrorKind::ConnectionReset));
        self.wake();
    }

    /// Returns whether the other end will send no more.
    fn has_ended(&self) -> bool {
        self.has_fin || self.is_reset || self.error.is_some()
    }
}

impl SimulatedSocket {
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.link.addresses[self.side]
    }

    /// Returns a handle that observes outgate's end, and holds nothing open.
    pub(crate) fn probe(&self) -> LinkProbe {
        LinkProbe(Arc::clone(&self.link))
    }

    /// Returns whether the connection was reset, or dropping this end resets it.
    pub(crate) fn resets(&self) -> bool {
        let end = &self.link.ends.lock()[self.side];
        end.is_reset || !end.inbox.is_empty()
    }

    pub(crate) fn is_idle_and_open(&self) -> bool {
        let end = &self.link.ends.lock()[self.side];
        end.inbox.is_empty() && !end.has_ended()
    }

    pub(crate) fn is_closed_by_peer(&self) -> bool {
        let end = &self.link.ends.lock()[self.side];
        end.inbox.is_empty() && end.has_ended()
    }

    pub(crate) fn set_linger_zero(&self, linger_zero: bool) {
        self.link.ends.lock()[self.side].linger_zero = linger_zero;
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| {
            let end = &mut self.link.ends.lock()[self.side];
            if !end.inbox.is_empty() || end.has_ended() {
                return Poll::Ready(Ok(()));
            }
            end.read_waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Resolves when the other end will send no more, even if bytes are unread. It replaces the waker of `poll_read`.
    pub(crate) fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let end = &mut self.link.ends.lock()[self.side];
        if end.has_ended() {
            return Poll::Ready(());
        }
        end.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let max_len = ready!(self.poll_fault(Operation::Read, cx)).min(buf.remaining());
        let read = ready!(self.poll_take(max_len, cx, |bytes| buf.put_slice(bytes)));
        self.observe(Operation::Read, &read);
        Poll::Ready(read.map(|_| ()))
    }

    fn poll_take(&self, max_len: usize, cx: &mut Context<'_>, mut take: impl FnMut(&[u8])) -> Poll<io::Result<usize>> {
        let mut ends = self.link.ends.lock();
        let end = &mut ends[self.side];
        // Linux returns the bytes that arrived before the error.
        if !end.inbox.is_empty() {
            let count = max_len.min(end.inbox.len());
            let (first, second) = end.inbox.as_slices();
            take(&first[..count.min(first.len())]);
            take(&second[..count.saturating_sub(first.len())]);
            end.inbox.drain(..count);
            end.read += count as u64;
            ends[1 - self.side].write_waker.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(count));
        }
        if let Some(error) = end.error.take() {
            return Poll::Ready(Err(error.into()));
        }
        if end.has_ended() {
            return Poll::Ready(Ok(0));
        }
        end.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    pub(crate) fn poll_write_vectored(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let max_len = ready!(self.poll_fault(Operation::Write, cx));
        let written = ready!(self.poll_put(slices, max_len, cx));
        self.observe(Operation::Write, &written);
        Poll::Ready(written)
    }

    fn poll_put(&self, slices: &[IoSlice<'_>], max_len: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut ends = self.link.ends.lock();
        let [end, other] = ends.get_disjoint_mut([self.side, 1 - self.side]).expect("two ends");
        if let Some(error) = end.error.take() {
            return Poll::Ready(Err(error.into()));
        }
        if end.is_reset || end.is_write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = if other.is_closed { usize::MAX } else { self.link.window.saturating_sub(other.inbox.len()) };
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if room == 0 && total > 0 {
            end.write_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = total.min(room).min(max_len);
        if other.is_closed {
            end.reset(); // the other kernel answers bytes for a closed socket with a reset
        } else {
            other.inbox.extend(slices.iter().flat_map(|slice| slice.iter()).take(count));
            other.read_waker.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Ok(count))
    }

    pub(crate) fn shutdown(&self) -> io::Result<()> {
        let result = self.close_write();
        self.observe(Operation::Shutdown, &result.as_ref().map(|()| 0).map_err(|error| error.kind().into()));
        result
    }

    fn close_write(&self) -> io::Result<()> {
        let mut ends = self.link.ends.lock();
        if ends[self.side].is_reset {
            return Err(io::ErrorKind::NotConnected.into());
        }
        ends[self.side].is_write_closed = true;
        ends[1 - self.side].has_fin = true;
        ends[1 - self.side].wake();
        Ok(())
    }

    /// Resets the connection, as a router or either kernel may.
    pub(crate) fn reset(&self) {
        self.link.ends.lock().iter_mut().for_each(End::reset);
    }

    /// Returns the number of bytes that the operation may transfer.
    fn poll_fault(&self, operation: Operation, cx: &mut Context<'_>) -> Poll<usize> {
        match self.fault(operation) {
            Fault::None => {}
            Fault::Short(length) => return Poll::Ready(length.max(1)),
            Fault::Pending => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Fault::Reset => self.reset(),
        }
        Poll::Ready(usize::MAX)
    }

    fn fault(&self, operation: Operation) -> Fault {
        let network = network().filter(|_| self.side == OUTGATE);
        network.map_or(Fault::None, |network| network.fault(self.link.id, operation))
    }

    fn observe(&self, operation: Operation, result: &io::Result<usize>) {
        if let Some(network) = network().filter(|_| self.side == OUTGATE) {
            network.observe(self.link.id, operation, result);
        }
    }
}

impl Drop for SimulatedSocket {
    fn drop(&mut self) {
        let resets = {
            let end = &mut self.link.ends.lock()[self.side];
            end.is_closed = true;
            end.linger_zero || !end.inbox.is_empty()
        };
        let kept = if resets { self.fault(Operation::Reset) } else { Fault::None };
        let mut ends = self.link.ends.lock();
        let other = &mut ends[1 - self.side];
        match (resets, kept) {
            (false, _) => other.has_fin = true,
            (true, Fault::Short(kept)) => {
                other.inbox.truncate(kept);
                other.reset();
            }
            (true, _) => other.reset(),
        }
        other.wake();
    }
}

impl AsyncRead for SimulatedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        SimulatedSocket::poll_read(&self, cx, buf)
    }
}

impl AsyncWrite for SimulatedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        SimulatedSocket::poll_write(&self, cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        SimulatedSocket::poll_write_vectored(&self, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown())
    }
}
