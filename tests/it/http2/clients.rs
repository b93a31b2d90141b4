//! Clients that speak HTTP/2 with prior knowledge.
//! Is each request delivered as over HTTP/1, without an effect on other requests?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use support::configuration::Replace;
use support::receiver::{Reaction, respond_and_close, respond_with};
use support::scene::{config, scene, scene_with};
use support::{Outgate, TEST_TIMEOUT};

type Error = h2::Error;

/// Runs a client for at most `TEST_TIMEOUT`.
fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, client).await.expect("the client is done in time") })
}

/// A sender, and a task that drives its connection and returns how it closed.
async fn connect(outgate: &Outgate) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), Error>>) {
    let stream = tokio::net::TcpStream::connect(outgate.proxy).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn post(url: &str) -> http::request::Builder {
    Request::builder().method("POST").uri(url)
}

async fn send(
    sender: &SendRequest<Bytes>,
    request: http::request::Builder,
    body: &'static str,
) -> Result<Response<RecvStream>, Error> {
    let mut sender = sender.clone().ready().await?;
    let (response, mut stream) = sender.send_request(request.body(()).unwrap(), body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::from_static(body.as_bytes()), true)?;
    }
    response.await
}

/// Reads the whole body. It panics if trailers follow.
async fn read(mut body: RecvStream) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    assert_eq!(body.trailers().await?, None);
    Ok(all)
}

fn code<B>(response: &Response<B>) -> (u16, &str) {
    (response.status().as_u16(), response.headers().get("outgate-error").map_or("", |code| code.to_str().unwrap()))
}

/// Returns a reaction that waits for a message, and the sender of the messages.
fn held_reaction() -> (Reaction, std::sync::mpsc::Sender<()>) {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let reaction: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    (reaction, release)
}

#[test]
fn http2_request_of_every_form_is_delivered() {
    let scene = scene();
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        for request in [
            post(&scene.good_url()).header("x-mine", "1"),
            post(&scene.good_url()).header("host", format!("Hook.Example:{}", scene.good.port())),
            post("http://proxy.example/anything").header("outgate-target", scene.good_url()),
            post(&scene.good_url().replace_one("https", "http")).header("outgate-tls", "1"),
        ] {
            let response = send(&sender, request, "{}").await.unwrap();
            assert_eq!((code(&response), response.version()), ((200, ""), http::Version::HTTP_2));
            let fields = response.headers();
            assert!(fields["via"] == "1.1 outgate" && fields["content-length"] == "2", "{fields:?}");
            assert!(fields.contains_key("outgate-request-id") && fields.contains_key("date"));
            assert_eq!(read(response.into_body()).await.unwrap(), b"ok");
        }
        let response = send(&sender, post(&scene.plain_url()), "").await.unwrap();
        assert_eq!(code(&response), (200, ""));
    });
    for received in scene.good.requests() {
        assert_eq!((received.line.as_str(), received.body.as_slice()), ("POST /in HTTP/1.1", &b"{}"[..]));
        assert_eq!((received.field("via"), received.field("content-length")), ("2 outgate", "2"));
        assert_eq!(received.field("host"), format!("hook.example:{}", scene.good.port()));
        assert!(!received.field("webhook-signature").is_empty());
    }
    assert_eq!(scene.good.requests().len(), 4);
    assert_eq!(scene.plain.requests()[0].field("content-length"), "0");
    let records = scene.outgate.records(5);
    assert!(records.iter().all(|record| record["code"] == "delivered" && record["peer"] == "127.0.0.1"));
}

#[test]
fn http2_request_with_ambiguous_fields_is_refused_and_the_connection_goes_on() {
    let scene = scene();
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let url = scene.plain_url();
        for (request, expected) in [
            (post(&url).header("host", "other.example"), (400, "request_malformed")),
            (post(&url).header("host", "a").header("host", "a"), (400, "request_malformed")),
            (post(&url).header("outgate-target", "https://u:p@hook.example/"), (400, "request_malformed")),
            (post("http://proxy.example/").header("outgate-target", "/in"), (400, "request_malformed")),
            (post("ftp://hook.example/"), (400, "request_malformed")),
            (post(&url).header("expect", "miracles"), (417, "request_malformed")),
            (post(&format!("{url}?{}", "a".repeat(17_000))), (414, "request_malformed")),
            ((0..101).fold(post(&url), |request, n| request.header(format!("x-{n}"), "y")), (431, "request_malformed")),
            (post("https://unknown.example/"), (403, "no_route")),
            (Request::builder().method("CONNECT").uri("hook.example:443"), (403, "tunnel_forbidden")),
        ] {
            let label = format!("{request:?}");
            let response = send(&sender, request, "").await.unwrap();
            assert_eq!(code(&response), expected, "{label}");
            assert!(!response.headers().contains_key("connection"), "{label}");
            assert!(
                response.headers()["via"] == "1.1 outgate" && response.headers()["outgate-egress"] == "none",
                "{label}"
            );
            assert!(!read(response.into_body()).await.unwrap().is_empty(), "{label}");
        }
        assert_eq!(send(&sender, post(&url), "x").await.unwrap().status(), 200);
    });
    assert_eq!(scene.plain.requests().len(), 1);
    let records = scene.outgate.records(11);
    assert_eq!(records.len(), 11, "what cannot be read is recorded, too");
    let unparsed = records.iter().filter(|record| matches!(record["status"].as_u64(), Some(417 | 431)));
    for record in unparsed {
        let recorded = (&record["host"], &record["path"], &record["method"]);
        assert_eq!(recorded, (&"plain.example".into(), &"/in".into(), &"POST".into()), "{record}");
    }
}

/// outgate does not know the method, so it responds without a body, as to HEAD.
#[test]
fn an_http2_head_that_is_too_large_is_refused_with_every_field_and_a_record() {
    let scene = scene();
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        for body in ["", "x"] {
            let large = post(&scene.plain_url()).header("x-kept", "1").header("x-large", "y".repeat(70_000));
            let response = send(&sender, large, body).await.unwrap();
            assert_eq!(code(&response), (431, "request_malformed"));
            let fields = response.headers();
            assert!(fields["via"] == "1.1 outgate" && fields["outgate-egress"] == "none", "{fields:?}");
            assert!(fields.contains_key("outgate-request-id") && fields.contains_key("proxy-status"), "{fields:?}");
            assert_eq!(read(response.into_body()).await.unwrap(), b"");
            // The HPACK tables of both sides are still equal.
            let next = post(&scene.plain_url()).header("x-kept", "1");
            assert_eq!(send(&sender, next, "x").await.unwrap().status(), 200);
        }
    });
    assert!(scene.plain.requests().iter().all(|received| received.field("x-kept") == "1"));
    let records = scene.outgate.records(4);
    let refused: Vec<_> = records.iter().filter(|record| record["status"] == 431).collect();
    assert_eq!(refused.len(), 2, "{records:#?}");
    assert!(refused.iter().all(|record| record["method"].is_null() && record["host"].is_null()), "{records:#?}");
}

#[test]
fn http2_requests_of_one_connection_are_independent() {
    let echo: Reaction = Arc::new(|received| {
        let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", received.body.len()).into_bytes();
        response.extend_from_slice(&received.body);
        (response, true)
    });
    let scene = scene_with(echo, "");
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let mut pending = tokio::task::JoinSet::new();
        // The number is below the stream limit: a server may count an ended stream for a moment longer than its client.
        for number in 0..100_usize {
            let (sender, url) = (sender.clone(), scene.plain_url());
            pending.spawn(async move {
                let body = Bytes::from(vec![number as u8; number * 2000]);
                let mut sender = sender.ready().await.unwrap();
                let (response, mut stream) = sender.send_request(post(&url).body(()).unwrap(), false).unwrap();
                let mut rest = body.clone();
                while !rest.is_empty() {
                    stream.reserve_capacity(rest.len());
                    let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                    stream.send_data(rest.split_to(capacity.min(rest.len())), false).unwrap();
                }
                stream.send_data(Bytes::new(), true).unwrap();
                assert!(read(response.await.unwrap().into_body()).await.unwrap() == body, "{number}");
            });
        }
        while let Some(done) = pending.join_next().await {
            done.unwrap();
        }
    });
    assert_eq!(scene.outgate.records(100).len(), 100);
}

#[test]
fn http2_responses_without_a_body_or_length_end_with_end_stream() {
    for (reply, method, status, length, body) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", "POST", 204, None, ""),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "GET", 304, Some("9"), ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 200, Some("5"), ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "POST", 200, Some("0"), ""),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nKeep-Alive: 1\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n",
            "POST",
            200,
            None,
            "abc",
        ),
    ] {
        let scene = scene_with(respond_with(reply), "");
        run(async {
            let (sender, _connection) = connect(&scene.outgate).await;
            for number in 1..=2 {
                let request = Request::builder().method(method).uri(scene.plain_url());
                let response = send(&sender, request, "").await.unwrap();
                let fields = response.headers();
                assert_eq!(response.status(), status, "{reply}");
                assert_eq!(fields.get("content-length").map(|length| length.to_str().unwrap()), length, "{reply}");
                assert!(!fields.contains_key("transfer-encoding") && !fields.contains_key("keep-alive"), "{reply}");
                assert_eq!(read(response.into_body()).await.unwrap(), body.as_bytes(), "{reply}");
                // The target's connection is free when the record is written. The response may come before.
                scene.outgate.records(number);
            }
        });
        assert_eq!(scene.plain.connections(), 1, "{reply}");
    }
}

#[test]
fn http2_response_that_the_target_breaks_off_resets_its_stream_alone() {
    let scene = scene_with(respond_and_close("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), "");
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        for _ in 0..2 {
            // A reset discards what is not sent yet, so the head may be missing.
            let error = match send(&sender, post(&scene.plain_url()), "x").await {
                Ok(response) => {
                    assert_eq!(response.status(), 200);
                    read(response.into_body()).await.unwrap_err()
                }
                Err(error) => error,
            };
            assert!(error.is_reset() && error.is_remote(), "{error:?}");
        }
    });
    for record in &scene.outgate.records(2)[..2] {
        assert_eq!((&record["code"], &record["status"]), (&"connection_lost".into(), &200.into()), "{record}");
    }
}

#[test]
fn http2_client_reset_ends_its_delivery_and_no_other() {
    let (reaction, release) = held_reaction();
    let scene = scene_with(reaction, "");
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let mut ready = sender.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(post(&scene.plain_url()).body(()).unwrap(), true).unwrap();
        while scene.plain.connections() == 0 {
            tokio::task::yield_now().await;
        }
        let other = tokio::spawn({
            let (sender, url) = (sender.clone(), scene.good_url());
            async move { send(&sender, post(&url), "x").await.unwrap().status() }
        });
        stream.send_reset(Reason::CANCEL);
        drop(response);
        assert_eq!(scene.outgate.records(1)[0]["code"], "client_gone");
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert_eq!(other.await.unwrap(), 200);
        // The client resets the stream after half of the body. The target must not accept it as the whole.
        let mut ready = sender.ready().await.unwrap();
        let request = post(&scene.good_url()).header("expect", "100-continue");
        let (mut response, mut stream) = ready.send_request(request.body(()).unwrap(), false).unwrap();
        poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        stream.send_data(Bytes::from_static(b"half"), false).unwrap();
        stream.send_reset(Reason::CANCEL);
    });
    // A client may get its response before the record is written.
    let mut codes: Vec<_> =
        scene.outgate.records(3).iter().map(|record| record["code"].as_str().unwrap().to_owned()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["client_gone", "client_gone", "delivered"]);
    assert_eq!(scene.good.requests().len(), 1);
}

#[test]
fn http2_requests_are_answered_while_bodies_of_others_wait_for_a_limit() {
    const WAITING: usize = 100;
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let reaction: Reaction = Arc::new(move |received| {
        if received.line.contains("/slow") {
            let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        }
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    let scene = scene_with(reaction, "");
    let limit = "[limits.one]\nconcurrency = 1\nper = [\"host\"]\nwait = \"60s\"\n";
    let text = config(&scene.good, &scene.plain, limit);
    scene.outgate.reconfigure(&text.add("routes.plain.limits", ["one"]));
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let url = scene.plain_url().replace_one("/in", "/slow");
        let mut waiting = Vec::new();
        for _ in 0..WAITING {
            let mut sender = sender.clone().ready().await.unwrap();
            let (response, mut stream) = sender.send_request(post(&url).body(()).unwrap(), false).unwrap();
            let mut body = Bytes::from(vec![b'x'; 65_535]);
            while !body.is_empty() {
                stream.reserve_capacity(body.len());
                let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                let piece = body.split_to(capacity.min(body.len()));
                stream.send_data(piece, body.is_empty()).unwrap();
            }
            waiting.push(response);
        }
        assert_eq!(send(&sender, post(&scene.good_url()), "{}").await.unwrap().status(), 200);
        drop(release);
        for response in waiting {
            assert_eq!(response.await.unwrap().status(), 200);
        }
    });
}

/// RFC 9113 §8.2.1: such a value is malformed. HTTP/1 would strip the white space.
#[test]
fn white_space_around_an_http2_field_value_is_refused_and_the_connection_goes_on() {
    let scene = scene();
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        for (name, value) in
            [("outgate-tenant", " acme"), ("outgate-tenant", "acme "), ("x-mine", "\tx"), ("x-mine", " ")]
        {
            let response = send(&sender, post(&scene.plain_url()).header(name, value), "").await.unwrap();
            assert_eq!(code(&response), (400, "request_malformed"), "{name}: {value:?}");
        }
        assert_eq!(send(&sender, post(&scene.plain_url()), "x").await.unwrap().status(), 200);
    });
    assert_eq!(scene.plain.requests().len(), 1);
}

#[test]
fn http2_100_continue_is_sent_only_when_the_body_is_wanted() {
    let scene = scene();
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let build_request = |length: &str| {
            post(&scene.good_url()).header("expect", "100-continue").header("content-length", length).body(()).unwrap()
        };
        let mut sender = sender.ready().await.unwrap();
        let (mut response, mut stream) = sender.send_request(build_request("5"), false).unwrap();
        let interim = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(interim.status(), StatusCode::CONTINUE);
        stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        // outgate refuses the request before the client sends its body.
        let mut sender = sender.ready().await.unwrap();
        let (mut response, _stream) = sender.send_request(build_request("10000000"), false).unwrap();
        assert!(poll_fn(|cx| response.poll_informational(cx)).await.is_none());
        assert_eq!(code(&response.await.unwrap()), (413, "body_too_large"));
    });
    assert_eq!(scene.good.requests()[0].body, b"hello");
}

#[test]
fn interim_responses_reach_http2_clients_without_a_content_length() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let scene = scene_with(respond_with(hints), "");
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let mut sender = sender.ready().await.unwrap();
        let (mut response, _) = sender.send_request(post(&scene.plain_url()).body(()).unwrap(), true).unwrap();
        let interim = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert!(interim.status() == 103 && interim.headers()["link"] == "</x>", "{interim:?}");
        assert_eq!(interim.headers().len(), 1, "{interim:?}");
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn http2_body_is_capped_and_must_match_its_content_length() {
    let scene = scene();
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let large: &'static str = "x".repeat(60_000).leak();
        let mut ready = sender.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(post(&scene.good_url()).body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::from_static(large.as_bytes()), false).unwrap();
        stream.send_data(Bytes::from_static(large.as_bytes()), true).unwrap();
        assert_eq!(code(&response.await.unwrap()), (413, "body_too_large"));
        for length in ["1", "3"] {
            let request = post(&scene.good_url()).header("content-length", length);
            let error = send(&sender, request, "ok").await.unwrap_err();
            assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{length}");
        }
        assert_eq!(send(&sender, post(&scene.good_url()), "x").await.unwrap().status(), 200);
    });
    assert_eq!(scene.good.requests().len(), 1);
}

#[test]
fn http2_drain_finishes_requests_in_flight() {
    let (reaction, release) = held_reaction();
    let mut scene = scene_with(reaction, "");
    run(async {
        let (idle, idle_connection) = connect(&scene.outgate).await;
        let (busy, busy_connection) = connect(&scene.outgate).await;
        let pending = tokio::spawn({
            let (sender, url) = (busy.clone(), scene.plain_url());
            async move { read(send(&sender, post(&url), "x").await.unwrap().into_body()).await.unwrap() }
        });
        while scene.plain.connections() == 0 {
            tokio::task::yield_now().await;
        }
        scene.outgate.signal("TERM");
        idle_connection.await.unwrap().unwrap();
        drop(idle);
        // A new request is refused with the cause.
        let (late, late_connection) = connect(&scene.outgate).await;
        let response = send(&late, post(&scene.plain_url()), "x").await.unwrap();
        assert_eq!(code(&response), (503, "draining"));
        assert!(!response.headers().contains_key("connection"));
        drop((response, late));
        late_connection.await.unwrap().unwrap();
        release.send(()).unwrap();
        assert_eq!(pending.await.unwrap(), b"ok");
        drop(busy);
        busy_connection.await.unwrap().unwrap();
    });
    assert!(scene.outgate.wait().success());
    assert_eq!(scene.outgate.records(2).len(), 2);
}

#[test]
fn http2_drain_timeout_ends_requests_and_each_has_a_record() {
    let (reaction, _never) = held_reaction();
    let mut scene = scene_with(reaction, "");
    scene.outgate.reconfigure(&config(&scene.good, &scene.plain, "").set("server.drain_timeout", "100ms"));
    run(async {
        let (sender, _connection) = connect(&scene.outgate).await;
        let pending: Vec<_> = (0..20)
            .map(|_| {
                let (sender, url) = (sender.clone(), scene.plain_url());
                tokio::spawn(async move { send(&sender, post(&url), "x").await.map(|_| ()) })
            })
            .collect();
        while scene.plain.connections() < 20 {
            tokio::task::yield_now().await;
        }
        scene.outgate.signal("INT");
        for outcome in pending {
            assert!(outcome.await.unwrap().is_err());
        }
    });
    assert!(scene.outgate.wait().success());
    let records = scene.outgate.records(20);
    assert_eq!(records.len(), 20);
    assert!(records.iter().all(|record| record["code"] == "draining"), "{records:#?}");
}

#[test]
fn http2_idle_connection_is_closed_without_an_error() {
    let scene = scene();
    run(async {
        let (sender, connection) = connect(&scene.outgate).await;
        assert_eq!(send(&sender, post(&scene.plain_url()), "x").await.unwrap().status(), 200);
        // The timeout begins again after the next request. The handshake of HTTP/2 is not part of it.
        scene.outgate.reconfigure(&config(&scene.good, &scene.plain, "[timeouts]\nidle = \"300ms\"\n"));
        assert_eq!(send(&sender, post(&scene.plain_url()), "x").await.unwrap().status(), 200);
        connection.await.unwrap().expect("GOAWAY without an error");
    });
}
