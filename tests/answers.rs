//! What targets answer before, instead of and in the middle of the answer.
//! Does a client get everything that is meant for it, and see when something is missing?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use support::receiver::{answering_once, ok};
use support::scene::{scene, scene_with};
use support::{PATIENCE, post};

#[test]
fn interim_answers_are_passed_on_but_not_without_end() {
    let early = "HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nOutgate-Error: forged\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let scene = scene_with(answering_once(early), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    let hints = client.one_answer("POST");
    assert_eq!((hints.status, hints.field("link")), (103, "</style.css>"), "100 was between us and the target");
    assert!(hints.fields.len() == 1, "{hints:?}");
    assert_eq!(client.one_answer("POST").text(), "ok");

    // HTTP/1.0 has no interim answers (RFC 9110 §15.2).
    let mut client = scene.outgate.connect();
    client.send(format!("GET {} HTTP/1.0\r\n\r\n", scene.plain_url()));
    assert_eq!(client.one_answer("GET").status, 200);

    let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    let scene = scene_with(answering_once(&flood), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    let answer = client.answer();
    assert_eq!((answer.status, answer.code()), (502, "response_malformed"), "{answer:?}");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_never_cut_unseen() {
    let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let read = |url: &str, scene: &support::scene::Scene| {
        let mut stream = TcpStream::connect(scene.outgate.proxy).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {url} HTTP/1.0\r\n\r\n").unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text)
    };
    let scene = scene_with(answering_once(whole), "");
    let cut = read(&scene.plain_url(), &scene);
    assert_eq!(cut.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(scene.outgate.records(1)[0]["code"], "connection_lost");

    let scene = scene_with(answering_once(&format!("{whole}0\r\n\r\n")), "");
    assert!(read(&scene.plain_url(), &scene).is_ok());
    assert_eq!(scene.outgate.records(1)[0]["code"], "delivered");
}

#[test]
fn a_malformed_chunk_is_the_targets_fault() {
    let scene =
        scene_with(answering_once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalfXX0\r\n\r\n"), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    assert!(client.rest().ends_with(b"half\r\n"), "the last chunk never comes");
    assert_eq!(scene.outgate.records(1)[0]["code"], "response_malformed");
}

/// The target reads all and never answers: the response timeout runs from the last byte, not from the first.
#[test]
fn the_response_timeout_begins_when_the_upload_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!(
        "[[routes]]\nname = \"slow\"\nhosts = [\"other.example\"]\npaths = [\"/slow\"]\nports = [{}]\nplaintext = \"allow\"\n\
         timeouts = {{ response = \"300ms\", body = \"15s\" }}\n",
        silent.local_addr().unwrap().port()
    );
    let scene = scene_with(ok(), &route);
    let (told, heard) = mpsc::channel();
    let url = format!("http://other.example:{}/slow", silent.local_addr().unwrap().port());
    let target = std::thread::spawn(move || {
        let (mut stream, _) = silent.accept().unwrap();
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
            if buffer.contains(&b'!') {
                told.send(Instant::now()).unwrap();
            }
        }
    });
    let mut client = scene.outgate.connect();
    let begun = Instant::now();
    client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n"));
    client.send("1\r\n!\r\n0\r\n\r\n");
    assert_eq!(client.answer().code(), "response_timeout");
    let (last_byte, answered) = (heard.recv_timeout(PATIENCE).unwrap(), Instant::now());
    assert!(answered - begun < Duration::from_secs(10), "the body timeout is not waited for");
    assert!(answered > last_byte);
    target.join().unwrap();
}

#[test]
fn options_about_us_needs_a_client_too() {
    let scene = scene();
    let text = std::fs::read_to_string(scene.outgate.folder.path("config.toml")).unwrap();
    let closed = text.replace("allow_anonymous = true", "") + "[clients.lan]\nnetworks = [\"10.0.0.0/8\"]\n";
    scene.outgate.reconfigure(&closed);
    let mut client = scene.outgate.connect();
    client.send(format!("OPTIONS {} HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n", scene.plain_url()));
    assert_eq!(client.answer().code(), "client_unauthenticated");
}
