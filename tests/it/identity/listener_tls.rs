//! Clients over TLS, with and without client certificates.
//! Does a reload change the certificates of the listener and its trust from the next handshake on?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose, date_time_ymd};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};
use support::configuration::{Config, Replace};
use support::pki::{Identity, Pki};
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Folder, Outgate, TEST_TIMEOUT, post, read_to_end};

struct Scene {
    /// The authority of the listener's certificate. `clients` is the authority of the client certificates.
    pki: Pki,
    clients: Pki,
    outgate: Outgate,
    plain: Receiver,
}

fn write(folder: &Folder, name: &str, identity: &Identity) {
    folder.write(&format!("{name}.pem"), identity.chain_pem());
    folder.write(&format!("{name}.key"), identity.key_pem());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.path(&format!("{name}.key")), mode).unwrap();
}

const TLS: &str = "tls = { certificate = \"{dir}/listener.pem\", key = \"{dir}/listener.key\" }";

fn tls_with_client_ca(more: &str) -> String {
    TLS.replace_one(" }", &format!(", client_ca = \"{{dir}}/clients.pem\"{more} }}"))
}

fn text(plain: &Receiver, tls: &str) -> Config {
    let client =
        if tls.contains("client_ca") { "[clients.billing]\ncertificates = [\"Billing.Internal\"]" } else { "" };
    config(plain, plain, &format!("[timeouts]\ntls = \"60s\"\n{client}")).and(&format!("[server]\n{tls}\n"))
}

fn scene(tls: &str) -> Scene {
    let (pki, clients) = (Pki::new(), Pki::new());
    let plain = Receiver::plain(ok());
    let folder = folder(&pki);
    write(&folder, "listener", &pki.leaf(&["localhost", "127.0.0.1"]));
    folder.write("clients.pem", &clients.pem);
    folder.write("clients.crl", clients.revoked(&[7]));
    let outgate = Outgate::run(folder, &text(&plain, tls));
    Scene { pki, clients, outgate, plain }
}

impl Scene {
    fn url(&self) -> String {
        format!("http://plain.example:{}/in", self.plain.port())
    }

    fn client(&self, pki: &Pki, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Identity {
        pki.leaf_with(&["billing.internal"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        })
    }

    fn tls(&self, identity: Option<Identity>, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(pem_to_der(&self.pki.pem))).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => config.with_client_auth_cert(identity.chain, identity.key).unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn connect(&self, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
        self.connect_behind(b"", config)
    }

    /// Connects through a load balancer that sends these bytes first.
    fn connect_behind(&self, printed: &[u8], config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
        // With a small receive window, the proxy must wait for the client.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&self.outgate.proxy.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.write_all(printed).unwrap();
        let session = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost").unwrap()).unwrap();
        StreamOwned::new(session, stream)
    }

    /// Sends one request, and returns the kind of the handshake or its error.
    fn send_request(&self, config: &Arc<ClientConfig>) -> std::io::Result<HandshakeKind> {
        let mut stream = self.connect(config);
        stream.write_all(post(&self.url(), "Connection: close\r\n", "x").as_bytes())?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response)?;
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&response));
        Ok(stream.conn.handshake_kind().unwrap())
    }
}

fn pem_to_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[test]
fn listener_tls_serves_the_http_version_that_alpn_chose() {
    let scene = scene(TLS);
    assert_eq!(scene.send_request(&scene.tls(None, &["http/1.1"])).unwrap(), HandshakeKind::Full);
    scene.send_request(&scene.tls(None, &[])).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(scene.outgate.proxy).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(scene.tls(None, &["h2", "http/1.1"]));
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder().method("POST").uri(scene.url()).body(()).unwrap();
        let mut sender: h2::client::SendRequest<bytes::Bytes> = sender.ready().await.unwrap();
        sender.send_request(request, true).unwrap().0.await.unwrap().status()
    };
    assert_eq!(runtime.block_on(exchange), 200);
    let vias: Vec<_> = scene.plain.requests().iter().map(|received| received.field("via").to_owned()).collect();
    assert_eq!(vias, ["1.1 outgate", "1.1 outgate", "2 outgate"]);
}

#[test]
fn listener_tls_passes_large_bodies_and_many_requests() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n{}", "x".repeat(8_000_000));
    let plain = Receiver::plain(support::receiver::respond_with(&large));
    let scene = scene(TLS);
    scene.outgate.reconfigure(&text(&plain, TLS));
    let mut stream = scene.connect(&scene.tls(None, &[]));
    let url = format!("http://plain.example:{}/in", plain.port());
    for _ in 0..2 {
        stream.write_all(post(&url, "", &"y".repeat(900_000)).as_bytes()).unwrap();
        let (mut received, mut piece) = (Vec::new(), [0; 1000]);
        while !received.ends_with(&[b'x'; 1000]) || received.len() < 8_000_000 {
            let length = stream.read(&mut piece).unwrap();
            assert_ne!(length, 0);
            received.extend_from_slice(&piece[..length]);
        }
    }
    assert!(plain.requests().iter().all(|received| received.body.len() == 900_000));
}

#[test]
fn listener_tls_serves_curl_as_an_https_proxy() {
    let scene = scene(&tls_with_client_ca(""));
    let dir = &scene.outgate.folder;
    write(dir, "client", &scene.client(&scene.clients, |_| {}));
    let proxy = format!("https://localhost:{}", scene.outgate.proxy.port());
    let curl = |more: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "20", "-x", &proxy, "-d", "{}", "--proxy-cacert"]).arg(dir.path("ca.pem"));
        command.args(["-o", "/dev/null", "-w", "%{http_code} %{exitcode}"]).args(more).arg(scene.url()).output()
    };
    if curl(&[]).is_err() && !support::required() {
        return; // no curl
    }
    let printed = |more: &[&str]| String::from_utf8(curl(more).unwrap().stdout).unwrap();
    assert_eq!(printed(&[]), "200 0");
    let (certificate, key) = (dir.path("client.pem"), dir.path("client.key"));
    let identity = ["--proxy-cert", certificate.to_str().unwrap(), "--proxy-key", key.to_str().unwrap()];
    assert_eq!(printed(&identity), "200 0");
    assert_eq!(printed(&["--expect100-timeout", "10", "-H", "Expect: 100-continue"]), "200 0");
}

#[test]
fn listener_tls_ends_a_broken_handshake_with_an_alert_and_logs_it() {
    let scene = scene(TLS);
    let mut client = scene.outgate.connect();
    client.send([0x17, 3, 3, 0, 1, 0]); // application data before a handshake
    let printed = client.rest();
    assert!(!printed.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&printed));
    assert_eq!(printed.first(), Some(&21), "a TLS alert");
    assert!(scene.plain.requests().is_empty());
    // outgate does not wait for a peer that sends nothing.
    scene.outgate.reconfigure(&text(&scene.plain, TLS).set("timeouts.tls", "1s"));
    assert!(scene.outgate.connect().is_closed());
    scene.outgate.log.wait_for("the log line", |lines| {
        lines.iter().any(|line| line.contains("127.0.0.1 was closed: the TLS handshake failed")).then_some(())
    });
}

#[test]
fn listener_tls_does_not_apply_to_a_unix_socket() {
    let plain = Receiver::plain(ok());
    let pki = Pki::new();
    let folder = folder(&pki);
    write(&folder, "listener", &pki.leaf(&["localhost"]));
    let outgate = Outgate::run(folder, &text(&plain, TLS).push("server.listen", "unix:{dir}/proxy.sock"));
    let mut stream = std::os::unix::net::UnixStream::connect(outgate.folder.path("proxy.sock")).unwrap();
    let url = format!("http://plain.example:{}/in", plain.port());
    stream.write_all(post(&url, "Connection: close\r\n", "x").as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
}

#[test]
fn client_certificate_is_verified_if_it_is_shown() {
    let scene = scene(&tls_with_client_ca(", client_crls = [\"{dir}/clients.crl\"]"));
    let with_serial = |serial: u64| scene.client(&scene.clients, |params| params.serial_number = Some(serial.into()));
    scene.send_request(&scene.tls(None, &[])).expect("it is optional");
    scene.send_request(&scene.tls(Some(with_serial(6)), &[])).expect("it is good");
    for (label, identity) in [
        ("revoked", with_serial(7)),
        ("another authority's", scene.client(&Pki::new(), |_| {})),
        ("the listener's authority's", scene.client(&scene.pki, |_| {})),
        ("expired", scene.client(&scene.clients, |params| params.not_after = date_time_ymd(2020, 1, 1))),
        ("a server's", scene.clients.leaf(&["billing.internal"])),
    ] {
        assert!(scene.send_request(&scene.tls(Some(identity), &[])).is_err(), "{label}");
    }
    assert_eq!(scene.plain.requests().len(), 2);
}

#[test]
fn client_certificate_below_an_issuer_without_key_cert_sign_is_refused() {
    let scene = scene(&tls_with_client_ca(""));
    let below = |usages: &[KeyUsagePurpose]| {
        let issuer = scene.clients.intermediate_with("issuer", |params| params.key_usages = usages.to_vec());
        let mut identity = scene.client(&issuer, |_| {});
        identity.chain.push(CertificateDer::from(pem_to_der(&issuer.pem)));
        scene.tls(Some(identity), &[])
    };
    scene.send_request(&below(&[KeyUsagePurpose::KeyCertSign])).expect("its issuer may sign certificates");
    scene.send_request(&below(&[])).expect("its issuer has no keyUsage");
    assert!(scene.send_request(&below(&[KeyUsagePurpose::CrlSign])).is_err());
    assert!(scene.send_request(&below(&[KeyUsagePurpose::DigitalSignature])).is_err());
}

#[test]
fn client_certificate_in_client_ca_that_its_issuer_has_revoked_is_refused() {
    let scene = scene(&tls_with_client_ca(", client_crls = [\"{dir}/clients.crl\"]"));
    let [good, revoked] =
        [6_u64, 7].map(|serial| scene.client(&scene.clients, |params| params.serial_number = Some(serial.into())));
    let authorities = [&scene.clients.pem, &good.chain_pem(), &revoked.chain_pem()].map(String::as_str).concat();
    scene.outgate.folder.write("clients.pem", authorities);
    scene.outgate.reconfigure(&text(&scene.plain, &tls_with_client_ca(", client_crls = [\"{dir}/clients.crl\"]")));
    scene.send_request(&scene.tls(Some(good), &[])).expect("it is good");
    assert!(scene.send_request(&scene.tls(Some(revoked), &[])).is_err());
}

#[test]
fn client_certificate_identifies_its_client() {
    let scene = scene(&tls_with_client_ca(""));
    let text = text(&scene.plain, &tls_with_client_ca("")).remove("server.allow_anonymous");
    scene.outgate.reconfigure(&text);
    let send_request = |identity| {
        let mut stream = scene.connect(&scene.tls(identity, &[]));
        stream.write_all(post(&scene.url(), "Connection: close\r\n", "x").as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    assert!(send_request(Some(scene.client(&scene.clients, |_| {}))).starts_with("HTTP/1.1 200"));
    assert_eq!(scene.outgate.records(1)[0]["client"], "billing");
    let other = scene.clients.leaf_with(&["shipping.internal"], |params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "billing.internal");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert!(send_request(Some(other)).contains("client_unauthenticated"));
    assert!(send_request(None).contains("client_unauthenticated"));
}

#[test]
fn client_certificate_that_is_revoked_identifies_no_client_on_an_open_connection() {
    let listed = tls_with_client_ca(", client_crls = [\"{dir}/clients.crl\"]");
    let scene = scene(&listed);
    scene.outgate.reconfigure(&text(&scene.plain, &listed).remove("server.allow_anonymous"));
    let with_serial = |serial: u64| scene.client(&scene.clients, |params| params.serial_number = Some(serial.into()));
    let send_request = |stream: &mut StreamOwned<ClientConnection, TcpStream>, fields: &str| {
        stream.write_all(post(&scene.url(), fields, "x").as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\nok") && !rest.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            rest.extend(byte);
        }
        (String::from_utf8(status.to_vec()).unwrap(), String::from_utf8(rest).unwrap())
    };
    let mut open = [6, 8].map(|serial| {
        let mut stream = scene.connect(&scene.tls(Some(with_serial(serial)), &[]));
        assert_eq!(send_request(&mut stream, "").0, "HTTP/1.1 200");
        stream
    });
    // outgate reads the next list because one of the configuration's files has changed.
    let list = scene.clients.revoked(&[7, 8]);
    scene.outgate.after_reload(|| drop(scene.outgate.folder.write("clients.crl", list)));
    assert_eq!(send_request(&mut open[0], "").0, "HTTP/1.1 200", "the list does not name this certificate");
    let (status, refused) = send_request(&mut open[1], "");
    assert!(status == "HTTP/1.1 407" && refused.contains("the client certificate was revoked"), "{refused}");
}

/// The seconds until the expiry, enough for a handshake and a request on a loaded machine.
const SHORT_LIFE: i64 = 20;

#[test]
fn client_certificate_that_expires_identifies_no_client_on_an_open_connection() {
    let scene = scene(&tls_with_client_ca(""));
    let end = jiff::Timestamp::now().as_second() + SHORT_LIFE;
    let identity = scene.client(&scene.clients, |params| {
        params.not_after = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
    });
    let mut stream = scene.connect(&scene.tls(Some(identity), &["http/1.1"]));
    let mut send_request = || {
        stream.write_all(post(&scene.url(), "", "x").as_bytes()).unwrap();
        let mut response = Vec::new();
        while !complete(&response) {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&response));
            response.extend_from_slice(&piece[..read]);
        }
        String::from_utf8(response).unwrap()
    };
    assert!(send_request().starts_with("HTTP/1.1 200 OK\r\n"));
    let left = end + 1 - jiff::Timestamp::now().as_second();
    // The certificate is valid in the second of its notAfter, so the test waits for the clock.
    std::thread::sleep(std::time::Duration::from_secs(left.try_into().unwrap_or(0)));
    let refused = send_request();
    assert!(refused.starts_with("HTTP/1.1 407 ") && refused.contains("client_unauthenticated"), "{refused}");
    let expired = format!("the client certificate expired at {}", jiff::Timestamp::from_second(end).unwrap());
    assert!(refused.contains(&expired), "{refused}");
    let records = scene.outgate.records(2);
    assert!(records[1]["detail"].as_str().unwrap().starts_with(&expired), "{}", records[1]);
    assert_eq!(scene.plain.requests().len(), 1);
}

/// Returns whether the body has the length of `Content-Length`.
fn complete(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    body.len() >= length.trim().parse().unwrap()
}

/// The header and the first flight may come in one piece.
#[test]
fn proxy_protocol_header_precedes_the_tls_handshake() {
    let scene = scene(TLS);
    let listener = format!("{TLS}\nproxy_protocol = {{ from = [\"127.0.0.0/8\"] }}");
    let text = text(&scene.plain, &listener).add("clients.office.networks", ["192.0.2.7"]);
    scene.outgate.reconfigure(&text.remove("server.allow_anonymous"));
    for printed in
        [&b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x0712345678"]
    {
        let mut stream = scene.connect_behind(printed, &scene.tls(None, &[]));
        stream.write_all(post(&scene.url(), "Connection: close\r\n", "x").as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    let records = scene.outgate.records(2);
    assert!(records.iter().all(|record| record["client"] == "office" && record["peer"] == "192.0.2.7"), "{records:#?}");
    assert!(scene.send_request(&scene.tls(None, &[])).is_err(), "TLS alone is no header");
    // Plain HTTP after the header, in the same segment, gets a 400.
    let mut client = Client::connect(scene.outgate.proxy);
    client.send("PROXY TCP4 192.0.2.9 192.0.2.1 4000 443\r\nGE");
    let response = client.response();
    assert_eq!(response.reason, "Bad Request (request_malformed: plaintext)", "{response:?}");
    assert_eq!(scene.outgate.records(3)[2]["peer"], "192.0.2.9");
}

#[test]
fn listener_tls_change_takes_effect_at_the_next_handshake() {
    let scene = scene(TLS);
    let client_config = scene.tls(None, &[]);
    let mut before = scene.connect(&client_config);
    before.write_all(post(&scene.url(), "", "x").as_bytes()).unwrap();
    let old_chain = before.conn.peer_certificates().unwrap().to_vec();
    scene.send_request(&client_config).unwrap();
    assert_eq!(scene.send_request(&client_config).unwrap(), HandshakeKind::Resumed);
    // The configuration names both new files, because a certificate without its key is invalid.
    let next = scene.pki.leaf(&["localhost"]);
    let dir = &scene.outgate.folder;
    write(dir, "next", &next);
    scene.outgate.reconfigure(&text(&scene.plain, &TLS.replace_all("listener.", "next.")));
    assert_eq!(scene.send_request(&client_config).unwrap(), HandshakeKind::Full, "no session outlives the certificate");
    let mut after = scene.connect(&client_config);
    after.write_all(post(&scene.url(), "", "x").as_bytes()).unwrap();
    assert_eq!(after.conn.peer_certificates().unwrap(), &next.chain[..]);
    assert_ne!(old_chain, next.chain);
    let mut piece = [0; 12];
    before.read_exact(&mut piece).unwrap();
    assert_eq!(&piece, b"HTTP/1.1 200", "an open connection goes on");
}

#[test]
fn client_ca_that_is_replaced_ends_tls_session_resumption() {
    let scene = scene(&tls_with_client_ca(""));
    let client = scene.tls(Some(scene.client(&scene.clients, |_| {})), &[]);
    for _ in 0..3 {
        assert_eq!(
            scene.send_request(&client).unwrap(),
            HandshakeKind::Full,
            "every handshake verifies the certificate"
        );
    }
    // The file changes without a change of the configuration.
    scene.outgate.after_reload(|| drop(scene.outgate.folder.write("clients.pem", &Pki::new().pem)));
    assert!(scene.send_request(&client).is_err());
    scene.send_request(&scene.tls(None, &[])).unwrap();
}

fn check(folder: &Folder, tls: &str) -> (bool, String) {
    let receiver = Receiver::plain(ok());
    folder.write_config("config.toml", &text(&receiver, tls));
    let output = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["check", "--config"])
        .arg(folder.path("config.toml"))
        .env("CREDENTIALS_DIRECTORY", folder.path("credentials"))
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[test]
fn check_reports_problems_of_listener_tls_files_at_their_key() {
    let pki = Pki::new();
    let folder = folder(&pki);
    let write_one = |name: &str, until: (i32, u8, u8)| {
        let identity =
            pki.leaf_with(&["localhost"], |params| params.not_after = date_time_ymd(until.0, until.1, until.2));
        write(&folder, name, &identity);
    };
    write_one("listener", (4000, 1, 1));
    write_one("other", (4000, 1, 1));
    write_one("old", (2026, 1, 1));
    folder.write("garbage.pem", "nothing");
    folder.write("empty.pem", "");
    folder.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    folder.write("open.key", std::fs::read(folder.path("listener.key")).unwrap());
    std::fs::create_dir(folder.path("credentials")).unwrap();
    folder.write("credentials/listener", std::fs::read(folder.path("listener.key")).unwrap());
    let tls = |certificate: &str, key: &str, more: &str| {
        format!("tls = {{ certificate = \"{{dir}}/{certificate}\", key = \"{key}\"{more} }}")
    };
    let key = "{dir}/listener.key";
    for (written, is_good, words) in [
        (tls("listener.pem", key, ""), true, ""),
        (tls("listener.pem", "file:{dir}/listener.key", ""), true, ""),
        (tls("listener.pem", "credential:listener", ""), true, ""),
        (tls("listener.pem", "{dir}/other.key", ""), false, "the key does not match the certificate"),
        (tls("listener.pem", "{dir}/open.key", ""), true, "every user of this host can open"),
        (tls("listener.pem", "{dir}/none.key", ""), false, "none.key does not exist"),
        (tls("listener.pem", "credential:none", ""), false, "no credential none was passed"),
        (tls("listener.pem", "{dir}/listener.pem", ""), false, "no private key in PEM"),
        (tls("none.pem", key, ""), false, "none.pem does not exist"),
        (tls("garbage.pem", key, ""), false, "garbage.pem does not hold a certificate"),
        (tls("empty.pem", key, ""), false, "empty.pem does not hold a certificate"),
        (tls("broken.pem", key, ""), false, "cannot be read"),
        (tls("old.pem", "{dir}/old.key", ""), true, "expired at 2026-01-01"),
        (tls("listener.pem", key, ", client_ca = \"{dir}/broken.pem\""), false, "not usable as an authority"),
        (
            tls("listener.pem", key, ", client_ca = \"{dir}/ca.pem\", client_crls = [\"{dir}/ca.pem\"]"),
            false,
            "does not hold a certificate revocation list",
        ),
        (
            tls("listener.pem", key, ", client_ca = \"{dir}/ca.pem\", client_crls = [\"{dir}/old.crl\"]"),
            true,
            "has been out of date",
        ),
        (tls("listener.pem", key, ", client_crls = [\"{dir}/old.crl\"]"), false, "has no effect without `client_ca`"),
        ("tls = { key = \"{dir}/listener.key\" }".into(), false, "`server.tls` has no `certificate`"),
        (
            "tls = { certificate = \"{dir}/listener.pem\", key = \"\"\"-----BEGIN PRIVATE KEY-----\nhunter2\n\"\"\" }"
                .into(),
            false,
            "`server.tls.key` has no secret",
        ),
    ] {
        folder.write("old.crl", pki.revoked_until(&[], (2026, 2, 1)));
        let (good, printed) = check(&folder, &written);
        assert_eq!(good, is_good, "{written}:\n{printed}");
        assert!(printed.contains(words) && !printed.contains("hunter2"), "{written}:\n{printed}");
        assert!(!words.is_empty() || printed.contains("valid, with 2 warnings"), "{written}:\n{printed}");
    }
}

#[test]
fn unidentified_peers_with_incomplete_tls_handshakes_are_evicted_oldest_first() {
    let scene = scene(TLS);
    scene.outgate.reconfigure(&text(&scene.plain, &format!("max_connections = 2\n{TLS}")));
    let client_hello = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(scene.outgate.proxy).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let (mut oldest, _younger) = (client_hello(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"), client_hello(b"\x16"));
    assert_eq!(scene.send_request(&scene.tls(None, &[])).unwrap(), HandshakeKind::Full);
    let evicted = "outgate_client_connections_closed_total{reason=\"unidentified\"} 1";
    let metrics = scene.outgate.admin("/metrics").text();
    assert!(metrics.lines().any(|line| line == evicted), "the younger handshake goes on: {metrics}");
    assert!(read_to_end(&mut oldest).is_empty());
}

#[test]
fn plain_http_on_a_tls_listener_gets_a_readable_400() {
    let scene = scene(TLS);
    let whole = post(&scene.url(), "", "x");
    let requests = [
        whole.as_str(),
        &format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", scene.url()),
        "CONNECT plain.example:443 HTTP/1.1\r\nHost: plain.example:443\r\n\r\n",
        // A partial body, a partial head, and the HTTP/2 preface.
        &format!("POST {} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf", scene.url()),
        "P",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    for (count, request) in requests.into_iter().enumerate() {
        let mut client = Client::connect(scene.outgate.proxy);
        client.send(request);
        let response = client.response();
        assert_eq!((response.status, response.code()), (400, "request_malformed"), "{request:?}: {response:?}");
        assert_eq!(response.reason, "Bad Request (request_malformed: plaintext)");
        assert_eq!(
            (response.field("connection"), response.field("content-type")),
            ("close", "application/problem+json")
        );
        assert!(response.json()["detail"].as_str().unwrap().contains("requires TLS"), "{response:?}");
        client.shutdown_write();
        assert!(client.is_closed());
        let record = scene.outgate.records(count + 1)[count].clone();
        assert_eq!((&record["code"], &record["details"]), (&"request_malformed".into(), &"plaintext".into()));
        assert_eq!(
            (&record["status"], &record["request_id"]),
            (&400.into(), &response.field("outgate-request-id").into())
        );
    }
    assert!(scene.plain.requests().is_empty());
    scene.send_request(&scene.tls(None, &[])).unwrap();
    // Bytes of neither protocol end the connection without a response.
    let mut other = Client::connect(scene.outgate.proxy);
    other.send([0x80, 0x2e, 1, 0, 2]);
    assert!(!String::from_utf8_lossy(&other.rest()).contains("HTTP"));
}
