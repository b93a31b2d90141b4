//! Responses of targets: interim, incomplete, late and too long ones.
//! Does the client get the whole response, and can it detect an incomplete one?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok, respond_and_close};
use support::scene::{bad_receiver, config, folder, scene, scene_with};
use support::{Outgate, TEST_TIMEOUT, post};

#[test]
fn interim_responses_reach_http1_clients_only_where_the_route_forwards_them() {
    let early = "HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nContent-Length: 2\r\nOutgate-Error: forged\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let scene = scene_with(respond_and_close(early), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    assert_eq!(client.next_response("POST").text(), "ok", "many clients take 103 for the final response");

    let text = config(&scene.good, &scene.plain, "");
    scene.outgate.reconfigure(&text.add("routes.plain.interim", "forward"));
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    let hints = client.next_response("POST");
    assert_eq!((hints.status, hints.field("link")), (103, "</style.css>"), "100 was between us and the target");
    assert!(hints.fields.len() == 1, "{hints:?}");
    assert_eq!(client.next_response("POST").text(), "ok");

    // HTTP/1.0 has no interim responses (RFC 9110 §15.2).
    let mut client = scene.outgate.connect();
    client.send(format!("GET {} HTTP/1.0\r\n\r\n", scene.plain_url()));
    assert_eq!(client.next_response("GET").status, 200);

    let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    let scene = scene_with(respond_and_close(&flood), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    let response = client.response();
    assert_eq!((response.status, response.code()), (502, "response_malformed"), "{response:?}");
}

#[test]
fn response_delimited_by_close_is_never_truncated_silently() {
    let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let read = |url: &str, scene: &support::scene::Scene| {
        let mut stream = TcpStream::connect(scene.outgate.proxy).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        write!(stream, "GET {url} HTTP/1.0\r\n\r\n").unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text)
    };
    let scene = scene_with(respond_and_close(whole), "");
    let cut = read(&scene.plain_url(), &scene);
    assert_eq!(cut.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(scene.outgate.records(1)[0]["code"], "connection_lost");

    let scene = scene_with(respond_and_close(&format!("{whole}0\r\n\r\n")), "");
    assert!(read(&scene.plain_url(), &scene).is_ok());
    assert_eq!(scene.outgate.records(1)[0]["code"], "delivered");
}

#[test]
fn response_over_response_max_does_not_end_cleanly() {
    let more = "[[routes]]\nname = \"short\"\nhosts = [\"plain.example\"]\npaths = [\"/short\"]\nports = [PORT]\n\
        plaintext = \"allow\"\nresponse_max = \"10 B\"\n";
    let send_request = |response: &str| {
        let plain = Receiver::plain(respond_and_close(response));
        let (pki, good) = (Pki::new(), Receiver::plain(ok()));
        let text = config(&good, &plain, &more.replace_one("PORT", &plain.port().to_string()));
        let outgate = Outgate::run(folder(&pki), &text);
        let mut client = outgate.connect();
        client.send(format!(
            "GET http://plain.example:{}/short HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            plain.port()
        ));
        let got = String::from_utf8(client.rest()).unwrap();
        (got, outgate.records(1)[0]["code"].as_str().unwrap().to_owned())
    };
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
    let (got, code) = send_request(&format!("{head}Content-Length: 11\r\n\r\nelevenbytes"));
    assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("\"response_too_large\""), "{got}");
    assert_eq!(code, "response_too_large");
    let (got, code) =
        send_request(&format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n8\r\ndefghijk\r\n0\r\n\r\n"));
    assert!(got.starts_with("HTTP/1.1 200 ") && !got.contains("ghi") && !got.ends_with("0\r\n\r\n"), "{got}");
    assert_eq!(code, "response_too_large");
    let (got, code) =
        send_request(&format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n7\r\ndefghij\r\n0\r\n\r\n"));
    assert!(got.ends_with("0\r\n\r\n"), "{got}");
    assert_eq!(code, "delivered");
}

/// The total timeout of a route applies to a webhook and to the opening of a tunnel.
#[test]
fn total_timeout_is_set_per_route() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let (pki, good) = (Pki::new(), Receiver::plain(ok()));
    let route = format!(
        "[[routes]]\nname = \"hasty\"\nhosts = [\"hasty.example\"]\nports = [{port}]\nplaintext = \"allow\"\n\
         timeouts = {{ total = \"300ms\" }}\n[timeouts]\ntotal = \"15s\"\n"
    );
    let text = config(&good, &good, &route).host("hasty.example", "127.0.0.1");
    let outgate = Outgate::run(folder(&pki), &text);
    for request in [
        format!("GET http://hasty.example:{port}/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        format!("CONNECT hasty.example:{port} HTTP/1.1\r\nHost: h\r\n\r\n"),
    ] {
        let mut client = outgate.connect();
        client.send(&request);
        assert_eq!(client.response().status, 504, "{request}");
    }
    for record in outgate.records(2) {
        let took = record["ms"]["total"].as_f64().unwrap();
        assert!((300.0..10_000.0).contains(&took), "{record}");
    }
}

#[test]
fn malformed_chunk_in_a_response_is_blamed_on_the_target() {
    let scene =
        scene_with(respond_and_close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalfXX0\r\n\r\n"), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    assert!(client.rest().ends_with(b"half\r\n"), "the last chunk never comes");
    assert_eq!(scene.outgate.records(1)[0]["code"], "response_malformed");
}

/// The target reads the whole request and never responds. The response timeout starts after the last byte.
#[test]
fn response_timeout_begins_when_the_upload_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!(
        "[[routes]]\nname = \"slow\"\nhosts = [\"other.example\"]\npaths = [\"/slow\"]\nports = [{}]\nplaintext = \"allow\"\n\
         timeouts = {{ response = \"300ms\", body = \"15s\" }}\n",
        silent.local_addr().unwrap().port()
    );
    let scene = scene_with(ok(), &route);
    let (last_byte_sender, last_byte_receiver) = mpsc::channel();
    let url = format!("http://other.example:{}/slow", silent.local_addr().unwrap().port());
    let target = std::thread::spawn(move || {
        let (mut stream, _) = silent.accept().unwrap();
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
            if buffer.contains(&b'!') {
                last_byte_sender.send(Instant::now()).unwrap();
            }
        }
    });
    let mut client = scene.outgate.connect();
    let begun = Instant::now();
    client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n"));
    client.send("1\r\n!\r\n0\r\n\r\n");
    assert_eq!(client.response().code(), "response_timeout");
    let (last_byte, answered) = (last_byte_receiver.recv_timeout(TEST_TIMEOUT).unwrap(), Instant::now());
    assert!(answered - begun < Duration::from_secs(10), "the body timeout is not waited for");
    assert!(answered > last_byte);
    target.join().unwrap();
}

/// The client stops its upload after the beginning of an early response, which the target continues after the body timeout.
#[test]
fn early_response_goes_on_when_the_upload_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let route = format!(
        "[[routes]]\nname = \"early\"\nhosts = [\"other.example\"]\npaths = [\"/early\"]\nports = [{port}]\nplaintext = \"allow\"\n\
         timeouts = {{ body = \"200ms\" }}\n"
    );
    let scene = scene_with(ok(), &route);
    let target = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"half!") {
            let mut piece = [0; 1024];
            let length = stream.read(&mut piece).unwrap();
            request.extend_from_slice(&piece[..length]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\npart1").unwrap();
        std::thread::sleep(Duration::from_millis(600)); // the target takes longer than the body timeout
        stream.write_all(b"part2").unwrap();
    });
    let mut client = scene.outgate.connect();
    client
        .send(format!("POST http://other.example:{port}/early HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf!"));
    assert_eq!(client.response().text(), "part1part2");
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["bytes_sent"]), (&"delivered".into(), &5.into()), "{record}");
    target.join().unwrap();
}

#[test]
fn response_with_two_transfer_codings_on_two_lines_is_refused() {
    let twice = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n\
                 d\r\n3\r\nabc\r\n0\r\n\r\n\r\n0\r\n\r\n";
    let scene = scene_with(respond_and_close(twice), "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.plain_url(), "", "x"));
    let response = client.response();
    assert_eq!((response.status, response.code()), (502, "response_malformed"), "{response:?}");
}

/// The target reads a large signed webhook, but takes longer for it than the response timeout, which starts at the last byte.
#[test]
fn response_timeout_begins_when_the_target_has_the_whole_signed_webhook() {
    const BODY: usize = 24 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // So that the kernel holds few bytes which the target has not read.
    socket2::SockRef::from(&listener).set_recv_buffer_size(64 * 1024).unwrap();
    let port = listener.local_addr().unwrap().port();
    let route = format!(
        "[[routes]]\nname = \"slow\"\nhosts = [\"other.example\"]\npaths = [\"/slow\"]\nports = [{port}]\nplaintext = \"allow\"\n\
         sign = [\"platform\"]\nbody_max = \"32 MiB\"\ntimeouts = {{ response = \"3s\" }}\n"
    );
    let scene = scene_with(ok(), &route);
    let target = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (begun, mut read, mut buffer) = (Instant::now(), 0, vec![0; 1 << 20]);
        while read < BODY {
            read += stream.read(&mut buffer).unwrap();
            // The pace of the target: 4 MiB a second.
            std::thread::sleep(Duration::from_secs_f64(read as f64 / (4 << 20) as f64).saturating_sub(begun.elapsed()));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
        begun.elapsed()
    });
    let mut client = scene.outgate.connect();
    client.send(post(&format!("http://other.example:{port}/slow"), "", &"x".repeat(BODY)));
    assert_eq!(client.response().text(), "ok");
    assert!(target.join().unwrap() > Duration::from_secs(5));
}

#[test]
fn options_for_outgate_itself_requires_authentication() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "[clients.lan]\nnetworks = [\"10.0.0.0/8\"]\n");
    scene.outgate.reconfigure(&text.remove("server.allow_anonymous"));
    let mut client = scene.outgate.connect();
    client.send(format!("OPTIONS {} HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n", scene.plain_url()));
    assert_eq!(client.response().code(), "client_unauthenticated");
}

/// Some clients show only the status line of a refused CONNECT.
#[test]
fn reason_phrase_carries_the_code_and_details_of_every_refusal() {
    let scene = scene();
    let port = scene.plain.port();
    let bad = bad_receiver(&["hook.example"]);
    let text = config(&scene.good, &scene.plain, "").push("routes.*.ports", bad.port());
    scene.outgate.reconfigure(&text);
    let untrusted = format!("hook.example:{}", bad.port());
    let send_request = |text: String, method: &str| {
        let mut client = scene.outgate.connect();
        client.send(text);
        client.response_to(method)
    };
    let connect = |authority: &str| send_request(support::tunnel::connect(authority, ""), "CONNECT");
    let to = |url: &str| send_request(post(url, "", "x"), "POST");
    let oversized = format!("x{}", "y".repeat(20_000));
    for (response, status, expected) in [
        (to(&format!("https://{untrusted}/")), 502, "Bad Gateway (certificate_untrusted: self_signed)"),
        (connect("nowhere.example:443"), 403, "Forbidden (no_route)"),
        (connect("hook.example:443"), 403, "Forbidden (tunnel_forbidden)"),
        (to("https://nowhere.example/<script>"), 403, "Forbidden (no_route)"),
        (to(&format!("http://hook.example:{port}/")), 403, "Forbidden (plaintext_forbidden)"),
        (to("https://plain.example:22/"), 403, "Forbidden (target_port_forbidden)"),
        (send_request("BAD\r\n\r\n".to_owned(), "POST"), 400, "Bad Request (request_malformed)"),
        (
            send_request(format!("GET http://{oversized}/ HTTP/1.1\r\n\r\n"), "GET"),
            414,
            "URI Too Long (request_malformed)",
        ),
    ] {
        assert_eq!((response.status, response.reason.as_str()), (status, expected), "{response:?}");
    }
    // outgate replaces the target's reason phrase with the standard phrase of the status.
    assert_eq!(to(&scene.plain_url()).reason, "OK");
    let tunnels = text.set("routes.plain.plaintext", "refuse");
    scene.outgate.reconfigure(&tunnels);
    let refused = connect(&format!("plain.example:{}", bad.port()));
    assert_eq!(refused.reason, "Bad Gateway (certificate_untrusted: self_signed)", "{refused:?}");
}
