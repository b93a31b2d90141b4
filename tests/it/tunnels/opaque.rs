//! CONNECT up to the first bytes inside: authorization, verification of the target, and the ClientHello.
//! Do the guarantees for webhooks also hold for opaque tunnels?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::IpAddr;

use serde_json::Value;
use support::configuration::{Config, Replace};
use support::pki::{Identity, Pki, self_signed};
use support::scene::folder;
use support::tunnel::{
    PLAIN_REQUESTS, assert_recorded_as_plaintext, assert_refused_for_plaintext, client_hello, connect,
    tls_config_trusting,
};
use support::tunnel_scene::{Scene, config, manual_scene, read, scene, scene_with};
use support::{Outgate, post};

fn pool() -> Vec<IpAddr> {
    (0..4).map(|last| IpAddr::from([127, 0, 7, last])).collect()
}

#[test]
fn tunnel_opens_to_the_target_from_the_pool_for_every_client() {
    let scene = scene();
    let authority = scene.authority();
    for (count, request) in [
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Connection: Keep-Alive\r\n\r\n"),
        format!("CONNECT {authority} HTTP/1.1\r\nHost: tunnel.example\r\n\r\n"),
        format!("CONNECT {authority} HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n"),
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"),
        format!("CONNECT {authority} HTTP/1.0\r\n\r\n"),
        format!("CONNECT {} HTTP/1.1\r\nHost: h\r\n\r\n", authority.replace_one("tunnel.example", "TUNNEL.Example.")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = scene.outgate.connect();
        client.send(&request);
        let response = client.response_to("CONNECT");
        assert_eq!((response.status, response.reason.as_str()), (200, "Connection established"), "{request}");
        for absent in ["content-length", "transfer-encoding", "outgate-error"] {
            assert!(!response.fields.contains_key(absent), "{request}: {response:?}");
        }
        assert_eq!(response.field("via"), "1.1 outgate", "{request}");
        let source: IpAddr = response.field("outgate-egress").parse().unwrap();
        assert!(pool().contains(&source), "{source}");

        let (mut inside, _) = client.start_tls("tunnel.example", tls_config_trusting(&scene.pki.pem)).unwrap();
        inside.send(post("/in", "", "body"));
        assert_eq!(inside.response().text(), "ok", "{request}");
        assert_eq!(scene.target.wait_for_requests(count + 1)[count].body, b"body");
        drop(inside);

        let record = scene.record(count + 1);
        assert_eq!(record["request_id"], response.field("outgate-request-id"), "{record}");
        assert_eq!((&record["method"], &record["route"]), (&"CONNECT".into(), &"tunnel".into()), "{record}");
        assert_eq!((&record["host"], &record["path"]), (&"tunnel.example".into(), &Value::Null), "{record}");
        assert_eq!((&record["status"], &record["code"]), (&200.into(), &"delivered".into()), "{record}");
        assert_eq!((&record["source"], &record["address"]), (&source.to_string().into(), &"127.0.0.1".into()));
        let traffic = scene.tap.traffic().last().unwrap().clone();
        assert_eq!(record["bytes_sent"], traffic.sent.len(), "{record}");
        assert_eq!(record["bytes_received"], traffic.received.len(), "{record}");
    }
}

/// Returns a second request after a refused CONNECT, which must not be processed.
fn smuggled(scene: &Scene) -> String {
    post(&format!("http://plain.example:{}/smuggled", scene.port()), "", "x")
}

#[test]
fn connect_authority_is_parsed_strictly_and_bytes_after_a_refusal_are_not_read() {
    let scene = scene();
    let port = scene.port();
    let line = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: h\r\n");
    let mut cases: Vec<(String, &str)> = Vec::new();
    for target in [
        "tunnel.example",
        "tunnel.example:",
        "tunnel.example:0",
        "tunnel.example:99999",
        "tunnel.example:+443",
        "tunnel.example:443/",
        "tunnel.example:443?x",
        "http://tunnel.example:443",
        "user@tunnel.example:443",
        "user:password@tunnel.example:443",
        ":443",
        "/",
        "*",
        "::1:443",
        "[::1:443",
        "[::1]",
        "127.1:443",
        "0x7f000001:443",
        "tunnel..example:443",
    ] {
        cases.push((format!("{}\r\n", line(target)), "request_malformed"));
    }
    let good = format!("tunnel.example:{port}");
    cases.extend([
        (format!("{}Content-Length: 5\r\n\r\nhello", line(&good)), "request_malformed"),
        (format!("{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", line(&good)), "request_malformed"),
        (format!("{}\r\n", line(&format!("signed.example:{port}"))), "tunnel_forbidden"),
        (format!("{}\r\n", line(&format!("refused.example:{port}"))), "tunnel_forbidden"),
        (format!("{}\r\n", line(&format!("paths.example:{port}"))), "no_route"),
        (format!("{}\r\n", line(&format!("unrouted.example:{port}"))), "no_route"),
        (format!("{}\r\n", line("tunnel.example:22")), "target_port_forbidden"),
        (format!("{}\r\n", line("tunnel.example:80")), "target_port_forbidden"),
        (format!("{}Via: 1.1 outgate\r\n\r\n", line(&good)), "target_loops_back"),
        (format!("{}Outgate-Tenant: acme\r\n\r\n", line(&good)), "client_forbidden"),
        (format!("{}Proxy-Authorization: Bearer wrong\r\n\r\n", line(&good)), "client_unauthenticated"),
    ]);
    for (head, code) in &cases {
        let mut client = scene.outgate.connect();
        client.send(format!("{head}{}", smuggled(&scene)));
        let response = client.response_to("CONNECT");
        assert_eq!(response.code(), *code, "{head}: {response:?}");
        assert_eq!(response.json()["code"], *code);
        assert_eq!(response.field("connection"), "close", "{head}");
        assert!(client.is_closed(), "{head}");
    }
    assert_eq!(scene.outgate.records(cases.len()).len(), cases.len(), "one record each");
    assert!(scene.tap.traffic().is_empty(), "outgate opened no connection");
}

#[test]
fn tunnel_to_a_private_address_or_to_outgate_is_refused() {
    let scene = scene();
    let own = scene.outgate.proxy.port();
    let text = config(scene.port(), "").push("routes.*.ports", own);
    scene.outgate.reconfigure(&text);
    let (_, response) = scene.outgate.tunnel(&format!("127.0.0.1:{own}"), "");
    assert_eq!((response.status, response.code()), (502, "target_loops_back"));
    scene.outgate.reconfigure(&text.remove("guard.allow"));
    for host in ["tunnel.example", "127.0.0.1"] {
        let (_, response) = scene.outgate.tunnel(&format!("{host}:{}", scene.port()), "");
        assert_eq!((response.status, response.code()), (502, "target_forbidden"), "{host}");
    }
    scene.outgate.reconfigure(&text.set("egress.default.ranges", ["198.51.100.0/30"]));
    let (_, response) = scene.outgate.tunnel(&scene.authority(), "");
    assert_eq!((response.status, response.code()), (503, "no_egress"));
    assert!(scene.tap.traffic().is_empty(), "outgate opened no connection");
}

#[test]
fn tunnel_to_an_untrusted_target_carries_no_byte_of_the_client() {
    type MakeIdentity = fn(&Pki) -> Identity;
    let cases: [(&str, MakeIdentity); 4] = [
        ("self_signed", |_| self_signed(&["tunnel.example"])),
        ("unknown_issuer", |_| Pki::new().leaf(&["tunnel.example"])),
        ("name_mismatch", |pki| pki.leaf(&["else.example"])),
        ("expired", |pki| {
            pki.leaf_with(&["tunnel.example"], |params| {
                params.not_before = rcgen::date_time_ymd(2020, 1, 1);
                params.not_after = rcgen::date_time_ymd(2021, 1, 1);
            })
        }),
    ];
    for (details, identity) in cases {
        let scene = scene_with(identity, "");
        let mut client = scene.outgate.connect();
        // This client does not wait for the 200.
        client.send([connect(&scene.authority(), "").as_bytes(), &client_hello("tunnel.example")].concat());
        let response = client.response_to("CONNECT");
        assert_eq!((response.status, response.code()), (502, "certificate_untrusted"), "{details}: {response:?}");
        assert_eq!(response.json()["details"], details);
        assert!(client.is_closed());
        let record = scene.record(1);
        assert_eq!((&record["details"], &record["bytes_sent"]), (&details.into(), &0.into()), "{record}");
        let traffic = scene.tap.wait_for_connections(1);
        assert_eq!(traffic.len(), 1, "{details}: the verification's connection, and none for the tunnel");
        assert!(scene.target.requests().is_empty());
    }
}

#[test]
fn tunnel_target_verification_is_cached_per_trust() {
    let scene = scene();
    let connections = |count| assert_eq!(scene.tap.wait_for_connections(count).len(), count);
    drop(scene.outgate.open_tunnel(&scene.authority()));
    connections(2);
    // The pool rotates four sources, and each source verifies the target itself.
    for _ in 0..3 {
        drop(scene.outgate.open_tunnel(&scene.authority()));
    }
    connections(8);
    for more in 1..=4 {
        drop(scene.outgate.open_tunnel(&scene.authority()));
        connections(8 + more);
    }
    scene.outgate.folder.write("other.pem", Pki::new().pem);
    scene.outgate.reconfigure(&config(scene.port(), "").set("trust.public.roots", ["{dir}/other.pem"]));
    let (_, response) = scene.outgate.tunnel(&scene.authority(), "");
    assert_eq!(
        (response.code(), response.json()["details"].as_str()),
        ("certificate_untrusted", Some("unknown_issuer"))
    );
}

#[test]
fn tunnel_uses_the_source_address_that_was_verified() {
    let scene = manual_scene("");
    for _ in 0..4 {
        let mut client = scene.outgate.connect();
        client.send(connect(&scene.authority(), ""));
        let verified = scene.close_on_tls();
        let tunnel = scene.accept();
        assert_eq!(tunnel.peer_addr().unwrap().ip(), verified.ip());
        assert!(pool().contains(&verified.ip()));
        assert_eq!(client.response_to("CONNECT").status, 200);
    }
}

/// A receiver that finishes one connection before it accepts the next, as gunicorn's sync worker does.
struct SerialReceiver {
    address: std::net::SocketAddr,
}

impl SerialReceiver {
    /// Starts a receiver that closes the connections in `closed` after their first bytes.
    fn start(identity: Identity, closed: &'static [usize]) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .unwrap();
        let config = std::sync::Arc::new(config);
        std::thread::spawn(move || {
            for (number, mut stream) in listener.incoming().map_while(Result::ok).enumerate() {
                if closed.contains(&number) {
                    let _ = stream.read(&mut [0; 4096]);
                    continue;
                }
                let mut session = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
                let mut stream = rustls::Stream::new(&mut session, &mut stream);
                let mut request = [0; 4096];
                if stream.read(&mut request).is_ok_and(|length| length > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        Self { address }
    }
}

/// Sends a webhook through a tunnel to the receiver. Returns the text of the response, and the record.
fn post_through_tunnel(identity: impl FnOnce(&Pki) -> Identity, closed: &'static [usize]) -> (String, Value) {
    let pki = Pki::new();
    let receiver = SerialReceiver::start(identity(&pki), closed);
    let outgate = Outgate::run(folder(&pki), &config(receiver.address.port(), ""));
    let client = outgate.open_tunnel(&format!("tunnel.example:{}", receiver.address.port()));
    let (mut inside, _) = client.start_tls("tunnel.example", tls_config_trusting(&pki.pem)).unwrap();
    inside.send(post("/in", "", "body"));
    let text = inside.response().text();
    drop(inside);
    (text, outgate.records(1)[0].clone())
}

#[test]
fn tunnel_opens_to_a_receiver_that_handshakes_serially() {
    let (text, record) = post_through_tunnel(|pki| pki.leaf(&["tunnel.example"]), &[]);
    assert_eq!((text.as_str(), &record["code"]), ("ok", &"delivered".into()), "{record}");
}

#[test]
fn tunnel_closed_before_its_first_byte_is_dialled_once_more() {
    // Connection 0 verifies the target. Connection 1 is the first of the tunnel.
    let (text, record) = post_through_tunnel(|pki| pki.leaf(&["tunnel.example"]), &[1]);
    assert_eq!((text.as_str(), &record["code"]), ("ok", &"delivered".into()), "{record}");
}

#[test]
fn tunnel_target_that_cannot_be_verified_gets_no_second_connection() {
    let scene = manual_scene("");
    let mut client = scene.outgate.connect();
    client.send(connect(&scene.authority().replace_one("plain", "tunnel"), ""));
    drop(scene.accept());
    assert_eq!(client.response_to("CONNECT").code(), "connection_lost");
    scene.listener.set_nonblocking(true).unwrap();
    assert_eq!(scene.listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn tunnel_to_a_plaintext_port_requires_a_route_that_allows_plaintext() {
    let scene = manual_scene("");
    let (mut client, mut target) = scene.open();
    client.send("SSH-2.0-client\r\n");
    assert_eq!(read(&mut target, 16), b"SSH-2.0-client\r\n");
    drop((client, target));
    assert_eq!(scene.record(1)["code"], "delivered");

    let mut client = scene.outgate.connect();
    client.send(connect(&scene.authority().replace_one("plain", "tunnel"), ""));
    scene.reject_tls();
    let response = client.response_to("CONNECT");
    assert_eq!((response.code(), response.json()["details"].as_str()), ("tls_failed", Some("plaintext")));

    // No program listens on port 80.
    let (_, response) = scene.outgate.tunnel("plain.example:80", "");
    assert_eq!((response.status, response.code()), (502, "connect_refused"));
}

#[test]
fn tunnel_verifies_a_tls_target_on_a_route_that_allows_plaintext() {
    let scene = scene_with(|_| self_signed(&["plain.example"]), "");
    let (_, response) = scene.outgate.tunnel(&format!("plain.example:{}", scene.port()), "");
    assert_eq!((response.code(), response.json()["details"].as_str()), ("certificate_untrusted", Some("self_signed")));
}

/// The fatal alerts that end a tunnel, each in a plaintext record (RFC 8446 §6.2).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];

#[test]
fn tunnel_with_a_client_hello_for_another_host_ends_with_a_tls_alert() {
    let scene = scene();
    let (own, other, nameless) =
        (client_hello("tunnel.example"), client_hello("other.example"), client_hello("127.0.0.1"));
    let mut alert = own.clone();
    alert[0] = 21;
    let by_address = format!("127.0.0.1:{}", scene.port());
    let own_name = scene.authority();
    let cases: [(&str, &[u8], &[u8]); 7] = [
        (&own_name, &other, UNRECOGNIZED_NAME),
        (&own_name, &client_hello("sub.tunnel.example"), UNRECOGNIZED_NAME),
        (&own_name, &nameless, ACCESS_DENIED),
        (&own_name, b"\x80\x2e\x01", b""),
        (&own_name, &alert, b""),
        (&own_name, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", ACCESS_DENIED),
        (&by_address, &own, UNRECOGNIZED_NAME),
    ];
    for (count, (authority, first, end)) in cases.into_iter().enumerate() {
        let (mut client, index) = scene.open(authority);
        client.send(first);
        assert_eq!(client.rest(), end, "{authority} {first:?}");
        drop(client);
        let record = scene.record(count + 1);
        assert_eq!((&record["status"], &record["code"]), (&200.into(), &"tunnel_forbidden".into()), "{record}");
        assert!(record["cause"].is_string(), "{record}");
        assert!(scene.tap.wait_for_all_sent(index).is_empty(), "{authority} {first:?}");
    }
    let mut client = scene.outgate.open_tunnel(&by_address);
    client.send(&nameless);
    assert_eq!(client.read_some()[0], 22, "the target's handshake");
}

#[test]
fn plain_http_inside_a_tunnel_for_tls_gets_a_readable_400() {
    let scene = scene();
    for (count, request) in PLAIN_REQUESTS.into_iter().enumerate() {
        let before = scene.tap.traffic().len();
        let (mut client, connected) = scene.outgate.tunnel(&scene.authority(), "");
        let index = scene.tap.wait_for_silent_connection(before);
        client.send(request);
        let response = client.response();
        assert_refused_for_plaintext(&response);
        client.shutdown_write();
        assert!(client.is_closed(), "{request:?}");
        let record = scene.record(count + 1);
        assert_recorded_as_plaintext(&record, &connected);
        assert_eq!(response.field("outgate-request-id"), connected.field("outgate-request-id"));
        assert_eq!(response.field("outgate-egress"), record["source"].as_str().unwrap());
        assert!(scene.tap.wait_for_all_sent(index).is_empty(), "{request:?}");
    }
}

/// A TLS library reports the alert by its name.
#[test]
fn tunnel_alert_reaches_the_client_as_the_reason_of_its_handshake_error() {
    let scene = scene();
    let (client, _) = scene.open(&scene.authority());
    let error =
        client.start_tls("other.example", tls_config_trusting(&scene.pki.pem)).map(drop).unwrap_err().to_string();
    assert!(error.contains("UnrecognisedName"), "{error}");
}

#[test]
fn tunnel_forwards_the_client_hello_unchanged() {
    let scene = scene();
    let whole = client_hello("tunnel.example");
    // One handshake message in three records (RFC 8446 §5.1), and a further record.
    let (head, message) = whole.split_at(5);
    let record = |part: &[u8]| [&head[..3], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
    let fragmented =
        [record(&message[..1]), record(&message[1..90]), record(&message[90..]), b"\x17\x03\x03\x00\x01x".to_vec()];
    let connect_request = connect(&scene.authority(), "");
    for sent in [vec![whole.clone()], fragmented.to_vec(), whole.chunks(7).map(<[u8]>::to_vec).collect()] {
        let mut client = scene.outgate.connect();
        // The first piece is in the same segment as the CONNECT.
        client.send([connect_request.as_bytes(), &sent[0]].concat());
        assert_eq!(client.response_to("CONNECT").status, 200);
        sent[1..].iter().for_each(|piece| client.send(piece));
        assert!(!client.read_some().is_empty());
        assert_eq!(scene.tap.traffic().last().unwrap().sent, sent.concat());
    }
}

#[test]
fn tunnel_client_must_send_its_client_hello_in_time() {
    /// The addresses of the pool, which take turns.
    const SOURCES: usize = 4;
    let scene = scene();
    // outgate verifies the target from each source, so that no verification has to end within the short timeout.
    let verified: Vec<_> = (0..SOURCES).map(|_| scene.open(&scene.authority()).0).collect();
    drop(verified);
    let sources: HashSet<_> =
        scene.outgate.records(SOURCES).iter().map(|record| record["source"].to_string()).collect();
    assert_eq!(sources.len(), SOURCES, "{sources:?}");
    scene.outgate.reconfigure(&config(scene.port(), "").set("routes.*.timeouts.tls", "300ms"));
    let whole = client_hello("tunnel.example");
    for (count, length) in [0, 3, whole.len() - 1].into_iter().enumerate() {
        let (mut client, before) = (scene.outgate.connect(), scene.tap.traffic().len());
        client.send([connect(&scene.authority(), "").as_bytes(), &whole[..length]].concat());
        let index = scene.tap.wait_for_silent_connection(before);
        assert_eq!(client.response_to("CONNECT").status, 200);
        // access_denied, if the client has sent a part of its ClientHello.
        let alert: &[u8] = if length == 0 { b"" } else { b"\x15\x03\x03\0\x02\x02\x31" };
        assert_eq!(client.rest(), alert, "{length}");
        let record = scene.record(SOURCES + count + 1);
        assert!(record["code"] != "delivered" && record["code"] != "client_gone", "{record}");
        assert!(scene.tap.wait_for_all_sent(index).is_empty(), "{length}");
    }
}

#[test]
fn check_warns_of_features_that_tunnels_lack() {
    let scene = scene();
    let warnings = |text: &Config| {
        scene.outgate.folder.write_config("check.toml", text);
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
            .args(["check", "--config"])
            .arg(scene.outgate.folder.path("check.toml"))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stderr).unwrap()
    };
    let text = config(scene.port(), "");
    let with_forced_tunnel = warnings(&text);
    let without = text.remove("routes.forced.connect");
    let count = |printed: &str| printed.matches("warning[").count();
    assert_eq!(
        count(&with_forced_tunnel),
        count(&warnings(&without)) + 1,
        "a tunnel cannot be signed: {with_forced_tunnel}"
    );
    let paths = warnings(&text.add("routes.paths.connect", "tunnel"));
    assert_eq!(count(&paths), count(&with_forced_tunnel) + 1, "a CONNECT shows no path: {paths}");
    // The configuration is valid in spite of the warning.
    drop(scene.outgate.open_tunnel(&format!("forced.example:{}", scene.port())));
}
