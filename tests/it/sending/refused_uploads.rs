//! Requests that are refused while their client is still writing them.
//! Does the refusal arrive, and can the connection be used again?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::future::poll_fn;

use bytes::Bytes;
use support::configuration::Replace;
use support::scene::{Scene, config, scene, scene_with};
use support::{Client, TEST_TIMEOUT, post};

/// More bytes than the kernel buffers of both sides hold, and more than a route of the scene accepts.
const LARGE: usize = 8 << 20;

/// Starts a scene whose only client authenticates with a token.
fn scene_with_token_client() -> Scene {
    let scene = scene_with(support::receiver::ok(), "");
    let hash = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"; // of "secret"
    let text = config(&scene.good, &scene.plain, "").remove("server.allow_anonymous");
    scene.outgate.reconfigure(&text.add("clients.billing.tokens", [hash]));
    scene
}

/// Writes the whole request before it reads the response, as single-threaded clients do. Then sends another request.
fn assert_refused_after_full_write(scene: &Scene, request: &[u8], status: u16, stays_open: bool) {
    let label = String::from_utf8_lossy(&request[..90]).into_owned();
    let mut client = scene.outgate.connect();
    assert!(client.try_send(request), "{label}: the connection broke while the client was writing");
    let response = client.response();
    assert_eq!(response.status, status, "{label}: {response:?}");
    assert_eq!(response.field("connection") != "close", stays_open, "{label}: {response:?}");
    if stays_open {
        client.send(post("http://unrouted.example/", "", "x"));
        assert!(matches!(client.response().status, 403 | 407), "{label}: the next request");
    } else {
        assert!(client.is_closed(), "{label}");
    }
}

fn chunked(url: &str, size: usize) -> Vec<u8> {
    let mut request = format!("POST {url} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..size / 0x10000 {
        request.extend_from_slice(b"10000\r\n");
        request.resize(request.len() + 0x10000, b'x');
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

#[test]
fn refusal_reaches_a_client_that_is_still_writing() {
    let scene = scene();
    let body = "x".repeat(LARGE);
    for (url, status) in [("http://unrouted.example/", 403), (&scene.plain_url(), 413), (&scene.good_url(), 413)] {
        assert_refused_after_full_write(&scene, post(url, "", &body).as_bytes(), status, true);
        assert_refused_after_full_write(&scene, &chunked(url, LARGE), status, true);
        assert_refused_after_full_write(&scene, post(url, "Connection: close\r\n", &body).as_bytes(), status, false);
    }
    // The end of the body is unknown for these requests.
    let coded =
        post(&scene.plain_url(), "Transfer-Encoding: gzip\r\n", &body).replace_one("Content-Length", "X-Length");
    assert_refused_after_full_write(&scene, coded.as_bytes(), 400, false);
    let connect = format!("CONNECT hook.example:443 HTTP/1.1\r\nHost: hook.example:443\r\n\r\n{body}");
    assert_refused_after_full_write(&scene, connect.as_bytes(), 403, false);
    assert!(scene.plain.requests().is_empty() && scene.good.requests().is_empty());
}

#[test]
fn refusal_without_credentials_keeps_the_connection_open_for_the_retry() {
    let scene = scene_with_token_client();
    let body = "x".repeat(900_000);
    assert_refused_after_full_write(&scene, post(&scene.plain_url(), "", &"x".repeat(LARGE)).as_bytes(), 407, true);
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", &body));
    assert_eq!(client.response().status, 407);
    client.send(post(&scene.plain_url(), "Proxy-Authorization: Bearer secret\r\n", &body));
    assert_eq!(client.response().status, 200);
    let received = scene.plain.requests();
    assert_eq!((received.len(), received[0].body.len()), (1, body.len()));
}

#[test]
fn refusal_of_an_endless_upload_closes_the_connection() {
    let scene = scene();
    // The body exceeds the discard limit, so the response announces the close.
    let mut client = scene.outgate.connect();
    client.send("POST http://unrouted.example/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (403, "close"));
    let piece = [b'x'; 1 << 16];
    let sent = (0..1000).take_while(|_| client.try_send(piece)).count() << 16;
    assert!((16 << 20..1000 << 16).contains(&sent), "{sent} bytes were taken");
    // A body that stalls, and one with broken framing. The bytes after it are not a request.
    for rest in ["half", "5\r\nhelloXX\r\nGET http://unrouted.example/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"] {
        let mut client = scene.outgate.connect();
        client.send("POST http://unrouted.example/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(client.response().status, 403);
        client.send(rest);
        assert!(client.is_closed(), "{rest}");
    }
    assert_eq!(scene.outgate.records(3).len(), 3);
}

#[test]
fn refusal_of_a_malformed_body_ends_the_connection() {
    let scene = scene();
    for smuggled in ["5\r\nhelloXX", "zz\r\n", "5;a=\n"] {
        let mut client = scene.outgate.connect();
        client.send(format!(
            "POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}\r\n0\r\n\r\n{}",
            scene.good_url(),
            post(&scene.plain_url(), "", "x"),
        ));
        let response = client.response();
        assert_eq!((response.status, response.field("connection")), (400, "close"), "{smuggled}");
        assert!(client.is_closed(), "{smuggled}");
    }
    assert!(scene.plain.requests().is_empty());
}

#[test]
fn refusal_reaches_a_client_that_waits_for_continue() {
    let scene = scene();
    let mut client = Client::connect(scene.outgate.proxy);
    client
        .send("POST http://unrouted.example/ HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (403, "close"));
    assert!(client.is_closed(), "whether a body follows is unknown");
}

#[test]
fn refusal_over_http2_lets_the_client_finish_its_upload() {
    let scene = scene();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(scene.outgate.proxy).await.unwrap();
        let (sender, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        for (url, status) in [("http://unrouted.example/", 403), (&scene.plain_url(), 413), (&scene.good_url(), 413)] {
            let request = http::Request::builder().method("POST").uri(url).body(()).unwrap();
            let (response, mut stream) = sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
            let writing = async {
                let mut left = LARGE;
                while left > 0 {
                    stream.reserve_capacity(left.min(1 << 16));
                    let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("the stream is open").unwrap();
                    left -= capacity.min(left);
                    stream.send_data(Bytes::from(vec![b'x'; capacity]), left == 0).unwrap();
                }
            };
            tokio::time::timeout(TEST_TIMEOUT, writing).await.expect("the client can write all of it");
            assert_eq!(response.await.unwrap().status(), status, "{url}");
        }
    });
}
