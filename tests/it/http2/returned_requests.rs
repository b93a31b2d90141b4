//! Targets that return a request unprocessed, over HTTP/2.
//! Is it sent again where that is safe, and does the refusal say so where it is not possible?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use support::frames::{Asked, FrameTarget, Moment, OK_HTTP1, Script, goaway, ok_response, reset};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Answer, Outgate, eventually};

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

/// `signs`: bodies are held whole; else they stream.
fn scene(signs: bool, script: Script) -> Scene {
    scene_with(&[], signs, script)
}

/// `settings`: of the target's first SETTINGS frame.
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
    fn post(&self, body: &str) -> Answer {
        self.outgate.post(&self.target.url(), "", body)
    }
}

/// The answer to the first request of the first connection; every other one is answered with 200.
fn first(asked: &Asked, answer: Vec<u8>) -> Vec<u8> {
    match (asked.connection, asked.request, asked.moment) {
        (0, 0, Moment::End) => answer,
        (_, _, Moment::End) if asked.stream == 0 => OK_HTTP1.to_vec(),
        (_, _, Moment::End) => ok_response(asked.stream),
        _ => Vec::new(),
    }
}

#[test]
fn refused_stream_is_resent_over_another_connection() {
    for signs in [false, true] {
        let scene = scene(signs, Arc::new(|asked| first(asked, reset(asked.stream, REFUSED_STREAM))));
        for body in ["{}", "x".repeat(KEPT).as_str()] {
            let answer = scene.post(body);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(scene.target.asked().last().unwrap().body, body.as_bytes());
        }
        let connections: Vec<_> = scene.target.asked().iter().map(|asked| asked.connection).collect();
        assert_eq!(connections[..2], [0, 1], "signs: {signs}");
    }
}

#[test]
fn a_request_above_the_last_stream_of_a_goaway_is_resent() {
    for code in [NO_ERROR, ENHANCE_YOUR_CALM] {
        let scene = scene(false, Arc::new(move |asked| first(asked, goaway(0, code))));
        let answer = scene.post("{}");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(scene.target.asked().iter().filter(|asked| asked.body == b"{}").count(), 2);
    }
}

#[test]
fn a_refused_request_with_a_large_head_is_resent() {
    // The second connection is for this request alone.
    let large = format!("X-Large: {}\r\n", "x".repeat(20_000));
    for answer in [reset(1, REFUSED_STREAM), goaway(0, NO_ERROR)] {
        let refused = AtomicU32::new(0);
        let scene = scene(
            false,
            Arc::new(move |asked| match asked.moment {
                Moment::End if refused.fetch_add(1, Ordering::SeqCst) == 0 => answer.clone(),
                Moment::End => ok_response(asked.stream),
                _ => Vec::new(),
            }),
        );
        let answer = scene.outgate.post(&scene.target.url(), &large, "{}");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(scene.target.asked().len(), 2);
    }
}

#[test]
fn a_refused_upload_is_resent_from_its_first_byte_while_the_client_still_sends() {
    // The target refuses as soon as it has some of the body.
    let scene = scene(
        false,
        Arc::new(|asked| match (asked.connection, asked.moment) {
            (0, Moment::Body) => reset(asked.stream, REFUSED_STREAM),
            (0, _) => Vec::new(),
            _ => first(asked, Vec::new()),
        }),
    );
    let mut client = scene.outgate.connect();
    let head = format!("POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", scene.target.url());
    client.send(format!("{head}3\r\nabc\r\n"));
    eventually("a second connection", || scene.target.connections() >= 2);
    client.send("3\r\ndef\r\n0\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(scene.target.until(1)[0].body, b"abcdef");
}

#[test]
fn a_refused_request_that_cannot_be_resent_has_not_arrived_and_is_retryable() {
    let scene = scene(
        false,
        Arc::new(|asked| match asked.moment {
            Moment::End => reset(asked.stream, REFUSED_STREAM),
            _ => Vec::new(),
        }),
    );
    // Too large to be kept, and refused twice.
    for (body, sent) in [("x".repeat(KEPT + 1), 1), ("{}".into(), 2)] {
        let before = scene.target.asked().len();
        let answer = scene.post(&body);
        assert_eq!((answer.status, answer.code()), (502, "connection_lost"), "{answer:?}");
        let problem = answer.json();
        assert_eq!(problem["retryable"], true, "{problem}");
        assert_eq!(problem["details"], "unprocessed", "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("the webhook has not arrived"), "{problem}");
        assert_eq!(scene.target.asked().len() - before, sent);
    }
}

#[test]
fn http_1_1_required_is_resent_over_http1_and_remembered() {
    for signs in [false, true] {
        for ends_connection in [None, Some(0)] {
            let script = move |asked: &Asked| match (asked.stream, asked.moment, ends_connection) {
                (0, Moment::End, _) => OK_HTTP1.to_vec(),
                (_, Moment::End, None) => reset(asked.stream, HTTP_1_1_REQUIRED),
                (_, Moment::End, Some(last)) => goaway(last, HTTP_1_1_REQUIRED),
                _ => Vec::new(),
            };
            let scene = scene(signs, Arc::new(script));
            for _ in 0..3 {
                let answer = scene.post("{}");
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            let asked = scene.target.asked();
            let over_http2 = asked.iter().filter(|asked| asked.stream != 0).count();
            assert_eq!((over_http2, asked.len()), (1, 4), "only the first request goes over HTTP/2: {asked:?}");
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
    let script = move |asked: &Asked| match (asked.moment, asked.stream, asked.body.as_slice()) {
        (Moment::End, 0, _) => OK_HTTP1.to_vec(),
        (Moment::End, _, b"wait") => {
            comes.lock().unwrap().send(()).unwrap();
            let _ = waits.lock().unwrap().recv_timeout(support::PATIENCE);
            ok_response(asked.stream)
        }
        (Moment::End, _, b"old") => reset(asked.stream, HTTP_1_1_REQUIRED),
        (Moment::End, _, _) => ok_response(asked.stream),
        _ => Vec::new(),
    };
    let scene = scene_with(&[(MAX_CONCURRENT_STREAMS, 1)], false, Arc::new(script));
    assert_eq!(scene.post("{}").status, 200); // SETTINGS are known from here on
    let mut client = scene.outgate.connect();
    client.send(support::post(&scene.target.url(), "", "wait"));
    has_come.recv_timeout(support::PATIENCE).unwrap();
    assert_eq!(scene.post("old").status, 200, "over another connection, and then over HTTP/1.1");
    release.send(()).unwrap();
    assert_eq!(client.answer().status, 200);
    for _ in 0..3 {
        assert_eq!(scene.post("new").status, 200);
    }
    let asked = scene.target.asked();
    let new: Vec<_> = asked.iter().filter(|asked| asked.body == b"new").map(|asked| asked.stream).collect();
    assert_eq!(new, [0; 3], "{asked:?}");
}

#[test]
fn the_response_timeout_begins_anew_when_a_request_is_resent() {
    // Sent three times, it takes longer than the response timeout of 5 s, and each time less than half of it.
    for signs in [false, true] {
        let sent = AtomicU32::new(0);
        let scene = scene(
            signs,
            Arc::new(move |asked| {
                if asked.moment != Moment::End {
                    return Vec::new();
                }
                std::thread::sleep(Duration::from_secs(2)); // less than half of the response timeout
                match (asked.stream, sent.fetch_add(1, Ordering::SeqCst)) {
                    (0, _) => OK_HTTP1.to_vec(),
                    (stream, 0) => reset(stream, REFUSED_STREAM),
                    (stream, _) => reset(stream, HTTP_1_1_REQUIRED),
                }
            }),
        );
        let answer = scene.post("{}");
        assert_eq!(answer.status, 200, "signs: {signs}, {answer:?}");
        assert_eq!(scene.target.asked().len(), 3);
    }
}

/// The last stream identifier covers the request, which may have been processed: RFC 9113 §6.8 wins over the wish for
/// another version.
#[test]
fn a_request_that_a_goaway_with_http_1_1_required_covers_is_not_resent() {
    for last in [1, u32::MAX >> 1] {
        let scene = scene(
            false,
            Arc::new(move |asked| match (asked.stream, asked.moment) {
                (0, _) => OK_HTTP1.to_vec(),
                (_, Moment::End) => goaway(last, HTTP_1_1_REQUIRED),
                _ => Vec::new(),
            }),
        );
        let answer = scene.post("{}");
        assert_eq!((answer.status, answer.code()), (502, "connection_lost"), "{last}: {answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("may have arrived"), "{}", answer.json());
        assert_eq!(scene.target.asked().len(), 1);
        assert_eq!(scene.post("{}").status, 200);
        assert_eq!(scene.target.asked()[1].stream, 0, "the target is remembered");
    }
}

#[test]
fn http_1_1_required_for_one_request_resends_no_other_of_its_connection() {
    let waiting = Arc::new(AtomicU32::new(0));
    let stream = Arc::clone(&waiting);
    let scene = scene(
        false,
        Arc::new(move |asked| match (asked.moment, asked.stream, asked.body.as_slice()) {
            (Moment::End, 0, _) => OK_HTTP1.to_vec(),
            (Moment::End, _, b"wait") => {
                stream.store(asked.stream, Ordering::SeqCst);
                Vec::new()
            }
            (Moment::End, _, b"end") => goaway(stream.load(Ordering::SeqCst), HTTP_1_1_REQUIRED),
            (Moment::End, _, _) => ok_response(asked.stream),
            _ => Vec::new(),
        }),
    );
    assert_eq!(scene.post("{}").status, 200); // the target's SETTINGS are known from here on
    let mut client = scene.outgate.connect();
    client.send(support::post(&scene.target.url(), "", "wait"));
    scene.target.until(2);
    assert_eq!(scene.post("end").status, 200);
    let answer = client.answer();
    assert_eq!((answer.status, answer.code()), (502, "connection_lost"), "{answer:?}");
    let asked = scene.target.asked();
    let asked: Vec<_> = asked.iter().map(|asked| (asked.body.as_slice(), asked.stream == 0)).collect();
    let (end, wait) = (b"end".as_slice(), b"wait".as_slice());
    assert_eq!(asked[1..], [(wait, false), (end, false), (end, true)], "each arrives once");
}

#[test]
fn a_request_that_the_target_may_have_processed_is_not_resent() {
    let scene = scene(
        false,
        Arc::new(|asked| match asked.moment {
            Moment::End => reset(asked.stream, 2), // INTERNAL_ERROR
            _ => Vec::new(),
        }),
    );
    assert_eq!(scene.post("{}").code(), "connection_lost");
    assert_eq!(scene.target.asked().len(), 1);
}
