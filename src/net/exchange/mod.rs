//! One connection to a target, over a stream that we dialled: HTTP/1.1, or HTTP/2 where the target chose it.
//! How is a request sent, and can the connection serve another?

mod farewell;
mod hold;
mod streams;
mod upload;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::iter::successors;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use tokio::time::timeout;

use super::connection::{Liveness, Wire};
use super::tls::{Proof, TlsFault};
use crate::policy::egress::Hop;
use farewell::{Attended, Farewell};
use hold::Held;
use streams::{Slot, Streams};
pub use upload::Upload;

/// A connection that was dialled, and verified where it is TLS.
pub struct Connection {
    sender: Sender,
    liveness: Liveness,
    hop: Hop,
    proof: Option<Proof>,
    farewell: Farewell,
    born: Instant,
    /// Every handle has it. With the last one the connection goes, whatever the target does.
    held: Arc<Held>,
    /// Through this handle a request has gone, whose exchange has not ended.
    is_under_way: bool,
}

enum Sender {
    /// One exchange at a time.
    Http1(http1::SendRequest<Upload>),
    /// A handle; with a slot, on which one exchange may go. Its upload has the slot, too, until it is through.
    Http2 { sender: http2::SendRequest<Upload>, streams: Arc<Streams>, slot: Option<Slot> },
}

pub enum SendFault {
    /// The target has not acted on it: the request may go over another connection.
    Unsent(Box<Request<Upload>>),
    /// Some of it may have arrived: it must not be sent again (RFC 9110 §9.2.2).
    Lost(hyper::Error),
}

/// Fields and bytes of a response head; a target that sends more is refused.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;
const RESPONSE_FIELDS_MAX: usize = 100;
/// The tail of the last response may still be in hyper's hands when the next request asks for the connection.
const SETTLE: Duration = Duration::from_millis(50);
/// Until the target says how many streams it allows: no target says this, for h2 takes none for `usize::MAX`, and any other
/// has 32 bits (RFC 9113 §6.5.2).
const UNHEARD: usize = usize::MAX - 1;
/// What one target may have under way to us, in bytes; clients that read slowly would have us hold it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// A connection that many deliveries share is asked whether it still lives while they wait.
const PING_AFTER: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(5);

impl Connection {
    /// Speaks HTTP over `wire`, and drives it in a task of its own until either side closes, or the last handle is gone.
    pub async fn open(wire: Wire, liveness: Liveness, hop: Hop, proof: Option<Proof>) -> Result<Self, hyper::Error> {
        let farewell = Farewell::default();
        let streams = proof.as_ref().is_some_and(|proof| proof.speaks_http2).then(|| Arc::new(Streams::new()));
        let wire = Attended { wire, farewell: farewell.clone(), streams: streams.clone() };
        let (sender, held) = match streams {
            Some(streams) => open_http2(wire, &liveness, streams).await?,
            None => open_http1(wire, &liveness).await?,
        };
        Ok(Self { sender, liveness, hop, proof, farewell, born: Instant::now(), held, is_under_way: false })
    }

    /// Another handle on a connection that carries several exchanges at once, if it has room for one more. Where it is
    /// so young that nobody knows, that turns out when the handle becomes ready.
    pub fn share(&self) -> Option<Self> {
        let Sender::Http2 { sender, streams, .. } = &self.sender else { return None };
        if self.held.is_broken() {
            return None;
        }
        let slot = streams.slot();
        let may_be_told = !streams.is_heard() && self.born.elapsed() < SETTLE;
        if slot.is_none() && !may_be_told {
            return None;
        }
        let sender = Sender::Http2 { sender: sender.clone(), streams: Arc::clone(streams), slot };
        Some(Self {
            sender,
            liveness: self.liveness.clone(),
            proof: self.proof.clone(),
            farewell: self.farewell.clone(),
            held: Arc::clone(&self.held),
            hop: self.hop,
            born: self.born,
            is_under_way: false,
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
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2 { slot, .. } => slot.as_ref().is_none_or(Slot::is_uploaded),
        }
    }

    /// The same of HTTP/2 after a moment: for what was on its way when the answer overtook it, or for the target to say
    /// that it wants no more of it (RST_STREAM with NO_ERROR).
    pub async fn upload_gets_through(&self) -> bool {
        match &self.sender {
            Sender::Http2 { slot: Some(slot), .. } => timeout(SETTLE, slot.uploaded()).await.is_ok(),
            _ => self.upload_is_through(),
        }
    }

    /// Whether another request may go over it now, as far as can be known before a byte is sent: neither hyper nor the
    /// kernel has seen an end or stray bytes.
    pub fn is_ready(&self) -> bool {
        // The kernel is asked last: nothing comes between its answer and the request.
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready() && self.liveness.is_quiet(),
            Sender::Http2 { sender, slot, .. } => slot.is_some() && sender.is_ready() && self.liveness.is_quiet(),
        }
    }

    /// The same after a moment: for the last answer's tail to be read, or, in HTTP/2, frames that concern all streams.
    pub async fn becomes_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => {
                let settled = timeout(SETTLE, sender.ready()).await;
                matches!(settled, Ok(Ok(()))) && self.liveness.is_quiet()
            }
            Sender::Http2 { sender, streams, slot } => {
                if slot.is_none() {
                    let _ = timeout(SETTLE, streams.heard()).await;
                    *slot = streams.slot();
                }
                // What the kernel holds goes to the task that drives the connection: a GOAWAY would end it.
                tokio::task::yield_now().await;
                slot.is_some() && sender.is_ready() && !self.liveness.has_ended()
            }
        }
    }

    pub async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, SendFault> {
        if !std::mem::replace(&mut self.is_under_way, true) {
            self.held.begin();
        }
        let sent = self.exchange(request).await;
        if sent.is_ok() {
            self.farewell.answered();
        }
        sent
    }

    /// The alert by which the target has refused us before it has answered anything.
    pub fn alert(&self) -> Option<TlsFault> {
        self.farewell.fault()
    }

    async fn exchange(&mut self, mut request: Request<Upload>) -> Result<Response<Incoming>, SendFault> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                request.body_mut().goes_on(None);
                sender.try_send_request(for_http1(request)).await.map_err(fault)
            }
            Sender::Http2 { sender, streams, slot } => {
                let again = again(&request);
                request.body_mut().goes_on(slot.as_ref().map(Slot::part));
                let sent = sender.try_send_request(for_http2(request)).await;
                if sent.is_ok() && !streams.is_heard() {
                    // It came before the answer (RFC 9113 §3.4): who is next will not find that nobody knows.
                    streams.look();
                    let _ = timeout(SETTLE, streams.heard()).await;
                }
                sent.map_err(|error| match (fault(error), again) {
                    (SendFault::Lost(error), Some(request)) if is_untouched(&error) => {
                        SendFault::Unsent(Box::new(request))
                    }
                    (fault, _) => fault,
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
            Sender::Http1(_) => "1.1",
            Sender::Http2 { .. } => "2",
        }
    }
    pub fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
    }
    pub fn born(&self) -> Instant {
        self.born
    }
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2 { sender, .. } => sender.is_closed() || self.held.is_broken(),
        }
    }
    /// For how long nothing has gone over it, where it tells by itself.
    pub fn idle(&self) -> Option<Duration> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2 { streams, .. } => Some(streams.idle()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_under_way {
            self.held.break_off();
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

/// Whether the target broke the rules of HTTP, rather than off.
pub fn breaks_the_protocol(error: &hyper::Error) -> bool {
    let mut causes = successors(std::error::Error::source(error), |cause| cause.source());
    error.is_parse()
        || causes.any(|cause| {
            // How hyper tells of a malformed chunk.
            let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            let is_malformed = matches!(kind, Some(ErrorKind::InvalidData | ErrorKind::InvalidInput));
            is_malformed || cause.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_library)
        })
}

async fn open_http1(wire: Attended, liveness: &Liveness) -> Result<(Sender, Arc<Held>), hyper::Error> {
    let (sender, driver) =
        http1::Builder::new().max_buf_size(RESPONSE_HEAD_MAX).max_headers(RESPONSE_FIELDS_MAX).handshake(wire).await?;
    let (held, hold) = hold::new(liveness);
    // Whoever waits for a response hears of an error there; on an idle connection it is no news.
    hold.drive(driver);
    Ok((Sender::Http1(sender), held))
}

async fn open_http2(
    wire: Attended,
    liveness: &Liveness,
    streams: Arc<Streams>,
) -> Result<(Sender, Arc<Held>), hyper::Error> {
    let (held, hold) = hold::new(liveness);
    let (sender, driver) = http2::Builder::new(hold.clone())
        .timer(TokioTimer::new())
        .initial_max_send_streams(UNHEARD)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(RESPONSE_HEAD_MAX as u32)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_WITHIN)
        .handshake(wire)
        .await?;
    let told = Arc::clone(&streams);
    hold.drive(async move {
        let (mut driver, mut most) = (pin!(driver), UNHEARD);
        let mut drives = poll_fn(|cx| {
            let polled = driver.as_mut().poll(cx);
            let before = std::mem::replace(&mut most, driver.current_max_send_streams());
            if most != before {
                told.allow(most);
            }
            polled
        });
        // Of SETTINGS nobody wakes it: another task of hyper's reads them.
        loop {
            tokio::select! {
                biased;
                _ = &mut drives => break,
                () = told.wanted() => {}
            }
        }
    });
    Ok((Sender::Http2 { sender, streams, slot: None }, held))
}

/// RFC 9112 §3.2.1: the path alone, and the host in a field.
fn for_http1(mut request: Request<Upload>) -> Request<Upload> {
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str());
        request.headers_mut().extend(host.ok().map(|host| (header::HOST, host)));
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
    }
    request
}

/// RFC 9113 §8.3.1: all of the target in pseudo-fields; and §8.2.2: nothing about the connection.
fn for_http2(mut request: Request<Upload>) -> Request<Upload> {
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    if let Some(host) = request.headers_mut().remove(header::HOST) {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(host.as_bytes())).ok();
        let path = request.uri().path_and_query().cloned();
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    *request.version_mut() = http::Version::HTTP_2;
    request
}

/// The same request once more, where it can be had twice.
fn again(request: &Request<Upload>) -> Option<Request<Upload>> {
    let mut again = Request::new(request.body().again()?);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

fn fault(mut error: hyper::client::conn::TrySendError<Request<Upload>>) -> SendFault {
    match error.take_message() {
        Some(request) => SendFault::Unsent(Box::new(request)),
        None => SendFault::Lost(error.into_error()),
    }
}

/// Whether the target has promised not to have acted on the request: it refused the stream, or went away before it
/// came to it (RFC 9113 §8.7).
fn is_untouched(error: &hyper::Error) -> bool {
    let Some(error) = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>()) else {
        return false;
    };
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let went = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (refused || went)
}
