//! Open tunnels: bytes in both directions, and closes by the client, the target and outgate.
//! How does a tunnel end, and which permits does it hold until then?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use support::tunnel::connect;
use support::tunnel_scene::{config, manual_scene, read};
use support::{read_or_end, read_to_end};

#[test]
fn tunnel_allows_half_close_by_either_side() {
    let scene = manual_scene("");
    let (mut client, mut target) = scene.open();
    client.send("ping");
    client.shutdown_write();
    let mut got = Vec::new();
    target.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"ping");
    target.write_all(b"pong").unwrap();
    drop(target);
    assert_eq!(client.rest(), b"pong");
    drop(client);
    let record = scene.record(1);
    assert_eq!((&record["code"], &record["bytes_sent"]), (&"delivered".into(), &4.into()), "{record}");

    let (mut client, mut target) = scene.open();
    target.write_all(b"farewell").unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), b"farewell");
    client.send("and yet");
    drop(client);
    got.clear();
    target.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"and yet");
    let record = scene.record(2);
    assert_eq!((&record["code"], &record["bytes_received"]), (&"delivered".into(), &8.into()), "{record}");
}

#[test]
fn tunnel_carries_bulk_data_in_both_directions_at_once() {
    const PIECES: usize = 256;
    let scene = manual_scene("");
    let (mut client, mut target) = scene.open();
    let piece: Vec<u8> = (0..64 * 1024_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let echoing = std::thread::spawn(move || {
        let mut buffer = vec![0; 100_000];
        loop {
            match target.read(&mut buffer).unwrap() {
                0 => return target.shutdown(Shutdown::Write).unwrap(),
                length => target.write_all(&buffer[..length]).unwrap(),
            }
        }
    });
    let mut writing = client.socket().try_clone().unwrap();
    let sent = piece.clone();
    let writer = std::thread::spawn(move || {
        (0..PIECES).for_each(|_| writing.write_all(&sent).unwrap());
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let got = client.rest();
    assert_eq!(got.len(), PIECES * piece.len());
    assert!(got.chunks(piece.len()).all(|chunk| chunk == piece));
    writer.join().unwrap();
    echoing.join().unwrap();
    let record = scene.record(1);
    assert_eq!((&record["bytes_sent"], &record["bytes_received"]), (&got.len().into(), &got.len().into()), "{record}");
}

#[test]
fn tunnel_backpressure_from_the_client_stops_the_target() {
    let scene = manual_scene("");
    let (client, mut target) = scene.open();
    target.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let piece = vec![b'x'; 64 * 1024];
    // The kernel may keep so much for the receivers and the senders of both connections.
    let buffers = 2 * ["rmem", "wmem"].map(largest_buffer).iter().sum::<usize>();
    let (mut written, mut stalls) = (0, 0);
    while written < 2 * buffers && stalls < 2 {
        match target.write(&piece) {
            Ok(length) => (written, stalls) = (written + length, 0),
            // On a loaded machine outgate may not have run. It has after this exchange.
            Err(_) => {
                stalls += 1;
                assert_eq!(scene.outgate.admin("/healthz").status, 200);
            }
        }
    }
    // The buffers of the kernel on both sides, and a few chunks in outgate.
    assert!(written < buffers + (1 << 20), "{written} bytes went nowhere");
    drop(client);
}

/// Returns the largest buffer of a TCP socket, in bytes (tcp(7)).
fn largest_buffer(kind: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{kind}")).unwrap();
    text.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn tunnel_is_closed_after_the_idle_timeout_and_after_its_lifetime() {
    let scene = manual_scene("");
    let port = scene.listener.local_addr().unwrap().port();
    // The timeout of the route does not apply to the client before its tunnel is open.
    scene.outgate.reconfigure(&config(port, "").add("routes.plain.timeouts.idle", "300ms"));
    let (mut client, mut target) = scene.open_and_send("x");
    assert_eq!(read(&mut target, 1), b"x");
    assert!(client.is_closed());
    assert!(read_to_end(&mut target).is_empty());
    let record = scene.record(1);
    let total = record["ms"]["total"].as_f64().unwrap();
    assert!((300.0..5000.0).contains(&total) && record["code"] != "client_gone", "{record}");
    assert_eq!(record["status"], 200);

    scene.outgate.reconfigure(&config(port, "[timeouts]\ntunnel = \"500ms\"\n"));
    let (mut client, mut target) = scene.open();
    // The tunnel is never idle, and its lifetime ends it.
    while client.try_send("x") && read_or_end(&mut target, &mut [0; 1]) == 1 {}
    assert!(client.is_closed());
    let record = scene.record(2);
    let total = record["ms"]["total"].as_f64().unwrap();
    assert!((500.0..5000.0).contains(&total) && record["code"] != "client_gone", "{record}");
}

#[test]
fn tunnel_holds_its_limit_permit_until_it_ends() {
    let scene = manual_scene("[limits.one]\nconcurrency = 1\n");
    let port = scene.listener.local_addr().unwrap().port();
    let text = config(port, "[limits.one]\nconcurrency = 1\n");
    scene.outgate.reconfigure(&text.add("routes.plain.limits", ["one"]));
    let (mut client, mut target) = scene.open();
    let (_, response) = scene.outgate.tunnel(&scene.authority(), "");
    assert_eq!((response.status, response.code()), (429, "concurrency_limited"));
    // A half-close does not end the tunnel.
    client.shutdown_write();
    assert_eq!(target.read(&mut [0; 1]).unwrap(), 0);
    let (_, response) = scene.outgate.tunnel(&scene.authority(), "");
    assert_eq!(response.code(), "concurrency_limited");
    // The tunnel keeps the configuration with which it began.
    scene.outgate.reconfigure(&text.set("routes.plain.name", "plainer"));
    target.write_all(b"pong").unwrap();
    assert_eq!(client.read_some(), b"pong");
    scene.outgate.reconfigure(&text.add("routes.plain.limits", ["one"]));
    drop((client, target));
    assert_eq!(scene.record(3)["code"], "delivered");
    scene.open();
}

#[test]
fn tunnel_record_distinguishes_a_reset_from_a_clean_end() {
    let scene = manual_scene("");
    let (mut client, target) = scene.open();
    reset(target);
    assert!(client.is_closed());
    let record = scene.record(1);
    assert_eq!(record["code"], "connection_lost", "{record}");

    let (client, mut target) = scene.open();
    reset(client.socket().try_clone().unwrap());
    drop(client);
    read_to_end(&mut target);
    assert_eq!(scene.record(2)["code"], "client_gone");
}

#[test]
fn tunnel_that_carried_bytes_both_ways_is_delivered_however_it_closes() {
    let scene = manual_scene("");
    let mut count = 0;
    for ends in [
        |client: TcpStream, target: TcpStream| drop((client, target)),
        |client: TcpStream, target: TcpStream| {
            reset(target);
            drop(client);
        },
        |client: TcpStream, target: TcpStream| {
            reset(client);
            drop(target);
        },
        // The target has closed, and the client continues to send.
        |mut client: TcpStream, target: TcpStream| {
            drop(target);
            while client.write(&[b'x'; 4096]).is_ok() {}
        },
        // Unread bytes make the kernel send RST.
        |mut client: TcpStream, target: TcpStream| {
            client.write_all(b"unread").unwrap();
            let _ = target.peek(&mut [0; 1]);
            drop(target);
        },
    ] {
        let (mut client, mut target) = scene.open();
        client.send("ping");
        assert_eq!(read(&mut target, 4), b"ping");
        target.write_all(b"pong").unwrap();
        assert_eq!(client.read_some(), b"pong");
        let socket = client.socket().try_clone().unwrap();
        drop(client);
        ends(socket, target);
        count += 1;
        let record = scene.record(count);
        assert_eq!(record["code"], "delivered", "{record}");
    }
}

/// Closes with RST instead of FIN.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn tunnel_client_may_hang_up_before_its_tunnel_is_open() {
    let scene = manual_scene("");
    let client = {
        let mut client = scene.outgate.connect();
        client.send(connect(&scene.authority(), ""));
        client
    };
    let mut verification = scene.accept();
    drop(client);
    read_to_end(&mut verification);
    assert_eq!(scene.record(1)["code"], "client_gone");
    scene.outgate.wait_for_metric("outgate_client_connections 0");
}

#[test]
fn drain_lets_tunnels_finish() {
    let mut scene = manual_scene("");
    let (mut client, mut target) = scene.open();
    let mut late = scene.outgate.connect();
    late.send("CONNECT ");
    scene.outgate.signal("TERM");
    scene
        .outgate
        .log
        .wait_for("the log line of the drain", |lines| lines.iter().any(|l| l.contains("draining")).then_some(()));
    late.send("plain.example:443 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(late.response_to("CONNECT").code(), "draining");
    client.send("ping");
    assert_eq!(read(&mut target, 4), b"ping");
    target.write_all(b"pong").unwrap();
    drop(target);
    assert_eq!(client.rest(), b"pong");
    drop((client, late));
    assert!(scene.outgate.wait().success());
    let records = scene.outgate.records(2);
    assert!(records.iter().any(|record| record["code"] == "delivered" && record["bytes_received"] == 4), "{records:?}");
}

#[test]
fn drain_timeout_closes_open_tunnels() {
    let mut scene = manual_scene("");
    let text = config(scene.listener.local_addr().unwrap().port(), "");
    scene.outgate.reconfigure(&text.set("server.drain_timeout", "200ms"));
    let (mut client, target) = scene.open();
    scene.outgate.signal("TERM");
    assert!(client.is_closed());
    drop(target);
    assert!(scene.outgate.wait().success());
    let record = scene.record(1);
    assert_eq!((&record["method"], &record["code"]), (&"CONNECT".into(), &"draining".into()), "{record}");
}

/// Many servers close the connection on a request that they cannot parse.
#[test]
fn target_that_closes_on_a_client_hello_is_treated_as_plaintext() {
    let scene = manual_scene("");
    let mut client = scene.outgate.connect();
    client.send(connect(&scene.authority(), ""));
    drop(scene.accept());
    let mut target = scene.accept();
    assert_eq!(client.response_to("CONNECT").status, 200);
    client.send("ping");
    assert_eq!(read(&mut target, 4), b"ping");
}

#[test]
fn plaintext_response_to_a_client_hello_serves_the_next_tunnels_from_the_same_source() {
    let scene = manual_scene("");
    let port = scene.listener.local_addr().unwrap().port();
    let one_source = config(port, "").set("egress.default.ranges", ["127.0.7.1/32"]);
    scene.outgate.reconfigure(&one_source);
    for verifies in [true, false] {
        let mut client = scene.outgate.connect();
        client.send(connect(&scene.authority(), "") + "ping");
        if verifies {
            scene.reject_tls();
        }
        let mut target = scene.accept();
        assert_eq!(client.response_to("CONNECT").status, 200);
        assert_eq!(read(&mut target, 4), b"ping"); // and no ClientHello of outgate
    }
    // A route that does not allow plaintext verifies the same target again.
    scene.outgate.reconfigure(&one_source.remove("routes.plain.plaintext"));
    let mut client = scene.outgate.connect();
    client.send(connect(&scene.authority(), ""));
    scene.reject_tls();
    assert_eq!(client.response_to("CONNECT").code(), "tls_failed");
}
