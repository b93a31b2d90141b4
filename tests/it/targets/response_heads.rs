//! Response heads that are malformed, incomplete or too large.
//! Does the client get a readable response, and is the refusal of any other one not retryable?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::Arc;

use support::frames::{FrameTarget, Progress, Script, frame};
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok, respond_and_close, respond_with};
use support::scene::{config, folder, scene_with};
use support::{Outgate, Response};

const NO_FIELD: &str = "";

/// Delivers to a target with this reaction over HTTP/1.1. `more` has keys of the route.
fn over_http1(reaction: Reaction, more: &str) -> Response {
    let pki = Pki::new();
    let target = Receiver::plain(reaction);
    let text = config(&target, &target, "").route("plain", more);
    let outgate = Outgate::run(folder(&pki), &text);
    let response = outgate.post(&format!("http://plain.example:{}/in", target.port()), "", "{}");
    assert_eq!(target.requests().len(), 1, "delivered once");
    response
}

/// Delivers to an HTTP/2 target that responds with `frames`, a function of the stream identifier.
fn over_http2(frames: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static, more: &str) -> Response {
    let pki = Pki::new();
    let script: Script =
        Arc::new(move |event| if event.progress == Progress::End { frames(event.stream) } else { Vec::new() });
    let target = FrameTarget::start(&pki, &[], script);
    let other = Receiver::plain(ok());
    let text = config(&other, &other, "")
        .remove("routes.signed.sign")
        .route("signed", more)
        .push("routes.*.ports", target.address.port());
    let outgate = Outgate::run(folder(&pki), &text);
    let response = outgate.post(&target.url(), "", "{}");
    assert_eq!(target.requests().len(), 1, "delivered once");
    response
}

/// Returns `:status: 200` and literal fields without indexing (RFC 7541 §6.2.2).
fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x88];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Returns HEADERS with END_STREAM and, if the block does not fit into one frame, CONTINUATION.
fn response_frames(stream: u32, block: &[u8]) -> Vec<u8> {
    let pieces: Vec<&[u8]> = block.chunks(16_000).collect();
    let mut frames = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let end_headers = if index + 1 == pieces.len() { 4 } else { 0 };
        let (kind, end_stream) = if index == 0 { (1, 1) } else { (9, 0) };
        frames.extend(frame(kind, end_headers | end_stream, stream, piece));
    }
    frames
}

fn fields(count: usize, length: usize) -> String {
    (0..count).map(|index| format!("X-{index}: {}\r\n", "v".repeat(length))).collect()
}

#[test]
fn white_space_before_the_colon_of_a_response_field_is_removed() {
    for space in [" ", "\t", " \t "] {
        let reply = format!("HTTP/1.1 200 OK\r\nX-Xss-Protection{space}: 1\r\nContent-Length: 2\r\n\r\nok");
        let response = over_http1(respond_with(&reply), NO_FIELD);
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
        assert_eq!(response.field("x-xss-protection"), "1");
    }
}

#[test]
fn white_space_before_the_colon_of_a_trailer_field_is_removed() {
    for space in [" ", "\t", " \t "] {
        let reply = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\na : b\n\r\n0\r\nX-Sum{space}: 1 : 2\r\n\r\n"
        );
        let response = over_http1(respond_with(&reply), NO_FIELD);
        assert_eq!((response.status, response.text().as_str()), (200, "a : b\n"), "{response:?}");
    }
}

#[test]
fn a_response_however_malformed_is_never_retryable() {
    let large = format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(70, 1000));
    for reply in [
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\n\r\n",
        "220 smtp.example ESMTP\r\n",
        large.as_str(),
        &"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20),
    ] {
        let response = over_http1(respond_and_close(reply), NO_FIELD);
        assert_eq!(response.status, 502, "{reply:?}: {response:?}");
        assert_eq!(response.json()["retryable"], false, "{reply:?}: {}", response.json());
    }
    // Without a byte of a response, the request may not have arrived.
    let response = over_http1(respond_and_close(""), NO_FIELD);
    assert_eq!((response.code(), &response.json()["retryable"]), ("connection_lost", &true.into()));
}

#[test]
fn a_response_head_that_does_not_end_is_not_retryable() {
    let more = "response_head_max = { count = 100, bytes = \"64 KiB\" }";
    let pki = Pki::new();
    let target = Receiver::plain(respond_with("HTTP/1.1 200 OK\r\nContent-Le"));
    let text = config(&target, &target, "").route("plain", more).set("routes.*.timeouts.response", "1s");
    let outgate = Outgate::run(folder(&pki), &text);
    let response = outgate.post(&format!("http://plain.example:{}/in", target.port()), "", "{}");
    assert_eq!((response.code(), &response.json()["retryable"]), ("response_timeout", &false.into()));
}

#[test]
fn a_malformed_http2_response_is_not_retryable() {
    let length = header_block(&[("content-length", "5")]);
    let connection = header_block(&[("connection", "close")]);
    for block in [length, connection, b"\x88\x88".to_vec()] {
        let response = over_http2(move |stream| response_frames(stream, &block), NO_FIELD);
        assert_eq!((response.status, response.code()), (502, "response_malformed"), "{response:?}");
        assert_eq!(response.json()["retryable"], false);
    }
}

/// The HTTP/2 library ends the connection for such a field.
#[test]
fn a_malformed_field_of_an_http2_response_is_not_retryable() {
    for field in [("X-Upper", "1"), ("x-control", "a\0b"), ("x y", "1")] {
        let block = header_block(&[field]);
        let response = over_http2(move |stream| response_frames(stream, &block), NO_FIELD);
        assert_eq!((response.status, response.code()), (502, "response_malformed"), "{response:?}");
        assert_eq!(response.json()["retryable"], false, "{field:?}");
    }
    // A malformed frame before any response does not show that the request arrived.
    let response = over_http2(|_| frame(4, 0, 0, b"12345"), NO_FIELD);
    assert_eq!((response.code(), &response.json()["retryable"]), ("response_malformed", &true.into()), "{response:?}");
}

#[test]
fn a_refused_response_head_names_the_limit_that_it_exceeds() {
    let many: Vec<(String, String)> = (0..101).map(|index| (format!("x-{index}"), "v".into())).collect();
    let long: Vec<(String, String)> = (0..90).map(|index| (format!("x-{index}"), "v".repeat(100))).collect();
    let block = |fields: &[(String, String)]| {
        header_block(&fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>())
    };
    let (many_block, long_block) = (block(&many), block(&long));
    // Slightly more than this many times 8 KiB. The largest exceeds the HTTP/2 buffer and ends its connection.
    let large = |times: usize| header_block(&vec![("x", "v".repeat(100).as_str()); times * 82]);
    let bytes = "response_head_max = { bytes = \"8 KiB\" }";
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
    let early = format!("HTTP/1.1 103 Early Hints\r\n{}\r\n", fields(60, 1000));
    let many_after_early = early.clone() + &head(&fields(101, 50));
    let long_after_early = early + &head(&fields(70, 1000));
    for (response, word, limit) in [
        (over_http1(respond_with(&many_after_early), ""), "response_head_count", "100 fields"),
        (over_http1(respond_with(&long_after_early), ""), "response_head_bytes", "65536 bytes"),
        (over_http1(respond_with(&head(&fields(101, 1))), ""), "response_head_count", "100 fields"),
        (over_http1(respond_with(&head(&fields(90, 100))), bytes), "response_head_bytes", "8192 bytes"),
        (over_http1(respond_with(&head(&fields(70, 1000))), ""), "response_head_bytes", "65536 bytes"),
        (over_http2(move |stream| response_frames(stream, &many_block), ""), "response_head_count", "100 fields"),
        (over_http2(move |stream| response_frames(stream, &long_block), bytes), "response_head_bytes", "8192 bytes"),
        (over_http2(move |stream| response_frames(stream, &large(5)), bytes), "response_head_bytes", "8192 bytes"),
        (over_http2(move |stream| response_frames(stream, &large(20)), bytes), "response_head_bytes", "8192 bytes"),
        (over_http2(move |stream| response_frames(stream, &large(100)), bytes), "response_head_bytes", "8192 bytes"),
        (over_http2(move |stream| response_frames(stream, &large(40)), ""), "response_head_bytes", "65536 bytes"),
        (over_http2(move |stream| response_frames(stream, &large(200)), ""), "response_head_bytes", "65536 bytes"),
    ] {
        let problem = response.json();
        assert_eq!((response.status, response.code()), (502, "response_too_large"), "{problem}");
        assert_eq!((&problem["details"], &problem["retryable"]), (&word.into(), &false.into()), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(limit), "{problem}");
    }
}

#[test]
fn response_head_max_admits_what_it_says() {
    let head = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", fields(300, 300));
    let more = "response_head_max = { count = 301, bytes = \"128 KiB\" }";
    let response = over_http1(respond_with(&head), more);
    assert_eq!((response.status, response.field("x-299").len()), (200, 300), "{response:?}");
    let block = header_block(&vec![("x", "v"); 150]);
    let response = over_http2(move |stream| response_frames(stream, &block), more);
    assert_eq!(response.status, 200, "{response:?}");
}

#[test]
fn routes_with_other_response_head_limits_do_not_share_a_connection() {
    let head = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", fields(150, 1));
    let scene = scene_with(respond_with(&head), "");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "{}").code(), "response_too_large");
    let target = Receiver::plain(respond_with(&head));
    let route = |name: &str, path: &str, more: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\nhosts = [\"plain.example\"]\npaths = [\"{path}\"]\nports = [{}]\n\
             plaintext = \"allow\"\n{more}\n",
            target.port()
        )
    };
    let text = config(&target, &target, "").and(&route("wide", "/wide", "response_head_max = { count = 200 }"));
    let outgate = Outgate::run(folder(&Pki::new()), &text.set("egress.default.ranges", ["127.0.7.1/32"]));
    let url = |path: &str| format!("http://plain.example:{}{path}", target.port());
    assert_eq!(outgate.post(&url("/wide"), "", "{}").status, 200);
    assert_eq!(outgate.post(&url("/in"), "", "{}").code(), "response_too_large");
    assert_eq!(outgate.post(&url("/wide"), "", "{}").status, 200);
}
