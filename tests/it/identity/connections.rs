//! Limits on client connections, for each address and in total.
//! Which connections are accepted, and which are evicted?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::scene::{Scene, config, scene};
use support::{Client, TEST_TIMEOUT, eventually, post, read_to_end};

fn scene_with(key: &str) -> Scene {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "");
    scene.outgate.reconfigure(&text.and(&format!("[server]\n{key}\n")));
    scene
}

/// Connects from another address of this host.
fn connect_from(scene: &Scene, address: [u8; 4]) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
    socket.connect(&scene.outgate.proxy.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

fn is_closed(stream: &mut TcpStream) -> bool {
    read_to_end(stream).is_empty()
}

/// Sends a request on a new connection, and keeps the connection.
fn connect_and_post(scene: &Scene) -> Client {
    let mut client = scene.outgate.connect();
    post_ok(scene, &mut client);
    client
}

fn post_ok(scene: &Scene, client: &mut Client) {
    client.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(client.response().status, 200);
}

/// Returns whether the proxy has closed the connection. On an open connection it would respond.
fn is_evicted(scene: &Scene, client: &mut Client) -> bool {
    client.try_send(post(&scene.plain_url(), "", "x"));
    client.is_closed()
}

/// Starts a request whose body is incomplete.
fn start_upload(scene: &Scene) -> Client {
    scene.outgate.start_upload(&scene.plain_url(), 1)
}

/// Returns whether a request from this address on a new connection is served.
fn is_served_from(scene: &Scene, from: [u8; 4]) -> bool {
    let mut stream = connect_from(scene, from);
    let _ = stream.write_all(post(&scene.plain_url(), "Connection: close\r\n", "x").as_bytes());
    read_to_end(&mut stream).starts_with(b"HTTP/1.1 200 ")
}

#[test]
fn max_connections_per_ip_closes_one_more_connection_of_an_address() {
    let scene = scene_with("max_connections_per_ip = 2");
    let (first, mut second) = (connect_and_post(&scene), connect_and_post(&scene));
    for _ in 0..3 {
        assert!(is_closed(&mut connect_from(&scene, [127, 0, 0, 1])));
    }
    // Other addresses and the open connections are not affected.
    assert!(is_served_from(&scene, [127, 0, 0, 9]));
    post_ok(&scene, &mut second);
    assert!(scene.outgate.has_metric("outgate_client_connections_closed_total{reason=\"max_connections_per_ip\"} 3"));
    let warning = ["from 127.0.0.1 was closed: its address has reached the limit of"];
    assert_eq!(scene.outgate.log.wait_for_lines(1, &warning), 1, "logged once");
    drop(first);
    eventually("its connection slot is free", || is_served_from(&scene, [127, 0, 0, 1]));
}

#[test]
fn max_connections_per_ip_counts_the_address_of_the_proxy_protocol_header() {
    let scene = scene();
    // A peer behind a load balancer is anonymous, so the network identifies this client.
    let text = config(&scene.good, &scene.plain, "[clients.inside]\nnetworks = [\"2001:db8::/32\"]\n");
    let text = text.remove("server.allow_anonymous");
    let text = text.add("server.max_connections_per_ip", 1).add("server.proxy_protocol", true);
    scene.outgate.reconfigure(&text);
    let connect = |address: &str| {
        let mut client = scene.outgate.connect();
        client.try_send(format!("PROXY TCP6 {address} 2001:db8::1 1 1\r\n"));
        client
    };
    let mut first = connect("2001:db8:0:1::1");
    post_ok(&scene, &mut first);
    assert!(is_evicted(&scene, &mut connect("2001:db8:0:1:9::2")), "of the same /64");
    post_ok(&scene, &mut first);
    let mut second = connect("2001:db8:0:2::1");
    post_ok(&scene, &mut second);
    // An address at its limit evicts no other connection. Another address evicts the one that is idle for longest.
    scene.outgate.reconfigure(&text.add("server.max_connections", 2));
    assert!(is_evicted(&scene, &mut connect("2001:db8:0:2::2")));
    post_ok(&scene, &mut first);
    post_ok(&scene, &mut connect("2001:db8:0:3::1"));
    assert!(is_evicted(&scene, &mut second));
    post_ok(&scene, &mut first);
}

#[test]
fn max_connections_closes_the_connection_that_is_idle_for_longest() {
    let scene = scene_with("max_connections = 3");
    let mut busy = start_upload(&scene);
    let (mut oldest, mut younger) = (connect_and_post(&scene), connect_and_post(&scene));
    // outgate marks a connection as idle a moment after the client has the response, so one exchange would not be enough.
    (0..10).for_each(|_| post_ok(&scene, &mut younger));
    let mut newcomer = connect_and_post(&scene);
    assert!(is_evicted(&scene, &mut oldest));
    // After these exchanges the newcomer is idle for longest.
    (0..10).for_each(|_| post_ok(&scene, &mut younger));
    let last = connect_and_post(&scene);
    assert!(is_evicted(&scene, &mut newcomer));
    post_ok(&scene, &mut younger);
    busy.send("x");
    assert_eq!(busy.response().status, 200, "what has a request is not cut");
    assert!(scene.outgate.has_metric("outgate_client_connections_closed_total{reason=\"max_connections\"} 2"));
    drop(last);
}

#[test]
fn max_connections_lets_new_connections_wait_while_all_have_requests() {
    let scene = scene_with("max_connections = 2");
    let (mut first, _second) = (start_upload(&scene), start_upload(&scene));
    let mut newcomer = scene.outgate.connect();
    newcomer.send(post(&scene.plain_url(), "", "x"));
    first.send("x");
    assert_eq!(first.response().status, 200);
    assert_eq!(newcomer.response().status, 200);
    assert!(is_evicted(&scene, &mut first), "it had nothing more to do");
}

#[test]
fn max_connections_counts_an_incomplete_head_as_a_request() {
    let scene = scene_with("max_connections = 2");
    let text = post(&scene.plain_url(), "", "x");
    let mut half = connect_and_post(&scene);
    let mut idle = connect_and_post(&scene);
    half.send(&text[..20]);
    // A later request on another connection shows that outgate has read the incomplete head.
    post_ok(&scene, &mut idle);
    connect_and_post(&scene);
    assert!(is_evicted(&scene, &mut idle));
    half.send(&text[20..]);
    assert_eq!(half.response().status, 200);
}

#[test]
fn max_connections_closes_an_idle_http2_connection_with_goaway() {
    let scene = scene_with("max_connections = 1");
    let mut client = scene.outgate.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    client.read_some();
    connect_and_post(&scene);
    let rest = client.rest();
    assert!(rest.windows(5).any(|frame| frame == b"\0\0\x08\x07\0"), "GOAWAY in {rest:?}");
}

/// Sends these bytes on a new connection. The proxy has read them when it serves a later connection.
fn send_partial(scene: &Scene, bytes: impl AsRef<[u8]>) -> Client {
    let mut client = scene.outgate.connect();
    client.send(bytes);
    client
}

#[test]
fn unidentified_peers_with_incomplete_heads_are_evicted_oldest_first() {
    let scene = scene_with("max_connections = 4");
    let mut idle = connect_and_post(&scene);
    let half = post(&scene.plain_url(), "", "x")[..20].to_owned();
    let mut oldest = send_partial(&scene, &half);
    let mut preface = send_partial(&scene, "PRI * HT");
    let mut younger = send_partial(&scene, &half);
    let mut newcomer = connect_and_post(&scene);
    assert!(oldest.is_closed(), "the oldest incomplete head makes room");
    let mut second = connect_and_post(&scene);
    assert!(preface.is_closed(), "an incomplete HTTP/2 preface is one");
    let mut third = connect_and_post(&scene);
    assert!(younger.is_closed());
    for client in [&mut idle, &mut newcomer, &mut second, &mut third] {
        post_ok(&scene, client);
    }
    assert!(scene.outgate.has_metric("outgate_client_connections_closed_total{reason=\"unidentified\"} 3"));
}

#[test]
fn unidentified_peers_stay_evictable_after_a_refusal() {
    let scene = scene_without_known_clients();
    let mut first = scene.outgate.connect();
    first.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(first.response().code(), "client_unauthenticated");
    first.send(&post(&scene.plain_url(), "", "x")[..20]);
    let mut newcomer = scene.outgate.connect();
    newcomer.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(newcomer.response().code(), "client_unauthenticated");
    assert!(first.is_closed());
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    support::frames::frame(kind, flags, stream, payload)
}

/// Sends a POST without END_STREAM on an HTTP/2 connection with these settings.
fn http2_post(scene: &Scene, settings: &[u8]) -> Client {
    let mut client = scene.outgate.connect();
    let (url, mut head) = (scene.plain_url(), vec![0x83, 0x86]); // POST, http (RFC 7541, appendix A)
    let (authority, path) = url.strip_prefix("http://").unwrap().split_at(url.len() - "http:///in".len());
    for (name, value) in [(1, authority), (4, path)] {
        head.extend([name, u8::try_from(value.len()).unwrap()]);
        head.extend(value.as_bytes());
    }
    client.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, settings)[..], &frame(1, 4, 1, &head)].concat());
    client
}

/// Waits for the head of the response.
fn wait_for_response(client: &mut Client) {
    let (mut bytes, head) = (Vec::new(), [1, 4, 0, 0, 0, 1]);
    while !bytes.windows(head.len()).any(|frame| frame == head) {
        bytes.extend(client.read_some());
    }
}

/// Starts a scene that identifies no client of this host and allows one connection.
fn scene_without_known_clients() -> Scene {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "[clients.other]\nnetworks = [\"192.0.2.0/24\"]\n");
    scene.outgate.reconfigure(&text.remove("server.allow_anonymous").add("server.max_connections", 1));
    scene
}

fn assert_evicts_unidentified(scene: &Scene) {
    let mut newcomer = scene.outgate.connect();
    newcomer.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(newcomer.response().code(), "client_unauthenticated");
    assert!(scene.outgate.has_metric("outgate_client_connections_closed_total{reason=\"unidentified\"} 1"));
}

#[test]
fn unidentified_http_2_peer_is_evictable_while_its_refused_request_drains() {
    let scene = scene_without_known_clients();
    let mut client = http2_post(&scene, &[]);
    wait_for_response(&mut client);
    // outgate discards the rest of the body, which comes byte by byte.
    let (ended, has_ended) = std::sync::mpsc::channel::<()>();
    let sending = std::thread::spawn(move || {
        let pause = std::time::Duration::from_millis(500);
        while has_ended.recv_timeout(pause).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
            && client.try_send(frame(0, 0, 1, b"x"))
        {}
    });
    assert_evicts_unidentified(&scene);
    drop(ended);
    sending.join().unwrap();
}

#[test]
fn unidentified_http_2_peer_is_evictable_while_it_opens_no_window_for_a_refusal() {
    let scene = scene_without_known_clients();
    let mut client = http2_post(&scene, &[0, 4, 0, 0, 0, 0]);
    wait_for_response(&mut client);
    assert_evicts_unidentified(&scene);
}

/// The time after which outgate closes a connection with an incomplete PROXY header.
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn unidentified_peers_with_incomplete_proxy_headers_are_evicted_oldest_first() {
    const ROUNDS: usize = 5;
    // On a loaded machine the timeout may close connections before they can be evicted. Then another round shows it.
    let is_in_time = (0..ROUNDS).any(|_| evict_incomplete_proxy_headers() < PROXY_HEADER_TIMEOUT);
    assert!(is_in_time, "no round of {ROUNDS} took less than {PROXY_HEADER_TIMEOUT:?}");
}

/// Checks the evictions, unless they took as long as the timeout. Returns how long they took.
fn evict_incomplete_proxy_headers() -> Duration {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "[clients.inside]\nnetworks = [\"192.0.2.0/24\"]\n");
    let text = text.remove("server.allow_anonymous");
    scene.outgate.reconfigure(&text.add("server.max_connections", 1).add("server.proxy_protocol", true));
    // More incomplete headers wait than the limit allows. Each stays for seconds unless it is evicted.
    let begun = Instant::now();
    let silent = (0..120).map(|_| send_partial(&scene, "PROXY TCP4 192.")).collect::<Vec<_>>();
    let mut newcomer = scene.outgate.connect();
    newcomer.send(format!("PROXY TCP4 192.0.2.7 192.0.2.1 1 1\r\n{}", post(&scene.plain_url(), "", "x")));
    assert_eq!(newcomer.response().status, 200);
    let evicted = "outgate_client_connections_closed_total{reason=\"unidentified\"} ";
    let metrics = scene.outgate.admin("/metrics").text();
    let count = metrics.lines().find_map(|line| line.strip_prefix(evicted)).and_then(|count| count.parse::<u64>().ok());
    let took = begun.elapsed();
    assert!(took >= PROXY_HEADER_TIMEOUT || count.is_some_and(|count| count >= 119), "{count:?} of {}", silent.len());
    took
}

#[test]
fn max_connections_per_ip_evicts_unidentified_peers_of_that_address_before_it_refuses() {
    let scene = scene_with("max_connections_per_ip = 2");
    let mut busy = start_upload(&scene);
    let mut half = send_partial(&scene, "POST http");
    let mut newcomer = connect_and_post(&scene);
    assert!(half.is_closed(), "an incomplete head of the same address makes room");
    assert!(is_closed(&mut connect_from(&scene, [127, 0, 0, 1])), "both that are left are identified");
    post_ok(&scene, &mut newcomer);
    busy.send("x");
    assert_eq!(busy.response().status, 200);
}

/// Raises the soft limit, which in a login shell is lower than the number of connections.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
}

#[test]
fn max_connections_per_ip_has_a_default_of_half_of_all() {
    raise_descriptor_limit();
    let scene = scene_with("max_connections = 2002");
    let held = (0..1001).map(|_| scene.outgate.connect()).collect::<Vec<_>>();
    // The address has more than half of all connections, so each newcomer evicts one of them.
    let mut newcomer = connect_and_post(&scene);
    post_ok(&scene, &mut newcomer);
    assert!(scene.outgate.has_metric("outgate_client_connections_closed_total{reason=\"unidentified\"} 1"));
    assert!(is_served_from(&scene, [127, 0, 0, 9]));
    drop(held);
}

#[test]
fn max_connections_is_capped_by_the_descriptor_limit() {
    let pki = support::pki::Pki::new();
    let receiver = support::receiver::Receiver::plain(support::receiver::ok());
    let text = config(&receiver, &receiver, "").add("server.max_connections", 500);
    // (316 - 256) / 4
    let outgate = support::Outgate::run_limited(support::scene::folder(&pki), &text, 316);
    let capped = "max_connections is capped from 500 to 15: this process may open 316 files (RLIMIT_NOFILE";
    assert!(outgate.log.all().iter().any(|line| line.contains(capped)), "{:?}", outgate.log.all());
    let url = format!("http://plain.example:{}/in", receiver.port());
    let idle = (0..40).map(|_| outgate.connect()).collect::<Vec<_>>();
    assert_eq!(outgate.post(&url, "", "x").status, 200, "idle connections make room");
    assert_eq!(outgate.admin("/healthz").status, 200);
    let open = outgate.admin("/metrics").text();
    let open = open.lines().find_map(|line| line.strip_prefix("outgate_client_connections ")).unwrap().to_owned();
    assert!(open.parse::<u32>().unwrap() <= 16, "{open} of {}", idle.len());
}

#[test]
fn check_warns_of_max_connections_beyond_the_descriptor_limit() {
    let folder = support::scene::folder(&support::pki::Pki::new());
    let receiver = support::receiver::Receiver::plain(support::receiver::ok());
    let check = |most: &str| {
        let text = config(&receiver, &receiver, "").and(&format!("[server]\n{most}\n"));
        let path = folder.write_config("config.toml", &text);
        let output = support::limited(656).arg("check").arg("--config").arg(path).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let warned = check("max_connections = 101");
    let message = "max_connections is 101, but this process may open 656 files (RLIMIT_NOFILE)";
    assert!(warned.contains(message) && warned.contains("raise the limit to 660"), "{warned}");
    assert!(!check("max_connections = 100").contains("RLIMIT_NOFILE"));
}
