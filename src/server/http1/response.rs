//! Writes a response in HTTP/1.1.
//! How does the client recognise the end of the response?

use std::borrow::Cow;
use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use http_body::Body;
use httpdate::HttpDate;

use super::conn::Conn;
use super::response_head::write_head;
use crate::delivery::ResponseBody;
use crate::http_message::{HeadBuffer, Response, Text};

/// The size to which small chunks of the body are coalesced, in bytes. Larger ones are written directly.
const COALESCE_MAX: usize = 16 * 1024;

/// The framing that marks the end of the body (RFC 9112 §6.3).
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
    closes_connection: bool,
    reason: Cow<'static, str>,
}

impl ResponseWriter {
    pub(super) fn new(
        mut response: Response<ResponseBody>,
        method: &Method,
        version: Version,
        keep_alive: bool,
    ) -> Self {
        let framing = set_framing(&mut response, method, version);
        let fields = &mut response.fields;
        let says_close = fields.contains(header::CONNECTION);
        let closes_connection = !keep_alive || says_close || framing == ResponseFraming::UntilClose;
        if closes_connection {
            fields.insert(header::CONNECTION, &HeaderValue::from_static("close"));
        }
        if !fields.contains(header::DATE) {
            fields.append(header::DATE, Text(HttpDate::from(SystemTime::now())));
        }
        let status = response.status;
        let opens_tunnel = *method == Method::CONNECT && status.is_success();
        let reason = match response.reason.take() {
            Some(reason) => reason,
            // The reason phrase that clients of CONNECT traditionally get.
            None if opens_tunnel => "Connection established".into(),
            None => status.canonical_reason().unwrap_or_default().into(),
        };
        Self { response, framing, closes_connection, reason }
    }

    /// Returns whether the connection closes after this response.
    pub(super) fn closes_connection(&self) -> bool {
        self.closes_connection
    }

    /// Writes the response. After an error the response is incomplete, and the connection must be dropped.
    pub(super) async fn write(self, conn: &Conn, write_timeout: Duration) -> io::Result<()> {
        // Where the end of the connection marks the end of the response, an early drop must not look like that end.
        conn.set_abort_on_drop(self.framing == ResponseFraming::UntilClose);
        let Response { status, fields, mut body, .. } = self.response;
        let mut out = HeadBuffer::take();
        write_head(&mut out, status, &self.reason, &fields);
        // Counted independently of the body: the client finds the next response by Content-Length.
        let mut remaining = if self.framing == ResponseFraming::Length { body.size_hint().exact() } else { None };
        while self.framing != ResponseFraming::None && remaining != Some(0) {
            // Data that is ready is written together with the head.
            let next = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            let next = match next {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    conn.write_all(&out, write_timeout).await?;
                    out.clear();
                    poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
                }
            };
            let Some(frame) = next else { break };
            let Ok(frame) = frame else {
                // The client gets the data up to here, and notices that the response is incomplete.
                conn.write_all(&out, write_timeout).await?;
                return Err(io::Error::other("the response body ended with an error"));
            };
            // Trailers are dropped (RFC 9110 §6.5.1): they were not announced to the client.
            let Ok(data) = frame.into_data() else { continue };
            if let Some(remaining) = &mut remaining {
                let left = remaining.checked_sub(data.len() as u64);
                *remaining = left.ok_or_else(|| io::Error::other("the body is longer than announced"))?;
            }
            self.framing.write_data(&mut out, &data, conn, write_timeout).await?;
        }
        if self.framing == ResponseFraming::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        conn.write_all(&out, write_timeout).await?;
        if remaining.is_some_and(|remaining| remaining > 0) {
            return Err(io::Error::other("the body is shorter than announced"));
        }
        conn.set_abort_on_drop(false);
        if self.framing == ResponseFraming::UntilClose {
            conn.half_close().await; // the caller then discards the rest of the request
        }
        Ok(())
    }
}

impl ResponseFraming {
    async fn write_data(self, out: &mut Vec<u8>, data: &Bytes, conn: &Conn, write_timeout: Duration) -> io::Result<()> {
        if data.is_empty() {
            return Ok(()); // an empty chunk would end the body
        }
        if self == ResponseFraming::Chunked {
            write!(out, "{:x}\r\n", data.len())?;
        }
        if out.len() + data.len() <= COALESCE_MAX {
            out.extend_from_slice(data);
        } else {
            conn.write_all(out, write_timeout).await?;
            out.clear();
            conn.write_all(data, write_timeout).await?;
        }
        if self == ResponseFraming::Chunked {
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

fn set_framing(response: &mut Response<ResponseBody>, method: &Method, version: Version) -> ResponseFraming {
    let Response { status, fields, body, .. } = response;
    let (status, length) = (*status, body.size_hint().exact());
    fields.remove(header::TRANSFER_ENCODING);
    // Neither response has a body or a Content-Length (RFC 9110 §8.6, §9.3.6).
    if status == StatusCode::NO_CONTENT || (method == Method::CONNECT && status.is_success()) {
        fields.remove(header::CONTENT_LENGTH);
        return ResponseFraming::None;
    }
    if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return ResponseFraming::None; // Content-Length is the one of a GET response
    }
    match length {
        Some(length) => {
            fields.insert(header::CONTENT_LENGTH, length);
            ResponseFraming::Length
        }
        None if version == Version::HTTP_11 => {
            fields.remove(header::CONTENT_LENGTH);
            fields.insert(header::TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
            ResponseFraming::Chunked
        }
        None => {
            fields.remove(header::CONTENT_LENGTH);
            ResponseFraming::UntilClose
        }
    }
}
