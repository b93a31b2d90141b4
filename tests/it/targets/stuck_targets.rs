//! Targets that accept a connection and then stop reading.
//! Are all connections and buffers of a delivery released when it ends?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, TEST_TIMEOUT, eventually, post};

/// More bytes than the buffers of the kernel hold for a target that does not read.
const BODY: usize = 12 << 20;
/// If a client cannot write for this long although the target has accepted the connection, the target has stalled the
/// streamed upload. On a busy machine outgate, too, may take a second to read.
const WRITE_STALL: Duration = Duration::from_secs(2);
/// The time of one attempt to write.
const WRITE_ATTEMPT: Duration = Duration::from_millis(100);

/// SETTINGS and WINDOW_UPDATE with the largest windows, so that only the socket limits the upload.
const LARGE_WINDOWS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\xfe\0\0";
/// SETTINGS that keep the default windows of 65535 bytes (RFC 9113 §6.5.2).
const DEFAULT_WINDOWS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const OK_HTTP1: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// HEADERS with END_STREAM and only `:status: 200`.
const OK_HTTP2: &[u8] = b"\0\0\x01\x01\x05\0\0\0\x01\x88";

struct Scene {
    outgate: Outgate,
    target: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    /// Whether bodies stream to `hook.example`. To `plain.example` they always stream.
    is_streamed: bool,
}

/// The target's end of a connection from which the test no longer reads.
struct StuckConnection {
    socket: TcpStream,
    session: Option<rustls::ServerConnection>,
}

/// The end of a delivery for its client.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    TotalTimeout,
    HangUp,
    /// The target responds with these bytes before it has the whole request.
    EarlyResponse(&'static [u8]),
}

/// Starts a scene. Bodies stream on routes that do not sign.
fn scene(protocol: &str, total: &str, body: Body) -> Scene {
    let pki = Pki::new();
    let identity = pki.leaf(&["hook.example"]);
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&target).set_recv_buffer_size(4096).unwrap();
    SockRef::from(&target).set_read_timeout(Some(TEST_TIMEOUT)).unwrap(); // also for accept: socket(7)
    let plain = Receiver::plain(ok());
    let text = config(&plain, &plain, &format!("[timeouts]\ntotal = \"{total}\"\n"))
        .push("routes.*.ports", target.local_addr().unwrap().port())
        .set("routes.*.timeouts.connect", "30s")
        .set("routes.signed.timeouts.tls", "30s")
        .set("routes.signed.body_max", "32 MiB")
        .set("routes.plain.body_max", "32 MiB");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let is_streamed = body == Body::Streamed;
    let text = if is_streamed { text.remove("routes.signed.sign") } else { text };
    Scene { outgate: Outgate::run(folder(&pki), &text), target, tls: Arc::new(tls), is_streamed }
}

impl StuckConnection {
    /// Reads to the end of the request head, and at most one piece more.
    fn read_head(&mut self) {
        let mut received = Vec::new();
        while !has_head(&received) {
            let mut piece = [0; 512];
            let count = match &mut self.session {
                None => self.socket.read(&mut piece).unwrap(),
                Some(session) => rustls::Stream::new(session, &mut self.socket).read(&mut piece).unwrap(),
            };
            assert_ne!(count, 0);
            received.extend_from_slice(&piece[..count]);
        }
    }

    fn write(&mut self, text: &[u8]) {
        match &mut self.session {
            None => self.socket.write_all(text).unwrap(),
            Some(session) => {
                session.writer().write_all(text).unwrap();
                session.write_tls(&mut self.socket).unwrap();
            }
        }
    }
}

/// Returns whether the bytes have the blank line of HTTP/1 or a complete HEADERS frame (RFC 9113 §4.1).
fn has_head(received: &[u8]) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let Some(mut frames) = received.strip_prefix(PREFACE) else {
        return !PREFACE.starts_with(received) && received.windows(4).any(|four| four == b"\r\n\r\n");
    };
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = frames {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if *kind == 1 {
            return rest.len() >= length;
        }
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

impl Scene {
    fn url(&self, scheme: &str) -> String {
        let host = if scheme == "https" { "hook" } else { "plain" };
        format!("{scheme}://{host}.example:{}/", self.target.local_addr().unwrap().port())
    }

    fn accept(&self) -> StuckConnection {
        let (socket, _) = self.target.accept().unwrap();
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        StuckConnection { socket, session: None }
    }

    /// Accepts a connection, completes the TLS handshake, and writes `first`.
    fn accept_tls(&self, first: &[u8]) -> StuckConnection {
        let mut stuck = self.accept();
        let mut session = rustls::ServerConnection::new(Arc::clone(&self.tls)).unwrap();
        session.complete_io(&mut stuck.socket).unwrap();
        stuck.session = Some(session);
        stuck.write(first);
        stuck
    }

    /// Returns whether outgate has a descriptor for the connection of this client (`/proc/net/tcp`, proc(5)). A closed
    /// connection has no inode or no row.
    fn has_descriptor(&self, client: SocketAddr) -> bool {
        let ends = (format!("{:04X}", self.outgate.proxy.port()), format!("{:04X}", client.port()));
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().skip(1).any(|row| {
            let columns: Vec<&str> = row.split_whitespace().collect();
            columns[1].ends_with(&ends.0) && columns[2].ends_with(&ends.1) && columns[9] != "0"
        })
    }

    /// Sends a body that the target does not read, until it stalls or outgate has buffered it. Then causes this outcome, and
    /// checks that both connections of the delivery are closed.
    fn upload(&self, url: &str, accept: impl FnOnce() -> StuckConnection, outcome: Outcome) {
        let mut client = self.outgate.connect();
        let address = client.socket().local_addr().unwrap();
        assert!(self.outgate.proxy.is_ipv4());
        let writing = client.socket().try_clone().unwrap();
        let is_streamed = self.is_streamed || url.starts_with("http:");
        let mut request =
            post(url, "", "").replace_one("Content-Length: 0", &format!("Content-Length: {BODY}")).into_bytes();
        request.resize(request.len() + BODY, b'x');
        let is_accepted = Arc::new(AtomicBool::new(false));
        let may_stall = Arc::clone(&is_accepted);
        let writer = std::thread::spawn(move || write_until_stalled(writing, &request, &may_stall));
        let mut stuck = accept();
        is_accepted.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let is_early = matches!(outcome, Outcome::EarlyResponse(_));
        match outcome {
            Outcome::TotalTimeout => assert_eq!(client.response().status, 504, "{url}"),
            Outcome::HangUp => client.socket().shutdown(std::net::Shutdown::Both).unwrap(),
            Outcome::EarlyResponse(text) => {
                stuck.read_head();
                stuck.write(text);
                assert_eq!(client.response().status, 200, "{url}");
            }
        }
        drop(client);
        eventually(&format!("{url}: outgate closes the client's connection"), || !self.has_descriptor(address));
        if is_early && is_streamed {
            // outgate waits at least two seconds for the target, and the client's connection must not wait for that.
            assert!(
                stuck.socket.take_error().unwrap().is_none(),
                "{url}: the client's connection waits for the target's"
            );
        }
        // After a reset, the kernel delivers no more of the upload.
        eventually(&format!("{url}: outgate resets the connection to the target"), || {
            stuck.socket.take_error().unwrap().is_some()
        });
        assert_eq!(self.outgate.records(1).len(), 1);
    }
}

/// Writes a request until the target has stalled it, or until outgate has all of it. A client that stopped while outgate
/// still connects would leave too few bytes to stall the target.
fn write_until_stalled(mut socket: TcpStream, request: &[u8], is_accepted: &AtomicBool) {
    socket.set_write_timeout(Some(WRITE_ATTEMPT)).unwrap();
    let (mut written, mut last_progress) = (0, Instant::now());
    while written < request.len() {
        match socket.write(&request[written..]) {
            Ok(count) => (written, last_progress) = (written + count, Instant::now()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if !is_accepted.load(Ordering::Relaxed) {
                    last_progress = Instant::now();
                } else if last_progress.elapsed() >= WRITE_STALL {
                    return;
                }
            }
            Err(_) => return, // outgate has ended the delivery
        }
    }
}

/// The total timeout for a client that hangs up. outgate does not read from a stuck upload, so it notices the hang-up when
/// this timeout ends.
const SHORT_TOTAL: &str = "8s";
/// A total timeout that is longer than a delivery with an early response.
const LONG_TOTAL: &str = "30s";

/// The protocol of the target. For HTTP/2, it has the first frames of the target.
#[derive(Debug, Clone, Copy)]
enum Transport {
    Plain,
    Tls,
    Http2(&'static [u8]),
}

/// The number of parallel rows. More would delay the handshakes on a busy machine.
const PARALLEL_ROWS: usize = 4;

fn assert_connections_closed(body: Body, rows: &[(Transport, Outcome)]) {
    for rows in rows.chunks(PARALLEL_ROWS) {
        std::thread::scope(|scope| {
            for (transport, outcome) in rows.iter().copied() {
                scope.spawn(move || assert_connection_closed(body, transport, outcome));
            }
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Body {
    Streamed,
    Buffered,
}

fn assert_connection_closed(body: Body, transport: Transport, outcome: Outcome) {
    let total = match (outcome, body) {
        // Enough time for the upload and the handshake on a busy machine.
        (Outcome::TotalTimeout, _) => "8s",
        (Outcome::HangUp, Body::Streamed) => SHORT_TOTAL,
        _ => LONG_TOTAL,
    };
    let protocol = if matches!(transport, Transport::Http2(_)) { "h2" } else { "http/1.1" };
    let scene = scene(protocol, total, body);
    match transport {
        Transport::Plain => scene.upload(&scene.url("http"), || scene.accept(), outcome),
        Transport::Tls => scene.upload(&scene.url("https"), || scene.accept_tls(b""), outcome),
        Transport::Http2(settings) => scene.upload(&scene.url("https"), || scene.accept_tls(settings), outcome),
    }
}

#[test]
fn streamed_upload_to_a_stuck_target_is_closed_when_its_delivery_ends() {
    use Transport::{Http2, Plain, Tls};
    assert_connections_closed(
        Body::Streamed,
        &[
            (Plain, Outcome::TotalTimeout),
            (Plain, Outcome::HangUp),
            (Plain, Outcome::EarlyResponse(OK_HTTP1)),
            (Tls, Outcome::TotalTimeout),
            (Tls, Outcome::HangUp),
            (Http2(LARGE_WINDOWS), Outcome::TotalTimeout),
            (Http2(LARGE_WINDOWS), Outcome::HangUp),
            (Http2(LARGE_WINDOWS), Outcome::EarlyResponse(OK_HTTP2)),
            (Http2(DEFAULT_WINDOWS), Outcome::TotalTimeout),
            (Http2(DEFAULT_WINDOWS), Outcome::HangUp),
            (Http2(DEFAULT_WINDOWS), Outcome::EarlyResponse(OK_HTTP2)),
        ],
    );
}

/// Default HTTP/2 windows stall the upload on a connection that otherwise works.
#[test]
fn buffered_upload_to_a_stuck_target_is_closed_when_its_delivery_ends() {
    use Transport::{Http2, Tls};
    assert_connections_closed(
        Body::Buffered,
        &[
            (Tls, Outcome::TotalTimeout),
            (Tls, Outcome::HangUp),
            (Tls, Outcome::EarlyResponse(OK_HTTP1)),
            (Http2(LARGE_WINDOWS), Outcome::TotalTimeout),
            (Http2(LARGE_WINDOWS), Outcome::HangUp),
            (Http2(LARGE_WINDOWS), Outcome::EarlyResponse(OK_HTTP2)),
            (Http2(DEFAULT_WINDOWS), Outcome::EarlyResponse(OK_HTTP2)),
        ],
    );
}

#[test]
fn response_with_connection_close_is_forwarded_whole() {
    let scene = scene("http/1.1", LONG_TOTAL, Body::Buffered);
    let mut client = scene.outgate.connect();
    client.send(post(&scene.url("http"), "", "x"));
    let mut target = scene.accept();
    let mut piece = [0; 4096];
    assert_ne!(target.socket.read(&mut piece).unwrap(), 0);
    target.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nha");
    let mut received = Vec::new();
    while !received.ends_with(b"ha") {
        received.extend(client.read_some());
    }
    target.write(b"lf");
    while !received.ends_with(b"half") {
        received.extend(client.read_some());
    }
    assert!(scene.outgate.records(1)[0]["code"] == "delivered");
}
