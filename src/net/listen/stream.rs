//! A client's connection, which detects a closed peer even while bytes are unread.
//! Has the client hung up behind unread bytes?

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::net::sockopt;
use crate::net::splice::MaybeSocket;

/// A client's connection, over TCP or a unix socket.
#[derive(Debug)]
pub struct ClientStream {
    socket: ClientSocket,
    /// tokio's readiness was cleared although bytes may be unread.
    readiness_cleared: bool,
}

#[derive(Debug)]
pub enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientStream {
    pub(super) fn tcp(stream: TcpStream) -> Self {
        Self { socket: ClientSocket::Tcp(stream), readiness_cleared: false }
    }

    pub(super) fn unix(stream: UnixStream) -> Self {
        Self { socket: ClientSocket::Unix(stream), readiness_cleared: false }
    }

    pub fn socket(&self) -> &ClientSocket {
        &self.socket
    }

    /// Sets whether dropping the stream resets the connection instead of closing it in order.
    pub fn set_abort_on_drop(&self, abort: bool) {
        if let ClientSocket::Tcp(stream) = &self.socket {
            // The call fails only if the connection has already ended.
            let _ = SockRef::from(stream).set_linger(abort.then_some(Duration::ZERO));
        }
    }

    /// Acknowledges over TCP at once. Otherwise the kernel delays the acknowledgment by some 40 ms.
    pub fn quickack(&self) {
        if let ClientSocket::Tcp(stream) = &self.socket {
            let _ = sockopt::set_quickack(stream.as_fd());
        }
    }

    /// Waits until the client has closed its direction or the connection, even if bytes are unread. It replaces the
    /// waker of `poll_read`.
    ///
    /// A socket with unread bytes stays readable, and would wake the task again and again. So tokio's readiness is
    /// cleared, and tokio wakes the task at the next event: bytes or the end. The next `poll_read` calls `recv` itself.
    pub fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let ready = match &self.socket {
                ClientSocket::Tcp(stream) => stream.poll_read_ready(cx),
                ClientSocket::Unix(stream) => stream.poll_read_ready(cx),
            };
            if ready!(ready).is_err() {
                return Poll::Ready(());
            }
            self.readiness_cleared = true;
            // tokio does not clear an event that arrives between the check and the clearing.
            let check =
                || if is_read_closed(self.socket.as_fd()) { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
            let checked = match &self.socket {
                ClientSocket::Tcp(stream) => stream.try_io(Interest::READABLE, check),
                ClientSocket::Unix(stream) => stream.try_io(Interest::READABLE, check),
            };
            if checked.is_ok() {
                return Poll::Ready(());
            }
        }
    }

    /// Reads without checking tokio's readiness. `Pending` means that the socket is empty and tokio's readiness is
    /// right again.
    fn try_recv(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let unfilled = buf.initialize_unfilled();
        let requested = unfilled.len();
        match rustix::net::recv(self.socket.as_fd(), unfilled, RecvFlags::DONTWAIT) {
            Ok((_, length)) => {
                self.readiness_cleared = length == requested;
                buf.advance(length);
                Poll::Ready(Ok(()))
            }
            Err(Errno::AGAIN) => {
                self.readiness_cleared = false;
                Poll::Pending
            }
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}

impl MaybeSocket for ClientStream {
    fn read_socket(&self) -> Option<&TcpStream> {
        // Only `poll_read` makes tokio's readiness right again.
        self.write_socket().filter(|_| !self.readiness_cleared)
    }

    fn write_socket(&self) -> Option<&TcpStream> {
        match &self.socket {
            ClientSocket::Tcp(stream) => Some(stream),
            ClientSocket::Unix(_) => None,
        }
    }
}

/// A panic resets the connection: no peer takes its end for the end of a response or of a tunnel.
impl Drop for ClientStream {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.set_abort_on_drop(true);
        }
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Returns whether the peer has closed its direction: one system call, which neither blocks nor reads.
fn is_read_closed(socket: BorrowedFd<'_>) -> bool {
    let mut poll_fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    // The call fails only for lack of memory; then the delivery ends too.
    rustix::event::poll(&mut poll_fds, Some(&Timespec::default())) != Ok(0)
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if stream.readiness_cleared
            && let Poll::Ready(read) = stream.try_recv(buf)
        {
            return Poll::Ready(read);
        }
        match &mut stream.socket {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            ClientSocket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            ClientSocket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            ClientSocket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            ClientSocket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            ClientSocket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pairs() -> [(ClientStream, Box<dyn AsyncWrite + Unpin>); 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let near = ClientStream::tcp(listener.accept().await.unwrap().0);
        let (unix, unix_far) = UnixStream::pair().unwrap();
        [(near, Box::new(far)), (ClientStream::unix(unix), Box::new(unix_far))]
    }

    #[tokio::test]
    async fn hangup_is_detected_behind_unread_bytes() {
        for (mut near, mut far) in pairs().await {
            let mut read = [0; 10_000];
            for sent in [&b"first"[..], b"second", &[7; 10_000]] {
                far.write_all(sent).await.unwrap();
                let mut polls = 0;
                let waiting = poll_fn(|cx| {
                    polls += 1;
                    near.poll_read_closed(cx)
                });
                assert!(
                    tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err(),
                    "the client has not hung up"
                );
                assert!(polls < 10, "{polls} polls: unread bytes must not wake the task repeatedly");
                near.read_exact(&mut read[..sent.len()]).await.unwrap();
                assert_eq!(&read[..sent.len()], sent);
            }
            let waiting = tokio::spawn(async move {
                poll_fn(|cx| near.poll_read_closed(cx)).await;
                near
            });
            far.write_all(b"last").await.unwrap();
            tokio::task::yield_now().await;
            far.shutdown().await.unwrap();
            let mut near = waiting.await.unwrap();
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"last");
        }
    }
}
