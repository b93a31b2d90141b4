//! A target that speaks HTTP/2 frame by frame, or HTTP/1.1 if ALPN chose it.
//! How does outgate react to exactly these frames of a target?

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::pki::Pki;
use super::{POLL, TEST_TIMEOUT};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
pub const OK_HTTP1: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// A window of 16 MiB for the connection.
const WINDOW: &[u8] = b"\0\0\x04\x08\0\0\0\0\0\x01\0\0\0";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The head arrived without END_STREAM.
    Head,
    /// A part of the body arrived.
    Body,
    /// The request is complete.
    End,
    /// The stream was reset with this error code.
    Reset(u32),
}

#[derive(Debug, Clone)]
pub struct RequestEvent {
    /// Connections, and the requests on each connection, count from 0.
    pub connection: usize,
    pub request: usize,
    pub progress: Progress,
    /// 0 for a request over HTTP/1.1.
    pub stream: u32,
    /// Bytes of the head as it was sent, compressed over HTTP/2.
    pub head: usize,
    pub body: Vec<u8>,
}

/// Returns the bytes that the target writes. After GOAWAY it writes no more.
pub type Script = Arc<dyn Fn(&RequestEvent) -> Vec<u8> + Send + Sync>;

pub struct FrameTarget {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// The complete requests.
    requests: Arc<Mutex<Vec<RequestEvent>>>,
    /// The error code of each stream that was reset.
    resets: Arc<Mutex<Vec<u32>>>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A whole response of status 200.
pub fn ok_response(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, b"\x88")
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(3, 0, stream, &code.to_be_bytes())
}

pub fn goaway(last_stream: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last_stream.to_be_bytes(), code.to_be_bytes()].concat())
}

impl FrameTarget {
    /// A target for `hook.example`. `settings` are in its first SETTINGS frame, besides large windows.
    pub fn start(pki: &Pki, settings: &[(u16, u32)], script: Script) -> Self {
        let identity = pki.leaf(&["hook.example"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        let mut payload = b"\0\x04\x00\x80\0\0".to_vec(); // SETTINGS_INITIAL_WINDOW_SIZE
        for (name, value) in settings {
            payload.extend([&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
        }
        let preface = [frame(4, 0, 0, &payload), WINDOW.to_vec()].concat();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
            resets: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&target.connections), Arc::clone(&target.requests));
        let resets = Arc::clone(&target.resets);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = connections.fetch_add(1, Ordering::SeqCst);
                let (tls, script, preface) = (Arc::clone(&tls), Arc::clone(&script), preface.clone());
                let (requests, resets) = (Arc::clone(&requests), Arc::clone(&resets));
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
                    // Without it, the kernel may delay a GOAWAY until earlier bytes are acknowledged, and discard it
                    // when the connection closes with unread data.
                    stream.set_nodelay(true).unwrap();
                    let session = rustls::ServerConnection::new(tls).unwrap();
                    let mut wire = rustls::StreamOwned::new(session, stream);
                    while wire.conn.is_handshaking() {
                        if wire.conn.complete_io(&mut wire.sock).is_err() {
                            return;
                        }
                    }
                    let respond = |event: RequestEvent| {
                        let response = script(&event);
                        match event.progress {
                            Progress::End => requests.lock().unwrap().push(event),
                            Progress::Reset(code) => resets.lock().unwrap().push(code),
                            Progress::Head | Progress::Body => {}
                        }
                        response
                    };
                    match wire.conn.alpn_protocol() == Some(b"h2") {
                        true => drop(http2(&mut wire, connection, &preface, respond)),
                        false => drop(http1(&mut wire, connection, respond)),
                    }
                    // A socket that closes with unread data resets the connection. A reset that outgate meets while it
                    // writes hides the last frames.
                    drop(wire.sock.shutdown(Shutdown::Write));
                    drop(std::io::copy(&mut wire.sock, &mut std::io::sink()));
                });
            }
        });
        target
    }

    pub fn url(&self) -> String {
        format!("https://hook.example:{}/in", self.address.port())
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits for this many complete requests.
    pub fn wait_for_requests(&self, count: usize) -> Vec<RequestEvent> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let requests = self.requests.lock().unwrap().clone();
            if requests.len() >= count {
                return requests;
            }
            assert!(Instant::now() < deadline, "{} of {count} requests", requests.len());
            std::thread::sleep(POLL);
        }
    }

    pub fn requests(&self) -> Vec<RequestEvent> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits for this many reset streams, and returns their error codes.
    pub fn wait_for_resets(&self, count: usize) -> Vec<u32> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let resets = self.resets.lock().unwrap().clone();
            if resets.len() >= count {
                return resets;
            }
            assert!(Instant::now() < deadline, "{} of {count} resets", resets.len());
            std::thread::sleep(POLL);
        }
    }
}

fn http2(
    wire: &mut (impl Read + Write),
    connection: usize,
    preface: &[u8],
    respond: impl Fn(RequestEvent) -> Vec<u8>,
) -> std::io::Result<()> {
    wire.write_all(preface)?;
    let (mut bytes, mut open, mut requests) = (Vec::new(), Vec::<RequestEvent>::new(), 0);
    loop {
        let mut piece = [0; 16 * 1024];
        let count = wire.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&piece[..count]);
        if bytes.starts_with(PREFACE) {
            bytes.drain(..PREFACE.len());
        }
        while let [a, b, c, kind, flags, d, e, f, g, ..] = bytes[..] {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if bytes.starts_with(&PREFACE[..9]) || bytes.len() < 9 + length {
                break;
            }
            let stream = u32::from_be_bytes([d, e, f, g]);
            let payload = bytes[9..9 + length].to_vec();
            bytes.drain(..9 + length);
            if kind == 4 && flags & 1 == 0 {
                wire.write_all(&frame(4, 1, 0, b""))?;
            }
            if kind == 1 {
                let (request, progress) = (requests, Progress::Head);
                open.push(RequestEvent { connection, request, progress, stream, head: length, body: Vec::new() });
                requests += 1;
            }
            if matches!(kind, 0 | 1 | RST_STREAM)
                && let Some(event) = open.iter_mut().find(|event| event.stream == stream)
            {
                if kind == 0 {
                    event.body.extend_from_slice(&payload);
                }
                event.progress = match (kind, flags & 1) {
                    (RST_STREAM, _) => Progress::Reset(u32::from_be_bytes(payload[..4].try_into().unwrap())),
                    (_, 1) => Progress::End,
                    (1, _) => Progress::Head,
                    _ => Progress::Body,
                };
                let response = respond(event.clone());
                wire.write_all(&response)?;
                wire.flush()?;
                if response.get(3) == Some(&GOAWAY) {
                    return Ok(());
                }
            }
        }
    }
}

fn http1(
    wire: &mut (impl Read + Write),
    connection: usize,
    respond: impl Fn(RequestEvent) -> Vec<u8>,
) -> std::io::Result<()> {
    for request in 0.. {
        let mut bytes = Vec::new();
        let body = loop {
            let mut piece = [0; 16 * 1024];
            let count = wire.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&piece[..count]);
            if let Some(body) = whole_body(&bytes) {
                break body;
            }
        };
        let response = respond(RequestEvent { connection, request, progress: Progress::End, stream: 0, head: 0, body });
        wire.write_all(&response)?;
        wire.flush()?;
    }
    Ok(())
}

fn whole_body(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let (body, length) = (&bytes[end + 4..], head.split("content-length: ").nth(1));
    assert!(length.is_none() || !head.contains("transfer-encoding"), "a request has one framing: {head}");
    let length: usize = match length {
        Some(length) => length.split("\r\n").next()?.parse().ok()?,
        None => return chunks(body),
    };
    (body.len() >= length).then(|| body[..length].to_vec())
}

fn chunks(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).ok()?, 16).ok()?;
        let chunk = body.get(line + 2..line + 2 + size)?;
        body = body.get(line + 2 + size + 2..)?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(chunk);
    }
}
