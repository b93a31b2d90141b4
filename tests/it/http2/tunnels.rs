//! CONNECT over HTTP/2, in which a tunnel is one stream of a connection.
//! Does the tunnel behave as over HTTP/1, without an effect on other streams?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::future::poll_fn;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use rustls_pki_types::ServerName;
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, folder};
use support::signature::{verifies, verify};
use support::tenants::{new_key, write_key};
use support::tunnel::{client_hello, tls_config_trusting};
use support::tunnel_scene::{ManualScene, config, manual_scene, read, scene};
use support::{Outgate, TEST_TIMEOUT, read_to_end};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, client).await.expect("the client is done in time") })
}

async fn connect(outgate: &Outgate) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(outgate.proxy).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send_request(
    sender: &SendRequest<Bytes>,
    request: http::request::Builder,
) -> (Response<RecvStream>, SendStream<Bytes>) {
    let mut sender = sender.clone().ready().await.unwrap();
    let (response, stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    (response.await.unwrap(), stream)
}

fn connect_request(authority: &str) -> http::request::Builder {
    Request::builder().method("CONNECT").uri(authority)
}

fn code<B>(response: &Response<B>) -> (u16, &str) {
    (response.status().as_u16(), response.headers().get("outgate-error").map_or("", |code| code.to_str().unwrap()))
}

/// Reads at least `length` bytes, or up to the end.
async fn bytes(incoming: &mut RecvStream, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length
        && let Some(data) = incoming.data().await
    {
        let data = data.unwrap();
        incoming.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all
}

/// Returns the problem that refuses a CONNECT. The server may reset the stream with NO_ERROR after the whole response, because
/// the request has not ended (RFC 9113 §8.1). h2 reports that reset instead of the end of the data.
async fn problem(response: Response<RecvStream>) -> serde_json::Value {
    let (mut body, mut all) = (response.into_body(), Vec::new());
    while let Some(data) = body.data().await {
        match data {
            Err(error) if error.reason() == Some(h2::Reason::NO_ERROR) => break,
            data => all.extend_from_slice(&data.unwrap()),
        }
    }
    serde_json::from_slice(&all).unwrap()
}

/// Sends the data within the flow-control window, and ends the stream.
async fn send(outgoing: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        outgoing.reserve_capacity(data.len());
        while outgoing.capacity() == 0 {
            poll_fn(|cx| outgoing.poll_capacity(cx)).await.unwrap().unwrap();
        }
        let piece = data.split_to(outgoing.capacity().min(data.len()));
        outgoing.send_data(piece, false).unwrap();
    }
    outgoing.send_data(Bytes::new(), true).unwrap();
}

/// Turns the stream of a tunnel into an I/O object.
fn into_duplex(mut incoming: RecvStream, mut outgoing: SendStream<Bytes>) -> DuplexStream {
    let (mine, other) = tokio::io::duplex(64 * 1024);
    let (mut reading, mut writing) = tokio::io::split(other);
    tokio::spawn(async move {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let length = reading.read(&mut piece).await.unwrap_or(0);
            if outgoing.send_data(Bytes::copy_from_slice(&piece[..length]), length == 0).is_err() || length == 0 {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(data)) = incoming.data().await {
            let _ = incoming.flow_control().release_capacity(data.len());
            if writing.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = writing.shutdown().await;
    });
    mine
}

/// Sends one request over TLS to a peer with a certificate for `name` from `ca`, and returns the response.
async fn send_over_tls(tunnel: DuplexStream, name: &'static str, ca: &str, request: String) -> String {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config_trusting(ca)));
    let mut stream = connector.connect(ServerName::try_from(name).unwrap(), tunnel).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\nok") {
        assert!(stream.read_buf(&mut response).await.unwrap() > 0, "{}", String::from_utf8_lossy(&response));
    }
    String::from_utf8(response).unwrap()
}

fn post(authority: &str, path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody")
}

#[test]
fn http2_tunnels_and_deliveries_share_a_connection() {
    let scene = scene();
    run(async {
        let sender = connect(&scene.outgate).await;
        for count in 1..=3 {
            let (response, outgoing) = send_request(&sender, connect_request(&scene.authority())).await;
            assert_eq!(code(&response), (200, ""));
            let fields = response.headers();
            assert!(fields["outgate-egress"].to_str().unwrap().starts_with("127.0.7."), "{fields:?}");
            assert!(!fields.contains_key("content-length") && fields.contains_key("outgate-request-id"), "{fields:?}");
            let tunnel = into_duplex(response.into_body(), outgoing);
            // An ordinary webhook uses another stream.
            let url = format!("https://{}/beside", scene.authority());
            let get = Request::builder().uri(url).body(()).unwrap();
            let (beside, _) = sender.clone().ready().await.unwrap().send_request(get, true).unwrap();
            assert_eq!(code(&beside.await.unwrap()), (200, ""));
            let response =
                send_over_tls(tunnel, "tunnel.example", &scene.pki.pem, post(&scene.authority(), "/in")).await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
            assert_eq!(
                scene.target.requests().iter().filter(|received| received.line == "POST /in HTTP/1.1").count(),
                count
            );
            tokio::task::block_in_place(|| scene.outgate.records(2 * count));
        }
    });
    let records = scene.outgate.records(6);
    let tunnels: Vec<_> = records.iter().filter(|record| record["method"] == "CONNECT").collect();
    assert_eq!(tunnels.len(), 3);
    assert!(tunnels.iter().all(|record| record["code"] == "delivered" && record["bytes_sent"].as_u64() > Some(100)));
}

#[test]
fn http2_tunnel_refusal_is_a_response_and_the_connection_goes_on() {
    let scene = scene();
    run(async {
        let sender = connect(&scene.outgate).await;
        for (request, expected) in [
            (connect_request("refused.example:443"), (403, "tunnel_forbidden")),
            (connect_request("unknown.example:443"), (403, "no_route")),
            (connect_request("tunnel.example"), (400, "request_malformed")),
            (connect_request(&scene.authority()).header("content-length", "1"), (400, "request_malformed")),
            (connect_request("tunnel.example:22"), (403, "target_port_forbidden")),
        ] {
            let label = format!("{request:?}");
            let (response, mut outgoing) = send_request(&sender, request).await;
            assert_eq!(code(&response), expected, "{label}");
            let _ = outgoing.send_data(Bytes::from_static(b"GET http://plain.example/ HTTP/1.1\r\n\r\n"), true);
            assert_eq!(problem(response).await["code"], expected.1, "{label}");
        }
        let (response, _outgoing) = send_request(&sender, connect_request(&scene.authority())).await;
        assert_eq!(code(&response), (200, ""));
    });
    assert!(scene.target.requests().is_empty());
    assert_eq!(scene.outgate.records(6).len(), 6);
}

async fn open(
    scene: &ManualScene,
    sender: &SendRequest<Bytes>,
) -> (RecvStream, SendStream<Bytes>, std::net::TcpStream) {
    let exchange = send_request(sender, connect_request(&scene.authority()));
    let accepting = async { tokio::task::block_in_place(|| (scene.close_on_tls(), scene.accept()).1) };
    let ((response, outgoing), stream) = tokio::join!(exchange, accepting);
    assert_eq!(code(&response), (200, ""));
    (response.into_body(), outgoing, stream)
}

#[test]
fn http2_tunnels_are_capped_by_the_descriptor_limit() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = config(listener.local_addr().unwrap().port(), "");
    // (264 - 256) / 4 = 2
    let outgate = Outgate::run_limited(folder(&Pki::new()), &text, 264);
    let scene = ManualScene { outgate, listener };
    run(async {
        let sender = connect(&scene.outgate).await;
        let (first, _second) = (open(&scene, &sender).await, open(&scene, &sender).await);
        let (response, _outgoing) = send_request(&sender, connect_request(&scene.authority())).await;
        assert_eq!(code(&response), (429, "concurrency_limited"));
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(problem(response).await["details"], "busy");
        drop(first);
        tokio::task::block_in_place(|| scene.outgate.records(2));
        let _third = open(&scene, &sender).await;
    });
}

/// RFC 9113 §8.5: the target must not take an error of the stream for the end of what the client sends.
#[test]
fn http2_tunnel_whose_stream_is_reset_resets_the_target() {
    let scene = manual_scene("");
    run(async {
        let sender = connect(&scene.outgate).await;
        let (_incoming, mut outgoing, mut target) = open(&scene, &sender).await;
        outgoing.send_data(Bytes::from_static(b"half"), false).unwrap();
        tokio::task::block_in_place(|| {
            let mut read = [0; 4];
            target.read_exact(&mut read).unwrap();
            outgoing.send_reset(Reason::CANCEL);
            let error = target.read(&mut read).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        });
    });
}

#[test]
fn http2_tunnel_carries_half_closes_and_bulk_data() {
    const LENGTH: usize = 4 << 20;
    let scene = manual_scene("");
    run(async {
        let sender = connect(&scene.outgate).await;
        let (mut incoming, mut outgoing, mut target) = open(&scene, &sender).await;
        let echo = std::thread::spawn(move || {
            let mut all = Vec::new();
            target.read_to_end(&mut all).unwrap();
            target.write_all(&all).unwrap();
        });
        let data: Vec<u8> = (0..LENGTH).map(|n| ((n * 31) >> 3) as u8).collect();
        send(&mut outgoing, data.clone().into()).await;
        let got = bytes(&mut incoming, usize::MAX).await;
        assert!(got == data, "{} bytes came back", got.len());
        echo.join().unwrap();
    });
    let record = scene.record(1);
    assert_eq!((&record["bytes_sent"], &record["bytes_received"]), (&LENGTH.into(), &LENGTH.into()), "{record}");
    assert_eq!(record["code"], "delivered", "{record}");
}

#[test]
fn http2_tunnel_forwards_a_reset_to_the_other_side() {
    let scene = manual_scene("");
    run(async {
        let sender = connect(&scene.outgate).await;
        let (_incoming, mut outgoing, mut target) = open(&scene, &sender).await;
        outgoing.send_reset(Reason::CANCEL);
        assert!(read_to_end(&mut target).is_empty(), "the target's connection ends");

        let (mut incoming, mut outgoing, mut target) = open(&scene, &sender).await;
        outgoing.send_data(Bytes::from_static(b"ping"), false).unwrap();
        assert_eq!(read(&mut target, 4), b"ping");
        // The close with an unread byte causes a reset.
        outgoing.send_data(Bytes::from_static(b"unread"), false).unwrap();
        target.peek(&mut [0; 1]).unwrap();
        drop(target);
        let error = incoming.data().await.unwrap().unwrap_err();
        assert!(error.is_remote() && error.reason() == Some(Reason::CONNECT_ERROR), "{error:?}");

        // The connection can still open streams.
        let (_incoming, _outgoing, _target) = open(&scene, &sender).await;
    });
    assert_eq!(scene.outgate.records(3).len(), 3);
}

struct InspectScene {
    inspector: Pki,
    target: Receiver,
    outgate: Outgate,
    authority: String,
    /// The key of the tenant `acme`.
    tenant_key: String,
}

/// Starts a proxy with a route that inspects tunnels, and its target.
fn inspect_scene() -> InspectScene {
    let (pki, inspector) = (Pki::new(), Pki::new());
    let target = Receiver::tls(pki.leaf(&["inspect.example"]), ok());
    let folder = folder(&pki);
    folder.write("inspector.pem", &inspector.pem);
    folder.write("inspector.key", inspector.key_pem());
    let port = target.port();
    let tenant_key = new_key("standard-webhooks");
    write_key(&folder, "keys/acme/own.key", &tenant_key);
    let route = format!(
        "\"inspect.example\" = [\"127.0.0.1\"]\n[clients.billing]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"acme\"]\n\
         [[routes]]\nname = \"inspect\"\nhosts = [\"inspect.example\"]\n\
         ports = [{port}]\nsign = [\"platform\"]\nconnect = \"inspect\"\n"
    );
    let text = config(port, &route)
        .and("[server]\nca = { certificate = \"{dir}/inspector.pem\", key = \"{dir}/inspector.key\" }")
        .add("signers.platform.key_dir", "{dir}/keys");
    let outgate = Outgate::run(folder, &text);
    let authority = format!("inspect.example:{port}");
    InspectScene { inspector, target, outgate, authority, tenant_key }
}

#[test]
fn http2_inspected_tunnel_delivers_its_requests_signed() {
    let InspectScene { inspector, target, outgate, authority, .. } = inspect_scene();
    run(async {
        let sender = connect(&outgate).await;
        let (response, outgoing) = send_request(&sender, connect_request(&authority)).await;
        assert_eq!(code(&response), (200, ""));
        let tunnel = into_duplex(response.into_body(), outgoing);
        let response = send_over_tls(tunnel, "inspect.example", &inspector.pem, post(&authority, "/in")).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("outgate-egress: 127.0.7."), "{response}");
        // The client's connection is still open, so the record shows that the tunnel ended.
        let records = tokio::task::block_in_place(|| outgate.records(2));
        assert!(records.iter().all(|record| record["code"] == "delivered"), "{records:?}");
    });
    let received = target.requests().pop().unwrap();
    assert_eq!((received.line.as_str(), received.body.as_slice()), ("POST /in HTTP/1.1", &b"body"[..]));
    verify(&received, SECRET);
}

#[test]
fn outgate_tenant_inside_a_tunnel_over_http2_chooses_the_signing_key() {
    let InspectScene { inspector, target, outgate, authority, tenant_key } = inspect_scene();
    let request = post(&authority, "/in").replace_one("Connection", "Outgate-Tenant: acme\r\nConnection");
    run(async {
        let sender = connect(&outgate).await;
        let (response, outgoing) = send_request(&sender, connect_request(&authority)).await;
        let tunnel = into_duplex(response.into_body(), outgoing);
        let response = send_over_tls(tunnel, "inspect.example", &inspector.pem, request).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    });
    let received = target.requests().pop().unwrap();
    assert!(verifies(&received, tenant_key.trim()) && !verifies(&received, SECRET), "{received:?}");
}

#[test]
fn tunnel_over_http2_with_a_client_hello_for_another_host_ends_with_a_tls_alert() {
    let scene = scene();
    run(async {
        let sender = connect(&scene.outgate).await;
        let (response, mut outgoing) = send_request(&sender, connect_request(&scene.authority())).await;
        assert_eq!(code(&response), (200, ""));
        outgoing.send_data(client_hello("other.example").into(), false).unwrap();
        let mut incoming = response.into_body();
        assert_eq!(bytes(&mut incoming, 7).await, [21, 3, 3, 0, 2, 2, 112]);
        // The stream ends with END_STREAM. A reset could overtake the alert.
        while let Some(data) = incoming.data().await {
            assert!(data.unwrap().is_empty());
        }
    });
}

#[test]
fn plain_http_inside_a_tunnel_over_http2_gets_a_readable_400() {
    let (scene, inspect_scene) = (scene(), inspect_scene());
    for (outgate, authority) in
        [(&scene.outgate, &scene.authority()), (&inspect_scene.outgate, &inspect_scene.authority)]
    {
        run(async {
            let sender = connect(outgate).await;
            let (response, mut outgoing) = send_request(&sender, connect_request(authority)).await;
            assert_eq!(code(&response), (200, ""));
            outgoing.send_data(post(authority, "/in").into(), true).unwrap();
            // The stream ends with END_STREAM. A reset could overtake the response.
            let response = bytes(&mut response.into_body(), usize::MAX).await;
            let response = String::from_utf8(response).unwrap();
            let start = "HTTP/1.1 400 Bad Request (request_malformed: plaintext)\r\n";
            assert!(response.starts_with(start) && response.contains("this tunnel requires TLS"), "{response}");
            let record = &tokio::task::block_in_place(|| outgate.records(1))[0];
            assert_eq!((&record["method"], &record["details"]), (&"CONNECT".into(), &"plaintext".into()), "{record}");
        });
    }
}
