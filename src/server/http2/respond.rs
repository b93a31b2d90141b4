//! Writing an answer in HTTP/2, interim ones first.
//! How fast does the client take it, and does it still want it?

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body;
use parking_lot::Mutex;

use crate::delivery::{InterimCallback, ResponseBody};

/// Fields that HTTP/2 has no place for (RFC 9113 §8.2.2).
static OF_THE_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The way back to the client, shared by the delivery that answers and the body that asks to continue.
#[derive(Clone)]
pub(super) struct Responder(Arc<Mutex<SendResponse<Bytes>>>);

/// The answer did not get out whole.
pub(super) struct IncompleteResponse;

impl From<h2::Error> for IncompleteResponse {
    fn from(_: h2::Error) -> Self {
        IncompleteResponse
    }
}

impl Responder {
    pub(super) fn new(reply: SendResponse<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(reply)))
    }

    /// Says `100 Continue`.
    pub(super) fn proceed(&self) {
        self.inform(StatusCode::CONTINUE, &HeaderMap::new());
    }

    pub(super) fn interim(&self) -> InterimCallback {
        let reply = self.clone();
        Box::new(move |status, fields| reply.inform(status, fields))
    }

    fn inform(&self, status: StatusCode, fields: &HeaderMap) {
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields.clone();
        // Lost on a stream that is gone, which whoever waits for the answer will notice.
        let _ = self.0.lock().send_informational(head);
    }

    /// Resolves when the client wants no answer any more, or has gone.
    pub(super) async fn is_reset(&self) {
        poll_fn(|cx| self.0.lock().poll_reset(cx).map(drop)).await;
    }

    /// Sends the head of an answer that opens a tunnel.
    pub(super) fn open(&self, response: Response<ResponseBody>) -> Result<SendStream<Bytes>, IncompleteResponse> {
        let mut head = response.map(drop);
        complete(head.headers_mut());
        Ok(self.0.lock().send_response(head, false)?)
    }

    /// Sends the answer, as fast as the client reads.
    pub(super) async fn send(
        &self,
        response: Response<ResponseBody>,
        method: &Method,
    ) -> Result<(), IncompleteResponse> {
        let (mut head, mut body) = response.into_parts();
        let has_body = method != Method::HEAD && head.status != StatusCode::NOT_MODIFIED;
        if has_body || head.status == StatusCode::NO_CONTENT {
            head.headers.remove(header::CONTENT_LENGTH); // it is the body's own from here (RFC 9110 §8.6)
        }
        let has_body = has_body && head.status != StatusCode::NO_CONTENT;
        if has_body && let Some(length) = body.size_hint().exact() {
            head.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        complete(&mut head.headers);
        let length = body.size_hint().exact().filter(|_| has_body);
        let ends = !has_body || body.is_end_stream();
        let stream = self.0.lock().send_response(Response::from_parts(head, ()), ends)?;
        let mut stream = ResponseStream { stream, has_ended: ends };
        let mut sent = 0;
        while !stream.has_ended {
            let frame = poll_fn(|cx| {
                if stream.stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(IncompleteResponse));
                }
                Pin::new(&mut body).poll_frame(cx).map(Ok)
            });
            let Ok(frame) = frame.await?.transpose() else {
                // A reset discards what h2 has not written yet: the connection's task gets its turn before.
                tokio::task::yield_now().await;
                return Err(IncompleteResponse);
            };
            let ends = frame.is_none() || body.is_end_stream();
            // Trailers are dropped (RFC 9110 §6.5.1): the client was not told of them.
            let data = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            sent += data.len() as u64;
            if ends && length.is_some_and(|length| length != sent) {
                return Err(IncompleteResponse);
            }
            stream.send(data, ends).await?;
        }
        Ok(())
    }
}

fn complete(fields: &mut HeaderMap) {
    for name in &OF_THE_CONNECTION {
        fields.remove(name);
    }
    if !fields.contains_key(header::DATE) {
        let now = httpdate::fmt_http_date(SystemTime::now());
        fields.extend(HeaderValue::try_from(now).ok().map(|now| (header::DATE, now)));
    }
}

/// The stream of a response. Dropped before its end, it is reset with an error: some HTTP clients take CANCEL, which h2 would
/// send, for the end of the body.
struct ResponseStream {
    stream: SendStream<Bytes>,
    has_ended: bool,
}

impl ResponseStream {
    /// Sends what the client's window has room for, piece by piece: no more of a response is held here than one frame.
    /// END_STREAM goes out with the last piece, an empty one too.
    async fn send(&mut self, mut data: Bytes, ends: bool) -> Result<(), IncompleteResponse> {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            // What is left of an earlier grant is not announced again.
            while self.stream.capacity() == 0 {
                poll_fn(|cx| self.stream.poll_capacity(cx)).await.ok_or(IncompleteResponse)??;
            }
            let piece = data.split_to(self.stream.capacity().min(data.len()));
            self.send_piece(piece, ends && data.is_empty())?;
        }
        if ends && !self.has_ended {
            self.send_piece(Bytes::new(), true)?;
        }
        Ok(())
    }

    fn send_piece(&mut self, piece: Bytes, ends: bool) -> Result<(), IncompleteResponse> {
        self.stream.send_data(piece, ends)?;
        self.has_ended = ends;
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
