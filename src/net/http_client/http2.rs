//! A handle on an HTTP/2 connection to a target, whose exchanges hyper drives.
//! Is there room for another exchange, and has the target processed this request?

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use tokio::time::timeout;

use super::dispatch::Sender;
use super::driver::DriverHandle;
use super::error::{
    ExchangeError, SendError, ends_connection, from_try_send_error, implies_response, unprocessed_reason,
};
use super::request::{RetryHead, into_http2};
use super::streams::{StreamPermit, Streams};
use super::tap::{ConnObserver, TappedStream};
use super::{Upload, Violation, open};
use crate::config::ResponseHeadMax;
use crate::http_message::{Request, Response};
use crate::net::connection::{Liveness, MaybeTlsStream};

/// Time for an event that is expected at once: the target's SETTINGS arrive, or the upload ends.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(50);
/// The largest request head, in bytes, that is sent to a target without an announced limit. It is the lowest limit of
/// common servers.
pub(super) const DEFAULT_REQUEST_HEAD_MAX: usize = 16 * 1024;

/// A handle that may send one request if it has a permit.
pub(super) struct Http2Connection {
    sender: Sender,
    streams: Arc<Streams>,
    /// The upload of the request shares the permit until its last chunk is written.
    permit: Option<StreamPermit>,
    observer: ConnObserver,
    liveness: Liveness,
    created_at: Instant,
    /// All handles share it. Dropping the last handle ends the connection, whatever the target does.
    driver: Arc<DriverHandle>,
    /// This handle has sent a request whose exchange has not ended.
    has_open_exchange: bool,
    /// The number of responses that had begun before the last request. It is set while the target may still process that
    /// request and its response has not been received.
    responses_before_request: Option<usize>,
}

impl Http2Connection {
    /// Performs the HTTP handshake over `io`, and spawns a task that drives the connection. The task ends when either
    /// side closes or the last handle is dropped.
    pub(super) async fn open(
        io: MaybeTlsStream,
        liveness: Liveness,
        head_max: ResponseHeadMax,
    ) -> Result<Self, ExchangeError> {
        let (observer, streams) = (ConnObserver::default(), Arc::new(Streams::new()));
        let io = TappedStream::new(io, observer.clone(), Arc::clone(&streams), open::header_list_max(head_max));
        let (sender, driver) = open::open_http2(io, &liveness, &streams, head_max).await?;
        Ok(Self {
            sender,
            streams,
            permit: None,
            observer,
            liveness,
            created_at: Instant::now(),
            driver,
            has_open_exchange: false,
            responses_before_request: None,
        })
    }

    /// Returns another handle if the connection has room for one more exchange. On a new connection the limit may be
    /// unknown; [`Http2Connection::becomes_ready`] then waits for it.
    pub(super) fn share(&self) -> Option<Self> {
        if self.driver.is_aborted() {
            return None;
        }
        let permit = self.streams.try_acquire();
        if permit.is_none() && (self.streams.is_settings_known() || self.created_at.elapsed() >= SETTLE_TIMEOUT) {
            return None;
        }
        Some(Self {
            sender: self.sender.clone(),
            streams: Arc::clone(&self.streams),
            permit,
            observer: self.observer.clone(),
            liveness: self.liveness.clone(),
            created_at: self.created_at,
            driver: Arc::clone(&self.driver),
            has_open_exchange: false,
            responses_before_request: None,
        })
    }

    /// Marks the exchange as complete. Dropping a handle before that aborts the connection: it carries no new requests,
    /// and open exchanges finish. Bytes that the target has not received by then are discarded.
    pub(super) fn finish_exchange(&mut self) {
        if std::mem::take(&mut self.has_open_exchange) {
            self.driver.end_exchange();
        }
    }

    pub(super) fn is_upload_finished(&self) -> bool {
        self.permit.as_ref().is_none_or(StreamPermit::is_upload_finished)
    }

    /// Waits up to [`SETTLE_TIMEOUT`] for the upload to finish: the response may overtake the last bytes, or the target may
    /// decline the rest (RST_STREAM with NO_ERROR).
    pub(super) async fn upload_finished(&self) -> bool {
        match &self.permit {
            Some(permit) => timeout(SETTLE_TIMEOUT, permit.upload_finished()).await.is_ok(),
            None => true,
        }
    }

    /// Returns whether the connection can carry another request now. Neither hyper nor the kernel has seen an end.
    pub(super) fn is_ready(&self) -> bool {
        // The kernel's check comes last, so that no event comes between it and the request.
        self.permit.is_some() && self.sender.is_ready() && self.liveness.is_idle_and_open()
    }

    /// Waits up to [`SETTLE_TIMEOUT`] for the target's SETTINGS.
    pub(super) async fn becomes_ready(&mut self) -> bool {
        if self.permit.is_none() {
            let _ = timeout(SETTLE_TIMEOUT, self.streams.settings_known()).await;
            self.permit = self.streams.try_acquire();
        }
        // The driver task reads the bytes that the kernel holds; a GOAWAY among them ends the connection.
        tokio::task::yield_now().await;
        self.permit.is_some() && self.sender.is_ready() && !self.liveness.is_closed_by_peer()
    }

    pub(super) async fn send(&mut self, mut request: Request<Upload>) -> Result<Response<Incoming>, SendError> {
        let (head, body) = (RetryHead::of(&request), request.body.buffer_for_replay());
        self.permit.iter().for_each(|permit| permit.set_responded(false));
        request.body.set_stream(self.permit.as_ref().map(StreamPermit::upload_permit));
        self.responses_before_request = Some(self.observer.responses_begun());
        let request = into_http2(request).map_err(|_| SendError::Invalid)?;
        if !std::mem::replace(&mut self.has_open_exchange, true) {
            self.driver.begin_exchange();
        }
        let sent = self.sender.try_send(request).await;
        let violation = sent.as_ref().ok().and_then(|response| Violation::of(response.headers()));
        if sent.is_ok() {
            self.permit.iter().for_each(|permit| permit.set_responded(true));
            self.observer.count_response();
            self.responses_before_request = None;
        }
        if sent.is_ok() && !self.streams.is_settings_known() {
            // SETTINGS precede the response (RFC 9113 §3.4), so the next request sees the stream limit.
            self.streams.request_settings_poll();
            let _ = timeout(SETTLE_TIMEOUT, self.streams.settings_known()).await;
        }
        if let Some(violation) = violation {
            self.observer.count_malformed();
            return Err(SendError::Malformed(violation));
        }
        let sent = sent.map_err(|error| {
            let (error, head) = match from_try_send_error(error, head) {
                Ok(unsent) => {
                    self.responses_before_request = None;
                    return unsent;
                }
                Err(error) => error,
            };
            let Some(reason) = unprocessed_reason(&error) else {
                if implies_response(&error) {
                    self.observer.count_malformed();
                }
                if ends_connection(&error) {
                    self.observer.record_violation();
                }
                return SendError::Lost(error.into());
            };
            self.responses_before_request = None; // the target's statement holds, even after an interim response
            SendError::Unprocessed { reason, request: body.replay().map(|body| head.with_body(body)) }
        });
        if sent.is_ok() {
            self.observer.response_received();
        }
        sent.map(Response::from)
    }

    /// Returns whether a byte of the pending response may have arrived. The response of another exchange looks the same.
    pub(super) fn response_has_begun(&self) -> bool {
        self.responses_before_request.is_some_and(|responses_before| self.observer.may_have_responded(responses_before))
    }

    /// Returns the largest request head that the target accepts, in bytes as [`super::head_size`] counts them.
    pub(super) fn request_head_max(&self) -> usize {
        self.observer.head_max().unwrap_or(DEFAULT_REQUEST_HEAD_MAX)
    }

    pub(super) async fn accepts_head(&self, size: usize) -> bool {
        if size > DEFAULT_REQUEST_HEAD_MAX && !self.streams.is_settings_known() {
            self.streams.request_settings_poll();
            let _ = timeout(SETTLE_TIMEOUT, self.streams.settings_known()).await;
        }
        size <= self.request_head_max()
    }

    pub(super) fn observer(&self) -> &ConnObserver {
        &self.observer
    }

    pub(super) fn is_closed(&self) -> bool {
        let is_broken = self.driver.is_aborted() || self.observer.is_unwritable();
        self.sender.is_closed() || is_broken || self.observer.is_exhausted()
    }

    /// Resolves when the target's stream limit is known, or the connection has ended.
    pub(super) fn stream_limit_known(&self) -> impl Future<Output = ()> + use<> {
        self.streams.settings_known()
    }

    /// Returns the time since the last exchange.
    pub(super) fn idle_time(&self) -> Duration {
        self.streams.idle_time()
    }
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        if self.has_open_exchange {
            self.driver.abort_exchange();
        }
    }
}
