//! Targets that take a connection, and then read nothing of what comes over it.
//! Is everything that was held for a delivery let go when it has ended?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use socket2::SockRef;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, PATIENCE, post};

/// More than the buffers of the kernel hold for a reader that does not read.
const BODY: usize = 12 << 20;

struct Place {
    outgate: Outgate,
    target: TcpListener,
    tls: Arc<rustls::ServerConfig>,
}

fn place(protocol: &str) -> Place {
    let pki = Pki::new();
    let identity = pki.leaf(&["hook.example"]);
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&target).set_recv_buffer_size(4096).unwrap();
    let plain = Receiver::plain(ok());
    let text = config(&plain, &plain, "[timeouts]\ntotal = \"1s\"\n")
        .replace("ports = [", &format!("ports = [{}, ", target.local_addr().unwrap().port()))
        .replace("body_max = \"64 KiB\"", "body_max = \"16 MiB\"")
        .replace("body_max = \"1 MiB\"", "body_max = \"16 MiB\"");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Place { outgate: Outgate::run(folder(&pki), &text), target, tls: Arc::new(tls) }
}

impl Place {
    fn url(&self, scheme: &str) -> String {
        let host = if scheme == "https" { "hook" } else { "plain" };
        format!("{scheme}://{host}.example:{}/", self.target.local_addr().unwrap().port())
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = self.target.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection on which TLS is spoken, and `first` is said.
    fn accept_tls(&self, first: &[u8]) -> TcpStream {
        let mut stream = self.accept();
        let mut session = rustls::ServerConnection::new(Arc::clone(&self.tls)).unwrap();
        session.complete_io(&mut stream).unwrap();
        session.writer().write_all(first).unwrap();
        session.write_tls(&mut stream).unwrap();
        stream
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.outgate.pid())).unwrap().count()
    }

    /// Sends a body that the target does not take, until `ended`; then nothing is left of it on either side.
    fn sends(&self, url: &str, accept: impl FnOnce() -> TcpStream, client_stays: bool) {
        let before = self.descriptors();
        let mut client = self.outgate.connect();
        let mut writing = client.socket().try_clone().unwrap();
        let head = post(url, "", "").replace("Content-Length: 0", &format!("Content-Length: {BODY}"));
        let writer = std::thread::spawn(move || {
            let _ = writing.write_all(head.as_bytes()).and_then(|()| writing.write_all(&vec![b'x'; BODY]));
        });
        let stuck = accept();
        if client_stays {
            assert_eq!(client.answer().status, 504, "{url}");
        } else {
            client.socket().shutdown(std::net::Shutdown::Both).unwrap();
        }
        drop(client);
        writer.join().unwrap();
        let deadline = Instant::now() + PATIENCE;
        // What the kernel still holds for us would be delivered by and by; a reset says that nothing is.
        while stuck.take_error().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{url}: the connection to the target stays");
            std::thread::yield_now();
        }
        while self.descriptors() > before {
            assert!(Instant::now() < deadline, "{url}: {} descriptors, {before} before", self.descriptors());
            std::thread::yield_now();
        }
        assert_eq!(self.outgate.records(1).len(), 1);
    }
}

#[test]
fn a_body_that_streams_is_let_go() {
    let place = place("http/1.1");
    place.outgate.admin("/metrics");
    place.sends(&place.url("http"), || place.accept(), true);
}

#[test]
fn a_body_that_streams_is_let_go_when_its_client_hangs_up() {
    let place = place("http/1.1");
    place.outgate.admin("/metrics");
    place.sends(&place.url("http"), || place.accept(), false);
}

#[test]
fn a_whole_body_is_let_go_over_tls() {
    let place = place("http/1.1");
    place.outgate.admin("/metrics");
    place.sends(&place.url("https"), || place.accept_tls(b""), true);
}

#[test]
fn a_whole_body_is_let_go_over_http2() {
    let place = place("h2");
    place.outgate.admin("/metrics");
    // SETTINGS with windows as large as they get, and the same for the connection: nothing but the socket is in the way.
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff";
    let window = b"\0\0\x04\x08\0\0\0\0\0\x7f\xfe\0\0";
    place.sends(&place.url("https"), || place.accept_tls(&[&settings[..], &window[..]].concat()), true);
}

#[test]
fn an_answer_that_says_it_is_the_last_is_passed_on_whole() {
    let place = place("http/1.1");
    let mut client = place.outgate.connect();
    client.send(post(&place.url("http"), "", "x"));
    let mut target = place.accept();
    let mut piece = [0; 4096];
    assert_ne!(target.read(&mut piece).unwrap(), 0);
    target.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nha").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"ha") {
        seen.extend(client.read_some());
    }
    target.write_all(b"lf").unwrap();
    while !seen.ends_with(b"half") {
        seen.extend(client.read_some());
    }
    assert!(place.outgate.records(1)[0]["code"] == "delivered");
}
