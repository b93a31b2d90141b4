//! The circuit breaker for failing targets.
//! Does the circuit open for a failing target, and does it close after a success?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use support::configuration::{Replace, token_hash};
use support::frames::{FrameTarget, Progress, RequestEvent, Script, ok_response};
use support::http2::{DATA, END_HEADERS, HEADERS, frame};
use support::pki::Pki;
use support::ports::refusing;
use support::receiver::Reaction;
use support::scene::{Scene, config, folder, one_source_scene, scene_with};
use support::tunnel_scene::{self, manual_scene};
use support::{Outgate, Response, TEST_TIMEOUT, eventually, post};

/// Returns a reaction that closes the connection on a request for `/sick`, and on every request while the switch is on.
fn flaky_reaction() -> (Reaction, Arc<AtomicBool>) {
    let failing = Arc::new(AtomicBool::new(true));
    let shared = Arc::clone(&failing);
    let reaction: Reaction = Arc::new(move |received| {
        if shared.load(Ordering::Relaxed) || received.line.contains("/sick") {
            (Vec::new(), false)
        } else {
            (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec(), true)
        }
    });
    (reaction, failing)
}

fn flaky_scene(open: &str) -> (Scene, Arc<AtomicBool>) {
    let (reaction, failing) = flaky_reaction();
    let circuit = format!("[circuit]\nfailures = 3\nwindow = \"10m\"\nopen = \"{open}\"\nopen_max = \"{open}\"\n");
    (scene_with(reaction, &circuit), failing)
}

/// Posts until the circuit is open. Returns the codes before, which are at least `failures`.
fn open_circuit(scene: &Scene, url: &str, failures: usize) -> Vec<String> {
    let (mut before, deadline) = (Vec::new(), Instant::now() + TEST_TIMEOUT);
    loop {
        assert!(Instant::now() < deadline, "the circuit never opens: {before:?}");
        match codes(scene, url, 1).remove(0) {
            code if code == CIRCUIT_OPEN => break,
            code => before.push(code),
        }
        // Failures at the same time count as one event.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(before.len() >= failures, "{before:?}");
    before
}

fn codes(scene: &Scene, url: &str, count: usize) -> Vec<String> {
    let code = |response: Response| if response.status == 500 { "500".to_owned() } else { response.code().to_owned() };
    (0..count).map(|_| code(scene.outgate.post(url, "", "x"))).collect()
}

const CONNECTION_LOST: &str = "connection_lost";
const CIRCUIT_OPEN: &str = "target_circuit_open";

#[test]
fn circuit_opens_for_a_failing_target_and_no_other() {
    let (scene, failing) = flaky_scene("1h");
    let before = open_circuit(&scene, &scene.good_url(), 3);
    assert!(before.iter().all(|code| code == CONNECTION_LOST), "{before:?}");
    assert_eq!(codes(&scene, &scene.good_url(), 2), [CIRCUIT_OPEN, CIRCUIT_OPEN]);
    assert_eq!(scene.good.requests().len(), before.len(), "the target is contacted no more");
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    let retry: u64 = response.field("retry-after").parse().unwrap();
    assert_eq!((response.status, response.field("proxy-status").contains("destination_unavailable")), (503, true));
    assert!((3500..=3960).contains(&retry), "{retry}");
    assert_eq!((&response.json()["blame"], &response.json()["retryable"]), (&"target".into(), &true.into()));

    // Another name for the same address is another target, and so is another port.
    failing.store(false, Ordering::Relaxed);
    let other = scene.good_url().replace_one("hook.example", "127.0.0.1");
    assert_ne!(codes(&scene, &other, 1), [CIRCUIT_OPEN]);
    assert_eq!(codes(&scene, &scene.plain_url(), 1), ["500"]);

    let metrics = scene.outgate.admin("/metrics").text();
    assert!(metrics.contains("outgate_circuits_open 1") && metrics.contains("outgate_circuits_opened_total 1"));
    scene.outgate.log.wait_for("the log line", |lines| {
        lines.iter().any(|line| line.contains("its circuit is open") && line.contains(CONNECTION_LOST)).then_some(())
    });
    // `failures = 0` opens no circuit.
    scene.outgate.reconfigure(&support::scene::config(&scene.good, &scene.plain, "[circuit]\nfailures = 0\n"));
    assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
}

#[test]
fn circuit_count_restarts_after_any_response() {
    let (scene, failing) = flaky_scene("1h");
    failing.store(false, Ordering::Relaxed);
    let failing = scene.good_url().replace_one("/in", "/sick");
    for _ in 0..4 {
        assert_eq!(codes(&scene, &failing, 2), [CONNECTION_LOST, CONNECTION_LOST]);
        assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
    }
    open_circuit(&scene, &failing, 3);
    assert_eq!(codes(&scene, &scene.good_url(), 1), [CIRCUIT_OPEN], "of the same client");
}

#[test]
fn circuit_half_open_probe_with_a_response_closes_the_circuit() {
    let (scene, failing) = flaky_scene("1ms");
    let (opened, deadline) = ("outgate_circuits_opened_total 1", Instant::now() + TEST_TIMEOUT);
    while !scene.outgate.admin("/metrics").text().contains(opened) {
        assert!(Instant::now() < deadline, "the circuit never opens");
        codes(&scene, &scene.good_url(), 1);
    }
    failing.store(false, Ordering::Relaxed);
    eventually("a probe is sent", || codes(&scene, &scene.good_url(), 1) != [CIRCUIT_OPEN]);
    assert_eq!(codes(&scene, &scene.good_url(), 3), ["500", "500", "500"]);
    assert!(scene.outgate.admin("/metrics").text().contains("outgate_circuits_open 0"));
    scene.outgate.log.wait_for("the log line", |lines| {
        lines.iter().any(|line| line.contains("its circuit is closed")).then_some(())
    });
}

/// A total timeout that is shorter than the response timeout counts as a response timeout.
#[test]
fn circuit_opens_for_a_target_that_never_responds() {
    let silent: Reaction = Arc::new(|_| {
        std::thread::sleep(TEST_TIMEOUT); // longer than any timeout
        (Vec::new(), false)
    });
    // Even on a busy machine, the target has half of the total timeout.
    let scene =
        scene_with(silent, "[circuit]\nfailures = 2\nopen = \"1h\"\nopen_max = \"1h\"\n[timeouts]\ntotal = \"2s\"\n");
    let before = open_circuit(&scene, &scene.good_url(), 2);
    assert!(before.iter().all(|code| code == "response_timeout"), "{before:?}");
}

/// A refusal before 100 Continue saves the upload.
#[test]
fn circuit_open_refuses_before_the_body_is_read() {
    let (scene, _failing) = flaky_scene("1h");
    open_circuit(&scene, &scene.good_url(), 3);
    let mut client = scene.outgate.connect();
    let head = post(&scene.good_url(), "Expect: 100-continue\r\n", &"x".repeat(1000));
    client.send(&head[..head.len() - 1000]);
    assert_eq!(client.next_response("POST").code(), CIRCUIT_OPEN);
}

#[test]
fn circuit_counts_tunnels_and_webhooks_together() {
    let (_closed, port) = refusing();
    let circuit = "[circuit]\nfailures = 2\nopen = \"1h\"\nopen_max = \"1h\"\n";
    let outgate = Outgate::run(folder(&Pki::new()), &tunnel_scene::config(port, circuit));
    let authority = format!("plain.example:{port}");
    let code = |authority: &str| outgate.tunnel(authority, "").1.code().to_owned();
    for _ in 0..3 {
        assert_eq!(code("plain.example:1"), "target_port_forbidden", "a forbidden request is no failure of the target");
    }
    let post = || outgate.post(&format!("https://{authority}/in"), "", "x").code().to_owned();
    assert_eq!((code(&authority).as_str(), post().as_str()), ("connect_refused", "connect_refused"));
    eventually("the circuit opens", || code(&authority) == CIRCUIT_OPEN);
    assert_eq!(outgate.post(&format!("https://{authority}/in"), "", "x").code(), CIRCUIT_OPEN);
}

/// The default is ten failures, and these are one event.
#[test]
fn circuit_counts_failures_that_arrive_together_once() {
    const PARALLEL: usize = 10;
    let together = Arc::new(Barrier::new(PARALLEL));
    let reaction: Reaction = Arc::new(move |received| {
        if received.line.contains("/sick") {
            together.wait();
            return (Vec::new(), false);
        }
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec(), true)
    });
    let scene = scene_with(reaction, "");
    let failing = scene.good_url().replace_one("/in", "/sick");
    let mut clients: Vec<_> = (0..PARALLEL).map(|_| scene.outgate.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(post(&failing, "", "x")));
    assert!(clients.iter_mut().all(|client| client.response().code() == CONNECTION_LOST));
    assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
}

/// The attempt begins before the target responds to another delivery, and fails after.
#[test]
fn circuit_ignores_a_failure_where_the_target_has_responded_since_the_attempt_began() {
    let (reaction, failing) = flaky_reaction();
    failing.store(false, Ordering::Relaxed);
    let (begun, answered) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let shared = (Arc::clone(&begun), Arc::clone(&answered));
    let reaction: Reaction = Arc::new(move |received| {
        if received.line.contains("/hangs") {
            shared.0.wait();
            shared.1.wait();
            return (Vec::new(), false);
        }
        reaction(received)
    });
    let scene = scene_with(reaction, "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.good_url().replace_one("/in", "/hangs"), "", "x"));
    begun.wait();
    assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
    answered.wait();
    assert_eq!(client.response().code(), CONNECTION_LOST);
    assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
    assert_eq!(codes(&scene, &scene.good_url().replace_one("/in", "/sick"), 2), [CONNECTION_LOST, CIRCUIT_OPEN]);
}

/// The request itself may cause a failure after it was sent.
#[test]
fn circuit_of_one_client_or_tenant_does_not_stop_another() {
    let (reaction, failing) = flaky_reaction();
    failing.store(false, Ordering::Relaxed);
    let hash = token_hash("secret");
    let more = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n[clients.all]\nnetworks = [\"127.0.0.0/8\"]\n\
                tenants = [\"*\"]\n[clients.one]\ntenants = [\"*\"]\n";
    let scene = scene_with(reaction, &format!("{more}tokens = [\"{hash}\"]\n"));
    let one = "Proxy-Authorization: Bearer secret\r\n";
    let send = |path: &str, fields: &str| {
        let response = scene.outgate.post(&scene.good_url().replace_one("/in", path), fields, "x");
        if response.status == 500 { "500".to_owned() } else { response.code().to_owned() }
    };
    let acme = format!("{one}Outgate-Tenant: acme\r\n");
    assert_eq!([send("/sick", &acme), send("/in", &acme)], [CONNECTION_LOST, CIRCUIT_OPEN]);
    let others = [send("/in", ""), send("/in", one), send("/in", &format!("{one}Outgate-Tenant: globex\r\n"))];
    assert_eq!(others, ["500", "500", "500"]);
    assert_eq!(send("/in", &acme), "500", "the answer to another has closed its circuit");
    // Only the target can cause a failure to connect.
    let (_closed, refused) = refusing();
    let text = config(&scene.good, &scene.plain, &format!("{more}tokens = [\"{hash}\"]\n"));
    scene.outgate.reconfigure(&text.push("routes.*.ports", refused));
    let to_closed =
        |fields: &str| scene.outgate.post(&format!("https://hook.example:{refused}/in"), fields, "x").code().to_owned();
    assert_eq!([to_closed(one), to_closed("")], ["connect_refused", CIRCUIT_OPEN]);
}

#[test]
fn circuit_of_failures_to_connect_closes_when_a_tunnel_opens() {
    let scene = manual_scene("[circuit]\nfailures = 1\nopen = \"1ms\"\nopen_max = \"1h\"\n");
    let assert_open = |count: usize| {
        let gauge = format!("outgate_circuits_open {count}");
        assert!(scene.outgate.admin("/metrics").text().contains(&gauge), "{gauge}");
    };
    let mut client = scene.outgate.connect();
    client.send(post(&format!("https://{}/in", scene.authority()), "", "x"));
    scene.reject_tls();
    assert_eq!(client.response().code(), "tls_failed");
    assert_open(1);
    std::thread::sleep(Duration::from_millis(100)); // longer than the pause
    let _tunnel = scene.open();
    assert_open(0);
}

/// The target accepts connections, and responds to no request.
#[test]
fn circuit_of_requests_without_a_response_stays_open_when_a_tunnel_opens() {
    let (begun, ended) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let shared = (Arc::clone(&begun), Arc::clone(&ended));
    let silent: Reaction = Arc::new(move |received| {
        if received.line.contains("/hangs") {
            shared.0.wait();
            shared.1.wait();
        }
        (Vec::new(), false)
    });
    let more = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n[clients.all]\n\
                networks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n";
    let scene = scene_with(silent, more);
    let text =
        config(&scene.good, &scene.plain, more).remove("routes.signed.sign").add("routes.signed.connect", "tunnel");
    scene.outgate.reconfigure(&text);
    let authority = format!("hook.example:{}", scene.good.port());
    let send = || scene.outgate.post(&scene.good_url(), "Outgate-Tenant: acme\r\n", "x").code().to_owned();
    assert_eq!([send(), send()], [CONNECTION_LOST, CIRCUIT_OPEN]);
    let mut client = scene.outgate.connect();
    let hangs = scene.good_url().replace_one("/in", "/hangs");
    client.send(post(&hangs, "Outgate-Tenant: globex\r\n", "x"));
    begun.wait();
    let _tunnel = scene.outgate.open_tunnel(&authority);
    assert_eq!(send(), CIRCUIT_OPEN, "the tunnel has closed the circuit");
    ended.wait();
    assert_eq!(client.response().code(), CONNECTION_LOST);
    let again = scene.outgate.post(&hangs, "Outgate-Tenant: globex\r\n", "x");
    assert_eq!(again.code(), CIRCUIT_OPEN, "a failure under way counts");
}

#[test]
fn circuit_of_a_route_with_short_timeouts_does_not_stop_a_patient_route() {
    let slow: Reaction = Arc::new(|_| {
        std::thread::sleep(Duration::from_millis(500)); // longer than the one route waits, and shorter than the other
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), true)
    });
    let circuit = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n";
    let scene = scene_with(slow, circuit);
    let text = config(&scene.good, &scene.plain, circuit).set("routes.*.timeouts.response", "20s");
    let hasty =
        "[[routes]]\nname = \"hasty\"\nhosts = [\"plain.example\"]\npaths = [\"/hasty\"]\nplaintext = \"allow\"\n";
    let ports = format!("ports = [{}]\ntimeouts = {{ response = \"10ms\" }}\n", scene.plain.port());
    scene.outgate.reconfigure(&format!("{text}{hasty}{ports}"));
    let hasty = scene.plain_url().replace_one("/in", "/hasty");
    assert_eq!(codes(&scene, &hasty, 2), ["response_timeout", CIRCUIT_OPEN]);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
}

/// A signed delivery waits for its body before it connects. A streamed one waits while it connects.
#[test]
fn circuit_half_open_probe_is_not_held_by_a_slow_client() {
    let (reaction, failing) = flaky_reaction();
    let more = "[circuit]\nfailures = 1\nopen = \"1ms\"\nopen_max = \"1ms\"\n";
    let scene = scene_with(reaction, more);
    let text = config(&scene.good, &scene.plain, more).set("routes.*.timeouts.body", "1m");
    scene.outgate.reconfigure(&text.set("routes.*.timeouts.response", "1m"));
    for url in [scene.good_url(), scene.plain_url()] {
        failing.store(true, Ordering::Relaxed);
        assert_eq!(codes(&scene, &url, 1), [CONNECTION_LOST]);
        failing.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + TEST_TIMEOUT;
        // 100 Continue shows that the delivery is the probe.
        let mut slow = loop {
            assert!(Instant::now() < deadline, "{url}: the pause does not end");
            if let Ok(slow) = scene.outgate.try_start_upload(&url, "", 2) {
                break slow;
            }
        };
        while codes(&scene, &url, 1) != ["500"] {
            assert!(Instant::now() < deadline, "{url}: the probe is held");
        }
        slow.send("xx");
        assert_eq!(slow.response().status, 500);
    }
}

#[test]
fn circuit_counts_a_target_that_stops_reading_an_upload() {
    const BODY: usize = 32 << 20; // more than the buffers of the kernel hold
    let scene = scene_with(flaky_reaction().0, "");
    let target = TcpListener::bind("127.0.0.1:0").unwrap(); // the kernel accepts, and the test does not read
    let more = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n[timeouts]\ntotal = \"10m\"\n";
    let text = config(&scene.good, &scene.plain, more).set("routes.plain.body_max", "64 MiB");
    let text = text.set("routes.*.timeouts.response", "1s").set("routes.*.timeouts.body", "10m");
    let port = target.local_addr().unwrap().port();
    scene.outgate.reconfigure(&text.push("routes.*.ports", port));
    let url = format!("http://plain.example:{port}/in");
    let mut client = scene.outgate.connect();
    let head = format!("POST {url} HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n");
    client.send(head);
    let piece = vec![b'x'; 64 << 10];
    // outgate discards the rest of the body after the refusal, so the client may send all of it.
    let _ = (0..BODY / piece.len()).take_while(|_| client.try_send(&piece)).count();
    let records = scene.outgate.records(1);
    assert_eq!(records[0]["code"], "response_timeout", "{records:?}");
    assert!(records[0]["bytes_sent"].as_u64().unwrap() < BODY as u64, "the target has taken it all: {records:?}");
    assert_eq!(codes(&scene, &url, 1), [CIRCUIT_OPEN]);
}

/// No stall is as long as the response timeout. All of them together are most of the total timeout.
#[test]
fn circuit_counts_an_upload_that_stalls_late_in_the_total_timeout() {
    const BODY: usize = 32 << 20;
    let scene = scene_with(flaky_reaction().0, "");
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n[timeouts]\ntotal = \"6s\"\n";
    let text = config(&scene.good, &scene.plain, more).set("routes.plain.body_max", "64 MiB");
    let text = text.set("routes.*.timeouts.response", "1m").set("routes.*.timeouts.body", "1m");
    let port = target.local_addr().unwrap().port();
    scene.outgate.reconfigure(&text.push("routes.*.ports", port));
    let url = format!("http://plain.example:{port}/in");
    let reading = std::thread::spawn(move || {
        let (mut stream, _) = target.accept().unwrap();
        std::thread::sleep(Duration::from_millis(3600)); // more than half of the total timeout
        // On a loaded machine the total timeout may end first. The record tells.
        let _ = stream.read_exact(&mut vec![0; 8 << 20]);
        (target, stream)
    });
    let mut client = scene.outgate.connect();
    client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n"));
    let piece = vec![b'x'; 64 << 10];
    let _ = (0..BODY / piece.len()).take_while(|_| client.try_send(&piece)).count();
    let records = scene.outgate.records(1);
    let _target = reading.join().unwrap();
    assert_eq!(records[0]["code"], "response_timeout", "{records:?}");
    assert_eq!(codes(&scene, &url, 1), [CIRCUIT_OPEN]);
}

/// The body timeout applies to the client. It does not run while the target is slow to read.
#[test]
fn body_timeout_does_not_run_while_the_target_is_slow_to_read() {
    const BODY: usize = 32 << 20;
    let scene = scene_with(flaky_reaction().0, "");
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = config(&scene.good, &scene.plain, "").set("routes.plain.body_max", "64 MiB");
    let text = text.set("routes.*.timeouts.response", "1m").set("routes.*.timeouts.body", "2s");
    let port = target.local_addr().unwrap().port();
    scene.outgate.reconfigure(&text.push("routes.*.ports", port));
    let url = format!("http://plain.example:{port}/in");
    let mut client = scene.outgate.connect();
    client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n"));
    let (all_but_one, has_come) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let (mut stream, _) = target.accept().unwrap();
        std::thread::sleep(Duration::from_secs(4)); // twice the body timeout
        let (mut received, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        let head = |received: &[u8]| received.windows(4).position(|four| four == b"\r\n\r\n").map(|end| end + 4);
        let mut total = 0;
        while head(&received).is_none_or(|end| total < end + BODY) {
            if head(&received).is_some_and(|end| total == end + BODY - 1) {
                all_but_one.send(()).unwrap();
            }
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the upload is cut off after {total} bytes");
            total += read;
            if head(&received).is_none() {
                received.extend_from_slice(&buffer[..read]);
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let piece = vec![b'x'; 64 << 10];
    let last = piece.len() - 1;
    assert!((1..BODY / piece.len()).all(|_| client.try_send(&piece)), "{:?}", client.response());
    assert!(client.try_send(&piece[..last]), "{:?}", client.response());
    has_come.recv_timeout(TEST_TIMEOUT).unwrap();
    client.send("x");
    assert_eq!(client.response().status, 200);
    reading.join().unwrap();
}

/// Returns an interim response (RFC 9113 §8.1, RFC 8297): `:status: 103`.
fn interim(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, b"\x08\x03103")
}

fn http2_target(script: Script) -> (FrameTarget, Outgate) {
    one_source_scene(script, "[circuit]\nfailures = 5\nwindow = \"10m\"\n")
}

/// Each of them costs a TLS handshake, and takes the other deliveries on the connection with it.
#[test]
fn circuit_counts_each_http2_connection_that_outgate_ends() {
    // outgate finds too many interim responses. h2 finds DATA that belongs to no stream.
    for flood in [|stream| interim(stream).repeat(100), |_| frame(DATA, 0, 0, b"x")] {
        let (target, outgate) = http2_target(Arc::new(move |event: &RequestEvent| match event.progress {
            Progress::End => flood(event.stream),
            _ => Vec::new(),
        }));
        let mut codes: Vec<String> = (0..6).map(|_| outgate.post(&target.url(), "", "x").code().to_owned()).collect();
        assert_eq!(codes.pop().unwrap(), CIRCUIT_OPEN, "{codes:?}");
        assert_eq!(codes, ["response_malformed"; 5]);
        assert_eq!(target.connections(), 5);
    }
}

#[test]
fn circuit_counts_an_http2_connection_that_outgate_ends_once_for_all_deliveries() {
    const SHARED: usize = 8;
    let arrived = std::sync::atomic::AtomicUsize::new(0);
    let (target, outgate) = http2_target(Arc::new(move |event: &RequestEvent| match event.progress {
        Progress::End if event.connection > 0 || event.request == 0 => ok_response(event.stream),
        Progress::End if arrived.fetch_add(1, Ordering::Relaxed) + 1 == SHARED => interim(event.stream).repeat(100),
        _ => Vec::new(),
    }));
    assert_eq!(outgate.post(&target.url(), "", "x").status, 200);
    let codes: Vec<String> = std::thread::scope(|scope| {
        let post = || outgate.post(&target.url(), "", "x").code().to_owned();
        let clients: Vec<_> = (0..SHARED).map(|_| scope.spawn(post)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(codes, ["response_malformed"; SHARED]);
    assert_eq!(target.connections(), 1, "they shared the connection");
    assert_eq!(outgate.post(&target.url(), "", "x").status, 200, "the circuit is closed");
}
