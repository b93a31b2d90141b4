//! Clients whose webhooks go to the same target.
//! Can a request of one client end a delivery of another?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::{Arc, Mutex};

use support::frames::{FrameTarget, Progress, RequestEvent, Script, goaway, ok_response};
use support::pki::Pki;
use support::receiver::{Receiver, ok, respond_and_close};
use support::scene::{config, folder};
use support::{Outgate, Response, post};

/// SHA-256 of "one" and of "two", the clients' tokens.
const TOKENS: &str = "\
[clients.one]
tokens = [\"sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed\"]
[clients.two]
tokens = [\"sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3\"]
";
const ONE: &str = "Proxy-Authorization: Bearer one\r\n";
const TWO: &str = "Proxy-Authorization: Bearer two\r\n";
const SHARED: &str = "client_connections = \"shared\"";
const MAX_HEADER_LIST_SIZE: u16 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

fn outgate(pki: &Pki, port: u16, more: &str) -> Outgate {
    let other = Receiver::plain(ok());
    let text = config(&other, &other, TOKENS)
        .remove("server.allow_anonymous")
        .remove("routes.signed.sign")
        .route("signed", more)
        .set("egress.default.ranges", ["127.0.7.1/32"])
        .push("routes.*.ports", port);
    Outgate::run(folder(pki), &text)
}

/// A field of `length` bytes.
fn oversized(client: &str, length: usize) -> String {
    format!("{client}X-Large: {}\r\n", "x".repeat(length))
}

/// The largest compressed head, in bytes, for which the target keeps the connection.
const ACCEPTED: usize = 7000;

/// Returns a script that responds to all waiting requests of a connection when the body "go" comes. A large head ends the
/// connection.
fn waiting() -> Script {
    let held: Mutex<Vec<(usize, u32)>> = Mutex::default();
    Arc::new(move |event: &RequestEvent| {
        if event.head > ACCEPTED {
            return goaway(0, ENHANCE_YOUR_CALM);
        }
        if event.progress != Progress::End {
            return Vec::new();
        }
        let mut held = held.lock().unwrap();
        held.push((event.connection, event.stream));
        if event.body != b"go" {
            return Vec::new();
        }
        let ready = held.extract_if(.., |(connection, _)| *connection == event.connection);
        ready.flat_map(|(_, stream)| ok_response(stream)).collect()
    })
}

#[test]
fn clients_share_connections_to_a_target_only_where_the_route_says_so() {
    for (more, connections) in [("", 2), (SHARED, 1)] {
        let pki = Pki::new();
        let target = FrameTarget::start(
            &pki,
            &[],
            Arc::new(|event| if event.progress == Progress::End { ok_response(event.stream) } else { Vec::new() }),
        );
        let outgate = outgate(&pki, target.address.port(), more);
        for client in [ONE, TWO, ONE, TWO] {
            assert_eq!(outgate.post(&target.url(), client, "{}").status, 200);
        }
        assert_eq!(target.connections(), connections, "{more}");
    }
}

/// Sends a head of `length` bytes from one client while five requests of another wait. Returns the statuses of the five,
/// and the response to the large head.
fn attack(more: &str, settings: &[(u16, u32)], length: usize) -> (Vec<u16>, Response) {
    let pki = Pki::new();
    let target = FrameTarget::start(&pki, settings, waiting());
    let outgate = outgate(&pki, target.address.port(), more);
    // The target's SETTINGS are known from here on.
    assert_eq!(outgate.post(&target.url(), ONE, "go").status, 200);
    let mut clients: Vec<_> = (0..5).map(|_| outgate.connect()).collect();
    for client in &mut clients {
        client.send(post(&target.url(), ONE, "wait"));
    }
    target.wait_for_requests(6);
    let response = outgate.post(&target.url(), &oversized(TWO, length), "{}");
    assert_eq!(outgate.post(&target.url(), ONE, "go").status, 200);
    (clients.iter_mut().map(|client| client.response().status).collect(), response)
}

#[test]
fn an_oversized_request_head_ends_no_other_clients_requests() {
    let announced = [(MAX_HEADER_LIST_SIZE, 8 << 10)];
    for more in ["", SHARED] {
        // The first head exceeds the announced limit. The second exceeds what servers accept that announce none.
        for (settings, length) in [(&announced[..], 12_000), (&[], 20_000)] {
            let (statuses, response) = attack(more, settings, length);
            assert_eq!(statuses, [200; 5], "{more}, {length} bytes");
            let problem = response.json();
            assert_eq!((response.status, &problem["blame"]), (431, &"client".into()), "{problem}");
            assert_eq!(problem["details"], "request_head_too_large", "{problem}");
            assert_eq!(problem["retryable"], true, "the target has not processed it: {problem}");
        }
    }
}

#[test]
fn a_request_head_that_the_target_accepts_uses_the_shared_connection() {
    let pki = Pki::new();
    let target = FrameTarget::start(
        &pki,
        &[(MAX_HEADER_LIST_SIZE, 64 << 10)],
        Arc::new(|event| if event.progress == Progress::End { ok_response(event.stream) } else { Vec::new() }),
    );
    let outgate = outgate(&pki, target.address.port(), SHARED);
    for length in [20_000, 10, 20_000] {
        assert_eq!(outgate.post(&target.url(), &oversized(ONE, length), "{}").status, 200);
    }
    assert_eq!(target.connections(), 1);
}

#[test]
fn a_large_request_head_that_an_http1_target_drops_may_be_retried() {
    let target = Receiver::plain(respond_and_close(""));
    let outgate = outgate(&Pki::new(), target.port(), "");
    let url = format!("http://plain.example:{}/in", target.port());
    let small = outgate.post(&url, ONE, "{}").json();
    assert_eq!((&small["code"], &small["blame"]), (&"connection_lost".into(), &"target".into()), "{small}");
    // A restarting target also drops the connection.
    let large = outgate.post(&url, &oversized(ONE, 20_000), "{}").json();
    assert_eq!((&large["code"], &large["retryable"]), (&"connection_lost".into(), &true.into()), "{large}");
    assert_eq!(large["details"], "large_request_head", "{large}");
}
