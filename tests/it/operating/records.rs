//! Records and response fields of failed deliveries.
//! Does a record show why and at which step a webhook failed?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::configuration::Replace;
use support::pki::Pki;
use support::ports::refusing;
use support::receiver::{Receiver, ok, respond_with};
use support::scene::{Scene, config, folder, scene, scene_with};
use support::{Outgate, Response, eventually, post};

/// Returns a listener whose queue is full, so that the kernel drops every further SYN.
fn silent() -> (Vec<Socket>, u16) {
    let (socket, port) = refusing();
    socket.listen(0).unwrap();
    let mut held = vec![socket];
    for _ in 0..2 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        drop(filler.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()));
        held.push(filler);
    }
    (held, port)
}

/// Starts the usual scene with this port on its routes and this connect timeout.
fn towards(port: u16, connect: &str) -> Scene {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "").push("routes.*.ports", port);
    scene.outgate.reconfigure(&text.set("routes.*.timeouts.connect", connect));
    scene
}

fn is_of_the_pool(address: &Value) -> bool {
    address.as_str().is_some_and(|address| address.starts_with("127.0.7."))
}

/// Returns the records of these responses in this order. Records may be written in another order.
fn records_of(outgate: &Outgate, responses: &[Response]) -> Vec<Value> {
    let records = outgate.records(responses.len());
    let record_of = |response: &Response| {
        let id = response.field("outgate-request-id");
        records.iter().find(|record| record["request_id"] == id).expect("a record of the answer").clone()
    };
    responses.iter().map(record_of).collect()
}

/// Checks the fields of docs/requests.md, "Fields of a response".
fn assert_response_fields(response: &Response, egress: &str) {
    assert_eq!((response.field("outgate-egress"), response.field("via")), (egress, "1.1 outgate"), "{response:?}");
    assert!(response.field("proxy-status").starts_with("outgate"), "{response:?}");
    assert!(!response.field("outgate-request-id").is_empty(), "{response:?}");
}

#[test]
fn a_record_of_a_refused_connection_has_every_attempt_with_its_source() {
    let (_closed, port) = refusing();
    let scene = towards(port, "2s");
    let response = scene.outgate.post(&format!("https://hook.example:{port}/in?x"), "", "x");
    assert_eq!(response.code(), "connect_refused");
    let record = &scene.outgate.records(1)[0];
    assert!(is_of_the_pool(&record["source"]) && record["address"] == "127.0.0.1", "{record}");
    assert!(record["ms"]["connect"].is_number() && record["ms"]["tls"].is_null(), "{record}");
    assert_eq!((&record["reused"], &record["status_class"]), (&Value::Null, &Value::Null), "{record}");
    let attempts = record["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "the pool's failover: {record}");
    for attempt in attempts {
        assert!(is_of_the_pool(&attempt["source"]) && attempt["ms"].is_number(), "{attempt}");
        assert_eq!((&attempt["address"], &attempt["outcome"]), (&json!("127.0.0.1"), &json!("refused")), "{attempt}");
    }
    assert_ne!(attempts[0]["source"], attempts[1]["source"]);
    assert_eq!(attempts[1]["source"], record["source"], "the last one that decides");
    assert_response_fields(&response, record["source"].as_str().unwrap());
}

#[test]
fn a_record_of_a_connect_timeout_has_the_source_and_the_milliseconds() {
    let (_held, port) = silent();
    let scene = towards(port, "100ms");
    let response = scene.outgate.post(&format!("https://hook.example:{port}/"), "", "x");
    assert_eq!(response.code(), "connect_timeout");
    let record = &scene.outgate.records(1)[0];
    assert!(is_of_the_pool(&record["source"]) && record["address"] == "127.0.0.1", "{record}");
    assert!(record["ms"]["connect"].as_f64().unwrap() >= 100.0, "{record}");
    assert_eq!(record["attempts"][0]["outcome"], "timeout", "{record}");
    assert_response_fields(&response, record["source"].as_str().unwrap());
}

/// The kernel accepts the connection, and the target sends nothing.
#[test]
fn a_record_of_a_timeout_has_the_milliseconds_of_its_step() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "").push("routes.*.ports", port);
    let text = text.set("routes.*.timeouts.response", "100ms").set("routes.signed.timeouts.tls", "100ms");
    scene.outgate.reconfigure(&text);
    for (url, code) in [
        (format!("https://hook.example:{port}/"), "connect_timeout"),
        (format!("http://plain.example:{port}/"), "response_timeout"),
    ] {
        assert_eq!(scene.outgate.post(&url, "", "x").code(), code);
    }
    drop(scene.outgate.start_upload(&scene.good_url(), 5));
    let records = scene.outgate.records(3);
    for record in &records[..2] {
        assert!(is_of_the_pool(&record["source"]) && record["address"] == "127.0.0.1", "{record}");
        assert!(record["ms"]["connect"].is_number() && record.get("certificate").is_none(), "{record}");
    }
    assert!(records[0]["ms"]["tls"].as_f64().unwrap() >= 100.0, "{}", records[0]);
    assert!(records[1]["ms"]["response"].as_f64().unwrap() >= 100.0, "{}", records[1]);
    assert_eq!(records[2]["code"], "client_gone");
    assert!(records[2]["ms"]["take_in"].is_number() && records[2]["ms"]["resolve"].is_null(), "{}", records[2]);
}

/// A client with a short timeout hangs up while the target does not accept.
#[test]
fn a_record_of_a_client_that_hangs_up_while_connecting_has_the_source_and_the_milliseconds() {
    let (_held, port) = silent();
    let scene = towards(port, "60s");
    let mut client = scene.outgate.connect();
    client.send(post(&format!("https://hook.example:{port}/"), "", "x"));
    // In /proc/net/tcp, state 02 is SYN_SENT, and the hexadecimal form of 127.0.7.x ends in 07007F.
    let connecting = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.len() > 3
            && fields[1][2..8] == *"07007F"
            && fields[2].ends_with(&format!(":{port:04X}"))
            && fields[3] == "02"
    };
    eventually("outgate connects", || fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).any(connecting));
    drop(client);
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["status"]), (&json!("client_gone"), &Value::Null), "{record}");
    assert!(is_of_the_pool(&record["source"]) && record["address"] == "127.0.0.1", "{record}");
    assert!(record["ms"]["connect"].is_number(), "{record}");
}

#[test]
fn a_record_of_a_failed_handshake_has_what_the_certificate_said() {
    let (pki, other_pki) = (Pki::new(), Pki::new());
    let names: Vec<String> = (0..7).map(|n| format!("n{n}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let until = |params: &mut rcgen::CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2024, 1, 2);
        params.not_after = rcgen::date_time_ymd(2100, 1, 2);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a\u{1b}[31m");
        params.serial_number = Some(0x2a_u64.into());
    };
    let untrusted = Receiver::tls(other_pki.leaf_with(&names, until), ok());
    let outgate = Outgate::run(folder(&pki), &config(&untrusted, &untrusted, ""));
    let response = outgate.post(&format!("https://hook.example:{}/", untrusted.port()), "", "x");
    assert_eq!(response.code(), "certificate_untrusted");
    let mut tunnelling = outgate.connect();
    tunnelling.send(format!("CONNECT plain.example:{} HTTP/1.1\r\nHost: h\r\n\r\n", untrusted.port()));
    assert_eq!(tunnelling.response_to("CONNECT").code(), "certificate_untrusted");
    for record in outgate.records(2) {
        assert!(is_of_the_pool(&record["source"]) && record["address"] == "127.0.0.1", "{record}");
        assert!(record["ms"]["connect"].is_number() && record["ms"]["tls"].is_number(), "{record}");
        assert!(record.get("attempts").is_none(), "one, which connected: {record}");
        let certificate = &record["certificate"];
        assert_eq!(certificate["verdict"], "unknown_issuer", "{record}");
        assert_eq!(certificate["names"], json!(names[..5]), "{record}");
        assert_eq!((&certificate["more_names"], &certificate["serial"]), (&json!(2), &json!("2a")), "{record}");
        assert_eq!(certificate["common_name"], "a\u{fffd}[31m", "{record}");
        assert!(certificate["issuer"].as_str().unwrap().contains("outgate test CA"), "{record}");
        assert_eq!(certificate["not_before"], "2024-01-02T00:00:00Z", "{record}");
        assert_eq!(certificate["not_after"], "2100-01-02T00:00:00Z", "{record}");
        assert_eq!(certificate["sha256"].as_str().unwrap().len(), 64, "{record}");
        assert_eq!((&record["blame"], &record["details"]), (&json!("target"), &json!("unknown_issuer")), "{record}");
        assert!(record["detail"].as_str().unwrap().starts_with("the target's certificate is refused: "), "{record}");
    }
}

#[test]
fn a_record_of_a_delivery_has_no_attempts_and_no_certificate_object() {
    let scene = scene();
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!(response.status, 200);
    let record = &scene.outgate.records(1)[0];
    for absent in [
        "attempts",
        "certificate",
        "limit",
        "claimed_client",
        "would_refuse",
        "details",
        "detail",
        "retryable",
        "token_endpoint",
    ] {
        assert!(record.get(absent).is_none(), "{absent}: {record}");
    }
    assert_eq!((&record["status"], &record["status_class"]), (&json!(200), &json!("2xx")), "{record}");
    assert_eq!(record["blame"], "none", "{record}");
    assert!(record["tls"]["certificate_expires"].is_string(), "{record}");
}

#[test]
fn every_response_has_outgate_egress_and_via() {
    let scene = scene();
    let url = scene.plain_url();
    let send_request = |method: &str, request: &str| {
        let mut client = scene.outgate.connect();
        client.send(request);
        client.response_to(method)
    };
    for (method, request, status) in [
        ("POST", post("https://unrouted.example/", "", "x"), 403),
        ("POST", post("/no-target", "", "x"), 400),
        ("GET", format!("GET {url} HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"), 400),
        ("GET", format!("GET {url} HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(70_000)), 431),
        ("GET", "GET http://h/\u{1} HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 400),
        ("OPTIONS", format!("OPTIONS {url} HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n"), 200),
        ("CONNECT", "CONNECT hook.example:443 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 403),
    ] {
        let response = send_request(method, &request);
        assert_eq!(response.status, status, "{request}");
        assert_response_fields(&response, "none");
    }
}

#[test]
fn a_record_has_the_webhook_id_as_soon_as_it_is_known() {
    let (_closed, port) = refusing();
    let scene = towards(port, "2s");
    let webhook_id = "Webhook-Id: msg_mine\r\n";
    let responses = [
        (scene.good_url(), "", 200),
        (scene.good_url(), webhook_id, 200),
        (format!("https://hook.example:{port}/"), "", 502),
        ("https://unrouted.example/".to_owned(), webhook_id, 403),
        (scene.plain_url(), webhook_id, 200),
        (scene.plain_url(), "", 200),
        (scene.good_url(), "Webhook-Id: a.b\r\n", 400),
    ]
    .map(|(url, fields, status)| {
        let response = scene.outgate.post(&url, fields, "x");
        assert_eq!(response.status, status, "{url} {fields}");
        response
    });
    let records = records_of(&scene.outgate, &responses);
    let received = scene.good.requests();
    assert_eq!(records[0]["webhook_id"], received[0].field("webhook-id"));
    assert_eq!(records[0]["webhook_id"], format!("msg_{}", records[0]["request_id"].as_str().unwrap()));
    assert_eq!(records[2]["webhook_id"], format!("msg_{}", records[2]["request_id"].as_str().unwrap()));
    let ids: Vec<_> = [1, 3, 4, 5, 6].map(|n| records[n]["webhook_id"].clone()).into();
    assert_eq!(ids, [json!("msg_mine"), json!("msg_mine"), json!("msg_mine"), Value::Null, Value::Null]);
}

/// Two in five generated ids have a run of digits that is as long as a phone number.
#[test]
fn a_record_has_a_generated_webhook_id_whole() {
    let scene = scene();
    let responses: Vec<_> = (0..30).map(|_| scene.outgate.post(&scene.good_url(), "", "x")).collect();
    for record in records_of(&scene.outgate, &responses) {
        assert_eq!(record["webhook_id"], format!("msg_{}", record["request_id"].as_str().unwrap()));
    }
}

#[test]
fn a_record_names_the_limit_that_refused_and_the_parts_of_its_key() {
    let scene = scene();
    let limits = "[limits.hosts]\nrate = \"1/h\"\nper = [\"tenant\", \"host\", \"client\"]\n\
                  [limits.seen]\nrate = \"1/h\"\nper = [\"route\", \"egress\"]\nreport_only = true\n";
    let text = config(&scene.good, &scene.plain, limits);
    scene.outgate.reconfigure(&text.add("routes.*.limits", ["hosts", "seen"]));
    let by_address = scene.good_url().replace_one("hook.example", "127.0.0.1");
    let responses = [
        (scene.plain_url(), 200),
        (scene.plain_url(), 429),
        (scene.good_url(), 200),
        (by_address, 502), // its certificate is for another name
    ]
    .map(|(url, status)| {
        let response = scene.outgate.post(&url, "", "x");
        assert_eq!(response.status, status, "{url}");
        response
    });
    let records = records_of(&scene.outgate, &responses);
    let limit = json!({ "name": "hosts", "key": { "client": "anonymous", "tenant": null, "host": "plain.example" } });
    assert_eq!((&records[1]["limit"], &records[1]["code"]), (&limit, &json!("rate_limited")));
    assert!(records[0].get("limit").is_none() && records[1]["ms"]["admit"].is_number(), "{}", records[1]);
    let would = json!([{
        "kind": "limit", "name": "seen", "code": "rate_limited", "key": { "route": "signed", "egress": "default" }
    }]);
    assert_eq!(records[3]["would_refuse"], would, "{}", records[3]);
}

#[test]
fn a_record_of_a_target_with_refused_characters_has_host_and_path() {
    let scene = scene();
    for (path, recorded, words) in [
        ("/a\\b?secret", "/a\\b", "a backslash: write it as %5C"),
        ("/a#b?secret", "/a", "a fragment (#)"),
        ("/caf\u{e9}?secret", "/caf\u{e9}", "a character that is not ASCII"),
        ("/a b c?secret=a b", "/a b c", "a space: write it as %20"),
    ] {
        let url = format!("https://hook.example:8443{path}");
        let mut requests = vec![format!("GET {url} HTTP/1.1\r\nHost: h\r\n\r\n")];
        if url.is_ascii() {
            requests.push(format!("GET /x HTTP/1.1\r\nHost: h\r\nOutgate-Target: {url}\r\n\r\n"));
        }
        for request in requests {
            let before = scene.outgate.records(0).len();
            let mut client = scene.outgate.connect();
            client.send(&request);
            let response = client.response();
            assert_eq!((response.status, response.code()), (400, "request_malformed"), "{request}: {response:?}");
            let detail = response.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(words), "{request}: {detail}");
            let record = scene.outgate.records(before + 1).pop().unwrap();
            let target = (&record["host"], &record["port"], &record["path"]);
            assert_eq!(target, (&json!("hook.example"), &json!(8443), &json!(recorded)), "{record}");
            assert!(record["detail"].as_str().unwrap().contains(words), "{record}");
        }
    }
}

#[test]
fn a_record_has_host_and_path_wherever_they_were_read() {
    let scene = scene();
    let more = "[clients.lan]\nnetworks = [\"10.0.0.0/8\"]\n";
    let url = "https://hook.example:8443/a/b?secret";
    let send_request = |method: &str, request: String| {
        let mut client = scene.outgate.connect();
        client.send(request);
        client.response_to(method).code().to_owned()
    };
    let get = |fields: &str| format!("GET {url} HTTP/1.1\r\n{fields}\r\n");
    let gateway = format!("GET /x HTTP/1.1\r\nHost: h\r\nOutgate-Target: {url}\r\nOutgate-TLS: 2\r\n\r\n");
    for (method, request, code) in [
        ("GET", get("Host: h\r\nOutgate-TLS: 2\r\n"), "request_malformed"),
        ("GET", get("Host: h\r\nOutgate-Tenant: \r\n"), "request_malformed"),
        ("GET", gateway, "request_malformed"),
        ("GET", get("Host: h\r\nHost: h\r\n"), "request_malformed"),
        ("GET", get("Host: h\r\nBad Name: x\r\n"), "request_malformed"),
        ("TRACE", get("Host: h\r\n").replace_one("GET", "TRACE"), "client_forbidden"),
        ("GET", get("Host: h\r\n").replace_one("/a/b", "/a/../b"), "target_port_forbidden"),
        ("CONNECT", "CONNECT hook.example:8443 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), "target_port_forbidden"),
        (
            "CONNECT",
            "CONNECT hook.example:8443 HTTP/1.1\r\nHost: h\r\nOutgate-Tenant: \r\n\r\n".to_owned(),
            "request_malformed",
        ),
    ] {
        assert_eq!(send_request(method, request.clone()), code, "{request}");
    }
    let text = config(&scene.good, &scene.plain, more).remove("server.allow_anonymous");
    scene.outgate.reconfigure(&text);
    assert_eq!(send_request("GET", get("Host: h\r\nOutgate-Tenant: acme\r\n")), "client_unauthenticated");
    let records = scene.outgate.records(10);
    for record in &records {
        let target = (&record["scheme"], &record["host"], &record["port"]);
        assert_eq!(target, (&json!("https"), &json!("hook.example"), &json!(8443)), "{record}");
        let path = match (record["method"].as_str(), record["code"].as_str()) {
            (Some("CONNECT"), _) => Value::Null,
            (_, Some("target_port_forbidden")) => json!("/a/../b"),
            _ => json!("/a/b"),
        };
        assert_eq!(record["path"], path, "{record}");
        assert!(!record.to_string().contains("secret"), "{record}");
    }
    assert_eq!((&records[9]["tenant"], &records[9]["client"]), (&json!("acme"), &Value::Null));
}

#[test]
fn a_record_of_a_request_that_came_while_draining_has_host_and_path() {
    let scene = scene();
    let _busy = scene.outgate.start_upload(&scene.plain_url(), 1);
    scene.outgate.signal("TERM");
    scene.outgate.log.wait_for("the drain", |lines| lines.iter().any(|line| line.contains("draining")).then_some(()));
    let response = scene.outgate.post(&scene.good_url(), "Webhook-Id: msg_mine\r\n", "x");
    assert_eq!(response.code(), "draining");
    assert_response_fields(&response, "none");
    let record = &scene.outgate.records(1)[0];
    let recorded = (&record["host"], &record["path"], &record["webhook_id"]);
    assert_eq!(recorded, (&json!("hook.example"), &json!("/in"), &json!("msg_mine")), "{record}");
}

#[test]
fn a_record_has_the_status_class_of_the_targets_response() {
    for (status, class) in [("503 Busy", "5xx"), ("302 Found", "3xx"), ("299 Odd", "2xx")] {
        let scene = scene_with(respond_with(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")), "");
        scene.outgate.post(&scene.plain_url(), "", "x");
        assert_eq!(scene.outgate.records(1)[0]["status_class"], class);
    }
    // The client gets 502, and the target has sent 200.
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 999999999\r\n\r\n", "a".repeat(100));
    let scene = scene_with(respond_with(&large), "");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").code(), "response_too_large");
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["status"], &record["status_class"]), (&json!(502), &json!("2xx")), "{record}");
}

#[test]
fn a_record_of_a_refusal_is_retryable_where_its_response_is() {
    let (_closed, port) = refusing();
    let scene = towards(port, "2s");
    // `response_malformed` is retryable only if no byte of a response has arrived.
    let malformed = scene_with(respond_with("HTTP/1.1 2000 OK\r\n\r\n"), "");
    let refused = format!("https://hook.example:{port}/in");
    for (count, (scene, url, code, retryable)) in [
        (&malformed, malformed.plain_url(), "response_malformed", false),
        (&scene, "https://nowhere.example/in".into(), "no_route", false),
        (&scene, refused, "connect_refused", true),
    ]
    .into_iter()
    .enumerate()
    {
        let response = scene.outgate.post(&url, "", "x");
        assert_eq!((response.code(), &response.json()["retryable"]), (code, &json!(retryable)));
        let record = scene.outgate.records(count.max(1)).pop().unwrap();
        assert_eq!((&record["code"], &record["retryable"]), (&json!(code), &json!(retryable)), "{record}");
    }
}
