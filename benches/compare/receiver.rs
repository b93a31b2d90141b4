//! The receiver of webhooks: one port for each way in which a target behaves.
//! What reached the target, from which address, over which connection, and with which signature?

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use aws_lc_rs::hmac;
use rustls::crypto::aws_lc_rs as provider;
use rustls::server::NoServerSessionStorage;
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::http1::{Conn, Head};
use crate::{Error, authority};

pub(crate) const PLAIN: u16 = 9080;
/// TLS; connections stay open.
pub(crate) const TLS: u16 = 9443;
/// TLS with tickets; the receiver closes after each response.
pub(crate) const TLS_TICKETS: u16 = 9444;
/// TLS without tickets; the receiver closes after each response.
pub(crate) const TLS_NEW: u16 = 9445;
/// TLS with a chain from an unknown root: a contender must send nothing to it.
pub(crate) const TLS_UNKNOWN: u16 = 9446;
/// TLS with a valid chain for another name: a contender must send nothing to it.
pub(crate) const TLS_OTHER_NAME: u16 = 9447;

/// The key of the contenders that sign.
const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
const BACKLOG: u32 = 4096;
/// The bytes of one write of a download.
const WRITE: usize = 256 * 1024;

/// What the receiver saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Requests that reached the target whole.
    pub(crate) deliveries: u64,
    /// Deliveries whose signature is valid.
    pub(crate) signed: u64,
    pub(crate) connections: u64,
    pub(crate) resumed: u64,
    pub(crate) sources: BTreeSet<IpAddr>,
    /// Deliveries over TLS whose certificate does not prove the target.
    pub(crate) untrusted: u64,
}

struct Receiver {
    seen: RefCell<Seen>,
    key: hmac::Key,
    bytes: Vec<u8>,
}

/// A port: its number, the chain that it presents, whether it issues tickets, whether it closes after each response.
type Port = (u16, Option<&'static str>, bool, bool);

const PORTS: [Port; 6] = [
    (PLAIN, None, false, false),
    (TLS, Some("known"), true, false),
    (TLS_TICKETS, Some("known"), true, true),
    (TLS_NEW, Some("known"), false, true),
    (TLS_UNKNOWN, Some("unknown"), false, false),
    (TLS_OTHER_NAME, Some("other"), false, false),
];

/// The running receiver.
pub(crate) struct Handle(Rc<Receiver>);

impl Handle {
    pub(crate) fn seen(&self) -> Seen {
        self.0.seen.borrow().clone()
    }
}

/// Starts to receive, on tasks of this thread.
pub(crate) fn start(folder: &Path) -> Result<Handle, Error> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let receiver = Rc::new(Receiver { seen: RefCell::default(), key, bytes: vec![b'.'; WRITE] });
    for (number, chain, tickets, close) in PORTS {
        let acceptor = chain.map(|chain| acceptor(folder, chain, tickets)).transpose()?;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, number).into())?;
        let listener = socket.listen(BACKLOG)?;
        tokio::task::spawn_local(accept(listener, acceptor, number, close, receiver.clone()));
    }
    Ok(Handle(receiver))
}

/// The version is TLS 1.3 and the key exchange X25519 for every contender, whatever else a contender offers.
fn acceptor(folder: &Path, chain: &str, tickets: bool) -> Result<TlsAcceptor, Error> {
    let (certificates, key) = authority::read(folder, chain)?;
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![provider::kx_group::X25519, provider::kx_group::SECP256R1],
        ..provider::default_provider()
    };
    let config =
        ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = config.with_no_client_auth().with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if tickets {
        config.ticketer = provider::Ticketer::new()?;
    } else {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, port: u16, close: bool, receiver: Rc<Receiver>) {
    while let Ok((stream, source)) = listener.accept().await {
        let (tls, receiver) = (tls.clone(), receiver.clone());
        tokio::task::spawn_local(async move {
            // A peer that breaks off shows in the errors of the clients.
            let _ = receiver.connection(stream, source.ip(), tls, port, close).await;
        });
    }
}

impl Receiver {
    async fn connection(
        &self,
        stream: TcpStream,
        source: IpAddr,
        tls: Option<TlsAcceptor>,
        port: u16,
        close: bool,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        {
            let mut seen = self.seen.borrow_mut();
            seen.connections += 1;
            seen.sources.insert(source);
        }
        let Some(tls) = tls else { return self.requests(stream, port, close).await };
        let stream = tls.accept(stream).await?;
        if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.seen.borrow_mut().resumed += 1;
        }
        self.requests(stream, port, close).await
    }

    async fn requests<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S, port: u16, close: bool) -> io::Result<()> {
        let mut conn = Conn::new(stream);
        loop {
            let head = match conn.request().await {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                // As servers do. A proxy that offers TLS learns that this port does not speak it.
                Err(error) => {
                    conn.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await?;
                    return Err(error);
                }
            };
            let close = close || head.close;
            match &head.get {
                Some(target) => {
                    self.seen.borrow_mut().deliveries += 1;
                    self.send_bytes(&mut conn, target).await?;
                }
                None => self.delivery(&mut conn, &head, port, close).await?,
            }
            if close {
                return conn.shutdown().await;
            }
        }
    }

    async fn delivery<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        conn: &mut Conn<S>,
        head: &Head,
        port: u16,
        close: bool,
    ) -> io::Result<()> {
        let mut signature = hmac::Context::with_key(&self.key);
        let signed = head.signature.as_deref();
        conn.body(head.framing, &mut |bytes| signed.map_or((), |_| signature.update(bytes))).await?;
        let valid = signed.is_some_and(|value| {
            let digits = value.strip_prefix(b"sha256=").unwrap_or(value).to_ascii_lowercase();
            digits == data_encoding::HEXLOWER.encode(signature.sign().as_ref()).as_bytes()
        });
        {
            let mut seen = self.seen.borrow_mut();
            seen.deliveries += 1;
            seen.signed += u64::from(valid);
            seen.untrusted += u64::from([TLS_UNKNOWN, TLS_OTHER_NAME].contains(&port));
        }
        conn.send(response(close)).await
    }

    /// Answers a GET of `/bytes/N`.
    async fn send_bytes<S: AsyncRead + AsyncWrite + Unpin>(&self, conn: &mut Conn<S>, target: &str) -> io::Result<()> {
        let mut left: u64 = target.rsplit('/').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n").as_bytes()).await?;
        while left > 0 {
            let count = left.min(WRITE as u64);
            conn.send(&self.bytes[..usize::try_from(count).unwrap_or(WRITE)]).await?;
            left -= count;
        }
        Ok(())
    }
}

const fn response(close: bool) -> &'static [u8] {
    match close {
        true => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"ok\":true}",
        false => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}",
    }
}
