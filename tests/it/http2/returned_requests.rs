//! Targets that return a request unprocessed, over HTTP/2.
//! Is such a request resent if that is safe, and is the refusal retryable otherwise?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use support::frames::{FrameTarget, OK_HTTP1, Progress, RequestEvent, Script, goaway, ok_response, reset};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, Response, eventually};

const REFUSED_STREAM: u32 = 7;
const HTTP_1_1_REQUIRED: u32 = 13;
const NO_ERROR: u32 = 0;
const ENHANCE_YOUR_CALM: u32 = 11;
/// The bytes of a streamed body that outgate keeps for a resend.
const KEPT: usize = 64 << 10;

struct Scene {
    target: FrameTarget,
    outgate: Outgate,
}

/// Starts a scene. If the route signs, bodies are buffered. Otherwise they stream.
fn scene(signs: bool, script: Script) -> Scene {
    scene_with(&[], signs, script)
}

/// Starts a scene whose target sends these settings in its first SETTINGS frame.
fn scene_with(settings: &[(u16, u32)], signs: bool, script: Script) -> Scene {
    let pki = Pki::new();
    let target = FrameTarget::start(&pki, settings, script);
    let other = Receiver::plain(ok());
    let text = config(&other, &other, "")
        .set("routes.signed.body_max", "1 MiB")
        .set("egress.default.ranges", ["127.0.7.1/32"])
        .push("routes.*.ports", target.address.port());
    let text = if signs { text } else { text.remove("routes.signed.sign") };
    Scene { outgate: Outgate::run(folder(&pki), &text), target }
}

impl Scene {
    fn post(&self, body: &str) -> Response {
        self.outgate.post(&self.target.url(), "", body)
    }
}

/// Returns `response` for the first request of the first connection, and a response of status 200 for every other.
fn first(event: &RequestEvent, response: Vec<u8>) -> Vec<u8> {
    match (event.connection, event.request, event.progress) {
        (0, 0, Progress::End) => response,
        (_, _, Progress::End) if event.stream == 0 => OK_HTTP1.to_vec(),
        (_, _, Progress::End) => ok_response(event.stream),
        _ => Vec::new(),
    }
}

#[test]
fn refused_stream_is_resent_over_another_connection() {
    for signs in [false, true] {
        let scene = scene(signs, Arc::new(|event| first(event, reset(event.stream, REFUSED_STREAM))));
        for body in ["{}", "x".repeat(KEPT).as_str()] {
            let response = scene.post(body);
            assert_eq!(response.status, 200, "{response:?}");
            assert_eq!(scene.target.requests().last().unwrap().body, body.as_bytes());
        }
        let connections: Vec<_> = scene.target.requests().iter().map(|event| event.connection).collect();
        assert_eq!(connections[..2], [0, 1], "signs: {signs}");
    }
}

#[test]
fn a_request_above_the_last_stream_of_a_goaway_is_resent() {
    for code in [NO_ERROR, ENHANCE_YOUR_CALM] {
        let scene = scene(false, Arc::new(move |event| first(event, goaway(0, code))));
        let response = scene.post("{}");
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(scene.target.requests().iter().filter(|event| event.body == b"{}").count(), 2);
    }
}

#[test]
fn a_refused_request_with_a_large_head_is_resent() {
    // The second connection is for this request alone.
    let large = format!("X-Large: {}\r\n", "x".repeat(20_000));
    for response in [reset(1, REFUSED_STREAM), goaway(0, NO_ERROR)] {
        let refused = AtomicU32::new(0);
        let scene = scene(
            false,
            Arc::new(move |event| match event.progress {
                Progress::End if refused.fetch_add(1, Ordering::SeqCst) == 0 => response.clone(),
                Progress::End => ok_response(event.stream),
                _ => Vec::new(),
            }),
        );
        let response = scene.outgate.post(&scene.target.url(), &large, "{}");
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(scene.target.requests().len(), 2);
    }
}

#[test]
fn a_refused_upload_is_resent_from_its_first_byte_while_the_client_still_sends() {
    // The target refuses as soon as it has a part of the body.
    let scene = scene(
        false,
        Arc::new(|event| match (event.connection, event.progress) {
            (0, Progress::Body) => reset(event.stream, REFUSED_STREAM),
            (0, _) => Vec::new(),
            _ => first(event, Vec::new()),
        }),
    );
    let mut client = scene.outgate.connect();
    let head = format!("POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", scene.target.url());
    client.send(format!("{head}3\r\nabc\r\n"));
    eventually("a second connection", || scene.target.connections() >= 2);
    client.send("3\r\ndef\r\n0\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(scene.target.wait_for_requests(1)[0].body, b"abcdef");
}

#[test]
fn a_refused_request_that_cannot_be_resent_has_not_arrived_and_is_retryable() {
    let scene = scene(
        false,
        Arc::new(|event| match event.progress {
            Progress::End => reset(event.stream, REFUSED_STREAM),
            _ => Vec::new(),
        }),
    );
    // The first body is too large for a resend. The second is refused twice.
    for (body, sent) in [("x".repeat(KEPT + 1), 1), ("{}".into(), 2)] {
        let before = scene.target.requests().len();
        let response = scene.post(&body);
        assert_eq!((response.status, response.code()), (502, "connection_lost"), "{response:?}");
        let problem = response.json();
        assert_eq!(problem["retryable"], true, "{problem}");
        assert_eq!(problem["details"], "unprocessed", "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("it has not received the webhook"), "{problem}");
        assert_eq!(scene.target.requests().len() - before, sent);
    }
}

#[test]
fn http_1_1_required_is_resent_over_http1_and_remembered() {
    for signs in [false, true] {
        for ends_connection in [None, Some(0)] {
            let script = move |event: &RequestEvent| match (event.stream, event.progress, ends_connection) {
                (0, Progress::End, _) => OK_HTTP1.to_vec(),
                (_, Progress::End, None) => reset(event.stream, HTTP_1_1_REQUIRED),
                (_, Progress::End, Some(last)) => goaway(last, HTTP_1_1_REQUIRED),
                _ => Vec::new(),
            };
            let scene = scene(signs, Arc::new(script));
            for _ in 0..3 {
                let response = scene.post("{}");
                assert_eq!(response.status, 200, "{response:?}");
            }
            let requests = scene.target.requests();
            let over_http2 = requests.iter().filter(|event| event.stream != 0).count();
            assert_eq!((over_http2, requests.len()), (1, 4), "only the first request goes over HTTP/2: {requests:?}");
            assert_eq!(scene.target.connections(), 2);
            assert_eq!(scene.outgate.records(3)[2]["http"], "1.1");
        }
    }
}

#[test]
fn http_1_1_required_leaves_other_http2_connections_of_the_target_unused() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let (release, waits) = mpsc::channel::<()>();
    let (comes, has_come) = mpsc::channel::<()>();
    let (waits, comes) = (Mutex::new(waits), Mutex::new(comes));
    let script = move |event: &RequestEvent| match (event.progress, event.stream, event.body.as_slice()) {
        (Progress::End, 0, _) => OK_HTTP1.to_vec(),
        (Progress::End, _, b"wait") => {
            comes.lock().unwrap().send(()).unwrap();
            let _ = waits.lock().unwrap().recv_timeout(support::TEST_TIMEOUT);
            ok_response(event.stream)
        }
        (Progress::End, _, b"old") => reset(event.stream, HTTP_1_1_REQUIRED),
        (Progress::End, _, _) => ok_response(event.stream),
        _ => Vec::new(),
    };
    let scene = scene_with(&[(MAX_CONCURRENT_STREAMS, 1)], false, Arc::new(script));
    assert_eq!(scene.post("{}").status, 200); // SETTINGS are known from here on
    let mut client = scene.outgate.connect();
    client.send(support::post(&scene.target.url(), "", "wait"));
    has_come.recv_timeout(support::TEST_TIMEOUT).unwrap();
    assert_eq!(scene.post("old").status, 200, "over another connection, and then over HTTP/1.1");
    release.send(()).unwrap();
    assert_eq!(client.response().status, 200);
    for _ in 0..3 {
        assert_eq!(scene.post("new").status, 200);
    }
    let requests = scene.target.requests();
    let new: Vec<_> = requests.iter().filter(|event| event.body == b"new").map(|event| event.stream).collect();
    assert_eq!(new, [0; 3], "{requests:?}");
}

#[test]
fn the_response_timeout_begins_anew_when_a_request_is_resent() {
    // Each of the three attempts takes less than half of the response timeout of 5 s, and all together take longer.
    for signs in [false, true] {
        let sent = AtomicU32::new(0);
        let scene = scene(
            signs,
            Arc::new(move |event| {
                if event.progress != Progress::End {
                    return Vec::new();
                }
                std::thread::sleep(Duration::from_secs(2)); // less than half of the response timeout
                match (event.stream, sent.fetch_add(1, Ordering::SeqCst)) {
                    (0, _) => OK_HTTP1.to_vec(),
                    (stream, 0) => reset(stream, REFUSED_STREAM),
                    (stream, _) => reset(stream, HTTP_1_1_REQUIRED),
                }
            }),
        );
        let response = scene.post("{}");
        assert_eq!(response.status, 200, "signs: {signs}, {response:?}");
        assert_eq!(scene.target.requests().len(), 3);
    }
}

/// The last stream identifier covers the request, so the target may have processed it (RFC 9113 §6.8).
#[test]
fn a_request_that_a_goaway_with_http_1_1_required_covers_is_not_resent() {
    for last in [1, u32::MAX >> 1] {
        let scene = scene(
            false,
            Arc::new(move |event| match (event.stream, event.progress) {
                (0, _) => OK_HTTP1.to_vec(),
                (_, Progress::End) => goaway(last, HTTP_1_1_REQUIRED),
                _ => Vec::new(),
            }),
        );
        let response = scene.post("{}");
        assert_eq!((response.status, response.code()), (502, "connection_lost"), "{last}: {response:?}");
        assert!(
            response.json()["detail"].as_str().unwrap().contains("may have received the webhook"),
            "{}",
            response.json()
        );
        assert_eq!(scene.target.requests().len(), 1);
        assert_eq!(scene.post("{}").status, 200);
        assert_eq!(scene.target.requests()[1].stream, 0, "the target is remembered");
    }
}

#[test]
fn http_1_1_required_for_one_request_resends_no_other_of_its_connection() {
    let waiting = Arc::new(AtomicU32::new(0));
    let stream = Arc::clone(&waiting);
    let scene = scene(
        false,
        Arc::new(move |event| match (event.progress, event.stream, event.body.as_slice()) {
            (Progress::End, 0, _) => OK_HTTP1.to_vec(),
            (Progress::End, _, b"wait") => {
                stream.store(event.stream, Ordering::SeqCst);
                Vec::new()
            }
            (Progress::End, _, b"end") => goaway(stream.load(Ordering::SeqCst), HTTP_1_1_REQUIRED),
            (Progress::End, _, _) => ok_response(event.stream),
            _ => Vec::new(),
        }),
    );
    assert_eq!(scene.post("{}").status, 200); // the target's SETTINGS are known from here on
    let mut client = scene.outgate.connect();
    client.send(support::post(&scene.target.url(), "", "wait"));
    scene.target.wait_for_requests(2);
    assert_eq!(scene.post("end").status, 200);
    let response = client.response();
    assert_eq!((response.status, response.code()), (502, "connection_lost"), "{response:?}");
    let requests = scene.target.requests();
    let requests: Vec<_> = requests.iter().map(|event| (event.body.as_slice(), event.stream == 0)).collect();
    let (end, wait) = (b"end".as_slice(), b"wait".as_slice());
    assert_eq!(requests[1..], [(wait, false), (end, false), (end, true)], "each arrives once");
}

#[test]
fn a_request_that_the_target_may_have_processed_is_not_resent() {
    let scene = scene(
        false,
        Arc::new(|event| match event.progress {
            Progress::End => reset(event.stream, 2), // INTERNAL_ERROR
            _ => Vec::new(),
        }),
    );
    assert_eq!(scene.post("{}").code(), "connection_lost");
    assert_eq!(scene.target.requests().len(), 1);
}
