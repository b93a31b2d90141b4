//! Tests of tunnels, over streams in memory and over sockets.
//! Do all bytes and ends arrive, and which bytes are spliced?

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::net::connection::OutboundSocket;
use crate::net::splice;

const LONG_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn copy_bidirectional_passes_bytes_and_half_closes_for_every_buffer_size() {
    for size in [1, 7, 1000, 1 << 20] {
        let ((mut client, mut near), (mut far, mut server)) = (duplex(size), duplex(size));
        let sent: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
        let (mut up, mut down) = (0, 0);
        let copying =
            copy_bidirectional(&mut near, &mut far, LONG_TIMEOUT, Instant::now() + LONG_TIMEOUT, |sent, received| {
                up += sent;
                down += received;
            });
        let server_task = async {
            let mut received_bytes = Vec::new();
            server.read_to_end(&mut received_bytes).await.unwrap(); // until the client half-closes
            server.write_all(&received_bytes).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let client_task = async {
            client.write_all(&sent).await.unwrap();
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
async fn receiver_that_takes_bytes_slowly_is_not_idle() {
    let ((mut client, mut near), (mut far, mut server)) = (duplex(1000), duplex(1));
    let idle = Duration::from_secs(2);
    let copying = copy_bidirectional(&mut near, &mut far, idle, Instant::now() + LONG_TIMEOUT, |_, _| {});
    let client_task = async {
        client.write_all(&[7; 20]).await.unwrap(); // one read takes them all
        client.shutdown().await.unwrap();
    };
    let server_task = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(server.read_u8().await.unwrap(), 7);
        }
        drop(server);
    };
    let all = async { tokio::join!(copying, client_task, server_task) };
    let (copied, (), ()) = tokio::time::timeout(LONG_TIMEOUT, all).await.expect("the tunnel ended early");
    copied.unwrap();
}

#[tokio::test(start_paused = true)]
async fn copy_bidirectional_ends_at_the_idle_timeout_and_the_deadline() {
    let ((mut sender, mut near), (mut far, _server)) = (duplex(64), duplex(1 << 20));
    let second = Duration::from_secs(1);
    let started = Instant::now();
    let result = copy_bidirectional(&mut near, &mut far, second, started + LONG_TIMEOUT, |_, _| {}).await;
    assert!(matches!(result, Err(CopyError::Idle)) && started.elapsed() == second, "{result:?}");

    // The server does not read, so that bytes wait in the tunnel.
    let ((mut client, mut one), (mut other, _server), started) = (duplex(64), duplex(64), Instant::now());
    let copying = copy_bidirectional(&mut one, &mut other, second, started + LONG_TIMEOUT, |_, _| {});
    let (result, written) = tokio::join!(copying, client.write_all(&[0; 128]));
    written.unwrap();
    assert!(matches!(result, Err(CopyError::Idle)) && started.elapsed() == second, "{result:?}");

    let started = Instant::now();
    let client_task = async {
        loop {
            sender.write_all(b".").await.unwrap();
            tokio::time::sleep(second / 2).await;
        }
    };
    let until = started + 5 * second;
    let result = tokio::select! {
        result = copy_bidirectional(&mut near, &mut far, second, until, |_, _| {}) => result,
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
    impl MaybeSocket for Reset {}
    for closes in [false, true] {
        let ((mut client, mut near), mut far) = (duplex(64), Reset(b"413 and a body"));
        match closes {
            true => client.shutdown().await.unwrap(),
            false => client.write_all(b"upload").await.unwrap(),
        }
        let result =
            copy_bidirectional(&mut near, &mut far, LONG_TIMEOUT, Instant::now() + LONG_TIMEOUT, |_, _| {}).await;
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
    let result = copy_bidirectional(&mut near, &mut far, LONG_TIMEOUT, Instant::now() + LONG_TIMEOUT, |_, _| {}).await;
    assert!(matches!(result, Err(CopyError::Second(_))), "{result:?}");
    drop(near);
    assert_eq!(client_read.read(&mut [0; 1]).await.unwrap(), 0);
}

/// Returns both ends of a connection.
async fn sockets() -> (OutboundSocket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (OutboundSocket::new(near.unwrap()), far.unwrap().0)
}

/// Sends many bytes through a tunnel between sockets and back, and returns the most pipes that it had.
async fn most_pipes_of_an_echo() -> usize {
    let ((mut near, mut client), (mut far, mut server)) = (sockets().await, sockets().await);
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n >> 3) as u8).collect();
    let (mut up, mut down, mut most_pipes) = (0, 0, 0);
    let copying =
        copy_bidirectional(&mut near, &mut far, LONG_TIMEOUT, Instant::now() + LONG_TIMEOUT, |sent, received| {
            up += sent;
            down += received;
            most_pipes = most_pipes.max(splice::pipe_count());
        });
    let server_task = async {
        let mut received_bytes = Vec::new();
        server.read_to_end(&mut received_bytes).await.unwrap();
        server.write_all(&received_bytes).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let (mut client_read, mut client_write) = client.split();
    let client_task = async {
        client_write.write_all(&sent).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let mut received_bytes = Vec::new();
    let (copied, (), (), read) =
        tokio::join!(copying, server_task, client_task, client_read.read_to_end(&mut received_bytes));
    copied.unwrap();
    read.unwrap();
    assert!(received_bytes == sent);
    assert_eq!((up, down), (sent.len() as u64, sent.len() as u64));
    most_pipes
}

/// One test, because the pipes are the process's.
#[tokio::test]
async fn many_bytes_between_sockets_are_spliced_while_pipes_are_free() {
    assert!((1..=2).contains(&most_pipes_of_an_echo().await));
    let held: Vec<Pipe> = std::iter::from_fn(Pipe::acquire).collect();
    assert_eq!(held.len(), splice::pipe_count());
    // Without a free pipe, the same bytes are copied.
    assert_eq!(most_pipes_of_an_echo().await, held.len());
    held.into_iter().for_each(Pipe::release);

    // The errors of splice(2) are those of the sides, and a pipe with bytes is closed.
    let ((mut near, mut client), (mut far, server)) = (sockets().await, sockets().await);
    let before = splice::pipe_count();
    let copying = copy_bidirectional(&mut near, &mut far, LONG_TIMEOUT, Instant::now() + LONG_TIMEOUT, |_, _| {});
    let sending = async {
        // The server reads nothing: the kernel's buffers and the pipe are full.
        let piece = vec![0; 1 << 20];
        while tokio::time::timeout(Duration::from_millis(300), client.write_all(&piece)).await.is_ok() {}
        server.set_zero_linger().unwrap();
        drop(server);
        drop(client);
    };
    let (copied, ()) = tokio::join!(copying, sending);
    assert!(matches!(copied, Err(CopyError::First(_) | CopyError::Second(_))), "{copied:?}");
    assert_eq!(splice::pipe_count(), before - 1);
}
