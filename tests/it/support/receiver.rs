//! A webhook receiver that stores the requests that it receives.
//! Which requests arrived, from which address, over which connection?

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};

use super::pki::Identity;
use super::{TEST_TIMEOUT, eventually};

#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub from: IpAddr,
    /// Counted from 0 in the order of connections.
    pub connection: usize,
    /// Request line.
    pub line: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    pub fn field(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// The properties of the client in a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    pub resumed: bool,
    /// The client's own certificate.
    pub client_certificate: Option<Vec<u8>>,
}

pub type Handshakes = Arc<Mutex<Vec<Handshake>>>;

/// The reaction of a receiver to a request: the bytes of the response, and whether the connection stays open.
pub type Reaction = Arc<dyn Fn(&ReceivedRequest) -> (Vec<u8>, bool) + Send + Sync>;

#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    listener: Arc<TcpListener>,
    requests: Arc<(Mutex<Vec<ReceivedRequest>>, Condvar)>,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

pub fn ok() -> Reaction {
    respond_with("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

/// Responds with the same bytes to every request, and keeps the connection open.
pub fn respond_with(text: &str) -> Reaction {
    let text = text.as_bytes().to_vec();
    Arc::new(move |_| (text.clone(), true))
}

/// Responds with these bytes, and closes the connection.
pub fn respond_and_close(text: &str) -> Reaction {
    let text = text.as_bytes().to_vec();
    Arc::new(move |_| (text.clone(), false))
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

impl Receiver {
    pub fn plain(reaction: Reaction) -> Self {
        Self::plain_at("127.0.0.1:0", reaction)
    }

    pub fn plain_at(address: &str, reaction: Reaction) -> Self {
        Self::start(address, reaction, |stream| Some(Box::new(stream)))
    }

    /// Starts a receiver that answers a TLS handshake in plain HTTP.
    pub fn plaintext_greeting() -> Self {
        Self::start("127.0.0.1:0", ok(), |mut stream| {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").ok()?;
            Some(Box::new(stream))
        })
    }

    pub fn tls(identity: Identity, reaction: Reaction) -> Self {
        Self::tls_at("127.0.0.1:0", identity, reaction)
    }

    /// Starts a receiver on port 443 of a loopback address that no other test uses, for upgrades of `http://host/`. Returns
    /// `None` if the test may not bind the port and the port is not required.
    pub fn tls_on_443(identity: Identity, reaction: Reaction) -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = format!("127.{}.{high}.{low}:443", 64 + COUNT.fetch_add(1, Ordering::Relaxed) % 64);
        match TcpListener::bind(&address) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                assert!(!super::required(), "port 443 wants root");
                eprintln!("skipped: port 443 wants root");
                None
            }
            free => {
                drop(free.unwrap());
                Some(Self::tls_at(&address, identity, reaction))
            }
        }
    }

    pub fn tls_at(address: &str, identity: Identity, reaction: Reaction) -> Self {
        Self::tls_for(address, identity, reaction, |_| true)
    }

    /// Accepts every connection, and closes those from `rejected`.
    pub fn tls_unless(identity: Identity, reaction: Reaction, rejected: &'static str) -> Self {
        Self::tls_for("127.0.0.1:0", identity, reaction, move |from| from.to_string() != rejected)
    }

    /// Accepts every connection, and closes those from addresses that `accepts` rejects.
    pub fn tls_for(
        address: &str,
        identity: Identity,
        reaction: Reaction,
        accepts: impl Fn(IpAddr) -> bool + Send + Sync + 'static,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .unwrap();
        let config = Arc::new(config);
        Self::start(address, reaction, move |stream| {
            stream.peer_addr().ok().filter(|peer| accepts(peer.ip()))?;
            let session = rustls::ServerConnection::new(Arc::clone(&config)).ok()?;
            Some(Box::new(rustls::StreamOwned::new(session, stream)))
        })
    }

    /// Starts a receiver with this TLS configuration, and records each completed handshake.
    pub fn tls_with(config: rustls::ServerConfig, reaction: Reaction) -> (Self, Handshakes) {
        let (config, handshakes) = (Arc::new(config), Handshakes::default());
        let recorded = Arc::clone(&handshakes);
        let receiver = Self::start("127.0.0.1:0", reaction, move |mut stream| {
            let mut session = rustls::ServerConnection::new(Arc::clone(&config)).ok()?;
            while session.is_handshaking() {
                if session.complete_io(&mut stream).is_err() {
                    // The session has sent an alert. Unread data would discard it with a reset, so the rest is read.
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    return None;
                }
            }
            let client_certificate = session.peer_certificates().map(|chain| chain[0].to_vec());
            let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            recorded.lock().unwrap().push(Handshake { resumed, client_certificate });
            Some(Box::new(rustls::StreamOwned::new(session, stream)))
        });
        (receiver, handshakes)
    }

    fn start(
        address: &str,
        reaction: Reaction,
        wrap: impl Fn(TcpStream) -> Option<Box<dyn Wire>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            listener: Arc::new(listener.try_clone().unwrap()),
            requests: Arc::default(),
            connections: Arc::default(),
            closed: Arc::default(),
        };
        let (this, wrap) = (receiver.clone(), Arc::new(wrap));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (this, wrap, reaction) = (this.clone(), Arc::clone(&wrap), Arc::clone(&reaction));
                let connection = this.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
                    let Ok(from) = stream.peer_addr().map(|peer| peer.ip()) else { return }; // a reset came first
                    let Some(mut wire) = wrap(stream) else { return };
                    let mut keeps_open = true;
                    while let Some(request) = keeps_open.then(|| read_request(&mut *wire, from, connection)).flatten() {
                        let (response, keep_open) = reaction(&request);
                        this.requests.0.lock().unwrap().push(request);
                        this.requests.1.notify_all();
                        keeps_open = wire.write_all(&response).and_then(|()| wire.flush()).is_ok() && keep_open;
                    }
                    drop(wire);
                    this.closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        receiver
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Drops all packets from these addresses, as a firewall does. The kernel applies a filter of the listening socket to
    /// every segment (socket(7), SO_ATTACH_FILTER).
    pub fn drop_packets_from(&self, sources: &[&str]) {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        // SKF_NET_OFF is relative to the network header, in which IPv4 has the source address at offset 12.
        let mut filter = vec![SockFilter::new(LOAD, 0, 0, (-0x0010_0000_i32 + 12) as u32)];
        for (index, source) in sources.iter().enumerate() {
            let source: Ipv4Addr = source.parse().unwrap();
            let to_the_end = u8::try_from(sources.len() - index).unwrap();
            filter.push(SockFilter::new(EQUALS, to_the_end, 0, source.to_bits()));
        }
        filter.extend([SockFilter::new(RETURN, 0, 0, u32::MAX), SockFilter::new(RETURN, 0, 0, 0)]);
        SockRef::from(&*self.listener).attach_filter(&filter).unwrap();
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
    /// Waits until the receiver has closed this many connections and the kernel shows none as established. On a busy machine
    /// that takes a moment, even over loopback.
    pub fn wait_until_closed(&self, count: usize) {
        const ESTABLISHED: &str = "01";
        let here = format!(":{:04X}", self.port());
        let is_open = |line: &str| {
            let mut words = line.split_whitespace().skip(2);
            words.next().is_some_and(|remote| remote.ends_with(&here)) && words.next() == Some(ESTABLISHED)
        };
        eventually(&format!("{count} closed connections"), || {
            self.closed.load(Ordering::SeqCst) >= count
                && !std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(is_open)
        });
    }
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.0.lock().unwrap().clone()
    }
    /// Waits for this many requests.
    pub fn wait_for_requests(&self, count: usize) -> Vec<ReceivedRequest> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut requests = self.requests.0.lock().unwrap();
        while requests.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(left > Duration::ZERO, "{} of {count} requests", requests.len());
            requests = self.requests.1.wait_timeout(requests, left).unwrap().0;
        }
        requests.clone()
    }
}

fn read_request(wire: &mut dyn Wire, from: IpAddr, connection: usize) -> Option<ReceivedRequest> {
    let mut buffer = Vec::new();
    let end = read_until(wire, &mut buffer, |bytes| find(bytes, b"\r\n\r\n"))?;
    let head = String::from_utf8(buffer[..end].to_vec()).ok()?;
    let mut rest = buffer.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let fields =
        lines.filter_map(|line| line.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
    let mut request = ReceivedRequest { from, connection, line, fields, body: Vec::new() };
    if request.field("transfer-encoding").eq_ignore_ascii_case("chunked") {
        loop {
            let end = read_until(wire, &mut rest, |bytes| find(bytes, b"\r\n"))?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
            rest.drain(..end + 2);
            read_until(wire, &mut rest, |bytes| (bytes.len() >= size + 2).then_some(0))?;
            request.body.extend(rest.drain(..size));
            rest.drain(..2);
            if size == 0 {
                return Some(request);
            }
        }
    }
    let length = request.field("content-length").parse().unwrap_or(0);
    read_until(wire, &mut rest, |bytes| (bytes.len() >= length).then_some(0))?;
    request.body = rest;
    Some(request)
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

fn read_until(wire: &mut dyn Wire, buffer: &mut Vec<u8>, found: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    loop {
        if let Some(at) = found(buffer) {
            return Some(at);
        }
        let mut piece = [0; 16 * 1024];
        match wire.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(length) => buffer.extend_from_slice(&piece[..length]),
        }
    }
}
