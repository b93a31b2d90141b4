//! Restarts under load, with socket activation and with `reuse_port`.
//! Is any connection refused while one process takes over from another?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

use support::law::{assert_law_across, delivered};
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Folder, Outgate, TEST_TIMEOUT, eventually, post};

/// Two receivers. `good` responds to each request when the test sends a message, and `plain` responds at once.
struct Scene {
    pki: Pki,
    good: Receiver,
    plain: Receiver,
    release: Sender<()>,
}

fn scene() -> Scene {
    let pki = Pki::new();
    let (release, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let held: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    let good = Receiver::tls(pki.leaf(&["hook.example"]), held);
    Scene { good, plain: Receiver::plain(ok()), pki, release }
}

impl Scene {
    /// Returns a folder with the usual configuration and these keys of `[server]`.
    fn folder(&self, server: &str) -> Folder {
        let folder = folder(&self.pki);
        let text = config(&self.good, &self.plain, "")
            .remove("server.listen")
            .and(&format!("[server]\n{server}\n"))
            .set("server.drain_timeout", "60s")
            // The configuration does not know the addresses of systemd's sockets: it must not allow anonymous clients.
            .remove("server.allow_anonymous")
            .add("clients.local.networks", ["127.0.0.0/8"]);
        folder.write_config("config.toml", &text);
        folder
    }

    fn plain_request(&self) -> String {
        post(&format!("http://plain.example:{}/in", self.plain.port()), "", "x")
    }

    /// Starts a delivery, which has reached the target and waits for the response.
    fn in_flight(&self, to: SocketAddr) -> Client {
        let mut client = Client::connect(to);
        client.send(post(&format!("https://hook.example:{}/in", self.good.port()), "", "x"));
        eventually("the delivery reaches the target", || self.good.connections() > 0);
        client
    }
}

/// Sends requests over new connections until `ends` is set. Returns the failures.
fn post_until(to: SocketAddr, request: &str, ends: &AtomicBool, delivered: &AtomicUsize) -> Vec<String> {
    let mut failures = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        match post_once(to, request) {
            Ok(response) if response.starts_with("HTTP/1.1 200 ") => drop(delivered.fetch_add(1, Ordering::Relaxed)),
            Ok(response) => failures.push(response),
            Err(error) => failures.push(error.to_string()),
        }
    }
    failures
}

fn post_once(to: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(TEST_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut response = [0; 1024];
    let length = stream.read(&mut response)?;
    Ok(String::from_utf8_lossy(&response[..length]).into_owned())
}

/// Runs `change` while clients send requests over new connections. Every request must be delivered. Returns their number.
fn under_load(to: SocketAddr, request: &str, change: impl FnOnce(&dyn Fn(usize))) -> usize {
    let (ends, delivered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wait_for_deliveries = |count: usize| {
        let before = delivered.load(Ordering::Relaxed);
        eventually("more deliveries", || delivered.load(Ordering::Relaxed) >= before + count);
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| post_until(to, request, &ends, &delivered))).collect();
        // The clients must also end if an assertion of `change` fails.
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(&wait_for_deliveries)));
        ends.store(true, Ordering::Relaxed);
        let failures: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert_eq!(failures, Vec::<String>::new());
        if let Err(panic) = changed {
            std::panic::resume_unwind(panic);
        }
    });
    delivered.into_inner()
}

fn wait_for_drain(outgate: &Outgate) {
    outgate.log.wait_for("the log line of the drain", |lines| {
        lines.iter().any(|line| line.contains("draining")).then_some(())
    });
}

#[test]
fn socket_activation_refuses_no_connection_during_a_restart() {
    let scene = scene();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let systemd = || scene.folder("listen = [\"systemd\"]");
    let mut old = Outgate::run_activated(systemd(), &listener);
    let mut busy = scene.in_flight(to);
    let mut early = Client::connect(to);
    // Connections are accepted in order, so the old process has accepted the early one.
    assert!(post_once(to, &scene.plain_request()).unwrap().starts_with("HTTP/1.1 200 "));
    let mut new = None;
    let sent = under_load(to, &scene.plain_request(), |wait_for_deliveries| {
        wait_for_deliveries(10);
        old.signal("TERM");
        wait_for_drain(&old);
        early.send(scene.plain_request());
        let response = early.response();
        assert_eq!((response.status, response.field("connection")), (200, "close"), "its first request is served");
        let next = new.insert(Outgate::run_activated(systemd(), &listener));
        assert!(!next.records(20).is_empty(), "while the old process has work in flight");
        scene.release.send(()).unwrap();
        let response = busy.response();
        assert_eq!((response.status, response.field("connection")), (200, "close"));
        assert!(old.wait().success());
        wait_for_deliveries(10);
    });
    // The busy delivery, the early one, and the one that ordered them.
    assert_law_across(&[&old], &new.unwrap(), &delivered(sent + 3));
}

#[test]
fn reuse_port_hands_over_without_resetting_a_connection() {
    let scene = scene();
    let old_folder = scene.folder("listen = [\"127.0.0.1:0\"]\nreuse_port = true");
    let mut old = Outgate::run_in(old_folder);
    let to = old.proxy;
    let mut busy = scene.in_flight(to);
    let mut new = None;
    let sent = under_load(to, &scene.plain_request(), |wait_for_deliveries| {
        wait_for_deliveries(10);
        let server = format!("listen = [\"{to}\"]\nreuse_port = true");
        let next = new.insert(Outgate::run_in(scene.folder(&server)));
        assert!(!next.records(10).is_empty(), "side by side");
        old.signal("TERM");
        wait_for_drain(&old);
        wait_for_deliveries(10);
        scene.release.send(()).unwrap();
        let response = busy.response();
        assert_eq!((response.status, response.field("connection")), (200, "close"));
        assert!(old.wait().success());
        wait_for_deliveries(10);
    });
    let log = old.log.all();
    assert!(!log.iter().any(|line| line.contains("cannot leave new clients")), "{log:#?}");
    assert_law_across(&[&old], &new.unwrap(), &delivered(sent + 1));
}

#[test]
fn without_reuse_port_no_other_process_can_listen() {
    let scene = scene();
    let first = Outgate::run_in(scene.folder("listen = [\"127.0.0.1:0\"]"));
    let folder = scene.folder(&format!("listen = [\"{}\"]\nreuse_port = true", first.proxy));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["run", "--config"])
        .arg(folder.path("config.toml"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        printed.contains("cannot listen on 127.0.0.1:") && printed.contains("(server.listen): Address already in use"),
        "{printed}"
    );
}
