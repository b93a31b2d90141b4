//! Writing an answer in HTTP/1.1.
//! How does the client know where the answer ends?

use std::borrow::Cow;
use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body;

use super::conn::Conn;
use crate::delivery::ResponseBody;
use crate::delivery::refusal::ReasonPhrase;

/// Small pieces are gathered to this size, larger ones written as they are.
const GATHER: usize = 16 * 1024;

/// How the end of the body is told (RFC 9112 §6.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum ResponseFraming {
    None,
    Length,
    Chunked,
    UntilClose,
}

pub(super) struct ResponseWriter {
    response: Response<ResponseBody>,
    framing: ResponseFraming,
    closes: bool,
    reason: Cow<'static, str>,
}

impl ResponseWriter {
    pub(super) fn new(
        mut response: Response<ResponseBody>,
        method: &Method,
        version: Version,
        keep_alive: bool,
    ) -> Self {
        let framing = frame(&mut response, method, version);
        let says_close = response.headers().contains_key(header::CONNECTION);
        let closes = !keep_alive || says_close || framing == ResponseFraming::UntilClose;
        let fields = response.headers_mut();
        if closes {
            fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if !fields.contains_key(header::DATE) {
            let now = httpdate::fmt_http_date(SystemTime::now());
            fields.extend(HeaderValue::try_from(now).ok().map(|now| (header::DATE, now)));
        }
        let status = response.status();
        let opens = *method == Method::CONNECT && status.is_success();
        let reason = match response.extensions_mut().remove::<ReasonPhrase>() {
            Some(reason) => reason.into(),
            // What clients have been told since there are tunnels.
            None if opens => "Connection established".into(),
            None => status.canonical_reason().unwrap_or_default().into(),
        };
        Self { response, framing, closes, reason }
    }

    /// Whether the connection ends with this answer.
    pub(super) fn closes(&self) -> bool {
        self.closes
    }

    /// An error leaves the client's connection in the middle of the answer: it must be dropped.
    pub(super) async fn write(self, line: &Conn, patience: Duration) -> io::Result<()> {
        // Where the end of the connection is the end of the answer, it must not look so before.
        line.set_abort_on_drop(self.framing == ResponseFraming::UntilClose);
        let (head, mut body) = self.response.into_parts();
        let mut out = Vec::with_capacity(1024);
        write_head(&mut out, head.status, &self.reason, &head.headers);
        // Counted here, whatever the body says of itself: the client finds the next response by this number.
        let mut missing = if self.framing == ResponseFraming::Length { body.size_hint().exact() } else { None };
        while self.framing != ResponseFraming::None && missing != Some(0) {
            // What is there already goes out with the head, in one piece.
            let next = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            let next = match next {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    line.write_all(&out, patience).await?;
                    out.clear();
                    poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
                }
            };
            let Some(frame) = next else { break };
            let Ok(frame) = frame else {
                // The client gets as much as there was, and sees that it is not all.
                line.write_all(&out, patience).await?;
                return Err(io::Error::other("the target broke off"));
            };
            // Trailers are dropped (RFC 9110 §6.5.1): nobody announced them to the client.
            let Ok(data) = frame.into_data() else { continue };
            if let Some(missing) = &mut missing {
                let left = missing.checked_sub(data.len() as u64);
                *missing = left.ok_or_else(|| io::Error::other("the body is longer than announced"))?;
            }
            self.framing.write(&mut out, &data, line, patience).await?;
        }
        if self.framing == ResponseFraming::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        line.write_all(&out, patience).await?;
        if missing.is_some_and(|missing| missing > 0) {
            return Err(io::Error::other("the body is shorter than announced"));
        }
        line.set_abort_on_drop(false);
        if self.framing == ResponseFraming::UntilClose {
            line.half_close().await; // what is left of the request is read away afterwards
        }
        Ok(())
    }
}

impl ResponseFraming {
    async fn write(self, out: &mut Vec<u8>, data: &Bytes, line: &Conn, patience: Duration) -> io::Result<()> {
        if data.is_empty() {
            return Ok(()); // an empty chunk would end the body
        }
        if self == ResponseFraming::Chunked {
            write!(out, "{:x}\r\n", data.len())?;
        }
        if out.len() + data.len() <= GATHER {
            out.extend_from_slice(data);
        } else {
            line.write_all(out, patience).await?;
            out.clear();
            line.write_all(data, patience).await?;
        }
        if self == ResponseFraming::Chunked {
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

fn frame(response: &mut Response<ResponseBody>, method: &Method, version: Version) -> ResponseFraming {
    let status = response.status();
    let length = response.body().size_hint().exact();
    let fields = response.headers_mut();
    fields.remove(header::TRANSFER_ENCODING);
    // RFC 9110 §8.6, §9.3.6: neither has a body, nor a length of one.
    if status == StatusCode::NO_CONTENT || (method == Method::CONNECT && status.is_success()) {
        fields.remove(header::CONTENT_LENGTH);
        return ResponseFraming::None;
    }
    if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return ResponseFraming::None; // Content-Length, if any, is what GET would have got
    }
    fields.remove(header::CONTENT_LENGTH);
    match length {
        Some(length) => {
            fields.insert(header::CONTENT_LENGTH, length.into());
            ResponseFraming::Length
        }
        None if version == Version::HTTP_11 => {
            fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            ResponseFraming::Chunked
        }
        None => ResponseFraming::UntilClose,
    }
}

pub(super) fn write_head(out: &mut Vec<u8>, status: StatusCode, reason: &str, fields: &HeaderMap) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
