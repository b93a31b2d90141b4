//! outgate as a service of systemd: notifications, watchdog and socket activation.
//! Does systemd get each notification: ready, reloading, watchdog and stopping?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::TcpListener;
use std::path::Path;

use support::notify::NotifySocket;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Folder, Outgate, post};

/// Returns the value of a line `NAME=VALUE`.
fn number(message: &str, name: &str) -> u64 {
    let value = message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name}: {message}")).parse().unwrap()
}

/// Returns a folder with the usual configuration, and the receiver of `plain.example`. outgate does not watch its files: a
/// watch requests a reload after the start, and its notifications would be those that a test waits for.
fn usual() -> (Folder, Receiver) {
    let plain = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    folder.write_config("config.toml", &config(&plain, &plain, "").add("server.watch", false));
    (folder, plain)
}

/// Returns the monotonic clock in microseconds, as systemd reads it.
fn monotonic_clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1_000).unwrap()
}

#[test]
fn systemd_is_notified_of_ready_reloading_and_stopping() {
    let (folder, _plain) = usual();
    let path = folder.path("notify");
    let notify = NotifySocket::bind(&path);
    let mut outgate = Outgate::run_in_with(folder, &[("NOTIFY_SOCKET", &path)]);
    notify.wait_for("READY=1");
    let before = monotonic_clock();
    outgate.signal("HUP");
    let reloading = notify.wait_for("RELOADING=1");
    let begun = number(&reloading, "MONOTONIC_USEC");
    assert!((before..=monotonic_clock()).contains(&begun), "{begun} is not after {before}");
    notify.wait_for("READY=1");
    outgate.signal("TERM");
    notify.wait_for("STOPPING=1");
    assert!(outgate.wait().success());
}

/// systemd waits for the end of a reload, also if the configuration is rejected.
#[test]
fn systemd_is_notified_of_ready_after_a_reload_that_is_rejected() {
    let (folder, _plain) = usual();
    let path = folder.path("notify");
    let notify = NotifySocket::bind(&path);
    let outgate = Outgate::run_in_with(folder, &[("NOTIFY_SOCKET", &path)]);
    notify.wait_for("READY=1");
    outgate.folder.write("config.toml", "[server");
    outgate.signal("HUP");
    notify.wait_for("RELOADING=1");
    notify.wait_for("READY=1");
    outgate.log.wait_for_lines(1, &["not adopted"]);
}

#[test]
fn systemd_is_notified_of_a_longer_stop_while_outgate_drains() {
    let (folder, plain) = usual();
    let path = folder.path("notify");
    let notify = NotifySocket::bind(&path);
    let mut outgate = Outgate::run_in_with(folder, &[("NOTIFY_SOCKET", &path)]);
    // A request that lacks its last byte.
    let mut busy = outgate.connect();
    let request = post(&format!("http://plain.example:{}/in", plain.port()), "Expect: 100-continue\r\n", "x");
    busy.send(&request[..request.len() - 1]);
    assert_eq!(busy.next_response("POST").status, 100);
    outgate.signal("TERM");
    let extension = number(&notify.wait_for("EXTEND_TIMEOUT_USEC="), "EXTEND_TIMEOUT_USEC");
    assert!(extension >= 10_000_000, "{extension} µs");
    busy.send("x");
    assert_eq!(busy.response().status, 200);
    assert!(outgate.wait().success());
}

#[test]
fn systemd_watchdog_is_notified_again_and_again() {
    let (folder, _plain) = usual();
    let path = folder.path("notify");
    let notify = NotifySocket::bind(&path);
    let period = Path::new("200000"); // µs
    let _outgate = Outgate::run_in_with(folder, &[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", period)]);
    (0..3).for_each(|_| drop(notify.wait_for("WATCHDOG=1")));
}

#[test]
fn systemd_watchdog_is_not_notified_unless_it_is_enabled() {
    let (folder, _plain) = usual();
    let path = folder.path("notify");
    let notify = NotifySocket::bind(&path);
    let mut outgate = Outgate::run_in_with(folder, &[("NOTIFY_SOCKET", &path)]);
    outgate.signal("TERM");
    assert!(outgate.wait().success());
    // All messages of the process have arrived.
    notify.0.set_nonblocking(true).unwrap();
    let mut bytes = [0; 1024];
    let messages: Vec<_> = std::iter::from_fn(|| notify.0.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec()))
        .map(|message| String::from_utf8(message).unwrap())
        .collect();
    assert!(messages.iter().any(|message| message.contains("READY=1")), "{messages:?}");
    assert!(!messages.iter().any(|message| message.contains("WATCHDOG")), "{messages:?}");
}

#[test]
fn socket_activation_serves_webhooks_on_the_socket_of_systemd() {
    let plain = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    // The configuration does not know the address of the socket, so it must not allow anonymous clients.
    let config = config(&plain, &plain, "[clients.local]\nnetworks = [\"127.0.0.0/8\"]\n")
        .set("server.listen", ["systemd"])
        .remove("server.allow_anonymous");
    folder.write_config("config.toml", &config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // The connection waits in the queue of the socket until a process accepts it.
    let mut client = Client::connect(address);
    client.send(post(&format!("http://plain.example:{}/in", plain.port()), "", "x"));
    let outgate = Outgate::run_activated(folder, &listener);
    assert_eq!(client.response().status, 200);
    assert_eq!(plain.requests().len(), 1);
    let record = outgate.records(1).remove(0);
    assert_eq!((&record["code"], &record["client"]), (&"delivered".into(), &"local".into()), "{record}");
}
