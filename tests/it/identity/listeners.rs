//! Several listeners of one process with different settings.
//! Does each listener apply its own settings only?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::configuration::{Config, Replace};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Outgate, TEST_TIMEOUT, post};

const CERTIFICATE: &str = "{ certificate = \"{dir}/listener.pem\", key = \"{dir}/listener.key\" }";

struct Scene {
    pki: Pki,
    outgate: Outgate,
    plain: Receiver,
}

fn text(plain: &Receiver, listen: &str, server: &str) -> Config {
    config(plain, plain, "").remove("server.listen").and(&format!("[server]\nlisten = [{listen}]\n{server}"))
}

fn scene(listen: &str, server: &str) -> Scene {
    let pki = Pki::new();
    let plain = Receiver::plain(ok());
    let folder = folder(&pki);
    let identity = pki.leaf(&["localhost"]);
    folder.write("listener.pem", identity.chain_pem());
    let key = folder.write("listener.key", identity.key_pem());
    std::fs::set_permissions(key, PermissionsExt::from_mode(0o600)).unwrap();
    let outgate = Outgate::run(folder, &text(&plain, listen, server));
    Scene { pki, outgate, plain }
}

impl Scene {
    fn request(&self) -> String {
        post(&format!("http://plain.example:{}/in", self.plain.port()), "Connection: close\r\n", "x")
    }

    /// Returns the address to which this listener is bound.
    fn bound_address(&self, address: &str) -> SocketAddr {
        let words = format!("proxy listening on {address}:");
        let lines = self.outgate.log.all();
        let port = lines.iter().rev().find_map(|line| line.split_once(&words)).unwrap().1;
        format!("{address}:{port}").parse().unwrap()
    }

    fn accepts_plaintext(&self, address: SocketAddr) -> bool {
        let mut client = Client::connect(address);
        client.try_send(self.request());
        client.rest().starts_with(b"HTTP/1.1 200 ")
    }

    /// Sends one request over TLS from a client that offers HTTP/2 and HTTP/1.1. Returns the ALPN protocol and the response.
    fn send_request_over_tls(&self, address: SocketAddr) -> std::io::Result<(Option<Vec<u8>>, String)> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        let session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let mut stream = StreamOwned::new(session, stream);
        // The proxy detects HTTP/1.1 by the first bytes, independently of ALPN.
        stream.write_all(self.request().as_bytes())?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response)?;
        Ok((stream.conn.alpn_protocol().map(<[u8]>::to_vec), String::from_utf8(response).unwrap()))
    }
}

#[test]
fn listeners_serve_plain_and_tls_side_by_side_with_alpn_of_their_own() {
    let listen =
        format!("\"127.0.0.1:0\", {{ address = \"127.0.0.2:0\", tls = {CERTIFICATE}, alpn = [\"http/1.1\"] }}");
    let scene = scene(&listen, "");
    let (plain, tls) = (scene.bound_address("127.0.0.1"), scene.bound_address("127.0.0.2"));
    assert!(scene.accepts_plaintext(plain));
    assert!(!scene.accepts_plaintext(tls));
    let (alpn, response) = scene.send_request_over_tls(tls).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
    assert!(scene.send_request_over_tls(plain).is_err());
    // The socket stays while its settings change.
    scene.outgate.reconfigure(&text(&scene.plain, &listen.replace_one("\"http/1.1\"", "\"h2\", \"http/1.1\""), ""));
    assert_eq!(scene.send_request_over_tls(tls).unwrap().0.as_deref(), Some(&b"h2"[..]));
}

#[test]
fn listeners_without_tls_of_their_own_have_that_of_server_tls() {
    let listen = "\"127.0.0.1:0\", { address = \"127.0.0.2:0\", tls = false }";
    let scene = scene(listen, &format!("tls = {CERTIFICATE}"));
    let (tls, plain) = (scene.bound_address("127.0.0.1"), scene.bound_address("127.0.0.2"));
    assert!(scene.send_request_over_tls(tls).unwrap().1.starts_with("HTTP/1.1 200 "));
    assert!(!scene.accepts_plaintext(tls));
    assert!(scene.accepts_plaintext(plain));
}

/// Returns the name and number of a group to which this process may give its files.
fn own_group() -> (String, u32) {
    let id = |argument: &str| {
        let output = Command::new("id").arg(argument).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().last().unwrap().to_owned()
    };
    (id("-Gn"), id("-G").parse().unwrap())
}

#[test]
fn unix_listeners_take_mode_and_group() {
    let (name, number) = own_group();
    let listen = |settings: &str| format!("\"127.0.0.1:0\", {{ address = \"unix:{{dir}}/proxy.sock\", {settings} }}");
    let scene = scene(&listen(&format!("mode = \"0620\", group = \"{name}\"")), "");
    let path = scene.outgate.folder.path("proxy.sock");
    let file = || {
        let metadata = std::fs::metadata(&path).unwrap();
        (metadata.mode() & 0o777, metadata.gid())
    };
    assert_eq!(file(), (0o620, number));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(scene.request().as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    // A reload changes them in place.
    scene.outgate.reconfigure(&text(&scene.plain, &listen(&format!("mode = \"0600\", group = \"{number}\"")), ""));
    assert_eq!(file(), (0o600, number));
    UnixStream::connect(&path).unwrap();
    let other = listen("group = \"no-such-group\"").replace_one("proxy.sock", "other.sock");
    scene.outgate.reconfigure_to_rejection(&text(&scene.plain, &other, ""));
    let log = scene.outgate.log.all().join("\n");
    assert!(log.contains("this host has no group \"no-such-group\""), "{log}");
    assert!(!scene.outgate.folder.path("other.sock").exists());
}

#[test]
fn tls_on_a_plaintext_listener_gets_a_readable_400() {
    let scene = scene("\"127.0.0.1:0\"", "");
    for (count, client_hello) in [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], b"\x16"].into_iter().enumerate() {
        let mut client = Client::connect(scene.outgate.proxy);
        client.send(client_hello);
        let response = client.response();
        assert_eq!(response.reason, "Bad Request (request_malformed: tls)");
        assert_eq!((response.status, response.field("connection")), (400, "close"));
        assert!(response.json()["detail"].as_str().unwrap().contains("accepts plaintext"), "{response:?}");
        client.shutdown_write();
        assert!(client.is_closed());
        let record = scene.outgate.records(count + 1)[count].clone();
        assert_eq!((&record["code"], &record["details"]), (&"request_malformed".into(), &"tls".into()));
    }
    assert_eq!(scene.outgate.post(&format!("http://plain.example:{}/in", scene.plain.port()), "", "x").status, 200);
}
