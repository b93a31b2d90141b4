//! Hostile and unusual HTTP/1 over a real socket.
//! Does each raw request get the right response, and are the bytes after a refused request ignored?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::receiver::{respond_and_close, respond_with};
use support::scene::{scene, scene_with};
use support::{Client, TEST_TIMEOUT, post};

/// A second request that must be neither answered nor forwarded after a refusal that closes the connection.
const SMUGGLED: &str = "GET http://plain.example/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn malformed_requests_are_refused_and_close_the_connection() {
    let scene = scene();
    let url = scene.plain_url();
    let with = |fields: &str| format!("POST {url} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let cases: Vec<(String, u16)> = vec![
        (with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n", 400),
        (with("Content-Length: 5\r\nContent-Length: 6\r\n") + "hello", 400),
        (with("Content-Length: +5\r\n") + "hello", 400),
        (with("Content-Length: -1\r\n"), 400),
        (with("Content-Length: 0x5\r\n") + "hello", 400),
        (with("Content-Length: 5, 6\r\n") + "hello", 400),
        (with("Content-Length: 5,5\r\n") + "hello", 400),
        (with("Content-Length: 18446744073709551621\r\n") + "hello", 400),
        (with("Transfer-Encoding : chunked\r\n") + "0\r\n\r\n", 400),
        (with("Transfer-Encoding: \x0bchunked\r\n") + "0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked, identity\r\n") + "0\r\n\r\n", 400),
        (with("Transfer-Encoding: identity\r\n"), 400),
        (with("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n", 400),
        (with("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n", 501),
        (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
        (format!("POST {url} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (with("Transfer-Encoding: chunked\r\n") + "0x5\r\nhello\r\n0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked\r\n") + "5 \r\nhello\r\n0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked\r\n") + "5;a=\nhello\r\n0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked\r\n") + "5\nhello\r\n0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked\r\n") + "5\r\nhelloXX0\r\n\r\n", 400),
        (with("Transfer-Encoding: chunked\r\n") + "10000000000000005\r\nhello\r\n0\r\n\r\n", 400),
        (with("X: a\r\n b\r\n"), 400),
        (with("X : a\r\n"), 400),
        (with("X: a\0b\r\n"), 400),
        (with("X: a\rb\r\n"), 400),
        (with("X: a\nY: b\r\n"), 400),
        (format!("POST {url} HTTP/1.1\r\n Host: h\r\n\r\n"), 400),
        (format!("POST {url} HTTP/1.1\r\n\r\n"), 400),
        (format!("POST {url} HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"), 400),
        (format!("POST {url} HTTP/1.1\r\nHost: a@b\r\n\r\n"), 400),
        (format!("POST {url} HTTP/1.1\r\nHost: h/path\r\n\r\n"), 400),
        (format!("POST {url} HTTP/1.1\nHost: h\n\n"), 400),
        (format!("POST {url}#f HTTP/1.1\r\nHost: h\r\n\r\n"), 400),
        (format!("POST {url}\\x HTTP/1.1\r\nHost: h\r\n\r\n"), 400),
        (format!("POST {url}\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n"), 400),
        (format!("POST {url}\tx HTTP/1.1\r\nHost: h\r\n\r\n"), 400),
        (format!("POST {url} HTTP/1.2\r\nHost: h\r\n\r\n"), 505),
        ("PRI * HTTP/2.0\r\n\r\nno preface".into(), 505),
        ("GET /\r\n\r\n".into(), 400),
        (with("Expect: 200-ok\r\n"), 417),
        (format!("{} {url} HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(40)), 501),
        (format!("GET http://plain.example/{} HTTP/1.1\r\n", "a".repeat(20_000)), 414),
        (with(&"X: y\r\n".repeat(200)), 431),
        (with(&format!("X: {}\r\n", "y".repeat(70_000))), 431),
    ];
    for (request, status) in &cases {
        let mut client = scene.outgate.connect();
        client.try_send(request);
        client.try_send(SMUGGLED);
        let response = client.response();
        assert_eq!(response.status, *status, "{request:?}");
        assert_eq!(response.code(), "request_malformed", "{request:?}");
        assert_eq!(response.json()["blame"], "client");
        assert_eq!(response.field("connection"), "close", "{request:?}");
        assert!(client.is_closed(), "the proxy sent more bytes after {request:?}");
    }
    assert!(scene.plain.requests().is_empty(), "{:?}", scene.plain.requests());
    assert_eq!(scene.outgate.records(cases.len()).len(), cases.len());
}

/// RFC 9110 §9.3.2: a response to HEAD has no content, not even one that refuses a request which cannot be read.
#[test]
fn refusal_of_a_malformed_head_request_has_no_content() {
    let scene = scene();
    for fields in ["Host: h\r\nHost: h\r\n", "Host: h\r\nExpect: miracles\r\n"] {
        let mut client = scene.outgate.connect();
        client.send(format!("HEAD {} HTTP/1.1\r\n{fields}\r\n", scene.plain_url()));
        let text = String::from_utf8(client.rest()).unwrap();
        assert!(text.starts_with("HTTP/1.1 4") && text.ends_with("\r\n\r\n"), "{text}");
    }
}

/// Servers answer 411 to a POST without a length. A client that writes an empty length to a GET keeps it.
#[test]
fn length_of_an_empty_body_is_kept_and_added_only_where_servers_want_one() {
    let scene = scene();
    for (method, length, sent) in [("GET", "", false), ("GET", "Content-Length: 0\r\n", true), ("POST", "", true)] {
        let mut client = scene.outgate.connect();
        client.send(format!("{method} {} HTTP/1.1\r\nHost: h\r\n{length}\r\n", scene.plain_url()));
        assert_eq!(client.response().status, 200);
        let received = scene.plain.requests().pop().unwrap();
        assert_eq!(received.all("content-length"), if sent { vec!["0"] } else { vec![] }, "{method} {length}");
    }
}

#[test]
fn malformed_targets_are_refused_and_the_connection_stays_open() {
    let scene = scene();
    let mut client = scene.outgate.connect();
    for target in [
        "/",
        "*",
        "http:/x",
        "http://",
        "ftp://plain.example/",
        "http://u:p@plain.example/",
        "plain.example:80",
        "http://plain.example:0/",
        "http://plain.example:99999/",
        "http://127.1/",
        "http://0x7f.0.0.1/",
        "http://[::1%25lo]/",
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.status, response.code()), (400, "request_malformed"), "{target}");
    }
    client.send(format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", scene.plain_url()));
    assert_eq!(client.response().status, 200);
}

#[test]
fn connection_field_cannot_strip_end_to_end_fields() {
    let scene = scene();
    for named in ["host", "content-length", "authorization", "signature", "webhook-signature", "x, Content-Type"] {
        let response = scene.outgate.post(&scene.plain_url(), &format!("Connection: {named}\r\n"), "x");
        assert_eq!((response.status, response.code()), (400, "request_malformed"), "{named}");
    }
    let response =
        scene.outgate.post(&scene.plain_url(), "Connection: proxy-authorization, X-Mine\r\nX-Mine: 1\r\n", "x");
    assert_eq!(response.status, 200);
    assert_eq!(scene.plain.requests()[0].field("x-mine"), "");
}

#[test]
fn refused_connect_closes_the_connection_unread() {
    let scene = scene();
    for (head, code) in [
        ("CONNECT hook.example:443 HTTP/1.1\r\nHost: hook.example\r\n\r\n", "tunnel_forbidden"),
        ("CONNECT hook.example:443 HTTP/1.0\r\n\r\n", "tunnel_forbidden"),
        ("CONNECT hook.example:443 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", "request_malformed"),
    ] {
        let mut client = scene.outgate.connect();
        client.send(format!("{head}{SMUGGLED}"));
        let response = client.response();
        assert_eq!(response.code(), code, "{head}");
        assert_eq!(response.field("connection"), "close");
        assert!(client.is_closed(), "{head}");
    }
    assert!(scene.plain.requests().is_empty());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let scene = scene_with(
        std::sync::Arc::new(|received| {
            let path = received.line.split(' ').nth(1).unwrap().to_owned();
            (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).into_bytes(), true)
        }),
        "",
    );
    let mut client = scene.outgate.connect();
    let port = scene.plain.port();
    let three: String =
        ["a", "b", "c"].iter().map(|path| post(&format!("http://plain.example:{port}/{path}"), "", "x")).collect();
    client.send(three);
    let bodies: Vec<_> = (0..3).map(|_| client.response().text()).collect();
    assert_eq!(bodies, ["/a", "/b", "/c"]);
}

#[test]
fn chunked_bodies_arrive_whole_signed_or_not() {
    let scene = scene();
    for url in [scene.plain_url(), scene.good_url()] {
        let mut client = scene.outgate.connect();
        client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4;ext\r\nWiki\r\n"));
        client.send("5\r\npedia\r\n0\r\nTrailer: x\r\n\r\n");
        assert_eq!(client.response().status, 200, "{url}");
    }
    let (plain, signed) = (&scene.plain.requests()[0], &scene.good.requests()[0]);
    assert_eq!((plain.body.as_slice(), plain.field("transfer-encoding")), (&b"Wikipedia"[..], "chunked"));
    assert_eq!((signed.body.as_slice(), signed.field("content-length")), (&b"Wikipedia"[..], "9"));
}

#[test]
fn continue_is_sent_only_if_the_body_is_read() {
    let scene = scene();
    let mut client = scene.outgate.connect();
    let head = |length: usize| {
        format!(
            "POST {} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n",
            scene.good_url()
        )
    };
    client.send(head(5));
    assert_eq!(client.next_response("POST").status, 100);
    client.send("hello");
    assert_eq!(client.response().status, 200);
    assert_eq!(scene.good.requests()[0].body, b"hello");
    // outgate refuses a body that is too large before the client sends it.
    client.send(head(10_000_000));
    let response = client.next_response("POST");
    assert_eq!((response.status, response.code()), (413, "body_too_large"));
    assert!(client.is_closed());
}

#[test]
fn body_max_applies_with_and_without_a_content_length() {
    let scene = scene();
    let large = "x".repeat(70_000);
    assert_eq!(scene.outgate.post(&scene.good_url(), "", &large).code(), "body_too_large");
    let mut client = scene.outgate.connect();
    client.send(format!("POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", scene.good_url()));
    client.try_send(format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()));
    assert_eq!(client.response().code(), "body_too_large");
    let huge = "x".repeat(1_100_000);
    let mut client = scene.outgate.connect();
    client.send(format!("POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", scene.plain_url()));
    client.try_send(format!("{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len()));
    assert_eq!(client.response().code(), "body_too_large");
    let fits = "x".repeat(1_000_000);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", &fits).status, 200);
    assert_eq!(scene.plain.wait_for_requests(1).last().unwrap().body.len(), fits.len());
}

#[test]
fn responses_without_a_body_are_framed_without_one() {
    for (reply, method, status, body) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", "POST", 204, ""),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", "GET", 304, ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 200, ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "POST", 200, ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "POST", 200, "abc"),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "POST",
            200,
            "ok",
        ),
    ] {
        let scene = scene_with(respond_with(reply), "");
        let mut client = scene.outgate.connect();
        for _ in 0..2 {
            client.send(format!("{method} {} HTTP/1.1\r\nHost: h\r\n\r\n", scene.plain_url()));
            let response = client.response_to(method);
            assert_eq!((response.status, response.text().as_str()), (status, body), "{reply}");
        }
        assert_eq!(scene.plain.connections(), 1, "the connection was reused after {reply}");
    }
    let scene = scene_with(respond_and_close("HTTP/1.1 200 OK\r\n\r\nuntil the end"), "");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "").text(), "until the end");
    // An HTTP/1.0 client knows no chunks: the close ends the body.
    let mut client = scene.outgate.connect();
    client.send(format!("GET {} HTTP/1.0\r\n\r\n", scene.plain_url()));
    let response = client.response();
    assert_eq!((response.text().as_str(), response.field("transfer-encoding")), ("until the end", ""));
}

#[test]
fn hostile_responses_are_refused_or_aborted() {
    for (reply, code) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "response_malformed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok", "response_malformed"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "response_malformed"),
        ("ICY 200 OK\r\n\r\n", "response_malformed"),
        ("nonsense\r\n\r\n", "response_malformed"),
        ("", "connection_lost"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "connection_lost"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "response_malformed"),
    ] {
        let scene = scene_with(respond_and_close(reply), "");
        let response = scene.outgate.post(&scene.plain_url(), "", "x");
        assert_eq!((response.status, response.code()), (502, code), "{reply:?}");
        assert_eq!(scene.plain.requests().len(), 1, "sent once: {reply:?}");
    }
    let bomb = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(500));
    let scene = scene_with(respond_and_close(&bomb), "");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").code(), "response_too_large");

    // outgate has already sent the head, so the client sees a body that is shorter than announced.
    let scene = scene_with(respond_and_close("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    let all = String::from_utf8(client.rest()).unwrap();
    assert!(all.contains("Content-Length: 10") && all.ends_with("half"), "{all}");
    assert_eq!(scene.outgate.records(1)[0]["code"], "connection_lost");

    // Bytes after a response are discarded with the connection.
    let scene = scene_with(
        respond_with("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        "",
    );
    for _ in 0..3 {
        assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").text(), "ok");
    }
    assert_eq!(scene.plain.connections(), 3);
}

#[test]
fn options_reaches_outgate_or_the_target_by_max_forwards() {
    let scene = scene();
    let port = scene.plain.port();
    let mut client = scene.outgate.connect();
    client.send(format!("OPTIONS http://plain.example:{port} HTTP/1.1\r\nHost: h\r\nMax-Forwards: 3\r\n\r\n"));
    assert_eq!(client.response().status, 200);
    let received = &scene.plain.requests()[0];
    assert_eq!((received.line.as_str(), received.field("max-forwards")), ("OPTIONS * HTTP/1.1", "2"));
    client.send(format!("OPTIONS http://plain.example:{port}/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n"));
    let response = client.response();
    assert!(response.status == 200 && response.field("allow").contains("POST"), "{response:?}");
    assert_eq!(scene.plain.requests().len(), 1);
    // Some servers compare methods case-insensitively.
    for method in ["TRACE", "trace", "Trace"] {
        client.send(format!("{method} http://plain.example:{port}/ HTTP/1.1\r\nHost: h\r\nCookie: secret\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.code(), "client_forbidden", "{method}");
        assert!(!response.text().contains("secret"), "{method}");
    }
    assert_eq!(scene.plain.requests().len(), 1);
}

#[test]
fn idle_or_incomplete_request_head_affects_no_other_client() {
    let scene = scene();
    let mut clients: Vec<Client> = (0..50).map(|_| scene.outgate.connect()).collect();
    for (count, client) in clients.iter_mut().enumerate() {
        client.send(&post(&scene.plain_url(), "", "x")[..count]);
    }
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    drop(clients);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
}

/// A target may respond before it has the whole upload. outgate must not parse the rest of the upload as a request.
#[test]
fn bytes_after_an_early_response_are_never_parsed_as_a_request() {
    let scene = scene();
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port();
    let text = support::scene::config(&scene.good, &scene.plain, "").set("routes.*.ports", [port]);
    scene.outgate.reconfigure(&text);
    let mut client = scene.outgate.connect();
    client.send(format!(
        "POST http://plain.example:{port}/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    ));
    let (mut stream, _) = target.accept().unwrap();
    let mut received = Vec::new();
    let mut piece = [0; 1024];
    while !received.windows(5).any(|five| five == b"first") {
        let length = std::io::Read::read(&mut stream, &mut piece).unwrap();
        assert_ne!(length, 0);
        received.extend_from_slice(&piece[..length]);
    }
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n").unwrap();
    let response = client.response();
    assert_eq!((response.status, response.code(), response.field("connection")), (429, "", "close"));
    client.try_send("4\r\nlate\r\n0\r\n\r\n");
    client.try_send(SMUGGLED);
    assert!(client.is_closed());
    stream.set_read_timeout(Some(support::TEST_TIMEOUT)).unwrap();
    // outgate may have forwarded the rest of the upload before the connection ended, and nothing else.
    let mut rest = Vec::new();
    while !rest.ends_with(b"0\r\n\r\n") {
        match std::io::Read::read(&mut stream, &mut piece) {
            Ok(length) if length > 0 => rest.extend_from_slice(&piece[..length]),
            _ => break,
        }
    }
    let rest = String::from_utf8(rest).unwrap();
    assert!(["", "4\r\nlate\r\n", "4\r\nlate\r\n0\r\n\r\n"].contains(&rest.as_str()), "{rest:?}");
    assert!(scene.plain.requests().is_empty(), "{:?}", scene.plain.requests());
}

/// With Nagle's algorithm, each write waits for the acknowledgment of the previous one (RFC 896), as with urllib3.
#[test]
fn quickack_spares_a_client_with_nagle_a_delayed_acknowledgment() {
    let scene = scene();
    let mut client = TcpStream::connect(scene.outgate.proxy).unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert!(!client.nodelay().unwrap());
    let request = post(&scene.plain_url(), "", "body");
    let (head, body) = request.split_at(request.len() - 4);
    let (deadline, mut fastest, mut number) = (Instant::now() + TEST_TIMEOUT, Duration::MAX, 0);
    // Linux delays an acknowledgment by at least 40 ms, so each delayed request would be slower.
    while fastest >= Duration::from_millis(30) {
        assert!(Instant::now() < deadline, "{fastest:?} was the fastest of {number}");
        number += 1;
        let start = Instant::now();
        client.write_all(head.as_bytes()).unwrap();
        client.write_all(body.as_bytes()).unwrap();
        let mut response = Vec::new();
        while !response.ends_with(b"ok") {
            let mut piece = [0; 4096];
            let length = client.read(&mut piece).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&response));
            response.extend_from_slice(&piece[..length]);
        }
        // The kernel acknowledges the first segments of a connection immediately.
        if number > 20 {
            fastest = fastest.min(start.elapsed());
        }
    }
}
