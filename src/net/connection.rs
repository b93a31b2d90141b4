//! The socket of an outgoing connection, and a handle that checks whether the connection is still usable.
//! Has the peer closed an idle connection?

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
#[cfg(not(test))]
use tokio::net::TcpStream as Wire;

#[cfg(test)]
use super::simulated::{SimulatedSocket, Wire};
use super::splice::MaybeSocket;
use super::ticket_meter::TicketMeter;

/// The stream that carries HTTP to a target: TLS, or plaintext if the route allows it.
pub type MaybeTlsStream = MaybeHttpsStream<TokioIo<OutboundSocket>>;

/// The only owner of an outgoing TCP connection. Only [`super::dial`] makes one. Dropping it closes the connection.
///
/// The stream is behind an `Arc`, so that a [`Liveness`] refers to the same descriptor. A [`Liveness`] neither
/// keeps the connection open nor refers to a descriptor number that was reused.
#[derive(Debug)]
pub struct OutboundSocket {
    wire: Arc<Wire>,
    /// The meter of TLS on this connection.
    tickets: Option<Arc<TicketMeter>>,
}

/// A weak handle that checks whether an idle connection is still usable.
#[derive(Clone, Debug)]
pub struct Liveness(Weak<Wire>);

impl Liveness {
    /// Returns whether the peer has neither closed the connection nor sent anything. Either makes an idle connection
    /// unusable. Unsolicited bytes are the end of the connection (408, a TLS alert) or the start of a smuggled response
    /// (RFC 9112 §9.2 requires that such a connection is closed).
    ///
    /// The check is one system call, which neither blocks nor consumes bytes.
    pub fn is_idle_and_open(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return false };
        #[cfg(test)]
        if let Some(simulated) = stream.simulated() {
            return simulated.is_idle_and_open();
        }
        let received = rustix::net::recv(&*stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        received.is_err_and(|errno| errno == Errno::AGAIN)
    }

    /// Returns whether the peer has closed the connection and all bytes before the end have been read.
    pub fn is_closed_by_peer(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return true };
        #[cfg(test)]
        if let Some(simulated) = stream.simulated() {
            return simulated.is_closed_by_peer();
        }
        let received = rustix::net::recv(&*stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        received.map_or_else(|errno| errno != Errno::AGAIN, |(_, count)| count == 0)
    }
}

impl Liveness {
    /// Sets SO_LINGER to zero: dropping the connection resets it, and the kernel discards what the peer has not
    /// received.
    pub fn set_linger_zero(&self) {
        if let Some(stream) = self.0.upgrade() {
            #[cfg(test)]
            if let Some(simulated) = stream.simulated() {
                return simulated.set_linger_zero(true);
            }
            // The call fails only if the connection has already ended.
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl OutboundSocket {
    #[cfg_attr(not(test), expect(clippy::useless_conversion, reason = "tests have another kind of stream"))]
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { wire: Arc::new(stream.into()), tickets: None }
    }

    #[cfg(test)]
    pub(super) fn simulated(socket: SimulatedSocket) -> Self {
        Self { wire: Arc::new(socket.into()), tickets: None }
    }

    pub fn liveness(&self) -> Liveness {
        Liveness(Arc::downgrade(&self.wire))
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        #[cfg(test)]
        if let Some(simulated) = self.wire.simulated() {
            return Ok(simulated.local_addr());
        }
        self.wire.local_addr()
    }

    /// Waits until the peer has sent bytes or closed the connection.
    pub async fn readable(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(simulated) = self.wire.simulated() {
            return simulated.readable().await;
        }
        self.wire.readable().await
    }

    /// Sets the meter of the session tickets that arrive over the socket.
    pub fn set_tickets(&mut self, tickets: Arc<TicketMeter>) {
        self.tickets = Some(tickets);
    }

    /// Returns a stream without TLS.
    pub fn into_plaintext(self) -> MaybeTlsStream {
        MaybeTlsStream::from(TokioIo::new(self))
    }
}

/// A panic resets the connection: no target takes its end for the end of a request or of a tunnel.
impl Drop for OutboundSocket {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.liveness().set_linger_zero();
        }
    }
}

impl MaybeSocket for OutboundSocket {
    fn read_socket(&self) -> Option<&TcpStream> {
        self.write_socket()
    }

    fn write_socket(&self) -> Option<&TcpStream> {
        #[cfg(test)]
        if self.wire.simulated().is_some() {
            return None;
        }
        Some(&self.wire)
    }
}

/// Bytes that are read at once.
const SCRATCH_LEN: usize = 16 * 1024;

thread_local! {
    /// A buffer for reads. The reader's own buffer is uninitialised, and zeroing it for each read costs more than
    /// copying a typical response.
    static SCRATCH_BUFFER: RefCell<Box<[u8; SCRATCH_LEN]>> = RefCell::new(Box::new([0; SCRATCH_LEN]));
}

impl AsyncRead for OutboundSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        #[cfg(test)]
        if let Some(simulated) = self.wire.simulated() {
            return simulated.poll_read(cx, buf);
        }
        self.tickets.as_ref().map_or(Ok(()), |tickets| tickets.check())?;
        let max_len = buf.remaining().min(SCRATCH_LEN);
        if max_len == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.wire.poll_read_ready(cx))?;
            let mut read = None;
            let outcome = self.wire.try_io(Interest::READABLE, || {
                let count = SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                    let (_, count) = rustix::net::recv(&*self.wire, &mut scratch[..max_len], RecvFlags::empty())?;
                    buf.put_slice(&scratch[..count]);
                    Ok::<_, io::Error>(count)
                })?;
                read = Some(count);
                self.tickets.iter().for_each(|tickets| tickets.add_bytes(count));
                // A short read means that the socket is empty. WouldBlock clears tokio's readiness and saves the next
                // system call, as in tokio's own `poll_read`. The end of the stream stays readable.
                if 0 < count && count < max_len { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
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
        #[cfg(test)]
        if let Some(simulated) = self.wire.simulated() {
            return simulated.poll_write(cx, bytes);
        }
        poll_write(&self.wire, cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        #[cfg(test)]
        if let Some(simulated) = self.wire.simulated() {
            return simulated.poll_write_vectored(cx, slices);
        }
        poll_write(&self.wire, cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the socket has no buffer outside the kernel
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        #[cfg(test)]
        if let Some(simulated) = self.wire.simulated() {
            return Poll::Ready(simulated.shutdown());
        }
        Poll::Ready(rustix::net::shutdown(&*self.wire, Shutdown::Write).map_err(io::Error::from))
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
    async fn outbound_socket_transfers_bytes_both_ways_for_every_buffer_size() {
        let (mut near, mut far) = pair().await;
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        for size in [1, 7, 4096, 65536] {
            let server = async {
                let mut received = vec![0; sent.len()];
                far.read_exact(&mut received).await.unwrap();
                far.write_all(&received).await.unwrap();
            };
            let client = async {
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
            tokio::join!(server, client);
        }
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0, "a shutdown reaches the peer");
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0, "a shutdown by the peer arrives");
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0, "the end of the stream is sticky");
    }

    #[tokio::test]
    async fn liveness_is_idle_and_open_until_the_peer_sends() {
        let (near, mut far) = pair().await;
        let liveness = near.liveness();
        assert!(liveness.is_idle_and_open());
        far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        near.wire.readable().await.unwrap();
        assert!(!liveness.is_idle_and_open());
    }

    #[tokio::test]
    async fn liveness_is_not_idle_and_open_after_the_peer_closes() {
        let (near, far) = pair().await;
        let liveness = near.liveness();
        drop(far);
        near.wire.readable().await.unwrap();
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

    #[tokio::test]
    async fn panic_resets_the_connection_to_the_target() {
        let (near, mut far) = pair().await;
        let delivery = move || {
            let _connection = near;
            panic!("a mistake");
        };
        assert!(crate::panics::catch(delivery).is_err());
        let error = far.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
