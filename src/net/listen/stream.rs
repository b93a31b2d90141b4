//! A client's connection, and whether the client has ended it behind bytes that are still unread.
//! Has the client gone while its bytes wait?

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

/// A client's connection.
#[derive(Debug)]
pub struct ClientStream {
    socket: ClientSocket,
    /// Bytes may be unread although tokio takes the socket for empty.
    hides_bytes: bool,
}

#[derive(Debug)]
pub enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientStream {
    pub(super) fn tcp(stream: TcpStream) -> Self {
        Self { socket: ClientSocket::Tcp(stream), hides_bytes: false }
    }

    pub(super) fn unix(stream: UnixStream) -> Self {
        Self { socket: ClientSocket::Unix(stream), hides_bytes: false }
    }

    pub fn socket(&self) -> &ClientSocket {
        &self.socket
    }

    /// Sets whether dropping the stream resets the connection instead of ending it.
    pub fn set_abort_on_drop(&self, resets: bool) {
        if let ClientSocket::Tcp(stream) = &self.socket {
            // It fails only on a connection that is gone already.
            let _ = SockRef::from(stream).set_linger(resets.then_some(Duration::ZERO));
        }
    }

    /// Acknowledges at once what has arrived over TCP. Without the option the acknowledgment comes some 40 ms later.
    pub fn acknowledge(&self) {
        if let ClientSocket::Tcp(stream) = &self.socket {
            let _ = sockopt::acknowledge(stream.as_fd());
        }
    }

    /// Waits until the client has ended its direction, or the connection, whatever is still unread. It takes the waker of
    /// `poll_read`.
    ///
    /// A socket with unread bytes stays readable, and would wake the task for ever. So tokio is told that it is empty, and
    /// wakes the task again when more comes: bytes, or the end. The next `poll_read` looks for itself.
    pub fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let ready = match &self.socket {
                ClientSocket::Tcp(stream) => stream.poll_read_ready(cx),
                ClientSocket::Unix(stream) => stream.poll_read_ready(cx),
            };
            if ready!(ready).is_err() {
                return Poll::Ready(());
            }
            self.hides_bytes = true;
            // What comes between the look and the clearing is not cleared.
            let look = || if has_ended(self.socket.as_fd()) { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
            let ended = match &self.socket {
                ClientSocket::Tcp(stream) => stream.try_io(Interest::READABLE, look),
                ClientSocket::Unix(stream) => stream.try_io(Interest::READABLE, look),
            };
            if ended.is_ok() {
                return Poll::Ready(());
            }
        }
    }

    /// Reads without asking tokio first. Pending: the socket is empty, and tokio is right about it again.
    fn read_hidden(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        let wanted = room.len();
        match rustix::net::recv(self.socket.as_fd(), room, RecvFlags::DONTWAIT) {
            Ok((_, length)) => {
                self.hides_bytes = length == wanted;
                buf.advance(length);
                Poll::Ready(Ok(()))
            }
            Err(Errno::AGAIN) => {
                self.hides_bytes = false;
                Poll::Pending
            }
            Err(errno) => Poll::Ready(Err(errno.into())),
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

/// One system call, which neither waits nor reads.
fn has_ended(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    // It fails only without memory: the delivery ends then too.
    rustix::event::poll(&mut asked, Some(&Timespec::default())) != Ok(0)
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if stream.hides_bytes
            && let Poll::Ready(read) = stream.read_hidden(buf)
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
    async fn hang_up_is_noticed_behind_unread_bytes() {
        for (mut near, mut far) in pairs().await {
            let mut read = [0; 10_000];
            for sent in [&b"first"[..], b"second", &[7; 10_000]] {
                far.write_all(sent).await.unwrap();
                let mut polls = 0;
                let waiting = poll_fn(|cx| {
                    polls += 1;
                    near.poll_read_closed(cx)
                });
                assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err(), "nobody hung up");
                assert!(polls < 10, "{polls} polls: unread bytes wake it again and again");
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
