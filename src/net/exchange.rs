//! One HTTP/1.1 connection to a target, over a stream that we dialled.
//! How is a request sent, and can the connection serve another?

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;

use super::connection::{Liveness, Wire};
use super::tls::Proof;
use crate::policy::egress::Hop;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request body on its way to a target.
pub enum Upload {
    Whole(Option<Bytes>),
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

impl Upload {
    pub fn whole(bytes: Bytes) -> Self {
        Upload::Whole((!bytes.is_empty()).then_some(bytes))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Upload::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Upload::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::Whole(bytes) => bytes.is_none(),
            Upload::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Upload::Stream(body) => body.size_hint(),
        }
    }
}

/// A connection that was dialled, and verified where it is TLS.
pub struct Connection {
    sender: http1::SendRequest<Upload>,
    liveness: Liveness,
    hop: Hop,
    proof: Option<Proof>,
    born: Instant,
}

pub enum SendFault {
    /// Not a byte was written: the request may go over another connection.
    Unsent(Box<Request<Upload>>),
    /// Some of it may have arrived: it must not be sent again (RFC 9110 §9.2.2).
    Lost(hyper::Error),
}

/// Fields and bytes of a response head; a target that sends more is refused.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;
const RESPONSE_FIELDS_MAX: usize = 100;
/// The tail of the last response may still be in hyper's hands when the next request asks for the connection.
const SETTLE: Duration = Duration::from_millis(50);

impl Connection {
    /// Speaks HTTP over `wire`, and drives it in a task of its own until either side closes.
    pub async fn open(wire: Wire, liveness: Liveness, hop: Hop, proof: Option<Proof>) -> Result<Self, hyper::Error> {
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(RESPONSE_HEAD_MAX)
            .max_headers(RESPONSE_FIELDS_MAX)
            .handshake(wire)
            .await?;
        tokio::spawn(async move {
            // Whoever waits for a response hears of the error there; on an idle connection it is no news.
            let _ = driver.await;
        });
        Ok(Self { sender, liveness, hop, proof, born: Instant::now() })
    }

    /// Whether another request may go over it, as far as can be known before a byte is sent: neither hyper nor the
    /// kernel has seen an end or stray bytes.
    pub async fn is_reusable(&mut self) -> bool {
        let ready = self.sender.is_ready()
            || (!self.sender.is_closed()
                && matches!(tokio::time::timeout(SETTLE, self.sender.ready()).await, Ok(Ok(()))));
        // The kernel is asked last: nothing comes between its answer and the request.
        ready && self.liveness.is_quiet()
    }

    pub async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, SendFault> {
        self.sender.try_send_request(request).await.map_err(|mut fault| match fault.take_message() {
            Some(request) => SendFault::Unsent(Box::new(request)),
            None => SendFault::Lost(fault.into_error()),
        })
    }

    pub fn hop(&self) -> Hop {
        self.hop
    }
    pub fn to(&self) -> SocketAddr {
        self.hop.to()
    }
    pub fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
    }
    pub fn born(&self) -> Instant {
        self.born
    }
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
