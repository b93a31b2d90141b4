//! Bytes both ways between two connections, until both have ended.
//! What moves through a tunnel, and what does an idle one hold?

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// Moved at once.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// One for all tunnels of a thread: a chunk is read and, nearly always, written in one go.
    static SCRATCH: RefCell<Box<[u8; CHUNK]>> = RefCell::new(Box::new([0; CHUNK]));
}

/// One way through.
#[derive(Default)]
struct CopyDirection {
    /// What was read and could not be written yet: empty, and without memory, unless the reader is slow.
    pending: Vec<u8>,
    written: usize,
    /// The sender has ended: what is pending goes out, and then the end (RFC 9110 §9.3.6).
    ended: bool,
    done: bool,
    /// The receiver takes no more. What it sent before still goes the other way.
    unwritable: Option<io::Error>,
}

/// How a pipe ended, if not by both sides' doing.
#[derive(Debug)]
pub enum CopyError {
    /// Nothing moved for as long as was allowed.
    Idle,
    /// It was open for as long as was allowed.
    MaxDuration,
    /// The first side broke off, or the second.
    First(io::Error),
    Second(io::Error),
}

/// Moves bytes between `first` and `second`; `opening` came from the first already. `count` hears how many went to the second side, and how many to the first.
pub async fn both<A, B>(
    first: &mut A,
    second: &mut B,
    opening: Vec<u8>,
    idle: Duration,
    until: Instant,
    mut count: impl FnMut(u64, u64),
) -> Result<(), CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    count(opening.len() as u64, 0);
    let (mut there, mut back) =
        (CopyDirection { pending: opening, ..CopyDirection::default() }, CopyDirection::default());
    let mut last = Instant::now();
    let mut timer = pin!(sleep_until(until.min(last + idle)));
    poll_fn(|cx| {
        let (mut went, mut came) = (0, 0);
        let polled = (there.poll(cx, first, second, &mut went), back.poll(cx, second, first, &mut came));
        let polled = match polled {
            (Poll::Ready(Err(fault)), _) => Poll::Ready(Err(CopyError::First(fault))),
            (_, Poll::Ready(Err(fault))) => Poll::Ready(Err(CopyError::Second(fault))),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(match (there.unwritable.take(), back.unwritable.take()) {
                    (Some(fault), _) => Err(CopyError::Second(fault)),
                    (None, Some(fault)) => Err(CopyError::First(fault)),
                    (None, None) => Ok(()),
                })
            }
            _ => Poll::Pending,
        };
        if went + came > 0 {
            count(went, came);
            last = Instant::now();
        }
        // The timer is not moved for every byte: when it fires, it is asked whether it should have.
        while polled.is_pending() {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            match () {
                () if until <= now => return Poll::Ready(Err(CopyError::MaxDuration)),
                () if last + idle <= now => return Poll::Ready(Err(CopyError::Idle)),
                () => timer.as_mut().reset(until.min(last + idle)),
            }
        }
        polled
    })
    .await
}

/// Whose fault.
enum FailedSide {
    Reader(io::Error),
    Writer(io::Error),
}

impl CopyDirection {
    /// Fails where `from` breaks off.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W, moved: &mut u64) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        Poll::Ready(match ready!(self.advance(cx, from, to, moved)) {
            Ok(()) => Ok(()),
            Err(FailedSide::Reader(fault)) => Err(fault),
            Err(FailedSide::Writer(fault)) => {
                self.done = true;
                self.unwritable = Some(fault);
                Ok(())
            }
        })
    }

    fn advance<R, W>(
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
            while self.written < self.pending.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]));
                self.written += some(written).map_err(FailedSide::Writer)?;
            }
            self.pending.clear();
            self.written = 0;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(FailedSide::Writer)?;
                self.done = true;
                break;
            }
            let Poll::Ready(read) = self.poll_chunk(cx, from, to)? else {
                self.pending = Vec::new();
                // A TLS writer may hold what it could not send.
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(FailedSide::Writer)?;
                return Poll::Pending;
            };
            self.ended = read == 0;
            *moved += read as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads a chunk and writes as much of it as goes; the rest is pending.
    fn poll_chunk<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Result<Poll<usize>, FailedSide>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
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
                    Poll::Ready(written) => some(written).map_err(FailedSide::Writer)?,
                },
            };
            self.pending.extend_from_slice(&chunk[written..]);
            Ok(Poll::Ready(chunk.len()))
        })
    }
}

fn some(written: io::Result<usize>) -> io::Result<usize> {
    match written? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways_however_small_the_buffers() {
        for size in [1, 7, 1000, 1 << 20] {
            let ((mut client, mut near), (mut far, mut server)) = (duplex(size), duplex(size));
            let sent: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
            let (mut up, mut down) = (0, 0);
            let opening = sent[..5000].to_vec();
            let piping = both(&mut near, &mut far, opening, LONG, Instant::now() + LONG, |went, came| {
                up += went;
                down += came;
            });
            let serving = async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.unwrap(); // the client's half is closed, ours still open
                server.write_all(&got).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let asking = async {
                client.write_all(&sent[5000..]).await.unwrap();
                client.shutdown().await.unwrap();
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                assert!(got == sent);
            };
            let (piped, (), ()) = tokio::join!(piping, serving, asking);
            piped.unwrap();
            assert_eq!((up, down), (20_000, 20_000));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_pipe_ends_and_a_busy_one_too_in_the_end() {
        let ((mut client, mut near), (mut far, _server)) = (duplex(64), duplex(1 << 20));
        let second = Duration::from_secs(1);
        let begun = Instant::now();
        let ended = both(&mut near, &mut far, Vec::new(), second, begun + LONG, |_, _| {}).await;
        assert!(matches!(ended, Err(CopyError::Idle)) && begun.elapsed() == second, "{ended:?}");

        // Nobody takes what came first.
        let ((_client, mut one), (mut other, _server), begun) = (duplex(64), duplex(64), Instant::now());
        let ended = both(&mut one, &mut other, vec![0; 1000], second, begun + LONG, |_, _| {}).await;
        assert!(matches!(ended, Err(CopyError::Idle)) && begun.elapsed() == second, "{ended:?}");

        let begun = Instant::now();
        let chatting = async {
            loop {
                client.write_all(b".").await.unwrap();
                tokio::time::sleep(second / 2).await;
            }
        };
        let until = begun + 5 * second;
        let ended = tokio::select! {
            ended = both(&mut near, &mut far, Vec::new(), second, until, |_, _| {}) => ended,
            () = chatting => unreachable!(),
        };
        assert!(matches!(ended, Err(CopyError::MaxDuration)) && Instant::now() == until, "{ended:?}");
    }

    /// A target may answer, and take no more of what it is sent.
    #[tokio::test]
    async fn tunnel_passes_on_the_last_words_of_a_side_that_takes_no_more() {
        /// A socket whose peer has reset it after it sent `0`.
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
            let ended = both(&mut near, &mut far, Vec::new(), LONG, Instant::now() + LONG, |_, _| {}).await;
            assert!(matches!(ended, Err(CopyError::Second(_))), "{ended:?}");
            drop(near);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"413 and a body");
        }
    }

    #[tokio::test]
    async fn a_side_that_breaks_off_is_named() {
        let ((client, mut near), (mut far, server)) = (duplex(64), duplex(64));
        drop(server);
        let (mut client_read, mut client) = tokio::io::split(client);
        client.write_all(b"x").await.unwrap();
        let ended = both(&mut near, &mut far, Vec::new(), LONG, Instant::now() + LONG, |_, _| {}).await;
        assert!(matches!(ended, Err(CopyError::Second(_))), "{ended:?}");
        drop(near);
        assert_eq!(client_read.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
