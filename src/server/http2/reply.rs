//! Writing an answer in HTTP/2, interim ones first.
//! How fast does the client take it, and does it still want it?

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::SystemTime;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body;

use crate::delivery::{Interim, Outbound};

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
pub(super) struct Reply(Arc<Mutex<SendResponse<Bytes>>>);

/// The answer did not get out whole.
pub(super) struct Broken;

impl From<h2::Error> for Broken {
    fn from(_: h2::Error) -> Self {
        Broken
    }
}

impl Reply {
    pub(super) fn new(reply: SendResponse<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(reply)))
    }

    fn lock(&self) -> MutexGuard<'_, SendResponse<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says `100 Continue`.
    pub(super) fn proceed(&self) {
        self.inform(StatusCode::CONTINUE, &HeaderMap::new());
    }

    pub(super) fn interim(&self) -> Interim {
        let reply = self.clone();
        Box::new(move |status, fields| reply.inform(status, fields))
    }

    fn inform(&self, status: StatusCode, fields: &HeaderMap) {
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields.clone();
        // Lost on a stream that is gone, which whoever waits for the answer will notice.
        let _ = self.lock().send_informational(head);
    }

    /// Resolves when the client wants no answer any more, or has gone.
    pub(super) async fn is_reset(&self) {
        poll_fn(|cx| self.lock().poll_reset(cx).map(drop)).await;
    }

    /// Sends the head of an answer that opens a tunnel.
    pub(super) fn open(&self, response: Response<Outbound>) -> Result<SendStream<Bytes>, Broken> {
        let mut head = response.map(drop);
        complete(head.headers_mut());
        Ok(self.lock().send_response(head, false)?)
    }

    /// Sends the answer, as fast as the client reads.
    pub(super) async fn send(&self, response: Response<Outbound>, method: &Method) -> Result<(), Broken> {
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
        let ends = !has_body || body.is_end_stream();
        let mut stream = self.lock().send_response(Response::from_parts(head, ()), ends)?;
        if ends {
            return Ok(());
        }
        loop {
            let frame = poll_fn(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Broken));
                }
                Pin::new(&mut body).poll_frame(cx).map(Ok)
            });
            match frame.await? {
                Some(Ok(frame)) => {
                    // Trailers are dropped (RFC 9110 §6.5.1): nobody announced them to the client.
                    let Ok(data) = frame.into_data() else { continue };
                    let ends = body.is_end_stream();
                    send_all(&mut stream, data, ends).await?;
                    if ends {
                        return Ok(());
                    }
                }
                // The stream is dropped unfinished: h2 sends the head, maybe some of the body, and resets it.
                Some(Err(_)) => return Err(Broken),
                None => return Ok(stream.send_data(Bytes::new(), true)?),
            }
        }
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

/// Hands over what the client's window has room for, piece by piece: no more of an answer is held here than one frame.
async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes, ends: bool) -> Result<(), Broken> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // What is left of an earlier grant is not announced again.
        while stream.capacity() == 0 {
            poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or(Broken)??;
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        stream.send_data(piece, ends && data.is_empty())?;
    }
    Ok(())
}
