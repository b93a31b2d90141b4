//! Hostile requests, with common web servers behind outgate.
//! Does an origin ever parse a request that outgate did not forward?
//!
//! Needs nginx, Node and Python: skipped where one is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;

use outgate::delivery::refusal::TABLE;
use support::pki::Pki;
use support::scene::folder;
use support::{Outgate, origins};

/// Fields and body of requests that must reach the origin once. `{S}` is another request, which no parser may find in the
/// body. `{n}` is its length, and `{x}` the length in hexadecimal.
const FORWARDED_FIELDS: &[(&str, &str)] = &[
    ("Content-Length: {n}", "{S}"),
    ("Content-Length: 0{n}", "{S}"),
    ("content-length:{n}", "{S}"),
    ("Content-Length: \t {n} \t", "{S}"),
    ("Content-Length: 0", ""),
    ("X: y", ""),
    ("Transfer-Encoding: chunked", "{x}\r\n{S}\r\n0\r\n\r\n"),
    ("transfer-encoding:Chunked", "{x}\r\n{S}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked", "{x};a=b;c=\"d\"\r\n{S}\r\n0;e\r\n\r\n"),
    ("Transfer-Encoding: chunked", "000000{x}\r\n{S}\r\n00000\r\n\r\n"),
    ("Transfer-Encoding: chunked", "1\r\na\r\n{x}\r\n{S}\r\n1\r\nb\r\n0\r\nHost: evil\r\nContent-Length: 5\r\n\r\n"),
    ("Transfer-Encoding: chunked", "0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nTrailer: X", "0\r\nX: 1\r\n\r\n"),
    ("Expect: 100-continue\r\nContent-Length: {n}", "{S}"),
    ("Expect: 100-continue\r\nTransfer-Encoding: chunked", "{x}\r\n{S}\r\n0\r\n\r\n"),
    ("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {n}", "{S}"),
    (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: {n}",
        "{S}",
    ),
    ("Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: {n}", "{S}"),
    ("Proxy-Connection: keep-alive\r\nTE: trailers, chunked\r\nContent-Length: {n}", "{S}"),
    ("Content_Length: 3\r\nTransfer_Encoding: chunked\r\nContent-Length: {n}", "{S}"),
    ("X-Content-Length: 3\r\nX-Transfer-Encoding: chunked\r\nContent-Length: {n}", "{S}"),
    ("Content-Encoding: chunked\r\nContent-Length: {n}", "{S}"),
    ("X: Transfer-Encoding: chunked\r\nContent-Length: {n}", "{S}"),
    ("X:\r\nContent-Length: {n}", "{S}"),
];

/// Fields and body of requests that must be refused, in the same notation.
const REFUSED_FIELDS: &[(&str, &str)] = &[
    ("Content-Length: {n}\r\nTransfer-Encoding: chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked\r\nContent-Length: {n}", "0\r\n\r\n{S}"),
    ("Content-Length: 0\r\nContent-Length: {n}", "{S}"),
    ("Content-Length: {n}\r\nContent-Length: 0", "{S}"),
    ("Content-Length: 0, {n}", "{S}"),
    ("Content-Length: {n}, {n}", "{S}"),
    ("Content-Length: +{n}", "{S}"),
    ("Content-Length: -1", "{S}"),
    ("Content-Length: 0x{x}", "{S}"),
    ("Content-Length: {n}.0", "{S}"),
    ("Content-Length: {n} {n}", "{S}"),
    ("Content-Length: {n}_0", "{S}"),
    ("Content-Length:", "{S}"),
    ("Content-Length: \"{n}\"", "{S}"),
    ("Content-Length: 18446744073709551616", "{S}"),
    ("Content-Length: \x0b{n}", "{S}"),
    ("Content-Length : {n}", "{S}"),
    ("Content-Length\t: {n}", "{S}"),
    ("Content-Length\0: {n}", "{S}"),
    ("\x0bContent-Length: {n}", "{S}"),
    ("X: y\r\n Content-Length: {n}", "{S}"),
    ("X: y\r\n\tTransfer-Encoding: chunked", "0\r\n\r\n{S}"),
    ("X: y\nTransfer-Encoding: chunked", "0\r\n\r\n{S}"),
    ("X: y\rTransfer-Encoding: chunked", "0\r\n\r\n{S}"),
    ("X: y\0\r\nTransfer-Encoding: chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding : chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding\r\n: chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding:\r\n chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: \x0bchunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked\x0c", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked, identity", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: identity, chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: identity", "{S}"),
    ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked, chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: xchunked", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: chunked;q=1", "0\r\n\r\n{S}"),
    ("Transfer-Encoding: \"chunked\"", "0\r\n\r\n{S}"),
    ("Transfer-Encoding:", "{S}"),
    ("Transfer-Encoding: chun\u{212a}ed", "0\r\n\r\n{S}"),
    ("Connection: Transfer-Encoding, Content-Length\r\nContent-Length: {n}", "{S}"),
    ("Connection: Host\r\nContent-Length: {n}", "{S}"),
    ("Expect: 200-ok\r\nContent-Length: {n}", "{S}"),
    ("Outgate-Target: http://{h}/smuggled\r\nContent-Length: {n}", "{S}"),
];

/// Chunked bodies that must be refused. If the body is streamed, the head and the bytes before the error may reach the
/// origin.
const MALFORMED_CHUNKS: &[&str] = &[
    "0x{x}\r\n{S}\r\n0\r\n\r\n",
    "+{x}\r\n{S}\r\n0\r\n\r\n",
    "{x} \r\n{S}\r\n0\r\n\r\n",
    " {x}\r\n{S}\r\n0\r\n\r\n",
    "{x}\n{S}\r\n0\r\n\r\n",
    "{x};a=b\n{S}\r\n0\r\n\r\n",
    "{x}\r{S}\r\n0\r\n\r\n",
    "{x};\rx\r\n{S}\r\n0\r\n\r\n",
    "{x}\r\n{S}0\r\n\r\n{S}",
    "{x}\r\n{S}XX0\r\n\r\n{S}",
    "{x}\r\n{S}\n0\r\n\r\n{S}",
    "1\r\na\r\n0\n\n{S}",
    "1\r\na\r\n0\r\nX: y\n\r\n{S}",
    "1\r\na\r\n0\r\n\n{S}",
    "1\r\na\r\n10000000000000000{x}\r\n{S}",
    "1\r\na\r\n-1\r\n{S}",
    "1\r\na\r\n\r\n{S}",
    "1\r\na\r\nG\r\n{S}",
    "1\r\nab\r\n0\r\n\r\n{S}",
];

/// Whole requests that must be refused. `{U}` is the target.
const REFUSED_REQUESTS: &[&str] = &[
    "POST {U} HTTP/1.1\nHost: h\n\n{S}",
    "POST {U} HTTP/1.1\r\n Host: h\r\n\r\n{S}",
    "POST {U} HTTP/1.1\r\n\r\n{S}",
    "POST {U} HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n{S}",
    "POST {U} HTTP/1.1\r\nHost: a@b\r\n\r\n{S}",
    "POST {U} HTTP/1.1\r\nHost: h/x\r\n\r\n{S}",
    "POST {U}#f HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U}\\x HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U}\tx HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U}\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U} HTTP/1.1 HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U} HTTP/1.2\r\nHost: h\r\n\r\n{S}",
    "POST {U} HTTP/2.0\r\nHost: h\r\n\r\n{S}",
    "POST {U} http/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U}\r\nHost: h\r\n\r\n{S}",
    "PO(ST {U} HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    " POST {U} HTTP/1.1\r\nHost: h\r\n\r\n{S}",
    "POST {U} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "CONNECT unrouted.example:443 HTTP/1.1\r\nHost: unrouted.example\r\n\r\n{S}",
    "CONNECT unrouted.example:443 HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\n\r\n{S}",
    "CONNECT unrouted.example:443 HTTP/1.0\r\n\r\n{S}",
];

/// Methods whose bodies some parsers ignore.
const METHODS: &[&str] = &["POST", "GET", "DELETE", "OPTIONS", "HEAD", "PATCH", "PUT"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Forwarded,
    Refused,
    /// Refused, possibly after the first part was streamed.
    RefusedWhileStreamed,
}

/// Returns the text of each request, with its placeholders, and the expected outcome.
fn cases() -> Vec<(String, Expected)> {
    let post = |method: &str, fields: &str, body: &str| {
        format!("{method} {{U}} HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{body}")
    };
    let chunked = |body: &str| post("POST", "Transfer-Encoding: chunked", body);
    let mut cases = Vec::new();
    cases.extend(FORWARDED_FIELDS.iter().map(|(fields, body)| (post("POST", fields, body), Expected::Forwarded)));
    for method in METHODS {
        cases.push((post(method, "Content-Length: {n}", "{S}"), Expected::Forwarded));
        cases.push((post(method, "Transfer-Encoding: chunked", "{x}\r\n{S}\r\n0\r\n\r\n"), Expected::Forwarded));
    }
    cases.extend(REFUSED_FIELDS.iter().map(|(fields, body)| (post("POST", fields, body), Expected::Refused)));
    cases.extend(REFUSED_REQUESTS.iter().map(|request| ((*request).to_owned(), Expected::Refused)));
    cases.extend(MALFORMED_CHUNKS.iter().map(|body| (chunked(body), Expected::RefusedWhileStreamed)));
    cases
}

/// Sends every case to one origin, each over its own connection and followed by a valid request. Returns the number of
/// responses.
fn send_all(outgate: &Outgate, host: &str, port: u16, route: &str, cases: &[(String, Expected)]) -> usize {
    let mut responses = 0;
    for (number, (case, expected)) in cases.iter().enumerate() {
        let url = |name: &str| format!("http://{host}:{port}/{route}/{number}/{name}");
        let smuggled = format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", url("smuggled"));
        let length = smuggled.len();
        let text = case
            .replace("{U}", &url("case"))
            .replace("{h}", &format!("{host}:{port}"))
            .replace("{S}", &smuggled)
            .replace("{n}", &length.to_string())
            .replace("{x}", &format!("{length:x}"));
        let next = format!("GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", url("next"));
        let mut client = outgate.connect();
        client.try_send(text + &next);
        let response = String::from_utf8(client.rest()).unwrap();
        let ok = response.matches("HTTP/1.1 200 OK\r\n").count();
        assert_eq!(ok, if *expected == Expected::Forwarded { 2 } else { ok.min(1) }, "{case:?} on {host}: {response}");
        responses += response.matches("\r\noutgate-request-id: ").count();
    }
    responses
}

#[test]
fn origins_parse_exactly_the_requests_that_outgate_forwarded() {
    let Some(origins) = origins::all() else { return };
    let ports = origins.each_ref().map(|origin| origin.port.to_string()).join(", ");
    let names = origins.each_ref().map(|origin| format!("\"{}.example\"", origin.name));
    let known: String = names.iter().map(|name| format!("{name} = [\"127.0.0.1\"]\n")).collect();
    let route = |name: &str, more: &str| {
        let hosts = names.join(", ");
        format!(
            "[[routes]]\nname = {name:?}\nhosts = [{hosts}]\npaths = [\"/{name}/\"]\nports = [{ports}]\n\
             plaintext = \"allow\"\n{more}\n"
        )
    };
    let config = format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
allow_anonymous = true
[admin]
listen = []
[egress.default]
ranges = ["127.0.7.0/32"]
[guard]
allow = ["127.0.0.0/8"]
[resolver.hosts]
{known}
[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
{}{}"#,
        route("streamed", ""),
        route("signed", "sign = [\"platform\"]"),
    );
    let mut outgate = Outgate::run(folder(&Pki::new()), &config);
    let cases = cases();
    let responses: usize = std::thread::scope(|scope| {
        let senders = origins.each_ref().map(|origin| {
            let (outgate, cases) = (&outgate, &cases);
            scope.spawn(move || {
                let host = format!("{}.example", origin.name);
                ["streamed", "signed"].map(|route| send_all(outgate, &host, origin.port, route, cases))
            })
        });
        senders.into_iter().flat_map(|sent| sent.join().unwrap()).sum()
    });
    outgate.signal("TERM");
    assert!(outgate.wait().success());
    let records = outgate.records(responses);
    assert_eq!(records.len(), responses, "a record for every answer, and no other");
    for origin in origins {
        compare(&cases, origin, &records);
    }
}

/// The number of occurrences of each request line.
type RequestCounts = BTreeMap<String, usize>;

fn compare(cases: &[(String, Expected)], origin: origins::Origin, records: &[serde_json::Value]) {
    let (name, host) = (origin.name, format!("{}.example", origin.name));
    // The requests that outgate recorded as sent, and those that it may have sent in part before it refused them.
    let (mut sent, mut partly_sent) = (RequestCounts::new(), RequestCounts::new());
    let mut reused = 0;
    for record in records.iter().filter(|record| record["host"] == host.as_str()) {
        let code = record["code"].as_str().unwrap();
        let by_target = TABLE.iter().any(|row| row.name == code && row.blame.as_str() == "target");
        let line = format!("{} {} HTTP/1.1", record["method"].as_str().unwrap(), record["path"].as_str().unwrap());
        let counts = if code == "delivered" || by_target { &mut sent } else { &mut partly_sent };
        *counts.entry(line).or_default() += usize::from(!record["address"].is_null());
        reused += usize::from(record["reused"] == true);
    }
    let mut parsed = RequestCounts::new();
    for line in origin.lines() {
        *parsed.entry(line).or_default() += 1;
    }
    for (line, count) in &parsed {
        assert!(!line.contains("smuggled"), "{name} found {line}");
        let (sent, partly_sent) = (sent.get(line).unwrap_or(&0), partly_sent.get(line).unwrap_or(&0));
        assert!((*sent..=sent + partly_sent).contains(count), "{name} found {count} times, not {sent}: {line}");
    }
    assert!(sent.iter().all(|(line, count)| parsed.get(line).unwrap_or(&0) == count), "{name}: {sent:?}\n{parsed:?}");
    for (number, (case, expected)) in cases.iter().enumerate() {
        let method = case.split(' ').next().unwrap();
        for route in ["streamed", "signed"] {
            let count = parsed.get(&format!("{method} /{route}/{number}/case HTTP/1.1")).copied().unwrap_or_default();
            let most = usize::from(
                *expected == Expected::Forwarded
                    || (*expected == Expected::RefusedWhileStreamed && route == "streamed"),
            );
            let least = usize::from(*expected == Expected::Forwarded);
            assert!((least..=most).contains(&count), "{name} found {count} times, {route}: {case:?}");
        }
    }
    // The connections were reused, so the origin would have read a smuggled request.
    assert!(reused > cases.len(), "{name}: only {reused} connections were used again");
}
