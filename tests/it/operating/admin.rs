//! The admin listener over TCP: connections, names, credentials and roles.
//! Can another host or a web page block probes, read internal data, or change the proxy?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::Write;
use std::net::TcpStream;

use socket2::{Domain, Socket, Type};
use support::scene::{config, scene};
use support::{Client, TEST_TIMEOUT};

/// Several times the connections that the listener allows. If they queued for seconds each, a probe would be too late.
const HELD: usize = 400;
/// A number of requests whose responses exceed the kernel's buffers for a peer that reads slowly.
const REQUESTS: usize = 20;
const RECEIVE_BUFFER: usize = 4096;

#[test]
fn admin_over_tcp_answers_probes_while_a_peer_holds_its_connections() {
    let scene = scene();
    let requests = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(REQUESTS);
    let held = (0..HELD).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        socket.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        socket.connect(&scene.outgate.admin.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        // The write fails on an evicted connection.
        let _ = stream.write_all(requests.as_bytes());
        stream
    });
    let _held = held.collect::<Vec<_>>();
    assert_eq!(scene.outgate.admin("/healthz").status, 200);
}

#[test]
fn admin_over_tcp_checks_host_against_dns_rebinding() {
    let scene = scene();
    let status = |host: &str| {
        let mut client = Client::connect(scene.outgate.admin);
        client.send(format!("GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        client.response()
    };
    let refused = status("rebound.example:4751");
    assert_eq!(refused.status, 421);
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("\"rebound.example:4751\"") && detail.contains("admin.hosts"), "{detail}");
    assert_eq!(status(&scene.outgate.admin.to_string()).status, 200);
    assert_eq!(status("localhost").status, 200);
    assert_eq!(status("outgate.internal").status, 421);
    let text = config(&scene.good, &scene.plain, "");
    scene.outgate.reconfigure(&text.add("admin.hosts", ["outgate.internal"]));
    assert_eq!(status("outgate.internal:4751").status, 200);
    assert_eq!(status("rebound.example").status, 421);
}
