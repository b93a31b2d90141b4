//! Responses of HTTP/2 targets, written frame by frame.
//! Is a response complete for the client exactly if the target has ended it?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Outgate, TEST_TIMEOUT};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Error codes (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const CANCEL: u32 = 8;

/// A step of the target's response.
#[derive(Clone)]
enum Step {
    /// HEADERS with this status and these fields.
    Head(u16, &'static [(&'static str, &'static str)]),
    /// HEADERS with END_STREAM.
    LastHead(u16, &'static [(&'static str, &'static str)]),
    Trailers,
    Data(&'static str),
    LastData(&'static str),
    Reset(u32),
    /// GOAWAY with this stream as the last one, and the end of the connection.
    GoAway,
    /// HEADERS without END_HEADERS, which CONTINUATION must follow.
    HalfHead,
    /// The end of the connection.
    Close,
    /// Waits for a message of the test.
    Gate,
}

use Step::{Close, Data, Gate, GoAway, HalfHead, Head, LastData, LastHead, Reset, Trailers};

struct Target {
    port: u16,
    connections: Arc<AtomicUsize>,
    gate: mpsc::Sender<()>,
    outgate: Outgate,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Returns HPACK fields without indexing or compression (RFC 7541 §6.2.2).
fn block(status: Option<u16>, fields: &[(&str, &str)]) -> Vec<u8> {
    let status = status.map(|status| (":status".to_owned(), status.to_string()));
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let mut bytes = Vec::new();
    for (name, value) in status.into_iter().chain(fields) {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

impl Step {
    fn bytes(&self, stream: u32) -> Vec<u8> {
        match self {
            Head(status, fields) => frame(HEADERS, END_HEADERS, stream, &block(Some(*status), fields)),
            LastHead(status, fields) => frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(Some(*status), fields)),
            Trailers => frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(None, &[("x-trailer", "1")])),
            Data(text) => frame(DATA, 0, stream, text.as_bytes()),
            LastData(text) => frame(DATA, END_STREAM, stream, text.as_bytes()),
            Reset(code) => frame(RST_STREAM, 0, stream, &code.to_be_bytes()),
            GoAway => frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), NO_ERROR.to_be_bytes()].concat()),
            HalfHead => frame(HEADERS, 0, stream, &block(Some(200), &[])),
            Close | Gate => Vec::new(),
        }
    }
}

impl Target {
    /// Starts a target that responds to each request with these steps, each in its own write or all in one.
    fn start(steps: &[Step], at_once: bool) -> Self {
        let pki = Pki::new();
        let identity = pki.leaf(&["hook.example"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Arc::new(tls);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (gate, gate_receiver) = mpsc::channel();
        let (count, steps, gate_receiver) =
            (Arc::clone(&connections), steps.to_vec(), Arc::new(Mutex::new(gate_receiver)));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
                // Without it, a close may discard a response that waits for an acknowledgment (Nagle).
                stream.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (tls, steps, gate_receiver) = (Arc::clone(&tls), steps.clone(), Arc::clone(&gate_receiver));
                std::thread::spawn(move || {
                    let session = rustls::ServerConnection::new(tls).unwrap();
                    let mut wire = rustls::StreamOwned::new(session, stream);
                    // It fails when outgate has closed the connection.
                    let _ = serve(&mut wire, &steps, at_once, &gate_receiver);
                });
            }
        });
        let other = Receiver::plain(ok());
        let text = config(&other, &other, "")
            .set("routes.signed.ports", [port])
            .set("egress.default.ranges", ["127.0.7.1/32"]);
        Self { port, connections, gate, outgate: Outgate::run(folder(&pki), &text) }
    }

    fn url(&self) -> String {
        format!("https://hook.example:{}/in", self.port)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn send(&self, client: &mut Client, method: &str) {
        client.send(format!("{method} {} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}", self.url()));
    }

    /// Waits for this many records, and returns their codes.
    fn codes(&self, count: usize) -> Vec<String> {
        self.outgate.records(count).iter().map(|record| record["code"].as_str().unwrap().to_owned()).collect()
    }

    /// Sends a request over HTTP/2, and returns the status, the body, and the code of a reset.
    fn over_http2(&self, method: &str) -> (u16, Vec<u8>, Option<h2::Reason>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let exchange = async {
            let stream = tokio::net::TcpStream::connect(self.outgate.proxy).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::builder().method(method).uri(self.url()).body(()).unwrap();
            let (response, mut upload) = sender.ready().await.unwrap().send_request(request, false).unwrap();
            upload.send_data(Bytes::from_static(b"{}"), true).unwrap();
            let response = match response.await {
                Ok(response) => response,
                Err(error) => return (0, Vec::new(), error.reason()),
            };
            let (status, mut body, mut all) = (response.status().as_u16(), response.into_body(), Vec::new());
            while let Some(data) = body.data().await {
                match data {
                    Ok(data) => all.extend_from_slice(&data),
                    Err(error) => return (status, all, error.reason()),
                }
            }
            (status, all, None)
        };
        runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, exchange).await.unwrap() })
    }
}

fn serve(
    wire: &mut (impl Read + Write),
    steps: &[Step],
    at_once: bool,
    gate: &Mutex<mpsc::Receiver<()>>,
) -> std::io::Result<()> {
    wire.read_exact(&mut [0; 24])?;
    wire.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    wire.flush()?;
    loop {
        let mut head = [0; 9];
        wire.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        wire.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let echoed = if kind == PING { payload } else { Vec::new() };
                wire.write_all(&frame(kind, ACK, 0, &echoed))?;
                wire.flush()?;
            }
            HEADERS | DATA if flags & END_STREAM != 0 => {
                let mut bytes = Vec::new();
                for step in steps {
                    bytes.extend(step.bytes(stream));
                    if !at_once || matches!(step, Gate) {
                        wire.write_all(&std::mem::take(&mut bytes))?;
                        wire.flush()?;
                    }
                    if matches!(step, Gate) {
                        let _ = gate.lock().unwrap().recv_timeout(TEST_TIMEOUT);
                    }
                }
                wire.write_all(&bytes)?;
                wire.flush()?;
                if steps.iter().any(|step| matches!(step, GoAway | Close)) {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

#[test]
fn http2_response_ends_when_the_target_ends_it_with_an_empty_frame() {
    for steps in [
        vec![Head(200, &[]), Data("ok"), LastData("")],
        vec![Head(200, &[("content-length", "2")]), Data("ok"), LastData("")],
        vec![Head(200, &[]), Data("o"), Data(""), Data("k"), LastData("")],
        vec![Head(200, &[]), LastData("ok")],
        vec![Head(200, &[]), Data("ok"), Trailers],
        vec![Head(200, &[("content-length", "2")]), Data("ok"), Trailers],
        vec![Head(200, &[]), LastData("")],
        vec![Head(200, &[("content-length", "0")]), LastData("")],
        vec![Head(204, &[]), LastData("")],
        vec![LastHead(200, &[])],
    ] {
        for at_once in [true, false] {
            let target = Target::start(&steps, at_once);
            let has_body = steps.iter().any(|step| matches!(step, Data("ok" | "o") | LastData("ok")));
            let expected: &[u8] = if has_body { b"ok" } else { b"" };
            for _ in 0..3 {
                let (status, body, reset) = target.over_http2("POST");
                assert!(status == 200 || status == 204, "{status}");
                assert_eq!((body.as_slice(), reset), (expected, None));
                assert_eq!(target.outgate.post(&target.url(), "", "{}").body, expected);
            }
            assert_eq!(target.codes(6), ["delivered"; 6]);
            assert_eq!(target.connections(), 1);
        }
    }
}

#[test]
fn incomplete_http2_response_is_broken_off_and_neither_connection_reused() {
    const LENGTH: &[(&str, &str)] = &[("content-length", "100")];
    for steps in [
        vec![Head(200, LENGTH), Data("half"), Reset(NO_ERROR)],
        vec![Head(200, LENGTH), Data("half"), Reset(CANCEL)],
        vec![Head(200, LENGTH), Data("half"), GoAway],
        vec![Head(200, LENGTH), Reset(NO_ERROR)],
        vec![Head(200, &[]), Data("half"), Reset(NO_ERROR)],
        vec![Head(200, &[]), Data("half"), Reset(CANCEL)],
        vec![Head(200, &[]), Data("half"), Reset(INTERNAL_ERROR)],
        vec![Head(200, &[]), Data("half"), GoAway],
        vec![Head(200, &[]), Reset(NO_ERROR)],
    ] {
        // The target writes all steps at once. Otherwise the end may come after the client has the whole response.
        let target = Target::start(&steps, true);
        let mut client = target.outgate.connect();
        target.send(&mut client, "POST");
        let got = String::from_utf8(client.rest()).unwrap();
        assert!(!got.ends_with("\r\n0\r\n\r\n") && !got.contains("HTTP/1.1 502"), "{got}");

        let (status, body, reset) = target.over_http2("POST");
        assert!(matches!(status, 0 | 200) && body.len() < 100, "{status}");
        assert_eq!(reset, Some(h2::Reason::INTERNAL_ERROR), "a client may take another code for the end");
        assert_eq!(target.codes(2), ["connection_lost"; 2]);
        assert_eq!(target.connections(), 2);
    }
}

/// The response has its announced length, and then the target resets the stream.
#[test]
fn http2_response_that_is_reset_behind_its_last_byte_is_broken_off() {
    let steps = [Head(200, &[("content-length", "4")]), Data("half"), Reset(NO_ERROR)];
    let target = Target::start(&steps, true);
    let mut client = target.outgate.connect();
    target.send(&mut client, "POST");
    assert!(!client.rest().ends_with(b"half"));
    assert_eq!(target.codes(1), ["connection_lost"]);
}

#[test]
fn delivered_is_recorded_when_the_announced_length_arrives_before_end_stream() {
    for (method, head, body) in [
        ("POST", Head(200, &[("content-length", "2")]), Data("ok")),
        ("POST", Head(200, &[("content-length", "0")]), Data("")),
        ("HEAD", Head(200, &[("content-length", "2")]), Data("")),
        ("GET", Head(304, &[]), Data("")),
        ("POST", Head(204, &[]), Data("")),
    ] {
        let target = Target::start(&[head, body, Gate, LastData("")], false);
        let mut client = target.outgate.connect();
        for count in 1..=3 {
            target.send(&mut client, method);
            let response = client.next_response(method);
            assert!(matches!(response.status, 200 | 204 | 304), "{method}: {response:?}");
            // The record is written when the client has the whole response, before the target ends the stream.
            assert_eq!(target.codes(count), vec!["delivered"; count], "{method}");
            target.gate.send(()).unwrap();
        }
        let (_, _, reset) = target.over_http2(method);
        target.gate.send(()).unwrap();
        assert_eq!(reset, None, "{method}");
        assert_eq!(target.codes(4), ["delivered"; 4], "{method}");
        assert_eq!(target.connections(), 1, "{method}: a client that has its response costs no connection");
    }
}

#[test]
fn content_length_of_a_response_without_a_body_is_one_number_or_none() {
    for (head, length) in [
        (LastHead(200, &[("content-length", "5")]), "5"),
        (LastHead(304, &[("content-length", "5")]), "5"),
        (LastHead(200, &[("content-length", "5"), ("content-length", "5")]), ""),
    ] {
        let method = if matches!(head, LastHead(304, _)) { "GET" } else { "HEAD" };
        let target = Target::start(&[head], true);
        let mut client = target.outgate.connect();
        target.send(&mut client, method);
        let response = client.next_response(method);
        assert_eq!(response.field("content-length"), length, "{response:?}");
    }
}

#[test]
fn cause_in_the_record_names_the_error_code_of_a_target_that_ends_the_exchange() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    for (steps, cause) in [
        (vec![Reset(CANCEL)], "stream reset by the target: CANCEL"),
        (vec![Reset(0xbad)], "stream reset by the target: Reason(bad)"),
        (vec![GoAway], "GOAWAY: NO_ERROR, then connection error"),
        (vec![HalfHead, Data("x")], "http2 error: PROTOCOL_ERROR"),
        (vec![Head(200, &[]), Data("half"), Reset(ENHANCE_YOUR_CALM)], "stream reset by the target: ENHANCE_YOUR_CALM"),
        (vec![Head(200, &[]), Data("half"), Reset(NO_ERROR)], "stream reset by the target, or GOAWAY: NO_ERROR"),
    ] {
        let target = Target::start(&steps, true);
        let mut client = target.outgate.connect();
        target.send(&mut client, "POST");
        let record = target.outgate.records(1).remove(0);
        let code = if cause.ends_with("PROTOCOL_ERROR") { "response_malformed" } else { "connection_lost" };
        assert_eq!((&record["code"], &record["cause"]), (&code.into(), &cause.into()), "{record}");
    }
}

#[test]
fn http2_exchange_is_retryable_only_where_no_response_has_begun() {
    const REFUSED_STREAM: u32 = 7;
    for (steps, code, retryable) in [
        (vec![Close], "connection_lost", true),
        (vec![Reset(INTERNAL_ERROR)], "connection_lost", true),
        (vec![Head(103, &[]), Close], "connection_lost", false),
        (vec![Head(103, &[]), GoAway], "connection_lost", false),
        (vec![Head(103, &[]), Reset(INTERNAL_ERROR)], "connection_lost", false),
        (vec![Head(103, &[])], "response_timeout", false),
        (vec![HalfHead, Close], "connection_lost", false),
        (vec![HalfHead], "response_timeout", false),
        // REFUSED_STREAM guarantees that the target has not processed the request (RFC 9113 §8.7).
        (vec![Head(103, &[]), Reset(REFUSED_STREAM)], "connection_lost", true),
    ] {
        let target = Target::start(&steps, true);
        if code == "response_timeout" {
            target.outgate.reconfigure(&target.outgate.config().set("routes.*.timeouts.response", "5s"));
        }
        let problem = target.outgate.post(&target.url(), "", "{}").json();
        assert_eq!((&problem["code"], &problem["retryable"]), (&code.into(), &retryable.into()), "{problem}");
    }
}
