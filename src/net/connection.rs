//! A connection that was dialled: the socket, what is spoken on it, and a way to ask whether it still lives.
//! Has the peer gone while nobody looked?

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// What HTTP is spoken on towards a target: TLS, or plaintext where a route allows it.
pub type MaybeTlsStream = MaybeHttpsStream<TokioIo<OutboundSocket>>;

/// The one owner of an outgoing TCP connection, made by [`super::dial`] alone; it closes when dropped.
///
/// tokio's `TcpStream` behind an `Arc`, so that a [`Liveness`] can look at the same descriptor without keeping it
/// open and without ever seeing a number that was reused.
#[derive(Debug)]
pub struct OutboundSocket(Arc<TcpStream>);

/// Asks whether an idle connection may still be used.
#[derive(Clone, Debug)]
pub struct Liveness(Weak<TcpStream>);

impl Liveness {
    /// True while the peer has neither closed nor sent anything. Both end a connection that waits for its next
    /// request: bytes that nobody asked for are a farewell (408, a TLS alert) or the start of a smuggled answer
    /// (RFC 9112 §9.2 wants such a connection closed).
    ///
    /// One system call, which neither waits nor consumes.
    pub fn is_idle_and_open(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return false };
        let peeked = rustix::net::recv(&*stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        peeked.is_err_and(|errno| errno == Errno::AGAIN)
    }

    /// True once the peer has closed, whatever it said before and nobody has read yet.
    pub fn has_ended(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return true };
        let peeked = rustix::net::recv(&*stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        peeked.map_or_else(|errno| errno != Errno::AGAIN, |(_, count)| count == 0)
    }
}

impl Liveness {
    /// From now on to drop the connection resets it: what the peer has not taken yet does not wait in the kernel.
    pub fn set_linger_zero(&self) {
        if let Some(stream) = self.0.upgrade() {
            // It fails only on a connection that is gone already.
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl OutboundSocket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    pub fn liveness(&self) -> Liveness {
        Liveness(Arc::downgrade(&self.0))
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Waits until the peer has sent something, or has closed.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// The wire without TLS.
    pub fn into_plaintext(self) -> MaybeTlsStream {
        MaybeTlsStream::from(TokioIo::new(self))
    }
}

/// Read at once.
const SCRATCH: usize = 16 * 1024;

thread_local! {
    /// A reader's buffer comes uninitialised, and to zero it for each read costs more than to copy what a webhook's
    /// answer usually is.
    static SCRATCH_BUFFER: RefCell<Box<[u8; SCRATCH]>> = RefCell::new(Box::new([0; SCRATCH]));
}

impl AsyncRead for OutboundSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wanted = buf.remaining().min(SCRATCH);
        if wanted == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let mut read = None;
            let outcome = self.0.try_io(Interest::READABLE, || {
                let count = SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                    let (_, count) = rustix::net::recv(&*self.0, &mut scratch[..wanted], RecvFlags::empty())?;
                    buf.put_slice(&scratch[..count]);
                    Ok::<_, io::Error>(count)
                })?;
                read = Some(count);
                // A short read has emptied the socket. Saying so saves the system call that would find nothing, as
                // tokio's own `poll_read` does; the end of the stream stays readable.
                if 0 < count && count < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (read, outcome) {
                (Some(_), _) => return Poll::Ready(Ok(())),
                (None, Err(error))
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                (None, outcome) => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncWrite for OutboundSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        poll_write(&self.0, cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write(&self.0, cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // nothing is buffered on this side of the kernel
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, Shutdown::Write).map_err(io::Error::from))
    }
}

fn poll_write(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    write: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match write(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (OutboundSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (OutboundSocket::new(near.unwrap()), far.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_whatever_the_buffer() {
        let (mut near, mut far) = pair().await;
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        for size in [1, 7, 4096, 65536] {
            let echo = async {
                let mut received = vec![0; sent.len()];
                far.read_exact(&mut received).await.unwrap();
                far.write_all(&received).await.unwrap();
            };
            let ask = async {
                near.write_all(&sent).await.unwrap();
                let mut received = Vec::new();
                let mut buffer = vec![0; size];
                while received.len() < sent.len() {
                    let count = near.read(&mut buffer).await.unwrap();
                    assert_ne!(count, 0);
                    received.extend_from_slice(&buffer[..count]);
                }
                assert!(received == sent);
            };
            tokio::join!(echo, ask);
        }
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0, "a shutdown reaches the peer");
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0, "so does the peer's");
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0, "the end does not wait to be asked twice");
    }

    #[tokio::test]
    async fn a_connection_is_quiet_until_the_peer_speaks() {
        let (near, mut far) = pair().await;
        let liveness = near.liveness();
        assert!(liveness.is_idle_and_open());
        far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        near.0.readable().await.unwrap();
        assert!(!liveness.is_idle_and_open());
    }

    #[tokio::test]
    async fn a_connection_is_not_quiet_once_the_peer_has_closed() {
        let (near, far) = pair().await;
        let liveness = near.liveness();
        drop(far);
        near.0.readable().await.unwrap();
        assert!(!liveness.is_idle_and_open());
    }

    #[tokio::test]
    async fn liveness_does_not_hold_the_connection_open() {
        let (near, mut far) = pair().await;
        let liveness = near.liveness();
        drop(near);
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(!liveness.is_idle_and_open());
    }
}
