//! Listeners and source addresses that come and go by a reload, with traffic on them.
//! Does whatever goes go without anybody losing a webhook?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, SockAddr, Socket, Type};
use support::control::{asked, reload, run, said, status, text, write};
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok};
use support::scene::{Scene, config, folder, scene_of};
use support::{Client, Outgate, PATIENCE, post};

/// A place where nobody listens.
fn free() -> SocketAddr {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let ip = [127, 0, 9, u8::try_from(COUNT.fetch_add(1, Ordering::Relaxed)).unwrap()];
    TcpListener::bind(SocketAddr::from((ip, 0))).unwrap().local_addr().unwrap()
}

/// Responses are awaited for longer than a busy machine takes to reload.
fn patient(text: &str) -> String {
    text.replace("response = \"5s\"", "response = \"30s\"")
}

fn listening(scene: &Scene, sockets: &str) -> String {
    patient(&text(scene, "")).replacen("listen = [\"127.0.0.1:0\"]", &format!("listen = [{sockets}]"), 1)
}

fn scene() -> Scene {
    scene_of(&|text| patient(&asked(text)))
}

#[test]
fn listeners_change_under_traffic_and_no_webhook_is_lost() {
    let scene = scene();
    let places = [free(), free()];
    let url = scene.good_url();
    let open = RwLock::new(scene.outgate.proxy);
    let stop = AtomicBool::new(false);
    let client = || {
        let (mut sent, mut told) = (0, 0);
        let mut client = Client::connect(*open.read().unwrap());
        while !stop.load(Ordering::Relaxed) {
            client.send(post(&url, "", "{}"));
            let answer = client.answer();
            assert_eq!(answer.status, 200, "{answer:?}");
            sent += 1;
            if answer.field("connection") == "close" {
                told += 1;
                assert!(client.is_closed());
                client = Client::connect(*open.read().unwrap());
            }
        }
        (sent, told)
    };
    let (sent, told) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let mut before = "127.0.0.1:0".to_owned();
        for round in 0..6 {
            let next = places[round % 2];
            reload(&scene, &listening(&scene, &format!("\"{before}\", \"{next}\"")));
            *open.write().unwrap() = next;
            reload(&scene, &listening(&scene, &format!("\"{next}\"")));
            assert_eq!(status(&scene)["listeners"]["server"], serde_json::json!([next.to_string()]));
            assert_eq!(Client::connect(next).answered(&url), 200);
            before = next.to_string();
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    assert!(told >= 4 * 4, "each change told whoever was in: {told} of {sent}");
    assert_eq!(scene.good.seen().len(), sent + 6);
    assert!(TcpStream::connect(scene.outgate.proxy).is_err(), "where nobody listens any more, nobody gets in");
}

trait Asks {
    fn answered(self, url: &str) -> u16;
}

impl Asks for Client {
    fn answered(mut self, url: &str) -> u16 {
        self.send(post(url, "", "x"));
        self.answer().status
    }
}

/// Answers when it is told to.
fn held() -> (Reaction, mpsc::Sender<()>) {
    let (release, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let reaction: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    (reaction, release)
}

fn scene_with(reaction: Reaction) -> Scene {
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), reaction);
    let plain = Receiver::plain(ok());
    let outgate = Outgate::run(folder(&pki), &patient(&asked(&config(&good, &plain, ""))));
    Scene { pki, outgate, good, plain }
}

#[test]
fn who_is_in_when_the_door_closes_gets_an_answer() {
    let (reaction, release) = held();
    let scene = scene_with(reaction);
    let (mut idle, mut busy) = (scene.outgate.connect(), scene.outgate.connect());
    busy.send(post(&scene.good_url(), "", "x"));
    until("the webhook is under way", || scene.good.connections() == 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sender, connection) = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(scene.outgate.proxy).await.unwrap();
        h2::client::handshake(stream).await.unwrap()
    });
    let streams = runtime.spawn(connection);
    let plain = scene.plain_url();
    let ask = |mut sender: h2::client::SendRequest<Bytes>| async move {
        let request = http::Request::post(plain).version(http::Version::HTTP_2).body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        response.await.unwrap().status()
    };
    assert_eq!(runtime.block_on(ask.clone()(sender.clone())), 200);

    let next = free();
    let socket = scene.outgate.folder.path("proxy.sock");
    let unix = format!("\"unix:{}\"", socket.display());
    let told = reload(&scene, &listening(&scene, &format!("\"{next}\", {unix}")));
    assert!(told.starts_with("server: listen \"127.0.0.1:0\" removed\nserver: listen "), "{told}");
    // Whoever asks just now is answered still.
    assert_eq!(runtime.block_on(ask(sender)), 200);
    release.send(()).unwrap();
    let answer = busy.answer();
    assert_eq!((answer.status, answer.field("connection")), (200, "close"));
    assert!(idle.is_closed());
    // GOAWAY without an error (RFC 9113 §6.8).
    runtime.block_on(async { tokio::time::timeout(PATIENCE, streams).await }).unwrap().unwrap().unwrap();

    assert!(UnixStream::connect(&socket).is_ok());
    let loops = post(&format!("http://plain.example:{}/", next.port()), "", "");
    let ports = format!("ports = [{}, {}, ", next.port(), scene.good.port());
    let text = listening(&scene, &format!("\"{next}\""));
    let ports = text.replace(&format!("ports = [{}, ", scene.good.port()), &ports);
    let ports =
        ports.replace("\"plain.example\" = [\"127.0.0.1\"]", &format!("\"plain.example\" = [\"{}\"]", next.ip()));
    reload(&scene, &ports);
    until("the file of a socket goes with it", || !socket.exists());
    let mut client = Client::connect(next);
    client.send(loops);
    assert_eq!(client.answer().code(), "target_loops_back", "the guard knows the new listener");
}

#[test]
fn a_listener_that_cannot_be_had_keeps_all_as_it_was() {
    let scene = scene();
    let (taken, next) = (TcpListener::bind("127.0.0.1:0").unwrap(), free());
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    write(
        &scene,
        &listening(&scene, &format!("\"{next}\", \"{}\"", taken.1))
            .replace("[\"hook.example\"", "[\"nowhere.example\""),
    );
    let (code, _, err) = said(&run(&scene, &["reload"]));
    assert!(code == 78 && err.contains(&format!("cannot listen on {}", taken.1)), "{code} {err}");
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert!(TcpStream::connect(next).is_err());
    assert!(scene.outgate.admin("/readyz").text().contains("cannot listen"));
    // What systemd passes, it passed at the start.
    write(&scene, &text(&scene, "").replace("admin.sock\"]", "admin.sock\", \"systemd\"]"));
    let (code, out, err) = said(&run(&scene, &["reload"]));
    assert!(code == 0 && out.contains("\"systemd\" added (takes effect at the next restart)"), "{out} {err}");
    assert!(err.contains("admin.listen takes effect at the next restart"), "{err}");
}

#[test]
fn the_admin_socket_may_go_by_a_request_over_it() {
    let scene = scene();
    let socket = format!("unix:{}", scene.outgate.folder.path("admin.sock").display());
    write(&scene, &text(&scene, "").replace("admin.sock", "other.sock"));
    let (code, out, err) = said(&run(&scene, &["reload", "--admin", &socket]));
    assert!(code == 0 && out.contains("other.sock\" added"), "{out} {err}");
    until("the old socket goes", || !scene.outgate.folder.path("admin.sock").exists());
    assert_eq!(status(&scene)["configuration"]["number"], 2);
}

#[test]
fn addresses_that_are_taken_away_open_nothing_and_finish_what_they_have() {
    let (reaction, release) = held();
    let scene = scene_with(reaction);
    let from = |index: usize| scene.good.until(index + 1)[index].from.to_string();
    release.send(()).unwrap();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200); // its connection is idle now
    let (mut busy, mut slow) = (scene.outgate.connect(), scene.outgate.connect());
    busy.send(post(&scene.good_url(), "", "x"));
    // On the idle connection, so another is opened and kept for the next.
    release.send(()).unwrap();
    assert_eq!(busy.answer().status, 200);
    busy.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(busy.answer().status, 200); // an idle one, to another target
    busy.send(post(&scene.good_url(), "", "x"));
    until_in_flight(&scene, 1);
    slow.send(post(&scene.good_url(), "", "xx").trim_end_matches('x'));
    until_in_flight(&scene, 2);

    let start = Instant::now();
    let told = reload(&scene, &patient(&text(&scene, "")).replace("127.0.7.0/30", "127.0.8.0/30"));
    assert_eq!(
        told,
        "egress.default: ranges \"127.0.7.0/30\" removed\negress.default: ranges \"127.0.8.0/30\" added\n"
    );
    scene.plain.until_closed(1);
    assert!(start.elapsed() < Duration::from_secs(3), "idle connections go at once");
    slow.send("xx");
    // The upload that had not left yet leaves from where it may now; what had left, ends where it was.
    until("another connection", || scene.good.connections() == 2);
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert_eq!((busy.answer().status, slow.answer().status), (200, 200));
    let mut sources = [from(2), from(3)];
    sources.sort();
    assert!(sources[0].starts_with("127.0.7.") && sources[1].starts_with("127.0.8."), "{sources:?}");
    // And its connection serves nobody again.
    release.send(()).unwrap();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert!(from(4).starts_with("127.0.8."), "{}", from(4));
    assert_eq!(scene.good.connections(), 2);
}

#[test]
fn a_range_ends_when_it_was_said_to() {
    let scene = scene();
    let end = jiff::Timestamp::now() + Duration::from_secs(4); // a busy machine reloads until then
    let ranges =
        format!("[{{ cidr = \"127.0.7.0/30\", until = \"{end}\" }}, {{ cidr = \"127.0.8.0/30\", from = \"{end}\" }}]");
    reload(&scene, &text(&scene, "").replace("[\"127.0.7.0/30\"]", &ranges));
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    scene.plain.until_closed(1);
    let late = jiff::Timestamp::now().duration_since(end).unsigned_abs();
    assert!(jiff::Timestamp::now() >= end && late < Duration::from_secs(3), "{late:?}");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert!(scene.plain.seen()[1].from.to_string().starts_with("127.0.8."));
}

fn until_in_flight(scene: &Scene, count: usize) {
    let line = format!("outgate_deliveries_in_flight {count}");
    until(&line, || scene.outgate.admin("/metrics").text().contains(&line));
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_socket_on_which_nobody_accepts_is_taken_and_holds_up_nobody() {
    let scene = scene();
    let path = scene.outgate.folder.path("silent.sock");
    let silent = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    silent.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    silent.listen(0).unwrap();
    // One waits, and there is room for no other.
    let _waiting = UnixStream::connect(&path).unwrap();
    write(&scene, &listening(&scene, &format!("\"127.0.0.1:0\", \"unix:{}\"", path.display())));
    let (code, _, err) = said(&run(&scene, &["reload"]));
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("another process listens at this path"), "{err}");
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
}

#[test]
fn a_listener_that_goes_waits_for_nobodys_room() {
    let (reaction, release) = held();
    let scene = scene_with(reaction);
    let gone = free();
    let full = |sockets: &str| listening(&scene, sockets).replacen("[server]", "[server]\nmax_connections = 2", 1);
    reload(&scene, &full(&format!("\"127.0.0.1:0\", \"{gone}\"")));
    let mut busy = [(); 2].map(|()| Client::connect(gone));
    for client in &mut busy {
        client.send(post(&scene.good_url(), "", "x"));
    }
    until("both are under way", || scene.good.connections() == 2);
    // Takes the accept loop to where it waits for room.
    let _waiting = TcpStream::connect(gone).unwrap();
    until("three are in", || status(&scene)["client_connections"] == 3);
    reload(&scene, &full("\"127.0.0.1:0\""));
    until("nobody listens there", || TcpStream::connect(gone).is_err());
    let _ = [(); 2].map(|()| release.send(()).unwrap());
    for client in &mut busy {
        assert_eq!(client.answer().status, 200);
    }
}
