//! Responses with ambiguous framing, compressed responses and redirects.
//! Does the client get an unambiguous response or a refusal, and does no other client get its remaining bytes?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::Arc;

use support::Response;
use support::receiver::{Reaction, Receiver, ok, respond_with};
use support::scene::scene_with;

/// Bytes that the next delivery over the target's connection must never get.
const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

/// Delivers two requests in sequence to a target with this reaction. Returns the response, which must be the same for
/// both, and the number of connections.
fn deliver_twice(reaction: Reaction, method: &str) -> (Response, usize) {
    let scene = scene_with(reaction, "");
    let send = || {
        let mut client = scene.outgate.connect();
        client.send(format!("{method} {} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", scene.plain_url()));
        client.response_to(method)
    };
    let (first, second) = (send(), send());
    assert_eq!((first.status, first.code()), (second.status, second.code()), "{first:?}\n{second:?}");
    if first.code().is_empty() {
        assert_eq!(first.body, second.body);
    }
    (first, scene.plain.connections())
}

#[test]
fn response_with_ambiguous_framing_is_refused_and_its_connection_closed() {
    for reply in [
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let (response, connections) = deliver_twice(respond_with(reply), "POST");
        assert_eq!((response.status, response.code(), connections), (502, "response_malformed", 2), "{reply:?}");
        assert_eq!(response.json()["retryable"], false, "the webhook has arrived: {reply:?}");
    }
}

/// If RFC 9112 defines one interpretation, outgate frames the response again by it.
#[test]
fn response_with_unambiguous_framing_is_framed_anew() {
    for (reply, length) in [
        // §6.3: Transfer-Encoding overrides Content-Length, which outgate removes.
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "2"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "2"),
        // §5.1: white space before the colon is removed.
        ("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", "2"),
        ("HTTP/1.1 200 OK\r\nContent-Length \t: 2\r\n\r\nok", "2"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""),
        // §2.2: a bare line feed may end a line. outgate sends CRLF.
        ("HTTP/1.1 200 OK\nX: y\nContent-Length: 2\n\nok", "2"),
    ] {
        let (response, _) = deliver_twice(respond_with(reply), "POST");
        assert_eq!((response.status, response.text().as_str(), response.code()), (200, "ok", ""), "{reply:?}");
        assert_eq!(response.field("content-length"), length, "{reply:?}");
    }
}

#[test]
fn response_to_head_204_or_304_with_a_body_closes_its_connection() {
    for (status, method) in [("204 No Content", "POST"), ("304 Not Modified", "GET"), ("200 OK", "HEAD")] {
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{EVIL}", EVIL.len());
        let (response, connections) = deliver_twice(respond_with(&reply), method);
        assert_eq!((response.status.to_string().as_str(), response.code()), (&status[..3], ""), "{response:?}");
        assert_eq!(connections, 2, "{status}: the connection was used again with the body still in it");
    }
}

#[test]
fn compressed_response_is_forwarded_unchanged() {
    // 10 KiB of gzip could be 10 MiB of zeros. outgate does not decompress the body.
    let body: Vec<u8> = b"\x1f\x8b\x08\x00".iter().copied().chain((0..=255).cycle().take(10_000)).collect();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len());
    let reply = [head.as_bytes(), &body].concat();
    let (response, _) = deliver_twice(Arc::new(move |_| (reply.clone(), true)), "POST");
    assert_eq!(response.body, body);
    assert_eq!((response.field("content-encoding"), response.field("content-length")), ("gzip", "10004"));
}

/// A redirect could lead to an address that the guard forbids.
#[test]
fn redirect_of_a_target_is_returned_and_not_followed() {
    let elsewhere = Receiver::plain(ok());
    let to = format!("http://127.0.0.1:{}/", elsewhere.port());
    for status in
        ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
    {
        let reply = format!("HTTP/1.1 {status}\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        let (response, _) = deliver_twice(respond_with(&reply), "POST");
        assert_eq!((&*response.status.to_string(), response.field("location")), (&status[..3], &*to), "{response:?}");
    }
    assert_eq!(elsewhere.connections(), 0);
}
