//! An HTTP connection to a target: HTTP/1.1, or HTTP/2 if the target selected it.
//! How is a request sent, and can the connection carry another?

mod body;
mod dispatch;
mod driver;
mod error;
mod frame_scanner;
mod http1;
mod http1_error;
mod http2;
mod open;
mod request;
mod streams;
mod tap;
mod upload;

use std::time::{Duration, Instant};

use rustls::AlertDescription;

use super::connection::{Liveness, MaybeTlsStream};
pub use super::field_filter::Violation;
use super::tls::{HandshakeInfo, TlsError};
use crate::config::ResponseHeadMax;
use crate::http_message::{Request, Response};
use crate::policy::egress::Hop;
pub use body::TargetBody;
pub use error::{ExchangeError, SendError, Unprocessed};
use http1::Http1Connection;
pub use http1::OnInterim;
#[cfg(any(test, fuzzing))]
pub use http1::responses;
pub use http1_error::HeadLimit;
use http2::Http2Connection;
pub use request::{field_section_size, head_size};
pub use upload::{PieceObserver, Upload};

/// A handle on an HTTP connection to a target. The connection is dialled, and verified if it uses TLS.
pub struct Connection {
    protocol: Protocol,
    hop: Hop,
    handshake: Option<HandshakeInfo>,
    created_at: Instant,
}

enum Protocol {
    /// HTTP/1.1 carries one exchange at a time.
    Http1(Http1Connection),
    /// HTTP/2 carries several exchanges.
    Http2(Http2Connection),
}

impl Connection {
    /// Performs the HTTP handshake over `io`.
    pub async fn open(
        io: MaybeTlsStream,
        liveness: Liveness,
        hop: Hop,
        handshake: Option<HandshakeInfo>,
        head_max: ResponseHeadMax,
    ) -> Result<Self, ExchangeError> {
        let protocol = match handshake.as_ref().is_some_and(|info| info.speaks_http2) {
            true => Protocol::Http2(Http2Connection::open(io, liveness, head_max).await?),
            false => Protocol::Http1(Http1Connection::new(io, liveness, head_max)),
        };
        Ok(Self { protocol, hop, handshake, created_at: Instant::now() })
    }

    /// Returns another handle on an HTTP/2 connection that has room for one more exchange. On a new connection the
    /// limit may be unknown; [`Connection::becomes_ready`] then waits for it.
    pub fn share(&self) -> Option<Self> {
        let Protocol::Http2(connection) = &self.protocol else { return None };
        Some(Self {
            protocol: Protocol::Http2(connection.share()?),
            hop: self.hop,
            handshake: self.handshake.clone(),
            created_at: self.created_at,
        })
    }

    /// Marks the exchange as complete. Dropping a handle before that aborts the connection: it carries no new requests,
    /// and open exchanges finish. Bytes that the target has not received by then are discarded.
    pub fn finish_exchange(&mut self) {
        match &mut self.protocol {
            Protocol::Http1(connection) => connection.finish_exchange(),
            Protocol::Http2(connection) => connection.finish_exchange(),
        }
    }

    /// Returns whether the whole request was written, or never will be. A target may respond early (RFC 9113 §8.1) and
    /// stop reading the upload. Then only the end of the connection releases the rest.
    pub fn is_upload_finished(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(connection) => connection.is_upload_finished(),
            Protocol::Http2(connection) => connection.is_upload_finished(),
        }
    }

    /// Waits briefly for the upload to finish: the response may overtake the last bytes, or the target may decline the rest.
    pub async fn upload_finished(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Http1(connection) => connection.upload_finished().await,
            Protocol::Http2(connection) => connection.upload_finished().await,
        }
    }

    /// Returns whether the connection can carry another request now, as far as is known before a byte is sent. Neither
    /// outgate nor the kernel has seen an end or stray bytes.
    pub fn is_ready(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(connection) => connection.is_ready(),
            Protocol::Http2(connection) => connection.is_ready(),
        }
    }

    /// Waits briefly until the connection is ready: it reads what TLS has sent of its own, or, over HTTP/2, SETTINGS.
    pub async fn becomes_ready(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Http1(connection) => connection.becomes_ready().await,
            Protocol::Http2(connection) => connection.becomes_ready().await,
        }
    }

    /// Sends a request. `on_interim` gets the interim responses; hyper gives out none over HTTP/2.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
        on_interim: &mut OnInterim<'_>,
    ) -> Result<Response<TargetBody>, SendError> {
        match &mut self.protocol {
            Protocol::Http1(connection) => {
                connection.send(request, on_interim).await.map(|response| response.map(TargetBody::Http1))
            }
            Protocol::Http2(connection) => {
                // Boxed, so that a delivery over HTTP/1.1 has no room for it.
                Box::pin(connection.send(request)).await.map(|response| response.map(TargetBody::Http2))
            }
        }
    }

    /// Returns whether a byte of the pending response may have arrived. Over HTTP/2 the response of another exchange
    /// looks the same.
    pub fn response_has_begun(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(connection) => connection.response_bytes() > 0,
            Protocol::Http2(connection) => connection.response_has_begun(),
        }
    }

    /// Returns the largest request head that the target accepts, in bytes as [`head_size`] counts them.
    pub fn request_head_max(&self) -> usize {
        match &self.protocol {
            Protocol::Http1(_) => http2::DEFAULT_REQUEST_HEAD_MAX,
            Protocol::Http2(connection) => connection.request_head_max(),
        }
    }

    /// Returns whether a request head of `size` bytes may share the connection with other exchanges. Waits briefly for
    /// the target's SETTINGS if the answer depends on them. A target ends the whole HTTP/2 connection for a head that
    /// is too large.
    pub async fn accepts_head(&self, size: usize) -> bool {
        match &self.protocol {
            Protocol::Http1(_) => true,
            Protocol::Http2(connection) => connection.accepts_head(size).await,
        }
    }

    /// Returns whether the target has ended the connection with GOAWAY(HTTP_1_1_REQUIRED).
    pub fn requires_http1(&self) -> bool {
        matches!(&self.protocol, Protocol::Http2(connection) if connection.observer().requires_http1())
    }

    /// Returns whether outgate has ended this HTTP/2 connection because the target violated the protocol. Of the exchanges
    /// that share the connection, the first that asks gets `true`.
    pub fn take_violation(&self) -> bool {
        matches!(&self.protocol, Protocol::Http2(connection) if connection.observer().take_violation())
    }

    /// Returns a description of a lost exchange for the operator.
    pub fn failure_cause(&self, error: &ExchangeError) -> String {
        let goaway = match &self.protocol {
            Protocol::Http1(_) => None,
            Protocol::Http2(connection) => connection.observer().goaway(),
        };
        error.describe(goaway)
    }

    /// Returns the TLS alert by which the target rejected the client's certificate, or its absence, before its first response.
    ///
    /// With TLS 1.3 it does so after the client has finished the handshake and begun to send HTTP (RFC 8446 §4.4.2.4). Any other
    /// alert ends the exchange, not the handshake.
    pub fn alert_error(&self) -> Option<TlsError> {
        let is_tls13 = self.handshake.as_ref().is_some_and(|handshake| handshake.version == "TLSv1.3");
        let alert = match &self.protocol {
            Protocol::Http1(connection) => connection.alert(),
            Protocol::Http2(connection) => connection.observer().alert(),
        };
        let alert = alert.filter(|alert| is_tls13 && rejects_handshake(*alert))?;
        Some(rustls::Error::AlertReceived(alert).into())
    }

    pub fn hop(&self) -> Hop {
        self.hop
    }
    /// Returns the HTTP version: `1.1` or `2`.
    pub fn http_version(&self) -> &'static str {
        match &self.protocol {
            Protocol::Http1(_) => "1.1",
            Protocol::Http2(_) => "2",
        }
    }
    pub fn handshake_info(&self) -> Option<&HandshakeInfo> {
        self.handshake.as_ref()
    }
    pub fn created_at(&self) -> Instant {
        self.created_at
    }
    /// Returns whether the target has kept an idle connection open, and has sent nothing on it.
    pub fn is_kept_open(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(connection) => connection.is_ready(),
            Protocol::Http2(connection) => !connection.is_closed(),
        }
    }
    pub fn is_closed(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(connection) => connection.is_closed(),
            Protocol::Http2(connection) => connection.is_closed(),
        }
    }
    /// Returns a future that resolves when other deliveries can share the connection: the stream limit of the target is known.
    /// It also resolves if the connection ends before. `None`: HTTP/1.1 carries one exchange at a time.
    pub fn stream_limit_known(&self) -> Option<impl Future<Output = ()> + use<>> {
        match &self.protocol {
            Protocol::Http1(_) => None,
            Protocol::Http2(connection) => Some(connection.stream_limit_known()),
        }
    }
    /// Returns the time since the last exchange on an HTTP/2 connection. The pool tracks HTTP/1.1 connections itself.
    pub fn idle_time(&self) -> Option<Duration> {
        match &self.protocol {
            Protocol::Http1(_) => None,
            Protocol::Http2(connection) => Some(connection.idle_time()),
        }
    }
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

/// Returns whether a server sends this alert because of the client's certificate, or its absence (RFC 8446 §4.4.2.4, §6.2).
fn rejects_handshake(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::HandshakeFailure
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired
    )
}
