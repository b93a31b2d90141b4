//! Tests with sockets on loopback and in temporary folders.
//! Is each listener bound to its configured address, and is no other socket replaced?

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;

/// A temporary folder, removed at the end of the test.
struct SocketDir(PathBuf);

impl SocketDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-listen-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bind_one(listen: &Listen) -> io::Result<Listener> {
    bind(&Bind::new(listen.clone()), Successor::AfterClose, &mut ReservedPorts::default())
        .map(|mut listeners| listeners.remove(0))
}

#[tokio::test]
async fn tcp_listener_reports_the_peer_address() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = bind_one(&Listen::Tcp(address.parse().unwrap())) else { continue };
        let bound = listener.local_addr().unwrap().unwrap();
        assert_ne!(bound.port(), 0);
        assert_eq!(listener.name(), bound.to_string());
        let mut client = TcpStream::connect(bound).await.unwrap();
        let (mut stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, Some(client.local_addr().unwrap()));
        let ClientSocket::Tcp(tcp) = stream.socket() else { panic!("{stream:?}") };
        assert!(tcp.nodelay().unwrap());
        client.write_all(b"ping").await.unwrap();
        let mut received = [0; 4];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ping");
    }
}

#[tokio::test]
async fn tcp_listener_rejects_an_address_in_use() {
    let listener = bind_one(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let again = bind_one(&Listen::Tcp(listener.local_addr().unwrap().unwrap()));
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn unix_listener_has_mode_0660_and_no_peer_address() {
    let folder = SocketDir::new("mode");
    let listener = bind_one(&Listen::Unix(folder.socket())).unwrap();
    assert_eq!(fs::metadata(folder.socket()).unwrap().permissions().mode() & 0o777, DEFAULT_UNIX_MODE);
    assert_eq!(listener.name(), format!("unix:{}", folder.socket().display()));
    assert_eq!(listener.local_addr().unwrap(), None);
    let mut client = UnixStream::connect(folder.socket()).await.unwrap();
    let (mut stream, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, None);
    stream.write_all(b"pong").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"pong");
}

#[tokio::test]
async fn unix_listener_replaces_only_a_stale_socket() {
    let folder = SocketDir::new("stale");
    let first = bind_one(&Listen::Unix(folder.socket())).unwrap();
    let second = bind_one(&Listen::Unix(folder.socket()));
    assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse, "the first still listens");
    drop(first);
    assert!(!folder.socket().exists(), "the file is removed with its listener");
    // A process that was killed leaves its socket file behind.
    drop(std::os::unix::net::UnixListener::bind(folder.socket()).unwrap());
    let third = bind_one(&Listen::Unix(folder.socket())).unwrap();
    fs::remove_file(folder.socket()).unwrap();
    fs::write(folder.socket(), "precious").unwrap();
    drop(third);
    let fourth = bind_one(&Listen::Unix(folder.socket()));
    assert_eq!(fourth.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(folder.socket()).unwrap(), b"precious");
}

#[tokio::test]
async fn unix_listener_takes_over_the_path_of_a_running_one() {
    let folder = SocketDir::new("beside");
    let at = Bind::new(Listen::Unix(folder.socket()));
    let mut first = bind(&at, Successor::Concurrent, &mut ReservedPorts::default()).unwrap().remove(0);
    let early = UnixStream::connect(folder.socket()).await.unwrap();
    let second = bind(&at, Successor::Concurrent, &mut ReservedPorts::default()).unwrap().remove(0);
    assert_eq!(second.name(), format!("unix:{}", folder.socket().display()));
    first.stop_new_clients().unwrap();
    let late = UnixStream::connect(folder.socket()).await.unwrap();
    first.accept().await.unwrap();
    second.accept().await.unwrap();
    drop((first, early, late));
    assert!(folder.socket().exists(), "the second listener owns the path");
    drop(second);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}

/// Accepts the next client, which is to come.
async fn accepted(listener: &Listener) -> ClientStream {
    tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.expect("a client comes").unwrap().0
}

#[tokio::test]
async fn tcp_listener_that_is_replaced_gets_no_new_client() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let mut reserved = ReservedPorts::default();
        let mut concurrent = |address: SocketAddr| {
            bind(&Bind::new(Listen::Tcp(address)), Successor::Concurrent, &mut reserved)
                .map(|mut listeners| listeners.remove(0))
        };
        let Ok(mut first) = concurrent(address.parse().unwrap()) else { continue };
        let address = first.local_addr().unwrap().unwrap();
        let second = concurrent(address).unwrap();
        first.stop_new_clients().unwrap();
        // The kernel assigns each client to one of the sockets. Half of 40 clients wait for a second.
        let clients: Vec<_> = (0..40).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
        accepted(&second).await;
        drop(first);
        for _ in 1..clients.len() {
            accepted(&second).await;
        }
        for client in clients {
            client.await.unwrap().unwrap();
        }
    }
}

/// The highest TTL passes the listener's minimum, as the end of a handshake does that began before.
#[tokio::test]
async fn tcp_listener_that_is_replaced_serves_the_clients_that_it_accepts() {
    let at = Bind::new(Listen::Tcp("127.0.0.1:0".parse().unwrap()));
    let mut listener = bind(&at, Successor::Concurrent, &mut ReservedPorts::default()).unwrap().remove(0);
    listener.stop_new_clients().unwrap();
    let client = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.set_ttl_v4(255).unwrap();
    client.connect(&listener.local_addr().unwrap().unwrap().into()).unwrap();
    client.set_ttl_v4(64).unwrap();
    assert_eq!(client.send(b"ping").unwrap(), 4);
    let mut received = [0; 4];
    accepted(&listener).await.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"ping");
}

#[test]
fn systemd_listener_without_sockets_is_an_error() {
    assert_eq!(take_systemd_sockets(ListenFd::empty()).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn accepted_connection_sends_small_responses_at_once() {
    let listener = bind_one(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let ClientSocket::Tcp(stream) = accepted.socket() else { panic!("a TCP socket") };
    assert!(stream.nodelay().unwrap());
}
