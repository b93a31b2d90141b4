//! Targets that take a connection, and then read nothing of what comes over it.
//! Is everything that was held for a delivery let go when it has ended?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, PATIENCE, eventually, post};

/// More bytes than the buffers of the kernel hold for a target that does not read.
const BODY: usize = 12 << 20;
/// A client that could not write for so long is held up by the target behind us, if what it sends streams.
const HELD_UP: Duration = Duration::from_millis(500);

/// SETTINGS with windows as large as they get, and the same for the connection: nothing but the socket is in the way.
const OPEN: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\xfe\0\0";
/// SETTINGS that leave the windows at their 65535 bytes (RFC 9113 §6.5.2), of which no more is ever said.
const NARROW: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const OK_HTTP1: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// HEADERS with END_STREAM, of which all is `:status: 200`.
const OK_HTTP2: &[u8] = b"\0\0\x01\x01\x05\0\0\0\x01\x88";

struct Place {
    outgate: Outgate,
    target: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    /// Whether bodies stream to `hook.example`; to `plain.example` they always do.
    streams: bool,
}

/// A target's end of a connection of which it reads nothing more.
struct Stuck {
    socket: TcpStream,
    session: Option<rustls::ServerConnection>,
}

/// How a delivery ends for its client.
#[derive(Debug, Clone, Copy)]
enum End {
    Late,
    HangUp,
    /// The target answers with these bytes before it has the request.
    Answered(&'static [u8]),
}

/// Bodies stream on routes that do not sign.
fn place(protocol: &str, total: &str, body: Body) -> Place {
    let pki = Pki::new();
    let identity = pki.leaf(&["hook.example"]);
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&target).set_recv_buffer_size(4096).unwrap();
    SockRef::from(&target).set_read_timeout(Some(PATIENCE)).unwrap(); // of accept, too: socket(7)
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
    let streams = body == Body::Streams;
    let text = if streams { text.remove("routes.signed.sign") } else { text };
    Place { outgate: Outgate::run(folder(&pki), &text), target, tls: Arc::new(tls), streams }
}

impl Stuck {
    /// Reads to the end of the request's head, and little more.
    fn reads_head(&mut self) {
        let mut seen = Vec::new();
        while !has_head(&seen) {
            let mut piece = [0; 512];
            let count = match &mut self.session {
                None => self.socket.read(&mut piece).unwrap(),
                Some(session) => rustls::Stream::new(session, &mut self.socket).read(&mut piece).unwrap(),
            };
            assert_ne!(count, 0);
            seen.extend_from_slice(&piece[..count]);
        }
    }

    fn says(&mut self, text: &[u8]) {
        match &mut self.session {
            None => self.socket.write_all(text).unwrap(),
            Some(session) => {
                session.writer().write_all(text).unwrap();
                session.write_tls(&mut self.socket).unwrap();
            }
        }
    }
}

/// HTTP/1's blank line, or a frame of HTTP/2 that is HEADERS (RFC 9113 §4.1).
fn has_head(seen: &[u8]) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let Some(mut frames) = seen.strip_prefix(PREFACE) else {
        return !PREFACE.starts_with(seen) && seen.windows(4).any(|four| four == b"\r\n\r\n");
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

impl Place {
    fn url(&self, scheme: &str) -> String {
        let host = if scheme == "https" { "hook" } else { "plain" };
        format!("{scheme}://{host}.example:{}/", self.target.local_addr().unwrap().port())
    }

    fn accept(&self) -> Stuck {
        let (socket, _) = self.target.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Stuck { socket, session: None }
    }

    /// A connection on which TLS is spoken, and `first` is said.
    fn accept_tls(&self, first: &[u8]) -> Stuck {
        let mut stuck = self.accept();
        let mut session = rustls::ServerConnection::new(Arc::clone(&self.tls)).unwrap();
        session.complete_io(&mut stuck.socket).unwrap();
        stuck.session = Some(session);
        stuck.says(first);
        stuck
    }

    /// Whether the connection of this client has a descriptor on outgate's side (`/proc/net/tcp`, proc(5)): one that was
    /// let go has no inode, or no row.
    fn holds(&self, client: SocketAddr) -> bool {
        let ends = (format!("{:04X}", self.outgate.proxy.port()), format!("{:04X}", client.port()));
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().skip(1).any(|row| {
            let columns: Vec<&str> = row.split_whitespace().collect();
            columns[1].ends_with(&ends.0) && columns[2].ends_with(&ends.1) && columns[9] != "0"
        })
    }

    /// Sends a body that the target does not take, until it is held up or taken in whole, and the delivery comes to this
    /// `end`; then nothing is left of it on either side.
    fn sends(&self, url: &str, accept: impl FnOnce() -> Stuck, end: End) {
        let mut client = self.outgate.connect();
        let address = client.socket().local_addr().unwrap();
        assert!(self.outgate.proxy.is_ipv4());
        let mut writing = client.socket().try_clone().unwrap();
        let streams = self.streams || url.starts_with("http:");
        writing.set_write_timeout(Some(if streams { HELD_UP } else { PATIENCE })).unwrap();
        let head = post(url, "", "").replace_one("Content-Length: 0", &format!("Content-Length: {BODY}"));
        let writer = std::thread::spawn(move || {
            let _ = writing.write_all(head.as_bytes()).and_then(|()| writing.write_all(&vec![b'x'; BODY]));
        });
        let mut stuck = accept();
        writer.join().unwrap();
        let is_answered = matches!(end, End::Answered(_));
        match end {
            End::Late => assert_eq!(client.answer().status, 504, "{url}"),
            End::HangUp => client.socket().shutdown(std::net::Shutdown::Both).unwrap(),
            End::Answered(text) => {
                stuck.reads_head();
                stuck.says(text);
                assert_eq!(client.answer().status, 200, "{url}");
            }
        }
        drop(client);
        eventually(&format!("{url}: outgate closes the client's connection"), || !self.holds(address));
        if is_answered && streams {
            // The target has two seconds at least, but they are not the client's.
            assert!(
                stuck.socket.take_error().unwrap().is_none(),
                "{url}: the client's connection waits for the target's"
            );
        }
        // A reset states that the kernel delivers no more of the upload.
        eventually(&format!("{url}: outgate resets the connection to the target"), || {
            stuck.socket.take_error().unwrap().is_some()
        });
        assert_eq!(self.outgate.records(1).len(), 1);
    }
}

/// The total timeout, in which the client hangs up. outgate does not read a stuck upload, so it notices that at the end.
const HANGS_UP_WITHIN: &str = "8s";
/// A total timeout within which an early response ends the delivery.
const LONG: &str = "30s";

/// How the target is spoken to; over HTTP/2, with what it says first.
#[derive(Debug, Clone, Copy)]
enum Over {
    Plain,
    Tls,
    Http2(&'static [u8]),
}

/// Rows at the same time: they wait more than they work, but a busy machine must not keep their handshakes waiting.
const AT_ONCE: usize = 4;

fn are_let_go(body: Body, rows: &[(Over, End)]) {
    for rows in rows.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for (over, end) in rows.iter().copied() {
                scope.spawn(move || is_let_go(body, over, end));
            }
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Body {
    Streams,
    Whole,
}

fn is_let_go(body: Body, over: Over, end: End) {
    let total = match (end, body) {
        // Time to be taken in, and for the handshake, on a busy machine.
        (End::Late, _) => "8s",
        (End::HangUp, Body::Streams) => HANGS_UP_WITHIN,
        _ => LONG,
    };
    let protocol = if matches!(over, Over::Http2(_)) { "h2" } else { "http/1.1" };
    let place = place(protocol, total, body);
    match over {
        Over::Plain => place.sends(&place.url("http"), || place.accept(), end),
        Over::Tls => place.sends(&place.url("https"), || place.accept_tls(b""), end),
        Over::Http2(says) => place.sends(&place.url("https"), || place.accept_tls(says), end),
    }
}

#[test]
fn streamed_upload_to_a_stuck_target_is_closed_when_its_delivery_ends() {
    use Over::{Http2, Plain, Tls};
    are_let_go(
        Body::Streams,
        &[
            (Plain, End::Late),
            (Plain, End::HangUp),
            (Plain, End::Answered(OK_HTTP1)),
            (Tls, End::Late),
            (Tls, End::HangUp),
            (Http2(OPEN), End::Late),
            (Http2(OPEN), End::HangUp),
            (Http2(OPEN), End::Answered(OK_HTTP2)),
            (Http2(NARROW), End::Late),
            (Http2(NARROW), End::HangUp),
            (Http2(NARROW), End::Answered(OK_HTTP2)),
        ],
    );
}

/// A narrow HTTP/2 window holds the upload on a connection that otherwise works.
#[test]
fn buffered_upload_to_a_stuck_target_is_closed_when_its_delivery_ends() {
    use Over::{Http2, Tls};
    are_let_go(
        Body::Whole,
        &[
            (Tls, End::Late),
            (Tls, End::HangUp),
            (Tls, End::Answered(OK_HTTP1)),
            (Http2(OPEN), End::Late),
            (Http2(OPEN), End::HangUp),
            (Http2(OPEN), End::Answered(OK_HTTP2)),
            (Http2(NARROW), End::Answered(OK_HTTP2)),
        ],
    );
}

#[test]
fn response_with_connection_close_is_forwarded_whole() {
    let place = place("http/1.1", LONG, Body::Whole);
    let mut client = place.outgate.connect();
    client.send(post(&place.url("http"), "", "x"));
    let mut target = place.accept();
    let mut piece = [0; 4096];
    assert_ne!(target.socket.read(&mut piece).unwrap(), 0);
    target.says(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nha");
    let mut seen = Vec::new();
    while !seen.ends_with(b"ha") {
        seen.extend(client.read_some());
    }
    target.says(b"lf");
    while !seen.ends_with(b"half") {
        seen.extend(client.read_some());
    }
    assert!(place.outgate.records(1)[0]["code"] == "delivered");
}
