//! Sockets on loopback and in folders of their own.
//! Is each listener bound where the configuration says, and no other socket replaced?

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;

/// A folder of its own, gone with the test.
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

fn one(listen: &Listen) -> io::Result<Listener> {
    bind(&Bind::new(listen.clone()), Successor::AfterClose).map(|mut listeners| listeners.remove(0))
}

#[tokio::test]
async fn tcp_tells_the_peer() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = one(&Listen::Tcp(address.parse().unwrap())) else { continue };
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
async fn an_address_in_use_is_an_error() {
    let listener = one(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let again = one(&Listen::Tcp(listener.local_addr().unwrap().unwrap()));
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn a_unix_socket_is_for_user_and_group_and_has_no_peer() {
    let folder = SocketDir::new("mode");
    let listener = one(&Listen::Unix(folder.socket())).unwrap();
    assert_eq!(fs::metadata(folder.socket()).unwrap().permissions().mode() & 0o777, UNIX_MODE);
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
async fn only_a_stale_socket_is_replaced() {
    let folder = SocketDir::new("stale");
    let first = one(&Listen::Unix(folder.socket())).unwrap();
    let second = one(&Listen::Unix(folder.socket()));
    assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse, "the first still answers");
    drop(first);
    assert!(!folder.socket().exists(), "it goes with its listener");
    // A process that was killed leaves its own behind.
    drop(std::os::unix::net::UnixListener::bind(folder.socket()).unwrap());
    let third = one(&Listen::Unix(folder.socket())).unwrap();
    fs::remove_file(folder.socket()).unwrap();
    fs::write(folder.socket(), "precious").unwrap();
    drop(third);
    let fourth = one(&Listen::Unix(folder.socket()));
    assert_eq!(fourth.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(folder.socket()).unwrap(), b"precious");
}

#[tokio::test]
async fn a_unix_socket_beside_another_takes_its_path() {
    let folder = SocketDir::new("beside");
    let at = Bind::new(Listen::Unix(folder.socket()));
    let mut first = bind(&at, Successor::Concurrent).unwrap().remove(0);
    let early = UnixStream::connect(folder.socket()).await.unwrap();
    let second = bind(&at, Successor::Concurrent).unwrap().remove(0);
    assert_eq!(second.name(), format!("unix:{}", folder.socket().display()));
    first.turn_away();
    let late = UnixStream::connect(folder.socket()).await.unwrap();
    first.accept().await.unwrap();
    second.accept().await.unwrap();
    drop((first, early, late));
    assert!(folder.socket().exists(), "the path is the second one's");
    drop(second);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn systemd_without_sockets_is_an_error() {
    assert_eq!(systemd(ListenFd::empty()).unwrap_err().kind(), io::ErrorKind::NotFound);
}
