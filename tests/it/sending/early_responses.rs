//! Targets that respond before they have the whole request, and then reset the connection.
//! Does the client get the response instead of an error about the reset?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::TEST_TIMEOUT;
use support::frames::{FrameTarget, Progress, frame, ok_response};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, Response, post};

/// More bytes than the kernel's buffers hold, so that outgate still writes when the reset comes.
const BODY: usize = 2 << 20;
/// More bytes than the kernel's buffers hold for a target that does not read.
const UNREAD: usize = 12 << 20;
const CANCEL: u32 = 8;
const TOO_LARGE: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// A response whose body ends with the connection.
const UNDELIMITED: &str = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\ntoo large";

/// Starts a target that reads the head of each request and responds. After `close_delay` it closes the connection with
/// unread data, so the kernel sends a reset.
fn target(identity: Option<support::pki::Identity>, response: &'static str, close_delay: Duration) -> SocketAddr {
    let tls = identity.map(|identity| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key);
        Arc::new(config.unwrap())
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = tls.clone();
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
                // Without it, the kernel may delay the response until the session tickets are acknowledged, and
                // discard it with the reset.
                stream.set_nodelay(true).unwrap();
                match tls {
                    None => {
                        respond(stream, response, close_delay);
                    }
                    Some(tls) => {
                        let session = rustls::ServerConnection::new(tls).unwrap();
                        respond(rustls::StreamOwned::new(session, stream), response, close_delay);
                    }
                }
            });
        }
    });
    address
}

fn respond(mut wire: impl Read + Write, response: &str, close_delay: Duration) -> Option<()> {
    let mut received = Vec::new();
    while !received.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut piece = [0; 512];
        let count = wire.read(&mut piece).ok().filter(|count| *count > 0)?;
        received.extend_from_slice(&piece[..count]);
    }
    wire.write_all(response.as_bytes()).ok()?;
    wire.flush().ok()?;
    std::thread::park_timeout(close_delay);
    Some(())
}

fn outgate(pki: &Pki, port: u16) -> Outgate {
    let other = Receiver::plain(ok());
    let text = config(&other, &other, "")
        .remove("routes.signed.sign")
        .set("routes.signed.body_max", "16 MiB")
        .set("routes.plain.body_max", "16 MiB")
        .set("routes.*.timeouts.response", "60s")
        .set("server.drain_timeout", "60s")
        .set("egress.default.ranges", ["127.0.7.1/32"])
        .push("routes.*.ports", port);
    Outgate::run(folder(pki), &text)
}

/// Sends a large body and then reads the response, like a client that notices an early response.
fn upload(outgate: &Outgate, url: &str) -> Response {
    let mut client = outgate.connect();
    let request = post(url, "", &"x".repeat(BODY));
    client.try_send(request);
    client.response()
}

#[test]
fn early_response_takes_precedence_over_the_reset_that_follows_it() {
    for is_tls in [false, true] {
        let pki = Pki::new();
        let port = target(is_tls.then(|| pki.leaf(&["hook.example"])), TOO_LARGE, Duration::ZERO).port();
        let outgate = outgate(&pki, port);
        let url = if is_tls { "https://hook.example" } else { "http://plain.example" };
        for _ in 0..12 {
            let response = upload(&outgate, &format!("{url}:{port}/in"));
            assert_eq!((response.status, response.text().as_str()), (413, "too large"), "{response:?}");
        }
        let record = outgate.records(12).pop().unwrap();
        assert_eq!((&record["status"], &record["code"]), (&413.into(), &"delivered".into()), "{record}");
    }
}

#[test]
fn response_truncated_by_a_reset_is_not_complete() {
    let pki = Pki::new();
    let port = target(None, UNDELIMITED, Duration::ZERO).port();
    let outgate = outgate(&pki, port);
    for _ in 0..3 {
        let mut client = outgate.connect();
        client.try_send(post(&format!("http://plain.example:{port}/in"), "", &"x".repeat(BODY)));
        client.rest();
    }
    for record in outgate.records(3) {
        assert_ne!(record["code"], "delivered", "{record}");
    }
}

/// The target does not read the body that it has refused, so it reads no further request either.
#[test]
fn connection_is_not_reused_after_a_refused_body() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for (stream, response) in listener.incoming().map_while(Result::ok).zip([TOO_LARGE, OK]) {
            respond(&stream, response, Duration::ZERO);
            held.push(stream);
        }
        std::thread::park_timeout(TEST_TIMEOUT);
    });
    let outgate = outgate(&pki, port);
    let url = format!("http://plain.example:{port}/in");
    // The kernel buffers the whole body.
    assert_eq!(outgate.post(&url, "", &"x".repeat(100_000)).status, 413);
    assert_eq!(outgate.post(&url, "", "{}").status, 200);
}

/// Sends a body over HTTP/2 that the target does not read. The client can write all of it after the early response, and
/// its connection has no open stream then.
fn upload_over_http2(mut outgate: Outgate, url: &str, status: u16, before_term: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(outgate.proxy).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (sender, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder().method("POST").uri(url).body(()).unwrap();
        let (response, mut stream) = sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let writing = async {
            let mut left = UNREAD;
            while left > 0 {
                stream.reserve_capacity(left.min(1 << 16));
                let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("the stream is open").unwrap();
                let capacity = capacity.min(left);
                left -= capacity;
                stream.send_data(Bytes::from(vec![b'x'; capacity]), left == 0).unwrap();
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, writing).await.expect("the client can write all of it");
        assert_eq!(response.await.unwrap().status(), status, "{url}");
        before_term();
        outgate.signal("TERM");
        assert!(outgate.wait().success(), "{url}");
    });
}

#[test]
fn early_response_frees_the_http2_stream_of_a_client_whose_body_the_target_does_not_take() {
    for response in [TOO_LARGE, OK] {
        for is_tls in [false, true] {
            let pki = Pki::new();
            let port = target(is_tls.then(|| pki.leaf(&["hook.example"])), response, TEST_TIMEOUT * 2).port();
            let url = if is_tls { "https://hook.example" } else { "http://plain.example" };
            let status = if response == OK { 200 } else { 413 };
            upload_over_http2(outgate(&pki, port), &format!("{url}:{port}/in"), status, || ());
        }
    }
}

#[test]
fn early_response_over_http2_frees_the_stream_of_a_client_whose_body_the_target_does_not_take() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    for (status, block) in [(200, b"\x88".as_slice()), (413, b"\x08\x03413")] {
        for is_shared in [false, true] {
            let pki = Pki::new();
            let target = FrameTarget::start(
                &pki,
                &[(INITIAL_WINDOW_SIZE, 65_535)],
                Arc::new(move |event| match (event.request, event.progress) {
                    (0, Progress::End) => ok_response(event.stream), // SETTINGS are known from here on
                    (1, _) if is_shared => Vec::new(),
                    (1.., Progress::Head) => {
                        [frame(1, 4, event.stream, block), frame(0, 1, event.stream, b"early")].concat()
                    }
                    _ => Vec::new(),
                }),
            );
            let outgate = outgate(&pki, target.address.port());
            assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
            let mut waiting = is_shared.then(|| outgate.connect());
            if let Some(waiting) = &mut waiting {
                waiting.send(post(&target.url(), "", "{}"));
                target.wait_for_requests(2);
            }
            // The waiting request keeps the connection to the target open.
            upload_over_http2(outgate, &target.url(), status, || {
                if is_shared {
                    assert_eq!(target.wait_for_resets(1), [CANCEL], "the upload's");
                }
                drop(waiting);
            });
            assert_eq!(target.connections(), 1);
        }
    }
}
