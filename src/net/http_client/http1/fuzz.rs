//! A fuzz entry for the reader of responses.
//! Does it read the same response at every split of the input, and the one that hyper reads?

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body;
use http_body_util::Empty;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::Exchange;
use crate::config::ResponseHeadMax;
use crate::http_message::{FieldName, FieldValue, Fields, Request};
use crate::net::http_client::Upload;

const HEAD_MAX: ResponseHeadMax = ResponseHeadMax { count: 100, bytes: 64 * 1024 };
/// The number of polls after which a reader must have ended.
const POLLS_MAX: usize = 100_000;

/// A response: its status, its fields and its body.
type ReadResponse = (u16, Vec<(String, Vec<u8>)>, Vec<u8>);

/// A target that takes every byte, and sends these bytes in pieces before it closes the connection.
pub(super) struct ScriptedTarget {
    rest: Bytes,
    step: usize,
    piece: Bytes,
    has_request: bool,
}

impl ScriptedTarget {
    pub(super) fn new(data: &[u8], step: usize) -> Self {
        Self { rest: Bytes::copy_from_slice(data), step, piece: Bytes::new(), has_request: false }
    }
}

impl AsyncRead for ScriptedTarget {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.has_request {
            return Poll::Pending; // hyper polls in a loop, and outgate writes first
        }
        if self.piece.is_empty() {
            let length = self.step.min(self.rest.len());
            self.piece = self.rest.split_to(length);
        }
        let length = self.piece.len().min(buf.remaining());
        buf.put_slice(&self.piece.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ScriptedTarget {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.has_request = true;
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads `data` as all bytes that a target sends: at once, byte by byte, and in pieces of another length. What hyper accepts is
/// the same response. hyper rejects some of what outgate accepts.
pub fn responses(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    for step in [1, 1 + data.len() % 13] {
        assert_eq!(read(data, step), whole, "in pieces of {step}");
    }
    // outgate ignores the trailers, in which hyper rejects malformed fields. hyper takes a bare line feed for the end of
    // the trailers, which outgate rejects.
    let has_bare_line_feed = memchr::memchr_iter(b'\n', data).any(|at| at == 0 || data[at - 1] != b'\r');
    match read_with_hyper(data) {
        Some(by_hyper) if whole.is_some() || !has_bare_line_feed => {
            assert_eq!(whole, Some(by_hyper), "{:?}", String::from_utf8_lossy(data));
        }
        _ => {}
    }
}

/// Returns the final response to a POST; `None`: it is malformed or incomplete.
fn read(data: &[u8], step: usize) -> Option<ReadResponse> {
    let mut exchange = Exchange::new(ScriptedTarget::new(data, step), true, HEAD_MAX);
    exchange.begin(Request::new(http::Method::POST, "/", Upload::whole(Bytes::new())));
    let cx = &mut Context::from_waker(Waker::noop());
    let Poll::Ready(head) = exchange.poll_response(&mut |_, _| true, cx) else {
        unreachable!("the target never waits")
    };
    let (head, mut body) = (head.ok()?, Vec::new());
    loop {
        let Poll::Ready(data) = exchange.poll_body(cx) else { unreachable!("the target never waits") };
        match data.ok()? {
            Some(data) => body.extend_from_slice(&data),
            None => return Some(to_read_response(head.status.as_u16(), head.fields.iter(), body)),
        }
    }
}

fn read_with_hyper(data: &[u8]) -> Option<ReadResponse> {
    let cx = &mut Context::from_waker(Waker::noop());
    let target = ScriptedTarget::new(data, data.len().max(1));
    let handshake = Builder::new()
        .allow_spaces_after_header_name_in_responses(true)
        .max_headers(HEAD_MAX.count)
        .handshake(TokioIo::new(target));
    let Poll::Ready(handshake) = pin!(handshake).poll(cx) else { return None };
    let (mut sender, connection) = handshake.ok()?;
    let mut connection = pin!(connection);
    let request = http::Request::post("/").body(Empty::<Bytes>::new()).ok()?;
    let mut sending = pin!(sender.send_request(request));
    let mut response = None;
    let mut bytes = Vec::new();
    let mut has_connection = true;
    for _ in 0..POLLS_MAX {
        has_connection = has_connection && connection.as_mut().poll(cx).is_pending();
        match &mut response {
            None => {
                if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                    response = Some(sent.ok()?);
                }
            }
            Some(response) => match Pin::new(response.body_mut()).poll_frame(cx) {
                Poll::Ready(Some(frame)) => bytes.extend(frame.ok()?.into_data().unwrap_or_default()),
                Poll::Ready(None) => {
                    let fields = Fields::from(response.headers());
                    return Some(to_read_response(response.status().as_u16(), fields.iter(), bytes));
                }
                Poll::Pending => {}
            },
        }
    }
    None
}

fn to_read_response<'a>(
    status: u16,
    fields: impl Iterator<Item = (FieldName<'a>, FieldValue<'a>)>,
    body: Vec<u8>,
) -> ReadResponse {
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.to_lowercase(), value.as_bytes().to_vec())).collect();
    fields.sort();
    (status, fields, body)
}
