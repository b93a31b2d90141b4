//! Connections of clients, where there are too many: of one address, or of all together.
//! Who is let in, and who has to go?

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use socket2::{Domain, Socket, Type};
use support::scene::{Scene, config, scene};
use support::{Client, PATIENCE, post};

fn with(key: &str) -> Scene {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "");
    scene.outgate.reconfigure(&text.replace("allow_anonymous", &format!("{key}\nallow_anonymous")));
    scene
}

/// From another address of this host.
fn connect_from(scene: &Scene, address: [u8; 4]) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
    socket.connect(&scene.outgate.proxy.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

/// Served, and kept.
fn served(scene: &Scene) -> Client {
    let mut client = scene.outgate.connect();
    ask(scene, &mut client);
    client
}

fn ask(scene: &Scene, client: &mut Client) {
    client.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(client.answer().status, 200);
}

/// Closed, and not only silent: it would answer.
fn is_gone(scene: &Scene, client: &mut Client) -> bool {
    client.try_send(post(&scene.plain_url(), "", "x"));
    client.is_closed()
}

/// With a request whose body is still to come.
fn busy(scene: &Scene) -> Client {
    let mut client = scene.outgate.connect();
    let url = scene.plain_url();
    client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"));
    assert_eq!(client.one_answer("POST").status, 100);
    client
}

fn has_metric(scene: &Scene, line: &str) -> bool {
    scene.outgate.admin("/metrics").text().lines().any(|found| found == line)
}

/// Whether a request of this address on a connection of its own is.
fn is_answered(scene: &Scene, from: [u8; 4]) -> bool {
    let (mut stream, mut answer) = (connect_from(scene, from), Vec::new());
    let _ = stream.write_all(post(&scene.plain_url(), "Connection: close\r\n", "x").as_bytes());
    let _ = stream.read_to_end(&mut answer);
    answer.starts_with(b"HTTP/1.1 200 ")
}

#[test]
fn one_address_has_so_many_and_no_more() {
    let scene = with("max_connections_per_ip = 2");
    let (first, mut second) = (served(&scene), served(&scene));
    for _ in 0..3 {
        assert!(is_closed(&mut connect_from(&scene, [127, 0, 0, 1])));
    }
    // Others have theirs, and those that are open go on.
    assert!(is_answered(&scene, [127, 0, 0, 9]));
    ask(&scene, &mut second);
    assert!(has_metric(&scene, "outgate_client_connections_closed_total{reason=\"max_connections_per_ip\"} 3"));
    let warned = |line: &&String| line.contains("from 127.0.0.1 was closed: its address has as many as");
    assert_eq!(scene.outgate.log.all().iter().filter(warned).count(), 1, "told once");
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    while !is_answered(&scene, [127, 0, 0, 1]) {
        assert!(Instant::now() < deadline, "its place is not free");
    }
}

#[test]
fn behind_a_load_balancer_the_clients_address_counts() {
    let scene = scene();
    // Whoever comes through a load balancer may be a stranger, so this client is one by its network.
    let text = config(&scene.good, &scene.plain, "[clients.inside]\nnetworks = [\"2001:db8::/32\"]\n");
    let keys = "max_connections_per_ip = 1\nproxy_protocol = true";
    scene.outgate.reconfigure(&text.replace("allow_anonymous = true", keys));
    let connect = |address: &str| {
        let mut client = scene.outgate.connect();
        client.try_send(format!("PROXY TCP6 {address} 2001:db8::1 1 1\r\n"));
        client
    };
    let mut first = connect("2001:db8:0:1::1");
    ask(&scene, &mut first);
    assert!(is_gone(&scene, &mut connect("2001:db8:0:1:9::2")), "of the same /64");
    ask(&scene, &mut first);
    let mut second = connect("2001:db8:0:2::1");
    ask(&scene, &mut second);
    // Who has enough takes nobody's room; who has not, that of the one that is idle for longest.
    scene.outgate.reconfigure(&text.replace("allow_anonymous = true", &format!("{keys}\nmax_connections = 2")));
    assert!(is_gone(&scene, &mut connect("2001:db8:0:2::2")));
    ask(&scene, &mut first);
    ask(&scene, &mut connect("2001:db8:0:3::1"));
    assert!(is_gone(&scene, &mut second));
    ask(&scene, &mut first);
}

#[test]
fn the_oldest_idle_connection_makes_room() {
    let scene = with("max_connections = 3");
    let mut busy = busy(&scene);
    let (mut oldest, mut younger) = (served(&scene), served(&scene));
    let mut newcomer = served(&scene);
    assert!(is_gone(&scene, &mut oldest));
    ask(&scene, &mut younger);
    // Now the newcomer has been idle for longer.
    let last = served(&scene);
    assert!(is_gone(&scene, &mut newcomer));
    ask(&scene, &mut younger);
    busy.send("x");
    assert_eq!(busy.answer().status, 200, "what has a request is not cut");
    assert!(has_metric(&scene, "outgate_client_connections_closed_total{reason=\"max_connections\"} 2"));
    drop(last);
}

#[test]
fn where_all_are_busy_newcomers_wait() {
    let scene = with("max_connections = 2");
    let (mut first, _second) = (busy(&scene), busy(&scene));
    let mut newcomer = scene.outgate.connect();
    newcomer.send(post(&scene.plain_url(), "", "x"));
    first.send("x");
    assert_eq!(first.answer().status, 200);
    assert_eq!(newcomer.answer().status, 200);
    assert!(is_gone(&scene, &mut first), "it had nothing more to do");
}

#[test]
fn half_a_head_is_a_request() {
    let scene = with("max_connections = 2");
    let text = post(&scene.plain_url(), "", "x");
    let mut half = served(&scene);
    let mut idle = served(&scene);
    half.send(&text[..20]);
    // It has been read when what comes after it on another connection has.
    ask(&scene, &mut idle);
    served(&scene);
    assert!(is_gone(&scene, &mut idle));
    half.send(&text[20..]);
    assert_eq!(half.answer().status, 200);
}

#[test]
fn an_idle_http_2_connection_says_goodbye() {
    let scene = with("max_connections = 1");
    let mut client = scene.outgate.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    client.read_some();
    served(&scene);
    let rest = client.rest();
    assert!(rest.windows(5).any(|frame| frame == b"\0\0\x08\x07\0"), "GOAWAY in {rest:?}");
}
