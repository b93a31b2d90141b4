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

/// Bytes that are copied at once.
const BUFFER_LEN: usize = 64 * 1024;

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

/// Copies bytes between `first` and `second`. `initial`: bytes that were already read from `first`. `count` is called with
/// the number of bytes for `second` and the number for `first`.
pub async fn copy_bidirectional<A, B>(
    first: &mut A,
    second: &mut B,
    initial: Vec<u8>,
    idle: Duration,
    deadline: Instant,
    mut count: impl FnMut(u64, u64),
) -> Result<(), CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    count(initial.len() as u64, 0);
    let (mut first_to_second, mut second_to_first) =
        (CopyDirection { buffered: initial, ..CopyDirection::default() }, CopyDirection::default());
    let mut last_activity = Instant::now();
    let mut timer = pin!(sleep_until(deadline.min(last_activity + idle)));
    poll_fn(|cx| {
        let (mut sent, mut received) = (0, 0);
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
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
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

    fn poll_advance<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut u64,
    ) -> Poll<Result<(), FailedSide>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.done {
            while self.written < self.buffered.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffered[self.written..]));
                self.written += nonzero(written).map_err(FailedSide::Writer)?;
            }
            self.buffered.clear();
            self.written = 0;
            if self.read_closed {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(FailedSide::Writer)?;
                self.done = true;
                break;
            }
            let Poll::Ready(read) = self.poll_chunk(cx, from, to)? else {
                self.buffered = Vec::new();
                // A TLS writer may hold unsent records.
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(FailedSide::Writer)?;
                return Poll::Pending;
            };
            self.read_closed = read == 0;
            *moved += read as u64;
        }
        Poll::Ready(Ok(()))
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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LONG_TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn copy_bidirectional_passes_bytes_and_half_closes_for_every_buffer_size() {
        for size in [1, 7, 1000, 1 << 20] {
            let ((mut client, mut near), (mut far, mut server)) = (duplex(size), duplex(size));
            let sent: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
            let (mut up, mut down) = (0, 0);
            let initial = sent[..5000].to_vec();
            let copying = copy_bidirectional(
                &mut near,
                &mut far,
                initial,
                LONG_TIMEOUT,
                Instant::now() + LONG_TIMEOUT,
                |sent, received| {
                    up += sent;
                    down += received;
                },
            );
            let server_task = async {
                let mut received_bytes = Vec::new();
                server.read_to_end(&mut received_bytes).await.unwrap(); // until the client half-closes
                server.write_all(&received_bytes).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let client_task = async {
                client.write_all(&sent[5000..]).await.unwrap();
                client.shutdown().await.unwrap();
                let mut received_bytes = Vec::new();
                client.read_to_end(&mut received_bytes).await.unwrap();
                assert!(received_bytes == sent);
            };
            let (copied, (), ()) = tokio::join!(copying, server_task, client_task);
            copied.unwrap();
            assert_eq!((up, down), (20_000, 20_000));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn copy_bidirectional_ends_at_the_idle_timeout_and_the_deadline() {
        let ((mut client, mut near), (mut far, _server)) = (duplex(64), duplex(1 << 20));
        let second = Duration::from_secs(1);
        let started = Instant::now();
        let result =
            copy_bidirectional(&mut near, &mut far, Vec::new(), second, started + LONG_TIMEOUT, |_, _| {}).await;
        assert!(matches!(result, Err(CopyError::Idle)) && started.elapsed() == second, "{result:?}");

        // The server does not read the initial bytes.
        let ((_client, mut one), (mut other, _server), started) = (duplex(64), duplex(64), Instant::now());
        let result =
            copy_bidirectional(&mut one, &mut other, vec![0; 1000], second, started + LONG_TIMEOUT, |_, _| {}).await;
        assert!(matches!(result, Err(CopyError::Idle)) && started.elapsed() == second, "{result:?}");

        let started = Instant::now();
        let client_task = async {
            loop {
                client.write_all(b".").await.unwrap();
                tokio::time::sleep(second / 2).await;
            }
        };
        let until = started + 5 * second;
        let result = tokio::select! {
            result = copy_bidirectional(&mut near, &mut far, Vec::new(), second, until, |_, _| {}) => result,
            () = client_task => unreachable!(),
        };
        assert!(matches!(result, Err(CopyError::MaxDuration)) && Instant::now() == until, "{result:?}");
    }

    /// A target may respond, and accept no more of the upload.
    #[tokio::test]
    async fn copy_bidirectional_delivers_the_last_bytes_of_a_side_that_refuses_writes() {
        /// A socket whose peer has sent the bytes and then reset the connection.
        struct Reset(&'static [u8]);
        impl AsyncRead for Reset {
            fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                buf.put_slice(std::mem::take(&mut self.0));
                Poll::Ready(Ok(()))
            }
        }
        impl AsyncWrite for Reset {
            fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
            }
        }
        for closes in [false, true] {
            let ((mut client, mut near), mut far) = (duplex(64), Reset(b"413 and a body"));
            match closes {
                true => client.shutdown().await.unwrap(),
                false => client.write_all(b"upload").await.unwrap(),
            }
            let result = copy_bidirectional(
                &mut near,
                &mut far,
                Vec::new(),
                LONG_TIMEOUT,
                Instant::now() + LONG_TIMEOUT,
                |_, _| {},
            )
            .await;
            assert!(matches!(result, Err(CopyError::Second(_))), "{result:?}");
            drop(near);
            let mut received_bytes = Vec::new();
            client.read_to_end(&mut received_bytes).await.unwrap();
            assert_eq!(received_bytes, b"413 and a body");
        }
    }

    #[tokio::test]
    async fn copy_bidirectional_error_names_the_side_that_failed() {
        let ((client, mut near), (mut far, server)) = (duplex(64), duplex(64));
        drop(server);
        let (mut client_read, mut client) = tokio::io::split(client);
        client.write_all(b"x").await.unwrap();
        let result =
            copy_bidirectional(&mut near, &mut far, Vec::new(), LONG_TIMEOUT, Instant::now() + LONG_TIMEOUT, |_, _| {})
                .await;
        assert!(matches!(result, Err(CopyError::Second(_))), "{result:?}");
        drop(near);
        assert_eq!(client_read.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
