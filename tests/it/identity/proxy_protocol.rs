//! PROXY headers of load balancers, and of peers that are not trusted.
//! Is the address of a header used only if its sender is trusted?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Outgate, TEST_TIMEOUT, post};

struct Scene {
    outgate: Outgate,
    plain: Receiver,
}

const CLIENTS: &str = "[clients.office]\nnetworks = [\"192.0.2.0/24\", \"2001:db8::/32\"]\n\
     [clients.balancer]\nnetworks = [\"127.0.0.0/8\"]\n";

fn scene(server: &str) -> Scene {
    let plain = Receiver::plain(ok());
    let text = server_config(&plain, server);
    Scene { outgate: Outgate::run(folder(&Pki::new()), &text), plain }
}

impl Scene {
    fn request(&self) -> String {
        post(&format!("http://plain.example:{}/in", self.plain.port()), "", "x")
    }
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, family][..], &length, rest].concat()
}

#[test]
fn proxy_protocol_header_sets_the_address_of_the_client() {
    let scene = scene("proxy_protocol = { from = [\"127.0.0.0/8\"] }");
    let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 12], &[7; 20]].concat();
    let with_fields = [&[192, 0, 2, 9, 198, 51, 100, 1, 0, 1, 0, 2][..], &[4, 0, 3, 1, 2, 3]].concat();
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), "192.0.2.7", "office"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), "2001:db8::7", "office"),
        (v2(1, 0x11, &with_fields), "192.0.2.9", "office"),
        (v2(1, 0x21, &v6), "2001:db8::", "office"),
        // The connection is the load balancer's own.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1", "balancer"),
        (v2(0, 0, b""), "127.0.0.1", "balancer"),
    ];
    for (count, (header, peer, client)) in cases.iter().enumerate() {
        let mut balancer = scene.outgate.connect();
        // The header comes in two segments, and the request follows in the second.
        let (first, rest) = header.split_at(header.len() / 2);
        balancer.send(first);
        balancer.send([rest, scene.request().as_bytes()].concat());
        assert_eq!(balancer.response().status, 200, "{header:?}");
        balancer.send(scene.request());
        assert_eq!(balancer.response().status, 200, "a connection has one header");
        let record = scene.outgate.records(2 * count + 2)[2 * count].clone();
        assert_eq!((&record["peer"], &record["client"]), (&(*peer).into(), &(*client).into()), "{header:?}");
    }
    let mut unknown_client = scene.outgate.connect();
    unknown_client.send([b"PROXY TCP4 203.0.113.7 198.51.100.1 1 2\r\n", scene.request().as_bytes()].concat());
    assert_eq!(unknown_client.response().code(), "client_unauthenticated");
    // The peer of a unix socket has no network address.
    let mut unix_peer = scene.outgate.connect();
    unix_peer.send([&v2(1, 0x31, &[0; 216]), scene.request().as_bytes()].concat());
    assert_eq!(unix_peer.response().code(), "client_unauthenticated");
}

#[test]
fn proxy_protocol_header_may_precede_http2() {
    let scene = scene("proxy_protocol = { from = [\"127.0.0.1\"] }");
    let mut balancer = scene.outgate.connect();
    balancer.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let settings = balancer.read_some();
    assert_eq!(settings[3], 4, "{settings:?}");
}

#[test]
fn proxy_protocol_closes_a_connection_without_a_header() {
    let scene = scene("proxy_protocol = { from = [\"127.0.0.0/8\"] }");
    let assert_closed = |bytes: &[u8]| {
        let mut client = scene.outgate.connect();
        client.try_send(bytes);
        client.try_send(scene.request());
        assert!(client.is_closed(), "{:?}", String::from_utf8_lossy(bytes));
    };
    assert_closed(scene.request().as_bytes());
    // outgate logs a connection after it has closed it.
    scene.outgate.log.wait_for_lines(1, &["127.0.0.1 was closed: the client sent no PROXY protocol header"]);
    for bytes in [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1 99999\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7\n".to_vec(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
        v2(2, 0x11, &[0; 12]),
        v2(1, 0x11, &[0; 11]),
        v2(1, 0x12, &[0; 12]),
        v2(1, 0x11, &[0; 60_000]),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
    ] {
        assert_closed(&bytes);
    }
    assert!(scene.plain.requests().is_empty());
    assert_eq!(scene.outgate.log.wait_for_lines(0, &["was closed"]), 1, "once a minute");
}

#[test]
fn proxy_protocol_closes_a_connection_whose_header_is_late() {
    let scene = scene("proxy_protocol = { from = [\"127.0.0.0/8\"] }");
    let mut silent = scene.outgate.connect();
    let mut slow = scene.outgate.connect();
    slow.send("PROXY TCP4 192.");
    assert!(silent.is_closed() && slow.is_closed());
}

#[test]
fn proxy_protocol_closes_a_connection_from_another_network() {
    let scene = scene("proxy_protocol = { from = [\"127.0.0.0/8\"] }");
    let others = server_config(&scene.plain, "proxy_protocol = { from = [\"10.0.0.0/8\"] }");
    scene.outgate.reconfigure(&others);
    let mut client = scene.outgate.connect();
    client.try_send([b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n", scene.request().as_bytes()].concat());
    assert!(client.is_closed());
    // Without proxy_protocol, a header is not a valid request.
    scene.outgate.reconfigure(&server_config(&scene.plain, "proxy_protocol = false"));
    let mut client = scene.outgate.connect();
    client.send([b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n", scene.request().as_bytes()].concat());
    assert_eq!(client.response().code(), "request_malformed");
    let mut client = scene.outgate.connect();
    client.send(scene.request());
    assert_eq!(client.response().status, 200);
}

/// The usual configuration with these keys of `[server]` instead of `allow_anonymous`.
fn server_config(plain: &Receiver, server: &str) -> Config {
    config(plain, plain, CLIENTS).remove("server.allow_anonymous").and(&format!("[server]\n{server}\n"))
}

#[test]
fn proxy_protocol_works_on_a_unix_socket() {
    let plain = Receiver::plain(ok());
    let text = config(&plain, &plain, CLIENTS).push("server.listen", "unix:{dir}/proxy.sock");
    let outgate = Outgate::run(folder(&Pki::new()), &text);
    let send_request = |header: &str| {
        let mut stream = UnixStream::connect(outgate.folder.path("proxy.sock")).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let request = post(&format!("http://plain.example:{}/in", plain.port()), "Connection: close\r\n", "x");
        stream.write_all(format!("{header}{request}").as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    assert!(send_request("").starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(outgate.records(1)[0]["peer"], serde_json::Value::Null);
    outgate.reconfigure(&text.remove("server.allow_anonymous").add("server.proxy_protocol", true));
    assert!(send_request("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n").starts_with("HTTP/1.1 200 OK\r\n"));
    let record = outgate.records(2)[1].clone();
    assert_eq!((&record["peer"], &record["client"]), (&"192.0.2.7".into(), &"office".into()));
}

/// Any peer could send a header with any address, so `allow_anonymous` would make an open proxy.
#[test]
fn proxy_protocol_for_every_network_refuses_allow_anonymous() {
    let scene = scene("proxy_protocol = true");
    let text = server_config(&scene.plain, "proxy_protocol = true\nallow_anonymous = true");
    scene.outgate.reconfigure_to_rejection(&text);
    let log = scene.outgate.log.all().join("\n");
    assert!(log.contains("not adopted") && log.contains("open proxy"), "{log}");
    let mut client: Client = scene.outgate.connect();
    client.send([b"PROXY TCP4 203.0.113.7 198.51.100.1 1 2\r\n", scene.request().as_bytes()].concat());
    assert_eq!(client.response().code(), "client_unauthenticated");
}
