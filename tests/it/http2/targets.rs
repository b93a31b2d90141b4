//! Targets that choose HTTP/2.
//! Is a connection shared up to the target's limit, and is no request sent twice?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::wiretap::Wiretap;
use support::{Outgate, TEST_TIMEOUT, eventually, post};
use tokio::net::TcpListener;
use tokio::sync::{Barrier, Semaphore};

type Respond = h2::server::SendResponse<Bytes>;
type Peer = h2::server::Connection<tokio_rustls::server::TlsStream<tokio::net::TcpStream>, Bytes>;

/// The reaction of a target to a request. Connections, and the requests on each connection, count from 0.
type Reaction = Arc<dyn Fn(RequestContext<'_>, Request<h2::RecvStream>, Respond) + Send + Sync>;

struct RequestContext<'a> {
    connection: usize,
    request: usize,
    peer: &'a mut Peer,
}

struct Target {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Target {
    fn start(pki: &Pki, streams: u32, reaction: Reaction) -> Self {
        Self::start_with_late_settings(pki, streams, Arc::new(Semaphore::new(1)), reaction)
    }

    /// Starts a target that ends its first connection with its first response.
    fn that_ends_its_first_connection(pki: &Pki) -> Self {
        let reaction = |context: RequestContext<'_>, _, to| {
            if context.connection == 0 {
                context.peer.graceful_shutdown();
            }
            respond(to, "ok");
        };
        Self::start(pki, 100, Arc::new(reaction))
    }

    /// Starts a target that sends its SETTINGS when `may_send_settings` has a permit.
    fn start_with_late_settings(
        pki: &Pki,
        streams: u32,
        may_send_settings: Arc<Semaphore>,
        reaction: Reaction,
    ) -> Self {
        let identity = pki.leaf(&["hook.example"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&connections);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, reaction) = (acceptor.clone(), Arc::clone(&reaction));
                let (may_send_settings, count) = (Arc::clone(&may_send_settings), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let connection = count.fetch_add(1, Ordering::SeqCst);
                    drop(may_send_settings.acquire().await.unwrap());
                    let mut peer =
                        h2::server::Builder::new().max_concurrent_streams(streams).handshake(stream).await.unwrap();
                    let mut request = 0;
                    while let Some(Ok((request_head, respond))) = peer.accept().await {
                        reaction(RequestContext { connection, request, peer: &mut peer }, request_head, respond);
                        request += 1;
                    }
                });
            }
        });
        Self { address, connections, _runtime: runtime }
    }

    /// Waits for at least this many connections.
    fn wait_for_connections(&self, count: usize) {
        eventually(&format!("{count} connections"), || self.connections() >= count);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("https://hook.example:{}/in?a=1", self.address.port())
    }

    fn outgate(&self, pki: &Pki) -> Outgate {
        Self::outgate_for(pki, self.address)
    }

    /// Starts an outgate that finds the target at this address.
    fn outgate_for(pki: &Pki, address: SocketAddr) -> Outgate {
        let other = Receiver::plain(ok());
        let text = config(&other, &other, "").set("routes.signed.ports", [address.port()]);
        // The pool has one source address, so that all deliveries may share a connection.
        Outgate::run(folder(pki), &text.set("egress.default.ranges", ["127.0.7.1/32"]))
    }
}

fn respond(mut to: Respond, body: &'static str) {
    let mut stream = to.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
}

async fn read(mut body: h2::RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    all
}

#[test]
fn http2_target_gets_whole_requests_without_connection_fields() {
    let pki = Pki::new();
    type ReceivedRequests = Vec<(http::request::Parts, Vec<u8>)>;
    let received: Arc<Mutex<ReceivedRequests>> = Arc::default();
    let recorder = Arc::clone(&received);
    let target = Target::start(
        &pki,
        100,
        Arc::new(move |_, request, to| {
            let recorder = Arc::clone(&recorder);
            tokio::spawn(async move {
                let (parts, body) = request.into_parts();
                let body = read(body).await;
                recorder.lock().unwrap().push((parts, body));
                respond(to, "ok");
            });
        }),
    );
    let outgate = target.outgate(&pki);
    let large = "x".repeat(60_000);
    for body in ["{}", large.as_str(), ""] {
        let response = outgate.post(&target.url(), "Connection: x-hop\r\nX-Hop: 1\r\nTE: trailers\r\n", body);
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
        assert_eq!(response.field("via"), "2 outgate");
    }
    let received = received.lock().unwrap();
    for ((parts, body), sent) in received.iter().zip(["{}", large.as_str(), ""]) {
        assert_eq!(String::from_utf8_lossy(body), sent);
        assert_eq!(parts.uri.to_string(), target.url());
        let names: HashSet<_> = parts.headers.keys().map(http::HeaderName::as_str).collect();
        assert!(names.contains("webhook-signature"), "{names:?}");
        assert_eq!(parts.headers["content-length"], sent.len().to_string());
        assert!(
            names.is_disjoint(&HashSet::from(["host", "connection", "transfer-encoding", "te", "x-hop"])),
            "{names:?}"
        );
    }
    assert_eq!(target.connections(), 1);
    let record = &outgate.records(3)[2];
    assert_eq!((&record["http"], &record["reused"]), (&"2".into(), &true.into()), "{record}");
}

#[test]
fn http2_target_connections_are_shared_up_to_the_stream_limit() {
    const STREAMS: u32 = 4;
    let pki = Pki::new();
    let together = Arc::new(Barrier::new(8));
    let waits = Arc::clone(&together);
    let target = Target::start(
        &pki,
        STREAMS,
        Arc::new(move |context, _, to| {
            let waits = Arc::clone(&waits);
            let first = context.connection == 0 && context.request == 0;
            tokio::spawn(async move {
                if !first {
                    waits.wait().await;
                }
                respond(to, "ok");
            });
        }),
    );
    let outgate = target.outgate(&pki);
    assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    // All eight wait for each other, so the test ends only if none of them waits in the proxy for a stream.
    let mut clients: Vec<_> = (0..8).map(|_| outgate.connect()).collect();
    for client in &mut clients {
        client.send(post(&target.url(), "", "{}"));
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
    let connections = target.connections();
    assert!((2..=5).contains(&connections), "four of eight share one, the others bring their own: {connections}");
}

#[test]
fn http2_target_connection_is_not_shared_before_its_settings() {
    let pki = Pki::new();
    let may_send_settings = Arc::new(Semaphore::new(0));
    let target = Target::start_with_late_settings(
        &pki,
        1,
        Arc::clone(&may_send_settings),
        Arc::new(|_, _, to| respond(to, "ok")),
    );
    let outgate = target.outgate(&pki);
    let mut clients = Vec::new();
    for count in 1..=3 {
        let mut client = outgate.connect();
        client.send(post(&target.url(), "", "{}"));
        target.wait_for_connections(count);
        clients.push(client);
    }
    may_send_settings.add_permits(1);
    for mut client in clients {
        assert_eq!(client.response().text(), "ok");
    }
    assert_eq!(target.connections(), 3);
}

#[test]
fn http2_target_connection_is_shared_while_its_first_delivery_waits() {
    let pki = Pki::new();
    let (may_send_settings, may_respond) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let received = Arc::new(AtomicUsize::new(0));
    let (waits, counts) = (Arc::clone(&may_respond), Arc::clone(&received));
    let target = Target::start_with_late_settings(
        &pki,
        100,
        Arc::clone(&may_send_settings),
        Arc::new(move |context, _, to| {
            counts.fetch_add(usize::from(context.connection == 0), Ordering::SeqCst);
            let waits = Arc::clone(&waits);
            let first = (context.connection, context.request) == (0, 0);
            tokio::spawn(async move {
                if first {
                    drop(waits.acquire().await.unwrap());
                }
                respond(to, "ok");
            });
        }),
    );
    let outgate = target.outgate(&pki);
    let mut first = outgate.connect();
    first.send(post(&target.url(), "", "{}"));
    target.wait_for_connections(1);
    may_send_settings.add_permits(1);
    eventually("a request", || received.load(Ordering::SeqCst) > 0);
    // A delivery waits only briefly for SETTINGS, so some may open their own connections.
    let deadline = Instant::now() + TEST_TIMEOUT;
    while received.load(Ordering::SeqCst) == 1 {
        assert!(Instant::now() < deadline, "no delivery shares the connection");
        assert_eq!(outgate.post(&target.url(), "", "{}").text(), "ok");
    }
    may_respond.add_permits(1);
    assert_eq!(first.response().text(), "ok");
}

#[test]
fn http2_target_gets_one_connection_in_place_of_one_that_ended() {
    const CLIENTS: usize = 32;
    let pki = Pki::new();
    let target = Target::that_ends_its_first_connection(&pki);
    let outgate = target.outgate(&pki);
    assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| outgate.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(post(&target.url(), "", "{}")));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "ok"));
    assert_eq!(target.connections(), 2);
    let records = outgate.records(1 + CLIENTS);
    assert_eq!(records.iter().filter(|record| record["reused"] == true).count(), CLIENTS - 1);
}

/// The client stops its upload after the beginning of an early response, which the target continues after the body timeout.
#[test]
fn http2_early_response_goes_on_when_the_upload_fails() {
    let pki = Pki::new();
    let target = Target::start(
        &pki,
        100,
        Arc::new(move |_, request, mut to| {
            tokio::spawn(async move {
                let mut response = to.send_response(Response::new(()), false).unwrap();
                response.send_data(Bytes::from_static(b"part1"), false).unwrap();
                // The target takes longer than the body timeout.
                tokio::time::sleep(std::time::Duration::from_millis(3500)).await;
                response.send_data(Bytes::from_static(b"part2"), true).unwrap();
                drop(request);
            });
        }),
    );
    let other = Receiver::plain(ok());
    let text = config(&other, &other, "")
        .remove("routes.signed.sign")
        .set("routes.signed.ports", [target.address.port()])
        .set("routes.signed.timeouts.body", "200ms");
    let outgate = Outgate::run(folder(&pki), &text);
    let mut client = outgate.connect();
    client.send(format!("POST {} HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf!", target.url()));
    std::thread::sleep(std::time::Duration::from_secs(2)); // the client takes longer than the body timeout
    client.send("half?");
    assert_eq!(client.response().text(), "part1part2");
    let record = &outgate.records(1)[0];
    assert_eq!((&record["code"], &record["bytes_sent"]), (&"delivered".into(), &5.into()), "{record}");
}

/// The client whose delivery opens the connection hangs up within the handshake. One of the others opens it, not each of them.
#[test]
fn http2_target_gets_one_connection_when_the_client_that_opens_it_hangs_up() {
    let pki = Pki::new();
    let target = Target::that_ends_its_first_connection(&pki);
    let tap = Wiretap::before(target.address);
    let outgate = Target::outgate_for(&pki, tap.address);
    let url = format!("https://hook.example:{}/in", tap.address.port());
    assert_eq!(outgate.post(&url, "", "{}").status, 200);
    tap.hold_next_answer("hook.example"); // the name in the ClientHello
    let mut first = outgate.connect();
    first.send(post(&url, "", "{}"));
    eventually("the ClientHello", || tap.traffic().get(1).is_some_and(|second| !second.sent.is_empty()));
    let mut others: Vec<_> = (0..8).map(|_| outgate.connect()).collect();
    others.iter_mut().for_each(|client| client.send(post(&url, "", "{}")));
    drop(first);
    others.iter_mut().for_each(|client| assert_eq!(client.response().text(), "ok"));
    assert_eq!(tap.traffic().len(), 3);
}

/// RFC 9113 §8.1: a target may respond before it has the whole request, and stop the upload with NO_ERROR.
#[test]
fn http2_target_that_responds_early_keeps_its_connection() {
    let pki = Pki::new();
    // h2 sends NO_ERROR because the reaction drops the body.
    let target = Target::start(&pki, 100, Arc::new(|_, _, to| respond(to, "enough")));
    let outgate = target.outgate(&pki);
    // The body exceeds the window (65,535 bytes, RFC 9113 §6.9.2), so its last byte is never sent.
    let large = "x".repeat(65_536);
    for _ in 0..20 {
        assert_eq!(outgate.post(&target.url(), "", &large).text(), "enough");
    }
    assert_eq!(target.connections(), 1);
}

#[test]
fn slow_readers_do_not_stall_other_streams_of_a_shared_connection() {
    const SLOW: usize = 6;
    /// More bytes than the kernel buffers for a client that does not read.
    const LARGE: usize = 32 << 20;
    /// Requests in a row during which nothing more was sent to the slow readers.
    const STALLED: usize = 20;
    let pki = Pki::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&sent);
    let target = Target::start(
        &pki,
        100,
        Arc::new(move |_, request, mut to| {
            if request.uri().path() != "/large" {
                return respond(to, "ok");
            }
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                let mut stream = to.send_response(Response::new(()), false).unwrap();
                let mut left = LARGE;
                while left > 0 {
                    stream.reserve_capacity(16 * 1024);
                    let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
                    let piece = capacity.min(left).min(16 * 1024);
                    if stream.send_data(Bytes::from(vec![b'x'; piece]), piece == left).is_err() {
                        return;
                    }
                    left -= piece;
                    counts.fetch_add(piece, Ordering::SeqCst);
                }
            });
        }),
    );
    let outgate = target.outgate(&pki);
    assert_eq!(outgate.post(&target.url(), "", "{}").text(), "ok");
    let mut slow: Vec<_> = (0..SLOW).map(|_| outgate.connect()).collect();
    for client in &mut slow {
        client.send(post(&target.url().replace_one("/in", "/large"), "", "{}"));
    }
    let deadline = Instant::now() + TEST_TIMEOUT;
    let (mut before, mut stalled) = (0, 0);
    while stalled < STALLED {
        assert!(Instant::now() < deadline, "the slow readers never stall");
        let response = outgate.post(&target.url(), "", "{}");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
        let now = sent.load(Ordering::SeqCst);
        stalled = if now == before && now > SLOW << 20 { stalled + 1 } else { 0 };
        before = now;
    }
    assert_eq!(target.connections(), 1);
}

#[test]
fn http2_request_that_the_target_did_not_process_is_resent() {
    for graceful in [true, false] {
        let pki = Pki::new();
        let target = Target::start(
            &pki,
            100,
            Arc::new(move |context, _, mut to| match (context.connection, context.request) {
                (0, 1) if graceful => {
                    context.peer.abrupt_shutdown(h2::Reason::NO_ERROR);
                    drop(to);
                }
                (0, 1) => to.send_reset(h2::Reason::REFUSED_STREAM),
                _ => respond(to, "ok"),
            }),
        );
        let outgate = target.outgate(&pki);
        assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
        let second = outgate.post(&target.url(), "", "{}");
        if !graceful {
            assert_eq!((second.status, second.text().as_str()), (200, "ok"), "{second:?}");
            assert_eq!(target.connections(), 2);
        }
        assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    }
}

#[test]
fn http2_request_that_the_target_may_have_processed_is_not_resent() {
    let pki = Pki::new();
    let target = Target::start(
        &pki,
        100,
        Arc::new(move |context, _, mut to| match (context.connection, context.request) {
            (0, 1) => to.send_reset(h2::Reason::INTERNAL_ERROR),
            _ => respond(to, "ok"),
        }),
    );
    let outgate = target.outgate(&pki);
    assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    assert_eq!(outgate.post(&target.url(), "", "{}").code(), "connection_lost");
    assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    assert_eq!(target.connections(), 1, "a reset stream does not cost the connection");
}

#[test]
fn http2_target_connection_after_goaway_is_not_reused() {
    let pki = Pki::new();
    let target = Target::start(
        &pki,
        100,
        Arc::new(move |context, _, to| {
            if context.connection == 0 && context.request == 1 {
                context.peer.graceful_shutdown();
            }
            respond(to, "ok");
        }),
    );
    let outgate = target.outgate(&pki);
    for _ in 0..6 {
        assert_eq!(outgate.post(&target.url(), "", "{}").status, 200);
    }
    assert_eq!(target.connections(), 2);
}

#[test]
fn http2_target_gets_oauth2_tokens() {
    let pki = Pki::new();
    let received: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let recorder = Arc::clone(&received);
    let target = Target::start(
        &pki,
        100,
        Arc::new(move |_, request, to| {
            let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
            let path = request.uri().path().to_owned();
            let response = if path == "/token" { r#"{"access_token":"t","token_type":"bearer"}"# } else { "ok" };
            recorder.lock().unwrap().push((path, authorization));
            respond(to, response);
        }),
    );
    let other = Receiver::plain(ok());
    let port = target.address.port();
    let credential = format!(
        "[credentials.acme]\ntype = \"oauth2\"\ntoken_url = \"https://hook.example:{port}/token\"\nclient_id = \"us\"\n\
         client_secret = \"file:{{dir}}/key\"\n"
    );
    let text = config(&other, &other, &credential)
        .set("routes.signed.ports", [port])
        .add("routes.signed.credential", "acme")
        .set("egress.default.ranges", ["127.0.7.1/32"]);
    let outgate = Outgate::run(folder(&pki), &text);
    for _ in 0..3 {
        assert_eq!(outgate.post(&target.url(), "Authorization: Bearer theirs\r\n", "{}").status, 200);
    }
    let received = received.lock().unwrap();
    let authorization: Vec<&str> = received.iter().skip(1).map(|(_, authorization)| authorization.as_str()).collect();
    assert!(received[0].0 == "/token" && received[0].1.starts_with("Basic "), "{received:?}");
    assert_eq!(authorization, ["Bearer t"; 3]);
    assert_eq!(target.connections(), 2, "the token request and the delivery have separate connections");
}
