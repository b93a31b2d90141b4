//! Reloads that add and remove listeners and source addresses under traffic.
//! Does such a reload lose a webhook?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, SockAddr, Socket, Type};
use support::configuration::Config;
use support::control::{exit_code_and_output, reload, run, status, text, with_admin_socket, write};
use support::law::{assert_law, delivered};
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok};
use support::scene::{Scene, config, folder, scene_of};
use support::{Client, Outgate, TEST_TIMEOUT, eventually, post};

/// Returns an address on which nothing listens.
fn unused_address() -> SocketAddr {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let ip = [127, 0, 9, u8::try_from(COUNT.fetch_add(1, Ordering::Relaxed)).unwrap()];
    TcpListener::bind(SocketAddr::from((ip, 0))).unwrap().local_addr().unwrap()
}

fn config_listening(scene: &Scene, sockets: &str) -> Config {
    text(scene, "").remove("server.listen").and(&format!("[server]\nlisten = [{sockets}]\n"))
}

fn scene() -> Scene {
    scene_of(&with_admin_socket)
}

#[test]
fn reload_replaces_listeners_under_load_without_losing_a_webhook() {
    // The addresses of this test are its own: no other test may listen on a former one.
    let [first, one, other] = [(); 3].map(|()| unused_address());
    let scene = scene_of(&|text| with_admin_socket(text).set("server.listen", [first.to_string()]));
    let addresses = [one, other];
    let url = scene.good_url();
    let open = RwLock::new(scene.outgate.proxy);
    let stop = AtomicBool::new(false);
    let client = || {
        let (mut sent, mut closed) = (0, 0);
        let mut client = Client::connect(*open.read().unwrap());
        while !stop.load(Ordering::Relaxed) {
            client.send(post(&url, "", "{}"));
            let response = client.response();
            assert_eq!(response.status, 200, "{response:?}");
            sent += 1;
            if response.field("connection") == "close" {
                closed += 1;
                assert!(client.is_closed());
                client = Client::connect(*open.read().unwrap());
            }
        }
        (sent, closed)
    };
    let (sent, closed) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let mut before = first.to_string();
        for round in 0..6 {
            let next = addresses[round % 2];
            reload(&scene, &config_listening(&scene, &format!("\"{before}\", \"{next}\"")));
            *open.write().unwrap() = next;
            reload(&scene, &config_listening(&scene, &format!("\"{next}\"")));
            assert_eq!(status(&scene)["listeners"]["server"], serde_json::json!([next.to_string()]));
            assert_eq!(Client::connect(next).post_status(&url), 200);
            before = next.to_string();
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    assert!(closed >= 4 * 4, "each change closes the open connections: {closed} of {sent}");
    assert_eq!(scene.good.requests().len(), sent + 6);
    assert_law(&scene.outgate, &delivered(sent + 6));
    assert!(TcpStream::connect(scene.outgate.proxy).is_err(), "the former address accepts no connection");
}

trait PostStatus {
    fn post_status(self, url: &str) -> u16;
}

impl PostStatus for Client {
    fn post_status(mut self, url: &str) -> u16 {
        self.send(post(url, "", "x"));
        self.response().status
    }
}

/// Returns a reaction that waits for a message, the sender of the messages, and the number of requests that it has got.
fn held_reaction() -> (Reaction, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (release, wait) = mpsc::channel();
    let (wait, begun) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&begun);
    let reaction: Reaction = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    (reaction, release, begun)
}

fn scene_with(reaction: Reaction) -> Scene {
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), reaction);
    let plain = Receiver::plain(ok());
    let outgate = Outgate::run(folder(&pki), &with_admin_socket(&config(&good, &plain, "")));
    Scene { pki, outgate, good, plain }
}

#[test]
fn reload_that_removes_a_listener_answers_its_open_connections() {
    let (reaction, release, _) = held_reaction();
    let scene = scene_with(reaction);
    let (mut idle, mut busy) = (scene.outgate.connect(), scene.outgate.connect());
    busy.send(post(&scene.good_url(), "", "x"));
    eventually("the webhook is under way", || scene.good.connections() == 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sender, connection) = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(scene.outgate.proxy).await.unwrap();
        h2::client::handshake(stream).await.unwrap()
    });
    let streams = runtime.spawn(connection);
    let plain = scene.plain_url();
    let send_request_over_http2 = |mut sender: h2::client::SendRequest<Bytes>| async move {
        let request = http::Request::post(plain).version(http::Version::HTTP_2).body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        response.await.unwrap().status()
    };
    assert_eq!(runtime.block_on(send_request_over_http2.clone()(sender.clone())), 200);

    let next = unused_address();
    let socket = scene.outgate.folder.path("proxy.sock");
    let unix = format!("\"unix:{}\"", socket.display());
    let changes = std::thread::scope(|scope| {
        let reloading = scope.spawn(|| reload(&scene, &config_listening(&scene, &format!("\"{next}\", {unix}"))));
        scene.outgate.log.wait_for_lines(1, &["proxy stopped listening on"]);
        // A request on the open connection still gets a response. outgate waits for it for 2 s from here.
        assert_eq!(runtime.block_on(send_request_over_http2(sender)), 200);
        reloading.join().unwrap()
    });
    assert!(changes.starts_with("server: listen \"127.0.0.1:0\" removed\nserver: listen "), "{changes}");
    release.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.status, response.field("connection")), (200, "close"));
    assert!(idle.is_closed());
    // GOAWAY without an error (RFC 9113 §6.8).
    runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, streams).await }).unwrap().unwrap().unwrap();

    assert!(UnixStream::connect(&socket).is_ok());
    let loops = post(&format!("http://plain.example:{}/", next.port()), "", "");
    let text = config_listening(&scene, &format!("\"{next}\""));
    reload(&scene, &text.push("routes.*.ports", next.port()).host("plain.example", &next.ip().to_string()));
    eventually("the file of a socket goes with it", || !socket.exists());
    let mut client = Client::connect(next);
    client.send(loops);
    assert_eq!(client.response().code(), "target_loops_back", "the guard knows the new listener");
}

#[test]
fn reload_with_an_address_in_use_changes_nothing() {
    let scene = scene();
    let (taken, next) = (TcpListener::bind("127.0.0.1:0").unwrap(), unused_address());
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    write(
        &scene,
        &config_listening(&scene, &format!("\"{next}\", \"{}\"", taken.1))
            .set("routes.signed.hosts", ["nowhere.example"]),
    );
    let (code, _, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert!(code == 78 && err.contains(&format!("cannot listen on {}", taken.1)), "{code} {err}");
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert!(TcpStream::connect(next).is_err());
    assert!(scene.outgate.admin("/readyz").text().contains("cannot listen"));
    // systemd passes sockets only at the start.
    write(&scene, &text(&scene, "").push("admin.listen", "systemd"));
    let (code, out, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert!(code == 0 && out.contains("\"systemd\" added (takes effect at the next restart)"), "{out} {err}");
    assert!(err.contains("admin.listen takes effect at the next restart"), "{err}");
}

#[test]
fn reload_may_remove_the_admin_socket_that_carries_its_request() {
    let scene = scene();
    let socket = format!("unix:{}", scene.outgate.folder.path("admin.sock").display());
    write(&scene, &text(&scene, "").set("admin.listen", ["127.0.0.1:0", "unix:{dir}/other.sock"]));
    let (code, out, err) = exit_code_and_output(&run(&scene, &["reload", "--admin", &socket]));
    assert!(code == 0 && out.contains("other.sock\" added"), "{out} {err}");
    eventually("the old socket goes", || !scene.outgate.folder.path("admin.sock").exists());
    assert_eq!(status(&scene)["configuration"]["number"], 2);
}

#[test]
fn reload_that_removes_source_addresses_finishes_their_deliveries_only() {
    let (reaction, release, begun) = held_reaction();
    let scene = scene_with(reaction);
    let from = |index: usize| scene.good.wait_for_requests(index + 1)[index].from.to_string();
    release.send(()).unwrap();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200); // its connection is idle now
    let (mut busy, mut slow) = (scene.outgate.connect(), scene.outgate.connect());
    busy.send(post(&scene.good_url(), "", "x"));
    // This delivery uses the idle connection.
    release.send(()).unwrap();
    assert_eq!(busy.response().status, 200);
    busy.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(busy.response().status, 200); // an idle connection to another target
    busy.send(post(&scene.good_url(), "", "x"));
    eventually("its third request has reached the target over the idle connection", || {
        begun.load(Ordering::Relaxed) == 3
    });
    slow.send(post(&scene.good_url(), "", "xx").trim_end_matches('x'));
    wait_for_in_flight(&scene, 2);

    let changes = reload(&scene, &text(&scene, "").set("egress.default.ranges", ["127.0.8.0/30"]));
    assert_eq!(
        changes,
        "egress.default: ranges \"127.0.7.0/30\" removed\negress.default: ranges \"127.0.8.0/30\" added\n\
         egress.default: customers must allow 127.0.8.0/30 at once\n\
         egress.default: customers may remove 127.0.7.0/30: no new connection leaves from it\n"
    );
    let start = Instant::now();
    scene.plain.wait_until_closed(1);
    assert!(start.elapsed() < Duration::from_secs(3), "idle connections go at once");
    slow.send("xx");
    // The incomplete upload uses a new source. The delivery in flight ends on its former source.
    eventually("another connection", || scene.good.connections() == 2);
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert_eq!((busy.response().status, slow.response().status), (200, 200));
    let mut sources = [from(2), from(3)];
    sources.sort();
    assert!(sources[0].starts_with("127.0.7.") && sources[1].starts_with("127.0.8."), "{sources:?}");
    // The connection of the former source is not reused.
    release.send(()).unwrap();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert!(from(4).starts_with("127.0.8."), "{}", from(4));
    assert_eq!(scene.good.connections(), 2);
}

#[test]
fn egress_range_ends_at_its_until() {
    const ROUNDS: usize = 5;
    assert!((0..ROUNDS).any(|_| range_ends()), "no reload of {ROUNDS} was over before the end of the range");
}

/// Returns false if the end came before the first delivery, as it may on a loaded machine.
fn range_ends() -> bool {
    let scene = scene();
    let end = jiff::Timestamp::now() + Duration::from_secs(4); // enough time for a reload on a busy machine
    let ranges =
        format!("[{{ cidr = \"127.0.7.0/30\", until = \"{end}\" }}, {{ cidr = \"127.0.8.0/30\", from = \"{end}\" }}]");
    let text = text(&scene, "").remove("egress.default.ranges");
    reload(&scene, &text.and(&format!("[egress.default]\nranges = {ranges}\n")));
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    if jiff::Timestamp::now() >= end {
        return false;
    }
    scene.plain.wait_until_closed(1);
    let late = jiff::Timestamp::now().duration_since(end).unsigned_abs();
    assert!(jiff::Timestamp::now() >= end && late < Duration::from_secs(3), "{late:?}");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert!(scene.plain.requests()[1].from.to_string().starts_with("127.0.8."));
    true
}

fn wait_for_in_flight(scene: &Scene, count: usize) {
    scene.outgate.wait_for_metric(&format!("outgate_deliveries_in_flight {count}"));
}

#[test]
fn reload_refuses_a_unix_socket_whose_listener_does_not_accept() {
    let scene = scene();
    let path = scene.outgate.folder.path("silent.sock");
    let silent = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    silent.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    silent.listen(0).unwrap();
    // One connection fills the queue of the listener.
    let _waiting = UnixStream::connect(&path).unwrap();
    write(&scene, &config_listening(&scene, &format!("\"127.0.0.1:0\", \"unix:{}\"", path.display())));
    let (code, _, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("another process listens at this path"), "{err}");
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
}

#[test]
fn reload_removes_a_listener_while_max_connections_is_reached() {
    let (reaction, release, _) = held_reaction();
    let scene = scene_with(reaction);
    let gone = unused_address();
    let full = |sockets: &str| config_listening(&scene, sockets).add("server.max_connections", 2);
    reload(&scene, &full(&format!("\"127.0.0.1:0\", \"{gone}\"")));
    let mut busy = [(); 2].map(|()| Client::connect(gone));
    for client in &mut busy {
        client.send(post(&scene.good_url(), "", "x"));
    }
    eventually("both are under way", || scene.good.connections() == 2);
    // With this connection, the accept loop waits for a free slot.
    let _waiting = TcpStream::connect(gone).unwrap();
    eventually("three are in", || status(&scene)["client_connections"] == 3);
    reload(&scene, &full("\"127.0.0.1:0\""));
    eventually("the former address refuses connections", || TcpStream::connect(gone).is_err());
    let _ = [(); 2].map(|()| release.send(()).unwrap());
    for client in &mut busy {
        assert_eq!(client.response().status, 200);
    }
}
