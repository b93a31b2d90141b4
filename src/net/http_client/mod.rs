//! An HTTP connection to a target: HTTP/1.1, or HTTP/2 if the target selected it.
//! How is a request sent, and can the connection carry another?

mod driver;
mod error;
mod frame_scanner;
mod open;
mod request;
mod streams;
mod tap;
mod trailer_filter;
mod upload;

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
pub use error::{SendError, Unprocessed, implies_response, is_protocol_error};
use error::{from_try_send_error, unprocessed_reason};
use request::{RetryHead, into_http1, into_http2};
pub use request::{field_section_size, head_size};
use streams::{StreamPermit, Streams};
use tap::{ConnObserver, TappedStream};
#[cfg(any(test, fuzzing))]
pub use trailer_filter::trailers;
pub use upload::Upload;

/// A handle on an HTTP connection to a target. The connection is dialled, and verified if it uses TLS.
pub struct Connection {
    sender: RequestSender,
    liveness: Liveness,
    hop: Hop,
    handshake: Option<HandshakeInfo>,
    observer: ConnObserver,
    created_at: Instant,
    /// All handles share it. Dropping the last handle ends the connection, whatever the target does.
    driver: Arc<DriverHandle>,
    /// This handle has sent a request whose exchange has not ended.
    has_open_exchange: bool,
    /// HTTP/2: the number of responses that had begun before the last request. It is set while the target may still
    /// process that request and its response has not been received.
    responses_before_request: Option<usize>,
}

enum RequestSender {
    /// HTTP/1.1 carries one exchange at a time.
    Http1(http1::SendRequest<Upload>),
    /// HTTP/2 carries several exchanges. A handle with a permit may send one request. Its upload shares the permit
    /// until the last chunk is written.
    Http2 { sender: http2::SendRequest<Upload>, streams: Arc<Streams>, permit: Option<StreamPermit> },
}

/// Time for an event that is expected at once: hyper reads the tail of the last response, or the target's SETTINGS
/// arrive.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(50);
/// The largest request head, in bytes, that is sent to a target without an announced limit. It is the lowest limit of
/// common servers.
const DEFAULT_REQUEST_HEAD_MAX: usize = 16 * 1024;

impl Connection {
    /// Performs the HTTP handshake over `io`, and spawns a task that drives the connection. The task ends when either
    /// side closes or the last handle is dropped.
    pub async fn open(
        io: MaybeTlsStream,
        liveness: Liveness,
        hop: Hop,
        handshake: Option<HandshakeInfo>,
        head_max: ResponseHeadMax,
    ) -> Result<Self, hyper::Error> {
        let observer = ConnObserver::default();
        let streams = handshake.as_ref().is_some_and(|info| info.speaks_http2).then(|| Arc::new(Streams::new()));
        let io = TappedStream::new(io, observer.clone(), streams.clone(), open::header_list_max(head_max));
        let (sender, driver) = match streams {
            Some(streams) => open::open_http2(io, &liveness, streams, head_max).await?,
            None => open::open_http1(io, &liveness, head_max).await?,
        };
        Ok(Self {
            sender,
            liveness,
            hop,
            handshake,
            observer,
            created_at: Instant::now(),
            driver,
            has_open_exchange: false,
            responses_before_request: None,
        })
    }

    /// Returns another handle on an HTTP/2 connection that has room for one more exchange. On a new connection the
    /// limit may be unknown; [`Connection::becomes_ready`] then waits for it.
    pub fn share(&self) -> Option<Self> {
        let RequestSender::Http2 { sender, streams, .. } = &self.sender else { return None };
        if self.driver.is_aborted() {
            return None;
        }
        let permit = streams.try_acquire();
        if permit.is_none() && (streams.is_settings_known() || self.created_at.elapsed() >= SETTLE_TIMEOUT) {
            return None;
        }
        let sender = RequestSender::Http2 { sender: sender.clone(), streams: Arc::clone(streams), permit };
        Some(Self {
            sender,
            liveness: self.liveness.clone(),
            handshake: self.handshake.clone(),
            observer: self.observer.clone(),
            driver: Arc::clone(&self.driver),
            hop: self.hop,
            created_at: self.created_at,
            has_open_exchange: false,
            responses_before_request: None,
        })
    }

    /// Marks the exchange as complete. Dropping a handle before that aborts the connection: it carries no new requests,
    /// and open exchanges finish. Bytes that the target has not received by then are discarded.
    pub fn finish_exchange(&mut self) {
        if std::mem::take(&mut self.has_open_exchange) {
            self.driver.end_exchange();
        }
    }

    /// Returns whether the whole request was written, or never will be. A target may respond early (RFC 9113 §8.1) and
    /// stop reading the upload. Then only the end of the connection releases the rest.
    pub fn is_upload_finished(&self) -> bool {
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_ready(),
            RequestSender::Http2 { permit, .. } => permit.as_ref().is_none_or(StreamPermit::is_upload_finished),
        }
    }

    /// Waits up to [`SETTLE_TIMEOUT`] for the upload of HTTP/2 to finish: the response may overtake the last bytes, or
    /// the target may decline the rest (RST_STREAM with NO_ERROR).
    pub async fn upload_finished(&self) -> bool {
        match &self.sender {
            RequestSender::Http2 { permit: Some(permit), .. } => {
                timeout(SETTLE_TIMEOUT, permit.upload_finished()).await.is_ok()
            }
            _ => self.is_upload_finished(),
        }
    }

    /// Returns whether the connection can carry another request now, as far as is known before a byte is sent. Neither
    /// hyper nor the kernel has seen an end or stray bytes.
    pub fn is_ready(&self) -> bool {
        // The kernel's check comes last, so that no event comes between it and the request.
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_ready() && self.liveness.is_idle_and_open(),
            RequestSender::Http2 { sender, permit, .. } => {
                permit.is_some() && sender.is_ready() && self.liveness.is_idle_and_open()
            }
        }
    }

    /// Waits up to [`SETTLE_TIMEOUT`] until the connection is ready: hyper reads the tail of the last response, or,
    /// over HTTP/2, SETTINGS.
    pub async fn becomes_ready(&mut self) -> bool {
        match &mut self.sender {
            RequestSender::Http1(sender) => {
                let settled = timeout(SETTLE_TIMEOUT, sender.ready()).await;
                matches!(settled, Ok(Ok(()))) && self.liveness.is_idle_and_open()
            }
            RequestSender::Http2 { sender, streams, permit } => {
                if permit.is_none() {
                    let _ = timeout(SETTLE_TIMEOUT, streams.settings_known()).await;
                    *permit = streams.try_acquire();
                }
                // The driver task reads the bytes that the kernel holds; a GOAWAY among them ends the connection.
                tokio::task::yield_now().await;
                permit.is_some() && sender.is_ready() && !self.liveness.is_closed_by_peer()
            }
        }
    }

    pub async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, SendError> {
        if !std::mem::replace(&mut self.has_open_exchange, true) {
            self.driver.begin_exchange();
        }
        let sent = self.send_inner(request).await;
        if sent.is_ok() {
            self.observer.response_received();
        }
        sent
    }

    /// Returns whether a byte of the pending response may have arrived. Over HTTP/2 the response of another exchange
    /// looks the same.
    pub fn response_has_begun(&self) -> bool {
        self.responses_before_request.is_some_and(|responses_before| self.observer.may_have_responded(responses_before))
            || self.response_bytes() > 0
    }

    /// Returns the bytes of the response head that have arrived over HTTP/1.1 since the last request.
    pub fn response_bytes(&self) -> usize {
        self.observer.response_bytes()
    }

    /// Returns the largest request head that the target accepts, in bytes as [`head_size`] counts them.
    pub fn request_head_max(&self) -> usize {
        self.observer.head_max().unwrap_or(DEFAULT_REQUEST_HEAD_MAX)
    }

    /// Returns whether a request head of `size` bytes may share the connection with other exchanges. Waits briefly for
    /// the target's SETTINGS if the answer depends on them. A target ends the whole HTTP/2 connection for a head that
    /// is too large.
    pub async fn accepts_head(&self, size: usize) -> bool {
        let RequestSender::Http2 { streams, .. } = &self.sender else { return true };
        if size > DEFAULT_REQUEST_HEAD_MAX && !streams.is_settings_known() {
            streams.request_settings_poll();
            let _ = timeout(SETTLE_TIMEOUT, streams.settings_known()).await;
        }
        size <= self.request_head_max()
    }

    /// Returns whether the target has ended the connection with GOAWAY(HTTP_1_1_REQUIRED).
    pub fn requires_http1(&self) -> bool {
        self.observer.requires_http1()
    }

    /// Returns a description of a lost exchange for the operator.
    pub fn failure_cause(&self, error: &hyper::Error) -> String {
        error::failure_cause(error, self.observer.goaway())
    }

    /// Returns the TLS alert by which the target rejected the connection before its first response.
    pub fn alert_error(&self) -> Option<TlsError> {
        self.observer.alert_error()
    }

    async fn send_inner(&mut self, mut request: Request<Upload>) -> Result<Response<Incoming>, SendError> {
        match &mut self.sender {
            RequestSender::Http1(sender) => {
                request.body_mut().set_stream(None);
                self.observer.expect_response(request.method() == Method::HEAD);
                sender.try_send_request(into_http1(request)).await.map_err(from_try_send_error)
            }
            RequestSender::Http2 { sender, streams, permit } => {
                let (head, body) = (RetryHead::of(&request), request.body_mut().buffer_for_replay());
                request.body_mut().set_stream(permit.as_ref().map(StreamPermit::upload_permit));
                self.responses_before_request = Some(self.observer.responses_begun());
                let sent = sender.try_send_request(into_http2(request)).await;
                let violation = sent.as_ref().ok().and_then(|response| Violation::of(response.headers()));
                if sent.is_ok() {
                    self.observer.count_response();
                    self.responses_before_request = None;
                }
                if sent.is_ok() && !streams.is_settings_known() {
                    // SETTINGS precede the response (RFC 9113 §3.4), so the next request sees the stream limit.
                    streams.request_settings_poll();
                    let _ = timeout(SETTLE_TIMEOUT, streams.settings_known()).await;
                }
                if let Some(violation) = violation {
                    self.observer.count_malformed();
                    return Err(SendError::Malformed(violation));
                }
                sent.map_err(|error| {
                    let error = match from_try_send_error(error) {
                        SendError::Lost(error) => error,
                        other => {
                            self.responses_before_request = None;
                            return other;
                        }
                    };
                    let Some(reason) = unprocessed_reason(&error) else {
                        if implies_response(&error) {
                            self.observer.count_malformed();
                        }
                        return SendError::Lost(error);
                    };
                    self.responses_before_request = None; // the target's statement holds, even after an interim response
                    SendError::Unprocessed { reason, request: body.replay().map(|body| head.with_body(body)) }
                })
            }
        }
    }

    pub fn hop(&self) -> Hop {
        self.hop
    }
    /// Returns the HTTP version: `1.1` or `2`.
    pub fn http_version(&self) -> &'static str {
        match &self.sender {
            RequestSender::Http1(_) => "1.1",
            RequestSender::Http2 { .. } => "2",
        }
    }
    pub fn handshake_info(&self) -> Option<&HandshakeInfo> {
        self.handshake.as_ref()
    }
    pub fn created_at(&self) -> Instant {
        self.created_at
    }
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_closed() || self.observer.is_unwritable(),
            RequestSender::Http2 { sender, .. } => {
                let is_broken = self.driver.is_aborted() || self.observer.is_unwritable();
                sender.is_closed() || is_broken || self.observer.is_exhausted()
            }
        }
    }
    /// Returns the time since the last exchange on an HTTP/2 connection. The pool tracks HTTP/1.1 connections itself.
    pub fn idle_time(&self) -> Option<Duration> {
        match &self.sender {
            RequestSender::Http1(_) => None,
            RequestSender::Http2 { streams, .. } => Some(streams.idle_time()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.has_open_exchange {
            self.driver.abort_exchange();
        }
    }
}

/// Calls `on_response` with each interim response (1xx) before the final one. hyper supports it for HTTP/1.1 only.
pub fn on_interim(request: &mut Request<Upload>, on_response: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) {
    hyper::ext::on_informational(request, move |response| {
        on_response(response.status(), response.headers());
    });
}

/// Parses a Content-Length: `1*DIGIT` without a sign, a list or an overflow (RFC 9110 §8.6).
pub fn parse_content_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}
