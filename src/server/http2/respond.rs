//! Writes responses in HTTP/2, interim ones included.
//! At which speed does the client read a response, and has it reset the stream?

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Body;
use parking_lot::Mutex;

use crate::delivery::{InterimSender, ResponseBody, SendInterim};
use crate::http_message::{Fields, Response};

/// The connection-specific fields, which HTTP/2 forbids (RFC 9113 §8.2.2).
static CONNECTION_FIELDS: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Sends to the client. The delivery that responds and the body that sends `100 Continue` share it.
#[derive(Clone)]
pub(super) struct Responder(Arc<Mutex<SendResponse<Bytes>>>);

/// The response was not sent completely.
pub(super) struct IncompleteResponse;

impl From<h2::Error> for IncompleteResponse {
    fn from(_: h2::Error) -> Self {
        IncompleteResponse
    }
}

impl SendInterim for Mutex<SendResponse<Bytes>> {
    fn send_interim(&self, status: StatusCode, fields: &Fields) {
        let head = head(status, HeaderMap::from(fields));
        // An error means that the stream is gone, which the delivery notices by itself.
        let _ = self.lock().send_informational(head);
    }
}

impl Responder {
    pub(super) fn new(inner: SendResponse<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Sends `100 Continue`.
    pub(super) fn send_continue(&self) {
        self.0.send_interim(StatusCode::CONTINUE, &Fields::default());
    }

    /// Returns a sender that lasts as long as the responder.
    pub(super) fn interim_sender(&self) -> InterimSender {
        let responder: Weak<Mutex<SendResponse<Bytes>>> = Arc::downgrade(&self.0);
        responder
    }

    /// Resolves when the client resets the stream or disconnects.
    pub(super) async fn reset_by_client(&self) {
        poll_fn(|cx| self.0.lock().poll_reset(cx).map(drop)).await;
    }

    /// Sends the head of a response that opens a tunnel.
    pub(super) fn send_head(&self, response: Response<ResponseBody>) -> Result<SendStream<Bytes>, IncompleteResponse> {
        let mut fields = HeaderMap::from(&response.fields);
        finalize_fields(&mut fields);
        Ok(self.0.lock().send_response(head(response.status, fields), false)?)
    }

    /// Sends a response, as fast as the client reads it.
    pub(super) async fn send(
        &self,
        response: Response<ResponseBody>,
        method: &Method,
    ) -> Result<(), IncompleteResponse> {
        let Response { status, fields, mut body, .. } = response;
        let mut fields = HeaderMap::from(&fields);
        let has_body = method != Method::HEAD && status != StatusCode::NOT_MODIFIED;
        if has_body || status == StatusCode::NO_CONTENT {
            fields.remove(header::CONTENT_LENGTH); // the length of the body replaces it (RFC 9110 §8.6)
        }
        let has_body = has_body && status != StatusCode::NO_CONTENT;
        if has_body && let Some(length) = body.size_hint().exact() {
            fields.insert(header::CONTENT_LENGTH, length.into());
        }
        finalize_fields(&mut fields);
        let length = body.size_hint().exact().filter(|_| has_body);
        let end_of_stream = !has_body || body.is_end_stream();
        let stream = self.0.lock().send_response(head(status, fields), end_of_stream)?;
        let mut stream = ResponseStream { stream, has_ended: end_of_stream };
        let mut sent = 0;
        while !stream.has_ended {
            let frame = poll_fn(|cx| {
                if stream.stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(IncompleteResponse));
                }
                Pin::new(&mut body).poll_frame(cx).map(Ok)
            });
            let Ok(frame) = frame.await?.transpose() else {
                // A reset discards data that h2 has not written yet: the connection's task runs before it.
                tokio::task::yield_now().await;
                return Err(IncompleteResponse);
            };
            let end_of_stream = frame.is_none() || body.is_end_stream();
            // Trailers are dropped (RFC 9110 §6.5.1): they were not announced to the client.
            let data = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            sent += data.len() as u64;
            if end_of_stream && length.is_some_and(|length| length != sent) {
                return Err(IncompleteResponse);
            }
            stream.send(data, end_of_stream).await?;
        }
        Ok(())
    }
}

fn head(status: StatusCode, fields: HeaderMap) -> http::Response<()> {
    let mut head = http::Response::new(());
    (*head.status_mut(), *head.headers_mut()) = (status, fields);
    head
}

fn finalize_fields(fields: &mut HeaderMap) {
    for name in &CONNECTION_FIELDS {
        fields.remove(name);
    }
    if !fields.contains_key(header::DATE) {
        let now = httpdate::fmt_http_date(SystemTime::now());
        fields.extend(HeaderValue::try_from(now).ok().map(|now| (header::DATE, now)));
    }
}

/// The stream of a response. A drop before its end resets the stream with an error. h2 would send CANCEL, which some
/// HTTP clients take for the end of the body.
struct ResponseStream {
    stream: SendStream<Bytes>,
    has_ended: bool,
}

impl ResponseStream {
    /// Sends data in chunks as the client's window allows, so that at most one frame of a response is held here. The
    /// last chunk carries END_STREAM, even if it is empty.
    async fn send(&mut self, mut data: Bytes, end_of_stream: bool) -> Result<(), IncompleteResponse> {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            // `poll_capacity` does not report the rest of an earlier grant again.
            while self.stream.capacity() == 0 {
                poll_fn(|cx| self.stream.poll_capacity(cx)).await.ok_or(IncompleteResponse)??;
            }
            let chunk = data.split_to(self.stream.capacity().min(data.len()));
            self.send_chunk(chunk, end_of_stream && data.is_empty())?;
        }
        if end_of_stream && !self.has_ended {
            self.send_chunk(Bytes::new(), true)?;
        }
        Ok(())
    }

    fn send_chunk(&mut self, chunk: Bytes, end_of_stream: bool) -> Result<(), IncompleteResponse> {
        self.stream.send_data(chunk, end_of_stream)?;
        self.has_ended = end_of_stream;
        Ok(())
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.has_ended {
            self.stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
