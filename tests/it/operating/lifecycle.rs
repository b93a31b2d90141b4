//! Clients that hang up and targets that stall, at each step of a delivery.
//! Does every delivery write one record and release all its resources?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Outgate, TEST_TIMEOUT, eventually, post, read_to_end};

/// Timeouts that no step exceeds, even on a slow machine.
const LONG: &str = "{ connect = \"1m\", tls = \"1m\", body = \"1m\", response = \"1m\" }";
/// A total timeout that a stalled body soon exceeds, and that the steps before it do not exceed.
const SHORT_TOTAL: &str = "{ connect = \"1m\", tls = \"1m\", body = \"1m\", response = \"1m\", total = \"3s\" }";
/// Timeouts that a stalled step soon exceeds.
const SHORT: &str = "{ connect = \"1m\", tls = \"300ms\", body = \"1m\", response = \"800ms\" }";
/// A short timeout for the body alone.
const SHORT_BODY: &str = "{ connect = \"1m\", tls = \"1m\", body = \"300ms\", response = \"1m\" }";

struct Scene {
    outgate: Outgate,
    good: Receiver,
    plain: Receiver,
    /// A listener with which the test acts as the target.
    slow: TcpListener,
}

/// Starts a scene with four routes, of which two lead to the slow target and have their own timeouts. All share one
/// permit, so that a permit that is not released blocks the next delivery.
fn scene(slow_timeouts: &str) -> Scene {
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let plain = Receiver::plain(ok());
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = slow.local_addr().unwrap().port();
    let routes = format!(
        "[limits.one]\nconcurrency = 1\n\
         [[routes]]\nname = \"slow\"\nhosts = [\"slow.example\"]\nports = [{port}]\nsign = [\"platform\"]\n\
         timeouts = {slow_timeouts}\n\
         [[routes]]\nname = \"slow-plain\"\nhosts = [\"slow-plain.example\"]\nports = [{port}]\nplaintext = \"allow\"\n\
         timeouts = {slow_timeouts}\n"
    );
    let config = config(&good, &plain, &routes)
        .host("slow.example", "127.0.0.1")
        .host("slow-plain.example", "127.0.0.1")
        .add("routes.*.limits", ["one"]);
    Scene { outgate: Outgate::run(folder(&pki), &config), good, plain, slow }
}

impl Scene {
    fn good_url(&self) -> String {
        format!("https://hook.example:{}/", self.good.port())
    }
    fn slow_url(&self, scheme: &str) -> String {
        let host = if scheme == "https" { "slow" } else { "slow-plain" };
        format!("{scheme}://{host}.example:{}/", self.slow.local_addr().unwrap().port())
    }

    /// Checks that the permit is free, that no connection is open, and that each delivery has a record.
    fn nothing_is_left(&self, records: usize, label: &str) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut refused = 0;
        for url in [self.good_url(), format!("http://plain.example:{}/", self.plain.port())] {
            loop {
                let response = self.outgate.post(&url, "", "");
                if response.code() != "concurrency_limited" {
                    assert_eq!(response.status, 200, "{label}: {response:?}");
                    break;
                }
                refused += 1;
                assert!(Instant::now() < deadline, "{label}: the permit is not freed");
            }
        }
        self.outgate.wait_for_metric("outgate_client_connections 0");
        let all = self.outgate.records(records + 2 + refused);
        let recorded = all.iter().filter(|record| record["code"] != "concurrency_limited").count();
        assert_eq!(recorded, records + 2, "{label}: {all:#?}");
    }
}

fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(TEST_TIMEOUT))?;
    Ok(stream)
}

/// Reads to the end of a request head.
fn read_head(stream: &mut TcpStream) {
    let (mut received, mut piece) = (Vec::new(), [0; 4096]);
    while !received.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = stream.read(&mut piece).unwrap();
        assert_ne!(length, 0);
        received.extend_from_slice(&piece[..length]);
    }
}

#[test]
fn client_hang_up_before_the_end_of_its_body_is_recorded_as_client_gone() {
    let scene = scene(LONG);
    let (signed, plain) = (scene.good_url(), scene.slow_url("http"));
    let head = |url: &str, framing: &str| format!("POST {url} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n");
    let mut records = 0;
    for (sent, counts) in [
        (String::new(), false),
        ("POST https://hook.exa".into(), false),
        (head(&signed, "Content-Length: 10"), true),
        (head(&signed, "Content-Length: 10") + "half", true),
        (head(&signed, "Transfer-Encoding: chunked") + "5\r\nhe", true),
        (head(&plain, "Content-Length: 10") + "half", true),
        (head(&plain, "Transfer-Encoding: chunked") + "5\r\nhello\r\n", true),
    ] {
        let mut client = scene.outgate.connect();
        client.send(&sent);
        let streams = sent.contains(&plain);
        let upstream = streams.then(|| accept(&scene.slow).unwrap());
        drop(client);
        if let Some(mut upstream) = upstream {
            assert!(!read_to_end(&mut upstream).ends_with(b"\r\n0\r\n\r\n"), "a broken upload must not look whole");
        }
        records += usize::from(counts);
        let all = scene.outgate.records(records);
        assert!(!counts || all[records - 1]["code"] == "client_gone", "{sent:?}: {:?}", all.last());
    }
    scene.nothing_is_left(records, "bodies");
    assert_eq!(scene.good.requests().len(), 1, "nothing half was delivered");
}

#[test]
fn client_hang_up_while_the_target_stalls_is_recorded_as_client_gone() {
    let scene = scene(LONG);
    // The client hangs up while the handshake stalls, and then while the response stalls.
    for (count, scheme) in ["https", "http"].into_iter().enumerate() {
        let mut client = scene.outgate.connect();
        client.send(post(&scene.slow_url(scheme), "", "x"));
        let mut upstream = accept(&scene.slow).unwrap();
        if scheme == "http" {
            read_head(&mut upstream);
        }
        drop(client);
        read_to_end(&mut upstream);
        assert_eq!(scene.outgate.records(count + 1)[count]["code"], "client_gone", "{scheme}");
    }
    // The client hangs up while the response streams and the target is silent.
    let mut client = scene.outgate.connect();
    client.send(post(&scene.slow_url("http"), "", "x"));
    let mut upstream = accept(&scene.slow).unwrap();
    read_head(&mut upstream);
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    assert!(client.read_some().starts_with(b"HTTP/1.1 200"));
    drop(client);
    read_to_end(&mut upstream);
    let record = scene.outgate.records(3)[2].clone();
    assert_eq!(record["code"], "client_gone", "{record}");
    scene.nothing_is_left(3, "waits");
}

#[test]
fn target_stall_at_each_step_meets_the_timeout_of_that_step() {
    let scene = scene(SHORT);
    let url = |scheme| scene.slow_url(scheme);
    // The target does not complete the handshake.
    let mut client = scene.outgate.connect();
    client.send(post(&url("https"), "", "x"));
    let stalled = accept(&scene.slow).unwrap();
    let response = client.response();
    assert_eq!((response.status, response.code()), (504, "connect_timeout"));
    drop((stalled, client));
    // The target does not respond to a buffered and to a streamed body.
    for framing in ["Content-Length: 1\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"] {
        let mut client = scene.outgate.connect();
        client.send(format!("POST {} HTTP/1.1\r\nHost: h\r\n{framing}", url("http")));
        let stalled = accept(&scene.slow).unwrap();
        let response = client.response();
        assert_eq!((response.status, response.code()), (504, "response_timeout"), "{framing}");
        drop(stalled);
    }
    let codes = |scene: &Scene, count: usize| {
        let records = scene.outgate.records(count);
        records.iter().map(|record| record["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&scene, 3), ["connect_timeout", "response_timeout", "response_timeout"]);
    scene.nothing_is_left(3, "stalls");

    // The target sends a head without its body, and half of a body. The client must notice the incomplete response.
    let scene = self::scene(SHORT_TOTAL);
    for sent in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let mut client = scene.outgate.connect();
        client.send(post(&scene.slow_url("http"), "", "x"));
        let mut stalled = accept(&scene.slow).unwrap();
        read_head(&mut stalled);
        stalled.write_all(sent.as_bytes()).unwrap();
        let all = client.rest();
        assert!(
            all.starts_with(b"HTTP/1.1 200") && !all.ends_with(b"\r\n0\r\n\r\n"),
            "{}",
            String::from_utf8_lossy(&all)
        );
    }
    assert_eq!(codes(&scene, 2), ["response_timeout"; 2]);
    scene.nothing_is_left(2, "stalled bodies");
}

#[test]
fn client_stall_in_a_body_meets_the_body_timeout() {
    let scene = scene(SHORT_BODY);
    for (url, streams) in [(scene.slow_url("https"), false), (scene.slow_url("http"), true)] {
        let mut client = scene.outgate.connect();
        client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf"));
        let upstream = streams.then(|| accept(&scene.slow).unwrap());
        let response = client.response();
        assert_eq!(
            (response.status, response.code(), response.field("connection")),
            (408, "body_timeout", "close"),
            "{url}"
        );
        drop(upstream);
    }
    scene.nothing_is_left(2, "slow bodies");
}

#[test]
fn client_hang_ups_leave_no_descriptor_open() {
    let scene = scene(LONG);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", scene.outgate.pid())).unwrap().count();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let before = descriptors();
    for round in 0..200 {
        let mut client: Client = scene.outgate.connect();
        let request = post(&scene.good_url(), "", "body");
        client.send(&request[..round % request.len()]);
    }
    eventually("the descriptors are closed", || descriptors() <= before + 1);
}

#[test]
fn client_that_does_not_read_meets_the_total_timeout() {
    let scene = scene(SHORT_TOTAL);
    let mut client = scene.outgate.connect();
    client.send(post(&scene.slow_url("http"), "", "x"));
    let mut upstream = accept(&scene.slow).unwrap();
    read_head(&mut upstream);
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 67000000\r\n\r\n").unwrap();
    // The target fills all buffers of a client that does not read, until outgate closes the connection.
    while upstream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    let record = scene.outgate.records(1)[0].clone();
    let total = record["ms"]["total"].as_f64().unwrap();
    assert!((2900.0..7000.0).contains(&total), "{record}");
}

/// accept(2) fails with EMFILE until the limit is raised.
#[test]
fn accept_without_descriptors_is_logged_once_and_resumes() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let scene = scene(LONG);
    let url = format!("http://plain.example:{}/", scene.plain.port());
    assert_eq!(scene.outgate.post(&url, "", "").status, 200);
    let pid = Pid::from_raw(i32::try_from(scene.outgate.pid()).unwrap());
    let limit = |current| prlimit(pid, Resource::Nofile, Rlimit { current: Some(current), maximum: Some(1024) });
    limit(0).unwrap();
    let mut client = scene.outgate.connect();
    client.send(post(&url, "", "late"));
    scene.outgate.log.wait_for("a log line", |lines| {
        lines.iter().any(|line| line.contains("cannot accept connections on 127.0.0.1")).then_some(())
    });
    limit(1024).unwrap();
    assert_eq!(client.response().status, 200);
    let logged = scene.outgate.log.all().iter().filter(|line| line.contains("cannot accept")).count();
    assert_eq!(logged, 1);
}
