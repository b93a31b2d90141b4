//! One connection to a target, over a stream that we dialled: HTTP/1.1, or HTTP/2 where the target chose it.
//! How is a request sent, and can the connection serve another?

mod driver;
mod error;
mod frame_scanner;
mod open;
mod request;
mod streams;
mod tap;
mod trailer_filter;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::time::timeout;

use super::connection::{Liveness, MaybeTlsStream};
pub use super::field_filter::Violation;
use super::tls::{HandshakeInfo, TlsError};
use crate::config::ResponseHeadMax;
use crate::policy::egress::Hop;
use driver::DriverHandle;
pub use error::{SendError, Unprocessed, breaks_the_protocol, shows_a_response};
use error::{fault, unprocessed};
use request::{RetryHead, for_http1, for_http2};
pub use request::{head_size, list_size};
use streams::{StreamPermit, Streams};
use tap::{ConnObserver, TappedStream};
#[cfg(any(test, fuzzing))]
pub use trailer_filter::trailers;
pub use upload::Upload;

/// A connection that was dialled, and verified where it is TLS.
pub struct Connection {
    sender: RequestSender,
    liveness: Liveness,
    hop: Hop,
    proof: Option<HandshakeInfo>,
    farewell: ConnObserver,
    born: Instant,
    /// Every handle has it. With the last one the connection goes, whatever the target does.
    held: Arc<DriverHandle>,
    /// Through this handle a request has gone, whose exchange has not ended.
    is_under_way: bool,
    /// HTTP/2: responses that had begun when the last request was sent, as long as that request may be processed and its
    /// response has not been received.
    begun_before: Option<usize>,
}

enum RequestSender {
    /// One exchange at a time.
    Http1(http1::SendRequest<Upload>),
    /// A handle; with a slot, on which one exchange may go. Its upload has the slot, too, until it is through.
    Http2 { sender: http2::SendRequest<Upload>, streams: Arc<Streams>, slot: Option<StreamPermit> },
}

/// The tail of the last response may still be in hyper's hands when the next request asks for the connection.
const SETTLE: Duration = Duration::from_millis(50);
/// The largest request head, in bytes, that a target is taken to accept where it announces no limit: the least that
/// common servers have.
const REQUEST_HEAD_MAX: usize = 16 * 1024;

impl Connection {
    /// Speaks HTTP over `wire`, and drives it in a task of its own until either side closes, or the last handle is gone.
    pub async fn open(
        wire: MaybeTlsStream,
        liveness: Liveness,
        hop: Hop,
        proof: Option<HandshakeInfo>,
        head_max: ResponseHeadMax,
    ) -> Result<Self, hyper::Error> {
        let farewell = ConnObserver::default();
        let streams = proof.as_ref().is_some_and(|proof| proof.speaks_http2).then(|| Arc::new(Streams::new()));
        let wire = TappedStream::new(wire, farewell.clone(), streams.clone(), open::list_max(head_max));
        let (sender, held) = match streams {
            Some(streams) => open::open_http2(wire, &liveness, streams, head_max).await?,
            None => open::open_http1(wire, &liveness, head_max).await?,
        };
        Ok(Self {
            sender,
            liveness,
            hop,
            proof,
            farewell,
            born: Instant::now(),
            held,
            is_under_way: false,
            begun_before: None,
        })
    }

    /// Another handle on a connection that carries several exchanges at once, if it has room for one more. Where it is
    /// so young that nobody knows, that turns out when the handle becomes ready.
    pub fn share(&self) -> Option<Self> {
        let RequestSender::Http2 { sender, streams, .. } = &self.sender else { return None };
        if self.held.is_broken() {
            return None;
        }
        let slot = streams.slot();
        let may_be_told = !streams.is_heard() && self.born.elapsed() < SETTLE;
        if slot.is_none() && !may_be_told {
            return None;
        }
        let sender = RequestSender::Http2 { sender: sender.clone(), streams: Arc::clone(streams), slot };
        Some(Self {
            sender,
            liveness: self.liveness.clone(),
            proof: self.proof.clone(),
            farewell: self.farewell.clone(),
            held: Arc::clone(&self.held),
            hop: self.hop,
            born: self.born,
            is_under_way: false,
            begun_before: None,
        })
    }

    /// The exchange has come to its end. Where a handle is dropped before, the connection is broken: nothing new goes
    /// over it, what is under way finishes, and nothing is kept for the target that it has not taken by then.
    pub fn end_exchange(&mut self) {
        if std::mem::take(&mut self.is_under_way) {
            self.held.end();
        }
    }

    /// Whether all of the request has left, or never will. A target may have answered before (RFC 9113 §8.1) and take no
    /// more of it; nothing but the end of the connection would set the rest free then.
    pub fn upload_is_through(&self) -> bool {
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_ready(),
            RequestSender::Http2 { slot, .. } => slot.as_ref().is_none_or(StreamPermit::is_uploaded),
        }
    }

    /// The same of HTTP/2 after a moment: for what was on its way when the answer overtook it, or for the target to say
    /// that it wants no more of it (RST_STREAM with NO_ERROR).
    pub async fn upload_gets_through(&self) -> bool {
        match &self.sender {
            RequestSender::Http2 { slot: Some(slot), .. } => timeout(SETTLE, slot.uploaded()).await.is_ok(),
            _ => self.upload_is_through(),
        }
    }

    /// Whether another request may go over it now, as far as can be known before a byte is sent: neither hyper nor the
    /// kernel has seen an end or stray bytes.
    pub fn is_ready(&self) -> bool {
        // The kernel is asked last: nothing comes between its answer and the request.
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_ready() && self.liveness.is_idle_and_open(),
            RequestSender::Http2 { sender, slot, .. } => {
                slot.is_some() && sender.is_ready() && self.liveness.is_idle_and_open()
            }
        }
    }

    /// The same after a moment: for the last answer's tail to be read, or, in HTTP/2, frames that concern all streams.
    pub async fn becomes_ready(&mut self) -> bool {
        match &mut self.sender {
            RequestSender::Http1(sender) => {
                let settled = timeout(SETTLE, sender.ready()).await;
                matches!(settled, Ok(Ok(()))) && self.liveness.is_idle_and_open()
            }
            RequestSender::Http2 { sender, streams, slot } => {
                if slot.is_none() {
                    let _ = timeout(SETTLE, streams.settings_known()).await;
                    *slot = streams.slot();
                }
                // What the kernel holds goes to the task that drives the connection: a GOAWAY would end it.
                tokio::task::yield_now().await;
                slot.is_some() && sender.is_ready() && !self.liveness.has_ended()
            }
        }
    }

    pub async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, SendError> {
        if !std::mem::replace(&mut self.is_under_way, true) {
            self.held.begin();
        }
        let sent = self.send_inner(request).await;
        if sent.is_ok() {
            self.farewell.answered();
        }
        sent
    }

    /// Returns whether a byte of a response may have arrived to a request that has received none. Over HTTP/2 another
    /// exchange's response that is under way looks the same.
    pub fn response_has_begun(&self) -> bool {
        self.begun_before.is_some_and(|before| self.farewell.may_have_responded(before)) || self.response_bytes() > 0
    }

    /// Returns the bytes that have arrived over HTTP/1.1 since the last request was sent, until the head of its response
    /// was complete.
    pub fn response_bytes(&self) -> usize {
        self.farewell.response_bytes()
    }

    /// Returns the largest request head that the target accepts, in bytes as [`head_size`] counts them.
    pub fn request_head_max(&self) -> usize {
        self.farewell.head_max().unwrap_or(REQUEST_HEAD_MAX)
    }

    /// Returns whether a request head of `size` bytes may share the connection with other exchanges: a target ends the
    /// whole of an HTTP/2 connection for a head that is too large. Waits a moment for the target's SETTINGS if it
    /// depends on them.
    pub async fn accepts_head(&self, size: usize) -> bool {
        let RequestSender::Http2 { streams, .. } = &self.sender else { return true };
        if size > REQUEST_HEAD_MAX && !streams.is_heard() {
            streams.request_settings_poll();
            let _ = timeout(SETTLE, streams.settings_known()).await;
        }
        size <= self.request_head_max()
    }

    /// Returns whether the target has ended the connection with GOAWAY(HTTP_1_1_REQUIRED).
    pub fn requires_http1(&self) -> bool {
        self.farewell.requires_http1()
    }

    /// Returns why an exchange over this connection was lost, in words for the operator.
    pub fn cause(&self, error: &hyper::Error) -> String {
        error::cause(error, self.farewell.goaway())
    }

    /// The alert by which the target has refused us before it has answered anything.
    pub fn alert(&self) -> Option<TlsError> {
        self.farewell.fault()
    }

    async fn send_inner(&mut self, mut request: Request<Upload>) -> Result<Response<Incoming>, SendError> {
        match &mut self.sender {
            RequestSender::Http1(sender) => {
                request.body_mut().goes_on(None);
                self.farewell.expect_response(request.method() == Method::HEAD);
                sender.try_send_request(for_http1(request)).await.map_err(fault)
            }
            RequestSender::Http2 { sender, streams, slot } => {
                let (head, body) = (RetryHead::of(&request), request.body_mut().buffer_for_replay());
                request.body_mut().goes_on(slot.as_ref().map(StreamPermit::part));
                self.begun_before = Some(self.farewell.begun());
                let sent = sender.try_send_request(for_http2(request)).await;
                let violation = sent.as_ref().ok().and_then(|response| Violation::of(response.headers()));
                if sent.is_ok() {
                    self.farewell.take_response();
                    self.begun_before = None;
                }
                if sent.is_ok() && !streams.is_heard() {
                    // It came before the answer (RFC 9113 §3.4): who is next will not find that nobody knows.
                    streams.request_settings_poll();
                    let _ = timeout(SETTLE, streams.settings_known()).await;
                }
                if let Some(violation) = violation {
                    self.farewell.count_malformed();
                    return Err(SendError::Malformed(violation));
                }
                sent.map_err(|error| {
                    let error = match fault(error) {
                        SendError::Lost(error) => error,
                        other => {
                            self.begun_before = None;
                            return other;
                        }
                    };
                    let Some(why) = unprocessed(&error) else {
                        if shows_a_response(&error) {
                            self.farewell.count_malformed();
                        }
                        return SendError::Lost(error);
                    };
                    self.begun_before = None; // the target's word counts, also behind an interim response
                    SendError::Unprocessed { reason: why, request: body.again().map(|body| head.with(body)) }
                })
            }
        }
    }

    pub fn hop(&self) -> Hop {
        self.hop
    }
    pub fn to(&self) -> SocketAddr {
        self.hop.to()
    }
    /// The version in which it is spoken.
    pub fn http(&self) -> &'static str {
        match &self.sender {
            RequestSender::Http1(_) => "1.1",
            RequestSender::Http2 { .. } => "2",
        }
    }
    pub fn proof(&self) -> Option<&HandshakeInfo> {
        self.proof.as_ref()
    }
    pub fn born(&self) -> Instant {
        self.born
    }
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_closed() || self.farewell.is_unwritable(),
            RequestSender::Http2 { sender, .. } => {
                let is_broken = self.held.is_broken() || self.farewell.is_unwritable();
                sender.is_closed() || is_broken || self.farewell.is_spent()
            }
        }
    }
    /// For how long nothing has gone over it, where it tells by itself.
    pub fn idle(&self) -> Option<Duration> {
        match &self.sender {
            RequestSender::Http1(_) => None,
            RequestSender::Http2 { streams, .. } => Some(streams.idle()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_under_way {
            self.held.abort_exchange();
        }
    }
}

/// Calls `hear` with each interim answer (1xx) that comes before the final one. Of HTTP/1.1 only: hyper keeps those of
/// HTTP/2 to itself.
pub fn on_interim(request: &mut Request<Upload>, hear: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) {
    hyper::ext::on_informational(request, move |response| {
        hear(response.status(), response.headers());
    });
}
