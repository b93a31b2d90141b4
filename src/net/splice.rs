//! Moves bytes from one TCP socket to another within the kernel, through a pipe (splice(2)).
//! How do many bytes pass without being copied into the process, and how many pipes does that take?

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::panics::Mutex;

/// The bytes that one call moves at most: the size of a pipe. The kernel permits it without privilege
/// (/proc/sys/fs/pipe-max-size).
const PIPE_LEN: usize = 256 * 1024;
/// The pipes of the process. Each takes two descriptors of the reserve (`fd_limit`). A direction without a pipe copies
/// its bytes.
const PIPES_MAX: usize = 32;

/// A permit for each pipe that may still be created.
static PIPES: Semaphore = Semaphore::const_new(PIPES_MAX);
/// The pipes that no direction uses. They are empty.
static IDLE_PIPES: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

/// A stream that may be a TCP socket, with neither a protocol nor a buffer nor a limit in between. By default it is not.
pub trait MaybeSocket {
    /// Returns the socket from which the next bytes are read.
    fn read_socket(&self) -> Option<&TcpStream> {
        None
    }

    /// Returns the socket to which bytes are written.
    fn write_socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// The stream of tests.
#[cfg(test)]
impl MaybeSocket for tokio::io::DuplexStream {}

/// A pipe, and the bytes in it.
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    len: usize,
    _permit: SemaphorePermit<'static>,
}

impl Pipe {
    /// Returns an empty pipe; `None`: all pipes are in use, or the process has no descriptor for another.
    pub(super) fn acquire() -> Option<Self> {
        if let Some(idle) = IDLE_PIPES.lock().pop() {
            return Some(idle);
        }
        let permit = PIPES.try_acquire().ok()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // A smaller pipe works too: a user may have reached the limit of pipe-user-pages-soft.
        let _ = fcntl_setpipe_size(&writer, PIPE_LEN);
        Some(Self { reader, writer, len: 0, _permit: permit })
    }

    /// Returns the pipe for use by others. A pipe with bytes is closed instead.
    pub(super) fn release(self) {
        if self.len == 0 {
            IDLE_PIPES.lock().push(self);
        }
    }

    /// Returns the number of bytes in the pipe.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Moves bytes that have arrived at `from` into the empty pipe, and returns their number, or 0 at the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.len, 0, "EAGAIN of a pipe with bytes would not mean that the socket is empty");
        let moved = poll_io(cx, from, Interest::READABLE, || transfer(from, &self.writer, PIPE_LEN));
        self.len = ready!(moved)?;
        Poll::Ready(Ok(self.len))
    }

    /// Moves all bytes of the pipe to `to`.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let moved = poll_io(cx, to, Interest::WRITABLE, || transfer(&self.reader, to, self.len));
            match ready!(moved)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                moved => self.len = self.len.saturating_sub(moved),
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn transfer(from: impl AsFd, to: impl AsFd, max_bytes: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, max_bytes, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

/// Calls `transfer` when the socket is ready, until it returns something else than EAGAIN.
fn poll_io(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    interest: Interest,
    transfer: impl Fn() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        match interest.is_readable() {
            true => ready!(socket.poll_read_ready(cx))?,
            false => ready!(socket.poll_write_ready(cx))?,
        }
        match socket.try_io(interest, &transfer) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

#[cfg(test)]
pub(super) fn pipe_count() -> usize {
    PIPES_MAX - PIPES.available_permits()
}
