//! A mistake in outgate: a panic in the middle of a delivery, of a response, of a tunnel, or outside of all of them.
//! Who is harmed, and what do the client and the operator see?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;

use support::configuration::Config;
use support::http2::{DATA, END_HEADERS, END_STREAM, HEADERS, connect_http2, field, frame, head, read_until_frame};
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok, respond_with};
use support::scene::{config, folder};
use support::tunnel::connect;
use support::{Outgate, post};

/// A library that does what no kernel does, so that its caller panics. A write of bytes with `OUTGATE_TEST_PANIC` among
/// them returns more bytes than there are: the next slice is out of range. After a thread has read `fail-the-clock`, its next
/// reading of the time fails. After it has written `stop-the-clock`, its next reading of the monotonic clock fails. The standard
/// library takes both for impossible.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
static int has(const void *bytes, ssize_t length, const char *word) {
    return word && length > 0 && memmem(bytes, length, word, strlen(word)) != NULL;
}
static int has_word(const void *bytes, ssize_t length) { return has(bytes, length, getenv("OUTGATE_TEST_PANIC")); }
static __thread int clock_fails, monotonic_fails;
ssize_t recv(int fd, void *bytes, size_t size, int flags) {
    ssize_t (*real)(int, void *, size_t, int) = dlsym(RTLD_NEXT, "recv");
    ssize_t length = real(fd, bytes, size, flags);
    clock_fails |= has(bytes, length, "fail-the-clock");
    return length;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int *fails = clock == CLOCK_REALTIME ? &clock_fails : clock == CLOCK_MONOTONIC ? &monotonic_fails : NULL;
    if (!fails || !*fails) return real(clock, time);
    *fails = 0;
    return -1;
}
ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    return has_word(bytes, length) ? length + 1 : real(fd, bytes, length, flags);
}
ssize_t write(int fd, const void *bytes, size_t length) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    monotonic_fails |= has(bytes, length, "stop-the-clock");
    return has_word(bytes, length) ? length + 1 : real(fd, bytes, length);
}
ssize_t writev(int fd, const struct iovec *slices, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    ssize_t length = 0;
    int is_word = 0;
    for (int at = 0; at < count; at++) {
        length += slices[at].iov_len;
        is_word |= has(slices[at].iov_base, slices[at].iov_len, "panic-at-this-word");
        monotonic_fails |= has(slices[at].iov_base, slices[at].iov_len, "stop-the-clock");
    }
    return is_word ? length + 1 : real(fd, slices, count);
}
"#;

/// The word that makes outgate panic.
const WORD: &str = "panic-at-this-word";

struct Scene {
    outgate: Outgate,
    plain: Receiver,
}

impl Scene {
    fn new(reaction: Reaction) -> Self {
        Self::with(Receiver::plain(reaction), WORD)
    }

    /// Starts a scene in which only one delivery may be in flight: a permit that is lost would refuse the next one.
    fn with(plain: Receiver, word: &str) -> Self {
        Self::changed(plain, word, &|config| config.route("plain", "limits = [\"one\"]"))
    }

    /// Starts a scene that also has a target on this port.
    fn beside(port: u16, reaction: Reaction) -> Self {
        Self::changed(Receiver::plain(reaction), WORD, &|config| {
            config.push("routes.*.ports", port).set("routes.*.timeouts.response", "60s")
        })
    }

    fn changed(plain: Receiver, word: &str, change: &dyn Fn(Config) -> Config) -> Self {
        let pki = Pki::new();
        let good = Receiver::tls(pki.leaf(&["hook.example"]), ok());
        let folder = folder(&pki);
        let shim = folder.build_shim(SHIM);
        let config = change(config(&good, &plain, "[limits.one]\nconcurrency = 1\n"));
        folder.write_config("config.toml", &config.add("server.workers", 1));
        let environment: [(&str, &Path); 2] = [("LD_PRELOAD", &shim), ("OUTGATE_TEST_PANIC", Path::new(word))];
        Self { outgate: Outgate::run_in_with(folder, &environment), plain }
    }

    fn url(&self) -> String {
        format!("http://plain.example:{}/in", self.plain.port())
    }

    /// Asserts that outgate reports one panic, and serves the next delivery.
    fn assert_survived(&self) {
        self.assert_reported();
        assert_eq!(self.outgate.post(&self.url(), "", "x").status, 200);
    }

    fn assert_reported(&self) {
        let words = ["outgate has a bug", " panicked at ", "only this delivery or connection ends"];
        assert_eq!(self.outgate.log.wait_for_lines(1, &words), 1);
        self.outgate.wait_for_metric("outgate_panics_total 1");
        self.outgate.wait_for_metric("outgate_client_connections 0");
        self.outgate.wait_for_metric("outgate_deliveries_in_flight 0");
    }
}

/// Asserts that a record has the code of a panic, and its place.
fn assert_internal(record: &serde_json::Value) {
    assert_eq!((&record["code"], &record["blame"]), (&"internal".into(), &"outgate".into()), "{record:#}");
    assert!(record["cause"].as_str().is_some_and(|cause| cause.starts_with("panic at ")), "{record:#}");
}

#[test]
fn panic_in_a_delivery_is_a_refusal_and_the_next_delivery_is_served() {
    let scene = Scene::new(ok());
    let mut client = scene.outgate.connect();
    client.send(post(&scene.url(), "X-Word: fail-the-clock\r\n", "first"));
    let refused = client.response();
    assert_eq!((refused.status, refused.code()), (500, "internal"), "{refused:?}");
    let record = scene.outgate.record_of(&refused);
    assert_internal(&record);
    assert_eq!(record["details"], "panic");
    client.send(post(&scene.url(), "", "second"));
    assert_eq!(client.response().status, 200, "the connection and the permits go on");
    drop(client);
    scene.assert_survived();
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgatePanicked\"} 1");
}

#[test]
fn panic_in_a_delivery_over_http2_is_a_refusal_of_its_stream_only() {
    let scene = Scene::new(ok());
    let mut client = connect_http2(&scene.outgate);
    for (stream, word, code) in [(1, "fail-the-clock", "internal"), (3, "", "delivered")] {
        let block = [head(&scene.url()), field("x-word", word)].concat();
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
        read_until_frame(&mut client, &[DATA]);
        let count = stream.div_ceil(2) as usize;
        assert_eq!(scene.outgate.records(count)[count - 1]["code"], code);
    }
    drop(client);
    scene.assert_survived();
}

/// The panic is between two parts of an upload.
#[test]
fn panic_in_an_exchange_is_a_refusal_and_no_delivery_gets_the_targets_connection() {
    let scene = Scene::new(ok());
    let mut client = scene.outgate.connect();
    let fields = "Host: plain.example\r\nX-Word: stop-the-clock\r\nContent-Length: 10\r\n";
    client.send(format!("POST {} HTTP/1.1\r\n{fields}\r\nfirst", scene.url()));
    let refused = client.response();
    assert_eq!((refused.status, refused.code()), (500, "internal"), "{refused:?}");
    assert_internal(&scene.outgate.record_of(&refused));
    client.send(format!("-rest{}", post(&scene.url(), "", "second")));
    assert_eq!(client.response().status, 200, "the client's connection and the permits go on");
    drop(client);
    scene.assert_survived();
    let received: Vec<_> =
        scene.plain.requests().iter().map(|request| (request.connection, request.body.len())).collect();
    assert_eq!(received, [(1, 6), (1, 1)], "the first connection was reset");
}

/// The response has begun, so a task of its own sends the rest of the request.
#[test]
fn panic_in_the_rest_of_an_upload_leaves_the_response_and_the_next_request_whole() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port();
    let scene = Scene::beside(port, ok());
    let mut client = scene.outgate.connect();
    let fields = "Host: plain.example\r\nContent-Length: 20\r\n";
    client.send(format!("POST http://plain.example:{port}/in HTTP/1.1\r\n{fields}\r\nfirst"));
    let (mut wire, _) = target.accept().unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"first") {
        let mut piece = [0; 1024];
        let length = wire.read(&mut piece).unwrap();
        received.extend_from_slice(&piece[..length]);
    }
    wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\no") {
        response.extend(client.read_some());
    }
    client.send("stop-the-clock");
    scene.outgate.wait_for_metric("outgate_panics_total 1");
    wire.write_all(b"k").unwrap();
    assert_eq!(client.read_some(), b"k", "the response goes on");
    client.send(format!(".{}", post(&scene.url(), "", "")));
    assert_eq!(client.response().status, 200, "the decoder knows where the next request begins");
    received.clear();
    let end = wire.read_to_end(&mut received);
    assert!(end.is_err() && received == b"stop-the-clock", "{end:?}: the target must notice that its request is cut");
    drop(client);
    scene.assert_reported();
}

#[test]
fn panic_in_a_response_breaks_the_clients_connection_visibly() {
    let body = "x".repeat(1 << 20) + &WORD.repeat(10_000);
    let long = respond_with(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let usual = ok();
    let reaction: Reaction =
        Arc::new(move |request| if request.field("x-long").is_empty() { usual(request) } else { long(request) });
    let scene = Scene::new(reaction);
    let mut client = scene.outgate.connect();
    client.send(post(&scene.url(), "X-Long: 1\r\n", ""));
    let received = client.rest();
    assert!(received.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(received.len() < body.len(), "the response is cut off");
    let record = &scene.outgate.records(1)[0];
    assert_internal(record);
    assert_eq!(record["status"], 200);
    scene.plain.wait_until_closed(1);
    scene.assert_survived();
}

/// A delivery that waits for its target ends with the connection.
#[test]
fn panic_in_an_http2_connection_is_the_end_of_its_deliveries() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let scene = Scene::beside(port, respond_with(&format!("HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{WORD}")));
    let mut client = connect_http2(&scene.outgate);
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &head(&format!("http://plain.example:{port}/in"))));
    let _wire = silent.accept().unwrap();
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, &head(&scene.url())));
    client.rest();
    let records = scene.outgate.records(2);
    let waiting = records.iter().find(|record| record["port"] == port).unwrap();
    assert_eq!((&waiting["code"], &waiting["blame"]), (&"internal".into(), &"outgate".into()), "{waiting:#}");
    scene.assert_reported();
}

#[test]
fn panic_in_a_connection_without_a_delivery_closes_the_connection() {
    let scene = Scene::with(Receiver::plain(ok()), "request_malformed"); // in the refusal of a request that cannot be read
    let mut client = scene.outgate.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert!(client.is_closed());
    scene.assert_survived();
}

#[test]
fn panic_in_a_tunnel_closes_both_of_its_sides() {
    let scene = Scene::with(Receiver::plaintext_greeting(), WORD);
    let authority = format!("plain.example:{}", scene.plain.port());
    let open = || {
        let mut client = scene.outgate.connect();
        client.send(connect(&authority, ""));
        assert_eq!(client.response_to("CONNECT").status, 200);
        assert!(client.read_some().starts_with(b"HTTP/1.1 400"), "the target greets");
        client
    };
    let mut client = open();
    client.send(post("/in", "", WORD));
    client.rest();
    assert_internal(&scene.outgate.records(1)[0]);
    scene.plain.wait_until_closed(2); // the first connection, on which outgate tried TLS, and the tunnel's
    drop(client);
    scene.assert_reported();
    open();
}

#[test]
fn panic_outside_of_deliveries_ends_the_process() {
    let mut scene = Scene::new(ok());
    // The history stores the text of a configuration.
    scene.outgate.replace_config(&format!("# {WORD}\n{}", scene.outgate.config()));
    scene.outgate.signal("HUP");
    assert_eq!(scene.outgate.wait().signal(), Some(6), "SIGABRT");
    scene.outgate.log.wait_for_lines(1, &["outgate has a bug", " panicked at ", "the process ends"]);
}

/// The writer of the log waits for lines with its queue locked.
#[test]
fn panic_in_the_writer_of_the_log_ends_the_process() {
    let mut scene = Scene::new(ok());
    scene.outgate.replace_config("stop-the-clock = true\n");
    scene.outgate.signal("HUP");
    assert_eq!(scene.outgate.wait().signal(), Some(6), "SIGABRT");
    scene.outgate.log.wait_for_lines(1, &["outgate has a bug: thread log", " panicked at ", "the process ends"]);
}
