//! Copies bytes in both directions between two connections until both have ended.
//! When does a tunnel end, and which memory does an idle tunnel hold?

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::splice::{MaybeSocket, Pipe};

/// Bytes that are copied at once.
const BUFFER_LEN: usize = 64 * 1024;
/// When as many bytes arrived at once, the next are spliced. For fewer, the kernel's work on a pipe costs more than the
/// copies.
const SPLICE_MIN: usize = 16 * 1024;

thread_local! {
    /// The buffer of all tunnels of a thread: bytes are read into it and, almost always, written at once.
    static SCRATCH_BUFFER: RefCell<Box<[u8; BUFFER_LEN]>> = RefCell::new(Box::new([0; BUFFER_LEN]));
}

/// One direction of a tunnel.
#[derive(Default)]
struct CopyDirection {
    /// Bytes that were read and not yet written. The buffer is empty and unallocated unless the reader is slow.
    buffered: Vec<u8>,
    written: usize,
    /// Holds bytes between two sockets. A direction without bytes to move has none.
    pipe: Option<Pipe>,
    /// The bytes that arrived at once last.
    last_read: usize,
    /// The sender has closed its direction. The buffered bytes are written first, and then the end (RFC 9110 §9.3.6).
    read_closed: bool,
    done: bool,
    /// The error of the last write. The receiver accepts no more bytes; bytes that it sent are still copied.
    write_error: Option<io::Error>,
}

/// The reason that a tunnel ended before both sides had closed.
#[derive(Debug)]
pub enum CopyError {
    /// No byte was copied for the idle timeout.
    Idle,
    /// The tunnel reached its maximum duration.
    MaxDuration,
    /// The connection of the first side failed.
    First(io::Error),
    /// The connection of the second side failed.
    Second(io::Error),
}

/// Copies bytes between `first` and `second`. `count` is called with the number of bytes for `second` and the number for
/// `first`.
pub async fn copy_bidirectional<A, B>(
    first: &mut A,
    second: &mut B,
    idle: Duration,
    deadline: Instant,
    mut count: impl FnMut(u64, u64),
) -> Result<(), CopyError>
where
    A: AsyncRead + AsyncWrite + MaybeSocket + Unpin,
    B: AsyncRead + AsyncWrite + MaybeSocket + Unpin,
{
    let (mut first_to_second, mut second_to_first) = (CopyDirection::default(), CopyDirection::default());
    let mut last_activity = Instant::now();
    let mut timer = pin!(sleep_until(deadline.min(last_activity + idle)));
    poll_fn(|cx| {
        let (mut sent, mut received) = (0, 0);
        let waiting = first_to_second.waiting() + second_to_first.waiting();
        let polled = (
            first_to_second.poll_copy(cx, first, second, &mut sent),
            second_to_first.poll_copy(cx, second, first, &mut received),
        );
        let polled = match polled {
            (Poll::Ready(Err(error)), _) => Poll::Ready(Err(CopyError::First(error))),
            (_, Poll::Ready(Err(error))) => Poll::Ready(Err(CopyError::Second(error))),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(match (first_to_second.write_error.take(), second_to_first.write_error.take()) {
                    (Some(error), _) => Err(CopyError::Second(error)),
                    (None, Some(error)) => Err(CopyError::First(error)),
                    (None, None) => Ok(()),
                })
            }
            _ => Poll::Pending,
        };
        if sent + received > 0 {
            count(sent, received);
        }
        // A receiver that takes bytes slowly is not idle.
        if sent + received > 0 || first_to_second.waiting() + second_to_first.waiting() < waiting {
            last_activity = Instant::now();
        }
        // The timer is not reset for every byte. When it fires, the deadlines are compared again.
        while polled.is_pending() {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            match () {
                () if deadline <= now => return Poll::Ready(Err(CopyError::MaxDuration)),
                () if last_activity + idle <= now => return Poll::Ready(Err(CopyError::Idle)),
                () => timer.as_mut().reset(deadline.min(last_activity + idle)),
            }
        }
        polled
    })
    .await
}

/// The side whose error ended a direction.
enum FailedSide {
    Reader(io::Error),
    Writer(io::Error),
}

impl CopyDirection {
    /// Copies in one direction, and returns the error of the reader `from`. An error of the writer is stored in
    /// `write_error`.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut u64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + MaybeSocket + Unpin,
        W: AsyncWrite + MaybeSocket + Unpin,
    {
        Poll::Ready(match ready!(self.poll_advance(cx, from, to, moved)) {
            Ok(()) => Ok(()),
            Err(FailedSide::Reader(error)) => Err(error),
            Err(FailedSide::Writer(error)) => {
                self.done = true;
                self.write_error = Some(error);
                Ok(())
            }
        })
    }

    /// Returns the number of bytes that were read and not yet written.
    fn waiting(&self) -> usize {
        self.buffered.len() - self.written + self.pipe.as_ref().map_or(0, Pipe::len)
    }

    fn poll_advance<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut u64,
    ) -> Poll<Result<(), FailedSide>>
    where
        R: AsyncRead + MaybeSocket + Unpin,
        W: AsyncWrite + MaybeSocket + Unpin,
    {
        while !self.done {
            while self.written < self.buffered.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffered[self.written..]));
                self.written += nonzero(written).map_err(FailedSide::Writer)?;
            }
            self.buffered.clear();
            self.written = 0;
            if let (Some(pipe), Some(to)) = (&mut self.pipe, to.write_socket()) {
                ready!(pipe.poll_drain(cx, to)).map_err(FailedSide::Writer)?;
            }
            if self.read_closed {
                self.pipe.take().into_iter().for_each(Pipe::release);
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(FailedSide::Writer)?;
                self.done = true;
                break;
            }
            let spliced = self.poll_splice(cx, from, to);
            let Poll::Ready(read) = spliced.unwrap_or_else(|| self.poll_chunk(cx, from, to))? else {
                self.buffered = Vec::new();
                self.pipe.take().into_iter().for_each(Pipe::release);
                // A TLS writer may hold unsent records.
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(FailedSide::Writer)?;
                return Poll::Pending;
            };
            (self.read_closed, self.last_read) = (read == 0, read);
            *moved += read as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves bytes into a pipe. `None`: the bytes are few, a side is not a socket, or no pipe is free.
    fn poll_splice<R, W>(&mut self, cx: &mut Context<'_>, from: &R, to: &W) -> Option<Result<Poll<usize>, FailedSide>>
    where
        R: MaybeSocket,
        W: MaybeSocket,
    {
        if self.last_read < SPLICE_MIN {
            return None;
        }
        let (from, _) = from.read_socket().zip(to.write_socket())?;
        let mut pipe = self.pipe.take().or_else(Pipe::acquire)?;
        let filled = pipe.poll_fill(cx, from);
        self.pipe = Some(pipe);
        Some(match filled {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(filled) => filled.map(Poll::Ready).map_err(FailedSide::Reader),
        })
    }

    /// Reads once and writes as much of it as possible; the rest is buffered.
    fn poll_chunk<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Result<Poll<usize>, FailedSide>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut chunk = ReadBuf::new(&mut scratch[..]);
            match Pin::new(from).poll_read(cx, &mut chunk) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(read) => read.map_err(FailedSide::Reader)?,
            }
            let chunk = chunk.filled();
            let written = match chunk.is_empty() {
                true => 0,
                false => match Pin::new(to).poll_write(cx, chunk) {
                    Poll::Pending => 0,
                    Poll::Ready(written) => nonzero(written).map_err(FailedSide::Writer)?,
                },
            };
            self.buffered.extend_from_slice(&chunk[written..]);
            Ok(Poll::Ready(chunk.len()))
        })
    }
}

fn nonzero(written: io::Result<usize>) -> io::Result<usize> {
    match written? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

#[cfg(test)]
mod tests;
