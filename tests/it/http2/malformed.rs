//! Malformed messages of clients and targets over HTTP/2.
//! Does only the stream of a malformed message end (RFC 9113 §8.1.1)?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::{Arc, Mutex, mpsc};

use support::frames::{FrameTarget, Progress, RequestEvent, Script, ok_response};
use support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, connect_http2, error_code, field, frame,
    head, read_until_frame,
};
use support::scene::{one_source_scene, scene};
use support::{Outgate, TEST_TIMEOUT, post};

const PROTOCOL_ERROR: u32 = 1;

fn start_target(script: Script) -> (FrameTarget, Outgate) {
    one_source_scene(script, "")
}

/// A literal field with incremental indexing, which adds an entry to the dynamic table.
fn indexed(name: &str, value: &str) -> Vec<u8> {
    [&[0x40], &field(name, value)[1..]].concat()
}

#[test]
fn malformed_http2_response_ends_its_stream_and_the_others_go_on() {
    for (name, value, rule) in [
        ("X-Upper", "1", "field_name"),
        ("x y", "1", "field_name"),
        ("", "1", "field_name"),
        ("x-control", "a\0b", "field_value"),
        ("x-line", "a\r\nb: c", "field_value"),
        ("x-space", " a", "field_white_space"),
        ("x-space", "a\t", "field_white_space"),
        ("connection", "close", "connection_field"),
        ("transfer-encoding", "chunked", "connection_field"),
        (":path", "/", "pseudo_header"),
        (":unknown", "1", "pseudo_header"),
        (":status", "200", "pseudo_header"),
        (":status", "20", "status"),
    ] {
        let (release, waits) = mpsc::channel::<()>();
        let waits = Mutex::new(waits);
        let waiting = Mutex::new(0);
        let script = move |event: &RequestEvent| match (event.progress, event.body.as_slice()) {
            // The target responds to this request together with the next one.
            (Progress::End, b"wait") => {
                *waiting.lock().unwrap() = event.stream;
                Vec::new()
            }
            (Progress::End, b"malformed") => {
                let block = [vec![0x88], indexed("x-mine", "mine"), indexed(name, value)].concat();
                // The header block continues in a second frame. DATA follows.
                let (first, rest) = block.split_at(5);
                let frames = [
                    frame(HEADERS, 0, event.stream, first),
                    frame(CONTINUATION, END_HEADERS, event.stream, rest),
                    frame(DATA, END_STREAM, event.stream, b"body"),
                ];
                frames.concat()
            }
            // The head of this response refers to a field of the malformed head.
            (Progress::End, _) => {
                let _ = waits.lock().unwrap().recv_timeout(TEST_TIMEOUT);
                let block = [0x88, 0x80 | 63];
                let waiting = *waiting.lock().unwrap();
                let response = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
                [response(waiting), response(event.stream)].concat()
            }
            _ => Vec::new(),
        };
        let (target, outgate) = start_target(Arc::new(move |event: &RequestEvent| match event.request {
            0 if event.progress == Progress::End => ok_response(event.stream), // SETTINGS are known from here on
            0 => Vec::new(),
            _ => script(event),
        }));
        let label = format!("{name}: {value:?}");
        assert_eq!(outgate.post(&target.url(), "", "{}").status, 200, "{label}");
        let mut waiting = outgate.connect();
        waiting.send(post(&target.url(), "", "wait"));
        target.wait_for_requests(2);
        let response = outgate.post(&target.url(), "", "malformed");
        let problem = response.json();
        assert_eq!((response.status, response.code()), (502, "response_malformed"), "{label}: {problem}");
        assert_eq!((&problem["details"], &problem["retryable"]), (&rule.into(), &false.into()), "{label}: {problem}");
        assert_eq!(target.wait_for_resets(1), [PROTOCOL_ERROR], "{label}");
        release.send(()).unwrap();
        let next = outgate.post(&target.url(), "", "next");
        assert_eq!((next.status, next.field("x-mine")), (200, "mine"), "{label}: {next:?}");
        let waited = waiting.response();
        assert_eq!((waited.status, waited.field("x-mine")), (200, "mine"), "{label}: {waited:?}");
        assert_eq!(target.connections(), 1, "{label}");
    }
}

#[test]
fn malformed_trailers_of_an_http2_response_break_it_off_and_the_others_go_on() {
    for (name, value) in [(":status", "200"), ("X-Upper", "1"), ("x-space", "a "), ("x-control", "\0")] {
        let waiting = Mutex::new(0);
        let (target, outgate) =
            start_target(Arc::new(move |event: &RequestEvent| match (event.progress, event.body.as_slice()) {
                (Progress::End, b"wait") => {
                    *waiting.lock().unwrap() = event.stream;
                    Vec::new()
                }
                (Progress::End, b"malformed") => [
                    frame(HEADERS, END_HEADERS, event.stream, &[0x88]),
                    frame(DATA, 0, event.stream, b"body"),
                    frame(HEADERS, END_HEADERS | END_STREAM, event.stream, &field(name, value)),
                    ok_response(*waiting.lock().unwrap()),
                ]
                .concat(),
                (Progress::End, _) => ok_response(event.stream),
                _ => Vec::new(),
            }));
        assert_eq!(outgate.post(&target.url(), "", "{}").status, 200, "{name}");
        let mut waiting = outgate.connect();
        waiting.send(post(&target.url(), "", "wait"));
        target.wait_for_requests(2);
        let mut client = outgate.connect();
        client.send(post(&target.url(), "", "malformed"));
        let got = String::from_utf8(client.rest()).unwrap();
        assert!(!got.ends_with("\r\n0\r\n\r\n"), "{name}: {got}");
        assert_eq!(waiting.response().status, 200, "{name}");
        let codes = outgate.records(3).into_iter().map(|record| record["code"].as_str().unwrap().to_owned());
        let mut codes: Vec<_> = codes.collect();
        codes.sort();
        assert_eq!(codes, ["delivered", "delivered", "response_malformed"], "{name}");
    }
}

#[test]
fn malformed_trailers_of_a_client_reset_their_stream_and_the_connection_goes_on() {
    let scene = scene();
    for (name, value) in [(":path", "/"), (":status", "200"), ("x-space", " a"), ("x-space", "a\t"), ("X-Upper", "1")] {
        let mut client = connect_http2(&scene.outgate);
        client.send(frame(HEADERS, END_HEADERS, 1, &head(&scene.plain_url())));
        client.send(frame(DATA, 0, 1, b"{}"));
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &field(name, value)));
        let received = read_until_frame(&mut client, &[RST_STREAM, HEADERS, GOAWAY]);
        assert_eq!(error_code(&received, RST_STREAM), Some(PROTOCOL_ERROR), "{name}: {received:?}");
        client.send(frame(HEADERS, END_HEADERS, 3, &head(&scene.plain_url())));
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &field("x-trailer", "1")));
        let received = read_until_frame(&mut client, &[RST_STREAM, HEADERS, GOAWAY]);
        assert!(received.iter().any(|frame| frame.kind == HEADERS), "{name}: {received:?}");
    }
}

#[test]
fn response_head_above_any_limit_ends_its_stream_and_the_others_go_on() {
    let (target, outgate) = start_target(Arc::new(|event: &RequestEvent| match (event.progress, event.request) {
        (Progress::End, 1) => {
            let large = [vec![0x88], field("x", &"v".repeat(16_000)).repeat(17)].concat();
            let pieces: Vec<&[u8]> = large.chunks(16_000).collect();
            let last = pieces.len() - 1;
            let kind = |index: usize| if index == 0 { HEADERS } else { CONTINUATION };
            let flags = |index: usize| if index == last { END_HEADERS } else { 0 };
            pieces.iter().enumerate().flat_map(|(at, piece)| frame(kind(at), flags(at), event.stream, piece)).collect()
        }
        (Progress::End, _) => ok_response(event.stream),
        _ => Vec::new(),
    }));
    assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    let problem = outgate.post(&target.url(), "", "{}").json();
    assert_eq!((&problem["code"], &problem["details"]), (&"response_too_large".into(), &"response_head_bytes".into()));
    assert_eq!(problem["retryable"], false, "{problem}");
    assert_eq!(target.wait_for_resets(1), [PROTOCOL_ERROR]);
    assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    assert_eq!(target.connections(), 1);
}

/// The HTTP/2 library closes a connection after 1,024 malformed responses, with all of its streams.
#[test]
fn http2_connection_with_many_malformed_responses_is_replaced_before_it_ends() {
    const MALFORMED_MAX: usize = 600;
    let (target, outgate) =
        start_target(Arc::new(|event: &RequestEvent| match (event.progress, event.body.as_slice()) {
            (Progress::End, b"malformed") => {
                frame(HEADERS, END_HEADERS | END_STREAM, event.stream, &[vec![0x88], field("x", " y")].concat())
            }
            (Progress::End, _) => ok_response(event.stream),
            _ => Vec::new(),
        }));
    let mut client = outgate.connect();
    let mut malformed = 0;
    while target.connections() < 2 {
        // A response between them keeps the circuit closed.
        for (body, code) in [("malformed", "response_malformed"), ("good", "")] {
            client.send(post(&target.url(), "", body));
            assert_eq!(client.response().code(), code, "{malformed}");
        }
        malformed += 1;
        assert!(malformed < MALFORMED_MAX, "the connection is not replaced");
    }
    assert!(malformed > MALFORMED_MAX / 2, "{malformed}");
}

/// The frame shows that the target has the request.
#[test]
fn malformed_http2_response_without_headers_is_not_retryable() {
    const PUSH_PROMISE: u8 = 5;
    for (kind, payload) in [(PUSH_PROMISE, b"\0\0\0\x02\x88".as_slice()), (DATA, b"x")] {
        let (target, outgate) = start_target(Arc::new(move |event: &RequestEvent| match event.progress {
            Progress::End => frame(kind, END_HEADERS, event.stream, payload),
            _ => Vec::new(),
        }));
        let response = outgate.post(&target.url(), "", "{}");
        let problem = response.json();
        assert_eq!((response.status, response.code()), (502, "response_malformed"), "{kind}: {problem}");
        assert_eq!(problem["retryable"], false, "{kind}: {problem}");
    }
}
