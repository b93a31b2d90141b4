//! TLS towards a target that must prove its name.
//! Who is at the other end, and if it is not who it should be, in what way?

pub mod accept;
mod certificate;
mod client_tls;
mod error;
pub mod leaf_issuer;
mod verify;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{ClientConnection, HandshakeKind, ProtocolVersion};
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::connection::{MaybeTlsStream, OutboundSocket};
use crate::config::VerifyMode;
use crate::names::{Host, TenantName};
use crate::policy::trust::Trust;
use crate::policy::trust::fault::CertificateFault;
pub use certificate::CertificateSummary;
pub use client_tls::ClientTls;
pub use error::{HandshakeError, TlsError};
use verify::CapturedVerification;

/// RFC 9113 §3.2.
const HTTP_2: &[u8] = b"h2";
/// RFC 7301 §6.
const HTTP_1_1: &[u8] = b"http/1.1";

/// The versions of HTTP that are offered to a target (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlpnOffer {
    Http2OrHttp1,
    Http1,
}

/// Time for a peer to close its end of a connection that has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes that are read meanwhile.
const CLOSE_READ_MAX: u64 = 64 * 1024;

/// What a finished handshake has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// The name in the IANA registry.
    pub suite: &'static str,
    /// The end of the target's own certificate.
    pub expires: Timestamp,
    /// `false`: under this trust any certificate would have done.
    pub verified: bool,
    /// The target chose HTTP/2 (RFC 7301).
    pub speaks_http2: bool,
}

/// Proves that the peer of `socket` is `host`, under `terms` and with the sessions of `tenant` alone.
pub async fn handshake(
    socket: OutboundSocket,
    terms: &ClientTls,
    tenant: Option<&TenantName>,
    host: &Host,
    offer: AlpnOffer,
    deadline: Instant,
) -> Result<(MaybeTlsStream, HandshakeInfo), HandshakeError> {
    let (config, name) = (terms.config(tenant), server_name(host)?);
    let versions = match offer {
        AlpnOffer::Http2OrHttp1 => config.alpn_protocols.clone(),
        AlpnOffer::Http1 => vec![HTTP_1_1.to_vec()],
    };
    let connector = TlsConnector::from(Arc::clone(&config));
    let connect = connector.with_alpn(versions).connect(name.clone(), TokioIo::new(TokioIo::new(socket)));
    let (connected, CapturedVerification { leaf, refused }) = verify::watched(timeout_at(deadline, connect)).await;
    let connected = connected
        .map_err(|_| TlsError::Timeout)
        .and_then(|connected| connected.map_err(|error| refused.map_or_else(|| error.into(), TlsError::from)));
    let stream = connected.map_err(|fault| HandshakeError::with(fault, leaf.as_deref()))?;
    let connection = stream.get_ref().1;
    let proof = settle(connection, terms.trust(), &name, config.time_provider.current_time());
    let leaf = shown(connection).ok().map(|(leaf, _)| leaf.as_ref());
    let proof = proof.map_err(|fault| HandshakeError::with(fault, leaf))?;
    Ok((MaybeTlsStream::from(stream), proof))
}

/// Judges a resumed session anew: its certificates were good when the session began.
fn settle(
    connection: &ClientConnection,
    trust: &Trust,
    name: &ServerName<'_>,
    now: Option<UnixTime>,
) -> Result<HandshakeInfo, TlsError> {
    if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
        let (leaf, intermediates) = shown(connection)?;
        trust.judge(leaf, intermediates, name, now.ok_or(TlsError::Timeout)?)?;
    }
    proof(connection, trust)
}

/// Ends a connection on which nothing but a handshake was spoken, and waits for the peer to end it too, for a bounded
/// time: a peer that serves one connection at a time is then free for the next.
pub async fn close(wire: MaybeTlsStream) {
    let mut stream = TokioIo::new(wire);
    let closed = async {
        stream.shutdown().await?;
        // The peer's session tickets are read: bytes left unread would turn the close into a reset.
        tokio::io::copy(&mut stream.take(CLOSE_READ_MAX), &mut tokio::io::sink()).await
    };
    // However it ends, the connection is dropped here.
    let _: Result<io::Result<u64>, _> = timeout(CLOSE_TIMEOUT, closed).await;
}

/// Who has issued what the peer shows, for people to read.
pub fn issuer(wire: &MaybeTlsStream) -> Option<String> {
    let MaybeTlsStream::Https(stream) = wire else { return None };
    let (leaf, _) = shown(stream.inner().get_ref().1).ok()?;
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    Some(leaf.issuer().to_string())
}

fn shown(connection: &ClientConnection) -> Result<(&CertificateDer<'static>, &[CertificateDer<'static>]), TlsError> {
    let chain = connection.peer_certificates().and_then(<[_]>::split_first);
    chain.ok_or(CertificateFault::Malformed.into())
}

fn server_name(host: &Host) -> Result<ServerName<'static>, CertificateFault> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        // What is no DNS name can stand in no certificate.
        Host::Name(name) => {
            let name = DnsName::try_from(String::from(&**name)).map_err(|_| CertificateFault::NameMismatch)?;
            Ok(ServerName::DnsName(name))
        }
    }
}

fn proof(connection: &ClientConnection, trust: &Trust) -> Result<HandshakeInfo, TlsError> {
    let (leaf, _) = shown(connection)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateFault::Malformed)?;
    Ok(HandshakeInfo {
        version: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        suite: connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).map_or("", registered),
        // RFC 5280 §4.1.2.5: 99991231235959Z says "does not expire", and is beyond what a `Timestamp` holds.
        expires: Timestamp::from_second(leaf.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX),
        verified: trust.verify == VerifyMode::Full,
        speaks_http2: connection.alpn_protocol() == Some(HTTP_2),
    })
}

/// rustls marks the suites of TLS 1.3 in its own way.
fn registered(suite: &'static str) -> &'static str {
    match suite {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite,
    }
}

#[cfg(test)]
mod tests;
