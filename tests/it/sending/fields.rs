//! Header fields on their way through outgate, over HTTP/1.1.
//! Does the receiver of a message get the fields as their sender wrote them?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::receiver::{ReceivedRequest, respond_with};
use support::scene::{scene, scene_with};

/// Sends a request, and returns the head of the response in the bytes that arrive.
fn response_head(proxy: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(support::TEST_TIMEOUT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.split_once("\r\n\r\n").unwrap().0.to_owned()
}

fn lines(request: &ReceivedRequest) -> Vec<String> {
    request.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect()
}

#[test]
fn request_fields_keep_their_order_and_spelling() {
    let scene = scene();
    for (url, receiver) in [(scene.plain_url(), &scene.plain), (scene.good_url(), &scene.good)] {
        let head = response_head(
            scene.outgate.proxy,
            &format!(
                "POST {url} HTTP/1.1\r\nX-First:  1\r\nhOST: h\r\nUSER-agent: u\r\nConnection: Close, X-HOP\r\nx-two: a\r\n\
                 x-Hop: 1\r\nCONTENT-length: 5\r\nSOAPAction: \"s\"\r\nX-Two: b\r\npRoxy-Connection: close\r\n\
                 OUTGATE-Unknown: 1\r\nx-TWO: c\r\n\r\nhello"
            ),
        );
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let received = &receiver.requests()[0];
        let authority = url.split('/').nth(2).unwrap();
        let of_client = [
            "X-First: 1",
            &format!("hOST: {authority}"),
            "USER-agent: u",
            "x-two: a",
            "CONTENT-length: 5",
            "SOAPAction: \"s\"",
            "X-Two: b",
            "x-TWO: c",
        ];
        let lines = lines(received);
        assert_eq!(lines[..of_client.len()], of_client, "{url}");
        assert!(lines[of_client.len()].starts_with("via: 1.1 "), "outgate's own fields follow: {lines:?}");
        assert_eq!(received.body, b"hello");
    }
    let signed = &scene.good.requests()[0];
    assert!(lines(signed).last().unwrap().starts_with("webhook-signature: v1,"), "{signed:?}");
}

#[test]
fn request_without_a_place_for_host_begins_with_it() {
    let scene = scene();
    response_head(scene.outgate.proxy, &format!("GET {} HTTP/1.0\r\nX-First: 1\r\n\r\n", scene.plain_url()));
    let lines = lines(&scene.plain.requests()[0]);
    assert!(lines[0].starts_with("host: plain.example"), "{lines:?}");
    assert_eq!(lines[1], "X-First: 1");
}

#[test]
fn field_that_outgate_sets_replaces_every_line_of_any_spelling() {
    let scene = scene();
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nWebhook-Signature: forged\r\nX: y\r\nWEBHOOK-SIGNATURE: forged\r\n\
         Webhook-Timestamp: 1\r\nContent-Length: 1\r\n\r\nx",
        scene.good_url()
    );
    assert!(response_head(scene.outgate.proxy, &request).starts_with("HTTP/1.1 200 "));
    let received = &scene.good.requests()[0];
    let signatures = received.all("webhook-signature");
    assert!(signatures.len() == 1 && signatures[0].starts_with("v1,"), "{received:?}");
    assert_ne!(received.all("webhook-timestamp"), ["1"]);
}

#[test]
fn response_fields_keep_their_order_and_spelling() {
    let reaction = respond_with(
        "HTTP/1.1 200 OK\r\nX-First: 1\r\nsERVER: s\r\nCONTENT-Length: 2\r\nKEEP-Alive: timeout=5\r\nX-First: 2\r\n\
         OUTGATE-Error: forged\r\nDATE: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nok",
    );
    let scene = scene_with(reaction, "");
    let head = response_head(
        scene.outgate.proxy,
        &format!("GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", scene.plain_url()),
    );
    let of_target = "HTTP/1.1 200 OK\r\nX-First: 1\r\nsERVER: s\r\nCONTENT-Length: 2\r\nX-First: 2\r\n\
        DATE: Thu, 01 Jan 1970 00:00:00 GMT\r\nvia: 1.1 ";
    assert!(head.starts_with(of_target), "outgate's own fields follow: {head}");
    assert!(!head.to_ascii_lowercase().contains("outgate-error"), "{head}");
}
