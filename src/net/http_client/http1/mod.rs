//! HTTP/1.1 with a target. The delivery itself drives the exchange. Only the rest of a request whose response has begun
//! has a task.
//! How is a request sent, and how does its response arrive?

mod exchange;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod head;
mod outgoing;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::AlertDescription;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::http1_error::Http1Error;
use super::{SendError, Unprocessed, Upload};
use crate::config::ResponseHeadMax;
use crate::http_message::{Request, Response};
use crate::net::connection::{Liveness, MaybeTlsStream};
use crate::panics::{self, Panicked};
use exchange::Exchange;
pub use exchange::OnInterim;
#[cfg(any(test, fuzzing))]
pub use fuzz::responses;

/// The time for the rest of a request after its response. A target that does not read it would delay the end forever.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(2);

type SharedExchange = Arc<Mutex<Exchange<TokioIo<MaybeTlsStream>>>>;

/// The only handle on an HTTP/1.1 connection. Dropping it closes the connection.
pub(super) struct Http1Connection {
    exchange: SharedExchange,
    liveness: Liveness,
    /// A request was sent, and its exchange has not ended.
    has_open_exchange: bool,
    /// The connection has carried a request.
    is_used: bool,
    /// Writes the rest of a request whose response has begun.
    upload: Option<UploadTask>,
}

/// A task that ends when this is dropped.
struct UploadTask(JoinHandle<Result<(), Panicked>>);

/// The body of a response. It reads from the connection while the connection exists.
pub struct Http1Body(SharedExchange);

impl Http1Connection {
    pub(super) fn new(io: MaybeTlsStream, liveness: Liveness, head_max: ResponseHeadMax) -> Self {
        let is_plaintext = matches!(io, MaybeTlsStream::Http(_));
        let exchange = Arc::new(Mutex::new(Exchange::new(TokioIo::new(io), is_plaintext, head_max)));
        Self { exchange, liveness, has_open_exchange: false, is_used: false, upload: None }
    }

    /// Sends a request. Returns its response once the head has arrived.
    pub(super) async fn send(
        &mut self,
        request: Request<Upload>,
        on_interim: &mut OnInterim<'_>,
    ) -> Result<Response<Http1Body>, SendError> {
        {
            let mut exchange = self.exchange.lock();
            // A reused connection was checked a moment ago, when the pool gave it out.
            if exchange.is_closed() || (!self.is_used && !exchange.is_quiet()) {
                return Err(SendError::Unprocessed { reason: Unprocessed::Unsent, request: Some(Box::new(request)) });
            }
            exchange.begin(request);
        }
        (self.has_open_exchange, self.is_used) = (true, true);
        let head = poll_fn(|cx| self.exchange.lock().poll_response(on_interim, cx)).await;
        match head {
            Ok(head) => {
                // The target has responded early. It may still want the rest of the request, while the client takes no
                // byte of the response.
                if !self.is_upload_finished() {
                    let exchange = Arc::clone(&self.exchange);
                    let writing = async move { poll_fn(|cx| exchange.lock().poll_upload_end(cx)).await };
                    self.upload = Some(UploadTask(panics::spawn(writing)));
                }
                Ok(head.map(|()| Http1Body(Arc::clone(&self.exchange))))
            }
            Err(error) => Err(SendError::Lost(error.into())),
        }
    }

    /// Marks the exchange as complete.
    pub(super) fn finish_exchange(&mut self) {
        self.has_open_exchange = false;
    }

    pub(super) fn is_upload_finished(&self) -> bool {
        self.exchange.lock().is_upload_finished()
    }

    /// Waits up to [`UPLOAD_TIMEOUT`] for the rest of a request whose response has ended. Returns whether the target has taken
    /// all of it.
    pub(super) async fn upload_finished(&mut self) -> bool {
        if let Some(UploadTask(task)) = &mut self.upload {
            let _ = timeout(UPLOAD_TIMEOUT, task).await;
        }
        self.is_upload_finished()
    }

    /// Returns whether the connection can carry another request. The kernel has seen neither an end nor stray bytes.
    pub(super) fn is_ready(&self) -> bool {
        self.exchange.lock().is_quiet() && self.liveness.is_idle_and_open()
    }

    /// Lets tokio learn of what TLS has sent of its own, and returns whether the connection is ready then.
    pub(super) async fn becomes_ready(&self) -> bool {
        tokio::task::yield_now().await;
        self.is_ready()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.exchange.lock().is_closed()
    }

    pub(super) fn response_bytes(&self) -> usize {
        self.exchange.lock().response_bytes()
    }

    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.exchange.lock().alert()
    }
}

impl Drop for Http1Connection {
    fn drop(&mut self) {
        let mut exchange = self.exchange.lock();
        // A target must not take the part of a request for the whole, and a target that does not read must not keep
        // the rest of it in the kernel.
        if self.has_open_exchange || exchange.must_reset() {
            self.liveness.set_linger_zero();
        }
        exchange.close();
    }
}

impl Drop for UploadTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = Http1Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        self.0.lock().poll_body(cx).map(|data| data.transpose().map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().remaining() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
