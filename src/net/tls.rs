//! TLS handshakes with targets.
//! Is the peer the target's host, and if not, which check failed?

pub mod accept;
mod certificate;
mod client_tls;
mod error;
pub mod leaf_issuer;
mod sessions;
mod verified_chains;
mod verify;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{ClientConnection, HandshakeKind, ProtocolVersion};
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::connection::{MaybeTlsStream, OutboundSocket};
use super::deadline;
use super::ticket_meter::TicketMeter;
use crate::config::VerifyMode;
use crate::names::{Host, TenantName};
use crate::policy::expiry::certificate_timestamp;
use crate::policy::trust::Trust;
use crate::policy::trust::error::VerifyError;
pub use certificate::CertificateSummary;
pub use client_tls::ClientTls;
pub use error::{HandshakeError, TlsError};
use verify::CapturedVerification;

/// The ALPN identifier of HTTP/2 (RFC 9113 §3.2).
const ALPN_H2: &[u8] = b"h2";
/// The ALPN identifier of HTTP/1.1 (RFC 7301 §6).
const ALPN_HTTP_1_1: &[u8] = b"http/1.1";

/// The HTTP versions that are offered to a target (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlpnOffer {
    Http2OrHttp1,
    Http2,
    Http1,
    /// No offer: the peer does not speak HTTP.
    None,
}

/// Time for a peer to close its direction.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes that are discarded meanwhile.
const CLOSE_DISCARD_MAX: u64 = 64 * 1024;

/// The result of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// The protocol version: `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite's name in the IANA registry.
    pub suite: &'static str,
    /// The end of the validity of the target's certificate.
    pub expires: Timestamp,
    /// `false`: the trust accepts any certificate.
    pub verified: bool,
    /// The target selected HTTP/2 (ALPN, RFC 7301).
    pub speaks_http2: bool,
}

/// Performs a handshake on `socket`, and verifies that the peer is `host`. `tenant`: only sessions of this tenant are
/// resumed.
pub async fn handshake(
    mut socket: OutboundSocket,
    terms: &ClientTls,
    tenant: Option<&TenantName>,
    host: &Host,
    offer: AlpnOffer,
    deadline: Instant,
) -> Result<(MaybeTlsStream, HandshakeInfo), HandshakeError> {
    let (tickets, name) = (Arc::new(TicketMeter::default()), server_name(host)?);
    socket.set_tickets(Arc::clone(&tickets));
    let config = Arc::new(terms.config(tenant, Arc::clone(&tickets)));
    let versions = match offer {
        AlpnOffer::Http2OrHttp1 => config.alpn_protocols.clone(),
        AlpnOffer::Http2 => vec![ALPN_H2.to_vec()],
        AlpnOffer::Http1 => vec![ALPN_HTTP_1_1.to_vec()],
        AlpnOffer::None => Vec::new(),
    };
    let connector = TlsConnector::from(Arc::clone(&config));
    // Boxed, because every delivery has room for this future, and few begin a handshake.
    let connect = Box::pin(connector.with_alpn(versions).connect(name.clone(), TokioIo::new(TokioIo::new(socket))));
    let (connected, CapturedVerification { leaf, rejection: refused }) =
        verify::capture(deadline::timeout_at(deadline, connect)).await;
    let connected = connected
        .map_err(|_| TlsError::Timeout)
        .and_then(|connected| connected.map_err(|error| refused.map_or_else(|| error.into(), TlsError::from)));
    let stream = connected.map_err(|error| HandshakeError::with_certificate(error, leaf.as_deref()))?;
    tickets.end_handshake();
    let connection = stream.get_ref().1;
    let info = finish_handshake(connection, terms, &name, config.time_provider.current_time());
    let leaf = peer_chain(connection).ok().map(|(leaf, _)| leaf.as_ref());
    let info = info.map_err(|error| HandshakeError::with_certificate(error, leaf))?;
    Ok((MaybeTlsStream::from(stream), info))
}

/// Verifies the certificates of a resumed session, for which rustls does not ask: they were verified when the session began,
/// and may have expired since.
fn finish_handshake(
    connection: &ClientConnection,
    terms: &ClientTls,
    name: &ServerName<'_>,
    now: Option<UnixTime>,
) -> Result<HandshakeInfo, TlsError> {
    if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
        let (leaf, intermediates) = peer_chain(connection)?;
        terms.chains().verify(leaf, intermediates, name, now.ok_or(TlsError::Timeout)?)?;
    }
    handshake_info(connection, terms.trust())
}

/// Closes a connection on which only a handshake took place. It waits up to [`CLOSE_TIMEOUT`] for the peer to close it
/// too: a peer that serves one connection at a time is then free for the next.
pub async fn close(stream: MaybeTlsStream) {
    let mut stream = TokioIo::new(stream);
    let closed = async {
        stream.shutdown().await?;
        // The peer's session tickets are read, because closing a socket with unread bytes resets the connection.
        tokio::io::copy(&mut stream.take(CLOSE_DISCARD_MAX), &mut tokio::io::sink()).await
    };
    // Whatever the result, the connection is dropped here.
    let _: Result<io::Result<u64>, _> = timeout(CLOSE_TIMEOUT, closed).await;
}

/// Returns the issuer of the peer's certificate, as text for an operator.
pub fn issuer(stream: &MaybeTlsStream) -> Option<String> {
    let MaybeTlsStream::Https(stream) = stream else { return None };
    let (leaf, _) = peer_chain(stream.inner().get_ref().1).ok()?;
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    Some(leaf.issuer().to_string())
}

fn peer_chain(
    connection: &ClientConnection,
) -> Result<(&CertificateDer<'static>, &[CertificateDer<'static>]), TlsError> {
    let chain = connection.peer_certificates().and_then(<[_]>::split_first);
    chain.ok_or(VerifyError::Malformed.into())
}

fn server_name(host: &Host) -> Result<ServerName<'static>, VerifyError> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        // A host that is not a valid DNS name cannot be in a certificate.
        Host::Name(name) => {
            let name = DnsName::try_from(String::from(&**name)).map_err(|_| VerifyError::NameMismatch)?;
            Ok(ServerName::DnsName(name))
        }
    }
}

fn handshake_info(connection: &ClientConnection, trust: &Trust) -> Result<HandshakeInfo, TlsError> {
    let (leaf, _) = peer_chain(connection)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| VerifyError::Malformed)?;
    Ok(HandshakeInfo {
        version: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        suite: connection
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .map_or("", iana_suite_name),
        expires: certificate_timestamp(leaf.validity().not_after.timestamp()),
        verified: trust.verify == VerifyMode::Full,
        speaks_http2: connection.alpn_protocol() == Some(ALPN_H2),
    })
}

/// Converts rustls's name of a suite into the IANA name: they differ for TLS 1.3.
fn iana_suite_name(suite: &'static str) -> &'static str {
    match suite {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite,
    }
}

#[cfg(test)]
mod tests;
